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

from midiloop import splits
from midiloop.grid import Grid
from midiloop.mined import Counts, MinedSong, Reject
from midiloop.splits import SongLoops
from midiloop.store import (
    FORMAT,
    FORMAT_VERSION,
    REJECTS,
    as_numpy,
    numbers,
    schema,
    strings,
)

PARTS_PER_SHARD = 32
LINK_COLUMNS = [2, 6]  # song_md5 and fingerprint


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


def _open_part(path: Path, columns: list[int] | None = None) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=columns)
    return pa.ipc.open_file(pa.OSFile(str(path), "rb"), options=options)


def part_counts(path: Path) -> Counts:
    """Songs with loops, loops, and rejects by reason in one part."""
    part = _open_part(path)
    loops = sum(part.get_batch(i).num_rows for i in range(part.num_record_batches))
    rejects = Counter(reject.reason for reject in _part_rejects(part))
    return Counts(int(part.schema.metadata[b"songs"]), loops, rejects)


def _part_rejects(part: Any) -> list[Reject]:
    return [Reject(*row) for row in json.loads(part.schema.metadata[b"rejects"])]


def _part_loops(path: Path) -> SongLoops:
    table = _open_part(path, LINK_COLUMNS).read_all()
    md5s = table["song_md5"].combine_chunks().dictionary_encode()
    fingerprints = as_numpy(table["fingerprint"].combine_chunks())
    return SongLoops(md5s.dictionary.to_pylist(), as_numpy(md5s.indices), fingerprints)


def seal(
    parts: Sequence[Path],
    out: Path,
    provenance: dict[str, Any],
    counts: Counts,
    *,
    grid: Grid,
    threads: int,
) -> dict[str, Any]:
    """Make the dataset ``out`` of all parts, in their order, and return its manifest.

    The dataset is built beside the parts and renamed, so that it is there whole or not at all.

    Args:
        provenance: what the manifest says of where the loops come from.
        counts: of all parts together.
        threads: shards that are written at one time.
    """
    building = parts[0].parent / "sealed"
    shutil.rmtree(building, ignore_errors=True)
    (building / "loops").mkdir(parents=True)
    split_of, n_distinct = splits.assign(lambda: map(_part_loops, parts), counts.loops)
    groups = [parts[at : at + PARTS_PER_SHARD] for at in range(0, len(parts), PARTS_PER_SHARD)]
    paths = [building / "loops" / f"{number:05d}.parquet" for number in range(len(groups))]
    with ThreadPoolExecutor(threads) as pool:
        write = partial(_write_shard, split_of=split_of, schema=schema(grid))
        by_split = list(pool.map(write, paths, groups))
    _write_rejects(building / "rejects.parquet", groups)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **provenance,
        "counts": {
            "files": counts.songs + counts.rejects.total(),
            "songs": counts.songs,
            "loops": counts.loops,
            "distinct_loops": n_distinct,
            "rejects": dict(
                sorted(counts.rejects.items(), key=lambda entry: (-entry[1], entry[0]))
            ),
            "splits": {name: sum(shard[name] for shard in by_split) for name in splits.SPLITS},
        },
        "shards": [
            {"file": f"loops/{path.name}", "loops": shard.total()}
            for path, shard in zip(paths, by_split, strict=True)
        ],
    }
    (building / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    building.rename(out)
    return manifest


def _write_rejects(path: Path, groups: Sequence[Sequence[Path]]) -> None:
    with pq.ParquetWriter(path, REJECTS, compression="zstd") as writer:
        for group in groups:
            rejects = [reject for part in group for reject in _part_rejects(_open_part(part))]
            columns = [strings([reject[field] for reject in rejects]) for field in range(3)]
            writer.write_table(pa.table(columns, REJECTS))


def _write_shard(
    path: Path, parts: Sequence[Path], *, split_of: dict[str, str], schema: pa.Schema
) -> Counter[str]:
    """Write one shard and return its loops by split."""
    table = pa.concat_tables([_open_part(part).read_all() for part in parts])
    md5s = table["song_md5"].combine_chunks().dictionary_encode()
    song_splits = [split_of[md5] for md5 in md5s.dictionary.to_pylist()]
    table = table.drop_columns(["fingerprint"])
    table = table.append_column("split", strings(song_splits).take(md5s.indices))
    pq.write_table(
        table.replace_schema_metadata(None).cast(schema),
        path,
        compression="zstd",
        use_dictionary=["song", "song_md5", "split"],
        write_statistics=["song", "start_bar", "split"],
    )
    loops_of_song = np.bincount(as_numpy(md5s.indices), minlength=len(song_splits)).tolist()
    by_split: Counter[str] = Counter()
    for split, n_loops in zip(song_splits, loops_of_song, strict=True):
        by_split[split] += n_loops
    return by_split
