"""Every line of the README and of the guides works as it stands, on example songs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audioloop.tokens import pretrained
from midiloop.generation import sample
from paths import ROOT

PAGES = {
    "README": ROOT / "README.md",
    **{path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))},
}
# Lines that are not run, and why.
LONG = "trains for minutes or hours"
NOT_RUN = {
    "midiloop train": LONG,
    "midiloop reproduce": LONG,
    "midiloop evaluate run": "the example songs are too few for intervals",
    "midiloop evaluate generated": "the same, in their test split",
    "midiloop generate -n 2000": "what the same line needs",
    "audioloop train": LONG,
    "audioloop benchmark": LONG,
    "audioloop generate --text": "downloads published models",
    "python tests/benchmarks": "measures, and takes long",
}

# The models that ship are such runs.
RUNS = {
    "midiloop generate run": sample.SHIPPED,
    "--masked-model run": pretrained.SHIPPED["masked"],
}


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """What stands behind a prompt."""
    return [
        line.removeprefix("$ ").partition("  #")[0].strip()
        for block in blocks(page, "")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


def is_run(line: str) -> bool:
    return not line.startswith(tuple(NOT_RUN))


TYPED = [name for name, page in PAGES.items() if any(map(is_run, commands(page)))]
PYTHON = [name for name, page in PAGES.items() if blocks(page, "python")]


def sh(line: str, folder: Path) -> str:
    """What went wrong when a shell ran a line, or nothing; what it writes was not there yet."""
    words = shlex.split(line)
    if "-o" in words:
        out = folder / words[words.index("-o") + 1]
        if out.exists():
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    bin_folder = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        line, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )
    return f"{line}\n{done.stdout}\n{done.stderr}" if done.returncode else ""


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages take as given: songs, and loops that were made of them."""
    folder = tmp_path_factory.mktemp("songs")
    prepare = ROOT / "datasets" / "songbook" / "prepare.py"
    subprocess.run(
        [sys.executable, str(prepare), str(folder / "midi")], check=True, capture_output=True
    )
    shutil.copy(next((folder / "midi").glob("disco*.mid")), folder / "song.mid")
    assert not sh("midiloop extract midi -o loops --rules open", folder)
    assert not sh("midiloop generate -n 8 -o new", folder)
    shutil.copytree(folder / "new" / "midi", folder / "generated")
    return folder


@pytest.fixture
def desk(songs: Path, tmp_path: Path) -> Path:
    """A copy of that folder for one page."""
    return shutil.copytree(songs, tmp_path / "desk")


def test_the_lines_that_are_left_out_are_there() -> None:
    every = [line for page in PAGES.values() for line in commands(page)]
    assert len(list(filter(is_run, every))) > 20
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in every), start
    for start in RUNS:
        assert any(start in line for line in every), start


@pytest.mark.parametrize("name", TYPED)
def test_every_command_runs_as_it_stands(name: str, desk: Path) -> None:
    failed = []
    for line in filter(is_run, commands(PAGES[name])):
        if line == "audioloop refine new/midi -o refined":  # eight take a minute more than one
            for path in sorted((desk / "new" / "midi").iterdir())[1:]:
                path.unlink()
        for start, shipped in RUNS.items():
            if start in line:
                (desk / "run").unlink(missing_ok=True)
                (desk / "run").symlink_to(shipped)
        failed.append(sh(line, desk))
    assert not any(failed), "\n\n".join(filter(None, failed))


@pytest.mark.parametrize("name", PYTHON)
def test_every_python_line_runs_as_it_stands(name: str, desk: Path) -> None:
    imports = "import datasets, duckdb\nimport pandas as pd\nimport polars as pl\n"
    env = {**os.environ, "HF_HOME": str(desk / "hub"), "HF_HUB_OFFLINE": "1"}
    for block in blocks(PAGES[name], "python"):
        done = subprocess.run(
            [sys.executable, "-c", imports + block],
            cwd=desk, env=env, capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stderr}"
