"""Every example runs, as its own first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# What is small enough for a test.
NOTEBOOKS: dict[str, dict[str, object]] = {
    "mine_and_train.ipynb": {"MINUTES": 0.05, "PRESET": "small"},
    "refine_a_loop.ipynb": {"DECODE_STEPS": (2, 1, 1, 1), "BEST_OF": 1, "BPM": 180.0},
}


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


def with_parameters(notebook: Any, **values: object) -> Any:
    """The notebook with a cell after that of its parameters which gives them other values."""
    (at,) = (
        number
        for number, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", [])
    )
    known = notebook.cells[at].source
    assert all(f"{name} = " in known for name in values)
    lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(lines))
    return notebook


def test_every_notebook_is_tested_and_holds_no_output() -> None:
    paths = sorted((ROOT / "examples").glob("*.ipynb"))
    assert [path.name for path in paths] == sorted(NOTEBOOKS)
    for path in paths:
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), path
            assert cell.get("execution_count") is None, path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_every_notebook_runs_and_is_heard(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "examples" / name, as_version=4)
    with_parameters(notebook, **NOTEBOOKS[name], FOLDER=str(tmp_path / "out"))
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "examples")}}
    )
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    rich = [output.data for output in shown if output.output_type == "display_data"]
    assert sum("<audio" in data.get("text/html", "") for data in rich) == 2
    assert any("image/png" in data for data in rich)
