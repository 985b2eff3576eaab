"""Training losses: of rolls, or of their codes by a frozen VQ-VAE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from midiloop.common import checkpoint, devices
from midiloop.common.task import Losses, Step, Task, mixed_seed
from midiloop.dataset.tensors import PackedLoops, transpose_bass
from midiloop.models.layers import Loss, Model
from midiloop.models.vq_vae import VQVAE

# The paper's schedules of β and of teacher forcing are written in epochs, of which it has 2,000.
# A shorter run passes through as much of them in the epochs that it has.
MIN_SCHEDULE_EPOCHS = 100
EVALUATION_BATCH = 512
ORDER, SHIFTS, NOISE = 1, 2, 3  # what random numbers of a step are for; noise differs by process


class Objective(nn.Module):
    """A model and its loss: of rolls, or of their codes by a frozen VQ-VAE."""

    def __init__(self, model: Model, codec: VQVAE | None = None) -> None:
        super().__init__()
        self.model = model
        # In a tuple, so that it is no part of what is trained, saved or kept equal everywhere.
        self._codec = (codec,)

    def forward(self, rolls: Tensor, epoch: float) -> Loss:
        """The loss of rolls (B, 128, 93) at an epoch of the model's schedules."""
        return self.model.loss(self._seen(rolls), epoch)

    def of(self, model: Model) -> Objective:
        """The same of another model."""
        return Objective(model, self._codec[0])

    @torch.no_grad()
    def errors(self, rolls: Tensor) -> Tensor:
        """What validation looks at, (B,): see `Model.errors`."""
        return self.model.errors(self._seen(rolls))

    @torch.no_grad()
    def _seen(self, rolls: Tensor) -> Tensor:
        codec = self._codec[0]
        return rolls if codec is None else codec.encode(rolls)


def mean_error(objective: Objective, loops: PackedLoops) -> float:
    """Mean of `Model.errors` over loops and all processes, each of which looks at its share."""
    objective.model.eval()
    device = loops.packed.device
    mine = torch.arange(devices.rank(), len(loops), devices.world(), device=device)
    total = torch.zeros((), dtype=devices.widest(device), device=device)
    for index in torch.split(mine, EVALUATION_BATCH) if len(mine) else ():
        total += objective.errors(loops.rolls(index)).to(total.dtype).sum()
    devices.add_up(total)
    return float(total) / len(loops)


class Piece(NamedTuple):
    """A batch of loops: their rows in the training split, (B,), and shifts in semitones."""

    rows: Tensor
    shifts: Tensor


class LoopTask(Task):
    """A model of loops as a task of the `Trainer`.

    Args:
        kind: of the model, see `models.KINDS`.
        train, valid: loops, on the device of the objective.
        transpose: draw a transposition of the bass for each loop, up to so many semitones.
        epochs: that the run has, for the schedules; 0 where it is not counted in epochs.
        begun_with: what else must be the same when a run resumes, ``dataset`` at best.
    """

    noise_stream = NOISE
    measure = "error"

    def __init__(
        self,
        objective: Objective,
        kind: str,
        train: PackedLoops,
        valid: PackedLoops,
        *,
        seed: int,
        transpose: int = 0,
        epochs: int = 0,
        begun_with: dict[str, Any] | None = None,
    ) -> None:
        self.objective, self.kind, self.train, self.valid = objective, kind, train, valid
        self.seed, self.transpose = seed, transpose
        self.schedule_epochs = max(epochs, MIN_SCHEDULE_EPOCHS)
        self.also_begun_with = begun_with or {}
        self.model: Model = objective.model
        self.networks = {"model": self.model}
        self.optimizers = {"model": torch.optim.AdamW(self.model.parameters())}
        self.n_items = len(train)

    def micro_batches(self, step: Step) -> Iterator[tuple[Piece, float]]:
        """What is this process's share of a batch; each epoch has an order of its own."""
        n, size = len(self.train), step.batch_size
        epoch, at = divmod(step.number, n // size)
        order = torch.randperm(n, generator=self._seeded(ORDER, epoch))
        rows = order[at * size : (at + 1) * size]
        most = self.transpose
        drawn = self._seeded(SHIFTS, step.number)
        shifts = torch.randint(-most, most + 1, (size,), generator=drawn)
        mine = slice(devices.rank(), None, devices.world())
        device = self.train.packed.device
        pieces = zip(
            torch.split(rows[mine].to(device), step.micro_batch_size),
            torch.split(shifts[mine].to(device), step.micro_batch_size),
            strict=True,
        )
        for piece in pieces:
            yield Piece(*piece), len(piece[0]) / len(rows[mine])

    def losses(self, batch: Piece, step: Step) -> Losses:
        """The model's loss, at its place in the model's schedules."""
        rolls = self.train.rolls(batch.rows)
        if self.transpose:
            rolls = transpose_bass(rolls, batch.shifts, self.train.grid)
        loss: Loss = self.objective(rolls, step.done * self.schedule_epochs)
        return Losses({"model": loss.total}, {"loss": loss.total.detach(), **loss.terms})

    def validate(self, model: nn.Module) -> dict[str, float]:
        """See `mean_error`."""
        assert isinstance(model, Model)
        return {"error": mean_error(self.objective.of(model), self.valid)}

    def settled(self, done: float) -> bool:
        """Whether the model's schedules have run out."""
        return done * self.schedule_epochs >= self.model.settled_epoch

    def save(self, folder: Path, model: nn.Module, about: dict[str, Any]) -> None:
        """Write the checkpoint."""
        assert isinstance(model, Model)
        checkpoint.save_model(folder, self.kind, model, about)

    def begun_with(self) -> dict[str, Any]:
        """What must be the same when a run resumes."""
        also = dict(self.also_begun_with)
        return {
            "settings": {"transpose": self.transpose, **also.pop("settings", {})},
            "model": asdict(self.model.config),
            "dataset": {"loops": len(self.train)},
            **also,
        }

    def compile(self) -> None:
        """Compile the model together with its loss."""
        self.objective.compile()

    def _seeded(self, stream: int, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(mixed_seed(self.seed, stream, step))
