"""What published models have in common: transformers, and files in a folder or on Hugging Face."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from midiloop.errors import LoopError


def transformers(who: str) -> ModuleType:
    """The library, for what ``who`` names, as in "texts need"."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            f"{who} transformers: pip install transformers", name="transformers"
        ) from error


@contextmanager
def made_of_config(name: str, kind: str, fitting: str) -> Iterator[None]:
    """Whatever goes wrong with what a ``config.json`` says, within, is a `LoopError`."""
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
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise LoopError(
            f"{name}: no such folder; {fitting}; to download models: pip install huggingface_hub"
        ) from error
    try:
        return Path(hub.hf_hub_download(name, wanted))
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


def line(error: Exception) -> str:
    """What an error says, on one line, with its remedies for others left out."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return " ".join(lines[:2]) or type(error).__name__


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
