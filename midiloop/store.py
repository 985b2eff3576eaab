"""The loop dataset on disk: Parquet shards, rejects and a manifest.

A finished dataset is a folder::

    loops/00000.parquet …   one row a loop, zstd; opens in pandas, DuckDB, Polars, HF datasets
    rejects.parquet         one row for each file that gave none: file, reason, detail
    manifest.json           format, rules, grid, counts, and the shards with their rows and hashes
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from midiloop import files
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Grid, Roll
from midiloop.mined import Reject

FORMAT = "midiloop-loops"
FORMAT_VERSION = 1

NUMPY_KINDS = {
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.uint64(): np.uint64,
    pa.float64(): np.float64,
}

REJECTS = pa.schema([("file", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def schema(grid: Grid = LOOP) -> pa.Schema:
    """Columns of a loop dataset."""
    return pa.schema(
        [
            ("roll", pa.binary(grid.packed_bytes)),
            ("song", pa.string()),
            ("song_md5", pa.string()),
            ("start_bar", pa.int32()),
            ("tempo_bpm", pa.float64()),
            ("bar_distance_cells", pa.int32()),
            ("split", pa.string()),
        ]
    )


def fingerprint(shards: Iterable[str]) -> str:
    """What tells a dataset from any other, 32 hexadecimal digits, by its shards' SHA-256."""
    return hashlib.sha256("".join(shards).encode()).hexdigest()[:32]


# Arrow's own conversions load pandas wherever it is installed: 0.2 s and 40 MB in every process.
# These three do not.


def strings(values: Sequence[str]) -> pa.Array:
    """An Arrow array of strings."""
    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    buffers = [pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.StringArray.from_buffers(len(encoded), *buffers)


def numbers(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow array of numbers, none of them missing."""
    data = np.ascontiguousarray(values, dtype=NUMPY_KINDS[kind])
    return pa.Array.from_buffers(kind, len(data), [None, pa.py_buffer(data)])


def as_numpy(column: pa.Array) -> NDArray[Any]:
    """The numbers of an Arrow array, none of them missing."""
    kind = np.dtype(NUMPY_KINDS[column.type])
    if not len(column):
        return np.zeros(0, kind)
    data = column.buffers()[1]
    return np.frombuffer(data, kind, count=len(column), offset=column.offset * kind.itemsize)


class LoopBatch(NamedTuple):
    """Consecutive loops of a dataset, n of them.

    Attributes:
        rolls: bool (n, steps, columns).
        songs, md5s, splits: str, n each.
        start_bars, distances_cells: int (n,).
        tempos_bpm: float (n,).
    """

    rolls: Roll
    songs: list[str]
    md5s: list[str]
    start_bars: NDArray[np.int32]
    tempos_bpm: NDArray[np.float64]
    distances_cells: NDArray[np.int32]
    splits: list[str]

    def __len__(self) -> int:
        return len(self.songs)

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> LoopBatch:
        """The loops at ``index``."""
        at = [int(i) for i in index]
        columns: list[Any] = [
            column[at] if isinstance(column, np.ndarray) else [column[i] for i in at]
            for column in self
        ]
        return LoopBatch(*columns)

    @staticmethod
    def joined(batches: Sequence[LoopBatch]) -> LoopBatch:
        """All loops of several batches, at least one."""
        columns: list[Any] = [
            np.concatenate(column)
            if isinstance(column[0], np.ndarray)
            else list(itertools.chain(*column))
            for column in zip(*batches, strict=True)
        ]
        return LoopBatch(*columns)


@dataclass(frozen=True)
class LoopDataset:
    """A finished dataset, read batch by batch.

    Raises:
        LoopError: the folder holds none, or one of another version.
    """

    path: Path
    grid: Grid = LOOP

    def __post_init__(self) -> None:
        if self.manifest.get("format") != FORMAT:
            raise LoopError(f"{self.path}: not a loop dataset; make one with 'midiloop extract'")
        if self.manifest["format_version"] != FORMAT_VERSION:
            raise LoopError(
                f"{self.path}: format version {self.manifest['format_version']}, this midiloop "
                f"reads {FORMAT_VERSION}; extract it again"
            )

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What ``manifest.json`` says."""
        path = self.path / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise LoopError(
                f"{self.path}: no manifest.json; give a folder that 'midiloop extract' wrote"
            ) from None
        except (OSError, ValueError) as error:
            raise LoopError(f"{path}: {error}; extract the dataset again") from error
        return manifest if isinstance(manifest, dict) else {}

    @cached_property
    def fingerprint(self) -> str:
        """The same for two datasets only where their loops are, in the same order.

        Datasets of earlier versions do not state it: their shards are read for it.

        Raises:
            LoopError: a shard cannot be read.
        """
        return fingerprint(
            shard.get("sha256") or self._digest(shard["file"]) for shard in self.manifest["shards"]
        )

    def _digest(self, file: str) -> str:
        path = self.path / file
        try:
            return files.digest(path)
        except OSError as error:
            raise LoopError(f"{path}: {error.strerror}; extract the dataset again") from error

    def __len__(self) -> int:
        return int(self.manifest["counts"]["loops"])

    def batches(self, size: int = 2048) -> Iterator[LoopBatch]:
        """All loops in order, ``size`` at a time at most.

        Raises:
            LoopError: a shard is missing or damaged.
        """
        for batch in self._read(size, None):
            packed = np.frombuffer(b"".join(batch["roll"].to_pylist()), np.uint8)
            yield LoopBatch(
                self.grid.unpack(packed.reshape(len(batch), self.grid.packed_bytes)),
                batch["song"].to_pylist(),
                batch["song_md5"].to_pylist(),
                as_numpy(batch["start_bar"]),
                as_numpy(batch["tempo_bpm"]),
                as_numpy(batch["bar_distance_cells"]),
                batch["split"].to_pylist(),
            )

    def _read(self, size: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        for shard in self.manifest["shards"]:
            path = self.path / shard["file"]
            try:
                with pq.ParquetFile(path) as file:
                    yield from file.iter_batches(size, columns=columns)
            except (OSError, pa.ArrowInvalid, KeyError) as error:
                cause = str(error).splitlines()[0]
                raise LoopError(f"{path}: {cause}; extract the dataset again") from error

    def select(
        self,
        *,
        song: str = "*",
        split: str | None = None,
        distinct: bool = False,
        limit: int | None = None,
    ) -> Iterator[LoopBatch]:
        """Loops in order, less those that a choice leaves out.

        Args:
            song: pattern that the song's path matches, as in ``"*/funk*.mid"``.
            split: one of `splits.SPLITS`.
            distinct: only the first of loops that are the same.
            limit: at most so many.
        """
        seen: set[int] = set()
        left = len(self) if limit is None else limit
        for batch in self.batches():
            kept = np.array([fnmatchcase(name, song) for name in batch.songs], dtype=np.bool_)
            kept &= np.array([split in (None, name) for name in batch.splits], dtype=np.bool_)
            if distinct:
                prints = self.grid.fingerprints(self.grid.pack(batch.rolls)).tolist()
                for at in np.flatnonzero(kept).tolist():
                    kept[at] = prints[at] not in seen
                    seen.add(prints[at])
            kept &= np.cumsum(kept) <= left
            left -= int(kept.sum())
            if kept.any():
                yield batch.take(np.flatnonzero(kept))
            if left == 0:
                return

    def spread(self, n: int, *, song: str = "*", split: str | None = None) -> LoopBatch:
        """The first loop of each of ``n`` songs (fewer where there are fewer), evenly spaced."""
        names = self._songs(song, split)
        n = min(n, len(names))
        picks = np.linspace(0, len(names) - 1, n).round().astype(int)
        chosen = {names[pick] for pick in picks.tolist()}
        found: list[LoopBatch] = []
        for batch in self.batches():
            first = []
            for at, name in enumerate(batch.songs):
                if name in chosen:
                    chosen.discard(name)
                    first.append(at)
            found.append(batch.take(first))
        return LoopBatch.joined(found)

    def _songs(self, song: str, split: str | None) -> list[str]:
        """Songs that match, each once, in order."""
        names: dict[str, None] = {}
        for batch in self._read(65_536, ["song", "split"]):
            rows = zip(batch["song"].to_pylist(), batch["split"].to_pylist(), strict=True)
            names |= {n: None for n, s in rows if split in (None, s) and fnmatchcase(n, song)}
        return list(names)

    def rejects(self) -> list[Reject]:
        """Every file that gave no loops, in order."""
        table = pq.read_table(self.path / "rejects.parquet")
        return [Reject(*row) for row in zip(*table.to_pydict().values(), strict=True)]
