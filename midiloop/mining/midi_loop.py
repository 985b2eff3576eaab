"""The one loop that a MIDI file stands for: its first bars, or the first loop of a song.

Bars and bass are those of the rules `open`: a pickup is no bar, and where no program says which
track is the bass, its name does.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from midiloop.common import files
from midiloop.errors import CallError, LoopError, MidiError
from midiloop.grid import LOOP, Grid, Roll, TimeSignature
from midiloop.midi import pianoroll, score
from midiloop.midi.score import Score
from midiloop.mining import extract, rules
from midiloop.mining.rules import Run

OPEN = extract.Settings(rules.PRESETS["open"])


class MidiLoop(NamedTuple):
    """A loop of a MIDI file.

    Attributes:
        roll: bool (steps, columns).
        start_bar: that it begins with, counted from 0.
        tempo_bpm: median over its steps.
    """

    roll: Roll
    start_bar: int
    tempo_bpm: float


def grid_of(path: Path) -> Grid:
    """The grid of a MIDI file, see `in_meter_of`; what cannot be read has the usual one."""
    try:
        return in_meter_of(score.read(path))
    except (LoopError, OSError):  # which whoever reads the loop says
        return LOOP


def in_meter_of(song: Score) -> Grid:
    """The usual grid in the meter that most of a song is in, where it never is in the usual one.

    A meter that the usual steps do not fit has the usual grid.
    """
    lengths = Counter[TimeSignature]()
    ends = [*(meter.tick for meter in song.meters[1:]), song.length_ticks]
    for meter, end in zip(song.meters, ends, strict=False):
        lengths[TimeSignature(*meter[1:])] += end - meter.tick
    if lengths and not any(meter.is_like(LOOP.meter) for meter in lengths):
        with suppress(LoopError):
            return replace(LOOP, meter=max(lengths, key=lambda meter: lengths[meter]))
    return LOOP


def read(path: Path, grid: Grid = LOOP, *, search: bool = False, shorter: bool = False) -> MidiLoop:
    """The loop of a MIDI file: the first bars of it, as many as a loop has.

    Args:
        search: in a file of any other length than a loop's, take the first loop by the rules
            `open`.
        shorter: where it has none, or ends before, take what there is of its first bars; otherwise
            only a last bar may lack, or a rest that the file itself says is silent.

    Raises:
        CallError: there is no such file.
        LoopError: it cannot be read, or has no loop.
    """
    name = files.printable(path)
    if not path.is_file():
        raise CallError(f"{name}: no such file; give a MIDI file")
    try:
        song = score.read(path)
        run = _first_run(song, grid)
        if search and _bars_begun(song, run, grid) != grid.bars:
            try:
                return _first_loop(path, grid)
            except MidiError:
                if not shorter:
                    raise
    except MidiError as error:
        raise LoopError(f"{name}: {error.reason}, {error.detail}; give another file") from error
    # A file of one loop is circular: what is early on its first step stands at its end.
    circular = _bars_begun(song, run, grid) == grid.bars
    loop_end = run.start_tick + int(grid.meter.beats * song.ticks_per_quarter * grid.bars)
    end = min(song.length_ticks, loop_end) if circular else song.length_ticks
    roll = pianoroll.encode(
        song,
        grid,
        by_name=OPEN.rules.bass_by_name,
        span=(run.start_tick, end),
        circular=circular,
    )[: grid.steps]
    if not shorter:
        roll = _padded(roll, path, run.start_tick / song.ticks_per_quarter, grid)
    elif not len(roll):
        raise LoopError(f"{name}: shorter than half a step; give a longer file")
    ticks = np.arange(len(roll)) * song.ticks_per_quarter // grid.steps_per_beat + run.start_tick
    return MidiLoop(roll, run.first_bar, float(np.median(song.tempo_bpm_at(ticks))))


def _first_run(song: Score, grid: Grid) -> Run:
    """Where its first bar begins; at tick 0 in a song without bars of the grid's meter."""
    tpq = song.ticks_per_quarter
    found = rules.runs(song.meters, song.length_ticks, tpq, OPEN.rules, grid.meter)
    return found[0] if found else Run(0, song.length_ticks, 0)


def _bars_begun(song: Score, run: Run, grid: Grid) -> int:
    """How many bars it is to the last note that begins."""
    last = max(int(track.onsets.max()) for track in song.tracks)
    return grid.meter.bars(last - run.start_tick, song.ticks_per_quarter) + 1


def _first_loop(path: Path, grid: Grid) -> MidiLoop:
    """The first loop by the rules, or `MidiError`."""
    song = extract.mine(path.name, path.read_bytes(), replace(OPEN, grid=grid))
    roll = grid.unpack(song.rolls[0])
    return MidiLoop(roll, int(song.start_bars[0]), float(song.tempos_bpm[0]))


def _padded(roll: Roll, path: Path, start_quarters: float, grid: Grid) -> Roll:
    """The roll with the silence that its file ends in, which a parser cuts off."""
    n_bars, wanted = len(roll) // grid.steps_per_bar, grid.bars - 1
    if n_bars < wanted:
        quarters = score.end_of_tracks_quarters(path) - start_quarters
        if quarters < grid.meter.beats * wanted:
            raise LoopError(
                f"{files.printable(path)}: ends in bar {n_bars}, a loop has {grid.bars}; "
                "take it out of the folder, or make it longer"
            )
    return np.pad(roll, ((0, grid.steps - len(roll)), (0, 0)))
