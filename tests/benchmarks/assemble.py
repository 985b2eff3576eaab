"""How the time and memory of a dataset's last step grow with its loops.

    python tests/benchmarks/assemble.py [--loops N] [--repeats N]

`midiloop extract` mines files into parts, and then makes the dataset of them: splits, shards,
manifest. Here parts are made up and written as `extract` writes them, so that this step can be
measured on more loops than can be mined in reasonable time. Songs have MD5s of their own; half of a
song's loops are repeats of others, and one song in ten shares loops with another. Wall seconds and
peak memory are those of a process that assembles a quarter, half and all of the parts; medians over
the repeats, the three sizes in turn.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from midiloop.dataset.records import SongRecord
from midiloop.grid import LOOP
from midiloop.mining import partials

LOOPS_A_SONG, SONGS_A_PART = 20, 25
CELLS = 250  # that sound in a loop

ASSEMBLE = """
import sys, time
from collections import Counter
from pathlib import Path
from midiloop.mining import assemble
from midiloop.grid import LOOP
from midiloop.dataset.records import Counts

out, songs, loops, *paths = sys.argv[1:]
counts = Counts(int(songs), int(loops), Counter())
parts, about = [*map(Path, paths)], {"midiloop_version": "0"}
began = time.perf_counter()
assemble.assemble(parts, Path(out), about, counts, grid=LOOP, threads=2)
print(time.perf_counter() - began)
"""


def song(number: int) -> SongRecord:
    """A song made up; each tenth has the loops of the one before it."""
    rng = np.random.default_rng(number - (number % 10 == 9))
    distinct = np.zeros((LOOPS_A_SONG // 2, LOOP.steps * LOOP.columns), np.bool_)
    distinct[:, rng.integers(distinct.shape[1], size=CELLS)] = True
    # Loops of one song are alike: they differ in a few cells.
    differing = rng.integers(distinct.shape[1], size=(len(distinct), 12))
    np.put_along_axis(distinct, differing, values=True, axis=1)
    rolls = np.packbits(distinct, axis=1)[rng.integers(len(distinct), size=LOOPS_A_SONG)]
    return SongRecord(
        f"{number // 1000:05d}/{number:08d}.mid",
        hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest(),
        np.arange(LOOPS_A_SONG),
        np.full(LOOPS_A_SONG, 60.0 + number % 120),
        rng.integers(3, size=LOOPS_A_SONG),
        rolls,
    )


def write_parts(n_loops: int, folder: Path) -> list[Path]:
    paths = []
    for part in range(n_loops // (LOOPS_A_SONG * SONGS_A_PART)):
        songs = [song(part * SONGS_A_PART + number) for number in range(SONGS_A_PART)]
        paths.append(folder / f"{part:07d}.part")
        partials.write(paths[-1], songs, [], str(part), LOOP)
    return paths


def assemble(paths: list[Path], out: Path) -> tuple[float, float]:
    """Wall seconds and peak megabytes of a process that makes a dataset of some parts."""
    n_songs = len(paths) * SONGS_A_PART
    arguments = [out, n_songs, n_songs * LOOPS_A_SONG, *paths]
    command = [sys.executable, "-c", ASSEMBLE, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        taken_s = float(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    shutil.rmtree(out)
    return taken_s, used.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loops", type=int, default=1_200_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        paths = write_parts(args.loops, Path(scratch))
        sizes = [len(paths) // 4, len(paths) // 2, len(paths)]
        found: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
        for _ in range(args.repeats):
            for size in sizes:
                found[size].append(assemble(paths[:size], Path(scratch) / "loops"))
    print(f"{'loops':>10} {'songs':>8} {'seconds':>8} {'µs a loop':>10} {'peak MB':>8}")
    for size, runs in found.items():
        taken_s, peak_mb = (statistics.median(column) for column in zip(*runs, strict=True))
        n_songs = size * SONGS_A_PART
        a_loop = taken_s / n_songs / LOOPS_A_SONG * 1e6
        print(
            f"{n_songs * LOOPS_A_SONG:>10,} {n_songs:>8,} {taken_s:>8.2f} {a_loop:>10.1f} "
            f"{peak_mb:>8.0f}"
        )


if __name__ == "__main__":
    main()
