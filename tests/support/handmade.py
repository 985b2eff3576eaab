"""Songs and MIDI bytes that tests are made of, written out by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from midiloop.grid import LOOP, Grid, Roll, TimeSignature
from midiloop.midi.score import Meter, Score, Tempo, Track

if TYPE_CHECKING:
    from audioloop.conditioning import ConditioningTensors

TPQ = 480
STEP = TPQ // 4
BAR = 4 * TPQ
END_OF_TRACK = b"\x00\xff\x2f\x00"
FOUR_FOUR = b"\x00\xff\x58\x04\x04\x02\x18\x08"

KICK, SNARE, HAT, CRASH = 36, 38, 42, 49


def vlq(number: int) -> bytes:
    """A variable-length quantity."""
    out = [number & 127]
    while number := number >> 7:
        out.append(number & 127 | 128)
    return bytes(reversed(out))


def chunk(events: bytes, length: int | None = None) -> bytes:
    return b"MTrk" + struct.pack(">I", len(events) if length is None else length) + events


def smf(*tracks: bytes, division: int = TPQ, kind: int = 1, declared: int | None = None) -> bytes:
    """A standard MIDI file of tracks, each given as its events."""
    count = len(tracks) if declared is None else declared
    header = b"MThd" + struct.pack(">IHHH", 6, kind, count, division)
    return header + b"".join(chunk(track) for track in tracks)


def note(channel: int, pitch: int, start: int = 0, length: int = STEP) -> bytes:
    """A note alone on its track: delta times count from the event before."""
    on, off = bytes([0x90 | channel, pitch, 100]), bytes([0x80 | channel, pitch, 0])
    return vlq(start) + on + vlq(length) + off


def track(
    notes: Iterable[tuple[int, int, int]], *, program: int = 0, drum: bool = False, name: str = ""
) -> Track:
    """A track of (onset, duration, pitch)."""
    rows = np.array(sorted(notes), dtype=np.int64).reshape(-1, 3)
    return Track(
        name,
        program,
        drum,
        rows[:, 0].astype(np.int32),
        rows[:, 1].astype(np.int32),
        rows[:, 2].astype(np.int8),
        np.full(len(rows), 100, dtype=np.int8),
    )


def score(
    *tracks: Track,
    meters: Sequence[Meter] = (Meter(0, 4, 4),),
    tempos: Sequence[Tempo] = (Tempo(0, 120.0),),
    tpq: int = TPQ,
    length: int | None = None,
) -> Score:
    end = max((int(t.ends.max()) for t in tracks if t.n_notes), default=0)
    return Score(tpq, tracks, tuple(tempos), tuple(meters), end if length is None else length)


def groove(
    n_bars: int, *, crash_every: int = 8, pitches: Sequence[int] = (33, 36, 31, 28)
) -> Score:
    """A song that repeats every four bars, with a crash at the head of each section."""
    hits, line = [], []
    for bar in range(n_bars):
        at = bar * BAR
        hits += [(at + beat * TPQ, STEP, KICK) for beat in range(4)]
        hits += [(at + beat * TPQ, STEP, SNARE) for beat in (1, 3)]
        hits += [(at + eighth * 2 * STEP, STEP, HAT) for eighth in range(8)]
        if bar % crash_every == 0 or bar % crash_every == 4:
            hits.append((at, STEP, CRASH))
        line.append((at, BAR, pitches[bar % len(pitches)]))
    return score(track(hits, drum=True), track(line, program=33))


WALTZ = Grid(bars=4, meter=TimeSignature(3, 4), steps_per_beat=6)
JIG = Grid(bars=2, meter=TimeSignature(6, 8))
GRIDS = (LOOP, WALTZ, JIG)


def waltz(n_bars: int, *, pitches: Sequence[int] = (33, 36)) -> Score:
    """A song in 3/4 with triplets, which repeats every two bars."""
    bar, hits, line = 3 * TPQ, [], []
    for number in range(n_bars):
        at, pitch = number * bar, pitches[number % len(pitches)]
        hits += [(at, STEP, KICK), (at + TPQ, STEP, HAT), (at + 2 * TPQ, STEP, HAT)]
        hits += [(at + TPQ + third * TPQ // 3, STEP, SNARE) for third in range(3)]
        hits += [(at, STEP, CRASH)] if number % 4 == 0 else []
        line += [(at, 2 * TPQ, pitch), (at + 2 * TPQ, TPQ // 3, pitch + 7)]
    drums, bass = track(hits, drum=True), track(line, program=33)
    return score(drums, bass, meters=[Meter(0, 3, 4)], length=n_bars * bar)


def random_rolls(
    rng: np.random.Generator, n: int, *, monophonic: bool = True, grid: Grid = LOOP
) -> Roll:
    """Rolls (n, steps, columns) with drums and bass anywhere, some steps and bars silent."""
    rolls = np.zeros((n, grid.steps, grid.columns), dtype=np.bool_)
    rolls[:, :, : grid.n_drums] = rng.random((n, grid.steps, grid.n_drums)) < 0.2
    pitches = rng.integers(0, grid.n_pitches, (n, grid.steps))
    held = np.repeat(pitches[:, ::4], 4, axis=1)[:, : grid.steps]
    pitches = np.where(rng.random((n, grid.steps)) < 0.5, pitches, held)
    playing = rng.random((n, grid.steps)) < 0.7
    index, step = np.nonzero(playing)
    rolls[index, step, grid.n_drums + pitches[index, step]] = True
    if not monophonic:
        rolls[:, :, grid.n_drums :] |= rng.random((n, grid.steps, grid.n_pitches)) < 0.01
    return rolls


def rows(song: Score) -> list[tuple[object, ...]]:
    """Everything a score holds, track by track, in a form that compares."""
    return [
        (t.name, t.program, t.is_drum, *sorted(zip(t.onsets.tolist(), t.durations.tolist(),
         t.pitches.tolist(), t.velocities.tolist(), strict=True)))
        for t in song.tracks
    ]  # fmt: skip


def several_tracks() -> Score:
    return score(
        track([(0, 90, 36), (0, 90, 42), (480, 0, 38), (480, 100, 42)], drum=True, name="Kit é"),
        track([(0, 960, 33), (960, 480, 33), (7 * BAR, 480, 40)], program=33, name="Bass"),
        track([(5, 10, 60), (15, 10, 60)], program=80),
        tempos=(Tempo(0, 97.35), Tempo(4 * BAR, 140.0)),
        meters=(Meter(0, 4, 4), Meter(2 * BAR, 7, 8), Meter(4 * BAR, 4, 4)),
        length=8 * BAR,
    )


def rotated(condition: ConditioningTensors, n_frames: int) -> ConditioningTensors:
    """The condition of the loops rotated by ``n_frames``."""
    return condition._replace(frames=condition.frames.roll(n_frames, -1))
