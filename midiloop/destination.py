"""Where results go: to a place that is not taken, in a folder that is there."""

from __future__ import annotations

from pathlib import Path

from midiloop.errors import CallError


def check_parent(out: Path) -> None:
    """Raise `CallError` unless the folder that ``out`` would lie in is there."""
    if not out.parent.is_dir():
        raise CallError(f"{out.parent}: no such folder; make it first")


def check_free(out: Path) -> None:
    """Raise `CallError` unless ``out`` can be made: nothing is there, and `check_parent`."""
    if out.exists():
        raise CallError(f"{out}: exists already; choose another name, or remove it first")
    check_parent(out)
