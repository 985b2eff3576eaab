"""Layers that several models share, and what a model's loss returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from midiloop.common.configs import Range, Steps
from midiloop.grid import DENOMINATORS, LOOP, MAX_NUMERATOR, Grid, TimeSignature

LEAK = 0.2


@dataclass(frozen=True, kw_only=True)
class RollConfig:
    """The grid that a model's rolls live on: what all configs of models of rolls have.

    Attributes:
        bars, steps_per_beat: of a loop.
        drums: columns of them.
        lowest_pitch, highest_pitch: of the bass columns, both included.
        numerator, denominator: of the meter.

    Raises:
        LoopError: there is no such meter, or a pulse of it is no whole number of steps.
    """

    bars: Steps = LOOP.bars
    steps_per_beat: Annotated[int, Range(1, 96)] = LOOP.steps_per_beat
    drums: Annotated[int, Range(1, 128)] = LOOP.n_drums
    lowest_pitch: Annotated[int, Range(0, 127)] = LOOP.lowest_pitch
    highest_pitch: Annotated[int, Range(0, 127)] = LOOP.highest_pitch
    numerator: Annotated[int, Range(1, MAX_NUMERATOR)] = LOOP.meter.numerator
    denominator: Annotated[int, Range(1, DENOMINATORS[-1])] = LOOP.meter.denominator

    def __post_init__(self) -> None:
        Grid(self.bars, self.steps_per_beat, (), 0, 0, self.meter)

    @property
    def meter(self) -> TimeSignature:
        """Of each bar."""
        return TimeSignature(self.numerator, self.denominator)

    @property
    def steps_per_pulse(self) -> int:
        """Steps in a pulse of the meter."""
        return self.steps_per_bar // self.meter.pulses

    @property
    def steps_per_bar(self) -> int:
        """Steps in a bar."""
        return 4 * self.numerator * self.steps_per_beat // self.denominator

    @property
    def steps(self) -> int:
        """Of a loop."""
        return self.bars * self.steps_per_bar

    @property
    def pitches(self) -> int:
        """Columns of the bass."""
        return self.highest_pitch - self.lowest_pitch + 1

    @property
    def columns(self) -> int:
        """Of a roll."""
        return self.drums + self.pitches

    def on(self, grid: Grid) -> Self:
        """The same on a grid."""
        return replace(
            self,
            bars=grid.bars,
            steps_per_beat=grid.steps_per_beat,
            drums=grid.n_drums,
            lowest_pitch=grid.lowest_pitch,
            highest_pitch=grid.highest_pitch,
            numerator=grid.meter.numerator,
            denominator=grid.meter.denominator,
        )


class Loss(NamedTuple):
    """What training minimises, and the terms it is the sum of.

    Attributes:
        total: (), differentiable, mean over the batch.
        terms: name to (), detached, for the log.
    """

    total: Tensor
    terms: dict[str, Tensor]


class Model(nn.Module):
    """What is trained: a network that knows its own loss, and how far it is from right.

    Attributes:
        config: the frozen dataclass that it is built from.
        settled_epoch: from where on in its schedules it is the model that it will be.
    """

    config: Any
    settled_epoch: float = 0.0

    def loss(self, batch: Tensor, epoch: float) -> Loss:
        """What to minimise on a batch, at an epoch of the model's schedules, if it has any."""
        raise NotImplementedError

    def errors(self, batch: Tensor) -> Tensor:
        """What validation looks at, of each loop, (B,): lower is better."""
        raise NotImplementedError


class RollModel(Model):
    """A model whose batches are rolls (B, steps, columns), and that gives them back.

    Shapes are given for the usual grid, (B, 128, 93).
    """

    config: RollConfig

    def reconstruct(self, rolls: Tensor) -> Tensor:
        """Rolls through the latent and back: bool (B, 128, 93)."""
        raise NotImplementedError

    @torch.no_grad()
    def errors(self, batch: Tensor) -> Tensor:
        """Reconstruction error: share of cells that come back wrong, (B,)."""
        return (self.reconstruct(batch) != batch.bool()).float().mean((1, 2))


class CodeModel(Model):
    """A model whose batches are the codes (B, T) that a VQ-VAE makes of rolls."""

    @property
    def draws(self) -> int:
        """Random numbers that it takes to sample one loop's codes."""
        raise NotImplementedError

    def fit_start(self, codes: Tensor) -> None:
        """Take from all training codes (N, T) what is counted rather than learned."""


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, leaky ReLU: (B, C, T) to (B, C', T / stride)."""

    def __init__(self, channels_in: int, channels: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__(
            conv(channels_in, channels, kernel, stride=stride, bias=False),
            nn.BatchNorm1d(channels),
            nn.LeakyReLU(LEAK),
        )


class ResBlock(nn.Module):
    """x + conv, batch norm, leaky ReLU, conv, batch norm: (B, C, T) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBlock(channels, channels, 3),
            conv(channels, channels, 3, bias=False),
            nn.BatchNorm1d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, C, T)."""
        y: Tensor = x + self.body(x)
        return y


def conv(
    channels_in: int,
    channels: int,
    kernel: int,
    *,
    stride: int = 1,
    bias: bool = True,
) -> nn.Conv1d:
    """A convolution of odd kernel that keeps T, or divides it by ``stride``.

    Raises:
        ValueError: the kernel has no middle.
    """
    if kernel % 2 == 0:
        raise ValueError(f"a kernel of {kernel} has no middle")
    return nn.Conv1d(channels_in, channels, kernel, stride, kernel // 2, bias=bias)


def initialise(model: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers as He et al. 2015 do; biases are 0."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, a=LEAK)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Posterior(nn.Module):
    """A vector to the mean and deviation of its latent: (B, H) to (B, L) twice.

    The mean passes a layer norm, the deviation a softplus (the paper gives no activation for it).
    """

    def __init__(self, dim_in: int, latent_dim: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(dim_in, latent_dim), nn.LayerNorm(latent_dim))
        self.deviation = nn.Linear(dim_in, latent_dim)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H) to the mean (B, L) and the deviation (B, L), above 0."""
        return self.mean(h), F.softplus(self.deviation(h)) + 1e-6


def reparametrise(mean: Tensor, deviation: Tensor) -> Tensor:
    """Draw z from N(mean, deviation²) so that gradients pass: (B, L) twice to (B, L)."""
    return mean + deviation * torch.randn_like(mean)


def divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """KL divergence from N(mean, deviation²) to N(0, 1) in nats, mean over the batch: to ()."""
    nats = 0.5 * (mean.square() + deviation.square() - 1) - deviation.log()
    return nats.sum(dim=1).mean()


def binary_nats(logits: Tensor, rolls: Tensor) -> Tensor:
    """Equation 3: binary cross-entropy in nats a loop, mean over the batch.

    Args:
        logits, rolls: (B, T, C); rolls are 0 or 1.
    """
    cells = F.binary_cross_entropy_with_logits(logits.float(), rolls.float(), reduction="sum")
    return cells / len(rolls)


def kl_weight(epoch: float) -> float:
    """β of equation 1: 0 at first, near 1 after some thirty epochs, 1 − 0.9^epoch."""
    return 1.0 - float(0.9**epoch)
