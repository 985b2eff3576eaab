from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from handmade import random_rolls
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Drum, Grid, pitch_name


def test_the_loop_grid_has_the_shape_of_the_paper() -> None:
    assert (LOOP.steps, LOOP.columns, LOOP.cells_per_bar) == (128, 93, 1488)
    assert LOOP.packed_bytes == 1488
    assert [drum.name for drum in LOOP.drums] == [
        "kick", "snare", "closed hi-hat", "low tom", "open hi-hat", "mid tom", "crash", "high tom",
        "ride",
    ]  # fmt: skip


def test_drum_pitches_fold_as_the_contract_lists_them() -> None:
    folds = {
        0: [35, 36], 1: [37, 38, 39, 40], 2: [42, 44], 3: [41, 43, 45], 4: [46], 5: [47, 48],
        6: [49, 52, 55, 57], 7: [50], 8: [51, 53, 59],
    }  # fmt: skip
    expected = np.full(128, -1)
    for column, pitches in folds.items():
        expected[pitches] = column
    np.testing.assert_array_equal(LOOP.drum_columns, expected)


def test_columns_are_named() -> None:
    assert LOOP.column_names[9] == "C1"
    assert LOOP.column_names[-1] == "B7"
    assert pitch_name(60) == "C4"
    assert LOOP.drum_column("crash") == 6
    with pytest.raises(LoopError, match="choose from kick"):
        LOOP.drum_column("cowbell")


def test_packing_is_numpys_and_comes_back(rng: np.random.Generator) -> None:
    rolls = random_rolls(rng, 5)
    packed = LOOP.pack(rolls)
    np.testing.assert_array_equal(packed[0], np.packbits(rolls[0].ravel()))
    np.testing.assert_array_equal(LOOP.unpack(packed), rolls)


def test_another_grid_packs_too(rng: np.random.Generator) -> None:
    grid = Grid(bars=2, steps_per_beat=3, drums=(Drum("kick", 35, (35,)),), highest_pitch=30)
    rolls = rng.random((3, grid.steps, grid.columns)) < 0.5
    assert grid.pack(rolls).shape == (3, grid.packed_bytes)
    np.testing.assert_array_equal(grid.unpack(grid.pack(rolls)), rolls)


def test_fingerprints_tell_rolls_apart_and_are_stable(rng: np.random.Generator) -> None:
    packed = LOOP.pack(random_rolls(rng, 50))
    prints = LOOP.fingerprints(packed)
    assert len(set(prints.tolist())) == 50
    np.testing.assert_array_equal(LOOP.fingerprints(packed.copy()), prints)
    # blake2b-64 of 1,488 zero bytes, from `python -c "import hashlib; …"`, little-endian
    zero = LOOP.fingerprints(np.zeros((1, 1488), np.uint8))[0]
    assert zero.tobytes().hex() == "d809f7cf81fae4f7"


def test_check_says_what_it_expected() -> None:
    LOOP.check(np.zeros((128, 93), dtype=np.bool_))
    with pytest.raises(LoopError, match=r"expected a bool roll \(128, 93\), got"):
        LOOP.check(np.zeros((64, 93), dtype=np.bool_))


def test_what_two_grids_differ_in_is_named() -> None:
    kick, snare = LOOP.drums[:2]
    others = {
        "bars 4, not 8": Grid(bars=4),
        "steps a bar 12, not 16": Grid(steps_per_beat=3),
        "bass C1 to B5, not C1 to B7": Grid(highest_pitch=83),
        "drums kick, snare, not kick, snare, closed": Grid(drums=(kick, snare)),
        "kick pitch 35, not 36": Grid(drums=(replace(kick, pitch=35), *LOOP.drums[1:])),
        "snare folded from 38, not 37 38 39 40": Grid(
            drums=(kick, replace(snare, folds=(38,)), *LOOP.drums[2:])
        ),
        "bars 4, not 8; bass C1 to B5, not C1 to B7": Grid(bars=4, highest_pitch=83),
    }
    for words, grid in others.items():
        assert grid.difference(LOOP).startswith(words)
        assert LOOP.difference(grid)
    assert LOOP.difference(Grid()) == ""
