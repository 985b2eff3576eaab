"""A performance is written, read and quantised to the roll and the velocities that it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handmade import BAR, GRIDS, STEP, TPQ, random_rolls, score, track
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Grid, Roll
from midiloop.midi import performance, pianoroll
from midiloop.midi.performance import Performance
from midiloop.midi.score import Score, read, to_bytes
from midiloop.mining import extract, midi_loop, rules

EARLIEST, LATEST = -128, 127


def drawn(roll: Roll, rng: np.random.Generator, grid: Grid = LOOP) -> Performance:
    n = int(performance.onsets(roll, grid).sum())
    return Performance(
        rng.integers(1, 128, n).astype(np.uint8),
        rng.choice([EARLIEST, -1, 0, 77, LATEST], n).astype(np.int8),
    )


def quantised(song: Score, grid: Grid = LOOP) -> Roll:
    roll = pianoroll.encode(song, grid, circular=True)
    return np.pad(roll, ((0, grid.steps - len(roll)), (0, 0)))


@pytest.mark.parametrize("grid", [*GRIDS, Grid(steps_per_beat=6)], ids=str)
def test_what_is_written_is_read_back(rng: np.random.Generator, grid: Grid) -> None:
    for roll in random_rolls(rng, 20, grid=grid):
        played = drawn(roll, rng, grid)
        song = read(to_bytes(performance.decode(roll, played, grid=grid)))
        np.testing.assert_array_equal(quantised(song, grid), roll)
        back = performance.encode(song, roll, grid, circular=True)
        np.testing.assert_array_equal(back.velocities, played.velocities)
        steps, columns = np.nonzero(performance.onsets(roll, grid))
        wraps = (steps == 0) & (columns >= grid.n_drums)  # bass before the first step begins on it
        late = back.offsets.astype(int) - played.offsets
        assert np.abs(late[~wraps]).max() <= 256 * grid.steps_per_beat / TPQ + 1


def test_on_the_grid_it_is_what_a_roll_is_written_as(rng: np.random.Generator) -> None:
    for roll in random_rolls(rng, 10):
        plain = performance.decode(roll, performance.on_grid(roll), 97.35, name="x")
        assert to_bytes(plain) == to_bytes(pianoroll.decode(roll, 97.35, name="x"))


def test_an_early_hit_on_the_first_step_wraps_to_the_end(tmp_path: Path) -> None:
    roll = np.zeros((128, 93), np.bool_)
    roll[0, [0, 20]] = roll[64, 0] = True
    played = Performance(np.array([90, 70, 50], np.uint8), np.array([-64, -64, 0], np.int8))
    song = performance.decode(roll, played)
    drums, bass = song.tracks
    assert drums.onsets.tolist() == [64 * STEP, 128 * STEP - STEP // 4]
    assert drums.velocities.tolist() == [50, 90]
    assert bass.onsets.tolist() == [0]
    assert song.length_ticks == 8 * BAR == max(t.ends.max() for t in song.tracks)
    path = tmp_path / "loop.mid"
    path.write_bytes(to_bytes(song))
    np.testing.assert_array_equal(midi_loop.read(path).roll, roll)


def test_the_loudest_of_a_cell_counts_and_of_equals_the_earliest() -> None:
    song = score(track([(480, 10, 36), (470, 10, 35), (490, 10, 36), (BAR - 1, 1, 42)], drum=True))
    loud = np.array([80, 90, 90, 10], np.int8)
    song = score(song.tracks[0]._replace(velocities=loud))  # 470: 80, 480: 90, 490: 90
    roll = pianoroll.encode(song)
    found = performance.encode(song, roll)
    assert found.velocities.tolist() == [90]
    assert found.offsets.tolist() == [0]


def test_a_bass_note_that_is_heard_again_keeps_its_velocity() -> None:
    bass = track([(0, 4 * STEP, 40), (STEP, STEP, 30), (6 * STEP + 30, STEP, 40)], program=33)
    song = score(bass._replace(velocities=np.array([50, 60, 70], np.int8)), length=BAR)
    found = performance.encode(song, pianoroll.encode(song))
    assert found.velocities.tolist() == [50, 60, 50, 70]  # 40, then 30, then 40 again
    assert found.offsets.tolist() == [0, 0, 0, 64]


def test_windows_are_played_as_the_song_plays_them(rng: np.random.Generator) -> None:
    rolls = random_rolls(rng, 3).reshape(-1, 93)
    grid = Grid(bars=24)
    song = performance.decode(rolls, drawn(rolls, rng, grid), grid=grid)
    starts = np.array([0, 16, 48, 160])
    found = performance.of_windows(song, rolls, starts)
    whole = performance.encode(song, rolls, grid)
    velocities = np.zeros(rolls.shape, int)
    velocities[performance.onsets(rolls)] = whole.velocities
    at = 0
    for start, n_onsets in zip(starts, found.n_onsets, strict=True):
        window = rolls[start:][:128]
        struck = performance.onsets(window)
        assert n_onsets == struck.sum()
        there = velocities[start:][:128][struck]
        mine = found.velocities[at:][:n_onsets]
        held = there == 0  # struck before the window
        np.testing.assert_array_equal(mine[~held], there[~held])
        assert (mine > 0).all()
        assert held.sum() <= 1
        assert not found.offsets[at:][:n_onsets][held].any()
        at += n_onsets
    assert at == len(found.velocities) == len(found.offsets)


def test_real_loops_are_played_again(real_files: list[object]) -> None:
    settings = extract.Settings(rules.PRESETS["open"])
    tried = 0
    for item in real_files[::8]:
        try:
            song = extract.mine("x", item.read(), settings)  # type: ignore[attr-defined]
        except LoopError:
            continue
        assert song.played is not None
        ends = np.cumsum(song.played.n_onsets)
        for at in range(len(ends))[::5]:
            roll = LOOP.unpack(song.rolls[at])
            here = slice(ends[at] - song.played.n_onsets[at], ends[at])
            played = Performance(song.played.velocities[here], song.played.offsets[here])
            back = read(to_bytes(performance.decode(roll, played)))
            np.testing.assert_array_equal(quantised(back), roll)
            again = performance.encode(back, roll, circular=True)
            np.testing.assert_array_equal(again.velocities, played.velocities)
            tried += 1
    assert tried > 10


def test_a_performance_of_another_roll_is_refused() -> None:
    roll = np.eye(16, 93, dtype=np.bool_)
    short = Performance(np.full(3, 100, np.uint8), np.zeros(3, np.int8))
    with pytest.raises(LoopError, match="expected 16 velocities and offsets"):
        performance.decode(roll, short)
