"""Training audio: loops of a dataset with random kits, basses, tempi, timing and velocities.

Render n of a seed is always the same, so a resumed run gets the renders of an uninterrupted one.
An engine renders ahead of demand.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from audioloop.io.wave import Samples
from audioloop.rendering import render
from audioloop.rendering.synth import SoundFont
from midiloop.common import files
from midiloop.common.engine import Engine, TurnTo, Work
from midiloop.common.processes import Processes
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import LoopError, counted
from midiloop.grid import LOOP, Roll
from midiloop.midi import pianoroll
from midiloop.midi.score import Score, Track

VOLUME = 7  # number of the controller
RENDER_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Instruments:
    """General MIDI drum kits and bass programs, from 0."""

    kits: tuple[int, ...]
    basses: tuple[int, ...]


# FluidR3 has variations of most kits beside those of General MIDI. Power, jazz, picked bass and the
# second synth bass are held out for evaluation.
TRAINING_INSTRUMENTS = Instruments(
    (*range(16), 24, 25, *range(40, 43), 48), (32, 33, 35, 36, 37, 38)
)
HELD_OUT_INSTRUMENTS = Instruments((*range(16, 20), *range(32, 37)), (34, 39))


@dataclass(frozen=True)
class Augmentation:
    """Random variation of renders.

    Attributes:
        rate: sample rate in Hz.
        bars: bars of a render, from any bar of the loop.
        instruments: kits and basses to choose from.
        tempo_octaves: largest change of the song's tempo, up or down, in octaves (factors of 2).
        slowest_bpm, fastest_bpm: range to which the tempo is clipped.
        timing_s: standard deviation of onsets, in seconds.
        velocity: standard deviation of MIDI velocities within a part.
        alone: share of renders that have only drums, and share that have only bass.
        quietest_db: peaks lie between this and −1 dB, re full scale.
    """

    rate: int = 32_000
    bars: int = 2
    instruments: Instruments = TRAINING_INSTRUMENTS
    tempo_octaves: float = 0.5
    slowest_bpm: float = 60.0
    fastest_bpm: float = 200.0
    timing_s: float = 0.004
    velocity: float = 12.0
    alone: float = 0.08
    quietest_db: float = -20.0


class PackedLoops(NamedTuple):
    """Packed rolls of a split, uint8 (n, packed_bytes), and their tempi, float (n,)."""

    packed: NDArray[np.uint8]
    tempos_bpm: NDArray[np.float64]


def loops(dataset: LoopDataset, split: str) -> PackedLoops:
    """The distinct loops of a split.

    Raises:
        LoopError: it has none, or its grid is not `LOOP`.
    """
    grid = dataset.grid
    if grid != LOOP:
        raise LoopError(
            f"{dataset.path}: loops of {counted(grid.bars, 'bar')} of {grid.meter}, {grid.steps} "
            f"steps and {grid.columns} columns, and what is learned of sound has {LOOP.bars} of "
            f"{LOOP.meter}, {LOOP.steps} and {LOOP.columns}; extract them on the usual grid"
        )
    batches = list(dataset.select(split=split, distinct=True))
    if not batches:
        raise LoopError(
            f"{dataset.path}: no loop is in the {split} split, for which there are too few songs; "
            "extract loops from more files"
        )
    packed = np.concatenate([dataset.grid.pack(batch.rolls) for batch in batches])
    return PackedLoops(packed, np.concatenate([batch.tempos_bpm for batch in batches]))


def provenance(dataset: LoopDataset, soundfonts: Sequence[Path]) -> dict[str, Any]:
    """The training data of a model, for its card."""
    return {
        "rules": dataset.manifest["rules"]["name"],
        "counts": dataset.manifest["counts"],
        "fingerprint": dataset.fingerprint,
        "soundfonts": [path.name for path in soundfonts],
        "soundfonts_sha256": [files.digest(path) for path in soundfonts],
    }


def identity(found: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `provenance` that must not change when a run resumes."""
    return {"dataset": found["fingerprint"], "SoundFont": found["soundfonts_sha256"]}


def perform(roll: Roll, tempo_bpm: float, rng: np.random.Generator, variety: Augmentation) -> Score:
    """A roll as a score with random tempo, instruments, timing, velocities and volumes."""
    octaves = rng.uniform(-variety.tempo_octaves, variety.tempo_octaves)
    tempo_bpm = float(np.clip(tempo_bpm * 2**octaves, variety.slowest_bpm, variety.fastest_bpm))
    song = pianoroll.decode(roll, tempo_bpm)
    jitter_ticks = variety.timing_s * tempo_bpm / 60 * song.ticks_per_quarter
    alone = rng.random()
    kept = [
        track
        for track in song.tracks
        if track.n_notes and not (alone if track.is_drum else 1 - alone) < variety.alone
    ]

    def played(track: Track) -> Track:
        programs = variety.instruments.kits if track.is_drum else variety.instruments.basses
        velocities = rng.uniform(70, 120) + rng.normal(0, variety.velocity, track.n_notes)
        onsets = track.onsets + np.rint(rng.normal(0, jitter_ticks, track.n_notes))
        order = np.argsort(onsets, kind="stable")
        return track._replace(
            program=int(rng.choice(programs)),
            onsets=np.clip(onsets[order], 0, song.length_ticks - 1).astype(np.int32),
            durations=track.durations[order],
            pitches=track.pitches[order],
            velocities=np.clip(velocities, 20, 127).astype(np.int8),
            controls=np.array([[0, VOLUME, rng.integers(75, 120)]], np.int32),
        )

    return replace(song, tracks=tuple(map(played, kept)))


def render_circular(
    source: PackedLoops, number: int, seed: int, fonts: Sequence[SoundFont], variety: Augmentation
) -> Samples:
    """Render ``number``: float32 (samples,), mono, one period of bars that repeat."""
    rng = np.random.default_rng([seed, number])
    pick = int(rng.integers(len(source.packed)))
    roll = LOOP.unpack(source.packed[pick : pick + 1])[0]
    bar = LOOP.steps_per_bar
    start = bar * int(rng.integers(LOOP.bars - variety.bars + 1))
    roll = roll[start : start + variety.bars * bar]
    song = perform(roll, float(source.tempos_bpm[pick]), rng, variety)
    beats = song.length_ticks / song.ticks_per_quarter
    font = fonts[number % len(fonts)]
    length = beats * 60 / song.tempos[0].bpm * variety.rate
    samples = render.periodic(song, render.snapped(length), font).mean(0)
    level_db = -1 - rng.uniform(0, 1) ** 2 * (-1 - variety.quietest_db)
    peak = np.abs(samples).max()
    return np.asarray(samples * (10 ** (level_db / 20) / max(peak, 1e-4)), np.float32)


def circular_excerpts(
    samples: Samples, n: int, length: int, fade: int, rng: np.random.Generator
) -> Samples:
    """Random excerpts (n, length) of a periodic signal, each made circular.

    The last ``fade`` samples of an excerpt crossfade into those that precede its first sample in
    the signal, so that its start follows its end.
    """
    starts = rng.integers(len(samples), size=n)
    places = starts[:, None] + np.arange(length)
    found = samples.take(places, mode="wrap")
    before = samples.take(places[:, :fade] - fade, mode="wrap")
    angle = np.linspace(0, np.pi / 2, fade, dtype=np.float32)
    # Equal power: the two are hardly correlated, so their powers add up, not their amplitudes.
    found[:, length - fade :] = found[:, length - fade :] * np.cos(angle) + before * np.sin(angle)
    return np.asarray(found, np.float32)


@dataclass(frozen=True)
class Job:
    """One render, by its number."""

    number: int
    lost: bool = False

    def without(self, item: int, cause: str) -> Job:  # noqa: ARG002 - as engines call it
        """The same job, to give silence."""
        return replace(self, lost=True)


def do_job(
    source: PackedLoops,
    seed: int,
    soundfonts: tuple[Path, ...],
    variety: Augmentation,
    job: Job,
    turn_to: TurnTo,
) -> Samples:
    """A render, or silence where it crashed or stalled the synth each time."""
    if job.lost:
        return np.zeros(variety.rate, np.float32)
    fonts = _fonts(soundfonts, variety.rate)
    turn_to(0)
    return render_circular(source, job.number, seed, fonts, variety)


@lru_cache(maxsize=1)
def _fonts(soundfonts: tuple[Path, ...], rate: int) -> list[SoundFont]:
    return [SoundFont(path, rate) for path in soundfonts]


class _ClosedError(Exception):
    """The renders were closed."""


class Renders:
    """Renders by number, made ahead of demand.

    A thread collects the engine's results, which come in any order, and pauses the engine while
    enough of them wait.

    Args:
        engine: runs the workers; by default one process.
        ahead: how many renders to keep ready.
    """

    def __init__(
        self,
        source: PackedLoops,
        soundfonts: Sequence[Path],
        variety: Augmentation,
        *,
        seed: int,
        engine: Engine | None = None,
        ahead: int = 64,
    ) -> None:
        for path in soundfonts:  # one that cannot be loaded is an error here, and not in a worker
            SoundFont(path, variety.rate)
        do = partial(do_job, source, seed, tuple(soundfonts), variety)
        self._work = Work(do, RENDER_TIMEOUT_S, ("audioloop.rendering.augment",))
        self._engine, self._ahead = engine or Processes(1), ahead
        self._made: dict[int, Samples] = {}
        self._wanted = self._next = 0  # the render that is requested, and the next to start
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._make, daemon=True)

    def take(self, numbers: Sequence[int]) -> list[Samples]:
        """Renders by number; fast where numbers go up by one from call to call.

        Raises:
            LoopError: workers crash or stall again and again, whatever they render.
            OSError: see `Engine.map`.
        """
        return [self._one(number) for number in numbers]

    def close(self) -> None:
        """Stop the thread and its engine."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _one(self, number: int) -> Samples:
        with self._changed:
            if number != self._wanted:
                self._made.clear()
                self._next = number
            self._wanted = number
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: number in self._made or self._failure)
            if number not in self._made:
                assert self._failure is not None  # or the wait would go on
                raise self._failure
            self._wanted = number + 1
            samples = self._made.pop(number)
            self._changed.notify_all()  # one more is wanted ahead
            return samples

    def _jobs(self) -> Iterator[Job]:
        while True:
            with self._changed:
                number, self._next = self._next, self._next + 1
            yield Job(number)

    def _make(self) -> None:
        """The thread's work: leave renders, and the error that ends it, for `take`."""
        try:
            with closing(self._engine.map(self._work, self._jobs(), self._check_open)) as made:
                for job, samples in made:
                    self._keep(job.number, samples)
        except _ClosedError:
            pass
        except BaseException as error:  # a thread has no caller to raise it to
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _keep(self, number: int, samples: Samples) -> None:
        """Leave a render for `take`, and wait while there are enough."""
        with self._changed:
            if self._wanted <= number < self._next:  # else it was started for an earlier request
                self._made[number] = samples
                self._changed.notify_all()
            self._changed.wait_for(self._lacks_some)
        self._check_open()

    def _lacks_some(self) -> bool:
        return self._closed or len(self._made) < self._ahead or self._wanted not in self._made

    def _check_open(self, _: int = 0) -> None:
        if self._closed:
            raise _ClosedError
