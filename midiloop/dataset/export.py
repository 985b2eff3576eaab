"""Write the loops of a dataset as files for other programs: MIDI for DAWs, npz for pypianoroll."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from midiloop.common import files
from midiloop.dataset import npz
from midiloop.dataset.parquet import LoopBatch
from midiloop.errors import CallError, LoopError
from midiloop.grid import LOOP, Roll
from midiloop.midi import performance, pianoroll, score
from midiloop.midi.performance import Performance

# 10,000 loops. Whoever loads the file needs 256 bytes a step: pypianoroll's own arrays are dense.
MAX_NPZ_STEPS = 10_000 * LOOP.steps
MAX_NAME = 60
NO_LOOP = "no loop matches; widen the choice, 'midiloop inspect' shows what there is"


def to_midi(
    batches: Iterable[LoopBatch],
    folder: Path,
    *,
    play: Callable[[int, Roll], Performance] | None = None,
    on_loop: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write each loop as a MIDI file into a new folder, which is written whole or not at all.

    A file name has the index among the chosen loops, the song, its bar (from 1) and tempo.

    Args:
        play: how to play each roll, by its place; None writes them on the grid.

    Raises:
        CallError: the folder exists, or the one it would lie in does not.
        LoopError: there are no loops.
    """
    names: list[str] = []
    with files.new_folder(folder) as building:
        for batch in batches:
            loops = zip(batch.rolls, batch.songs, batch.start_bars, batch.tempos_bpm, strict=True)
            for roll, song, start_bar, tempo_bpm in loops:
                name = file_name(len(names), song, int(start_bar), float(tempo_bpm))
                number, bpm = len(names), writable_tempo(float(tempo_bpm))
                if play is None:
                    loop = pianoroll.decode(roll, bpm, grid=batch.grid)
                else:
                    loop = performance.decode(roll, play(number, roll), bpm, grid=batch.grid)
                (building / name).write_bytes(score.to_bytes(loop))
                names.append(name)
                on_loop()
        if not names:
            raise LoopError(NO_LOOP)
    return [folder / name for name in names]


def file_name(number: int, song: str, start_bar: int, tempo_bpm: float) -> str:
    """As in ``00012_my-song_bar017_120bpm.mid``: letters, digits, - and _ only."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(song).stem).strip("-")[:MAX_NAME] or "loop"
    return f"{number:05d}_{stem}_bar{start_bar + 1:03d}_{round(tempo_bpm)}bpm.mid"


def writable_tempo(tempo_bpm: float) -> float:
    """The tempo, clipped to what MIDI files can state and players play."""
    return float(np.clip(tempo_bpm, pianoroll.MIN_BPM, pianoroll.MAX_BPM))


def to_npz(batches: Iterable[LoopBatch], path: Path) -> int:
    """Write all loops, one after the other, as one ``pypianoroll`` file, and return how many.

    Raises:
        CallError: the file exists, is not called ``.npz``, or its folder does not exist.
        LoopError: there are no loops, or more than pypianoroll can load again.
    """
    if path.suffix != ".npz":
        raise CallError(f"{files.printable(path)}: pypianoroll reads .npz; end the name in it")
    files.check_free(path)
    loops: npz.SparseLoops | None = None
    for batch in batches:
        if loops is None:
            loops = npz.SparseLoops(batch.grid)
        loops.add(batch)
        if len(loops) > (most := MAX_NPZ_STEPS // batch.grid.steps):
            raise LoopError(
                f"pypianoroll cannot hold more than {most:,} loops in one .npz; choose fewer with "
                "--limit, --song, --split or --distinct"
            )
    if loops is None:
        raise LoopError(NO_LOOP)
    with files.replacing(path) as temporary:
        loops.save(temporary)
    return len(loops)
