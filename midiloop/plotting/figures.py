"""Figures of training runs and of models: learning curves, codes, reconstructions.

Arrays go in and a .png, .svg or .pdf file comes out. `codes` and `frequent_codes` follow Han, Ihm
and Lim 2021, arXiv:2111.07657, figures 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.common.canvas import Box, Canvas, open_canvas
from midiloop.errors import LoopError, counted
from midiloop.grid import LOOP
from midiloop.plotting.plot import (
    BAR_LINE,
    BASS,
    BEAT_LINE,
    FAINT,
    FAMILIES,
    INK,
    TINT,
    Picture,
    contact_sheet,
)

Codes = NDArray[np.integer[Any]]
Rolls = NDArray[np.bool_]  # (n, 128, 93)
Points = NDArray[np.float64]  # rows (epoch, value)

MEASURES = {"loss": "training loss", "error": "validation error"}  # keys of a history
COLOURS = (BASS, *(FAMILIES[family] for family in ("kick", "tom", "", "hat", "snare")))
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 2), (1, 2))  # of the runs past the sixth
STREAMS = {1: (("", INK),), 2: (("drums", FAMILIES["kick"]), ("bass", BASS))}

# Pixels, as everything on a canvas.
EDGE, HEADING, TITLE_TEXT, LABEL = 20, 30, 13, 11
CURVES_WIDTH, CURVES_HEIGHT, CODES_WIDTH, CODES_HEIGHT = 340, 260, 400, 150
CODES_COLUMNS = 2


def curves(histories: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Draw the training loss and the validation error of every epoch, a line for each run.

    Both are drawn to a logarithmic scale: what has no place on it (nan, infinity, zero and less)
    leaves a gap. Dots lead from the last epoch of a run that stopped early to its name.

    Args:
        histories: by the name of a run, the ``history`` of its ``training.json``.

    Raises:
        LoopError: there is no run or one without a number to draw, or the file has another
            suffix.
        ImportError: matplotlib is missing.
    """
    if not histories:
        raise LoopError(f"{path}: there is no run to draw; give at least one history")
    runs = {name: _points(name, history, path) for name, history in histories.items()}
    height = max(CURVES_HEIGHT, 1.5 * LABEL * len(runs))
    gutter, names = 46, 30 + min(180, 0.62 * LABEL * max(map(len, runs)))
    across, top = gutter + CURVES_WIDTH + names, EDGE + 24
    with open_canvas(path, 2 * (EDGE + across), top + height + 44) as canvas:
        for number, (key, measure) in enumerate(MEASURES.items()):
            left = EDGE + number * (across + EDGE) + gutter
            canvas.text(left, top - 16, measure, TITLE_TEXT, INK, bold=True)
            lines = {name: run[key] for name, run in runs.items() if len(run[key])}
            if lines:
                axes = _curve_axes(canvas, (left, top, CURVES_WIDTH, height), lines)
                colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(runs)}
                dashes = {name: DASHES[n // len(COLOURS) % 3] for n, name in enumerate(runs)}
                for name, line in lines.items():
                    _draw_curve(axes, line, colours[name], dashes[name], dot=key == "error")
                _write_names(axes, lines, colours, names - 30)
            else:
                canvas.text(left, top + LABEL, "no number to draw", LABEL, FAINT)
        canvas.text(left + CURVES_WIDTH, top - 16, "dot: lowest", LABEL, FAINT, align="right")


def codes(
    grids: Sequence[Codes],
    titles: Sequence[str],
    path: Path,
    *,
    codebook_size: int,
) -> None:
    """Draw the codes of some loops, a panel for each: the step to the right, the index upwards.

    Loop patterns show as dots that recur at the same height (figure 4 of the paper). The first
    bar of each half is tinted. Drums are round and bass square where each has a stream.

    Args:
        grids: integers (S, T) from 0 to ``codebook_size`` - 1: S streams, 1 or 2, and T steps.
        titles: one for each loop.

    Raises:
        LoopError: there is nothing to draw or too much for one page, codes have another shape or
            are not in the codebook, or the file has another suffix.
        ImportError: matplotlib is missing.
    """
    _check_grids(grids, titles, path, codebook_size)
    columns = min(CODES_COLUMNS, len(grids))
    streams = max(map(len, grids))
    first, gutter, above, below = EDGE + 30, 32, 40, 28
    across, down = gutter + CODES_WIDTH + EDGE, above + CODES_HEIGHT + below
    top = EDGE / 2 + (HEADING if streams > 1 else 0)
    rows = -(-len(grids) // columns)
    with open_canvas(path, first + across * columns, top + down * rows + EDGE / 2) as canvas:
        if streams > 1:
            _write_streams(canvas, streams)
        for number, (grid, name) in enumerate(zip(grids, titles, strict=True)):
            row, column = divmod(number, columns)
            left, upper = first + across * column + gutter, top + down * row + above
            box = (left, upper, CODES_WIDTH, CODES_HEIGHT)
            _draw_codes(canvas, box, grid, name, codebook_size)
            if column == 0:
                for y, axis in (
                    (-9, "bar"),
                    (CODES_HEIGHT / 2, "code"),
                    (CODES_HEIGHT + 12, "step"),
                ):
                    canvas.text(EDGE, upper + y, axis, LABEL, INK)


def reconstructions(
    originals: Rolls,
    others: Mapping[str, Rolls],
    path: Path,
) -> None:
    """Draw loops, a row for each: the original, then each model's reconstruction.

    In reconstructions, missed cells and added cells stand out from those in both.

    Args:
        originals: bool (n, 128, 93).
        others: by the name of a model, rolls of the same shape.

    Raises:
        LoopError: there is nothing to draw or too much for one page, shapes differ, or the file
            has another suffix.
        ImportError: matplotlib is missing.
    """
    for name, rolls in others.items():
        if rolls.shape != originals.shape or rolls.dtype != np.bool_:
            raise LoopError(
                f"{path}: expected bool rolls {originals.shape} of {name!r}, got {rolls.dtype} "
                f"{rolls.shape}; reconstruct the loops that are drawn"
            )
    pictures = []
    for number, original in enumerate(originals):
        made = {model: rolls[number] for model, rolls in others.items()}
        beside = np.any([original, *made.values()], axis=0)
        pictures.append(Picture(original, "original", beside=beside))
        for model, roll in made.items():
            pictures.append(Picture(roll, model, reference=original, beside=beside))
    contact_sheet(pictures, path, columns=1 + len(others))


def frequent_codes(codes: Codes, codebook_size: int, rank: int) -> NDArray[np.int64]:
    """The code that is ``rank``-th most frequent at each step of each stream: (n, S, T) to (S, T).

    Decoded, it shows what a codebook holds (figure 5 of the paper).

    Args:
        codes: integers from 0 to ``codebook_size`` - 1.
        rank: 0, 1, … from the most frequent down, -1, -2, … from the least frequent up, among the
            codes that occur at the step. Of equally frequent ones the smaller comes first either
            way; where too few occur, the last of them stands in.

    Raises:
        LoopError: codes have another shape or are not in the codebook.
    """
    if codes.ndim != 3 or not codes.size or not np.issubdtype(codes.dtype, np.integer):
        raise LoopError(f"expected integer codes (n, S, T), got {codes.dtype} {codes.shape}")
    _check_range(codes, codebook_size, "codes")
    n, *shape = codes.shape
    row = np.arange(math.prod(shape)) * codebook_size
    counts = np.bincount(
        (codes.reshape(n, -1).astype(np.int64) + row).ravel(), minlength=len(row) * codebook_size
    ).reshape(-1, codebook_size)
    keys = -counts if rank >= 0 else np.where(counts, counts, n + 1)  # what never occurs comes last
    order = np.argsort(keys, axis=1, kind="stable")
    place = np.minimum(rank if rank >= 0 else -1 - rank, (counts > 0).sum(1) - 1)
    return np.take_along_axis(order, place[:, None], 1).reshape(shape)


@dataclass(frozen=True)
class _Axes:
    """A rectangle of a canvas and the numbers that it spans, ``y`` from the bottom up."""

    canvas: Canvas
    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Place of a number, from the left of the canvas."""
        low, high = self.x_range
        return self.left + self.width * (value - low) / (high - low)

    def y(self, value: float) -> float:
        """Place of a number, from the top of the canvas."""
        low, high = self.y_range
        return self.top + self.height * (high - value) / (high - low)

    def mark_x(self, value: float, name: str) -> None:
        """Write a number below."""
        y = self.top + self.height + 12
        self.canvas.text(self.x(value), y, name, LABEL, FAINT, align="center")

    def mark_y(self, value: float, name: str) -> None:
        """Write a number at the left, and draw a faint line at its height."""
        y = self.y(value)
        self.canvas.boxes([(self.left, y - 0.5, self.width, 1.0)], BEAT_LINE)
        self.canvas.text(self.left - 6, y, name, LABEL, FAINT, align="right")

    def draw_frame(self) -> None:
        """Draw the left and the lower edge."""
        left, bottom = self.left - 0.5, self.top + self.height - 0.5
        edges = [(left, self.top, 1.0, self.height), (left, bottom, self.width + 1, 1.0)]
        self.canvas.boxes(edges, BAR_LINE)


def _points(name: str, history: Sequence[Mapping[str, float]], path: Path) -> dict[str, Points]:
    """Points of each measure; a value without a place on a logarithmic scale is nan."""
    found = {}
    for key in MEASURES:
        rows = [(record.get("epoch", math.nan), record.get(key, math.nan)) for record in history]
        points = np.array(rows, np.float64).reshape(-1, 2)
        if not np.isfinite(points[:, 0]).all():
            raise LoopError(f"{path}: a record of {name!r} has no epoch; give a training.json's")
        points[~np.isfinite(points[:, 1]) | (points[:, 1] <= 0), 1] = np.nan
        found[key] = points if np.isfinite(points[:, 1]).any() else points[:0]
    if not any(map(len, found.values())):
        raise LoopError(f"{path}: {name!r} has no loss and no error above 0; leave it out")
    return found


def _known(points: Points) -> Points:
    return points[np.isfinite(points[:, 1])]


def _curve_axes(canvas: Canvas, box: Box, lines: Mapping[str, Points]) -> _Axes:
    """Draw the axes that hold some lines: epochs, and the logarithm of a value."""
    points = np.concatenate([_known(line) for line in lines.values()])
    (first, low), (last, high) = points.min(0).tolist(), points.max(0).tolist()
    if first == last:
        first, last = first - 1, last + 1
    spare = max(0.05 * math.log10(high / low), 0.002)
    bottom, top = math.log10(low) - spare, math.log10(high) + spare
    axes = _Axes(canvas, *box, (first, last), (bottom, top))
    for value in value_ticks(10**bottom, 10**top):
        axes.mark_y(math.log10(value), f"{value:.6g}")
    for epoch in epoch_ticks(first, last):
        axes.mark_x(epoch, f"{epoch:g}")
    axes.draw_frame()
    below = axes.top + axes.height + 28
    canvas.text(axes.left + axes.width / 2, below, "epoch", LABEL, INK, align="center")
    return axes


def value_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis from ``low`` to ``high``: 3 to 8 of them, mostly."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = -(-len(decades) // 8)
    found: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 6, 8)):
        exact = [float(f"{digit}e{power}") for power in decades[::stride] for digit in digits]
        found = [value for value in exact if low <= value <= high]
        if len(found) >= 4:
            return found
    return linear_ticks(low, high, 6)


def epoch_ticks(first: float, last: float) -> list[float]:
    """Whole numbers for an axis of epochs, the first epoch among them where it has room."""
    ticks = [tick for tick in linear_ticks(first, last, 6) if tick == round(tick)]
    stride = ticks[1] - ticks[0] if len(ticks) > 1 else 0
    return ticks if ticks and ticks[0] - first < 0.75 * stride else sorted({first, *ticks})


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``."""
    exponent = math.floor(math.log10((high - low) / most))
    for digit, power in ((1, 0), (2, 0), (5, 0), (1, 1), (2, 1)):
        step = digit * 10.0 ** (exponent + power)
        ticks = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        if len(ticks) <= most:
            break
    return [float(f"{tick * step:.12g}") for tick in ticks]


def _draw_curve(
    axes: _Axes, line: Points, colour: str, dashes: Sequence[float], *, dot: bool
) -> None:
    """Draw a line, broken where a value is missing; ``dot`` marks its lowest value."""
    places = [(axes.x(x), axes.y(math.log10(y))) for x, y in _known(line).tolist()]
    breaks = np.cumsum(np.isnan(line[:, 1]))[np.isfinite(line[:, 1])]
    for number in np.unique(breaks).tolist():
        piece = [place for place, of in zip(places, breaks.tolist(), strict=True) if of == number]
        axes.canvas.line(piece, colour, 1.8, dashes=dashes)
        if len(piece) == 1:
            axes.canvas.boxes([_square(*piece[0], 4)], colour, corner=2)
    if dot:
        lowest = max(places, key=lambda place: place[1])
        axes.canvas.boxes([_square(*lowest, 7)], colour, corner=3.5)


def _square(x: float, y: float, side: float) -> Box:
    return (x - side / 2, y - side / 2, side, side)


class _End(NamedTuple):
    """Where a line ends, and what it is called."""

    y: float
    x: float
    name: str


def _write_names(
    axes: _Axes, lines: Mapping[str, Points], colours: Mapping[str, str], room: float
) -> None:
    """Write the name of each line at the right, apart from each other, and lead its end there."""
    right, ends = axes.left + axes.width, []
    for name, line in lines.items():
        x, y = _known(line)[-1].tolist()
        ends.append(_End(axes.y(math.log10(y)), axes.x(x), name))
    ends.sort()
    heights = spread_out([end.y for end in ends], 1.3 * LABEL, axes.top, axes.top + axes.height)
    for end, height in zip(ends, heights, strict=True):
        colour = colours[end.name]
        if end.x < right:
            axes.canvas.line([(end.x + 6, end.y), (right, end.y)], colour, 0.8, dashes=(1, 3))
        axes.canvas.line([(right + 3, end.y), (right + 8, end.y), (right + 17, height)], colour, 1)
        axes.canvas.line([(right + 17, height), (right + 22, height)], colour, 1)
        axes.canvas.text(right + 27, height, end.name, LABEL, INK, room=room)


def spread_out(heights: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Move sorted heights apart by at least ``gap``, as little as it takes, and into a range."""
    # Where heights collide they become a stack whose middle is their mean.
    stacks: list[list[float]] = []
    for at, height in enumerate(heights):
        stacks.append([height - at * gap])
        while len(stacks) > 1 and np.mean(stacks[-2]) > np.mean(stacks[-1]):
            stacks[-2:] = [stacks[-2] + stacks[-1]]
    flat = np.repeat([np.mean(stack) for stack in stacks], [len(stack) for stack in stacks])
    steps = gap * np.arange(len(flat))
    return [float(h) for h in np.clip(flat, top, max(top, bottom - gap * (len(flat) - 1))) + steps]


def _check_grids(
    grids: Sequence[Codes], titles: Sequence[str], path: Path, codebook_size: int
) -> None:
    if not len(grids):
        raise LoopError(f"{path}: there are no codes to draw; give those of at least one loop")
    if len(titles) != len(grids):
        raise LoopError(f"{path}: expected {counted(len(grids), 'title')}, got {len(titles)}")
    for grid, title in zip(grids, titles, strict=True):
        integer = np.issubdtype(grid.dtype, np.integer)
        if not integer or grid.ndim != 2 or len(grid) not in STREAMS or not grid.size:
            raise LoopError(
                f"{path}: expected integer codes (1 or 2, T) for {title!r}, got {grid.dtype} "
                f"{grid.shape}; give one loop's at a time"
            )
        _check_range(grid, codebook_size, f"{path}: codes of {title!r}")


def _check_range(codes: Codes, codebook_size: int, what: str) -> None:
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codebook_size:
        raise LoopError(
            f"{what}: expected 0 to {codebook_size - 1}, got {low} to {high}; give the size of the "
            "dictionary that they come from"
        )


def _write_streams(canvas: Canvas, streams: int) -> None:
    """Write the legend of the streams at the top right."""
    x = canvas.width - EDGE
    for number, (name, colour) in reversed(list(enumerate(STREAMS[streams]))):
        x -= canvas.text(x, EDGE + 4, name, LABEL, INK, align="right") + 10
        canvas.boxes([_square(x, EDGE + 4, 7)], colour, corner=0 if number else 3.5)
        x -= 18


def _draw_codes(canvas: Canvas, box: Box, grid: Codes, title: str, codebook_size: int) -> None:
    """Draw the codes (S, T) of one loop."""
    left, top, width, height = box
    steps = grid.shape[1]
    spare = 0.5 + 0.03 * codebook_size
    axes = _Axes(canvas, *box, (0, steps), (-spare, codebook_size - 1 + spare))
    canvas.text(left, top - 28, title, TITLE_TEXT, INK, room=width, bold=True)
    bar = width / LOOP.bars
    halves = (0, LOOP.bars // 2)
    canvas.boxes([(left + half * bar, top, bar, height) for half in halves], TINT)
    for index in sorted({*range(0, codebook_size - 1, -(-codebook_size // 4)), codebook_size - 1}):
        axes.mark_y(index, str(index))
    canvas.boxes([(left + n * bar - 0.5, top, 1.0, height) for n in range(LOOP.bars + 1)], BAR_LINE)
    for n in range(LOOP.bars):
        canvas.text(left + n * bar, top - 9, str(n + 1), LABEL, FAINT)
    for step in range(0, steps, max(1, steps // LOOP.bars)):
        axes.mark_x(step + 0.5, str(step))
    axes.draw_frame()
    side = min(4.5, 0.9 * width / steps)
    for number, (row, (_, colour)) in enumerate(zip(grid, STREAMS[len(grid)], strict=True)):
        marks = [_square(axes.x(t + 0.5), axes.y(k), side) for t, k in enumerate(row.tolist())]
        canvas.boxes(marks, colour, corner=0 if number else side / 2)
