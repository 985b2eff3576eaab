from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handmade import random_rolls
from midiloop.dataset import export
from midiloop.dataset.parquet import LoopDataset
from midiloop.evaluation import evaluate, sources
from midiloop.evaluation.profile import LoopSet
from midiloop.generation import outputs


def test_a_dataset_is_judged_as_the_midi_files_it_is_exported_as(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "FILES_AT_A_TIME", 7)
    rolls = random_rolls(rng, 30)
    for number in range(16):
        rolls[number, 8 * number + 1 :] = False  # silent at the end, the first but for one step
    rolls[20:24, :, 9:] = False  # no bass
    rolls[24:28, :, :9] = False  # no drums
    written = outputs.write(rolls, tmp_path / "new", tempo_bpm=97, seed=0, about={"run": "here"})
    dataset = LoopDataset(written.dataset)
    export.to_midi(dataset.batches(), tmp_path / "files")

    reference = LoopSet(random_rolls(rng, 20))
    sets = [
        [LoopSet(batch.rolls) for batch in dataset.batches()],
        sources.open_source(tmp_path / "files", None),
    ]
    of_dataset, of_files = (
        evaluate.compare_sets(loops, [reference], np.random.default_rng(0)) for loops in sets
    )
    assert of_files == of_dataset
    assert of_files.loops == (30, None, None)
