"""How a roll is played: the velocity of every onset, and how far from its step it is played.

A drum cell is an onset wherever it is set. A bass cell is one where its pitch does not sound on the
step before; the first step of a loop always is. Of several notes in one cell the loudest counts, of
equally loud ones the earliest. A bass note that was struck before its cell, and is held into it or
heard again under a lower one, has its own velocity and no offset.

Humanisation as in Gillick et al. 2019, arXiv:1905.06118, which calls the three score, velocities
and offsets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import LoopError
from midiloop.grid import LOOP, Grid, Roll
from midiloop.midi import pianoroll
from midiloop.midi.score import Score, Track

# An offset is a whole number of these parts of a step, so that int8 holds a step's whole cell.
OFFSETS_PER_STEP = 256
LAST_OFFSET = OFFSETS_PER_STEP // 2 - 1
MAX_VELOCITY = 127
_VALUES = (MAX_VELOCITY + 1) * OFFSETS_PER_STEP  # of a velocity and an offset, as one number


class Performance(NamedTuple):
    """Velocities and offsets of n onsets, in the C order of their roll.

    Attributes:
        velocities: uint8 (n,), 1 to 127.
        offsets: int8 (n,), in 1/256 of a step from -128 to 127: half a step early to almost half
            a step late.
    """

    velocities: NDArray[np.uint8]
    offsets: NDArray[np.int8]


class WindowPerformances(NamedTuple):
    """Performances of n windows of a song, one after the other.

    Attributes:
        n_onsets: int64 (n,), of each.
        velocities, offsets: as in `Performance`, of all windows.
    """

    n_onsets: NDArray[np.int64]
    velocities: NDArray[np.uint8]
    offsets: NDArray[np.int8]


def onsets(rolls: Roll, grid: Grid = LOOP) -> Roll:
    """Which cells of rolls are onsets.

    >>> import numpy as np
    >>> roll = np.zeros((16, 93), bool)
    >>> roll[:, [0, 20]] = True  # a kick on every step, one long bass note
    >>> int(onsets(roll).sum())
    17

    Args:
        rolls: bool (…, steps, columns).

    Returns:
        bool, of the same shape.
    """
    struck = rolls.copy()
    struck[..., 1:, grid.n_drums :] &= ~rolls[..., :-1, grid.n_drums :]
    return struck


def check(performance: Performance, roll: Roll, grid: Grid = LOOP) -> None:
    """Raise `LoopError` unless it is a performance of the roll."""
    n_onsets = int(onsets(roll, grid).sum())
    if not n_onsets == len(performance.velocities) == len(performance.offsets):
        raise LoopError(
            f"expected {n_onsets:,} velocities and offsets, one for each onset of the roll, got "
            f"{len(performance.velocities):,} and {len(performance.offsets):,}"
        )


def on_grid(roll: Roll, grid: Grid = LOOP) -> Performance:
    """The performance that a roll has without one: two velocities, and every onset on its step."""
    _, columns = _set_cells(onsets(roll, grid))
    velocities = np.where(
        columns < grid.n_drums, pianoroll.DRUM_VELOCITY, pianoroll.BASS_VELOCITY
    ).astype(np.uint8)
    return Performance(velocities, np.zeros(len(columns), np.int8))


def velocities_of(roll: Roll, performance: Performance, grid: Grid = LOOP) -> NDArray[np.uint8]:
    """The velocity of every cell, 0 where nothing sounds: uint8 (steps, columns).

    A bass note has that of its onset throughout.

    Raises:
        LoopError: it is a performance of another roll.
    """
    check(performance, roll, grid)
    found = np.zeros(roll.shape, np.uint8)
    struck = onsets(roll, grid)
    found[struck] = performance.velocities
    steps = np.arange(len(roll))[:, None]
    begun = np.maximum.accumulate(np.where(struck, steps, 0), axis=0)
    return np.where(roll, np.take_along_axis(found, begun, axis=0), 0).astype(np.uint8)


def encode(
    score: Score,
    roll: Roll,
    grid: Grid = LOOP,
    *,
    by_name: bool = False,
    span: tuple[int, int] | None = None,
    circular: bool = False,
) -> Performance:
    """How a song plays the roll that `pianoroll.encode` draws of it with the same options.

    >>> import midiloop, numpy as np
    >>> roll = np.eye(16, 93, dtype=bool)
    >>> encode(midiloop.decode(roll), roll).velocities.tolist()[7:11]
    [100, 100, 80, 80]
    """
    played = _played(score, len(roll), grid, by_name, span, circular=circular)
    steps, columns = _set_cells(onsets(roll, grid))
    return _looked_up(played, steps, columns, len(roll))


def struck(
    score: Score,
    roll: Roll,
    grid: Grid = LOOP,
    *,
    by_name: bool = False,
    circular: bool = False,
) -> tuple[Roll, Performance]:
    """All cells that a note of a song begins in, and how it is played there.

    These are the `onsets` of the roll, and those that a roll does not show: a bass note that is
    struck again.

    Args:
        roll: that `pianoroll.encode` draws of it with the same options.
    """
    played = _played(score, len(roll), grid, by_name, None, circular=circular)
    columns, steps = np.divmod(played // _VALUES, max(len(roll), 1))
    found = np.zeros_like(roll)
    found[steps, columns] = True
    found = (found & roll) | onsets(roll, grid)
    return found, _looked_up(played, *_set_cells(found), len(roll))


def of_windows(
    score: Score,
    roll: Roll,
    start_steps: NDArray[np.int64],
    grid: Grid = LOOP,
    *,
    by_name: bool = False,
    span: tuple[int, int] | None = None,
) -> WindowPerformances:
    """How a song plays windows of a roll, each as long as a loop and begun on a bar line.

    The same as `encode` for each of them, but a note that is early on the first step of a window is
    there too.
    """
    marked = onsets(roll, grid)
    bars = slice(None, None, grid.steps_per_bar)
    held = roll[bars] & ~marked[bars]  # onsets of a window that begins there, and of no other
    marked[bars] |= held
    steps, columns = _set_cells(marked)
    is_held = np.zeros(len(steps), np.bool_)
    on_bar = np.flatnonzero(steps % grid.steps_per_bar == 0)
    is_held[on_bar] = held[steps[on_bar] // grid.steps_per_bar, columns[on_bar]]
    found = _looked_up(_played(score, len(roll), grid, by_name, span), steps, columns, len(roll))
    first = np.searchsorted(steps, start_steps)
    sizes = np.searchsorted(steps, start_steps + grid.steps) - first
    ends = np.cumsum(sizes)
    windows = np.repeat(np.arange(len(sizes)), sizes)
    at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + sizes, sizes)
    kept = ~is_held[at] | (steps[at] == start_steps[windows])
    at = at[kept]
    return WindowPerformances(
        np.bincount(windows[kept], minlength=len(sizes)),
        found.velocities[at],
        found.offsets[at],
    )


def _set_cells(roll: Roll) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Steps and columns of the cells that are set, in C order: `numpy.nonzero`, eight times faster.

    Args:
        roll: bool (steps, columns).
    """
    steps, columns = np.divmod(np.flatnonzero(roll), roll.shape[1])
    return steps, columns


def _looked_up(
    played: NDArray[np.int64], steps: NDArray[np.int64], columns: NDArray[np.int64], n_steps: int
) -> Performance:
    """What is played in cells, each of which some note fills: see `_played`."""
    cells = columns * n_steps + steps
    # The last note that begins in the column, in the cell or before it.
    found = played[np.searchsorted(played, (cells + 1) * _VALUES) - 1]
    begins_there = found // _VALUES == cells
    velocities = found // OFFSETS_PER_STEP % (MAX_VELOCITY + 1)
    offsets = np.where(begins_there, LAST_OFFSET - found % OFFSETS_PER_STEP, 0)
    return Performance(velocities.astype(np.uint8), offsets.astype(np.int8))


def _played(
    score: Score,
    n_steps: int,
    grid: Grid,
    by_name: bool,
    span: tuple[int, int] | None,
    *,
    circular: bool = False,
) -> NDArray[np.int64]:
    """The notes of a roll as ascending numbers: column, step, velocity, and how early.

    So the last of a cell's is the loudest, and the earliest of those.
    """
    first, tpq = (span or (0, 0))[0], score.ticks_per_quarter
    drums = pianoroll.drum_tracks(score)
    tracks = [*drums, *pianoroll.bass_tracks(score, by_name=by_name)]
    if not tracks:
        return np.zeros(0, np.int64)
    ticks = np.concatenate([track.onsets for track in tracks]).astype(np.int64) - first
    pitches = np.concatenate([track.pitches for track in tracks])
    n_hits = sum(track.n_notes for track in drums)  # the notes before those of the bass
    steps = pianoroll.to_steps(ticks, tpq, grid)
    late = OFFSETS_PER_STEP * (grid.steps_per_beat * ticks - steps * tpq)
    offsets = np.minimum((2 * late + tpq) // (2 * tpq), LAST_OFFSET)  # the nearest, ties up
    columns = pitches.astype(np.int64) + (grid.n_drums - grid.lowest_pitch)
    columns[:n_hits] = grid.drum_columns[pitches[:n_hits]]
    if circular:
        steps[:n_hits][steps[:n_hits] == n_steps] = 0
    kept = (columns >= 0) & (columns < grid.columns) & (steps < n_steps)
    kept[n_hits:] &= columns[n_hits:] >= grid.n_drums
    early = np.flatnonzero(steps < 0)
    if len(early):
        # Bass notes that are held into the first step count as begun on it, and drum hits do not.
        ends = np.concatenate([track.ends for track in tracks])[early] - first
        kept[early] &= (early >= n_hits) & (pianoroll.to_steps(ends, tpq, grid) > 0)
        steps[early] = offsets[early] = 0
    velocities = np.clip(np.concatenate([track.velocities for track in tracks]), 1, MAX_VELOCITY)
    cells = columns * n_steps + steps
    values = velocities * np.int64(OFFSETS_PER_STEP) + (LAST_OFFSET - offsets)
    return np.sort((cells * _VALUES + values)[kept])


def decode(
    roll: Roll,
    performance: Performance,
    tempo_bpm: float = 120.0,
    *,
    name: str = "",
    grid: Grid = LOOP,
) -> Score:
    """Write a roll as `pianoroll.decode` does, played: with velocities, and onsets off the grid.

    A drum hit that is early on the first step wraps to the end of the loop, where whoever repeats
    it plays it in time. A bass note would be cut off there: it begins at the first tick.

    >>> import midiloop, numpy as np
    >>> roll = np.zeros((16, 93), bool)
    >>> roll[:2, 0] = True
    >>> played = Performance(np.array([90, 40], np.uint8), np.array([-64, 64], np.int8))
    >>> decode(roll, played).tracks[0].onsets.tolist()
    [150, 1890]

    Raises:
        LoopError: see `pianoroll.decode`; or it is a performance of another roll.
    """
    song = pianoroll.decode(roll, tempo_bpm, name=name, grid=grid)
    check(performance, roll, grid)
    return perform(song, onsets(roll, grid), performance, grid, circular=True)


def perform(
    song: Score,
    struck: Roll,
    performance: Performance,
    grid: Grid = LOOP,
    *,
    by_name: bool = False,
    circular: bool = False,
) -> Score:
    """Give the notes of drums and bass a performance: they quantise to the same roll.

    Of several notes in a cell the loudest gets the cell's velocity, the others keep their share of
    it. Notes that end where another begins still do.

    Args:
        struck: bool (whole bars, columns), cells whose notes get what ``performance`` says of them,
            in C order. Other notes stay as they are.
        circular: drum hits before the first tick wrap to the end of the last bar.
    """
    cells = _Cells(struck, performance, song.ticks_per_quarter, grid, circular)
    parts = {id(track): True for track in pianoroll.drum_tracks(song)}
    parts |= {id(track): False for track in pianoroll.bass_tracks(song, by_name=by_name)}
    for track in song.tracks:
        if id(track) in parts:
            cells.add(track, parts[id(track)])
    tracks = tuple(
        cells.played(track, parts[id(track)]) if id(track) in parts else track
        for track in song.tracks
    )
    length_ticks = max(
        [song.length_ticks, cells.length_ticks, *(t.ends.max() for t in tracks if t.n_notes)]
    )
    return replace(song, tracks=tracks, length_ticks=int(length_ticks))


class _Cells:
    """The cells of a roll, what is played in each, and the notes that are to play it."""

    def __init__(
        self, struck: Roll, performance: Performance, tpq: int, grid: Grid, circular: bool
    ) -> None:
        self.grid, self.tpq, self.circular = grid, tpq, circular
        self.velocities = np.zeros(struck.shape, np.int64)
        self.velocities[struck] = performance.velocities
        self.offsets = np.zeros(struck.shape, np.int64)
        self.offsets[struck] = performance.offsets
        self.loudest = np.zeros(struck.shape, np.int64)  # of the notes that are there
        self.length_ticks = len(struck) * tpq // grid.steps_per_beat

    def add(self, track: Track, is_drum: bool) -> None:
        """Note how loud a track's notes are."""
        _, at, hit = self._found(track, is_drum)
        np.maximum.at(self.loudest, (at[0][hit], at[1][hit]), track.velocities[hit])

    def played(self, track: Track, is_drum: bool) -> Track:
        """A track's notes, played."""
        steps, (rows, columns), hit = self._found(track, is_drum)
        old_onsets, old_ends = track.onsets.astype(np.int64), track.ends.astype(np.int64)
        shares = track.velocities[hit] / np.maximum(self.loudest[rows[hit], columns[hit]], 1)
        velocities = track.velocities.astype(np.int64)
        velocities[hit] = (self.velocities[rows[hit], columns[hit]] * shares).round()
        new_onsets = old_onsets.copy()
        new_onsets[hit] = self._ticks(steps[hit], self.offsets[rows[hit], columns[hit]])
        wraps = is_drum and self.circular
        new_onsets = new_onsets % self.length_ticks if wraps else np.maximum(new_onsets, 0)
        durations = old_ends - old_onsets
        if is_drum:
            ends = new_onsets + durations
            if wraps:
                ends = np.minimum(ends, np.maximum(self.length_ticks, new_onsets))
            ends = _before_next(new_onsets, ends, track.pitches)
        else:
            ends = self._bass_ends(track, steps, new_onsets)
            ends[~hit & (ends > old_ends)] = old_ends[~hit & (ends > old_ends)]
        order = np.argsort(new_onsets, kind="stable")
        return track._replace(
            onsets=new_onsets[order].astype(np.int32),
            durations=(ends - new_onsets)[order].astype(np.int32),
            pitches=track.pitches[order],
            velocities=np.clip(velocities, 1, MAX_VELOCITY)[order].astype(np.int8),
        )

    def _found(
        self, track: Track, is_drum: bool
    ) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]:
        """Of each note its step, its cell, and whether that one is played."""
        grid = self.grid
        n_steps, n_columns = len(self.velocities), grid.columns
        steps = pianoroll.to_steps(track.onsets, self.tpq, grid)
        if is_drum:
            columns = grid.drum_columns[track.pitches].astype(np.int64)
            inside = columns >= 0
        else:
            columns = track.pitches.astype(np.int64) - grid.lowest_pitch + grid.n_drums
            inside = (columns >= grid.n_drums) & (columns < n_columns)
        rows = np.where(steps == n_steps, 0, steps) if is_drum and self.circular else steps
        inside &= rows < n_steps
        rows, columns = np.where(inside, rows, 0), np.where(inside, columns, 0)
        return steps, (rows, columns), inside & (self.velocities[rows, columns] > 0)

    def _ticks(self, steps: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """The nearest tick to an offset from a step that still quantises to the step."""
        parts = 2 * (OFFSETS_PER_STEP * steps + offsets) * self.tpq
        unit = OFFSETS_PER_STEP * self.grid.steps_per_beat
        first, following = self._first_ticks(steps), self._first_ticks(steps + 1)
        nearest: NDArray[np.int64] = (parts + unit) // (2 * unit)
        return np.minimum(np.maximum(nearest, first), np.maximum(following - 1, first))

    def _first_ticks(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first tick that quantises to each step."""
        return -((1 - 2 * steps) * self.tpq // (2 * self.grid.steps_per_beat))

    def _bass_ends(
        self, track: Track, steps: NDArray[np.int64], onsets: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Where notes that begin at new onsets end, each on the step on which it ended."""
        old_onsets, old_ends = track.onsets.astype(np.int64), track.ends.astype(np.int64)
        ends_on = pianoroll.to_steps(old_ends, self.tpq, self.grid)
        until = np.maximum(ends_on, steps + 1)
        never = np.iinfo(np.int64).max
        next_old = np.full(int(until.max(initial=0)) + 1, never)
        next_new = next_old.copy()
        np.minimum.at(next_old, steps, old_onsets)
        np.minimum.at(next_new, steps, onsets)
        lowest = np.where(ends_on > steps, self._first_ticks(ends_on), 0)
        ends = np.maximum(onsets + old_ends - old_onsets, lowest)
        ends = np.minimum(ends, self._first_ticks(until + 1) - 1)
        ends = np.where(old_ends == next_old[until], next_new[until], ends)
        ends = np.minimum(ends, next_new[until])
        found: NDArray[np.int64] = np.maximum(ends, onsets + (old_ends > old_onsets))
        return found


def _before_next(
    onsets: NDArray[np.int64], ends: NDArray[np.int64], pitches: NDArray[np.int8]
) -> NDArray[np.int64]:
    """Ends of notes, none of which reaches into the next of its pitch."""
    order = np.lexsort((onsets, pitches))
    same = np.flatnonzero(np.diff(pitches[order]) == 0)
    cut = ends.copy()
    cut[order[same]] = np.minimum(ends[order[same]], onsets[order[same + 1]])
    return cut
