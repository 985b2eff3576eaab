"""Pretrained models of tokens: those that ship, and those of your own runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from audioloop.codec import encoded_dataset
from audioloop.codec.model import Codec
from audioloop.tokens.model import Causal, Masked, TokenConfig
from midiloop.common import checkpoint
from midiloop.common.checkpoint import Kind
from midiloop.errors import LoopError

KINDS = {"masked": Kind(Masked, TokenConfig), "causal": Kind(Causal, TokenConfig)}
PRETRAINED = Path(__file__).parents[1] / "pretrained"
SHIPPED = {"masked": PRETRAINED / "masked", "causal": PRETRAINED / "causal"}


def load(
    kind: str, folder: Path | None = None, device: torch.device | None = None
) -> Masked | Causal:
    """Load a masked or causal model from a run's folder; None: the one that ships.

    Raises:
        LoopError: the folder has no model, one of another kind, or a damaged one.
    """
    return _loaded(folder or SHIPPED[kind], {kind: KINDS[kind]}, device)


def load_any(folder: Path, device: torch.device | None = None) -> Masked | Causal:
    """Load the model of a run, masked or causal.

    Raises:
        LoopError: the folder has no model, or a damaged one.
    """
    return _loaded(folder, KINDS, device)


def _loaded(folder: Path, kinds: dict[str, Any], device: torch.device | None) -> Masked | Causal:
    model, _, _ = checkpoint.load_any(folder, kinds, device)
    assert isinstance(model, Masked | Causal)  # as both kinds are
    return model.requires_grad_(False)


def load_masked(folder: Path | None = None, device: torch.device | None = None) -> Masked:
    """Load the masked (inpainting) model of a run; None: the one that ships.

    Raises:
        LoopError: the folder has no model, one of another kind, or a damaged one.
    """
    model = load("masked", folder, device)
    assert isinstance(model, Masked)  # the only kind that is read
    return model


def load_causal(folder: Path | None = None, device: torch.device | None = None) -> Causal:
    """Load the causal model of a run; None: the one that ships.

    Raises:
        LoopError: the folder has no model, one of another kind, or a damaged one.
    """
    model = load("causal", folder, device)
    assert isinstance(model, Causal)  # the only kind that is read
    return model


def of_codec(model: Masked | Causal, codec: Codec) -> None:
    """Check that a model was trained on the tokens of this codec.

    Raises:
        LoopError: it was trained on those of another codec, whose tokens mean something else.
    """
    if model.config.codec != encoded_dataset.encode_loop(codec):
        raise LoopError(
            "the model was trained on the tokens of another codec; give that codec, or train the "
            "model with this one"
        )
