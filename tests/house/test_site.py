"""The site is built without a warning, and holds every command, option and module."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from midiloop_cli.main import audioloop, midiloop
from paths import ROOT

ENV = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_every_command_and_its_options_are_in_the_reference(site: Path) -> None:
    page = site / "commands" / "index.html"
    text = text_of(page)
    for group in (midiloop, audioloop):
        for name, command in group.commands.items():
            assert f'id="{group.name}-{name}"' in page.read_text()
            for parameter in command.params:
                for option in filter(lambda name: name.startswith("-"), parameter.opts):
                    assert re.search(rf"(?<![\w-]){option}\b", text), f"{name} {option}"


def test_every_public_module_is_in_the_reference(site: Path) -> None:
    text = (site / "api" / "index.html").read_text()
    for package in ("midiloop", "audioloop"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if not re.search(r"\._", name) and name != package:
                assert f'id="{name}"' in text, name


def test_links_between_files_became_links_between_pages(site: Path) -> None:
    home = (site / "index.html").read_text()
    assert 'href="producers/"' in home
    assert 'href="cards/loop-writer/"' in home
    assert 'src="images/generated.png"' in home
    assert 'href="../../cards/codec/"' in (site / "results" / "codec" / "index.html").read_text()
    for page in site.rglob("*.html"):
        assert not re.search(r'(?:src|href)="[^":]*\.md["#]', page.read_text()), page


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="https?://', text), page
        assert not re.findall(r'<link[^>]*stylesheet[^>]*href="https?://', text), page
