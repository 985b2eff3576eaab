"""Move the pitches of rolls and scores by semitones; drums stay."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import LoopError
from midiloop.grid import LOOP, Grid, Roll, pitch_name
from midiloop.midi.score import Score, Track

MAX_SEMITONES = 12
MAX_PITCH = 127  # of MIDI


class Room(NamedTuple):
    """How far the bass of n rolls may move on its grid, in semitones; a silent one is free.

    Attributes:
        down, up: int (n,), not negative.
    """

    down: NDArray[np.int64]
    up: NDArray[np.int64]

    def has(self, semitones: int | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each may move so far, bool (n,); positive is upwards."""
        found: NDArray[np.bool_] = (-self.down <= semitones) & (semitones <= self.up)
        return found


def room(rolls: Roll, grid: Grid = LOOP) -> Room:
    """How far the bass of each roll (n, steps, columns) may move."""
    used: NDArray[np.bool_] = np.logical_or.reduce(rolls[:, :, grid.n_drums :], axis=1)
    silent = ~used.any(axis=1)
    down, up = used.argmax(axis=1), used[:, ::-1].argmax(axis=1)
    return Room(np.where(silent, grid.n_pitches, down), np.where(silent, grid.n_pitches, up))


def transpose_bass(rolls: Roll, semitones: NDArray[np.int64], grid: Grid = LOOP) -> Roll:
    """Rolls whose bass is moved within its `room`.

    Args:
        rolls: bool (n, steps, columns).
        semitones: int (n,), positive is upwards.
    """
    source = (np.arange(grid.n_pitches) - semitones[:, None]) % grid.n_pitches
    moved = rolls.copy()
    bass = rolls[:, :, grid.n_drums :]
    moved[:, :, grid.n_drums :] = np.take_along_axis(bass, source[:, None], axis=2)
    return moved


def transpose_score(song: Score, semitones: int) -> Score:
    """A song whose notes are moved, but for those of drums.

    Raises:
        LoopError: a note would leave the pitches of MIDI.
    """

    def moved(track: Track) -> Track:
        if track.is_drum or not track.n_notes:
            return track
        pitches = track.pitches.astype(np.int64) + semitones
        for pitch in (int(pitches.min()), int(pitches.max())):
            if not 0 <= pitch <= MAX_PITCH:
                raise LoopError(
                    f"--transpose {semitones} moves {pitch_name(pitch - semitones)} out of the "
                    f"pitches of MIDI; {remedy(semitones)}"
                )
        return track._replace(pitches=pitches.astype(np.int8))

    return replace(song, tracks=tuple(map(moved, song.tracks)))


def remedy(semitones: int) -> str:
    """What to give in place of semitones that are too many: the same key, an octave away."""
    other = semitones - 12 if semitones > 0 else semitones + 12
    return f"--transpose {other} gives the same key" if other else "give fewer semitones"
