"""midiloop: mine loops from MIDI files, train models on them, generate new ones.

What is used most stands at the top, and is loaded as it is first used:

>>> import midiloop, numpy as np
>>> roll = np.zeros((128, 93), bool)  # 8 bars of 16 steps; 9 drums, then 84 bass pitches
>>> roll[::4, [0, 6]] = True  # kick and crash, on every beat
>>> roll[::2, 20] = True
>>> midiloop.write(midiloop.decode(roll, tempo_bpm=96), "song.mid")
>>> [loop.shape for loop in midiloop.extract(midiloop.read("song.mid"))]
[(128, 93)]

The rest is one module a noun, floor on floor: `midi`, `mining`, `dataset`, `models`, `training`,
`generation`, `metrics`, `evaluation`, `plotting`; import them by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from midiloop.dataset.parquet import LoopDataset
    from midiloop.errors import LoopError
    from midiloop.evaluation.evaluate import compare as evaluate
    from midiloop.evaluation.profile import LoopSet
    from midiloop.generation.humanize import Feel, humanize
    from midiloop.generation.sample import GenerationRequest
    from midiloop.generation.sample import load as load_generator
    from midiloop.generation.sample import sample as generate
    from midiloop.midi.pianoroll import decode, encode
    from midiloop.midi.score import read, write
    from midiloop.mining.extract import loops as extract
    from midiloop.mining.extract import run as extract_corpus
    from midiloop.plotting.plot import draw as plot
else:
    _PLACES = {
        "Feel": "midiloop.generation.humanize.Feel",
        "GenerationRequest": "midiloop.generation.sample.GenerationRequest",
        "LoopDataset": "midiloop.dataset.parquet.LoopDataset",
        "LoopError": "midiloop.errors.LoopError",
        "LoopSet": "midiloop.evaluation.profile.LoopSet",
        "decode": "midiloop.midi.pianoroll.decode",
        "encode": "midiloop.midi.pianoroll.encode",
        "evaluate": "midiloop.evaluation.evaluate.compare",
        "extract": "midiloop.mining.extract.loops",
        "extract_corpus": "midiloop.mining.extract.run",
        "generate": "midiloop.generation.sample.sample",
        "humanize": "midiloop.generation.humanize.humanize",
        "load_generator": "midiloop.generation.sample.load",
        "plot": "midiloop.plotting.plot.draw",
        "read": "midiloop.midi.score.read",
        "write": "midiloop.midi.score.write",
    }

    def __getattr__(name):
        """What stands at the top, from the module where it is."""
        from midiloop.common import lazy

        return lazy.load(globals(), _PLACES, name)

    def __dir__():
        return sorted({*globals(), *_PLACES})


__all__ = [
    "Feel",
    "GenerationRequest",
    "LoopDataset",
    "LoopError",
    "LoopSet",
    "decode",
    "encode",
    "evaluate",
    "extract",
    "extract_corpus",
    "generate",
    "humanize",
    "load_generator",
    "plot",
    "read",
    "write",
]
