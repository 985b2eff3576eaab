"""Write the loops of a dataset as files for other programs: MIDI for DAWs, npz for pypianoroll."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from midiloop.common import files
from midiloop.dataset import npz
from midiloop.dataset.parquet import LoopBatch
from midiloop.errors import CallError, LoopError
from midiloop.grid import LOOP, Roll, pitch_name
from midiloop.midi import performance, pianoroll, score, transposition
from midiloop.midi.key import Key, as_json, confident
from midiloop.midi.performance import Performance

# 10,000 loops. Whoever loads the file needs 256 bytes a step: pypianoroll's own arrays are dense.
MAX_NPZ_STEPS = 10_000 * LOOP.steps
MAX_NAME = 60
NO_LOOP = "no loop matches; widen the choice, 'midiloop inspect' shows what there is"


class LoopFile(NamedTuple):
    """A MIDI file of a loop.

    Attributes:
        path: the file.
        key: estimated; None without a bass.
    """

    path: Path
    key: Key | None

    def as_json(self) -> dict[str, Any]:
        """Its name, its key where that is certain, and the confidence."""
        return {"file": self.path.name, **as_json(self.key)}


def to_midi(
    batches: Iterable[LoopBatch],
    folder: Path,
    *,
    play: Callable[[int, Roll], Performance] | None = None,
    on_loop: Callable[[], None] = lambda: None,
) -> list[LoopFile]:
    """Write each loop as a MIDI file into a new folder, which is written whole or not at all.

    A file name has the index among the chosen loops, the song, its bar (from 1), tempo and key.

    Args:
        play: how to play each roll, by its place; None writes them on the grid.

    Raises:
        CallError: the folder exists, or the one it would lie in does not.
        LoopError: there are no loops.
    """
    written: list[LoopFile] = []
    with files.new_folder(folder) as building:
        for batch in batches:
            loops = zip(batch.rolls, batch.songs, batch.start_bars, batch.tempos_bpm, strict=True)
            for roll, song, start_bar, tempo_bpm in loops:
                number, bpm = len(written), writable_tempo(float(tempo_bpm))
                if play is None:
                    loop = pianoroll.decode(roll, bpm, grid=batch.grid)
                else:
                    loop = performance.decode(roll, play(number, roll), bpm, grid=batch.grid)
                name = file_name(number, song, int(start_bar), float(tempo_bpm), loop.key)
                (building / name).write_bytes(score.to_bytes(loop))
                written.append(LoopFile(folder / name, loop.key))
                on_loop()
        if not written:
            raise LoopError(NO_LOOP)
    return written


def transposed(batches: Iterable[LoopBatch], semitones: int) -> Iterator[LoopBatch]:
    """The loops with their bass moved by semitones, positive upwards; drums stay.

    Raises:
        LoopError: the bass of one would leave the grid.
    """
    for batch in batches:
        room = transposition.room(batch.rolls, batch.grid)
        for at in np.flatnonzero(~room.has(semitones)).tolist():
            lowest, highest = batch.grid.lowest_pitch, batch.grid.highest_pitch
            raise LoopError(
                f"{files.printable(batch.songs[at])}, bar {batch.start_bars[at] + 1}: --transpose "
                f"{semitones} moves its bass out of {pitch_name(lowest)} to {pitch_name(highest)}; "
                f"{transposition.remedy(semitones)}"
            )
        shifts = np.full(len(batch), semitones)
        yield batch.with_rolls(transposition.transpose_bass(batch.rolls, shifts, batch.grid))


def file_name(
    number: int, song: str, start_bar: int, tempo_bpm: float, key: Key | None = None
) -> str:
    """As in ``00012_my-song_bar017_120bpm_F#m.mid``: letters, digits, -, _ and # only.

    A key that is not `confident` is left out.
    """
    stem = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(song).stem).strip("-")[:MAX_NAME] or "loop"
    certain = confident(key)
    of_key = f"_{certain}" if certain else ""
    return f"{number:05d}_{stem}_bar{start_bar + 1:03d}_{round(tempo_bpm)}bpm{of_key}.mid"


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
