"""Critics of sound: small networks that tell decoded spectra from real ones.

Those of EnCodec (Défossez et al. 2022, section 3.4) look at complex spectra of several resolutions;
these are smaller, and their spectra are compressed so that what is soft counts as well.
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
    """What one critic finds.

    Attributes:
        score: (B, 1, bins, places), above 0 for real.
        features: activations on the way there.
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
        """Waves (B, 1, samples)."""
        x = compressed(wave.squeeze(1), self.window, circular=circular)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(pad(x, 1, 1, circular=circular)), LEAK)
            features.append(x)
        return DiscriminatorOutput(self.out(pad(x, 1, 1, circular=circular)), features)


def compressed(x: Tensor, window: int, *, circular: bool) -> Tensor:
    """Spectra of waves (B, samples), magnitudes to the power of 0.3: (B, 2, bins, places)."""
    spectra = transform(x, window, circular=circular)
    parts = torch.stack([spectra.real, spectra.imag], 1)
    power = parts.square().sum(1, keepdim=True) + 1e-8
    return parts * power ** ((COMPRESSION - 1) / 2)


class MultiResolutionDiscriminator(nn.Module):
    """One critic for each resolution."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.critics = nn.ModuleList(Discriminator(window, channels) for window in WINDOWS)

    def forward(self, wave: Tensor, *, circular: bool) -> list[DiscriminatorOutput]:
        """Waves (B, 1, samples), to what each critic finds."""
        return [critic(wave, circular=circular) for critic in self.critics]


def discriminator_loss(real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]) -> Tensor:
    """Hinge loss, (): 0 where real scores at least 1 and fake at most −1."""
    losses = [
        F.relu(1 - r.score).mean() + F.relu(1 + f.score).mean()
        for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).mean()


def generator_loss(fake: list[DiscriminatorOutput]) -> Tensor:
    """What a decoder lowers to be taken for real, ()."""
    return torch.stack([F.relu(1 - f.score).mean() for f in fake]).mean()


def feature_matching_loss(
    real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]
) -> Tensor:
    """Mean difference of activations over their own size, (): 0 for equal waves."""
    gaps = [
        (a - b).abs().mean() / a.abs().mean().clamp(min=1e-3)
        for r, f in zip(real, fake, strict=True)
        for a, b in zip(r.features, f.features, strict=True)
    ]
    return torch.stack(gaps).mean()
