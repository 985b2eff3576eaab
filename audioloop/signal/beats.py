"""Beat tracking: the even pulse of a wave, and the length of a loop of whole bars.

The length of a beat is the slope of a line through *all* tracked beats. It is far more exact than
the tracker's frames, so bar lines stay exact over hundreds of bars. The number of bars follows
LoopGen's Algorithm 1 (signature-aware length control).
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audioloop.io.wave import Wave
from midiloop.errors import CallError, LoopError

Times = NDArray[np.float64]  # (beats,), seconds

# A pulse is even where three beats in four lie this near to it: those of renders lie within 0.014
# of a beat, and of 60 noises of 8 s none was even. In fewer beats noise more often is, by chance.
MIN_BEATS = 6
NEAR_BEATS, NEAR_S = 0.03, 0.01  # the larger of the two; beat_this has frames of 20 ms
FURTHEST = 4  # factor of more or fewer bars than requested, at most

# librosa's onset strength, and where in it an onset is: it peaks this long after an attack.
RATE, HOP = 44_100, 512
PEAK_LATE_S = 0.015
REACH = 3  # frames on either side of a tracked beat in which its onset is sought
FAINT = 0.1  # of the strongest onset

CHECKPOINT = "beat_this-final0.ckpt"  # as its package names the file in PyTorch's hub folder


@dataclass(frozen=True)
class Pulse:
    """An even pulse: every beat is as long as every other.

    Attributes:
        beat_s: length of a beat, seconds, more than 0.
        first_s: where a beat lies, 0 <= first_s < beat_s; where downbeats are known (as by
            beat_this, or as said), where one of them lies, 0 <= first_s < bar_s. The places are
            circular: a beat just before 0 is at the far end.
        beats_per_bar: at least 1; 4 where it is not known.
        source: who found it: "said", "beat_this" or "librosa".
    """

    beat_s: float
    first_s: float
    beats_per_bar: int = 4
    source: str = "said"

    def __post_init__(self) -> None:
        if not 0 < self.beat_s < math.inf:
            raise CallError(f"a beat of {self.beat_s:g} s is none; give a tempo above 0 bpm")
        if self.beats_per_bar < 1:
            raise CallError(f"{self.beats_per_bar} beats are no bar; give at least 1")

    @property
    def tempo_bpm(self) -> float:
        """Beats a minute."""
        return 60 / self.beat_s

    @property
    def bar_s(self) -> float:
        """Length of a bar, seconds."""
        return self.beats_per_bar * self.beat_s


def said(tempo_bpm: float, beats_per_bar: int = 4) -> Pulse:
    """The pulse of audio whose tempo is known and that begins on a downbeat.

    Raises:
        CallError: the tempo is not above 0, or there is not one beat in a bar.
    """
    if not 0 < tempo_bpm < math.inf:
        raise CallError(f"{tempo_bpm:g} bpm is no tempo; give one above 0")
    return Pulse(60 / tempo_bpm, 0.0, beats_per_bar)


def aligned_bars(pulse: Pulse, low_s: float, high_s: float, bars: int = 4) -> int | None:
    """Whole bars that last from ``low_s`` to ``high_s`` seconds, bounds included.

    ``bars`` if they do, else the first of twice and four times as many (where they are too short)
    or a half and a quarter (too long) that does. LoopGen (Algorithm 1) repeats without a limit, so
    it never ends where doubling skips the bounds; it also cuts a bar in half.

    Args:
        bars: how many are wanted, at least 1.

    Returns:
        The number, or None where none of these lies inside.

    Raises:
        CallError: the bounds are no range, or fewer bars than one are requested.
    """
    if not 0 <= low_s <= high_s:
        raise CallError(
            f"from {low_s:g} to {high_s:g} s is no range; give the shorter duration first"
        )
    if bars < 1:
        raise CallError(f"{bars} bars are no loop; ask for at least 1")
    number = bars
    while number * pulse.bar_s < low_s and number < FURTHEST * bars:
        number *= 2
    while number * pulse.bar_s > high_s and number % 2 == 0 and FURTHEST * number > bars:
        number //= 2
    return number if low_s <= number * pulse.bar_s <= high_s else None


def regressed(times_s: Iterable[float]) -> tuple[float, float]:
    """Fit an even pulse to beats, of which some may be missing, doubled or misplaced.

    First a search within a tenth of the median interval finds the period for which the phases of
    all beats agree best. Counting from beat to beat would slip at every doubled one. Then least
    squares fit the line, twice more without outliers.

    Args:
        times_s: at least two different times, seconds, in any order.

    Returns:
        Length of a beat, and the place of one, 0 <= place < length, seconds.

    Raises:
        LoopError: there are no two different times, or some are no numbers.
    """
    times = np.sort(np.asarray([*times_s], np.float64))
    intervals = np.diff(times)
    intervals = intervals[intervals > 0]
    if not intervals.size or not np.isfinite(times).all():
        raise LoopError("no two beats at different times; give the tempo with --bpm")
    beat_s, first_s = _gathered(times, float(np.median(intervals)))
    for _ in range(3):
        numbers = np.round((times - first_s) / beat_s)
        off = np.abs(times - first_s - numbers * beat_s)
        near = off <= max(3 * float(np.median(off)), beat_s / 1000)
        if np.ptp(numbers[near]) == 0:
            break
        beat_s, first_s = _line(numbers[near], times[near])
    place_s = first_s % beat_s
    return beat_s, place_s if place_s < beat_s else 0.0  # of the least number below 0, it is not


def _gathered(times: Times, about_s: float) -> tuple[float, float]:
    """The period within a tenth of ``about_s`` for which phases agree best, and a beat's time."""
    # A step changes the phase of the last beat against the first by a quarter of a turn at most.
    steps = max(1, math.ceil(0.1 * 4 * np.ptp(times) / about_s))
    rates_hz = (1 + np.linspace(-0.1, 0.1, 2 * steps + 1)) / about_s
    turns = 2j * np.pi * (times - times[0])
    centres = np.array([np.exp(turns * rate_hz).mean() for rate_hz in rates_hz])
    best = int(np.abs(centres).argmax())
    beat_s = float(1 / rates_hz[best])
    return beat_s, float(times[0] + np.angle(centres[best]) / (2 * np.pi) * beat_s)


def _line(numbers: Times, times: Times) -> tuple[float, float]:
    """Slope and intercept of times over numbers."""
    middle = numbers.mean()
    slope = float((numbers - middle) @ (times - times.mean()) / np.square(numbers - middle).sum())
    return slope, float(times.mean() - slope * middle)


def track(wave: Wave) -> Pulse:
    """The pulse of audio, by beat_this where it and its checkpoint are installed, else by librosa.

    Nothing is downloaded. librosa knows no bars, so its pulse has 4 beats in each. Either may take
    a tempo for its half or its double.

    Raises:
        LoopError: there are no beats, too few, or they are not even.
        ImportError: neither tracker is installed.
    """
    if not np.isfinite(wave.samples).all():
        raise LoopError("no beats: samples that are not finite; give other audio")
    if wave.peak == 0:
        raise _none("it is silent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of trackers, about their own insides
        network = _beat_this()
        if network is None:
            source, beats, downbeats = "librosa", _librosa(wave), np.empty(0)
        else:
            found = network(np.ascontiguousarray(wave.samples.T), wave.rate)
            source, (beats, downbeats) = "beat_this", (np.asarray(part, float) for part in found)
    if len(beats) < MIN_BEATS:
        raise _none(f"{len(beats)} in {wave.duration_s:.1f} s, and it takes {MIN_BEATS} to be sure")
    beat_s, first_s = regressed(beats)
    off_s = np.abs((beats - first_s + beat_s / 2) % beat_s - beat_s / 2)
    if np.quantile(off_s, 0.75) > max(NEAR_BEATS * beat_s, NEAR_S):
        raise _none("what there is has no even pulse")
    return Pulse(beat_s, *_bars(beat_s, first_s, downbeats), source)


def _none(cause: str) -> LoopError:
    return LoopError(f"no beats: {cause}; give the tempo with --bpm")


def _bars(beat_s: float, first_s: float, downbeats: Times) -> tuple[float, int]:
    """Where a downbeat lies, and the beats of a bar; where none is known, a beat, and 4."""
    if len(downbeats) < 2:
        return first_s, 4
    beats_per_bar = max(1, round(float(np.median(np.diff(downbeats))) / beat_s))
    numbers = np.round((downbeats - first_s) / beat_s).astype(int) % beats_per_bar
    return first_s + int(np.bincount(numbers).argmax()) * beat_s, beats_per_bar


def _beat_this() -> Any | None:  # its `Audio2Beats`
    """The tracker of the name, or None where it or its checkpoint is not on this machine."""
    try:
        inference = importlib.import_module("beat_this.inference")
        hub = importlib.import_module("torch.hub")
    except (ImportError, OSError):  # OSError: a torchaudio that fits no library of the system
        return None
    checkpoint = Path(hub.get_dir()) / "checkpoints" / CHECKPOINT
    return inference.Audio2Beats(str(checkpoint)) if checkpoint.is_file() else None


def _librosa(wave: Wave) -> Times:
    """Beats at the onsets next to those of its dynamic programming, less those without an onset."""
    try:
        soxr = importlib.import_module("soxr")
        onset = importlib.import_module("librosa.onset")
        beat = importlib.import_module("librosa.beat")
    except ImportError as error:
        raise ImportError("tracking beats: pip install librosa", name="librosa") from error
    mono = soxr.resample(wave.samples.mean(axis=0), wave.rate, RATE)
    if len(mono) < HOP * MIN_BEATS:  # less than its filters read
        return np.empty(0)
    strength = onset.onset_strength(y=mono, sr=RATE, hop_length=HOP, aggregate=np.median)
    if not strength.any():
        return np.empty(0)
    _, frames = beat.beat_track(onset_envelope=strength, sr=RATE, hop_length=HOP, trim=False)
    return _peaks(strength, frames) * HOP / RATE - PEAK_LATE_S


def _peaks(strength: NDArray[Any], frames: NDArray[Any]) -> Times:
    """The strongest onset within `REACH` of each frame, between frames, where there is a clear one.

    The tracker trades onsets for even intervals, and ends on beats that nothing is played on.
    """
    peaks = []
    for frame in frames:
        low, high = max(1, frame - REACH), min(len(strength) - 1, frame + REACH + 1)
        if low >= high:
            continue
        peak = low + int(strength[low:high].argmax())
        before, top, after = (float(value) for value in strength[peak - 1 : peak + 2])
        bend = before + after - 2 * top
        if bend < 0 and top >= max(before, after, FAINT * strength.max()):
            peaks.append(peak + (before - after) / 2 / bend)  # the top of a parabola through them
    return np.asarray(peaks, np.float64)
