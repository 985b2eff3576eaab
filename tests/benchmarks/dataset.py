"""How fast and how hungry `midiloop inspect` and `midiloop evaluate` are on a large dataset.

    python tests/benchmarks/dataset.py [--loops N] [--keep FOLDER] [--repeats N]

The dataset is made up: songs of a four-bar pattern that varies now and then, 20 loops of each on
average, a sixth of them heard before. Both commands run as a user starts them: wall seconds and
processor seconds, which other programs disturb less, are medians over the repeats, and memory the
highest of all of them (Linux).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from midiloop.dataset.records import Counts, SongRecord
from midiloop.grid import LOOP, Roll
from midiloop.mining import assemble, partials, rules

LOOPS_OF_A_SONG = 20
SONGS_OF_A_PART = 64
MIDILOOP = [sys.executable, "-m", "midiloop_cli"]


def song_roll(rng: np.random.Generator, n_bars: int) -> Roll:
    """A song: bool (steps, columns)."""
    pattern = np.zeros((4 * LOOP.steps_per_bar, LOOP.columns), dtype=np.bool_)
    chance = rng.choice([0.0, 0.1, 0.3], LOOP.n_drums)
    pattern[:, : LOOP.n_drums] = rng.random((len(pattern), LOOP.n_drums)) < chance
    pitches = np.repeat(rng.integers(10, 40) + rng.choice([0, 3, 5, 7], 16), 4)
    sounds = rng.random(len(pattern)) < 0.8
    pattern[np.flatnonzero(sounds), LOOP.n_drums + pitches[sounds]] = True
    pattern[:: LOOP.steps_per_bar, 0] = True
    pattern[:: LOOP.steps_per_bar, LOOP.n_drums + pitches[0]] = True
    roll = np.tile(pattern, (-(-n_bars // 4), 1))[: n_bars * LOOP.steps_per_bar]
    fills = rng.integers(len(roll), size=n_bars // 4)
    roll[fills, rng.integers(LOOP.n_drums, size=len(fills))] ^= True
    return roll


def song_record(rng: np.random.Generator, number: int) -> SongRecord:
    """A song as mining leaves it."""
    n_loops = int(rng.integers(1, 2 * LOOPS_OF_A_SONG))
    roll = song_roll(rng, n_loops + LOOP.bars - 1)
    starts = np.arange(n_loops)
    bars = np.packbits(roll.reshape(-1, LOOP.cells_per_bar), axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(bars, LOOP.bars, axis=0)
    return SongRecord(
        f"{number // 1000:04d}/song {number:07d}.mid",
        rng.bytes(16).hex(),
        starts,
        np.full(n_loops, float(rng.integers(60, 180))),
        rules.bar_distances_cells(roll, starts, LOOP),
        windows.transpose(0, 2, 1).reshape(n_loops, -1),
    )


def make(out: Path, n_loops: int) -> None:
    """Write a dataset of so many loops, or a few more."""
    rng = np.random.default_rng(0)
    folder = out.with_name(out.name + ".parts")
    folder.mkdir()
    paths: list[Path] = []
    n_songs = n_found = 0
    while n_found < n_loops:
        songs = [song_record(rng, n_songs + at) for at in range(SONGS_OF_A_PART)]
        paths.append(folder / f"{len(paths):07d}.part")
        partials.write(paths[-1], songs, [], "", LOOP)
        n_songs, n_found = n_songs + len(songs), n_found + sum(len(s.start_bars) for s in songs)
    about = {
        "midiloop_version": "0",
        "sources": ["made up"],
        "rules": {"name": "open"},
        "stride_bars": 1,
        "grid": LOOP.as_json(),
    }
    assemble.assemble(paths, out, about, Counts(n_songs, n_found, Counter()), grid=LOOP, threads=1)
    for path in paths:
        path.unlink()
    folder.rmdir()


def measure(command: list[str]) -> tuple[float, float, float]:
    """Wall and processor seconds of a command, and its peak memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen([*MIDILOOP, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    wall_s = time.perf_counter() - began
    return wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loops", type=int, default=1_100_000)
    parser.add_argument("--keep", type=Path, help="Where the dataset is, or is to be made.")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch) / "loops"
        if not folder.exists():
            make(folder, args.loops)
        commands = {
            "inspect": ["inspect", str(folder)],
            "evaluate": ["evaluate", str(folder), "--reference", str(folder)],
        }
        print(f"{'':<12}{'wall':>10}{'processor':>10}{'memory':>13}")
        for name, command in commands.items():
            runs = [measure(command) for _ in range(args.repeats)]
            wall_s, processor_s, peaks = zip(*runs, strict=True)
            print(
                f"{name:<12}{statistics.median(wall_s):>8.1f} s"
                f"{statistics.median(processor_s):>8.1f} s{max(peaks):>10,.0f} MB"
            )


if __name__ == "__main__":
    main()
