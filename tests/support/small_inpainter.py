"""Models that regenerate loops, small and untrained."""

from __future__ import annotations

import torch

from audioloop.codec import encoded_dataset
from audioloop.codec.model import Codec, CodecConfig
from audioloop.pipelines.inpaint import Inpainter
from audioloop.tokens.model import Causal, Masked, TokenConfig

CODEC = CodecConfig(
    fine=32, coarse=32, encoder_blocks=1, decoder_blocks=1, latent_dim=16, codebook_size=32
)


def small_inpainter() -> Inpainter:
    """Models that have learned nothing."""
    torch.manual_seed(4)
    codec = Codec(CODEC).eval().requires_grad_(False)
    config = TokenConfig(
        dim=16,
        heads=2,
        layers=1,
        codebook_size=32,
        reach=5,
        codec=encoded_dataset.encode_loop(codec),
    )
    masked, causal = Masked(config), Causal(config)
    return Inpainter(codec, masked.requires_grad_(False), causal.requires_grad_(False))
