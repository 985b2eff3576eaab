"""Write the loops of a dataset as files for other programs: MIDI for DAWs, npz for pypianoroll."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from midiloop import files, interchange, pianoroll, score
from midiloop.errors import CallError, LoopError
from midiloop.store import LoopBatch

# A loop takes 2 · 128 · 128 bytes in pypianoroll's own arrays, and several times that to save.
MAX_NPZ_LOOPS = 10_000
MAX_NAME = 60


def to_midi(
    batches: Iterable[LoopBatch],
    folder: Path,
    *,
    on_loop: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write each loop as a MIDI file into a new folder, which is there whole or not at all.

    Files are named for their place in the choice, their song, its bar (from 1) and tempo.

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
                loop = pianoroll.decode(roll, writable_tempo(float(tempo_bpm)), grid=batch.grid)
                (building / name).write_bytes(score.to_bytes(loop))
                names.append(name)
                on_loop()
        if not names:
            raise LoopError(
                "no loop matches; widen the choice, 'midiloop inspect' shows what there is"
            )
    return [folder / name for name in names]


def file_name(number: int, song: str, start_bar: int, tempo_bpm: float) -> str:
    """As in ``00012_my-song_bar017_120bpm.mid``: letters, digits, - and _ only."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(song).stem).strip("-")[:MAX_NAME] or "loop"
    return f"{number:05d}_{stem}_bar{start_bar + 1:03d}_{round(tempo_bpm)}bpm.mid"


def writable_tempo(tempo_bpm: float) -> float:
    """The tempo, within what MIDI files can state and players play."""
    return float(np.clip(tempo_bpm, pianoroll.MIN_BPM, pianoroll.MAX_BPM))


def to_npz(batches: Iterable[LoopBatch], path: Path) -> int:
    """Write all loops, one after the other, as one ``pypianoroll`` file, and say how many.

    Raises:
        CallError: the file exists, is not called ``.npz``, or its folder does not exist.
        LoopError: there are no loops, or more than fit into memory.
        ImportError: pypianoroll is not installed.
    """
    if path.suffix != ".npz":
        raise CallError(f"{path}: pypianoroll reads .npz files; end the name in .npz")
    files.check_free(path)
    chosen: list[LoopBatch] = []
    for batch in batches:
        chosen.append(batch)
        if sum(map(len, chosen)) > MAX_NPZ_LOOPS:
            raise LoopError(
                f"more than {MAX_NPZ_LOOPS:,} loops do not fit into one .npz; choose fewer with "
                "--limit, --song, --split or --distinct"
            )
    if not chosen:
        raise LoopError("no loop matches; widen the choice, 'midiloop inspect' shows what there is")
    loops = LoopBatch.joined(chosen)
    grid = loops.grid
    song = interchange.to_multitrack(
        loops.rolls.reshape(-1, grid.columns), np.repeat(loops.tempos_bpm, grid.steps), grid=grid
    )
    with files.replacing(path) as temporary:
        song.save(str(temporary))
    return len(loops)
