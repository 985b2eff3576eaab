"""What ``audioloop train masked`` and ``causal`` do: models of the codes of rendered loops.

`Masked` learns to fill gaps as it will be asked to: one codebook has gaps of three frames each, in
a share that is drawn as a quarter of a cosine falls; those before it are known, those after it are
not (Ziv et al. 2024, section 3.1). Now on a ring, now on a line. `Causal` learns from lines that go
round a loop from anywhere. Both are told less than there is to tell now and then, so that they can
do with less.
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
from midiloop.common.resume import check_folder
from midiloop.common.task import Losses, Step, Task
from midiloop.common.train_config import Budget, TrainConfig
from midiloop.common.trainer import Progress, Result, Trainer
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError

LOOP_FRAMES = 400  # of a usual loop: a batch has as many frames as so many of those
N_LOOPS = 10_000
N_VALID, VALID_FRAMES = 32, 400


@dataclass(frozen=True)
class TokenRecipe:
    """How codes are learned.

    Attributes:
        span: frames that are gaps together.
        line: frames of an excerpt that is no ring.
        open_every: every so many steps, `Masked` sees lines instead of rings.
        first: share of steps in which it fills the first codebook; the others share the rest.
        all_unsaid: share of loops of which nothing is told.
        without_notes: share of the others without notes, so that a model can go by beat, kit and
            bass alone; of those, a third is without the beat.
        unsaid: share of the others without a kit, and without a bass.
        fewer: share of lines of which `Causal` knows only the first codebooks, as while `Masked`
            has not filled the others yet.
    """

    span: int = 3
    line: int = 500
    open_every: int = 4
    first: float = 0.3
    all_unsaid: float = 0.12
    without_notes: float = 0.25
    unsaid: float = 0.12
    fewer: float = 0.3


RECIPE = TokenRecipe()
TRAINING = TrainConfig(batch_size=8, warmup_steps=100, ema_decay=0.999, save_every_s=120.0)
CONFIGS = {"masked": TokenConfig(), "causal": TokenConfig(layers=6)}


class TokenTask(Task):
    """A model of codes, as the `Trainer` takes it.

    Args:
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
        """Write the checkpoint."""
        assert isinstance(model, Masked | Causal)
        checkpoint.save_model(folder, self.kind, model, about)

    def micro_batches(self, step: Step) -> Iterator[tuple[Any, float]]:
        """Batches as `batch` draws them."""
        for number, size, weight in step.draws():
            yield self.batch(step.number, size, np.random.default_rng([step.seed, number])), weight

    def losses(self, batch: Any, step: Step) -> Losses:  # noqa: ARG002 - all are alike
        """See `loss`."""
        loss = self.loss(batch)
        return Losses({self.kind: loss}, {"loss": loss.detach()})

    def batch(self, step: int, size: int, rng: np.random.Generator) -> Any:
        """What to learn from in a step: as many frames as ``size`` usual loops have."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """Cross-entropy of a batch, in nats a code."""
        raise NotImplementedError

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Cross-entropy on loops that are not learned from: told all, and told nothing."""
        conditioning, untold = [], []
        for codes, condition in self._valid_lines:
            conditioning.append(self.cross_entropy(model, codes, condition))
            untold.append(self.cross_entropy(model, codes, condition.null()))
        return {"nats": float(np.mean(conditioning)), "nats_untold": float(np.mean(untold))}

    def cross_entropy(
        self, model: nn.Module, codes: Tensor, condition: ConditioningTensors
    ) -> float:
        """Of one line (1, K, T), in nats a code."""
        raise NotImplementedError

    @functools.cached_property
    def _valid_lines(self) -> list[tuple[Tensor, ConditioningTensors]]:
        found = []
        for loop in self.valid:
            places = torch.arange(VALID_FRAMES)
            codes, condition = self._line(loop, places)
            found.append((codes[None].to(self.device), condition.to(self.device)))
        return found

    def _told(self, loop: EncodedLoop) -> ConditioningTensors:
        return loop.conditioning.on(loop.codes.shape[1], self.frames_per_s)

    def _line(self, loop: EncodedLoop, places: Tensor) -> tuple[Tensor, ConditioningTensors]:
        n_frames = loop.codes.shape[1]
        return loop.codes[:, places % n_frames], self._told(loop).at(places)

    def lines(self, size: int, rng: np.random.Generator) -> tuple[Tensor, ConditioningTensors]:
        """Lines (B, K, T) that go round loops from anywhere, and what is told of them."""
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
        condition = less(stack([conditioning for _, conditioning in pairs]), self.recipe, rng)
        return codes.to(self.device), condition.to(self.device)


def less(
    condition: ConditioningTensors, recipe: TokenRecipe, rng: np.random.Generator
) -> ConditioningTensors:
    """The same, with some of it unsaid here and there."""
    n = len(condition.kit)
    nothing = rng.random(n) < recipe.all_unsaid
    shares = (recipe.without_notes, recipe.unsaid, recipe.unsaid)
    notes, kit, bass = (nothing | (rng.random(n) < share) for share in shares)
    beat = nothing | (notes & (rng.random(n) < 1 / 3))
    said = torch.ones(n, condition.frames.shape[1], 1)
    said[torch.from_numpy(notes), :NOTES] = 0
    said[torch.from_numpy(beat), NOTES:] = 0
    return ConditioningTensors(
        condition.frames * said,
        condition.kit.where(~torch.from_numpy(kit), NULL_PROGRAM),
        condition.bass.where(~torch.from_numpy(bass), NULL_PROGRAM),
    )


class MaskedBatch(NamedTuple):
    """What `Masked` learns from: codes (B, K, T), and which of one codebook are gaps, (B, T)."""

    codes: Tensor
    condition: ConditioningTensors
    stage: int
    open_: Tensor
    circular: bool


class MaskedTask(TokenTask):
    """`Masked`, on rings and on lines."""

    def batch(self, step: int, size: int, rng: np.random.Generator) -> MaskedBatch:
        """Loops, or every so many steps lines, with gaps in one codebook."""
        recipe, config = self.recipe, self.model.config
        circular = recipe.open_every == 0 or (step + 1) % recipe.open_every != 0
        codes, condition = self._rings(size, rng) if circular else self.lines(size, rng)
        others = config.codebooks - 1
        stages = [recipe.first, *[(1 - recipe.first) / max(1, others)] * others]
        stage = int(rng.choice(config.codebooks, p=np.array(stages) / sum(stages)))
        shares = np.cos(rng.uniform(0, math.pi / 2, len(codes)))
        open_ = torch.from_numpy(gaps(shares, codes.shape[2], recipe.span, rng)).to(self.device)
        return MaskedBatch(codes, condition, stage, open_, circular)

    def loss(self, batch: MaskedBatch) -> Tensor:
        """Cross-entropy of what the gaps were, in nats a code."""
        codes, condition, stage, open_, circular = batch
        given = with_gaps(codes, stage, open_, self.model.config.mask_token)
        logits = self.model(given, condition, stage, circular=circular)
        return F.cross_entropy(logits[open_].float(), codes[:, stage][open_])

    @functools.cached_property
    def _by_length(self) -> tuple[list[list[EncodedLoop]], np.ndarray[Any, np.dtype[np.float64]]]:
        found = encoded_dataset.batches(self.loops)
        frames = np.array([n_frames * len(loops) for n_frames, loops in found.items()], np.float64)
        return list(found.values()), frames / frames.sum()

    def _rings(self, size: int, rng: np.random.Generator) -> tuple[Tensor, ConditioningTensors]:
        """Whole loops of as many frames as each other."""
        groups, shares = self._by_length
        group = groups[int(rng.choice(len(groups), p=shares))]
        n_frames = group[0].codes.shape[1]
        n = min(len(group), max(1, round(size * LOOP_FRAMES / n_frames)))
        picks = [group[pick] for pick in rng.choice(len(group), n, replace=False)]
        return self._stacked([(loop.codes, self._told(loop)) for loop in picks], rng)

    def cross_entropy(
        self, model: nn.Module, codes: Tensor, condition: ConditioningTensors
    ) -> float:
        """Mean over codebooks, each with half of its frames open."""
        rng = np.random.default_rng(0)
        found = []
        for stage in range(codes.shape[1]):
            drawn = gaps([0.5], codes.shape[2], self.recipe.span, rng)
            open_ = torch.from_numpy(drawn).to(codes.device)
            given = with_gaps(codes, stage, open_, self.model.config.mask_token)
            logits = model(given, condition, stage, circular=False)
            found.append(float(F.cross_entropy(logits[open_], codes[:, stage][open_])))
        return float(np.mean(found))


def gaps(
    shares: ArrayLike, n_frames: int, span: int, rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where gaps are: bool (shares, T), about a share of all, in spans from anywhere on a ring."""
    shares = np.asarray(shares, np.float64)
    open_ = np.zeros((len(shares), n_frames), np.bool_)
    for row, share in zip(open_, shares.tolist(), strict=True):
        # A frame stays known where no span begins at it or just before it.
        begins = max(1, round(n_frames * -math.expm1(math.log1p(-min(share, 0.999)) / span)))
        starts = rng.choice(n_frames, min(begins, n_frames), replace=False)
        row[(starts[:, None] + np.arange(span)) % n_frames] = True
    return open_


def with_gaps(codes: Tensor, stage: int, open_: Tensor, mask_token: int) -> Tensor:
    """Codes (B, K, T) as `Masked` is to fill them: one codebook open (B, T), all after it gaps."""
    given = codes.clone()
    given[:, stage][open_] = mask_token
    given[:, stage + 1 :] = mask_token
    return given


class CausalTask(TokenTask):
    """`Causal`, on lines."""

    def batch(
        self,
        step: int,  # noqa: ARG002 - all steps are alike
        size: int,
        rng: np.random.Generator,
    ) -> tuple[Tensor, ConditioningTensors]:
        """Lines (B, K, T), of some of which only the first codebooks are known."""
        codes, condition = self.lines(size, rng)
        mask_token, n_books = self.model.config.mask_token, codes.shape[1]
        fewer = rng.random(len(codes)) < self.recipe.fewer
        known = np.where(fewer, rng.integers(1, n_books, len(codes)), n_books)
        hidden = torch.from_numpy(np.arange(n_books)[None] >= known[:, None]).to(self.device)
        return codes.masked_fill(hidden[..., None], mask_token), condition

    def loss(self, batch: tuple[Tensor, ConditioningTensors]) -> Tensor:
        """Cross-entropy of all codes, in nats a code."""
        given, condition = batch
        logits, mask_token = self.model(given, condition), self.model.config.mask_token
        return F.cross_entropy(
            logits.float().flatten(0, 2), given.flatten(), ignore_index=mask_token
        )

    def cross_entropy(
        self, model: nn.Module, codes: Tensor, condition: ConditioningTensors
    ) -> float:
        """Mean over all codes."""
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
    n_workers: int = 1,
    device: torch.device,
    resume: bool = False,
    events: bool = False,
    on_coded: Callable[[int], None] = lambda _: None,
    on_lost: Callable[[str, int], None] = lambda *_: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Train a model of codes, on renders of the training songs of a dataset.

    Args:
        kind: "masked" or "causal".
        n_loops: to render and code, once, before anything is learned.
        folder: for the coded loops; None for one in ``out``.
        codec: a run; None for the codec that ships.
        init_from: a run whose model is to learn more; its sizes are kept. A model of the other
            kind gives what both kinds have: all but heads, and as many layers as there are.
        events: write TensorBoard event files into ``out/events``.
        on_coded: called with how many loops are coded.
        on_lost: called with the split and number of each loop that is left out, see
            `encoded_dataset.prepare`.

    Raises:
        CallError, LoopError: see `encoded_dataset.prepare` and `Trainer.fit`.
    """
    if n_loops < 1:
        raise CallError(f"{n_loops} loops to learn from; give 1 or more")
    check_folder(out, resume=resume)  # before all that rendering
    if events:
        trainer.event_writer()
    model = compression.load(codec)
    begun = None
    if init_from is not None:
        begun = pretrained.load_any(init_from)
        pretrained.of_codec(begun, model)
    shape = model.config
    sizes = replace(
        _sizes(kind, config or CONFIGS[kind], begun),
        codebooks=shape.codebooks,
        codebook_size=shape.codebook_size,
        codec=encoded_dataset.encode_loop(model),
    )
    try:
        with checkpoint.shapes_alone():
            KINDS[kind].model(sizes)
    except ValueError as error:
        raise CallError(f"no {kind} can be made of these sizes: {error}; give others") from error
    for split in ("train", "valid"):
        augment.loops(dataset, split)  # and so is an empty one
    folder = folder or out / "coded"
    with devices.in_turn():
        loops, valid = (
            encoded_dataset.prepare(
                dataset, split, n, folder / split, soundfont, codec,
                seed=seed, n_workers=n_workers, on_progress=on_coded,
                on_lost=functools.partial(on_lost, split),
            )
            for split, n, seed in (("train", n_loops, 0), ("valid", N_VALID, 1))
        )  # fmt: skip
    first = None if begun is None else compression.fingerprint(begun)
    data = {
        **augment.provenance(dataset, [soundfont]),
        "loops": len(loops),
        "codec": sizes.codec,
        "begun_with": first,
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
            "model to begin with": first,
        },
    )
    if begun is not None:
        task.model.init_from(begun)
    return Trainer(task, budget, training).fit(
        out,
        about=about,
        resume=resume,
        events=out / "events" if events else None,
        on_progress=on_progress,
    )


def _sizes(kind: str, wanted: TokenConfig, begun: Masked | Causal | None) -> TokenConfig:
    if begun is None:
        return wanted
    same = isinstance(begun, KINDS[kind].model)
    return begun.config if same else replace(begun.config, layers=wanted.layers)
