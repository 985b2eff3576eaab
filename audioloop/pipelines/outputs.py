"""Loops that were made, as files: labelled audio, and MIDI where their notes are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audioloop.io import wave
from audioloop.io.label import LoopLabel, Names
from audioloop.io.sources import errors_named
from audioloop.io.wave import Format, Wave
from midiloop.common.files import printable, working_in
from midiloop.errors import LoopError
from midiloop.midi import score
from midiloop.midi.score import Score

FORMAT = Format()
LOSSY_PEAK = 10 ** (-1 / 20)  # what comes back of OGG reaches a little further than what went in


class MadeLoop(NamedTuple):
    """A loop that was made, and is not written yet.

    Attributes:
        score: its notes; None where they are not known.
        regenerated: share of its frames that were made.
        notes: what is worth knowing.
    """

    wave: Wave
    label: LoopLabel
    score: Score | None = None
    regenerated: float = 1.0
    notes: tuple[str, ...] = ()


class WrittenLoop(NamedTuple):
    """A loop that was written.

    Attributes:
        source: file that it was made of; "" where it was made of nothing.
        files: names in the output folder, audio first, then MIDI where notes are known.
        regenerated: share of its frames that were made.
        notes: what is worth knowing.
    """

    source: str
    files: tuple[str, ...]
    label: LoopLabel
    samples: int
    regenerated: float
    notes: tuple[str, ...] = ()


def numbered(
    waves: Sequence[Wave],
    label: LoopLabel,
    notes: Score | None,
    regenerated: float = 1.0,
    remarks: tuple[str, ...] = (),
) -> list[MadeLoop]:
    """Loops that are made of one source, under the label of each."""
    return [
        MadeLoop(one, with_number(label, number, len(waves)), notes, regenerated, remarks)
        for number, one in enumerate(waves, start=1)
    ]


def write_each(
    sources: Sequence[Path],
    out: Path,
    make: Callable[[Path], Iterable[MadeLoop]],
    form: Format = FORMAT,
) -> Iterator[list[WrittenLoop] | LoopError]:
    """Write what is made of files, one by one; one that fails costs itself.

    Args:
        make: the loops of a file.

    Raises:
        CallError: ``out`` is a file, or another run is at work there.
    """
    names = _reserved_names(sources, out)
    with working_in(out):
        for source in sources:
            try:
                with errors_named(source):
                    found = [_written(one, source, out, form, names) for one in make(source)]
            except LoopError as error:
                yield error
            else:
                yield found


def write_all(
    made: Iterable[MadeLoop], out: Path, form: Format = FORMAT
) -> Iterator[list[WrittenLoop]]:
    """Write loops that are made of no file, each as soon as it is there.

    Raises:
        CallError: ``out`` is a file, or another run is at work there.
        LoopError: one cannot be made.
        OSError: the disk is full, or the folder cannot be written.
    """
    names = _reserved_names((), out)
    with working_in(out):
        for one in made:
            yield [_written(one, None, out, form, names)]


def write(
    made: Wave, out: Path, label: LoopLabel, form: Format = FORMAT, notes: Score | None = None
) -> tuple[tuple[str, ...], list[str]]:
    """Write a loop as `render` does: labelled audio, and a MIDI file where its notes are known.

    >>> import audioloop, numpy as np
    >>> from pathlib import Path
    >>> roll = np.zeros((16, 93), bool)
    >>> roll[::4, 0] = True
    >>> loop = audioloop.as_loop(roll, bpm=150, name="beat")
    >>> files, _ = audioloop.write(loop.wave, Path("."), loop.label, notes=loop.score)
    >>> files
    ('beat_150bpm.wav', 'beat_150bpm.mid')

    Returns:
        Names of the files, and what is worth knowing of them.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    remarks = []
    room = LOSSY_PEAK if form.depth == "lossy" else form.headroom
    if made.peak > room:
        remarks.append(f"turned down by {20 * math.log10(made.peak / room):.1f} dB, or it clips")
        made = Wave(made.samples * np.float32(room / made.peak), made.rate)
    stem = label.file_name("default")
    out.mkdir(parents=True, exist_ok=True)
    names = [stem + form.suffix]
    if notes is not None:
        names.append(f"{stem}.mid")
        score.write(notes.cut(), out / names[1])
    try:
        wave.write(out / names[0], made, label, form)
    except BaseException:
        for name in names[1:]:
            (out / name).unlink(missing_ok=True)
        raise
    return tuple(names), remarks


def with_unique_name(label: LoopLabel, names: Names) -> LoopLabel:
    """The label with a name under which no other file is."""

    def more(added: str) -> LoopLabel:
        return replace(label, name=label.name + added)

    return more(names.own(lambda added: more(added).file_name("default")))


def with_number(label: LoopLabel, number: int, n: int) -> LoopLabel:
    """The label of one of ``n`` loops of one source, counted from 1."""
    return replace(label, name=f"{label.name}-v{number}") if n > 1 else label


def _reserved_names(sources: Sequence[Path], out: Path) -> Names:
    """Names in the output folder that nothing may get: those of what is read."""
    folder = out.resolve()
    return Names(path.stem for path in sources if path.resolve().parent == folder)


def _written(
    made: MadeLoop, source: Path | None, out: Path, form: Format, names: Names
) -> WrittenLoop:
    label = with_unique_name(made.label, names)
    files, remarks = write(made.wave, out, label, form, made.score)
    notes = (*made.notes, *remarks)
    name = "" if source is None else printable(source)
    return WrittenLoop(name, files, label, len(made.wave), made.regenerated, notes)
