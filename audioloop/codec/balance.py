"""The energy that a decoder's highs lost, given back to them.

A decoder that learned from distances gives the average of all that it cannot predict, and the
average of noises is softer than each of them: cymbals come back too soft. By how much is measured
on loops that nothing was learned from. A shelf makes up for it, in the windows that the decoder
adds up: to filter them all is to filter their sum, so on a circle the wave is still one, and
neither latents nor codes change.
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

LOW_HZ = 6_000.0  # up to here nothing changes
MOST_DB = 6.0
QUIETEST = 1e-12  # mean square of highs; what is softer is rounding, and no sound to raise


@torch.no_grad()
def balanced(codec: Codec, rings: Sequence[Samples]) -> Codec:
    """A copy, in evaluation mode, whose highs are as strong as those of loops it never heard.

    Only the windows of the decoder differ, and where nothing is missing not even those.

    Args:
        rings: see `missing_db`.
    """
    made = copy.deepcopy(codec).eval()
    gain_db = missing_db(made, rings)
    if gain_db > 0:
        basis = made.decoder.frames.basis
        basis.copy_(shelved(basis, codec.config.rate, gain_db))
    return made


@torch.no_grad()
def missing_db(codec: Codec, rings: Sequence[Samples]) -> float:
    """What the highs lack on average of both ways, from latents and from codes, in dB.

    From 0, where they lack nothing, to `MOST_DB`: more is not lost, but was never learned. All
    loops' energies above 8 kHz are added up first. So the bass alone, whose highs are next to
    nothing and may come back many times too loud, does not decide, as it would in a mean of dB.

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
    gap_db = float(np.mean(10 * np.log10(found / wanted)))
    return min(max(-gap_db, 0.0), MOST_DB)


def shelved(windows: Tensor, rate: int, gain_db: float) -> Tensor:
    """Windows (n, samples) with ``gain_db`` more above 8 kHz and as much as before below 6 kHz.

    In between, dB rise as half a cosine. The filter is symmetric in time, so no phase moves; it is
    about a millisecond long, of which windows lose what would reach beyond their ends.
    """
    n_samples = windows.shape[1]
    spectra = torch.fft.rfft(windows.detach().cpu().double(), 2 * n_samples)
    hz = torch.fft.rfftfreq(2 * n_samples, 1 / rate, dtype=torch.float64)
    way_up = ((hz - LOW_HZ) / (HIGH_HZ - LOW_HZ)).clamp(0, 1)
    rise = (1 - torch.cos(math.pi * way_up)) / 2
    filtered: Tensor = torch.fft.irfft(spectra * 10 ** (gain_db * rise / 20), 2 * n_samples)
    return filtered[:, :n_samples].to(windows)


def _high_energy(wave: Samples, rate: int) -> float:
    """Sum of squares of what is above 8 kHz."""
    spectrum = np.fft.rfft(wave.astype(np.float64))
    high = spectrum[math.ceil(HIGH_HZ * len(wave) / rate) :]
    return float((high.real**2 + high.imag**2).sum()) / len(wave)
