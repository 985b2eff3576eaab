"""Break it on purpose, and count what is lost: ``make torture``.

Each row is a function that draws from a seed and yields one outcome an attempt: a loss in words, or
"". A loss is a traceback, an exit code that is not the documented one, data lost or changed, a
control code on the terminal, a file of somebody else's removed, or a hang. Exits 1 on any.

    PYTHONPATH=tests/support python tests/benchmarks/torture.py \\
        [ROW ...] [--seed N] [--share X] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import soundfile
from click.testing import CliRunner

import model_folders
from audioloop.rendering import synth
from handmade import groove
from midiloop.common import files
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import LoopError, MidiError
from midiloop.midi import score
from midiloop.mining import extract
from midiloop_cli.main import audioloop, midiloop

HANG_S = 120
NO_LIMITS: Mapping[str, int] = {}
# A process whose parent is killed while it starts it: Python says so before any line of ours runs.
UNBORN = re.compile(
    r"Traceback [^\n]*\n(?:  [^\n]*\n)*?[^\n]*in spawn_main\n(?:  [^\n]*\n)*"
    r"(?:_pickle\.UnpicklingError: pickle data was truncated|EOFError: Ran out of input)\n"
)
PROGRAMS = {"midiloop": midiloop, "audioloop": audioloop}
ODD_NAMES = (
    "\x1b]0;owned\x07", "a\rb", "line\nbreak", "\u202eevil", "\x9b31m", b"latin\xe9".decode(
        "utf-8", "surrogateescape"), "-o", "--help", "$(id)", "a'b\"c", " ", "%s{name}", "ü" * 100,
)  # fmt: skip


class Row(NamedTuple):
    """A kind of harm: what to say of it, how often to try, and how."""

    title: str
    attempts: int
    outcomes: Callable[[Desk, int], Iterator[str]]


class Skip(Exception):  # noqa: N818 - it is no error
    """Why a row cannot be measured here."""


ROWS: dict[str, Row] = {}


def row(title: str, attempts: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a function of a desk and a number of attempts to the table."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        ROWS[function.__name__] = Row(title, attempts, function)
        return function

    return add


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Desk:
    """A folder to break things in, with songs, a dataset and loops to break, and dice."""

    def __init__(self, folder: Path, seed: int, shared: Path) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.songs, self.loops, self.midi = (shared / n for n in ("songs", "loops", "midi"))
        self.count = 0

    def new(self, name: str = "") -> Path:
        """A name that nothing has."""
        self.count += 1
        return self.folder / f"{self.count:04d}{name}"

    def rendered(self) -> Path:
        """A loop as audio."""
        out = self.new("rendered")
        assert self.run("audioloop", "render", self.midi, "-o", out, "--limit", 1).code == 0
        (wav,) = out.glob("*.wav")
        return wav

    def run(self, program: str, *args: object, **more: Any) -> Done:
        """A command in a process of its own."""
        process = start(program, *args, **more)
        try:
            out, err = process.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            end(process)
            return Done(124, "", "hang")
        return Done(process.returncode, out.decode(), err.decode())

    def call(self, program: str, *args: object) -> Done:
        """A command in this process: quicker, where nothing is killed."""
        previous = signal.signal(signal.SIGALRM, _hang)
        signal.alarm(HANG_S)
        try:
            result = CliRunner().invoke(PROGRAMS[program], [str(arg) for arg in args])
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        error = result.exception
        trace = "" if error is None or isinstance(error, SystemExit) else f"Traceback: {error!r}"
        return Done(result.exit_code, result.stdout, result.stderr + trace)


def _hang(*_: object) -> None:
    raise TimeoutError(f"over {HANG_S} s")


def start(
    program: str, *args: object, limits: Mapping[str, int] = NO_LIMITS, within: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start a command, with at most so much of what ``resource`` counts, by another: ``within``."""
    set_limits = [f"resource.setrlimit(resource.{n}, ({most},) * 2)" for n, most in limits.items()]
    call = f"from midiloop_cli.main import {program}; {program}()"
    code = "; ".join(["import resource", *set_limits, call])
    return subprocess.Popen(
        [*within, sys.executable, "-c", code, *(os.fsencode(str(arg)) for arg in args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that a command has started, its own left out."""
    with suppress(psutil.NoSuchProcess):
        return list(psutil.Process(process.pid).children(recursive=True))
    return []


def end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started."""
    for child in family(process):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.kill()
    process.communicate()


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fault(done: Done, codes: Sequence[int] = (0, 1, 2)) -> str:
    """What is wrong with the way a command ended, whatever it was given."""
    text = done.out + done.err
    if "Traceback" in text or done.err == "hang":
        return text.strip().splitlines()[-1][:200]
    if done.code not in codes:
        return f"exit code {done.code}: {done.err.strip()[-200:]}"
    if any(not mark.isprintable() and mark not in "\n\t" for mark in text):
        return f"a control code is printed: {text!r:.200}"
    if done.code == 2 and done.err.count("\n") > 1:
        return f"more than one line: {done.err!r:.200}"
    return ""


def unlike(found: Path, expected: dict[str, str]) -> str:
    """How a folder differs from what it should hold."""
    if not found.is_dir():
        return f"{found.name} is not there"
    there = contents(found)
    odd = sorted(name for name in {*there, *expected} if there.get(name) != expected.get(name))
    return f"differ: {', '.join(odd)[:150]}" if odd else ""


def left_beside(out: Path) -> str:
    """What a run that ended left beside its result."""
    left = [p.name for p in out.parent.iterdir() if p.name.startswith((f"{out.name}.", "."))]
    return f"left: {', '.join(left)}" if left else ""


# What is killed, and goes on.


@row("extract: kill -9 of the parent at a random instant, --resume, every byte", 12)
def extract_killed(desk: Desk, n: int) -> Iterator[str]:
    yield from _resumed(desk, [signal.SIGKILL] * n, "midiloop", "extract", desk.songs)


@row("extract: SIGTERM, SIGINT, resumed", 8)
def extract_interrupted(desk: Desk, n: int) -> Iterator[str]:
    signals = [(signal.SIGTERM, signal.SIGINT)[at % 2] for at in range(n)]
    yield from _resumed(desk, signals, "midiloop", "extract", desk.songs)


@row("render: killed and resumed", 6)
def render_killed(desk: Desk, n: int) -> Iterator[str]:
    yield from _resumed(desk, [signal.SIGKILL] * n, "audioloop", "render", desk.midi, "--stems")


@row("train vq-vae: killed and resumed", 4)
def vq_vae_killed(desk: Desk, n: int) -> Iterator[str]:
    options = ("--preset", "small", "--epochs", "3", "--device", "cpu")
    command = ("midiloop", "train", "vq-vae", desk.loops, *options)
    yield from _resumed(desk, [signal.SIGKILL] * n, *command, only="model.safetensors")


@row("train codec: killed and resumed", 3)
def codec_killed(desk: Desk, n: int) -> Iterator[str]:
    command = ("audioloop", "train", "codec", desk.loops, "--steps", "3", "--batch-size", "2")
    yield from _resumed(desk, [signal.SIGKILL] * n, *command, only="model.safetensors")


@row("train masked: killed and resumed", 2)
def masked_killed(desk: Desk, n: int) -> Iterator[str]:
    options = ("--steps", "2", "--batch-size", "2", "--loops", "32")
    command = ("audioloop", "train", "masked", desk.loops, *options)
    yield from _resumed(desk, [signal.SIGKILL] * n, *command, only="model.safetensors")


@row("benchmark: killed and resumed", 2)
def benchmark_killed(desk: Desk, n: int) -> Iterator[str]:
    options = (
        "--num-loops",
        "2",
        "--window-s",
        "6",
        "--decode-steps",
        "2,1,1,1",
        "--unconditioned-decode-steps",
        "2,1,1,1",
    )
    command = ("audioloop", "benchmark", desk.loops, *options)
    yield from _resumed(desk, [signal.SIGKILL] * n, *command, only="items")


def _kept(folder: Path, only: str) -> dict[str, str]:
    """Files of a folder whose names have ``only`` in them; of items, all but how long they took."""
    found = {name: digest for name, digest in contents(folder).items() if only in name}
    for name in found:
        if only == "items" and name.endswith(".json"):
            text = (folder / name).read_text()
            found[name] = re.sub(r'"seconds": [0-9.]+', "", text)
    return found


def _resumed(
    desk: Desk, signals: Sequence[int], program: str, *command: object, only: str = ""
) -> Iterator[str]:
    """Stop a command at random instants, go on, and compare with an undisturbed run."""
    whole, began_s = desk.new("whole"), time.monotonic()
    done = desk.run(program, *command, "-o", whole)
    took_s = time.monotonic() - began_s
    if done.code:
        raise AssertionError(done.err)
    expected = _kept(whole, only)
    for how in signals:
        out = desk.new()
        process = start(program, *command, "-o", out)
        time.sleep(desk.random.uniform(0, took_s))
        process.send_signal(how)
        try:
            _, err = process.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            end(process)
            yield "hangs after a signal"
            continue
        begun = any(p.name.startswith(out.name) for p in out.parent.iterdir())
        again = desk.run(program, *command, "-o", out, *(["--resume"] if begun else []))
        there = _kept(out, only)
        odd = sorted(k for k in {*there, *expected} if there.get(k) != expected.get(k))
        said = UNBORN.sub("", err.decode(errors="replace"))
        killed = f"traceback: {said.strip().splitlines()[-1]}" if "Traceback" in said else ""
        loss = killed or fault(again, [0])
        yield loss or left_beside(out) or (f"differ: {', '.join(odd)[:150]}" if odd else "")


@row("extract: kill -9 of one worker", 12)
def worker_killed(desk: Desk, n: int) -> Iterator[str]:
    yield from _worker_killed(desk, n, "midiloop", "extract", desk.songs, "--workers", 2)


@row("render: kill -9 of one worker", 5)
def renderer_killed(desk: Desk, n: int) -> Iterator[str]:
    yield from _worker_killed(desk, n, "audioloop", "render", desk.midi, "--workers", 2)


def _worker_killed(desk: Desk, n: int, program: str, *command: object) -> Iterator[str]:
    whole, began_s = desk.new("whole"), time.monotonic()
    desk.run(program, *command, "-o", whole)
    took_s, expected = time.monotonic() - began_s, contents(whole)
    for _ in range(n):
        out, killed = desk.new(), False
        process = start(program, *command, "-o", out)
        time.sleep(desk.random.uniform(0.2, 1) * took_s)
        while not killed and process.poll() is None:
            # workers are children of the process that they are copies of
            for child in [c for c in family(process) if not c.children()]:
                with suppress(psutil.NoSuchProcess):
                    if child.ppid() != process.pid:
                        child.kill()
                        killed = True
                        break
        try:
            _, err = process.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            end(process)
            yield "hangs when a worker is killed"
            continue
        loss = fault(Done(process.returncode, "", err.decode()), [0])
        yield loss or unlike(out, expected) or left_beside(out)


@row("two renders in one folder", 5)
def two_renders(desk: Desk, n: int) -> Iterator[str]:
    whole = desk.new("whole")
    desk.run("audioloop", "render", desk.midi, "-o", whole)
    for _ in range(n):
        out = desk.new()
        first = start("audioloop", "render", desk.midi, "-o", out)
        time.sleep(desk.random.uniform(0, 1))
        second = desk.run("audioloop", "render", desk.midi, "-o", out)
        _, err = first.communicate()
        codes = sorted((first.returncode, second.code))
        loss = fault(second) or fault(Done(first.returncode, "", err.decode()))
        loss = loss or ("" if codes == [0, 2] else f"exit codes {codes}: {second.err}")
        yield loss or unlike(out, contents(whole))


@row("200 commands at once, half of them into one dataset", 200)
def at_once(desk: Desk, n: int) -> Iterator[str]:
    out, whole = desk.new(), contents(desk.loops)
    begun: list[tuple[int, subprocess.Popen[bytes]]] = []
    ended: list[tuple[int, Done]] = []

    def wait_for_one() -> None:
        number, process = begun.pop(0)
        said, err = process.communicate(timeout=10 * HANG_S)
        ended.append((number, Done(process.returncode, said.decode(), err.decode())))

    for number in range(n):
        args = ("extract", desk.songs, "-o", out) if number % 2 else ("inspect", desk.loops)
        begun.append((number, start("midiloop", *args)))
        # All at once as far as memory goes: a command takes about 150 MB, its workers not counted.
        if psutil.virtual_memory().available < (4 << 30):
            wait_for_one()
    while begun:
        wait_for_one()
    won = sum(done.code == 0 for number, done in ended if number % 2)
    for number, done in ended:
        loss = fault(done, (0, 2) if number % 2 else (0,))
        if "--resume" in done.err or "remove it;" in done.err:
            loss = f"advises harm: {done.err}"
        if number == n - 1 and not loss:
            loss = unlike(out, whole) or ("" if won == 1 else f"{won} of them wrote it")
        yield loss


# What belongs to somebody else.


@row("a NAME.partial that belongs to somebody else", 20)
def foreign_partial(desk: Desk, n: int) -> Iterator[str]:
    names = ("thesis.txt", "plan.json", ".lock", "sub/thesis.txt", "0000000.part")
    for at in range(n):
        out = desk.new()
        precious = out.with_name(out.name + ".partial") / names[at // 4 % len(names)]
        precious.parent.mkdir(parents=True)
        precious.write_text("precious")
        command = (
            ("extract", desk.midi, "-o", out),
            ("export", desk.loops, "--midi", out),
            ("extract", desk.midi, "--resume", "-o", out),
            ("generate", "-n", 2, "-o", out),
        )[at % 4]
        done = desk.run("midiloop", *command)
        there = precious.is_file() and precious.read_text() == "precious"
        yield fault(done) or ("" if there or precious.name == ".lock" else f"{precious} is gone")


# What comes from outside.

VALUES: tuple[Any, ...] = (None, -1, 1e300, float("nan"), "x", [], {}, True, "\x1b[31m", 2**70)


def _spoiled(found: Any, dice: random.Random, depth: int = 0) -> Any:
    """JSON of which one value, somewhere, is another or is missing."""
    if isinstance(found, dict) and found and (depth == 0 or dice.random() < 0.7):
        key = dice.choice(sorted(found))
        if dice.random() < 0.2:
            return {name: value for name, value in found.items() if name != key}
        return {**found, key: _spoiled(found[key], dice, depth + 1)}
    if isinstance(found, list) and found and dice.random() < 0.5:
        at = dice.randrange(len(found))
        return [*found[:at], _spoiled(found[at], dice, depth + 1), *found[at + 1 :]]
    return dice.choice(VALUES)


def _spoil_table(path: Path, dice: random.Random) -> None:
    table = parquet.read_table(path)
    name = dice.choice(table.column_names)
    at = table.column_names.index(name)
    ways: list[Callable[[], pa.Table]] = [
        lambda: table.drop_columns([name]),
        lambda: table.set_column(at, name, pa.nulls(len(table), table.schema.field(name).type)),
        lambda: table.set_column(at, name, pa.array(["x"] * len(table))),
        lambda: table.set_column(at, name, pa.array(np.full(len(table), np.nan, np.float32))),
        lambda: table.set_column(at, name, pa.array(np.full(len(table), -1, np.int64))),
        lambda: table.slice(0, len(table) // 2),
        lambda: table.rename_columns([f"{c}_" for c in table.column_names]),
    ]
    parquet.write_table(dice.choice(ways)(), path)


@row("datasets from outside: inspect, export, evaluate, plot, train", 150)
def foreign_datasets(desk: Desk, n: int) -> Iterator[str]:
    for at in range(n):
        loops, dice = desk.new("loops"), desk.random
        shutil.copytree(desk.loops, loops)
        if at % 3:
            manifest = json.loads((loops / "manifest.json").read_text())
            text = "[" * 100_000 if at % 50 == 1 else json.dumps(_spoiled(manifest, dice))
            (loops / "manifest.json").write_text(text)
        else:
            _spoil_table(dice.choice(sorted(loops.rglob("*.parquet"))), dice)
        command = (
            ("inspect", loops),
            ("export", loops, "--npz", desk.new(".npz")),
            ("evaluate", loops, "--against", loops),
            ("plot", loops, "-o", desk.new(".png")),
            ("export", loops, "--midi", desk.new(), "--limit", 5),
            ("train", "cnn-vae", loops, "-o", desk.new(), "--preset", "small", "--epochs", 1),
        )[at % 6]
        loss = fault(desk.call("midiloop", *command))
        yield f"{command[0]}: {loss}" if loss else ""
        shutil.rmtree(loops)


@row("models from outside: config.json and weights, generate", 60)
def foreign_runs(desk: Desk, n: int) -> Iterator[str]:
    run = desk.new("run")
    options = ("--preset", "small", "--epochs", 1)
    assert desk.run("midiloop", "train", "cnn-vae", desk.loops, "-o", run, *options).code == 0
    configs = sorted(run.rglob("config.json"))
    for at in range(n):
        other, dice = desk.new("other"), desk.random
        shutil.copytree(run, other)
        config = other / dice.choice(configs).relative_to(run)
        if at % 4:
            config.write_text(json.dumps(_spoiled(json.loads(config.read_text()), dice)))
        else:
            weights = config.with_name("model.safetensors")
            data = bytearray(weights.read_bytes())
            data[dice.randrange(min(400, len(data)))] ^= 1 << dice.randrange(8)
            weights.write_bytes(data)
        yield fault(desk.call("midiloop", "generate", other, "-n", 1, "-o", desk.new()))
        shutil.rmtree(other)


@row("codecs and MAGNeTs from outside: config, reconstruct, generate", 60)
def foreign_sounds(desk: Desk, n: int) -> Iterator[str]:
    wav = desk.rendered()
    loaders = {"codec": model_folders.ours("codec", desk.new("codec"))}
    folders = {"codec": desk.folder / f"{desk.count:04d}codec"}
    with suppress(pytest.skip.Exception):  # where there is no YAML
        loaders["magnet"] = model_folders.audiocraft(desk.new("magnet"))
        folders["magnet"] = desk.folder / f"{desk.count:04d}magnet"
    kinds = sorted(loaders)
    for at in range(n):
        kind = kinds[at % len(kinds)]
        loader, folder = loaders[kind], folders[kind]
        if at % 5 == 4:
            loader.text(desk.random.choice(sorted(model_folders.TEXTS.values())))
        else:
            name = desk.random.choice(sorted(loader.config))
            loader.say({**loader.config, name: desk.random.choice(model_folders.ODD)})
        command = (
            ("reconstruct", wav, "--codec", folder, "-o", desk.new())
            if kind == "codec"
            else ("generate", "--text", "dub", "--magnet", folder, "--encodec", desk.folder / "no",
                  "-o", desk.new())
        )  # fmt: skip
        loss = fault(desk.call("audioloop", *command))
        yield f"{kind}: {loss}" if loss else ""


def _archives(folder: Path) -> Iterator[Path]:
    """Archives that lead out of themselves, link, hold devices, break off, or unfold."""
    song = score.to_bytes(groove(8))
    for at, name in enumerate(("../up.mid", "/root.mid", "a/../../b.mid", "C:\\x.mid", "\r.mid")):
        with zipfile.ZipFile(folder / f"slip{at}.zip", "w") as archive:
            archive.writestr(name, song)
        yield folder / f"slip{at}.zip"
        with tarfile.open(folder / f"slip{at}.tar.gz", "w:gz") as tar:
            info = tarfile.TarInfo(name)
            info.size = len(song)
            tar.addfile(info, io.BytesIO(song))
        yield folder / f"slip{at}.tar.gz"
    for at, kind in enumerate(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    ):
        with tarfile.open(folder / f"kind{at}.tar", "w") as tar:
            info = tarfile.TarInfo("x.mid")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        yield folder / f"kind{at}.tar"
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.mid", bytes(1 << 29))
        archive.writestr("song.mid", song)
    yield folder / "bomb.zip"
    whole = (folder / "slip0.tar.gz").read_bytes()
    for at in range(6):
        (folder / f"cut{at}.tar.gz").write_bytes(whole[: len(whole) * at // 6])
        yield folder / f"cut{at}.tar.gz"


@row("archives: slips, links, devices, bombs, cut off", 21)
def archives(desk: Desk, n: int) -> Iterator[str]:
    folder = desk.new("archives")
    folder.mkdir()
    for path in list(_archives(folder))[:n]:
        before = {p.name for p in desk.folder.iterdir()}
        out = desk.new("out")
        loss = fault(desk.run("midiloop", "extract", path, "-o", out, "--workers", 1))
        stray = {p.name for p in desk.folder.iterdir()} - before - {out.name}
        yield loss or (f"{path.name}: makes {stray}" if stray else "")


def _damaged(data: bytes, dice: random.Random) -> bytes:
    """Bytes with some of them changed, left out, or said again."""
    changed = bytearray(data)
    for _ in range(dice.randrange(1, 12)):
        at = dice.randrange(max(1, len(changed)))
        kind = dice.randrange(4)
        if kind == 0 and changed:
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            changed[at : at + dice.randrange(64)] = b""
        elif kind == 2:
            changed[at:at] = changed[at : at + dice.randrange(64)]
        else:
            changed[at : at + 4] = dice.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
    return bytes(changed)


@row("damaged audio: check, seam", 600)
def damaged_audio(desk: Desk, n: int) -> Iterator[str]:
    wav = desk.rendered()
    samples, rate = soundfile.read(wav)
    kinds = {".wav": wav.read_bytes()}
    for suffix in (".flac", ".ogg"):
        soundfile.write(desk.folder / f"whole{suffix}", samples[: rate * 2], rate)
        kinds[suffix] = (desk.folder / f"whole{suffix}").read_bytes()
    for at in range(n):
        suffix = desk.random.choice(sorted(kinds))
        path = desk.new(suffix)
        head = kinds[suffix][:4096]
        path.write_bytes(_damaged(head, desk.random) + kinds[suffix][4096:])
        loss = fault(desk.call("audioloop", ("check", "seam")[at % 2], path))
        yield f"{path.name}: {loss}" if loss else ""
        path.unlink()


@row("damaged MIDI", 4000)
def damaged_midi(desk: Desk, n: int) -> Iterator[str]:
    songs = [path.read_bytes() for path in sorted((desk.songs / "1").glob("*.mid"))[:40]]
    for _ in range(n):
        loss = ""
        try:
            extract.mine("x", _damaged(desk.random.choice(songs), desk.random), extract.PAPER)
        except MidiError as error:
            loss = "" if error.reason in extract.REASONS else f"unnamed reason {error.reason}"
        except Exception as error:
            loss = f"{error!r}"
        yield loss


@row("damaged SF2 through render", 15)
def damaged_soundfont(desk: Desk, n: int) -> Iterator[str]:
    font = synth.bundled_soundfont()
    if font is None:
        raise Skip("pip's SoundFont is not installed")
    whole = font.read_bytes()
    for _ in range(n):
        path = desk.new(".sf2")
        at = desk.random.choice((0, len(whole) - 20_000))
        damaged = _damaged(whole[at : at + 20_000], desk.random)
        path.write_bytes(whole[:at] + damaged + whole[at + 20_000 :])
        options = ("--soundfont", path, "-o", desk.new(), "--limit", 2)
        yield fault(desk.run("audioloop", "render", desk.midi, *options))
        path.unlink()


@row("file names x commands", 91)
def file_names(desk: Desk, n: int) -> Iterator[str]:
    commands: list[tuple[str, Callable[[Path], tuple[object, ...]]]] = [
        ("midiloop", lambda p: ("extract", p, "-o", desk.new())),
        ("midiloop", lambda p: ("plot", p, "-o", desk.new(".png"))),
        ("midiloop", lambda p: ("inspect", p)),
        ("audioloop", lambda p: ("render", p, "-o", desk.new())),
        ("audioloop", lambda p: ("check", p)),
        ("audioloop", lambda p: ("seam", p)),
        ("midiloop", lambda p: ("extract", desk.folder / "odd", "-o", desk.new())),
    ]
    song = score.to_bytes(groove(8))
    for at in range(n):
        program, command = commands[at % len(commands)]
        name = ODD_NAMES[at // len(commands) % len(ODD_NAMES)]
        path = desk.folder / "odd" / (name[:60] + ".mid")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(song)
        loss = fault(desk.run(program, *command(path)))
        yield f"{program} {command(path)[0]} {name!r}: {loss}" if loss else ""
        shutil.rmtree(path.parent)


@row("one bit flipped in a shard of a dataset", 200)
def flipped_bits(desk: Desk, n: int) -> Iterator[str]:
    def everything(path: Path) -> str:
        digest = hashlib.sha256()
        for batch in LoopDataset(path).batches():
            digest.update(batch.rolls.tobytes() + batch.tempos_bpm.tobytes())
            digest.update(repr((batch.songs, batch.md5s, batch.splits)).encode())
            digest.update(batch.start_bars.tobytes() + batch.distances_cells.tobytes())
        return digest.hexdigest()

    loops = desk.new("loops")
    shutil.copytree(desk.loops, loops)
    expected = everything(loops)
    shards = sorted((loops / "loops").glob("*.parquet"))
    for _ in range(n):
        shard = desk.random.choice(shards)
        whole = shard.read_bytes()
        at = desk.random.randrange(len(whole))
        data = bytearray(whole)
        data[at] ^= 1 << desk.random.randrange(8)
        shard.write_bytes(data)
        try:
            loss = "" if everything(loops) == expected else f"byte {at}: read as other data"
        except LoopError:
            loss = ""
        except Exception as error:
            loss = f"byte {at}: {error!r}"
        shard.write_bytes(whole)
        yield loss


# What runs out, or goes away.


@row("a full disk", 6)
def full_disk(desk: Desk, n: int) -> Iterator[str]:
    if os.geteuid():
        raise Skip("only root can mount a small disk")
    disk = desk.new("disk")
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise Skip("a small disk cannot be mounted here")
    commands: list[tuple[str, tuple[object, ...]]] = [
        ("midiloop", ("extract", desk.songs, "-o", disk / "loops")),
        ("audioloop", ("render", desk.midi, "-o", disk / "audio")),
        ("midiloop", ("export", desk.loops, "--midi", disk / "midi")),
        ("midiloop", ("export", desk.loops, "--npz", disk / "x.npz")),
        ("midiloop", ("plot", desk.loops, "-o", disk / "x.png")),
        ("midiloop", ("train", "cnn-vae", desk.loops, "-o", disk / "run", "--preset", "small",
                      "--epochs", 1)),
    ]  # fmt: skip
    try:
        for program, command in commands[:n]:
            (disk / "filler").write_bytes(bytes(96 << 10))
            loss = fault(desk.run(program, *command), [1])
            yield f"{command[0]}: {loss}" if loss else ""
            for path in disk.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@row("files that may not grow (RLIMIT_FSIZE): every command that writes", 16)
def small_files(desk: Desk, n: int) -> Iterator[str]:
    wav = desk.rendered()
    steps = ("--steps", "1", "--batch-size", "1")
    run = ("--preset", "small", "--epochs", "1")
    tried: list[tuple[str, str, tuple[object, ...]]] = [
        ("midiloop", "loops", ("extract", desk.songs)),
        ("midiloop", "midi", ("export", desk.loops, "--limit", "9", "--midi")),
        ("midiloop", "x.npz", ("export", desk.loops, "--npz")),
        ("midiloop", "x.png", ("plot", desk.loops)),
        ("midiloop", "x.svg", ("plot", desk.loops)),
        ("midiloop", "x.pdf", ("plot", desk.loops)),
        ("midiloop", "new", ("generate", "-n", "2")),
        ("midiloop", "run", ("train", "cnn-vae", desk.loops, *run)),
        ("midiloop", "run", ("train", "vq-vae", desk.loops, *run)),
        ("audioloop", "audio", ("render", desk.midi, "--limit", "2", "--stems")),
        ("audioloop", "x.png", ("seam", wav)),
        ("audioloop", "back", ("reconstruct", wav)),
        ("audioloop", "new", ("refine", wav)),
        ("audioloop", "new", ("generate", "--bars", "1")),
        ("audioloop", "run", ("train", "codec", desk.loops, *steps)),
        ("audioloop", "run", ("train", "masked", desk.loops, *steps, "--loops", "32")),
    ]
    for at in range(n):
        program, name, command = tried[at % len(tried)]
        most = int(desk.random.lognormvariate(8, 2))  # half of them under 3 kB
        folder = desk.new()
        folder.mkdir()
        last = [] if command[-1] in ("--npz", "--midi") else ["-o"]
        done = desk.run(program, *command, *last, folder / name, limits={"RLIMIT_FSIZE": most})
        loss = fault(done, [0, 1])
        if done.code and not loss and "File too large" not in done.err:
            loss = f"does not say why: {done.err.strip()}"
        half = [p.name for p in folder.rglob("*") if files.is_passing(p.name)]
        half += [p.name for p in folder.glob(".*")]
        half += [name] if done.code and (folder / name).is_file() else []
        loss = loss or (f"left: {', '.join(half)}" if half else "")
        yield f"{command[0]} in files of {most} bytes: {loss}" if loss else ""
        shutil.rmtree(folder)


@row("a folder that is read-only", 9)
def read_only(desk: Desk, n: int) -> Iterator[str]:
    within: tuple[str, ...] = ()
    if os.geteuid() == 0:  # who may write anywhere, unless that is taken away
        if not shutil.which("setpriv"):
            raise Skip("setpriv, of util-linux, is not installed")
        within = ("setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override")
    wav, place = desk.rendered(), desk.new("read-only")
    place.mkdir()
    (place / "theirs.txt").write_text("precious")
    before = contents(place)
    commands: list[tuple[str, tuple[object, ...]]] = [
        ("midiloop", ("extract", desk.songs, "-o", place / "loops")),
        ("audioloop", ("render", desk.midi, "-o", place / "audio")),
        ("audioloop", ("render", desk.midi, "-o", place)),
        ("midiloop", ("export", desk.loops, "--midi", place / "midi")),
        ("midiloop", ("export", desk.loops, "--npz", place / "x.npz")),
        ("midiloop", ("plot", desk.loops, "-o", place / "x.png")),
        ("midiloop", ("generate", "-n", 2, "-o", place / "new")),
        ("audioloop", ("generate", "-o", place / "new", "--bars", 1)),
        ("audioloop", ("seam", wav, "-o", place / "x.png")),
    ]
    place.chmod(0o555)
    for program, command in commands[:n]:
        done = desk.run(program, *command, within=within)
        loss = fault(done, [1, 2])
        if not loss and str(place) not in done.err:
            loss = f"does not name the folder: {done.err.strip()}"
        yield f"{command[0]}: {loss}" if loss else unlike(place, before)


@row("files that vanish while they are read", 6)
def vanishing(desk: Desk, n: int) -> Iterator[str]:
    for at in range(n):
        songs, out = desk.new("songs"), desk.new()
        shutil.copytree(desk.songs, songs)
        paths = sorted(songs.rglob("*.mid"))
        desk.random.shuffle(paths)
        process = start("midiloop", "extract", songs, "-o", out)
        time.sleep(desk.random.uniform(0, 0.8))
        for path in paths[: len(paths) // 2]:
            path.unlink()
            time.sleep(0.001)
        if at % 2:
            shutil.rmtree(songs)
        said, err = process.communicate(timeout=HANG_S)
        yield fault(Done(process.returncode, said.decode(), err.decode()), [0, 1, 2])


@row("memory limits on the parent: extract, inspect, render, export", 24)
def little_memory(desk: Desk, n: int) -> Iterator[str]:
    for at in range(n):
        limit = desk.random.randrange(400 << 20, 1500 << 20)
        out = desk.new(".npz")
        program, *command = (
            ("midiloop", "extract", desk.songs, "-o", desk.new()),
            ("midiloop", "inspect", desk.loops),
            ("audioloop", "render", desk.midi, "-o", desk.new(), "--limit", 2),
            ("midiloop", "export", desk.loops, "--npz", out),
        )[at % 4]
        done = desk.run(str(program), *command, limits={"RLIMIT_AS": limit})
        loss = fault(done) or ("half a file is left" if done.code and out.exists() else "")
        yield f"{command[0]} in {limit >> 20} MiB: {loss}" if loss else ""


@row("determinism over workers and threads", 4)
def determinism(desk: Desk, n: int) -> Iterator[str]:
    expected, threads = contents(desk.loops), os.environ.get("OMP_NUM_THREADS")
    for at in range(n):
        out = desk.new()
        os.environ["OMP_NUM_THREADS"] = str(1 + at % 2)
        loss = fault(desk.run("midiloop", "extract", desk.songs, "-o", out, "--workers", at + 1))
        yield loss or unlike(out, expected)
    os.environ["OMP_NUM_THREADS"] = threads or "1"


# The table.


def make_songs(folder: Path) -> None:
    """Songs: grooves of many lengths, and files that give nothing."""
    dice = random.Random(5)
    for number in range(1500):
        pitches = [dice.randrange(28, 48) for _ in range(4)]
        data = score.to_bytes(groove(dice.choice([8, 12, 20]), pitches=pitches))
        if number % 5 == 0:
            data = data[: number % 200]
        path = folder / f"{number % 10}" / f"{number:04d}.mid"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@contextmanager
def prepared(work: Path | None) -> Iterator[Path]:
    """A folder with what all rows share; removed afterwards, unless it was asked for."""
    with tempfile.TemporaryDirectory(prefix="torture-", dir=work) as name:
        shared = Path(name)
        make_songs(shared / "songs")
        extract.run([shared / "songs"], shared / "loops")
        midi = shared / "midi"
        midi.mkdir()
        for path in sorted((shared / "songs" / "1").glob("*.mid"))[:12]:
            shutil.copy(path, midi)
        yield shared


def measured(name: str, seed: int, share: float, shared: Path) -> tuple[int, list[str], str]:
    """Attempts and losses of one row, and why it was skipped."""
    one = ROWS[name]
    folder = shared / name
    folder.mkdir()
    desk = Desk(folder, seed, shared)
    outcomes: list[str] = []
    try:
        outcomes += one.outcomes(desk, max(1, round(one.attempts * share)))
    except Skip as why:
        return 0, [], str(why)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return len(outcomes), [loss for loss in outcomes if loss], ""


def main() -> int:
    """Measure the rows, print the table, and say how to see each loss again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--share", type=float, default=1.0, help="of the attempts of each row")
    parser.add_argument("--work", type=Path, help="where to make the folder to work in")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.rows) - set(ROWS)):
        parser.error(f"no row is called {', '.join(unknown)}; there are {', '.join(ROWS)}")
    lost, began_s = False, time.monotonic()
    print("| test | attempts | losses | seconds |\n|---|---|---|---|", flush=True)
    with prepared(asked.work) as shared:
        for name in asked.rows or ROWS:
            row_began_s = time.monotonic()
            n, losses, why = measured(name, asked.seed, asked.share, shared)
            took_s = time.monotonic() - row_began_s
            tried = n or f"skipped: {why}"
            print(f"| {ROWS[name].title} | {tried} | {len(losses)} | {took_s:.0f} |", flush=True)
            for loss in sorted(set(losses)):
                print(
                    f"  {name} --seed {asked.seed}: {files.shortened(loss, 300)}", file=sys.stderr
                )
            lost = lost or bool(losses)
    print(f"{(time.monotonic() - began_s) / 60:.1f} minutes")
    return int(lost)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
