"""A part of a loop regenerated on the ring, the rest kept.

::

    loop  -> tokens, some bars masked -> filled on the ring -> as many samples as before
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from audioloop.codec import compression
from audioloop.io.wave import Format, Wave
from audioloop.pipelines import outputs
from audioloop.pipelines.inpaint import SAMPLING, Inpainter, SamplingConfig
from audioloop.pipelines.inputs import SourceLoop
from audioloop.pipelines.masks import InpaintMask
from audioloop.pipelines.outputs import FORMAT, MadeLoop, WrittenLoop
from midiloop.errors import LoopError

HALF = InpaintMask()


def refine(
    loop: SourceLoop,
    inpainter: Inpainter,
    part: InpaintMask = HALF,
    *,
    num_samples: int = 1,
    sampling: SamplingConfig = SAMPLING,
    ignore_notes: bool = False,
) -> tuple[list[Wave], float]:
    """Regenerate a part of a loop.

    >>> import audioloop, numpy as np
    >>> roll = np.zeros((16, 93), bool)
    >>> roll[::4, 0] = True
    >>> quick = audioloop.SamplingConfig(steps=(2, 1, 1, 1), best_of=1)
    >>> loop = audioloop.as_loop(roll, bpm=240)
    >>> waves, share = audioloop.refine(loop, audioloop.load_inpainter(), sampling=quick)
    >>> len(waves[0]) == len(loop.wave), share
    (True, 0.5)

    Args:
        loop: of a file, see `inputs.read`, or of what is in memory, see `inputs.of`.
        part: which part; without it the second half.
        ignore_notes: condition the model on nothing of the notes, as where it only has the audio.

    Returns:
        Waves (1, samples) of as many samples as the loop has, and the share that is new. Number i
        depends on the seed and i alone.

    Raises:
        CallError: see `InpaintMask.inpaint_mask`.
        LoopError: the loop is too long, shorter than a frame, or silent.
    """
    n_samples, rate = len(loop.wave), loop.wave.rate
    if not 0 < loop.wave.peak < math.inf:
        raise LoopError("silent, or samples that are no numbers; give a loop that sounds")
    n_frames = inpainter.loop_frames(n_samples, rate)
    frames_per_s = inpainter.codec.config.frames_per_s
    inpaint_mask = part.inpaint_mask(loop.conditioning, loop.label.bars, n_frames, frames_per_s)
    conditioning = replace(loop.conditioning, roll=None) if ignore_notes else loop.conditioning
    # Models were trained on loops of about full scale.
    peak = np.float32(loop.wave.peak)
    encoded = compression.encode(Wave(loop.wave.samples / peak, rate), inpainter.codec)
    condition = conditioning.on(n_frames, frames_per_s)
    filled = inpainter.inpaint(encoded.codes, inpaint_mask, condition, num_samples, sampling)
    kept = ~inpaint_mask, encoded.latent
    made = [inpainter.decoded(codes[None], n_samples, rate, kept) for codes in filled]
    return [Wave(one.samples * peak, rate) for one in made], float(inpaint_mask.float().mean())


def run(
    sources: Sequence[Path],
    out: Path,
    inpainter: Inpainter,
    read: Callable[[Path], SourceLoop],
    part: InpaintMask = HALF,
    *,
    num_samples: int = 1,
    sampling: SamplingConfig = SAMPLING,
    ignore_notes: bool = False,
    form: Format = FORMAT,
) -> Iterator[list[WrittenLoop] | LoopError]:
    """Refine files one by one, and write what becomes of each; one that fails costs itself.

    Args:
        read: a loop of a path, see `inputs.read`.

    Raises:
        CallError: ``out`` is a file, or another run is at work there.
    """

    def make(path: Path) -> list[MadeLoop]:
        loop = read(path)
        waves, regenerated = refine(
            loop,
            inpainter,
            part,
            num_samples=num_samples,
            sampling=sampling,
            ignore_notes=ignore_notes,
        )
        return outputs.numbered(waves, loop.label, loop.score, regenerated, loop.notes)

    return outputs.write_each(sources, out, make, form)
