"""Which instrument plays each note: the state of all channels, over all tracks, in time.

Program, bank and controllers belong to a port and a channel, whichever track they are sent on, as
in the same file merged to one track. Drums are channel 10, unless the file says otherwise: by bank
126 or 127 after an XG reset, by bank 120 after a GM2 reset, or by a SysEx that makes a part a
rhythm part. A note without a note-off ends at the next note of its pitch, or with its track; a
drum hit without one lasts a sixteenth at most.

This takes several times as long as the parser of `midiloop.midi.score`, so it is used only for
files whose tracks may depend on one another, or have notes without a note-off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.midi.events import (
    BEND,
    CONTROL,
    END_OF_TRACK,
    NOTE_OFF,
    NOTE_ON,
    PROGRAM,
    SYSEX,
    TRACK_NAME,
    Events,
)

DRUM_CHANNEL = 9
# Banks of drum kits, by the reset that the file sends.
DRUM_BANKS = {"xg": (126, 127), "gm2": (120,)}
RESETS = {
    "xg": re.compile(rb"\x43[\x10-\x1f]\x4c\x00\x00\x7e\x00", re.DOTALL),
    "gm2": re.compile(rb"\x7e.\x09\x03", re.DOTALL),
    "gm": re.compile(rb"\x7e.\x09\x01", re.DOTALL),
    "gs": re.compile(rb"\x41.\x42\x12\x40\x00\x7f\x00", re.DOTALL),
}
# Part and mode: a GS block counts parts from 1, and has part 10 first; XG counts from 0.
GS_RHYTHM = re.compile(rb"\x41.\x42\x12\x40([\x10-\x1f])\x15([\x00-\x7f])", re.DOTALL)
XG_PART_MODE = re.compile(rb"\x43[\x10-\x1f]\x4c\x08([\x00-\x0f])\x07([\x00-\x7f])", re.DOTALL)
# What stands in every such SysEx: looking for it is quick.
SYSTEM_MARKS = (b"\x4c\x00\x00\x7e", b"\x4c\x08", b"\x42\x12\x40", b"\x09\x03")
# A drum bank on another channel than the drums', or no such bank on theirs; the first of the bytes
# may be left out, and a controller's value look like a bank.
_BANKS = re.compile(
    rb"(?:[\xb0-\xb8\xba-\xbf]|[\x00-\x7f])\x00[\x78\x7e\x7f]|\xb9\x00[^\x78\x7e\x7f]", re.DOTALL
)
NOT_NOTE_ON = bytes(byte for byte in range(256) if byte & 0xF0 != NOTE_ON)

# Note-offs for all pitches of a channel, so late that only a note without an end gets there.
LATE_TICKS = (1 << 28) - 1
_LATE = b"\xff\x7f\x00" + b"\xff\xff\xff\x7f"  # an empty event, for the time that stands before it
_ALL_OFF = [
    b"\x00".join(bytes([NOTE_ON | channel] * (pitch == 0) + [pitch, 0]) for pitch in range(128))
    for channel in range(16)
]


@dataclass(frozen=True)
class Instrument:
    """What one channel plays with one program on one track.

    Attributes:
        name: of the track.
        program: 0 to 127; of a drum kit, where ``is_drum``.
        notes: int64 (n, 4), rows of onset, end, pitch and velocity, in order.
        controls: int64 (n, 3), rows of tick, controller and value, of its channel.
        bends: int64 (n, 2), rows of tick and pitch bend from -8192 to 8191, of its channel.
    """

    name: str
    program: int
    is_drum: bool
    notes: NDArray[np.int64]
    controls: NDArray[np.int64]
    bends: NDArray[np.int64]


def closed(track: bytes) -> bytes:
    """The track with a very late note-off for every note that has none.

    A parser that pairs them then ends such a note at `LATE_TICKS` or later.
    """
    if not track.endswith(END_OF_TRACK[1:]):
        return track
    offs = [_ALL_OFF[status & 0x0F] for status in sorted(set(track.translate(None, NOT_NOTE_ON)))]
    if not offs:
        return track
    return track[:-3] + _LATE + b"\x00".join(offs) + END_OF_TRACK


def shared(tracks: Sequence[bytes], wanted: range = range(128)) -> bool:
    """Whether a track's instruments depend on another track, or drums on more than the channel.

    Args:
        wanted: programs that matter; which of the others a channel has makes no difference.
    """
    if _says_drums(tracks):
        return True
    return any(
        _unclear([Events(tracks[number]) for number in numbers], channel, wanted)
        for channel, numbers in _doubtful(tracks, wanted)
    )


def _says_drums(tracks: Sequence[bytes]) -> bool:
    """Whether SysEx or banks make another channel than 10 play drums, or channel 10 none."""
    said = [
        track
        for track in tracks
        if SYSEX in track and any(mark in track for mark in SYSTEM_MARKS) and _may_say_drums(track)
    ]
    systems = set()
    for track in said:
        events = Events(track)
        for index in np.flatnonzero(events.statuses == SYSEX).tolist():
            text = events.text(index)
            systems |= {name for name, pattern in RESETS.items() if pattern.match(text)}
            if _part_changes(text):
                return True
    banks = [bank for name in systems for bank in DRUM_BANKS.get(name, ())]
    if not banks or not any(_BANKS.search(track) for track in tracks):
        return False
    for events in map(Events, tracks):
        is_bank = (events.kinds == CONTROL) & (events.first == 0)
        on_drums = events.statuses & 0x0F == DRUM_CHANNEL
        if (is_bank & (np.isin(events.second, banks) != on_drums)).any():
            return True
    return False


def _may_say_drums(track: bytes) -> bool:
    """Whether the bytes may hold SysEx that changes which channels play drums."""
    return any(RESETS[name].search(track) for name in DRUM_BANKS) or _part_changes(track)


def _part_changes(track: bytes) -> bool:
    """Whether a SysEx makes another part than the tenth a rhythm part, or the tenth melodic."""
    gs = ((part[1][0] & 0x0F == 0, part[2][0] > 0) for part in GS_RHYTHM.finditer(track))
    xg = ((part[1][0] == DRUM_CHANNEL, part[2][0] > 0) for part in XG_PART_MODE.finditer(track))
    return any(usual != drums for usual, drums in (*gs, *xg))


def _doubtful(tracks: Sequence[bytes], wanted: range) -> Iterator[tuple[int, list[int]]]:
    """Channels that a track may play on and another may give a wanted program to, and those tracks.

    Bytes that look like a note or a program change may be part of a delta time, so this only rules
    channels out.
    """
    if len(tracks) < 2:
        return
    data = np.frombuffer(b"".join(tracks), np.uint8)
    is_change = (data[:-1] & 0xF0 == PROGRAM) & (data[1:] - np.uint8(wanted.start) < len(wanted))
    channels = set((data[:-1][is_change] & 0x0F).tolist()) - {DRUM_CHANNEL}
    for channel in sorted(channels):
        plays = re.compile(re.escape(bytes((NOTE_ON | channel,))) + rb"[\x00-\x7f]{2}", re.DOTALL)
        says = re.compile(re.escape(bytes((PROGRAM | channel,))) + rb"[\x00-\x7f]", re.DOTALL)
        players = {number for number, track in enumerate(tracks) if plays.search(track)}
        sayers = {number for number, track in enumerate(tracks) if says.search(track)}
        if players and len(players | sayers) > 1:
            yield channel, sorted(players | sayers)


def _unclear(events: Sequence[Events], channel: int, wanted: range) -> bool:
    """Whether tracks disagree on the program of a channel, or one plays and another sets it."""
    programs, lacking, n_players = set[int](), False, 0
    for track in events:
        of = track.statuses & 0x0F == channel
        kinds = track.kinds
        ons = np.flatnonzero(of & (kinds == NOTE_ON) & (track.second > 0))
        said = np.flatnonzero(of & (kinds == PROGRAM))
        programs |= set(track.first[said].tolist())
        n_players += bool(len(ons))
        lacking |= bool(len(ons)) and (not len(said) or said[0] > ons[0])
    unclear = len(programs) > 1 or (bool(programs) and lacking)
    return n_players > 0 and unclear and any(program in wanted for program in programs)


def instruments(tracks: Sequence[bytes], ticks_per_quarter: int) -> list[Instrument]:
    """Instruments with their notes, track by track, in order of their first notes."""
    stream = _Stream([Events(track) for track in tracks])
    return stream.instruments(max(1, ticks_per_quarter // 4))


class _System(NamedTuple):
    """A SysEx that changes which parts are drums: its index, its port, and what it sets."""

    place: int
    port: int
    reset: str
    part: tuple[int, bool] | None


class _Stream:
    """The events of all tracks in order of time, as arrays."""

    def __init__(self, events: Sequence[Events]) -> None:
        self.ends = np.array([track.end_tick for track in events], np.int64)
        self.names = [_name(track) for track in events]
        self.system: list[_System] = []
        counts = [len(track.ticks) for track in events]
        numbers = np.repeat(np.arange(len(events)), counts)
        ticks = np.concatenate([track.ticks for track in events])
        statuses = np.concatenate([track.statuses for track in events])
        # Of what stands at one tick, SysEx comes first: a reset may be on a later track.
        order = np.argsort(2 * ticks + (statuses != SYSEX), kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        starts = np.cumsum([0, *counts])
        ports = np.concatenate([track.ports() for track in events])
        for start, track in zip(starts.tolist(), events, strict=False):
            for index in np.flatnonzero(track.statuses == SYSEX).tolist():
                text = track.text(index)
                reset = next((name for name, of in RESETS.items() if of.match(text)), "")
                part = _part(text)
                if reset or part:
                    at = start + index
                    self.system.append(_System(int(place[at]), int(ports[at]), reset, part))
        self.system.sort()
        self.tracks, self.ticks, self.statuses = numbers[order], ticks[order], statuses[order]
        self.first = np.concatenate([track.first for track in events])[order]
        self.second = np.concatenate([track.second for track in events])[order]
        self.kinds = np.where(self.statuses < SYSEX, self.statuses & 0xF0, self.statuses)
        self.channels = np.where(
            self.statuses < SYSEX, ports[order] * 16 + (self.statuses & 0x0F), -1
        )
        self.programs, self.is_drum = self._state()

    def _state(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Program of each event's channel at that time, and whether the channel plays drums."""
        programs = np.zeros(len(self.ticks), np.int64)
        is_drum = np.zeros(len(self.ticks), np.bool_)
        for channel in np.flatnonzero(np.bincount(self.channels + 1)[1:]).tolist():
            here = np.flatnonzero(self.channels == channel)
            marks = [(0, 0, channel % 16 == DRUM_CHANNEL), *self._changes(channel, here)]
            at = np.searchsorted([mark[0] for mark in marks], here, "right") - 1
            programs[here] = np.array([mark[1] for mark in marks])[at]
            is_drum[here] = np.array([mark[2] for mark in marks])[at]
        return programs, is_drum

    def _changes(self, channel: int, here: NDArray[np.int64]) -> Iterator[tuple[int, int, bool]]:
        """Each change on a channel: index of its event, new program, and whether it plays drums."""
        port, number = divmod(channel, 16)
        of = here[
            (self.kinds[here] == PROGRAM)
            | ((self.kinds[here] == CONTROL) & (self.first[here] == 0))
        ]
        said = [(index, None) for index in of.tolist()]
        system = [(message.place, message) for message in self.system]
        program, drum, kind, bank = 0, number == DRUM_CHANNEL, "gm", -1
        for index, message in sorted([*said, *system], key=itemgetter(0)):
            if message and message.reset:
                kind, bank, drum = message.reset, -1, number == DRUM_CHANNEL
            elif message and message.part:
                if (message.port, message.part[0]) == (port, number):
                    drum = message.part[1]
            elif self.kinds[index] == PROGRAM:
                program = int(self.first[index])
                if kind in DRUM_BANKS and bank >= 0:
                    drum = bank in DRUM_BANKS[kind]
            else:
                bank = int(self.second[index])
            yield index, program, drum

    def instruments(self, hit_ticks: int) -> list[Instrument]:
        """Every instrument with its notes; a drum hit without an end lasts ``hit_ticks``."""
        ons, ends = self._paired(hit_ticks)
        parts = self.tracks[ons], self.channels[ons], self.programs[ons], self.is_drum[ons]
        sizes = (len(self.names), 16 * 128, 128, 2)
        keys = np.ravel_multi_index(tuple(part.astype(np.int64) for part in parts), sizes)
        rows = np.stack([self.ticks[ons], ends, self.first[ons], self.second[ons]], axis=1)
        kinds, begins, which, counts = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        sound = (rows[:, 2] << 7 | rows[:, 3]).astype(np.int16)  # which is quick to sort by
        rows = rows[np.lexsort((sound, ends, rows[:, 0].copy(), which))]
        notes = np.split(rows, np.cumsum(counts)[:-1])
        controls, bends = (np.flatnonzero(self.kinds == kind) for kind in (CONTROL, BEND))
        found = []
        # Track by track, in the order of first notes.
        for number in np.lexsort((begins, self.tracks[ons][begins])).tolist():
            track, channel, program, is_drum = np.unravel_index(kinds[number], sizes)
            found.append(
                Instrument(
                    self.names[int(track)],
                    int(program),
                    bool(is_drum),
                    notes[number],
                    self._controls(controls[self.channels[controls] == channel]),
                    self._bends(bends[self.channels[bends] == channel]),
                )
            )
        return found

    def _controls(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack([self.ticks[at], self.first[at], self.second[at]], axis=1)

    def _bends(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack([self.ticks[at], (self.second[at] << 7 | self.first[at]) - 8192], axis=1)

    def _paired(self, hit_ticks: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of note-ons, in order, and the tick at which each note ends.

        The oldest note of a pitch ends first. Where a note-off is missing, any of the notes may
        lack it, and each note of that pitch lasts to the next event of the pitch.
        """
        at = np.flatnonzero((self.kinds == NOTE_ON) | (self.kinds == NOTE_OFF))
        keys = self.channels[at] * 128 + self.first[at]
        order = np.argsort(keys, kind="stable")
        at, keys = at[order], keys[order]
        is_on = (self.kinds[at] == NOTE_ON) & (self.second[at] > 0)
        groups = np.cumsum(np.diff(keys, prepend=keys[:1]) != 0)
        # An end that comes while nothing sounds is none: it lowers the lowest balance so far.
        steps = np.where(is_on, 1, -1)
        balance = np.cumsum(steps)
        first = np.searchsorted(groups, np.arange(groups[-1] + 1 if len(groups) else 0))
        balance -= (balance[first] - steps[first])[groups]
        apart = (2 * len(at) + 2) * groups  # so that no group hears of the one before
        lowest = np.minimum.accumulate(np.minimum(balance, 0) - apart) + apart
        idle = np.diff(lowest, prepend=0) < 0
        idle[first] = lowest[first] < 0
        at, groups, is_on = at[~idle], groups[~idle], is_on[~idle]
        n_groups = int(groups[-1]) + 1 if len(groups) else 0
        missing = np.bincount(groups, np.where(is_on, 1, -1), minlength=n_groups) > 0
        even = ~missing[groups]
        ons = at[is_on]
        ends = np.empty(len(ons), np.int64)
        # In a group that comes out even, the n-th note ends with the n-th end.
        ends[even[is_on]] = self.ticks[at[~is_on & even]]
        odd = np.flatnonzero(is_on & ~even)
        after = np.minimum(odd + 1, len(at) - 1)
        followed = (odd + 1 < len(at)) & (groups[after] == groups[odd])
        drums = self.is_drum[at[odd]]
        followed &= ~(drums & is_on[after])  # a hit lasts no longer than it has to
        begun = self.ticks[at[odd]]
        end = np.where(followed, self.ticks[at[after]], self.ends[self.tracks[at[odd]]])
        end = np.maximum(end, begun)
        end = np.where(drums & ~followed, np.minimum(end, begun + hit_ticks), end)
        ends[~even[is_on]] = end
        in_time = np.argsort(ons, kind="stable")
        return ons[in_time], ends[in_time]


def _name(track: Events) -> str:
    """The first name in a track that is not empty."""
    texts = (track.text(index) for index in track.metas(TRACK_NAME).tolist())
    return next((text.decode("utf-8", "replace") for text in texts if text), "")


def _part(text: bytes) -> tuple[int, bool] | None:
    """The channel whose part a SysEx sets, and whether to drums."""
    if found := GS_RHYTHM.match(text):
        block = found[1][0] & 0x0F
        channel = DRUM_CHANNEL if block == 0 else block - (block <= DRUM_CHANNEL)
        return channel, found[2][0] > 0
    if found := XG_PART_MODE.match(text):
        return found[1][0], found[2][0] > 0
    return None
