"""Walk a corpus: folders, MIDI files, zip and tar archives, one after the other.

Archives are read in one stream and never unpacked to disk, so no path can leave them; `Limits`
stops those that unfold into more than a corpus holds.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from midiloop.errors import CallError, MidiError
from midiloop.midi.score import MAX_FILE_BYTES

MIDI_SUFFIXES = (".mid", ".midi", ".kar", ".rmi")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
UNREAD_SUFFIXES = (".7z", ".rar", ".lzh", ".lha", ".arj", ".cab")

REASONS = {
    "unreadable": "the file cannot be opened or read",
    "unsafe_path": "an archive member whose path leaves the archive",
    "not_a_file": "a link, a device or the like, under the name of a MIDI file",
    "nested_archive": "an archive inside an archive, which is not opened; give it by itself",
    "unread_archive": "an archive of a kind that is not read; unpack it",
    "broken_archive": "the archive ends or breaks here; what came before is used",
    "archive_bomb": "the archive unfolds into more than a corpus holds",
}

UNREAD_ARCHIVES = ("nested_archive", "unread_archive")  # what may hold MIDI files, and is none
_DRIVE = re.compile(r"[A-Za-z]:")

# What the standard library raises on archives that are cut, damaged, encrypted or of another kind.
BROKEN = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Limits:
    """What an archive may unfold into before it is taken for a bomb.

    Attributes:
        file_bytes: of one file; a larger one is not read.
        entries: members of one archive.
        archive_bytes: unpacked bytes of one archive.
        ratio: unpacked over packed bytes, once ``ratio_from_bytes`` are unpacked. MIDI packs
            about 6:1 alone and 20:1 in a good solid archive.
    """

    file_bytes: int = MAX_FILE_BYTES
    entries: int = 10_000_000
    archive_bytes: int = 1 << 40
    ratio: int = 300
    ratio_from_bytes: int = 64 << 20


class Problem(NamedTuple):
    """Why a file gives no loops: a reason for machines, a detail for people."""

    reason: str
    detail: str


GIVE_ALONE = Problem("nested_archive", "give it as a source of its own")
UNPACK = Problem("unread_archive", "an archive of a kind that is not read; unpack it")


class Item(NamedTuple):
    """One MIDI file of a corpus.

    Attributes:
        name: its path inside the corpus, with forward slashes, valid Unicode.
        size: bytes.
        seen: share of the corpus that has been walked with this file, 0 to 1.
        path: where it lies, for a file on disk.
        data: its bytes, for a member of an archive.
        changed_ns: when the file, or the archive that it is in, was last written.
        problem: set where it cannot be used, whatever it holds.
    """

    name: str
    size: int
    seen: float
    path: str | None = None
    data: bytes | None = None
    problem: Problem | None = None
    changed_ns: int = 0

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            MidiError: the file on disk cannot be read.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            with open(self.path, "rb", buffering=0) as file:  # noqa: PTH123
                return file.read()
        except OSError as error:
            raise MidiError("unreadable", error.strerror or str(error)) from error


def check_sources(sources: Sequence[Path]) -> None:
    """Raise `CallError` where a source is missing, given twice, or of a kind that is not read."""
    seen = set()
    for source in sources:
        if not source.exists():
            raise CallError(f"{source}: no such file or folder; check the path")
        if source.is_file() and _is_unread(source.name):
            raise CallError(f"{source}: {UNPACK.detail}, and give the folder")
        if not (source.is_dir() or _is_midi(source.name) or _is_archive(source.name)):
            kinds = ", ".join((*MIDI_SUFFIXES, ".zip", *TAR_SUFFIXES))
            raise CallError(f"{source}: not a folder, MIDI file or archive; give one of {kinds}")
        if source.resolve() in seen:
            raise CallError(f"{source}: given twice; name it once")
        seen.add(source.resolve())


def walk(sources: Sequence[Path], limits: Limits | None = None) -> Iterator[Item]:
    """Every MIDI file of ``sources``, in order: a folder by path, an archive as it is packed.

    A file is named by its path inside its source; where there are several sources, by the path of
    the source as it was given and that.

    Raises:
        CallError: see `check_sources`.
    """
    limits = limits or Limits()
    check_sources(sources)
    # A source alone is the whole corpus, and what it weighs makes no difference.
    weights = [_packed_bytes(s) for s in sources] if len(sources) > 1 else [1]
    total, before = max(1, sum(weights)), 0
    for source, weight in zip(sources, weights, strict=True):
        label = _text(source.as_posix()) if len(sources) > 1 else ""
        for item in _items(source, limits):
            name = "/".join(part for part in (label, item.name) if part)
            seen = (before + item.seen * weight) / total
            yield item._replace(name=name or _text(source.name), seen=seen)
        before += weight


def _items(source: Path, limits: Limits) -> Iterator[Item]:
    """The files of one source: names inside it ("" for the source itself), shares of it."""
    if source.is_dir():
        return _folder_items(source, limits)
    if _is_midi(source.name):
        return iter([_file_item("", str(source), source.stat(), 1.0, limits)])
    members = _zip_members if source.name.lower().endswith(".zip") else _tar_members
    return _archive_items(source, members, limits)


def _packed_bytes(source: Path) -> int:
    if source.is_dir():
        return sum(_size(_status(path)) for path in _midi_files(str(source)))
    return source.stat().st_size


def _status(path: str) -> os.stat_result | OSError:
    try:
        return os.stat(path)  # noqa: PTH116 - a Path for each file takes as long as its stat
    except OSError as error:
        return error


def _mode(path: str) -> int:
    status = _status(path)
    return 0 if isinstance(status, OSError) else status.st_mode


def _size(status: os.stat_result | OSError) -> int:
    return 0 if isinstance(status, OSError) else status.st_size


def _midi_files(folder: str) -> Iterator[str]:
    """MIDI files and archives below a folder, by path, and folders that cannot be read.

    Links to folders are not followed.
    """
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except OSError:
        yield folder
        return
    for child in children:
        if child.is_dir(follow_symlinks=False):
            yield from _midi_files(child.path)
        elif _is_wanted(child.name):
            yield child.path


def _folder_items(folder: Path, limits: Limits) -> Iterator[Item]:
    n_files = sum(1 for _ in _midi_files(str(folder)))
    start = len(os.path.join(folder, ""))  # noqa: PTH118
    for number, path in enumerate(_midi_files(str(folder)), 1):
        name = _text(path[start:].replace(os.sep, "/"))
        seen = min(1.0, number / n_files)
        if os.path.isdir(path):  # noqa: PTH112
            problem = Problem("unreadable", "the folder cannot be opened; make it readable")
            yield Item(name, 0, seen, problem=problem)
        elif _is_archive(path) and stat.S_ISREG(_mode(path)):
            for item in _items(Path(path), limits):
                yield item._replace(name="/".join(filter(None, (name, item.name))), seen=seen)
        else:
            yield _file_item(name, path, _status(path), seen, limits)


def _file_item(
    name: str, path: str, status: os.stat_result | OSError, seen: float, limits: Limits
) -> Item:
    problem = None
    if _is_unread(path):
        problem = UNPACK
    elif isinstance(status, OSError):
        problem = Problem("unreadable", status.strerror or str(status))
    elif not stat.S_ISREG(status.st_mode):
        problem = Problem("not_a_file", "not a regular file")
    elif status.st_size > limits.file_bytes:
        problem = _too_large(status.st_size, limits)
    changed_ns = 0 if isinstance(status, OSError) else status.st_mtime_ns
    return Item(name, _size(status), seen, path=path, problem=problem, changed_ns=changed_ns)


class _Member(NamedTuple):
    """A member of an archive: what it is, and how to read it."""

    name: str
    size: int
    is_file: bool
    is_folder: bool
    read: Callable[[], bytes]


class _BombError(Exception):
    """An archive that goes beyond its limits."""


def _archive_items(
    source: Path,
    members: Callable[[IO[bytes], Limits], Iterator[_Member]],
    limits: Limits,
) -> Iterator[Item]:
    status = source.stat()
    total, share = max(1, status.st_size), 0.0
    try:
        with source.open("rb") as file:
            for count, member in enumerate(members(file, limits), 1):
                if count > limits.entries:
                    raise _BombError(f"more than {limits.entries:,} members")
                if member.is_folder:
                    continue
                if _is_wanted(member.name):
                    share = min(1.0, file.tell() / total)
                    item = _member_item(member, share, limits)
                    yield item._replace(changed_ns=status.st_mtime_ns)
    except _BombError as error:
        yield Item("", total, share, problem=Problem("archive_bomb", str(error)))
    except BROKEN as error:
        detail = f"{type(error).__name__}: {error}"
        yield Item("", total, share, problem=Problem("broken_archive", detail))


def _member_item(member: _Member, share: float, limits: Limits) -> Item:
    data = problem = None
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or _DRIVE.match(path.parts[0]):
        problem = Problem("unsafe_path", "the path leads out of the archive")
    elif not _is_midi(member.name):
        problem = UNPACK if _is_unread(member.name) else GIVE_ALONE
    elif not member.is_file:
        problem = Problem("not_a_file", "a link or a device")
    elif member.size > limits.file_bytes:
        problem = _too_large(member.size, limits)
    else:
        try:
            data = member.read()
        except MidiError as error:
            problem = Problem(error.reason, error.detail)
    return Item(_text(member.name), member.size, share, data=data, problem=problem)


def _zip_members(file: IO[bytes], limits: Limits) -> Iterator[_Member]:
    meter = _Meter(file, limits)
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            meter.packed_bytes += info.compress_size

            def read(info: zipfile.ZipInfo = info) -> bytes:
                try:
                    with archive.open(info) as member:
                        data = member.read(limits.file_bytes)
                except BROKEN as error:  # costs this member only
                    raise MidiError("unreadable", str(error)) from error
                meter.count(len(data))
                return data

            is_link = stat.S_ISLNK(info.external_attr >> 16)
            yield _Member(info.filename, info.file_size, not is_link, info.is_dir(), read)


def _tar_members(file: IO[bytes], limits: Limits) -> Iterator[_Member]:
    with (
        closing(_Meter(file, limits)) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive,
    ):
        while (info := archive.next()) is not None:
            # The archive would otherwise keep the header of every member.
            archive.members.clear()  # type: ignore[attr-defined]

            def read(info: tarfile.TarInfo = info) -> bytes:
                member = archive.extractfile(info)
                assert member is not None
                data = member.read()
                if len(data) < info.size:
                    raise EOFError(f"the archive ends inside {info.name}")
                return data

            yield _Member(info.name, info.size, info.isreg(), info.isdir(), read)


class _Header(tarfile.TarInfo):
    """A tar header that refuses extension records (long names and the like) of a bomb's size."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extension = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        names = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type in extension + names and self.size > 1 << 20:
            raise _BombError(f"a header record of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]


class _Meter(io.RawIOBase):
    """The unpacked stream of a packed file, which counts and stops a bomb."""

    def __init__(self, file: IO[bytes], limits: Limits) -> None:
        self.file, self.limits = file, limits
        self.unpacked_bytes = self.packed_bytes = 0
        self.stream = _unpacked(file)

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.stream.read(size)
        self.packed_bytes = self.file.tell()
        self.count(len(data))
        return data

    def count(self, n_bytes: int) -> None:
        """Take note of so many unpacked bytes."""
        self.unpacked_bytes += n_bytes
        limits = self.limits
        if self.unpacked_bytes > limits.archive_bytes:
            raise _BombError(f"more than {limits.archive_bytes:,} bytes unpacked")
        if self.unpacked_bytes > limits.ratio_from_bytes:
            ratio = self.unpacked_bytes / max(1, self.packed_bytes)
            if ratio > limits.ratio:
                raise _BombError(f"packed more than {limits.ratio}:1")


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\xfd7zXZ"):
        return lzma.open(file)
    if magic.startswith(b"BZh"):
        return bz2.open(file)
    for codec, start in (("gzip", b"\x1f\x8b"), ("zstd", b"\x28\xb5\x2f\xfd")):
        if magic.startswith(start):
            import pyarrow as pa

            return pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)  # type: ignore[no-any-return]
    return file


def _too_large(size: int, limits: Limits) -> Problem:
    return Problem("too_large", f"{size:,} bytes; at most {limits.file_bytes:,} are read")


def _is_midi(name: str) -> bool:
    return name.lower().endswith(MIDI_SUFFIXES)


def _is_archive(name: str) -> bool:
    return name.lower().endswith((".zip", *TAR_SUFFIXES))


def _is_unread(name: str) -> bool:
    return name.lower().endswith(UNREAD_SUFFIXES)


def _is_wanted(name: str) -> bool:
    """Whether a file is one of the corpus: one that is read, or one that should be unpacked."""
    return _is_midi(name) or _is_archive(name) or _is_unread(name)


def _text(path: str) -> str:
    """A path as valid Unicode; bytes that are none are written as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
