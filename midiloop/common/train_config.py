"""How long and how to train: what a user may choose for every model."""

from __future__ import annotations

from dataclasses import dataclass

from midiloop.common import devices
from midiloop.errors import CallError


@dataclass(frozen=True)
class Budget:
    """How long to train: one of the three.

    Attributes:
        epochs: passes over the training set.
        steps: of the optimisers.
        minutes: of training, over all sessions.
    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Raise `CallError` unless there is one, in its range."""
        if [self.epochs, self.steps, self.minutes].count(None) != 2:
            raise CallError("say how long to train: either --minutes or --steps")
        _check_ranges(
            self,
            epochs=(self.epochs is None or self.epochs >= 1, "1 or more"),
            steps=(self.steps is None or self.steps >= 1, "1 or more"),
            minutes=(
                self.minutes is None or 0 < self.minutes < 1e6,
                "more than 0, less than a million",
            ),
        )


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        batch_size: items a step, over all processes.
        micro_batch_size: items that are in memory at a time, of which gradients accumulate; None:
            all that a process has of a batch.
        learning_rate, final_learning_rate: over each stage, a cosine from one to the other.
        warmup_steps: over which the learning rate rises from 0.
        max_grad_norm: of each network's gradient.
        ema_decay: of the average of the weights that is validated and saved, once it has seen
            enough of them; 0: the weights themselves are.
        validate_every: steps; where the budget is epochs, it is after each of them.
        keep_best: save the weights with the lowest validation error, and not the latest.
        patience: validations without a lower error after which to stop; 0: never.
        seed: of weights, batches and noise.
        precision: of matrix products, one of `devices.PRECISIONS`; weights stay in float32.
        compile: through ``torch.compile``.
        save_every_s: seconds between saved states; one is saved after each validation as well.
    """

    batch_size: int = 8
    micro_batch_size: int | None = None
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    validate_every: int = 500
    keep_best: bool = False
    patience: int = 0
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    save_every_s: float = 30.0

    def __post_init__(self) -> None:
        """Raise `CallError` unless each is in its range."""
        _check_ranges(
            self,
            batch_size=(self.batch_size >= 1, "1 or more"),
            micro_batch_size=(
                self.micro_batch_size is None or self.micro_batch_size >= 1,
                "1 or more",
            ),
            learning_rate=(0 < self.learning_rate <= 1, "more than 0, and at most 1"),
            final_learning_rate=(0 <= self.final_learning_rate <= 1, "0 to 1"),
            warmup_steps=(self.warmup_steps >= 0, "0 or more"),
            max_grad_norm=(self.max_grad_norm > 0, "more than 0"),
            ema_decay=(0 <= self.ema_decay < 1, "0 or more, less than 1"),
            validate_every=(self.validate_every >= 1, "1 or more"),
            patience=(self.patience >= 0, "0 or more"),
            seed=(0 <= self.seed < 2**63, "0 or more, less than 2^63"),
            precision=(
                self.precision in devices.PRECISIONS,
                f"one of {', '.join(devices.PRECISIONS)}",
            ),
        )


def _check_ranges(config: object, **ranges: tuple[bool, str]) -> None:
    for name, (right, what) in ranges.items():
        if not right:
            value = getattr(config, name)
            raise CallError(f"{name.replace('_', '-')} {value}: out of range; give {what}")
