"""The command that looks at audio files: audioloop check.

The library is imported inside it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from midiloop.common import files
from midiloop.errors import counted
from midiloop_cli import report
from midiloop_cli.dataset import INPUT, json_option

if TYPE_CHECKING:
    from audioloop.evaluation.validate import Report


@click.command()
@click.argument("sources", nargs=-1, required=True, type=INPUT, metavar="FILE|FOLDER...")
@json_option
def check(sources: tuple[Path, ...], as_json: bool) -> None:
    """Compare header, tags, name and samples of loops, and say what disagrees.

    Length against tempo and bars, loop points, seam, clipping, silence; of anyone's loops.
    """
    from audioloop.io.sources import audio

    rows, paths = [], list(audio(sources))
    with report.counting("files", len(paths)) as count:
        for path in paths:
            row = _row(path)
            rows.append(row)
            if not as_json:
                report.echo(_line(row))
            count()
    bad = sum(not row["ok"] for row in rows)
    if as_json:
        report.echo(report.to_json({"files": rows, "bad": bad}))
    elif len(rows) > 1:
        report.echo(
            f"{counted(len(rows), 'file')}, " + (f"{bad:,} of them bad" if bad else "all right")
        )
    sys.exit(1 if bad else 0)


def _row(path: Path) -> dict[str, Any]:
    """What is known of a file, or why nothing is."""
    from audioloop.evaluation import validate
    from audioloop.io.sources import errors_named
    from midiloop.errors import LoopError

    name = files.printable(path)
    try:
        with errors_named(path):
            checked = validate.examine(path)
    except LoopError as error:
        return {"file": name, "ok": False, "error": str(error).removeprefix(f"{name}: ")}
    return {"file": name, "ok": not checked.findings, **_facts(checked)}


def _facts(checked: Report) -> dict[str, Any]:
    found, seam = checked.metadata, checked.seam
    return {
        "tempo_bpm": found.tempo_bpm,
        "bars": found.bars,
        "beats": found.beats,
        "meter": list(found.meter),
        "samples": len(found.wave),
        "loop": list(found.extent[:2]),
        "rate": found.wave.rate,
        "jump": seam and round(seam.jump, 2),
        "step": seam and round(seam.step, 6),
        "disagrees": [finding._asdict() for finding in checked.findings],
        "notes": checked.notes,
    }


def _line(row: dict[str, Any]) -> str:
    """One line for a file that is all right, else one for each thing that disagrees."""
    if "error" in row:
        return f"bad {report.plain(row['file'])}  {row['error']}"
    if row["ok"]:
        return f"ok  {report.plain(row['file'])}  {', '.join(_summary(row))}"
    return "\n".join(
        f"bad {report.plain(row['file'])}  {found['what']}: "
        f"expected {found['expected']}, found {found['found']}"
        for found in row["disagrees"]
    )


def _summary(row: dict[str, Any]) -> list[str]:
    parts: list[str] = []
    if row["tempo_bpm"] is not None:
        noun, count = ("bar", row["bars"]) if row["bars"] else ("beat", row["beats"])
        extent = f"{counted(count, noun)} at " if count else ""
        parts.append(f"{extent}{row['tempo_bpm']:.10g} bpm")
    parts.append(counted(row["samples"], "sample"))
    if row["jump"] is not None:
        parts.append(f"jump {row['jump']:.1f}")
    return [*parts, *row["notes"]]
