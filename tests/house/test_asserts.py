"""Every test states something that can be false."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Calls that raise where something is not as it should be.
CHECKS = {"raises", "warns", "fail", "testing"}
# Helpers of the tests that do so; one without a check of its own does not count.
HELPERS = {"close", "one_line", "at_most_a_loop_error"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def names(call: ast.Call) -> set[str]:
    """The words of what is called: {"np", "testing", "assert_allclose"}."""
    return {node.id for node in ast.walk(call.func) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(call.func) if isinstance(node, ast.Attribute)
    }


def must_succeed(call: ast.Call) -> bool:
    """Whether a process is run that raises where it fails."""
    return any(word.arg == "check" and ast.unparse(word.value) == "True" for word in call.keywords)


def asserts(function: Function, helpers: set[str]) -> bool:
    """Whether a function holds a check, or calls a helper that does."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call) and (names(node) & (CHECKS | helpers) or must_succeed(node)):
            return True
    return False


def functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def silent(tree: ast.AST, helpers: set[str]) -> list[str]:
    """The tests of a module that check nothing."""
    tests = [found for found in functions(tree) if found.name.startswith("test_")]
    return [test.name for test in tests if not asserts(test, helpers)]


def test_every_test_asserts() -> None:
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(HERE.glob("*.py"))}
    # A helper asserts by itself and is called so: only these, lest a fixture count as a check.
    helpers = {
        found.name
        for tree in trees.values()
        for found in functions(tree)
        if found.name.startswith(("assert_", "check_")) or found.name in HELPERS
        if asserts(found, set())
    }
    found = {path.name: silent(tree, helpers) for path, tree in trees.items()}
    assert not {name: tests for name, tests in found.items() if tests}


@pytest.mark.parametrize(
    ("body", "is_silent"),
    [
        ("run()", True),
        ("x = 1 == 2", True),
        ("assert run()", False),
        ("for x in y:\n  with pytest.raises(E): run()", False),
        ("np.testing.assert_allclose(a, b)", False),
        ("assert_seamless(x)", False),
        ("subprocess.run(command)", True),
        ("subprocess.run(command, check=True)", False),
    ],
)
def test_a_test_without_a_check_is_found(body: str, is_silent: bool) -> None:
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    tree = ast.parse(f"def test_it():\n{lines}")
    assert bool(silent(tree, {"assert_seamless"})) == is_silent
