"""Encoding and decoding of loops, with any codec.

A loop is seldom a whole number of codec frames long. So it is resampled to the nearest whole number
of frames before encoding: a change of under half a frame, 0.06 % of 16 s. After decoding it is
resampled to its own number of samples, so any tempo and any number of bars come out exact. No other
module rounds frames.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from audioloop.codec.model import Codec, CodecConfig
from audioloop.io.wave import Wave, stretch
from midiloop.common import checkpoint
from midiloop.common.checkpoint import Kind
from midiloop.errors import CallError, LoopError

SHIPPED = Path(__file__).parents[1] / "pretrained" / "codec"
KIND = "codec"
KINDS = {KIND: Kind(Codec, CodecConfig)}


class TokenFormat(Protocol):
    """The shape of a codec's tokens."""

    @property
    def rate(self) -> int:
        """Sample rate, in Hz."""

    @property
    def frame(self) -> int:
        """Samples of a frame."""

    @property
    def codebooks(self) -> int:
        """Tokens of a frame."""

    @property
    def codebook_size(self) -> int:
        """Number of different tokens; they are from 0 to one less."""


class CompressionModel(Protocol):
    """A codec: `audioloop.codec.model.Codec`, or a published one."""

    @property
    def config(self) -> TokenFormat:
        """The shape of its tokens."""

    @property
    def device(self) -> torch.device:
        """The device that its inputs have to be on."""

    def encode(self, wave: Tensor, *, circular: bool) -> Tensor:
        """Encode waves (B, 1, frame · T) as latents (B, L, T)."""

    def quantize(self, latent: Tensor) -> Tensor:
        """Quantise latents (B, L, T) to tokens, int64 (B, K, T)."""

    def dequantize(self, tokens: Tensor) -> Tensor:
        """Look up the latents (B, L, T) of tokens (B, K, T)."""

    def decode(self, latent: Tensor, *, circular: bool) -> Tensor:
        """Decode latents (B, L, T) to waves (B, 1, frame · T)."""


class EncodedWave(NamedTuple):
    """An encoded wave.

    Attributes:
        latent: float32 (1, L, T).
        codes: int64 (1, K, T) tokens.
        n_samples, rate: of the wave before it was resampled.
    """

    latent: Tensor
    codes: Tensor
    n_samples: int
    rate: int


def load(folder: Path | None = None, device: torch.device | None = None) -> Codec:
    """Load the codec of a run; None: the one that ships.

    >>> import audioloop
    >>> audioloop.load_codec().config.rate
    32000

    Raises:
        LoopError: the folder has no codec, or a damaged one.
    """
    codec, _, _ = checkpoint.load_any(folder or SHIPPED, KINDS, device)
    assert isinstance(codec, Codec)  # the only kind there is
    return codec


def fingerprint(*modules: nn.Module) -> str:
    """Digest of the weights of some modules, as hexadecimal digits."""
    weights = (tensor for module in modules for tensor in module.state_dict().values())
    return hashlib.md5(b"".join(tensor.cpu().numpy().tobytes() for tensor in weights)).hexdigest()


def n_frames(n_samples: int, rate: int, shape: TokenFormat) -> int:
    """Frames of a loop, rounded to the nearest whole number.

    Raises:
        LoopError: the loop is shorter than a frame.
    """
    frames = n_samples / rate * shape.rate / shape.frame
    if frames < 1:
        raise LoopError(
            f"{1000 * n_samples / rate:.1f} ms are less than a frame of "
            f"{1000 * shape.frame / shape.rate:g} ms; give a longer loop"
        )
    return round(frames)


def to_frames(wave: Wave, shape: TokenFormat) -> Tensor:
    """Resample a loop to whole frames, in mono: float32 (1, 1, frame · T).

    Raises:
        LoopError: the loop is shorter than a frame, or has samples that are not finite.
    """
    frames = n_frames(len(wave), wave.rate, shape)
    if not np.isfinite(wave.samples).all():
        raise LoopError("samples that are not finite; export it again")
    mono = wave.samples.mean(0, keepdims=True, dtype=np.float32)
    return torch.from_numpy(stretch(mono, frames * shape.frame))[None]


def from_frames(samples: Tensor, n_samples: int, rate: int) -> Wave:
    """Undo `to_frames`: resample (1, 1, frame · T) to a mono wave of exactly ``n_samples``."""
    return Wave(stretch(samples[0].detach().cpu().float().numpy(), n_samples), rate)


@torch.inference_mode()
def encode(wave: Wave, codec: CompressionModel, *, circular: bool = True) -> EncodedWave:
    """Encode a loop, or a wave with ends (``circular=False``).

    Raises:
        LoopError: see `to_frames`.
    """
    ring = to_frames(wave, codec.config).to(codec.device)
    latent = codec.encode(ring, circular=circular)
    return EncodedWave(latent, codec.quantize(latent), len(wave), wave.rate)


@torch.inference_mode()
def decode(latent: Tensor, codec: CompressionModel, n_samples: int, rate: int) -> Wave:
    """Decode the latent (1, L, T) of a loop to a mono wave of ``n_samples``."""
    return from_frames(codec.decode(latent.to(codec.device), circular=True), n_samples, rate)


@torch.inference_mode()
def dequantize(tokens: Tensor, codec: CompressionModel) -> Tensor:
    """Latent (1, L, T) of the tokens (1, K, T) of the first K codebooks.

    Raises:
        CallError: there are more rows than codebooks, or tokens out of range.
    """
    shape = codec.config
    if tokens.dim() != 3 or not 1 <= tokens.shape[1] <= shape.codebooks or not tokens.shape[2]:
        raise CallError(
            f"expected tokens (1, up to {shape.codebooks}, frames), got {tuple(tokens.shape)}"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= shape.codebook_size:
        raise CallError(
            f"tokens from {low} to {high}, but this codec's are from 0 to "
            f"{shape.codebook_size - 1}; they are of another codec"
        )
    return codec.dequantize(tokens.to(codec.device))
