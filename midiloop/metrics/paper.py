"""The paper's metrics of loops, as pure functions.

Source: Han, Ihm and Lim 2021, arXiv:2111.07657, *Musical Metrics*. Rolls are bool (n, steps,
columns). A function of single loops gives one value for each, float (n,); the table shows its mean.
`overlap` and `uniqueness` look at a whole set. Each docstring states definition, range, and which
way is better. Where it says *near*, the best value of generated loops is that of the training
loops: `midiloop.evaluation.evaluate` puts both side by side, with intervals.

Each function also takes `Bits` in place of rolls, which are not unpacked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import LoopError
from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics.bits import Bits, as_bits, count

Values = NDArray[np.float64]

NO_LOOPS = "no loops to measure; extract or generate some first"


def bar_distance(rolls: Roll | Bits, grid: Grid = LOOP) -> Values:
    """HD: share of cells in which the first bar and the one half-way, `Grid.middle_bar`, differ.

    Range: 0, the loop repeats itself after half its length, to 1, each cell differs. Better: lower,
    down to the value of the training loops; the paper's rule keeps those below 0.0015.
    """
    words, half = as_bits(rolls, grid).words, grid.middle_bar * grid.steps_per_bar
    apart = words[:, :, : grid.steps_per_bar] ^ words[:, :, half : half + grid.steps_per_bar]
    return as_values(count(apart).sum(axis=1) / grid.cells_per_bar)


def first_note_drum(
    rolls: Roll | Bits, grid: Grid = LOOP, drums: tuple[str, ...] = ("kick", "crash")
) -> Values:
    """FND: whether all of ``drums`` play on the first step.

    Range: 0, not all of them do, or 1. Better: higher, up to the value of the training loops.
    The rules ``paper`` demand kick and crash, so those have 1; the rules ``open`` demand the kick
    alone: ask for ``drums=("kick",)``.
    """
    bits = as_bits(rolls, grid)
    wanted = bits.mask([grid.drum_column(name) for name in drums])
    return as_values((bits.words[:, :, :1] & wanted == wanted).all(axis=(0, 2)))


def first_note_bass(rolls: Roll | Bits, grid: Grid = LOOP) -> Values:
    """FNB: whether any bass pitch sounds on the first step.

    Range: 0, none does, or 1. Better: higher; mined loops have 1.
    """
    return as_values(as_bits(rolls, grid).bass[:, :, 0].any(axis=0))


def duplicate_bass(rolls: Roll | Bits, grid: Grid = LOOP) -> Values:
    """DB: share of steps on which more than one bass pitch sounds.

    Range: 0, the bass is monophonic, to 1, there are two pitches or more on each step. Better:
    lower; mined loops have 0.
    """
    several = count(as_bits(rolls, grid).bass) > 1
    return as_values(np.count_nonzero(several, axis=1) / grid.steps)


def used_pitches(rolls: Roll | Bits, grid: Grid = LOOP) -> Values:
    """UP: columns, drums and pitches alike, that are used in a bar, mean over the bars.

    Range: 0, silence, to the number of columns (93), all of them in each bar. Better: near.
    """
    words = as_bits(rolls, grid).words
    bars = words.reshape(*words.shape[:2], grid.bars, grid.steps_per_bar)
    used = np.bitwise_or.reduce(bars, axis=3)
    return as_values(count(used).sum(axis=1) / grid.bars)


def note_density(rolls: Roll | Bits, grid: Grid = LOOP) -> Values:
    """ND: share of steps on which anything sounds.

    Range: 0, silence, to 1, no silent step. Better: near. The paper calls it the number of notes
    in a bar, but its 0.92 only fits when that is divided by the 16 steps.
    """
    sounding = np.bitwise_or.reduce(as_bits(rolls, grid).words, axis=0) != 0
    return as_values(np.count_nonzero(sounding, axis=1) / grid.steps)


def uniqueness(fingerprints: NDArray[np.uint64]) -> float:
    """US: distinct loops over all loops.

    Range: 1/n, always the same loop, to 1, no loop comes twice. Better: higher, up to the value of
    a set of the same size: it falls as any set grows.

    Raises:
        LoopError: there are no loops.
    """
    if not len(fingerprints):
        raise LoopError(NO_LOOPS)
    return len(np.unique(fingerprints)) / len(fingerprints)


def overlap(fingerprints: NDArray[np.uint64], reference: NDArray[np.uint64]) -> float:
    """OS: share of loops that are, cell for cell, in the reference set.

    Range: 0, all are new, to 1, all are copies. Better: lower, if the reference is the training
    set.

    Raises:
        LoopError: there are no loops.
    """
    if not len(fingerprints):
        raise LoopError(NO_LOOPS)
    return float(np.isin(fingerprints, reference).mean())


def as_values(values: Any) -> Values:
    """Numbers, bools or counts as the floats of a metric."""
    return np.asarray(values, dtype=np.float64)


Measure = Callable[[Roll | Bits, Grid], Values]

OF_ONE_LOOP: dict[str, Measure] = {
    "HD": bar_distance,
    "FND": first_note_drum,
    "FNB": first_note_bass,
    "DB": duplicate_bass,
    "UP": used_pitches,
    "ND": note_density,
}
TABLE = ("HD", "FND", "FNB", "DB", "OS", "US", "UP", "ND")


def means(batches: Iterable[Roll | Bits], *, grid: Grid = LOOP) -> dict[str, float]:
    """Mean over all rolls of each of `OF_ONE_LOOP`; no loop is kept in memory.

    Args:
        batches: rolls (n, steps, columns) or bits, as many as fit into memory at a time.

    Raises:
        LoopError: there are no loops.
    """
    sums, n_loops = dict.fromkeys(OF_ONE_LOOP, 0.0), 0
    for rolls in batches:
        bits = as_bits(rolls, grid)
        for name, metric in OF_ONE_LOOP.items():
            sums[name] += float(metric(bits, grid).sum())
        n_loops += len(bits)
    if not n_loops:
        raise LoopError(NO_LOOPS)
    return {name: total / n_loops for name, total in sums.items()}


def evaluate(
    batches: Iterable[Roll | Bits],
    reference: NDArray[np.uint64] | None = None,
    *,
    grid: Grid = LOOP,
) -> dict[str, float]:
    """The paper's row of eight metrics over all rolls.

    Args:
        batches: rolls (n, steps, columns) or bits, as many as fit into memory at a time.
        reference: fingerprints of the set that ``OS`` counts copies of; by default the set
            itself, so that ``OS`` is 1.

    Raises:
        LoopError: there are no loops.
    """
    prints: list[NDArray[np.uint64]] = []

    def fingerprinted() -> Iterator[Bits]:
        for rolls in batches:
            bits = as_bits(rolls, grid)
            prints.append(grid.fingerprints(bits.packed))
            yield bits

    row = means(fingerprinted(), grid=grid)
    loops = np.concatenate(prints)
    copied = overlap(loops, loops if reference is None else reference)
    row |= {"US": uniqueness(loops), "OS": copied}
    return {name: row[name] for name in TABLE}
