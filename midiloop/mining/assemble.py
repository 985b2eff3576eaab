"""Make a loop dataset out of all parts: decide the splits, write the shards and the manifest."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from midiloop.common import files
from midiloop.dataset import splits
from midiloop.dataset.manifest import FORMAT, FORMAT_VERSION, fingerprint
from midiloop.dataset.parquet import REJECTS, blobs, byte_strings, numbers, schema, strings
from midiloop.dataset.records import Counts
from midiloop.dataset.splits import SPLITS, SongLoops
from midiloop.errors import counted
from midiloop.grid import Grid
from midiloop.mining.partials import Part, read

PARTS_PER_SHARD = 32
WHOLE = "loops"  # what a shard of all splits is called
HUGGING_FACE_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def assemble(
    paths: Sequence[Path],
    out: Path,
    provenance: dict[str, Any],
    counts: Counts,
    *,
    grid: Grid,
    threads: int,
    by_split: bool = True,
) -> dict[str, Any]:
    """Make the dataset ``out`` of the parts at ``paths``, in their order, and return its manifest.

    It is there whole or not at all, see `files.new_folder`.

    Args:
        provenance: what the manifest says of where the loops come from.
        counts: of all parts together.
        threads: groups of parts that are written at one time.
        by_split: each split has shards of its own; otherwise, and where there are no loops, a shard
            is of all splits, and loops stay in order.
    """
    with files.new_folder(out) as building:
        manifest = _assembled(paths, building, provenance, counts, grid, threads, by_split)
        (building / "README.md").write_text(_card(manifest))
        (building / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _assembled(
    paths: Sequence[Path],
    building: Path,
    provenance: dict[str, Any],
    counts: Counts,
    grid: Grid,
    threads: int,
    by_split: bool,
) -> dict[str, Any]:
    """Write shards and rejects into an empty folder; the manifest."""
    scratch = building / "fingerprints"
    for folder in (building / "loops", scratch):
        folder.mkdir()
    n_songs: list[int] = []
    assigned = splits.assign(_song_loops(paths, n_songs), counts.loops, scratch)
    shutil.rmtree(scratch)
    groups = [paths[at : at + PARTS_PER_SHARD] for at in range(0, len(paths), PARTS_PER_SHARD)]
    ends = np.cumsum(n_songs)[PARTS_PER_SHARD - 1 : -1 : PARTS_PER_SHARD]
    write = partial(
        _write_shards,
        building / "loops",
        schema=schema(grid, played="performance" in provenance),
        by_split=by_split and counts.loops > 0,
    )
    with ThreadPoolExecutor(threads) as pool:
        of_groups = pool.map(write, range(len(groups)), groups, np.split(assigned.splits, ends))
        # in the order of their names, in which other programs read them too
        written = sorted(itertools.chain(*of_groups), key=lambda shard: shard.path)
    shards = [_entry(*shard) for shard in written]
    _write_rejects(building / "rejects.parquet", groups)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(shard["sha256"] for shard in shards),
        **provenance,
        "counts": {
            "files": counts.songs + counts.rejects.total(),
            "songs": counts.songs,
            "loops": counts.loops,
            "distinct_loops": assigned.n_distinct,
            "rejects": dict(
                sorted(counts.rejects.items(), key=lambda entry: (-entry[1], entry[0]))
            ),
            "splits": {name: sum(loops_of[name] for _, loops_of in written) for name in SPLITS},
        },
        "shards": shards,
    }


def _song_loops(paths: Sequence[Path], n_songs: list[int]) -> Iterator[SongLoops]:
    """Songs and loops of each part; adds how many songs it has to ``n_songs``."""
    for path in paths:
        part = read(path, 2)
        n_songs.append(len(part.md5s))
        yield SongLoops(part.md5s, part.columns["song"], part.columns["fingerprint"])


def _write_rejects(path: Path, groups: Sequence[Sequence[Path]]) -> None:
    with pq.ParquetWriter(path, REJECTS, compression="zstd", write_page_checksum=True) as writer:
        for group in groups:
            rejects = [reject for part in group for reject in read(part, 0).rejects]
            columns = [strings([reject[field] for reject in rejects]) for field in range(3)]
            writer.write_table(pa.table(columns, REJECTS))


class Shard(NamedTuple):
    """A shard that was written, and how many loops of each split are in it."""

    path: Path
    by_split: Counter[str]


def _write_shards(
    folder: Path,
    number: int,
    paths: Sequence[Path],
    split_of_songs: NDArray[np.uint8],
    *,
    schema: pa.Schema,
    by_split: bool,
) -> list[Shard]:
    """Write the loops of some parts: a shard for each split, or one for all.

    A split that has no loops has no shard.
    """
    parts = [read(path) for path in paths]
    of_parts = np.split(split_of_songs, np.cumsum([len(part.files) for part in parts])[:-1])
    of_loops = [codes[part.columns["song"]] for part, codes in zip(parts, of_parts, strict=True)]
    kinds = {name: [code] for code, name in enumerate(SPLITS)} if by_split else {WHOLE: [0, 1, 2]}
    shards: list[Shard] = []
    for name, wanted in kinds.items():
        table = pa.concat_tables(
            _table(part, np.flatnonzero(np.isin(codes, wanted)), codes, schema)
            for part, codes in zip(parts, of_loops, strict=True)
        )
        if not table.num_rows and (number, name) != (0, WHOLE):
            continue
        path = folder / f"{name}-{number:05d}.parquet"
        pq.write_table(
            table,
            path,
            compression="zstd",
            use_dictionary=["song", "song_md5", "split"],
            write_statistics=["song", "start_bar", "split"],
            write_page_checksum=True,
        )
        shards.append(Shard(path, Counter(table["split"].to_pylist())))
    return shards


def _table(
    part: Part, rows: NDArray[np.int64], codes: NDArray[np.uint8], schema: pa.Schema
) -> pa.Table:
    """Some rows of a part; ``codes`` are the splits of all of them."""
    of_song = part.columns["song"][rows].tolist()
    columns = {
        "roll": blobs(part.columns["roll"][rows]),
        "song": strings([part.files[index] for index in of_song]),
        "song_md5": strings([part.md5s[index] for index in of_song]),
        "split": strings([SPLITS[code] for code in codes[rows].tolist()]),
    }
    for name in ("start_bar", "tempo_bpm", "bar_distance_cells"):
        columns[name] = numbers(part.columns[name][rows], schema.field(name).type)
    if "onset_velocity" in schema.names:
        ends = np.cumsum(part.columns["n_onsets"])
        spans = list(zip((ends - part.columns["n_onsets"])[rows], ends[rows], strict=True))
        for name in ("onset_velocity", "onset_offset"):
            of_all = part.columns[name].tobytes()
            columns[name] = byte_strings([of_all[start:end] for start, end in spans])
    return pa.table([columns[name] for name in schema.names], schema)


def _entry(path: Path, by_split: Counter[str]) -> dict[str, Any]:
    """What the manifest says of a shard."""
    kind = path.name.partition("-")[0]
    of_split = {"split": kind} if kind in SPLITS else {}
    name, sha256 = f"loops/{path.name}", files.digest(path)
    return {"file": name, **of_split, "loops": by_split.total(), "sha256": sha256}


def _card(manifest: dict[str, Any]) -> str:
    """A dataset card: its head says which shards are which split."""
    there = {shard.get("split") for shard in manifest["shards"]}
    patterns = {
        name: f"{split}-*" for split, name in HUGGING_FACE_SPLITS.items() if split in there
    } or {"train": "*"}
    data_files = [
        f"  - split: {name}\n    path: loops/{pattern}.parquet"
        for name, pattern in patterns.items()
    ]
    return "\n".join(
        [
            "---",
            "configs:",
            "- config_name: default",
            "  data_files:",
            *data_files,
            "---",
            "",
            "# Loops",
            "",
            f"{counted(manifest['counts']['loops'], 'loop')} of bass and drums, written by "
            f"midiloop {manifest['midiloop_version']}. `manifest.json` says how they were",
            "found; midiloop's documentation, what the columns mean.",
            "",
        ]
    )
