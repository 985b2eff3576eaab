"""What can be told of one loop in one number, beside the paper's metrics.

Pure functions of rolls (n, steps, columns), each with one value a loop, float (n,).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from midiloop import metrics
from midiloop.grid import BEATS_PER_BAR, LOOP, Grid, Roll
from midiloop.metrics import Values, as_values


def drum_hits(rolls: Roll, grid: Grid = LOOP, drums: tuple[str, ...] = ("kick",)) -> Values:
    """Hits of ``drums`` in a bar, mean over the bars. 0 to 16 for each of the drums."""
    columns = [grid.drum_column(name) for name in drums]
    return as_values(rolls[:, :, columns].sum(axis=(1, 2)) / grid.bars)


def bass_notes(rolls: Roll, grid: Grid = LOOP) -> Values:
    """Bass notes that begin in a bar, mean over the bars. 0 to 16 for a monophonic bass.

    A note begins on a step whose pitch did not sound on the step before, and on the first step of
    the loop: a roll holds no repetition of a pitch without a gap.
    """
    return as_values(_bass_onsets(rolls, grid).sum(axis=1) / grid.bars)


def bass_range(rolls: Roll, grid: Grid = LOOP) -> Values:
    """Semitones from the lowest to the highest bass pitch. 0, one pitch or none, to 83."""
    used: Roll = np.any(rolls[:, :, grid.n_drums :], axis=1)
    highest = grid.n_pitches - 1 - used[:, ::-1].argmax(axis=1)
    return as_values(np.where(np.any(used, axis=1), highest - used.argmax(axis=1), 0))


def pitch_entropy(rolls: Roll, grid: Grid = LOOP) -> Values:
    """Entropy of the bass's pitch classes, each weighted by the steps it sounds on, in bits.

    0, one class or none, to log2(12) = 3.58, all twelve alike.
    """
    steps = rolls[:, :, grid.n_drums :].sum(axis=1)
    classes = (np.arange(grid.lowest_pitch, grid.highest_pitch + 1) % 12)[:, None] == np.arange(12)
    share = steps @ classes / np.maximum(steps.sum(axis=1), 1)[:, None]
    return as_values(-(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1) + 0.0)


def distinct_bars(rolls: Roll, grid: Grid = LOOP) -> Values:
    """How many different bars the loop is made of. 1, always the same, to 8."""
    cells = rolls.reshape(len(rolls), grid.bars, grid.cells_per_bar)
    bars = np.packbits(cells, axis=2)
    same = (bars[:, :, None] == bars[:, None]).all(axis=3)
    return as_values(grid.bars - np.tril(same, -1).any(axis=2).sum(axis=1))


def off_beat_share(rolls: Roll, grid: Grid = LOOP) -> Values:
    """Share of drum hits and bass onsets that do not fall on a beat. 0, also in silence, to 1."""
    onsets = rolls[:, :, : grid.n_drums].sum(axis=2) + _bass_onsets(rolls, grid)
    total = onsets.sum(axis=1)
    on_beat = onsets[:, :: grid.steps_per_bar // BEATS_PER_BAR].sum(axis=1)
    return as_values((total - on_beat) / np.maximum(total, 1))


def _bass_onsets(rolls: Roll, grid: Grid) -> NDArray[np.int64]:
    """Bass notes that begin on each step, int (n, steps)."""
    bass = rolls[:, :, grid.n_drums :]
    begun = bass[:, 1:] & ~bass[:, :-1]
    first = bass[:, :1].sum(axis=2)
    return np.concatenate([first, begun.sum(axis=2)], axis=1).astype(np.int64)


Measure = Callable[[Roll, Grid], Values]

FEATURES: dict[str, Measure] = {
    "HD": metrics.bar_distance,
    "UP": metrics.used_pitches,
    "ND": metrics.note_density,
    "kick hits": partial(drum_hits, drums=("kick",)),
    "snare hits": partial(drum_hits, drums=("snare",)),
    "hat hits": partial(drum_hits, drums=("closed hi-hat", "open hi-hat")),
    "bass notes": bass_notes,
    "bass range": bass_range,
    "pitch entropy": pitch_entropy,
    "distinct bars": distinct_bars,
    "off-beat share": off_beat_share,
}
