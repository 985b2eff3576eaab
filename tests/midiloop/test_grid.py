from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from handmade import GRIDS, WALTZ, random_rolls
from midiloop.errors import LoopError
from midiloop.grid import (
    LOOP,
    Drum,
    Grid,
    TimeSignature,
    grid_from_json,
    meter_from_text,
    pitch_name,
)


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
        "meter 2/2, not 4/4": Grid(meter=TimeSignature(2, 2)),
        "bars 4, not 8; meter 3/4, not 4/4; steps a bar 18, not 16": WALTZ,
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


@pytest.mark.parametrize("grid", [*GRIDS, Grid(1, meter=TimeSignature(7, 8))], ids=str)
def test_a_grid_comes_back_from_json_and_packs(grid: Grid, rng: np.random.Generator) -> None:
    assert grid_from_json(json.loads(json.dumps(grid.as_json()))) == grid
    rolls = random_rolls(rng, 3, grid=grid)
    np.testing.assert_array_equal(grid.unpack(grid.pack(rolls)), rolls)


def test_the_usual_meter_is_not_named_as_ever() -> None:
    assert "meter" not in LOOP.as_json()
    assert WALTZ.as_json()["meter"] == [3, 4]
    assert str(LOOP) == "8 bars of 16 steps, 9 drums, bass C1 to B7"
    assert str(WALTZ) == "4 bars of 3/4, 18 steps, 9 drums, bass C1 to B7"


@pytest.mark.parametrize(
    ("text", "steps_per_beat", "steps_per_bar", "pulses"),
    [
        ("4/4", 4, 16, 4), ("3/4", 6, 18, 3), ("6/8", 4, 12, 2), ("7/8", 4, 14, 7),
        ("12/8", 6, 36, 4), ("2/2", 1, 4, 2), ("3/8", 2, 3, 3), ("5/4", 3, 15, 5),
    ],
)  # fmt: skip
def test_bars_and_pulses_of_a_meter(
    text: str, steps_per_beat: int, steps_per_bar: int, pulses: int
) -> None:
    grid = Grid(meter=meter_from_text(text), steps_per_beat=steps_per_beat)
    assert (grid.steps_per_bar, grid.meter.pulses) == (steps_per_bar, pulses)
    assert grid.steps_per_pulse * pulses == steps_per_bar
    assert str(grid.meter) == text
    ticks = int(grid.meter.beats * 480)
    assert [grid.meter.bars(at, 480) for at in (0, ticks - 1, ticks)] == [0, 0, 1]


def test_meters_that_are_alike() -> None:
    alike = {"4/4": "2/2 8/8 16/16", "3/4": "6/4x 6/8x 3/8x", "6/8": "12/16 3/4x", "12/8": "6/4"}
    for text, others in alike.items():
        for other in others.split():
            meter = meter_from_text(other.rstrip("x"))
            assert meter_from_text(text).is_like(meter) == (not other.endswith("x")), other


@pytest.mark.parametrize(("bars", "middle"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (8, 4)])
def test_the_middle_bar_begins_the_second_half(bars: int, middle: int) -> None:
    assert Grid(bars).middle_bar == middle


@pytest.mark.parametrize("text", ["", "3", "3/5", "0/4", "256/4", "4/4/4", "-3/4", "3/256", "a/b"])
def test_what_is_no_meter_is_refused(text: str) -> None:
    with pytest.raises(LoopError, match="no meter; give one"):
        meter_from_text(text)


def test_a_grid_that_cannot_be_is_refused_in_a_line() -> None:
    with pytest.raises(LoopError, match=r"^6/8 at 3 steps a quarter note: 4\.5 steps a pulse"):
        Grid(meter=TimeSignature(6, 8), steps_per_beat=3)
    with pytest.raises(LoopError, match=r"^7/8 at 1 step a quarter note.* a multiple of 2$"):
        Grid(meter=TimeSignature(7, 8), steps_per_beat=1)
    with pytest.raises(LoopError, match=r"^no meter is 3/5"):
        Grid(meter=TimeSignature(3, 5))
    with pytest.raises(LoopError, match=r"^a grid of over 1,048,576 cells"):
        Grid(bars=1000)
    for meter in ([3], [3, 5], [3.0, 4], "3/4", None, [3, 4, 4], [True, 4], [0, 4]):
        with pytest.raises(LoopError):
            grid_from_json(WALTZ.as_json() | {"meter": meter})
