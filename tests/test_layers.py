"""Data flows one way: a module imports only those before it, and importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

# Each module, and those of its own package that it may import.
LAYERS = {
    "errors": set[str](),
    "grid": {"errors"},
    "corpus": {"errors"},
    "score": {"errors", "corpus"},
    "pianoroll": {"errors", "grid", "score"},
    "interchange": {"errors", "grid", "score", "pianoroll"},
    "rules": {"errors", "grid", "score"},
    "workers": {"errors"},
    "mined": set(),
    "store": {"errors", "grid", "mined"},
    "splits": set(),
    "parts": {"grid", "mined"},
    "seal": {"grid", "mined", "parts", "splits", "store"},
    "extract": {
        "errors", "grid", "corpus", "score", "pianoroll", "rules", "workers", "mined", "parts",
        "store", "seal",
    },
    "metrics": {"errors", "grid"},
    "overview": {"grid", "metrics", "store"},
    "export": {"errors", "grid", "score", "pianoroll", "interchange", "store"},
    "page": {"errors"},
    "plot": {"errors", "grid", "page"},
    "gallery": {
        "errors", "grid", "corpus", "score", "pianoroll", "rules", "extract", "store", "plot",
    },
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(package: str) -> list[Path]:
    return [path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in modules("midiloop")} == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_imports_only_what_comes_before_it(name: str) -> None:
    names = imported(ROOT / "midiloop" / f"{name}.py")
    own = {parts[1] for parts in (n.split(".") for n in names) if parts[0] == "midiloop"}
    assert own - {"__version__"} <= LAYERS[name]
    assert not {n for n in names if n.split(".")[0] in ("audioloop", "midiloop_cli")}


def test_the_order_has_no_cycle() -> None:
    order = list(LAYERS)
    for name, allowed in LAYERS.items():
        assert all(order.index(other) < order.index(name) for other in allowed)


@pytest.mark.parametrize(
    "module", ["midiloop", "midiloop.extract", "midiloop.gallery", "audioloop"]
)
def test_importing_loads_neither_torch_nor_matplotlib(module: str) -> None:
    code = f"import sys, {module}; print(*{{n.split('.')[0] for n in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "matplotlib", "pretty_midi", "pypianoroll", "pandas"} & set(loaded)


def test_help_imports_no_numpy() -> None:
    code = "import sys, midiloop_cli.main; print('numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_recipes_are_no_packages() -> None:
    assert not list((ROOT / "datasets").rglob("__init__.py"))
