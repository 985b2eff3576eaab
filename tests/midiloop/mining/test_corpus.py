from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from midiloop.errors import CallError
from midiloop.mining import corpus
from midiloop.mining.corpus import Limits

FILES = {
    "a.mid": b"one",
    "b/c.MIDI": b"two",
    "b/d.kar": b"three",
    "e.rmi": b"",
    "b/ü n.mid": b"four",
}
OTHERS = {"notes.txt": b"x", "b/cover.png": b"y"}


def folder_of(path: Path) -> Path:
    for name, data in {**FILES, **OTHERS}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".tar.zst": zstandard.ZstdCompressor().compress,
}


def held(*sources: Path, limits: Limits | None = None) -> dict[str, bytes | str]:
    """What a walk gives: the bytes of each file, or the reason why not."""
    return {
        item.name: item.problem.reason if item.problem else item.read()
        for item in corpus.walk(sources, limits)
    }


def test_a_folder_is_walked_by_path(tmp_path: Path) -> None:
    found = held(folder_of(tmp_path / "songs"))
    assert found == FILES
    assert list(found) == ["a.mid", "b/c.MIDI", "b/d.kar", "b/ü n.mid", "e.rmi"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_tar_is_read_in_its_own_order(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"songs{suffix}"
    path.write_bytes(PACKERS[suffix](tar_bytes({**FILES, **OTHERS})))
    assert list(held(path).items()) == list(FILES.items())


def test_a_zip_is_read(tmp_path: Path) -> None:
    path = tmp_path / "songs.ZIP"
    path.write_bytes(zip_bytes({**FILES, **OTHERS}))
    assert held(path) == FILES


def test_several_sources_keep_their_files_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "songs")
    Path("more.zip").write_bytes(zip_bytes(FILES))
    Path("x.mid").write_bytes(b"alone")
    found = held(Path("songs"), Path("more.zip"), Path("x.mid"))
    assert len(found) == 11
    assert found["songs/a.mid"] == found["more.zip/a.mid"] == b"one"
    assert found["x.mid"] == b"alone"
    assert held(Path("x.mid")) == {"x.mid": b"alone"}


def test_the_share_seen_rises_to_one(tmp_path: Path) -> None:
    path = tmp_path / "songs.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes({f"{n}.mid": os.urandom(9000) for n in range(50)})))
    sources = [folder_of(tmp_path / "songs"), path]
    seen = [item.seen for item in corpus.walk(sources)]
    assert seen == sorted(seen)
    assert 0 <= seen[0] < 0.1
    assert 0.9 < seen[-1] <= 1


@pytest.mark.parametrize(
    "name",
    [
        "../up.mid",
        "/abs.mid",
        "a/../../b.mid",
        "C:/x.mid",
        "..\\w.mid",
        "../i.zip",
        "/i.tar",
        "../i.7z",
    ],
)
def test_no_path_leaves_an_archive(name: str, tmp_path: Path) -> None:
    tar, packed = tmp_path / "x.tar", tmp_path / "x.zip"
    tar.write_bytes(tar_bytes({name: b"x", "ok.mid": b"y"}))
    packed.write_bytes(zip_bytes({name: b"x", "ok.mid": b"y"}))
    for path in (tar, packed):
        found = held(path)
        assert found.pop("ok.mid") == b"y"
        assert list(found.values()) == ["unsafe_path"]


def test_links_in_archives_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in [("soft.mid", tarfile.SYMTYPE), ("hard.mid", tarfile.LNKTYPE),
                           ("pipe.mid", tarfile.FIFOTYPE)]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        link = zipfile.ZipInfo("soft.mid")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
    assert set(held(tmp_path / "x.tar").values()) == {"not_a_file"}
    assert held(tmp_path / "x.zip") == {"soft.mid": "not_a_file"}


def test_a_folder_holds_pipes_and_dead_links_but_never_waits_for_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mid")
    (tmp_path / "dead.mid").symlink_to(tmp_path / "none.mid")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "ok.mid").write_bytes(b"y")
    (tmp_path / "alias.mid").symlink_to(tmp_path / "ok.mid")
    assert held(tmp_path) == {
        "pipe.mid": "not_a_file", "dead.mid": "unreadable", "ok.mid": b"y", "alias.mid": b"y",
    }  # fmt: skip


def test_names_that_are_no_unicode_are_written_out(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.mid")).write_bytes(b"x")
    assert held(tmp_path) == {"caf\\xe9.mid": b"x"}


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    limits = Limits(file_bytes=100)
    files = {"big.mid": bytes(101), "ok.mid": bytes(100)}
    (tmp_path / "f").mkdir()
    for name, data in files.items():
        (tmp_path / "f" / name).write_bytes(data)
    (tmp_path / "x.tar").write_bytes(tar_bytes(files))
    (tmp_path / "x.zip").write_bytes(zip_bytes(files))
    for source in ("f", "x.tar", "x.zip"):
        found = held(tmp_path / source, limits=limits)
        assert found == {"big.mid": "too_large", "ok.mid": bytes(100)}


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst"])
def test_a_bomb_is_stopped_by_its_ratio(suffix: str, tmp_path: Path) -> None:
    files = {"ok.mid": b"y", "zeros.bin": bytes(20 << 20), "late.mid": b"z"}
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(PACKERS[suffix](tar_bytes(files)))
    limits = Limits(ratio_from_bytes=1 << 20, ratio=50)
    assert held(path, limits=limits) == {"ok.mid": b"y", f"bomb{suffix}": "archive_bomb"}


def test_a_bomb_is_stopped_by_its_bytes_and_by_its_members(tmp_path: Path) -> None:
    files = {f"{n}.mid": os.urandom(5000) for n in range(40)}
    (tmp_path / "x.tar").write_bytes(tar_bytes(files))
    (tmp_path / "x.zip").write_bytes(zip_bytes(files))
    for name in ("x.tar", "x.zip"):
        for limits in (Limits(archive_bytes=100_000), Limits(entries=20)):
            found = held(tmp_path / name, limits=limits)
            assert found[name] == "archive_bomb"
            assert 10 < len(found) < 25


def test_a_zip_of_many_small_bombs_is_stopped(tmp_path: Path) -> None:
    files = {f"{n}.mid": bytes(1 << 20) for n in range(20)}
    (tmp_path / "x.zip").write_bytes(zip_bytes(files))
    found = held(tmp_path / "x.zip", limits=Limits(ratio_from_bytes=4 << 20, ratio=100))
    assert found["x.zip"] == "archive_bomb"
    assert len(found) < 8


def test_a_bomb_in_a_header_record_is_stopped(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 50 << 20
    data = info.tobuf() + bytes(50 << 20)
    (tmp_path / "x.tar").write_bytes(data)
    assert held(tmp_path / "x.tar") == {"x.tar": "archive_bomb"}


@pytest.mark.parametrize("suffix", PACKERS)
def test_what_comes_before_a_break_is_used(suffix: str, tmp_path: Path) -> None:
    files = {f"{n}.mid": os.urandom(4000) for n in range(400)}
    data = PACKERS[suffix](tar_bytes(files))
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: len(data) // 2])
    found = held(path)
    assert found.pop(path.name) == "broken_archive"
    assert len(found) > 20 or suffix == ".tar.bz2"
    assert all(files[name] == data for name, data in found.items())


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz", "x.tar.zst"])
def test_an_archive_that_is_none_is_one_reject(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"this is no archive at all" * 40)
    assert held(tmp_path / name) == {name: "broken_archive"}


def test_one_damaged_member_of_a_zip_costs_that_member(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"a.mid": os.urandom(5000), "b.mid": b"y"}))
    data[1000] ^= 0xFF
    (tmp_path / "x.zip").write_bytes(bytes(data))
    assert held(tmp_path / "x.zip") == {"a.mid": "unreadable", "b.mid": b"y"}


def test_bad_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(b"")
    (tmp_path / "a.mid").write_bytes(b"")
    with pytest.raises(CallError, match="no such file"):
        held(tmp_path / "none")
    with pytest.raises(CallError, match="not a folder, MIDI file or archive"):
        held(tmp_path / "song.mp3")
    with pytest.raises(CallError, match="given twice"):
        held(tmp_path / "a.mid", tmp_path / "." / "a.mid")
