"""Rolls as words: the same cells, whatever the grid."""

from __future__ import annotations

import numpy as np
import pytest

from handmade import JIG, WALTZ
from midiloop.grid import KIT, LOOP, Grid, Roll
from midiloop.metrics.bits import LOOPS_AT_A_TIME, Bits, as_bits, count

GRIDS = [
    LOOP,
    Grid(bars=1, lowest_pitch=30, highest_pitch=39),
    Grid(bars=2, steps_per_beat=3),
    Grid(bars=4, drums=KIT[:1], lowest_pitch=24, highest_pitch=86),  # 64 columns: one word
    Grid(bars=3, steps_per_beat=1, drums=KIT[:7], lowest_pitch=1, highest_pitch=127),
    Grid(bars=2, drums=(), lowest_pitch=60, highest_pitch=60),
    WALTZ,
    JIG,
]


@pytest.fixture(params=GRIDS, ids=str)
def grid(request: pytest.FixtureRequest) -> Grid:
    found: Grid = request.param
    return found


@pytest.fixture
def rolls(grid: Grid, rng: np.random.Generator) -> Roll:
    return rng.random((20, grid.steps, grid.columns)) < rng.random((20, 1, 1))


def test_words_hold_the_cells_of_each_step_from_the_highest_bit_down(
    grid: Grid, rolls: Roll
) -> None:
    words = as_bits(rolls, grid).words
    n_words = -(-grid.columns // 64)
    assert words.shape == (n_words, 20, grid.steps)
    step_bytes = words.transpose(1, 2, 0).astype(">u8", order="C").view(np.uint8)
    cells = np.unpackbits(step_bytes, axis=2)
    np.testing.assert_array_equal(cells[:, :, : grid.columns], rolls)
    assert not cells[:, :, grid.columns :].any()


def test_what_is_counted_is_what_is_counted_cell_by_cell(grid: Grid, rolls: Roll) -> None:
    bits = as_bits(rolls, grid)
    bass = rolls[:, :, grid.n_drums :]
    before = np.concatenate([np.zeros_like(bass[:, :1]), bass[:, :-1]], axis=1)
    np.testing.assert_array_equal(count(bits.words), rolls.sum(axis=2))
    np.testing.assert_array_equal(count(bits.bass), bass.sum(axis=2))
    np.testing.assert_array_equal(count(bits.onsets), (bass & ~before).sum(axis=2))
    np.testing.assert_array_equal(bits.n_steps, rolls.sum(axis=1))
    some = [*range(0, grid.columns, 3)]
    np.testing.assert_array_equal(
        count(bits.words & bits.mask(some)), rolls[:, :, some].sum(axis=2)
    )


def test_pieces_are_the_whole(rng: np.random.Generator) -> None:
    packed = rng.integers(0, 256, (2 * LOOPS_AT_A_TIME + 3, LOOP.packed_bytes)).astype(np.uint8)
    pieces = [piece.packed for piece in Bits(packed, LOOP).pieces()]
    assert max(map(len, pieces)) == LOOPS_AT_A_TIME
    np.testing.assert_array_equal(np.concatenate(pieces), packed)
