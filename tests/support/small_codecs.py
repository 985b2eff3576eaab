"""Codecs that learned nothing, and workers that are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from audioloop.codec import compression
from audioloop.codec.encoded_dataset import Job
from audioloop.codec.model import Codec, CodecConfig
from midiloop.common import checkpoint

TINY = CodecConfig(
    fine=32, coarse=32, latent_dim=8, codebook_size=32, encoder_blocks=1, decoder_blocks=1
)


def here(
    task: Callable[[Job, Callable[[int], None]], None], jobs: Iterator[Job], **how: Any
) -> Iterator[tuple[Job, None]]:
    """What workers do, without any."""
    for job in jobs:
        task(job, how["on_tick"])
        yield job, None


def saved(folder: Path, seed: int, config: CodecConfig = TINY) -> Path:
    """A codec that learned nothing."""
    torch.manual_seed(seed)
    checkpoint.save_model(folder, compression.KIND, Codec(config), {})
    return folder
