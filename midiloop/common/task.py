"""What a `Trainer` trains: batches, losses and optimisers of a model, and how it is validated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from midiloop.common import devices


class Stage(NamedTuple):
    """A part of a run: where it begins (0 to 1), and its share of the learning rate."""

    begins: float
    rate: float


class Draw(NamedTuple):
    """A batch to draw at random: its number in the run, its items, and its share of the step."""

    number: int
    size: int
    weight: float


class Step(NamedTuple):
    """Where a run is.

    Attributes:
        number: of the step, from 0.
        stage: in which it is, from 0.
        done: share of the run before it, 0 to 1.
        seed: of this process.
        batch_size: items of a step, over all processes.
        micro_batch_size: most items to have in memory at a time.
    """

    number: int
    stage: int
    done: float
    seed: int
    batch_size: int
    micro_batch_size: int

    def draws(self) -> list[Draw]:
        """What is this process's share of the step, where batches are drawn at random."""
        mine = self.batch_size // devices.world()
        n = math.ceil(mine / self.micro_batch_size)
        sizes = [min(self.micro_batch_size, mine - i * self.micro_batch_size) for i in range(n)]
        return [Draw(self.number * n + i, size, size / mine) for i, size in enumerate(sizes)]


class Losses(NamedTuple):
    """Losses of a batch.

    Attributes:
        minimise: the loss of each network, by its name, (). Networks without one are not trained.
        terms: name to (), detached, for the log.
    """

    minimise: dict[str, Tensor]
    terms: dict[str, Tensor]


class Task:
    """What a `Trainer` trains: networks, optimisers, batches, losses, validation.

    Attributes:
        model: the network that is validated and saved.
        networks: all networks that are trained, by name, the model among them.
        optimizers: of each network, by its name.
        stages: in order, the first from 0 on.
        n_items: size of the training set; None: batches are random, and there are no epochs.
        noise_stream: separates the noise of a step from other uses of its seed.
        measure: which figure of `validate` is the error, lower being better.
    """

    model: nn.Module
    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    stages: tuple[Stage, ...] = (Stage(0.0, 1.0),)
    n_items: int | None = None
    noise_stream: int = 0
    measure: str

    def micro_batches(self, step: Step) -> Iterable[tuple[Any, float]]:
        """Batches of this process in a step, in pieces that fit into memory.

        Yields:
            a piece, and its weight; weights add up to 1.
        """
        raise NotImplementedError

    def losses(self, batch: Any, step: Step) -> Losses:
        """The losses of a piece."""
        raise NotImplementedError

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Validation metrics of a model; all processes call it."""
        raise NotImplementedError

    def save(self, folder: Path, model: nn.Module, about: dict[str, Any]) -> None:
        """Write a checkpoint of the model."""
        raise NotImplementedError

    def begun_with(self) -> dict[str, Any]:
        """What must be the same when a run resumes, see `resume.RunRecord`."""
        raise NotImplementedError

    def settled(self, done: float) -> bool:  # noqa: ARG002 - most are, from the start
        """Whether errors from this share of the run on can be compared with later ones."""
        return True

    def compile(self) -> None:
        """Have what takes time compiled."""
        self.model.compile()


def mixed_seed(seed: int, stream: int, step: int) -> int:
    """A seed for one purpose at one step: different ones for all steps of a run."""
    return (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + step) % 2**63


def process_seed(seed: int) -> int:
    """A seed for one of several processes; the first has the seed itself."""
    return seed + (devices.rank() << 64)
