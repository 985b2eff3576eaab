"""The entry point: a click group whose errors are one line each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from midiloop import __version__
from midiloop.errors import CallError, LoopError
from midiloop_cli import audio, checks, codecs, compared, learned, remade, seams, symbolic

MODELS_NEED = ("torch", "safetensors", "einops")


class OneLineErrors(click.Group):
    """A group that reports every foreseen error as one line: 1 the work failed, 2 the call."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run, and exit with the code that the outcome asks for."""
        try:
            code = super().main(args, *more, **{**options, "standalone_mode": False})
        except click.UsageError as error:
            place = error.ctx.command_path if error.ctx else self.name
            self._fail(2, f"{error.format_message()} See '{place} --help'.")
        except CallError as error:
            self._fail(2, str(error))
        except ImportError as error:
            extra = f"{error.name} is not installed: pip install {error.name}"
            self._fail(1, extra if error.name in MODELS_NEED else str(error))
        except LoopError as error:
            self._fail(1, str(error))
        except BrokenPipeError:
            # The reader of our output has gone; what Python would still flush goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            self._fail(1, f"{place}{error.strerror or error}; mend that and run it again")
        except MemoryError:
            self._fail(1, "there is too little memory; free some, or run it on less at a time")
        except (KeyboardInterrupt, click.Abort):
            self._fail(1, "interrupted; long runs go on with --resume")
        sys.exit(code if isinstance(code, int) else 0)

    def _fail(self, code: int, message: str) -> None:
        click.echo(f"{self.name}: error: " + " ".join(message.split()), err=True)
        sys.exit(code)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="midiloop")
def midiloop() -> None:
    """Mine loops out of any MIDI corpus, look at them, and take them into your DAW."""


for command in (
    symbolic.extract,
    symbolic.inspect,
    symbolic.plot,
    symbolic.export,
    learned.train,
    learned.generate,
    learned.evaluate,
    learned.compare,
):
    midiloop.add_command(command)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="audioloop")
def audioloop() -> None:
    """Turn MIDI loops into audio loops without a seam, and check those you have."""


for command in (
    audio.render,
    checks.check,
    seams.seam,
    codecs.train,
    codecs.reconstruct,
    remade.refine,
    remade.generate,
    compared.compare,
):
    audioloop.add_command(command)
