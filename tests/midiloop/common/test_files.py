"""Files: whole or not at all, nothing of anybody else's removed, read within bounds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from midiloop.common import files
from midiloop.errors import CallError, LoopError


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write(path, b"old")

    def fails() -> None:
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fails()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_bytes() == b"old"
    files.write(path, b"new")
    assert path.read_bytes() == b"new"


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none/a\.txt"):
        files.write(tmp_path / "none" / "a.txt", b"")


@pytest.mark.parametrize("name", ["n" * 255, "a\nb", "é" * 127])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    files.write(tmp_path / name, b"x")
    assert (tmp_path / name).read_bytes() == b"x"


@pytest.mark.parametrize("suffix", [".partial", ".part", ".tmp", ".lock"])
def test_what_somebody_else_made_is_never_removed(tmp_path: Path, suffix: str) -> None:
    for name in (f"out{suffix}", f".out{suffix}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("precious")
    with files.new_folder(tmp_path / "out") as building:
        (building / "loop.mid").write_bytes(b"x")
    assert (tmp_path / "out" / "loop.mid").exists()
    assert len(list(tmp_path.rglob("thesis.txt"))) == 2


def test_a_folder_that_fails_is_gone(tmp_path: Path) -> None:
    def fails() -> None:
        with files.new_folder(tmp_path / "out") as building:
            (building / "half").write_bytes(b"x")
            raise LoopError("no loop")

    with pytest.raises(LoopError):
        fails()
    assert not list(tmp_path.iterdir())


def test_a_folder_is_on_the_disk_before_it_has_its_name_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, synced, fsync = tmp_path / "out", dict[int, bool](), os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced[os.fstat(descriptor).st_ino] = out.exists()

    monkeypatch.setattr(os, "fsync", noted)
    with files.new_folder(out) as building:
        (building / "dataset" / "loops").mkdir(parents=True)
        for name in ("card.md", "dataset/manifest.json", "dataset/loops/0.parquet"):
            (building / name).write_bytes(b"x")
    made = [out, *out.rglob("*")]
    assert len(made) == 6
    assert {path.stat().st_ino: False for path in made} == {
        inode: named for inode, named in synced.items() if inode != tmp_path.stat().st_ino
    }
    assert synced[tmp_path.stat().st_ino]


def test_a_folder_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def late() -> None:
        with files.new_folder(tmp_path / "out"):
            (tmp_path / "out").mkdir()

    with pytest.raises(CallError, match="exists already"):
        late()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_takes_the_place_of_one_that_steps_aside(tmp_path: Path) -> None:
    new, out, aside = (tmp_path / name for name in ("new", "out", "aside"))
    for folder in (new, out):
        folder.mkdir()
        (folder / folder.name).touch()
    with pytest.raises(CallError, match="exists already"):
        files.put(new, out)
    files.put(new, out, aside)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")} == {
        "out", "out/new", "aside", "aside/out",
    }  # fmt: skip


def test_a_folder_is_as_readable_as_one_made_by_hand(tmp_path: Path) -> None:
    (tmp_path / "by hand").mkdir()
    with files.new_folder(tmp_path / "ours"):
        pass
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "by hand").stat().st_mode


def test_one_run_at_a_time(tmp_path: Path) -> None:
    def second() -> None:
        with files.locked(tmp_path):
            pass

    with files.locked(tmp_path), pytest.raises(CallError, match="another run is at work"):
        second()
    assert not list(tmp_path.iterdir())
    second()


def test_a_folder_to_work_in_is_made_and_goes_where_nothing_was_made_in_it(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with files.working_in(out):
        assert out.is_dir()
    assert not list(tmp_path.iterdir())
    with files.working_in(out):
        (out / "made").touch()
    assert [path.name for path in out.iterdir()] == ["made"]
    (tmp_path / "empty").mkdir()
    with files.working_in(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()
    with pytest.raises(CallError, match="is a file"), files.working_in(out / "made"):
        pass


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "model.safetensors") as temporary:
        temporary.write_bytes(b"whole")
        left = tmp_path / temporary.name.replace(temporary.name[1:9], "0" * 8)
        left.write_bytes(b"half")
    theirs = tmp_path / ".0123.tmp"
    theirs.write_bytes(b"precious")
    with files.locked(tmp_path):
        assert not left.exists()
    assert theirs.exists()
    assert (tmp_path / "model.safetensors").read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[" * 100_000, "nested"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested"),
        ("[1]", "not an object"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ('{"a": "\x1b]0;x\x07"', "not JSON"),
        ("\ud800", "not JSON"),
        ("9" * 5000, "not JSON"),
    ],
)
def test_hostile_json_is_an_error_of_one_line(tmp_path: Path, text: str, cause: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(LoopError, match=cause) as caught:
        files.read_json(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 200
    assert str(caught.value).isprintable()


def test_json_that_is_right_comes_back(tmp_path: Path) -> None:
    about = {"a": [1, {"b": None}], "c": 1.5}
    (tmp_path / "a.json").write_text(json.dumps(about))
    assert files.read_json(tmp_path / "a.json") == about
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "none.json")


def test_too_much_json_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 1 << 20)
    (tmp_path / "big.json").write_bytes(b'{"a": "' + b"x" * (1 << 20) + b'"}')
    with pytest.raises(LoopError, match="over 1 MiB"):
        files.read_json(tmp_path / "big.json")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain näme – 音.mid", "plain näme – 音.mid"),
        ("ok\rbad", r"ok\rbad"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("‮fdp.exe", r"\u202efdp.exe"),
        ("two\nlines", r"two\nlines"),
        ("\udcff.mid", r"\udcff.mid"),
    ],
)
def test_a_name_is_one_line_without_control_codes(name: str, shown: str) -> None:
    assert files.printable(name) == shown
