"""Train a model of sound: by steps or by the clock, resumable, with an average of its weights.

Nothing is drawn from a running generator: every step seeds its own. So a run of a number of steps
that was killed goes on to the same bits as one that was left alone. A run by the clock is as long
as its minutes, however often it was interrupted.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from midiloop import checkpoint, files
from midiloop.errors import CallError, LoopError
from midiloop.store import LoopDataset

WARM_UP = 100  # steps
VALIDATE_EVERY = 500
STATE = "state.safetensors"
# What a run cannot go on with, in words, by what its task says that it hears.
OTHERS = {
    "fingerprint": "another dataset",
    "soundfonts_sha256": "other SoundFonts",
    "codec": "another codec",
}


@dataclass(frozen=True)
class Settings:
    """How long and how to train.

    Attributes:
        minutes: of training, over all sessions; or
        steps: number of them.
        batch: excerpts a step.
        learning_rate: largest; it falls to 0 over each stage as a cosine does.
        decay: of the average of the weights, once it has seen enough of them.
        clip: largest norm of the gradient.
        seed: of everything.
        save_every_s: seconds between saved states.
    """

    minutes: float | None = None
    steps: int | None = None
    batch: int = 8
    learning_rate: float = 1e-3
    decay: float = 0.999
    clip: float = 1.0
    seed: int = 0
    save_every_s: float = 120.0

    def __post_init__(self) -> None:
        """Raise `CallError` unless each is in its range."""
        if (self.minutes is None) == (self.steps is None):
            raise CallError("say how long to train: either --minutes or --steps")
        ranges = {
            "minutes": (
                self.minutes is None or 0 < self.minutes < 1e6,
                "more than 0, less than a million",
            ),
            "steps": (self.steps is None or self.steps >= 1, "1 or more"),
            "batch": (self.batch >= 1, "1 or more"),
            "learning-rate": (0 < self.learning_rate <= 1, "more than 0, and at most 1"),
            "seed": (0 <= self.seed < 2**63, "0 or more, less than 2^63"),
        }
        for name, (right, what) in ranges.items():
            if not right:
                value = getattr(self, name.replace("-", "_"))
                raise CallError(f"{name} {value}: out of range; give {what}")


class Stage(NamedTuple):
    """A part of a run: where it begins (0 to 1), and its share of the learning rate."""

    begins: float
    rate: float


class Task:
    """Something to learn.

    Attributes:
        model: what is learned, and shipped as the average of its weights.
        modules: all that learns, the model among them.
        optimizers: of all parameters that learn.
        stages: in order, the first from 0 on.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    stages: tuple[Stage, ...]

    def step(self, number: int, stage: int) -> dict[str, Tensor]:
        """Learn from one batch; the terms of its loss."""
        raise NotImplementedError

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures of a model on what it does not learn from."""
        raise NotImplementedError

    def save(self, folder: Path, model: nn.Module, about: dict[str, Any]) -> None:
        """Write a checkpoint of the model."""
        raise NotImplementedError

    def begun_with(self) -> dict[str, Any]:
        """What must be the same when a run resumes."""
        raise NotImplementedError


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        done: share of it, 0 to 1.
        step: done so far.
        left_s: seconds, about.
        terms: of the last step's loss.
        figures: of the last validation.
    """

    done: float
    step: int
    left_s: float
    terms: dict[str, float]
    figures: dict[str, float]


class Result(NamedTuple):
    """A finished run: steps, seconds of training, and one record for each validation."""

    steps: int
    took_s: float
    history: list[dict[str, float]]


def fit(
    task: Task,
    settings: Settings,
    folder: Path,
    *,
    about: dict[str, Any],
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Train, and leave a checkpoint in the folder, with its history and a state to resume from.

    Args:
        about: what the checkpoint shall say of where its weights come from.
        resume: go on with a run that was interrupted.

    Raises:
        CallError: the folder holds a run already, or one that was begun otherwise.
        LoopError: the loss is not a number; the last state stands. Or what is there is damaged.
    """
    check_folder(folder, resume=resume)
    run = _Run(task, settings, folder, about)
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder):
        run.open()
        return _fit(run, on_progress)


def _fit(run: _Run, on_progress: Callable[[Progress], None]) -> Result:
    began_s, before_s = time.monotonic(), run.took_s
    saved_s = reported_s = began_s
    while run.done < 1:
        terms = run.step()
        now_s = time.monotonic()
        run.took_s = before_s + now_s - began_s
        last = run.done >= 1
        if last or run.number % VALIDATE_EVERY == 0:
            run.validate(terms)
        if last or now_s - saved_s > run.settings.save_every_s:
            run.save(terms, finished=last)
            saved_s = time.monotonic()
        if last or now_s - reported_s > 0.2:
            on_progress(run.progress(terms))
            reported_s = now_s
    return Result(run.number, run.took_s, run.history)


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise `CallError` for a folder that no run can begin in, or go on in."""
    name = files.printable(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise CallError(f"{name}: a file; give the name of a folder")
    if (folder / STATE).exists() and not resume:
        raise CallError(f"{name}: a run is there already; add --resume, or choose another name")
    files.check_writable(folder)


def heard(dataset: LoopDataset, soundfonts: Sequence[Path]) -> dict[str, Any]:
    """What a model learns from, as its card says it, and as a run that resumes holds to it."""
    return {
        "rules": dataset.manifest["rules"]["name"],
        "counts": dataset.manifest["counts"],
        "fingerprint": dataset.fingerprint,
        "soundfonts": [path.name for path in soundfonts],
        "soundfonts_sha256": [files.digest(path) for path in soundfonts],
    }


class _Run:
    """Everything that a resumed run needs to know, and where it is kept."""

    def __init__(self, task: Task, settings: Settings, folder: Path, about: dict[str, Any]) -> None:
        self.task, self.settings, self.folder, self.about = task, settings, folder, about
        self.average = AveragedModel(task.model, avg_fn=self._averaged, use_buffers=True)
        self.number = 0
        self.took_s = 0.0
        self.history: list[dict[str, float]] = []

    def _averaged(self, average: Tensor, now: Tensor, n: Tensor | int) -> Tensor:
        # At first an average of all, so that the weights of the first steps are soon forgotten.
        decay = min(self.settings.decay, float((1 + n) / (10 + n)))
        if not average.is_floating_point():
            return now
        # What stands still is kept bit for bit, and a sum with 0 would lose the sign of a zero.
        return torch.where(average == now, average, average.lerp(now, 1 - decay))

    @property
    def state_file(self) -> Path:
        return self.folder / STATE

    @property
    def history_file(self) -> Path:
        return self.folder / "training.json"

    @property
    def done(self) -> float:
        """Share of the run, 0 to 1."""
        if self.settings.steps is not None:
            return min(1.0, self.number / self.settings.steps)
        assert self.settings.minutes is not None  # one of the two, as settings say
        return min(1.0, self.took_s / 60 / self.settings.minutes)

    def step(self) -> dict[str, Tensor]:
        """One step at the learning rate of its place in its stage."""
        settings, task = self.settings, self.task
        edges = (*(stage.begins for stage in task.stages), 1.0)
        stage = sum(self.done >= edge for edge in edges[:-1]) - 1
        within = (self.done - edges[stage]) / (edges[stage + 1] - edges[stage])
        rate = 0.5 * settings.learning_rate * (1 + math.cos(math.pi * within))
        rate *= task.stages[stage].rate * min(1.0, (self.number + 1) / WARM_UP)
        for optimizer in task.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
        torch.manual_seed((settings.seed * 0x9E3779B97F4A7C15 + self.number) % 2**63)
        for module in task.modules.values():
            module.train()
        terms = task.step(self.number, stage)
        self.average.update_parameters(task.model)
        self.number += 1
        return terms

    def validate(self, terms: dict[str, Tensor]) -> None:
        """Add a record to the history."""
        self.average.module.eval()
        with torch.no_grad():
            figures = self.task.validate(self.average.module)
        losses = {name: float(term) for name, term in terms.items()}
        self.history.append({"step": self.number, "minutes": self.took_s / 60, **losses, **figures})

    def progress(self, terms: dict[str, Tensor]) -> Progress:
        left_s = self.took_s / self.done * (1 - self.done)
        losses = {name: float(term) for name, term in terms.items()}
        figures = self.history[-1] if self.history else {}
        return Progress(self.done, self.number, left_s, losses, figures)

    def begun_with(self) -> dict[str, Any]:
        settings = asdict(replace(self.settings, save_every_s=0.0))
        found: dict[str, Any] = json.loads(
            json.dumps({"settings": settings, "task": self.task.begun_with()})
        )
        return found

    def open(self) -> None:
        """Load the state to resume from, where there is one."""
        if self.state_file.exists():
            self._load()

    def _load(self) -> None:
        tensors, about = checkpoint.read_tensors(self.state_file)
        try:
            self._check(about["begun_with"])
            checkpoint.check_finite(self.state_file, tensors)
            for name, module in self._modules().items():
                module.load_state_dict(_under(tensors, name))
            for name, optimizer in self.task.optimizers.items():
                checkpoint.restore_optimizer(optimizer, _under(tensors, f"optimizer-{name}"))
            self.number, self.took_s = int(about["step"]), float(about["took_s"])
            self.history = [dict(record) for record in about["history"]]
            if self.number < 0 or not 0 <= self.took_s < math.inf:
                raise ValueError("a time before its beginning")
        except LoopError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            cause = files.shortened(str(error).partition("\n")[0])
            raise LoopError(
                f"{files.printable(self.state_file)}: not the state of such a run ({cause}); "
                "delete it to begin anew"
            ) from error

    def _check(self, begun_with: dict[str, Any]) -> None:
        """Raise `CallError` where the run was begun with something else."""
        now = self.begun_with()
        if begun_with == now:
            return
        before, heard = (found["task"].get("heard", {}) for found in (begun_with, now))
        odd = [what for key, what in OTHERS.items() if before.get(key) != heard.get(key)]
        raise CallError(
            f"{files.printable(self.folder)}: the run was begun with "
            f"{', '.join(odd) or 'other settings'}; resume it as it was begun, or choose another "
            "name"
        )

    def _modules(self) -> dict[str, nn.Module]:
        return {**self.task.modules, "average": self.average}

    def save(self, terms: dict[str, Tensor], *, finished: bool) -> None:
        """Write the state, in one file, so that a kill leaves the old one or the new one."""
        finite = all(bool(p.isfinite().all()) for p in self.task.model.parameters())
        if not (finite and all(math.isfinite(float(term)) for term in terms.values())):
            raise LoopError(
                f"{self.folder}: the loss or weights are not finite at step {self.number}; the "
                "last saved state stands; train again with a lower --learning-rate"
            )
        tensors = {
            f"{name}.{key}": tensor
            for name, module in self._modules().items()
            for key, tensor in module.state_dict().items()
        }
        for name, optimizer in self.task.optimizers.items():
            state = checkpoint.optimizer_tensors(optimizer)
            tensors |= {f"optimizer-{name}.{key}": tensor for key, tensor in state.items()}
        about = {
            "begun_with": self.begun_with(),
            "step": self.number,
            "took_s": self.took_s,
            "history": self.history,
        }
        trained = {"steps": self.number, "minutes": round(self.took_s / 60, 2)}
        # Before the state: a kill in between is made up for when the run goes on from the old one.
        self.task.save(self.folder, self.average.module, {**self.about, "trained": trained})
        checkpoint.write_tensors(self.state_file, tensors, about)
        history = {**about, "finished": finished}
        files.write(self.history_file, (json.dumps(history, indent=2) + "\n").encode())


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
