"""Rolls as 64-bit words, on which measures count many cells at a time.

A step of a roll is a row of bits, the first column the highest, in as many words as it takes: two
of them for 93 columns. Packed rolls are never unfolded, so that a million loops are measured in
seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from midiloop.grid import Grid, Roll

Words = NDArray[np.uint64]

LOOPS_AT_A_TIME = 512  # whose words and what is made of them stay within a core's own cache


@dataclass(frozen=True)
class Bits:
    """Loops to measure, n of them.

    Attributes:
        packed: uint8 (n, packed_bytes), see `Grid.pack`.
        grid: that they lie on.
    """

    packed: NDArray[np.uint8]
    grid: Grid

    def __len__(self) -> int:
        return len(self.packed)

    def pieces(self) -> Iterator[Bits]:
        """The same loops, at most `LOOPS_AT_A_TIME` of them at a time."""
        for start in range(0, len(self), LOOPS_AT_A_TIME):
            yield Bits(self.packed[start : start + LOOPS_AT_A_TIME], self.grid)

    @property
    def n_words(self) -> int:
        """Words in a step."""
        return -(-self.grid.columns // 64)

    @cached_property
    def words(self) -> Words:
        """All steps: uint64 (words, n, steps).

        Steps whose first bits lie alike in their bytes are taken together: of 93 columns, every
        eighth.
        """
        columns, steps = self.grid.columns, self.grid.steps
        period = 8 // math.gcd(columns, 8)
        n_rows = -(-steps // period)
        row_bytes = period * columns // 8
        # the last word of the last step ends beyond the roll
        padded = np.zeros((len(self), n_rows * row_bytes + 8 * self.n_words + 9), dtype=np.uint8)
        padded[:, : self.packed.shape[1]] = self.packed
        found = np.empty((self.n_words, len(self), n_rows, period), dtype=np.uint64)
        for word in range(self.n_words):
            for phase in range(period):
                byte, shift = divmod(phase * columns + 64 * word, 8)
                layout = ((len(self), n_rows), padded, byte, (padded.shape[1], row_bytes))
                bits = _view(">u8", *layout).astype(np.uint64)
                if shift:
                    bits <<= np.uint64(shift)
                    layout = (layout[0], padded, byte + 8, layout[3])
                    bits |= (_view("u1", *layout) >> (8 - shift)).astype(np.uint64)
                found[word, :, :, phase] = bits
        found[-1] &= np.uint64(-1 << (64 * self.n_words - columns) & (2**64 - 1))
        return found.reshape(self.n_words, len(self), -1)[:, :, :steps]

    def mask(self, columns: list[int]) -> Words:
        """Some columns of a step: uint64 (words, 1, 1)."""
        found = [0] * self.n_words
        for column in columns:
            found[column // 64] |= 1 << (63 - column % 64)
        return np.array(found, dtype=np.uint64)[:, None, None]

    @cached_property
    def bass(self) -> Words:
        """The bass alone: uint64 (words, n, steps)."""
        found: Words = self.words & self.mask([*range(self.grid.n_drums, self.grid.columns)])
        return found

    @cached_property
    def onsets(self) -> Words:
        """First steps of bass notes alone: uint64 (words, n, steps).

        A note begins on a step whose pitch did not sound on the step before, and on the first step
        of the loop: a roll holds no repetition of a pitch without a gap.
        """
        found = self.bass.copy()
        found[:, :, 1:] &= ~self.bass[:, :, :-1]
        return found

    @cached_property
    def n_steps(self) -> NDArray[np.unsignedinteger]:
        """Steps on which each column sounds: unsigned (n, columns)."""
        kind = np.min_scalar_type(self.grid.steps)
        cells = np.unpackbits(self.packed, axis=1)[:, : self.grid.steps * self.grid.columns]
        # bars first: the longer what is added at a time, the faster
        bar = cells.reshape(len(self), self.grid.bars, -1).sum(axis=1, dtype=kind)
        steps = bar.reshape(len(self), -1, self.grid.columns)
        found: NDArray[np.unsignedinteger] = steps.sum(axis=1, dtype=kind)
        return found


def as_bits(rolls: Roll | Bits, grid: Grid) -> Bits:
    """Rolls (n, steps, columns) as bits; what is bits already stays."""
    return rolls if isinstance(rolls, Bits) else Bits(grid.pack(rolls), grid)


def count(words: Words) -> NDArray[np.uint16]:
    """Cells in each step: uint64 (words, n, steps) to uint16 (n, steps)."""
    found: NDArray[np.uint16] = np.bitwise_count(words[0]).astype(np.uint16)
    for more in words[1:]:
        found += np.bitwise_count(more)
    return found


def _view(
    kind: str,
    shape: tuple[int, int],
    data: NDArray[np.uint8],
    offset: int,
    strides: tuple[int, int],
) -> NDArray[np.unsignedinteger]:
    return np.ndarray(shape, kind, data, offset, strides)
