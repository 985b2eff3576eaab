"""Conditioning of the token models: a loop's notes, beat, drum kit and bass.

Notes and beat are given per frame, and rotate with the loop. Drum kit and bass are given once.
Each of them may be null (unconditional).
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
from midiloop.grid import LOOP, Roll

STEPS_PER_BEAT = LOOP.steps_per_beat
NULL_PROGRAM = 128  # null condition of kit and bass, which are General MIDI programs from 0 to 127
PROGRAMS = NULL_PROGRAM + 1
NOTES = LOOP.columns + 2  # the roll, onsets of the bass, and a flag: conditioned on notes
BEAT = 6  # phase within step and beat, time since the step, tempo
CHANNELS = NOTES + BEAT
REFERENCE_BPM = 120.0


class ConditioningTensors(NamedTuple):
    """Conditioning of a batch of loops of the same number of frames.

    Attributes:
        frames: float32 (B, 101, T): notes and beat; zeros are the null condition.
        kit, bass: int64 (B,): General MIDI programs, or `NULL_PROGRAM`.
    """

    frames: Tensor
    kit: Tensor
    bass: Tensor

    @property
    def notes(self) -> bool:
        """Whether any of the loops is conditioned on notes, even if they are all rests."""
        return bool(self.frames[:, NOTES - 1].any())

    def to(self, device: torch.device) -> ConditioningTensors:
        """Copy to a device."""
        return ConditioningTensors(*(tensor.to(device) for tensor in self))

    def null(self) -> ConditioningTensors:
        """The null condition of as many loops and frames."""
        programs = torch.full_like(self.kit, NULL_PROGRAM)
        return ConditioningTensors(torch.zeros_like(self.frames), programs, programs)

    def repeated(self, n: int) -> ConditioningTensors:
        """Repeat each of the loops ``n`` times in a row."""
        return ConditioningTensors(*(tensor.repeat_interleave(n, 0) for tensor in self))

    def at(self, frames: Tensor) -> ConditioningTensors:
        """Select frames by their indices (T,), modulo the loop."""
        return self._replace(frames=self.frames[..., frames % self.frames.shape[-1]])


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Conditioning of one loop. None is the null condition.

    Attributes:
        roll: bool (steps, 93): the notes.
        steps: length of the loop in sixteenths; it gives the beat and the tempo.
        kit, bass: General MIDI programs, from 0 to 127.
    """

    roll: Roll | None = None
    steps: int | None = None
    kit: int | None = None
    bass: int | None = None

    def __post_init__(self) -> None:
        """Raise `LoopError` for values out of range, or a roll that is not as long as its steps."""
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
        """Tensors for one loop of ``n_frames`` frames, as a batch of 1."""
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
    """Concatenate batches whose loops have the same number of frames."""
    return ConditioningTensors(*(torch.cat(tensors) for tensors in zip(*conditions, strict=True)))
