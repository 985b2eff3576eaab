"""Hands beside those who played: velocity errors, and whether a classifier tells them apart.

    python tests/benchmarks/hands.py LOOPS [RUN] [--split valid] [--loops 600] [--seed 0]
        [--temperature 1] [--top-p 0.95] [--no-errors]

Of the loops of a split whose dynamics are played. Errors are mean absolute ones of velocities: of
means of the training split and of hands, who both know the roll alone, or a share of the loop's
onsets as well, as hands do while they fill in the others; or how loud each instrument is on the
whole, and hands the rest of the style. The classifier looks at performances of
equal rolls, folds and intervals by song (see `midiloop.evaluation.two_sample`); its control tells
performances of one half of the songs from those of the other.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midiloop.dataset import tensors
from midiloop.dataset.parquet import LoopDataset
from midiloop.dataset.tensors import PlayedLoops
from midiloop.evaluation import two_sample
from midiloop.evaluation.evaluate import Estimate
from midiloop.evaluation.two_sample import Task
from midiloop.generation import humanize
from midiloop.grid import Grid
from midiloop.midi import performance
from midiloop.models.hands import VELOCITIES, Hands, Played

KNOWN = (0.0, 0.1, 0.25, 0.5)
BATCH = 64
LAGS_BARS = (1, 2, 4)
PAIRS = ((0, 2), (1, 2), (0, 9), (0, 1))  # kick and hat, snare and hat, kick and bass, …
TELLTALES = 3  # of each group

Values = NDArray[np.float64]


class Onsets(NamedTuple):
    """Of every onset of a set of loops, (n,).

    Attributes:
        loops, instruments, steps: step of the bar.
        velocities: int64.
        chances: of a share of all onsets, those below it are known.
    """

    loops: Tensor
    instruments: Tensor
    steps: Tensor
    velocities: Tensor
    chances: Tensor


def batches(hands: Hands, loops: PlayedLoops) -> Iterator[tuple[int, Played, Tensor]]:
    """The number of the first of some loops, how they are played, and a chance for each cell."""
    generator = torch.Generator().manual_seed(0)
    for index in torch.split(torch.arange(len(loops)), BATCH):
        played = hands.played(loops.rolls(index))
        yield int(index[0]), played, torch.rand(played.onsets.shape, generator=generator)


def onsets(hands: Hands, loops: PlayedLoops) -> Onsets:
    found = []
    for first, played, chances in batches(hands, loops):
        on = played.onsets
        rows, steps, instruments = on.nonzero(as_tuple=True)
        steps %= loops.grid.steps_per_bar
        found.append(Onsets(rows + first, instruments, steps, played.velocities[on], chances[on]))
    return Onsets(*(torch.cat(part) for part in zip(*found, strict=True)))


def of_means(train: Onsets, test: Onsets, known: Tensor, wanted: Tensor) -> float:
    """Error of the means of the training split, by instrument and step of the bar.

    An instrument of a loop is as far from the means as those of its onsets are that are known; if
    none is, as those of all its instruments.

    Args:
        known, wanted: bool (n,), of the onsets of ``test``.
    """
    n_instruments = int(max(train.instruments.max(), test.instruments.max())) + 1
    keys = [one.steps * n_instruments + one.instruments for one in (train, test)]
    counts = keys[0].bincount(minlength=int(keys[1].max()) + 1)
    sums = keys[0].bincount(train.velocities.double(), minlength=len(counts))
    means = torch.where(counts > 0, sums / counts.clamp(min=1), train.velocities.double().mean())
    away = test.velocities - means[keys[1]]
    level = torch.zeros_like(away)
    for of in (test.loops, test.loops * n_instruments + test.instruments):
        counts = of[known].bincount(minlength=int(of.max()) + 1)
        sums = of[known].bincount(away[known], minlength=len(counts))
        level = torch.where(counts[of] > 0, sums[of] / counts[of].clamp(min=1), level)
    return float((away - level).abs()[wanted].mean())


@torch.no_grad()
def of_hands(hands: Hands, loops: PlayedLoops, share: float, *, with_style: bool) -> float:
    """Error of the median of what hands expect where a share of the onsets is known."""
    total, n = 0.0, 0
    for _, played, chances in batches(hands, loops):
        known = chances < share
        wanted = played.onsets & ~known
        logits, _ = hands(played, known, wanted, hands.style_of(played) * with_style)
        medians = (logits.softmax(1).cumsum(1) < 0.5).sum(1).clamp(max=VELOCITIES - 1)
        total += float((medians - played.velocities[wanted]).abs().sum())
        n += len(medians)
    return total / n


def describe(hands: Hands, planes: Tensor, grid: Grid) -> dict[str, dict[str, Values]]:
    """Numbers of performances int16 (n, 3, steps, columns), in groups, each float (n,)."""
    played = hands.played(planes)
    there = played.onsets.numpy()
    velocities = np.where(there, played.velocities.numpy(), np.nan)
    offsets = np.where(there, played.timing.numpy() * (performance.OFFSETS_PER_STEP / 2), np.nan)
    bin_width = hands.bin_width  # both in what hands can play: 1/64 of a step
    offsets = np.round(offsets / bin_width) * bin_width
    names = [*map(str, range(there.shape[2] - 1)), "bass"]
    groups: dict[str, dict[str, Values]] = {}
    for group, values in (("velocity", velocities), ("timing", offsets)):
        of = groups[group] = {}
        zero = np.where(there, values == 0, np.nan)
        for name, part in [*zip(names, np.moveaxis(values, 2, 0), strict=True), ("all", values)]:
            flat = part.reshape(len(part), -1)
            of[f"mean, {name}"] = np.nanmean(flat, 1)
            of[f"deviation, {name}"] = np.nanstd(flat, 1)
            of[f"highest, {name}"] = np.nanmax(flat, 1)
            of[f"lowest, {name}"] = np.nanmin(flat, 1)
            of[f"different, {name}"] = different(flat)
            of[f"different a note, {name}"] = different(flat) / np.isfinite(flat).sum(1)
            of[f"change, {name}"] = changes(flat if part.ndim == 2 else values)
        if group == "timing":
            of["on the grid"] = np.nanmean(zero, (1, 2))
            for name, part in zip(names, np.moveaxis(zero, 2, 0), strict=True):
                of[f"on the grid, {name}"] = np.nanmean(part, 1)
        for sixteenth in range(grid.steps_per_beat):
            on = values[:, sixteenth :: grid.steps_per_beat]
            of[f"sixteenth {sixteenth + 1}"] = np.nanmean(on, (1, 2))
        for beat in range(4):
            on = values[:, beat * grid.steps_per_beat :: grid.steps_per_bar]
            of[f"beat {beat + 1}"] = np.nanmean(on, (1, 2))
    groups["repetition"] = {
        f"{what}, {name} {lag} bars before": value
        for lag in LAGS_BARS
        for name, values in (("velocity", velocities), ("offset", offsets))
        for what, value in apart(values, np.roll(values, lag * grid.steps_per_bar, 1)).items()
    }
    groups["together"] = {
        f"{what}, {name} of {names[a]} and {names[b]}": value
        for a, b in PAIRS
        for name, values in (("velocity", velocities), ("offset", offsets))
        for what, value in apart(values[:, :, [a]], values[:, :, [b]]).items()
    }
    return groups


def different(values: Values) -> Values:
    """How many different values each row has, float (n,)."""
    ordered = np.sort(values, 1)  # nan last
    found: Values = (np.diff(ordered, 1, prepend=-np.inf) > 0).sum(1).astype(np.float64)
    return found


def changes(values: Values) -> Values:
    """Mean absolute difference of one value and the next of its instrument, float (n,)."""
    rows = values if values.ndim == 3 else values[:, :, None]
    found = np.full(len(rows), np.nan)
    for n, row in enumerate(rows):
        steps = [np.abs(np.diff(part[np.isfinite(part)])) for part in row.T]
        every = np.concatenate(steps)
        found[n] = every.mean() if len(every) else np.nan
    return found


def apart(one: Values, other: Values) -> dict[str, Values]:
    """How far values (n, steps, instruments) are from others of the same cells, float (n,)."""
    away = np.abs(one - other)
    away = away.reshape(len(away), -1)
    equal = np.where(np.isfinite(away), away == 0, np.nan)
    return {"far apart": np.nanmean(away, 1), "equal": np.nanmean(equal, 1)}


def sampled(
    hands: Hands, loops: PlayedLoops, index: Tensor, seed: int, **sampling: float
) -> Tensor:
    """The loops at ``index``, played by hands as `humanize` plays them: int16 (n, 3, …)."""
    planes = loops.rolls(index).clone()
    for number, one in zip(index.tolist(), planes, strict=True):
        struck = (one[1] > 0).numpy()
        played = humanize.sampled(hands, one[0].bool().numpy(), struck, seed, number, **sampling)
        one[1][one[1] > 0] = torch.from_numpy(played.velocities.astype(np.int16))
        one[2][torch.from_numpy(struck)] = torch.from_numpy(played.offsets.astype(np.int16))
    return planes


def task_of(
    judged: dict[str, dict[str, Values]],
    reference: dict[str, dict[str, Values]],
    songs: tuple[NDArray[np.str_], NDArray[np.str_]],
) -> Task:
    named = [(group, name) for group, of in judged.items() for name in of]
    columns = [np.concatenate([judged[g][n], reference[g][n]]) for g, n in named]
    return Task(
        np.stack(columns, 1),
        [name for _, name in named],
        [group for group, _ in named],
        np.arange(len(columns[0])) < len(songs[0]),
        np.unique(np.concatenate(songs), return_inverse=True)[1],
    )


def some(
    described: dict[str, dict[str, Values]], which: NDArray[np.bool_]
) -> dict[str, dict[str, Values]]:
    return {g: {name: values[which] for name, values in of.items()} for g, of in described.items()}


def shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def tell_apart(hands: Hands, loops: PlayedLoops, n: int, seed: int, **sampling: float) -> None:
    index = torch.linspace(0, len(loops) - 1, min(n, len(loops))).round().long()
    songs = loops.songs[index.numpy()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of loops that lack an instrument
        real = describe(hands, loops.rolls(index), loops.grid)
        ours = describe(hands, sampled(hands, loops, index, seed, **sampling), loops.grid)
    names, of = np.unique(songs, return_inverse=True)
    first = np.random.default_rng(seed).permutation(np.arange(len(names)) % 2 == 0)[of]
    halves = task_of(some(real, first), some(real, ~first), (songs[first], songs[~first]))
    task = task_of(ours, real, (songs, songs))
    print(f"classifier: {len(index)} loops of {len(names)} songs, {sampling}")
    print(f"sampled performances: AUC {shown(two_sample.judge(task, seed))}")
    print(f"control, played ones of other songs: AUC {shown(two_sample.judge(halves, seed))}")
    for group in real:
        print(f"  by {group} alone: {shown(two_sample.judge(task.only(group), seed))}")
        for telltale in two_sample.telltales_of(task.only(group))[:TELLTALES]:
            means = f"{telltale.mean:9.3f} {telltale.reference_mean:9.3f} {telltale.auc:.3f}"
            print(f"    {telltale.name:44}{means}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("loops", type=Path)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    parser.add_argument("--loops", dest="n", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=humanize.TEMPERATURE)
    parser.add_argument("--top-p", type=float, default=humanize.TOP_P)
    parser.add_argument("--no-errors", action="store_true")
    args = parser.parse_args()
    dataset, hands = LoopDataset(args.loops), humanize.load(args.run)

    def loops(split: str) -> PlayedLoops:
        return tensors.load_played(
            dataset,
            split,
            torch.device("cpu"),
            min_deviation=hands.config.min_velocity_deviation,
            min_values=hands.config.min_velocity_values,
        )

    test = loops(args.split)
    print(f"loops: {len(test)} of {len(np.unique(test.songs))} songs")
    if not args.no_errors:
        train = loops("train")
        seen, asked = onsets(hands, train), onsets(hands, test)
        print(f"{'velocity error, known':28}{'means':>8}{'hands':>8}")
        for share in KNOWN:
            known = asked.chances < share
            means = of_means(seen, asked, known, ~known)
            error = of_hands(hands, test, share, with_style=False)
            print(f"{f'{share:.0%} of the onsets':28}{means:8.2f}{error:8.2f}")
        everything = torch.ones_like(asked.chances) > 0
        means = of_means(seen, asked, everything, everything)
        error = of_hands(hands, test, 0, with_style=True)
        print(f"{'levels; for hands, style':28}{means:8.2f}{error:8.2f}")
    tell_apart(hands, test, args.n, args.seed, temperature=args.temperature, top_p=args.top_p)


if __name__ == "__main__":
    main()
