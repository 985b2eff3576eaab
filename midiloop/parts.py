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
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from midiloop.grid import Grid
from midiloop.mined import Counts, MinedSong, Reject
from midiloop.store import (
    FORMAT,
    FORMAT_VERSION,
    REJECTS,
    SPLITS,
    as_numpy,
    numbers,
    schema,
    strings,
)

PARTS_PER_SHARD = 32
VALID_FROM, TEST_FROM = 0.8, 0.9


def write_part(
    path: Path, songs: Sequence[MinedSong], rejects: Sequence[Reject], covers: str, grid: Grid
) -> None:
    """Commit one batch: it stands under its name whole, or not at all.

    Args:
        covers: what the batch holds, to recognise it by when a run resumes.
    """
    none = np.zeros((0, grid.packed_bytes), dtype=np.uint8)
    rolls = np.concatenate([s.rolls for s in songs] or [none])
    song = numbers(np.repeat(np.arange(len(songs)), [len(s.start_bars) for s in songs]), pa.int64())
    roll_type = pa.binary(grid.packed_bytes)

    def joined(kind: pa.DataType, field: str) -> pa.Array:
        values = [getattr(s, field) for s in songs]
        return numbers(np.concatenate(values or [np.zeros(0)]), kind)

    columns = {
        "roll": pa.FixedSizeBinaryArray.from_buffers(
            roll_type, len(rolls), [None, pa.py_buffer(rolls)]
        ),
        "song": strings([s.file for s in songs]).take(song),
        "song_md5": strings([s.md5 for s in songs]).take(song),
        "start_bar": joined(pa.int32(), "start_bars"),
        "tempo_bpm": joined(pa.float64(), "tempos_bpm"),
        "bar_distance_cells": joined(pa.int32(), "distances_cells"),
        "fingerprint": numbers(grid.fingerprints(rolls), pa.uint64()),
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


def part_covers(path: Path) -> str | None:
    """What the part at ``path`` covers; None where there is no such part."""
    if not path.exists():
        return None
    return str(_open_part(path).schema.metadata[b"covers"].decode())


def _open_part(path: Path) -> Any:
    return pa.ipc.open_file(pa.OSFile(str(path), "rb"))


def part_counts(path: Path) -> Counts:
    """Songs with loops, loops, and rejects by reason in one part."""
    part = _open_part(path)
    loops = sum(part.get_batch(i).num_rows for i in range(part.num_record_batches))
    rejects = Counter(reject.reason for reject in _part_rejects(part))
    return Counts(int(part.schema.metadata[b"songs"]), loops, rejects)


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
        pa.table([strings([r[field] for r in rejects]) for field in range(3)], REJECTS),
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
        in_part = [
            number_of.setdefault(md5, len(number_of)) for md5 in column.dictionary.to_pylist()
        ]
        songs.append(np.array(in_part, dtype=np.int64)[as_numpy(column.indices)])
        hashes.append(as_numpy(table["fingerprint"].combine_chunks()))
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
    names = strings([split_of[md5] for md5 in md5s.dictionary.to_pylist()])
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
