"""The grid that every roll lives on: how many bars and steps, and what each column means.

This module owns the numbers 128 and 93; everything else asks a `Grid`. `LOOP` is the grid of the
paper: 8 bars of 4/4 at 16 steps a bar, nine drum instruments, then bass pitches C1 to B7.

A beat is a quarter note, whatever the meter, as in tempi. What a bar is counted in is its pulse::

    meter  steps a beat  steps a bar  pulses  steps of each
    4/4              4           16        4              4
    3/4              6           18        3              6
    6/8              4           12        2              6    of three eighths
    7/8              4           14        7              2
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import LoopError, counted

Roll = NDArray[np.bool_]

MAX_CELLS = 1 << 20
MAX_STEPS_PER_BEAT = 32_767  # ticks in a quarter note of a MIDI file, at most
MAX_NUMERATOR, DENOMINATORS = 255, (1, 2, 4, 8, 16, 32, 64, 128)  # what a MIDI file can state
PITCH_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


@dataclass(frozen=True)
class Drum:
    """One drum column: its General MIDI pitch, and the pitches that are folded into it."""

    name: str
    pitch: int
    folds: tuple[int, ...]


KIT = (
    Drum("kick", 36, (35, 36)),
    Drum("snare", 38, (37, 38, 39, 40)),
    Drum("closed hi-hat", 42, (42, 44)),
    Drum("low tom", 45, (41, 43, 45)),
    Drum("open hi-hat", 46, (46,)),
    Drum("mid tom", 48, (47, 48)),
    Drum("crash", 49, (49, 52, 55, 57)),
    Drum("high tom", 50, (50,)),
    Drum("ride", 51, (51, 53, 59)),
)


class TimeSignature(NamedTuple):
    """The meter of bars, as in 3/4."""

    numerator: int
    denominator: int

    def __str__(self) -> str:
        return f"{self.numerator}/{self.denominator}"

    @property
    def exists(self) -> bool:
        """Whether a MIDI file can state it."""
        return 1 <= self.numerator <= MAX_NUMERATOR and self.denominator in DENOMINATORS

    @property
    def beats(self) -> Fraction:
        """Quarter notes of a bar: 4 of 4/4, 7/2 of 7/8."""
        return Fraction(4 * self.numerator, self.denominator)

    @property
    def is_compound(self) -> bool:
        """Whether a pulse has three of what the denominator names, as in 6/8, 9/8 and 12/8."""
        return self.numerator > 3 and self.numerator % 3 == 0

    @property
    def pulses(self) -> int:
        """What a bar is counted in: 4 of 4/4, 3 of 3/4, 2 of 6/8, 7 of 7/8."""
        return self.numerator // 3 if self.is_compound else self.numerator

    def is_like(self, other: TimeSignature) -> bool:
        """Whether bars are as long and of the same kind: 2/2 is as 4/4, 6/8 is not as 3/4."""
        return (self.beats, self.is_compound) == (other.beats, other.is_compound)

    def bars(self, ticks: int, ticks_per_quarter: int) -> int:
        """Whole bars in so many ticks."""
        return ticks // (self.beats * ticks_per_quarter)


COMMON_TIME = TimeSignature(4, 4)


@dataclass(frozen=True)
class Grid:
    """The shape and meaning of a roll: bool (steps, columns), drums first, then bass pitches.

    Attributes:
        bars: bars in a loop.
        steps_per_beat: grid steps in a quarter note.
        drums: drum columns, left to right.
        lowest_pitch, highest_pitch: MIDI pitches of the bass columns, both included.
        meter: of each bar.

    Raises:
        LoopError: there is no such meter, a pulse of it is no whole number of steps, or there are
            over `MAX_CELLS` cells.
    """

    bars: int = 8
    steps_per_beat: int = 4
    drums: tuple[Drum, ...] = field(default=KIT)
    lowest_pitch: int = 24
    highest_pitch: int = 107
    meter: TimeSignature = COMMON_TIME

    def __post_init__(self) -> None:
        if not self.meter.exists:
            raise LoopError(
                f"no meter is {self.meter}: beats of a bar from 1 to {MAX_NUMERATOR}, over "
                f"{', '.join(map(str, DENOMINATORS[:-1]))} or {DENOMINATORS[-1]}"
            )
        pulse = self.meter.beats / self.meter.pulses
        if (pulse * self.steps_per_beat).denominator != 1:
            raise LoopError(
                f"{self.meter} at {counted(self.steps_per_beat, 'step')} a quarter note: "
                f"{float(pulse * self.steps_per_beat):g} steps a pulse are not whole; take a "
                f"multiple of {pulse.denominator}"
            )
        if self.steps * self.columns > MAX_CELLS:
            raise LoopError(f"a grid of over {MAX_CELLS:,} cells")

    def as_json(self) -> dict[str, Any]:
        """All that `grid_from_json` needs, and the names of the columns for people.

        A meter of 4/4 is not named: earlier versions had no other, and did not say it.
        """
        return {
            "bars": self.bars,
            **({} if self.meter == COMMON_TIME else {"meter": [*self.meter]}),
            "steps_per_beat": self.steps_per_beat,
            "drums": [{"name": d.name, "pitch": d.pitch, "folds": [*d.folds]} for d in self.drums],
            "lowest_pitch": self.lowest_pitch,
            "highest_pitch": self.highest_pitch,
            "columns": [*self.column_names],
        }

    def __str__(self) -> str:
        """As in ``8 bars of 16 steps, 9 drums, bass C1 to B7``; other meters than 4/4 are named."""
        meter = "" if self.meter == COMMON_TIME else f"{self.meter}, "
        return (
            f"{counted(self.bars, 'bar')} of {meter}{self.steps_per_bar} steps, "
            f"{self.n_drums} drums, bass {self._properties['bass']}"
        )

    def difference(self, other: Grid) -> str:
        """What is not as in ``other``, as in ``bars 4, not 8; kick pitch 35, not 36``."""
        return "; ".join(
            f"{name} {value}, not {other._properties[name]}"
            for name, value in self._properties.items()
            if other._properties.get(name, value) != value
        )

    @cached_property
    def _properties(self) -> dict[str, str]:
        """All that two grids may differ in, as people read it."""
        found = {
            "bars": f"{self.bars}",
            "meter": f"{self.meter}",
            "steps a bar": f"{self.steps_per_bar}",
            "drums": ", ".join(drum.name for drum in self.drums) or "none",
        }
        for drum in self.drums:
            found[f"{drum.name} pitch"] = f"{drum.pitch}"
            found[f"{drum.name} folded from"] = " ".join(map(str, drum.folds)) or "none"
        lowest, highest = pitch_name(self.lowest_pitch), pitch_name(self.highest_pitch)
        return found | {"bass": f"{lowest} to {highest}"}

    @property
    def steps_per_bar(self) -> int:
        """Steps in a bar."""
        return 4 * self.meter.numerator * self.steps_per_beat // self.meter.denominator

    @property
    def steps_per_pulse(self) -> int:
        """Steps in a pulse of the meter."""
        return self.steps_per_bar // self.meter.pulses

    @property
    def middle_bar(self) -> int:
        """The bar that the rules compare with the first: where the second half begins, from 0.

        Of 8 bars it is the fifth, of an odd number the one in the middle. A single bar is compared
        with itself, which says nothing.
        """
        return self.bars // 2

    @property
    def steps(self) -> int:
        """Steps in a loop."""
        return self.bars * self.steps_per_bar

    @property
    def n_drums(self) -> int:
        """Drum columns; the first bass column has this index."""
        return len(self.drums)

    @property
    def n_pitches(self) -> int:
        """Bass columns."""
        return self.highest_pitch - self.lowest_pitch + 1

    @property
    def columns(self) -> int:
        """All columns of a roll."""
        return self.n_drums + self.n_pitches

    @property
    def cells_per_bar(self) -> int:
        """Cells in one bar of a roll."""
        return self.steps_per_bar * self.columns

    @property
    def packed_bytes(self) -> int:
        """Bytes of a packed loop: its bits, C-ordered, eight to a byte."""
        return (self.steps * self.columns + 7) // 8

    @cached_property
    def drum_columns(self) -> NDArray[np.int8]:
        """Column of each of the 128 MIDI drum pitches, -1 where it is dropped."""
        table = np.full(128, -1, dtype=np.int8)
        for column, drum in enumerate(self.drums):
            table[list(drum.folds)] = column
        return table

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Name of each column: drum names, then pitch names as in ``C1``."""
        pitches = range(self.lowest_pitch, self.highest_pitch + 1)
        return tuple(d.name for d in self.drums) + tuple(pitch_name(p) for p in pitches)

    def drum_column(self, name: str) -> int:
        """Column of the drum called ``name``, for example ``"crash"``.

        Raises:
            LoopError: the kit has no such drum.
        """
        names = [drum.name for drum in self.drums]
        if name not in names:
            raise LoopError(f"no drum is called {name!r}; choose from {', '.join(names)}")
        return names.index(name)

    def check(self, roll: Roll) -> None:
        """Raise `LoopError` unless ``roll`` is one loop on this grid."""
        if roll.shape != (self.steps, self.columns) or roll.dtype != np.bool_:
            raise LoopError(
                f"expected a bool roll ({self.steps}, {self.columns}), got {roll.dtype} "
                f"{roll.shape}; cut longer pieces with extract.loops()"
            )

    def pack(self, rolls: Roll) -> NDArray[np.uint8]:
        """Pack rolls (…, steps, columns) into bytes (…, packed_bytes), C order, first bit high."""
        cells = rolls.reshape(*rolls.shape[:-2], self.steps * self.columns)
        return np.packbits(cells, axis=-1)

    def unpack(self, packed: NDArray[np.uint8]) -> Roll:
        """Undo `pack`: bytes (…, packed_bytes) to bool (…, steps, columns)."""
        # told how many there are, NumPy takes seven times as long
        cells = np.unpackbits(packed, axis=-1)[..., : self.steps * self.columns]
        return cells.view(np.bool_).reshape(*packed.shape[:-1], self.steps, self.columns)

    def fingerprints(self, packed: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """A 64-bit hash of each packed roll (n, packed_bytes), the same on every machine.

        Among a million different rolls two share one with a probability of 3e-8.
        """
        size, data = packed.shape[-1], packed.tobytes()
        starts = range(0, len(data), size)
        digests = [hashlib.blake2b(data[at : at + size], digest_size=8).digest() for at in starts]
        return np.frombuffer(b"".join(digests), dtype="<u8")


LOOP = Grid()


def grid_from_json(found: Any) -> Grid:
    """The grid that `Grid.as_json` wrote.

    Earlier versions wrote no drums and no pitches, but the names of the columns: those are looked
    up in `KIT`.

    Raises:
        LoopError: it is no grid, or none that can be, see `Grid`.
    """
    try:
        if {"drums", "lowest_pitch", "highest_pitch"} & {*found}:
            drums = tuple(
                Drum(str(d["name"]), _whole(d["pitch"], 0, 127), _folds(d["folds"]))
                for d in found["drums"]
            )
            lowest = _whole(found["lowest_pitch"], 0, 127)
            highest = _whole(found["highest_pitch"], lowest, 127)
        else:
            kit = {drum.name: drum for drum in KIT}
            names = found["columns"]
            drums = tuple(kit[name] for name in names if name in kit)
            pitches = {pitch_name(pitch): pitch for pitch in range(128)}
            lowest, highest = pitches[names[len(drums)]], pitches[names[-1]]
        bars = _whole(found["bars"], 1, MAX_CELLS)
        steps_per_beat = _whole(found["steps_per_beat"], 1, MAX_STEPS_PER_BEAT)
        numerator, denominator = found.get("meter", COMMON_TIME)
        meter = TimeSignature(_whole(numerator, 0, MAX_CELLS), _whole(denominator, 0, MAX_CELLS))
        names = list(found["columns"])
    except (TypeError, KeyError, ValueError, IndexError, AttributeError):
        raise LoopError("no grid of bars, steps and columns") from None
    grid = Grid(bars, steps_per_beat, drums, lowest, highest, meter)
    if names != [*grid.column_names] or len(set(grid.column_names)) < grid.columns:
        raise LoopError("a grid whose columns are not those of its drums and pitches")
    return grid


def meter_from_text(text: str) -> TimeSignature:
    """A meter as people write it, ``3/4``.

    Raises:
        LoopError: it is none.
    """
    match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text.strip(), re.ASCII)
    meter = TimeSignature(int(match[1]), int(match[2])) if match else None
    if meter is None or not meter.exists:
        raise LoopError(f"{text}: no meter; give one as in 3/4 or 6/8")
    return meter


def _folds(found: Any) -> tuple[int, ...]:
    return tuple(_whole(pitch, 0, 127) for pitch in found)


def _whole(number: Any, lowest: int, highest: int) -> int:
    """A whole number in its bounds, or `ValueError`."""
    if type(number) is not int or not lowest <= number <= highest:
        raise ValueError(number)
    return number


def pitch_name(pitch: int) -> str:
    """Name of a MIDI pitch with C1 = 24, as in ``"F#2"``."""
    return f"{PITCH_NAMES[pitch % 12]}{pitch // 12 - 1}"
