"""Against the real libraries."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pretty_midi
import pypianoroll
import pytest

from handmade import BAR, TPQ, groove, random_rolls, rows, several_tracks
from midiloop import interchange, pianoroll
from midiloop.errors import LoopError
from midiloop.grid import LOOP
from midiloop.score import read, to_bytes


def test_pretty_midi_there_and_back_keeps_every_tick() -> None:
    song = several_tracks()
    back = interchange.from_pretty_midi(interchange.to_pretty_midi(song))
    assert rows(back) == rows(song)
    assert back.meters == song.meters
    assert back.ticks_per_quarter == TPQ
    assert [t.tick for t in back.tempos] == [0, 4 * BAR]
    np.testing.assert_allclose([t.bpm for t in back.tempos], [97.35, 140.0], rtol=1e-9)


def test_pretty_midi_reads_what_we_write_as_we_convert_it() -> None:
    song = groove(8)
    theirs = pretty_midi.PrettyMIDI(io.BytesIO(to_bytes(song)))
    ours = interchange.to_pretty_midi(song)
    assert theirs.get_end_time() == pytest.approx(ours.get_end_time())
    for one, other in zip(theirs.instruments, ours.instruments, strict=True):
        assert (one.program, one.is_drum) == (other.program, other.is_drum)
        key = [(n.pitch, round(n.start, 6), round(n.end, 6), n.velocity) for n in one.notes]
        assert sorted(key) == sorted(
            (n.pitch, round(n.start, 6), round(n.end, 6), n.velocity) for n in other.notes
        )
    np.testing.assert_array_equal(
        pianoroll.encode(interchange.from_pretty_midi(theirs)), pianoroll.encode(song)
    )


def test_a_pretty_midi_without_notes_is_refused() -> None:
    with pytest.raises(LoopError, match="no notes"):
        interchange.from_pretty_midi(pretty_midi.PrettyMIDI())


def test_pypianoroll_there_and_back(rng: np.random.Generator, tmp_path: Path) -> None:
    """Through the real library and its own file format."""
    for number, roll in enumerate(random_rolls(rng, 10)):
        song = interchange.to_multitrack(roll, 133.0)
        path = tmp_path / f"{number}.npz"
        song.save(str(path))
        back = pypianoroll.load(str(path))
        np.testing.assert_array_equal(interchange.from_multitrack(back), roll)
        assert back.tempo.min() == back.tempo.max() == 133
        assert np.flatnonzero(back.downbeat).tolist() == list(range(0, 128, 16))


def test_pypianoroll_reads_our_files_as_we_do(tmp_path: Path) -> None:
    """Two ways from a MIDI file to a roll: ours, and theirs with their own parser."""
    path = tmp_path / "groove.mid"
    path.write_bytes(to_bytes(groove(8)))
    theirs = pypianoroll.read(str(path), resolution=4)
    np.testing.assert_array_equal(
        interchange.from_multitrack(theirs)[:128], pianoroll.encode(read(path))
    )


def test_a_multitrack_keeps_the_lowest_bass_and_folds_drums() -> None:
    drums = np.zeros((20, 128), dtype=np.uint8)
    drums[0, [36, 57, 70]] = 90
    bass = np.zeros((20, 128), dtype=np.uint8)
    bass[1, [40, 43]] = 90
    piano = np.full((20, 128), 90, dtype=np.uint8)
    song = pypianoroll.Multitrack(
        resolution=4,
        tracks=[
            pypianoroll.StandardTrack("d", 0, True, drums),
            pypianoroll.StandardTrack("b", 34, False, bass),
            pypianoroll.StandardTrack("p", 0, False, piano),
        ],
    )
    roll = interchange.from_multitrack(song)
    assert roll.shape == (32, LOOP.columns)
    assert set(map(tuple, np.argwhere(roll).tolist())) == {(0, 0), (0, 6), (1, 9 + 16)}


def test_another_resolution_is_refused_with_the_remedy() -> None:
    with pytest.raises(LoopError, match=r"set_resolution\(4\)"):
        interchange.from_multitrack(pypianoroll.Multitrack(resolution=24))
