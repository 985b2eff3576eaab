"""Keys of loops, estimated from their bass, see `midi.key`; and loops moved into a key."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics.bits import Bits, as_bits
from midiloop.midi import transposition
from midiloop.midi.key import Key, Keys, estimate

SCALES = np.zeros((2, 12), dtype=np.bool_)  # of each mode, semitones above the tonic
SCALES[0, [0, 2, 4, 5, 7, 9, 11]] = True
SCALES[1, [0, 2, 3, 5, 7, 8, 10, 11]] = True  # natural minor, and its leading tone


def estimate_key(roll: Roll, grid: Grid = LOOP) -> Key:
    """The key whose profile correlates best with the pitch classes of a roll's bass.

    Each class counts by the steps it sounds on. Of keys that fit alike the lowest tonic counts, and
    major before minor; a silent bass is in C, with confidence 0.

    >>> import numpy as np
    >>> roll = np.zeros((128, 93), bool)
    >>> for step, pitch in enumerate((33, 33, 36, 40, 38, 41, 40, 35)):  # A, A, C, E, D, F, E, B
    ...     roll[16 * step : 16 * step + 12, 9 + pitch - 24] = True
    >>> str(estimate_key(roll))
    'Am'

    Args:
        roll: bool (steps, columns).

    Raises:
        LoopError: the roll is of another shape.
    """
    grid.check(roll)
    return estimate_keys(roll[None], grid).key(0)


def estimate_keys(rolls: Roll | Bits, grid: Grid = LOOP) -> Keys:
    """`estimate_key` of each of n rolls (n, steps, columns), or of their bits."""
    return estimate(pitch_classes(rolls, grid))


def pitch_classes(rolls: Roll | Bits, grid: Grid = LOOP) -> NDArray[np.float64]:
    """Steps on which each pitch class of the bass sounds, float (n, 12); C is the first."""
    steps = as_bits(rolls, grid).n_steps[:, grid.n_drums :].astype(np.float64)
    classes = np.arange(grid.lowest_pitch, grid.highest_pitch + 1) % 12
    found: NDArray[np.float64] = steps @ (classes[:, None] == np.arange(12)).astype(np.float64)
    return found


def transpose_to(rolls: Roll, tonic: int, grid: Grid = LOOP) -> Roll:
    """Rolls whose bass is moved until its estimated key has this tonic.

    By the fewest semitones, down rather than up by six; by the other way where the bass would leave
    the grid. Where it would leave it both ways, it stays.

    Args:
        rolls: bool (n, steps, columns).
        tonic: pitch class.
    """
    up = (tonic - estimate_keys(rolls, grid).tonics) % 12
    near = np.where(up < 6, up, up - 12)
    far = np.where(up < 6, up - 12, up)
    room = transposition.room(rolls, grid)
    shift = np.where(room.has(near), near, np.where(room.has(far), far, 0))
    return transposition.transpose_bass(rolls, shift, grid)
