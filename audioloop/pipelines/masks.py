"""Which part of a loop is regenerated: a share of it, bars, or where notes begin."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audioloop.conditioning import Conditioning
from midiloop.errors import CallError, counted
from midiloop.grid import LOOP

MOST_BARS = 1024
# Around an onset, the time that is regenerated where only onsets are.
ONSET_S = (-0.02, 0.1)
BAR_SETS = {"even": slice(1, None, 2), "odd": slice(0, None, 2), "last": slice(-1, None)}
_BARS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class InpaintMask:
    """Which part of a loop is regenerated.

    >>> import audioloop
    >>> first_bar_stays = audioloop.InpaintMask(keep=0.25)
    >>> last_two_bars = audioloop.InpaintMask(mask="3-4")

    Attributes:
        keep: share of the loop that stays, from its beginning, in whole bars, or
            in beats where it is less than one, or all but less than one.
        mask: in place of that: "even" or "odd" bars, "last", "onsets" (where notes begin), or
            bars counted from 1, as in "2,4,7-8".
    """

    keep: float = 0.5
    mask: str | None = None

    def __post_init__(self) -> None:
        """Raise `CallError` for what is no share, and for what no loop has."""
        if not 0 <= self.keep <= 1:
            raise CallError(f"--keep {self.keep:g}: out of range; give 0 to 1")
        if self.mask not in (None, "onsets", *BAR_SETS) and not _listed(self.mask or ""):
            raise CallError(
                f"--mask {self.mask}: no bars; give {', '.join(BAR_SETS)}, onsets, or bars as in "
                "2,4,7-8"
            )

    def inpaint_mask(
        self, conditioning: Conditioning, bars: int, n_frames: int, frames_per_s: float
    ) -> Tensor:
        """Frames to regenerate, bool (T,).

        Raises:
            CallError: none are, or there are no such bars, or no notes are known.
        """
        if self.mask == "onsets":
            return _onsets(conditioning, n_frames, frames_per_s)
        if self.mask is None and not 0 < round(self.keep * bars) < bars and 0 < self.keep < 1:
            return self._beats(conditioning, bars, n_frames)
        regenerated = self._bars(bars)
        if not regenerated:
            raise CallError(
                f"--keep {self.keep:g} keeps all of {counted(bars, 'bar')}, and nothing is left "
                "to be made; keep less, or choose bars with --mask"
            )
        bar = ((np.arange(n_frames) + 0.5) * bars / n_frames).astype(np.int64) + 1
        return torch.from_numpy(np.isin(bar, list(regenerated)))

    def _beats(self, conditioning: Conditioning, bars: int, n_frames: int) -> Tensor:
        """Frames of the beats that go, where the share is less than a bar: at least one stays."""
        beats = max(
            2, round((conditioning.steps or bars * LOOP.steps_per_bar) / LOOP.steps_per_beat)
        )
        kept = min(max(1, round(self.keep * beats)), beats - 1)
        return (torch.arange(n_frames) + 0.5) * beats / n_frames >= kept

    def _bars(self, bars: int) -> set[int]:
        """Bars to regenerate, counted from 1."""
        every = range(1, bars + 1)
        if self.mask is None:
            return set(every[round(self.keep * bars) :])
        found = set(every[BAR_SETS[self.mask]]) if self.mask in BAR_SETS else _listed(self.mask)
        if not found or not found <= set(every):
            raise CallError(
                f"--mask {self.mask}: no such bars in a loop of {bars}; give others, from 1 on"
            )
        return found


def _listed(text: str) -> set[int]:
    """Bars that a text lists; none if it is no list."""
    found: set[int] = set()
    for word in text.split(","):
        match = _BARS.fullmatch(word.strip())
        if match is None:
            return set()
        first, last = int(match[1]), int(match[2] or match[1])
        found |= set(range(first, min(last, MOST_BARS) + 1))
    return found


def _onsets(conditioning: Conditioning, n_frames: int, frames_per_s: float) -> Tensor:
    if conditioning.roll is None or conditioning.steps is None:
        raise CallError("--mask onsets: no notes are known of audio; give the MIDI file")
    hits = conditioning.roll[:, : LOOP.n_drums].any(1)
    bass = conditioning.roll[:, LOOP.n_drums :]
    begins = hits | (bass & ~np.roll(bass, 1, 0)).any(1)
    inpaint_mask = np.zeros(n_frames, np.bool_)
    before, after = (round(s * frames_per_s) for s in ONSET_S)
    for step in np.flatnonzero(begins).tolist():
        at = round(step * n_frames / conditioning.steps)
        inpaint_mask[np.arange(at + before, at + after + 1) % n_frames] = True
    if not inpaint_mask.any():
        raise CallError("--mask onsets: no note of its drums or bass begins")
    return torch.from_numpy(inpaint_mask)
