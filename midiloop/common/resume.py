"""What a run was begun with, as its folder remembers it, so that it goes on as it was begun.

A record is a JSON file: ``begun_with``, whether the run is ``finished``, and what it found. A run
that goes on must end as if nobody had interrupted it; so one that was begun with anything else is
refused, and told what differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from midiloop.common import configs, files
from midiloop.errors import CallError, LoopError


class RunRecord:
    """The record of a run, in a file of the run's folder.

    Args:
        path: of the file.
        begun_with: what must be the same when the run goes on: its ``settings`` by name, which may
            hold others, and whatever else it depends on, by its name in words, as in
            ``{"dataset": …}``.
        said: how a message begins that says with what.
        remedy: how it ends.
    """

    def __init__(
        self,
        path: Path,
        begun_with: Mapping[str, Any],
        *,
        said: str = "the run was begun",
        remedy: str = "resume it as it was begun, or choose another name",
    ) -> None:
        self.path = path
        self.begun_with: dict[str, Any] = json.loads(json.dumps(begun_with))  # as it comes back
        self.said, self.remedy = said, remedy

    @property
    def folder(self) -> Path:
        """That of the run."""
        return self.path.parent

    @contextmanager
    def working(self, *, resume: bool) -> Iterator[None]:
        """Keep other runs out of the folder, which is made, and `open` it.

        Where the block leaves nothing in it, the record goes too, and the folder if it was made.

        Raises:
            CallError: see `files.working_in` and `open`.
        """
        with files.working_in(self.folder):
            self.open(resume=resume)
            try:
                yield
            finally:
                left = [path for path in self.folder.iterdir() if not files.is_passing(path.name)]
                if left == [self.path]:
                    self.path.unlink()

    def open(self, *, resume: bool) -> None:
        """Begin a run in its folder, which exists and is locked, or see that it is this run's.

        Raises:
            CallError: a run is there and ``resume`` is not asked for; or another run, or anything
                else is.
        """
        name = files.printable(self.folder)
        if self.path.exists():
            if not resume:
                raise CallError(
                    f"{name}: exists already; go on with --resume, or choose another name"
                )
            self.check(self.read().get("begun_with"))
        elif not all(files.is_passing(path.name) for path in self.folder.iterdir()):
            raise CallError(f"{name}: holds something else; give another folder")
        else:
            self.write(finished=False)

    def read(self) -> dict[str, Any]:
        """All that the file says; nothing where there is none, or it is damaged."""
        try:
            return files.read_json(self.path)
        except (FileNotFoundError, LoopError):
            return {}

    def found(self) -> dict[str, Any] | None:
        """What `write` was told when this run finished, begun as it is; else None."""
        said = self.read()
        if said.pop("begun_with", None) != self.begun_with or not said.pop("finished", False):
            return None
        return said

    def write(self, *, finished: bool, **found: Any) -> None:
        """Write the file, and whatever the run has found; one that says this stays as it is."""
        said = {"begun_with": self.begun_with, "finished": finished, **found}
        data = (json.dumps(said, indent=1) + "\n").encode()
        if not self.path.exists() or self.path.read_bytes() != data:
            files.write(self.path, data)

    def check(self, before: Any) -> None:
        """Raise `CallError` where ``before`` is not what this run is begun with, and say why."""
        if before == self.begun_with:
            return
        odd = [*_differences(before, self.begun_with)] if isinstance(before, dict) else []
        with_what = ", ".join(odd) or f"what {self.path.name} does not say"
        raise CallError(
            f"{files.printable(self.folder)}: {self.said} with {with_what}; {self.remedy}"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """In words: settings by their values, and that there is another of everything else."""
    settings = before.get("settings")
    if "settings" in now:
        yield from _of_settings(settings if isinstance(settings, dict) else {}, now["settings"])
    for name in now:
        if name != "settings" and before.get(name) != now[name]:
            yield f"another {name}"


def _of_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], within: str = ""
) -> Iterator[str]:
    for key, new in now.items():
        name, old = within + key, before.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and old.get("name") == new.get("name"):
            yield from _of_settings(old, new, f"{name} ")
        elif old != new:
            yield f"{name} {_shown(old)}, not {_shown(new)}"


def _shown(value: object) -> str:
    if isinstance(value, dict) and "name" in value:  # that of a preset says enough
        value = value["name"]
    if isinstance(value, list):
        return files.shortened(json.dumps(value), 40)
    return "none" if value is None else configs.quoted(value)
