"""SoundFonts of the tests."""

from __future__ import annotations

from pathlib import Path

from audioloop.rendering import synth


def bundled() -> Path:
    """The SoundFont that is everywhere."""
    import pretty_midi

    return Path(pretty_midi.__file__).parent / synth.BUNDLED_SOUNDFONT
