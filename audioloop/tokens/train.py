"""Training of the token models (``audioloop train masked`` and ``causal``) on rendered loops.

`Masked` is trained as it decodes: in one codebook, spans of three frames are masked. Their share is
the cosine of a uniform angle. The codebooks before are known, those after are masked (Ziv et al.
2024, section 3.1). Most batches are circular sequences, some are excerpts with ends. `Causal` is
trained on excerpts that start anywhere in a loop and wrap around it. For classifier-free guidance,
parts of the conditioning are dropped at random.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from audioloop.codec import compression, encoded_dataset
from audioloop.codec.encoded_dataset import EncodedLoop
from audioloop.conditioning import NOTES, NULL_PROGRAM, ConditioningTensors, stack
from audioloop.rendering import augment
from audioloop.tokens import pretrained
from audioloop.tokens.model import Causal, Masked, TokenConfig
from audioloop.tokens.pretrained import KINDS
from midiloop.common import checkpoint, devices, trainer
from midiloop.common.engine import Engine
from midiloop.common.task import Losses, Step, Task
from midiloop.common.train_config import Budget, TrainConfig
from midiloop.common.trainer import Progress, Result, Trainer
from midiloop.common.training_record import check_folder
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError

LOOP_FRAMES = 400  # of a typical loop: a batch of B has B times as many frames
N_LOOPS = 10_000
N_VALID, VALID_FRAMES = 32, 400


@dataclass(frozen=True)
class TokenRecipe:
    """Masking, excerpts and dropout of the conditioning. All shares are from 0 to 1.

    Attributes:
        span: frames that are masked together.
        line: frames of an excerpt with ends.
        line_every: `Masked` sees excerpts instead of circular sequences every so many steps; 0:
            never.
        first: share of steps that mask the first codebook; the others share the rest.
        unconditional: share of loops with the null condition.
        without_notes: share of the others without notes, so that beat, kit and bass alone can
            condition the model; a third of those is also without the beat.
        without_program: share of the others without a kit, and without a bass.
        partial: share of excerpts of which `Causal` sees only the first codebooks, as in rescoring
            while `Masked` has not decoded the others yet.
    """

    span: int = 3
    line: int = 500
    line_every: int = 4
    first: float = 0.3
    unconditional: float = 0.12
    without_notes: float = 0.25
    without_program: float = 0.12
    partial: float = 0.3


RECIPE = TokenRecipe()
TRAINING = TrainConfig(batch_size=8, warmup_steps=100, ema_decay=0.999, save_every_s=120.0)
CONFIGS = {"masked": TokenConfig(), "causal": TokenConfig(layers=6)}


class TokenTask(Task):
    """A token model as a task of the `Trainer`.

    Args:
        kind: "masked" or "causal".
        config: sizes of the model.
        recipe: masking, excerpts and dropout of the conditioning.
        seed: of the initial weights.
        loops, valid: encoded loops to train on, and to validate on.
        frames_per_s: of the codec.
        device: of the model and of the batches.
        also_begun_with: what else must be the same when a run resumes.
    """

    measure = "nats"

    def __init__(
        self,
        kind: str,
        config: TokenConfig,
        recipe: TokenRecipe,
        seed: int,
        loops: Sequence[EncodedLoop],
        valid: Sequence[EncodedLoop],
        frames_per_s: float,
        device: torch.device,
        also_begun_with: dict[str, Any],
    ) -> None:
        torch.manual_seed(seed)
        self.kind, self.recipe, self.also_begun_with = kind, recipe, also_begun_with
        self.device, self.frames_per_s = device, frames_per_s
        self.loops, self.valid = loops, valid
        self.model: Masked | Causal = KINDS[kind].model(config).to(device)
        self.networks: dict[str, nn.Module] = {kind: self.model}
        parameters = self.model.parameters()
        self.optimizers: dict[str, Optimizer] = {
            kind: AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
        }

    def begun_with(self) -> dict[str, Any]:
        """What must be the same when a run resumes."""
        return {
            "settings": asdict(self.recipe),
            "model": {"kind": self.kind, **asdict(self.model.config)},
            **self.also_begun_with,
        }

    def save(self, folder: Path, model: nn.Module, about: dict[str, Any]) -> None:
        """Write the checkpoint to a folder."""
        assert isinstance(model, Masked | Causal)
        checkpoint.save_model(folder, self.kind, model, about)

    def micro_batches(self, step: Step) -> Iterator[tuple[Any, float]]:
        """Yield the batches of a step (see `batch`) with their weights."""
        for number, size, weight in step.draws():
            yield self.batch(step.number, size, np.random.default_rng([step.seed, number])), weight

    def losses(self, batch: Any, step: Step) -> Losses:  # noqa: ARG002 - all are alike
        """The one loss, see `loss`."""
        loss = self.loss(batch)
        return Losses({self.kind: loss}, {"loss": loss.detach()})

    def batch(self, step: int, size: int, rng: np.random.Generator) -> Any:
        """The batch of a step, of as many frames as ``size`` typical loops have."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """Cross-entropy of a batch, in nats a token: ()."""
        raise NotImplementedError

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Cross-entropy on the validation loops, in nats a token: conditional and unconditional."""
        conditional, unconditional = [], []
        for codes, condition in self._valid_lines:
            conditional.append(self.cross_entropy(model, codes, condition))
            unconditional.append(self.cross_entropy(model, codes, condition.null()))
        return {
            "nats": float(np.mean(conditional)),
            "nats_unconditional": float(np.mean(unconditional)),
        }

    def cross_entropy(
        self, model: nn.Module, codes: Tensor, condition: ConditioningTensors
    ) -> float:
        """Cross-entropy of one excerpt (1, K, T), in nats a token."""
        raise NotImplementedError

    @functools.cached_property
    def _valid_lines(self) -> list[tuple[Tensor, ConditioningTensors]]:
        found = []
        for loop in self.valid:
            codes, condition = self._line(loop, torch.arange(VALID_FRAMES))
            found.append((codes[None].to(self.device), condition.to(self.device)))
        return found

    def _tensors(self, loop: EncodedLoop) -> ConditioningTensors:
        return loop.conditioning.on(loop.codes.shape[1], self.frames_per_s)

    def _line(self, loop: EncodedLoop, frames: Tensor) -> tuple[Tensor, ConditioningTensors]:
        n_frames = loop.codes.shape[1]
        return loop.codes[:, frames % n_frames], self._tensors(loop).at(frames)

    def lines(self, size: int, rng: np.random.Generator) -> tuple[Tensor, ConditioningTensors]:
        """Excerpts (B, K, T) that start anywhere in a loop, with their conditioning."""
        n_frames = self.recipe.line
        n = max(1, round(size * LOOP_FRAMES / n_frames))
        picks = [self.loops[pick] for pick in rng.integers(len(self.loops), size=n)]
        starts = [int(rng.integers(loop.codes.shape[1])) for loop in picks]
        pairs = [
            self._line(loop, torch.arange(start, start + n_frames))
            for loop, start in zip(picks, starts, strict=True)
        ]
        return self._stacked(pairs, rng)

    def _stacked(
        self, pairs: Sequence[tuple[Tensor, ConditioningTensors]], rng: np.random.Generator
    ) -> tuple[Tensor, ConditioningTensors]:
        codes = torch.stack([codes for codes, _ in pairs])
        condition = with_dropout(
            stack([conditioning for _, conditioning in pairs]), self.recipe, rng
        )
        return codes.to(self.device), condition.to(self.device)


def with_dropout(
    condition: ConditioningTensors, recipe: TokenRecipe, rng: np.random.Generator
) -> ConditioningTensors:
    """Replace parts of the conditioning by the null condition at random, as a recipe says."""
    n = len(condition.kit)
    null = rng.random(n) < recipe.unconditional
    shares = (recipe.without_notes, recipe.without_program, recipe.without_program)
    notes, kit, bass = (null | (rng.random(n) < share) for share in shares)
    beat = null | (notes & (rng.random(n) < 1 / 3))
    kept = torch.ones(n, condition.frames.shape[1], 1)
    kept[torch.from_numpy(notes), :NOTES] = 0
    kept[torch.from_numpy(beat), NOTES:] = 0
    return ConditioningTensors(
        condition.frames * kept,
        condition.kit.where(~torch.from_numpy(kit), NULL_PROGRAM),
        condition.bass.where(~torch.from_numpy(bass), NULL_PROGRAM),
    )


class MaskedBatch(NamedTuple):
    """A batch of `MaskedTask`.

    Attributes:
        codes: int64 (B, K, T) tokens, none masked.
        condition: of B loops of T frames.
        stage: index of the codebook that is masked in part.
        inpaint_mask: bool (B, T): which of its tokens are masked.
        circular: whether the first frame follows the last.
    """

    codes: Tensor
    condition: ConditioningTensors
    stage: int
    inpaint_mask: Tensor
    circular: bool


class MaskedTask(TokenTask):
    """Trains `Masked` on circular sequences and on excerpts with ends."""

    def batch(self, step: int, size: int, rng: np.random.Generator) -> MaskedBatch:
        """Whole loops, or excerpts every `TokenRecipe.line_every` steps, and a mask."""
        recipe, config = self.recipe, self.model.config
        circular = recipe.line_every == 0 or (step + 1) % recipe.line_every != 0
        codes, condition = self._circular(size, rng) if circular else self.lines(size, rng)
        others = config.codebooks - 1
        stages = [recipe.first, *[(1 - recipe.first) / max(1, others)] * others]
        stage = int(rng.choice(config.codebooks, p=np.array(stages) / sum(stages)))
        shares = np.cos(rng.uniform(0, math.pi / 2, len(codes)))
        inpaint_mask = torch.from_numpy(random_spans(shares, codes.shape[2], recipe.span, rng)).to(
            self.device
        )
        return MaskedBatch(codes, condition, stage, inpaint_mask, circular)

    def loss(self, batch: MaskedBatch) -> Tensor:
        """Cross-entropy of the masked tokens, in nats a token: ()."""
        codes, condition, stage, inpaint_mask, circular = batch
        masked = with_masks(codes, stage, inpaint_mask, self.model.config.mask_token)
        logits = self.model(masked, condition, stage, circular=circular)
        return F.cross_entropy(logits[inpaint_mask].float(), codes[:, stage][inpaint_mask])

    @functools.cached_property
    def _by_length(self) -> tuple[list[list[EncodedLoop]], np.ndarray[Any, np.dtype[np.float64]]]:
        found = encoded_dataset.batches(self.loops)
        frames = np.array([n_frames * len(loops) for n_frames, loops in found.items()], np.float64)
        return list(found.values()), frames / frames.sum()

    def _circular(self, size: int, rng: np.random.Generator) -> tuple[Tensor, ConditioningTensors]:
        """Whole loops (B, K, T), all of the same number of frames."""
        groups, shares = self._by_length
        group = groups[int(rng.choice(len(groups), p=shares))]
        n_frames = group[0].codes.shape[1]
        n = min(len(group), max(1, round(size * LOOP_FRAMES / n_frames)))
        picks = [group[pick] for pick in rng.choice(len(group), n, replace=False)]
        return self._stacked([(loop.codes, self._tensors(loop)) for loop in picks], rng)

    def cross_entropy(
        self, model: nn.Module, codes: Tensor, condition: ConditioningTensors
    ) -> float:
        """Mean over codebooks, each with half of its frames masked."""
        rng = np.random.default_rng(0)
        found = []
        for stage in range(codes.shape[1]):
            spans = random_spans([0.5], codes.shape[2], self.recipe.span, rng)
            inpaint_mask = torch.from_numpy(spans).to(codes.device)
            masked = with_masks(codes, stage, inpaint_mask, self.model.config.mask_token)
            logits = model(masked, condition, stage, circular=False)
            found.append(
                float(F.cross_entropy(logits[inpaint_mask], codes[:, stage][inpaint_mask]))
            )
        return float(np.mean(found))


def random_spans(
    shares: ArrayLike, n_frames: int, span: int, rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Random masks of spans that wrap around: bool (len(shares), T).

    Args:
        shares: about how many of the frames each mask covers, from 0 to 1.
        n_frames: T.
        span: frames of a span.
        rng: draws where spans start.
    """
    shares = np.asarray(shares, np.float64)
    masks = np.zeros((len(shares), n_frames), np.bool_)
    for row, share in zip(masks, shares.tolist(), strict=True):
        # A frame is not masked if no span starts at it or less than a span before it.
        begins = max(1, round(n_frames * -math.expm1(math.log1p(-min(share, 0.999)) / span)))
        starts = rng.choice(n_frames, min(begins, n_frames), replace=False)
        row[(starts[:, None] + np.arange(span)) % n_frames] = True
    return masks


def with_masks(codes: Tensor, stage: int, inpaint_mask: Tensor, mask_token: int) -> Tensor:
    """Mask tokens (B, K, T): in one codebook by a mask (B, T), and all in the codebooks after."""
    masked = codes.clone()
    masked[:, stage][inpaint_mask] = mask_token
    masked[:, stage + 1 :] = mask_token
    return masked


class CausalTask(TokenTask):
    """Trains `Causal` on excerpts with ends."""

    def batch(
        self,
        step: int,  # noqa: ARG002 - all steps are alike
        size: int,
        rng: np.random.Generator,
    ) -> tuple[Tensor, ConditioningTensors]:
        """Excerpts (B, K, T); of some, only the first codebooks are not masked."""
        codes, condition = self.lines(size, rng)
        mask_token, n_books = self.model.config.mask_token, codes.shape[1]
        partial = rng.random(len(codes)) < self.recipe.partial
        known = np.where(partial, rng.integers(1, n_books, len(codes)), n_books)
        hidden = torch.from_numpy(np.arange(n_books)[None] >= known[:, None]).to(self.device)
        return codes.masked_fill(hidden[..., None], mask_token), condition

    def loss(self, batch: tuple[Tensor, ConditioningTensors]) -> Tensor:
        """Cross-entropy of all tokens but the masked ones, in nats a token: ()."""
        codes, condition = batch
        logits, mask_token = self.model(codes, condition), self.model.config.mask_token
        return F.cross_entropy(
            logits.float().flatten(0, 2), codes.flatten(), ignore_index=mask_token
        )

    def cross_entropy(
        self, model: nn.Module, codes: Tensor, condition: ConditioningTensors
    ) -> float:
        """Mean over all tokens."""
        logits = model(codes, condition)
        return float(F.cross_entropy(logits.flatten(0, 2), codes.flatten()))


TASKS: dict[str, type[TokenTask]] = {"masked": MaskedTask, "causal": CausalTask}


def tokens(
    kind: str,
    dataset: LoopDataset,
    out: Path,
    budget: Budget,
    soundfont: Path,
    *,
    training: TrainConfig = TRAINING,
    n_loops: int,
    folder: Path | None = None,
    codec: Path | None = None,
    config: TokenConfig | None = None,
    recipe: TokenRecipe = RECIPE,
    init_from: Path | None = None,
    engine: Engine | None = None,
    device: torch.device,
    resume: bool = False,
    events: bool = False,
    on_encoded: Callable[[int], None] = lambda _: None,
    on_lost: Callable[[str, int], None] = lambda *_: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Train a token model on renders of the training songs of a dataset.

    Args:
        kind: "masked" or "causal".
        dataset: the loops.
        out: folder of the run.
        budget: how long to train.
        soundfont: to render with.
        training: settings of the trainer.
        n_loops: number of loops to render and encode before training starts.
        folder: of the encoded loops (a token cache); None for one in ``out``.
        codec: a run; None for the codec that ships.
        config: sizes of the model; None for those of the kind.
        recipe: masking, excerpts and dropout of the conditioning.
        init_from: a run whose model gives the first weights and the sizes. A model of the other
            kind gives what both kinds have: all but the heads, for as many layers as there are.
        engine: runs the rendering, see `midiloop.common.engine`.
        device: to train on.
        resume: go on with the run in ``out``.
        events: write TensorBoard event files into ``out/events``.
        on_encoded: called with the number of encoded loops.
        on_lost: called with the split and number of each loop that is left out, see
            `encoded_dataset.prepare`.
        on_progress: called after each epoch of the trainer.

    Raises:
        CallError, LoopError: see `encoded_dataset.prepare` and `Trainer.fit`.
    """
    if n_loops < 1:
        raise CallError(f"{n_loops} loops to train on; give 1 or more")
    check_folder(out, resume=resume)  # before the loops are rendered
    if events:
        trainer.event_writer()
    model = compression.load(codec)
    initial = None
    if init_from is not None:
        initial = pretrained.load_any(init_from)
        pretrained.of_codec(initial, model)
    shape = model.config
    sizes = replace(
        _sizes(kind, config or CONFIGS[kind], initial),
        codebooks=shape.codebooks,
        codebook_size=shape.codebook_size,
        codec=encoded_dataset.encode_loop(model),
    )
    try:
        with checkpoint.shapes_alone():
            KINDS[kind].model(sizes)
    except ValueError as error:
        raise CallError(f"sizes that no {kind} model can have: {error}; give others") from error
    for split in ("train", "valid"):
        augment.loops(dataset, split)  # an empty split is an error here
    folder = folder or out / "coded"
    with devices.in_turn():
        loops, valid = (
            encoded_dataset.prepare(
                dataset, split, n, folder / split, soundfont, codec,
                seed=seed, engine=engine, on_progress=on_encoded,
                on_lost=functools.partial(on_lost, split),
            )
            for split, n, seed in (("train", n_loops, 0), ("valid", N_VALID, 1))
        )  # fmt: skip
    first = None if initial is None else compression.fingerprint(initial)
    data = {
        **augment.provenance(dataset, [soundfont]),
        "loops": len(loops),
        "codec": sizes.codec,
        "init_from": first,
    }
    settings = {**asdict(budget), **asdict(training)}
    about = {"settings": settings, "recipe": asdict(recipe), "data": data}
    task = TASKS[kind](
        kind,
        sizes,
        recipe,
        training.seed,
        loops,
        valid,
        shape.frames_per_s,
        device,
        {
            **augment.identity(data),
            "codec": sizes.codec,
            "number of loops": len(loops),
            "initial model": first,
        },
    )
    if initial is not None:
        task.model.init_from(initial)
    return Trainer(task, budget, training).fit(
        out,
        about=about,
        resume=resume,
        events=out / "events" if events else None,
        on_progress=on_progress,
    )


def _sizes(kind: str, wanted: TokenConfig, initial: Masked | Causal | None) -> TokenConfig:
    if initial is None:
        return wanted
    same = isinstance(initial, KINDS[kind].model)
    return initial.config if same else replace(initial.config, layers=wanted.layers)
