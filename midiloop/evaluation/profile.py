"""What is measured of each loop of a set, or of a sample of its songs where the set is large.

A sample holds whole songs, those whose names have the smallest hashes, so that it depends neither
on the order of the loops nor on the pieces they come in. Memory is that of the sample, however many
loops there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.common import files
from midiloop.errors import LoopError, counted
from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics import form, paper
from midiloop.metrics.bits import Bits, as_bits
from midiloop.metrics.features import FEATURES
from midiloop.metrics.paper import Measure, Values

MAX_LOOPS = 1 << 18  # of a set; beyond that, songs are sampled
MIN_SONGS = 4  # so that each half of a reference has two
PIECE = 8_192  # loops that are looked at together
SLACK = 1.125  # how far beyond its limit a sample grows before it is cut

OF_ONE_LOOP: dict[str, Measure] = {
    **paper.OF_ONE_LOOP,
    "FND kick": partial(paper.first_note_drum, drums=("kick",)),
    **FEATURES,
}
OF_FORM = tuple(f"{name} {side}" for name in form.ROWS for side in form.Share._fields)


class LoopSet(NamedTuple):
    """Loops to judge, n of them.

    >>> import midiloop, numpy as np
    >>> stand_alone = midiloop.LoopSet(np.zeros((20, 128, 93), bool))

    Attributes:
        rolls: bool (n, steps, columns), or their bits.
        songs: the song of each, (n,) of any type that sorts; None where each stands alone, as
            generated loops do.
    """

    rolls: Roll | Bits
    songs: NDArray[Any] | None = None


class Profile(NamedTuple):
    """What is measured of each of n loops; they are in an order that no shuffling changes.

    Attributes:
        songs: int (n,), the song of each loop, numbered from 0.
        fingerprints: uint64 (n,).
        values: float (n,) for each name in `OF_ONE_LOOP`, and in `OF_FORM` what each share of
            `form` is made of; of those that the grid has no drum for there are none.
        by_song: whether the songs are known; otherwise each loop stands alone.
        of_loops: how many loops the set has; more than n where its songs were sampled.
        known: uint64, ascending: of the fingerprints that were sought, those that any loop of the
            set has, whether it was sampled or not. All of ``fingerprints`` where none were sought.
    """

    songs: NDArray[np.int64]
    fingerprints: NDArray[np.uint64]
    values: dict[str, Values]
    by_song: bool
    of_loops: int
    known: NDArray[np.uint64]

    @property
    def n_songs(self) -> int:
        """How many songs there are."""
        return int(self.songs.max()) + 1


def profile(
    sets: Iterable[LoopSet],
    grid: Grid = LOOP,
    *,
    limit: int = MAX_LOOPS,
    sought: NDArray[np.uint64] | None = None,
) -> Profile:
    """Measure the loops of one set that comes in pieces; all of them name songs, or none does.

    Songs are sampled where there are over ``limit`` loops: in the order of their hashes, up to the
    one with which ``limit`` is reached. Loops that stand alone are songs whose hash is their
    fingerprint.

    Args:
        sought: fingerprints to look for among all loops, see `Profile.known`.

    Raises:
        LoopError: there are no loops, or they are of another shape.
    """
    sample, search = _Sample(limit), None if sought is None else _Search(sought)
    n_loops, by_song = 0, False
    for bits, songs in _pieces(sets, grid):
        n_loops += len(bits)
        by_song = songs is not None
        if search:
            search.look_at(grid.fingerprints(bits.packed))
        sample.add(bits, songs)
    if not n_loops:
        raise LoopError(paper.NO_LOOPS)
    found = sample.columns()
    fingerprints, keys = found.pop("fingerprint"), found.pop("key")
    if by_song:
        codes = sample.song_numbers(keys)
        order = np.lexsort((fingerprints, codes))
        codes = codes[order]
    else:
        order = np.argsort(fingerprints, kind="stable")
        codes = np.arange(len(order), dtype=np.int64)
    # each popped, so that no measure is held twice for long
    values = {name: found.pop(name)[order] for name in (*OF_ONE_LOOP, *OF_FORM) if name in found}
    known = search.found if search else np.unique(fingerprints)
    return Profile(codes, fingerprints[order], values, by_song, n_loops, known)


def _pieces(sets: Iterable[LoopSet], grid: Grid) -> Iterator[tuple[Bits, NDArray[Any] | None]]:
    """Loops in pieces of at most `PIECE`, checked."""
    for rolls, songs in sets:
        if songs is not None and len(songs) != len(rolls):
            raise LoopError(
                f"{counted(len(rolls), 'loop')}, but {counted(len(songs), 'song')}; name the "
                "song of each"
            )
        bits = rolls if isinstance(rolls, Bits) else _bits(rolls, grid)
        if bits.grid != grid:
            raise LoopError(
                "the loops are on another grid than what they are judged beside "
                f"({files.shortened(bits.grid.difference(grid), 200)}); give loops of one grid"
            )
        for start in range(0, len(rolls), PIECE):
            at = slice(start, start + PIECE)
            yield Bits(bits.packed[at], grid), None if songs is None else songs[at]


def _bits(rolls: Roll, grid: Grid) -> Bits:
    if rolls.ndim != 3:
        raise LoopError(f"expected rolls (n, steps, columns), got {rolls.shape}; stack them")
    for roll in rolls[:1]:
        grid.check(roll)
    return as_bits(rolls, grid)


class _Sample:
    """Loops of the songs with the smallest keys, and what is measured of them."""

    def __init__(self, limit: int) -> None:
        self._limit, self._full = limit, int(SLACK * limit)
        self._n = 0
        self._last = np.uint64(2**64 - 1)  # the largest key that belongs to the sample
        self._names: dict[int, Any] = {}  # of songs, by their keys
        self._columns: dict[str, list[NDArray[Any]]] = {
            name: [] for name in ("key", "fingerprint", *OF_ONE_LOOP, *OF_FORM)
        }

    def add(self, bits: Bits, songs: NDArray[Any] | None) -> None:
        """Measure those of n loops that belong to the sample; see `LoopSet`."""
        keys = bits.grid.fingerprints(bits.packed) if songs is None else self._keys_of(songs)
        kept = np.flatnonzero(keys <= self._last)
        if len(kept) < len(keys):
            bits, keys = Bits(bits.packed[kept], bits.grid), keys[kept]
        fingerprints = keys if songs is None else bits.grid.fingerprints(bits.packed)
        self._columns["key"].append(keys)
        self._columns["fingerprint"].append(fingerprints)
        for piece in bits.pieces():
            for name, measure in OF_ONE_LOOP.items():
                self._columns[name].append(measure(piece, bits.grid))
            for name, share in form.measure(piece, bits.grid).items():
                for side, values in share._asdict().items():
                    self._columns[f"{name} {side}"].append(values.astype(np.float32))
        self._n += len(keys)
        if self._n > self._full:
            self._cut()

    def _keys_of(self, songs: NDArray[Any]) -> NDArray[np.uint64]:
        """The hash of the song of each loop, uint64 (n,)."""
        found, inverse = np.unique(songs, return_inverse=True)
        names = found.tolist()
        keys = np.array([_hash(name) for name in names], dtype=np.uint64)
        for at in np.flatnonzero(keys <= self._last).tolist():
            self._names[int(keys[at])] = names[at]
        return keys[inverse]

    def _cut(self) -> None:
        """Leave out the songs that come after the one with which the limit is reached."""
        keys = np.concatenate(self._columns["key"])
        songs = np.unique(keys)
        if len(songs) >= MIN_SONGS:
            reached = np.partition(keys, self._limit - 1)[self._limit - 1]
            self._last = max(reached, songs[MIN_SONGS - 1])
            kept = np.flatnonzero(keys <= self._last)
            self._names = {key: name for key, name in self._names.items() if key <= self._last}
            for name, pieces in self._columns.items():
                self._columns[name] = [np.concatenate(pieces)[kept]] if pieces else []
            self._n = len(kept)
        self._full = int(SLACK * max(self._n, self._limit))

    def columns(self) -> dict[str, NDArray[Any]]:
        """Key, fingerprint and measures of each loop of the sample, which ends with this."""
        if self._n > self._limit:
            self._cut()
        names = [name for name, pieces in self._columns.items() if pieces]
        return {name: np.concatenate(self._columns.pop(name)) for name in names}

    def song_numbers(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The song of each loop, int (n,), numbered from 0 in the order of their names."""
        songs, inverse = np.unique(keys, return_inverse=True)
        names = np.array([self._names[key] for key in songs.tolist()])
        ranks: NDArray[np.int64] = np.argsort(np.argsort(names))
        return ranks[inverse]


def _hash(name: Any) -> int:
    data = str(name).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class _Search:
    """Which of some fingerprints come by."""

    def __init__(self, sought: NDArray[np.uint64]) -> None:
        self._sought = np.unique(sought)
        self._seen = np.zeros(len(self._sought), dtype=np.bool_)

    def look_at(self, fingerprints: NDArray[np.uint64]) -> None:
        """Mark those that are sought."""
        at = np.searchsorted(self._sought, fingerprints).clip(max=len(self._sought) - 1)
        self._seen[at[self._sought[at] == fingerprints]] = True

    @property
    def found(self) -> NDArray[np.uint64]:
        """Those that came by, ascending."""
        return self._sought[self._seen]
