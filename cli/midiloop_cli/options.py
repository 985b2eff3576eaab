"""Which options a user gave, for those that only some calls make use of."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource


def passed(*names: str) -> str:
    """The options among ``names`` that were written in this call, as in "--keep, --mask"."""
    context = click.get_current_context()
    sources = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP, None)
    return ", ".join(
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) not in sources
    )


def refuse(reason: str, *names: str) -> None:
    """Raise `click.UsageError` where one of ``names`` was written, for it would change nothing."""
    if found := passed(*names):
        raise click.UsageError(f"{found}: {reason}.")


def refuse_top_p(temperature: float | None) -> None:
    """Raise `click.UsageError` where ``--top-p`` was written beside a temperature of 0."""
    if temperature == 0:
        refuse("--temperature 0 takes the likeliest anyway; give one of both", "top_p")


def is_dataset(source: Path) -> bool:
    """Whether a source is a loop dataset, and not a file or a folder of files."""
    return (source / "manifest.json").exists()


def refuse_unfelt(feel: float, swing: float) -> None:
    """Raise `click.UsageError` for options of what plays, where nothing is played."""
    if feel == 0:
        refuse("plays where --feel is above 0", "hands_folder")
        if swing == 0:
            refuse("changes nothing without --feel", "seed")
