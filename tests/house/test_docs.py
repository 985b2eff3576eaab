"""What the documentation says of the code is true of it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import torture
from midiloop.dataset import parquet
from midiloop.mining import extract
from midiloop_cli.main import audioloop, midiloop
from paths import ROOT


def test_every_reason_and_every_column_is_explained() -> None:
    text = (ROOT / "docs" / "dataset.md").read_text()
    for reason, meaning in extract.REASONS.items():
        assert f"| `{reason}` | {meaning} |" in text
    for column in parquet.schema(played=True).names:
        assert f"| `{column}` |" in text


def test_every_command_is_in_the_table_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    shown = re.findall(r"^\| `((?:midiloop|audioloop) \w+)` \|", text, re.MULTILINE)
    assert shown == list(dict.fromkeys(shown))
    assert set(shown) == {
        f"{group.name} {name}" for group in (midiloop, audioloop) for name in group.commands
    }


def test_the_readme_is_short_and_its_sounds_are_small() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    sounds = sorted((ROOT / "docs" / "sounds").iterdir())
    assert sum(path.stat().st_size for path in sounds) < 1_000_000
    for path in sounds:
        assert f"docs/sounds/{path.name}" in text


def all_options() -> set[str]:
    """Those of both programs, and of the scripts that measure."""
    ours = {
        option
        for group in (midiloop, audioloop)
        for command in group.commands.values()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    scripts = [*ROOT.glob("tests/benchmarks/*.py"), *ROOT.glob("datasets/*/*.py")]
    for path in scripts:
        ours.update(re.findall(r'"(--[a-z0-9-]+)"', path.read_text()))
    return ours | {"--help"}


def test_no_page_names_an_option_that_is_not_there() -> None:
    known = all_options()
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        text = page.read_text()
        code = re.findall(r"^```\n.*?^```|`[^`\n]+`", text, re.MULTILINE | re.DOTALL)
        named = {name for part in code for name in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", part)}
        assert named <= known, f"{page}: {named - known}"


# Words that this project once had for what the field calls otherwise: see the pages for the terms.
PRIVATE_WORDS = re.compile(
    r"\b(told|untold|anew|fillers?|tastes?|lessons?|shuffling|candidates?|prim(?:ed|ing)|played in|"
    r"(?:go|goes|going|went|gone) (?:on|round)|coders?|coded|mended|doubts?|way back|trunk|"
    r"surely worse|wish(?:es)?)\b",
    re.IGNORECASE,
)


def test_pages_speak_the_words_of_the_field() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        prose = re.sub(
            r"^```.*?^```|`[^`\n]+`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL
        )
        found = {match[0] for match in PRIVATE_WORDS.finditer(prose)}
        assert not found, f"{page}: {found}"


def test_every_way_of_breaking_it_is_in_the_table() -> None:
    text = (ROOT / "docs" / "robustness.md").read_text()
    shown = re.findall(r"^\| (.+) \| [\d,]+ \| \d+ \|$", text, re.MULTILINE)
    assert shown == [row.title for row in torture.ROWS.values()]


def test_links_inside_the_repository_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/**/README.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"


# What golden values are made with, in environments of their own.
ELSEWHERE = """
    auraloss audiocraft av colorlog dora-search flashy hydra-core julius num2words omegaconf
    retrying spacy submitit torchaudio torchmetrics treetable
"""
HINT = re.compile(r"""pip install\b((?:[ \t]+(?:'[^'\n]*'|[^\s`'",;:()\\]+))+)""")


def texts() -> Iterator[tuple[Path, str]]:
    """Every text of the repository, with its lines that go on joined."""
    for top in ROOT.iterdir():
        if top.name == "build" or (top.name.startswith(".") and top.name != ".ci"):
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.suffix in (".py", ".md", ".toml", ".sh", ".cff", ".txt", "") and path.is_file():
                yield path, path.read_text().replace("\\\n", " ")


def asked_for(text: str) -> Iterator[str]:
    """What each `pip install` in a text would fetch, without versions."""
    for hint in HINT.finditer(text):
        words = hint[1].split()
        for before, word in zip(["", *words], words, strict=False):
            if not word.startswith("-") and before not in ("-c", "-r", "-e"):
                yield re.split("[=<>~]", word.strip("'"))[0]


def libraries(extras: dict[str, list[str]], dependencies: list[str]) -> set[str]:
    """Names that are those of the libraries themselves; ours is none, until it is published."""
    named = [*dependencies, *(name for names in extras.values() for name in names)]
    named += re.findall(r"^[^#\n]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    names = {re.split(r"[\[=<>;\s]", name)[0].lower() for name in named}
    return (names | set(ELSEWHERE.split())) - {"midiloop", "audioloop"}


def test_no_page_installs_a_stranger() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = libraries(extras, project["dependencies"])
    found = set()
    for path, text in texts():
        needed = re.findall(r'needs\("([^"]+)"\)', text) if path.suffix == ".py" else []
        for name in [*asked_for(text), *needed]:
            found.add(name)
            if clone := re.fullmatch(r"\.(?:\[([a-z,]+)\])?", name):
                of_ours = set((clone[1] or "models").split(","))
                assert of_ours <= set(extras), f"{path}: pip install {name}"
            elif not re.search(r"[{$]|\.whl", name):  # said elsewhere in the same code
                assert name.lower() in known, f"{path}: pip install {name}"
        if path.name not in ("pyproject.toml", Path(__file__).name):
            assert not re.search(r"\b(?:midiloop|audioloop)\[[a-z]", text), f"{path}: an extra"
    assert {"librosa", "soxr", ".[plot,models,audio]"} <= found
