"""The codec: waves to latents and tokens, and back, on circular sequences.

::

    wave (B, 1, 640 · T) -> 100 frames a second -> 50 a second -> latent (B, 64, T)
    latent (B, 64, T)    -> tokens (B, 4, T)    -> latent (B, 64, T)
    latent (B, 64, T)    -> 50 frames a second  -> 100 a second -> wave (B, 1, 640 · T)

Frames of a learned basis replace a stack of strided convolutions: nearly all of the computation is
matrix products at 50 and 100 frames a second. The blocks are those of ConvNeXt (Liu et al. 2022,
section 2) in one dimension, as in Vocos (Siuzdak 2023, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audioloop.nn.circular import Conv, Frames, OverlapAdd
from midiloop.common.configs import (
    Codebooks,
    CodebookSize,
    Depth,
    SampleRate,
    Samples,
    Share,
    Weight,
    Widening,
    Width,
)
from midiloop.common.vq import Quantized, ResidualVectorQuantizer


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of a codec.

    Attributes:
        rate: sample rate, in Hz.
        frame: samples of a frame; a frame is two hops.
        window: samples of a window of the learned basis.
        fine, coarse: channels at 100 and at 50 frames a second.
        encoder_blocks, decoder_blocks: at 100 frames a second, and as many at 50.
        expansion: factor of the hidden channels of a block.
        latent_dim: channels of the latent.
        codebooks, codebook_size: of a frame's tokens.
        decay: of the exponential moving averages of the codebooks.
        rare: a vector used less than this share of an even count is replaced.
        commitment: weight of the latent's distance from its quantised version.
    """

    rate: SampleRate = 32_000
    frame: Samples = 640
    window: Samples = 1280
    fine: Width = 320
    coarse: Width = 384
    encoder_blocks: Depth = 2
    decoder_blocks: Depth = 3
    expansion: Widening = 2
    latent_dim: Width = 64
    codebooks: Codebooks = 4
    codebook_size: CodebookSize = 1024
    decay: Share = 0.99
    rare: Share = 0.1
    commitment: Weight = 0.25

    @property
    def hop(self) -> int:
        """Samples of a hop: half a frame."""
        return self.frame // 2

    @property
    def frames_per_s(self) -> float:
        """Frames a second."""
        return self.rate / self.frame


class Block(nn.Module):
    """A residual block: depthwise convolution, then a pointwise MLP, (B, C, T) to the same."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.places = Conv(channels, channels, 7, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, expansion * channels)
        self.narrow = nn.Linear(expansion * channels, channels)
        nn.init.zeros_(self.narrow.weight)  # a block starts as the identity
        nn.init.zeros_(self.narrow.bias)

    def forward(self, x: Tensor, *, circular: bool) -> Tensor:
        """(B, C, T) to (B, C, T)."""
        mixed = self.norm(self.places(x, circular=circular).mT)  # (B, T, C)
        mixed = self.narrow(F.gelu(self.widen(mixed), approximate="tanh"))
        added: Tensor = x + mixed.mT
        return added


class Blocks(nn.ModuleList):
    """Blocks, one after the other."""

    def __init__(self, n: int, channels: int, expansion: int) -> None:
        super().__init__(Block(channels, expansion) for _ in range(n))

    def forward(self, x: Tensor, *, circular: bool) -> Tensor:
        """(B, C, T) to (B, C, T)."""
        for block in self:
            x = block(x, circular=circular)
        return x


@torch.no_grad()
def _pass_lowest(weight: Tensor, wide: int, narrow: int) -> None:
    """Initialise a map (narrow, wide) to pass the lowest channels of both hops, and little else.

    Before training, the codec is thus a transform codec of the lowest bands.
    """
    weight.mul_(0.05)
    rows = torch.arange(narrow // 2)
    weight[rows, rows] = 1.0
    weight[narrow // 2 + rows, wide // 2 + rows] = 1.0


class Encoder(nn.Module):
    """Waves to latents."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        fine, coarse = config.fine, config.coarse
        self.frames = Frames(config.window, config.hop, fine)
        self.fine = Blocks(config.encoder_blocks, fine, config.expansion)
        self.halve = nn.Linear(2 * fine, coarse)
        self.coarse = Blocks(config.encoder_blocks, coarse, config.expansion)
        self.out = nn.Linear(coarse, config.latent_dim)
        _pass_lowest(self.halve.weight, 2 * fine, coarse)
        _pass_lowest(self.out.weight, coarse, config.latent_dim)

    def forward(self, wave: Tensor, *, circular: bool) -> Tensor:
        """(B, 1, 640 · T) to (B, 64, T)."""
        x = self.frames(wave, circular=circular)  # (B, fine, 2T)
        x = self.fine(x, circular=circular)
        x = self.halve(rearrange(x, "b c (t two) -> b t (two c)", two=2)).mT  # (B, coarse, T)
        x = self.coarse(x, circular=circular)
        latent: Tensor = self.out(x.mT).mT
        return latent


class Decoder(nn.Module):
    """Latents to waves."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        fine, coarse = config.fine, config.coarse
        self.inward = Conv(config.latent_dim, coarse, 3)
        self.coarse = Blocks(config.decoder_blocks, coarse, config.expansion)
        self.split = nn.Linear(coarse, 2 * fine)
        self.fine = Blocks(config.decoder_blocks, fine, config.expansion)
        self.frames = OverlapAdd(fine, config.window, config.hop)
        nn.init.zeros_(self.inward.conv.weight)  # neighbours start with no weight
        _pass_lowest(self.inward.conv.weight[..., 1].T, coarse, config.latent_dim)
        _pass_lowest(self.split.weight.T, 2 * fine, coarse)

    def forward(self, latent: Tensor, *, circular: bool) -> Tensor:
        """(B, 64, T) to (B, 1, 640 · T)."""
        x = self.inward(latent, circular=circular)  # (B, coarse, T)
        x = self.coarse(x, circular=circular)
        x = rearrange(self.split(x.mT), "b t (two c) -> b c (t two)", two=2)  # (B, fine, 2T)
        x = self.fine(x, circular=circular)
        wave: Tensor = self.frames(x, circular=circular)
        return wave


class CodecOutput(NamedTuple):
    """Output of the codec in training.

    Attributes:
        wave: (B, 1, samples), decoded.
        latent: (B, L, T), before the quantiser.
        quantized: output of the quantiser.
    """

    wave: Tensor
    latent: Tensor
    quantized: Quantized


class Codec(nn.Module):
    """Waves (B, 1, 640 · T) to latents (B, 64, T) or tokens (B, 4, T), and back."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        if config.frame % 2:
            raise ValueError(f"a frame of {config.frame} samples is not two hops")
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = ResidualVectorQuantizer(
            config.codebooks,
            config.codebook_size,
            config.latent_dim,
            decay=config.decay,
            rare=config.rare,
        )
        self.decoder = Decoder(config)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.quantizer.vectors.device

    def forward(self, wave: Tensor, continuous: Tensor, *, circular: bool) -> CodecOutput:
        """Encode and decode.

        Args:
            wave: (B, 1, 640 · T).
            continuous: bool (B,): True to decode from the latent, False from the tokens.
            circular: whether the first frame follows the last.
        """
        latent = self.encoder(wave, circular=circular)
        quantized = self.quantizer(latent)
        chosen = torch.where(continuous[:, None, None], latent, quantized.latent)
        return CodecOutput(self.decoder(chosen, circular=circular), latent, quantized)

    def encode(self, wave: Tensor, *, circular: bool) -> Tensor:
        """Encode waves (B, 1, 640 · T) as latents (B, L, T)."""
        latent: Tensor = self.encoder(wave, circular=circular)
        return latent

    def quantize(self, latent: Tensor) -> Tensor:
        """Quantise latents (B, L, T) to tokens, int64 (B, K, T)."""
        tokens: Tensor = self.quantizer(latent).codes
        return tokens

    def dequantize(self, tokens: Tensor) -> Tensor:
        """Look up the latents (B, L, T) of the tokens (B, K, T) of the first K codebooks."""
        return self.quantizer.lookup(tokens)

    def decode(self, latent: Tensor, *, circular: bool) -> Tensor:
        """Decode latents (B, L, T) to waves (B, 1, 640 · T)."""
        wave: Tensor = self.decoder(latent, circular=circular)
        return wave
