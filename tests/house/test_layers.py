"""Importing is cheap; which module may import which is in pyproject.toml, for import-linter."""

from __future__ import annotations

import subprocess
import sys

import pytest

from paths import ROOT


@pytest.mark.parametrize(
    "module",
    [
        "midiloop",
        "midiloop.mining.extract",
        "midiloop.plotting.contact_sheet",
        "audioloop",
        "audioloop.rendering.batch",
    ],
)
def test_importing_loads_neither_torch_nor_matplotlib(module: str) -> None:
    code = f"import sys, {module}; print(*{{n.split('.')[0] for n in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    slow = {"torch", "matplotlib", "pretty_midi", "pypianoroll", "pandas", "scipy", "fluidsynth"}
    assert not slow & set(loaded)


def test_help_imports_no_numpy() -> None:
    code = "import sys, midiloop_cli.main; print('numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_recipes_are_no_packages() -> None:
    assert not list((ROOT / "datasets").rglob("__init__.py"))
