"""What benchmarks that try ways to draw codes are asked, and the taste that it comes to."""

from __future__ import annotations

import argparse
from pathlib import Path

from audioloop.pipelines.inpaint import SAMPLING, SamplingConfig, SamplingDefaults


def add_options(parser: argparse.ArgumentParser, usual: SamplingDefaults) -> None:
    """Ask for a taste but its seed and candidates, and for models and a SoundFont."""
    parser.add_argument("--steps", default=",".join(map(str, usual.steps)))
    parser.add_argument("--temperature", type=float, default=usual.temperature)
    parser.add_argument("--top-p", type=float, default=usual.top_p)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--shuffling", type=float, default=SAMPLING.shuffling)
    parser.add_argument("--rescoring", type=float, default=SAMPLING.rescoring)
    for model in ("masked", "causal", "codec"):
        parser.add_argument(f"--{model}", type=Path)
    parser.add_argument("--sf2", type=Path)


def taste(options: argparse.Namespace, seed: int) -> SamplingConfig:
    """As was asked; guidance that was not said is what `Taste` makes of it."""
    return SamplingConfig(
        steps=tuple(map(int, options.steps.split(","))),
        temperature=options.temperature,
        top_p=options.top_p,
        guidance=options.guidance,
        shuffling=options.shuffling,
        rescoring=options.rescoring,
        seed=seed,
    )
