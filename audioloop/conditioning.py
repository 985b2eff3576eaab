"""What a model of codes may know of a loop: its notes, its beat, and what plays them.

Notes and beat are told frame by frame, and rotate with the loop; drum kit and bass are told once.
Each of them may be left unsaid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midiloop.errors import LoopError
from midiloop.grid import BEATS_PER_BAR, LOOP, Roll

STEPS_PER_BEAT = LOOP.steps_per_bar // BEATS_PER_BAR
NULL_PROGRAM = 128  # of kits and basses, which are General MIDI programs from 0 to 127
PROGRAMS = NULL_PROGRAM + 1
NOTES = LOOP.columns + 2  # the roll, a bass note's beginning, and that notes are told
BEAT = 6  # where a frame is within step and beat, the tempo, and that they are told
CHANNELS = NOTES + BEAT
REFERENCE_BPM = 120.0


class ConditioningTensors(NamedTuple):
    """What is told of loops that have as many frames as each other.

    Attributes:
        frames: float32 (B, 101, T): notes and beat; zeros where they are not told.
        kit, bass: int64 (B,): programs, or `UNSAID`.
    """

    frames: Tensor
    kit: Tensor
    bass: Tensor

    @property
    def notes(self) -> bool:
        """Whether notes of any of the loops are told, be they rests."""
        return bool(self.frames[:, NOTES - 1].any())

    def to(self, device: torch.device) -> ConditioningTensors:
        """The same on a device."""
        return ConditioningTensors(*(tensor.to(device) for tensor in self))

    def silent(self) -> ConditioningTensors:
        """Nothing is told."""
        unsaid = torch.full_like(self.kit, NULL_PROGRAM)
        return ConditioningTensors(torch.zeros_like(self.frames), unsaid, unsaid)

    def repeated(self, n: int) -> ConditioningTensors:
        """Each of the loops ``n`` times in a row."""
        return ConditioningTensors(*(tensor.repeat_interleave(n, 0) for tensor in self))

    def taken(self, places: Tensor) -> ConditioningTensors:
        """At some frames (T,), modulo the loop."""
        return self._replace(frames=self.frames[..., places % self.frames.shape[-1]])


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What is told of one loop.

    Attributes:
        roll: bool (steps, 93); None says nothing of notes.
        steps: sixteenths of the loop; None says nothing of the beat.
        kit, bass: programs, from 0.
    """

    roll: Roll | None = None
    steps: int | None = None
    kit: int | None = None
    bass: int | None = None

    def __post_init__(self) -> None:
        """Raise `LoopError` unless all fit together."""
        if self.steps is not None and self.steps < 1:
            raise LoopError(f"a loop of {self.steps} sixteenths; give 1 or more")
        if self.roll is not None and (
            self.roll.shape != (self.steps, LOOP.columns) or self.roll.dtype != np.bool_
        ):
            raise LoopError(
                f"expected a bool roll ({self.steps}, {LOOP.columns}), as long as its sixteenths, "
                f"got {self.roll.dtype} {self.roll.shape}"
            )
        for program in (self.kit, self.bass):
            if program is not None and not 0 <= program < NULL_PROGRAM:
                raise LoopError(f"program {program} is not from 0 to {NULL_PROGRAM - 1}")

    def on(self, n_frames: int, frames_per_s: float) -> ConditioningTensors:
        """For a ring of so many frames."""
        frames = np.zeros((CHANNELS, n_frames), np.float32)
        if self.steps is not None:
            place = (np.arange(n_frames) + 0.5) * (self.steps / n_frames)  # in sixteenths
            frames[NOTES:] = _beat(place, n_frames / frames_per_s / self.steps)
            if self.roll is not None:
                frames[:NOTES] = _notes(self.roll, place.astype(np.int64))
        programs = (NULL_PROGRAM if one is None else one for one in (self.kit, self.bass))
        kit, bass = (torch.tensor([program]) for program in programs)
        return ConditioningTensors(torch.from_numpy(frames)[None], kit, bass)


def _notes(roll: Roll, steps: NDArray[np.int64]) -> NDArray[Any]:
    bass = roll[:, LOOP.n_drums :]
    begins = (bass & ~np.roll(bass, 1, 0)).any(1)
    rows = np.column_stack([roll, begins, np.ones(len(roll), np.bool_)])
    return rows[steps].T


def _beat(place: NDArray[np.floating[Any]], step_s: float) -> NDArray[Any]:
    within, beat = place % 1, place / STEPS_PER_BEAT
    turns = [f(2 * math.pi * x) for x in (within, beat) for f in (np.cos, np.sin)]
    since_s = within * step_s
    tempo = np.full_like(place, 1 + 0.5 * math.log2(60 / (step_s * STEPS_PER_BEAT) / REFERENCE_BPM))
    return np.stack([*turns, 10 * since_s, tempo])


def stack(conditions: list[ConditioningTensors]) -> ConditioningTensors:
    """Several of as many frames as one."""
    return ConditioningTensors(*(torch.cat(tensors) for tensors in zip(*conditions, strict=True)))
