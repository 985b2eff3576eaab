"""Render many loops in worker processes: a synth that crashes or hangs costs one loop.

A loop becomes an audio file, one for each stem if wanted, and a MIDI file of the same name that
ends at the bar line. It is complete when all of its files exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from audioloop.io import wave
from audioloop.io.label import LoopLabel, without_tempo
from audioloop.io.wave import Format
from audioloop.rendering import piece, render, synth
from audioloop.rendering.piece import Piece
from audioloop.rendering.render import Rendered, Sound
from audioloop.rendering.synth import SoundFont
from midiloop.common import files
from midiloop.common.engine import Engine, TurnTo, Work
from midiloop.common.processes import Processes
from midiloop.common.resume import RunRecord
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError, MidiError
from midiloop.grid import LOOP, Grid
from midiloop.midi import score
from midiloop.mining import corpus

LOOPS_A_JOB = 8
LOOP_TIMEOUT_S = 300.0
MAX_DURATION_S = 900.0
RECORD = "render.json"


@dataclass(frozen=True)
class Settings:
    """How every loop is rendered and written.

    Attributes:
        soundfont: path of the SoundFont.
        rate: sample rate in Hz.
        form: of the audio files.
        sound: of the render.
        bpm: tempo in place of each loop's own.
        bars: length of MIDI files whose end of track does not say it.
        transpose: semitones that all but the drums are moved by.
        template: of file names, see `LoopLabel.file_name`.
        played: how the loops were humanised, for the record of the run; None: they were not.
    """

    soundfont: Path
    rate: int = 44_100
    form: Format = field(default_factory=Format)
    sound: Sound = field(default_factory=Sound)
    bpm: float | None = None
    bars: int | None = None
    transpose: int = 0
    template: str = "default"
    played: str | None = None


class Item(NamedTuple):
    """One loop to render: a MIDI file's bytes or path, or a packed roll, its grid and its tempo.

    Attributes:
        source: where it comes from, for messages.
        name: for the label, unique in a batch.
        number: index in the batch.
    """

    source: str
    name: str
    number: int
    midi: bytes | Path | None = None
    roll: bytes | None = None
    grid: Grid = LOOP
    tempo_bpm: float = 0.0


class RenderedLoop(NamedTuple):
    """A loop that was rendered, or was there already.

    Attributes:
        files: names in the output folder, the mix first.
        held_back_db: see `render.Rendered`.
    """

    source: str
    files: tuple[str, ...]
    label: LoopLabel
    samples: int
    duration_s: float
    held_back_db: float


class FailedLoop(NamedTuple):
    """A loop that was not rendered, and why."""

    source: str
    cause: str


class Result(NamedTuple):
    """The outcome of all loops, in order."""

    made: list[RenderedLoop]
    failed: list[FailedLoop]


@dataclass(frozen=True)
class Job:
    """Loops for one worker, without those that crashed or stalled one (``lost``)."""

    items: tuple[Item, ...]
    out: Path
    settings: Settings
    lost: dict[int, str] = field(default_factory=dict)

    def without(self, item: int, cause: str) -> Job:
        """The same job with ``item`` ruled out."""
        return replace(self, lost={**self.lost, item: cause})


def items(
    sources: Sequence[Path], *, limit: int | None = None, song: str = "*", split: str | None = None
) -> list[Item]:
    """The loops of loop datasets, MIDI files, and folders and archives of them, in order.

    Args:
        limit: largest number of loops.
        song, split: pattern of song paths, and split, of loops of a dataset.

    Raises:
        CallError: a source is none of these.
        LoopError: there is nothing in them, or a dataset is damaged.
    """
    found: list[Item] = []
    for source in sources:
        if (source / "manifest.json").exists():
            found += _of_dataset(source, limit, song, split)
        else:
            found += [_of_file(item) for item in corpus.walk([source])]
    found = found[:limit]
    if not found:
        raise LoopError("no loop in what was given; give MIDI files, folders or a loop dataset")
    return _distinct(found)


def _of_dataset(path: Path, limit: int | None, song: str, split: str | None) -> Iterator[Item]:
    number = 0
    dataset = LoopDataset(path)
    for batch in dataset.select(limit=limit, song=song, split=split):
        packed = batch.packed
        for at, name in enumerate(batch.songs):
            bar = int(batch.start_bars[at]) + 1
            stem = f"{number:05d}_{PurePosixPath(name).stem}_bar{bar:03d}"
            place = f"{path}: loop {number} ({name}, bar {bar})"
            tempo_bpm = float(batch.tempos_bpm[at])
            roll = packed[at].tobytes()
            yield Item(place, stem, 0, roll=roll, grid=batch.grid, tempo_bpm=tempo_bpm)
            number += 1


def _of_file(item: corpus.Item) -> Item:
    stem = PurePosixPath(item.name).stem
    midi = item.data if item.path is None else Path(item.path)
    return Item(item.path or item.name, without_tempo(stem), 0, midi=midi)


def _distinct(found: Sequence[Item]) -> list[Item]:
    """The items, numbered, and each with a name of its own whatever the file system."""
    used: set[str] = set()
    named = []
    for number, item in enumerate(found):
        name, again = item.name, 1
        while _folded(name) in used:
            again += 1
            name = f"{item.name}-v{again}"
        used.add(_folded(name))
        named.append(item._replace(name=name, number=number))
    return named


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def run(
    found: Sequence[Item],
    out: Path,
    settings: Settings,
    *,
    engine: Engine | None = None,
    resume: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Result:
    """Render all loops into the folder ``out``.

    Args:
        found: what `items` gave.
        engine: runs the workers; by default one process for each usable core.
        resume: keep loops that ``out`` has already.
        on_progress: called with how many loops are done.

    Raises:
        CallError: ``out`` holds something already, or was started with other settings; or the
            settings conflict.
        LoopError: the SoundFont cannot be loaded.
        ImportError: there is no FluidSynth.
        OSError: the disk is full, or the folder cannot be written.
    """
    _check(found, settings)
    synth.load()
    files.check_parent(out)
    plain = asdict(settings) | {"soundfont": str(settings.soundfont)}
    if settings.played is None:
        del plain["played"]  # as earlier versions did not have it
    record = RunRecord(out / RECORD, {"settings": plain})
    with record.working(resume=resume):
        record.write(finished=False)
        result = _run(found, out, settings, engine or Processes(), on_progress)
        record.write(finished=not result.failed)
    return result


def _run(
    found: Sequence[Item],
    out: Path,
    settings: Settings,
    engine: Engine,
    on_progress: Callable[[int], None],
) -> Result:
    jobs = (
        Job(tuple(found[at : at + LOOPS_A_JOB]), out, settings)
        for at in range(0, len(found), LOOPS_A_JOB)
    )
    outcomes: dict[int, Sequence[RenderedLoop | FailedLoop]] = {}

    def tell(in_work: int) -> None:
        on_progress(sum(map(len, outcomes.values())) + in_work)

    work = Work(do_job, LOOP_TIMEOUT_S, ("audioloop.rendering.batch",))
    for job, result in engine.map(work, jobs, tell):
        if isinstance(result, LoopError):
            raise result
        outcomes[job.items[0].number] = result
        tell(0)
    every = [outcome for _, result in sorted(outcomes.items()) for outcome in result]
    return Result(
        [outcome for outcome in every if isinstance(outcome, RenderedLoop)],
        [outcome for outcome in every if isinstance(outcome, FailedLoop)],
    )


def _check(found: Sequence[Item], settings: Settings) -> None:
    synth.check_rate(settings.rate)
    settings.form.check_rate(settings.rate)
    if settings.sound.repeat < 1:
        raise CallError(f"--repeat {settings.sound.repeat}: give 1 or more")
    pattern = LoopLabel(120, 1).file_name(settings.template)  # so that a bad template fails at once
    if len(found) > 1:
        names = {LoopLabel(120, 1, name=n).file_name(settings.template) for n in ("aa", "bb")}
        numbers = {LoopLabel(120, 1, number=n).file_name(settings.template) for n in (1, 2)}
        if len(names | {pattern}) < 3 and len(numbers) < 2:
            raise CallError(
                f"--name-template {settings.template!r}: would give every loop one name; "
                "put {name} or {number} into it"
            )


def do_job(job: Job, turn_to: TurnTo) -> list[RenderedLoop | FailedLoop] | LoopError:
    """Render the loops of a job, in a worker; an error where the SoundFont cannot be used."""
    outcomes: list[RenderedLoop | FailedLoop] = []
    for at, item in enumerate(job.items):
        if at in job.lost:
            outcomes.append(FailedLoop(item.source, _WHY_LOST[job.lost[at]]))
            continue
        turn_to(at)
        try:
            font = _font(job.settings.soundfont, job.settings.rate)
        except LoopError as error:
            return error
        try:
            outcomes.append(_one(item, job.out, job.settings, font))
        except MidiError as error:
            outcomes.append(FailedLoop(item.source, error.detail))
        except LoopError as error:
            outcomes.append(FailedLoop(item.source, str(error)))
    return outcomes


_WHY_LOST = {
    "crashed": "its process ended each time, also alone: memory ran out, or FluidSynth crashed; "
    "free some memory and add --resume, mend the file, or give another SoundFont with --soundfont",
    "timeout": f"took over {LOOP_TIMEOUT_S:.0f} s; mend the file, or give another SoundFont",
}


@lru_cache(maxsize=1)
def _font(path: Path, rate: int) -> SoundFont:
    return SoundFont(path, rate)


def _one(item: Item, out: Path, settings: Settings, font: SoundFont) -> RenderedLoop:
    loop = _piece(item, settings)
    whole = loop.label.repeated(settings.sound.repeat)
    n_samples = whole.samples(settings.rate)
    if n_samples / settings.rate > MAX_DURATION_S:
        raise LoopError(
            f"{n_samples / settings.rate / 60:.0f} minutes are over {MAX_DURATION_S / 60:.0f}; "
            "lower --repeat, or raise --bpm"
        )
    names = _names(loop, whole, settings)
    held_back_db = 0.0
    if not all((out / name).exists() for name in names):
        made = render.loop(loop, font, settings.sound)
        held_back_db = made.held_back_db
        _write(made, out, names, settings)
    return RenderedLoop(
        item.source, names, whole, n_samples, n_samples / settings.rate, held_back_db
    )


def _piece(item: Item, settings: Settings) -> Piece:
    if item.roll is not None:
        roll = item.grid.unpack(np.frombuffer(item.roll, np.uint8)[None])[0]
        loop = piece.of_roll(roll, settings.bpm or item.tempo_bpm, item.name, item.grid)
    else:
        assert item.midi is not None
        loop = piece.read(item.midi, item.name, bpm=settings.bpm, bars=settings.bars)
    if settings.transpose:
        loop = piece.transposed(loop, settings.transpose)
    return replace(loop, label=replace(loop.label, number=item.number))


def _names(loop: Piece, whole: LoopLabel, settings: Settings) -> tuple[str, ...]:
    """Names of the mix, its stems and the MIDI file."""
    stems = render.stems_of(loop.score) if settings.sound.stems else []
    labels = [whole, *(replace(whole, part=part) for part in stems)]
    names = [label.file_name(settings.template) for label in labels]
    return (*(name + settings.form.suffix for name in names), f"{names[0]}.mid")


def _write(made: Rendered, out: Path, names: Sequence[str], settings: Settings) -> None:
    """Write the MIDI file, the stems and the mix; if one fails, none is left behind."""
    mix, *stems, midi = (out / name for name in names)
    form = settings.form
    written: list[Path] = []
    try:
        score.write(made.score, midi)
        written.append(midi)
        rounded = {part: form.rounded(stem.samples) for part, stem in made.stems.items()}
        for path, (part, samples) in zip(stems, rounded.items(), strict=True):
            stem = replace(made.label, part=part)
            wave.write(path, wave.Wave(samples, made.mix.rate), stem, form)
            written.append(path)
        whole = made.mix
        if rounded:  # the sum of what the files hold, so that they add up to the last bit
            whole = wave.Wave(render.added(list(rounded.values())), made.mix.rate)
        wave.write(mix, whole, made.label, form)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
