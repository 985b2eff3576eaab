"""Discriminators of decoded and real spectra, at several resolutions.

As those of EnCodec (Défossez et al. 2022, section 3.4) they see complex spectra. They are smaller,
and magnitudes are compressed so that soft parts count as well.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioloop.codec.losses import transform
from audioloop.nn.circular import pad

WINDOWS = (512, 1024, 2048)
COMPRESSION = 0.3  # exponent of magnitudes
LEAK = 0.2


class DiscriminatorOutput(NamedTuple):
    """Output of one discriminator.

    Attributes:
        score: (B, 1, bins, frames), above 0 for real.
        features: activations of its layers.
    """

    score: Tensor
    features: list[Tensor]


class Discriminator(nn.Module):
    """Convolutions over a spectrum of one resolution."""

    def __init__(self, window: int, channels: int = 16) -> None:
        super().__init__()
        self.window = window
        widths = [2, channels, channels, 2 * channels, 2 * channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, (9, 3), stride=(3 if before == 2 else 2, 1), padding=(4, 0))
            for before, after in pairwise(widths)
        )
        self.out = nn.Conv2d(2 * channels, 1, 3, padding=(1, 0))

    def forward(self, wave: Tensor, *, circular: bool) -> DiscriminatorOutput:
        """Score waves (B, 1, samples)."""
        x = compressed(wave.squeeze(1), self.window, circular=circular)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(pad(x, 1, 1, circular=circular)), LEAK)
            features.append(x)
        return DiscriminatorOutput(self.out(pad(x, 1, 1, circular=circular)), features)


def compressed(x: Tensor, window: int, *, circular: bool) -> Tensor:
    """Spectra of waves (B, samples), magnitudes to the power of 0.3: (B, 2, bins, frames)."""
    spectra = transform(x, window, circular=circular)
    parts = torch.stack([spectra.real, spectra.imag], 1)
    power = parts.square().sum(1, keepdim=True) + 1e-8
    return parts * power ** ((COMPRESSION - 1) / 2)


class MultiResolutionDiscriminator(nn.Module):
    """One discriminator for each resolution."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.critics = nn.ModuleList(Discriminator(window, channels) for window in WINDOWS)

    def forward(self, wave: Tensor, *, circular: bool) -> list[DiscriminatorOutput]:
        """Score waves (B, 1, samples) by each discriminator."""
        return [critic(wave, circular=circular) for critic in self.critics]


def discriminator_loss(real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]) -> Tensor:
    """Hinge loss of the discriminators, (): 0 where real scores at least 1 and fake at most −1."""
    losses = [
        F.relu(1 - r.score).mean() + F.relu(1 + f.score).mean()
        for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).mean()


def generator_loss(fake: list[DiscriminatorOutput]) -> Tensor:
    """Hinge loss of the decoder, (): 0 where fake scores at least 1."""
    return torch.stack([F.relu(1 - f.score).mean() for f in fake]).mean()


def feature_matching_loss(
    real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]
) -> Tensor:
    """Relative mean difference of activations, (): 0 for equal waves."""
    distances = [
        (a - b).abs().mean() / a.abs().mean().clamp(min=1e-3)
        for r, f in zip(real, fake, strict=True)
        for a, b in zip(r.features, f.features, strict=True)
    ]
    return torch.stack(distances).mean()
