"""Against the real libraries."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pretty_midi
import pyarrow as pa
import pypianoroll
import pytest

from handmade import BAR, GRIDS, TPQ, groove, random_rolls, rows, several_tracks
from midiloop.dataset import export, parquet
from midiloop.errors import LoopError
from midiloop.grid import KIT, LOOP, Grid
from midiloop.midi import interchange, pianoroll
from midiloop.midi.performance import Performance
from midiloop.midi.score import read, to_bytes


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


def loop_batch(grid: Grid, packed: np.ndarray, tempos_bpm: np.ndarray) -> parquet.LoopBatch:
    n = len(packed)
    columns = {
        "roll": [row.tobytes() for row in packed],
        "song": ["s.mid"] * n,
        "song_md5": ["0" * 32] * n,
        "start_bar": [0] * n,
        "tempo_bpm": tempos_bpm.tolist(),
        "bar_distance_cells": [0] * n,
        "split": ["train"] * n,
    }
    return parquet.LoopBatch(grid, pa.RecordBatch.from_pydict(columns, schema=parquet.schema(grid)))


@pytest.mark.parametrize(
    "grid",
    [*GRIDS, Grid(bars=3, steps_per_beat=6, drums=KIT[2:5], lowest_pitch=0, highest_pitch=90)],
)
def test_an_npz_of_loops_is_what_pypianoroll_saves_of_them(
    grid: Grid, rng: np.random.Generator, tmp_path: Path
) -> None:
    batches = []
    for n in (3, 1, 20):
        rolls = rng.random((n, grid.steps, grid.columns)) < 0.05
        rolls[:, :, -1] = False  # as of a pitch that nobody plays
        batches.append(loop_batch(grid, grid.pack(rolls), rng.uniform(40, 250, n)))
    assert export.to_npz(batches, tmp_path / "ours.npz") == 24
    joined = parquet.LoopBatch.joined(batches)
    tempos_bpm = np.repeat(joined.tempos_bpm, grid.steps)
    theirs = interchange.to_multitrack(
        joined.rolls.reshape(-1, grid.columns), tempos_bpm, grid=grid
    )
    theirs.save(str(tmp_path / "theirs.npz"))
    with np.load(tmp_path / "ours.npz") as one, np.load(tmp_path / "theirs.npz") as other:
        assert {*one.files} == {*other.files}
        for name in other.files:
            if name == "info.json":
                assert json.loads(one[name]) == json.loads(other[name])
            else:
                assert one[name].dtype == other[name].dtype
                np.testing.assert_array_equal(one[name], other[name])
    loaded = pypianoroll.load(str(tmp_path / "ours.npz"))
    np.testing.assert_array_equal(loaded.tempo[:, 0], tempos_bpm)
    for track, expected in zip(loaded.tracks, theirs.tracks, strict=True):
        np.testing.assert_array_equal(track.pianoroll, expected.pianoroll)


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


def test_a_multitrack_has_the_velocities_of_a_performance() -> None:
    pytest.importorskip("pypianoroll")
    roll = np.zeros((16, 93), np.bool_)
    roll[[0, 4], 0] = roll[2:5, 20] = True
    played = Performance(np.array([90, 70, 40], np.uint8), np.zeros(3, np.int8))
    drums, bass = interchange.to_multitrack(roll, played=played).tracks
    assert drums.pianoroll[[0, 4], 36].tolist() == [90, 40]
    assert bass.pianoroll[1:6, 24 + 11].tolist() == [0, 70, 70, 70, 0]
    with pytest.raises(LoopError, match="one for each onset of the roll"):
        interchange.to_multitrack(roll[:4], played=played)
