"""Every example runs, as its own first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def songbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("songbook")
    prepare = ROOT / "datasets" / "songbook" / "prepare.py"
    subprocess.run([sys.executable, prepare, out], check=True, capture_output=True)
    return out


def run(name: str, *args: Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, args)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_every_example_is_tested() -> None:
    assert [path.name for path in EXAMPLES] == ["mine_a_corpus.py", "mine_one_song.py"]


def test_mine_one_song(songbook: Path, tmp_path: Path) -> None:
    song = next(path for path in sorted(songbook.iterdir()) if path.name.startswith("disco"))
    assert "loops" in run("mine_one_song.py", song, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"loop.mid", "loop.png"}


def test_mine_a_corpus(songbook: Path, tmp_path: Path) -> None:
    shown = run("mine_a_corpus.py", songbook, tmp_path / "loops")
    assert "metrics" in shown
    assert "no_bass" in shown
