"""One loop of a MIDI file, as whoever judges, varies or draws it reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handmade import BAR, GRIDS, TPQ, WALTZ, groove, random_rolls, waltz
from midiloop.errors import CallError, LoopError
from midiloop.grid import LOOP, Grid, TimeSignature
from midiloop.midi import pianoroll, score
from midiloop.midi.score import Meter, Score, Tempo
from midiloop.mining import midi_loop


def written(song: Score, path: Path) -> Path:
    path.write_bytes(score.to_bytes(song))
    return path


def with_pickup(song: Score) -> Score:
    """The song a beat later, after a bar of one beat."""
    return replace(
        song,
        tracks=tuple(track._replace(onsets=track.onsets + TPQ) for track in song.tracks),
        meters=(Meter(0, 1, 4), Meter(TPQ, 4, 4)),
        length_ticks=song.length_ticks + TPQ,
    )


def with_named_bass(song: Score) -> Score:
    """The song with a bass that only its name tells: its program is a piano's."""
    named = (t if t.is_drum else t._replace(program=0, name="E-Bass") for t in song.tracks)
    return replace(song, tracks=tuple(named))


@pytest.mark.parametrize("n_bars", [8, 12])
@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("shorter", [False, True])
def test_pickup_and_name_of_the_bass_change_nothing(
    n_bars: int, search: bool, shorter: bool, tmp_path: Path
) -> None:
    song = groove(n_bars)
    expected = pianoroll.encode(song)[: LOOP.steps]
    assert expected[:, LOOP.n_drums :].any()
    variants = (song, with_pickup(song), with_named_bass(song), with_named_bass(with_pickup(song)))
    for number, one in enumerate(variants):
        path = written(one, tmp_path / f"{number}.mid")
        found = midi_loop.read(path, search=search, shorter=shorter)
        np.testing.assert_array_equal(found.roll, expected)
        assert found.start_bar == number % 2


def test_a_file_as_long_as_a_loop_is_itself_however_it_is_read(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    for number, roll in enumerate(random_rolls(rng, 5)):
        roll[-1, 0] = True
        path = written(pianoroll.decode(roll, 97.0), tmp_path / f"{number}.mid")
        for search, shorter in ((False, False), (True, False), (True, True)):
            found = midi_loop.read(path, search=search, shorter=shorter)
            np.testing.assert_array_equal(found.roll, roll)
            assert (found.start_bar, found.tempo_bpm) == (0, 97.0)


def test_a_search_finds_the_first_loop_and_no_search_the_first_bars(tmp_path: Path) -> None:
    late, intro = groove(12), 3 * BAR
    song = replace(
        late,
        tracks=tuple(track._replace(onsets=track.onsets + intro) for track in late.tracks),
        tempos=(Tempo(0, 100.0), Tempo(intro, 140.0)),
        length_ticks=late.length_ticks + intro,
    )
    path = written(song, tmp_path / "a.mid")
    whole = pianoroll.encode(song)
    found = midi_loop.read(path, search=True)
    assert (found.start_bar, found.tempo_bpm) == (3, 140.0)
    np.testing.assert_array_equal(found.roll, whole[intro * 4 // TPQ :][: LOOP.steps])
    np.testing.assert_array_equal(midi_loop.read(path).roll, whole[: LOOP.steps])


def test_a_file_without_a_loop_is_refused_or_shown_as_it_begins(tmp_path: Path) -> None:
    short = written(groove(5), tmp_path / "short.mid")
    for search, words in ((False, "short.mid: ends in bar 5"), (True, "short.mid: no_loop")):
        with pytest.raises(LoopError, match=words):
            midi_loop.read(short, search=search)
    np.testing.assert_array_equal(
        midi_loop.read(short, search=True, shorter=True).roll, pianoroll.encode(groove(5))
    )
    (tmp_path / "bad.mid").write_bytes(b"no MIDI at all")
    for shorter in (False, True):
        with pytest.raises(LoopError, match=r"bad\.mid: not_midi"):
            midi_loop.read(tmp_path / "bad.mid", search=True, shorter=shorter)
    with pytest.raises(CallError, match="no such file"):
        midi_loop.read(tmp_path / "none.mid")


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_loop_of_any_grid_is_read_whole(
    grid: Grid, rng: np.random.Generator, tmp_path: Path
) -> None:
    for number, roll in enumerate(random_rolls(rng, 3, grid=grid)):
        roll[-1, 0] = True
        path = written(pianoroll.decode(roll, 97.0, grid=grid), tmp_path / f"{number}.mid")
        for search, shorter in ((False, False), (True, False), (True, True)):
            found = midi_loop.read(path, grid, search=search, shorter=shorter)
            np.testing.assert_array_equal(found.roll, roll)


def test_a_search_in_a_waltz_finds_its_first_loop(tmp_path: Path) -> None:
    song = waltz(9)
    found = midi_loop.read(written(song, tmp_path / "waltz.mid"), WALTZ, search=True)
    np.testing.assert_array_equal(found.roll, pianoroll.encode(song, WALTZ)[: WALTZ.steps])
    with pytest.raises(LoopError, match=r"short\.mid: ends in bar 2, a loop has 4"):
        midi_loop.read(written(waltz(2), tmp_path / "short.mid"), WALTZ)


@pytest.mark.parametrize(
    ("meters", "meter"),
    [
        ([], (4, 4)), ([(0, 3, 4)], (3, 4)), ([(0, 2, 2)], (4, 4)), ([(0, 1, 64)], (4, 4)),
        ([(0, 3, 4), (BAR, 4, 4)], (4, 4)), ([(0, 1, 4), (TPQ, 6, 8)], (6, 8)),
    ],
)  # fmt: skip
def test_the_grid_of_a_file_is_in_its_meter(
    meters: list[tuple[int, int, int]], meter: tuple[int, int], tmp_path: Path
) -> None:
    song = replace(groove(8), meters=tuple(Meter(*one) for one in meters))
    assert midi_loop.grid_of(written(song, tmp_path / "a.mid")) == replace(
        LOOP, meter=TimeSignature(*meter)
    )
    assert midi_loop.grid_of(tmp_path / "none.mid") == LOOP
