"""The recipes of what ships take hours, and are not run: that their words exist is checked."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from midiloop_cli.main import audioloop, midiloop

ROOT = Path(__file__).parents[2]
RECIPES = sorted(ROOT.glob("datasets/**/*.sh"))
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("d*s/**/*.md"))]
COMMAND = re.compile(r"\b(midiloop|audioloop) ((?:[a-z][a-z-]* ?)+)")


def commands(text: str) -> Iterator[click.Command]:
    """The commands that a text calls."""
    for program, words in COMMAND.findall(text):
        command: click.Command = midiloop if program == "midiloop" else audioloop
        context = click.Context(command)
        for word in words.split():
            inner = command.get_command(context, word) if isinstance(command, click.Group) else None
            if inner is None:
                break
            command = inner
        if not isinstance(command, click.Group):
            yield command


def options(command: click.Command) -> set[str]:
    """Its options, as they are written."""
    context = click.Context(command)
    return {
        option
        for parameter in command.get_params(context)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_gives_options_that_there_are(recipe: Path) -> None:
    text = recipe.read_text()
    known = set().union(*map(options, commands(text)))
    assert known
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_names_modules_that_there_are(recipe: Path) -> None:
    text = recipe.read_text()
    imports = re.findall(r"from [\w.]+ import \w+", text)
    names: dict[str, object] = {}
    for line in imports:
        exec(line, names)
    for module, name in re.findall(r"\b([a-z_]+)\.([A-Za-z_]+)(?=[(,)])", text):
        if module in names:
            assert hasattr(names[module], name), f"{module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_gives_options_that_there_are(page: Path) -> None:
    """Of commands that take too long to be run as well."""
    for line in re.findall(r"^(?:\$ )?((?:mid|aud)ioloop .*)$", page.read_text(), re.MULTILINE):
        (command, *_) = [*commands(line), None]
        if command is not None:
            words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
            given = {word for word in words if re.match("--?[a-z]", word)}
            assert given <= options(command), line
