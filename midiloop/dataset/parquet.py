"""The loop dataset on disk: Parquet shards, rejects and a manifest.

A finished dataset is a folder::

    loops/train-00000.parquet …   one row a loop, zstd; opens in pandas, DuckDB, Polars, HF datasets
    rejects.parquet               one row for each file that gave none: file, reason, detail
    manifest.json                 format, rules, grid, counts, and the shards with their hashes
    README.md                     which shards are which split, for `datasets.load_dataset`

What is read is what was written: every shard is compared with the manifest's SHA-256 first, and
every page with its checksum. Datasets whose columns other programs wrote are cast where no value
changes, and refused where one does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from midiloop.common import files
from midiloop.dataset import manifest
from midiloop.dataset.manifest import REMEDY
from midiloop.dataset.records import Reject
from midiloop.dataset.splits import SPLITS
from midiloop.errors import LoopError, counted
from midiloop.grid import LOOP, Grid, Roll, grid_from_json
from midiloop.midi import performance
from midiloop.midi.performance import Performance

NUMPY_KINDS = {
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.uint64(): np.uint64,
    pa.float64(): np.float64,
}

REJECTS = pa.schema([("file", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def schema(grid: Grid = LOOP, *, played: bool = False) -> pa.Schema:
    """Columns of a loop dataset.

    Args:
        played: it says how its loops are played.
    """
    performance = [("onset_velocity", pa.binary()), ("onset_offset", pa.binary())]
    return pa.schema(
        [
            ("roll", pa.binary(grid.packed_bytes)),
            ("song", pa.string()),
            ("song_md5", pa.string()),
            ("start_bar", pa.int32()),
            ("tempo_bpm", pa.float64()),
            ("bar_distance_cells", pa.int32()),
            ("split", pa.string()),
            *(performance if played else []),
        ]
    )


# Arrow's own conversions load pandas wherever it is installed: 0.2 s and 40 MB in every process.
# These do not.


def strings(values: Sequence[str]) -> pa.Array:
    """An Arrow array of strings."""
    encoded = [value.encode() for value in values]
    return pa.StringArray.from_buffers(len(encoded), *_joined(encoded))


def byte_strings(values: Sequence[bytes]) -> pa.Array:
    """An Arrow array of bytes, each of a length of its own."""
    return pa.BinaryArray.from_buffers(pa.binary(), len(values), [None, *_joined(values)])


def _joined(values: Sequence[bytes]) -> list[pa.Buffer]:
    """Where each value ends, and all of them."""
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return [pa.py_buffer(ends), pa.py_buffer(b"".join(values))]


def blobs(values: NDArray[np.uint8]) -> pa.Array:
    """An Arrow array of rows of bytes (n, size), all of one size."""
    data = pa.py_buffer(np.ascontiguousarray(values))
    kind = pa.binary(values.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, data])


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


@dataclass(frozen=True)
class LoopBatch:
    """Consecutive loops of a dataset, n of them, as Arrow holds them.

    Attributes:
        grid: of their rolls.
        records: their columns, of `schema`, none of them missing.
    """

    grid: Grid
    records: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.records.num_rows)

    @property
    def packed(self) -> NDArray[np.uint8]:
        """Their bits: uint8 (n, packed_bytes), see `Grid.pack`."""
        size = self.grid.packed_bytes
        column = self.records["roll"]
        if not len(column):
            return np.zeros((0, size), np.uint8)
        data = np.frombuffer(column.buffers()[1], np.uint8)
        return data[column.offset * size :][: len(column) * size].reshape(-1, size)

    @cached_property
    def rolls(self) -> Roll:
        """Bool (n, steps, columns)."""
        return self.grid.unpack(self.packed)

    @cached_property
    def songs(self) -> list[str]:
        """Path of each loop's song inside its source."""
        return self._strings("song")

    @cached_property
    def md5s(self) -> list[str]:
        """MD5 of the bytes of each loop's song."""
        return self._strings("song_md5")

    @cached_property
    def splits(self) -> list[str]:
        """Split of each loop, one of `splits.SPLITS`."""
        return self._strings("split")

    @property
    def start_bars(self) -> NDArray[np.int32]:
        """Bar of its song that each starts on, int (n,)."""
        return as_numpy(self.records["start_bar"])

    @property
    def tempos_bpm(self) -> NDArray[np.float64]:
        """Quarter notes a minute, float (n,)."""
        return as_numpy(self.records["tempo_bpm"])

    @property
    def distances_cells(self) -> NDArray[np.int32]:
        """Cells in which the first bar and the one half-way differ, int (n,)."""
        return as_numpy(self.records["bar_distance_cells"])

    @cached_property
    def performances(self) -> list[Performance] | None:
        """How each loop is played; None where the dataset does not say it.

        Raises:
            LoopError: a loop has not a velocity and an offset for each of its onsets.
        """
        if "onset_velocity" not in self.records.schema.names:
            return None
        columns = zip(
            self.rolls,
            self.records["onset_velocity"].to_pylist(),
            self.records["onset_offset"].to_pylist(),
            strict=True,
        )
        found = []
        for roll, velocities, offsets in columns:
            played = Performance(
                np.frombuffer(velocities, np.uint8), np.frombuffer(offsets, np.int8)
            )
            performance.check(played, roll, self.grid)
            found.append(played)
        return found

    def _strings(self, name: str) -> list[str]:
        found: list[str] = self.records[name].to_pylist()
        return found

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> LoopBatch:
        """The loops at ``index``."""
        at = numbers(np.asarray(index, dtype=np.int64), pa.int64())
        return LoopBatch(self.grid, self.records.take(at))

    def with_rolls(self, rolls: Roll) -> LoopBatch:
        """The same loops with other rolls, bool (n, steps, columns)."""
        at = self.records.schema.get_field_index("roll")
        columns = self.records.columns
        columns[at] = blobs(self.grid.pack(rolls))
        records = pa.RecordBatch.from_arrays(columns, schema=self.records.schema)
        return LoopBatch(self.grid, records)

    @staticmethod
    def joined(batches: Sequence[LoopBatch]) -> LoopBatch:
        """All loops of several batches, at least one, of one grid."""
        table = pa.Table.from_batches([batch.records for batch in batches]).combine_chunks()
        found = table.to_batches() or [batches[0].records.slice(0, 0)]
        return LoopBatch(batches[0].grid, found[0])


@dataclass(frozen=True)
class LoopDataset:
    """A finished dataset, read batch by batch.

    >>> import midiloop, numpy as np
    >>> from pathlib import Path
    >>> from midiloop.common.engine import Inline
    >>> roll = np.zeros((256, 93), bool)
    >>> roll[::4, [0, 6]] = roll[::2, 20:21] = True
    >>> midiloop.write(midiloop.decode(roll), "long.mid")
    >>> _ = midiloop.extract_corpus([Path("long.mid")], Path("mined"), engine=Inline())
    >>> [batch.rolls.shape for batch in midiloop.LoopDataset(Path("mined")).batches(5)]
    [(5, 128, 93), (4, 128, 93)]

    Loops come in the order of the shards' names, in which other programs read them too: split by
    split, and within a split in the order of the corpus. In datasets of earlier versions all come
    in the order of the corpus.

    Raises:
        LoopError: the folder holds none, or one of another version, or one that is damaged.
    """

    path: Path

    def __post_init__(self) -> None:
        _ = self.manifest

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What ``manifest.json`` says, checked."""
        return manifest.read(self.path)

    @cached_property
    def grid(self) -> Grid:
        """The grid of its loops."""
        return grid_from_json(self.manifest["grid"])

    @property
    def played(self) -> bool:
        """Whether it says how its loops are played; earlier versions did not."""
        return "performance" in self.manifest

    def check_played(self) -> None:
        """Raise `LoopError` unless the dataset says how its loops are played."""
        if not self.played:
            raise LoopError(
                f"{files.printable(self.path)}: dataset without performance columns; extract it "
                "again"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two datasets only if their loops are, in the same order.

        Datasets of earlier versions do not state it: their shards are read for it.

        Raises:
            LoopError: a shard cannot be read.
        """
        return manifest.fingerprint(
            shard.get("sha256") or self._digest(shard) for shard in self.manifest["shards"]
        )

    def check_grid(self, grid: Grid) -> None:
        """Raise `LoopError` unless the loops lie on ``grid``."""
        if self.grid != grid:
            raise LoopError(
                f"{files.printable(self.path)}: its loops are on another grid than is needed here "
                f"({files.shortened(self.grid.difference(grid), 200)}); extract it on that grid"
            )

    def __len__(self) -> int:
        return int(self.manifest["counts"]["loops"])

    def batches(self, size: int = 2048, *, split: str | None = None) -> Iterator[LoopBatch]:
        """All loops in order, or those of one split, ``size`` at a time at most.

        Raises:
            LoopError: a shard is missing or damaged.
        """
        for shard in self.manifest["shards"]:
            if split is not None and shard.get("split", split) != split:
                continue
            for batch in self._read(shard, size):
                if split is not None:
                    batch = _chosen(batch, _matches(batch.records["split"], split))
                if len(batch):
                    yield batch

    def _read(self, shard: dict[str, Any], size: int) -> Iterator[LoopBatch]:
        """The loops of a shard, checked."""
        wanted = schema(self.grid, played=self.played)
        name = files.printable(self.path / shard["file"])
        if "sha256" in shard and shard["sha256"] != self._digest(shard):
            raise LoopError(
                f"{name}: not the file that was written here (SHA-256); copy it again, or {REMEDY}"
            )
        try:
            with open_parquet(self.path / shard["file"]) as file:
                n_rows = file.metadata.num_rows
                if n_rows != shard["loops"]:
                    raise LoopError(
                        f"{counted(n_rows, 'row')}, the manifest says {shard['loops']:,}"
                    )
                for batch in read_batches(file, wanted, size):
                    records = cast(batch, wanted)
                    check_values(records, self.grid)
                    if shard.get("split") and not _matches(records["split"], shard["split"]).all():
                        raise LoopError(f"a loop that is not of split {shard['split']}")
                    yield LoopBatch(self.grid, records)
        except MemoryError:  # Arrow's own is an ArrowException too, and nothing is damaged
            raise
        except (OSError, pa.ArrowException, LoopError) as error:
            cause = files.shortened(str(error).splitlines()[0] if str(error) else "damaged", 200)
            raise LoopError(f"{name}: {cause}; {REMEDY}") from error

    def _digest(self, shard: dict[str, Any]) -> str:
        path = self.path / shard["file"]
        try:
            return files.digest(path)
        except OSError as error:
            raise LoopError(f"{files.printable(path)}: {error.strerror}; {REMEDY}") from error

    def select(
        self,
        *,
        song: str = "*",
        split: str | None = None,
        distinct: bool = False,
        limit: int | None = None,
    ) -> Iterator[LoopBatch]:
        """The loops that match, in order.

        Args:
            song: pattern that the song's path matches, as in ``"*/funk*.mid"``.
            split: one of `splits.SPLITS`.
            distinct: only the first of equal loops.
            limit: largest number of loops.
        """
        seen: set[int] = set()
        left = len(self) if limit is None else limit
        for batch in self.batches(split=split):
            kept = _matches(batch.records["song"], song)
            if distinct:
                prints = self.grid.fingerprints(batch.packed).tolist()
                for at in np.flatnonzero(kept).tolist():
                    kept[at] = prints[at] not in seen
                    seen.add(prints[at])
            kept &= np.cumsum(kept) <= left
            left -= int(kept.sum())
            if kept.any():
                yield _chosen(batch, kept)
            if left == 0:
                return

    def spread(
        self,
        n: int,
        *,
        per_song: int | None = None,
        song: str = "*",
        split: str | None = None,
        distinct: bool = False,
    ) -> Iterator[LoopBatch]:
        """``n`` loops (fewer where there are fewer), spread over the songs that match, in order.

        Every song gives its first loops, the same number as any other or one more. Where more songs
        than ``n`` match, ``n`` of them give their first loop.

        Args:
            per_song: largest number of loops of a song.
            song, split, distinct: as in `select`.
        """
        available: Counter[str] = Counter()
        for batch in self.select(song=song, split=split, distinct=distinct):
            available.update(batch.songs)
        if per_song is not None:
            available = Counter({name: min(per_song, many) for name, many in available.items()})
        left = _shares(available, n)
        for batch in self.select(song=song, split=split, distinct=distinct):
            first = []
            for at, name in enumerate(batch.songs):
                if left.get(name, 0):
                    left[name] -= 1
                    first.append(at)
            if first:
                yield batch.take(first)

    def rejects(self) -> list[Reject]:
        """Every file that gave no loops, in order.

        Raises:
            LoopError: ``rejects.parquet`` is missing or damaged.
        """
        path = self.path / "rejects.parquet"
        try:
            with open_parquet(path) as file:
                batches = [cast(batch, REJECTS) for batch in read_batches(file, REJECTS)]
        except MemoryError:
            raise
        except (OSError, pa.ArrowException, LoopError) as error:
            cause = files.shortened(str(error).splitlines()[0], 200)
            raise LoopError(f"{files.printable(path)}: {cause}; {REMEDY}") from error
        rows = (zip(*batch.to_pydict().values(), strict=True) for batch in batches)
        return [Reject(*row) for batch in rows for row in batch]


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file whose pages are compared with their checksums, where they have any."""
    return pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)


def found_columns(file: pq.ParquetFile, wanted: pa.Schema) -> list[str]:
    """Names of the wanted columns, or `LoopError` where a file has not just one of each."""
    for name in wanted.names:
        if (n_found := file.schema_arrow.names.count(name)) != 1:
            raise LoopError(f"{n_found or 'no'} columns called {name!r}")
    found: list[str] = wanted.names
    return found


def read_batches(
    file: pq.ParquetFile, wanted: pa.Schema, size: int = 2048
) -> Iterator[pa.RecordBatch]:
    """The wanted columns, ``size`` rows at a time; see `found_columns`.

    In this thread alone: where memory does not suffice for more threads, Arrow aborts the process.
    """
    columns = found_columns(file, wanted)
    yield from file.iter_batches(size, columns=columns, use_threads=False)


def cast(batch: pa.RecordBatch, wanted: pa.Schema) -> pa.RecordBatch:
    """The wanted columns in their types, or `LoopError` where a value is missing or would change.

    Other programs write numbers of other widths, and their own kinds of strings and bytes.
    """
    columns = []
    for field in wanted:
        column = batch.column(field.name)
        if column.null_count:
            raise LoopError(f"a value is missing in column {field.name!r}")
        if column.type != field.type:
            if not _is_alike(column.type, field.type):
                raise LoopError(f"column {field.name!r} is {column.type}, not {field.type}")
            column = column.cast(field.type)
        if field.type == pa.string():
            column.validate(full=True)  # of bytes that are no UTF-8
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=wanted)


def _is_alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(found):
        found = found.value_type
    if wanted == pa.string():
        return bool(types.is_large_string(found) or _is_view(found, "string") or found == wanted)
    if types.is_fixed_size_binary(wanted) or types.is_binary(wanted):
        kinds = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
        return any(kind(found) for kind in kinds) or _is_view(found, "binary")
    return bool(types.is_integer(found) or types.is_floating(found))


def _is_view(found: pa.DataType, kind: str) -> bool:
    return str(found) == f"{kind}_view"


def check_values(batch: pa.RecordBatch, grid: Grid) -> None:
    """Raise `LoopError` if a loop has an impossible value."""
    ranges = {
        "start_bar": (0, np.inf),
        "tempo_bpm": (np.nextafter(0, 1), np.finfo(np.float64).max),
        "bar_distance_cells": (0, grid.cells_per_bar),
    }
    for name, (lowest, highest) in ranges.items():
        values = as_numpy(batch[name])
        bad = values[~((values >= lowest) & (values <= highest))]
        if len(bad):
            raise LoopError(f"column {name!r} cannot hold {bad[0]}")
    if "onset_velocity" in batch.schema.names:
        _check_performances(batch)
    if not {*batch["split"].dictionary_encode().dictionary.to_pylist()} <= {*SPLITS}:
        raise LoopError("a split that is not one of " + ", ".join(SPLITS))
    unused = -(grid.steps * grid.columns) % 8
    if unused and (LoopBatch(grid, batch).packed[:, -1] & (2**unused - 1)).any():
        raise LoopError("a roll with cells beyond its last")


def _check_performances(batch: pa.RecordBatch) -> None:
    """Raise `LoopError` where a loop's velocities are none, or not as many as its offsets."""
    velocities, offsets = batch["onset_velocity"], batch["onset_offset"]
    ends = _ends(velocities)
    if not np.array_equal(np.diff(ends), np.diff(_ends(offsets))):
        raise LoopError("a loop with another number of velocities than of offsets")
    data = velocities.buffers()[2]
    values = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]
    if len(values) and not 1 <= values.min() <= values.max() <= performance.MAX_VELOCITY:
        raise LoopError("column 'onset_velocity' holds what is not from 1 to 127")


def _ends(column: pa.Array) -> NDArray[np.int32]:
    """Where the values of a column of bytes lie: n + 1 places in its data."""
    if not len(column):
        return np.zeros(1, np.int32)
    return np.frombuffer(column.buffers()[1], np.int32)[column.offset :][: len(column) + 1]


def _matches(column: pa.Array, pattern: str) -> NDArray[np.bool_]:
    """Whether each string of a column matches a pattern, bool (n,)."""
    if pattern == "*":
        return np.ones(len(column), dtype=np.bool_)
    encoded = column.dictionary_encode()
    found = [fnmatchcase(name, pattern) for name in encoded.dictionary.to_pylist()]
    if not found:
        return np.zeros(0, dtype=np.bool_)
    matching: NDArray[np.bool_] = np.array(found, dtype=np.bool_)[as_numpy(encoded.indices)]
    return matching


def _chosen(batch: LoopBatch, kept: NDArray[np.bool_]) -> LoopBatch:
    return batch if kept.all() else batch.take(np.flatnonzero(kept))


def _shares(available: Counter[str], n: int) -> dict[str, int]:
    """How many of ``n`` loops to take of each song: one of each, round by round.

    Songs of a round for which there are too few left are evenly spaced.
    """
    shares = dict.fromkeys(available, 0)
    while n and (names := [name for name in shares if shares[name] < available[name]]):
        n_taken = min(n, len(names))
        picks = np.linspace(0, len(names) - 1, n_taken).round().astype(int)
        for pick in picks.tolist():
            shares[names[pick]] += 1
        n -= n_taken
    return shares
