"""Choose loops of datasets and MIDI files, and draw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from midiloop.common import files
from midiloop.dataset import parquet
from midiloop.errors import CallError, LoopError
from midiloop.grid import LOOP, Grid
from midiloop.mining import corpus, midi_loop
from midiloop.plotting import plot
from midiloop.plotting.plot import Picture

DEFAULT_LOOPS = 12


class ContactSheet(NamedTuple):
    """Loops to draw, all of them on one grid."""

    pictures: list[Picture]
    grid: Grid


def pictures(
    sources: Sequence[Path],
    *,
    song: str = "*",
    split: str | None = None,
    limit: int | None = None,
) -> ContactSheet:
    """Loops to draw: of a dataset from songs evenly spread over it, of each MIDI file its first.

    MIDI files are read on the grid of a dataset beside them, else on the usual one, in their meter
    where they have one in common.

    Raises:
        CallError: a source is neither a dataset nor a MIDI file.
        LoopError: one cannot be read, nothing matches, or they lie on different grids.
    """
    found: list[Picture] = []
    grids = {parquet.LoopDataset(source).grid for source in sources if source.is_dir()}
    of_files = {midi_loop.grid_of(source) for source in sources if not grids and _is_midi(source)}
    grids = grids or (of_files if len(of_files) == 1 else {LOOP})
    of_midi = next(iter(grids))
    for source in sources:
        if not source.exists():
            raise CallError(f"{source}: no such file or folder; check the path")
        if source.is_dir():
            dataset = parquet.LoopDataset(source)
            spread = dataset.spread(limit or DEFAULT_LOOPS, per_song=1, song=song, split=split)
            found += [picture for batch in spread for picture in _of_batch(batch)]
        elif _is_midi(source):
            found.append(_of_midi(source, of_midi))
        else:
            raise CallError(f"{source}: neither a loop dataset nor a MIDI file; give one of them")
    if not found:
        raise LoopError("no loop matches; widen the choice, 'midiloop inspect' shows what there is")
    if len(grids) > 1:
        one, other = sorted(grids, key=lambda grid: (str(grid), repr(grid)))[:2]
        difference = files.shortened(one.difference(other), 200)
        raise LoopError(f"loops of two grids do not go on one page ({difference}); draw them apart")
    return ContactSheet(found[:limit], grids.pop())


def draw(found: ContactSheet, path: Path, *, columns: int = 3) -> None:
    """Draw one loop large, several as a contact sheet.

    Raises:
        LoopError: see `plot.draw`.
    """
    if len(found.pictures) == 1:
        plot.draw(found.pictures[0], path, grid=found.grid)
    else:
        columns = min(columns, len(found.pictures))
        plot.contact_sheet(found.pictures, path, columns=columns, grid=found.grid)


def _of_batch(batch: parquet.LoopBatch) -> list[Picture]:
    loops = zip(batch.rolls, batch.songs, batch.start_bars, batch.tempos_bpm, strict=True)
    return [
        Picture(roll, f"{PurePosixPath(name).stem} · bar {start_bar + 1}", float(tempo_bpm))
        for roll, name, start_bar, tempo_bpm in loops
    ]


def _is_midi(path: Path) -> bool:
    return path.name.lower().endswith(corpus.MIDI_SUFFIXES)


def _of_midi(path: Path, grid: Grid) -> Picture:
    """The loop of a file, or its first bars."""
    loop = midi_loop.read(path, grid, search=True, shorter=True)
    return Picture(loop.roll, f"{path.stem} · bar {loop.start_bar + 1}", loop.tempo_bpm)
