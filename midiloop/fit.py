"""Train any model on a loop dataset: one plain loop, resumable at every step.

Nothing is drawn from a running generator: every step seeds its own, and every epoch its order, from
the run's seed. So a run that was killed goes on from its last saved state to the same bits as one
that was left alone.

Under ``torchrun`` each process takes its share of every batch.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from midiloop import checkpoint, configs, files, models
from midiloop.data import PackedLoops, transpose_bass
from midiloop.errors import CallError, LoopError
from midiloop.models.layers import Loss, Model
from midiloop.models.vq_vae import VQVAE

# The paper's schedules of β and of teacher forcing are written in epochs, of which it has 2,000.
# A shorter run passes through as much of them in the epochs that it has.
MIN_SCHEDULE_EPOCHS = 100
EVALUATION_BATCH = 512
PRECISIONS = ("float32", "bfloat16")
STATE, HISTORY = "state.safetensors", "training.json"
# What a run cannot go on with, in words, by what `fit` is told that it is about.
OTHERS = {
    "data": "another dataset",
    "distinct": "repeats of loops counted otherwise",
    "codec": "the codes of another VQ-VAE",
}


@dataclass(frozen=True)
class Settings:
    """How to train, beside what.

    Attributes:
        epochs: passes over the training split.
        batch: loops a step, over all processes.
        micro_batch: loops that are in memory at a time; gradients of a batch accumulate.
        learning_rate, final_learning_rate: cosine from one to the other (AdamW).
        patience: epochs without a better validation error after which to stop; 0: never.
        clip: largest norm of the gradient.
        transpose: draw a transposition of the bass for each loop, up to so many semitones.
        seed: of weights, order and noise.
        precision: of the matrix products; weights stay in float32.
        compile: through ``torch.compile``.
        save_every_s: seconds between saved states; one is saved after each epoch as well.
    """

    epochs: int = 20
    batch: int = 256
    micro_batch: int = 256
    learning_rate: float = 1e-3
    final_learning_rate: float = 5e-6
    patience: int = 10
    clip: float = 1.0
    transpose: int = 0
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    save_every_s: float = 30.0

    def __post_init__(self) -> None:
        """Raise `CallError` unless each is in its range."""
        ranges = {
            "epochs": self.epochs >= 1,
            "batch": self.batch >= 1,
            "micro_batch": self.micro_batch >= 1,
            "learning_rate": 0 < self.learning_rate <= 1,
            "final_learning_rate": 0 <= self.final_learning_rate <= 1,
            "patience": self.patience >= 0,
            "clip": self.clip > 0,
            "transpose": self.transpose >= 0,
            "seed": 0 <= self.seed < 2**63,
            "precision": self.precision in PRECISIONS,
        }
        for name, right in ranges.items():
            if not right:
                raise CallError(
                    f"{name.replace('_', '-')} {getattr(self, name)}: out of range; leave it out "
                    "for the default"
                )


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        step, n_steps: done, and to do in all.
        epoch: passes over the data, a fraction.
        terms: mean loss terms of this epoch.
        error, best: last validation error and the lowest so far; nan before the first.
        loops_per_s: since the run began or resumed.
    """

    step: int
    n_steps: int
    epoch: float
    terms: dict[str, float]
    error: float
    best: float
    loops_per_s: float


class Objective(nn.Module):
    """What is trained: a model of rolls, or one of the codes that a frozen codec makes of them."""

    def __init__(self, model: Model, codec: VQVAE | None = None) -> None:
        super().__init__()
        self.model = model
        # In a tuple, so that it is no part of what is trained, saved or kept equal everywhere.
        self._codec = (codec,)

    def forward(self, rolls: Tensor, epoch: float) -> Loss:
        """The loss of rolls (B, 128, 93) at an epoch of the model's schedules."""
        return self.model.loss(self._seen(rolls), epoch)

    @torch.no_grad()
    def errors(self, rolls: Tensor) -> Tensor:
        """What validation looks at, (B,): see `Model.errors`."""
        return self.model.errors(self._seen(rolls))

    @torch.no_grad()
    def _seen(self, rolls: Tensor) -> Tensor:
        codec = self._codec[0]
        return rolls if codec is None else codec.encode(rolls)


class Result(NamedTuple):
    """A finished run.

    Attributes:
        best: lowest validation error.
        epochs: that were run; fewer than asked for where it stopped early.
        history: one record an epoch.
    """

    best: float
    epochs: int
    history: list[dict[str, float]]


def fit(
    objective: Objective,
    kind: str,
    train: PackedLoops,
    valid: PackedLoops,
    settings: Settings,
    folder: Path,
    *,
    about: dict[str, Any] | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    events: Path | None = None,
) -> Result:
    """Train a model and leave its best weights, by validation error, in a checkpoint folder.

    Args:
        kind: of the model, see `models.KINDS`.
        train, valid: loops, on the device of the objective.
        folder: for the checkpoint, the history (``training.json``), and while the run goes on the
            state to resume from.
        about: what else the checkpoint shall say of where its weights come from: ``settings``, and
            what has to be the same when a run resumes, as ``data``.
        resume: go on with a run that was interrupted.
        events: folder for TensorBoard event files.

    Raises:
        CallError: the folder holds a run already, or one that was begun with other settings.
        LoopError: the loss is not a number, and the last good checkpoint is left as it is; or what
            the folder holds is damaged.
    """
    check_folder(folder, resume=resume)
    run = _Run(objective, kind, train, settings, folder, about or {})
    with run.locked():
        return _fit(run, valid, resume=resume, on_progress=on_progress, events=events)


def _fit(
    run: _Run,
    valid: PackedLoops,
    *,
    resume: bool,
    on_progress: Callable[[Progress], None],
    events: Path | None,
) -> Result:
    over = resume and run.finished()
    if not over:
        run.open()
    _check_same(run, -1 if over else run.step)
    if over:
        return run.result()
    forward = _parallel(run.objective, run.settings)
    with _Watch(run, on_progress, events if _rank() == 0 else None) as watch:
        while run.step < run.n_steps and not run.stopped():
            _set_learning_rate(run)
            watch.add(_step(run, forward))
            run.step += 1
            if run.step % run.steps_per_epoch == 0:
                watch.report()
                run.agree()
                run.check()
                run.close_epoch(mean_error(run.objective, valid, run.settings.precision))
                watch.epoch()
                watch.save()
            elif watch.due():
                run.check()
                watch.save()
    run.finish()
    return run.result()


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise `CallError` for a folder that no run can begin in, or go on in."""
    name = files.printable(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise CallError(f"{name}: a file; give the name of a folder")
    if not resume and any((folder / file).exists() for file in (STATE, HISTORY)):
        raise CallError(f"{name}: a run is there already; add --resume, or choose another name")


class _Run:
    """Everything that a resumed run needs to know, and where it is kept."""

    def __init__(
        self,
        objective: Objective,
        kind: str,
        train: PackedLoops,
        settings: Settings,
        folder: Path,
        about: dict[str, Any],
    ) -> None:
        self.objective, self.kind, self.train = objective, kind, train
        self.settings, self.folder, self.about = settings, folder, about
        self.optimizer = torch.optim.AdamW(objective.parameters(), settings.learning_rate)
        self.batch = min(settings.batch, len(train)) // _world() * _world()
        if self.batch == 0 or settings.batch % _world():
            raise CallError(
                f"batch {settings.batch}, of {len(train)} loops: {_world()} processes cannot share "
                "it evenly; give a multiple of them"
            )
        self.steps_per_epoch = len(train) // self.batch
        self.n_steps = settings.epochs * self.steps_per_epoch
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best = math.inf
        self.since_best = 0
        self.sums: dict[str, Tensor | float] = {}  # of the loss terms, in this epoch
        self.summed_steps = 0

    @property
    def state_file(self) -> Path:
        return self.folder / STATE

    @property
    def history_file(self) -> Path:
        return self.folder / HISTORY

    def begun_with(self) -> dict[str, Any]:
        """What must be the same when a run resumes."""
        settings = asdict(replace(self.settings, save_every_s=0.0))
        model = models.to_json(self.objective.model.config)
        of = {name: what for name, what in self.about.items() if name != "settings"}
        return {"model": model, "settings": settings, "loops": len(self.train), "of": of}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from training into the folder; of several processes the first does."""
        if _rank():
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.locked(self.folder):
            yield

    def finished(self) -> bool:
        """Whether the folder holds a run that came to its end."""
        if not self.history_file.exists():
            return False
        try:
            found = files.read_json(self.history_file)
            self._check(found["begun_with"])
            if found["finished"]:
                self._recall(found)
            return bool(found["finished"])
        except CallError:  # it is a run, and another one
            raise
        except LoopError as error:
            raise self._damaged(self.history_file, error) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(self.history_file, "not the history of a run") from error

    def open(self) -> None:
        """Load the state to resume from, where there is one; make the folder."""
        if self.state_file.exists():
            self._load()
        if _rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)

    def _load(self) -> None:
        try:
            tensors, about = checkpoint.read_tensors(self.state_file)
            self._check(about["begun_with"])
            checkpoint.check_finite(self.state_file, tensors)
            self._restore(tensors)
            self._recall(about)
            self.step, self.since_best = int(about["step"]), int(about["since_best"])
            self.sums = {name: float(total) for name, total in about["sums"].items()}
            self.summed_steps = int(about["summed_steps"])
            if not 0 <= self.step <= self.n_steps:
                raise ValueError
        except CallError:  # it is a run, and another one
            raise
        except LoopError as error:
            raise self._damaged(self.state_file, error) from error
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise self._damaged(self.state_file, "not the state of a run") from error

    def _recall(self, found: dict[str, Any]) -> None:
        """Take over the epochs that were, and the best of them."""
        if not all(type(x) in (int, float) for record in found["history"] for x in record.values()):
            raise ValueError("a history of what is no number")
        self.history = found["history"]
        self.best = math.inf if found["best"] is None else float(found["best"])

    @staticmethod
    def _damaged(file: Path, cause: LoopError | str) -> LoopError:
        name = files.printable(file)
        said = str(cause).removeprefix(f"{name}: ").partition("; ")[0]
        return LoopError(f"{name}: {said}; delete it, and --resume goes on from what is left")

    def _check(self, begun_with: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.begun_with()))
        if begun_with == now:
            return
        old, new = begun_with["settings"], now["settings"]
        odd = [
            f"{k} {configs.quoted(old.get(k))}, not {configs.quoted(new[k])}"
            for k in new
            if old.get(k) != new[k]
        ]
        before = begun_with.get("of", {})
        odd += [OTHERS.get(k, f"another {k}") for k in now["of"] if before.get(k) != now["of"][k]]
        what = ", ".join(odd) or "another model or dataset"
        raise CallError(
            f"{self.folder}: the run was begun with {what}; resume it as it was begun, or choose "
            "another name"
        )

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        model = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        self.objective.model.load_state_dict(model)
        under = "optimizer."
        state = {n.removeprefix(under): t for n, t in tensors.items() if n.startswith(under)}
        checkpoint.restore_optimizer(self.optimizer, state)

    def save(self) -> None:
        """Save the state, in one file, so that a kill leaves the old one or the new one."""
        if _rank() != 0:
            return
        tensors = {f"model.{n}": t for n, t in self.objective.model.state_dict().items()}
        state = checkpoint.optimizer_tensors(self.optimizer)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in state.items()}
        about = {
            "begun_with": self.begun_with(),
            "step": self.step,
            "history": self.history,
            "best": None if math.isinf(self.best) else self.best,
            "since_best": self.since_best,
            "sums": {name: float(total) for name, total in self.sums.items()},
            "summed_steps": self.summed_steps,
        }
        checkpoint.write_tensors(self.state_file, tensors, about)
        self._write_history(finished=False)

    def agree(self) -> None:
        """Make the same in all processes what each has of its own: buffers, sums of the loss."""
        if not dist.is_initialized():
            return
        for buffer in self.objective.model.buffers():  # statistics of batch norm
            dist.broadcast(buffer, 0)
        for name, total in self.sums.items():
            assert isinstance(total, Tensor)  # from the first step on
            dist.all_reduce(total)
            self.sums[name] = total / _world()

    def check(self) -> None:
        """Raise `LoopError` rather than save weights that are no numbers, or soon will be."""
        loss = self.means()["loss"]
        # A gradient can overflow where the loss does not.
        finite = torch.stack([p.detach().isfinite().all() for p in self.objective.parameters()])
        if not math.isfinite(loss):
            self._fail(f"the loss is {loss}")
        if not finite.all():
            self._fail("weights are no longer finite")

    def _fail(self, cause: str) -> NoReturn:
        raise LoopError(
            f"{self.folder}: {cause} at step {self.step}; the last good checkpoint stands; "
            "train again with a lower --learning-rate or in float32"
        )

    def means(self) -> dict[str, float]:
        """Mean loss terms of this epoch's steps so far."""
        return {name: float(total) / self.summed_steps for name, total in self.sums.items()}

    def close_epoch(self, error: float) -> None:
        """Take note of an epoch's end; keep the weights where they are the best so far."""
        if not math.isfinite(error):
            self._fail(f"the validation error is {error}")
        epoch = self.step // self.steps_per_epoch
        rate = self.optimizer.param_groups[0]["lr"]
        record = {"epoch": epoch, **self.means(), "error": error, "learning_rate": rate}
        self.history.append(record)
        self.sums, self.summed_steps = {}, 0
        self.since_best += 1
        # While β rises the model becomes another one, with a larger error: no reason to stop, nor
        # to prefer what it was before.
        began = _clock(self, self.step - self.steps_per_epoch)
        rising = began < self.objective.model.settled_epoch
        if error < self.best or rising:
            self.best, self.since_best = error, 0
            if _rank() == 0:
                about = {**self.about, "epoch": epoch, "validation_error": error}
                checkpoint.save_model(self.folder, self.kind, self.objective.model, about)

    def stopped(self) -> bool:
        """Whether the validation error has not fallen for too long."""
        return 0 < self.settings.patience <= self.since_best

    def finish(self) -> None:
        """Write the history; the state has done its work."""
        if _rank() == 0:
            self._write_history(finished=True)
            self.state_file.unlink(missing_ok=True)

    def _write_history(self, *, finished: bool) -> None:
        found = {
            "begun_with": self.begun_with(),
            "finished": finished,
            "best": None if math.isinf(self.best) else self.best,
            "history": self.history,
        }
        text = json.dumps(found, indent=1) + "\n"
        files.write(self.history_file, text.encode())

    def result(self) -> Result:
        return Result(self.best, len(self.history), self.history)


class _Watch:
    """Means of the loss, reports of progress, and what is written for TensorBoard."""

    def __init__(
        self, run: _Run, on_progress: Callable[[Progress], None], events: Path | None
    ) -> None:
        self.run, self.on_progress = run, on_progress
        self.began_s = self.saved_s = self.reported_s = time.monotonic()
        self.first_step = run.step
        # What an interrupted run wrote of steps that come once more is void.
        self.writer = event_writer()(events, purge_step=run.step + 1) if events else None

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer:
            self.writer.close()

    def add(self, loss: Loss) -> None:
        """Add the loss of one step; nothing here waits for a GPU."""
        sums = self.run.sums
        for name, term in {"loss": loss.total.detach(), **loss.terms}.items():
            sums[name] = sums.get(name, 0.0) + term.to(_widest(term.device))
        self.run.summed_steps += 1
        if time.monotonic() - self.reported_s > 0.2:
            self.report()

    def report(self) -> None:
        run, self.reported_s = self.run, time.monotonic()
        loops = (run.step - self.first_step) * run.batch
        error = run.history[-1]["error"] if run.history else math.nan
        best = run.best if run.history else math.nan
        rate = loops / (time.monotonic() - self.began_s)
        epoch = run.step / run.steps_per_epoch
        self.on_progress(Progress(run.step, run.n_steps, epoch, run.means(), error, best, rate))

    def epoch(self) -> None:
        """Write the last record of the history for TensorBoard."""
        if self.writer:
            for name, value in self.run.history[-1].items():
                if name != "epoch":
                    self.writer.add_scalar(name, value, self.run.step)
            self.writer.flush()

    def due(self) -> bool:
        """Whether it is time to save, for all processes alike."""
        if dist.is_initialized():
            return False  # the clocks of the processes differ; they save after each epoch
        return time.monotonic() - self.saved_s > self.run.settings.save_every_s

    def save(self) -> None:
        """Save the state; note when."""
        self.saved_s = time.monotonic()
        self.run.save()


def _check_same(run: _Run, step: int) -> None:
    """Raise `LoopError` where processes have found different states to resume from."""
    if not dist.is_initialized():
        return
    found = torch.tensor([step, -step], device=run.train.packed.device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    if found.sum() != 0:  # the largest, less the smallest
        raise LoopError(
            f"{run.folder}: processes find different states in it; give a folder on a disk that "
            "all machines share"
        )


def _step(run: _Run, forward: nn.Module) -> Loss:
    """One step of the optimiser on this process's share of a batch."""
    settings, n = run.settings, len(run.train)
    device = run.train.packed.device
    epoch, at = divmod(run.step, run.steps_per_epoch)
    order = torch.randperm(n, generator=_seeded(settings.seed, 1, epoch))
    rows = order[at * run.batch : (at + 1) * run.batch]
    shifts = torch.randint(
        -settings.transpose,
        settings.transpose + 1,
        (len(rows),),
        generator=_seeded(settings.seed, 2, run.step),
    )
    mine = slice(_rank(), None, _world())
    rows, shifts = rows[mine].to(device), shifts[mine].to(device)
    torch.manual_seed(_mixed(settings.seed, 3 + _rank(), run.step))
    run.objective.model.train()
    run.optimizer.zero_grad(set_to_none=True)
    pieces = list(
        zip(
            torch.split(rows, settings.micro_batch),
            torch.split(shifts, settings.micro_batch),
            strict=True,
        )
    )
    total, terms = torch.zeros((), device=device), dict[str, Tensor]()
    for number, (index, shift) in enumerate(pieces):
        rolls = run.train.rolls(index)
        if settings.transpose:
            rolls = transpose_bass(rolls, shift, run.train.grid)
        share = len(index) / len(rows)
        with _unsynchronised(forward, number < len(pieces) - 1):
            with precision(device, settings.precision):
                loss: Loss = forward(rolls, _clock(run, run.step))
            (loss.total * share).backward()  # type: ignore[no-untyped-call]
        total += loss.total.detach() * share
        for name, term in loss.terms.items():
            terms[name] = terms.get(name, 0) + term * share
    nn.utils.clip_grad_norm_(run.objective.parameters(), settings.clip)
    run.optimizer.step()
    return Loss(total, terms)


def _clock(run: _Run, step: int) -> float:
    """Where a run is at a step in the schedules of its model, in the paper's epochs."""
    return step / run.n_steps * max(run.settings.epochs, MIN_SCHEDULE_EPOCHS)


def _set_learning_rate(run: _Run) -> None:
    high, low = run.settings.learning_rate, run.settings.final_learning_rate
    rate = low + 0.5 * (high - low) * (1 + math.cos(math.pi * run.step / run.n_steps))
    for group in run.optimizer.param_groups:
        group["lr"] = rate


def mean_error(objective: Objective, loops: PackedLoops, products: str = "float32") -> float:
    """Mean of `Model.errors` over loops and all processes, each of which looks at its share.

    Args:
        products: see `Settings.precision`.
    """
    objective.model.eval()
    device = loops.packed.device
    mine = torch.arange(_rank(), len(loops), _world(), device=device)
    total = torch.zeros((), dtype=_widest(device), device=device)
    for index in torch.split(mine, EVALUATION_BATCH) if len(mine) else ():
        with precision(device, products):
            total += objective.errors(loops.rolls(index)).to(total.dtype).sum()
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total) / len(loops)


def _widest(device: torch.device) -> torch.dtype:
    """What to add up in: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def precision(device: torch.device, name: str) -> AbstractContextManager[Any]:
    """Matrix products in 16 bits, or nothing."""
    if name == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def _unsynchronised(forward: nn.Module, wait: bool) -> Iterator[None]:
    """Leave the gradients of all but the last piece of a batch to this process."""
    if wait and isinstance(forward, DistributedDataParallel):
        with forward.no_sync():
            yield
    else:
        yield


def _parallel(objective: Objective, settings: Settings) -> nn.Module:
    if settings.compile:
        objective.compile()
    return DistributedDataParallel(objective) if dist.is_initialized() else objective


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes of ``torchrun``, where it started this one.

    Yields:
        the device of this process.
    """
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """``auto`` is the first of CUDA, MPS and CPU that is there.

    Raises:
        CallError: there is no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind, found in there.items() if found), "cpu")
    if not there.get(name, True):
        raise CallError(f"there is no {name} device for PyTorch here; use --device cpu")
    if name == "cuda":  # what is done in another order each time would not resume bit for bit
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device(name)


def event_writer() -> Any:
    """What writes event files.

    Raises:
        ImportError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("event files: pip install tensorboard, or leave --tensorboard") from error
    return SummaryWriter


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _mixed(seed: int, stream: int, step: int) -> int:
    """A seed for one purpose at one step: different ones for all steps of a run."""
    return (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + step) % 2**63


def _seeded(seed: int, stream: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(_mixed(seed, stream, step))
