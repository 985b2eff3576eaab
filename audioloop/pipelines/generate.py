"""Loops generated on the ring: from notes, or from a kit, a bass and a tempo alone.

::

    notes, beat, kit -> all frames masked -> filled on the ring -> as many samples as its bars
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from audioloop.conditioning import STEPS_PER_BEAT, Conditioning
from audioloop.io.label import LoopLabel
from audioloop.io.wave import Format, Wave
from audioloop.pipelines import inputs, outputs
from audioloop.pipelines.inpaint import SAMPLING, Inpainter, SamplingConfig
from audioloop.pipelines.outputs import FORMAT, MadeLoop, WrittenLoop
from audioloop.rendering import piece, render
from audioloop.rendering.piece import Piece
from audioloop.rendering.render import Sound
from midiloop.errors import LoopError
from midiloop.grid import Roll
from midiloop.midi.score import Score

BPM, BARS = 120.0, 4
KIT, BASS = 0, 33  # General MIDI's standard kit, a fingered bass
SOUND = Sound()


class LoopPrompt(NamedTuple):
    """What a loop is generated from.

    Attributes:
        label: tempo, bars and meter; a loop has exactly as many samples as these take.
        conditioning: beat, kit and bass, and notes where they are known.
        score: of those notes.
    """

    label: LoopLabel
    conditioning: Conditioning
    score: Score | None = None


def without_notes(
    bpm: float | None = None,
    bars: int | None = None,
    kit: int | None = None,
    bass: int | None = None,
    name: str = "loop",
) -> LoopPrompt:
    """A prompt that leaves the notes to the model."""
    label = LoopLabel(BPM if bpm is None else bpm, BARS if bars is None else bars, name=name)
    # Without a kit and a bass loops come out faint.
    kit, bass = KIT if kit is None else kit, BASS if bass is None else bass
    steps = int(label.quarters * STEPS_PER_BEAT)
    return LoopPrompt(label, Conditioning(None, steps, kit, bass))


def prompt_of(
    source: Score | Roll | Piece,
    sound: Sound = SOUND,
    *,
    bpm: float | None = None,
    bars: int | None = None,
    name: str = "loop",
) -> LoopPrompt:
    """The prompt of a score or a roll that is one loop.

    Args:
        sound: its drum kit and bass, in place of the score's.

    Raises:
        LoopError: see `piece.of_score`.
    """
    if not isinstance(source, Piece):
        source = piece.of(source, name, bpm=bpm, bars=bars)
    loop = replace(source, score=render.voiced(source.score, sound))
    return LoopPrompt(loop.label, inputs.conditioning_of(loop), loop.score)


def generate(
    source: LoopPrompt | Score | Roll,
    inpainter: Inpainter,
    *,
    rate: int = inputs.RATE,
    num_samples: int = 1,
    sampling: SamplingConfig = SAMPLING,
    causal_prefix: bool = False,
) -> list[Wave]:
    """Generate loops from notes, or from what a prompt says in place of them.

    >>> import audioloop, numpy as np
    >>> roll = np.zeros((16, 93), bool)
    >>> roll[::4, 0] = True
    >>> quick = audioloop.SamplingConfig(steps=(2, 1, 1, 1), best_of=1)
    >>> inpainter = audioloop.load_inpainter()
    >>> waves = audioloop.generate(roll, inpainter, num_samples=2, sampling=quick)
    >>> [one.samples.shape for one in waves]
    [(1, 88200), (1, 88200)]

    Args:
        source: a score, a roll (steps, columns) at 120 bpm, or a prompt, see `prompt_of` and
            `without_notes`.
        causal_prefix: let the causal model write the first half, as in LoopGen's hybrid, see
            `prefix.prefix`.

    Returns:
        Waves (1, samples), of exactly as many samples as the label says. Number i depends on the
        seed and i alone.

    Raises:
        CallError: a causal model is to have a say, and there is none.
        LoopError: the loop is too long, or the score is none.
    """
    prompt = source if isinstance(source, LoopPrompt) else prompt_of(source)
    n_samples = prompt.label.samples(rate)
    n_frames = inpainter.loop_frames(n_samples, rate)
    condition = prompt.conditioning.on(n_frames, inpainter.codec.config.frames_per_s)
    codes = torch.zeros(1, inpainter.codec.config.codebooks, n_frames, dtype=torch.int64)
    inpaint_mask = torch.ones(n_frames, dtype=torch.bool)
    half = n_frames // 2
    if causal_prefix and half:
        first = inpainter.prefix(condition, half, num_samples, sampling).cpu()
        codes = torch.cat([first, codes[..., half:].expand(num_samples, -1, -1)], -1)
        inpaint_mask[:half] = False
    filled = inpainter.inpaint(codes, inpaint_mask, condition, num_samples, sampling)
    return [inpainter.decoded(codes[None], n_samples, rate) for codes in filled]


def run(
    sources: Sequence[Path],
    out: Path,
    inpainter: Inpainter,
    sound: Sound = SOUND,
    *,
    bpm: float | None = None,
    bars: int | None = None,
    num_samples: int = 1,
    sampling: SamplingConfig = SAMPLING,
    causal_prefix: bool = False,
    form: Format = FORMAT,
) -> Iterator[list[WrittenLoop] | LoopError]:
    """Generate loops from the notes of MIDI files, or from none where no file is given.

    One file that fails costs itself.

    Args:
        sound: drum kit and bass in place of the files'.
        bpm, bars: in place of what each file says.

    Raises:
        CallError: ``out`` is a file, or another run is at work there.
        LoopError: no file is given, and the loop is too long.
    """

    def make(prompt: LoopPrompt) -> list[MadeLoop]:
        waves = generate(
            prompt,
            inpainter,
            num_samples=num_samples,
            sampling=sampling,
            causal_prefix=causal_prefix,
        )
        return outputs.numbered(waves, prompt.label, prompt.score)

    def of_file(path: Path) -> list[MadeLoop]:
        loop = piece.read(path, inputs.name_of(path), bpm=bpm, bars=bars)
        return make(prompt_of(loop, sound))

    if sources:
        return outputs.write_each(sources, out, of_file, form)
    name = f"seed-{sampling.seed}"
    prompt = without_notes(bpm, bars, sound.kit, sound.bass, name)

    def of_nothing() -> Iterator[MadeLoop]:
        yield from make(prompt)

    return outputs.write_all(of_nothing(), out, form)
