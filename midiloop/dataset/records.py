"""Results of mining: the loops of a song, or the reason why a file gave none."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.midi.performance import WindowPerformances


class SongRecord(NamedTuple):
    """The loops of one song, n of them.

    Attributes:
        file: path inside the corpus.
        md5: of the file's bytes, hexadecimal.
        start_bars: int (n,), ascending.
        tempos_bpm: float (n,), median over the loop's steps.
        distances_cells: int (n,), cells in which the first bar and `Grid.middle_bar` differ.
        rolls: uint8 (n, packed_bytes), see `Grid.pack`.
        played: how they are played; None where nothing is known of it.
    """

    file: str
    md5: str
    start_bars: NDArray[np.int64]
    tempos_bpm: NDArray[np.float64]
    distances_cells: NDArray[np.int64]
    rolls: NDArray[np.uint8]
    played: WindowPerformances | None = None


class Reject(NamedTuple):
    """A file that gave no loops, and why."""

    file: str
    reason: str
    detail: str


class Counts(NamedTuple):
    """Totals of a batch of files: songs with loops, loops, and rejects by reason."""

    songs: int
    loops: int
    rejects: Counter[str]
