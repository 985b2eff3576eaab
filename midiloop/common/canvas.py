"""A page that takes boxes, lines and texts, and that matplotlib turns into PNG, SVG or PDF.

Places are pixels from the top left corner. The same page gives the same bytes each time, whatever
the reader's own settings of matplotlib, and importing this module does not load it.
"""

from __future__ import annotations

import bisect
import io
import math
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from midiloop.common import files
from midiloop.errors import LoopError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.artist import Artist
    from matplotlib.font_manager import FontProperties
    from numpy.typing import NDArray

Box = tuple[float, float, float, float]  # left, top, width, height, in pixels

# What would make the files of two runs differ is left out of them.
FORMATS: dict[str, dict[str, None]] = {
    ".png": {},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
INCH_PX = 100  # pixels of a page in an inch
PNG_DPI = 200  # two dots to a pixel: sharp on dense screens and on paper
MAX_SIDE = 200 * INCH_PX  # a PDF page cannot be longer

FONT = "DejaVu Sans"  # comes with matplotlib
MISSING = "□"  # stands for a character that the font lacks

_settings = threading.Lock()  # matplotlib's belong to the whole process


class Canvas:
    """A sheet of ``width`` × ``height`` pixels that takes what is drawn, the first undermost."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.transforms import Affine2D

        self.width, self.height = width, height
        self.figure = Figure((width / INCH_PX, height / INCH_PX), dpi=PNG_DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        inches = Affine2D().translate(0, -height).scale(1 / INCH_PX, -1 / INCH_PX)
        self.transform = inches + self.figure.dpi_scale_trans

    def boxes(
        self, boxes: Sequence[Box], colour: str, *, corner: float = 0, outline: float = 0
    ) -> None:
        """Fill boxes with one colour, their corners rounded with the radius ``corner``.

        Args:
            outline: width of the line around boxes that stay hollow; 0 fills them.
        """
        from matplotlib.patches import BoxStyle, PathPatch
        from matplotlib.path import Path as Outline

        if not boxes:
            return
        # One path for all: far quicker to draw, and smaller in an SVG, than a patch for each.
        shapes = []
        for x, y, width, height in boxes:
            radius = min(corner, width / 2, height / 2)
            shape = BoxStyle.Round(0, radius) if radius else BoxStyle.Square(0)
            shapes.append(shape(x, y, width, height, mutation_size=1))
        path = Outline.make_compound_path(*shapes)
        if outline:
            patch = PathPatch(path, fill=False, edgecolor=colour, linewidth=outline * 72 / INCH_PX)
        else:
            patch = PathPatch(path, facecolor=colour, linewidth=0)
        self._add(patch)

    def line(
        self,
        points: Sequence[tuple[float, float]],
        colour: str,
        width: float,
        *,
        dashes: Sequence[float] = (),
    ) -> None:
        """Join points; ``dashes`` are lengths of ink and space in turn, in line widths."""
        from matplotlib.lines import Line2D

        if len(points) < 2:
            return
        xs, ys = zip(*points, strict=True)
        line = Line2D(xs, ys, color=colour, linewidth=width * 72 / INCH_PX)
        line.set_solid_capstyle("round")
        line.set_solid_joinstyle("round")
        if dashes:
            line.set_dashes(dashes)
        self._add(line)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        colour: str,
        *,
        room: float = math.inf,
        bold: bool = False,
        align: Literal["left", "center", "right"] = "left",
    ) -> float:
        """Write a line centred on ``y``, its middle left out where it is wider than ``room``.

        Returns:
            The width that it takes.
        """
        from matplotlib.font_manager import FontProperties
        from matplotlib.text import Text

        points = size * 72 / INCH_PX
        font = FontProperties(family=FONT, size=points, weight="bold" if bold else "normal")
        line = shorten(printable(text, font), lambda shorter: _width(shorter, font) <= room)
        baseline = y + 0.365 * size  # half the height of a capital below the middle
        self._add(
            Text(x, baseline, line, color=colour, fontproperties=font, ha=align, parse_math=False)
        )
        return _width(line, font)

    def image(self, values: NDArray[np.floating[Any]], box: Box, *, colours: str) -> None:
        """Fill a box with cells, one a value, the first row uppermost.

        Args:
            values: (rows, columns), from 0 to 1.
            colours: the name of one of matplotlib's scales, as in "magma".
        """
        from matplotlib import colormaps
        from matplotlib.image import BboxImage
        from matplotlib.transforms import Bbox, TransformedBbox

        left, top, width, height = box
        # The page counts from the top, and an image is laid from the bottom up.
        corners = Bbox.from_extents(left, top + height, left + width, top)
        image = BboxImage(
            TransformedBbox(corners, self.transform), origin="lower", interpolation="nearest"
        )
        image.set_data(colormaps[colours](values, bytes=True))
        image.set_zorder(1)  # that of boxes, so that it hides those before it
        self._add(image)

    def _add(self, artist: Artist) -> None:
        artist.set_transform(self.transform)
        artist.set_figure(self.figure)
        self.figure.add_artist(artist)


@lru_cache(maxsize=4096)
def _width(line: str, font: FontProperties) -> float:
    """Of a line of text, in pixels. Measuring takes as long as drawing, and names come often."""
    from matplotlib.textpath import text_to_path

    measured = text_to_path.get_text_width_height_descent(line, font, ismath=False)
    return float(measured[0]) * INCH_PX / 72


def printable(text: str, font: FontProperties) -> str:
    """Make one line that the font can write, so that no name raises a warning."""
    from matplotlib.font_manager import findfont, get_font

    face = get_font(findfont(font))
    composed = " ".join(unicodedata.normalize("NFC", text).split())
    return "".join(c if face.get_char_index(ord(c)) else MISSING for c in composed)


def shorten(text: str, fits: Callable[[str], bool]) -> str:
    """Leave out as much of the middle as it takes to fit, and put an ellipsis there."""
    if fits(text):
        return text

    def cut(kept: int) -> str:
        return text[: (kept + 1) // 2].rstrip() + "…" + text[len(text) - kept // 2 :].lstrip()

    too_many = bisect.bisect_left(range(len(text)), True, lo=1, key=lambda n: not fits(cut(n)))
    return cut(too_many - 1)


@contextmanager
def open_canvas(path: Path, width: float, height: float) -> Iterator[Canvas]:
    """Give a page to draw on, then write it to ``path``, whole or not at all.

    Raises:
        LoopError: the file cannot be called that, or the page is too large.
        ImportError: matplotlib is missing.
    """
    if path.suffix.lower() not in FORMATS:
        what = path.suffix or "a name without a suffix"
        raise LoopError(f"{path}: cannot draw {what}; choose one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise LoopError(f"{path}: there is no folder {path.parent}; make it first")
    if max(width, height) > MAX_SIDE:
        raise LoopError(
            f"{path}: a page of {width / INCH_PX:.0f} × {height / INCH_PX:.0f} inches is over "
            f"{MAX_SIDE / INCH_PX:.0f}; draw fewer or shorter loops, or change the columns"
        )
    try:
        from matplotlib import style
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error

    suffix = path.suffix.lower()
    drawn = io.BytesIO()
    # The reader's own settings must not change the picture, nor a random salt the names in an SVG.
    with _settings, style.context(["default", {"svg.hashsalt": "midiloop"}]):
        page = Canvas(width, height)
        yield page
        page.figure.savefig(drawn, format=suffix[1:], dpi=PNG_DPI, metadata=FORMATS[suffix])
    files.write(path, drawn.getvalue())
