"""The split of each song: songs that share a loop form a group, and a group has one split.

So no loop is in two splits. The split of a group depends on its smallest MD5 alone: neither on
names, nor on the order of files, nor on chance.

All loops are read once and partitioned into files by fingerprint, and each file is then processed
by itself. Time is linear in loops, memory in songs, 12 bytes for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "valid", "test")
VALID_FROM, TEST_FROM = 0.8, 0.9
LOOPS_AT_A_TIME = 1 << 20
RECORD = np.dtype([("fingerprint", "<u8"), ("song", "<i8")])


class SongLoops(NamedTuple):
    """Loops of some songs, n of them.

    Attributes:
        md5s: of the songs, each of which has a loop.
        songs: int (n,), index into ``md5s`` of each loop's song.
        fingerprints: uint64 (n,), see `Grid.fingerprints`.
    """

    md5s: list[str]
    songs: NDArray[np.int64]
    fingerprints: NDArray[np.uint64]


class SplitAssignment(NamedTuple):
    """Result of `assign`.

    Attributes:
        splits: uint8 (songs,), index into `SPLITS`; songs in the order in which they came.
        n_distinct: number of distinct loops.
    """

    splits: NDArray[np.uint8]
    n_distinct: int


def assign(songs: Iterable[SongLoops], n_loops: int, folder: Path) -> SplitAssignment:
    """Assign every song to a split.

    Args:
        songs: all songs of the corpus with their loops, in pieces.
        n_loops: number of loops in all.
        folder: empty, for temporary files of 16 bytes a loop.
    """
    n_files = 1 + n_loops // LOOPS_AT_A_TIME
    places = np.concatenate([np.zeros(0, np.uint32), *_sorted_into_files(songs, n_files, folder)])
    root = np.arange(len(places))
    n_distinct = 0
    for number in range(n_files):
        records = np.fromfile(_file(folder, number), RECORD)
        records = records[np.argsort(records["fingerprint"], kind="stable")]
        same = np.flatnonzero(np.diff(records["fingerprint"]) == 0)
        n_distinct += len(records) - len(same)
        join(root, records["song"][same], records["song"][same + 1])
    roots = find(root, np.arange(len(root)))
    lowest = places.copy()
    np.minimum.at(lowest, roots, places)
    return SplitAssignment(split_of_place(lowest[roots]), n_distinct)


def _sorted_into_files(
    songs: Iterable[SongLoops], n_files: int, folder: Path
) -> list[NDArray[np.uint32]]:
    """Write every loop to the file of its fingerprint, and return the place of each song."""
    places: list[NDArray[np.uint32]] = []
    waiting: list[NDArray[np.void]] = []
    n_songs = n_waiting = 0
    for number in range(n_files):
        _file(folder, number).touch()
    for piece in songs:
        records = np.empty(len(piece.songs), RECORD)
        records["fingerprint"], records["song"] = piece.fingerprints, piece.songs + n_songs
        places.append(places_of(piece.md5s))
        waiting.append(records)
        n_songs, n_waiting = n_songs + len(piece.md5s), n_waiting + len(records)
        if n_waiting >= LOOPS_AT_A_TIME:
            _write(waiting, n_files, folder)
            waiting, n_waiting = [], 0
    if waiting:
        _write(waiting, n_files, folder)
    return places


def _write(waiting: list[NDArray[np.void]], n_files: int, folder: Path) -> None:
    records = np.concatenate(waiting)
    belongs = records["fingerprint"] % np.uint64(n_files)
    order = np.argsort(belongs, kind="stable")
    ends = np.cumsum(np.bincount(belongs.astype(np.int64), minlength=n_files))
    for number, rows in enumerate(np.split(records[order], ends[:-1])):
        with _file(folder, number).open("ab") as file:
            file.write(rows.tobytes())


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.fingerprints"


# Union-find: ``root[node]`` leads to a smaller node of the same group, or to itself.


def find(root: NDArray[np.int64], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest node of the group of each of ``nodes``; compresses the paths to it."""
    found = root[nodes]
    while (higher := root[found] != found).any():
        found[higher] = root[found[higher]]
    root[nodes] = found
    return found


def join(root: NDArray[np.int64], nodes: NDArray[np.int64], others: NDArray[np.int64]) -> None:
    """Merge the group of each node with that of its other."""
    while True:
        one, other = find(root, nodes), find(root, others)
        apart = one != other
        if not apart.any():
            return
        nodes, others = one[apart], other[apart]
        np.minimum.at(root, np.maximum(nodes, others), np.minimum(nodes, others))


def places_of(md5s: list[str]) -> NDArray[np.uint32]:
    """The first 32 bits of each MD5 (hexadecimal), uint32; they keep the order of MD5s."""
    return np.array([int(md5[:8], 16) for md5 in md5s], dtype=np.uint32)


def split_of_place(places: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """80 % train, 10 % valid, 10 % test, by the place of a group's smallest MD5: uint8."""
    return np.digitize(places / 2**32, (VALID_FROM, TEST_FROM)).astype(np.uint8)
