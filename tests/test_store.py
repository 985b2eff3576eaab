from __future__ import annotations

import importlib
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest

from handmade import groove
from midiloop import extract, rules, score, splits, store
from midiloop.errors import LoopError
from midiloop.grid import LOOP

OPEN = extract.Settings(rules.preset("open"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> store.LoopDataset:
    folder = tmp_path_factory.mktemp("songs")
    for number in range(40):
        pitches = [28 + number % 30, 35, 40, 30 + number // 30]
        song = groove(8 + number % 3, pitches=pitches)
        (folder / f"s{number:02d}.mid").write_bytes(score.to_bytes(song))
    shutil.copy(folder / "s05.mid", folder / "same.mid")
    (folder / "no.mid").write_bytes(b"")
    out = tmp_path_factory.mktemp("out") / "loops"
    extract.run([folder], out, OPEN, n_workers=1)
    return store.LoopDataset(out)


def packed(dataset: store.LoopDataset) -> list[bytes]:
    return [row.tobytes() for b in dataset.batches() for row in LOOP.pack(b.rolls)]


def test_pandas_polars_duckdb_and_hugging_face_open_it_as_it_is(
    dataset: store.LoopDataset, tmp_path: Path
) -> None:
    shards = str(dataset.path / "loops")
    expected = packed(dataset)
    songs = [song for batch in dataset.batches() for song in batch.songs]
    columns = store.schema().names

    frame = pd.read_parquet(shards)
    assert list(frame.columns) == columns
    assert frame["roll"].tolist() == expected
    roll = np.unpackbits(np.frombuffer(frame["roll"][0], np.uint8)).reshape(128, 93)
    np.testing.assert_array_equal(roll.astype(bool), next(dataset.batches()).rolls[0])

    table = pl.read_parquet(f"{shards}/*.parquet")
    assert table.columns == columns
    assert table["roll"].to_list() == expected
    assert table["song"].to_list() == songs

    query = f"SELECT song, octet_length(roll) FROM '{shards}/*.parquet'"
    relation = duckdb.sql(query)
    assert relation is not None
    assert relation.fetchall() == [(song, 1488) for song in songs]

    load_dataset = importlib.import_module("datasets").load_dataset
    loaded = load_dataset("parquet", data_dir=shards, split="train", cache_dir=str(tmp_path))
    assert loaded.column_names == columns
    assert list(loaded["song"]) == songs
    assert list(loaded["roll"]) == expected


def test_rejects_open_in_pandas(dataset: store.LoopDataset) -> None:
    frame = pd.read_parquet(dataset.path / "rejects.parquet")
    assert frame.to_dict("records") == [
        {"file": "no.mid", "reason": "not_midi", "detail": "the file is empty"}
    ]


def test_no_loop_stands_on_two_sides(dataset: store.LoopDataset) -> None:
    side: dict[bytes, str] = {}
    for batch in dataset.batches():
        for roll, split in zip(LOOP.pack(batch.rolls), batch.splits, strict=True):
            assert side.setdefault(roll.tobytes(), split) == split
    assert len(side) == dataset.manifest["counts"]["distinct_loops"]


def test_songs_linked_by_others_are_one_group() -> None:
    names = ["d", "b", "c", "a", "e"]
    links = [(0, 1), (1, 2)]  # d-b, b-c: one group, whose smallest name is b
    assert list(splits.smallest_in_group(names, links)) == ["b", "b", "b", "a", "e"]


def test_groups_do_not_depend_on_how_many_loops_fit_into_memory(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = []
    for _ in range(5):
        md5s = [f"{rng.integers(2**62):016x}" for _ in range(8)]
        songs = rng.integers(0, 8, 40)
        corpus.append(splits.SongLoops(md5s, songs, rng.integers(0, 300, 40).astype(np.uint64)))
    whole = splits.assign(lambda: corpus, 200)
    monkeypatch.setattr(splits, "LOOPS_AT_A_TIME", 17)
    assert splits.assign(lambda: corpus, 200) == whole
    assert whole[1] == len({f for part in corpus for f in part.fingerprints.tolist()})


def test_groups_divide_as_80_10_10() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(splits.split_of_group(rng.bytes(16).hex()) for _ in range(20_000))
    assert abs(counts["train"] / 20_000 - 0.8) < 0.01
    assert abs(counts["valid"] / 20_000 - 0.1) < 0.01
    assert splits.split_of_group("00" * 16) == "train"
    assert splits.split_of_group("cc" + "cd" * 15) == "valid"
    assert splits.split_of_group("ff" * 16) == "test"


def test_a_choice_narrows_what_is_read(dataset: store.LoopDataset) -> None:
    def songs(**choice: object) -> list[str]:
        return [s for b in dataset.select(**choice) for s in b.songs]  # type: ignore[arg-type]

    everything = songs()
    assert len(everything) == len(dataset)
    assert songs(limit=7) == everything[:7]
    assert songs(song="s0*") == [song for song in everything if song.startswith("s0")]
    assert songs(song="none") == []
    by_split = [songs(split=name) for name in splits.SPLITS]
    assert sorted(itertools.chain(*by_split)) == sorted(everything)
    distinct = songs(distinct=True)
    assert (
        len(distinct) == len(set(packed(dataset))) == dataset.manifest["counts"]["distinct_loops"]
    )
    assert songs(distinct=True, limit=5) == distinct[:5]


def test_a_spread_takes_one_loop_a_song_from_first_to_last(dataset: store.LoopDataset) -> None:
    spread = dataset.spread(6)
    assert len(spread) == len(set(spread.songs)) == 6
    assert spread.songs[-1] == "same.mid" or spread.songs[0] == "same.mid"
    assert set(spread.start_bars.tolist()) == {0}
    assert len(dataset.spread(1000)) == 41
    assert len(dataset.spread(5, song="none")) == 0


def test_a_fingerprint_is_that_of_the_loops_and_older_datasets_have_it_too(
    dataset: store.LoopDataset, tmp_path: Path
) -> None:
    assert dataset.fingerprint == dataset.manifest["fingerprint"]
    assert len(bytes.fromhex(dataset.fingerprint)) == 16
    copy = tmp_path / "elsewhere"
    shutil.copytree(dataset.path, copy)
    older = {key: value for key, value in dataset.manifest.items() if key != "fingerprint"}
    older["shards"] = [
        {key: value for key, value in shard.items() if key != "sha256"} for shard in older["shards"]
    ]
    (copy / "manifest.json").write_text(json.dumps(older))
    assert store.LoopDataset(copy).fingerprint == dataset.fingerprint
    song = score.to_bytes(groove(8, pitches=[30, 31, 32, 33]))
    (tmp_path / "one.mid").write_bytes(song)
    extract.run([tmp_path / "one.mid"], tmp_path / "other", OPEN, n_workers=1)
    assert store.LoopDataset(tmp_path / "other").fingerprint != dataset.fingerprint


def test_a_folder_that_is_no_dataset_is_refused(dataset: store.LoopDataset, tmp_path: Path) -> None:
    with pytest.raises(LoopError, match=r"no manifest\.json"):
        store.LoopDataset(tmp_path)
    song = tmp_path / "song.mid"
    song.touch()
    with pytest.raises(LoopError, match=r"song\.mid: no manifest\.json; give a folder"):
        store.LoopDataset(song)
    manifest = tmp_path / "manifest.json"
    for text, message in [("{", "extract the dataset again"), ("[]", "not a loop dataset"),
                          ('{"format": "x"}', "not a loop dataset")]:  # fmt: skip
        manifest.write_text(text)
        with pytest.raises(LoopError, match=message):
            store.LoopDataset(tmp_path)
    manifest.write_text(json.dumps({**dataset.manifest, "format_version": 99}))
    with pytest.raises(LoopError, match="version 99"):
        store.LoopDataset(tmp_path)


def test_a_missing_or_damaged_shard_is_named(dataset: store.LoopDataset, tmp_path: Path) -> None:
    copy = tmp_path / "loops"
    shutil.copytree(dataset.path, copy)
    shard = copy / "loops" / "00000.parquet"
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(LoopError, match=r"00000\.parquet"):
        list(store.LoopDataset(copy).batches())
    shard.unlink()
    with pytest.raises(LoopError, match=r"00000\.parquet"):
        list(store.LoopDataset(copy).batches())
