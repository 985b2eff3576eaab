"""How near a codec comes, how it closes the circle, and how fast it is.

    python tests/benchmarks/codec.py LOOPS [--loops 200] [--codec RUN] [--soundfont FILE]

Unseen: loops of test songs on kits and basses that nothing was learned from. Generated: loops of
the model that ships, rendered as ``audioloop render`` does. Every loop is rotated by a random
angle first, so that its seam is no bar line, where the spectrum would change anyway. The same
loops, encoded with silence beyond their ends, are the control.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audioloop.codec import compression
from audioloop.codec.model import Codec
from audioloop.evaluation import reconstruct
from audioloop.evaluation.reconstruct import Figures
from audioloop.io.wave import Wave
from audioloop.rendering import augment, piece, render, synth
from audioloop.signal import seam
from midiloop.dataset.parquet import LoopDataset
from midiloop.generation import sample

RATE = 44_100
LONG_S = 30.0
VARIETY = augment.Augmentation(bars=8, instruments=augment.HELD_OUT_INSTRUMENTS, quietest_db=-1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--loops", type=int, default=200)
    parser.add_argument("--codec", type=Path)
    parser.add_argument("--soundfont", type=Path)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    codec = compression.load(options.codec)
    if options.memory:
        print(memory(codec))
        return
    font = synth.soundfont(options.soundfont)
    print(f"{font.name}, {options.loops} loops each, {torch.get_num_threads()} threads\n")
    for name, waves in (
        ("unseen songs, kits and basses", unseen(options.dataset, font, options.loops)),
        ("generated loops", generated(font, options.loops)),
    ):
        fidelity(name, waves, codec)
    speed(codec)
    command = [sys.executable, __file__, str(options.dataset), "--memory"]
    command += ["--codec", str(options.codec)] if options.codec else []
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    show(f"peak megabytes, {LONG_S:g} s there and back", float(found.stdout))


def show(what: str, figure: float) -> None:
    print(f"{what:<44} {figure:>10,.2f}", flush=True)


def unseen(dataset: Path, font: Path, n_loops: int) -> Iterator[Wave]:
    source = augment.loops(LoopDataset(dataset), "test")
    fonts = [synth.SoundFont(font, VARIETY.rate)]
    for number in range(n_loops):
        samples = augment.render_circular(source, number, 0, fonts, VARIETY)
        if samples.any():
            yield Wave(samples[None], VARIETY.rate)


def generated(font: Path, n_loops: int) -> Iterator[Wave]:
    request = sample.GenerationRequest(n=n_loops, seed=11)
    rolls = sample.sample(sample.load(sample.SHIPPED), request).rolls
    player = synth.SoundFont(font, RATE)
    tempos = np.random.default_rng(11).uniform(60, 180, n_loops)
    for roll, tempo_bpm in zip(rolls, tempos, strict=True):
        loop = piece.of_roll(roll, round(float(tempo_bpm), 1), "loop")
        yield render.loop(loop, player).mix


def fidelity(name: str, waves: Iterator[Wave], codec: Codec) -> None:
    rng = np.random.default_rng(3)
    found: dict[str, list[Figures]] = {way: [] for way in reconstruct.DECODED_FROM}
    open_jumps, open_fluxes, original_fluxes, codes = [], [], [], []
    for wave in waves:
        angle = int(rng.integers(len(wave)))
        rotated = Wave(np.roll(wave.samples, angle, 1), wave.rate)
        figures, back, rows = reconstruct.measure(rotated, codec)
        for way in reconstruct.DECODED_FROM:
            found[way].append(figures[way])
        codes.append(rows.numpy())
        encoded = compression.encode(rotated, codec, circular=False)
        with torch.inference_mode():
            cut = Wave(codec.decode(encoded.latent, circular=False)[0].numpy(), codec.config.rate)
        open_jumps.append(seam.jump(cut, 0))
        open_fluxes.append(seam.flux_percentile(cut, 0))
        original_fluxes.append(seam.flux_percentile(back["original"], 0))
    print(name)
    for way in reconstruct.DECODED_FROM:
        columns = np.array(found[way], float)
        for field, column in zip(Figures._fields, columns.T, strict=True):
            show(f"  {way}: {field}, median", float(np.median(column)))
            if field in ("jump", "flux_percentile", "si_sdr_db"):
                show(f"  {way}: {field}, mean", float(np.mean(column)))
        show(f"  {way}: wrap_error_db, worst", float(columns[:, 4].max()))
    show("  with ends: jump, median", float(np.median(open_jumps)))
    show("  with ends: jump, mean", float(np.mean(open_jumps)))
    show("  with ends: flux_percentile, mean", float(np.mean(open_fluxes)))
    show("  original: flux_percentile, mean", float(np.mean(original_fluxes)))
    for number, row in enumerate(np.concatenate(codes, axis=1), start=1):
        share = len(np.unique(row)) / codec.config.codebook_size
        show(f"  codebook {number}: per cent in use", 100 * share)
    print()


def speed(codec: Codec) -> None:
    """Times real time of each way, medians of seven."""
    wave = Wave(np.random.default_rng(0).normal(0, 0.1, (1, 960_000)).astype(np.float32), 32_000)
    ring = compression.to_frames(wave, codec.config)
    with torch.inference_mode():
        latent = codec.encode(ring, circular=True)
        works: dict[str, Callable[[], Tensor]] = {
            "encode": lambda: codec.quantize(codec.encode(ring, circular=True)),
            "decode": lambda: codec.decode(latent, circular=True),
        }
        for name, work in works.items():
            took = []
            for _ in range(7):
                began = time.perf_counter()
                work()
                took.append(time.perf_counter() - began)
            show(f"{name}: times real time", wave.duration_s / float(np.median(took)))


def memory(codec: Codec) -> float:
    rng = np.random.default_rng(0)
    wave = Wave(rng.normal(0, 0.1, (2, round(LONG_S * RATE))).astype(np.float32), RATE)
    encoded = compression.encode(wave, codec)
    compression.decode(compression.dequantize(encoded.codes, codec), codec, len(wave), RATE)
    # Linux gives a child its parent's peak in `resource`; this one begins with the program.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
