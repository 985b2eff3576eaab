"""Codecs that learned nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from audioloop.codec import compression
from audioloop.codec.model import Codec, CodecConfig
from midiloop.common import checkpoint

TINY = CodecConfig(
    fine=32, coarse=32, latent_dim=8, codebook_size=32, encoder_blocks=1, decoder_blocks=1
)


def saved(folder: Path, seed: int, config: CodecConfig = TINY) -> Path:
    """A codec that learned nothing."""
    torch.manual_seed(seed)
    checkpoint.save_model(folder, compression.KIND, Codec(config), {})
    return folder
