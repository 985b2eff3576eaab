from __future__ import annotations

import numpy as np
import pytest

from handmade import groove, random_rolls
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Roll
from midiloop.metrics import paper
from midiloop.mining import extract


@pytest.fixture
def loop() -> Roll:
    """One loop written by hand: everything below is counted on paper."""
    roll = np.zeros((1, 128, 93), dtype=np.bool_)
    roll[0, 0, [0, 6, 9]] = True  # kick, crash and C1 on the first step
    roll[0, 1, [9, 12]] = True  # two bass pitches at once
    roll[0, 64, 0] = True  # bar 5: the kick alone
    roll[0, 100, 40] = True  # bar 7
    return roll


def test_every_metric_of_a_loop_counted_by_hand(loop: Roll) -> None:
    # bars 1 and 5: kick in both; crash, two C1 and one D#1 only in bar 1
    assert paper.bar_distance(loop)[0] == 4 / 1488
    assert paper.first_note_drum(loop)[0] == 1
    assert paper.first_note_bass(loop)[0] == 1
    assert paper.duplicate_bass(loop)[0] == 1 / 128
    # columns used: bar 1 kick, crash, C1, D#1; bar 5 kick; bar 7 one
    assert paper.used_pitches(loop)[0] == (4 + 1 + 1) / 8
    # steps with anything: 0, 1, 64, 100
    assert paper.note_density(loop)[0] == 4 / 128


def test_first_notes_need_all_drums_and_any_bass(loop: Roll) -> None:
    without_crash = loop.copy()
    without_crash[0, 0, 6] = False
    assert paper.first_note_drum(without_crash)[0] == 0
    assert paper.first_note_drum(without_crash, drums=("kick",))[0] == 1
    without_bass = loop.copy()
    without_bass[0, 0, 9:] = False
    assert paper.first_note_bass(without_bass)[0] == 0


def test_the_ends_of_every_scale() -> None:
    silent, full = (np.full((2, 128, 93), on, dtype=np.bool_) for on in (False, True))
    expected = {
        "HD": (0, 0),
        "FND": (0, 1),
        "FNB": (0, 1),
        "DB": (0, 1),
        "UP": (0, 93),
        "ND": (0, 1),
    }
    for name, (low, high) in expected.items():
        assert paper.OF_ONE_LOOP[name](silent, LOOP).tolist() == [low, low]
        assert paper.OF_ONE_LOOP[name](full, LOOP).tolist() == [high, high]
    half = silent.copy()
    half[:, :64] = True
    assert paper.bar_distance(half).tolist() == [1, 1]


def test_uniqueness_and_overlap() -> None:
    loops = np.array([1, 1, 2, 3], dtype=np.uint64)
    assert paper.uniqueness(loops) == 0.75
    assert paper.overlap(loops, np.array([3, 9], dtype=np.uint64)) == 0.25
    assert paper.overlap(loops, loops) == 1
    empty = np.zeros(0, dtype=np.uint64)
    assert paper.overlap(loops, empty) == 0
    for measure in (paper.uniqueness, lambda loops: paper.overlap(loops, loops)):
        with pytest.raises(LoopError, match="no loops"):
            measure(empty)


def test_the_table_does_not_depend_on_the_batches(rng: np.random.Generator) -> None:
    rolls = np.concatenate([random_rolls(rng, 30, monophonic=False)] * 2)
    whole = paper.evaluate([rolls])
    pieces = paper.evaluate([rolls[:7], rolls[7:8], rolls[8:]])
    assert list(whole) == list(paper.TABLE)
    assert whole["US"] == pieces["US"] == 0.5
    assert whole["OS"] == 1
    for name in paper.TABLE:
        assert pieces[name] == pytest.approx(whole[name], rel=1e-12)
    none_of_them = LOOP.fingerprints(LOOP.pack(random_rolls(rng, 3)))
    assert paper.evaluate([rolls], none_of_them)["OS"] == 0


def test_loops_by_the_rules_keep_the_rules() -> None:
    row = paper.evaluate([np.stack(extract.loops(groove(32)))])
    assert row["HD"] < 0.0015
    assert (row["FND"], row["FNB"], row["DB"]) == (1, 1, 0)
