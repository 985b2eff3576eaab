"""What a run that mines was begun with, so that it goes on as it was begun.

Its parts lie in a folder beside the dataset to be, and its plan with them. Provenance is what the
dataset's manifest says of where its loops come from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from midiloop.common import files
from midiloop.common.resume import RunRecord
from midiloop.errors import CallError

PLAN = "plan.json"


def check_ours(folder: Path) -> None:
    """Raise `CallError` where something lies at ``folder`` that no run of ours made."""
    if not os.path.lexists(folder):
        return
    with suppress(OSError):  # a run that was killed before it wrote its plan left no more
        if all(files.is_passing(path.name) for path in folder.iterdir()):
            return
    if folder.is_symlink() or "begun_with" not in RunRecord(folder / PLAN, {}).read():
        raise CallError(
            f"{files.printable(folder)}: is in the way, and was not left by a run of this command; "
            "move it, or choose another name"
        )


def open_partial(folder: Path, provenance: Mapping[str, Any], *, resume: bool) -> None:
    """Write the plan of a run into its locked folder, or see that it is the one begun there.

    Raises:
        CallError: a run was begun there, and it is another one or ``resume`` is not asked for.
    """
    plan = RunRecord(
        folder / PLAN,
        _begun_with(provenance),
        remedy="use the same, or remove it to start anew",
    )
    if plan.path.exists() and not resume:
        raise CallError(
            f"{files.printable(folder)}: left by a run that was interrupted; go on with --resume, "
            "or remove it"
        )
    plan.open(resume=resume)


def remove(folder: Path) -> None:
    """Remove the folder of a run, its plan last: what is left of it is known as ours meanwhile."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != PLAN and not files.is_passing(path.name):
            path.unlink()
    (folder / PLAN).unlink(missing_ok=True)
    shutil.rmtree(folder)


def check_made(manifest: Path, made_of: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Raise `CallError` where a whole dataset was not made as this run would make it."""
    made = RunRecord(
        manifest, _begun_with(provenance), said="was made", remedy="choose another name"
    )
    made.check(_begun_with(made_of))


def _begun_with(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "settings": {name: provenance[name] for name in ("rules", "stride_bars")},
        "corpus": provenance["sources"],
        "grid": provenance["grid"],
        "version of midiloop": provenance["midiloop_version"],
        "set of columns": provenance["performance"],
    }
