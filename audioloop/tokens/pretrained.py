"""The models of codes that ship, and those of a run of your own."""

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
    """A model of a kind, of a run, or the one that ships.

    Raises:
        LoopError: the folder holds none, or one of another kind, or a damaged one.
    """
    return _loaded(folder or SHIPPED[kind], {kind: KINDS[kind]}, device)


def load_any(folder: Path, device: torch.device | None = None) -> Masked | Causal:
    """The model of a run, of either kind.

    Raises:
        LoopError: the folder holds none, or a damaged one.
    """
    return _loaded(folder, KINDS, device)


def _loaded(folder: Path, kinds: dict[str, Any], device: torch.device | None) -> Masked | Causal:
    model, _, _ = checkpoint.load_any(folder, kinds, device)
    assert isinstance(model, Masked | Causal)  # as both kinds are
    return model.requires_grad_(False)


def load_masked(folder: Path | None = None, device: torch.device | None = None) -> Masked:
    """The model that fills gaps, of a run, or the one that ships.

    Raises:
        LoopError: the folder holds none, or one of another kind, or a damaged one.
    """
    model = load("masked", folder, device)
    assert isinstance(model, Masked)  # the only kind that is read
    return model


def load_causal(folder: Path | None = None, device: torch.device | None = None) -> Causal:
    """The model that goes on, of a run, or the one that ships.

    Raises:
        LoopError: the folder holds none, or one of another kind, or a damaged one.
    """
    model = load("causal", folder, device)
    assert isinstance(model, Causal)  # the only kind that is read
    return model


def of_codec(model: Masked | Causal, codec: Codec) -> None:
    """Check that a model has learned the codes of a codec, whose numbers mean nothing in another.

    Raises:
        LoopError: it has learned those of another one.
    """
    if model.config.codec != encoded_dataset.encode_loop(codec):
        raise LoopError(
            "the model has learned the codes of another codec; give the codec that it was "
            "trained with, or train it with this one"
        )
