"""The paper's rules of what a loop is, as data.

Source: Han, Ihm and Lim 2021, arXiv:2111.07657, *Data Preprocess*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import CallError
from midiloop.grid import COMMON_TIME, LOOP, Grid, Roll, TimeSignature
from midiloop.midi.score import Meter


@dataclass(frozen=True)
class Rules:
    """When a window of a song is a loop.

    Attributes:
        name: of the preset.
        max_distance_cells: cells in which its first bar and the one half-way, `Grid.middle_bar`,
            may differ; 2 of 16 · 93 = 1,488 are the paper's normalised Hamming distance below
            0.0015. It is as many on any grid.
        first_step_drums: drums that play on its first step.
        meter_required: a song that states no time signature is not used; otherwise it is in 4/4,
            as the MIDI standard says.
        bars_by_meter: a time signature begins a bar, and all meters that are as the grid's will do
            (2/2 and 8/8 for 4/4, see `TimeSignature.is_like`); what lies in others is left out.
            Otherwise a song is in the grid's meter throughout, from tick 0.
        bass_by_name: where no track has a bass program, those that are called bass count.
    """

    name: str
    max_distance_cells: int = 2
    first_step_drums: tuple[str, ...] = ("kick", "crash")
    meter_required: bool = True
    bars_by_meter: bool = False
    bass_by_name: bool = False


ASSUMED = Meter(0, *COMMON_TIME)  # where no time signature is stated, as the MIDI standard says

PRESETS = {
    "paper": Rules("paper"),
    "open": Rules(
        "open",
        first_step_drums=("kick",),
        meter_required=False,
        bars_by_meter=True,
        bass_by_name=True,
    ),
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
    meters: Sequence[Meter],
    length_ticks: int | None,
    rules: Rules,
    wanted: TimeSignature = COMMON_TIME,
) -> tuple[str, str] | None:
    """Reason and detail where a song's meter rules it out, else None.

    Only time signatures in force before the end of the song count; one that another replaces at
    its own tick never was in force.

    Args:
        meters: in order of tick; of several at one tick the last counts.
        length_ticks: where the song ends; None where that is not known yet, and only what holds
            for any length is a problem.
        wanted: the meter of the grid; the reason ``not_4_4`` names it.
    """
    reason = f"not_{wanted.numerator}_{wanted.denominator}"
    at_tick = {meter.tick: meter for meter in meters}
    if rules.bars_by_meter:
        whole = {0: ASSUMED} | at_tick
        if any(_signature(meter).is_like(wanted) for meter in whole.values()):
            return None
        return reason, f"{_signature(meters[0] if meters else ASSUMED)}, and no bar of {wanted}"
    end = 1 if length_ticks is None else length_ticks
    in_force = [meter for meter in at_tick.values() if meter.tick < end]
    if rules.meter_required and not (meters if length_ticks is None else in_force):
        return "no_meter", "no time signature is stated; rules 'open' take that as 4/4"
    if length_ticks is not None and not any(meter.tick == 0 for meter in in_force):
        in_force.insert(0, ASSUMED)
    for meter in in_force:
        if _signature(meter) != wanted:
            return reason, f"{_signature(meter)} at tick {meter.tick:,}"
    return None


class Run(NamedTuple):
    """Bars of one meter in a row: where they begin and end, and the number of the first."""

    start_tick: int
    end_tick: int
    first_bar: int


def runs(
    meters: Sequence[Meter],
    length_ticks: int,
    ticks_per_quarter: int,
    rules: Rules,
    wanted: TimeSignature = COMMON_TIME,
) -> list[Run]:
    """Where loops may lie in a song, in order.

    Args:
        meters: in order of tick; of several at one tick the last counts.
        wanted: the meter of the grid.
    """
    if not rules.bars_by_meter:
        return [Run(0, length_ticks, 0)]
    at_tick = {0: ASSUMED} | {meter.tick: meter for meter in meters}
    changes = [meter for meter in at_tick.values() if meter.tick < max(1, length_ticks)]
    found, n_bars, goes_on = list[Run](), 0, False
    for number, meter in enumerate(changes):
        end = changes[number + 1].tick if number + 1 < len(changes) else length_ticks
        bar_ticks = 4 * meter.numerator * ticks_per_quarter / meter.denominator
        is_wanted = _signature(meter).is_like(wanted)
        if is_wanted:
            # A time signature that is stated again on a bar line changes nothing.
            off_line = (meter.tick - found[-1].start_tick + 1) % bar_ticks if goes_on else bar_ticks
            if goes_on and off_line <= 2:
                found[-1] = found[-1]._replace(end_tick=end)
            else:
                found.append(Run(meter.tick, end, n_bars))
        goes_on = is_wanted
        n_bars += ceil((end - meter.tick) / bar_ticks)
    return found


def _signature(meter: Meter) -> TimeSignature:
    return TimeSignature(meter.numerator, meter.denominator)


def bar_distances_cells(
    roll: Roll, start_bars: NDArray[np.int64], grid: Grid = LOOP
) -> NDArray[np.int64]:
    """Hamming distance of the first bar of each window and its `Grid.middle_bar`, in cells.

    Args:
        roll: bool (bars · steps a bar, columns), a whole song.
        start_bars: int (n,), first bars of the windows.

    Returns:
        int64 (n,).
    """
    bars = roll.reshape(-1, grid.cells_per_bar)
    differ = bars[start_bars] != bars[start_bars + grid.middle_bar]
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
