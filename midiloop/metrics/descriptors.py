"""About 170 numbers that describe a loop, in groups: what a classifier looks at.

Each is one value a loop, float (n,); nan where a loop has none of what it is about, as the mean
length of notes where there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.grid import Grid
from midiloop.metrics import bass_line, features, form, key, relations
from midiloop.metrics.bass_line import BassLine
from midiloop.metrics.bits import Bits
from midiloop.metrics.paper import Values, as_values
from midiloop.metrics.relations import OF_PART, BarRelations, Part, Relation

Named = dict[str, Values]

LENGTH_EDGES_BEATS = (0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0, np.inf)
MOVES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12)  # semitones of an interval that count by themselves


class Loops(NamedTuple):
    """What several groups look at, of n loops.

    Attributes:
        bits: the loops.
        drums: bool (n, steps, drums).
        bass: their bass lines.
        relations: of the bars of each part.
        distances: cells between bars, int (n, pairs), of each part.
    """

    bits: Bits
    drums: NDArray[np.bool_]
    bass: BassLine
    relations: dict[Part, BarRelations]
    distances: dict[Part, NDArray[np.int64]]

    @property
    def grid(self) -> Grid:
        """That they lie on."""
        return self.bits.grid


def describe(bits: Bits) -> dict[str, Named]:
    """The numbers of each of `GROUPS`, by their names; a name stands in one group alone."""
    pieces = [_of_piece(piece) for piece in bits.pieces()] or [_of_piece(bits)]
    return {
        group: {name: np.concatenate([piece[group][name] for piece in pieces]) for name in named}
        for group, named in pieces[0].items()
    }


def _of_piece(bits: Bits) -> dict[str, Named]:
    grid = bits.grid
    loops = Loops(
        bits,
        grid.unpack(bits.packed)[:, :, : grid.n_drums],
        bass_line.of(bits),
        {part: relations.of_part(bits, part, grid) for part in form.PARTS},
        {part: relations.bar_distances(bits, part, grid) for part in form.PARTS},
    )
    return {group: measure(loops) for group, measure in GROUPS.items()}


def _form(loops: Loops) -> Named:
    grid, found = loops.grid, Named()
    one, other = np.triu_indices(grid.bars, 1)
    for part in form.PARTS:
        kinds = loops.relations[part].kinds[:, 1:]
        for kind in OF_PART[part]:
            if kind is not Relation.TRANSPOSED:
                name = f"{part}: {kind.name.lower().replace('_', ' ')} bars"
                found[name] = as_values(np.count_nonzero(kinds == kind, axis=1))
        apart = loops.distances[part]
        back = np.arange(1, grid.bars) - loops.relations[part].references[:, 1:]
        taken = kinds != Relation.NEW
        found[f"{part}: bars back"] = _mean(back, taken)
        found[f"{part}: near pairs"] = as_values(
            np.count_nonzero((apart > 0) & (apart <= relations.NEAR_CELLS), axis=1)
        )
        found[f"{part}: equal pairs"] = as_values(np.count_nonzero(apart == 0, axis=1))
        found[f"{part}: cells between unequal bars"] = _mean(apart, apart > 0)
        for lag in (1, 2, 4):
            if (other - one == lag).any():
                found[f"{part}: cells {lag} bars apart"] = apart[:, other - one == lag].mean(axis=1)
        for bar in (grid.middle_bar, grid.bars - 1):
            # a loop of a single bar has no pair, and of two bars these are one
            for pair in np.flatnonzero((one == 0) & (other == bar)):
                found[f"{part}: cells from bar 1 to {bar + 1}"] = as_values(apart[:, pair])
        if grid.bars > 1:
            found[f"{part}: last bar's departure"] = form.last_bar_departure(apart, grid)
    both = loops.distances["bass"] + loops.distances["drums"]
    found["equal bars, whole"] = as_values(np.count_nonzero(both == 0, axis=1))
    found["distinct bars"] = features.distinct_bars(loops.bits, grid)
    parts_agree = (loops.distances["bass"] == 0) == (loops.distances["drums"] == 0)
    found["pairs equal in both parts or none"] = as_values(np.count_nonzero(parts_agree, axis=1))
    return found


def _transposition(loops: Loops) -> Named:
    of = loops.relations["bass"]
    moved = of.kinds == Relation.TRANSPOSED
    found = {"transposed bars": as_values(np.count_nonzero(moved, axis=1))}
    for semitones in range(12):
        same = moved & (of.semitones % 12 == semitones)
        found[f"bars transposed by {semitones}"] = as_values(np.count_nonzero(same, axis=1))
    found["semitones of transposed bars"] = _mean(np.abs(of.semitones), moved)
    kinds = np.stack([found[f"bars transposed by {n}"] > 0 for n in range(12)])
    found["kinds of transpositions"] = as_values(np.count_nonzero(kinds, axis=0))
    same_rhythm = (of.kinds == Relation.SAME_RHYTHM) | moved
    found["bars of one rhythm at other pitches"] = as_values(np.count_nonzero(same_rhythm, axis=1))
    return found


def _harmony(loops: Loops) -> Named:
    bits, grid, line = loops.bits, loops.grid, loops.bass
    keys, classes = key.estimate_keys(bits, grid), key.pitch_classes(bits, grid)
    degrees = np.take_along_axis(classes, (keys.tonics[:, None] + np.arange(12)) % 12, axis=1)
    total = degrees.sum(axis=1)
    outside = form.out_of_key(bits, grid)
    found = {f"steps on degree {n}": _ratio(degrees[:, n], total) for n in range(12)}
    found |= {
        "out of key": _ratio(*outside),
        "key confidence": as_values(keys.confidences),
        "minor": as_values(keys.modes),
        "pitch entropy": features.pitch_entropy(bits, grid),
        "pitch classes": as_values(np.count_nonzero(classes, axis=1)),
        "first note above tonic": np.where(
            line.onsets[:, 0], (line.pitches[:, 0] - keys.tonics) % 12, np.nan
        ),
    }
    n, (of, intervals) = len(bits), line.intervals()
    n_intervals = np.bincount(of, minlength=n)
    for semitones in MOVES:
        same = of[np.abs(intervals) == semitones]
        found[f"intervals of {semitones}"] = _ratio(np.bincount(same, minlength=n), n_intervals)
    found["mean interval"] = _ratio(np.bincount(of, np.abs(intervals), minlength=n), n_intervals)
    found["intervals upwards"] = _ratio(np.bincount(of[intervals > 0], minlength=n), n_intervals)
    found["bass range"] = features.bass_range(bits, grid)
    found["mean pitch"] = _mean(line.pitches, line.pitches >= 0)
    bars = line.pitches.reshape(n, grid.bars, -1)
    root = bars.max(axis=2, initial=-1, where=np.cumsum(bars >= 0, axis=2) == 1)
    found["different first pitches of bars"] = as_values(
        np.count_nonzero(np.diff(np.sort(root, axis=1), axis=1), axis=1)
    )
    return found


def _drums(loops: Loops) -> Named:
    grid, found = loops.grid, Named()
    by_class = _step_classes(grid)
    for column, drum in enumerate(grid.drums):
        hits = loops.drums[:, :, column]
        n_hits = np.count_nonzero(hits, axis=1)
        found[f"{drum.name} hits"] = n_hits / grid.bars
        if drum.name in ("kick", "snare", "closed hi-hat", "open hi-hat", "ride"):
            for name, steps in by_class.items():
                found[f"{drum.name} {name}"] = _ratio(
                    np.count_nonzero(hits & steps, axis=1), n_hits
                )
    by_step = loops.drums.sum(axis=2)
    found["drums used"] = as_values(np.count_nonzero(loops.drums.any(axis=1), axis=1))
    found["steps with drums"] = as_values((by_step > 0).mean(axis=1))
    found["drums at once"] = _mean(by_step, by_step > 0)
    for name, steps in by_class.items():
        found[f"drums {name}"] = _ratio(by_step @ steps.astype(int), by_step.sum(axis=1))
    found["drum syncopation"] = _syncopation(by_step > 0, grid)
    return found


def _rhythm(loops: Loops) -> Named:
    grid, line = loops.grid, loops.bass
    n_notes = np.count_nonzero(line.onsets, axis=1)
    kinds, entropy = form.note_lengths(line)
    found = {
        "bass notes": n_notes / grid.bars,
        "steps with bass": as_values((line.pitches >= 0).mean(axis=1)),
        "mean note length": _mean(line.lengths, line.onsets),
        "longest note": as_values(line.lengths.max(axis=1)),
        "kinds of note lengths": kinds,
        "entropy of note lengths": entropy,
        "bass syncopation": _syncopation(line.onsets, grid),
    }
    lengths = line.lengths / grid.steps_per_beat
    for low, high in pairwise(LENGTH_EDGES_BEATS):
        of = np.count_nonzero(line.onsets & (lengths > low) & (lengths <= high), axis=1)
        name = f"notes of {low:g} to {high:g} beats" if np.isfinite(high) else "longer notes"
        found[name] = _ratio(of, n_notes)
    for name, steps in _step_classes(grid).items():
        found[f"bass {name}"] = _ratio(np.count_nonzero(line.onsets & steps, axis=1), n_notes)
    firsts = np.arange(grid.bars) * grid.steps_per_bar
    found["bars that begin with a note"] = as_values(line.onsets[:, firsts].mean(axis=1))
    found["notes held across bars"] = as_values(
        ((line.pitches[:, firsts] >= 0) & ~line.onsets[:, firsts]).mean(axis=1)
    )
    by_bar = line.onsets.reshape(len(kinds), grid.bars, -1).sum(axis=2)
    found["notes a bar, deviation"] = as_values(by_bar.std(axis=1))
    ends = line.onsets & (np.roll(line.pitches, 1, axis=1) >= 0)
    found["notes without a rest before"] = _ratio(np.count_nonzero(ends, axis=1), n_notes)
    return found


def _together(loops: Loops) -> Named:
    grid, onsets = loops.grid, loops.bass.onsets
    n_onsets, found = np.count_nonzero(onsets, axis=1), Named()
    sounding = loops.bass.pitches >= 0
    for column, drum in enumerate(grid.drums):
        hits = loops.drums[:, :, column]
        found[f"{drum.name} on the first step"] = as_values(hits[:, 0])
        if drum.name not in ("kick", "snare", "crash"):
            continue
        both = np.count_nonzero(hits & onsets, axis=1)
        found[f"{drum.name} on a bass onset"] = _ratio(both, np.count_nonzero(hits, axis=1))
        found[f"bass onset on a {drum.name}"] = _ratio(both, n_onsets)
        found[f"{drum.name} or bass onset in both"] = _ratio(
            both, np.count_nonzero(hits | onsets, axis=1)
        )
        found[f"{drum.name} while the bass sounds"] = _ratio(
            np.count_nonzero(hits & sounding, axis=1), np.count_nonzero(hits, axis=1)
        )
    found["bass on the first step"] = as_values(onsets[:, 0])
    any_drum = loops.drums.any(axis=2)
    together = np.count_nonzero(any_drum & onsets, axis=1)
    found["bass onset on any drum"] = _ratio(together, n_onsets)
    found["silent steps"] = as_values((~any_drum & ~sounding).mean(axis=1))
    return found


GROUPS: dict[str, Callable[[Loops], Named]] = {
    "form": _form,
    "harmony": _harmony,
    "transposition": _transposition,
    "drums within a bar": _drums,
    "bass rhythm": _rhythm,
    "drums with bass": _together,
}


def _step_classes(grid: Grid) -> dict[str, NDArray[np.bool_]]:
    """Steps of a loop by their place in the bar, counted in pulses: bool (steps,) each."""
    at = np.arange(grid.steps)
    beat = at % grid.steps_per_bar / grid.steps_per_pulse
    return {
        "on the first beat": beat == 0,
        "on the backbeats": (beat % 2 == 1),
        "on other beats": (beat % 2 == 0) & (beat > 0),
        "between beats, half-way": beat % 1 == 0.5,
        "elsewhere": (beat % 1 > 0) & (beat % 1 != 0.5),
    }


def _syncopation(onsets: NDArray[np.bool_], grid: Grid) -> Values:
    """Share of onsets between pulses with nothing on the pulse that follows, float (n,)."""
    per_beat = onsets.reshape(len(onsets), -1, grid.steps_per_pulse)
    between = np.count_nonzero(per_beat[:, :, 1:], axis=2)
    empty_next = ~np.roll(per_beat[:, :, 0], -1, axis=1)
    return _ratio((between * empty_next).sum(axis=1), np.count_nonzero(onsets, axis=1))


def _ratio(part: NDArray[np.number], whole: NDArray[np.number]) -> Values:
    """Part over whole, nan where the whole is 0."""
    return as_values(np.where(whole > 0, part / np.maximum(whole, 1), np.nan))


def _mean(values: NDArray[np.number], where: NDArray[np.bool_]) -> Values:
    """Mean of the values of each loop where they count, nan where none does."""
    return _ratio((values * where).sum(axis=1), np.count_nonzero(where, axis=1))
