"""What the models of codes can do: follow notes, leave what is kept, close the circle, in time.

    python tests/benchmarks/magnet.py LOOPS [--loops 48] [--split valid] [--precision bfloat16]
        [--masked-model RUN] [--codec RUN] [--soundfont FILE]

Loops are of test songs, or of validation songs. Onsets are found by librosa in two rounds of a
loop, and matched one to one with those of its notes, within 40 ms; as it comes, and as it was set
up for what a codec gives back (`onsets`). A true render, and what the codec makes of it, show what
that way of finding them can come to; another loop's notes, what is there by chance.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import onsets
from audioloop.codec import compression, fidelity
from audioloop.conditioning import Conditioning
from audioloop.evaluation import reconstruct
from audioloop.io.wave import Wave
from audioloop.pipelines import generate, inpaint, inputs, refine
from audioloop.pipelines.generate import LoopPrompt
from audioloop.pipelines.inpaint import Inpainter
from audioloop.pipelines.inputs import SourceLoop
from audioloop.rendering import augment, piece, render, synth
from audioloop.rendering.piece import Piece
from midiloop.dataset.parquet import LoopDataset
from midiloop.grid import LOOP, Roll
from midiloop.midi import score
from onsets import BARS, CHOSEN, LIBROSA, RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--loops", type=int, default=48)
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--masked-model", type=Path)
    parser.add_argument("--codec", type=Path)
    parser.add_argument("--soundfont", type=Path)
    options = parser.parse_args()
    inpainter = inpaint.load(options.masked_model, codec=options.codec, precision=options.precision)
    font = synth.SoundFont(synth.soundfont(options.soundfont), RATE)
    print(
        f"{options.loops} loops of {BARS} bars, "
        f"{'bfloat16' if inpainter.masked.in_bfloat16 else 'float32'}, "
        f"{torch.get_num_threads()} threads, temperature "
        f"{inpaint.CONDITIONED.temperature:g} with notes, "
        f"{inpaint.UNCONDITIONED.temperature:g} without, "
        f"{CHOSEN}\n"
    )
    pieces = onsets.loops(options.dataset, options.split, options.loops)
    follows(pieces, inpainter, font)
    keeps(pieces, inpainter, font)
    lengths(pieces[0], inpainter)
    command(options)


def show(what: str, figure: float) -> None:
    print(f"{what:<58} {figure:>10,.2f}", flush=True)


def follows(pieces: list[Piece], inpainter: Inpainter, font: synth.SoundFont) -> None:
    scores: dict[str, list[tuple[float, float]]] = {}

    def note(name: str, wave: Wave, roll: Roll) -> None:
        found = onsets.f1(wave, roll, CHOSEN), onsets.f1(wave, roll, LIBROSA)
        scores.setdefault(name, []).append(found)

    tolds = [inputs.conditioning_of(loop) for loop in pieces]
    for number, (loop, conditioning) in enumerate(zip(pieces, tolds, strict=True)):
        assert conditioning.roll is not None
        other = tolds[(number + 1) % len(tolds)].roll
        assert other is not None
        true = render.loop(loop, font).mix
        back = compression.encode(true, inpainter.codec)
        made = generate.generate(LoopPrompt(loop.label, conditioning), inpainter, rate=RATE)[0]
        free = generate.generate(
            LoopPrompt(loop.label, Conditioning(steps=conditioning.steps)), inpainter, rate=RATE
        )[0]
        note("render", true, conditioning.roll)
        note(
            "render through codes",
            inpainter.decoded(back.codes, len(true), RATE),
            conditioning.roll,
        )
        note("generated", made, conditioning.roll)
        note("generated, beside another loop's notes", made, other)
        note("generated with no notes told", free, conditioning.roll)
    for name, values in scores.items():
        chosen, defaults = np.mean(values, 0)
        show(f"onset F1, {name}: mean", chosen)
        show("    by librosa as it comes", defaults)
    both = np.array(scores["generated"]) - np.array(
        scores["generated, beside another loop's notes"]
    )
    show("the right notes rather than others: share of loops", float((both[:, 0] > 0).mean()))
    print()


def keeps(pieces: list[Piece], inpainter: Inpainter, font: synth.SoundFont) -> None:
    """The first half after the second was regenerated, beside what the codec makes of it."""
    apart, wrap, level = [], [], []
    for loop in pieces[:12]:
        true = render.loop(loop, font).mix
        source = SourceLoop(Path("loop.mid"), true, loop.label, inputs.conditioning_of(loop))
        made = refine.refine(source, inpainter)[0][0]
        encoded = compression.encode(true, inpainter.codec)
        plain = compression.decode(encoded.latent, inpainter.codec, len(true), RATE)
        kept = slice(len(true) // 16, len(true) // 2 - len(true) // 16)
        wanted = true.samples.mean(0)[kept]
        apart.append(fidelity.si_sdr_db(made.samples[0, kept], wanted))
        level.append(fidelity.si_sdr_db(plain.samples[0, kept], wanted))
        latent = inpainter.codec.encode(
            compression.to_frames(made, inpainter.codec.config), circular=True
        )
        back = inpainter.codec.decode(latent, circular=True)
        wrap.append(reconstruct.wrap_error_db(latent, back, inpainter.codec))
    show("kept part of a refined loop, SI-SDR dB: median", float(np.median(apart)))
    show("the same of the codec alone: median", float(np.median(level)))
    show("wrap error dB: worst", float(np.max(wrap)))
    print()


def lengths(loop: Piece, inpainter: Inpainter) -> None:
    """By how many samples loops of any tempo miss the length that their bars have."""
    quick = replace(inpaint.SAMPLING, steps=(2, 1, 1, 1), cfg_scale=1.0, best_of=1)
    worst = 0
    for tempo_bpm in np.geomspace(40, 250, 12).round(2).tolist():
        label = replace(loop.label, tempo_bpm=tempo_bpm)
        for rate in (44_100, 48_000):
            conditioning = inputs.conditioning_of(loop)
            made = generate.generate(
                LoopPrompt(label, conditioning), inpainter, rate=rate, sampling=quick
            )[0]
            worst = max(worst, abs(len(made) - round(BARS * 4 * 60 / tempo_bpm * rate)))
    show("samples too many or too few, 40 to 250 bpm: worst", worst)
    print()


def command(options: argparse.Namespace) -> None:
    """Eight bars at 120 bpm, from the command's start to its end; medians of three."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rolls = augment.loops(LoopDataset(options.dataset), "test").packed
        loop = piece.of_roll(LOOP.unpack(rolls[:1])[0], 120.0, "loop")
        score.write(loop.score, folder / "loop.mid")
        more = ["--precision", options.precision]
        more += ["--masked-model", str(options.masked_model)] if options.masked_model else []
        more += ["--codec", str(options.codec)] if options.codec else []
        works: dict[str, Callable[[str], list[str]]] = {
            "generate": lambda out: ["generate", str(folder / "loop.mid"), "-o", out, *more],
            "refine": lambda out: ["refine", str(folder / "loop.mid"), "-o", out, *more],
        }
        for what, call in works.items():
            took, memory = [], 0.0
            for number in range(3):
                out = str(folder / f"{what}{number}")
                began = time.perf_counter()
                found = subprocess.run(
                    [sys.executable, "-c", WATCHED, *call(out)],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                took.append(time.perf_counter() - began)
                memory = max(memory, float(found.stdout.split()[-1]))
            show(f"audioloop {what}, 8 bars at 120 bpm, cold: seconds", float(np.median(took)))
            show(f"audioloop {what}: peak megabytes", memory)


# The command in a process of its own, which says at last how much memory it took.
WATCHED = """
import sys
from pathlib import Path
from midiloop_cli.main import audioloop
try:
    audioloop(sys.argv[1:], standalone_mode=True)
except SystemExit as end:
    assert not end.code, end.code
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
"""


if __name__ == "__main__":
    main()
