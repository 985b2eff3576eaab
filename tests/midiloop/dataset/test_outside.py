"""Datasets from outside: whatever is wrong with one, it is refused in one line, or read rightly."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from midiloop.common.engine import Inline
from midiloop.dataset import parquet, tensors
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import LoopError
from midiloop.evaluation import evaluate
from midiloop_cli.main import midiloop

SHARD = "loops/train-00000.parquet"
BAD: list[Any] = [None, -1, 1.5, float("nan"), "x", True, 10**30, [], {}, [None], {"x": "y"}]
PLACES = [
    "format", "format_version", "midiloop_version", "sources", "rules", "rules name", "stride_bars",
    "grid", "grid bars", "grid steps_per_beat", "grid drums", "grid lowest_pitch",
    "grid highest_pitch", "grid columns", "counts", "counts files", "counts songs", "counts loops",
    "counts distinct_loops", "counts rejects", "counts splits", "shards",
]  # fmt: skip
OUTSIDE = [
    "../x.parquet", "/etc/passwd", "loops/../../x", "C:x", "C:/x", "a\\b", "", ".", "..", "loops",
    "loops/\0", "loops/a\nb", "~/x", "loops//x", "file:///x", "x" * 9999, "manifest.json",
]  # fmt: skip
COMMANDS = ("inspect", "export", "plot", "evaluate")


@pytest.fixture
def outside(dataset: LoopDataset, tmp_path: Path) -> Path:
    """A copy of a dataset, to damage."""
    shutil.copytree(dataset.path, tmp_path / "loops")
    return tmp_path / "loops"


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("N_RESAMPLES", "N_HALVINGS", "MMD_LOOPS"):
        monkeypatch.setattr(evaluate, name, 40)


def arguments(command: str, folder: Path, out: Path) -> list[str]:
    return {
        "inspect": ["inspect", str(folder), "--json"],
        "export": ["export", str(folder), "--midi", str(out), "--json"],
        "plot": ["plot", str(folder), "-o", f"{out}.svg", "--json"],
        "evaluate": ["evaluate", str(folder), "--reference", str(folder), "--json"],
    }[command]


def refusal(command: str, folder: Path) -> str:
    """The one line in which a command refuses a dataset, or "" where it takes it."""
    out = folder.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    found = click.testing.CliRunner().invoke(midiloop, arguments(command, folder, out))
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    if found.exit_code:
        assert found.exit_code == 1
        assert found.stderr.startswith("midiloop: error: ")
        assert found.stderr.count("\n") == 1
        assert len(found.stderr) < 600
        assert not out.exists()
    return found.stderr if found.exit_code else ""


def check_refused(folder: Path, named: str = "") -> None:
    """Every command refuses a dataset, and names what is wrong with it."""
    for command in COMMANDS:
        assert named in refusal(command, folder) != ""
    with pytest.raises(LoopError):
        tensors.load(LoopDataset(folder), "train", torch.device("cpu"))


def check_same(folder: Path, dataset: LoopDataset) -> None:
    """A dataset holds what another does."""
    for command in COMMANDS:
        assert refusal(command, folder) == ""
    loops, expected = (
        parquet.LoopBatch.joined([*found.batches()]) for found in (LoopDataset(folder), dataset)
    )
    assert loops.records.equals(expected.records)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def train_shard(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of `SHARD`."""
    found: dict[str, Any] = next(s for s in manifest["shards"] if s["file"] == SHARD)
    return found


def forget_hashes(manifest: dict[str, Any]) -> None:
    del manifest["fingerprint"]
    for shard in manifest["shards"]:
        del shard["sha256"]


def change_shard(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite a shard, as somebody who knows what they do."""
    change_manifest(folder, forget_hashes)
    pq.write_table(change(pq.read_table(folder / SHARD)), folder / SHARD)


@pytest.mark.parametrize("place", PLACES)
def test_a_manifest_without_a_key_or_with_another_value_is_refused(
    place: str, outside: Path
) -> None:
    path = outside / "manifest.json"
    good = json.loads(path.read_text())
    *parents, key = place.split()

    def written(change: Callable[[dict[str, Any]], Any]) -> None:
        manifest = copy.deepcopy(good)
        inner = manifest
        for parent in parents:
            inner = inner[parent]
        change(inner)
        path.write_text(json.dumps(manifest))

    written(lambda inner: inner.pop(key))
    check_refused(outside)
    for value in [value for value in BAD if not may_be(key, value)]:
        written(lambda inner, value=value: inner.update({key: value}))  # type: ignore[misc]
        with pytest.raises(LoopError, match=r"loops") as error:
            LoopDataset(outside)
        assert "\n" not in str(error.value)
        assert refusal("inspect", outside)


def may_be(key: str, value: Any) -> bool:
    """Whether a key may have a value, of those that are tried."""
    if key in ("midiloop_version", "name"):
        return isinstance(value, str)
    return (key, value) in [("sources", []), ("rejects", {})]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_shard_leads_out_of_the_folder(name: str, outside: Path) -> None:
    (outside.parent / "x.parquet").write_bytes((outside / SHARD).read_bytes())

    def rename(manifest: dict[str, Any]) -> None:
        train_shard(manifest)["file"] = name

    change_manifest(outside, rename)
    check_refused(outside)


@pytest.mark.parametrize("key", ["file", "loops", "split", "sha256"])
@pytest.mark.parametrize("value", [None, -1, 1.5, float("nan"), "x", 10**30, []])
def test_what_a_manifest_says_of_a_shard_is_checked(key: str, value: Any, outside: Path) -> None:
    change_manifest(outside, lambda manifest: train_shard(manifest).update({key: value}))
    check_refused(outside, str(outside))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 200_000, '{"format": "midiloop-loops"}', "\0", '"x"']
)
def test_what_is_no_manifest_is_refused(text: str, outside: Path) -> None:
    (outside / "manifest.json").write_text(text)
    check_refused(outside)


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.names.index(name)
        new = values(table[name].combine_chunks()) if callable(values) else values
        return table.set_column(at, name, new)

    return change


def repeated(value: Any, kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    return lambda column: pa.array([value] * len(column), kind)


def first(value: Any) -> Callable[[pa.Array], pa.Array]:
    """The column with another first value."""
    return lambda column: pa.array([value, *column.to_pylist()[1:]], column.type)


NAMES = parquet.schema(played=True).names
DAMAGE: dict[str, Callable[[pa.Table], pa.Table]] = {
    **{f"no {name}": lambda t, name=name: t.drop_columns([name]) for name in NAMES},  # type: ignore[misc]
    **{f"null {name}": with_column(name, first(None)) for name in NAMES},
    **{f"all null {name}": with_column(name, repeated(None, pa.null())) for name in NAMES},
    **{f"lists of {name}": with_column(name, repeated([1], pa.list_(pa.int8()))) for name in NAMES},
    **{f"bools of {name}": with_column(name, repeated(True, pa.bool_())) for name in NAMES},
    **{
        f"two columns {name}": lambda t, name=name: t.append_column(name, t[name])  # type: ignore[misc]
        for name in NAMES
    },
    **{
        f"numbers for {name}": with_column(name, repeated(7, pa.int32()))
        for name in ("roll", "song", "song_md5", "split")
    },
    **{
        f"text for {name}": with_column(name, repeated("120", pa.string()))
        for name in ("start_bar", "tempo_bpm", "bar_distance_cells", "split")
    },
    **{
        f"tempo {value}": with_column("tempo_bpm", first(value))
        for value in (0.0, -1.0, float("nan"), float("inf"), -float("inf"))
    },
    "start bar -1": with_column("start_bar", first(-1)),
    "start bar 0.5": with_column("start_bar", repeated(0.5, pa.float64())),
    "start bar 2^40": with_column("start_bar", repeated(1 << 40, pa.int64())),
    "distance -1": with_column("bar_distance_cells", first(-1)),
    "distance 9999": with_column("bar_distance_cells", first(9999)),
    "short rolls": with_column("roll", repeated(b"x" * 1487, pa.binary(1487))),
    "rolls of two lengths": with_column(
        "roll", lambda c: pa.array([b"x", *c.to_pylist()[1:]], pa.binary())
    ),
    "no text": with_column(
        "song",
        lambda c: pa.StringArray.from_buffers(
            len(c),
            pa.py_buffer(np.arange(len(c) + 1, dtype=np.int32)),
            pa.py_buffer(b"\xff" * len(c)),
        ),
    ),
    "a row less": lambda table: table.slice(1),
    "a row more": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
    "no rows": lambda table: table.slice(0, 0),
    "split of others": with_column("split", repeated("valid", pa.string())),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_column_that_is_missing_or_holds_what_it_cannot_is_refused(
    damage: str, outside: Path
) -> None:
    change_shard(outside, DAMAGE[damage])
    check_refused(outside, SHARD)


def cast(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return with_column(name, lambda column: column.cast(kind))


HARMLESS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "as it is": lambda table: table,
    "float32": cast("tempo_bpm", pa.float32()),
    "tempi that are whole": cast("tempo_bpm", pa.int16()),
    "int64": cast("start_bar", pa.int64()),
    "uint8": cast("bar_distance_cells", pa.uint8()),
    "floats": cast("start_bar", pa.float64()),
    "binary": cast("roll", pa.binary()),
    "large binary": cast("roll", pa.large_binary()),
    "large string": cast("song", pa.large_string()),
    "dictionary": with_column("split", lambda column: column.dictionary_encode()),
    "another column": lambda table: table.append_column("more", table["song"]),
    "another order": lambda table: table.select(table.schema.names[::-1]),
    "pandas": lambda table: pa.Table.from_pandas(table.to_pandas()),
    "polars": lambda table: pl.from_arrow(table).to_arrow(),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_types_are_cast_where_no_value_changes(
    change: str, outside: Path, dataset: LoopDataset
) -> None:
    change_shard(outside, HARMLESS[change])
    check_same(outside, dataset)


def test_what_pandas_polars_and_duckdb_write_back_is_read(
    outside: Path, dataset: LoopDataset
) -> None:
    change_manifest(outside, forget_hashes)
    pd.read_parquet(outside / SHARD).to_parquet(outside / SHARD)
    check_same(outside, dataset)
    pl.read_parquet(outside / SHARD).write_parquet(outside / SHARD)
    check_same(outside, dataset)
    other = outside / "loops" / "other.parquet"
    duckdb.sql(f"COPY (SELECT * FROM '{outside / SHARD}') TO '{other}' (FORMAT parquet)")
    other.replace(outside / SHARD)
    check_same(outside, dataset)


def test_a_shard_that_was_rewritten_is_not_the_dataset_that_the_manifest_is_of(
    outside: Path,
) -> None:
    pd.read_parquet(outside / SHARD).to_parquet(outside / SHARD)
    check_refused(outside, SHARD)


def flipped(good: bytes, at: int) -> bytes:
    damaged = bytearray(good)
    damaged[at // 8] ^= 1 << at % 8
    return bytes(damaged)


def test_no_flipped_bit_is_read_as_other_data(outside: Path, rng: np.random.Generator) -> None:
    good = (outside / SHARD).read_bytes()
    for at in rng.integers(8 * len(good), size=200).tolist():
        (outside / SHARD).write_bytes(flipped(good, at))
        with pytest.raises(LoopError, match=f"{SHARD}: [^\n]* extract the dataset again$"):
            list(LoopDataset(outside).batches())


def test_pages_have_checksums_that_other_programs_can_verify_too(
    outside: Path, rng: np.random.Generator
) -> None:
    change_manifest(outside, forget_hashes)
    good = (outside / SHARD).read_bytes()
    rolls = pq.read_metadata(outside / SHARD).row_group(0).column(0)
    assert rolls.path_in_schema == "roll"
    header = 64  # of a page, at most: not what the checksum is of
    first = rolls.data_page_offset + header
    end = rolls.data_page_offset + rolls.total_compressed_size
    for at in rng.integers(8 * first, 8 * end, size=50).tolist():
        (outside / SHARD).write_bytes(flipped(good, at))
        with pytest.raises(LoopError, match=f"{SHARD}: .*(crc|CRC|checksum)"):
            list(LoopDataset(outside).batches())
        with pytest.raises(OSError, match="CRC"):
            pq.read_table(outside / SHARD, page_checksum_verification=True)


def test_rejects_are_checked_as_loops_are(outside: Path) -> None:
    path = outside / "rejects.parquet"
    for table in (
        pa.table({"file": ["x"]}),
        pa.table({"file": ["x"], "reason": [None], "detail": ["z"]}),
        pa.table({"file": ["x"], "reason": [1], "detail": ["z"]}),
    ):
        pq.write_table(table, path)
        with pytest.raises(LoopError, match=r"rejects\.parquet: .*; extract the dataset again"):
            LoopDataset(outside).rejects()
    path.write_bytes(b"PAR1")
    with pytest.raises(LoopError, match=r"rejects\.parquet"):
        LoopDataset(outside).rejects()


def test_a_dataset_without_loops_is_looked_at_and_else_refused_in_a_line(tmp_path: Path) -> None:
    from midiloop.mining import extract

    (tmp_path / "x.mid").write_bytes(b"")
    extract.run([tmp_path / "x.mid"], tmp_path / "none", engine=Inline())
    assert refusal("inspect", tmp_path / "none") == ""
    for command in ("export", "plot", "evaluate"):
        assert "no loop" in refusal(command, tmp_path / "none")
    assert len(pd.read_parquet(tmp_path / "none" / "loops")) == 0
