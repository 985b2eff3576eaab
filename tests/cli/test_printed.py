"""What commands print of names that people and manifests chose: codes are shown, not sent."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from handmade import groove
from midiloop.common.engine import Inline
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import counted
from midiloop.midi import score
from midiloop.mining import extract, rules
from midiloop_cli import main, report

# Newline, carriage return, a colour, a title (OSC), C1, bidi, rich's markup, no UTF-8, a format.
ODD = (
    "two\nlines", "ok  forged\rbad", "\x1b[31mred", "\x1b]0;title\x07", "\x9b31mred",
    "\u202egnp.exe", "[red]marked[bold]", "bad \udcff\udce9", "{name} %s", "line\u2028end", "é 夜",
)  # fmt: skip
COMMANDS = {
    "extract": ["midiloop", "extract", "{folder}", "-o", "{out}"],
    "extract of one that is none": ["midiloop", "extract", "{bad}", "-o", "{out}"],
    "inspect": ["midiloop", "inspect", "{loops}"],
    "plot": ["midiloop", "plot", "{midi}", "-o", "{out}.png"],
    "plot of what is no MIDI": ["midiloop", "plot", "{bad}", "-o", "{out}.png"],
    "export": ["midiloop", "export", "{loops}", "--midi", "{out}"],
    "humanize": ["midiloop", "humanize", "{folder}", "--feel", "0", "--swing", "1", "-o", "{out}"],
    "a missing file": ["midiloop", "inspect", "{out}"],
    "check": ["audioloop", "check", "{bad}"],
    "seam": ["audioloop", "seam", "{bad}"],
    "render": ["audioloop", "render", "{folder}", "-o", "{out}"],
}


def line(args: list[str], places: dict[str, str]) -> tuple[str, list[str]]:
    """The program and the words of its command line."""
    group, *rest = (arg.format(**places) for arg in args)
    return group, rest


class Terminal(io.TextIOWrapper):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def run(
    args: list[str], places: dict[str, str], *, shown: bool = False
) -> tuple[int, bytes, bytes]:
    """Exit code, and the bytes of both streams, of a command run in this process.

    Args:
        shown: on a terminal, as far as stderr goes.
    """
    group, rest = line(args, places)
    printed, reported = io.BytesIO(), io.BytesIO()
    out = io.TextIOWrapper(printed, "utf-8", write_through=True)
    err = (Terminal if shown else io.TextIOWrapper)(reported, "utf-8", write_through=True)
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with streams[0], streams[1], pytest.raises(SystemExit) as left:
        getattr(main, group)(rest)
    assert isinstance(left.value.code, int)
    return left.value.code, printed.getvalue(), reported.getvalue()


def run_apart(
    args: list[str], places: dict[str, str], **env: str
) -> subprocess.CompletedProcess[bytes]:
    """The same in a process of its own, whose streams are as the environment says."""
    group, rest = line(args, places)
    code = f"import sys; from midiloop_cli.main import {group}; {group}(sys.argv[1:])"
    command = [os.fsencode(arg) for arg in (sys.executable, "-c", code, *rest)]
    return subprocess.run(command, capture_output=True, timeout=60, env={**os.environ, **env})


def places(name: str, folder: Path) -> dict[str, str]:
    """A corpus, a file and a dataset with this name."""
    corpus = folder / name
    corpus.mkdir()
    (corpus / f"{name}.mid").write_bytes(score.to_bytes(groove(8)))
    (folder / f"{name}.wav").write_bytes(b"no sound")
    settings = extract.Settings(rules.preset("open"))
    loops = folder / ("loops" if "\udcff" in name else f"{name} loops")  # PyArrow takes UTF-8 alone
    extract.run([corpus], loops, settings, engine=Inline())
    found = {"folder": corpus, "midi": corpus / f"{name}.mid", "bad": folder / f"{name}.wav"}
    found |= {"loops": loops, "out": folder / f"{name} out"}
    return {key: str(path) for key, path in found.items()}


def assert_harmless(printed: bytes, lines: int | None = None) -> None:
    """Lines of text, and no name that ends one."""
    text = printed.decode()
    for mark in text:
        assert mark == "\n" or unicodedata.category(mark) not in ("Cc", "Cf", "Zl", "Zp", "Cs")
    assert b"Traceback" not in printed
    assert "two\nlines" not in text
    if lines is not None:
        assert text.count("\n") == lines


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_name_changes_nothing_but_itself(name: str, tmp_path: Path) -> None:
    found = places(name, tmp_path)
    for what, args in COMMANDS.items():
        if args[0] == "audioloop":
            pytest.importorskip("soundfile")
        code, out, err = run(args, found)
        assert_harmless(out)
        assert_harmless(err, lines=int(code != 0 and what != "check"))
        assert b"Error" not in err
        for path in tmp_path.rglob("* out*/*"):
            stem = str(Path(*path.relative_to(tmp_path).parts[1:]))  # also in what can be resumed
            assert not any(unicodedata.category(mark) in ("Cc", "Cf", "Zl", "Zp") for mark in stem)
        for path in sorted(tmp_path.glob("* out"), reverse=True):
            path.rename(tmp_path / f"{what} done")


JSON = {
    "midiloop extract": "{folder} -o {out}",
    "midiloop inspect": "{loops}",
    "midiloop plot": "{midi} -o {out}.png",
    "midiloop export": "{loops} --midi {out}",
    "midiloop train": "vq-vae {loops} -o {out}",
    "midiloop generate": "-n 1 -o {out}",
    "midiloop humanize": "{folder} --feel 0 --swing 1 -o {out}",
    "midiloop evaluate": "{several} --reference {several}",
    "midiloop reproduce": "{loops} -o {out}",
    "audioloop render": "{folder} -o {out}",
    "audioloop check": "{sound} {bad}",
    "audioloop seam": "{sound} {bad}",
    "audioloop train": "codec {loops} -o {out} --steps 1",
    "audioloop reconstruct": "{sound} {bad} -o {out}",
    "audioloop refine": "{sound} {bad} --bars 1 -o {out}",
    "audioloop generate": "{short} {bad} --best-of 1 -o {out}",
    "audioloop benchmark": "{loops} -o {out}",
}
TOGETHER = ('a "b" \\ c,\nd\r\t\x1b[31m\x9b\u202e\u2028 夜', "bad \udcff\udce9")


def test_every_command_is_asked_for_json() -> None:
    groups = ((main.midiloop, "midiloop"), (main.audioloop, "audioloop"))
    assert set(JSON) == {
        f"{name} {command}" for group, name in groups for command in group.commands
    }


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes minutes finds at once what it would find in the end, and no number for some."""
    from audioloop.codec import train as train_of_sound
    from audioloop.evaluation.loopgen import plots, tables
    from midiloop.common.trainer import Result
    from midiloop.training import recipes

    def trained(model: str, loops: LoopDataset, out: Path, *_: Any, **__: Any) -> list[Any]:
        history = [{"epoch": 1.0, "error": math.nan}]
        return [recipes.Trained(out / model, "error", Result(1, math.inf, history))]

    def compared(loops: LoopDataset, out: Path, *_: Any, **__: Any) -> str:
        out.mkdir()
        found = {"about": {"dataset": str(loops.path)}, "error": math.nan}
        (out / "report.json").write_text(json.dumps(found))
        return str(loops.path)

    history = [{"minutes": 1.0, "si_sdr_db": 1.0, "si_sdr_codes_db": math.nan}]
    result = Result(1, 1.0, history)
    monkeypatch.setattr(recipes, "run", trained)
    monkeypatch.setattr("midiloop.evaluation.reproduce.run", compared)
    monkeypatch.setattr(train_of_sound, "codec", lambda *_, **__: result)
    monkeypatch.setattr("audioloop.evaluation.loopgen.benchmark.run", compared)
    monkeypatch.setattr(plots, "draw", lambda *_: [])
    monkeypatch.setattr(tables, "as_json", lambda found: {"dataset": found})


def not_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("name", TOGETHER, ids=ascii)
@pytest.mark.parametrize("command", JSON)
def test_json_is_valid_and_alone_whatever_the_name(
    command: str, name: str, tmp_path: Path, dataset: LoopDataset, briefly: None
) -> None:
    found = places(name, tmp_path)
    sound = tmp_path / f"{name} tone.wav"
    tone = np.sin(np.arange(32_000) * 2 * np.pi / 100) / 2
    soundfile.write(os.fsencode(sound), tone, 16_000, format="WAV")
    short = Path(found["folder"], f"{name} short.mid")
    short.write_bytes(score.to_bytes(groove(1)))
    short.with_name(f"{name} bad.mid").write_bytes(b"no MIDI")
    shutil.copytree(dataset.path, tmp_path / f"{name} several")
    found |= {
        "sound": str(sound),
        "short": str(short),
        "several": str(tmp_path / f"{name} several"),
    }
    args = [*command.split(), *JSON[command].split(), "--json"]
    code, out, err = run(args, found)
    assert_harmless(out)
    assert_harmless(err)
    if code == 2:  # PyArrow takes UTF-8 alone, and that is said instead
        assert "\udcff" in name
        assert out == b""
        assert b"not UTF-8" in err
    else:
        assert isinstance(json.loads(out, parse_constant=not_json), dict)


@pytest.mark.parametrize(
    "command",
    [
        "check {folder}",
        "seam {folder}",
        "seam {folder} --perplexity",
        "reconstruct {folder} -o {out}",
    ],
)
def test_progress_is_shown_on_terminals_alone_and_changes_no_output(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for number in range(2):
        tone = np.sin(np.arange(16_000) * 2 * np.pi / 100) / 2
        soundfile.write(sounds / f"{number}.wav", tone, 16_000)
    found = {"folder": str(sounds), "out": str(tmp_path / "out")}
    silent, shown = (
        run(["audioloop", *command.split()], found, shown=shown) for shown in (False, True)
    )
    assert silent[:2] == shown[:2]
    assert silent[2] == b""
    assert b"files" in shown[2]
    assert b"2/2" in shown[2]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_of_any_encoding_takes_any_name(encoding: str, tmp_path: Path) -> None:
    found = places("夜 \udcff", tmp_path)
    for command in ("inspect", "a missing file", "check"):
        for more in ([], ["--json"]):
            done = run_apart(
                [*COMMANDS[command], *more], found, LC_ALL="C", PYTHONIOENCODING=encoding
            )
            assert b"UnicodeEncodeError" not in done.stderr
            assert b"Traceback" not in done.stderr


def test_one_is_one_and_others_are_several() -> None:
    assert [counted(n, "loop") for n in (0, 1, 2, 2000)] == [
        "0 loops", "1 loop", "2 loops", "2,000 loops",
    ]  # fmt: skip


def test_an_error_of_the_system_names_path_cause_and_remedy() -> None:
    import errno

    for number in (errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.EIO):
        found = report.os_error(OSError(number, "as said elsewhere", "a\rb"))
        place, cause = found.split(": ")
        assert place == r"a\rb"
        assert cause.startswith(f"{os.strerror(number)}; ")
    assert report.os_error(OSError("782688 requested and 174218 written")).count("; ") == 1


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    found = places("song", tmp_path)
    code = "import sys; from midiloop_cli.main import midiloop; midiloop(sys.argv[1:])"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "inspect", found["loops"]],
            stdout=full, stderr=subprocess.PIPE, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert b"No space left on device; make room" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("option", "hint"), [("--resume", "; --resume goes on where it stopped"), ("--force", "")]
)
def test_an_interrupt_is_one_line_and_130(option: str, hint: str) -> None:
    code = (
        "import click; from midiloop_cli.main import midiloop\n"
        f"@midiloop.command()\n@click.option({option!r}, is_flag=True)\n"
        "def wait(**options): raise KeyboardInterrupt\n"
        "midiloop(['wait'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr.decode() == f"midiloop: error: interrupted{hint}\n"
