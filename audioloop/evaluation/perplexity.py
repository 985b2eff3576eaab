"""Seam perplexity: how unlikely a causal language model finds the frames after a loop's seam.

As in LoopGen (Marincione et al. 2025, arXiv:2504.04466, section 5.1 and appendix A): a token model
gets the loop up to the seam as context. The mean cross-entropy of the first `WINDOW` frames after
it, in nats, is how unlikely they are; its exponential is the perplexity::

    a b c d e f g h | a b c d e …
    context           WINDOW

The context is one pass of the loop: in a second pass, it would already contain the seam.

Bar lines are less predictable by nature. So the same is measured at the loop's other bar lines,
where nothing was cut. What counts is the difference, not the figure alone.
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
    "codebook, under a model whose context is the loop up to there, encoded at several offsets "
    "within a frame; 1 or more, lower is better, the codebook's size: no better than a guess",
    "perplexity_all": "the same, of all codebooks",
    "bar_perplexity": "the same as perplexity, at the loop's other bar lines (their geometric "
    "mean)",
    "bar_perplexity_all": "the same, of all codebooks",
    "difference_nats": "cross-entropy at the seam less its mean at the other bar lines, of the "
    "first codebook; 0: the seam is as any other bar line, above: it is less predictable",
    "difference_nats_all": "the same, of all codebooks",
}

SUMMARY = {
    "seam, bars": "perplexity of all files, as the middle and half the width of its 95 % interval, "
    "at seams and at other bar lines",
    "difference": "mean difference of cross-entropy in nats, seam less other bar lines of the same "
    "file, and its 95 % interval (Student's t); indistinguishable where 0 is inside",
}

WINDOW = 5  # frames after a join, as in LoopGen
CONTEXT = 400  # frames of context before it, at most
# Frames after the window: conditioning looks a little ahead, and some models predict the later
# codebooks of a frame only after the first ones of the next frames (a delay pattern).
AHEAD = 8
LINES = 8  # sequences of a batch, so that many bars need no more memory than eight
SHIFTS = 4  # offsets within a frame at which loops are encoded at least; twice as many at most


class TokenFormat(Protocol):
    """The shape of a model's tokens."""

    @property
    def codebooks(self) -> int:
        """Tokens of a frame."""

    @property
    def codebook_size(self) -> int:
        """Number of different tokens; they are from 0 to one less."""


class LanguageModel(Protocol):
    """A causal language model: `audioloop.tokens.model.Causal`, or a published one."""

    @property
    def config(self) -> TokenFormat:
        """The shape of its tokens."""

    @property
    def device(self) -> torch.device:
        """The device that its inputs have to be on."""

    def __call__(self, tokens: Tensor, condition: ConditioningTensors, first: int, /) -> Any:
        """Logits (B, K, T - first, size) of tokens (B, K, T), given all before each of them.

        Logits before frame ``first`` are left out to save time. Logits may also depend on up to
        `AHEAD` later frames, if the model decodes those before the token.
        """


@torch.inference_mode()
def nats_at(
    tokens: Tensor,
    places: Sequence[int],
    model: LanguageModel,
    condition: ConditioningTensors | None = None,
    *,
    window: int = WINDOW,
    context: int | None = None,
) -> NDArray[np.float64]:
    """Mean cross-entropy of the ``window`` frames from each place on, given those before (Eq. 4).

    Args:
        tokens: int64 (K, T), of a loop, a circular sequence.
        places: indices of frames, modulo T.
        model: the language model.
        condition: conditioning of the T frames; None is the null condition.
        window: frames that are counted.
        context: frames of context, more than one pass if the loop is shorter; None is
            `context_frames`.

    Returns:
        Nats a token, float64 (places, K).

    Raises:
        CallError: the tokens are not the model's, or a number of frames is out of range.
    """
    n_frames = tokens.shape[-1]
    context = context_frames(n_frames) if context is None else context
    _check(tokens, model.config, window, context)
    tensors = Conditioning().on(n_frames, 1.0) if condition is None else condition
    spans = [torch.arange(place - context, place + window + AHEAD) for place in places]
    found = [np.zeros((0, len(tokens)))]
    for first in range(0, len(spans), LINES):
        some = spans[first : first + LINES]
        lines = torch.stack([tokens[:, span % n_frames] for span in some]).to(model.device)
        conditioning = stack([tensors.at(span) for span in some]).to(model.device)
        counted = lines[:, :, context : context + window]
        logits = model(lines, conditioning, context)[:, :, :window].float()
        nats = F.cross_entropy(logits.flatten(0, 2), counted.flatten(), reduction="none")
        found.append(nats.reshape(len(some), len(tokens), window).mean(-1).double().cpu().numpy())
    return np.concatenate(found)


def context_frames(n_frames: int) -> int:
    """Frames of context before the seam of a loop of ``n_frames``: at most one pass."""
    return min(CONTEXT, n_frames)


def _check(tokens: Tensor, shape: TokenFormat, window: int, context: int) -> None:
    if tokens.dim() != 2 or len(tokens) != shape.codebooks or not tokens.shape[1]:
        raise CallError(
            f"expected tokens ({shape.codebooks}, frames), got {tuple(tokens.shape)}; give those "
            "of one loop"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= shape.codebook_size:
        raise CallError(
            f"tokens from {low} to {high}, but the model's are from 0 to "
            f"{shape.codebook_size - 1}; they are of another codec"
        )
    if window < 1 or context < 0:
        raise CallError(
            f"a window of {window} after {counted(context, 'frame')}; give 1 and 0 or more"
        )


@dataclass(frozen=True)
class SeamPerplexity:
    """Cross-entropy at a loop's seam and at its other bar lines, in nats a token.

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
        """Nats at the seam less their mean at the other bar lines; None without any."""
        return self.nats - _mean(self.bars) if self.bars else None

    @property
    def difference_all(self) -> float | None:
        """`difference` of all codebooks."""
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
    """Seam perplexity of a loop, unconditional.

    Generated audio is more predictable in the frames that it was decoded from than at an offset
    from them, and a bar line may be at any offset. So the loop is encoded several times, each time
    shifted by a part of a frame, and the mean is used. The shifts are such that, together, all bar
    lines have the same offsets; with more than eight bars, nearly so.

    Args:
        wave: the loop.
        codec: encodes it.
        model: the language model of the codec's tokens.
        bars: number of bars of equal length; None if it is not known.

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
        tokens = compression.encode(Wave(moved, wave.rate), codec).codes[0]
        found.append(nats_at(tokens, [_nearest(line - shift) for line in lines], model))
    return _of_nats(np.mean(found, axis=0))


def _nearest(place: Fraction) -> int:
    """The frame that starts nearest to a place; of two, the later one."""
    return math.floor(place + Fraction(1, 2))


def _of_nats(nats: NDArray[np.float64]) -> SeamPerplexity:
    """From nats (bar lines, K), of which the first row is the seam."""
    (seam, *others), (seam_all, *others_all) = nats[:, 0].tolist(), nats.mean(1).tolist()
    return SeamPerplexity(seam, seam_all, tuple(others), tuple(others_all))


class Summary(NamedTuple):
    """Figures of several loops; those of fewer than two loops are None.

    Attributes:
        seam, seam_all: perplexity at the seams, of the first codebook and of all.
        bars, bars_all: perplexity at the other bar lines, one mean per loop.
        difference, difference_all: nats at a seam less those at the loop's other bar lines.
    """

    seam: Interval | None
    seam_all: Interval | None
    bars: Interval | None
    bars_all: Interval | None
    difference: Paired | None
    difference_all: Paired | None

    def as_json(self) -> dict[str, Any]:
        """Numbers, booleans and None only."""
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
    """Summarise several loops; those without other bar lines count at the seam only."""
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
