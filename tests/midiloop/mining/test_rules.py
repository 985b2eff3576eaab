from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from handmade import BAR, TPQ, WALTZ, groove, random_rolls, score, track, waltz
from midiloop.errors import LoopError
from midiloop.midi import pianoroll
from midiloop.midi.score import Meter
from midiloop.mining import rules

PAPER, OPEN = rules.PRESETS["paper"], rules.PRESETS["open"]


def test_the_presets_say_what_the_paper_and_the_contract_say() -> None:
    assert PAPER.max_distance_cells / 1488 < 0.0015 < (PAPER.max_distance_cells + 1) / 1488
    assert (PAPER.first_step_drums, PAPER.meter_required) == (("kick", "crash"), True)
    assert (OPEN.first_step_drums, OPEN.meter_required) == (("kick",), False)
    assert OPEN.max_distance_cells == PAPER.max_distance_cells
    with pytest.raises(LoopError, match="choose from paper, open"):
        rules.preset("closed")


def test_a_groove_loops_where_its_crashes_are() -> None:
    roll = pianoroll.encode(groove(20, crash_every=8))
    # crashes at bars 0, 4, 8, 12, 16; a window needs 8 bars
    assert rules.find(roll, PAPER).tolist() == [0, 4, 8, 12]
    assert rules.find(roll, OPEN).tolist() == list(range(13))
    assert rules.find(roll, OPEN, stride_bars=5).tolist() == [0, 5, 10]


def test_two_cells_may_differ_and_three_may_not() -> None:
    roll = pianoroll.encode(groove(8))
    for n_cells, found in [(0, [0]), (2, [0]), (3, [])]:
        changed = roll.copy()
        changed[64:67, 7][:n_cells] = True  # toms in the fifth bar
        assert rules.bar_distances_cells(changed, np.array([0])).tolist() == [n_cells]
        assert rules.find(changed, PAPER).tolist() == found


@pytest.mark.parametrize("column", [0, 6, slice(9, None)])
def test_kick_crash_and_bass_must_be_on_the_first_step(column: int | slice) -> None:
    roll = pianoroll.encode(groove(8))
    roll[[0, 64], column] = False
    assert rules.find(roll, PAPER).tolist() == []
    assert rules.find(roll, OPEN).tolist() == ([0] if column == 6 else [])


@pytest.mark.parametrize("n_bars", [0, 1, 7])
def test_a_song_shorter_than_a_loop_has_none(n_bars: int) -> None:
    roll = np.ones((n_bars * 16, 93), dtype=np.bool_)
    assert rules.find(roll, OPEN).tolist() == []


def test_distances_are_those_of_a_plain_comparison(rng: np.random.Generator) -> None:
    song = random_rolls(rng, 4).reshape(-1, 93)
    bars = song.reshape(-1, 1488)
    plain = [int((bars[b] != bars[b + 4]).sum()) for b in range(len(bars) - 7)]
    assert rules.bar_distances_cells(song, np.arange(len(plain))).tolist() == plain


NOTES = track([(0, 8 * BAR, 60)])


@pytest.mark.parametrize(
    ("meters", "paper", "loose"),
    [
        ([(0, 4, 4)], None, None),
        ([], "no_meter", None),
        ([(0, 3, 4)], "not_4_4", "not_4_4"),
        ([(0, 3, 4), (0, 4, 4)], None, None),  # replaced at its own tick: never in force
        ([(0, 4, 4), (0, 3, 4)], "not_4_4", "not_4_4"),
        ([(0, 4, 4), (BAR, 7, 8)], "not_4_4", None),
        ([(0, 4, 4), (8 * BAR - 1, 3, 4)], "not_4_4", None),
        ([(0, 4, 4), (8 * BAR, 3, 4)], None, None),  # after the last note
        ([(8 * BAR, 4, 4)], "no_meter", None),
        ([(0, 2, 2)], "not_4_4", None),
        ([(BAR, 4, 4)], None, None),
    ],
)
def test_meters_in_force_before_the_end_decide(
    meters: list[tuple[int, int, int]], paper: str | None, loose: str | None
) -> None:
    song = score(NOTES, meters=[Meter(*meter) for meter in meters])
    for chosen, reason in ((PAPER, paper), (OPEN, loose)):
        problem = rules.meter_problem(song.meters, song.length_ticks, chosen)
        assert (problem and problem[0]) == reason
        # what is a problem for any length is one for this length
        early = rules.meter_problem(song.meters, None, chosen)
        assert early is None or early[0] == reason


WALTZ_BAR = 3 * TPQ


@pytest.mark.parametrize(
    ("meters", "paper", "loose"),
    [
        ([(0, 3, 4)], None, None),
        ([], "no_meter", "not_3_4"),
        ([(0, 4, 4)], "not_3_4", "not_3_4"),
        ([(0, 6, 8)], "not_3_4", "not_3_4"),
        ([(0, 4, 4), (0, 3, 4)], None, None),
        ([(0, 3, 4), (BAR, 4, 4)], "not_3_4", None),
        ([(BAR, 3, 4)], "not_3_4", None),  # the first bar is in 4/4, as nothing else is stated
        ([(8 * BAR, 3, 4)], "no_meter", None),
    ],
)
def test_another_meter_is_asked_for(
    meters: list[tuple[int, int, int]], paper: str | None, loose: str | None
) -> None:
    song = score(NOTES, meters=[Meter(*meter) for meter in meters])
    for chosen, reason in ((PAPER, paper), (OPEN, loose)):
        problem = rules.meter_problem(song.meters, song.length_ticks, chosen, WALTZ.meter)
        assert (problem and problem[0]) == reason
        early = rules.meter_problem(song.meters, None, chosen, WALTZ.meter)
        assert early is None or early[0] == reason


def test_runs_are_those_of_the_meter() -> None:
    meters = [Meter(0, 4, 4), Meter(BAR, 3, 4), Meter(BAR + 2 * WALTZ_BAR, 3, 4)]
    meters += [Meter(BAR + 6 * WALTZ_BAR, 6, 8), Meter(BAR + 7 * WALTZ_BAR, 3, 4)]
    found = rules.runs(meters, BAR + 9 * WALTZ_BAR, TPQ, OPEN, WALTZ.meter)
    assert found == [
        (BAR, BAR + 6 * WALTZ_BAR, 1),
        (BAR + 7 * WALTZ_BAR, BAR + 9 * WALTZ_BAR, 8),
    ]


@pytest.mark.parametrize("bars", [1, 2, 3, 4, 5])
def test_the_first_bar_is_compared_with_the_one_in_the_middle(bars: int) -> None:
    grid = replace(WALTZ, bars=bars)
    roll = pianoroll.encode(waltz(2 * bars, pitches=[33]), grid)
    assert rules.find(roll, OPEN, grid=grid).tolist() == list(range(bars + 1))
    roll[grid.middle_bar * grid.steps_per_bar + 1, 1:4] = True
    assert (0 in rules.find(roll, OPEN, grid=grid)) == (bars == 1)


def test_rules_are_data() -> None:
    strict = replace(PAPER, name="strict", max_distance_cells=0, first_step_drums=("snare",))
    assert rules.find(pianoroll.encode(groove(8)), strict).tolist() == []
