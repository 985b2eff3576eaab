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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handmade import groove
from midiloop.common.engine import Inline
from midiloop.dataset import parquet, splits
from midiloop.errors import LoopError
from midiloop.grid import LOOP
from midiloop.midi import performance, score
from midiloop.mining import extract, rules

OPEN = extract.Settings(rules.preset("open"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> parquet.LoopDataset:
    folder = tmp_path_factory.mktemp("songs")
    for number in range(40):
        pitches = [28 + number % 30, 35, 40, 30 + number // 30]
        song = groove(8 + number % 3, pitches=pitches)
        (folder / f"s{number:02d}.mid").write_bytes(score.to_bytes(song))
    shutil.copy(folder / "s05.mid", folder / "same.mid")
    (folder / "no.mid").write_bytes(b"")
    out = tmp_path_factory.mktemp("out") / "loops"
    extract.run([folder], out, OPEN, engine=Inline())
    return parquet.LoopDataset(out)


def packed(dataset: parquet.LoopDataset) -> list[bytes]:
    return [row.tobytes() for b in dataset.batches() for row in LOOP.pack(b.rolls)]


def test_pandas_polars_duckdb_and_hugging_face_open_it_as_it_is(
    dataset: parquet.LoopDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset.path.parent)
    shards = "loops/loops"
    expected = packed(dataset)
    songs = [song for batch in dataset.batches() for song in batch.songs]
    columns = parquet.schema(played=True).names

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
    for folder in ("loops", shards, str(dataset.path)):
        loaded = load_dataset(folder, cache_dir=str(tmp_path))
        assert list(loaded) == ["train", "validation", "test"]
        assert loaded["train"].column_names == columns
        for split, rows in zip(splits.SPLITS, loaded.values(), strict=True):
            assert set(rows["split"]) == {split}
        in_order = [loaded[split] for split in ("test", "train", "validation")]
        assert [song for rows in in_order for song in rows["song"]] == songs
        assert [roll for rows in in_order for roll in rows["roll"]] == expected


def test_rejects_open_in_pandas(dataset: parquet.LoopDataset) -> None:
    frame = pd.read_parquet(dataset.path / "rejects.parquet")
    assert frame.to_dict("records") == [
        {"file": "no.mid", "reason": "not_midi", "detail": "the file is empty"}
    ]


def test_no_loop_stands_on_two_sides(dataset: parquet.LoopDataset) -> None:
    side: dict[bytes, str] = {}
    for batch in dataset.batches():
        for roll, split in zip(LOOP.pack(batch.rolls), batch.splits, strict=True):
            assert side.setdefault(roll.tobytes(), split) == split
    assert len(side) == dataset.manifest["counts"]["distinct_loops"]


def groups_by_hand(corpus: list[splits.SongLoops]) -> list[set[str]]:
    """MD5s of songs that share loops, however far apart, group by group."""
    songs = [
        (md5, {*piece.fingerprints[piece.songs == number].tolist()})
        for piece in corpus
        for number, md5 in enumerate(piece.md5s)
    ]
    groups: list[tuple[set[str], set[int]]] = []
    for md5, loops in songs:
        near = [group for group in groups if group[1] & loops or md5 in group[0]]
        groups = [group for group in groups if group not in near]
        names, prints = zip(*near, ({md5}, loops), strict=True)
        groups.append((set().union(*names), set().union(*prints)))
    return [names for names, _ in groups]


@pytest.mark.parametrize("loops_at_a_time", [1 << 20, 17, 1])
def test_groups_are_those_found_by_hand_however_many_loops_fit_into_memory(
    loops_at_a_time: int,
    rng: np.random.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splits, "LOOPS_AT_A_TIME", loops_at_a_time)
    for round_number in range(5):
        corpus = []
        for _ in range(5):
            md5s = [f"{rng.integers(2**62):016x}" for _ in range(8)]
            songs = np.concatenate([np.arange(8), rng.integers(0, 8, 12)])
            prints = rng.integers(0, 40 << round_number, 20).astype(np.uint64)
            corpus.append(splits.SongLoops(md5s, songs, prints))
        same = corpus[0].md5s[0], corpus[0].fingerprints[corpus[0].songs == 0]
        corpus.append(splits.SongLoops([same[0]], np.zeros(len(same[1]), np.int64), same[1]))
        folder = tmp_path / str(round_number)
        folder.mkdir()
        found = splits.assign(iter(corpus), 100 + len(same[1]), folder)
        by_md5 = {md5: min(group) for group in groups_by_hand(corpus) for md5 in group}
        smallest = [by_md5[md5] for piece in corpus for md5 in piece.md5s]
        expected = splits.split_of_place(splits.places_of(smallest))
        np.testing.assert_array_equal(found.splits, expected)
        assert found.n_distinct == len({p for piece in corpus for p in piece.fingerprints.tolist()})


def test_groups_divide_as_80_10_10() -> None:
    rng = np.random.default_rng(0)
    md5s = [rng.bytes(16).hex() for _ in range(20_000)]
    counts = np.bincount(splits.split_of_place(splits.places_of(md5s))) / 20_000
    np.testing.assert_allclose(counts, [0.8, 0.1, 0.1], atol=0.01)
    edges = splits.places_of(["00" * 16, "cc" + "cd" * 15, "ff" * 16])
    assert splits.split_of_place(edges).tolist() == [0, 1, 2]


def test_a_choice_narrows_what_is_read(dataset: parquet.LoopDataset) -> None:
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


def test_a_spread_takes_one_loop_a_song_from_first_to_last(dataset: parquet.LoopDataset) -> None:
    songs = list(dict.fromkeys(song for batch in dataset.batches() for song in batch.songs))
    spread = parquet.LoopBatch.joined([*dataset.spread(6)])
    assert len(spread) == len(set(spread.songs)) == 6
    assert (spread.songs[0], spread.songs[-1]) == (songs[0], songs[-1])
    assert set(spread.start_bars.tolist()) == {0}
    assert sum(map(len, dataset.spread(1000, per_song=1))) == 41
    assert list(dataset.spread(5, song="none")) == []


def test_a_spread_of_more_loops_than_songs_takes_as_many_of_each(
    dataset: parquet.LoopDataset,
) -> None:
    def songs(n: int) -> Counter[str]:
        return Counter(song for batch in dataset.spread(n) for song in batch.songs)

    there = Counter(song for batch in dataset.batches() for song in batch.songs)
    for n in (41, 50, 70, len(dataset), len(dataset) + 9):
        found = songs(n)
        assert found.total() == min(n, len(dataset))
        most = max(found.values())
        assert all(found[song] >= min(most - 1, there[song]) for song in there)
    prints = [row.tobytes() for b in dataset.spread(30, distinct=True) for row in b.packed]
    assert len(set(prints)) == len(prints) == 30


def test_a_fingerprint_is_that_of_the_loops_and_older_datasets_have_it_too(
    dataset: parquet.LoopDataset, tmp_path: Path
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
    assert parquet.LoopDataset(copy).fingerprint == dataset.fingerprint
    song = score.to_bytes(groove(8, pitches=[30, 31, 32, 33]))
    (tmp_path / "one.mid").write_bytes(song)
    extract.run([tmp_path / "one.mid"], tmp_path / "other", OPEN, engine=Inline())
    assert parquet.LoopDataset(tmp_path / "other").fingerprint != dataset.fingerprint


def test_a_folder_that_is_no_dataset_is_refused(
    dataset: parquet.LoopDataset, tmp_path: Path
) -> None:
    with pytest.raises(LoopError, match=r"no manifest\.json"):
        parquet.LoopDataset(tmp_path)
    song = tmp_path / "song.mid"
    song.touch()
    with pytest.raises(LoopError, match=r"song\.mid: no manifest\.json; give a folder"):
        parquet.LoopDataset(song)
    manifest = tmp_path / "manifest.json"
    for text, message in [("{", "extract the dataset again"), ("[]", "not a loop dataset"),
                          ('{"format": "x"}', "not a loop dataset")]:  # fmt: skip
        manifest.write_text(text)
        with pytest.raises(LoopError, match=message):
            parquet.LoopDataset(tmp_path)
    manifest.write_text(json.dumps({**dataset.manifest, "format_version": 99}))
    with pytest.raises(LoopError, match="version 99"):
        parquet.LoopDataset(tmp_path)


def test_a_missing_or_damaged_shard_is_named(dataset: parquet.LoopDataset, tmp_path: Path) -> None:
    copy = tmp_path / "loops"
    shutil.copytree(dataset.path, copy)
    shard = copy / "loops" / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(LoopError, match=r"train-00000\.parquet"):
        list(parquet.LoopDataset(copy).batches())
    shard.unlink()
    with pytest.raises(LoopError, match=r"train-00000\.parquet"):
        list(parquet.LoopDataset(copy).batches())


def test_loops_are_played_as_their_songs_are(dataset: parquet.LoopDataset) -> None:
    assert dataset.played
    for batch in dataset.batches():
        assert batch.performances is not None
        for roll, played in zip(batch.rolls, batch.performances, strict=True):
            assert (played.velocities == 100).all()
            assert not played.offsets.any()
            assert len(played.offsets) == performance.onsets(roll).sum()
        taken = batch.take([len(batch) - 1]).performances
        assert taken is not None
        np.testing.assert_array_equal(taken[0].velocities, batch.performances[-1].velocities)


def test_a_dataset_of_earlier_versions_is_not_played(
    dataset: parquet.LoopDataset, tmp_path: Path
) -> None:
    out = tmp_path / "old"
    shutil.copytree(dataset.path, out)
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["performance"], manifest["fingerprint"]
    for shard in manifest["shards"]:
        table = pq.read_table(out / shard["file"])
        pq.write_table(table.drop_columns(["onset_velocity", "onset_offset"]), out / shard["file"])
        del shard["sha256"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    old = parquet.LoopDataset(out)
    assert packed(old) == packed(dataset)
    assert all(batch.performances is None for batch in old.batches())
    with pytest.raises(LoopError, match="old: dataset without performance columns; extract it ag"):
        old.check_played()


@pytest.mark.parametrize(
    ("velocities", "offsets", "message"),
    [
        (b"\x01\x02", b"\0", "another number of velocities than of offsets"),
        (b"\0", b"\0", "not from 1 to 127"),
        (b"\x80", b"\0", "not from 1 to 127"),
    ],
)
def test_what_no_one_can_play_is_refused(
    dataset: parquet.LoopDataset, velocities: bytes, offsets: bytes, message: str
) -> None:
    records = next(dataset.batches(1)).records
    for name, value in (("onset_velocity", velocities), ("onset_offset", offsets)):
        at = records.schema.get_field_index(name)
        records = records.set_column(at, name, pa.array([value], pa.binary()))
    with pytest.raises(LoopError, match=message):
        parquet.check_values(records, LOOP)


def test_a_loop_is_played_onset_by_onset(dataset: parquet.LoopDataset) -> None:
    records = next(dataset.batches(1)).records
    for name in ("onset_velocity", "onset_offset"):
        at = records.schema.get_field_index(name)
        records = records.set_column(at, name, pa.array([b"\x05"], pa.binary()))
    with pytest.raises(LoopError, match="one for each onset of the roll, got 1 and 1"):
        _ = parquet.LoopBatch(LOOP, records).performances
