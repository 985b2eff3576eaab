"""How far hands are from played velocities, beside a table of means by instrument and step.

    python tests/benchmarks/hands.py LOOPS RUN --split valid

Mean absolute errors over all onsets of the loops of a split whose dynamics are played: of the means
of the training split, of hands that know the roll alone, and of hands that know a share of the
loop's onsets, as they do while they fill in the others, or its style.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from midiloop.dataset import tensors
from midiloop.dataset.parquet import LoopDataset
from midiloop.generation import humanize
from midiloop.models.hands import VELOCITIES, Hands, style_of

KNOWN = (0.0, 0.1, 0.25, 0.5)
BATCH = 64


class Onsets(NamedTuple):
    """Of every onset of a set of loops: its instrument, its step in the bar, its velocity, (n,)."""

    instruments: Tensor
    steps: Tensor
    velocities: Tensor


def onsets(hands: Hands, loops: tensors.PlayedLoops) -> Onsets:
    found = []
    for index in torch.split(torch.arange(len(loops)), BATCH):
        played = hands.played(loops.rolls(index))
        _, steps, instruments = played.onsets.nonzero(as_tuple=True)
        bar = loops.grid.steps_per_bar
        found.append(Onsets(instruments, steps % bar, played.velocities[played.onsets]))
    return Onsets(*(torch.cat(part) for part in zip(*found, strict=True)))


def of_means(train: Onsets, test: Onsets) -> float:
    """Error of the means of the training split, by instrument and step of the bar."""
    n_steps = int(max(train.steps.max(), test.steps.max())) + 1
    keys = [one.instruments * n_steps + one.steps for one in (train, test)]
    size = int(max(key.max() for key in keys)) + 1
    counts = keys[0].bincount(minlength=size)
    sums = keys[0].bincount(train.velocities.double(), minlength=size)
    means = torch.where(counts > 0, sums / counts.clamp(min=1), train.velocities.double().mean())
    return float((means[keys[1]] - test.velocities).abs().mean())


@torch.no_grad()
def of_hands(hands: Hands, loops: tensors.PlayedLoops, share: float, *, with_style: bool) -> float:
    """Error of the median of what hands expect where a share of the onsets is known."""
    generator = torch.Generator().manual_seed(0)
    total, n = 0.0, 0
    for index in torch.split(torch.arange(len(loops)), BATCH):
        played = hands.played(loops.rolls(index))
        known = torch.rand(played.onsets.shape, generator=generator) < share
        wanted = played.onsets & ~known
        logits, _ = hands(played, known, wanted, style_of(played) * with_style)
        medians = (logits.softmax(1).cumsum(1) < 0.5).sum(1).clamp(max=VELOCITIES - 1)
        total += float((medians - played.velocities[wanted]).abs().sum())
        n += len(medians)
    return total / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loops", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    args = parser.parse_args()
    dataset, hands = LoopDataset(args.loops), humanize.load(args.run)
    train, test = (
        tensors.load_played(
            dataset,
            split,
            torch.device("cpu"),
            min_deviation=hands.config.min_velocity_deviation,
            min_values=hands.config.min_velocity_values,
        )
        for split in ("train", args.split)
    )
    print(f"loops: {len(test)}")
    print(f"table of means: {of_means(onsets(hands, train), onsets(hands, test)):.2f}")
    for with_style in (False, True):
        for share in KNOWN:
            error = of_hands(hands, test, share, with_style=with_style)
            print(f"hands, {share:.0%} known{', and the style' * with_style}: {error:.2f}")


if __name__ == "__main__":
    main()
