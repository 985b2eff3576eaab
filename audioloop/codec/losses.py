"""Reconstruction losses: distances of spectra at several resolutions, and of the waveform."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from audioloop.nn.circular import pad

WINDOWS = (128, 256, 512, 1024, 2048)
MEL_BANDS = (10, 20, 40, 80, 120)
QUIET = 1e-4  # magnitude, of a sine of amplitude 1; softer bins count little
SILENCE = 1e-6  # power


class Distances(NamedTuple):
    """Terms of a loss, each (), lowest for equal waves: 0 but for ``waveform``.

    Attributes:
        waveform: log10 of the error's energy over the signal's, a tenth of the negative SNR in dB;
            −3 for equal waves.
        convergence: spectral convergence, the RMS of the error of magnitudes over that of
            magnitudes.
        magnitude: mean absolute difference of log magnitudes.
        mel: mean absolute difference of log mel bands.
        level: difference of the log energies of mel bands over all frames. The median of likely
            noises is softer than each of them; this term asks for their energy.
        change: mean absolute difference of how log mel bands change within a window. A held note
            that wavers is near in ``mel``, but sounds like a repeated onset.
    """

    waveform: Tensor
    convergence: Tensor
    magnitude: Tensor
    mel: Tensor
    level: Tensor
    change: Tensor


def distances(found: Tensor, wanted: Tensor, rate: int, *, circular: bool) -> Distances:
    """Distances of decoded waves from the wanted ones, both (B, 1, samples)."""
    found, wanted = found.float().squeeze(1), wanted.float().squeeze(1)
    error = (found - wanted).square().mean(1)
    power = wanted.square().mean(1)
    waveform = torch.log10((error + SILENCE) / (power + SILENCE) + 1e-3).mean()
    sums = [found.new_zeros(()) for _ in range(5)]
    for window, bands in zip(WINDOWS, MEL_BANDS, strict=True):
        ours, theirs = (spectrum(x, window, circular=circular) for x in (found, wanted))
        convergence = _rms(ours - theirs) / (_rms(theirs) + QUIET)
        filters = mel(window // 2 + 1, bands, rate).to(found.device)
        sums[0] = sums[0] + convergence.mean()
        sums[1] = sums[1] + _log_distance(ours, theirs)
        off = _log(filters @ ours) - _log(filters @ theirs)
        sums[2] = sums[2] + off.abs().mean()
        sums[4] = sums[4] + _changes(off, circular=circular).abs().mean()
        energies = (filters @ x.square().mean(2, keepdim=True) for x in (ours, theirs))
        sums[3] = sums[3] + _log_distance(*(energy.sqrt() for energy in energies))
    return Distances(waveform, *(total / len(WINDOWS) for total in sums))


def _rms(spectra: Tensor) -> Tensor:
    return (spectra.square().mean((1, 2)) + SILENCE * QUIET).sqrt()


def _changes(bands: Tensor, *, circular: bool) -> Tensor:
    """Change of bands (B, bands, frames) over four frames, the length of a window."""
    since = bands - bands.roll(4, 2)
    return since if circular else since[..., 4:]


def _log_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    return (_log(ours) - _log(theirs)).abs().mean()


def _log(magnitudes: Tensor) -> Tensor:
    return (magnitudes + QUIET).log()


def transform(x: Tensor, window: int, *, circular: bool) -> Tensor:
    """STFT of waves (B, samples) with a hop of a quarter of a window: complex (B, bins, frames).

    A sine of amplitude 1 has magnitude 1.
    """
    shape = torch.hann_window(window, device=x.device)
    reach = window // 2 - window // 8
    return torch.stft(
        pad(x, reach, reach, circular=circular),
        window,
        window // 4,
        window=shape * 2 / shape.sum(),
        center=False,
        return_complex=True,
    )


def spectrum(x: Tensor, window: int, *, circular: bool) -> Tensor:
    """Magnitudes of `transform`: (B, bins, frames)."""
    spectra = transform(x, window, circular=circular)
    # The floor keeps the gradient of the root finite at 0.
    return (spectra.real.square() + spectra.imag.square() + 1e-10).sqrt()


@functools.cache
@torch.inference_mode(False)  # cached tensors serve training as well
def mel(n_bins: int, bands: int, rate: int) -> Tensor:
    """Triangular mel filters from 0 to half the sample rate: (bands, bins)."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    hz = torch.linspace(0, rate / 2, n_bins, dtype=torch.float64)
    width = rate / 2 / (n_bins - 1)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    # At least a bin to each side: a narrow band might lie between two bins.
    low, high = torch.minimum(low, centre - width), torch.maximum(high, centre + width)
    up = (hz - low[:, None]) / (centre - low)[:, None]
    down = (high[:, None] - hz) / (high - centre)[:, None]
    filters = torch.minimum(up, down).clamp(min=0)
    return (filters / filters.sum(1, keepdim=True)).float()
