"""What is measured of a loop that was made: its seam, as a model and as an ear has it, its sound.

Figures are of the loop as it sounds, whatever codes it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from audioloop.codec import compression
from audioloop.conditioning import Conditioning
from audioloop.evaluation import perplexity
from audioloop.evaluation.loopgen.methods import MethodOutput
from audioloop.evaluation.perplexity import AHEAD, WINDOW
from audioloop.io.wave import SILENT, Wave
from audioloop.pipelines.inpaint import Inpainter
from audioloop.signal import mel, seam
from audioloop.tokens.model import Causal
from midiloop.errors import CallError, counted

REACH = 20  # frames on each side of the seam that figure 3 of LoopGen's paper shows
EMBEDDED_S, HOP_S, SPECTRUM_S = 1.0, 0.5, 0.02

Vectors = NDArray[np.float64]  # (windows, 128)


def of(made: MethodOutput, inpainter: Inpainter, *, conditioned: bool) -> dict[str, Any]:
    """All that is measured of a loop, on the loop as it sounds: coded anew on the circle.

    Args:
        conditioned: also as a model sees the seam that is told what the loop was made with.
    """
    wave, codec, causal = made.wave, inpainter.codec, inpainter.causal
    assert causal is not None  # as it was loaded
    codes = compression.encode(wave, codec).codes[0]
    nats = nats_around(codes, causal)
    seam_nats = nats[:, REACH : REACH + WINDOW].mean(1)
    frames, rest = np.divmod(made.bar_lines, codec.config.frame)
    assert not rest.any()  # so the seam and all of them are at the beginning of a frame
    at_bars = perplexity.nats_at(codes, frames.tolist(), causal)
    found: dict[str, Any] = {
        "nats": float(seam_nats[0]),
        "nats_all": float(seam_nats.mean()),
        "bars": at_bars[:, 0].tolist(),
        "bars_all": at_bars.mean(1).tolist(),
        "around": [round(value, 4) for value in nats[0].tolist()],
    }
    if conditioned:
        heard = perplexity.nats_at(codes, [0], causal, made.condition)[0]
        found |= {"conditioned_nats": float(heard[0]), "conditioned_nats_all": float(heard.mean())}
    return {
        **found,
        **_sounds(wave, made.bar_lines),
        "wrap_error_db": made.wrap_error_db,
        "windows": windows(wave),
        "seconds": round(made.seconds, 3),
    }


@torch.inference_mode()
def nats_around(codes: Tensor, model: Causal) -> NDArray[np.float64]:
    """Cross-entropy of each frame on both sides of a ring's seam (K, T): (K, 2 · `REACH` + 1).

    Value number `REACH` is of the first frame after the seam. The model is told nothing, and
    hears what `perplexity.context_frames` the seam.
    """
    n_frames = codes.shape[1]
    context = max(REACH, perplexity.context_frames(n_frames))
    span = torch.arange(-context, REACH + 1 + AHEAD)
    line = codes[None][..., span % n_frames]
    first = context - REACH
    logits = model(line, Conditioning().on(n_frames, 1.0).at(span), first)[0].float()
    nats = F.cross_entropy(
        logits.flatten(0, 1), line[0, :, first:].flatten(), reduction="none"
    ).reshape(len(codes), -1)
    return nats[:, : 2 * REACH + 1].double().numpy()


def _sounds(wave: Wave, bar_lines: Sequence[int]) -> dict[str, float | None]:
    if wave.peak < SILENT:
        return dict.fromkeys(("jump", "residual", "flux_percentile", "bar_flux_percentile"))
    among = [seam.flux(wave, line) for line in bar_lines]
    return {
        "jump": seam.jump(wave, 0),
        "residual": seam.residual(wave, 0),
        "flux_percentile": seam.flux_percentile(wave, 0),
        "bar_flux_percentile": seam.percentile(seam.flux(wave, 0), among) if among else None,
    }


def embedded(wave: Wave) -> Vectors:
    """Mean and standard deviation of 64 log-mel bands in windows round a loop: (windows, 128), dB.

    Windows are 1 s long, about every 0.5 s, so that a whole number of them goes round; spectra are
    relative to the loop's peak, every 20 ms. A silent loop has none.
    """
    if wave.peak < SILENT:
        return np.zeros((0, 2 * mel.BANDS))
    n_spectra = max(1, round(wave.duration_s / SPECTRUM_S))
    centres = np.floor((np.arange(n_spectra) + 0.5) * (len(wave) / n_spectra)).astype(np.int64)
    spectra = mel.decibels(wave, centres)
    n_windows = max(1, round(wave.duration_s / HOP_S))
    starts = np.arange(n_windows) * n_spectra // n_windows
    levels = spectra[(starts[:, None] + np.arange(round(EMBEDDED_S / SPECTRUM_S))) % n_spectra]
    return np.concatenate([levels.mean(1), levels.std(1)], axis=1)


def windows(wave: Wave) -> list[list[float]]:
    """`embedded`, as JSON holds it: to a thousandth of a dB."""
    found: list[list[float]] = np.round(embedded(wave), 3).tolist()
    return found


def frechet(some: ArrayLike, others: ArrayLike) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of vectors (n, d): 0 or more.

    |m - m'|² + tr(C + C' - 2 (C½ C' C½)½), with covariances over n.

    Raises:
        CallError: there are fewer than two in one.
    """
    means, spreads = [], []
    for vectors in (np.asarray(some, np.float64), np.asarray(others, np.float64)):
        if len(vectors) < 2:
            raise CallError(f"a distance of {counted(len(vectors), 'window')}; give 2 or more")
        means.append(vectors.mean(0))
        spreads.append(np.cov(vectors.T, bias=True).reshape(2 * (vectors.shape[1],)))
    root = _root(spreads[0])
    shared = np.sqrt(np.linalg.eigvalsh(root @ spreads[1] @ root).clip(0)).sum()
    apart = np.square(means[0] - means[1]).sum()
    return max(0.0, float(apart + np.trace(spreads[0]) + np.trace(spreads[1]) - 2 * shared))


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The square root of a covariance."""
    values, axes = np.linalg.eigh(matrix)
    return np.asarray((axes * np.sqrt(values.clip(0))) @ axes.T)
