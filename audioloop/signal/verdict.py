"""Whether the seam of a loop can be heard: one verdict, for every command that gives one.

A step between the last sample and the first is audible as a click if all of these hold:

- It is large relative to the steps around it (`seam.jump`), which a tone or a noise also has.
- It is large relative to the loop's peak: in a tail of -60 dB no step is.
- Nothing just before or after masks it. An attack on the first beat is a step as well, and louder
  sound masks a click for some 20 ms after it, and some ms before.
- Where bar lines are known, the sample discontinuity (jump) is smaller at each of them.

The thresholds were set on 40 loops of other makers and on renders, see
`tests/benchmarks/real_loops.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from audioloop.io.wave import Wave
from audioloop.signal import seam
from audioloop.signal.seam import Seam

JUMP, OVER_BARS = 3.0, 1.5
AUDIBLE = 0.01  # of the peak, -40 dB
# Share of the largest other step within these seconds: a smaller step is masked.
HIDDEN, BEFORE_S, AFTER_S = 0.25, 0.025, 0.01
MAX_LINES = 64
MEANING = (
    "bad where the seam can be heard: a jump above 3 (and above 1.5 times that at the other bar "
    "lines), by a step of at least 1% of the loop's peak that nothing close by masks"
)


class Verdict(NamedTuple):
    """Verdict on a seam.

    Attributes:
        jump: see `seam.jump`.
        step: between the samples that meet, as a share of the loop's peak.
        beside: the same, as a share of the largest other step close by.
        allowed: the largest acceptable jump.
    """

    jump: float
    step: float
    beside: float
    allowed: float = JUMP

    @property
    def audible(self) -> bool:
        """Whether the step is large enough to be heard, in level and relative to other steps."""
        return self.step >= AUDIBLE and self.beside >= HIDDEN

    @property
    def bad(self) -> bool:
        """Whether the seam can be heard."""
        return self.audible and self.jump > self.allowed

    def __str__(self) -> str:
        """The figures, as "jump 21.1, a step of 26% of the peak"."""
        return f"jump {self.jump:.1f}, a step of {percent(self.step)} of the peak"


def percent(share: float) -> str:
    """A share as text, with two digits at least: "26%", "0.13%"."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.2%}"


def of(loop: Wave, bars: int | None) -> Verdict:
    """The verdict on a loop's seam.

    Args:
        loop: the wave that repeats.
        bars: number of bars of the loop; None if it is not known.

    Raises:
        CallError: the loop is too short for so many bars.
        LoopError: the loop is too short or silent, or has samples that are not finite.
    """
    jump, lines = seam.jump(loop, 0), seam.bar_lines(loop, bars)
    before, after = round(BEFORE_S * loop.rate), round(AFTER_S * loop.rate)
    steps = seam.steps(loop, -before, after)
    largest = float(np.delete(steps, before).max())
    step = float(steps[before])
    beside = step / largest if largest else math.inf
    found = Verdict(jump, step / loop.peak, beside)
    if not found.bad:
        return found
    return found._replace(allowed=max(JUMP, OVER_BARS * _largest_jump(loop, lines)))


def _largest_jump(loop: Wave, lines: Sequence[int]) -> float:
    """The largest jump at or near some bar lines; 0 without any."""
    near = (seam.largest_step(loop, line) for line in lines[:: 1 + len(lines) // MAX_LINES])
    return max((seam.jump(loop, place) for place in near), default=0.0)


def excess(of: Seam, found: Verdict) -> float:
    """The larger excess of jump and LPC residual, to compare with a limit: 0 or more.

    0 where the step is inaudible, as in the verdict: the residual there is the attack of a first
    note, which starts in or after silence.
    """
    return max(of.excess.values()) if found.audible else 0.0
