"""The paper's rules of what a loop is, as data.

Source: Han, Ihm and Lim 2021, arXiv:2111.07657, *Data Preprocess*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import CallError
from midiloop.grid import LOOP, Grid, Roll
from midiloop.score import Meter


@dataclass(frozen=True)
class Rules:
    """When a window of a song is a loop.

    Attributes:
        name: of the preset.
        max_distance_cells: cells in which its first bar and the one half-way may differ; 2 of
            16 · 93 = 1,488 are the paper's normalised Hamming distance below 0.0015.
        first_step_drums: drums that play on its first step.
        meter_required: a song that states no time signature is not used; otherwise it is in 4/4,
            as the MIDI standard says.
    """

    name: str
    max_distance_cells: int = 2
    first_step_drums: tuple[str, ...] = ("kick", "crash")
    meter_required: bool = True


PRESETS = {
    "paper": Rules("paper"),
    "open": Rules("open", first_step_drums=("kick",), meter_required=False),
}


def preset(name: str) -> Rules:
    """The rules called ``name``.

    Raises:
        CallError: there are none of that name.
    """
    if name not in PRESETS:
        raise CallError(f"no rules are called {name!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def meter_problem(
    meters: Sequence[Meter], length_ticks: int | None, rules: Rules
) -> tuple[str, str] | None:
    """Reason and detail where a song's meter rules it out, else None.

    Only time signatures in force before the end of the song count; one that another replaces at
    its own tick never was in force.

    Args:
        meters: in order of tick; of several at one tick the last counts.
        length_ticks: where the song ends; None where that is not known yet, and only what holds
            for any length is a problem.
    """
    end = 1 if length_ticks is None else length_ticks
    at_tick = {meter.tick: meter for meter in meters}
    in_force = [meter for meter in at_tick.values() if meter.tick < end]
    for meter in in_force:
        if (meter.numerator, meter.denominator) != (4, 4):
            return "not_4_4", f"{meter.numerator}/{meter.denominator} at tick {meter.tick:,}"
    if rules.meter_required and not (meters if length_ticks is None else in_force):
        return "no_meter", "no time signature is stated; rules 'open' take that as 4/4"
    return None


def bar_distances_cells(
    roll: Roll, start_bars: NDArray[np.int64], grid: Grid = LOOP
) -> NDArray[np.int64]:
    """Hamming distance of the first bar of each window and the one half a loop later, in cells.

    Args:
        roll: bool (bars · steps a bar, columns), a whole song.
        start_bars: int (n,), first bars of the windows.

    Returns:
        int64 (n,).
    """
    bars = roll.reshape(-1, grid.cells_per_bar)
    differ = bars[start_bars] != bars[start_bars + grid.bars // 2]
    return np.asarray(np.count_nonzero(differ, axis=1), dtype=np.int64)


def find(roll: Roll, rules: Rules, *, stride_bars: int = 1, grid: Grid = LOOP) -> NDArray[np.int64]:
    """Bars at which a loop starts in a song, ascending.

    Args:
        roll: bool (bars · steps a bar, columns), a whole song.
        stride_bars: look at every so many bars.
    """
    n_windows = max(0, len(roll) // grid.steps_per_bar - grid.bars + 1)
    first_steps = roll[:: grid.steps_per_bar][:n_windows:stride_bars]
    drums = [grid.drum_column(name) for name in rules.first_step_drums]
    good = first_steps[:, drums].all(axis=1) & first_steps[:, grid.n_drums :].any(axis=1)
    starts = np.flatnonzero(good) * stride_bars
    return starts[bar_distances_cells(roll, starts, grid) <= rules.max_distance_cells]
