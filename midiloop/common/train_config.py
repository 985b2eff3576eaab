"""How long and how to train: what a user may choose for every model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from midiloop.common import devices
from midiloop.errors import CallError

Values = tuple[Callable[[Any], bool], str]  # which values an option may have, and the same in words
FROM_0: Values = (lambda n: n >= 0, "0 or more")
FROM_1: Values = (lambda n: n >= 1, "1 or more")


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
            epochs=FROM_1,
            steps=FROM_1,
            minutes=(lambda minutes: 0 < minutes < 1e6, "more than 0, less than a million"),
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
            batch_size=FROM_1,
            micro_batch_size=FROM_1,
            learning_rate=(lambda rate: 0 < rate <= 1, "more than 0, and at most 1"),
            final_learning_rate=(lambda rate: 0 <= rate <= 1, "0 to 1"),
            warmup_steps=FROM_0,
            max_grad_norm=(lambda norm: norm > 0, "more than 0"),
            ema_decay=(lambda decay: 0 <= decay < 1, "0 or more, less than 1"),
            validate_every=FROM_1,
            patience=FROM_0,
            seed=(lambda seed: 0 <= seed < 2**63, "0 or more, less than 2^63"),
            precision=(devices.PRECISIONS.__contains__, f"one of {', '.join(devices.PRECISIONS)}"),
        )


def _check_ranges(config: object, **ranges: Values) -> None:
    for name, (fits, what) in ranges.items():
        value = getattr(config, name)
        if value is not None and not fits(value):
            raise CallError(f"{name.replace('_', '-')} {value}: out of range; give {what}")
