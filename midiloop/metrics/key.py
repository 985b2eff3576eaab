"""The key of a loop, estimated from its bass.

Source of the profiles: Krumhansl and Kessler 1982, *Tracing the dynamic changes in perceived tonal
organization in a spatial representation of musical keys*, Psychological Review 89; of the
correlation: Krumhansl 1990, *Cognitive Foundations of Musical Pitch*, chapter 4.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.grid import LOOP, PITCH_NAMES, Grid, Roll
from midiloop.metrics.bits import Bits, as_bits

Mode = Literal["major", "minor"]

MODES: tuple[Mode, Mode] = ("major", "minor")
PROFILES = np.array(
    [
        [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
        [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
    ]
)
SCALES = np.zeros((2, 12), dtype=np.bool_)  # of each mode, semitones above the tonic
SCALES[0, [0, 2, 4, 5, 7, 9, 11]] = True
SCALES[1, [0, 2, 3, 5, 7, 8, 10, 11]] = True  # natural minor, and its leading tone


class Key(NamedTuple):
    """A key.

    Attributes:
        tonic: pitch class, 0 for C to 11 for B.
        mode: major or minor.
        confidence: by how much this key correlates better than the next best: 0, another fits as
            well or nothing sounds, upwards. Below 0.05 it is little more than a guess.
    """

    tonic: int
    mode: Mode
    confidence: float

    def __str__(self) -> str:
        """As in ``C`` or ``F#m``."""
        return PITCH_NAMES[self.tonic] + ("m" if self.mode == "minor" else "")


class Keys(NamedTuple):
    """Keys of n loops.

    Attributes:
        tonics: int (n,), pitch classes.
        modes: int (n,), index into `MODES`.
        confidences: float (n,), see `Key`.
    """

    tonics: NDArray[np.int64]
    modes: NDArray[np.int64]
    confidences: NDArray[np.float64]


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
    tonics, modes, confidences = estimate_keys(roll[None], grid)
    return Key(int(tonics[0]), MODES[int(modes[0])], float(confidences[0]))


def estimate_keys(rolls: Roll | Bits, grid: Grid = LOOP) -> Keys:
    """`estimate_key` of each of n rolls (n, steps, columns), or of their bits."""
    counts = pitch_classes(rolls, grid)
    turned = [[np.roll(profile, tonic) for profile in PROFILES] for tonic in range(12)]
    profiles = np.array(turned).reshape(24, 12)
    fits = (_normed(counts) @ _normed(profiles).T).round(9)  # so that equal ones are equal
    order = np.argsort(-fits, axis=1, kind="stable")[:, :2]
    best, next_best = np.take_along_axis(fits, order, axis=1).T
    return Keys(order[:, 0] // 2, order[:, 0] % 2, best - next_best)


def pitch_classes(rolls: Roll | Bits, grid: Grid = LOOP) -> NDArray[np.float64]:
    """Steps on which each pitch class of the bass sounds, float (n, 12); C is the first."""
    steps = as_bits(rolls, grid).n_steps[:, grid.n_drums :].astype(np.float64)
    classes = np.arange(grid.lowest_pitch, grid.highest_pitch + 1) % 12
    found: NDArray[np.float64] = steps @ (classes[:, None] == np.arange(12)).astype(np.float64)
    return found


def _normed(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of mean 0 and length 1, whose products are correlations; 0 where all is the same."""
    centered = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centered, axis=1, keepdims=True)
    return np.where(length > 1e-9, centered / np.maximum(length, 1e-9), 0.0)
