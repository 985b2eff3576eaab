"""Features of one loop, one number each, beside the paper's metrics.

Pure functions of rolls (n, steps, columns), or of `Bits`, each with one value a loop, float (n,).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics import paper
from midiloop.metrics.bits import Bits, as_bits, count
from midiloop.metrics.paper import Measure, Values, as_values


def drum_hits(rolls: Roll | Bits, grid: Grid = LOOP, drums: tuple[str, ...] = ("kick",)) -> Values:
    """Hits of ``drums`` in a bar, mean over the bars. 0 to its steps for each of the drums."""
    bits = as_bits(rolls, grid)
    hits = bits.words & bits.mask([grid.drum_column(name) for name in drums])
    return as_values(count(hits).sum(axis=1) / grid.bars)


def bass_notes(rolls: Roll | Bits, grid: Grid = LOOP) -> Values:
    """Bass notes that begin in a bar, mean over the bars. 0 to its steps for a monophonic bass.

    Where a note begins, `Bits.onsets` says.
    """
    return as_values(count(as_bits(rolls, grid).onsets).sum(axis=1) / grid.bars)


def bass_range(rolls: Roll | Bits, grid: Grid = LOOP) -> Values:
    """Semitones from the lowest to the highest bass pitch. 0, one pitch or none, to 83."""
    used = as_bits(rolls, grid).n_steps[:, grid.n_drums :] > 0
    highest = grid.n_pitches - 1 - used[:, ::-1].argmax(axis=1)
    return as_values(np.where(np.any(used, axis=1), highest - used.argmax(axis=1), 0))


def pitch_entropy(rolls: Roll | Bits, grid: Grid = LOOP) -> Values:
    """Entropy of the bass's pitch classes, each weighted by the steps it sounds on, in bits.

    0, one class or none, to log2(12) = 3.58, all twelve alike.
    """
    steps = as_bits(rolls, grid).n_steps[:, grid.n_drums :].astype(np.float64)
    classes = (np.arange(grid.lowest_pitch, grid.highest_pitch + 1) % 12)[:, None] == np.arange(12)
    share = steps @ classes / np.maximum(steps.sum(axis=1), 1)[:, None]
    return as_values(-(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1) + 0.0)


def distinct_bars(rolls: Roll | Bits, grid: Grid = LOOP) -> Values:
    """How many different bars the loop is made of. 1, always the same, to all of them."""
    words = as_bits(rolls, grid).words
    bars = words.reshape(*words.shape[:2], grid.bars, grid.steps_per_bar)
    distinct = np.ones(words.shape[1], dtype=np.int64)
    for bar in range(1, grid.bars):
        new = np.ones(words.shape[1], dtype=np.bool_)
        for earlier in range(bar):
            new &= (bars[:, :, bar] != bars[:, :, earlier]).any(axis=(0, 2))
        distinct += new
    return as_values(distinct)


def off_beat_share(rolls: Roll | Bits, grid: Grid = LOOP) -> Values:
    """Share of drum hits and bass onsets off the meter's pulses. 0, also in silence, to 1."""
    bits = as_bits(rolls, grid)
    onsets = count((bits.words ^ bits.bass) | bits.onsets)
    total = onsets.sum(axis=1, dtype=np.int64)
    on_beat = onsets[:, :: grid.steps_per_pulse].sum(axis=1, dtype=np.int64)
    return as_values((total - on_beat) / np.maximum(total, 1))


FEATURES: dict[str, Measure] = {
    "HD": paper.bar_distance,
    "UP": paper.used_pitches,
    "ND": paper.note_density,
    "kick hits": partial(drum_hits, drums=("kick",)),
    "snare hits": partial(drum_hits, drums=("snare",)),
    "hat hits": partial(drum_hits, drums=("closed hi-hat", "open hi-hat")),
    "bass notes": bass_notes,
    "bass range": bass_range,
    "pitch entropy": pitch_entropy,
    "distinct bars": distinct_bars,
    "off-beat share": off_beat_share,
}
