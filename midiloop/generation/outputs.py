"""Write generated loops: a loop dataset, a MIDI file each, and a contact sheet."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from midiloop import __version__
from midiloop.common import files, processes
from midiloop.dataset import export
from midiloop.dataset.records import Counts, SongRecord
from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics import paper
from midiloop.midi import pianoroll, score
from midiloop.mining import assemble, partials
from midiloop.plotting import plot

PICTURED = 24
SHEET = "loops.png"


class WrittenLoops(NamedTuple):
    """Paths of the written loops.

    Attributes:
        midi: folder of MIDI files.
        dataset: folder of the loop dataset.
        picture: None where matplotlib is not installed.
    """

    midi: Path
    dataset: Path
    picture: Path | None


def write(
    rolls: Roll, out: Path, *, tempo_bpm: float, seed: int, about: dict[str, Any], grid: Grid = LOOP
) -> WrittenLoops:
    """Write loops into a new folder, which is there whole or not at all.

    Args:
        rolls: bool (n, steps, columns).
        out: new folder.
        tempo_bpm: of the MIDI files.
        seed: that they were sampled with; file names contain it.
        about: provenance, for the dataset's manifest.

    Raises:
        CallError: see `files.check_free`.
    """
    with files.new_folder(out) as building:
        pictured = importlib.util.find_spec("matplotlib") is not None
        sheet = _sheet(rolls, building / SHEET, tempo_bpm, grid) if pictured else nullcontext()
        with sheet:
            _write_loops(rolls, building, tempo_bpm, seed, about, grid)
    return WrittenLoops(out / "midi", out / "dataset", out / SHEET if pictured else None)


def _sheet(rolls: Roll, path: Path, tempo_bpm: float, grid: Grid) -> AbstractContextManager[None]:
    """Draw the contact sheet in parallel to the body of the context."""
    pictures = [
        plot.Picture(roll, f"{number}", tempo_bpm) for number, roll in enumerate(rolls[:PICTURED])
    ]
    draw = partial(plot.contact_sheet, pictures, path, columns=min(3, len(pictures)), grid=grid)
    return processes.beside(draw, preload=plot.MODULES)


def _write_loops(
    rolls: Roll, building: Path, tempo_bpm: float, seed: int, about: dict[str, Any], grid: Grid
) -> None:
    """Write MIDI files and the dataset into an empty folder."""
    (building / "parts").mkdir()
    songs = _songs(rolls, building / "midi", tempo_bpm, seed, grid)
    part = building / "parts" / "0.part"
    partials.write(part, songs, [], "", grid)
    provenance = {
        "midiloop_version": __version__,
        "sources": [about["run"]],
        "rules": {"name": "generated"},
        "stride_bars": grid.bars,
        "grid": grid.as_json(),
        "generator": about,
    }
    counts = Counts(len(songs), len(songs), Counter())
    dataset = building / "dataset"
    assemble.assemble([part], dataset, provenance, counts, grid=grid, threads=1, by_split=False)
    shutil.rmtree(building / "parts")


def _songs(rolls: Roll, folder: Path, tempo_bpm: float, seed: int, grid: Grid) -> list[SongRecord]:
    """Write a MIDI file of each loop into a new folder, and return records for the dataset."""
    folder.mkdir()
    distances = (paper.bar_distance(rolls, grid) * grid.cells_per_bar).round().astype(np.int64)
    songs = []
    for number, (roll, distance) in enumerate(zip(rolls, distances, strict=True)):
        name = f"{number:06d}/seed-{seed}.mid"
        midi = score.to_bytes(pianoroll.decode(roll, tempo_bpm, grid=grid))
        (folder / export.file_name(number, name, 0, tempo_bpm)).write_bytes(midi)
        songs.append(
            SongRecord(
                name,
                hashlib.md5(midi).hexdigest(),
                np.zeros(1, dtype=np.int64),
                np.full(1, tempo_bpm),
                distance[None],
                grid.pack(roll[None]),
            )
        )
    return songs
