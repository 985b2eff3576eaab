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
from midiloop.dataset.export import LoopFile
from midiloop.dataset.records import Counts, SongRecord
from midiloop.generation.humanize import Play
from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics import paper
from midiloop.midi import performance, pianoroll, score
from midiloop.midi.performance import WindowPerformances
from midiloop.mining import assemble, partials
from midiloop.plotting import plot

PICTURED = 24
SHEET = "loops.png"


class WrittenLoops(NamedTuple):
    """Paths of the written loops.

    Attributes:
        midi: folder of MIDI files.
        loops: the files in it.
        dataset: folder of the loop dataset.
        picture: None where matplotlib is not installed.
    """

    midi: Path
    loops: list[LoopFile]
    dataset: Path
    picture: Path | None

    def as_json(self) -> dict[str, Any]:
        """The paths, and each MIDI file with its key."""
        return {
            "midi": str(self.midi),
            "dataset": str(self.dataset),
            "picture": self.picture and str(self.picture),
            "files": [loop.as_json() for loop in self.loops],
        }


def write(
    rolls: Roll,
    out: Path,
    *,
    tempo_bpm: float,
    seed: int,
    about: dict[str, Any],
    grid: Grid = LOOP,
    play: Play | None = None,
) -> WrittenLoops:
    """Write loops into a new folder, which is there whole or not at all.

    Args:
        rolls: bool (n, steps, columns).
        out: new folder.
        tempo_bpm: of the MIDI files.
        seed: that they were sampled with; file names contain it.
        about: provenance, for the dataset's manifest.
        play: how to play each roll, by its number; None writes them on the grid.

    Raises:
        CallError: see `files.check_free`.
    """
    with files.new_folder(out) as building:
        pictured = importlib.util.find_spec("matplotlib") is not None
        sheet = _sheet(rolls, building / SHEET, tempo_bpm, grid) if pictured else nullcontext()
        with sheet:
            loops = _write_loops(rolls, building, tempo_bpm, seed, about, grid, play)
    midi = out / "midi"
    written = [LoopFile(midi / path.name, key) for path, key in loops]
    return WrittenLoops(midi, written, out / "dataset", out / SHEET if pictured else None)


def _sheet(rolls: Roll, path: Path, tempo_bpm: float, grid: Grid) -> AbstractContextManager[None]:
    """Draw the contact sheet in parallel to the body of the context."""
    pictures = [
        plot.Picture(roll, f"{number}", tempo_bpm) for number, roll in enumerate(rolls[:PICTURED])
    ]
    draw = partial(plot.contact_sheet, pictures, path, columns=min(3, len(pictures)), grid=grid)
    return processes.beside(draw, preload=plot.MODULES)


def _write_loops(
    rolls: Roll,
    building: Path,
    tempo_bpm: float,
    seed: int,
    about: dict[str, Any],
    grid: Grid,
    play: Play | None,
) -> list[LoopFile]:
    """Write MIDI files and the dataset into an empty folder."""
    (building / "parts").mkdir()
    songs, loops = _songs(rolls, building / "midi", tempo_bpm, seed, grid, play)
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
    if play is not None:
        provenance["performance"] = {"offsets_per_step": performance.OFFSETS_PER_STEP}
    counts = Counts(len(songs), len(songs), Counter())
    dataset = building / "dataset"
    assemble.assemble([part], dataset, provenance, counts, grid=grid, threads=1, by_split=False)
    shutil.rmtree(building / "parts")
    return loops


def _songs(
    rolls: Roll, folder: Path, tempo_bpm: float, seed: int, grid: Grid, play: Play | None
) -> tuple[list[SongRecord], list[LoopFile]]:
    """Write a MIDI file of each loop into a new folder; return records for the dataset as well."""
    folder.mkdir()
    distances = (paper.bar_distance(rolls, grid) * grid.cells_per_bar).round().astype(np.int64)
    songs, loops = [], []
    for number, (roll, distance) in enumerate(zip(rolls, distances, strict=True)):
        name = f"{number:06d}/seed-{seed}.mid"
        if play is None:
            loop, windows = pianoroll.decode(roll, tempo_bpm, grid=grid), None
        else:
            played = play(number, roll)
            loop = performance.decode(roll, played, tempo_bpm, grid=grid)
            windows = WindowPerformances(np.array([len(played.velocities)]), *played)
        path = folder / export.file_name(number, name, 0, tempo_bpm, loop.key)
        content = score.to_bytes(loop)
        path.write_bytes(content)
        loops.append(LoopFile(path, loop.key))
        songs.append(
            SongRecord(
                name,
                hashlib.md5(content).hexdigest(),
                np.zeros(1, dtype=np.int64),
                np.full(1, tempo_bpm),
                distance[None],
                grid.pack(roll[None]),
                windows,
            )
        )
    return songs, loops
