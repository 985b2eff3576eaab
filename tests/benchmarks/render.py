"""How fast `audioloop render` is, and what memory a worker takes.

    python tests/benchmarks/render.py [--loops 200] [--repeats 5] [--soundfont FILE]

Loops are generated, and get random tempi from 60 to 180 bpm, so that most lengths are no round
numbers. The whole command is timed, start of the interpreter and writing of 24-bit WAV files
included; times real time is seconds of audio over seconds of the command. The rest is one process
that renders and writes nothing, in CPU time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from audioloop.io import label, wave
from audioloop.rendering import piece, render, synth
from midiloop.generation import sample
from midiloop.midi import pianoroll, score

RATE = 44_100
SLOWEST_BPM, FASTEST_BPM = 60.0, 180.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loops", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--soundfont", type=Path)
    options = parser.parse_args()
    path = synth.soundfont(options.soundfont)
    show("cores", str(os.cpu_count()))
    show("FluidSynth", synth.version())
    show("SoundFont", path.name)
    with tempfile.TemporaryDirectory() as folder:
        midis = Path(folder) / "midi"
        seconds = prepare(midis, options.loops)
        show("loops", str(options.loops))
        show("audio_s", seconds)
        for workers in (2, 1):
            measured = [command(midis, path, workers) for _ in range(options.repeats)]
            times, peaks = zip(*measured, strict=True)
            took_s = statistics.median(times)
            show(f"times real time, {workers} worker{'s' * (workers > 1)}", seconds / took_s)
            show(f"peak megabytes of a worker, {workers} started", max(peaks))
        stages(midis, path)


def show(what: str, figure: float | str) -> None:
    shown = figure if isinstance(figure, str) else f"{figure:,.2f}"
    print(f"{what:<50} {shown:>16}", flush=True)


def prepare(folder: Path, n: int) -> float:
    """Write generated loops as MIDI files; returns seconds of audio."""
    folder.mkdir()
    rolls = sample.sample(sample.load(sample.SHIPPED), sample.GenerationRequest(n=n, seed=7)).rolls
    rng = np.random.default_rng(7)
    total_s = 0.0
    for number, roll in enumerate(rolls):
        bpm = round(float(rng.uniform(SLOWEST_BPM, FASTEST_BPM)), 1)
        (folder / f"{number:04d}.mid").write_bytes(score.to_bytes(pianoroll.decode(roll, bpm)))
        total_s += label.LoopLabel(bpm, 8).samples(RATE) / RATE
    return total_s


def command(midis: Path, soundfont: Path, workers: int) -> tuple[float, float]:
    """Seconds of a whole run, and the megabytes of the largest worker."""
    out = midis.with_name("audio")
    shutil.rmtree(out, ignore_errors=True)
    call = [str(Path(sys.executable).with_name("audioloop")), "render", str(midis), "-o", str(out)]
    call += ["--soundfont", str(soundfont), "--workers", str(workers)]
    began_s, peak = time.perf_counter(), 0
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        for child in watched.children(recursive=True):
            try:
                peak = max(peak, child.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.25)  # looking takes time from the workers
    took_s = time.perf_counter() - began_s
    if process.returncode:
        sys.exit(f"{' '.join(call)}: exit code {process.returncode}")
    return took_s, peak / 1e6


def stages(midis: Path, soundfont: Path) -> None:
    """Times real time of each stage on one core, over the same loops."""
    font = synth.SoundFont(soundfont, RATE)
    spent = {"reading MIDI": 0.0, "FluidSynth": 0.0, "resampling": 0.0}
    total_s = 0.0
    for path in sorted(midis.iterdir()):
        began = time.process_time()
        loop = piece.read(path, path.stem)
        read = time.process_time()
        n_samples = loop.label.samples(RATE)
        samples = render.periodic(loop.score, render.snapped(n_samples), font)
        played = time.process_time()
        wave.resample(samples, n_samples)
        spent["reading MIDI"] += read - began
        spent["FluidSynth"] += played - read
        spent["resampling"] += time.process_time() - played
        total_s += n_samples / RATE
    for stage, took_s in spent.items():
        show(f"times real time, one core, {stage} alone", total_s / took_s)


if __name__ == "__main__":
    main()
