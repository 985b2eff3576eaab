"""Effects that know no ends: the sound that leaves at the last sample comes in at the first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audioloop.io.wave import Samples, Wave

# A room of our own: noise that fades by 60 dB in the time below, the highs sooner than the lows.
REVERB_S = 1.6
REVERB_DELAY_S = 0.012
REVERB_HIGHS_HZ = 5_000.0
REVERB_SEED = 20
CHORUS_DELAY_S, CHORUS_DEPTH_S = 0.012, 0.0025
CHORUS_HZ = 0.6
MINUS_60_DB = np.log(1e3)


def reverb(wave: Wave, amount: float) -> Wave:
    """Add a room by circular convolution, which is exactly periodic.

    Args:
        wave: two channels.
        amount: level of the room beside the dry sound, 0 to 1.
    """
    length = len(wave)
    response = fold(room(wave.rate), length)
    spectrum = np.fft.rfft(wave.samples, axis=1) * np.fft.rfft(response, axis=1)
    wet = np.fft.irfft(spectrum, length, axis=1)
    return Wave(np.asarray(wave.samples + np.float32(amount) * wet, np.float32), wave.rate)


def room(rate: int) -> Samples:
    """An impulse response of two channels whose energy is 1 each: float32 (2, samples)."""
    time_s = np.arange(round(REVERB_S * rate)) / rate
    noise = np.random.default_rng(REVERB_SEED).standard_normal((2, len(time_s)))
    # A one-pole low-pass whose corner falls as the room dies away.
    dark = np.exp(-2 * np.pi * REVERB_HIGHS_HZ * np.exp(-2 * time_s / REVERB_S) / rate)
    tone = np.zeros(2)
    response = np.empty_like(noise)
    for at in range(len(time_s)):
        tone = (1 - dark[at]) * noise[:, at] + dark[at] * tone
        response[:, at] = tone
    response *= np.exp(-MINUS_60_DB * time_s / REVERB_S)
    response /= np.sqrt((response**2).sum(1, keepdims=True))
    delay = np.zeros((2, round(REVERB_DELAY_S * rate)))
    return np.concatenate([delay, response], axis=1).astype(np.float32)


def fold(response: Samples, length: int) -> Samples:
    """A response wrapped round a loop of ``length`` samples, as many times as it is longer."""
    n_passes = -(-response.shape[1] // length)
    padded = np.pad(response, ((0, 0), (0, n_passes * length - response.shape[1])))
    return np.asarray(padded.reshape(len(response), n_passes, length).sum(1), np.float32)


def chorus(wave: Wave, amount: float) -> Wave:
    """Add a copy whose delay swings, by as many whole swings as are nearest to `CHORUS_HZ`.

    Args:
        amount: level of the copy, 0 to 1.
    """
    length = len(wave)
    swings = max(1, round(CHORUS_HZ * wave.duration_s))
    phase = 2 * np.pi * swings * np.arange(length) / length
    sides = np.array([0.0, np.pi / 2])[: len(wave.samples), None]  # the channels swing apart
    delay = (CHORUS_DELAY_S + CHORUS_DEPTH_S * np.sin(phase + sides)) * wave.rate
    copy = np.stack(
        [
            _read(channel, np.arange(length) - late)
            for channel, late in zip(wave.samples, delay, strict=True)
        ]
    )
    return Wave(np.asarray(wave.samples + np.float32(amount) * copy, np.float32), wave.rate)


def _read(channel: Samples, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Samples between samples of a circular wave, by cubic (Catmull-Rom) interpolation."""
    whole = np.floor(places).astype(np.int64)
    part = places - whole
    before, here, after, later = (channel.take(whole + k, mode="wrap") for k in (-1, 0, 1, 2))
    slope, slope_after = (after - before) / 2, (later - here) / 2
    step = after - here
    cubic = slope + slope_after - 2 * step
    square = 3 * step - 2 * slope - slope_after
    return np.asarray(here + part * (slope + part * (square + part * cubic)))
