"""Where notes are heard to begin, and how a detector was set up to hear it.

    python tests/benchmarks/onsets.py LOOPS [--loops 24] [--temperature 1] [--masked-model RUN]
                                            [--codec RUN] [--soundfont FILE]

librosa's onset detector is made for clean audio: it looks 80 dB below the loudest, where a codec
hisses, and it says an onset some milliseconds after it was. So its range and threshold are chosen
on loops of validation songs, where they find best the notes of renders through the codec and of
what was generated of one draft, and its delay is what it is on true renders. What is measured with
it is of other songs.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from audioloop.codec import compression
from audioloop.io.wave import Wave
from audioloop.pipelines import generate, inpaint, inputs
from audioloop.pipelines.generate import LoopPrompt
from audioloop.rendering import augment, piece, render, synth
from audioloop.rendering.piece import Piece
from midiloop.dataset.parquet import LoopDataset
from midiloop.grid import LOOP, Roll

WITHIN_S = 0.04
BARS = 4
STEPS = BARS * LOOP.steps_per_bar
RATE, HOP = 32_000, 256

Times = NDArray[np.float64]  # (onsets,), seconds


class Detector(NamedTuple):
    """How onsets are sought.

    Attributes:
        range_db: below the loudest that is looked at.
        threshold: above the local mean of onset strength, of the strongest.
        late_s: by how much later than it was an onset is found.
    """

    range_db: float
    threshold: float
    late_s: float = 0.0


LIBROSA = Detector(80.0, 0.07)  # as it comes
CHOSEN = Detector(60.0, 0.07, 0.016)
RANGES_DB, THRESHOLDS = (50.0, 60.0, 70.0, 80.0), (0.05, 0.07, 0.1, 0.15)


def loops(dataset: Path, split: str, n: int) -> list[Piece]:
    """Four bars each, no two of one roll."""
    source = augment.loops(LoopDataset(dataset), split)
    rng = np.random.default_rng(5)
    found = []
    for pick in rng.permutation(len(source.packed)).tolist():
        roll = LOOP.unpack(source.packed[pick : pick + 1])[0][:STEPS]
        tempo_bpm = float(np.clip(source.tempos_bpm[pick], 60, 200))
        if roll.any(1).sum() >= STEPS // 8:
            found.append(piece.of_roll(roll, round(tempo_bpm, 1), f"{pick}"))
        if len(found) == n:
            break
    return found


def written_s(roll: Roll, duration_s: float) -> Times:
    """Where notes of a loop begin."""
    bass = roll[:, LOOP.n_drums :]
    begins = roll[:, : LOOP.n_drums].any(1) | (bass & ~np.roll(bass, 1, 0)).any(1)
    return np.flatnonzero(begins) * duration_s / len(roll)


def heard_s(wave: Wave, detector: Detector) -> Times:
    """Onsets of a loop that repeats."""
    twice = np.tile(wave.samples.mean(0), 2)
    bands = librosa.feature.melspectrogram(
        y=twice, sr=wave.rate, hop_length=HOP, fmax=wave.rate / 2
    )
    levels = librosa.power_to_db(bands, ref=np.max, top_db=detector.range_db)
    strength = librosa.onset.onset_strength(S=levels, sr=wave.rate, hop_length=HOP)
    found = librosa.onset.onset_detect(
        onset_envelope=strength, sr=wave.rate, hop_length=HOP, units="time",
        delta=detector.threshold,
    )  # fmt: skip
    half = wave.duration_s / 2
    inside = (found >= half) & (found < half + wave.duration_s)
    return np.sort((found[inside] - detector.late_s) % wave.duration_s)


def off_s(found: Times, wanted: Times, round_s: float) -> NDArray[np.float64]:
    """By how much found onsets are later than wanted ones, on the circle: (found, wanted)."""
    return (found[:, None] - wanted + round_s / 2) % round_s - round_s / 2


def matched(found: Times, wanted: Times, round_s: float) -> int:
    """How many onsets can be matched one to one, within 40 ms."""
    near = np.abs(off_s(found, wanted, round_s)) <= WITHIN_S
    rows, columns = linear_sum_assignment(~near)
    return int(near[rows, columns].sum())


def f_measure(found: Times, wanted: Times, round_s: float) -> float:
    """F1 of onsets: 0 to 1."""
    if not len(found) or not len(wanted):
        return 0.0
    return 2 * matched(found, wanted, round_s) / (len(found) + len(wanted))


def f1(wave: Wave, roll: Roll, detector: Detector) -> float:
    """Of what is heard of a loop, beside a roll."""
    wanted = written_s(roll, wave.duration_s)
    return f_measure(heard_s(wave, detector), wanted, wave.duration_s)


def late_s(wave: Wave, roll: Roll, detector: Detector) -> Times:
    """How late the onsets that are heard are, where a note begins within twice the tolerance."""
    off = off_s(heard_s(wave, detector), written_s(roll, wave.duration_s), wave.duration_s)
    if not off.size:
        return np.zeros(0)
    nearest = off[np.arange(len(off)), np.abs(off).argmin(1)]
    found: Times = nearest[np.abs(nearest) <= 2 * WITHIN_S]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--loops", type=int, default=24)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--masked-model", type=Path)
    parser.add_argument("--codec", type=Path)
    parser.add_argument("--soundfont", type=Path)
    options = parser.parse_args()
    inpainter = inpaint.load(options.masked_model, codec=options.codec)
    font = synth.SoundFont(synth.soundfont(options.soundfont), RATE)
    sampling = inpaint.SamplingConfig(temperature=options.temperature, best_of=1)
    waves: dict[str, list[Wave]] = {"render": [], "codes": [], "generated": []}
    rolls = []
    for loop in loops(options.dataset, "valid", options.loops):
        conditioning = inputs.conditioning_of(loop)
        assert conditioning.roll is not None
        true = render.loop(loop, font).mix
        codes = compression.encode(true, inpainter.codec).codes
        waves["render"].append(true)
        waves["codes"].append(inpainter.decoded(codes, len(true), RATE))
        waves["generated"] += generate.generate(
            LoopPrompt(loop.label, conditioning), inpainter, rate=RATE, sampling=sampling
        )
        rolls.append(conditioning.roll)
    print(f"{len(rolls)} loops of validation songs; F1 within {1000 * WITHIN_S:g} ms\n")
    print(
        "range dB  threshold  late ms " + "".join(f"{name:>11}" for name in (*waves, "another's"))
    )
    others = [*rolls[1:], rolls[0]]
    for range_db, threshold in itertools.product(RANGES_DB, THRESHOLDS):
        detector = Detector(range_db, threshold)
        late = [late_s(*pair, detector) for pair in zip(waves["render"], rolls, strict=True)]
        detector = detector._replace(late_s=float(np.median(np.concatenate(late))))
        found = {
            name: np.mean([f1(*pair, detector) for pair in zip(some, rolls, strict=True)])
            for name, some in waves.items()
        }
        beside = zip(waves["generated"], others, strict=True)
        found["another's"] = np.mean([f1(*pair, detector) for pair in beside])
        print(
            f"{range_db:8g} {threshold:10g} {1000 * detector.late_s:8.0f} "
            + "".join(f"{value:11.3f}" for value in found.values()),
            flush=True,
        )


if __name__ == "__main__":
    main()
