"""Access to published models: transformers, and files in a folder or on Hugging Face.

A name there may say which revision is meant, as in ``facebook/encodec_32khz@COMMIT``.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from midiloop.common import configs, files
from midiloop.errors import LoopError

Sizes = TypeVar("Sizes")

AGAIN = "download it again"  # what is damaged


def transformers(who: str) -> ModuleType:
    """The library, for what ``who`` names, as in "texts need"."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            f"{who} transformers: pip install transformers", name="transformers"
        ) from error


@contextmanager
def building_from_config(name: str, kind: str, fitting: str) -> Iterator[None]:
    """Turn errors of building a model from ``config.json`` into a `LoopError`."""
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except LoopError:
        raise
    except (
        AttributeError, TypeError, ValueError, RuntimeError, ArithmeticError, LookupError,
        errors.StrictDataclassError,
    ) as error:  # fmt: skip
        raise LoopError(
            f"{name}: no {kind} can be made of its config.json ({line(error)}); {fitting}"
        ) from error


def file(name: str, wanted: str, fitting: str) -> Path:
    """One file of a folder, or of a model on the hub, downloaded if need be.

    Args:
        name: a folder; or a model's name, and behind an @ a branch, a tag or a commit of it.
        fitting: what to give instead, for messages.

    Raises:
        FileNotFoundError: the folder or the model has no such file.
        LoopError: there is no such folder or model, or the hub cannot be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / wanted).is_file():
            raise FileNotFoundError(wanted)
        return folder / wanted
    if folder.exists():
        raise LoopError(f"{name}: a file; give the folder that it is in")
    model, revision = at(name)
    with _reached(name, wanted, fitting) as hub:
        return Path(hub.hf_hub_download(model, wanted, revision=revision))
    raise AssertionError  # as what went wrong was raised


def folder(name: str, patterns: Sequence[str], fitting: str) -> Path:
    """A folder, or that of a model on the hub, of which those files that match are downloaded.

    Args:
        name, fitting: see `file`.

    Raises:
        LoopError: there is no such folder or model, or the hub cannot be reached.
    """
    if Path(name).exists():
        return Path(name)
    model, revision = at(name)
    with _reached(name, "files", fitting) as hub:
        found = hub.snapshot_download(model, revision=revision, allow_patterns=list(patterns))
        return Path(found)
    raise AssertionError  # as what went wrong was raised


def at(name: str) -> tuple[str, str | None]:
    """The name of a model, and the revision that is written behind an @, if any."""
    model, _, revision = name.partition("@")
    return model, revision or None


@contextmanager
def _reached(name: str, wanted: str, fitting: str) -> Iterator[ModuleType]:
    """Hugging Face's library; its errors become one line."""
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise LoopError(
            f"{name}: no such folder; {fitting}; to download models: pip install huggingface_hub"
        ) from error
    try:
        yield hub
    except errors.LocalEntryNotFoundError as error:  # offline, as a subclass of the next
        raise LoopError(
            f"{name}: no such folder, and Hugging Face cannot be reached; "
            "download it where it can, and give the folder"
        ) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(wanted) from error
    except errors.HFValidationError as error:
        raise LoopError(f"{name}: no such folder; {fitting}") from error
    except (OSError, errors.HTTPError) as error:
        raise LoopError(
            f"{name}: no such folder, and nothing to be had from Hugging Face ({line(error)}); "
            f"{fitting}"
        ) from error


def sizes(kind: type[Sizes], found: Mapping[str, Any], name: str, of: str, fitting: str) -> Sizes:
    """What a config says of a model's sizes, each within its bounds.

    Raises:
        LoopError: a size is of another type, or out of its range.
    """
    try:
        return configs.checked(kind, dict(found))
    except LoopError as error:
        cause = f"{name}: no {of} can be made of its config.json ({error})"
        raise LoopError(f"{cause}; {fitting}") from error


def config(path: Path, remedy: str) -> dict[str, Any]:
    """What a ``config.json`` says.

    Raises:
        LoopError: it cannot be read, or is no JSON object.
    """
    try:
        return files.read_json(path)
    except (LoopError, OSError) as error:
        cause = str(error) if isinstance(error, LoopError) else f"{path}: {error.strerror}"
        raise LoopError(f"{cause}; {remedy}") from error


def line(error: Exception) -> str:
    """What an error says, on one line, with its remedies for others left out."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return files.shortened(" ".join(lines[:2]) or type(error).__name__, 300)


@contextmanager
def quiet() -> Iterator[None]:
    """Neither log lines nor progress bars of others on a command's output."""
    utils = importlib.import_module("huggingface_hub.utils")
    own = importlib.import_module("transformers.utils.logging")
    switches = [(utils.are_progress_bars_disabled, utils.disable_progress_bars,
                 utils.enable_progress_bars),
                (lambda: not own.is_progress_bar_enabled(), own.disable_progress_bar,
                 own.enable_progress_bar)]  # fmt: skip
    before = [off() for off, _, _ in switches]
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    for _, disable, _ in switches:
        disable()
    try:
        yield
    finally:
        logging.disable(level)
        # Transformers' switch turns the hub's as well, so the hub's is put back last.
        for was_off, (_, disable, enable) in reversed(list(zip(before, switches, strict=True))):
            (disable if was_off else enable)()
