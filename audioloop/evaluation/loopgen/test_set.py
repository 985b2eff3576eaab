"""The test set: loops of the test split, performed and rendered.

Each loop has a kit, a bass and a tempo of its own. It has as many whole bars as last from a third
to two thirds of a window (Algorithm 1 of Marincione et al. 2025, arXiv:2504.04466, for a known
tempo). Loop number n of a seed is always the same, however many there are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from audioloop.codec import encoded_dataset
from audioloop.codec.model import Codec
from audioloop.conditioning import Conditioning
from audioloop.io.wave import SILENT
from audioloop.rendering import augment, render
from audioloop.rendering.augment import Augmentation, PackedLoops
from audioloop.rendering.synth import BLOCK, SoundFont
from audioloop.signal import beats
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Roll
from midiloop.midi.score import Score

DEFAULT_BARS = 2  # or four, or one; a loop of one bar has no other bar line
WINDOWS_S = 6.0, 14.0  # whole bars fit at every tempo; from 12 s on, never one bar alone


class EvaluationLoop(NamedTuple):
    """A loop of the test set.

    Attributes:
        ring: its true render, float32 (1, 1, samples), with a whole number of frames in every bar.
        longer: a true render of it and of as many bars that follow, (1, 1, 2 · samples).
        conditioning: its notes, beat, kit and bass.
        tempo_bpm: beats a minute.
        bars, n_frames: its length.
    """

    ring: Tensor
    longer: Tensor
    conditioning: Conditioning
    tempo_bpm: float
    bars: int
    n_frames: int


def bounds_s(window_s: float) -> tuple[float, float]:
    """The shortest and the longest duration of a loop for a window, in seconds."""
    return window_s / 3, window_s * 2 / 3


def evaluation_loop(
    source: PackedLoops,
    number: int,
    seed: int,
    font: SoundFont,
    codec: Codec,
    window_s: float,
    *,
    reference: bool = False,
) -> EvaluationLoop:
    """Loop ``number`` of the test set, or of the reference set.

    Half of the source loops are for the test set, half for the reference set. A silent loop is
    replaced by the next one.

    Args:
        source: loops of the test split.
        number: from 0.
        seed: of all random numbers.
        font: to render with.
        codec: gives sample rate and frames.
        window_s: duration of a window, from the first to the last of `WINDOWS_S`.
        reference: for the reference set.

    Raises:
        LoopError: the loops are silent with this SoundFont.
    """
    shortest_s, longest_s = bounds_s(window_s)
    rng = np.random.default_rng([seed, number, int(reference)])
    order = np.random.default_rng(seed).permutation(len(source.packed))
    half = order[int(reference) :: 2] if len(order) > 1 else order
    variety = replace(encoded_dataset.VARIETY, rate=codec.config.rate, tempo_octaves=0.0)
    picks = (int(half[(number + more) % len(half)]) for more in range(max(len(half), 8)))
    for pick in picks:
        octaves = rng.uniform(
            -encoded_dataset.VARIETY.tempo_octaves, encoded_dataset.VARIETY.tempo_octaves
        )
        tempo_bpm = float(source.tempos_bpm[pick]) * 2**octaves
        tempo_bpm = float(np.clip(tempo_bpm, variety.slowest_bpm, variety.fastest_bpm))
        pulse = beats.said(tempo_bpm)
        bars = beats.aligned_bars(pulse, shortest_s, longest_s, DEFAULT_BARS)
        assert bars is not None  # at these tempi one, two or four bars always fit
        # Whole frames in every bar: no method has to resample what it cuts, and a loop that is
        # encoded again from a bar line on has the same frames as at the seam.
        n_frames = bars * max(1, round(pulse.bar_s * codec.config.frames_per_s))
        steps = bars * LOOP.steps_per_bar
        start = int(rng.integers(LOOP.bars - bars + 1)) * LOOP.steps_per_bar
        whole = LOOP.unpack(source.packed[pick : pick + 1])[0]
        roll = whole[start : start + steps].copy()
        song = augment.perform(roll, tempo_bpm, rng, variety)
        n_blocks = n_frames * codec.config.frame // BLOCK
        samples = render.periodic(song, n_blocks, font).mean(0)
        peak = float(np.abs(samples).max())
        if peak < SILENT:
            continue
        kit = next((track.program for track in song.tracks if track.is_drum), None)
        bass = next((track.program for track in song.tracks if not track.is_drum), None)
        roll[:, : LOOP.n_drums] &= kit is not None
        roll[:, LOOP.n_drums :] &= bass is not None
        on = _played_on(song, np.roll(whole, -start, 0)[: 2 * steps], tempo_bpm, rng, variety)
        more = render.periodic(on, 2 * n_blocks, font).mean(0)
        ring, longer = (
            torch.from_numpy(some * np.float32(10 ** (-1 / 20) / peak))[None, None]
            for some in (samples, more)
        )
        tempo_bpm = 60 * bars * pulse.beats_per_bar * codec.config.frames_per_s / n_frames
        return EvaluationLoop(
            ring, longer, Conditioning(roll, steps, kit, bass), tempo_bpm, bars, n_frames
        )
    raise LoopError("the loops of the test split are silent with this SoundFont; give another")


def _played_on(
    song: Score, roll: Roll, tempo_bpm: float, rng: np.random.Generator, variety: Augmentation
) -> Score:
    """Perform another roll with the programs and controls of a song."""
    players = {track.is_drum: track for track in song.tracks}
    played = augment.perform(roll, tempo_bpm, rng, replace(variety, alone=0.0))
    tracks = (
        track._replace(
            program=players[track.is_drum].program, controls=players[track.is_drum].controls
        )
        for track in played.tracks
        if track.is_drum in players
    )
    return replace(played, tracks=tuple(tracks))
