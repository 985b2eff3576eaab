"""Make a loop dataset out of all parts: decide the splits, write the shards and the manifest."""

from __future__ import annotations

import json
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

from midiloop import files, splits
from midiloop.grid import Grid
from midiloop.mined import Counts
from midiloop.parts import Part, read
from midiloop.splits import SongLoops
from midiloop.store import (
    FORMAT,
    FORMAT_VERSION,
    REJECTS,
    fingerprint,
    numbers,
    schema,
    strings,
)

PARTS_PER_SHARD = 32


def seal(
    paths: Sequence[Path],
    out: Path,
    provenance: dict[str, Any],
    counts: Counts,
    *,
    grid: Grid,
    threads: int,
) -> dict[str, Any]:
    """Make the dataset ``out`` of the parts at ``paths``, in their order, and return its manifest.

    The dataset is built beside the parts and renamed, so that it is there whole or not at all.

    Args:
        provenance: what the manifest says of where the loops come from.
        counts: of all parts together.
        threads: shards that are written at one time.
    """
    building = paths[0].parent / "sealed"
    shutil.rmtree(building, ignore_errors=True)
    (building / "loops").mkdir(parents=True)
    split_of, n_distinct = splits.assign(lambda: map(_song_loops, paths), counts.loops)
    groups = [paths[at : at + PARTS_PER_SHARD] for at in range(0, len(paths), PARTS_PER_SHARD)]
    shards = [building / "loops" / f"{number:05d}.parquet" for number in range(len(groups))]
    with ThreadPoolExecutor(threads) as pool:
        write = partial(_write_shard, split_of=split_of, schema=schema(grid))
        by_split = list(pool.map(write, shards, groups))
    _write_rejects(building / "rejects.parquet", groups)
    hashes = [files.digest(shard) for shard in shards]
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(hashes),
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
            {"file": f"loops/{path.name}", "loops": loops.total(), "sha256": sha256}
            for path, loops, sha256 in zip(shards, by_split, hashes, strict=True)
        ],
    }
    (building / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    building.rename(out)
    return manifest


def _song_loops(path: Path) -> SongLoops:
    part = read(path, 2)
    return SongLoops(part.md5s, part.columns["song"], part.columns["fingerprint"])


def _write_rejects(path: Path, groups: Sequence[Sequence[Path]]) -> None:
    with pq.ParquetWriter(path, REJECTS, compression="zstd") as writer:
        for group in groups:
            rejects = [reject for part in group for reject in read(part, 0).rejects]
            columns = [strings([reject[field] for reject in rejects]) for field in range(3)]
            writer.write_table(pa.table(columns, REJECTS))


def _write_shard(
    path: Path, parts: Sequence[Path], *, split_of: dict[str, str], schema: pa.Schema
) -> Counter[str]:
    """Write one shard and return its loops by split."""
    by_split: Counter[str] = Counter()
    tables = [_table(read(part), split_of, schema, by_split) for part in parts]
    pq.write_table(
        pa.concat_tables(tables),
        path,
        compression="zstd",
        use_dictionary=["song", "song_md5", "split"],
        write_statistics=["song", "start_bar", "split"],
    )
    return by_split


def _table(
    part: Part, split_of: dict[str, str], schema: pa.Schema, by_split: Counter[str]
) -> pa.Table:
    """The rows of one part; adds its loops to ``by_split``."""
    splits_of_songs = [split_of[md5] for md5 in part.md5s]
    rolls, song = part.columns["roll"], part.columns["song"]
    for split, n_loops in zip(
        splits_of_songs, np.bincount(song, minlength=len(part.files)).tolist(), strict=True
    ):
        by_split[split] += n_loops
    of_song = song.tolist()
    columns = {
        "roll": pa.FixedSizeBinaryArray.from_buffers(
            schema.field("roll").type, len(rolls), [None, pa.py_buffer(rolls)]
        ),
        "song": strings([part.files[index] for index in of_song]),
        "song_md5": strings([part.md5s[index] for index in of_song]),
        "split": strings([splits_of_songs[index] for index in of_song]),
    }
    for name in ("start_bar", "tempo_bpm", "bar_distance_cells"):
        columns[name] = numbers(part.columns[name], schema.field(name).type)
    return pa.table([columns[name] for name in schema.names], schema)
