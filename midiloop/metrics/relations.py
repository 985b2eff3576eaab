"""How the bars of a loop relate: for each bar and part, how it takes up an earlier bar.

A bar is looked at by itself, cell by cell. What sounds on its first step begins there, even where
the bar before holds the same pitch: so a copied bar is a copy, whatever stands before it. A roll
holds no repetition of a pitch without a gap, see `Bits.onsets`, and neither does a rhythm here.

Relations are those of `Relation`, in its order: of all that hold between a bar and any earlier bar
the first in that order counts, and of the earlier bars with which it holds the nearest. So a bar
that repeats bar 1 and varies the bar before it is an exact repeat of bar 1. The first bar of a loop
has no earlier one, and is new.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics.bits import Bits, Words, as_bits, count

Part = Literal["drums", "bass"]

NEAR_CELLS = 2


class Relation(IntEnum):
    """How a bar takes up an earlier one, in the order in which relations are looked for.

    Attributes:
        EXACT: all cells are the same.
        TRANSPOSED: the bass moved by some semitones; of the bass alone.
        SAME_BEATS: all but the last beat are the same, and something sounds in them. Beats are the
            meter's pulses: three of 3/4, two of 6/8.
        SAME_HALF: the first half is the same, and something sounds in it. It is half of the steps,
            rounded down: one and a half beats of 3/4.
        NEAR: at most `NEAR_CELLS` cells differ.
        SAME_RHYTHM: notes begin and end on the same steps, at other pitches; of the bass alone.
        NEW: none of these.
    """

    EXACT = 0
    TRANSPOSED = 1
    SAME_BEATS = 2
    SAME_HALF = 3
    NEAR = 4
    SAME_RHYTHM = 5
    NEW = 6


OF_PART: dict[Part, tuple[Relation, ...]] = {
    "drums": tuple(r for r in Relation if r not in (Relation.TRANSPOSED, Relation.SAME_RHYTHM)),
    "bass": tuple(Relation),
}


class BarRelations(NamedTuple):
    """How each bar of n loops takes up an earlier one, in one part.

    Attributes:
        kinds: int8 (n, bars), of `Relation`.
        references: int16 (n, bars), the earlier bar, counted from 0; -1 where the bar is new.
        semitones: int8 (n, bars), by how many a transposed bar lies above its reference; else 0.
    """

    kinds: NDArray[np.int8]
    references: NDArray[np.int16]
    semitones: NDArray[np.int8]


def of_part(rolls: Roll | Bits, part: Part, grid: Grid = LOOP) -> BarRelations:
    """How each bar takes up an earlier one.

    >>> import numpy as np
    >>> roll = np.zeros((1, 128, 93), bool)
    >>> roll[0, 0:4, 20] = roll[0, 16:20, 22] = roll[0, 32:36, 20] = True
    >>> found = of_part(roll, "bass")
    >>> [Relation(kind).name for kind in found.kinds[0, :4]]
    ['NEW', 'TRANSPOSED', 'EXACT', 'NEW']
    >>> found.references[0, :4].tolist(), found.semitones[0, :4].tolist()
    ([-1, 0, 0, -1], [0, 2, 0, 0])

    Args:
        rolls: bool (n, steps, columns), or their bits.
    """
    pieces = [_of_piece(piece, part) for piece in as_bits(rolls, grid).pieces()]
    if not pieces:
        none = np.zeros((0, grid.bars))
        return BarRelations(none.astype(np.int8), none.astype(np.int16), none.astype(np.int8))
    return BarRelations(*(np.concatenate(columns) for columns in zip(*pieces, strict=True)))


def _of_piece(bits: Bits, part: Part) -> BarRelations:
    grid = bits.grid
    bars = _bars(bits, part)
    kinds = np.full((grid.bars, len(bits)), Relation.NEW, dtype=np.int8)
    references = np.full((grid.bars, len(bits)), -1, dtype=np.int16)
    semitones = np.zeros((grid.bars, len(bits)), dtype=np.int8)
    for bar in range(1, grid.bars):
        for earlier in range(bar - 1, -1, -1):
            kind = bars.relation(bar, earlier)
            better = kind < kinds[bar]  # a farther bar of the same relation is none
            kinds[bar][better] = kind[better]
            references[bar][better] = earlier
        if part == "bass":
            moved = kinds[bar] == Relation.TRANSPOSED
            below = bars.lowest[references[bar, moved], np.flatnonzero(moved)]
            semitones[bar, moved] = bars.lowest[bar, moved] - below
    return BarRelations(kinds.T, references.T, semitones.T)


class _Bars(NamedTuple):
    """Bars of one part of n loops, bar by bar.

    Attributes:
        cells: uint64 (bars, words, n, steps a bar).
        begins: bool (bars, 2, n), whether anything sounds in all beats but the last, and in the
            first half.
        lowest: int16 (bars, n), column of the lowest pitch; of the bass alone, as what follows.
        lifted: as ``cells``, moved so that the lowest pitch is the first column.
        rhythms: uint8 (bars, n, steps a bar), 0 for silence, 1 for a note that goes on, 2 for one
            that begins.
        starts: steps of all beats but the last, and of the first half.
    """

    cells: Words
    begins: NDArray[np.bool_]
    lowest: NDArray[np.int16]
    lifted: Words
    rhythms: NDArray[np.uint8]
    starts: tuple[int, int]

    def relation(self, bar: int, earlier: int) -> NDArray[np.int8]:
        """What holds between two bars of each loop, int8 (n,)."""
        apart = self.cells[bar] ^ self.cells[earlier]
        by_step = count(apart)
        n_apart = by_step.sum(axis=1)
        found = np.full(len(n_apart), Relation.NEW, dtype=np.int8)
        if len(self.rhythms):
            same = (self.rhythms[bar] == self.rhythms[earlier]).all(axis=1)
            found[same] = Relation.SAME_RHYTHM
        found[n_apart <= NEAR_CELLS] = Relation.NEAR
        for at in (1, 0):
            same = ~by_step[:, : self.starts[at]].any(axis=1) & self.begins[bar, at]
            found[same] = (Relation.SAME_BEATS, Relation.SAME_HALF)[at]
        if len(self.lifted):
            same = ~(self.lifted[bar] ^ self.lifted[earlier]).any(axis=(0, 2))
            found[same] = Relation.TRANSPOSED
        found[n_apart == 0] = Relation.EXACT
        return found


def _bars(bits: Bits, part: Part) -> _Bars:
    grid = bits.grid
    words = bits.bass if part == "bass" else bits.words & ~bits.bass
    # (words, n, steps) -> (bars, words, n, steps a bar)
    cells = words.reshape(*words.shape[:2], grid.bars, -1).transpose(2, 0, 1, 3).copy()
    starts = grid.steps_per_bar - grid.steps_per_pulse, grid.steps_per_bar // 2
    sounds: Roll = np.bitwise_or.reduce(cells, axis=1) != 0
    begins = np.stack([sounds[:, :, :end].any(axis=2) for end in starts], axis=1)
    if part == "drums":
        none = np.zeros(0)
        return _Bars(cells, begins, none.astype(np.int16), none.astype(np.uint64),
                     none.astype(np.uint8), starts)  # fmt: skip
    before = np.zeros_like(cells)
    before[..., 1:] = cells[..., :-1]
    onsets = np.bitwise_or.reduce(cells & ~before, axis=1) != 0
    rhythms = np.add(sounds, onsets, dtype=np.uint8)
    lowest = first_columns(np.bitwise_or.reduce(cells, axis=3).transpose(1, 0, 2))
    return _Bars(cells, begins, lowest, _lifted(cells, lowest), rhythms, starts)


def first_columns(words: Words) -> NDArray[np.int16]:
    """The first column that is set, 0 where none is: uint64 (words, …) to int16 (…)."""
    data = np.moveaxis(words, 0, -1).astype(">u8", order="C").view(np.uint8)
    found: NDArray[np.int16] = np.unpackbits(data, axis=-1).argmax(axis=-1).astype(np.int16)
    return found


def _lifted(cells: Words, by: NDArray[np.int16]) -> Words:
    """Cells (bars, words, n, steps) moved by so many columns (bars, n) towards the first."""
    n_words = cells.shape[1]
    padded = np.concatenate([cells, np.zeros_like(cells), np.zeros_like(cells[:, :1])], axis=1)
    whole, part = np.divmod(by.astype(np.uint64)[:, None, :, None], np.uint64(64))
    at = whole.astype(np.int64) + np.arange(n_words)[:, None, None]
    high = np.left_shift(np.take_along_axis(padded, at, axis=1), part, dtype=np.uint64)
    low = np.right_shift(
        np.take_along_axis(padded, at + 1, axis=1), np.uint64(64) - part, dtype=np.uint64
    )
    found: Words = np.bitwise_or(high, low)  # NumPy shifts by 64 to 0
    return found


def bar_distances(rolls: Roll | Bits, part: Part, grid: Grid = LOOP) -> NDArray[np.int64]:
    """Cells in which the bars of each pair differ, int (n, pairs).

    Pairs are in the order of ``numpy.triu_indices(grid.bars, 1)``.
    """
    one, other = np.triu_indices(grid.bars, 1)
    pieces = [np.zeros((0, len(one)), dtype=np.int64)]
    for bits in as_bits(rolls, grid).pieces():
        words = bits.bass if part == "bass" else bits.words & ~bits.bass
        bars = words.reshape(*words.shape[:2], grid.bars, -1)
        apart = np.zeros((len(bits), len(one)), dtype=np.int64)
        for word in bars:
            apart += np.bitwise_count(word[:, one] ^ word[:, other]).sum(axis=2, dtype=np.int64)
        pieces.append(apart)
    return np.concatenate(pieces)
