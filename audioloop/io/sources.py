"""Batches of audio files: finding them, and errors that name the file."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from midiloop.common import files
from midiloop.errors import LoopError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".caf", ".mp3")
# What to do about an error of the system.
REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "give a file",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose another place",
    errno.ENOSPC: "make room, and run it again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}


def audio(sources: Sequence[Path]) -> Iterator[Path]:
    """Files as given, and the audio files in folders and below, in order.

    Raises:
        LoopError: a folder holds none.
    """
    for source in sources:
        if not source.is_dir():
            yield source
            continue
        inside = [
            path
            for path in sorted(source.rglob("*"))
            if path.suffix.lower() in SUFFIXES and path.is_file()
        ]
        if not inside:
            name = files.printable(source)
            raise LoopError(f"{name}: no audio files; give a folder that holds some")
        yield from inside


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Turn errors in the block into a `LoopError` that starts with the file's name.

    An error of the system about another file, as of a disk that is full, names that one. What is
    missing on this machine is no fault of a file: an `ImportError` goes through.

    Raises:
        LoopError: something went wrong with the file.
        ImportError: a library is missing.
    """
    name = files.printable(path)
    try:
        yield
    except ImportError:
        raise
    except LoopError as error:
        cause = str(error).removeprefix(f"{path}: ").removeprefix(f"{name}: ")
        raise LoopError(f"{name}: {cause}") from error
    except OSError as error:
        about = files.printable(error.filename or path)
        remedy = REMEDIES.get(error.errno or 0, "try again")
        raise LoopError(f"{about}: {error.strerror or error}; {remedy}") from error
    except MemoryError as error:
        raise LoopError(f"{name}: not enough memory for it; cut it first") from error
    except Exception as error:  # of a library, about bytes that nobody thought of
        cause = files.shortened(error) or "no cause is given"
        raise LoopError(f"{name}: {type(error).__name__}: {cause}; export it again") from error
