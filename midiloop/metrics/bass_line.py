"""The bass of loops as notes: pitch, onset and length of each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.metrics.bits import Bits

NO_PITCH = -1


class BassLine(NamedTuple):
    """The bass of n loops, the lowest pitch where several sound.

    A note begins on a step whose pitch is another than that of the step before, and on the first
    step of the loop: a roll holds no repetition of a pitch without a gap.

    Attributes:
        pitches: int16 (n, steps), MIDI pitches; `NO_PITCH` where none sounds.
        onsets: bool (n, steps), where a note begins.
        lengths: int16 (n, steps), steps of the note that begins there, to the end of the loop at
            most; 0 elsewhere.
    """

    pitches: NDArray[np.int16]
    onsets: NDArray[np.bool_]
    lengths: NDArray[np.int16]

    def intervals(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Loop and semitones of each step from a note to the next, int (m,), rests between or not.

        A pitch that comes again is an interval of 0.
        """
        loops, steps = np.nonzero(self.onsets)
        pitches = self.pitches[loops, steps].astype(np.int64)
        same = loops[1:] == loops[:-1]
        return loops[1:][same], np.diff(pitches)[same]


def of(bits: Bits) -> BassLine:
    """Notes of the bass of n loops."""
    grid = bits.grid
    sounding = grid.unpack(bits.packed)[:, :, grid.n_drums :]
    pitches = sounding.argmax(axis=2).astype(np.int16) + np.int16(grid.lowest_pitch)
    pitches[~sounding.any(axis=2)] = NO_PITCH
    changes = np.ones(pitches.shape, dtype=np.bool_)
    changes[:, 1:] = pitches[:, 1:] != pitches[:, :-1]
    onsets = changes & (pitches != NO_PITCH)
    # each step's next change, looking back from the end
    n_steps = pitches.shape[1]
    at = np.where(changes, np.arange(n_steps), n_steps)
    after = np.concatenate([at[:, 1:], np.full((len(at), 1), n_steps)], axis=1)
    ends = np.minimum.accumulate(after[:, ::-1], axis=1)[:, ::-1]
    lengths = np.where(onsets, ends - np.arange(n_steps), 0).astype(np.int16)
    return BassLine(pitches, onsets, lengths)
