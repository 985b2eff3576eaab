"""Log-mel spectra of a circular wave, relative to its peak."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from audioloop.io.wave import Samples, Wave

Signal = NDArray[np.float64]  # (channels, samples), or one of these axes

WINDOW_S = 2048 / 44100
BANDS, LOWEST_HZ, HIGHEST_HZ = 64, 30.0, 16_000.0
QUIETEST = 1e-8  # power in a band, of that of a sine at the loop's peak (-80 dB): silence below
_BLOCK = 256  # spectra at a time


def decibels(wave: Wave, centres: NDArray[np.int64]) -> Signal:
    """Log-mel spectra around positions of a circular wave: (positions, 64), dB, at least -80.

    Windows are 46 ms long (Hann), the bands are those of `band_hz`, and the powers of all channels
    are added. A sine as loud as the loop's peak has 0 dB.
    """
    return decibels_of(wave.samples, centres, wave.rate, wave.peak)


def decibels_of(
    samples: Samples | Signal, centres: NDArray[np.int64], rate: int, peak: float
) -> Signal:
    """The same of any samples (channels, samples), with ``peak`` for 0 dB."""
    window, bands = _mel(rate)
    n_bins = len(bands)
    offsets = np.arange(len(window)) - len(window) // 2
    levels = np.empty((len(centres), BANDS))
    for start in range(0, len(centres), _BLOCK):
        places = centres[start : start + _BLOCK, None] + offsets
        frames = samples.take(places, axis=1, mode="wrap") / np.float32(peak)
        spectra = np.fft.rfft(frames * window)[..., :n_bins]
        powers = (spectra.real**2 + spectra.imag**2).sum(0) @ bands
        levels[start : start + _BLOCK] = 10 * np.log10(np.maximum(powers, QUIETEST))
    return levels


@functools.cache
def _mel(rate: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The window, scaled so that a sine of amplitude 1 has power 1, and bands (bins, 64)."""
    window = np.hanning(2 * round(WINDOW_S * rate / 2))
    edges = band_hz(rate)
    bin_hz = rate / len(window)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    # At least a bin to each side, or a narrow band might fall between two.
    low, high = np.minimum(low, centre - bin_hz), np.maximum(high, centre + bin_hz)
    hz = np.arange(int(high[-1] / bin_hz) + 1)[: len(window) // 2 + 1, None] * bin_hz
    bands = np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)).clip(0)
    return (2 / window.sum() * window).astype(np.float32), bands.astype(np.float32)


def band_hz(rate: int) -> Signal:
    """Where bands begin, peak and end, (66,): band n at the values n, n + 1 and n + 2.

    They are evenly spaced in mel from 30 Hz to 16 kHz, or to half the rate.
    """
    low, high = 2595 * np.log10(1 + np.array([LOWEST_HZ, min(HIGHEST_HZ, rate / 2)]) / 700)
    return np.asarray(700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1))
