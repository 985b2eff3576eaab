"""Train any model: one plain loop, by epochs, by steps or by the clock, resumable at every step.

A `Task` defines what is trained: its batches, losses, optimisers, validation and checkpoint. The
`Trainer` does what all training has in common. Every step seeds its own random numbers from the
run's seed. So a resumed run ends with the same bits as an uninterrupted one.

Under ``torchrun`` each process takes its share of every batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from midiloop.common import checkpoint, devices, files
from midiloop.common.task import Step, Task, mixed_seed, process_seed
from midiloop.common.train_config import Budget, TrainConfig
from midiloop.common.training_record import TrainingRecord, check_folder
from midiloop.errors import CallError, LoopError

REPORT_EVERY_S = 0.2


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        done: share of it, 0 to 1.
        step: done so far.
        epoch: passes over the data, a fraction; None where they are not counted.
        left_s: seconds, about.
        items_per_s: since the run began or resumed.
        terms: of the loss, means since the last validation.
        figures: of the last validation.
        best: lowest validation error so far; nan before the first.
    """

    done: float
    step: int
    epoch: float | None
    left_s: float
    items_per_s: float
    terms: dict[str, float]
    figures: dict[str, float]
    best: float


class Result(NamedTuple):
    """A finished run.

    Attributes:
        steps: that were taken.
        best: lowest validation error.
        history: one record for each validation.
    """

    steps: int
    best: float
    history: list[dict[str, float]]

    @property
    def epochs(self) -> int:
        """That were run; fewer than asked for where it stopped early."""
        return int(self.history[-1].get("epoch", 0))


class Trainer:
    """Trains a task. What a resumed run needs to know is in the attributes, see `_save`."""

    def __init__(self, task: Task, budget: Budget, config: TrainConfig) -> None:
        self.task, self.budget = task, budget
        self.device = next(task.model.parameters()).device
        precision = devices.choose_precision(config.precision, self.device)
        self.config = replace(config, precision=precision)
        self.batch_size = self._shared_batch()
        share = self.batch_size // devices.world()
        self.micro_batch_size = min(share, config.micro_batch_size or share)
        self.steps_per_epoch: int | None = None
        self.n_steps = budget.steps
        if budget.epochs is not None:
            if task.n_items is None:
                raise CallError("batches are drawn at random; give minutes or steps, no epochs")
            self.steps_per_epoch = task.n_items // self.batch_size
            self.n_steps = budget.epochs * self.steps_per_epoch
        self.average: AveragedModel | None = None
        if config.ema_decay:
            self.average = AveragedModel(task.model, avg_fn=self._averaged, use_buffers=True)
        self.step = 0
        self.took_s = 0.0
        self.history: list[dict[str, float]] = []
        self.best = math.inf
        self.since_best = 0  # validations
        self.validated = 0.0  # share of the run that was done at the last validation
        # Of loss terms since then: totals, and of how many steps.
        self.sums: dict[str, tuple[Tensor | float, int]] = {}

    def fit(
        self,
        folder: Path,
        *,
        about: dict[str, Any] | None = None,
        resume: bool = False,
        on_progress: Callable[[Progress], None] = lambda _: None,
        events: Path | None = None,
    ) -> Result:
        """Train, and leave a checkpoint in a folder, with the history of the run.

        Args:
            about: what the checkpoint shall say of where its weights come from.
            resume: go on with a run that was interrupted.
            events: folder for TensorBoard event files.

        Raises:
            CallError: the folder holds a run already, or one that was begun otherwise.
            LoopError: the loss is not a number, and the last good checkpoint is left as it is; or
                what the folder holds is damaged.
        """
        check_folder(folder, resume=resume)
        self.folder, self.about = folder, about or {}
        self.record = TrainingRecord(folder, self._begun_with())
        with self.record.locked():
            over = resume and self.record.read_finished(self._recall)
            if not over:
                self.record.read_state(self._restore)
            if not devices.agree(-1 if over else self.step):
                raise LoopError(
                    f"{files.printable(folder)}: processes find different states in it; give a "
                    "folder on a disk that all machines share"
                )
            if not over:
                self._fit(on_progress, events)
        return Result(self.step, self.best, self.history)

    def _begun_with(self) -> dict[str, Any]:
        begun = self.task.begun_with()
        settings = {**asdict(self.budget), **asdict(self.config), **begun.pop("settings", {})}
        del settings["save_every_s"]
        return {"settings": settings, **begun}

    def _fit(self, on_progress: Callable[[Progress], None], events: Path | None) -> None:
        if self.config.compile:
            self.task.compile()
        for module in self._modules().values():
            devices.broadcast(module.state_dict().values())
        began_s = saved_s = reported_s = devices.of_first(time.monotonic())
        before_s, first_step = self.took_s, self.step
        with _event_files(events, self.step) as write_event:
            while not self.over:
                self._add(self._step())
                self.step += 1
                now_s = devices.of_first(time.monotonic())
                self.took_s = before_s + now_s - began_s
                validate = self._time_to_validate()
                report = validate or now_s - reported_s > REPORT_EVERY_S
                terms = self._means() if report else {}
                if validate:
                    self._check_finite()
                    self._validate()
                    write_event(self.history[-1], self.step)
                if not self.over and (validate or now_s - saved_s > self.config.save_every_s):
                    self._check_finite()
                    self._save()
                    saved_s = now_s
                if report:
                    rate = (self.step - first_step) * self.batch_size / max(now_s - began_s, 1e-9)
                    on_progress(self._progress(terms, rate))
                    reported_s = now_s
        self._finish()

    # How far it is.

    @property
    def done(self) -> float:
        """Share of the run, 0 to 1."""
        if self.n_steps is not None:
            return min(1.0, self.step / self.n_steps)
        assert self.budget.minutes is not None  # one of the three, as budgets say
        return min(1.0, self.took_s / 60 / self.budget.minutes)

    @property
    def over(self) -> bool:
        """Whether all is done, or the validation error has not fallen for too long."""
        return self.done >= 1 or 0 < self.config.patience <= self.since_best

    def _time_to_validate(self) -> bool:
        if self.steps_per_epoch is not None:
            return self.step % self.steps_per_epoch == 0
        return self.done >= 1 or self.step % self.config.validate_every == 0

    def _means(self) -> dict[str, float]:
        return {name: float(total) / n for name, (total, n) in self.sums.items()}

    def _progress(self, terms: dict[str, float], items_per_s: float) -> Progress:
        epoch = None if self.steps_per_epoch is None else self.step / self.steps_per_epoch
        figures = self.history[-1] if self.history else {}
        best = self.best if self.history else math.nan
        left_s = self.took_s / self.done * (1 - self.done)
        return Progress(self.done, self.step, epoch, left_s, items_per_s, terms, figures, best)

    def _shared_batch(self) -> int:
        """Items of a step, a multiple of the processes."""
        size, n_items = self.config.batch_size, self.task.n_items
        whole = size if n_items is None else min(size, n_items)
        whole -= whole % devices.world()
        if whole == 0 or size % devices.world():
            items = "" if n_items is None else f", of {n_items} items"
            raise CallError(
                f"batch-size {size}{items}: {devices.world()} processes cannot share it evenly; "
                "give a multiple of them"
            )
        return whole

    # A step.

    def _step(self) -> dict[str, Tensor]:
        """Train on one batch; return the terms of its loss."""
        task, config, rank = self.task, self.config, devices.rank()
        stage = sum(self.done >= one.begins for one in task.stages) - 1
        self._set_learning_rate(stage)
        torch.manual_seed(mixed_seed(config.seed, task.noise_stream + rank, self.step))
        for network in task.networks.values():
            network.train()
        for optimizer in task.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        step = Step(
            self.step,
            stage,
            self.done,
            process_seed(config.seed),
            self.batch_size,
            self.micro_batch_size,
        )
        terms: dict[str, Tensor] = {}
        moved: dict[str, Tensor] = {}
        for batch, weight in task.micro_batches(step):
            with devices.autocast(self.device, config.precision):
                losses = task.losses(batch, step)
            moved = losses.minimise
            self._backward(moved, weight)
            for name, term in losses.terms.items():
                terms[name] = terms.get(name, 0) + term * weight
        for name in moved:
            parameters = list(task.networks[name].parameters())
            devices.average_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        for name in moved:
            task.optimizers[name].step()
        if self.average is not None:
            self.average.update_parameters(task.model)
        return devices.averaged(terms)

    def _backward(self, losses: Mapping[str, Tensor], weight: float) -> None:
        """Add to each network's gradient that of its own loss, and of no other's."""
        left = len(losses)
        for name, loss in losses.items():
            left -= 1
            inputs = [p for p in self.task.networks[name].parameters() if p.requires_grad]
            torch.autograd.backward(loss * weight, inputs=inputs, retain_graph=left > 0)

    def _set_learning_rate(self, stage: int) -> None:
        config, stages = self.config, self.task.stages
        begins, share = stages[stage]
        ends = stages[stage + 1].begins if stage + 1 < len(stages) else 1.0
        within = (self.done - begins) / (ends - begins)
        high, low = config.learning_rate, config.final_learning_rate
        rate = low + 0.5 * (high - low) * (1 + math.cos(math.pi * within))
        rate *= share * min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        for optimizer in self.task.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _averaged(self, average: Tensor, now: Tensor, n: Tensor | int) -> Tensor:
        # At first an average of all, so that the weights of the first steps are soon forgotten.
        decay = min(self.config.ema_decay, float((1 + n) / (10 + n)))
        if not average.is_floating_point():
            return now
        # What stands still is kept bit for bit, and a sum with 0 would lose the sign of a zero.
        return torch.where(average == now, average, average.lerp(now, 1 - decay))

    def _add(self, terms: dict[str, Tensor]) -> None:
        """Add the loss of one step; nothing here waits for a GPU."""
        for name, term in terms.items():
            total, n = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + term.to(devices.widest(term.device)), n + 1

    # What is kept.

    @property
    def _shipped(self) -> nn.Module:
        """What is validated and saved."""
        return self.task.model if self.average is None else self.average.module

    def _modules(self) -> dict[str, nn.Module]:
        average = {} if self.average is None else {"average": self.average}
        return {**self.task.networks, **average}

    def _check_finite(self) -> None:
        """Raise `LoopError` rather than save weights that are no numbers, or soon will be."""
        for name, mean in self._means().items():
            if not math.isfinite(mean):
                term = name if name == "loss" else f"loss term {name}"
                self._fail(f"the {term} is {mean}")
        # A gradient can overflow where the loss does not.
        weights = [p for network in self.task.networks.values() for p in network.parameters()]
        if not torch.stack([p.detach().isfinite().all() for p in weights]).all():
            self._fail("weights are no longer finite")

    def _fail(self, cause: str) -> NoReturn:
        raise LoopError(
            f"{files.printable(self.folder)}: {cause} at step {self.step}; the last good "
            "checkpoint stands; train again with a lower --learning-rate or in float32"
        )

    def _validate(self) -> None:
        """Add a record to the history; save the weights where they are the best so far."""
        task, model = self.task, self._shipped
        self._share_buffers()
        model.eval()
        with torch.no_grad():
            found = task.validate(model)
        figures = {name: devices.of_first(value) for name, value in found.items()}
        error = figures[task.measure]
        if not math.isfinite(error):
            self._fail(f"the validation {task.measure} is {error}")
        rate = next(iter(task.optimizers.values())).param_groups[0]["lr"]
        self.history.append({**self._place(), **self._means(), **figures, "learning_rate": rate})
        # While a schedule still runs the model becomes another one, with a larger error: no reason
        # to stop, nor to prefer what it was before.
        settled = task.settled(self.validated)
        self.sums, self.validated = {}, self.done
        self.since_best += 1
        if error < self.best or not settled:
            self.best, self.since_best = error, 0
            if self.config.keep_best:
                self._write_checkpoint()

    def _place(self) -> dict[str, float]:
        """Where the run is, as its history says it."""
        if self.steps_per_epoch is not None:
            return {"epoch": self.step // self.steps_per_epoch}
        return {"step": self.step, "minutes": self.took_s / 60}

    def _share_buffers(self) -> None:
        """Make the same in all processes what each has of its own: statistics of batch norm."""
        for module in self._modules().values():
            devices.broadcast(module.buffers())

    def _write_checkpoint(self) -> None:
        if devices.rank():
            return
        if self.steps_per_epoch is not None:
            error = self.history[-1][self.task.measure] if self.history else None
            trained: dict[str, Any] = {**self._place(), "validation_error": error}
        else:
            trained = {"trained": {"steps": self.step, "minutes": round(self.took_s / 60, 2)}}
        self.task.save(self.folder, self._shipped, {**self.about, **trained})

    def _summary(self) -> dict[str, Any]:
        best = None if math.isinf(self.best) else self.best
        return {"step": self.step, "best": best, "history": self.history}

    def _save(self) -> None:
        """Save the state, and the latest weights where those are what is kept."""
        self._share_buffers()
        if not self.config.keep_best:
            # Before the state: after a kill in between the run goes on from the old one.
            self._write_checkpoint()
        tensors = {
            f"{name}.{key}": tensor
            for name, module in self._modules().items()
            for key, tensor in module.state_dict().items()
        }
        for name, optimizer in self.task.optimizers.items():
            state = checkpoint.optimizer_tensors(optimizer)
            tensors |= {f"optimizer-{name}.{key}": tensor for key, tensor in state.items()}
        about = {
            "took_s": self.took_s,
            "since_best": self.since_best,
            "validated": self.validated,
            "sums": {name: (float(total), n) for name, (total, n) in self.sums.items()},
        }
        self.record.save(tensors, about, self._summary())

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Undo `_save`."""
        for name, module in self._modules().items():
            module.load_state_dict(_under(tensors, name))
        for name, optimizer in self.task.optimizers.items():
            checkpoint.restore_optimizer(optimizer, _under(tensors, f"optimizer-{name}"))
        self._recall(about)
        self.took_s, self.since_best = float(about["took_s"]), int(about["since_best"])
        self.validated = float(about["validated"])
        self.sums = {name: (float(total), int(n)) for name, (total, n) in about["sums"].items()}
        last = math.inf if self.n_steps is None else self.n_steps
        if not (0 <= self.step <= last and 0 <= self.took_s < math.inf):
            raise ValueError("a place that is in no run")

    def _recall(self, summary: dict[str, Any]) -> None:
        """Take over the steps and validations that were, and the best of them."""
        if not all(
            type(x) in (int, float) for record in summary["history"] for x in record.values()
        ):
            raise ValueError("a history of what is no number")
        self.step, self.history = int(summary["step"]), summary["history"]
        self.best = math.inf if summary["best"] is None else float(summary["best"])

    def _finish(self) -> None:
        """Leave what was trained, and its history."""
        if not self.config.keep_best:
            self._write_checkpoint()
        self.record.finish(self._summary())
        devices.barrier()


@contextmanager
def _event_files(
    folder: Path | None, step: int
) -> Iterator[Callable[[dict[str, float], int], None]]:
    """What writes a record of the history for TensorBoard, in the first process alone."""
    if folder is None or devices.rank():
        yield lambda *_: None
        return
    # What an interrupted run wrote of steps that come once more is void.
    with closing(event_writer()(folder, purge_step=step + 1)) as writer:

        def write(record: dict[str, float], step: int) -> None:
            for name, value in record.items():
                if name not in ("epoch", "step", "minutes"):
                    writer.add_scalar(name, value, step)
            writer.flush()

        yield write


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


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
