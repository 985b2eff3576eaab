"""Recipes of ``midiloop train``: a model, or a VQ-VAE and then the prior of its codes.

A run is a folder with one checkpoint a stage: ``RUN/vq-vae`` and ``RUN/prior``, or ``RUN/cnn-vae``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from midiloop import models
from midiloop.common import checkpoint, configs, devices, files, trainer
from midiloop.common.train_config import Budget, TrainConfig
from midiloop.common.trainer import Progress, Trainer
from midiloop.common.training_record import check_folder
from midiloop.dataset import tensors
from midiloop.dataset.parquet import LoopDataset
from midiloop.dataset.tensors import PackedLoops
from midiloop.errors import CallError, LoopError, counted
from midiloop.grid import LOOP, Grid
from midiloop.models.hands import Hands, HandsConfig
from midiloop.models.layers import CodeModel, Model, RollConfig, RollModel
from midiloop.models.prior import PriorConfig
from midiloop.models.vq_vae import VQVAE, VQVAEConfig
from midiloop.training.objective import LoopTask, Objective

PAPER_MODELS = ("ar-lstm-vae", "nonar-lstm-vae", "cnn-vae", "vq-vae")
MODELS = (*PAPER_MODELS, "loop-transformer")
CODEC = "vq-vae"
HANDS = "hands"  # what plays loops, and generates none
PRIOR = "prior"  # the folder of the second stage
ENCODED_TOGETHER = 512  # loops that are encoded at a time
FINGERPRINTS = "fingerprints.safetensors"
EPOCHS = 20
CONFIG = TrainConfig(
    batch_size=256,
    micro_batch_size=256,
    final_learning_rate=5e-6,
    patience=10,
    keep_best=True,
)
WARMUP_STEPS, EMA_DECAY = 300, 0.998  # of the loop transformer: others need neither


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
    result: trainer.Result

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {
            "folder": str(self.folder),
            "measure": self.measure,
            "epochs": self.result.epochs,
            **self.result._asdict(),
        }


def stages(model: str, preset: str | None = None, grid: Grid = LOOP) -> list[Stage]:
    """What has to be trained for a model of a grid, in order; without a preset its first one.

    Raises:
        CallError: there is no such model, or it has no such preset.
    """
    if model not in (*MODELS, HANDS):
        names = ", ".join((*MODELS, HANDS))
        raise CallError(f"no model is called {model!r}; choose from {names}")
    found = models.PRESETS[model]
    preset = preset or next(iter(found))
    if preset not in found:
        raise CallError(f"{model} has no preset {preset!r}; choose from {', '.join(found)}")
    config = found[preset].on(grid)
    first = Stage(model, model, config)
    if model != CODEC:
        return [first]
    prior = replace(models.PRESETS[PRIOR][preset], code_steps=config.code_steps)
    return [first, Stage(PRIOR, PRIOR, prior)]


def run(
    model: str,
    dataset: LoopDataset,
    out: Path,
    budget: Budget,
    config: TrainConfig = CONFIG,
    *,
    preset: str | None = None,
    only: str | None = None,
    transpose: int = 0,
    distinct: bool = True,
    device: torch.device,
    resume: bool = False,
    events: bool = False,
    on_progress: Callable[[str, Progress], None] = lambda *_: None,
) -> list[Trained]:
    """Train a model on the splits of a dataset, as they are stored.

    Args:
        only: name of the one stage to train, see `stages`; the others see `run_stages`.

    Raises:
        CallError, LoopError: see `stages` and `run_stages`.
    """
    plan = stages(model, preset, dataset.grid)
    if model == "loop-transformer":
        config = replace(config, warmup_steps=WARMUP_STEPS, ema_decay=EMA_DECAY)
    chosen = [stage for stage in plan if only in (None, stage.name)]
    if not chosen:
        raise CallError(f"{model} has no stage {only!r}; it has {', '.join(s.name for s in plan)}")
    done = run_stages(
        chosen,
        dataset,
        out,
        budget,
        config,
        transpose=transpose,
        distinct=distinct,
        device=device,
        resume=resume,
        events=events,
        on_progress=on_progress,
    )
    if devices.rank() == 0 and model != HANDS:
        write_fingerprints(out, dataset)
    return done


def run_stages(
    chosen: Sequence[Stage],
    dataset: LoopDataset,
    out: Path,
    budget: Budget,
    config: TrainConfig = CONFIG,
    *,
    transpose: int = 0,
    distinct: bool = True,
    device: torch.device,
    resume: bool = False,
    events: bool = False,
    on_progress: Callable[[str, Progress], None] = lambda *_: None,
) -> list[Trained]:
    """Train stages, each into its folder in ``out``.

    Args:
        transpose: see `LoopTask`.
        distinct: use each loop once, however often it occurs.
        events: write TensorBoard event files into each stage's folder.

    Raises:
        CallError: see `Trainer.fit`.
        LoopError: a split is empty, the first stage is missing, or the loss is not a number;
            or the dataset is on another grid than the model, or on one that it cannot have.
    """
    _check_start(chosen, dataset, out, resume=resume, events=events)
    if HANDS in {stage.name for stage in chosen} and (transpose or not distinct):
        raise CallError(
            "hands: learns from distinct loops as they are; leave out --transpose and --repeats"
        )
    loops = {
        split: _loops(chosen, dataset, split, device, distinct=distinct)
        for split in ("train", "valid")
    }
    about = {
        "settings": {**asdict(budget), **asdict(config), "transpose": transpose},
        "data": {
            "rules": dataset.manifest["rules"]["name"],
            "counts": dataset.manifest["counts"],
            "fingerprint": dataset.fingerprint,
            **({} if dataset.grid == LOOP else {"grid": dataset.grid.as_json()}),
        },
        "distinct": distinct,
    }
    begun_with = {"settings": {"repeats": not distinct}, "dataset": about["data"]}
    done = []
    for stage in chosen:
        codec = checkpoint.identity(out / CODEC) if stage.name == PRIOR else None
        task = LoopTask(
            _objective(stage, out, config.seed, loops["train"], device),
            stage.kind,
            loops["train"],
            loops["valid"],
            seed=config.seed,
            transpose=transpose,
            epochs=budget.epochs or 0,
            begun_with={**begun_with, "VQ-VAE": codec},
        )
        result = Trainer(task, budget, config).fit(
            out / stage.name,
            about=about if codec is None else {**about, "codec": codec},
            resume=resume,
            events=out / stage.name / "events" if events else None,
            on_progress=partial(on_progress, stage.name),
        )
        done.append(Trained(out / stage.name, _measure(task.model), result))
    return done


def _measure(model: Model) -> str:
    """What the validation error of a model is."""
    if isinstance(model, Hands):
        return "nats an onset"
    return "reconstruction error" if isinstance(model, RollModel) else "nats a loop"


def _loops(
    chosen: Sequence[Stage],
    dataset: LoopDataset,
    split: str,
    device: torch.device,
    *,
    distinct: bool,
) -> PackedLoops:
    """What stages learn from: rolls, or for `HANDS` how they are played."""
    for stage in chosen:
        if isinstance(stage.config, HandsConfig):
            return tensors.load_played(
                dataset,
                split,
                device,
                min_deviation=stage.config.min_velocity_deviation,
                min_values=stage.config.min_velocity_values,
            )
    return tensors.load(dataset, split, device, distinct=distinct)


def _check_start(
    chosen: Sequence[Stage], dataset: LoopDataset, out: Path, *, resume: bool, events: bool
) -> None:
    """Raise errors early that would occur hours later."""
    name = files.printable(out)
    if os.path.lexists(out) and not out.is_dir():
        raise CallError(f"{name}: a file; give the name of a folder")
    files.check_parent(out)
    files.check_writable(out)
    for stage in chosen:
        check_folder(out / stage.name, resume=resume)
        if isinstance(stage.config, RollConfig):
            check_grid(stage.config, dataset.grid, dataset.path)
            _check_fits(stage, dataset)
    if PRIOR in {stage.name for stage in chosen} and CODEC not in {stage.name for stage in chosen}:
        (prior,) = (stage.config for stage in chosen if stage.name == PRIOR)
        codec = _codec(out / CODEC, prior, torch.device("cpu"))
        check_grid(codec.config, dataset.grid, dataset.path)
    if events:
        trainer.event_writer()


def check_grid(config: RollConfig, grid: Grid, where: Path) -> None:
    """Raise `LoopError` unless loops of a grid are what a model takes."""
    if config.on(grid) != config:
        raise LoopError(
            f"{files.printable(where)}: loops of {counted(grid.bars, 'bar')} of {grid.meter}, "
            f"{grid.steps} steps and {grid.columns} columns, and the model takes {config.bars} of "
            f"{config.meter}, {config.steps} and {config.columns}; extract the loops on the "
            "model's grid"
        )


def _check_fits(stage: Stage, dataset: LoopDataset) -> None:
    """Raise `LoopError` where no model of a kind can be made for the grid of a dataset."""
    try:
        configs.from_json(type(stage.config), asdict(stage.config))
        with checkpoint.shapes_alone():
            models.build(stage.kind, stage.config)
    except ValueError as error:
        raise LoopError(
            f"{files.printable(dataset.path)}: no {stage.kind} takes loops of "
            f"{files.shortened(str(dataset.grid), 80)} ({error}); extract other --bars or "
            "--steps-per-beat, or train another model"
        ) from None


def _objective(
    stage: Stage, out: Path, seed: int, train: PackedLoops, device: torch.device
) -> Objective:
    codec = _codec(out / CODEC, stage.config, device) if stage.name == PRIOR else None
    torch.manual_seed(seed)
    model = models.build(stage.kind, stage.config).to(device)
    if isinstance(model, Hands):
        model.fit_styles(train.rolls, len(train))
    if isinstance(model, CodeModel) and codec is not None:
        model.fit_start(encoded(codec, train))
    return Objective(model, codec)


def _codec(folder: Path, prior: PriorConfig, device: torch.device) -> VQVAE:
    """The VQ-VAE whose codes a prior models."""
    if not (folder / "config.json").exists():
        raise LoopError(f"{folder}: no checkpoint; train it first, with --stage {CODEC}")
    codec, kind, _ = models.load(folder, device)
    if not isinstance(codec, VQVAE):
        raise LoopError(f"{folder}: holds a {kind}; train it again, with --stage {CODEC}")
    if not knows(prior, codec.config):
        raise CallError(f"{folder}: trained with another preset; give the same one")
    return codec


def knows(prior: PriorConfig, codec: VQVAEConfig) -> bool:
    """Whether a prior is one of codes such as those of a VQ-VAE."""
    return (codec.codebook_size, codec.code_steps) == (prior.codebook_size, prior.code_steps)


@torch.no_grad()
def encoded(codec: VQVAE, loops: PackedLoops) -> torch.Tensor:
    """Codes of all loops: int64 (n, T)."""
    rows = torch.split(torch.arange(len(loops), device=loops.packed.device), ENCODED_TOGETHER)
    return torch.cat([codec.encode(loops.rolls(index)) for index in rows])


def write_fingerprints(out: Path, dataset: LoopDataset) -> None:
    """Leave a hash of every distinct loop of the dataset in a run, for ``generate --novel``."""
    grid = dataset.grid
    prints = [grid.fingerprints(grid.pack(batch.rolls)) for batch in dataset.batches()]
    known = np.unique(np.concatenate(prints)).view(np.int64)
    checkpoint.write_tensors(out / FINGERPRINTS, {"loops": torch.from_numpy(known)})


def pack(run: Path, out: Path) -> None:
    """Copy the checkpoints of a run in 16 bits, with the fingerprints, to ship them.

    Raises:
        CallError: see `files.check_free`.
        LoopError: the run lacks something.
    """
    files.check_free(out)
    known, _ = checkpoint.read_tensors(run / FINGERPRINTS)
    for config in sorted(run.glob("*/config.json")):
        model, kind, about = models.load(config.parent)
        checkpoint.save_model(out / config.parent.name, kind, model, about, half=True)
    checkpoint.write_tensors(out / FINGERPRINTS, known)
