"""Where onsets are lost between notes and what is written after them, setting by setting.

    python tests/benchmarks/following.py LOOPS [--loops 24] [--seeds 4] [--known 0]
        [--steps 20,8,6,6] [--temperature 0.8] [--top-p 0.9] [--cfg-scale 1] [--choice-temperature
        1] [--rescoring-weight 0] [--best-of 4] [--masked-model RUN] [--causal-model RUN] [--codec
        RUN] [--soundfont FILE]

Loops are of validation songs, conditioned as in `generate`; the first codebooks may be those of
true renders (`--known`), so that one sees what is lost from there on. Onsets are found and matched
as in `onsets`. One seed says little: a difference below two standard errors is chance.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import sampling_options
import torch
from numpy.typing import NDArray

import onsets
from audioloop.codec import compression
from audioloop.conditioning import Conditioning
from audioloop.io.wave import Wave
from audioloop.pipelines import inpaint, inputs
from audioloop.pipelines.inpaint import CONDITIONED, SAMPLING, Inpainter, SamplingConfig
from audioloop.rendering import render, synth
from midiloop.grid import Roll
from onsets import CHOSEN, RATE, WITHIN_S


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--loops", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--known", type=int, default=0, help="codebooks of the true render")
    parser.add_argument("--best-of", type=int, default=SAMPLING.best_of)
    sampling_options.add_options(parser, CONDITIONED)
    options = parser.parse_args()
    inpainter = inpaint.load(
        options.masked_model,
        options.causal_model,
        options.codec,
        with_causal=options.rescoring_weight > 0,
    )
    font = synth.SoundFont(synth.soundfont(options.soundfont), RATE)
    pieces = onsets.loops(options.dataset, "valid", options.loops)
    rendered = [render.loop(loop, font).mix for loop in pieces]
    print(f"{len(pieces)} loops of validation songs, {1000 * WITHIN_S:g} ms")
    means = np.zeros((options.seeds, 3))
    for seed in range(options.seeds):
        sampling = replace(sampling_options.sampling(options, seed), best_of=options.best_of)
        found = [
            figures(
                *written(inputs.conditioning_of(loop), true, inpainter, options.known, sampling)
            )
            for loop, true in zip(pieces, rendered, strict=True)
        ]
        means[seed] = np.mean(found, 0)
        print(f"seed {seed:<5}" + " ".join(f"{mean:7.3f}" for mean in means[seed]), flush=True)
    for name, column in zip(("F1", "precision", "recall"), means.T, strict=True):
        off = f" ± {column.std(ddof=1) / len(column) ** 0.5:.3f}" if len(column) > 1 else ""
        print(f"{name:<10}{column.mean():7.3f}{off}")


def written(
    conditioning: Conditioning,
    true: Wave,
    inpainter: Inpainter,
    known: int,
    sampling: SamplingConfig,
) -> tuple[Wave, Roll]:
    """What is written after the notes of a render, its first codebooks those of the render."""
    assert conditioning.roll is not None
    tokens = compression.encode(true, inpainter.codec).codes
    inpaint_mask = torch.ones(tokens.shape[1:], dtype=torch.bool)
    inpaint_mask[:known] = False
    condition = conditioning.on(tokens.shape[2], inpainter.codec.config.frames_per_s)
    drafts = inpainter.inpaint(tokens, inpaint_mask, condition, 1, sampling)
    return inpainter.decoded(drafts, len(true), RATE), conditioning.roll


def figures(wave: Wave, roll: Roll) -> NDArray[np.float64]:
    """F1, precision and recall of what is detected of a loop, each 0 to 1."""
    detected = onsets.heard_s(wave, CHOSEN)
    wanted = onsets.written_s(roll, wave.duration_s)
    right = onsets.matched(detected, wanted, wave.duration_s)
    f1 = onsets.f_measure(detected, wanted, wave.duration_s)
    return np.array([f1, right / max(1, len(detected)), right / max(1, len(wanted))])


if __name__ == "__main__":
    main()
