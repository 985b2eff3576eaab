"""One thing has one name, and it is the field's: words of our own making stand in no name or page.

Names are strict: a word of a public name, of a private function, class, method or constant, of an
option or of a command may not be one of `NAMES`. Prose that users read (help texts and pages) may
use ordinary English, but not what would be jargon of this project alone, `PROSE`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from midiloop_cli.main import audioloop, midiloop
from paths import ROOT

# A word that is not used, and the standard term for it.
NAMES = {
    "told": "conditioning", "untold": "unconditional", "unsaid": "null", "silent": "null",
    "given": "source", "anew": "inpainted", "gap": "mask", "gaps": "mask", "filler": "inpainting",
    "filled": "inpainted", "taste": "SamplingConfig", "wish": "GenerationRequest",
    "usual": "defaults", "drawn": "sampled", "lesson": "LossWeights", "study": "TrainConfig",
    "shuffling": "choice_temperature", "candidate": "best_of", "candidates": "best_of",
    "doubt": "uncertainty", "doubts": "uncertainty", "heat": "temperature",
    "moment": "decoding step", "primed": "prefix", "priming": "prefix", "heard": "cache",
    "hears": "cache", "thought": "MLP", "thoughts": "MLP", "listener": "condition embedding",
    "trunk": "backbone", "coder": "codec", "coded": "encoded", "mined": "records",
    "seal": "assemble", "covers": "digest", "ways": "methods", "measured": "measures",
    "summed": "summary", "surely": "significantly", "mended": "fixed", "described": "metadata",
    "stated": "tag", "publish": "write", "page": "canvas", "gallery": "contact sheet",
    "opened": "source", "touch": "velocity", "chances": "confidence", "circle": "circular",
}  # fmt: skip

PROSE = {
    "told": "conditioned on", "untold": "unconditional", "unsaid": "null condition",
    "anew": "regenerated", "gaps": "masked tokens", "filler": "inpainting model",
    "taste": "settings of sampling", "lesson": "loss weights", "study": "training settings",
    "shuffling": "choice temperature", "candidates": "best of N", "doubts": "uncertainty",
    "priming": "prefix", "primed": "prefix", "played in": "warm-up frames",
    "listener": "condition embedding", "trunk": "backbone", "coder": "codec",
    "coded": "encoded", "begin with": "init from", "take over": "init from",
    "seal": "assemble", "covers": "digest", "mended": "fixed",
    "described": "metadata", "gallery": "contact sheet", "touch": "velocity",
    "goes round": "wraps around", "go round": "wrap around", "what is said": "logits",
    "rescoring": "rescoring weight",
}  # fmt: skip

# Phrases in which such a word is no jargon: a law's, and the term itself.
PLAIN = re.compile(r"private\s+study|rescoring[\s_-]+weight", re.IGNORECASE)

# Names in which such a word means something else, by the end of their path, with the reason.
ALLOWED = {
    "fidelity.high_gap_db": "a difference of energies, in dB, by this name in records on disk",
    "Figures.high_gap_db": "the same",
    "figures.spread_out.gap": "a distance between drawn things",
    "loopgen.plots.GAP": "a distance between drawn things",
    "seam_plot.GAP": "a distance between drawn things",
    "pianoroll.SILENT": "a loop without notes",
    "wave.SILENT": "a level, below which a wave is silent",
}

# The same for private names, wherever they stand.
PRIVATE_ALLOWED = {
    "_opened": "a file that is open",
    "_seal": "the step that makes a data set of its partial shards",
}


def words(name: str) -> set[str]:
    """The words of a name: "NullCondition_of" to {"null", "condition", "of"}."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def members(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    """Dotted names that a module or class shows: constants, fields, functions, parameters."""
    for node in body:
        match node:
            case ast.ClassDef(name=name) if not name.startswith("_"):
                yield f"{prefix}.{name}"
                yield from members(node.body, f"{prefix}.{name}")
            case ast.FunctionDef(name=name) if not name.startswith("_") or name == "__init__":
                yield f"{prefix}.{name}"
                found = node.args
                for arg in (*found.posonlyargs, *found.args, *found.kwonlyargs):
                    yield f"{prefix}.{name}.{arg.arg}"
            case ast.AnnAssign(target=ast.Name(id=name)) if not name.startswith("_"):
                yield f"{prefix}.{name}"
            case ast.Assign(targets=targets):
                for target in targets:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name) and not part.id.startswith("_"):
                            yield f"{prefix}.{part.id}"
            case ast.If(body=inner) | ast.Try(body=inner):
                yield from members(inner, prefix)


def modules() -> Iterator[tuple[str, list[ast.stmt]]]:
    """Every module of both packages and the command line, with its statements."""
    for top in (ROOT / "midiloop", ROOT / "audioloop", ROOT / "cli" / "midiloop_cli"):
        for path in sorted(top.rglob("*.py")):
            inside = path.relative_to(top.parent).with_suffix("")
            module = ".".join(part for part in inside.parts if part != "__init__")
            yield module, ast.parse(path.read_text("utf-8")).body


def public_names() -> Iterator[str]:
    """Every public name of every module, with its module."""
    for module, body in modules():
        yield module
        yield from members(body, module)


def defined(body: list[ast.stmt]) -> Iterator[str]:
    """Functions, classes and constants of a module, and methods of its classes, private or not."""
    for node in body:
        match node:
            case ast.ClassDef(name=name, body=inner):
                yield name
                yield from defined(inner)
            case ast.FunctionDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                for target in targets:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name):
                            yield part.id


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with the words that are typed for it."""
    for group in (midiloop, audioloop):
        for name, command in group.commands.items():
            yield f"{group.name} {name}", command


def pages() -> list[Path]:
    """What people read: the README, the documentation, cards of models and data sets."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for top in ("midiloop", "audioloop", "datasets", "examples"):
        found += (ROOT / top).rglob("*.md")
    return sorted(found)


def jargon(text: str) -> list[str]:
    """Words of a text that `PROSE` has others for, outside of code, links and addresses."""
    plain = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)|https?://\S+", " ", text, flags=re.DOTALL)
    plain = PLAIN.sub(" ", plain)
    plain = " ".join(plain.split())
    return [
        f"{word!r} (say {term})"
        for word, term in PROSE.items()
        if re.search(rf"\b{word}\b", plain, re.IGNORECASE)
    ]


def test_public_names_are_standard_terms() -> None:
    found = {}
    for name in public_names():
        odd = words(name.rpartition(".")[2]) & NAMES.keys()
        if odd and not any(name.endswith(end) for end in ALLOWED):
            found[name] = sorted(odd)
    assert not found


def test_private_names_are_standard_terms() -> None:
    found = {}
    for module, body in modules():
        names = [name for name in defined(body) if re.match("_[A-Za-z]", name)]
        odd = [name for name in names if words(name) & NAMES.keys() and name not in PRIVATE_ALLOWED]
        if odd:
            found[module] = odd
    assert not found


def test_every_exception_is_one() -> None:
    names = list(public_names())
    for end in ALLOWED:
        assert any(n.endswith(end) and words(end.rpartition(".")[2]) & NAMES.keys() for n in names)


def test_commands_and_options_are_standard_terms() -> None:
    found: dict[str, list[str]] = {}
    for name, command in commands():
        typed = [name, *(option for p in command.params for option in p.opts)]
        odd = {word for one in typed for word in words(one)} & NAMES.keys()
        if odd:
            found[name] = sorted(odd)
    assert not found


def test_help_texts_are_plain() -> None:
    found: dict[str, list[str]] = {}
    for name, command in commands():
        texts = {name: command.help or ""}
        for p in command.params:
            texts[f"{name} {p.opts[0]}"] = getattr(p, "help", None) or ""
        found |= {where: odd for where, text in texts.items() if (odd := jargon(text))}
    assert not found


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_plain(page: Path) -> None:
    assert jargon(page.read_text("utf-8")) == []


SECTION = re.compile(r"^(Args|Attributes):\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)


def documented(docstring: str) -> set[str]:
    """Names that "Args:" and "Attributes:" explain."""
    found: set[str] = set()
    for section in SECTION.finditer(docstring + "\n"):
        for line in re.findall(r"^ {4}(\w[\w, *]*):", section[2], re.MULTILINE):
            found |= {name.strip(" *") for name in line.split(",")}
    return found


def known(node: ast.AST) -> set[str]:
    """Names that a function, or a class with its methods and bases' fields, really has."""
    found: set[str] = set()
    for part in ast.walk(node):
        match part:
            case ast.arg(arg=name) | ast.Name(id=name) | ast.Attribute(attr=name):
                found.add(name)
            case ast.FunctionDef(name=name):
                found.add(name)
    return found


def test_docstrings_explain_names_that_exist() -> None:
    found = {}
    for top in (ROOT / "midiloop", ROOT / "audioloop", ROOT / "cli" / "midiloop_cli"):
        for path in sorted(top.rglob("*.py")):
            tree = ast.parse(path.read_text("utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    odd = documented(ast.get_docstring(node) or "") - known(node)
                    if odd:
                        found[f"{path.relative_to(ROOT)}: {node.name}"] = sorted(odd)
    assert not found


def test_what_is_jargon_is_found() -> None:
    module = ast.parse("_SEAL = 1\nclass A:\n  def _heat(self): ...\ndef _b(told): ...\n")
    assert list(defined(module.body)) == ["_SEAL", "A", "_heat", "_b"]
    assert jargon("It fills\ngaps that are made anew.") == [
        "'anew' (say regenerated)",
        "'gaps' (say masked tokens)",
    ]
    assert jargon("`told` in [this](told.md) is a state-dict key.\n```\nanew\n```\n") == []
    assert words("NullCondition_of") == {"null", "condition", "of"}
    names = members(ast.parse("def told(gap): ...\nclass A:\n  heat: int\n").body, "m")
    assert list(names) == ["m.told", "m.told.gap", "m.A", "m.A.heat"]
    assert documented("It.\n\nArgs:\n    told, gap: both.\n        more: no.\n") == {"told", "gap"}
