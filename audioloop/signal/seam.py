"""Acoustic measures of a loop's seam, where its last sample meets its first.

A loop is a circular sequence. Every measure is taken at a position, positions count modulo its
length, and the seam is position 0. All measures are relative to the loop's peak, so level does not
matter. The seam is compared with the loop's other bar lines, because a downbeat is loud by nature,
and with joins of known quality, the `CONTROLS`.

- jump: the sample discontinuity, over its local median.
- residual: the LPC residual (the error of linear prediction), over its local median.
- flux: the spectral flux, as a percentile of that of all other positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from audioloop.io.wave import SILENT, Wave
from audioloop.signal import mel
from audioloop.signal.mel import Signal
from midiloop.errors import CallError, LoopError, counted

MEANING = {
    "jump": "sample discontinuity: step between the two samples that meet, over the median step "
    "within 25 ms; 0 or more, lower is better, about 1 cannot be heard",
    "residual": "LPC residual: largest error of linear prediction (order 24) in the 24 samples "
    "from there on, over the median error within 50 ms; 0 or more, lower is better, about 3 where "
    "nothing was cut",
    "flux_percentile": "spectral flux there (change of the log-mel spectrum) among all steps of "
    "the loop; 0 to 100, 50 is chance, high on a downbeat and at a cut",
    "bar_flux_percentile": "the same among the loop's other bar lines; "
    "0 to 100, 50 is chance, 100: it changes more than at any of them",
}
EXCESS = (
    "jump and residual over the largest at the other bar lines, where that is above 1; "
    "0 or more, lower is better, up to 1 no rougher than where the loop was not cut"
)
CONTROLS = {
    "bar_lines": "the loop's other bar lines, each at the largest step within 1 ms of it",
    "steady_state": "random places in the loop, where nothing was cut",
    "random_cut": "a piece from one random place to another, looped",
    "splice": "a bar line joined to a random place",
    "shuffle": "pieces of 50 ms in random order",
}
REPEATS = 24  # of each control

MIN_S, MIN_RATE = 0.25, 1000  # seconds; Hz, of which 25 ms hold enough samples for a median
# Medians count as no less than this share of the loop's peak (-80 dB): a step out of silence is
# relative to what is audible, and one as small as the noise of the silence gives less than 1.
FLOOR = 1e-4

JUMP_S = 0.025
ORDER, PREDICTED_S = 24, 0.05
RIDGE = 1e-9  # share of white noise added before prediction, for stability
REACH_S = 0.06  # of signal on each side of a position
# Notes start near their bar line; only at the seam is the exact sample known.
NEAR_S = 1e-3
PIECE_S = 0.05

HOP_S = 0.01
TIE_DB = 0.1  # values of flux that differ by less count as equal


class Figures(NamedTuple):
    """`jump`, `residual` and `flux_percentile` of one join."""

    jump: float
    residual: float
    flux_percentile: float


@dataclass(frozen=True)
class Control:
    """Figures of joins of one kind."""

    draws: tuple[Figures, ...]

    @property
    def median(self) -> Figures:
        """Of each figure by itself."""
        return Figures(*np.median(self.draws, axis=0).tolist())

    @property
    def largest(self) -> Figures:
        """Of each figure by itself."""
        return Figures(*np.max(self.draws, axis=0).tolist())


@dataclass(frozen=True)
class Seam:
    """Measures of a loop's seam and its controls.

    Attributes:
        figures: of the seam itself.
        bar_flux_percentile: None where there is no other bar line.
        controls: by the names of `CONTROLS`; "bar_lines" only where there are some.
        bars: of the loop, None where they are not known.
    """

    figures: Figures
    bar_flux_percentile: float | None
    controls: dict[str, Control]
    bars: int | None

    @property
    def measures(self) -> dict[str, float | None]:
        """Every measure of `MEANING`."""
        return {**self.figures._asdict(), "bar_flux_percentile": self.bar_flux_percentile}

    @property
    def excess(self) -> dict[str, float]:
        """Jump and residual over their largest at the other bar lines, where that is above 1.

        Up to 1, the seam is no rougher than places that were never cut.
        """
        lines = self.controls.get("bar_lines")
        nature = lines.largest if lines else Figures(1, 1, 1)
        return {
            "jump": self.figures.jump / max(1.0, nature.jump),
            "residual": self.figures.residual / max(1.0, nature.residual),
        }

    def as_json(self) -> dict[str, Any]:
        """Numbers, texts and None only."""
        controls = {
            name: {
                "joins": len(control.draws),
                "median": control.median._asdict(),
                "largest": control.largest._asdict(),
            }
            for name, control in self.controls.items()
        }
        return {"bars": self.bars, **self.measures, "excess": self.excess, "controls": controls}


class Row(NamedTuple):
    """A line of a table: the seam, or a control.

    Attributes:
        name: "seam" or one of `CONTROLS`.
        joins: how many the figures are the median of.
        largest: None for the seam.
    """

    name: str
    joins: int
    median: Figures
    largest: Figures | None


def rows(seam: Seam) -> list[Row]:
    """A table of a seam and the controls beside it."""
    controls = [
        Row(name, len(control.draws), control.median, control.largest)
        for name, control in seam.controls.items()
    ]
    return [Row("seam", 1, seam.figures, None), *controls]


def measure(wave: Wave, *, bars: int | None, rng: np.random.Generator) -> Seam:
    """Measure a loop's seam, its other bar lines and the controls.

    Args:
        wave: the loop.
        bars: number of bars of equal length; None if it is not known.
        rng: chooses the positions of the controls.

    Raises:
        CallError: the loop is too short for so many bars.
        LoopError: the loop is too short or silent, or has samples that are not finite.
    """
    _check(wave)
    lines = bar_lines(wave, bars)
    peak, hop, fluxes = wave.peak, _hop(wave), _fluxes(wave, 0)

    def figures(near: Signal) -> Figures:
        change = _flux(near, wave.rate, peak, hop)
        percent = percentile(change, fluxes[1:])  # all but the seam's own
        return Figures(_jump(near, wave.rate, peak), _residual(near, wave.rate, peak), percent)

    controls = {
        name: Control(tuple(figures(near) for near in joins(wave, lines, rng)))
        for name, joins in _JOINS.items()
    }
    if lines:
        attacks = [largest_step(wave, line) for line in lines]
        natural = Control(tuple(figures(_around(wave, attack)) for attack in attacks))
        controls = {"bar_lines": natural, **controls}
    at_lines = [_flux(_around(wave, line), wave.rate, peak, hop) for line in lines]
    among_lines = percentile(fluxes[0], at_lines) if lines else None
    return Seam(figures(_around(wave, 0)), among_lines, controls, bars)


def bar_lines(wave: Wave, bars: int | None) -> list[int]:
    """Positions (samples) of all bar lines except the seam.

    Raises:
        CallError: bars would be shorter than 0.1 s.
    """
    if bars is not None and not 1 <= bars <= max(1.0, wave.duration_s / 0.1):
        raise CallError(
            f"{counted(bars, 'bar')} in {wave.duration_s:.2f} s; give the number of bars that "
            "the loop has"
        )
    return [round(len(wave) * bar / bars) for bar in range(1, bars)] if bars else []


def largest_step(wave: Wave, at: int) -> int:
    """The position within 1 ms of ``at`` with the largest step from the sample before."""
    reach = round(NEAR_S * wave.rate)
    return at - reach + int(steps(wave, at - reach, at + reach).argmax())


def steps(wave: Wave, first: int, last: int) -> Signal:
    """Steps to the samples from ``first`` to ``last``, Euclidean over the channels."""
    joined = _joined(wave, (first - 1, last + 1))
    return np.asarray(np.linalg.norm(np.diff(joined, axis=1), axis=0))


def jump(wave: Wave, at: int) -> float:
    """Sample discontinuity: step to sample ``at`` over the median step within 25 ms, 0 or more.

    Steps are Euclidean over the channels. About 1 is inaudible. A steady sine has at most 1.42, the
    attack of a drum may have 20.
    """
    _check(wave)
    return _jump(_around(wave, at), wave.rate, wave.peak)


def residual(wave: Wave, at: int) -> float:
    """LPC residual: largest prediction error in 24 samples from ``at``, over the median, 0 or more.

    One predictor of order 24 for all channels is fitted to 50 ms on each side; the median is over
    the same span. A join that is audible as a click is unpredictable, even without a step.
    """
    _check(wave)
    return _residual(_around(wave, at), wave.rate, wave.peak)


def flux(wave: Wave, at: int) -> float:
    """Spectral flux: mean absolute change of 64 log-mel bands over 10 ms around ``at``, in dB.

    The two windows are symmetric about ``at``, so a click is in both: the flux is the change of
    sound across it. Windows are longer than 10 ms, so neighbouring positions change as well.
    """
    _check(wave)
    return _flux(_around(wave, at), wave.rate, wave.peak, _hop(wave))


def flux_percentile(wave: Wave, at: int) -> float:
    """Percentile of the flux at ``at`` among that of all other steps of the loop: 0 to 100."""
    _check(wave)
    fluxes = _fluxes(wave, at)
    return percentile(fluxes[0], fluxes[1:])


def bar_flux_percentile(wave: Wave, bars: int) -> float | None:
    """Percentile of the flux at the seam among that at the other bar lines; None without any."""
    _check(wave)
    lines = bar_lines(wave, bars)
    return percentile(flux(wave, 0), [flux(wave, line) for line in lines]) if lines else None


def percentile(value: float, others: ArrayLike) -> float:
    """Percentage of the others (in dB) that are smaller, where equal ones count half: 0 to 100."""
    apart = np.sign(value - np.asarray(others)) * (np.abs(value - np.asarray(others)) > TIE_DB)
    return float(50 + 50 * apart.mean())


def _check(wave: Wave) -> None:
    if wave.rate < MIN_RATE:
        raise LoopError(
            f"{wave.rate:,} Hz are too few to measure a seam; give a rate of {MIN_RATE:,} or more"
        )
    if wave.duration_s < MIN_S:
        raise LoopError(
            f"{wave.duration_s:.3f} s is too short to measure a seam; give at least {MIN_S} s"
        )
    if not np.isfinite(wave.peak):
        raise LoopError("samples that are not finite; repair the file or give another")
    if wave.peak < SILENT:
        raise LoopError("silent throughout, so there is no seam to measure; give another file")


def _around(wave: Wave, at: int) -> Signal:
    """The signal around a position: (channels, 2 · reach), with the position in the middle."""
    reach = _reach(wave.rate)
    return _joined(wave, (at - reach, at + reach))


def _reach(rate: int) -> int:
    return int(REACH_S * rate) + 2 * ORDER


def _joined(wave: Wave, *pieces: tuple[int, int]) -> Signal:
    """Pieces of the loop, each from a start to an end, concatenated."""
    places = np.concatenate([np.arange(start, end) for start, end in pieces])
    return wave.samples.take(places, axis=1, mode="wrap").astype(np.float64)


def _steady_state(wave: Wave, _: Sequence[int], rng: np.random.Generator) -> Iterator[Signal]:
    for place in rng.integers(len(wave), size=REPEATS).tolist():
        yield _around(wave, place)


def _random_cut(wave: Wave, _: Sequence[int], rng: np.random.Generator) -> Iterator[Signal]:
    reach = _reach(wave.rate)
    for end, start in rng.integers(len(wave), size=(REPEATS, 2)).tolist():
        yield _joined(wave, (end - reach, end), (start, start + reach))


def _splice(wave: Wave, lines: Sequence[int], rng: np.random.Generator) -> Iterator[Signal]:
    reach = _reach(wave.rate)
    for start in rng.integers(len(wave), size=REPEATS).tolist():
        end = int(rng.choice([0, *lines]))
        yield _joined(wave, (end - reach, end), (start, start + reach))


def _shuffle(wave: Wave, _: Sequence[int], rng: np.random.Generator) -> Iterator[Signal]:
    reach, n_pieces = _reach(wave.rate), round(wave.duration_s / PIECE_S)
    edges = [round(len(wave) * number / n_pieces) for number in range(n_pieces + 1)]
    for _repeat in range(REPEATS):
        # Two pieces on each side; the outer ones are cut at the reach.
        picked = [(edges[n], edges[n + 1]) for n in rng.permutation(n_pieces)[:4].tolist()]
        joined = _joined(wave, *picked)
        middle = sum(end - start for start, end in picked[:2])
        yield joined[:, middle - reach : middle + reach]


_Joins = Callable[[Wave, Sequence[int], np.random.Generator], Iterator[Signal]]
_JOINS: dict[str, _Joins] = {
    "steady_state": _steady_state,
    "random_cut": _random_cut,
    "splice": _splice,
    "shuffle": _shuffle,
}


def _jump(near: Signal, rate: int, peak: float) -> float:
    """Of the position in the middle of ``near``."""
    steps = np.linalg.norm(np.diff(near, axis=1), axis=0)
    middle, width = near.shape[1] // 2 - 1, int(JUMP_S * rate)  # step n leads to sample n + 1
    local = np.median(steps[middle - width : middle + width + 1])
    return float(steps[middle] / max(local, FLOOR * peak))


def _residual(near: Signal, rate: int, peak: float) -> float:
    """Of the position in the middle of ``near``."""
    middle, width = near.shape[1] // 2, int(PREDICTED_S * rate)
    known = near[:, middle - width - ORDER : middle + width]
    taps = _predictor(known)
    # The first ORDER samples have no past to be predicted from.
    errors = np.linalg.norm([np.convolve(one, taps, "valid") for one in known], axis=0)
    return float(errors[width : width + ORDER + 1].max() / max(np.median(errors), FLOOR * peak))


def _predictor(signal: Signal) -> Signal:
    """The prediction error filter (1 + ORDER taps), by the autocorrelation method."""
    n = signal.shape[1]
    spectra = np.fft.rfft(signal * np.hanning(n), 2 * n)
    correlation = np.fft.irfft((np.abs(spectra) ** 2).sum(0))[: ORDER + 1]
    # Without it, silence has no best predictor, and a few partials have more than one.
    correlation[0] += RIDGE * correlation[0] + 1e-30
    lags = np.abs(np.subtract.outer(np.arange(ORDER), np.arange(ORDER)))
    return np.concatenate([[1.0], -np.linalg.solve(correlation[lags], correlation[1:])])


def _flux(near: Signal, rate: int, peak: float, hop: float) -> float:
    """Of the position in the middle of ``near``."""
    centres = np.floor(near.shape[1] // 2 + np.array([-hop / 2, hop / 2])).astype(np.int64)
    before, after = mel.decibels_of(near, centres, rate, peak)
    return float(np.abs(after - before).mean())


def _fluxes(wave: Wave, at: int) -> Signal:
    """Flux at every step of the loop, (steps,): the first is at ``at``."""
    hop = _hop(wave)
    centres = np.floor((np.arange(round(len(wave) / hop)) + 0.5) * hop).astype(np.int64)
    levels = mel.decibels(wave, at + centres)
    return np.asarray(np.abs(levels - np.roll(levels, 1, axis=0)).mean(1))


def _hop(wave: Wave) -> float:
    """Samples from spectrum to spectrum: about 10 ms, a whole number of them per loop."""
    return len(wave) / round(wave.duration_s / HOP_S)
