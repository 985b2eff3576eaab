"""Checkpoints: a folder with ``config.json`` and ``model.safetensors``. Nothing is unpickled.

``config.json`` holds the model's kind and config, and whatever the trainer wants to be known of
where the weights come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from midiloop import files, models
from midiloop.errors import CallError, LoopError
from midiloop.models.layers import Model

FORMAT = "midiloop-checkpoint"
FORMAT_VERSION = 1


class Checkpoint(NamedTuple):
    """A model that was loaded, in evaluation mode, and what its ``config.json`` says."""

    model: Model
    kind: str
    about: dict[str, Any]


@runtime_checkable
class Configured(Protocol):
    """A network that knows the frozen dataclass that it is built from."""

    @property
    def config(self) -> Any:
        """The dataclass."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name."""


def save_model(
    folder: Path, kind: str, model: Configured, about: dict[str, Any], *, half: bool = False
) -> None:
    """Write a checkpoint, each of its files whole or not at all.

    Args:
        about: what else to say in ``config.json``.
        half: store floats in 16 bits: half the size, three digits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict()
    if half:
        tensors = {name: _halved(tensor) for name, tensor in tensors.items()}
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": models.to_json(model.config),
        **about,
    }
    write_tensors(folder / "model.safetensors", tensors)
    files.write(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def _halved(tensor: Tensor) -> Tensor:
    """In 16 bits, unless it is of whole numbers or too large for them."""
    if tensor.dtype != torch.float32 or not torch.isfinite(tensor.half()).all():
        return tensor
    return tensor.half()


def load_model(folder: Path, device: torch.device | None = None) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        LoopError: the folder holds none, one of another kind or version, or a damaged one.
    """
    model, kind, about = load_any(folder, models.KINDS, device)
    assert isinstance(model, Model)  # as all of these kinds are
    return Checkpoint(model, kind, about)


def load_any(
    folder: Path, kinds: Mapping[str, models.Kind], device: torch.device | None = None
) -> tuple[nn.Module, str, dict[str, Any]]:
    """Read a checkpoint of one of ``kinds``: the model, its kind, and what else is said of it.

    Raises:
        LoopError: see `load_model`.
    """
    about = read_config(folder)
    kind = about["kind"]
    try:
        config = models.from_json(kind, about["config"], kinds)
    except LoopError as error:
        raise LoopError(f"{folder / 'config.json'}: {error}; train it again") from None
    tensors, _ = read_tensors(folder / "model.safetensors")
    try:
        model = kinds[kind][0](config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        cause = str(error).partition("\n")[0]
        raise LoopError(
            f"{folder / 'config.json'}: no {kind} can be made of this config ({cause}); "
            "train it again"
        ) from error
    fresh = model.state_dict()
    odd = sorted(
        name
        for name in tensors.keys() | fresh.keys()
        if name not in tensors or name not in fresh or tensors[name].shape != fresh[name].shape
    )
    if odd:
        raise LoopError(
            f"{folder / 'model.safetensors'}: the weights are not those of the {kind} that "
            f"config.json describes ({odd[0]} and {len(odd) - 1} more); copy both files anew"
        )
    model.load_state_dict(
        {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
    )
    return model.to(device or torch.device("cpu")).eval(), kind, about


def pack(run: Path, out: Path, kinds: Mapping[str, models.Kind]) -> None:
    """Copy the checkpoint of a run in 16 bits, to ship it.

    Raises:
        CallError: see `files.check_free`.
        LoopError: the run holds no model of these kinds.
    """
    files.check_free(out)
    model, kind, about = load_any(run, kinds)
    assert isinstance(model, Configured)  # as all models with a kind are
    save_model(out, kind, model, about, half=True)


def mix(run: Path, other: Path, share: float, out: Path, kinds: Mapping[str, models.Kind]) -> None:
    """Ship what lies between two runs of a model, one of which learned on from the other.

    Weights on the line between both are often better than either (Wortsman et al. 2022, *Robust
    fine-tuning of zero-shot models*, arXiv:2109.01903).

    Args:
        share: of ``run``, from 0 to 1; the rest is that of ``other``.

    Raises:
        CallError: see `files.check_free`; or the share is out of range, or the models are
            not alike.
        LoopError: a run holds no model of these kinds.
    """
    files.check_free(out)
    if not 0 <= share <= 1:
        raise CallError(f"a share of {share}; give 0 to 1")
    model, kind, about = load_any(run, kinds)
    before, kind_before, _ = load_any(other, kinds)
    assert isinstance(model, Configured)  # as all models with a kind are
    assert isinstance(before, Configured)
    if (kind, model.config) != (kind_before, before.config):
        raise CallError(f"{run} and {other}: no models of the same kind and sizes; give two of one")
    old = before.state_dict()
    between = {
        name: old[name].lerp(weight, share) if weight.is_floating_point() else weight
        for name, weight in model.state_dict().items()
    }
    model.load_state_dict(between)
    save_model(out, kind, model, {**about, "share": share}, half=True)


def read_config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says of a checkpoint.

    Raises:
        LoopError: the folder holds no checkpoint, or one of another version.
    """
    path = folder / "config.json"
    try:
        about = json.loads(path.read_text())
    except FileNotFoundError:
        raise LoopError(f"{folder}: no config.json; give a folder that 'train' wrote") from None
    except (OSError, ValueError) as error:
        raise LoopError(f"{path}: {error}; train it again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise LoopError(f"{path}: not a checkpoint; give a folder that 'train' wrote")
    if about.get("format_version") != FORMAT_VERSION:
        raise LoopError(
            f"{path}: format version {about.get('format_version')}, this midiloop reads "
            f"{FORMAT_VERSION}; train it again"
        )
    if not isinstance(about.get("kind"), str) or not isinstance(about.get("config"), dict):
        raise LoopError(f"{path}: neither kind nor config of a model in it; train it again")
    return about


def write_tensors(path: Path, tensors: dict[str, Tensor], about: Any = None) -> None:
    """Write tensors, and anything that JSON holds, as one file, whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.write(path, save(plain, None if about is None else {"about": json.dumps(about)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Undo `write_tensors`.

    Raises:
        LoopError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            about = (file.metadata() or {}).get("about")
    except FileNotFoundError:
        raise LoopError(f"{path}: no such file; copy the whole folder, or train it again") from None
    except (SafetensorError, OSError) as error:
        raise LoopError(f"{path}: {error}; copy the file anew, or train it again") from error
    try:
        return tensors, None if about is None else json.loads(about)
    except ValueError as error:
        raise LoopError(f"{path}: {error}; copy the file anew, or train it again") from error
