"""Loads published MAGNeTs, and encodes texts for them.

A checkpoint of audiocraft is a folder with ``state_dict.bin``: a pickle of the weights, and of the
configuration that they were trained with, as YAML. PyTorch reads tensors and plain values only, and
nothing that could run code. Texts are encoded as hidden states of a T5, by transformers.
"""

from __future__ import annotations

import importlib
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from audioloop import hub
from audioloop.tokens.magnet.network import Magnet, MagnetConfig
from midiloop.common import checkpoint, configs, files
from midiloop.common.configs import Range, Steps
from midiloop.errors import LoopError

C = TypeVar("C")

FILE = "state_dict.bin"
TEXT_MODEL = "t5-base"
MAX_YAML = 1 << 18  # characters; published ones have some ten thousand
FITTING = "give the folder of a facebook/magnet-*"

# Where a published configuration says what our config holds.
SIZES = {
    "dim": ("transformer_lm", "dim"),
    "heads": ("transformer_lm", "num_heads"),
    "layers": ("transformer_lm", "num_layers"),
    "widening": ("transformer_lm", "hidden_scale"),
    "codebooks": ("transformer_lm", "n_q"),
    "codebook_size": ("transformer_lm", "card"),
    "context": ("transformer_lm", "subcodes_context"),
}

# Where it says how the model was trained.
TRAINED = {
    "span": ("masking", "span_len"),
    "segment_s": ("dataset", "segment_duration"),
    "text_model": ("conditioners", "description", "t5", "name"),
}

# Other values that it must have, if it has any. The names of weights show biases and layer scales.
FIXED: dict[tuple[str, ...], Any] = {
    ("lm_model",): "transformer_lm_magnet",
    ("transformer_lm", "activation"): "gelu",
    ("transformer_lm", "norm"): "layer_norm",
    ("transformer_lm", "norm_first"): True,
    ("transformer_lm", "positional_embedding"): "sin",
    ("transformer_lm", "causal"): False,
    ("fuser", "cross_attention_pos_emb"): False,
    ("fuser", "cross"): ["description"],
}


class Published(NamedTuple):
    """A loaded checkpoint.

    Attributes:
        model: in evaluation mode, without gradients.
        span: frames that were masked together in training.
        segment_s: duration of its training segments, in seconds.
        text_model: name of its text encoder, a T5.
    """

    model: Magnet
    span: int
    segment_s: float
    text_model: str


@dataclass(frozen=True)
class Trained:
    """Training settings of a published model, see `Published`."""

    span: Steps = 3
    segment_s: Annotated[float, Range(0.1, 3600)] = 10
    text_model: str = TEXT_MODEL


def load(name: str | Path, device: torch.device | None = None) -> Published:
    """Load a MAGNeT that audiocraft has exported.

    Args:
        name: a folder with ``state_dict.bin``, or a name on Hugging Face, see `hub.file`.

    Raises:
        LoopError: the folder has no checkpoint, or one that would run code, is damaged, is of
            another kind, or does not match its configuration; or pyyaml is not installed.
    """
    try:
        path = hub.file(str(name), FILE, FITTING)
    except FileNotFoundError:
        raise LoopError(f"{name}: no {FILE}; {FITTING}") from None
    weights, about = _read(path)
    config = _config(about, path)
    try:
        with checkpoint.shapes_alone():
            model = Magnet(config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise LoopError(
            f"{path}: no MAGNeT can be made of its configuration ({hub.line(error)}); {FITTING}"
        ) from error
    _check(weights, model.state_dict(), path)
    checkpoint.check_finite(path, weights, hub.AGAIN)
    trained = _checked(Trained, _training_settings(about), path)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    return Published(
        model.to(device or torch.device("cpu")).eval().requires_grad_(False),
        span=trained.span,
        segment_s=trained.segment_s,
        text_model=trained.text_model,
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by name, and the configuration that they were trained with."""
    try:
        if zipfile.is_zipfile(path) and any(one.compress_type for one in _members(path)):
            raise ValueError("compressed, and what is published is not")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are refused anyway
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise LoopError(
            f"{path}: holds more than tensors and plain values, which could run code and is not "
            f"read; {FITTING}"
        ) from error
    except (
        OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError,
        ArithmeticError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise LoopError(f"{path}: damaged ({hub.line(error)}); download it again") from error
    weights = found.get("best_state") if isinstance(found, dict) else None
    text = found.get("xp.cfg") if isinstance(found, dict) else None
    if not isinstance(weights, Mapping) or not isinstance(text, str):
        raise LoopError(f"{path}: lacks best_state or xp.cfg, weights or their YAML; {FITTING}")
    if not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise LoopError(f"{path}: best_state is not of tensors alone; {FITTING}")
    plain = all(
        weight.layout == torch.strided and weight.is_floating_point() and not weight.is_meta
        for weight in weights.values()
    )
    # A view may claim far more elements than the file holds.
    if not plain or sum(one.nbytes for one in weights.values()) > path.stat().st_size:
        raise LoopError(f"{path}: best_state is not of plain tensors, each its own; {FITTING}")
    return {str(name): weight for name, weight in weights.items()}, _parsed(text, path)


def _members(path: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(path) as archive:
        return archive.infolist()


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise LoopError(f"{path}: its configuration is YAML: pip install pyyaml") from error
    try:
        about = yaml.load(text, _bounded(yaml)) if len(text) <= MAX_YAML else None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise LoopError(
            f"{path}: xp.cfg is no YAML ({hub.line(error)}); download it again"
        ) from error
    if not isinstance(about, dict):
        raise LoopError(f"{path}: xp.cfg has no configuration of a model; {FITTING}")
    return about


def _bounded(yaml: Any) -> Any:
    """A loader of plain values, without aliases, and nested no deeper than JSON may be."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # of a library that may not be there
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases, which stand for more than they say")
            if self.depth > files.MAX_JSON_DEPTH:
                raise yaml.YAMLError(f"nested more than {files.MAX_JSON_DEPTH} deep")
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return Loader


def _config(about: dict[str, Any], path: Path) -> MagnetConfig:
    """Sizes from a published configuration; `LoopError` if the network differs from ours."""
    for keys, fitting in FIXED.items():
        found = _get(about, keys, fitting)
        if found != fitting:
            raise LoopError(
                f"{path}: {'.'.join(keys)} is {_shown(found)}, not {fitting}; {FITTING}"
            )
    sizes: dict[str, Any] = {}
    for name, keys in SIZES.items():
        sizes[name] = size = _get(about, keys, getattr(MagnetConfig, name))
        least = -1 if name == "context" else 1
        if type(size) is not int or size < least:
            raise LoopError(f"{path}: {'.'.join(keys)} is {_shown(size)}, not a number; {FITTING}")
    if sizes["context"] == -1:
        sizes["context"] = None
    return _checked(MagnetConfig, sizes, path)


def _checked(kind: type[C], found: dict[str, Any], path: Path) -> C:
    """A config of the found values, each checked against its bounds."""
    try:
        return configs.checked(kind, found)
    except LoopError as error:
        raise LoopError(f"{path}: xp.cfg has a value out of range: {error}; {FITTING}") from error


def _shown(value: object) -> str:
    """A value of the configuration, as a message shows it."""
    return files.shortened(value) if isinstance(value, str) else configs.quoted(value)


def _training_settings(about: dict[str, Any]) -> dict[str, Any]:
    """Values for `Trained` that a configuration has."""
    found = {name: _get(about, keys, None) for name, keys in TRAINED.items()}
    return {name: value for name, value in found.items() if value is not None}


def _get(about: Any, keys: Sequence[str], otherwise: Any) -> Any:
    """The value of a configuration at a path of keys, or a default."""
    for key in keys:
        if not isinstance(about, dict) or about.get(key) is None:
            return otherwise
        about = about[key]
    return about


def _check(weights: dict[str, Tensor], fresh: dict[str, Tensor], path: Path) -> None:
    """Raise `LoopError` for weights that are missing, or unknown, or of another shape."""
    shared = weights.keys() & fresh.keys()
    odd = {
        "missing": fresh.keys() - weights.keys(),
        "unknown": weights.keys() - fresh.keys(),
        "of another shape": {n for n in shared if weights[n].shape != fresh[n].shape},
    }
    faults = [f"{_few(names)} {how}" for how, names in odd.items() if names]
    if faults:
        raise LoopError(f"{path}: weights {', '.join(faults)}; {FITTING}")


def _few(names: set[str]) -> str:
    """Up to three names."""
    first = [files.shortened(name) for name in sorted(names)[:3]]
    more = len(names) - len(first)
    return " and ".join(first) + (f" and {more} more" if more else "")


class Text(NamedTuple):
    """Encoded texts, for `network.Magnet.condition`.

    Attributes:
        states: float (B, S, 768).
        mask: bool (B, S): False at padding; an empty text is all padding.
    """

    states: Tensor
    mask: Tensor


class TextModel:
    """A text encoder: a T5 by its name on Hugging Face, or in a folder.

    Raises:
        ImportError: transformers is not installed.
        LoopError: there is no such T5, or Hugging Face cannot be reached.
    """

    def __init__(self, name: str = TEXT_MODEL, device: torch.device | None = None) -> None:
        transformers = hub.transformers("texts need")
        with hub.quiet():
            try:
                # Without use_safetensors, pickled weights would be loaded as well.
                source, revision = (name, None) if Path(name).exists() else hub.at(name)
                of = {} if revision is None else {"revision": revision}
                model = transformers.T5EncoderModel.from_pretrained(
                    source, use_safetensors=True, **of
                )
                self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source, **of)
            except (OSError, ValueError, ImportError) as error:
                raise LoopError(
                    f"{name}: no T5 can be had ({hub.line(error)}); give {TEXT_MODEL}, or a folder "
                    "that it was saved in"
                ) from error
        self.model: Any = model.to(device or torch.device("cpu")).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Text:
        """Encode texts as hidden states (B, S, 768)."""
        tokens = self.tokenizer(list(texts), return_tensors="pt", padding=True)
        ids, mask = (tokens[key].to(self.model.device) for key in ("input_ids", "attention_mask"))
        states: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        not_empty = torch.tensor([bool(text) for text in texts], device=mask.device)
        return Text(states, mask.bool() & not_empty[:, None])
