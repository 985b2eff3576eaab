"""The CNN-VAE: a loop as one vector by convolutions, and back.

Source: Han, Ihm and Lim 2021, arXiv:2111.07657, equations 1 and 3 and appendix table (c).
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from midiloop.common.configs import Kernel, Width
from midiloop.models.layers import ConvBlock, Posterior, ResBlock, RollConfig, conv, initialise
from midiloop.models.lstm_vae import VAE


@dataclass(frozen=True)
class CNNVAEConfig(RollConfig):
    """Sizes of a CNN-VAE. The defaults are the paper's, table (c): 1,374,557 parameters.

    Attributes:
        channels: of the blocks.
        latent_dim: L.
        last_kernel: of the convolution that writes the roll.
    """

    channels: Width = 32
    latent_dim: Width = 512
    last_kernel: Kernel = 7


class CNNVAE(VAE):
    """Two convolutions of stride 2 to the latent, three doublings of time back from it."""

    def __init__(self, config: CNNVAEConfig) -> None:
        super().__init__()
        self.config: CNNVAEConfig = config
        c = config.channels
        if config.steps % 8:
            raise ValueError(f"{config.steps} steps cannot be halved three times")
        self.encoder = nn.Sequential(
            ConvBlock(config.columns, c, 3),  # (B, c, 128)
            ConvBlock(c, c, 3, stride=2),
            ResBlock(c),  # (B, c, 64)
            ConvBlock(c, c, 3, stride=2),
            ResBlock(c),  # (B, c, 32)
        )
        self.posterior = Posterior(c * config.steps // 4, config.latent_dim)
        self.unflatten = nn.Linear(config.latent_dim, c * config.steps // 8)
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2),
            ResBlock(c),  # (B, c, 32)
            nn.Upsample(scale_factor=2),
            ResBlock(c),  # (B, c, 64)
            nn.Upsample(scale_factor=2),
            conv(c, config.columns, config.last_kernel),  # (B, 93, 128)
        )
        initialise(self)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (self.config.latent_dim,)

    def encode(self, rolls: Tensor) -> tuple[Tensor, Tensor]:
        """Rolls (B, 128, 93) to mean and deviation, (B, L) each."""
        h = self.encoder(rolls.mT.float())  # (B, c, 32)
        mean, deviation = self.posterior(rearrange(h, "b c t -> b (c t)"))
        return mean, deviation

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, L) to logits (B, 128, 93)."""
        h = rearrange(self.unflatten(z), "b (c t) -> b c t", c=self.config.channels)  # (B, c, 16)
        logits: Tensor = self.decoder(h).mT
        return logits
