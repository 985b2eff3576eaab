from __future__ import annotations

import numpy as np
import pytest

from handmade import BAR, GRIDS, STEP, TPQ, random_rolls, score, track
from midiloop.errors import LoopError
from midiloop.grid import Grid, TimeSignature
from midiloop.midi import pianoroll
from midiloop.midi.score import read, to_bytes

C1 = 9  # column of the lowest bass pitch


def cells(roll: np.ndarray) -> set[tuple[int, int]]:
    return {(int(step), int(column)) for step, column in zip(*np.nonzero(roll), strict=True)}


def test_a_tick_goes_to_the_nearest_step_and_ties_go_up() -> None:
    ticks = np.array([0, 59, 60, 61, 119, 179, 180, 480], dtype=np.int32)
    assert pianoroll.to_steps(ticks, TPQ).tolist() == [0, 0, 1, 1, 1, 1, 2, 4]
    # 10 ticks a quarter: a step is 2.5 ticks, so ticks 1.25 and 3.75 are the ties
    odd = np.arange(11, dtype=np.int32)
    assert pianoroll.to_steps(odd, 10).tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]


def test_a_late_tick_does_not_overflow() -> None:
    ticks = np.array([2**31 - 1], dtype=np.int32)
    assert pianoroll.to_steps(ticks, 32767).tolist() == [(8 * (2**31 - 1) + 32767) // 65534]


def test_a_drum_fills_one_step_and_a_bass_note_all_of_its_steps() -> None:
    song = score(
        track([(0, 4 * TPQ, 36), (STEP, 10, 44), (STEP, 10, 70)], drum=True),
        track([(0, 3 * STEP, 24), (4 * STEP, 5, 25)], program=39),
    )
    expected = {(0, 0), (1, 2), (0, C1), (1, C1), (2, C1), (4, C1 + 1)}
    assert cells(pianoroll.encode(song)) == expected


def test_of_several_bass_pitches_the_lowest_stays() -> None:
    song = score(
        track([(0, 4 * STEP, 40), (2 * STEP, 4 * STEP, 36)], program=32),
        track([(5 * STEP, 2 * STEP, 38)], program=38),
        track([(0, BAR, 23), (0, BAR, 108)], program=33),
        track([(0, BAR, 24)], program=40),
    )
    pitches = pianoroll.encode(song)[:, 9:].argmax(axis=1) + 24
    assert pitches[:7].tolist() == [40, 40, 36, 36, 36, 36, 38]
    assert pianoroll.encode(song).sum() == 7


def test_the_song_runs_to_the_last_note_of_any_track_rounded_up_to_a_bar() -> None:
    drum = track([(0, STEP, 36)], drum=True)
    for end, n_bars in [(BAR, 1), (BAR + 59, 1), (BAR + 60, 2), (2 * BAR, 2), (1, 0), (60, 1)]:
        other = track([(0, end, 60)], program=0)
        song = score(drum if end > STEP else other, other)
        assert len(pianoroll.encode(song)) == n_bars * 16


def test_many_long_notes_need_little_memory() -> None:
    notes = [(n, 5_000 * BAR - n, 24 + n % 84) for n in range(2_000)]
    roll = pianoroll.encode(score(track(notes, program=33)))
    assert roll.shape == (80_000, 93)
    assert roll[5:, 9].all()


def test_decode_and_encode_are_inverse(rng: np.random.Generator) -> None:
    for roll in random_rolls(rng, 40):
        song = pianoroll.decode(roll, 97.35, name="x")
        np.testing.assert_array_equal(pianoroll.encode(song), roll)
        assert song.length_ticks == 8 * BAR


def test_a_file_in_between_changes_nothing_but_silent_bars_at_the_end(
    rng: np.random.Generator,
) -> None:
    for roll in random_rolls(rng, 20):
        back = pianoroll.encode(read(to_bytes(pianoroll.decode(roll))))
        np.testing.assert_array_equal(back, roll[: len(back)])
        assert not roll[len(back) :].any()


@pytest.mark.parametrize(
    "grid",
    [*GRIDS, Grid(3, steps_per_beat=7), Grid(2, steps_per_beat=64, meter=TimeSignature(7, 16))],
    ids=str,
)
def test_any_grid_is_written_and_read(grid: Grid, rng: np.random.Generator) -> None:
    for roll in random_rolls(rng, 5, grid=grid):
        roll[-1, 0] = True
        song = pianoroll.decode(roll, grid=grid)
        np.testing.assert_array_equal(pianoroll.encode(song, grid), roll)
        back = read(to_bytes(song))
        np.testing.assert_array_equal(pianoroll.encode(back, grid), roll)
        assert back.meters == ((0, *grid.meter),)
        assert song.length_ticks == grid.bars * grid.meter.beats * song.ticks_per_quarter


def test_repeated_steps_become_one_note() -> None:
    roll = np.zeros((128, 93), dtype=np.bool_)
    roll[0:16, C1] = roll[20:24, C1] = roll[24:28, C1 + 2] = True
    roll[[0, 1, 2], 0] = True
    drums, bass = pianoroll.decode(roll).tracks
    assert list(zip(bass.onsets // STEP, bass.durations // STEP, bass.pitches, strict=True)) == [
        (0, 16, 24), (20, 4, 24), (24, 4, 26),
    ]  # fmt: skip
    assert drums.onsets.tolist() == [0, STEP, 2 * STEP]
    assert set(drums.velocities) == {100}
    assert set(bass.velocities) == {80}
    assert drums.is_drum
    assert bass.program == 33


def test_an_empty_roll_is_a_silent_score() -> None:
    song = pianoroll.decode(np.zeros((128, 93), dtype=np.bool_))
    assert song.n_notes == 0
    assert song.length_ticks == 8 * BAR


@pytest.mark.parametrize("shape", [(128, 92), (127, 93), (128,)])
def test_decode_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(LoopError, match="expected whole bars of 93 columns"):
        pianoroll.decode(np.zeros(shape, dtype=np.bool_))


@pytest.mark.parametrize("tempo_bpm", [0, -1, float("nan"), 1e9])
def test_decode_refuses_a_tempo_that_no_file_can_state(tempo_bpm: float) -> None:
    with pytest.raises(LoopError, match="tempo from 4 to"):
        pianoroll.decode(np.zeros((128, 93), dtype=np.bool_), tempo_bpm)
