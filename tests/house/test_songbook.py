"""The example songs: the same bytes each time, and loops where the card says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mido
import pytest

from midiloop.errors import MidiError
from midiloop.midi import score
from midiloop.mining import extract, rules
from paths import ROOT

PREPARE = ROOT / "datasets" / "songbook" / "prepare.py"


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("songbook")
    subprocess.run([sys.executable, PREPARE, out, "--check"], check=True, capture_output=True)
    return sorted(path for path in out.iterdir())


def test_there_are_enough_of_them_in_every_suffix(songs: list[Path]) -> None:
    midi = [path for path in songs if path.suffix in (".mid", ".midi", ".kar")]
    assert len(midi) >= 24
    assert {path.suffix for path in midi} == {".mid", ".midi", ".kar"}


def test_every_song_gives_loops_and_every_other_its_reason(songs: list[Path]) -> None:
    reasons = {}
    for path in songs:
        try:
            extract.mine(path.name, path.read_bytes(), extract.PAPER)
        except MidiError as error:
            reasons[path.stem] = error.reason
    assert all(name.startswith("reject_") for name in reasons)
    assert len(reasons) == sum(path.stem.startswith("reject_") for path in songs)
    assert {"not_4_4", "no_bass", "no_drums", "no_meter", "no_loop"} == set(reasons.values())


def test_every_track_ends_at_a_bar_line(songs: list[Path]) -> None:
    for path in songs:
        midi = mido.MidiFile(path)
        ends = {sum(message.time for message in track) for track in midi.tracks}
        assert len(ends) == 1, path
        if not path.stem.startswith("reject_"):
            assert ends.pop() % (4 * midi.ticks_per_beat) == 0, path


def test_they_cover_what_real_songs_do(songs: list[Path]) -> None:
    read = [score.read(path) for path in songs]
    assert len({song.ticks_per_quarter for song in read}) >= 3
    assert any(len(song.tempos) > 1 for song in read)
    assert any(len(song.meters) > 1 for song in read)
    assert max(len(song.tracks) for song in read) >= 4
    assert min(len(extract.loops(song, extract.Settings(rules.preset("open"))))
               for song, path in zip(read, songs, strict=True)
               if not path.stem.startswith("reject_")) >= 1  # fmt: skip


def test_a_changed_song_is_noticed(tmp_path: Path) -> None:
    from shutil import copytree

    copytree(PREPARE.parent, tmp_path / "songbook")
    sums = tmp_path / "songbook" / "SHA256SUMS"
    first, rest = sums.read_text().split("\n", 1)
    sums.write_text("0" * 64 + first[64:] + "\n" + rest)
    prepare = tmp_path / "songbook" / "prepare.py"
    done = subprocess.run(
        [sys.executable, prepare, tmp_path / "out", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert first.split()[-1] in done.stdout + done.stderr
