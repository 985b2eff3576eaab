"""Keys: their names, as in ``Am`` or ``F#m``, and how they are estimated from pitch classes.

Source of the profiles: Krumhansl and Kessler 1982, *Tracing the dynamic changes in perceived tonal
organization in a spatial representation of musical keys*, Psychological Review 89; of the
correlation: Krumhansl 1990, *Cognitive Foundations of Musical Pitch*, chapter 4.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import CallError
from midiloop.grid import PITCH_NAMES

Mode = Literal["major", "minor"]

MODES: tuple[Mode, Mode] = ("major", "minor")
PROFILES = np.array(
    [
        [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
        [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
    ]
)
CONFIDENT = 0.05  # of an estimate that is written into names and tags, at least
NAME_PATTERN = "[A-G][#b]?m?"  # as in the names of files
_SPELLINGS = re.compile(r"([A-Ga-g])([#♯b♭]?)(m|min|maj)?")
_ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}


class Key(NamedTuple):
    """A key.

    Attributes:
        tonic: pitch class, 0 for C to 11 for B.
        mode: major or minor.
        confidence: of an estimate, by how much this key correlates better than the next best: 0,
            another fits as well or nothing sounds, upwards. Below `CONFIDENT` it is little more
            than a guess.
    """

    tonic: int
    mode: Mode
    confidence: float = 1.0

    def __str__(self) -> str:
        """As in ``C``, ``F#m`` or ``Bb``."""
        return self.tonic_name + ("m" if self.mode == "minor" else "")

    @property
    def tonic_name(self) -> str:
        """As in ``C``, ``F#`` or ``Bb``: with a flat where the key signature has flats."""
        name = PITCH_NAMES[self.tonic]
        return f"{PITCH_NAMES[self.tonic + 1]}b" if self.sharps < 0 and "#" in name else name

    @property
    def sharps(self) -> int:
        """Sharps of its key signature, from -5 to 6; flats are negative."""
        major = self.tonic if self.mode == "major" else self.tonic + 3
        return (7 * major + 5) % 12 - 5  # each fifth upwards is one more


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

    def key(self, number: int) -> Key:
        """One of them."""
        mode = MODES[int(self.modes[number])]
        return Key(int(self.tonics[number]), mode, float(self.confidences[number]))

    def are(self, wanted: Key) -> NDArray[np.bool_]:
        """Which are this key and confident, bool (n,)."""
        same = (self.tonics == wanted.tonic) & (self.modes == MODES.index(wanted.mode))
        found: NDArray[np.bool_] = same & (self.confidences >= CONFIDENT)
        return found


def parse_key(option: str, text: str) -> Key:
    """A key as people write it: ``Am``, ``F#m``, ``Bb``, also ``Amin`` and ``Dbmaj``.

    >>> str(parse_key("--key", "A#min"))
    'Bbm'

    Args:
        option: that it was given for, for the message.

    Raises:
        CallError: it is none.
    """
    match = _SPELLINGS.fullmatch(text)
    if not match:
        raise CallError(f"{option} {text}: no such key; give one as in C, Am, F#m or Bb")
    letter, accidental, mode = match.groups()
    tonic = (PITCH_NAMES.index(letter.upper()) + _ACCIDENTALS[accidental]) % 12
    return Key(tonic, "minor" if mode in ("m", "min") else "major")


def confident(key: Key | None) -> Key | None:
    """The key, if it is certain enough to be written into names and tags; else None."""
    return key if key and key.confidence >= CONFIDENT else None


def as_json(key: Key | None) -> dict[str, Any]:
    """Fields of a loop's JSON: its key, null if `confident` gives none, and the confidence."""
    certain = confident(key)
    return {
        "key": certain and str(certain),
        "key_confidence": key and round(key.confidence, 3),
    }


def estimate(counts: NDArray[np.float64]) -> Keys:
    """Keys whose profiles correlate best with how long each pitch class sounds.

    Of keys that fit alike the lowest tonic counts, and major before minor; where nothing sounds it
    is C, with confidence 0.

    Args:
        counts: float (n, 12), C first, in any unit.
    """
    fits = (_normed(counts) @ _KEYS.T).round(9)  # so that equal ones are equal
    order = np.argsort(-fits, axis=1, kind="stable")[:, :2]
    best, next_best = np.take_along_axis(fits, order, axis=1).T
    return Keys(order[:, 0] // 2, order[:, 0] % 2, best - next_best)


def _normed(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of mean 0 and length 1, whose products are correlations; 0 where all is the same."""
    centered = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centered, axis=1, keepdims=True)
    return np.where(length > 1e-9, centered / np.maximum(length, 1e-9), 0.0)


_KEYS = _normed(
    np.array([np.roll(profile, tonic) for tonic in range(12) for profile in PROFILES])
)  # (24, 12): C, Cm, C#, C#m and so on
