"""Loops without notes, setting by setting, beside true renders.

    python tests/benchmarks/unconditioned.py LOOPS [--loops 48] [--seed 0] [--steps 30,3,2,2]
        [--temperature 1] [--top-p 1] [--cfg-scale 4] [--choice-temperature 1] [--rescoring-weight
        0] [--masked-model RUN] [--causal-model RUN] [--codec RUN] [--soundfont FILE]

Loops are of validation songs, played and rendered as in `audioloop benchmark`. Generated ones have
the same length and are conditioned on beat, kit and bass. Silence is easy to predict and easy to
sample, so all columns count: perplexity at the seam and around it, under the causal model; the
share as far below the peak as a rest; and the distance from renders.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import sampling_options
import torch

from audioloop.codec import compression
from audioloop.evaluation.loopgen import measures, methods, test_set
from audioloop.evaluation.perplexity import WINDOW
from audioloop.io.wave import Wave
from audioloop.pipelines import inpaint
from audioloop.pipelines.inpaint import UNCONDITIONED
from audioloop.rendering import augment, synth
from midiloop.dataset.parquet import LoopDataset

STEPS = "30,3,2,2"  # quick
WINDOW_S = 6.0  # of loops of 2 to 4 s
PIECE_S, QUIET_DB = 0.05, -40.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--loops", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    sampling_options.add_options(parser, UNCONDITIONED)
    parser.set_defaults(steps=STEPS)
    options = parser.parse_args()
    inpainter = inpaint.load(
        options.masked_model, options.causal_model, options.codec, with_causal=True
    )
    rate = inpainter.codec.config.rate
    font = synth.SoundFont(synth.soundfont(options.soundfont), rate)
    source = augment.loops(LoopDataset(options.dataset), "valid")
    true, reconstructed, written = [], [], []
    for number in range(options.loops):
        item = test_set.evaluation_loop(
            source, number, options.seed, font, inpainter.codec, WINDOW_S
        )
        wave = methods.wave_of(item.ring, inpainter.codec)
        tokens = compression.encode(wave, inpainter.codec).codes
        conditioning = replace(item.conditioning, roll=None)
        condition = conditioning.on(item.n_frames, inpainter.codec.config.frames_per_s)
        inpaint_mask = torch.ones(item.n_frames, dtype=torch.bool)
        sampling = sampling_options.sampling(options, number + options.seed)
        one = inpainter.inpaint(tokens, inpaint_mask, condition, 1, sampling)
        true.append(wave)
        reconstructed.append(inpainter.decoded(tokens, len(wave), rate))
        written.append(inpainter.decoded(one, len(wave), rate))
    print(f"{len(true)} loops of validation songs\n")
    print(f"{'':<16}{'perplexity':>11}{'nats':>7}{'quiet %':>9}{'Fréchet':>9}")
    aim = vectors(true)
    for name, waves in (("render", true), ("its codes", reconstructed), ("told no notes", written)):
        nats = np.stack([around(wave, inpainter) for wave in waves])
        seam = np.exp(nats[:, measures.REACH : measures.REACH + WINDOW].mean())
        quiet = 100 * np.mean([quiet_share(wave) for wave in waves])
        distance = measures.frechet(vectors(waves), aim)
        print(f"{name:<16}{seam:11.1f}{nats.mean():7.2f}{quiet:9.1f}{distance:9.0f}", flush=True)


def around(wave: Wave, inpainter: inpaint.Inpainter) -> np.ndarray:
    """Nats of the first codebook in each frame around the seam."""
    assert inpainter.causal is not None  # as it was loaded
    tokens = compression.encode(wave, inpainter.codec).codes[0]
    found: np.ndarray = measures.nats_around(tokens, inpainter.causal)[0]
    return found


def quiet_share(wave: Wave) -> float:
    """How many pieces of a loop are `QUIET_DB` or more below its loudest: 0 to 1."""
    length = round(PIECE_S * wave.rate)
    pieces = wave.samples.mean(0)[: len(wave) // length * length].reshape(-1, length)
    levels = np.sqrt(np.square(pieces).mean(1))
    return float((levels <= levels.max() * 10 ** (QUIET_DB / 20)).mean())


def vectors(waves: Iterable[Wave]) -> measures.Vectors:
    """`measures.embedded` of all."""
    return np.concatenate([measures.embedded(wave) for wave in waves])


if __name__ == "__main__":
    main()
