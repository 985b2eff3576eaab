"""The VQ-VAE: a loop as a short row of symbols from a dictionary, and back.

Source: Han, Ihm and Lim 2021, arXiv:2111.07657, equation 2 and appendix table (d).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from midiloop.common.configs import CodebookSize, Range, Share, Weight, Width
from midiloop.common.vq import Quantized, ResidualVectorQuantizer
from midiloop.models.layers import (
    ConvBlock,
    Loss,
    ResBlock,
    RollConfig,
    RollModel,
    binary_nats,
    conv,
    initialise,
)


@dataclass(frozen=True)
class VQVAEConfig(RollConfig):
    """Sizes of a VQ-VAE. The defaults are the paper's, table (d).

    The table's third stride-2 convolution contradicts the shape (32, 16) that it gives for its
    output; the paper's text (t = 32, L = 16) is what stands here: two of them, then a plain one.

    Attributes:
        channels, embed_channels: of the blocks, and of the layer of kernel 1 next to the roll.
        latent_dim: L, length of a dictionary vector.
        codebook_size: K, vectors in a dictionary.
        halvings: convolutions of stride 2: the latent has 128 / 2^halvings steps.
        decay, commitment: of the dictionary's averages, and β of equation 2.
    """

    channels: Width = 32
    embed_channels: Width = 64
    latent_dim: Width = 16
    codebook_size: CodebookSize = 512
    halvings: Annotated[int, Range(0, 10)] = 2
    decay: Share = 0.99
    commitment: Weight = 0.25

    @property
    def code_steps(self) -> int:
        """T: codes of a loop."""
        return self.steps >> self.halvings


class VQVAE(RollModel):
    """Loops to codes (B, T) and back: T = 32 in the paper."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config: VQVAEConfig = config
        if config.steps % 2**config.halvings:
            raise ValueError(f"{config.steps} steps cannot be halved {config.halvings} times")
        c, e = config.channels, config.embed_channels
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for _ in range(config.halvings):
            down += [ConvBlock(c, c, 3, stride=2), ResBlock(c)]
            up += [nn.Upsample(scale_factor=2), ResBlock(c)]
        self.encoder = nn.Sequential(
            ConvBlock(config.columns, e, 1),
            ConvBlock(e, c, 1),  # (B, c, 128)
            *down,  # (B, c, T)
            conv(c, config.latent_dim, 3),
        )
        self.quantizer = ResidualVectorQuantizer(
            1, config.codebook_size, config.latent_dim, decay=config.decay
        )
        self.decoder = nn.Sequential(
            ConvBlock(config.latent_dim, c, 3),
            *up,  # (B, c, 128)
            ConvBlock(c, e, 1),
            conv(e, config.columns, 3),
        )
        initialise(self)

    def forward(self, rolls: Tensor) -> tuple[Tensor, Quantized]:
        """Rolls (B, 128, 93) to logits of the same shape, and what their codes are."""
        quantized = self.quantizer(self.encoder(rolls.mT.float()))
        return self.decoder(quantized.latent).mT, quantized

    def encode(self, rolls: Tensor) -> Tensor:
        """Rolls (B, 128, 93) to codes int64 (B, T)."""
        codes: Tensor = self.quantizer(self.encoder(rolls.mT.float())).codes
        return codes.squeeze(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, T) to logits (B, 128, 93)."""
        logits: Tensor = self.decoder(self.quantizer.lookup(codes[:, None])).mT
        return logits

    def rolls(self, logits: Tensor) -> Tensor:
        """Logits to bool rolls (B, 128, 93)."""
        return logits >= 0

    @torch.no_grad()
    def reconstruct(self, rolls: Tensor) -> Tensor:
        """Rolls (B, 128, 93) through the codes and back: bool (B, 128, 93)."""
        return self.rolls(self(rolls)[0])

    def loss(self, rolls: Tensor, epoch: float) -> Loss:
        """Equation 2: nats a loop, and how far latent vectors are from the dictionary."""
        del epoch
        logits, quantized = self(rolls)
        nats = binary_nats(logits, rolls)
        # Nats a step: a mean over all cells would leave the commitment nearly alone, and half the
        # error to learn.
        total = nats / self.config.steps + self.config.commitment * quantized.commitment
        terms = {"nats": nats.detach(), "commitment": quantized.commitment.detach()}
        return Loss(total, terms)
