"""Loops are humanised before they are rendered, and a file without onsets costs itself alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from audioloop.pipelines import played
from audioloop.rendering import batch
from handmade import BAR, groove, score, track
from midiloop.dataset.parquet import LoopDataset
from midiloop.generation.humanize import Feel
from midiloop.grid import LOOP
from midiloop.midi import pianoroll
from midiloop.midi.score import read, to_bytes
from midiloop.models.hands import Hands, HandsConfig


@pytest.fixture(scope="module")
def hands() -> Hands:
    torch.manual_seed(3)
    return Hands(HandsConfig(dim=16, layers=1, heads=2, rounds=2)).eval()


def test_loops_of_files_and_datasets_are_played(
    hands: Hands, dataset: LoopDataset, tmp_path: Path
) -> None:
    (tmp_path / "a.mid").write_bytes(to_bytes(groove(8)))
    (tmp_path / "piano.mid").write_bytes(to_bytes(score(track([(0, BAR, 60)]))))
    found = batch.items([tmp_path, dataset.path], limit=4)
    items, failed = played.items(found, Feel(seed=1), hands)
    assert [item.name for item in items] == [found[0].name, *(item.name for item in found[2:])]
    ((source, cause),) = failed
    assert source.endswith("piano.mid")
    assert cause.startswith("no drum and no bass note")
    for item in items[1:]:
        assert isinstance(item.midi, bytes)
        (before,) = (one for one in found if one.number == item.number)
        roll = LOOP.unpack(np.frombuffer(before.roll or b"", np.uint8)[None])[0]
        song = read(item.midi)
        np.testing.assert_array_equal(pianoroll.encode(song, circular=True), roll)
        assert len({*song.tracks[0].velocities.tolist()}) > 8
    assert played.items(found, Feel(0), hands) == (found, [])
