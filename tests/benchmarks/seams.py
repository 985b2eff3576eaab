"""How seamless renders are: generated loops at random tempi, their seams beside their bar lines.

    python tests/benchmarks/seams.py [--loops 200] [--soundfont FILE]

Jump: |difference| of the samples at a place over its local median, of which about 1 cannot be
heard. A loop played eight times in a row by FluidSynth is compared with its render repeated, as the
level of the difference from the second pass on: once at the tempo of whole blocks, which is all
that FluidSynth can repeat, and once at the loop's own. Bar lines are where the synth puts them, on
the nearest block. Last, what OGG does to the seam.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from audioloop.io import wave
from audioloop.io.label import LoopLabel
from audioloop.io.wave import Format, Samples, Wave, resample
from audioloop.rendering import piece, render, synth
from audioloop.rendering.synth import BLOCK, Event
from audioloop.signal import seam
from midiloop.generation import sample

PASSES = 8
RATE = 44_100
SLOWEST_BPM, FASTEST_BPM = 40.0, 250.0
BARS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loops", type=int, default=200)
    parser.add_argument("--soundfont", type=Path)
    options = parser.parse_args()
    font = synth.SoundFont(synth.soundfont(options.soundfont), RATE)
    print(f"FluidSynth {synth.version()}, {font.path.name}, {options.loops} loops", flush=True)
    at_seams, at_bars, snapped_db, own_db, lossy = [], [], [], [], []
    request = sample.GenerationRequest(n=options.loops, seed=5)
    rolls = sample.sample(sample.load(sample.SHIPPED), request).rolls
    rng = np.random.default_rng(5)
    for roll, bpm in zip(rolls, rng.uniform(SLOWEST_BPM, FASTEST_BPM, len(rolls)), strict=True):
        loop = piece.of_roll(roll, float(bpm), "loop")
        mix = render.loop(loop, font).mix
        at_seams.append(seam.jump(mix, 0))
        at_bars += [seam.jump(mix, bar) for bar in bar_lines(len(mix))]
        lossy.append(through_ogg(mix, loop.label))
        db = in_a_row(loop, font)
        snapped_db.append(db[0])
        own_db.append(db[1])
    show("jump at the seam: mean", np.mean(at_seams))
    show("jump at the seam: worst", np.max(at_seams))
    show("jump at the other bar lines: mean", np.mean(at_bars))
    show("jump at the other bar lines: worst", np.max(at_bars))
    same = stats.ks_2samp(at_seams, at_bars)
    show("Kolmogorov-Smirnov p, seams and bar lines", same.pvalue)
    show("eight passes, whole blocks, dB: median", np.median(snapped_db))
    show("eight passes, whole blocks, dB: worst", np.max(snapped_db))
    show("eight passes, own tempo, dB: median", np.median(own_db))
    show("eight passes, own tempo, dB: worst", np.max(own_db))
    error_db, jumps = zip(*lossy, strict=True)
    show("OGG, error over loop, dB: median", np.median(error_db))
    show("OGG, jump at the seam: mean", np.mean(jumps))
    show("OGG, jump at the seam: worst", np.max(jumps))


def show(what: str, figure: float | np.floating[Any]) -> None:
    print(f"{what:<50} {figure:>10.3f}", flush=True)


def bar_lines(n_samples: int) -> list[int]:
    """Samples at which bars 2 to 8 of a render begin."""
    n_blocks = render.snapped(n_samples)
    blocks = (round(n_blocks * bar / BARS) for bar in range(1, BARS))
    return [round(block * n_samples / n_blocks) for block in blocks]


def through_ogg(loop: Wave, said: LoopLabel) -> tuple[float, float]:
    """Level of what OGG adds, in dB, and the jump at the seam of what it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loop.ogg"
        wave.write(path, loop, said, Format("ogg", "lossy"))
        decoded = wave.read(path)
    return level(decoded.samples, loop.samples), seam.jump(decoded, 0)


def in_a_row(loop: piece.Piece, font: synth.SoundFont) -> tuple[float, float]:
    """Level of the difference to eight passes of the synth: at whole blocks, and at its tempo."""
    exact = float(loop.label.quarters) * 60 / loop.label.tempo_bpm * RATE
    n_blocks = render.snapped(exact)
    ours = render.periodic(loop.score, n_blocks, font)
    length = n_blocks * BLOCK
    whole = played(loop, font, n_blocks, [n * n_blocks for n in range(PASSES + 1)])
    snapped = [level(whole[:, n * length : (n + 1) * length], ours) for n in range(1, PASSES)]
    # At its own tempo the n-th pass begins on the block that is nearest to n loops.
    starts = [round(n * exact / BLOCK) for n in range(PASSES + 1)]
    real = played(loop, font, n_blocks, starts)
    final = resample(ours, round(exact))
    own = []
    for n in range(1, PASSES):
        begin = round(n * exact)
        own.append(level(real[:, begin : begin + round(exact)], final))
    return max(snapped), max(own)


def played(loop: piece.Piece, font: synth.SoundFont, n_blocks: int, starts: list[int]) -> Samples:
    """Passes in a row, each from its start to the next."""
    events, programs = render.performance(loop.score, n_blocks)
    passes = []
    with font.synth(programs) as player:
        for start, end in pairwise(starts):
            due = [Event(min(e.block, end - start - 1), *e[1:]) for e in events]
            passes.append(np.empty((2, (end - start) * BLOCK), np.float32))
            player.play(due, 0, passes[-1])
    return np.concatenate(passes, axis=1)


def level(found: Samples, expected: Samples) -> float:
    """RMS of the difference over RMS of what was expected, in dB."""
    n = min(found.shape[1], expected.shape[1])
    off = np.square(found[:, :n].astype(float) - expected[:, :n]).mean()
    return float(10 * np.log10(max(off, 1e-30) / np.square(expected[:, :n].astype(float)).mean()))


if __name__ == "__main__":
    main()
