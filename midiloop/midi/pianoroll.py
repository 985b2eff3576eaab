"""Quantise a score onto the grid, and turn a roll back into a score.

`encode` and `decode` are inverse to each other on rolls with at most one bass pitch a step.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import LoopError
from midiloop.grid import LOOP, Grid, Roll
from midiloop.midi.key import Key, estimate
from midiloop.midi.score import Meter, Player, Score, Tempo, Track

BASS_PROGRAMS = range(32, 40)
_BASS_NAME = re.compile(r"bass(?!oon|et|[ _-]*drum|[ _-]*kick)", re.IGNORECASE)
DRUM_VELOCITY = 100
BASS_VELOCITY = 80
DECODED_PROGRAM = 33  # electric bass (finger)
TICKS_PER_QUARTER = 480  # at least, so that a step is whole ticks
MIN_BPM, MAX_BPM = 4.0, 1000.0
SILENT = 127  # in a line of pitches: no note; above every pitch, so that the lowest one wins

PIECE_CELLS = 1 << 20


def encode(
    score: Score,
    grid: Grid = LOOP,
    *,
    by_name: bool = False,
    span: tuple[int, int] | None = None,
    circular: bool = False,
) -> Roll:
    """Quantise the drums and the bass of a song.

    A tick becomes the nearest step, ties up. A drum note fills the step of its onset, a bass note
    all steps from its onset to its end, at least one; of several bass pitches the lowest stays.

    >>> import midiloop, numpy as np
    >>> roll = np.eye(16, 93, dtype=bool)
    >>> bool((midiloop.encode(midiloop.decode(roll)) == roll).all())
    True

    Args:
        by_name: see `bass_tracks`.
        span: first and last tick of the part to encode; by default the whole song.
        circular: the part is a loop, so a drum hit nearest to the step after its last one is on its
            first step.

    Returns:
        bool (bars · steps a bar, columns), from the first tick to the step of the last one,
        rounded up to whole bars.
    """
    first, last = span or (0, score.length_ticks)
    n_steps = int(to_steps(np.array(last - first), score.ticks_per_quarter, grid))
    n_bars = -(-n_steps // grid.steps_per_bar)
    roll = np.zeros((n_bars * grid.steps_per_bar, grid.columns), dtype=np.bool_)
    drawn = roll if last >= score.length_ticks else roll[:n_steps]
    drums = drum_tracks(score)
    _draw_drums(drawn, drums, score.ticks_per_quarter, grid, first, circular=circular)
    _draw_bass(drawn, bass_tracks(score, by_name=by_name), score.ticks_per_quarter, grid, first)
    return roll


def is_encoded(player: Player, *, by_name: bool = False) -> bool:
    """Whether `encode` may use the tracks of a player."""
    return player.is_drum or player.program in BASS_PROGRAMS or (by_name and called_bass(player))


def called_bass(player: Player) -> bool:
    """Whether the name of a track is that of a bass, and not of a bass drum or a bassoon."""
    return not player.is_drum and bool(_BASS_NAME.search(player.name))


def drum_tracks(score: Score) -> list[Track]:
    """All tracks of drums."""
    return [track for track in score.tracks if track.is_drum]


def bass_tracks(score: Score, *, by_name: bool = False) -> list[Track]:
    """All tracks with a bass program; if none has, with ``by_name``, those named bass."""
    found = [t for t in score.tracks if not t.is_drum and t.program in BASS_PROGRAMS]
    if by_name and not found:
        return [track for track in score.tracks if called_bass(track.player)]
    return found


def bass_key(score: Score) -> Key | None:
    """The key of a song, estimated from how long each pitch class sounds in its bass tracks.

    The same as `metrics.key.estimate_key` finds on a grid; None without a bass note.
    """
    counts = np.zeros((1, 12))
    for track in bass_tracks(score.cut()):
        np.add.at(counts[0], track.pitches % 12, track.durations)
    return estimate(counts).key(0) if counts.any() else None


def to_steps(ticks: NDArray[np.integer[Any]], tpq: int, grid: Grid = LOOP) -> NDArray[np.int64]:
    """Nearest step of each tick, ties up: floor(steps_per_beat · tick / tpq + 1/2)."""
    return (2 * grid.steps_per_beat * ticks.astype(np.int64) + tpq) // (2 * tpq)


def _draw_drums(
    roll: Roll, tracks: list[Track], tpq: int, grid: Grid, first: int, *, circular: bool
) -> None:
    for track in tracks:
        columns = grid.drum_columns[track.pitches]
        steps = to_steps(track.onsets - first, tpq, grid)
        if circular:
            steps[steps == len(roll)] = 0
        kept = (columns >= 0) & (steps >= 0) & (steps < len(roll))
        roll[steps[kept], columns[kept]] = True


def _draw_bass(roll: Roll, tracks: list[Track], tpq: int, grid: Grid, first: int) -> None:
    if not tracks:
        return
    pitches = np.concatenate([track.pitches for track in tracks])
    starts = to_steps(np.concatenate([track.onsets for track in tracks]) - first, tpq, grid)
    ends = to_steps(np.concatenate([track.ends for track in tracks]) - first, tpq, grid)
    ends = np.minimum(np.maximum(ends, starts + 1), len(roll))
    starts = np.maximum(starts, 0)
    lengths = ends - starts
    kept = (pitches >= grid.lowest_pitch) & (pitches <= grid.highest_pitch) & (lengths > 0)
    # From the highest pitch to the lowest, so that the lowest is drawn last.
    order = np.flatnonzero(kept)
    order = order[np.argsort(-pitches[order], kind="stable")]
    line = np.full(len(roll), SILENT, dtype=np.int8)
    for piece in _pieces(order, lengths):
        steps = np.arange(lengths[piece].sum())
        steps += np.repeat(
            starts[piece] - np.cumsum(lengths[piece]) + lengths[piece], lengths[piece]
        )
        line[steps] = np.repeat(pitches[piece], lengths[piece])
    sounding = np.flatnonzero(line != SILENT)
    roll[sounding, grid.n_drums + line[sounding] - grid.lowest_pitch] = True


def _pieces(order: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Notes in pieces of about `PIECE_CELLS` steps: bounded memory for any number and length."""
    filled = np.cumsum(lengths[order])
    if not len(order) or filled[-1] <= PIECE_CELLS:
        return [order]
    return np.split(order, np.searchsorted(filled, np.arange(PIECE_CELLS, filled[-1], PIECE_CELLS)))


def decode(roll: Roll, tempo_bpm: float = 120.0, *, name: str = "", grid: Grid = LOOP) -> Score:
    """Turn a roll into a score of two tracks, drums and bass, which ends at its last bar line.

    Its key is that of its bass.

    Repeated steps of a bass pitch become one note; a drum hit lasts one step.

    >>> import midiloop, numpy as np
    >>> midiloop.decode(np.eye(16, 93, dtype=bool), tempo_bpm=96).n_notes
    16

    Args:
        roll: bool (whole bars, columns).
        tempo_bpm: quarter notes a minute.
        name: put before the names of the tracks.

    Raises:
        LoopError: the roll has another shape, or the tempo is not from 4 to 1,000 bpm.
    """
    if roll.ndim != 2 or roll.shape[1] != grid.columns or len(roll) % grid.steps_per_bar:
        raise LoopError(f"expected whole bars of {grid.columns} columns, got {roll.shape}")
    if not MIN_BPM <= tempo_bpm <= MAX_BPM:
        raise LoopError(f"expected a tempo from 4 to 1,000 bpm, got {tempo_bpm}")
    drums = _decoded("drums", _hits(roll[:, : grid.n_drums]), DRUM_VELOCITY, name, grid)
    bass = _decoded("bass", _runs(roll[:, grid.n_drums :]), BASS_VELOCITY, name, grid)
    per_step = _ticks_per_step(grid)
    found = Score(
        per_step * grid.steps_per_beat,
        (drums, bass),
        (Tempo(0, tempo_bpm),),
        (Meter(0, *grid.meter),),
        per_step * len(roll),
    )
    return replace(found, key=bass_key(found))


def _ticks_per_step(grid: Grid) -> int:
    return -(-TICKS_PER_QUARTER // grid.steps_per_beat)


def _hits(roll: Roll) -> NDArray[np.int64]:
    """Rows (column, start, end) of single steps, in order of start."""
    steps, columns = np.nonzero(roll)
    return np.stack([columns, steps, steps + 1])


def _runs(roll: Roll) -> NDArray[np.int64]:
    """Rows (column, start, end) of runs of steps in one column, in order of start."""
    edges = np.diff(np.pad(roll.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    columns, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    order = np.argsort(starts, kind="stable")
    return np.stack([columns, starts, ends])[:, order]


def _decoded(part: str, notes: NDArray[np.int64], velocity: int, name: str, grid: Grid) -> Track:
    columns, starts, ends = notes
    is_drum = part == "drums"
    kit = np.array([drum.pitch for drum in grid.drums])
    ticks_per_step = _ticks_per_step(grid)
    return Track(
        name=f"{name} {part}".strip(),
        program=0 if is_drum else DECODED_PROGRAM,
        is_drum=is_drum,
        onsets=(starts * ticks_per_step).astype(np.int32),
        durations=((ends - starts) * ticks_per_step).astype(np.int32),
        pitches=(kit[columns] if is_drum else columns + grid.lowest_pitch).astype(np.int8),
        velocities=np.full(len(columns), velocity, dtype=np.int8),
    )
