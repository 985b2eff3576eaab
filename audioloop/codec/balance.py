"""Restores the energy that a decoder loses at high frequencies.

A decoder trained on distances returns the average of what it cannot predict. The average of noises
is softer than each of them, so cymbals come back too soft. How much is lost is measured on
validation loops. A shelving filter of the decoder's synthesis windows makes up for it: filtering
the windows filters their sum, so a circular wave stays circular, and neither latents nor tokens
change.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from audioloop.codec.fidelity import HIGH_HZ
from audioloop.codec.model import Codec
from audioloop.io.wave import Samples

LOW_HZ = 6_000.0  # below, nothing changes
MOST_DB = 6.0
QUIETEST = 1e-12  # mean square of the highs; below, there is rounding and no sound


@torch.no_grad()
def balanced(codec: Codec, rings: Sequence[Samples]) -> Codec:
    """A copy, in evaluation mode, whose highs are as strong as those of the validation loops.

    Only the synthesis windows of the decoder differ, and only if energy is missing.

    Args:
        codec: it stays as it is.
        rings: validation loops, see `missing_db`.
    """
    copied = copy.deepcopy(codec).eval()
    gain_db = missing_db(copied, rings)
    if gain_db > 0:
        basis = copied.decoder.frames.basis
        basis.copy_(shelved(basis, codec.config.rate, gain_db))
    return copied


@torch.no_grad()
def missing_db(codec: Codec, rings: Sequence[Samples]) -> float:
    """Missing energy above 8 kHz in dB, the mean of decoding from latents and from tokens.

    From 0 to `MOST_DB`: more was never learned, rather than lost. The energies of all loops are
    summed first. Otherwise loops of bass alone would dominate: their highs are next to nothing, and
    may come back many times too loud.

    Args:
        codec: in evaluation mode.
        rings: loops (frame · T,) at the codec's rate, each a whole number of its frames.
    """
    rate = codec.config.rate
    wanted, found = 0.0, np.zeros(2)
    n_samples = 0
    for samples in rings:
        ring = torch.from_numpy(samples).to(codec.device)[None, None]
        latent = codec.encode(ring, circular=True)
        both = torch.cat([latent, codec.dequantize(codec.quantize(latent))])
        waves = codec.decode(both, circular=True)[:, 0].cpu().numpy()
        wanted += _high_energy(samples, rate)
        found += [_high_energy(wave, rate) for wave in waves]
        n_samples += len(samples)
    if min(wanted, *found) <= QUIETEST * n_samples:
        return 0.0
    excess_db = float(np.mean(10 * np.log10(found / wanted)))
    return min(max(-excess_db, 0.0), MOST_DB)


def shelved(windows: Tensor, rate: int, gain_db: float) -> Tensor:
    """Windows (n, samples) with ``gain_db`` more above 8 kHz, unchanged below 6 kHz.

    In between, the gain in dB rises as half a cosine. The filter is symmetric in time, so it has no
    phase. It is about a millisecond long; what reaches beyond the ends of a window is cut off.
    """
    n_samples = windows.shape[1]
    spectra = torch.fft.rfft(windows.detach().cpu().double(), 2 * n_samples)
    hz = torch.fft.rfftfreq(2 * n_samples, 1 / rate, dtype=torch.float64)
    position = ((hz - LOW_HZ) / (HIGH_HZ - LOW_HZ)).clamp(0, 1)
    rise = (1 - torch.cos(math.pi * position)) / 2
    filtered: Tensor = torch.fft.irfft(spectra * 10 ** (gain_db * rise / 20), 2 * n_samples)
    return filtered[:, :n_samples].to(windows)


def _high_energy(wave: Samples, rate: int) -> float:
    """Mean energy of a wave above 8 kHz."""
    spectrum = np.fft.rfft(wave.astype(np.float64))
    high = spectrum[math.ceil(HIGH_HZ * len(wave) / rate) :]
    return float((high.real**2 + high.imag**2).sum()) / len(wave)
