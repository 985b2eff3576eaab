"""Pictures of a comparison: cross-entropy around the seam, and the spread of seam perplexities.

After figures 3 and 4 of Marincione et al. 2025, arXiv:2504.04466, a panel for each setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audioloop.evaluation.loopgen.measures import REACH
from audioloop.evaluation.loopgen.methods import METHODS, SETTINGS
from audioloop.evaluation.loopgen.summary import BenchmarkResult
from midiloop.common.canvas import Canvas, open_canvas
from midiloop.plotting.figures import linear_ticks, value_ticks
from midiloop.plotting.plot import BAR_LINE, BASS, BEAT_LINE, FAINT, FAMILIES, INK, MISSED

# Pixels, as everything on a canvas.
EDGE, GAP, TITLE_TEXT, HEADING_TEXT, LABEL = 24, 40, 17, 13, 11
TITLE, HEADING, AXIS = 36, 24, 40
NATS_WIDTH, NATS_HEIGHT, NATS_GUTTER, NAMES = 460, 150, 40, 170
NATS_ROW = NATS_HEIGHT + 24  # with the space between rows of panels
SPREAD_WIDTH, SPREAD_ROW = 460, 30

# A colour for each method; dashes for a causal prefix, or without a cut at a bar line.
DASHED, DOTTED = (3.0, 2.0), (1.0, 1.5)
STYLES: dict[str, tuple[str, tuple[float, ...]]] = {
    "render": (INK, ()),
    "codes": (INK, DASHED),
    "render, beat-aligned": (FAINT, DOTTED),
    "render, cut": (FAINT, ()),
    "render, spliced": (FAINT, DASHED),
    "causal naive": (FAMILIES["kick"], DASHED),
    "causal beat-aligned": (FAMILIES["kick"], ()),
    "masked naive": (FAMILIES["snare"], DASHED),
    "masked beat-aligned": (FAMILIES["snare"], ()),
    "LoopGen tiled": (FAMILIES["tom"], ()),
    "LoopGen": (FAMILIES["tom"], DASHED),
    "tiled": (FAMILIES[""], ()),
    "hybrid tiled": (FAMILIES[""], DASHED),
    "ring": (BASS, ()),
    "hybrid ring": (BASS, DASHED),
}
# Rows of panels of `seam_nats`, so that a panel has a few lines; true renders stand in each.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("render", "codes", "render, beat-aligned", "render, cut", "render, spliced"),
    ("causal naive", "causal beat-aligned"),
    ("masked naive", "masked beat-aligned"),
    ("LoopGen tiled", "LoopGen"),
    ("tiled", "hybrid tiled"),
    ("ring", "hybrid ring"),
)
CONTEXT = "render"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def draw(found: BenchmarkResult, folder: Path) -> list[Path]:
    """Write ``seam_nats.png`` and ``perplexity.png``.

    Raises:
        ImportError: matplotlib is missing.
    """
    places = [folder / "seam_nats.png", folder / "perplexity.png"]
    around = {
        setting: {row: table[row]["around"] for row in METHODS}
        for setting, table in found.tables.items()
    }
    nats = {
        setting: {
            row: [item["rows"][setting][row]["nats"] for item in found.items] for row in METHODS
        }
        for setting in found.tables
    }
    seam_nats(around, places[0])
    spread(nats, places[1])
    return places


class _Panel(NamedTuple):
    """A rectangle of a canvas, and the values at its edges."""

    canvas: Canvas
    left: float
    top: float
    width: float
    height: float
    first: float
    last: float

    def x(self, value: float) -> float:
        return self.left + self.width * (value - self.first) / (self.last - self.first)

    def draw_heading(self, setting: str) -> None:
        y = self.top - HEADING / 2
        taken = self.canvas.text(self.left, y, setting, HEADING_TEXT, INK, bold=True)
        room = self.width - taken - 10
        self.canvas.text(self.left + taken + 10, y, SETTINGS[setting], LABEL, FAINT, room=room)

    def draw_frame(self) -> None:
        edges = [(self.left, y - 0.5, self.width, 1.0) for y in (self.top, self.top + self.height)]
        self.canvas.boxes(edges, BAR_LINE)


def seam_nats(around: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw the mean cross-entropy of each frame around the seam: a row of panels for each group.

    Args:
        around: by setting, by row, nats of the frames from `REACH` before the seam on.
    """
    width = len(around) * (NATS_GUTTER + NATS_WIDTH) + GAP * (len(around) - 1) + 10 + NAMES
    every = np.concatenate([line for lines in around.values() for line in lines.values()])
    ticks = linear_ticks(float(every.min()), float(every.max()), 5)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    low, high = math.floor(every.min() / step) * step, math.ceil(every.max() / step) * step
    levels: list[float] = np.arange(low, high + step / 2, step).tolist()
    height = EDGE + TITLE + HEADING + NATS_ROW * len(GROUPS) + AXIS + EDGE / 2
    with open_canvas(path, 2 * EDGE + width, height) as canvas:
        canvas.text(EDGE, EDGE + 8, "Cross-entropy around the seam", TITLE_TEXT, INK, bold=True)
        note = "nats of the first codebook, mean of all loops; dashed line: the seam; grey: renders"
        canvas.text(EDGE + width, EDGE + 8, note, LABEL, FAINT, align="right")
        for place, group in enumerate(GROUPS):
            top = EDGE + TITLE + HEADING + NATS_ROW * place
            for number, (setting, lines) in enumerate(around.items()):
                left = EDGE + NATS_GUTTER + number * (NATS_WIDTH + NATS_GUTTER + GAP)
                panel = _Panel(canvas, left, top, NATS_WIDTH, NATS_HEIGHT, -REACH, REACH)
                if place == 0:
                    panel.draw_heading(setting)
                _draw_lines(panel, lines, group, levels)
                if place == len(GROUPS) - 1:
                    _draw_frames(panel)
            _draw_legend(canvas, EDGE + width - NAMES + 10, top, group)


def _draw_lines(
    panel: _Panel,
    lines: Mapping[str, Sequence[float]],
    group: Sequence[str],
    ticks: Sequence[float],
) -> None:
    canvas, bottom = panel.canvas, panel.top + panel.height

    def y(value: float) -> float:
        return bottom - panel.height * (value - ticks[0]) / (ticks[-1] - ticks[0])

    for value in ticks:
        canvas.boxes([(panel.left, y(value) - 0.5, panel.width, 1.0)], BEAT_LINE)
        canvas.text(panel.left - 6, y(value), f"{value:g}", LABEL, FAINT, align="right")
    # Frame 0 is the first after the seam, so the seam is half a frame before its middle.
    at = panel.x(-0.5)
    canvas.line([(at, panel.top - 4), (at, bottom + 4)], MISSED, 1.2, dashes=(3, 2))
    for row in dict.fromkeys((CONTEXT, *group)):
        colour, dashes = STYLES[row] if row in group else (BAR_LINE, ())
        points = [(panel.x(n - REACH), y(value)) for n, value in enumerate(lines[row])]
        canvas.line(points, colour, 1.6, dashes=dashes)
    panel.draw_frame()


def _draw_frames(panel: _Panel) -> None:
    canvas, bottom = panel.canvas, panel.top + panel.height
    for frame in range(-REACH, REACH + 1, 10):
        canvas.text(panel.x(frame), bottom + 13, f"{frame:+d}" if frame else "0", LABEL, FAINT,
                  align="center")  # fmt: skip
    middle = panel.left + panel.width / 2
    canvas.text(middle, bottom + 29, "frames from the seam", LABEL, FAINT, align="center")


def _draw_legend(canvas: Canvas, left: float, top: float, group: Sequence[str]) -> None:
    for number, row in enumerate(group):
        colour, dashes = STYLES[row]
        y = top + 10 + 20 * number
        canvas.line([(left, y), (left + 26, y)], colour, 2, dashes=dashes)
        canvas.text(left + 34, y, row, LABEL, INK)


def spread(nats: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw how seam perplexities are spread: a box, whiskers and a dot for every loop.

    Args:
        nats: by setting, by row, nats at the seam of each loop.
    """
    width = NAMES + len(nats) * SPREAD_WIDTH + GAP * (len(nats) - 1)
    every = np.exp(np.concatenate([row for rows in nats.values() for row in rows.values()]))
    least, most = float(every.min()) / 1.15, float(every.max()) * 1.15
    tall = SPREAD_ROW * len(METHODS)
    height = EDGE + TITLE + HEADING + tall + AXIS + EDGE / 2
    with open_canvas(path, 2 * EDGE + width, height) as canvas:
        canvas.text(EDGE, EDGE + 8, "Seam perplexity of every loop", TITLE_TEXT, INK, bold=True)
        note = "box: middle half, bar: median, whiskers: 5 to 95 %"
        canvas.text(EDGE + width, EDGE + 8, note, LABEL, FAINT, align="right")
        top = EDGE + TITLE + HEADING
        for number, row in enumerate(METHODS):
            y = top + SPREAD_ROW * (number + 0.5)
            canvas.text(EDGE + NAMES - 12, y, row, LABEL + 1, INK, align="right")
        for number, (setting, rows) in enumerate(nats.items()):
            left = EDGE + NAMES + number * (SPREAD_WIDTH + GAP)
            ends = math.log(least), math.log(most)
            panel = _Panel(canvas, left, top, SPREAD_WIDTH, tall, *ends)
            panel.draw_heading(setting)
            _draw_boxes(panel, rows)


def _draw_boxes(panel: _Panel, rows: Mapping[str, Sequence[float]]) -> None:
    canvas, bottom = panel.canvas, panel.top + panel.height
    for value in value_ticks(math.exp(panel.first), math.exp(panel.last)):
        x = panel.x(math.log(value))
        canvas.boxes([(x - 0.5, panel.top, 1.0, panel.height)], BEAT_LINE)
        canvas.text(x, bottom + 13, f"{value:,g}", LABEL, FAINT, align="center")
    for number, row in enumerate(METHODS):
        y = panel.top + SPREAD_ROW * (number + 0.5)
        colour = STYLES[row][0]
        low, first, middle, third, high = (
            panel.x(value) for value in np.quantile(rows[row], QUANTILES).tolist()
        )
        canvas.boxes([(low, y - 0.75, high - low, 1.5)], colour)
        canvas.boxes([(x - 0.75, y - 4, 1.5, 8) for x in (low, high)], colour)
        canvas.boxes([(first, y - 8, third - first, 16)], "white", corner=3)
        canvas.boxes([(first, y - 8, third - first, 16)], colour + "66", corner=3)
        canvas.boxes([(panel.x(value) - 2, y - 2, 4, 4) for value in rows[row]], colour, corner=2)
        canvas.boxes([(middle - 1.25, y - 10, 2.5, 20)], INK)
    panel.draw_frame()
