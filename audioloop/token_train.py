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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from audioloop import coded, coder, conditions, fit, renders, token_models
from audioloop.coded import CodedLoop
from audioloop.conditions import NOTES, UNSAID, Condition
from audioloop.fit import Progress, Result, Settings, Stage
from audioloop.token_models import KINDS
from audioloop.tokens import Causal, Masked, TokenConfig
from midiloop import checkpoint
from midiloop.errors import CallError
from midiloop.store import LoopDataset

LOOP_FRAMES = 400  # of a usual loop: a batch has as many frames as so many of those
N_LOOPS = 10_000
PRECISIONS = ("float32", "bfloat16")
N_VALID, VALID_FRAMES = 32, 400


@dataclass(frozen=True)
class Study:
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
        precision: "float32" or "bfloat16", of products of matrices.
    """

    span: int = 3
    line: int = 500
    open_every: int = 4
    first: float = 0.3
    all_unsaid: float = 0.12
    without_notes: float = 0.25
    unsaid: float = 0.12
    fewer: float = 0.3
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Raise `CallError` for a precision that there is not."""
        if self.precision not in PRECISIONS:
            raise CallError(f"precision {self.precision}: give {' or '.join(PRECISIONS)}")


STUDY = Study()
CONFIGS = {"masked": TokenConfig(), "causal": TokenConfig(layers=6)}


class TokenTask(fit.Task):
    """A model of codes, as `fit` trains it."""

    def __init__(
        self,
        kind: str,
        config: TokenConfig,
        study: Study,
        settings: Settings,
        loops: Sequence[CodedLoop],
        valid: Sequence[CodedLoop],
        frames_per_s: float,
        device: torch.device,
        heard: dict[str, Any],
    ) -> None:
        torch.manual_seed(settings.seed)
        self.kind, self.study, self.settings, self.heard = kind, study, settings, heard
        self.device, self.frames_per_s = device, frames_per_s
        self.loops, self.valid = loops, valid
        self.model: Masked | Causal = KINDS[kind][0](config).to(device)
        self.modules: dict[str, nn.Module] = {kind: self.model}
        parameters = self.model.parameters()
        self.optimizers: dict[str, Optimizer] = {
            kind: AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
        }
        self.stages = (Stage(0.0, 1.0),)

    def begun_with(self) -> dict[str, Any]:
        """What must be the same when a run resumes."""
        return {
            self.kind: asdict(self.model.config),
            "study": asdict(self.study),
            "heard": self.heard,
        }

    def save(self, folder: Path, model: nn.Module, about: dict[str, Any]) -> None:
        """Write the checkpoint."""
        assert isinstance(model, Masked | Causal)
        checkpoint.save_model(folder, self.kind, model, about)

    def step(self, number: int, stage: int) -> dict[str, Tensor]:  # noqa: ARG002 - there is one
        """Learn from one batch."""
        rng = np.random.default_rng([self.settings.seed, number])
        with self._precision():
            loss = self.loss(number, rng)
        self.optimizers[self.kind].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizers[self.kind].step()
        return {"loss": loss.detach()}

    def loss(self, number: int, rng: np.random.Generator) -> Tensor:
        """Cross-entropy of a batch, in nats a code."""
        raise NotImplementedError

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Cross-entropy on loops that are not learned from: told all, and told nothing."""
        told, untold = [], []
        for codes, condition in self._valid_lines:
            told.append(self.cross_entropy(model, codes, condition))
            untold.append(self.cross_entropy(model, codes, condition.silent()))
        return {"nats": float(np.mean(told)), "nats_untold": float(np.mean(untold))}

    def cross_entropy(self, model: nn.Module, codes: Tensor, condition: Condition) -> float:
        """Of one line (1, K, T), in nats a code."""
        raise NotImplementedError

    @functools.cached_property
    def _valid_lines(self) -> list[tuple[Tensor, Condition]]:
        found = []
        for loop in self.valid:
            places = torch.arange(VALID_FRAMES)
            codes, condition = self._line(loop, places)
            found.append((codes[None].to(self.device), condition.to(self.device)))
        return found

    def _precision(self) -> torch.autocast:
        half = self.study.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def _told(self, loop: CodedLoop) -> Condition:
        return loop.told.on(loop.codes.shape[1], self.frames_per_s)

    def _line(self, loop: CodedLoop, places: Tensor) -> tuple[Tensor, Condition]:
        n_frames = loop.codes.shape[1]
        return loop.codes[:, places % n_frames], self._told(loop).taken(places)

    def lines(self, n_frames: int, rng: np.random.Generator) -> tuple[Tensor, Condition]:
        """Lines (B, K, T) that go round loops from anywhere, and what is told of them."""
        n = max(1, round(self.settings.batch * LOOP_FRAMES / n_frames))
        picks = [self.loops[pick] for pick in rng.integers(len(self.loops), size=n)]
        starts = [int(rng.integers(loop.codes.shape[1])) for loop in picks]
        pairs = [
            self._line(loop, torch.arange(start, start + n_frames))
            for loop, start in zip(picks, starts, strict=True)
        ]
        return self._batch(pairs, rng)

    def _batch(
        self, pairs: Sequence[tuple[Tensor, Condition]], rng: np.random.Generator
    ) -> tuple[Tensor, Condition]:
        codes = torch.stack([codes for codes, _ in pairs])
        condition = less(conditions.stacked([told for _, told in pairs]), self.study, rng)
        return codes.to(self.device), condition.to(self.device)


def less(condition: Condition, study: Study, rng: np.random.Generator) -> Condition:
    """The same, with some of it unsaid here and there."""
    n = len(condition.kit)
    nothing = rng.random(n) < study.all_unsaid
    shares = (study.without_notes, study.unsaid, study.unsaid)
    notes, kit, bass = (nothing | (rng.random(n) < share) for share in shares)
    beat = nothing | (notes & (rng.random(n) < 1 / 3))
    said = torch.ones(n, condition.frames.shape[1], 1)
    said[torch.from_numpy(notes), :NOTES] = 0
    said[torch.from_numpy(beat), NOTES:] = 0
    return Condition(
        condition.frames * said,
        condition.kit.where(~torch.from_numpy(kit), UNSAID),
        condition.bass.where(~torch.from_numpy(bass), UNSAID),
    )


class MaskedTask(TokenTask):
    """`Masked`, on rings and on lines."""

    def loss(self, number: int, rng: np.random.Generator) -> Tensor:
        """Cross-entropy of what the gaps were, in nats a code."""
        study, config = self.study, self.model.config
        circular = study.open_every == 0 or (number + 1) % study.open_every != 0
        codes, condition = self._rings(rng) if circular else self.lines(study.line, rng)
        others = config.codebooks - 1
        stages = [study.first, *[(1 - study.first) / max(1, others)] * others]
        stage = int(rng.choice(config.codebooks, p=np.array(stages) / sum(stages)))
        shares = np.cos(rng.uniform(0, math.pi / 2, len(codes)))
        open_ = torch.from_numpy(gaps(shares, codes.shape[2], study.span, rng)).to(self.device)
        given = with_gaps(codes, stage, open_, config.gap)
        logits = self.model(given, condition, stage, circular=circular)
        return F.cross_entropy(logits[open_].float(), codes[:, stage][open_])

    @functools.cached_property
    def _by_length(self) -> tuple[list[list[CodedLoop]], np.ndarray[Any, np.dtype[np.float64]]]:
        found = coded.batches(self.loops)
        frames = np.array([n_frames * len(loops) for n_frames, loops in found.items()], np.float64)
        return list(found.values()), frames / frames.sum()

    def _rings(self, rng: np.random.Generator) -> tuple[Tensor, Condition]:
        """Whole loops of as many frames as each other."""
        groups, shares = self._by_length
        group = groups[int(rng.choice(len(groups), p=shares))]
        n_frames = group[0].codes.shape[1]
        n = min(len(group), max(1, round(self.settings.batch * LOOP_FRAMES / n_frames)))
        picks = [group[pick] for pick in rng.choice(len(group), n, replace=False)]
        return self._batch([(loop.codes, self._told(loop)) for loop in picks], rng)

    def cross_entropy(self, model: nn.Module, codes: Tensor, condition: Condition) -> float:
        """Mean over codebooks, each with half of its frames open."""
        rng = np.random.default_rng(0)
        found = []
        for stage in range(codes.shape[1]):
            drawn = gaps([0.5], codes.shape[2], self.study.span, rng)
            open_ = torch.from_numpy(drawn).to(codes.device)
            given = with_gaps(codes, stage, open_, self.model.config.gap)
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


def with_gaps(codes: Tensor, stage: int, open_: Tensor, gap: int) -> Tensor:
    """Codes (B, K, T) as `Masked` is to fill them: one codebook open (B, T), all after it gaps."""
    given = codes.clone()
    given[:, stage][open_] = gap
    given[:, stage + 1 :] = gap
    return given


class CausalTask(TokenTask):
    """`Causal`, on lines."""

    def loss(self, number: int, rng: np.random.Generator) -> Tensor:  # noqa: ARG002 - all alike
        """Cross-entropy of all codes, in nats a code."""
        codes, condition = self.lines(self.study.line, rng)
        gap, n_books = self.model.config.gap, codes.shape[1]
        fewer = rng.random(len(codes)) < self.study.fewer
        known = np.where(fewer, rng.integers(1, n_books, len(codes)), n_books)
        hidden = torch.from_numpy(np.arange(n_books)[None] >= known[:, None]).to(self.device)
        given = codes.masked_fill(hidden[..., None], gap)
        logits = self.model(given, condition)
        return F.cross_entropy(logits.float().flatten(0, 2), given.flatten(), ignore_index=gap)

    def cross_entropy(self, model: nn.Module, codes: Tensor, condition: Condition) -> float:
        """Mean over all codes."""
        logits = model(codes, condition)
        return float(F.cross_entropy(logits.flatten(0, 2), codes.flatten()))


TASKS: dict[str, type[TokenTask]] = {"masked": MaskedTask, "causal": CausalTask}


def tokens(
    kind: str,
    dataset: LoopDataset,
    out: Path,
    settings: Settings,
    soundfont: Path,
    *,
    n_loops: int,
    folder: Path | None = None,
    codec: Path | None = None,
    config: TokenConfig | None = None,
    study: Study = STUDY,
    begin_with: Path | None = None,
    n_workers: int = 1,
    device: torch.device,
    resume: bool = False,
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
        begin_with: a run whose model is to learn more; its sizes are kept. A model of the other
            kind gives what both kinds have: all but heads, and as many layers as there are.
        on_coded: called with how many loops are coded.
        on_lost: called with the split and number of each loop that is left out, see
            `coded.prepare`.

    Raises:
        CallError, LoopError: see `coded.prepare` and `fit.fit`.
    """
    if n_loops < 1:
        raise CallError(f"{n_loops} loops to learn from; give 1 or more")
    fit.check_folder(out, resume=resume)  # before all that rendering
    model = coder.load(codec)
    begun = None
    if begin_with is not None:
        begun = token_models.load_any(begin_with)
        token_models.of_codec(begun, model)
    shape = model.config
    sizes = replace(
        _sizes(kind, config or CONFIGS[kind], begun),
        codebooks=shape.codebooks,
        codebook_size=shape.codebook_size,
        codec=coded.codes_of(model),
    )
    try:
        with checkpoint.shapes_alone():
            KINDS[kind][0](sizes)
    except ValueError as error:
        raise CallError(f"no {kind} can be made of these sizes: {error}; give others") from error
    for split in ("train", "valid"):
        renders.loops(dataset, split)  # and so is an empty one
    folder = folder or out / "coded"
    loops, valid = (
        coded.prepare(
            dataset, split, n, folder / split, soundfont, codec,
            seed=seed, n_workers=n_workers, on_progress=on_coded,
            on_lost=functools.partial(on_lost, split),
        )
        for split, n, seed in (("train", n_loops, 0), ("valid", N_VALID, 1))
    )  # fmt: skip
    heard = {
        **fit.heard(dataset, [soundfont]),
        "loops": len(loops),
        "codec": sizes.codec,
        "begun_with": None if begun is None else coder.fingerprint(begun),
    }
    about = {"settings": asdict(settings), "study": asdict(study), "data": heard}
    task = TASKS[kind](
        kind,
        sizes,
        study,
        settings,
        loops,
        valid,
        shape.frames_per_s,
        device,
        heard,
    )
    if begun is not None:
        task.model.take_over(begun)
    return fit.fit(task, settings, out, about=about, resume=resume, on_progress=on_progress)


def _sizes(kind: str, wanted: TokenConfig, begun: Masked | Causal | None) -> TokenConfig:
    if begun is None:
        return wanted
    same = isinstance(begun, KINDS[kind][0])
    return begun.config if same else replace(begun.config, layers=wanted.layers)
