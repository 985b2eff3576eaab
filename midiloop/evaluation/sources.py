"""Loops to measure, and their songs, out of datasets and folders of MIDI files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from midiloop.dataset import parquet
from midiloop.errors import CallError, LoopError
from midiloop.evaluation.profile import LoopSet
from midiloop.grid import LOOP, Grid
from midiloop.metrics.bits import Bits
from midiloop.mining import corpus, midi_loop

READ_AT_A_TIME = 8_192
FILES_AT_A_TIME = 512


def is_run(folder: Path) -> bool:
    """Whether ``midiloop train`` wrote a folder."""
    return any(folder.glob("*/config.json"))


def open_source(source: Path, split: str | None, grid: Grid = LOOP) -> Iterator[LoopSet]:
    """Loops of a dataset, or of a folder of MIDI files, in pieces.

    Args:
        grid: that MIDI files are read on; a dataset has its own.

    Raises:
        CallError: it is neither, or files are asked for a split.
        LoopError: one cannot be read, or nothing matches.
    """
    if not source.is_dir():
        raise CallError(f"{source}: no such folder; give a loop dataset or a folder of MIDI files")
    if (source / "manifest.json").exists():
        return of_dataset(source, split)
    names = (path for path in source.rglob("*") if path.is_file())
    files = sorted(path for path in names if path.name.lower().endswith(corpus.MIDI_SUFFIXES))
    if not files:
        raise CallError(f"{source}: neither a loop dataset nor MIDI files in it; give one of them")
    if split:
        raise CallError(f"{source}: a folder of MIDI files has no splits; leave --split out")
    return of_midi(files, grid)


def of_dataset(path: Path, split: str | None, *, distinct: bool = False) -> Iterator[LoopSet]:
    """Loops of a dataset, batch by batch, with their songs; with ``distinct``, each once."""
    n_loops, dataset = 0, parquet.LoopDataset(path)
    batches = dataset.batches(READ_AT_A_TIME, split=split)
    for batch in dataset.select(split=split, distinct=True) if distinct else batches:
        n_loops += len(batch)
        yield LoopSet(Bits(batch.packed, batch.grid), np.array(batch.md5s))
    if n_loops == 0:
        part = f" in split {split}" if split else ""
        raise LoopError(f"{path}: no loops{part}; 'midiloop inspect' shows what there is")


def of_midi(files: list[Path], grid: Grid = LOOP) -> Iterator[LoopSet]:
    """Loops of MIDI files, one from each, which stand alone.

    Raises:
        LoopError: see `midi_loop.read`.
    """
    for start in range(0, len(files), FILES_AT_A_TIME):
        of = files[start : start + FILES_AT_A_TIME]
        yield LoopSet(np.stack([midi_loop.read(file, grid).roll for file in of]))
