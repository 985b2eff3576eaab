"""What the documentation says of the code is true of it."""

from __future__ import annotations

import re

from conftest import ROOT
from midiloop import extract, store
from midiloop_cli.main import audioloop, midiloop


def test_every_reason_and_every_column_is_explained() -> None:
    text = (ROOT / "docs" / "dataset.md").read_text()
    for reason, meaning in extract.REASONS.items():
        assert f"| `{reason}` | {meaning} |" in text
    for column in store.schema().names:
        assert f"| `{column}` |" in text


def test_every_command_and_its_options_are_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    commands = [
        (group.name, name, command)
        for group in (midiloop, audioloop)
        for name, command in group.commands.items()
    ]
    for group_name, name, command in commands:
        assert f"{group_name} {name}" in text
        if name in ("inspect", "plot", "export"):
            continue  # their --help says it all
        options = {option for p in command.params for option in p.opts if "--" in option}
        for option in options - {"--out"}:
            assert re.search(rf"{option}\b", text), f"{name} {option}"


def test_links_inside_the_repository_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("datasets/*/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"


# What a reader may be told to install: this project from its clone, and libraries by their names.
# PyPI's "midiloop" is somebody else's. Braces stand for the name of the library that is missing.
INSTALLABLE = {
    ".", "auraloss", "huggingface_hub", "librosa", "matplotlib", "pretty_midi", "pygame-ce",
    "pyyaml", "tensorboard", "transformers", "{error.name}", "{missing}", "{name}", "{package}",
}  # fmt: skip
PAGES = ("*.md", "*.toml", "*.sh", "*.py", "*.cff", "Makefile", ".ci/*")
FOLDERS = ("midiloop", "audioloop", "cli", "datasets", "docs", "examples", "tests")


def told_to_install(text: str) -> set[str]:
    """The first package of every ``pip install`` that does not begin with an option."""
    word = r"""'([^'\n]+)'|"([^"\n]+)"|([^-\s"'`\\][^\s"'`;,)\\]*)"""
    found = re.findall(rf"pip install (?:{word})", text)
    return {re.split(r"[\[=<>~]", "".join(words))[0].rstrip(".:") or "." for words in found}


def test_nobody_is_led_to_install_somebody_else_s_package() -> None:
    assert told_to_install("pip install 'midiloop[audio]', pip install librosa; x") == {
        "midiloop", "librosa",
    }  # fmt: skip
    pages = [page for pattern in PAGES for page in ROOT.glob(pattern)]
    pages += [page for folder in FOLDERS for p in PAGES[:4] for page in (ROOT / folder).rglob(p)]
    pages.remove(ROOT / "tests" / "test_docs.py")
    assert len(pages) > 150
    for page in pages:
        assert told_to_install(page.read_text()) <= INSTALLABLE, page
