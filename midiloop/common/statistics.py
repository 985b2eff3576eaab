"""95 % intervals of means over loops.

Intervals of perplexities are those of LoopGen (Marincione et al. 2025, arXiv:2504.04466, appendix
A), those of differences within loops are by Student's t.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midiloop.errors import CallError, counted

CONFIDENCE = 0.95
SIGMAS = 1.96  # around a mean, as LoopGen counts: 95 % of a normal distribution


class Interval(NamedTuple):
    """A seam perplexity of several loops, as LoopGen gives it: ``center`` ± ``error``.

    Attributes:
        center, error: the middle and half the width of the interval.
        low, high: its ends; the perplexity of all loops (Eq. 5) is their geometric mean.
    """

    center: float
    error: float
    low: float
    high: float


def interval(nats: ArrayLike) -> Interval:
    """The 95 % interval of the perplexity of loops, from the nats of each (Eq. 8 to 12).

    Raises:
        CallError: there are fewer than two values.
    """
    values = _several(nats)
    mean = values.mean()
    apart = SIGMAS * values.std(ddof=1) / math.sqrt(len(values))
    low, high = math.exp(mean - apart), math.exp(mean + apart)
    return Interval((low + high) / 2, (high - low) / 2, low, high)


class Paired(NamedTuple):
    """Mean of differences, each between two figures of one loop.

    Attributes:
        mean: of ``n`` differences, in their unit.
        low, high: the 95 % interval of the mean, by Student's t.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def indistinguishable(self) -> bool:
        """Whether the mean may well be 0."""
        return self.low <= 0 <= self.high


def paired(differences: ArrayLike) -> Paired:
    """The mean of differences with its 95 % interval, by Student's t.

    Raises:
        CallError: there are fewer than two.
    """
    from scipy.special import stdtrit  # which takes a moment to load

    values = _several(differences)
    n = len(values)
    mean = float(values.mean())
    t = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    apart = t * float(values.std(ddof=1)) / math.sqrt(n)
    return Paired(mean, mean - apart, mean + apart, n)


def _several(values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or len(found) < 2:
        raise CallError(f"an interval of {counted(found.size, 'loop')}; give 2 or more")
    return found
