"""The entry point: a click group whose errors are one line each."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

from midiloop import __version__
from midiloop.errors import CallError, LoopError
from midiloop_cli import benchmark as benchmark_command
from midiloop_cli import check as check_command
from midiloop_cli import dataset as dataset_commands
from midiloop_cli import generate_audio, report, train_audio
from midiloop_cli import models as models_commands
from midiloop_cli import render as render_command
from midiloop_cli import seam as seam_command

MODELS_NEED = ("torch", "safetensors", "einops")
INTERRUPTED = 130  # as shells count: 128 and the number of SIGINT
MIN_ADDRESS_BYTES = 512 << 20  # where there is less, Arrow and NumPy crash while they are loaded
FORESEEN = (LoopError, ImportError, OSError, UnicodeEncodeError, MemoryError)
TOO_LITTLE_MEMORY = "there is too little memory; free some, or run it on less at a time"


class OneLineErrors(click.Group):
    """A group that reports every foreseen error as one line: 1 the work failed, 2 the call."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run, and exit with the code that the outcome asks for."""
        report.never_fail_to_encode()
        # What PyTorch leaves takes the garbage collector a quarter of a second to look through, for
        # nothing: the process ends.
        atexit.register(gc.freeze)
        try:
            code = super().main(args, *more, **{**options, "standalone_mode": False})
            sys.stdout.flush()  # a reader that has gone is noticed here, and not at exit
        except click.UsageError as error:
            place = error.ctx.command_path if error.ctx else self.name
            message = " ".join(error.format_message().split())
            self._fail(2, f"{message} See '{place} --help'.")
        except BrokenPipeError:
            # The reader of our output has gone; what Python would still flush goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except FORESEEN as error:
            self._fail(*_in_one_line(error))
        except (KeyboardInterrupt, click.Abort):
            self._interrupted()
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; report an interrupt, before which click would print an empty line."""
        _check_memory()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            self._interrupted(self.commands.get(ctx.invoked_subcommand or ""))

    def _interrupted(self, command: click.Command | None = None) -> NoReturn:
        resumes = command is not None and any("--resume" in one.opts for one in command.params)
        self._fail(INTERRUPTED, "interrupted" + "; --resume goes on where it stopped" * resumes)

    def _fail(self, code: int, message: str) -> NoReturn:
        report.error(self.name, message)
        try:
            sys.stdout.flush()
        except OSError:  # of a full disk: said already, and Python would say it again as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code)


def _check_memory() -> None:
    """Raise `LoopError` where this process may take less address space than its libraries do."""
    with suppress(ImportError):  # on Windows, which knows no such limit
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY and limit < MIN_ADDRESS_BYTES:
            raise LoopError(
                f"address space is limited to {limit >> 20} MiB, and at least "
                f"{MIN_ADDRESS_BYTES >> 20} MiB are needed; raise the limit (ulimit -v)"
            )


def _in_one_line(error: Exception) -> tuple[int, str]:
    """The exit code and the message of a foreseen error."""
    match error:
        case CallError():
            return 2, str(error)
        case ImportError():
            return 1, _unloadable(error)
        case OSError():
            return 1, report.os_error(error)
        case UnicodeEncodeError():  # as of PyArrow, which takes no other names
            return 2, f"{error.object}: a name that is not UTF-8; rename it"
        case MemoryError():
            return 1, TOO_LITTLE_MEMORY
    return 1, str(error)


def _unloadable(error: ImportError) -> str:
    """Why a library is not there, and what to do."""
    if error.name in MODELS_NEED and isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install {error.name}"
    if "failed to map segment" in str(error) or "cannot allocate" in str(error).lower():
        return TOO_LITTLE_MEMORY
    return str(error)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="midiloop")
def midiloop() -> None:
    """Mine loops out of any MIDI corpus, look at them, and take them into your DAW."""


for command in (
    dataset_commands.extract,
    dataset_commands.inspect,
    dataset_commands.plot,
    dataset_commands.export,
    models_commands.train,
    models_commands.generate,
    models_commands.humanize,
    models_commands.evaluate,
    models_commands.reproduce,
):
    midiloop.add_command(command)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="audioloop")
def audioloop() -> None:
    """Turn MIDI loops into audio loops without a seam, and check those you have."""


for command in (
    render_command.render,
    check_command.check,
    seam_command.seam,
    train_audio.train,
    train_audio.reconstruct,
    generate_audio.refine,
    generate_audio.generate,
    benchmark_command.benchmark,
):
    audioloop.add_command(command)
