"""Render loops to audio without a seam, label them, check and regenerate them, measure their seams.

What is used most stands at the top, and is loaded as it is first used:

>>> import audioloop, numpy as np
>>> roll = np.zeros((32, 93), bool)  # 2 bars of 16 steps; 9 drums, then 84 bass pitches
>>> roll[::4, 0] = True
>>> loop = audioloop.render(roll, bpm=120)
>>> loop.mix.samples.shape, loop.mix.rate  # for ever without a seam
((2, 176400), 44100)
>>> audioloop.seam_report(loop.mix, bars=2).verdict.bad
False

The rest is one module a noun, floor on floor: `io`, `signal`, `nn`, `rendering`, `codec`, `tokens`,
`pipelines`, `evaluation`; import them by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audioloop.codec.compression import load as load_codec
    from audioloop.evaluation.seam_report import seam_report
    from audioloop.evaluation.validate import examine as check
    from audioloop.io.wave import Wave
    from audioloop.pipelines.generate import generate
    from audioloop.pipelines.inpaint import SamplingConfig
    from audioloop.pipelines.inpaint import load as load_inpainter
    from audioloop.pipelines.inputs import of as as_loop
    from audioloop.pipelines.inputs import read as read_loop
    from audioloop.pipelines.masks import InpaintMask
    from audioloop.pipelines.outputs import write
    from audioloop.pipelines.refine import refine
    from audioloop.rendering.render import Sound, render
    from audioloop.rendering.synth import SoundFont
else:
    _PLACES = {
        "InpaintMask": "audioloop.pipelines.masks.InpaintMask",
        "SamplingConfig": "audioloop.pipelines.inpaint.SamplingConfig",
        "Sound": "audioloop.rendering.render.Sound",
        "SoundFont": "audioloop.rendering.synth.SoundFont",
        "Wave": "audioloop.io.wave.Wave",
        "as_loop": "audioloop.pipelines.inputs.of",
        "check": "audioloop.evaluation.validate.examine",
        "generate": "audioloop.pipelines.generate.generate",
        "load_codec": "audioloop.codec.compression.load",
        "load_inpainter": "audioloop.pipelines.inpaint.load",
        "read_loop": "audioloop.pipelines.inputs.read",
        "refine": "audioloop.pipelines.refine.refine",
        "render": "audioloop.rendering.render.render",
        "seam_report": "audioloop.evaluation.seam_report.seam_report",
        "write": "audioloop.pipelines.outputs.write",
    }

    def __getattr__(name):
        """What stands at the top, from the module where it is."""
        from midiloop.common import lazy

        return lazy.load(globals(), _PLACES, name)

    def __dir__():
        return sorted({*globals(), *_PLACES})


__all__ = [
    "InpaintMask",
    "SamplingConfig",
    "Sound",
    "SoundFont",
    "Wave",
    "as_loop",
    "check",
    "generate",
    "load_codec",
    "load_inpainter",
    "read_loop",
    "refine",
    "render",
    "seam_report",
    "write",
]
