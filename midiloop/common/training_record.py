"""What training leaves in its folder, so that it goes on and ends as if nobody had interrupted it.

``state.safetensors`` holds all that the next step depends on, in one file, so that a kill leaves
the old one or the new one; a finished run has none. ``training.json`` holds the history.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from midiloop.common import checkpoint, devices, files
from midiloop.common.resume import RunRecord
from midiloop.errors import CallError, LoopError

STATE, HISTORY = "state.safetensors", "training.json"


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise `CallError` for a folder that no run can begin in, or go on in."""
    name = files.printable(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise CallError(f"{name}: a file; give the name of a folder")
    if not resume and any((folder / file).exists() for file in (STATE, HISTORY)):
        raise CallError(f"{name}: a run is there already; add --resume, or choose another name")
    files.check_writable(folder)


class TrainingRecord(RunRecord):
    """State and history of a run that trains; the latter is its record. One process writes them."""

    def __init__(self, folder: Path, begun_with: Mapping[str, Any]) -> None:
        super().__init__(folder / HISTORY, begun_with)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder, which is made; of several processes the first does."""
        if devices.rank():
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.locked(self.folder):
            yield

    def read_finished(self, restore: Callable[[dict[str, Any]], None]) -> bool:
        """Whether the run came to its end; ``restore`` is then called with what `finish` wrote.

        Raises:
            CallError: the run was begun with something else.
            LoopError: the history is damaged.
        """
        if not self.path.exists():
            return False
        with _reading(self.path, "not the history of a run"):
            found = files.read_json(self.path)
            self._check_training(found)
            if found["finished"]:
                restore(found)
                self._forget_state()  # a kill may have come before it was gone
            return bool(found["finished"])

    def read_state(self, restore: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> None:
        """Call ``restore`` with the state that `save` wrote, if there is one.

        Raises:
            CallError: the run was begun with something else.
            LoopError: the state is damaged.
        """
        path = self.folder / STATE
        if not path.exists():
            return
        with _reading(path, "not the state of a run"):
            tensors, about = checkpoint.read_tensors(path)
            self._check_training(about)
            checkpoint.check_finite(path, tensors)
            restore(tensors, about)

    def save(
        self, tensors: dict[str, Tensor], about: dict[str, Any], summary: dict[str, Any]
    ) -> None:
        """Write the state, of ``tensors`` and ``about``, and ``summary`` into both files."""
        if devices.rank():
            return
        about = {"begun_with": self.begun_with, **summary, **about}
        checkpoint.write_tensors(self.folder / STATE, tensors, about)
        self.write(finished=False, **summary)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the history; the state has done its work."""
        if devices.rank() == 0:
            self.write(finished=True, **summary)
        self._forget_state()

    def _forget_state(self) -> None:
        if devices.rank() == 0:
            (self.folder / STATE).unlink(missing_ok=True)

    def _check_training(self, said: dict[str, Any]) -> None:
        """`check`, of a file that came to harm if it does not say what it must."""
        dict(said["begun_with"]["settings"])
        self.check(said["begun_with"])


@contextmanager
def _reading(path: Path, otherwise: str) -> Iterator[None]:
    """Whatever is wrong with a file is one `LoopError` that says how to go on."""
    try:
        yield
    except CallError:  # it is a run, and another one
        raise
    except (LoopError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        name = files.printable(path)
        cause = str(error) if isinstance(error, LoopError) else otherwise
        said = cause.removeprefix(f"{name}: ").partition("; ")[0]
        raise LoopError(
            f"{name}: {said}; delete it, and --resume goes on from what is left"
        ) from error
