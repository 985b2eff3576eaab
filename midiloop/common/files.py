"""Files: where results may go, written whole or not at all, read within bounds.

Nothing is ever removed because of its name. What is temporary has a name that nobody else has, and
is removed by the call that made it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midiloop.errors import CallError, LoopError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK, TEMPORARY = ".lock", ".tmp"
_LEFT = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(TEMPORARY)}(\..*)?")
SYNCING_THREADS = 16
MAX_JSON_BYTES = 64 << 20
MAX_JSON_DEPTH = 32


def check_parent(out: Path) -> None:
    """Raise `CallError` unless the folder that ``out`` would lie in is there."""
    if not out.parent.is_dir():
        raise CallError(f"{printable(out.parent)}: no such folder; make it first")


def check_writable(out: Path) -> None:
    """Raise `CallError` unless files can be made in ``out``, or it in the folder it will lie in."""
    folder = out
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CallError(f"{printable(folder)}: cannot be written in; choose another place")


def check_free(out: Path) -> None:
    """Raise `CallError` unless ``out`` can be made: nothing is there, and `check_parent`."""
    if os.path.lexists(out):
        name = printable(out)
        raise CallError(f"{name}: exists already; choose another name, or remove it first")
    check_parent(out)


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: the disk is full, or the folder cannot be written; it names ``path``.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary place for a file, which takes the place of ``path`` where the block succeeds.

    It has the suffix of ``path``, lies in the same folder, and is on the disk before it is renamed,
    so that a power cut leaves the old file or the new one.

    Raises:
        OSError: the disk is full, or the folder cannot be written; it names ``path``.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk does not say which file it was about
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, which becomes ``path`` where the block succeeds, and else is gone.

    All in it is on the disk before it is renamed, so that a power cut leaves none of it or all.

    Raises:
        CallError: see `check_free`.
        OSError: the disk is full, or the folder cannot be written; it names ``path``, or what was
            to be in it.
    """
    check_free(path)
    building = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=path.parent))
    try:
        building.chmod(0o777 & ~_umask())  # mkdtemp makes folders that only their owner can read
        yield building
        _sync(building, *building.rglob("*"))
        put(building, path)
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        if isinstance(error, OSError):  # it names what nobody has heard of, or nothing at all
            name = str(error.filename or building)
            if name.startswith(str(building)):
                raise OSError(
                    error.errno,
                    error.strerror or str(error),
                    str(path) + name[len(str(building)) :],
                ) from error
        raise


def put(folder: Path, path: Path, aside: Path | None = None) -> None:
    """Give a folder that is whole the name ``path``, in the same file system.

    Args:
        aside: where the folder goes that has the name already, if that is to be replaced.

    Raises:
        CallError: see `check_free`; something else took the name.
    """
    if aside is not None:
        path.rename(aside)
    check_free(path)
    folder.rename(path)
    _sync(path.parent)


def _sync(*paths: Path) -> None:
    """Wait until files and folders are on the disk, where the system can tell."""
    from concurrent.futures import ThreadPoolExecutor

    if os.name == "posix":  # elsewhere folders cannot be opened
        # A file system writes what several ask for at one time as one: thousands take no longer.
        with ThreadPoolExecutor(SYNCING_THREADS) as pool:
            list(pool.map(_sync_one, paths))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs from working in ``folder``, which exists, as long as the block lasts.

    Nobody else writes there, so what `replacing` left when an earlier run was killed is removed.

    Raises:
        CallError: another run is at work there.
    """
    lock = _acquired(folder / LOCK)
    try:
        _tidy(folder)
        yield
        _tidy(folder)  # a worker that was killed leaves what it had begun
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            Path(lock.lock_file).unlink()
        lock.release()


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """`locked`, in a folder that is made where there is none, and gone again where it stays empty.

    Raises:
        CallError: it is a file, or another run is at work there.
        OSError: it cannot be made.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise CallError(f"{printable(folder)}: is a file; give a folder")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            yield
    finally:
        with suppress(OSError):  # it holds something
            for path in made:
                path.rmdir()


def _tidy(folder: Path) -> None:
    """Remove what `replacing` leaves where a process is killed."""
    with suppress(FileNotFoundError):  # the block may have given the folder another name
        for left in folder.iterdir():
            if left.name != LOCK and is_passing(left.name):
                left.unlink()


def _acquired(path: Path) -> BaseFileLock:
    """The lock of a file that is still there once it is held: an earlier holder removes it."""
    from filelock import FileLock, Timeout

    while True:
        lock = FileLock(path)
        path.touch()
        with suppress(FileNotFoundError):
            inode = path.stat().st_ino
            try:
                lock.acquire(blocking=False)
            except Timeout as error:
                name = printable(path.parent)
                raise CallError(f"{name}: another run is at work here; let it end first") from error
            with suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    return lock
            lock.release()


def is_passing(name: str) -> bool:
    """Whether a file is a lock, or one that `replacing` had not finished when it was killed."""
    return name == LOCK or _LEFT.fullmatch(name) is not None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most `MAX_JSON_BYTES`, nested at most `MAX_JSON_DEPTH` deep.

    Raises:
        FileNotFoundError: there is no such file.
        LoopError: it cannot be read, or holds no such object; the message has no remedy yet.
    """
    name = printable(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    except OSError as error:
        raise LoopError(f"{name}: {error.strerror}") from error
    if len(data) > MAX_JSON_BYTES:
        raise LoopError(f"{name}: over {MAX_JSON_BYTES >> 20} MiB of JSON")
    try:
        return parse_json(data)
    except LoopError as error:
        raise LoopError(f"{name}: {error}") from error


def parse_json(data: bytes | str) -> dict[str, Any]:
    """The object that a JSON text holds, nested at most `MAX_JSON_DEPTH` deep.

    Raises:
        LoopError: it holds none; the message names neither file nor remedy.
    """
    try:
        found = json.loads(data)
    except RecursionError:
        raise LoopError(f"JSON nested more than {MAX_JSON_DEPTH} deep") from None
    except ValueError as error:
        raise LoopError(f"not JSON ({shortened(str(error))})") from None
    if not isinstance(found, dict):
        raise LoopError("JSON, but not an object")
    level: list[Any] = [found]
    for _ in range(MAX_JSON_DEPTH):
        inside = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in inside for value in values if isinstance(value, dict | list)]
        if not level:
            return found
    raise LoopError(f"JSON nested more than {MAX_JSON_DEPTH} deep")


def digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_text(path: Path) -> bool:
    """Whether a path can be written in UTF-8: file systems take other names too."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: object) -> str:
    """A name as one line that a terminal shows as it is: control and format codes are escaped."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text
    )


def shortened(text: object, length: int = 80) -> str:
    """What a message quotes of a file: `printable`, and at most ``length`` characters."""
    found = printable(str(text)[: length + 1])
    return found if len(found) <= length else f"{found[: length - 1]}…"
