"""What stands at the top of a package: loaded on first use, and shown by an example that runs."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import audioloop
import midiloop

PACKAGES = (midiloop, audioloop)
NAMES = [(package, name) for package in PACKAGES for name in package.__all__]


def examples(thing: object, name: str) -> list[doctest.DocTest]:
    """Examples of its own docstring, as a user would type them."""
    text = thing.__doc__ or ""
    found = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    return [found] if found.examples else []


def run(found: list[doctest.DocTest]) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    report: list[str] = []
    for one in found:
        runner.run(one, out=report.append)
    assert not runner.summarize(verbose=False).failed, "".join(report)


@pytest.mark.parametrize(
    ("package", "name"), NAMES, ids=[f"{one.__name__}.{name}" for one, name in NAMES]
)
def test_each_name_is_shown_by_an_example_that_runs(
    package: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = examples(getattr(package, name), name)
    assert found
    run(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_so_is_the_package(
    package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = examples(package, package.__name__)
    assert found
    run(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_is_there_and_others_are_not(package: ModuleType) -> None:
    assert set(package.__all__) <= set(dir(package))
    assert set(vars(package)["_PLACES"]) == set(package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("package", ["midiloop", "audioloop"])
def test_importing_loads_nothing_else(package: str) -> None:
    code = f"import sys, {package}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "numpy" not in loaded
    assert [name for name in loaded if name.startswith(f"{package}.")] == []


@pytest.mark.parametrize(("package", "name"), [("midiloop", "read"), ("audioloop", "render")])
def test_what_needs_no_model_loads_no_torch(package: str, name: str) -> None:
    code = f"import sys, {package}; {package}.{name}; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
