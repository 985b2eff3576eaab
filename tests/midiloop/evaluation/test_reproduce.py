"""The comparison of the paper's models: trained once, measured once, and set out plainly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from midiloop import models
from midiloop.common import checkpoint, files
from midiloop.common.train_config import Budget
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError
from midiloop.evaluation import reproduce
from midiloop.evaluation.reproduce import Reproduction
from midiloop.grid import LOOP
from midiloop.metrics import paper
from midiloop.models.cnn_vae import CNNVAEConfig
from midiloop.models.lstm_vae import ARLSTMVAEConfig, NonARLSTMVAEConfig
from midiloop.models.prior import PriorConfig
from midiloop.training import recipes

CPU = torch.device("cpu")
BUDGET = Budget(epochs=1), replace(recipes.CONFIG, batch_size=32)
TINY: dict[str, Any] = {
    "ar-lstm-vae": ARLSTMVAEConfig(encoder_hidden=8, latent_dim=8),
    "nonar-lstm-vae": NonARLSTMVAEConfig(encoder_hidden=8, latent_dim=8, decoder_hidden=8),
    "cnn-vae": CNNVAEConfig(channels=4, latent_dim=8),
    "prior": PriorConfig(embed_dim=8, hidden=8),
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that train in a moment."""
    for name, config in TINY.items():
        monkeypatch.setitem(models.PRESETS[name], "paper", config)
    monkeypatch.setattr(reproduce, "LATENTS", ((32, 16, 256), (32, 16, 512)))


@pytest.mark.usefixtures("tiny")
def test_a_comparison_is_made_once(dataset: LoopDataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = reproduce.run(dataset, out, *BUDGET, n=20, device=CPU)
    assert set(found.errors) == set(reproduce.NAMES)
    assert set(reproduce.PAPER_ROWS) <= set(found.rows)
    weights = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    rows = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    assert len(weights) == 6

    again = reproduce.run(dataset, out, *BUDGET, n=20, device=CPU, resume=True)
    assert again == found
    assert all(path.stat().st_mtime_ns == time for path, time in {**weights, **rows}.items())

    # A row is of the models, the dataset and the wish that it says; others are measured anew.
    folder = out / "runs" / "cnn-vae" / "cnn-vae"
    model, kind, about = models.load(folder)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    model.state_dict()["decoder.5.bias"].add_(3)
    checkpoint.save_model(folder, kind, model, about)
    changed = reproduce.run(dataset, out, *BUDGET, n=20, device=CPU, resume=True)
    assert changed.errors["cnn-vae"] > found.errors["cnn-vae"]
    assert changed.rows["cnn-vae"] != found.rows["cnn-vae"]
    same = set(found.rows) - {"cnn-vae"}
    assert all(changed.rows[name] == found.rows[name] for name in same)
    for name, data in kept.items():
        (folder / name).write_bytes(data)
    assert reproduce.run(dataset, out, *BUDGET, n=20, device=CPU, resume=True) == found

    text = (out / "report.md").read_text()
    assert text.count("| VQ-VAE temp 1.5") == 4  # tables 3 and 4, and both in that of relations
    assert "bass transposed" in text
    assert "(5.11e-03)" in text
    assert json.loads((out / "report.json").read_text())["errors"] == found.errors
    pictures = {"curves.png", "reconstructions.png", "codes.png", "frequent.png"}
    assert pictures <= {path.name for path in out.iterdir()}
    with pytest.raises(CallError, match="--resume"):
        reproduce.run(dataset, out, *BUDGET, n=20, device=CPU)
    with files.locked(out), pytest.raises(CallError, match="another run is at work here"):
        reproduce.run(dataset, out, *BUDGET, n=20, device=CPU)


def test_rows_are_named_as_the_paper_tables_are() -> None:
    names = [
        reproduce.row_name(t, copied) for t in reproduce.TEMPERATURES for copied in (False, True)
    ]
    assert sorted(names) == sorted(n for n in reproduce.PAPER_ROWS if n.startswith("vq-vae"))


def test_latent_sizes() -> None:
    assert reproduce.latent_config(32, 16, 512) == models.PRESETS["vq-vae"]["paper"]
    config = reproduce.latent_config(64, 32, 256)
    assert (config.code_steps, config.latent_dim, config.codebook_size) == (64, 32, 256)


def comparison(errors: dict[str, float], rows: dict[str, dict[str, float]]) -> Reproduction:
    counts = {"loops": 10, "distinct_loops": 8, "songs": 3}
    settings = {"batch_size": 4, "precision": "float32"}
    about = {
        "counts": counts, "rules": "open", "epochs": 2, "loops": 5, "device": "cpu",
        "settings": settings,
    }  # fmt: skip
    return Reproduction(about, errors, {(32, 16, 512): 0.005}, rows)


def test_rankings_say_where_they_differ_from_the_paper() -> None:
    rows = {
        name: {**dict(zip(paper.TABLE, row, strict=True)), "FND kick": 1.0}
        for name, row in reproduce.PAPER_ROWS.items()
    }
    same = reproduce.rankings(comparison(reproduce.PAPER_ERRORS, rows))
    assert all(line.endswith("as in the paper.") for line in same)
    errors = {**reproduce.PAPER_ERRORS, "vq-vae": 1e-4}
    first, *others = reproduce.rankings(comparison(errors, rows))
    assert "VQ-VAE < NonAR LSTM-VAE < AR LSTM-VAE < CNN-VAE; **in the paper**" in first
    assert others == same[1:]
    assert reproduce.report(comparison(errors, rows)).count("\n## ") == 6


def test_a_row_holds_the_metrics_of_the_rolls() -> None:
    rolls = np.zeros((3, LOOP.steps, LOOP.columns), dtype=bool)
    rolls[:2, 0, 0] = True
    row = reproduce.measure(rolls, LOOP.fingerprints(LOOP.pack(rolls[:1])))
    assert row["FND kick"] == pytest.approx(2 / 3)
    assert row["OS"] == pytest.approx(2 / 3)
    assert row["US"] == pytest.approx(2 / 3)
    assert row["drums exact"] == pytest.approx((6 + 6 + 7) / 21)  # silence repeats itself
    assert row["drums one bar"] == pytest.approx(1 / 3)
    assert reproduce.AUC not in row
