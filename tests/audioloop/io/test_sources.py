"""Batches of audio: one file that goes wrong costs itself, is named, and forges nothing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from audioloop.codec import compression
from audioloop.evaluation import validate
from audioloop.io import metadata, sources, wave
from audioloop.io.label import LoopLabel, legal
from audioloop.io.wave import Format, Wave
from audioloop.pipelines import inpaint, refine
from midiloop.errors import LoopError
from midiloop_cli import check as check_command
from midiloop_cli import generate_audio, train_audio
from midiloop_cli import seam as seam_command

RATE = 8_000
# An escape that sets a title, C1, a carriage return, a newline, and text that runs backwards.
FORGED = "a\rok  b\x1b]0;x\x07\x9b31m\n\u202egnp.wav"
ODD_NAMES = [os.fsdecode(b"caf\xe9.wav"), FORGED, "夜 é.wav", " - x.wav"]


def tone(n: int = 2 * RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 200 * np.arange(n) / n)


def gsm(path: Path) -> None:
    soundfile.write(path, tone(), RATE, subtype="GSM610", format="WAV")


def slow(path: Path) -> None:
    soundfile.write(path, tone(80), 8)


def few(path: Path) -> None:
    soundfile.write(path, tone(3), RATE)


def nothing(path: Path) -> None:
    soundfile.write(path, np.zeros(0), RATE)


def garbage(path: Path) -> None:
    path.write_bytes(b"RIFF" + bytes(range(200)))


def folder(path: Path) -> None:
    path.mkdir()
    (path / "deep.wav").write_bytes(b"")


BAD: dict[str, Callable[[Path], None]] = {
    "gsm": gsm, "slow": slow, "few": few, "nothing": nothing, "garbage": garbage,
    "folder": folder,
}  # fmt: skip


@pytest.fixture
def batch(tmp_path: Path) -> list[str]:
    """Bad files with a good one before and after them, as arguments."""
    inside = tmp_path / "in"
    inside.mkdir()
    for name in ("00_good_120bpm.wav", "zz_good_120bpm.wav"):
        wave.write(
            inside / name, Wave(tone().astype("f4")[None], RATE), LoopLabel(120, 1), Format()
        )
    for name, make in BAD.items():
        make(inside / f"{name}.wav")
    return [str(path) for path in sorted(inside.iterdir())]


def named(text: str) -> set[str]:
    return {Path(line.split(": ")[-1]).name for line in text.splitlines()}


@pytest.mark.parametrize("command", [check_command.check, seam_command.seam])
def test_a_batch_goes_on_after_every_bad_file(command: Any, batch: list[str]) -> None:
    done = CliRunner().invoke(command, [*batch, "--json"])
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 1
    found = {Path(row["file"]).stem: row for row in json.loads(done.stdout)["files"]}
    assert {"00_good_120bpm", "zz_good_120bpm", "deep", *BAD} - {"folder"} == set(found)
    for name, row in found.items():
        if "good" in name or name == "gsm":
            assert "error" not in row, row
        elif command is seam_command.seam or name not in ("slow", "few"):
            assert "\n" not in row["error"]
            assert row["error"]
    for line in done.stderr.splitlines():
        assert line.startswith("audioloop: error: ")


class Silent(inpaint.Inpainter):
    """Regenerates nothing, and needs no weights for it."""

    def __init__(self) -> None: ...


def test_refine_goes_on_after_every_bad_file(
    batch: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_it_is(loop: Any, *_: Any, **__: Any) -> tuple[list[Wave], float]:
        return [loop.wave], 0.5

    monkeypatch.setattr(refine, "refine", as_it_is)
    monkeypatch.setattr(inpaint, "load", lambda *_, **__: Silent())
    out = tmp_path / "out"
    done = CliRunner().invoke(generate_audio.refine, [*batch, "-o", str(out)])
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 1
    made = {path.name for path in out.iterdir()}
    assert {"00_good_120bpm.wav", "zz_good_120bpm.wav"} <= made
    said = done.stderr.splitlines()
    assert all(line.startswith("audioloop: error: ") for line in said)
    for name in ("garbage", "nothing", "deep"):
        assert any(name in line for line in said)


def test_reconstruct_goes_on_after_every_bad_file(batch: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(train_audio.reconstruct, [*batch, "-o", str(out)])
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 1
    assert {"00_good_120bpm_codes.wav", "zz_good_120bpm_codes.wav"} <= {
        path.name for path in out.iterdir()
    }
    assert all(line.startswith("audioloop: error: ") for line in done.stderr.splitlines())
    assert compression.load() is not None


def raised(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory"), OSError("odd"), MemoryError(),
        RecursionError("deep"), ValueError("line one\nline two\x1b"), KeyError(),
        IndexError("i" * 999), ZeroDivisionError("by zero"),
        UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates"),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("command", [check_command.check, seam_command.seam])
def test_whatever_goes_wrong_with_a_file_is_that_files(
    error: Exception, command: Any, batch: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = metadata.read

    def vanishing(path: Path) -> Any:  # while it is read
        return whole(path) if "zz" in path.name else raised(error)()

    monkeypatch.setattr(metadata, "read", vanishing)
    done = CliRunner().invoke(command, [batch[0], batch[-1]])
    assert done.exit_code == 1
    about = [line for line in done.output.splitlines() if "00_good" in line]
    assert len(about) == 1
    assert len(about[0]) < 400
    assert "zz_good" in done.output


def test_a_library_that_is_missing_is_no_fault_of_a_file() -> None:
    with pytest.raises(ImportError), sources.errors_named(Path("a.wav")):
        raise ImportError("audio needs soundfile")


def test_an_error_about_another_file_names_that_one() -> None:
    with (
        pytest.raises(LoopError, match=r"^/full/out\.png: No space left; make room"),
        sources.errors_named(Path("a.wav")),
    ):
        raise OSError(28, "No space left", "/full/out.png")
    with (
        pytest.raises(LoopError, match=r"^a\.wav: short; longer$"),
        sources.errors_named(Path("a.wav")),
    ):
        raise LoopError("a.wav: short; longer")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_name_reaches_the_terminal_on_one_line_and_shows_what_it_is(
    name: str, tmp_path: Path
) -> None:
    soundfile.write(os.fsencode(tmp_path / "tmp.wav"), tone(), RATE)
    (tmp_path / "tmp.wav").rename(tmp_path / name)
    (tmp_path / ("bad" + name)).write_bytes(b"RIFFxxxxWAVE")
    out = tmp_path / "out"
    for command, arguments in ((check_command.check, []), (seam_command.seam, ["-o", str(out)])):
        for more in ([], ["--json"]):
            done: Result = CliRunner().invoke(command, [str(tmp_path), *arguments, *more])
            assert isinstance(done.exception, SystemExit), done.exception
            text = done.stdout_bytes.decode() + done.stderr_bytes.decode()
            shown = text.replace("\n", "")
            assert shown.isprintable()
            assert not any("forged" in line or line.startswith("gnp") for line in text.splitlines())
    for path in out.iterdir():
        assert path.name.isprintable(), "what is written keeps none of them"
    assert len(list(out.iterdir())) == 1


def test_legal_names_are_printable_and_go_on_to_be_names() -> None:
    for name in ODD_NAMES:
        assert legal(name).isprintable()
        assert legal(legal(name)) == legal(name)
    assert legal("groove é 120bpm") == "groove é 120bpm"


def test_folders_are_searched_and_files_taken_as_they_are(batch: list[str], tmp_path: Path) -> None:
    found = list(sources.audio([tmp_path]))
    assert found == sorted(found)
    assert {path.name for path in found} >= {"00_good_120bpm.wav", "deep.wav"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoopError, match="no audio files; give a folder that holds some"):
        list(sources.audio([tmp_path / "empty"]))
    assert validate.examine(Path(batch[0])).findings == []


# Damage.


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A bit or some bytes changed, a piece cut out, doubled or filled, or the end cut off."""
    changed = bytearray(data)
    kind = rng.integers(6)
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 300))
    at = int(rng.integers(min(len(data), 400))) if rng.random() < 0.6 else at
    if kind == 0:
        changed[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        for place in rng.integers(len(data), size=rng.integers(1, 5)):
            changed[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        del changed[at : at + size]
    elif kind == 4:
        changed[at:at] = changed[at : at + size]
    else:
        changed[at : at + 4] = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff"][int(rng.integers(3))]
    return bytes(changed)


@pytest.mark.parametrize(
    "form",
    [Format("wav", "16"), Format("wav", "24"), Format("wav", "float"), Format("flac", "16"),
     Format("ogg", "lossy")],
    ids=lambda form: f"{form.name}{form.depth}",
)  # fmt: skip
def test_damaged_audio_ends_as_findings_or_as_a_loop_error(form: Format, tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    path = tmp_path / f"a_120bpm{form.suffix}"
    wave.write(path, Wave(tone().astype("f4")[None], RATE), LoopLabel(120, 1), form)
    data = path.read_bytes()
    for number in range(80):
        path.write_bytes(damaged(data, rng))
        said: list[str] = []
        try:
            checked = validate.examine(path)
            said += [*map(str, checked.findings), *checked.notes]
        except LoopError as error:
            said.append(str(error))
        assert all(text.isprintable() for text in said), number
