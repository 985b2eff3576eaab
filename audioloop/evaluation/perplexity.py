"""Seam perplexity: how much a model that knows music is surprised by what follows a loop's seam.

As LoopGen measures it (Marincione et al. 2025, arXiv:2504.04466, section 5.1 and appendix A): a
model of codes hears what comes before a join, and the mean cross-entropy of the first `WINDOW`
frames after it is how unlikely they are, in nats. e to that is the perplexity: among how many codes
the model might as well have drawn. It hears the loop once, and then its seam for the first time::

    a b c d e f g h | a b c d e …
    heard             WINDOW

In a second round it would have heard the seam before it is asked how likely that is.

A bar line is a surprise by nature. So the same is measured at the loop's other bar lines, where
nothing was cut, and the difference counts, not the figure alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from audioloop.codec import compression
from audioloop.codec.compression import CompressionModel
from audioloop.conditioning import Conditioning, ConditioningTensors, stack
from audioloop.io.wave import Wave
from midiloop.common import statistics
from midiloop.common.statistics import Interval, Paired
from midiloop.errors import CallError, counted

MEANING = {
    "perplexity": "e to the mean cross-entropy of the 5 frames after the seam, of the first "
    "codebook, under a model that hears the loop up to there, coded at several places within a "
    "frame; 1 or more, lower is better, the codebook's size: no better than a guess",
    "perplexity_all": "the same, of all codebooks",
    "bar_perplexity": "the same as perplexity, at the loop's other bar lines (their geometric "
    "mean)",
    "bar_perplexity_all": "the same, of all codebooks",
    "difference_nats": "cross-entropy at the seam less its mean at the other bar lines, of the "
    "first codebook; 0: the seam is a bar line like any other, above: it surprises more",
    "difference_nats_all": "the same, of all codebooks",
}

SUMMARY = {
    "seam, bars": "perplexity of all files, as the middle and half the width of its 95 % interval, "
    "at seams and at other bar lines",
    "difference": "mean difference of cross-entropy in nats, seam less other bar lines of the same "
    "file, and its 95 % interval (Student's t); indistinguishable where 0 is inside",
}

WINDOW = 5  # frames after a join, as LoopGen counts
CONTEXT = 400  # frames before it that the model hears at most
# Frames after the window: notes are told a little ahead, and some models know the later codebooks
# of a frame only when they have heard the first ones of the next frames.
AHEAD = 8
LINES = 8  # that are heard at once, so that many bars need no more memory than eight
SHIFTS = 4  # places within a frame at which loops are coded at least; twice as many at most


class TokenFormat(Protocol):
    """What a model's codes look like."""

    @property
    def codebooks(self) -> int:
        """Codes of a frame."""

    @property
    def codebook_size(self) -> int:
        """Codes are from 0 to one less."""


class LanguageModel(Protocol):
    """A model that says what it expects: `token_models.Causal`, or a published one."""

    @property
    def config(self) -> TokenFormat:
        """What its codes look like."""

    @property
    def device(self) -> torch.device:
        """Where its tensors have to be."""

    def __call__(self, codes: Tensor, condition: ConditioningTensors, first: int, /) -> Any:
        """Of codes (B, K, T) and what is told, the logits (B, K, T - first, size) of each code.

        Those of the first frames are left out, as logits of many codes take time.
        They may depend on what comes before the code, and on the `AHEAD` frames after it that the
        model hears before it writes that code.
        """


@torch.inference_mode()
def nats_at(
    codes: Tensor,
    places: Sequence[int],
    model: LanguageModel,
    condition: ConditioningTensors | None = None,
    *,
    window: int = WINDOW,
    context: int | None = None,
) -> NDArray[np.float64]:
    """Mean cross-entropy of the frames from each place on, knowing those before (Eq. 4).

    Args:
        codes: int64 (K, T), of a ring.
        places: frames of the ring, modulo T.
        condition: what is told of the ring's T frames; None tells nothing.
        window: frames that are counted.
        context: frames that are heard before, more than one round if the ring is shorter; None is
            `heard_before`.

    Returns:
        Nats, float64 (places, K).

    Raises:
        CallError: the codes are not the model's, or a number of frames cannot be.
    """
    n_frames = codes.shape[-1]
    context = context_frames(n_frames) if context is None else context
    _check(codes, model.config, window, context)
    tensors = Conditioning().on(n_frames, 1.0) if condition is None else condition
    spans = [torch.arange(place - context, place + window + AHEAD) for place in places]
    found = [np.zeros((0, len(codes)))]
    for first in range(0, len(spans), LINES):
        some = spans[first : first + LINES]
        lines = torch.stack([codes[:, span % n_frames] for span in some]).to(model.device)
        heard = stack([tensors.at(span) for span in some]).to(model.device)
        counted = lines[:, :, context : context + window]
        logits = model(lines, heard, context)[:, :, :window].float()
        nats = F.cross_entropy(logits.flatten(0, 2), counted.flatten(), reduction="none")
        found.append(nats.reshape(len(some), len(codes), window).mean(-1).double().cpu().numpy())
    return np.concatenate(found)


def context_frames(n_frames: int) -> int:
    """How many frames of a ring of ``n_frames`` a model hears before a seam: one round at most."""
    return min(CONTEXT, n_frames)


def _check(codes: Tensor, shape: TokenFormat, window: int, context: int) -> None:
    if codes.dim() != 2 or len(codes) != shape.codebooks or not codes.shape[1]:
        raise CallError(
            f"expected codes ({shape.codebooks}, frames), got {tuple(codes.shape)}; give those of "
            "one ring"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= shape.codebook_size:
        raise CallError(
            f"codes from {low} to {high}, and the model's are from 0 to "
            f"{shape.codebook_size - 1}; they are of another codec"
        )
    if window < 1 or context < 0:
        raise CallError(
            f"a window of {window} after {counted(context, 'frame')}; give 1 and 0 or more"
        )


@dataclass(frozen=True)
class SeamPerplexity:
    """What a model makes of a loop's seam, and of its other bar lines.

    Attributes:
        nats, nats_all: mean cross-entropy at the seam, of the first codebook (LoopGen's) and of
            all of them.
        bars, bars_all: the same at each of the other bar lines.
    """

    nats: float
    nats_all: float
    bars: tuple[float, ...]
    bars_all: tuple[float, ...]

    @property
    def difference(self) -> float | None:
        """Nats at the seam less their mean at the other bar lines; None where there are none."""
        return self.nats - _mean(self.bars) if self.bars else None

    @property
    def difference_all(self) -> float | None:
        """The same, of all codebooks."""
        return self.nats_all - _mean(self.bars_all) if self.bars_all else None

    @property
    def measures(self) -> dict[str, float | None]:
        """Every measure of `MEANING`."""
        return {
            "perplexity": math.exp(self.nats),
            "perplexity_all": math.exp(self.nats_all),
            "bar_perplexity": math.exp(_mean(self.bars)) if self.bars else None,
            "bar_perplexity_all": math.exp(_mean(self.bars_all)) if self.bars_all else None,
            "difference_nats": self.difference,
            "difference_nats_all": self.difference_all,
        }

    def as_json(self) -> dict[str, Any]:
        """Numbers, lists and None only."""
        nats = {"seam": self.nats, "seam_all": self.nats_all}
        return {**self.measures, "nats": {**nats, "bars": self.bars, "bars_all": self.bars_all}}


def of_wave(
    wave: Wave, codec: CompressionModel, model: LanguageModel, bars: int | None
) -> SeamPerplexity:
    """Of a loop, of which the model is told nothing.

    What a model made is easier to foresee in the frames that it was made of than where it is coded
    between them, and a bar line may fall anywhere into those. So the loop is coded several times,
    its frames moved on by a part of one each time, and the mean counts: where the frames of a loop
    were, if it has any, does not matter. The parts are such that all bar lines fall alike into
    frames, taken together; of more than eight bars, nearly so.

    Args:
        bars: of equal length, that the loop has; None where they are not known.

    Raises:
        CallError: see `nats_at`; or there are more bars than frames.
        LoopError: see `compression.encode`.
    """
    n_frames = compression.n_frames(len(wave), wave.rate, codec.config)
    n_bars = 1 if bars is None else bars
    if not 1 <= n_bars <= n_frames:
        raise CallError(
            f"{counted(n_bars, 'bar')} in {counted(n_frames, 'frame')}; give the number of bars "
            "that the loop has"
        )
    lines = [Fraction(n_frames * bar, n_bars) for bar in range(n_bars)]
    parts = lines[-1].denominator  # of a frame: all lines are a whole number of them from the seam
    n_shifts = min(parts * math.ceil(SHIFTS / parts), 2 * SHIFTS)
    found = []
    for shift in (Fraction(part, n_shifts) for part in range(n_shifts)):
        moved = np.roll(wave.samples, -round(len(wave) * shift / n_frames), 1)
        codes = compression.encode(Wave(moved, wave.rate), codec).codes[0]
        found.append(nats_at(codes, [_nearest(line - shift) for line in lines], model))
    return _of_nats(np.mean(found, axis=0))


def _nearest(place: Fraction) -> int:
    """The frame that begins nearest to it, the later of two."""
    return math.floor(place + Fraction(1, 2))


def _of_nats(nats: NDArray[np.float64]) -> SeamPerplexity:
    """Of nats (bar lines, K), the first of them those of the seam."""
    (seam, *others), (seam_all, *others_all) = nats[:, 0].tolist(), nats.mean(1).tolist()
    return SeamPerplexity(seam, seam_all, tuple(others), tuple(others_all))


class Summary(NamedTuple):
    """Of several loops; figures of fewer than two are None.

    Attributes:
        seam, seam_all: perplexity at the seams, of the first codebook and of all.
        bars, bars_all: at the other bar lines, each loop's mean counting as one.
        difference, difference_all: nats at a seam less those at the loop's other bar lines.
    """

    seam: Interval | None
    seam_all: Interval | None
    bars: Interval | None
    bars_all: Interval | None
    difference: Paired | None
    difference_all: Paired | None

    def as_json(self) -> dict[str, Any]:
        """Numbers, truths and None only."""
        found: dict[str, Any] = {
            name: figures and figures._asdict() for name, figures in self._asdict().items()
        }
        for figures, shown in (
            (self.difference, found["difference"]),
            (self.difference_all, found["difference_all"]),
        ):
            if figures:
                shown["indistinguishable"] = figures.indistinguishable
        return found


def summary(found: Sequence[SeamPerplexity]) -> Summary:
    """Of several loops; of those without other bar lines, the seams only."""
    barred = [one for one in found if one.bars]
    return Summary(
        _interval([one.nats for one in found]),
        _interval([one.nats_all for one in found]),
        _interval([_mean(one.bars) for one in barred]),
        _interval([_mean(one.bars_all) for one in barred]),
        _paired([one.nats - _mean(one.bars) for one in barred]),
        _paired([one.nats_all - _mean(one.bars_all) for one in barred]),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _interval(nats: Sequence[float]) -> Interval | None:
    return statistics.interval(nats) if len(nats) > 1 else None


def _paired(differences: Sequence[float]) -> Paired | None:
    return statistics.paired(differences) if len(differences) > 1 else None
