"""The generators, by kind, with their presets. PyTorch starts here; it is not needed above."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from torch import nn

from midiloop import configs, files
from midiloop.errors import LoopError
from midiloop.models.cnn_vae import CNNVAE, CNNVAEConfig
from midiloop.models.form_prior import FormPrior, FormPriorConfig
from midiloop.models.layers import Model, RollConfig
from midiloop.models.lstm_vae import (
    ARLSTMVAE,
    ARLSTMVAEConfig,
    NonARLSTMVAE,
    NonARLSTMVAEConfig,
)
from midiloop.models.prior import Prior, PriorConfig
from midiloop.models.vq_vae import VQVAE, VQVAEConfig

# A kind of model: what makes one of a config, and the config's class.
Kind = tuple[Callable[[Any], nn.Module], type[Any]]

KINDS: dict[str, Kind] = {
    "ar-lstm-vae": (ARLSTMVAE, ARLSTMVAEConfig),
    "nonar-lstm-vae": (NonARLSTMVAE, NonARLSTMVAEConfig),
    "cnn-vae": (CNNVAE, CNNVAEConfig),
    "vq-vae": (VQVAE, VQVAEConfig),
    "prior": (Prior, PriorConfig),
    "form-prior": (FormPrior, FormPriorConfig),
}

# What says on which grid a model is. Earlier versions had one grid, and did not say it.
GRID = frozenset(field.name for field in fields(RollConfig))

# ``paper``: the appendix tables. ``small``: less to wait for. ``bars``: codes of single bars, one
# row for the drums and one for the bass, and a prior that knows the form.
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
        "bars": VQVAEConfig(
            channels=64,
            halvings=1,
            streams="parts",
            span="bar",
            bass="softmax",
        ),
    },
    "prior": {
        "paper": PriorConfig(),
        "small": PriorConfig(codebook_size=256, hidden=256),
        "bars": FormPriorConfig(),
    },
}


def build(kind: str, config: Any) -> Model:
    """A model with fresh weights, drawn from PyTorch's own generator."""
    model = KINDS[kind][0](config)
    assert isinstance(model, Model)  # as all of them are
    return model


def to_json(config: Any) -> dict[str, Any]:
    """A model's config as JSON holds it."""
    return asdict(config)


def from_json(kind: str, found: dict[str, Any], kinds: Mapping[str, Kind] = KINDS) -> Any:
    """Undo `to_json`.

    Raises:
        LoopError: there is no such kind, or the config is one of another version, or of sizes that
            no model has; the message names neither file nor remedy.
    """
    if kind not in kinds:
        name = files.shortened(repr(kind))
        raise LoopError(f"no model is called {name}; there are {', '.join(kinds)}")
    try:
        return configs.made(kinds[kind][1], found, may_lack=GRID)
    except LoopError as error:
        raise LoopError(f"{kind}: {error}") from None
