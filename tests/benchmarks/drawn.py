"""What benchmarks that try ways to draw codes are asked, and the taste that it comes to."""

from __future__ import annotations

import argparse
from pathlib import Path

from audioloop.pipelines.inpaint import SAMPLING, SamplingConfig, SamplingDefaults


def add_options(parser: argparse.ArgumentParser, defaults: SamplingDefaults) -> None:
    """Ask for a taste but its seed and candidates, and for models and a SoundFont."""
    parser.add_argument("--steps", default=",".join(map(str, defaults.steps)))
    parser.add_argument("--temperature", type=float, default=defaults.temperature)
    parser.add_argument("--top-p", type=float, default=defaults.top_p)
    parser.add_argument("--cfg-scale", type=float)
    parser.add_argument("--choice-temperature", type=float, default=SAMPLING.choice_temperature)
    parser.add_argument("--rescoring-weight", type=float, default=SAMPLING.rescoring_weight)
    for model in ("masked-model", "causal-model", "codec"):
        parser.add_argument(f"--{model}", type=Path)
    parser.add_argument("--soundfont", type=Path)


def sampling(options: argparse.Namespace, seed: int) -> SamplingConfig:
    """As was asked; a CFG scale that was not given is the default of `SamplingConfig`."""
    return SamplingConfig(
        steps=tuple(map(int, options.steps.split(","))),
        temperature=options.temperature,
        top_p=options.top_p,
        cfg_scale=options.cfg_scale,
        choice_temperature=options.choice_temperature,
        rescoring_weight=options.rescoring_weight,
        seed=seed,
    )
