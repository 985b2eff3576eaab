"""What is at the seam of a loop, where its last sample meets its first, measured without a model.

A loop is a circle: every measure is taken at a place of it, places count modulo its length, and
the seam is place 0. Level does not matter, all is relative to the loop's own peak. Beside the
figures of the seam stand those of its other bar lines, because a downbeat is loud by nature, and
those of other joins whose quality is known, the `CONTROLS`.

- jump: the difference of the two samples that meet, over its local median.
- residual: what linear prediction cannot foresee there, over its local median.
- flux: how much the spectrum changes there, as a percentile of how much it changes elsewhere.
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
    "jump": "step between the two samples that meet, over the median step within 25 ms; "
    "0 or more, lower is better, about 1 cannot be heard",
    "residual": "largest error of linear prediction (order 24) in the 24 samples from there on, "
    "over the median error within 50 ms; 0 or more, lower is better, about 3 where nothing was cut",
    "flux_percentile": "change of the log-mel spectrum there, among all steps of the loop; "
    "0 to 100, 50 is chance, high on a downbeat and at a cut",
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
# Medians count as no less than this share of the loop's peak (-80 dB). A step out of silence is
# measured by what can be heard, and one as small as the silence's own noise gives less than 1.
FLOOR = 1e-4

JUMP_S = 0.025
ORDER, PREDICTED_S = 24, 0.05
RIDGE = 1e-9  # share of white noise added to a signal before it is predicted
REACH_S = 0.06  # of what is looked at on each side of a place
# A player or a synth starts a note near its bar line, and only at the seam is the sample known.
NEAR_S = 1e-3
PIECE_S = 0.05

HOP_S = 0.01
TIE_DB = 0.1  # changes of spectrum that differ by less are alike


class Figures(NamedTuple):
    """Of one join: what `jump`, `residual` and `flux_percentile` give."""

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
    """What is at a loop's seam.

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
        """Jump and residual, over the largest at the other bar lines where that is above 1.

        1 and less: the seam is no rougher than where the loop was not cut at all.
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
        bars: of equal length, that the loop has; None where they are not known.
        rng: draws the places of the controls.

    Raises:
        CallError: there are no so many bars in it.
        LoopError: it is too short or silent, or has samples that are no numbers.
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
    """Places of all bar lines but the seam.

    Raises:
        CallError: bars would be shorter than a few spectra.
    """
    if bars is not None and not 1 <= bars <= max(1.0, wave.duration_s / 0.1):
        raise CallError(
            f"{counted(bars, 'bar')} in {wave.duration_s:.2f} s; give the number of bars that "
            "the loop has"
        )
    return [round(len(wave) * bar / bars) for bar in range(1, bars)] if bars else []


def largest_step(wave: Wave, at: int) -> int:
    """The place within 1 ms of another at which the samples differ most from those before."""
    reach = round(NEAR_S * wave.rate)
    return at - reach + int(steps(wave, at - reach, at + reach).argmax())


def steps(wave: Wave, first: int, last: int) -> Signal:
    """Steps to the samples from ``first`` to ``last``, Euclidean over the channels."""
    joined = _joined(wave, (first - 1, last + 1))
    return np.asarray(np.linalg.norm(np.diff(joined, axis=1), axis=0))


def jump(wave: Wave, at: int) -> float:
    """Step from sample ``at`` - 1 to ``at``, over the median step within 25 ms: 0 or more.

    Steps are Euclidean over the channels. About 1 cannot be heard, a steady sine has at most 1.42,
    the attack of a drum can have 20.
    """
    _check(wave)
    return _jump(_around(wave, at), wave.rate, wave.peak)


def residual(wave: Wave, at: int) -> float:
    """Largest error of linear prediction from ``at`` to 24 samples on, over the median: 0 or more.

    The predictor, one of order 24 for all channels, is fitted to 50 ms on each side, and the median
    is theirs. A join that the ear takes for a click cannot be foreseen, even where samples meet.
    """
    _check(wave)
    return _residual(_around(wave, at), wave.rate, wave.peak)


def flux(wave: Wave, at: int) -> float:
    """Mean change of the 64 log-mel bands, up or down, from 5 ms before ``at`` to 5 ms after: dB.

    The two spectra mirror each other, so this is not the click but the change of sound across it;
    as windows are longer than that, the steps beside it change as well.
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
    """Share of the others, in dB, that are smaller, those alike counting half: 0 to 100."""
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
        raise LoopError("samples that are no numbers; mend the file or give another")
    if wave.peak < SILENT:
        raise LoopError("silent all over, so there is no seam to measure; give another file")


def _around(wave: Wave, at: int) -> Signal:
    """What is around a place of the circle: (channels, 2 · reach), the place in the middle."""
    reach = _reach(wave.rate)
    return _joined(wave, (at - reach, at + reach))


def _reach(rate: int) -> int:
    return int(REACH_S * rate) + 2 * ORDER


def _joined(wave: Wave, *pieces: tuple[int, int]) -> Signal:
    """Pieces of the circle, each from a place up to another, end to end."""
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
        # Two pieces on each side, of which the outer ones are taken as far as the reach.
        drawn = [(edges[n], edges[n + 1]) for n in rng.permutation(n_pieces)[:4].tolist()]
        joined = _joined(wave, *drawn)
        middle = sum(end - start for start, end in drawn[:2])
        yield joined[:, middle - reach : middle + reach]


_Joins = Callable[[Wave, Sequence[int], np.random.Generator], Iterator[Signal]]
_JOINS: dict[str, _Joins] = {
    "steady_state": _steady_state,
    "random_cut": _random_cut,
    "splice": _splice,
    "shuffle": _shuffle,
}


def _jump(near: Signal, rate: int, peak: float) -> float:
    """Of the place in the middle of ``near``."""
    steps = np.linalg.norm(np.diff(near, axis=1), axis=0)
    middle, width = near.shape[1] // 2 - 1, int(JUMP_S * rate)  # step n leads to sample n + 1
    local = np.median(steps[middle - width : middle + width + 1])
    return float(steps[middle] / max(local, FLOOR * peak))


def _residual(near: Signal, rate: int, peak: float) -> float:
    """Of the place in the middle of ``near``."""
    middle, width = near.shape[1] // 2, int(PREDICTED_S * rate)
    known = near[:, middle - width - ORDER : middle + width]
    taps = _predictor(known)
    # The first ORDER samples have no past to be predicted from.
    errors = np.linalg.norm([np.convolve(one, taps, "valid") for one in known], axis=0)
    return float(errors[width : width + ORDER + 1].max() / max(np.median(errors), FLOOR * peak))


def _predictor(signal: Signal) -> Signal:
    """The filter (1 + ORDER) that leaves the error of prediction (autocorrelation method)."""
    n = signal.shape[1]
    spectra = np.fft.rfft(signal * np.hanning(n), 2 * n)
    correlation = np.fft.irfft((np.abs(spectra) ** 2).sum(0))[: ORDER + 1]
    # Of silence, or of a few partials alone, there would be no or no single best predictor.
    correlation[0] += RIDGE * correlation[0] + 1e-30
    lags = np.abs(np.subtract.outer(np.arange(ORDER), np.arange(ORDER)))
    return np.concatenate([[1.0], -np.linalg.solve(correlation[lags], correlation[1:])])


def _flux(near: Signal, rate: int, peak: float, hop: float) -> float:
    """Of the place in the middle of ``near``."""
    centres = np.floor(near.shape[1] // 2 + np.array([-hop / 2, hop / 2])).astype(np.int64)
    before, after = mel.decibels_of(near, centres, rate, peak)
    return float(np.abs(after - before).mean())


def _fluxes(wave: Wave, at: int) -> Signal:
    """Flux of every step around the circle, (steps,): the first is the one across ``at``."""
    hop = _hop(wave)
    centres = np.floor((np.arange(round(len(wave) / hop)) + 0.5) * hop).astype(np.int64)
    levels = mel.decibels(wave, at + centres)
    return np.asarray(np.abs(levels - np.roll(levels, 1, axis=0)).mean(1))


def _hop(wave: Wave) -> float:
    """Samples from spectrum to spectrum: about 10 ms, so that a whole number goes round."""
    return len(wave) / round(wave.duration_s / HOP_S)
