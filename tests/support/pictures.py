"""What pictures are made of and looked at by."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np

from midiloop.grid import LOOP, Grid, Roll

SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}


def outlines(svg: Path) -> Counter[str]:
    """How many shapes of an SVG are filled with a colour, or drawn as a line of it."""
    found: Counter[str] = Counter()
    for path, style in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg.read_text()):
        stroke = re.search(r"stroke: (#\w+)", style)
        colour = stroke or re.search(r"fill: (#\w+)", style)
        if colour:
            found[f"{'stroke' if stroke else 'fill'} {colour[1].upper()}"] += path.count("M")
    return found


def groove(bars: int = LOOP.bars, grid: Grid = LOOP) -> Roll:
    """Four to the floor, off-beat hats, a walking bass."""
    roll = np.zeros((bars * grid.steps_per_bar, grid.columns), dtype=bool)
    roll[:: grid.steps_per_beat, grid.drum_column("kick")] = True
    roll[2 :: grid.steps_per_beat, grid.drum_column("closed hi-hat")] = True
    roll[0, grid.drum_column("crash")] = True
    for beat, start in enumerate(range(0, len(roll), grid.steps_per_beat)):
        roll[start : start + 3, grid.n_drums + 4 + beat % 5] = True
    return roll
