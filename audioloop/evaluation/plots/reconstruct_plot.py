"""A picture of a loop before and after a codec: spectra one below the other, on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from audioloop.io.wave import Wave
from audioloop.signal import mel
from midiloop.common.canvas import Canvas, open_canvas
from midiloop.plotting.plot import FAINT, INK

# Pixels, as everything on a canvas.
EDGE, GUTTER, LANE, PANEL, HEADING, AXIS = 24, 60, 1080, 190, 26, 24
TITLE_TEXT, HEADING_TEXT, LABEL = 17, 13, 11
COLUMNS = 1080
QUIETEST_DB = -80.0
SPECTRUM_HZ = (100, 1_000, 8_000)
SCALE = "magma"
NAMES = {"original": "original", "latent": "from the latent", "codes": "from the codes"}


def heading(figures: Any) -> str:
    """The figures of one reconstruction, as its panel names them."""
    if figures.si_sdr_db is None:
        return "silent, or too short to measure"
    return (
        f"SI-SDR {figures.si_sdr_db:.1f} dB, STFT distance {figures.stft_distance:.2f}, "
        f"mel distance {figures.mel_distance:.2f}, above 8 kHz {figures.high_gap_db:+.1f} dB"
    )


def draw(waves: Mapping[str, Wave], headings: Mapping[str, str], path: Path, title: str) -> None:
    """Draw the spectra of waves of one length to a .png, .svg or .pdf file.

    Args:
        waves: by the names of `NAMES`, the original among them.
        headings: what to write above some of them.

    Raises:
        LoopError: the file cannot be called that.
        ImportError: matplotlib is missing.
    """
    original = waves["original"]
    above = EDGE + 32
    height = above + len(waves) * (HEADING + PANEL + AXIS) + EDGE / 2
    with open_canvas(path, EDGE + GUTTER + LANE + EDGE, height) as canvas:
        about = f"{original.duration_s:.2f} s at {original.rate:,} Hz, black: {QUIETEST_DB:g} dB"
        taken = canvas.text(EDGE + GUTTER + LANE, EDGE + 8, about, LABEL, FAINT, align="right")
        room = GUTTER + LANE - taken - EDGE
        canvas.text(EDGE, EDGE + 8, title, TITLE_TEXT, INK, room=room, bold=True)
        for number, (name, wave) in enumerate(waves.items()):
            top = above + number * (HEADING + PANEL + AXIS) + HEADING
            canvas.text(EDGE + GUTTER, top - 12, NAMES[name], HEADING_TEXT, INK, bold=True)
            note = headings.get(name, "")
            canvas.text(EDGE + GUTTER + LANE, top - 12, note, LABEL, FAINT, align="right")
            _draw_spectrum(canvas, wave, original.peak, top)


def _draw_spectrum(canvas: Canvas, wave: Wave, peak: float, top: float) -> None:
    left = EDGE + GUTTER
    centres = ((np.arange(COLUMNS) + 0.5) * len(wave) / COLUMNS).astype(np.int64)
    levels = mel.decibels_of(wave.samples, centres, wave.rate, max(peak, 1e-6))
    shades = np.clip((levels - QUIETEST_DB) / -QUIETEST_DB, 0, 1)
    canvas.image(shades.T[::-1], (left, top, LANE, PANEL), colours=SCALE)
    hz = mel.band_hz(wave.rate)[1:-1]
    for frequency in SPECTRUM_HZ:
        row = float(np.interp(frequency, hz, np.arange(len(hz)))) + 0.5
        name = f"{frequency // 1000} kHz" if frequency >= 1000 else f"{frequency} Hz"
        canvas.text(left - 6, top + PANEL * (1 - row / len(hz)), name, LABEL, FAINT, align="right")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        shown = f"{share * wave.duration_s:.2f} s"
        x, y = left + share * LANE, top + PANEL + 13
        align: Any = "left" if share == 0 else "right" if share == 1 else "center"
        canvas.text(x, y, shown, LABEL, FAINT, align=align)
