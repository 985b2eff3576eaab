"""The generators, by kind, with their presets. PyTorch starts here; it is not needed above."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from midiloop.common import checkpoint
from midiloop.common.checkpoint import Kind
from midiloop.models.cnn_vae import CNNVAE, CNNVAEConfig
from midiloop.models.hands import Hands, HandsConfig
from midiloop.models.layers import Model, RollConfig
from midiloop.models.loop_transformer import LoopTransformer, LoopTransformerConfig
from midiloop.models.lstm_vae import ARLSTMVAE, ARLSTMVAEConfig, NonARLSTMVAE, NonARLSTMVAEConfig
from midiloop.models.prior import Prior, PriorConfig
from midiloop.models.vq_vae import VQVAE, VQVAEConfig

# What says on which grid a model is. Earlier versions had one grid, and did not say it.
GRID = frozenset(field.name for field in fields(RollConfig))

KINDS: dict[str, Kind] = {
    "ar-lstm-vae": Kind(ARLSTMVAE, ARLSTMVAEConfig, GRID),
    "nonar-lstm-vae": Kind(NonARLSTMVAE, NonARLSTMVAEConfig, GRID),
    "cnn-vae": Kind(CNNVAE, CNNVAEConfig, GRID),
    "vq-vae": Kind(VQVAE, VQVAEConfig, GRID),
    "prior": Kind(Prior, PriorConfig, GRID),
    "loop-transformer": Kind(LoopTransformer, LoopTransformerConfig, GRID),
    "hands": Kind(Hands, HandsConfig, GRID),
}

# ``paper``: the appendix tables; ``full``: what ships; ``small``: less to wait for. A model's first
# one is the default.
PRESETS: dict[str, dict[str, Any]] = {
    "ar-lstm-vae": {
        "paper": ARLSTMVAEConfig(),
        "small": ARLSTMVAEConfig(encoder_hidden=64, latent_dim=64),
    },
    "nonar-lstm-vae": {
        "paper": NonARLSTMVAEConfig(),
        "small": NonARLSTMVAEConfig(latent_dim=64, encoder_hidden=64, decoder_hidden=128),
    },
    "cnn-vae": {"paper": CNNVAEConfig(), "small": CNNVAEConfig(channels=16, latent_dim=128)},
    "vq-vae": {
        "paper": VQVAEConfig(),
        "small": VQVAEConfig(channels=16, embed_channels=32, codebook_size=256),
    },
    "prior": {
        "paper": PriorConfig(),
        "small": PriorConfig(codebook_size=256, hidden=256),
    },
    "loop-transformer": {
        "full": LoopTransformerConfig(),
        "small": LoopTransformerConfig(dim=64, layers=2, heads=2, token_dim=16, token_layers=1),
    },
    "hands": {
        "full": HandsConfig(),
        "small": HandsConfig(dim=32, layers=2),
    },
}


def build(kind: str, config: Any) -> Model:
    """A model with fresh weights, drawn from PyTorch's own generator."""
    model = KINDS[kind].model(config)
    assert isinstance(model, Model)  # as all of them are
    return model


class Checkpoint(NamedTuple):
    """A model that was loaded, in evaluation mode, and what its ``config.json`` says."""

    model: Model
    kind: str
    about: dict[str, Any]


def load(folder: Path, device: torch.device | None = None) -> Checkpoint:
    """Read a checkpoint of one of `KINDS`.

    Raises:
        LoopError: the folder holds none, one of another kind or version, or a damaged one.
    """
    model, kind, about = checkpoint.load_any(folder, KINDS, device)
    assert isinstance(model, Model)  # as all of these kinds are
    return Checkpoint(model, kind, about)
