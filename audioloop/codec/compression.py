"""Loops as codes and back, whatever the codec: the way between a wave and a ring of frames.

A loop is seldom a whole number of codec frames long. So its one round is resampled to the nearest
whole number of them before it is coded, under half a frame (0.06 % of 16 s), and back to its own
number of samples after it was decoded: any tempo and any number of bars come out exact. Nothing
else in the package rounds frames.
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
    """What a coder's codes look like."""

    @property
    def rate(self) -> int:
        """Samples a second."""

    @property
    def frame(self) -> int:
        """Samples of a code."""

    @property
    def codebooks(self) -> int:
        """Codes of a frame."""

    @property
    def codebook_size(self) -> int:
        """Codes are from 0 to one less."""


class CompressionModel(Protocol):
    """A codec: `codec_model.Codec`, or a published one."""

    @property
    def config(self) -> TokenFormat:
        """What its codes look like."""

    @property
    def device(self) -> torch.device:
        """Where its tensors have to be."""

    def encode(self, wave: Tensor, *, circular: bool) -> Tensor:
        """Waves (B, 1, frame · T) to latents (B, L, T)."""

    def quantize(self, latent: Tensor) -> Tensor:
        """Latents (B, L, T) to codes int64 (B, K, T)."""

    def dequantize(self, codes: Tensor) -> Tensor:
        """Codes (B, K, T) to latents (B, L, T)."""

    def decode(self, latent: Tensor, *, circular: bool) -> Tensor:
        """Latents (B, L, T) to waves (B, 1, frame · T)."""


class EncodedWave(NamedTuple):
    """A wave as a coder sees it.

    Attributes:
        latent: float32 (1, L, T).
        codes: int64 (1, K, T).
        n_samples, rate: of the wave itself.
    """

    latent: Tensor
    codes: Tensor
    n_samples: int
    rate: int


def load(folder: Path | None = None, device: torch.device | None = None) -> Codec:
    """The codec of a run, or the one that ships.

    >>> import audioloop
    >>> audioloop.load_codec().config.rate
    32000

    Raises:
        LoopError: the folder holds no codec, or a damaged one.
    """
    codec, _, _ = checkpoint.load_any(folder or SHIPPED, KINDS, device)
    assert isinstance(codec, Codec)  # the only kind there is
    return codec


def fingerprint(*modules: nn.Module) -> str:
    """A short name for the weights of some modules."""
    weights = (tensor for module in modules for tensor in module.state_dict().values())
    return hashlib.md5(b"".join(tensor.cpu().numpy().tobytes() for tensor in weights)).hexdigest()


def n_frames(n_samples: int, rate: int, shape: TokenFormat) -> int:
    """Frames of a loop: the nearest whole number of them.

    Raises:
        LoopError: it is shorter than a frame.
    """
    frames = n_samples / rate * shape.rate / shape.frame
    if frames < 1:
        raise LoopError(
            f"{1000 * n_samples / rate:.1f} ms are less than a frame of "
            f"{1000 * shape.frame / shape.rate:g} ms; give a longer loop"
        )
    return round(frames)


def to_frames(wave: Wave, shape: TokenFormat) -> Tensor:
    """A loop as a coder hears it: float32 (1, 1, frame · T), its channels mixed to one.

    Raises:
        LoopError: it is shorter than a frame, or has samples that are no numbers.
    """
    frames = n_frames(len(wave), wave.rate, shape)
    if not np.isfinite(wave.samples).all():
        raise LoopError("samples that are no numbers; export it again")
    mono = wave.samples.mean(0, keepdims=True, dtype=np.float32)
    return torch.from_numpy(stretch(mono, frames * shape.frame))[None]


def from_frames(samples: Tensor, n_samples: int, rate: int) -> Wave:
    """Undo `onto_ring`: (1, 1, frame · T) to a mono wave of exactly ``n_samples``."""
    return Wave(stretch(samples[0].detach().cpu().float().numpy(), n_samples), rate)


@torch.inference_mode()
def encode(wave: Wave, coder: CompressionModel, *, circular: bool = True) -> EncodedWave:
    """The latent and the codes of a loop, or of a wave with ends.

    Raises:
        LoopError: see `onto_ring`.
    """
    ring = to_frames(wave, coder.config).to(coder.device)
    latent = coder.encode(ring, circular=circular)
    return EncodedWave(latent, coder.quantize(latent), len(wave), wave.rate)


@torch.inference_mode()
def decode(latent: Tensor, coder: CompressionModel, n_samples: int, rate: int) -> Wave:
    """The wave (1, ``n_samples``) of a ring's latent (1, L, T)."""
    return from_frames(coder.decode(latent.to(coder.device), circular=True), n_samples, rate)


@torch.inference_mode()
def dequantize(codes: Tensor, coder: CompressionModel) -> Tensor:
    """The latent (1, L, T) of codes (1, K, T), of the first K codebooks.

    Raises:
        CallError: there are more rows than codebooks, or codes that are in none.
    """
    shape = coder.config
    if codes.dim() != 3 or not 1 <= codes.shape[1] <= shape.codebooks or not codes.shape[2]:
        raise CallError(
            f"expected codes (1, up to {shape.codebooks}, frames), got {tuple(codes.shape)}"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= shape.codebook_size:
        raise CallError(
            f"codes from {low} to {high}, and this codec's are from 0 to "
            f"{shape.codebook_size - 1}; they are of another codec"
        )
    return coder.dequantize(codes.to(coder.device))
