"""Hands learn from loops that are played, by the one trainer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from handmade import groove
from midiloop import models
from midiloop.common.engine import Inline
from midiloop.common.train_config import Budget, TrainConfig
from midiloop.dataset import tensors
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError
from midiloop.generation import humanize
from midiloop.midi import score
from midiloop.mining import extract, rules
from midiloop.models.hands import Hands, HandsConfig
from midiloop.training import recipes

CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=8, micro_batch_size=8, keep_best=True, save_every_s=1e9)
TINY = HandsConfig(dim=16, layers=2, heads=2, rounds=2)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> LoopDataset:
    """Songs whose velocities are drawn at random."""
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("songs")
    for number in range(40):
        song = groove(8 + number % 3, pitches=[28 + number % 30, 35, 40, 30])
        drums, bass = song.tracks
        drawn = rng.integers(20, 120, drums.n_notes).astype(np.int8)
        tracks = (drums._replace(velocities=drawn), bass)
        song = score.Score(480, tracks, song.tempos, song.meters, song.length_ticks)
        (folder / f"s{number:02d}.mid").write_bytes(score.to_bytes(song))
    out = tmp_path_factory.mktemp("mined") / "loops"
    extract.run([folder], out, extract.Settings(rules.preset("open")), engine=Inline())
    return LoopDataset(out)


def test_planes_are_what_the_dataset_says(played: LoopDataset) -> None:
    loops = tensors.load_played(played, "train", CPU, min_deviation=8, min_values=8)
    planes = loops.rolls(torch.arange(len(loops)))
    at = 0
    for batch in played.select(split="train", distinct=True):
        assert batch.performances is not None
        for roll, performance in zip(batch.rolls, batch.performances, strict=True):
            assert (planes[at, 0].numpy() == roll).all()
            velocities = planes[at, 1].numpy()
            assert (velocities[velocities > 0] == performance.velocities).all()
            at += 1
    assert at == len(loops)
    few = loops.rolls(torch.tensor([3, 0]))
    assert torch.equal(few, planes[[3, 0]])
    assert torch.equal(loops.rolls(slice(2, 4)), planes[2:4])


@pytest.mark.usefixtures("one_thread_and_seed")
def test_it_trains_resumes_and_plays(
    played: LoopDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.PRESETS["hands"], "small", TINY)
    (done,) = recipes.run(
        "hands", played, tmp_path / "run", Budget(epochs=3), CONFIG, preset="small", device=CPU
    )
    assert done.measure == "nats an onset"
    assert done.result.best < done.result.history[0]["error"] + 1
    hands = humanize.load(tmp_path / "run")
    assert hands.config == TINY
    (again,) = recipes.run(
        "hands", played, tmp_path / "run", Budget(epochs=3), CONFIG, preset="small", device=CPU,
        resume=True,
    )  # fmt: skip
    assert again.result.best == done.result.best
    play = humanize.player(humanize.Feel(), hands)
    assert play is not None
    with pytest.raises(CallError, match="leave out --transpose"):
        recipes.run(
            "hands", played, tmp_path / "two", Budget(epochs=1), CONFIG, preset="small",
            device=CPU, transpose=3,
        )  # fmt: skip


def test_a_dataset_that_is_not_played_is_refused(
    dataset: LoopDataset, played: LoopDataset, tmp_path: Path
) -> None:
    def train(loops: LoopDataset) -> None:
        recipes.run("hands", loops, tmp_path / "r", Budget(epochs=1), preset="small", device=CPU)

    with pytest.raises(LoopError, match="no loop of the train split has played dynamics"):
        train(dataset)
    old = tmp_path / "old"
    shutil.copytree(played.path, old)
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["performance"], manifest["fingerprint"]
    for shard in manifest["shards"]:
        table = pq.read_table(old / shard["file"])
        pq.write_table(table.drop_columns(["onset_velocity", "onset_offset"]), old / shard["file"])
        del shard["sha256"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LoopError, match="dataset without performance columns; extract it again"):
        train(LoopDataset(old))


def test_what_is_drawn_is_of_the_roll(played: LoopDataset) -> None:
    loops = tensors.load_played(played, "train", CPU, min_deviation=8, min_values=8)
    planes = loops.rolls(torch.tensor([0]))[0]
    torch.manual_seed(1)
    hands = Hands(TINY).eval()
    drawn = hands.sample(planes, torch.rand(128 * 10, 3, dtype=torch.float64))
    assert torch.equal(drawn[0], planes[0])
    assert torch.equal(drawn[1] > 0, planes[1] > 0)
    assert int(drawn[1].max()) <= 127
    assert -128 <= int(drawn[2].min()) <= int(drawn[2].max()) <= 127
    assert not drawn[2][planes[1] == 0].any()


def test_a_style_is_how_an_instrument_is_played() -> None:
    planes = torch.zeros(2, 3, 128, 93, dtype=torch.int16)
    planes[:, 0, ::2, 2] = 1
    planes[0, 1, ::2, 2] = 64
    planes[1, 1, ::2, 2] = torch.arange(1, 65, dtype=torch.int16)
    planes[1, 2, ::4, 2] = 32
    hands = Hands(TINY)
    style = hands.style_of(hands.played(planes))
    expected = [0.5, 0.0, 1 / 64, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    torch.testing.assert_close(style[0, 2], torch.tensor(expected))
    _, _, different, late, on_grid, *repeats, there = style[1, 2].tolist()
    assert (different, late, on_grid, repeats, there) == (1, 0.5, 0.5, [0, 0, 0], 1)
    assert not style[:, [0, 1, *range(3, 10)]].any()


def test_what_copies_itself_is_played_so_exactly(played: LoopDataset) -> None:
    """By hands whose styles are all of loops whose kick and hi-hat do, after two bars."""
    rng = np.random.default_rng(3)
    planes = torch.zeros(1, 3, 128, 93, dtype=torch.int16)
    planes[:, 0, :, :3] = 1
    planes[:, 1, :, :3] = torch.from_numpy(rng.integers(1, 128, (32, 3)).astype(np.int16)).repeat(
        4, 1
    )
    torch.manual_seed(1)
    hands = Hands(TINY).eval()
    planes[0, 1, 40, 1] = 1 + planes[0, 1, 40, 1] % 127  # the snare is played otherwise once
    (copies,) = hands.copies_of(hands.played(planes)).tolist()
    assert copies == [2, 0, 2, 0, 0, 0, 0, 0, 0, 0]
    hands.fit_styles(lambda index: planes.expand(len(index), -1, -1, -1), 1)
    loops = tensors.load_played(played, "train", CPU, min_deviation=8, min_values=8)
    song = loops.rolls(torch.arange(4))[:, :, :96].movedim(0, 1).flatten(1, 2)  # 24 bars
    for roll in (planes[0], loops.rolls(torch.tensor([0]))[0], song, planes[0, :, :48]):
        drawn = hands.sample(roll, torch.rand(len(roll[0]) * 10, 3, dtype=torch.float64))
        assert torch.equal(drawn[1] > 0, roll[1] > 0)
        later, before = drawn[:, 32:, [0, 2]], drawn[:, :-32, [0, 2]]
        both = (later[1] > 0) & (before[1] > 0)
        alike = (later[1:] == before[1:]).all(0)
        assert bool(alike[both].all()) == (len(roll[0]) != 48)
