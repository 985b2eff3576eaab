"""Metrics of a decoded wave against the original.

All take mono waves of the same length. `si_sdr_db`, `stft_distance` and `mel_distance` are those of
Table 5 of the Stable Audio paper (Evans et al. 2024), equal to the library auraloss (Steinmetz and
Reiss 2020) with its defaults.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Mono = NDArray[np.float32]  # (samples,)

# Window, hop and points of the transform, in samples.
RESOLUTIONS = ((600, 120, 1024), (1200, 240, 2048), (240, 50, 512))
MEL_RESOLUTION = (1024, 256, 1024)
MEL_BANDS = 128
QUIETEST = 1e-8  # power
TINY = 1e-8
HIGH_HZ = 8_000.0


def si_sdr_db(found: Mono, wanted: Mono) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, higher is better.

    Le Roux et al. 2019, equation 3, of waves without their mean. From -80, where one of them is
    silent, to about 80 and more where they are equal.
    """
    x, y = (wave.astype(np.float64) - wave.mean(dtype=np.float64) for wave in (wanted, found))
    target = (x @ y) / (x @ x + TINY) * x
    error = y - target
    return float(10 * np.log10(target @ target / (error @ error + TINY) + TINY))


def stft_distance(found: Mono, wanted: Mono) -> float:
    """Spectral convergence and difference of log magnitudes at three resolutions.

    0 for equal waves, without upper bound. Yamamoto et al. 2020, equations 4 to 6.
    """
    ours, theirs = torch.from_numpy(found), torch.from_numpy(wanted)
    distances = [
        _distance(_magnitudes(ours, *resolution), _magnitudes(theirs, *resolution))
        for resolution in RESOLUTIONS
    ]
    return float(np.mean(distances))


def mel_distance(found: Mono, wanted: Mono, rate: int) -> float:
    """The distance of 128 mel bands at one resolution: 0 for equal waves, without upper bound."""
    bands = _mel(rate)
    ours, theirs = (
        bands @ _magnitudes(torch.from_numpy(wave), *MEL_RESOLUTION) for wave in (found, wanted)
    )
    return _distance(ours, theirs)


def high_gap_db(found: Mono, wanted: Mono, rate: int) -> float:
    """Energy above 8 kHz (cymbals) relative to the original, in dB; 0 for as much."""
    energies = []
    for wave in (found, wanted):
        spectrum = np.fft.rfft(wave.astype(np.float64))
        high = spectrum[math.ceil(HIGH_HZ * len(wave) / rate) :]
        energies.append(float((high.real**2 + high.imag**2).sum()) / len(wave) + TINY**2)
    return float(10 * np.log10(energies[0] / energies[1]))


def _magnitudes(wave: Tensor, window: int, hop: int, points: int) -> Tensor:
    """Magnitudes of a wave (samples,): (bins, frames)."""
    spectra = torch.stft(wave, points, hop, window, torch.hann_window(window), return_complex=True)
    return (spectra.real.square() + spectra.imag.square()).clamp(min=QUIETEST).sqrt()


def _distance(ours: Tensor, theirs: Tensor) -> float:
    convergence = (theirs - ours).norm() / theirs.norm()
    return float(convergence + (ours.log() - theirs.log()).abs().mean())


@functools.cache
def _mel(rate: int) -> Tensor:
    """Slaney's filters, of equal area: (128, bins).

    Slaney 1998, *Auditory Toolbox*: linear up to 1 kHz and logarithmic above.
    """
    points = MEL_RESOLUTION[2]

    def mel_of(hz: float) -> float:
        return 3 * hz / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    mels = np.linspace(0, mel_of(rate / 2), MEL_BANDS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * math.log(6.4) / 27))
    hz = np.arange(points // 2 + 1) * rate / points
    low, centre, high = (edges[i : MEL_BANDS + i, None] for i in range(3))
    filters = np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)).clip(0)
    return torch.from_numpy((filters * 2 / (high - low)).astype(np.float32))
