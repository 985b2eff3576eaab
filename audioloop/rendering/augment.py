"""Sound to learn from: loops of a dataset, played on many kits and basses, never twice alike.

Render number n of a seed is always the same, so a run that resumes hears what it would have heard.
Rendering goes on in worker processes, ahead of what is asked for.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from audioloop.io.wave import Samples
from audioloop.rendering import render
from audioloop.rendering.synth import SoundFont
from midiloop.common import files
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import LoopError, counted
from midiloop.grid import LOOP, Roll
from midiloop.midi import pianoroll
from midiloop.midi.score import Score, Track

VOLUME = 7  # the controller


@dataclass(frozen=True)
class Instruments:
    """General MIDI drum kits and bass programs, from 0."""

    kits: tuple[int, ...]
    basses: tuple[int, ...]


# FluidR3 has variations of most kits beside those of General MIDI. Power, jazz, picked bass and the
# second synth bass are for measuring: nothing is learned from them.
TRAINING_INSTRUMENTS = Instruments(
    (*range(16), 24, 25, *range(40, 43), 48), (32, 33, 35, 36, 37, 38)
)
HELD_OUT_INSTRUMENTS = Instruments((*range(16, 20), *range(32, 37)), (34, 39))


@dataclass(frozen=True)
class Augmentation:
    """What renders are of.

    Attributes:
        rate: samples a second.
        bars: how much of a loop a render is.
        instruments: to draw from.
        tempo_octaves: how much slower or faster than the song, at most.
        slowest_bpm, fastest_bpm: and never beyond.
        timing_s: standard deviation of onsets.
        velocity: standard deviation within a part.
        alone: share of renders that have only drums, and share that have only bass.
        quietest_db: peaks lie between this and −1 dB.
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
    """Packed rolls (n, bytes) of a split, and their tempi (n,)."""

    packed: NDArray[np.uint8]
    tempos_bpm: NDArray[np.float64]


def loops(dataset: LoopDataset, split: str) -> PackedLoops:
    """The distinct loops of a split.

    Raises:
        LoopError: it has none, or they are on another grid than those that can be played.
    """
    grid = dataset.grid
    if grid != LOOP:
        raise LoopError(
            f"{dataset.path}: loops of {counted(grid.bars, 'bar')}, {grid.steps} steps and "
            f"{grid.columns} columns, and what is learned of sound has {LOOP.bars}, {LOOP.steps} "
            f"and {LOOP.columns}; extract them on the usual grid"
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
    """What a model learns from, as its card says it."""
    return {
        "rules": dataset.manifest["rules"]["name"],
        "counts": dataset.manifest["counts"],
        "fingerprint": dataset.fingerprint,
        "soundfonts": [path.name for path in soundfonts],
        "soundfonts_sha256": [files.digest(path) for path in soundfonts],
    }


def identity(found: Mapping[str, Any]) -> dict[str, Any]:
    """What of `provenance` must be the same when a run resumes."""
    return {"dataset": found["fingerprint"], "SoundFont": found["soundfonts_sha256"]}


def perform(roll: Roll, tempo_bpm: float, rng: np.random.Generator, variety: Augmentation) -> Score:
    """A roll as somebody might play it, on a kit and a bass of the variety."""
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
        touch = rng.uniform(70, 120) + rng.normal(0, variety.velocity, track.n_notes)
        onsets = track.onsets + np.rint(rng.normal(0, jitter_ticks, track.n_notes))
        order = np.argsort(onsets, kind="stable")
        return track._replace(
            program=int(rng.choice(programs)),
            onsets=np.clip(onsets[order], 0, song.length_ticks - 1).astype(np.int32),
            durations=track.durations[order],
            pitches=track.pitches[order],
            velocities=np.clip(touch, 20, 127).astype(np.int8),
            controls=np.array([[0, VOLUME, rng.integers(75, 120)]], np.int32),
        )

    return replace(song, tracks=tuple(map(played, kept)))


def render_circle(
    source: PackedLoops, number: int, seed: int, fonts: Sequence[SoundFont], variety: Augmentation
) -> Samples:
    """Render ``number``: float32 (samples,), one pass of some bars that repeat, mono."""
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


def circles(samples: Samples, n: int, length: int, fade: int, rng: np.random.Generator) -> Samples:
    """Excerpts (n, length) of a periodic signal, each a circle of its own.

    At its end an excerpt goes over into what comes before its beginning, ``fade`` samples long, so
    that the beginning follows the end.
    """
    starts = rng.integers(len(samples), size=n)
    places = starts[:, None] + np.arange(length)
    found = samples.take(places, mode="wrap")
    before = samples.take(places[:, :fade] - fade, mode="wrap")
    angle = np.linspace(0, np.pi / 2, fade, dtype=np.float32)
    # A sound is not like what it goes over into, so powers add up, and not amplitudes.
    found[:, length - fade :] = found[:, length - fade :] * np.cos(angle) + before * np.sin(angle)
    return np.asarray(found, np.float32)


_local: dict[str, tuple[PackedLoops, int, list[SoundFont], Augmentation]] = {}


def _start(
    source: PackedLoops, seed: int, soundfonts: Sequence[Path], variety: Augmentation
) -> None:
    # A parent that is killed cannot stop its workers, and they would wait for it for ever.
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _local["all"] = source, seed, [SoundFont(path, variety.rate) for path in soundfonts], variety


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # as this runs in a worker
    parent.join()
    os._exit(1)


def _render(number: int) -> Samples:
    source, seed, fonts, variety = _local["all"]
    return render_circle(source, number, seed, fonts, variety)


class Renders:
    """Renders by number, made ahead in worker processes.

    Args:
        ahead: how many to have made before they are asked for.
    """

    def __init__(
        self,
        source: PackedLoops,
        soundfonts: Sequence[Path],
        variety: Augmentation,
        *,
        seed: int,
        n_workers: int = 1,
        ahead: int = 64,
    ) -> None:
        for path in soundfonts:  # one that cannot be loaded is an error here, and not in a worker
            SoundFont(path, variety.rate)
        self._settings = source, seed, list(soundfonts), variety
        self._n_workers, self._ahead = n_workers, ahead
        self._next = 0
        self._queue: deque[tuple[int, Future[Samples]]] = deque()
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._n_workers, multiprocessing.get_context("spawn"), _start, self._settings
        )

    def take(self, numbers: Sequence[int]) -> list[Samples]:
        """Renders by number; quick where numbers go up by one from call to call."""
        return [self._one(number) for number in numbers]

    def _one(self, number: int) -> Samples:
        if not self._queue or self._queue[0][0] != number:
            self._queue.clear()
            self._next = number
        try:
            self._look_ahead()
            return self._queue.popleft()[1].result()
        except BrokenProcessPool:  # whoever it was that ended a process: this one is tried alone
            self._renew()
        try:
            return self._pool.submit(_render, number).result()
        except BrokenProcessPool:  # it takes the synth with it each time, and is silent
            self._renew()
            return np.zeros(self._settings[3].rate, np.float32)
        finally:
            self._next = number + 1

    def _renew(self) -> None:
        """Start anew with processes and nothing to render."""
        self._pool.shutdown(cancel_futures=True)
        self._pool = self._new_pool()
        self._queue.clear()

    def _look_ahead(self) -> None:
        while len(self._queue) < self._ahead:
            self._queue.append((self._next, self._pool.submit(_render, self._next)))
            self._next += 1

    def close(self) -> None:
        """Stop the workers."""
        self._pool.shutdown(cancel_futures=True)
