"""Which split each song goes to: songs that share a loop are one group, and go the same way.

So no loop stands on two sides. Where a group goes depends on the smallest MD5 in it alone: neither
on names, nor on the order of files, nor on chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "valid", "test")
VALID_FROM, TEST_FROM = 0.8, 0.9
LOOPS_AT_A_TIME = 1 << 20


class SongLoops(NamedTuple):
    """Loops of some songs, n of them.

    Attributes:
        md5s: of the songs.
        songs: int (n,), index into ``md5s`` of each loop's song.
        fingerprints: uint64 (n,), see `Grid.fingerprints`.
    """

    md5s: list[str]
    songs: NDArray[np.int64]
    fingerprints: NDArray[np.uint64]


def assign(read: Callable[[], Iterable[SongLoops]], n_loops: int) -> tuple[dict[str, str], int]:
    """The split of each song by its MD5, and how many distinct loops there are.

    Args:
        read: gives all loops of the corpus; called once for every `LOOPS_AT_A_TIME` of them, so
            that memory grows with the songs and not with their loops.
        n_loops: how many there are.
    """
    numbers: dict[str, int] = {}
    links: set[tuple[int, int]] = set()
    n_distinct = 0
    n_pieces = 1 + n_loops // LOOPS_AT_A_TIME
    for piece in range(n_pieces):
        songs, loops = _loops_of_piece(read(), piece, n_pieces, numbers)
        order = np.argsort(loops, kind="stable")
        same = np.flatnonzero(np.diff(loops[order]) == 0)
        n_distinct += len(loops) - len(same)
        pairs = np.stack([songs[order[same]], songs[order[same + 1]]], axis=1)
        links.update((one, other) for one, other in np.unique(pairs, axis=0).tolist())
    names = list(numbers)
    split_of = dict(zip(names, map(split_of_group, smallest_in_group(names, links)), strict=True))
    return split_of, n_distinct


def _loops_of_piece(
    parts: Iterable[SongLoops], piece: int, n_pieces: int, numbers: dict[str, int]
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """Song numbers and fingerprints of the loops that belong to a piece; numbers new songs."""
    songs = [np.zeros(0, dtype=np.int32)]
    loops = [np.zeros(0, dtype=np.uint64)]
    for part in parts:
        in_corpus = [numbers.setdefault(md5, len(numbers)) for md5 in part.md5s]
        here = part.fingerprints % np.uint64(n_pieces) == piece
        songs.append(np.array(in_corpus, dtype=np.int32)[part.songs[here]])
        loops.append(part.fingerprints[here])
    return np.concatenate(songs), np.concatenate(loops)


def smallest_in_group(names: list[str], links: Iterable[tuple[int, int]]) -> Iterator[str]:
    """For each name the smallest one that links lead to (union-find, the smaller name as root)."""
    root = list(range(len(names)))

    def find(node: int) -> int:
        while root[node] != node:
            root[node] = node = root[root[node]]
        return node

    for one, other in links:
        low, high = sorted((find(one), find(other)), key=names.__getitem__)
        root[high] = low
    return (names[find(node)] for node in range(len(names)))


def split_of_group(key: str) -> str:
    """80 % train, 10 % valid, 10 % test, by a group's smallest MD5 (hexadecimal)."""
    place = int(key[:8], 16) / 2**32
    return "train" if place < VALID_FROM else "valid" if place < TEST_FROM else "test"
