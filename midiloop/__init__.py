"""midiloop: mine loops from MIDI files, train models on them, generate new ones.

The pipeline is one module a stop: `corpus`, `score`, `pianoroll`, `rules`, `extract`, `store`;
`metrics` and `plot` look at what came out. Import them by name::

    from midiloop.mining import extract
    from midiloop.midi import score
    rolls = extract.loops(score.read("song.mid"))
"""

__version__ = "0.1.0"
