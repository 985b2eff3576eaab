"""Options of benchmarks that compare settings of sampling, and the settings they give."""

from __future__ import annotations

import argparse
from pathlib import Path

from audioloop.pipelines.inpaint import SAMPLING, SamplingConfig, SamplingDefaults


def add_options(parser: argparse.ArgumentParser, defaults: SamplingDefaults) -> None:
    """Add options of sampling, without seed and best-of, and of models and a SoundFont."""
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
    """The settings of the options; without a CFG scale, that of `SamplingConfig` is used."""
    return SamplingConfig(
        steps=tuple(map(int, options.steps.split(","))),
        temperature=options.temperature,
        top_p=options.top_p,
        cfg_scale=options.cfg_scale,
        choice_temperature=options.choice_temperature,
        rescoring_weight=options.rescoring_weight,
        seed=seed,
    )
