"""Scores and rolls as the objects of other libraries, and back: pretty_midi and pypianoroll."""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import LoopError
from midiloop.grid import LOOP, Grid, Roll
from midiloop.midi import performance, pianoroll
from midiloop.midi.performance import Performance
from midiloop.midi.score import DEFAULT_BPM, Meter, Score, Tempo, Track

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI
    from pypianoroll import Multitrack


def to_pretty_midi(score: Score) -> PrettyMIDI:
    """The same song as a ``pretty_midi.PrettyMIDI``, whose times are in seconds.

    ``from_pretty_midi`` gives the same ticks back.

    Raises:
        ImportError: pretty_midi is not installed.
    """
    pretty_midi = _library("pretty_midi")
    song = pretty_midi.PrettyMIDI(resolution=score.ticks_per_quarter)
    # A tempo map has no public setter; the library's own readers and pypianoroll set these two.
    scales = {0: 60.0 / (DEFAULT_BPM * score.ticks_per_quarter)}
    scales |= {t.tick: 60.0 / (t.bpm * score.ticks_per_quarter) for t in score.tempos}
    song._tick_scales = list(scales.items())
    song._update_tick_to_time(score.length_ticks + 1)
    for tick, numerator, denominator in score.meters:
        at_s = song.tick_to_time(tick)
        song.time_signature_changes.append(pretty_midi.TimeSignature(numerator, denominator, at_s))
    for track in score.tracks:
        instrument = pretty_midi.Instrument(track.program, track.is_drum, track.name)
        notes = zip(track.velocities, track.pitches, track.onsets, track.ends, strict=True)
        instrument.notes = [
            pretty_midi.Note(v, p, song.tick_to_time(start), song.tick_to_time(end))
            for v, p, start, end in (map(int, note) for note in notes)
        ]
        song.instruments.append(instrument)
    return song


def from_pretty_midi(song: PrettyMIDI) -> Score:
    """The song in a ``pretty_midi.PrettyMIDI`` as a score, to the nearest tick.

    Raises:
        LoopError: it has no notes.
    """
    tracks = []
    for instrument in song.instruments:
        notes = sorted(instrument.notes, key=lambda note: note.start)
        onsets = np.array([song.time_to_tick(n.start) for n in notes], dtype=np.int32)
        ends = np.array([song.time_to_tick(n.end) for n in notes], dtype=np.int32)
        pitches = np.array([n.pitch for n in notes], dtype=np.int8)
        velocities = np.array([n.velocity for n in notes], dtype=np.int8)
        if notes:
            tracks.append(
                Track(
                    instrument.name,
                    instrument.program,
                    instrument.is_drum,
                    onsets,
                    ends - onsets,
                    pitches,
                    velocities,
                )
            )
    if not tracks:
        raise LoopError("this PrettyMIDI has no notes; read a file that has some")
    times, tempi = song.get_tempo_changes()
    tempos = tuple(Tempo(song.time_to_tick(t), float(b)) for t, b in zip(times, tempi, strict=True))
    meters = tuple(
        Meter(song.time_to_tick(m.time), m.numerator, m.denominator)
        for m in song.time_signature_changes
    )
    length_ticks = max(int(track.ends.max()) for track in tracks)
    return Score(song.resolution, tuple(tracks), tempos, meters, length_ticks)


def to_multitrack(
    roll: Roll,
    tempo_bpm: float | NDArray[np.float64] = 120.0,
    *,
    played: Performance | None = None,
    grid: Grid = LOOP,
) -> Multitrack:
    """The roll as a ``pypianoroll.Multitrack`` of two tracks at the grid's resolution.

    Args:
        roll: bool (whole bars, columns).
        tempo_bpm: one tempo, or one for each step (steps,).
        played: whose velocities it has; offsets have no place there.

    Raises:
        ImportError: pypianoroll is not installed.
        LoopError: it is a performance of another roll.
    """
    pypianoroll = _library("pypianoroll")
    played = performance.on_grid(roll, grid) if played is None else played
    velocities = performance.velocities_of(roll, played, grid)
    drums = np.zeros((len(roll), 128), dtype=np.uint8)
    drums[:, [drum.pitch for drum in grid.drums]] = velocities[:, : grid.n_drums]
    bass = np.zeros((len(roll), 128), dtype=np.uint8)
    bass[:, grid.lowest_pitch : grid.highest_pitch + 1] = velocities[:, grid.n_drums :]
    return pypianoroll.Multitrack(
        resolution=grid.steps_per_beat,
        tempo=np.broadcast_to(tempo_bpm, (len(roll),)).astype(np.float64).reshape(-1, 1),
        downbeat=np.arange(len(roll)) % grid.steps_per_bar == 0,
        tracks=[
            pypianoroll.StandardTrack("drums", 0, True, drums),
            pypianoroll.StandardTrack("bass", pianoroll.DECODED_PROGRAM, False, bass),
        ],
    )


def from_multitrack(song: Multitrack, grid: Grid = LOOP) -> Roll:
    """The drums and the bass of a ``pypianoroll.Multitrack``, as a roll like that of `encode`.

    Returns:
        bool (bars · steps a bar, columns), rounded up to a bar.

    Raises:
        LoopError: its resolution is not the grid's.
    """
    if song.resolution != grid.steps_per_beat:
        raise LoopError(
            f"expected {grid.steps_per_beat} steps a beat, got {song.resolution}; "
            f"call set_resolution({grid.steps_per_beat}) first"
        )
    n_steps = max((len(track.pianoroll) for track in song.tracks), default=0)
    n_bars = -(-n_steps // grid.steps_per_bar)
    roll = np.zeros((n_bars * grid.steps_per_bar, grid.columns), dtype=np.bool_)
    line = np.full(len(roll), pianoroll.SILENT)
    for track in song.tracks:
        steps, pitches = np.nonzero(track.pianoroll)
        if track.is_drum:
            columns = grid.drum_columns[pitches]
            roll[steps[columns >= 0], columns[columns >= 0]] = True
        elif track.program in pianoroll.BASS_PROGRAMS:
            kept = (pitches >= grid.lowest_pitch) & (pitches <= grid.highest_pitch)
            np.minimum.at(line, steps[kept], pitches[kept])
    sounding = np.flatnonzero(line != pianoroll.SILENT)
    roll[sounding, grid.n_drums + line[sounding] - grid.lowest_pitch] = True
    return roll


def _library(name: str) -> Any:
    # pretty_midi imports pyfluidsynth, which prints where it found its library when CI is set.
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} is missing: pip install {name}") from error
    except (ImportError, SystemError) as error:  # how extensions fail for lack of memory
        raise ImportError(
            f"{name} cannot be loaded ({error}); free some memory, or install it again"
        ) from error
