"""Metrics of a generated loop: seam perplexity, acoustic measures of the seam, and its spectrum.

All are of the wave, whatever tokens it was decoded from.
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


def of(output: MethodOutput, inpainter: Inpainter, *, conditioned: bool) -> dict[str, Any]:
    """All metrics of a loop. For those of the seam it is encoded again, as a circular sequence.

    Args:
        output: the loop.
        inpainter: the codec and the models.
        conditioned: measure the seam also under a model with the loop's own conditioning.
    """
    wave, codec, causal = output.wave, inpainter.codec, inpainter.causal
    assert causal is not None  # as it was loaded
    tokens = compression.encode(wave, codec).codes[0]
    nats = nats_around(tokens, causal)
    seam_nats = nats[:, REACH : REACH + WINDOW].mean(1)
    frames, rest = np.divmod(output.bar_lines, codec.config.frame)
    assert not rest.any()  # so the seam and all bar lines are at the start of a frame
    at_bars = perplexity.nats_at(tokens, frames.tolist(), causal)
    found: dict[str, Any] = {
        "nats": float(seam_nats[0]),
        "nats_all": float(seam_nats.mean()),
        "bars": at_bars[:, 0].tolist(),
        "bars_all": at_bars.mean(1).tolist(),
        "around": [round(value, 4) for value in nats[0].tolist()],
    }
    if conditioned:
        nats_ = perplexity.nats_at(tokens, [0], causal, output.condition)[0]
        found |= {"conditioned_nats": float(nats_[0]), "conditioned_nats_all": float(nats_.mean())}
    return {
        **found,
        **_sounds(wave, output.bar_lines),
        "wrap_error_db": output.wrap_error_db,
        "windows": windows(wave),
        "seconds": round(output.seconds, 3),
    }


@torch.inference_mode()
def nats_around(tokens: Tensor, model: Causal) -> NDArray[np.float64]:
    """Cross-entropy of each frame around a loop's seam: tokens (K, T) to (K, 2 · `REACH` + 1).

    Value number `REACH` is of the first frame after the seam. The model is unconditional; its
    context is at least `perplexity.context_frames` before the seam.
    """
    n_frames = tokens.shape[1]
    context = max(REACH, perplexity.context_frames(n_frames))
    span = torch.arange(-context, REACH + 1 + AHEAD)
    line = tokens[None][..., span % n_frames]
    first = context - REACH
    logits = model(line, Conditioning().on(n_frames, 1.0).at(span), first)[0].float()
    nats = F.cross_entropy(
        logits.flatten(0, 1), line[0, :, first:].flatten(), reduction="none"
    ).reshape(len(tokens), -1)
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
    """Embedding of a loop: mean and standard deviation of 64 log-mel bands, (windows, 128), in dB.

    Windows are 1 s long and about 0.5 s apart: a whole number of them fits the loop. Spectra are
    relative to the loop's peak, every 20 ms. A silent loop has no windows.
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
    """`embedded` as JSON values, rounded to a thousandth of a dB."""
    found: list[list[float]] = np.round(embedded(wave), 3).tolist()
    return found


def frechet(some: ArrayLike, others: ArrayLike) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of vectors (n, d): 0 or more.

    |m - m'|² + tr(C + C' - 2 (C½ C' C½)½), with covariances over n.

    Raises:
        CallError: a set has fewer than two vectors.
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
    """The square root of a covariance matrix."""
    values, axes = np.linalg.eigh(matrix)
    return np.asarray((axes * np.sqrt(values.clip(0))) @ axes.T)
