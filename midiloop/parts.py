"""Parts: what `extract` commits while it runs, and how a dataset is made of them.

A *part* holds what one batch of files gave: an Arrow file with the columns of the dataset less the
split, which only the whole corpus can tell, and with the batch's rejects in its metadata.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from midiloop.grid import Grid
from midiloop.store import FORMAT, FORMAT_VERSION, REJECTS, SPLITS, Reject, schema

PARTS_PER_SHARD = 16
VALID_FROM, TEST_FROM = 0.8, 0.9


class MinedSong(NamedTuple):
    """The loops of one song, n of them.

    Attributes:
        file: path inside the corpus.
        md5: of the file's bytes, hexadecimal.
        start_bars: int (n,), ascending.
        tempos_bpm: float (n,), median over the loop's steps.
        distances_cells: int (n,), cells in which bars 1 and 5 differ.
        rolls: uint8 (n, packed_bytes), see `Grid.pack`.
    """

    file: str
    md5: str
    start_bars: NDArray[np.int64]
    tempos_bpm: NDArray[np.float64]
    distances_cells: NDArray[np.int64]
    rolls: NDArray[np.uint8]


def write_part(
    path: Path, songs: Sequence[MinedSong], rejects: Sequence[Reject], covers: str, grid: Grid
) -> None:
    """Commit one batch: it stands under its name whole, or not at all.

    Args:
        covers: what the batch holds, to recognise it by when a run resumes.
    """
    rolls = np.concatenate([song.rolls for song in songs] or [_no_rolls(grid)])
    counts = [len(song.start_bars) for song in songs]
    columns = {
        "roll": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(grid.packed_bytes), len(rolls), [None, pa.py_buffer(rolls)]
        ),
        "song": _repeated([song.file for song in songs], counts),
        "song_md5": _repeated([song.md5 for song in songs], counts),
        "start_bar": _joined([song.start_bars for song in songs], pa.int32()),
        "tempo_bpm": _joined([song.tempos_bpm for song in songs], pa.float64()),
        "bar_distance_cells": _joined([song.distances_cells for song in songs], pa.int32()),
        "fingerprint": pa.array(grid.fingerprints(rolls)),
    }
    metadata = {"covers": covers, "songs": str(len(songs)), "rejects": json.dumps(rejects)}
    table = pa.table(columns).replace_schema_metadata(metadata)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, table.schema, options=options) as writer,
    ):
        writer.write_table(table)
    temporary.replace(path)


def _no_rolls(grid: Grid) -> NDArray[np.uint8]:
    return np.zeros((0, grid.packed_bytes), dtype=np.uint8)


def _repeated(values: list[str], counts: list[int]) -> pa.Array:
    index = np.repeat(np.arange(len(values)), counts)
    return pa.array(values, pa.string()).take(pa.array(index))


def _joined(arrays: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(np.concatenate(arrays or [np.zeros(0)]).astype(kind.to_pandas_dtype()))


def part_covers(path: Path) -> str | None:
    """What the part at ``path`` covers; None where there is no such part."""
    if not path.exists():
        return None
    return str(_open_part(path).schema.metadata[b"covers"].decode())


def _open_part(path: Path) -> Any:
    return pa.ipc.open_file(pa.OSFile(str(path), "rb"))


class PartCounts(NamedTuple):
    """What one part adds to the totals."""

    songs: int
    loops: int
    rejects: Counter[str]


def part_counts(path: Path) -> PartCounts:
    """Songs with loops, loops, and rejects by reason in one part."""
    part = _open_part(path)
    loops = sum(part.get_batch(i).num_rows for i in range(part.num_record_batches))
    rejects = Counter(reject.reason for reject in _part_rejects(part))
    return PartCounts(int(part.schema.metadata[b"songs"]), loops, rejects)


def _part_rejects(part: Any) -> list[Reject]:
    return [Reject(*row) for row in json.loads(part.schema.metadata[b"rejects"])]


def seal(
    parts: Sequence[Path], out: Path, provenance: dict[str, Any], *, grid: Grid, threads: int
) -> dict[str, Any]:
    """Make the dataset ``out`` of all parts, in their order, and return its manifest.

    The dataset is built beside the parts and renamed, so that it is there whole or not at all.

    Args:
        provenance: what the manifest says of where the loops come from.
        threads: shards that are written at one time.
    """
    building = parts[0].parent / "sealed"
    shutil.rmtree(building, ignore_errors=True)
    (building / "loops").mkdir(parents=True)
    split_of, n_distinct = _splits(parts)
    groups = [parts[at : at + PARTS_PER_SHARD] for at in range(0, len(parts), PARTS_PER_SHARD)]
    paths = [building / "loops" / f"{number:05d}.parquet" for number in range(len(groups))]
    with ThreadPoolExecutor(threads) as pool:
        write = partial(_write_shard, split_of=split_of, schema=schema(grid))
        split_counts = list(pool.map(write, paths, groups))
    rejects = [reject for part in parts for reject in _part_rejects(_open_part(part))]
    pq.write_table(
        pa.Table.from_pylist([reject._asdict() for reject in rejects], REJECTS),
        building / "rejects.parquet",
        compression="zstd",
    )
    n_songs = sum(part_counts(part).songs for part in parts)
    by_reason = Counter(reject.reason for reject in rejects)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **provenance,
        "counts": {
            "files": n_songs + len(rejects),
            "songs": n_songs,
            "loops": sum(counts.total() for counts in split_counts),
            "distinct_loops": n_distinct,
            "rejects": dict(sorted(by_reason.items(), key=lambda entry: (-entry[1], entry[0]))),
            "splits": {name: sum(counts[name] for counts in split_counts) for name in SPLITS},
        },
        "shards": [
            {"file": f"loops/{path.name}", "loops": counts.total()}
            for path, counts in zip(paths, split_counts, strict=True)
        ],
    }
    (building / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    building.rename(out)
    return manifest


def _splits(parts: Sequence[Path]) -> tuple[dict[str, str], int]:
    """The split of each song by its md5, and how many distinct loops there are.

    Songs that share a loop are one group, and a group goes to one side; which one depends on the
    smallest md5 in it, so neither on names nor on the order of files.
    """
    number_of: dict[str, int] = {}
    songs, hashes = [], []
    wanted = pa.ipc.IpcReadOptions(included_fields=[2, 6])
    for path in parts:
        table = pa.ipc.open_file(pa.OSFile(str(path), "rb"), options=wanted).read_all()
        column = table["song_md5"].combine_chunks().dictionary_encode()
        numbers = [
            number_of.setdefault(md5, len(number_of)) for md5 in column.dictionary.to_pylist()
        ]
        songs.append(np.array(numbers, dtype=np.int64)[column.indices.to_numpy()])
        hashes.append(table["fingerprint"].to_numpy())
    song, loop = np.concatenate(songs), np.concatenate(hashes)
    order = np.argsort(loop, kind="stable")
    same = np.flatnonzero(np.diff(loop[order]) == 0)
    links = np.unique(np.stack([song[order[same]], song[order[same + 1]]], axis=1), axis=0)
    md5s = list(number_of)
    keys = _smallest_in_group(md5s, links.tolist())
    n_distinct = len(loop) - len(same)
    return {md5: split_of_group(key) for md5, key in zip(md5s, keys, strict=True)}, n_distinct


def _smallest_in_group(names: list[str], links: list[list[int]]) -> list[str]:
    """For each name the smallest one that links lead to (union-find, the smaller name as root)."""
    root = list(range(len(names)))

    def find(node: int) -> int:
        while root[node] != node:
            root[node] = node = root[root[node]]
        return node

    for one, other in links:
        low, high = sorted((find(one), find(other)), key=names.__getitem__)
        root[high] = low
    return [names[find(node)] for node in range(len(names))]


def split_of_group(key: str) -> str:
    """80 % train, 10 % valid, 10 % test, by a group's smallest md5 (hexadecimal)."""
    place = int(key[:8], 16) / 2**32
    return "train" if place < VALID_FROM else "valid" if place < TEST_FROM else "test"


def _write_shard(
    path: Path, parts: Sequence[Path], *, split_of: dict[str, str], schema: pa.Schema
) -> Counter[str]:
    """Write one shard and return its loops by split."""
    table = pa.concat_tables([_open_part(part).read_all() for part in parts])
    md5s = table["song_md5"].combine_chunks().dictionary_encode()
    names = pa.array([split_of[md5] for md5 in md5s.dictionary.to_pylist()], pa.string())
    splits = names.take(md5s.indices)
    table = table.drop_columns(["fingerprint"]).append_column("split", splits)
    pq.write_table(
        table.replace_schema_metadata(None).cast(schema),
        path,
        compression="zstd",
        use_dictionary=["song", "song_md5", "split"],
        write_statistics=["song", "start_bar", "split"],
    )
    return Counter(splits.to_pylist())
