"""What ``midiloop train`` does: a model, or a VQ-VAE and then the prior of its codes.

A run is a folder with one checkpoint a stage: ``RUN/vq-vae`` and ``RUN/prior``, or ``RUN/cnn-vae``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from midiloop import checkpoint, data, fit, models
from midiloop.data import PackedLoops
from midiloop.errors import CallError
from midiloop.fit import Objective, Progress, Settings
from midiloop.models.form_prior import FormPriorConfig
from midiloop.models.layers import CodeModel
from midiloop.models.vq_vae import VQVAE
from midiloop.store import LoopDataset

MODELS = ("ar-lstm-vae", "nonar-lstm-vae", "cnn-vae", "vq-vae")
PRIOR = "prior"  # the folder of the second stage, whichever kind of prior it holds
CODED = 512  # loops that are encoded at a time
SAMPLED = 4096  # loops that thresholds are measured on
FINGERPRINTS = "fingerprints.safetensors"


class Stage(NamedTuple):
    """One model to train: its folder in the run, its kind, and its config."""

    name: str
    kind: str
    config: Any


@dataclass(frozen=True)
class Trained:
    """A stage that is done.

    Attributes:
        measure: what its validation error is.
    """

    folder: Path
    measure: str
    result: fit.Result

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {"folder": str(self.folder), "measure": self.measure, **self.result._asdict()}


def stages(model: str, preset: str) -> list[Stage]:
    """What has to be trained for a model, in order.

    Raises:
        CallError: there is no such model, or it has no such preset.
    """
    if model not in MODELS:
        raise CallError(f"no model is called {model!r}; choose from {', '.join(MODELS)}")
    found = models.PRESETS[model]
    if preset not in found:
        raise CallError(f"{model} has no preset {preset!r}; choose from {', '.join(found)}")
    first = Stage(model, model, found[preset])
    if model != "vq-vae":
        return [first]
    prior = models.PRESETS[PRIOR][preset]
    kind = "form-prior" if isinstance(prior, FormPriorConfig) else "prior"
    return [first, Stage(PRIOR, kind, prior)]


def run(
    model: str,
    dataset: LoopDataset,
    out: Path,
    settings: Settings,
    *,
    preset: str = "paper",
    only: str | None = None,
    distinct: bool = True,
    device: torch.device,
    resume: bool = False,
    events: bool = False,
    on_progress: Callable[[str, Progress], None] = lambda *_: None,
) -> list[Trained]:
    """Train a model on the splits of a dataset, as they are stored.

    Args:
        only: name of the one stage to train, see `stages`.
        distinct: learn from each loop once, however often it comes.
        events: write TensorBoard event files into each stage's folder.

    Raises:
        CallError: see `stages` and `fit.fit`.
        LoopError: a split is empty, the first stage is missing, or the loss is not a number.
    """
    plan = stages(model, preset)
    chosen = [stage for stage in plan if only in (None, stage.name)]
    if not chosen:
        raise CallError(f"{model} has no stage {only!r}; it has {', '.join(s.name for s in plan)}")
    if out.exists() and not out.is_dir():
        raise CallError(f"{out}: a file; give the name of a folder")
    if not out.parent.is_dir():
        raise CallError(f"{out.parent}: no such folder; make it first")
    loops = {
        split: data.load(dataset, split, device, distinct=distinct) for split in ("train", "valid")
    }
    about = {"rules": dataset.manifest["rules"]["name"], "counts": dataset.manifest["counts"]}
    done = []
    for stage in chosen:
        objective = _objective(stage, plan, out, settings, loops["train"], device)
        result = fit.fit(
            objective,
            stage.kind,
            loops["train"],
            loops["valid"],
            settings,
            out / stage.name,
            about={"settings": asdict(settings), "data": about},
            resume=resume,
            events=out / stage.name / "events" if events else None,
            on_progress=partial(on_progress, stage.name),
        )
        if stage.kind == "vq-vae" and _is_first():
            calibrate(out / stage.name, loops["train"], device)
        if dist.is_initialized():
            dist.barrier()
        measure = "nats a loop" if stage.name == PRIOR else "reconstruction error"
        done.append(Trained(out / stage.name, measure, result))
    if _is_first():
        write_fingerprints(out, dataset)
    return done


def _objective(
    stage: Stage,
    plan: Sequence[Stage],
    out: Path,
    settings: Settings,
    train: PackedLoops,
    device: torch.device,
) -> Objective:
    codec: VQVAE | None = None
    if stage.name == PRIOR:
        found = checkpoint.load_model(out / plan[0].name, device).model
        if not isinstance(found, VQVAE) or found.config != plan[0].config:
            raise CallError(f"{out / plan[0].name}: trained with another preset; give the same one")
        codec = found
    torch.manual_seed(settings.seed)
    model = models.build(stage.kind, stage.config).to(device)
    if isinstance(model, CodeModel) and codec is not None:
        model.fit_start(encoded(codec, train))
    return Objective(model, codec)


@torch.no_grad()
def encoded(codec: VQVAE, loops: PackedLoops) -> torch.Tensor:
    """Codes of all loops: int64 (n, S, T)."""
    rows = torch.split(torch.arange(len(loops), device=loops.packed.device), CODED)
    return torch.cat([codec.encode(loops.rolls(index)) for index in rows])


@torch.no_grad()
def calibrate(folder: Path, train: PackedLoops, device: torch.device) -> None:
    """Set the drum thresholds of a codec so that each drum plays as often as in the training set.

    At a probability of one half rare drums, crashes above all, are lost: each single hit is less
    likely than none.
    """
    codec, kind, about = checkpoint.load_model(folder, device)
    assert isinstance(codec, VQVAE)
    if not codec.config.calibrated or "thresholds" in about:
        return
    codec.drum_thresholds.copy_(drum_thresholds(codec, train))
    kept = {
        k: v for k, v in about.items() if k not in ("format", "format_version", "kind", "config")
    }
    checkpoint.save_model(folder, kind, codec, {**kept, "thresholds": "matched to training"})


def drum_thresholds(codec: VQVAE, loops: PackedLoops) -> torch.Tensor:
    """Logit of each drum, (drums,), that as many cells exceed as play in ``loops``."""
    n_drums = len(codec.drum_thresholds)
    rows = torch.split(torch.arange(0, len(loops), -(-len(loops) // SAMPLED)), CODED)
    logits, played = [], torch.zeros(n_drums, dtype=torch.int64)
    for index in rows:
        rolls = loops.rolls(index.to(loops.packed.device))
        logits.append(codec(rolls)[0][..., :n_drums].flatten(0, 1).cpu())
        played += rolls[..., :n_drums].sum((0, 1)).cpu()
    ranked = torch.cat(logits).sort(0, descending=True).values  # (cells, drums)
    # Half-way between the last cell that plays and the first that does not.
    last = (played - 1).clamp(min=0)
    pair = ranked.gather(0, torch.stack([last, last + 1]))
    return pair.mean(0).where(played > 0, codec.drum_thresholds.cpu())


def write_fingerprints(out: Path, dataset: LoopDataset) -> None:
    """Leave a hash of every distinct loop of the dataset in a run, for ``generate --novel``."""
    grid = dataset.grid
    prints = [grid.fingerprints(grid.pack(batch.rolls)) for batch in dataset.batches()]
    known = np.unique(np.concatenate(prints)).view(np.int64)
    checkpoint.write_tensors(out / FINGERPRINTS, {"loops": torch.from_numpy(known)})


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
