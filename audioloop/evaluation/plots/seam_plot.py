"""A picture of a loop's seam: two passes, the samples and the spectrum there, and the measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from audioloop.io.wave import Wave
from audioloop.signal import mel
from audioloop.signal.seam import Control, Figures, Seam
from midiloop.common.canvas import Canvas, open_canvas
from midiloop.errors import counted
from midiloop.plotting.figures import value_ticks
from midiloop.plotting.plot import ADDED, BAR_LINE, BASS, BEAT_LINE, FAINT, FAMILIES, INK, MISSED

# Pixels, as everything on a canvas.
EDGE, GUTTER, LANE = 24, 84, 1080
TITLE_TEXT, HEADING_TEXT, LABEL = 17, 13, 11
HEADING, AXIS, GAP = 24, 22, 12  # above a panel, below it, and between two side by side
PASSES_HEIGHT, SAMPLES_HEIGHT, SPECTRUM_HEIGHT, ROW = 96, 150, 210, 20

SAMPLES_MS = (10.0, 1.0)  # on each side of the seam, a panel each
DOTS_UP_TO = 200  # samples of a panel that are drawn one by one
SPECTRUM_S, COLUMNS = 1.0, 540
QUIETEST_DB = -80.0
SPECTRUM_HZ = (100, 1_000, 10_000)
SCALE = "magma"
CHANNELS = (BASS, FAMILIES["kick"], FAMILIES["tom"], FAMILIES[""])
SEAM, DOT = MISSED, ADDED + "66"  # see-through, because many meet
LOWEST = 0.01  # on a logarithmic axis; what is less lies there
PERCENTILES = (0, 25, 50, 75, 100)


def draw(wave: Wave, seam: Seam, path: Path, title: str) -> None:
    """Draw a loop's seam to a .png, .svg or .pdf file.

    Args:
        seam: of this wave.
        title: any text, for example the file's name; shortened where it does not fit.

    Raises:
        LoopError: the file cannot be called that.
        ImportError: matplotlib is missing.
    """
    n_rows = 1 + len(seam.controls)
    above = EDGE + 32
    heights = (PASSES_HEIGHT, SAMPLES_HEIGHT, SPECTRUM_HEIGHT, ROW * n_rows)
    height = above + sum(HEADING + panel + AXIS for panel in heights) + EDGE
    left, half = EDGE + GUTTER, (LANE - GAP - GUTTER / 2) / 2
    with open_canvas(path, left + LANE + EDGE, height) as canvas:
        bars = "" if seam.bars is None else f", {counted(seam.bars, 'bar')}"
        about = f"{wave.duration_s:.2f} s at {wave.rate:,} Hz{bars}"
        taken = canvas.text(left + LANE, EDGE + 8, about, LABEL, FAINT, align="right")
        room = GUTTER + LANE - taken - EDGE
        canvas.text(EDGE, EDGE + 8, title, TITLE_TEXT, INK, room=room, bold=True)

        top = above + HEADING
        _draw_passes(_Panel(canvas, left, top, LANE, PASSES_HEIGHT), wave, seam.bars)
        top += PASSES_HEIGHT + AXIS + HEADING
        for number, side_ms in enumerate(SAMPLES_MS):
            x = left + number * (LANE - half)
            _draw_samples(_Panel(canvas, x, top, half, SAMPLES_HEIGHT), wave, side_ms)
        top += SAMPLES_HEIGHT + AXIS + HEADING
        _draw_spectrum(_Panel(canvas, left, top, LANE, SPECTRUM_HEIGHT), wave)
        top += SPECTRUM_HEIGHT + AXIS + HEADING
        _draw_measures(canvas, seam, left, top)


@dataclass(frozen=True)
class _Panel:
    """A rectangle of a canvas, with the seam in the middle."""

    canvas: Canvas
    left: float
    top: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.top + self.height / 2

    @property
    def bottom(self) -> float:
        return self.top + self.height

    @property
    def seam(self) -> float:
        return self.left + self.width / 2

    def draw_heading(self, text: str, note: str = "") -> None:
        """Write what is seen above, and a remark at the right."""
        y = self.top - HEADING / 2
        self.canvas.text(self.left, y, text, HEADING_TEXT, INK, bold=True)
        self.canvas.text(self.left + self.width, y, note, LABEL, FAINT, align="right")

    def draw_frame(self) -> None:
        """Draw the upper and the lower edge."""
        edges = [(self.left, y - 0.5, self.width, 1.0) for y in (self.top, self.bottom)]
        self.canvas.boxes(edges, BAR_LINE)

    def mark_seam(self) -> None:
        """Draw a line through the panel, a little beyond its edges."""
        ends = [(self.seam, self.top - 4), (self.seam, self.bottom + 4)]
        self.canvas.line(ends, SEAM, 1.2, dashes=(3, 2))

    def mark_x(self, share: float, name: str) -> None:
        """Write below, at a share of the width, and not beyond the panel."""
        x = self.left + share * self.width
        align: Literal["left", "center", "right"] = "center"
        if share in (0, 1):
            align = "right" if share else "left"
        self.canvas.text(x, self.bottom + 13, name, LABEL, FAINT, align=align)

    def mark_y(self, y: float, name: str) -> None:
        """Write at the left."""
        self.canvas.text(self.left - 6, y, name, LABEL, FAINT, align="right")


def _draw_passes(panel: _Panel, wave: Wave, bars: int | None) -> None:
    """Two passes, from the lowest to the highest sample of each pixel."""
    panel.draw_heading("Two passes", "dashed: the seam")
    lines = range(2 * bars + 1) if bars and bars <= panel.width / 16 else range(0)
    strong = panel.width / max(1, len(lines) - 1)
    x_lines = [panel.left + number * strong for number in lines]
    panel.canvas.boxes([(x - 0.5, panel.top, 1.0, panel.height) for x in x_lines], BEAT_LINE)
    columns = int(panel.width / 2)  # of one pass
    edges = np.linspace(0, len(wave), columns + 1).astype(np.int64)[:-1]
    high = np.maximum.reduceat(wave.samples.max(0), edges) / wave.peak
    low = np.minimum.reduceat(wave.samples.min(0), edges) / wave.peak
    scale = panel.height / 2
    boxes = []
    for column, (up, down) in enumerate(zip(np.tile(high, 2), np.tile(low, 2), strict=True)):
        y = panel.middle - scale * float(up)
        boxes.append((panel.left + column, y, 1.0, max(scale * float(up - down), 1.0)))
    panel.canvas.boxes(boxes, BASS)
    panel.draw_frame()
    panel.mark_seam()
    for share, seconds in ((0, 0.0), (0.5, wave.duration_s), (1, 2 * wave.duration_s)):
        panel.mark_x(share, f"{seconds:.2f} s")


def _draw_samples(panel: _Panel, wave: Wave, side_ms: float) -> None:
    """The samples on both sides, a line for each of the first channels."""
    reach = max(2, math.ceil(side_ms / 1000 * wave.rate))
    near = wave.samples[: len(CHANNELS)].take(range(-reach, reach), axis=1, mode="wrap")
    top = max(float(np.abs(near).max()), 1e-6)
    more = f"the first {len(near)} channels" if len(wave.samples) > len(near) else ""
    note = "blue: left, pink: right" if len(near) == 2 else more
    panel.draw_heading(f"Samples within {side_ms:g} ms", note)
    panel.canvas.boxes([(panel.left, panel.middle - 0.5, panel.width, 1.0)], BEAT_LINE)
    # The seam is between two samples, so they lie half a sample to each side of it.
    xs = panel.left + panel.width * (np.arange(2 * reach) + 0.5) / (2 * reach)
    for channel, colour in zip(near, CHANNELS, strict=False):
        ys = panel.middle - 0.94 * panel.height / 2 * channel / top
        places = list(zip(xs.tolist(), ys.tolist(), strict=True))
        panel.canvas.line(places, colour, 1.3)
        if len(places) <= DOTS_UP_TO:
            panel.canvas.boxes([(x - 2, y - 2, 4, 4) for x, y in places], colour, corner=2)
    panel.draw_frame()
    panel.mark_seam()
    for share, ms in ((0, -side_ms), (0.5, 0.0), (1, side_ms)):
        panel.mark_x(share, f"{ms:g} ms")
    for y, level in ((panel.top + 6, top), (panel.middle, 0.0), (panel.bottom - 6, -top)):
        panel.mark_y(y, f"{level:.2g}")


def _draw_spectrum(panel: _Panel, wave: Wave) -> None:
    """Log-mel spectra on both sides; of a short loop, more passes than two."""
    panel.draw_heading(f"Spectrum within {SPECTRUM_S:g} s", f"black: {QUIETEST_DB:g} dB and less")
    centres = np.linspace(-SPECTRUM_S, SPECTRUM_S, 2 * COLUMNS + 1)[1::2] * wave.rate
    levels = mel.decibels(wave, np.floor(centres).astype(np.int64))
    shades = (levels - QUIETEST_DB) / max(float(levels.max()) - QUIETEST_DB, 1.0)
    box = (panel.left, panel.top, panel.width, panel.height)
    panel.canvas.image(shades.T[::-1], box, colours=SCALE)
    ends = [(panel.seam, panel.top), (panel.seam, panel.bottom)]
    panel.canvas.line(ends, "white", 1.2, dashes=(3, 2))
    for share, seconds in ((0, -SPECTRUM_S), (0.5, 0.0), (1, SPECTRUM_S)):
        panel.mark_x(share, f"{seconds:g} s")
    hz = mel.band_hz(wave.rate)[1:-1]
    for frequency in SPECTRUM_HZ:
        if frequency < hz[-1]:
            row = float(np.interp(frequency, hz, np.arange(len(hz)))) + 0.5
            name = f"{frequency // 1000} kHz" if frequency >= 1000 else f"{frequency} Hz"
            panel.mark_y(panel.bottom - panel.height * row / len(hz), name)


def _draw_measures(canvas: Canvas, seam: Seam, left: float, top: float) -> None:
    """A panel a measure: the seam above the joins of every control, and the controls' medians."""
    kinds = {"seam": Control((seam.figures,)), **seam.controls}
    width = (LANE - 2 * 2 * GAP) / 3
    for row, name in enumerate(kinds):
        y, colour = top + ROW * (row + 0.5), SEAM if name == "seam" else INK
        shown = "other bar lines" if name == "bar_lines" else name.replace("_", " ")
        canvas.text(left - 10, y, shown, LABEL, colour, align="right", bold=name == "seam")
    headings = ["jump", "residual", "flux percentile"]
    for number, (field, heading) in enumerate(zip(Figures._fields, headings, strict=True)):
        panel = _Panel(canvas, left + number * (width + 2 * GAP), top, width, ROW * len(kinds))
        note = ""
        if field == "flux_percentile" and seam.bar_flux_percentile is not None:
            note = f"among the other bar lines {seam.bar_flux_percentile:.0f}"
        value = getattr(seam.figures, field)
        panel.draw_heading(f"{heading} {figure(field, value)}", note)
        draws = [[getattr(join, field) for join in control.draws] for control in kinds.values()]
        _draw_strip(panel, draws, percentile=field == "flux_percentile")


def _draw_strip(panel: _Panel, draws: Sequence[Sequence[float]], *, percentile: bool) -> None:
    """A row of dots for each kind of join, and a bar at its median; the seam's is the first."""
    low, high = -4.0, 104.0
    ticks: dict[float, str] = {float(value): f"{value}" for value in PERCENTILES}
    if not percentile:
        values = np.maximum(np.concatenate(draws), LOWEST)
        least, most = float(min(values.min(), 1.0)) / 1.3, float(max(values.max(), 10.0)) * 1.3
        low, high = math.log10(least), math.log10(most)
        ticks = {math.log10(value): f"{value:g}" for value in value_ticks(least, most)}
    canvas = panel.canvas

    def x(value: float) -> float:
        place = value if percentile else math.log10(max(value, LOWEST))
        return panel.left + panel.width * (place - low) / (high - low)

    for place, name in ticks.items():
        share = (place - low) / (high - low)
        line = (panel.left + share * panel.width - 0.5, panel.top, 1.0, panel.height)
        canvas.boxes([line], BEAT_LINE)
        panel.mark_x(share, name)
    panel.draw_frame()
    own = x(draws[0][0])
    canvas.boxes([(own - 0.5, panel.top, 1.0, panel.height)], SEAM + "55")
    for row, joins in enumerate(draws):
        y = panel.top + ROW * (row + 0.5)
        if row:
            canvas.boxes([(x(value) - 3, y - 3, 6, 6) for value in joins], DOT, corner=3)
            canvas.boxes([(x(float(np.median(joins))) - 1, y - 7, 2, 14)], INK)
        else:
            canvas.boxes([(own - 5, y - 5, 10, 10)], SEAM, corner=5)


def figure(name: str, value: float | None) -> str:
    """A measure as people read it: "0.51", "12.3", "4,923"; a percentile without decimals."""
    if value is None:
        return "–"
    if name.endswith("percentile"):
        return f"{value:.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
