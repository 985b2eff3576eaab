"""Parts: what `extract` commits while it runs, one for each batch of files that is done.

A part is a file of NumPy arrays, one after the other: JSON that names the songs, the batch's
rejects, and the batch's digest; then the columns of the dataset, less the split, which only the
whole corpus can tell, and with songs by number. Workers write parts, so that this module needs
NumPy alone.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midiloop.common import files
from midiloop.dataset.records import Counts, Reject, SongRecord
from midiloop.grid import Grid

# In the order of the file: those that all parts are searched for come first.
COLUMNS = (
    "song",
    "fingerprint",
    "start_bar",
    "tempo_bpm",
    "bar_distance_cells",
    "roll",
    "n_onsets",
    "onset_velocity",
    "onset_offset",
)


def write(
    path: Path, songs: Sequence[SongRecord], rejects: Sequence[Reject], digest: str, grid: Grid
) -> None:
    """Commit one batch: it stands under its name whole, or not at all.

    Args:
        digest: of the batch's sources; a run that resumes recognises the part by it.
    """
    about = {
        "digest": digest,
        "files": [song.file for song in songs],
        "md5s": [song.md5 for song in songs],
        "rejects": rejects,
    }
    rolls = np.concatenate([np.zeros((0, grid.packed_bytes), np.uint8), *(s.rolls for s in songs)])
    columns = {
        "song": np.repeat(np.arange(len(songs)), [len(song.start_bars) for song in songs]),
        "fingerprint": grid.fingerprints(rolls),
        "start_bar": _joined([song.start_bars for song in songs]),
        "tempo_bpm": _joined([song.tempos_bpm for song in songs]),
        "bar_distance_cells": _joined([song.distances_cells for song in songs]),
        "roll": rolls,
    }
    # Of all loops one after the other; empty where nothing is known of how they are played.
    played = [song.played for song in songs if song.played is not None]
    columns |= {
        "n_onsets": _joined([song.n_onsets for song in played]).astype(np.int64),
        "onset_velocity": _joined([song.velocities for song in played]).astype(np.uint8),
        "onset_offset": _joined([song.offsets for song in played]).astype(np.int8),
    }
    data = io.BytesIO()  # into a file, NumPy writes by a way that does not say why it failed
    np.save(data, np.frombuffer(json.dumps(about).encode(), dtype=np.uint8))
    for name in COLUMNS:
        np.save(data, columns[name])
    files.write(path, data.getvalue())


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0)


@dataclass(frozen=True)
class Part:
    """A part that was committed.

    Attributes:
        digest: of the batch's sources.
        files, md5s: of its songs.
        rejects: its files that gave no loops.
        columns: the first of `COLUMNS` by name, each (n,) for its n loops; ``song`` is an index
            into ``files``, ``roll`` is (n, packed_bytes), and what is of onsets is of those of all
            loops, one after the other.
    """

    digest: str
    files: list[str]
    md5s: list[str]
    rejects: list[Reject]
    columns: dict[str, NDArray[Any]]

    def counts(self) -> Counts:
        """Songs with loops, loops, and rejects by reason."""
        reasons = Counter(reject.reason for reject in self.rejects)
        return Counts(len(self.files), len(self.columns["song"]), reasons)


def read(path: Path, n_columns: int = len(COLUMNS)) -> Part:
    """Read a part, and the first ``n_columns`` of its columns."""
    with path.open("rb") as file:
        about = json.loads(np.load(file).tobytes())
        columns = {name: np.load(file) for name in COLUMNS[:n_columns]}
    rejects = [Reject(*row) for row in about["rejects"]]
    return Part(about["digest"], about["files"], about["md5s"], rejects, columns)
