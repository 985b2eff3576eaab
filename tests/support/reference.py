"""A slow, plain second implementation of the extraction, for the tests to compare with.

Written from the specification alone (Roll, Quantisation, Rules), in whole numbers and sets, with
mido as its only reader. It shares no code with `midiloop`, and it has none of `midiloop`'s guards:
no caps on bars, notes or file size, no opinion on tempi.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from typing import NamedTuple

import mido

STEPS_A_BAR = 16
BARS = 8
MOST_CELLS_APART = 2  # between bars 1 and 5, of 16 * 93 = 1,488
KICK, CRASH = 0, 6  # columns
DRUM_CHANNEL = 9
COLUMN_OF_DRUM = {
    35: 0, 36: 0,  # kick
    37: 1, 38: 1, 39: 1, 40: 1,  # snare
    42: 2, 44: 2,  # closed hi-hat
    41: 3, 43: 3, 45: 3,  # low tom
    46: 4,  # open hi-hat
    47: 5, 48: 5,  # mid tom
    49: 6, 52: 6, 55: 6, 57: 6,  # crash
    50: 7,  # high tom
    51: 8, 53: 8, 59: 8,  # ride
}  # fmt: skip
FIRST_BASS_COLUMN, LOWEST_BASS, HIGHEST_BASS = 9, 24, 107
BASS_PROGRAMS = range(32, 40)  # counted from 0

Cells = frozenset[tuple[int, int]]


class Unreadable(Exception):  # noqa: N818
    """Mido cannot read this file, or its time is not in ticks per quarter."""


@dataclass
class Song:
    """All that the rules look at, in ticks."""

    tpq: int
    notes: list["Note"] = field(default_factory=list)
    meters: list[tuple[int, int, int]] = field(default_factory=list)  # tick, numerator, denominator


@dataclass
class Reference:
    """The answer: is the song usable, if not why, and its windows."""

    usable: bool
    reason: str  # '' | 'not_4_4' | 'no_meter' | 'no_bass' | 'no_drums', the first that applies
    start_bars: list[int] = field(default_factory=list)
    rolls: list[Cells] = field(default_factory=list)  # (step, column) of every cell that is on


# The first byte of SysEx, and those from the third on.
RESETS: dict[tuple[int, ...], str] = {
    (0x43, 0x4C, 0, 0, 0x7E, 0): "XG",
    (0x41, 0x42, 0x12, 0x40, 0, 0x7F, 0): "GS",
    (0x7E, 9, 3): "GM2",
    (0x7E, 9, 1): "GM",
}
DRUM_BANKS = {"XG": {126, 127}, "GM2": {120}}


class Note(NamedTuple):
    """One note, with what its channel plays at its onset."""

    start: int
    end: int
    pitch: int
    is_drum: bool
    program: int


def read(data: bytes) -> Song:
    """Read the notes and the time signatures of a file as one stream of messages."""
    try:
        file = mido.MidiFile(file=BytesIO(data), clip=True)
    except Exception as error:  # mido has no exception of its own
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    if file.ticks_per_beat <= 0:  # SMPTE is negative
        raise Unreadable(f"division {file.ticks_per_beat}")
    if file.type == 2:
        raise Unreadable("patterns")
    song = Song(file.ticks_per_beat)
    stream: list[tuple[int, bool, int, int, int, mido.Message]] = []
    ends: list[int] = []
    for number, track in enumerate(file.tracks):
        tick = port = 0
        for message in track:
            tick += message.time
            if message.type == "midi_port":
                port = message.port
            # A reset comes before what stands at its tick, on whichever track.
            stream.append((tick, message.type != "sysex", number, len(stream), port, message))
        ends.append(tick)
    state = _State()
    sounding: dict[tuple[int, int, int], list[_Sound]] = defaultdict(list)
    for tick, _, number, _, port, message in sorted(stream, key=lambda row: row[:4]):
        if message.type == "time_signature":
            song.meters.append((tick, message.numerator, message.denominator))
        elif message.type in ("note_on", "note_off"):
            on = message.type == "note_on" and message.velocity > 0
            played = state.played(port, message.channel) if on else None
            sounding[port, message.channel, message.note].append(_Sound(tick, number, played))
        else:
            state.hear(port, message)
    for (_, _, pitch), sounds in sounding.items():
        song.notes += _notes(pitch, sounds, ends, max(1, song.tpq // 4))
    return song


class _Sound(NamedTuple):
    """A note that begins, with whether it is a drum and its program, or one that ends."""

    tick: int
    track: int
    played: tuple[bool, int] | None


class _State:
    """What each channel of each port plays."""

    def __init__(self) -> None:
        self.system = "GM"
        self.programs: dict[tuple[int, int], int] = {}
        self.drums: dict[tuple[int, int], bool] = {}
        self.banks: dict[tuple[int, int], int] = {}

    def played(self, port: int, channel: int) -> tuple[bool, int]:
        is_drum = self.drums.get((port, channel), channel == DRUM_CHANNEL)
        return is_drum, self.programs.get((port, channel), 0)

    def hear(self, port: int, message: mido.Message) -> None:
        if message.type == "program_change":
            key = port, message.channel
            self.programs[key] = message.program
            if self.system in DRUM_BANKS and key in self.banks:
                self.drums[key] = self.banks[key] in DRUM_BANKS[self.system]
        elif message.type == "control_change" and message.control == 0:
            self.banks[port, message.channel] = message.value
        elif message.type == "sysex":
            self._system(port, list(message.data))

    def _system(self, port: int, data: list[int]) -> None:
        told = {(data[0], *data[2 : 2 + n]) for n in range(len(data))} if data else set()
        reset = next((system for start, system in RESETS.items() if start in told), None)
        if reset:
            self.system, self.drums, self.banks = reset, {}, {}
        if data[:1] == [0x41] and data[2:5] == [0x42, 0x12, 0x40] and len(data) > 7:
            if data[5] & 0xF0 == 0x10 and data[6] == 0x15:
                block = data[5] & 0x0F
                channel = 9 if block == 0 else block - 1 if block < 10 else block
                self.drums[port, channel] = data[7] > 0
        elif data[:1] == [0x43] and data[2:4] == [0x4C, 8] and len(data) > 6 and data[5] == 7:
            self.drums[port, data[4]] = data[6] > 0


def _notes(pitch: int, sounds: list[_Sound], ends: list[int], hit: int) -> Iterator[Note]:
    """Notes of one pitch: the oldest ends first; where ends are missing, with what comes next."""
    waiting: deque[_Sound] = deque()
    found: list[Note] = []
    for sound in sounds:
        if sound.played is not None:
            waiting.append(sound)
        elif waiting:
            first = waiting.popleft()
            assert first.played is not None
            found.append(Note(first.tick, sound.tick, pitch, *first.played))
    if not waiting:
        yield from found
        return
    for sound, after in zip(sounds, [*sounds[1:], None], strict=True):
        if sound.played is None:
            continue
        is_drum, program = sound.played
        if after is not None and not (is_drum and after.played is not None):
            end = after.tick
        else:
            end = max(ends[sound.track], sound.tick)
            end = min(end, sound.tick + hit) if is_drum else end
        yield Note(sound.tick, end, pitch, is_drum, program)


def step_at(tick: int, tpq: int) -> int:
    """Find the nearest 16th, ties up: floor(4 * tick / tpq + 1/2)."""
    return (8 * tick + tpq) // (2 * tpq)


def meters_in_force(song: Song) -> list[tuple[int, int]]:
    """List the time signatures that are in force somewhere before the end of the last note."""
    end = max((note.end for note in song.notes), default=0)
    last_on_tick = {tick: (top, bottom) for tick, top, bottom in song.meters if tick < end}
    return list(last_on_tick.values())


def find(song: Song, require_meter: bool, require_crash: bool, stride_bars: int = 1) -> Reference:
    """Apply the rules to a song."""
    meters = meters_in_force(song)
    if any(meter != (4, 4) for meter in meters):
        return Reference(False, "not_4_4")
    if require_meter and not meters:
        return Reference(False, "no_meter")

    bass: list[tuple[int, int, int]] = []  # first step, step after the last, pitch
    drums: set[tuple[int, int]] = set()  # step, column
    for note in song.notes:
        step = step_at(note.start, song.tpq)
        if note.is_drum:
            if note.pitch in COLUMN_OF_DRUM:
                drums.add((step, COLUMN_OF_DRUM[note.pitch]))
        elif note.program in BASS_PROGRAMS and LOWEST_BASS <= note.pitch <= HIGHEST_BASS:
            bass.append((step, max(step_at(note.end, song.tpq), step + 1), note.pitch))
    if not bass:
        return Reference(False, "no_bass")
    if not drums:
        return Reference(False, "no_drums")

    @cache
    def bar(number: int) -> Cells:
        """The cells of one bar, steps counted from its own first."""
        first, stop = number * STEPS_A_BAR, (number + 1) * STEPS_A_BAR
        lowest: dict[int, int] = {}
        for start, end, pitch in bass:
            for step in range(max(start, first), min(end, stop)):
                lowest[step] = min(pitch, lowest.get(step, pitch))
        cells = {
            (s - first, pitch - LOWEST_BASS + FIRST_BASS_COLUMN) for s, pitch in lowest.items()
        }
        return frozenset(cells | {(s - first, column) for s, column in drums if first <= s < stop})

    def starts() -> Iterator[int]:
        """The first bars of all windows; only a bar that opens with a kick can be one."""
        bars = -(-step_at(max(note.end for note in song.notes), song.tpq) // STEPS_A_BAR)
        kicks = (s // STEPS_A_BAR for s, c in drums if c == KICK and s % STEPS_A_BAR == 0)
        for start in sorted(kicks):
            if start % stride_bars or start + BARS > bars:
                continue
            opening = {column for step, column in bar(start) if step == 0}
            if max(opening) < FIRST_BASS_COLUMN or (require_crash and CRASH not in opening):
                continue
            if len(bar(start) ^ bar(start + 4)) <= MOST_CELLS_APART:
                yield start

    found = Reference(True, "")
    for start in starts():
        window = {(n * STEPS_A_BAR + s, c) for n in range(BARS) for s, c in bar(start + n)}
        found.start_bars.append(start)
        found.rolls.append(frozenset(window))
    return found


def extract(
    data: bytes, require_meter: bool, require_crash: bool, stride_bars: int = 1
) -> Reference:
    """Read a file and find its windows; raises `Unreadable`.

    The rules `paper` require both the meter and the crash, `open` neither.
    """
    return find(read(data), require_meter, require_crash, stride_bars)
