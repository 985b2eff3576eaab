"""Pictures of loops: a drum lane above a bass lane, one loop large or many side by side.

Everything drawn is a box or a text on a `Canvas`. Matplotlib comes with the extra ``plot``;
importing this module does not load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from midiloop.common.canvas import INCH_PX, PNG_DPI, Canvas, open_canvas
from midiloop.errors import LoopError
from midiloop.grid import LOOP, PITCH_NAMES, Grid, Roll

# Modules that drawing loads, for processes that import them at their start.
MODULES = ("midiloop.plotting.plot", "matplotlib.backends.backend_agg", "matplotlib.figure")

# Paul Tol's "bright" scheme, which colour-blind readers can tell apart. A drum belongs to the first
# family whose key is part of its name; the order is that of the rows, from the bottom.
FAMILIES = {
    "kick": "#EE6677",
    "snare": "#CCBB44",
    "hat": "#66CCEE",
    "tom": "#228833",
    "": "#AA3377",  # cymbals
}
BASS = "#4477AA"
INK, FAINT = "#2B303A", "#8F95A1"
BAR_LINE, BEAT_LINE, ROW_LINE = "#AAB0BC", "#E0E3E8", "#EEF0F3"
KEPT, MISSED, ADDED = "#A9AEB9", "#CC3311", "#0077BB"  # cells of a roll that has a reference
BLACK_KEY, TINT = "#2B303A0D", "#F5B80018"  # see-through, because the two meet
SHORT_NAMES = {"kick": "K", "snare": "S", "ride": "RD"}
OCTAVE = 12


@dataclass(frozen=True, eq=False)
class Picture:
    """One roll to draw: bool (T, columns), T any whole number of bars, and what to write over it.

    Attributes:
        title: any text, for example a file name; shortened where it does not fit.
        tempo_bpm: quarter notes a minute, written beside the title.
        reference: what the roll should have been, of its shape. Cells of both are then grey, cells
            of the reference alone ("missed") hollow, cells of the roll alone ("added") blue.
        beside: a roll for whose pitches the bass lane makes room too, so that pictures that stand
            side by side have the same rows.
    """

    roll: Roll
    title: str = ""
    tempo_bpm: float | None = None
    reference: Roll | None = None
    beside: Roll | None = None

    @property
    def shown(self) -> Roll:
        """Every cell that gets a mark."""
        return self.roll if self.reference is None else self.roll | self.reference


@dataclass(frozen=True)
class _Style:
    """Sizes of one tile, in pixels: a title and bar numbers over a drum lane over a bass lane."""

    lane: float  # width of a lane
    gutter: float  # width of the names left of it
    margin: float  # around every tile
    title: float  # heights, from the top down
    numbers: float
    drum_row: float
    gap: float
    bass: float
    below: float  # for the legend
    title_text: float  # sizes of letters
    label: float
    corner: float  # radius of a note's corners
    inset: float  # between a note and the next cell
    thinnest: float  # height of a note where many pitches share the bass lane
    short_names: bool

    def height(self, grid: Grid) -> float:
        """Height of a tile."""
        drums = self.drum_row * grid.n_drums
        return self.title + self.numbers + drums + self.gap + self.bass + self.below


LARGE = _Style(
    lane=1152, gutter=96, margin=24,
    title=28, numbers=20, drum_row=16, gap=12, bass=256, below=30,
    title_text=18, label=12, corner=2.5, inset=1, thinnest=5, short_names=False,
)  # fmt: skip
SMALL = _Style(
    lane=384, gutter=22, margin=12,
    title=16, numbers=11, drum_row=8, gap=5, bass=78, below=0,
    title_text=10.5, label=7.5, corner=0.75, inset=0.5, thinnest=2.5, short_names=True,
)  # fmt: skip
HEADING, HEADING_TEXT = 30, 17


def draw(picture: Picture | Roll, path: Path, *, grid: Grid = LOOP) -> None:
    """Draw one loop, large, to a .png, .svg or .pdf file.

    >>> import midiloop, numpy as np
    >>> from pathlib import Path
    >>> midiloop.plot(np.eye(128, 93, dtype=bool), Path("loop.png"))

    Raises:
        LoopError: the roll does not fit the grid, or the file has another suffix.
        ImportError: matplotlib is missing.
    """
    if not isinstance(picture, Picture):
        picture = Picture(picture)
    _check([picture], path, grid)
    edge, lane = LARGE.margin, _lane_width([picture], LARGE)
    left = edge + LARGE.gutter
    with open_canvas(path, left + lane + edge, LARGE.height(grid) + 2 * edge) as canvas:
        _draw_tile(canvas, picture, LARGE, grid, left, edge, lane)
        y = canvas.height - edge - 5
        if picture.reference is not None:
            _draw_marks(canvas, left + lane, y)
        if len(picture.roll) == grid.steps and grid.bars > 1:  # the rest has no tint to explain
            for inset, colour in ((0, BAR_LINE), (1, "white"), (1, TINT)):
                canvas.boxes(
                    [(left + inset, y - 6 + inset, 12 - 2 * inset, 12 - 2 * inset)], colour
                )
            compared = f"bars 1 and {grid.middle_bar + 1}: nearly equal in a loop"
            canvas.text(left + 20, y, compared, LARGE.label, FAINT)


def contact_sheet(
    pictures: Sequence[Picture],
    path: Path,
    *,
    columns: int = 3,
    title: str = "",
    grid: Grid = LOOP,
) -> None:
    """Draw many loops, small, in rows of ``columns``, to a .png, .svg or .pdf file.

    Raises:
        LoopError: there is nothing to draw or too much for one page, a roll does not fit the grid,
            or the file has another suffix.
        ImportError: matplotlib is missing.
    """
    _check(pictures, path, grid)
    if columns < 1:
        raise LoopError(f"{path}: expected at least one column, got {columns}")
    columns = min(columns, len(pictures))
    compared = any(picture.reference is not None for picture in pictures)
    edge, lane = SMALL.margin, _lane_width(pictures, SMALL)
    heading = HEADING if title or compared else 0
    across = SMALL.gutter + lane + 2 * edge
    down = SMALL.height(grid) + 2 * edge
    rows = -(-len(pictures) // columns)
    with open_canvas(path, across * columns, heading + down * rows) as canvas:
        room = canvas.width - 2 * edge
        if compared:
            room -= _draw_marks(canvas, canvas.width - edge, heading / 2 + edge / 2)
        if title:
            canvas.text(
                edge, heading / 2 + edge / 2, title, HEADING_TEXT, INK, room=room, bold=True
            )
        for number, picture in enumerate(pictures):
            row, column = divmod(number, columns)
            left = across * column + edge + SMALL.gutter
            _draw_tile(canvas, picture, SMALL, grid, left, heading + down * row + edge, lane)


def _check(pictures: Sequence[Picture], path: Path, grid: Grid) -> None:
    if not pictures:
        raise LoopError(f"{path}: there is no loop to draw; give at least one")
    for picture in pictures:
        roll = picture.roll
        bars, rest = divmod(len(roll) if roll.ndim else 0, grid.steps_per_bar)
        if roll.dtype != np.bool_ or roll.shape[1:] != (grid.columns,) or rest or not bars:
            raise LoopError(
                f"{path}: expected bool rolls (T, {grid.columns}) with T a multiple of "
                f"{grid.steps_per_bar}, got {roll.dtype} {roll.shape} for {picture.title!r}; "
                "cut or pad it to whole bars"
            )
        for other in (picture.reference, picture.beside):
            if other is not None and (other.dtype != np.bool_ or other.shape != roll.shape):
                raise LoopError(
                    f"{path}: expected a bool roll {roll.shape} to compare {picture.title!r} "
                    f"with, got {other.dtype} {other.shape}"
                )


def _lane_width(pictures: Sequence[Picture], style: _Style) -> float:
    """Width of every lane on a canvas: the style's, or two pixels a step where a roll is long."""
    return max(style.lane, *(2 * len(picture.roll) for picture in pictures))


def _draw_tile(
    canvas: Canvas,
    picture: Picture,
    style: _Style,
    grid: Grid,
    left: float,
    top: float,
    width: float,
) -> None:
    """Draw one roll; its lanes start at ``left`` and its title at ``top``."""
    steps = len(picture.roll)
    drums_top = top + style.title + style.numbers
    drums_height = style.drum_row * grid.n_drums
    bass_top = drums_top + drums_height + style.gap
    shown = picture.shown
    pitches = _pitch_range(shown if picture.beside is None else shown | picture.beside, grid)
    drums = _Lane(canvas, style, left, drums_top, width, drums_height, grid.n_drums, steps)
    bass = _Lane(canvas, style, left, bass_top, width, style.bass, len(pitches), steps)
    _draw_header(drums, picture, grid)
    _draw_drums(drums, picture, grid)
    _draw_bass(bass, picture, pitches, grid)


def _pitch_range(roll: Roll, grid: Grid) -> range:
    """Pitches of the bass lane: those in use and one on each side, an octave at least."""
    used = np.flatnonzero(roll[:, grid.n_drums :].any(0)).tolist() or [0]
    low, high = grid.lowest_pitch + used[0] - 1, grid.lowest_pitch + used[-1] + 1
    low -= max(0, OCTAVE - (high - low)) // 2
    low = max(grid.lowest_pitch, min(low, grid.highest_pitch - OCTAVE))
    return range(low, min(grid.highest_pitch, max(high, low + OCTAVE)) + 1)


def _draw_header(lane: _Lane, picture: Picture, grid: Grid) -> None:
    """Write title, tempo and bar numbers above the uppermost lane."""
    canvas, style, room = lane.canvas, lane.style, lane.width
    y = lane.top - style.numbers - style.title / 2
    notes = []
    if picture.reference is not None:
        missed, added = picture.reference & ~picture.roll, picture.roll & ~picture.reference
        notes.append(f"{missed.sum()} missed, {added.sum()} added")
    if picture.tempo_bpm is not None:
        notes.append(f"{round(picture.tempo_bpm, 1):g} bpm")
    if notes:
        right, note = lane.left + lane.width, ", ".join(notes)
        room -= canvas.text(right, y, note, style.label, FAINT, align="right") + style.label
    canvas.text(lane.left, y, picture.title, style.title_text, INK, room=room, bold=True)
    bars = lane.steps // grid.steps_per_bar
    stride = 1
    while stride * lane.width / bars < 2.5 * style.label:
        stride *= 2
    for bar in range(0, bars, stride):
        x = lane.x(bar * grid.steps_per_bar)
        canvas.text(x, lane.top - style.numbers / 2, str(bar + 1), style.label, FAINT)


def _draw_drums(lane: _Lane, picture: Picture, grid: Grid) -> None:
    """Fill the drum lane, kick in the lowest row; the name of a silent drum is faint."""
    ranks = [_family(drum.name) for drum in grid.drums]
    columns = sorted(range(grid.n_drums), key=lambda c: (ranks[c], grid.drums[c].pitch))
    lane.draw_ground(grid)
    rows = [(lane.left, lane.y(row) - 0.5, lane.width, 1.0) for row in range(lane.rows - 1)]
    lane.canvas.boxes(rows, ROW_LINE)
    lane.draw_grid(grid)
    for row, column in enumerate(columns):
        name, colour = grid.drums[column].name, list(FAMILIES.values())[ranks[column]]
        for cells, shade, hollow in _shades(picture, slice(column, column + 1), colour):
            hits = np.flatnonzero(cells).tolist()
            lane.draw_notes([(step, step + 1, row) for step in hits], shade, hollow=hollow)
        faint = not picture.shown[:, column].any()
        lane.name_row(row, _short(name) if lane.style.short_names else name, faint=faint)


def _shades(picture: Picture, columns: slice, colour: str) -> list[tuple[Roll, str, bool]]:
    """Cells (T, columns) to draw, their colour, and whether they are hollow."""
    roll = picture.roll[:, columns]
    if picture.reference is None:
        return [(roll, colour, False)]
    meant = picture.reference[:, columns]
    return [
        (roll & meant, KEPT, False),
        (meant & ~roll, MISSED, True),
        (roll & ~meant, ADDED, False),
    ]


def _family(drum: str) -> int:
    """Rank of a drum's family, counted from the kick."""
    return next(rank for rank, family in enumerate(FAMILIES) if family in drum)


def _short(drum: str) -> str:
    """One or two letters for a drum, as in ``"CH"``."""
    words = drum.split()
    initials = "".join(word[0] for word in words) if len(words) > 1 else drum[:2]
    return SHORT_NAMES.get(drum, initials.upper())


def _draw_bass(lane: _Lane, picture: Picture, pitches: range, grid: Grid) -> None:
    """Fill the bass lane, each run of a pitch one bar; names where they fit, most used first."""
    first = pitches[0] - grid.lowest_pitch + grid.n_drums
    columns = slice(first, first + len(pitches))
    lane.draw_ground(grid)
    black = [row for row, pitch in enumerate(pitches) if "#" in PITCH_NAMES[pitch % OCTAVE]]
    row_height = lane.height / lane.rows
    lane.canvas.boxes(
        [(lane.left, lane.y(row), lane.width, row_height) for row in black], BLACK_KEY
    )
    lane.draw_grid(grid)
    for cells, shade, hollow in _shades(picture, columns, BASS):
        edges = np.diff(np.pad(cells.T, ((0, 0), (1, 1))).astype(np.int8))
        rows, starts = np.nonzero(edges > 0)
        ends = np.nonzero(edges < 0)[1]
        lane.draw_notes(np.stack([starts, ends, rows], axis=1).tolist(), shade, hollow=hollow)
    used = picture.shown[:, columns].sum(0)
    named: list[int] = []
    for row in np.lexsort((np.array(pitches) % OCTAVE != 0, -used)):
        apart = all(abs(row - other) * row_height >= 0.9 * lane.style.label for other in named)
        if apart and (used[row] or pitches[row] % OCTAVE == 0):
            lane.name_row(row, grid.column_names[first + row], faint=not used[row])
            named.append(row)


def _draw_marks(canvas: Canvas, right: float, y: float) -> float:
    """Write the legend of a comparison, up to ``right``; returns its width."""
    marks = (("added", ADDED, 0.0), ("missed", MISSED, 1.0), ("in both", KEPT, 0.0))
    x = right
    for name, colour, outline in marks:
        x -= canvas.text(x, y, name, LARGE.label, INK, align="right") + 14
        canvas.boxes([(x, y - 4.5, 9, 9)], colour, corner=1, outline=outline)
        x -= 14
    return right - x


@dataclass(frozen=True)
class _Lane:
    """A rectangle of a canvas: steps from left to right, rows from the bottom up."""

    canvas: Canvas
    style: _Style
    left: float
    top: float
    width: float
    height: float
    rows: int
    steps: int

    def x(self, step: float) -> float:
        """Left edge of a step."""
        return self.left + self.width * step / self.steps

    def y(self, row: float) -> float:
        """Upper edge of a row, on a dot of the PNG so that it stays sharp."""
        dots = INCH_PX / PNG_DPI
        return self.top + dots * round(self.height * (1 - (row + 1) / self.rows) / dots)

    def middle(self, row: float) -> float:
        """Middle of a row."""
        return self.y(row - 0.5)

    def draw_ground(self, grid: Grid) -> None:
        """Tint the two bars which the loop rule compares; rolls of other lengths have none."""
        if self.steps == grid.steps and grid.bars > 1:
            starts = (0, grid.middle_bar * grid.steps_per_bar)
            bar = self.width / grid.bars
            self.canvas.boxes([(self.x(s), self.top, bar, self.height) for s in starts], TINT)

    def draw_grid(self, grid: Grid) -> None:
        """Draw pulses thin and bars strong, the frame among them."""
        for stride, colour in ((grid.steps_per_pulse, BEAT_LINE), (grid.steps_per_bar, BAR_LINE)):
            steps = range(0, self.steps + 1, stride)
            self.canvas.boxes(
                [(self.x(s) - 0.5, self.top, 1.0, self.height) for s in steps], colour
            )
        ends = (self.top, self.top + self.height)
        frame = [(self.left - 0.5, y - 0.5, self.width + 1, 1.0) for y in ends]
        self.canvas.boxes(frame, BAR_LINE)

    def draw_notes(
        self, notes: Sequence[Sequence[int]], colour: str, *, hollow: bool = False
    ) -> None:
        """Draw notes (first step, step after the last, row) as rounded boxes."""
        inset = min(self.style.inset, 0.15 * self.width / self.steps)
        height = max(self.height / self.rows - 2 * inset, self.style.thinnest)
        outline = min(1.5 * inset, 1.0) if hollow else 0.0
        half = outline / 2
        boxes = []
        for start, end, row in notes:
            x, y = self.x(start) + inset + half, self.middle(row) - height / 2 + half
            boxes.append((x, y, self.x(end) - inset / 2 - half - x, height - outline))
        self.canvas.boxes(boxes, colour, corner=self.style.corner, outline=outline)

    def name_row(self, row: int, name: str, *, faint: bool) -> None:
        """Write a name left of a row."""
        x, colour = self.left - self.style.label / 2, FAINT if faint else INK
        self.canvas.text(x, self.middle(row), name, self.style.label, colour, align="right")
