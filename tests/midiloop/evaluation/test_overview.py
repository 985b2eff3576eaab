from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from handmade import groove
from midiloop.common.engine import Inline
from midiloop.dataset.parquet import LoopDataset
from midiloop.evaluation import overview
from midiloop.metrics import paper
from midiloop.midi import score
from midiloop.mining import extract


def test_the_metrics_of_a_dataset_are_those_of_all_its_loops(tmp_path: Path) -> None:
    (tmp_path / "songs").mkdir()
    for number in range(5):
        song = groove(12 + number, pitches=[30 + number, 35, 40, 28])
        (tmp_path / "songs" / f"{number}.mid").write_bytes(score.to_bytes(song))
    shutil.copy(tmp_path / "songs" / "0.mid", tmp_path / "songs" / "same.mid")
    extract.run([tmp_path / "songs"], tmp_path / "loops", engine=Inline())
    dataset = LoopDataset(tmp_path / "loops")
    found = overview.of(dataset)
    expected = paper.evaluate(batch.rolls for batch in dataset.batches())
    assert list(found.metrics) == list(paper.TABLE)
    assert found.metrics == pytest.approx(expected, rel=1e-12)
    assert found.metrics["US"] == expected["US"] < 1
    assert sum(found.tempo_bpm.counts) == sum(found.note_density.counts) == len(dataset)


def test_a_dataset_without_loops_has_no_metrics(tmp_path: Path) -> None:
    (tmp_path / "empty.mid").write_bytes(b"")
    extract.run([tmp_path / "empty.mid"], tmp_path / "loops", engine=Inline())
    assert overview.of(LoopDataset(tmp_path / "loops")).metrics == {}
