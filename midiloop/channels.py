"""Which instrument plays each note: the state of all channels, over all tracks, in time.

Program, bank and controllers belong to a port and a channel, whichever track they are sent on, as
in the same file merged to one track. Drums are channel 10, unless the file says otherwise: by bank
126 or 127 after an XG reset, by bank 120 after a GM2 reset, or by a SysEx that makes a part a
rhythm part. A note whose end never comes ends at the next note of its pitch, or with its track; a
drum hit lasts a sixteenth at most.

This takes some 20 times as long as the parser that `midiloop.score` uses otherwise, so only files
whose tracks are `shared`, or have notes without an end, come here.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

DRUM_CHANNEL = 9
END_OF_TRACK = 0x2F
TRACK_NAME, PORT = 0x03, 0x21
NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, BEND = 0x80, 0x90, 0xB0, 0xC0, 0xE0
META, SYSEX, SYSEX_GOES_ON = 0xFF, 0xF0, 0xF7
SYSTEM_DATA_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}
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
SAYS_DRUMS = re.compile(
    rb"\x43[\x10-\x1f]\x4c(?:\x00\x00\x7e\x00|\x08[\x00-\x0f]\x07)"
    rb"|\x41.\x42\x12\x40[\x10-\x1f]\x15|\x7e.\x09\x03",
    re.DOTALL,
)
# Whether the banks that a reset gives a meaning to are used: of drums, on another channel than 10,
# or of melody on that one.
PARTS_SAID = re.compile(
    rb"\x43[\x10-\x1f]\x4c\x08[\x00-\x0f]\x07|\x41.\x42\x12\x40[\x10-\x1f]\x15", re.DOTALL
)
BANKS_SAID = re.compile(rb"(?<!\xb9)\x00[\x78\x7e\x7f]|\xb9\x00[^\x78\x7e\x7f]", re.DOTALL)
NO_NOTE_ON = bytes(byte for byte in range(256) if byte & 0xF0 != NOTE_ON)
NO_PROGRAM = bytes(byte for byte in range(256) if byte & 0xF0 != PROGRAM)

# Note-offs for all pitches of a channel, so late that only a note without an end gets there.
LATE_TICKS = (1 << 28) - 1
_LATE = b"\xff\x7f\x00" + b"\xff\xff\xff\x7f"  # an empty event, for the time that stands before it
_ALL_OFF = [
    b"\x00".join(bytes([NOTE_ON | channel] * (pitch == 0) + [pitch, 0]) for pitch in range(128))
    for channel in range(16)
]
_END = b"\xff\x2f\x00"


class Event(NamedTuple):
    """What a track says at a tick: status byte, and two data bytes, or a type and a text."""

    tick: int
    status: int
    number: int
    value: int
    text: bytes = b""


@dataclass
class Instrument:
    """What one channel plays with one program on one track.

    Attributes:
        name: of the track.
        program: 0 to 127; of a drum kit, where ``is_drum``.
        notes: rows of onset, end, pitch and velocity.
        controls: rows of tick, controller and value, of its channel.
        bends: rows of tick and pitch bend from -8192 to 8191, of its channel.
    """

    name: str
    program: int
    is_drum: bool
    notes: list[tuple[int, int, int, int]] = field(default_factory=list)
    controls: list[tuple[int, int, int]] = field(default_factory=list)
    bends: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class _Channel:
    """State of a channel of a port, and all that is sent to it but notes."""

    is_drum: bool
    program: int = 0
    bank: int | None = None
    controls: list[tuple[int, int, int]] = field(default_factory=list)
    bends: list[tuple[int, int]] = field(default_factory=list)


class _Change(NamedTuple):
    """A note that begins or, without an ``instrument``, ends."""

    tick: int
    track: int
    velocity: int
    instrument: Instrument | None


def shared(tracks: Sequence[bytes], wanted: range = range(128)) -> bool:
    """Whether what a track plays depends on another, or drums are told by more than channel.

    Args:
        wanted: programs that matter: which of the others a channel has makes no difference.
    """
    if any(SAYS_DRUMS.search(track) for track in tracks) and any(
        PARTS_SAID.search(track) or BANKS_SAID.search(track) for track in tracks
    ):
        return True
    # Bytes first, of which some are no status but part of a time: they rule most files out.
    playing = [set(track.translate(None, NO_NOTE_ON)) for track in tracks]
    changing = [set(track.translate(None, NO_PROGRAM)) for track in tracks]
    wanted_bytes = set(wanted)
    doubtful = {
        status & 0x0F
        for number, found in enumerate(changing)
        for status in found
        for other, played in enumerate(playing)
        if other != number and NOTE_ON | status & 0x0F in played
    }
    if not doubtful:
        return False
    if len(wanted) < 128 and not any(
        track[found.end()] in wanted_bytes
        for track in tracks
        for found in _PROGRAM.finditer(track, 0, len(track) - 1)
    ):
        return False
    uses = list(map(_uses, tracks))
    for channel in doubtful:
        players = [use[channel] for use in uses if channel in use]
        programs = {program for use in players for program in use.programs}
        lacking = any(use.plays_first for use in players)
        if channel == DRUM_CHANNEL and len(wanted) < 128:
            continue
        unclear = len(players) > 1 and (len(programs) > 1 or (bool(programs) and lacking))
        if unclear and any(program in wanted for program in programs):
            return True
    return False


@dataclass
class _Use:
    """What a track does with a channel: whether it plays on it before it says a program."""

    plays_first: bool = False
    programs: set[int] = field(default_factory=set)


_DELTA = rb"[\x80-\xff]{0,3}[\x00-\x7f]"
_PROGRAM = re.compile(rb"[\xc0-\xcf]")
_TIME = re.compile(_DELTA, re.DOTALL)
_ONE_BYTE_MORE = re.compile(rb"(?:" + _DELTA + rb"[\x00-\x7f])*+", re.DOTALL)
# Events of one channel, in a row: a group that is not empty where a note begins.
_STAYS = [
    re.compile(
        rb"(?:%s(?:(%s)|[%s])?[\x00-\x7f]{2})*+"
        % (
            _DELTA,
            re.escape(bytes([NOTE_ON | channel])),
            re.escape(bytes([kind | channel for kind in (NOTE_OFF, 0xA0, CONTROL, BEND)])),
        ),
        re.DOTALL,
    )
    for channel in range(16)
]


def _uses(track: bytes) -> dict[int, _Use]:
    """What a track does with each channel that it uses, read in long strides."""
    found: dict[int, _Use] = defaultdict(_Use)
    at = 0
    try:
        while (time := _TIME.match(track, at)) is not None:
            at = time.end()
            status, channel = track[at], track[at] & 0x0F
            if status >= SYSEX:
                if status not in (META, SYSEX, SYSEX_GOES_ON):
                    at += 1 + SYSTEM_DATA_BYTES.get(status, 0)
                    continue
                length, at = _quantity(track, at + 1 + (status == META))
                at += length
            elif status & 0xE0 == PROGRAM:
                if status & 0xF0 == PROGRAM:
                    found[channel].programs.add(track[at + 1])
                at = _end(_ONE_BYTE_MORE, track, at + 2)
            else:
                # What goes on after a meta event without a status is of the channel before.
                at = time.start() if status >= 0x80 else at + 2
                stays = _STAYS[channel].match(track, at) if status >= 0x80 else None
                if stays is not None:
                    at = max(stays.end(), at + 1)
                    if stays[1] and not found[channel].programs:
                        found[channel].plays_first = True
                    elif stays[1]:
                        found[channel]
    except IndexError:
        pass  # the track is cut off
    return dict(found)


def _end(pattern: re.Pattern[bytes], track: bytes, at: int) -> int:
    found = pattern.match(track, at)
    return found.end() if found else at


def closed(track: bytes) -> bytes:
    """The track with a very late end for every note that has none.

    A parser that pairs notes then gives it one that ends at `LATE_TICKS` or later.
    """
    if not track.endswith(_END):
        return track
    offs = [_ALL_OFF[status & 0x0F] for status in sorted(set(track.translate(None, NO_NOTE_ON)))]
    if not offs:
        return track
    return track[:-3] + _LATE + b"\x00".join(offs) + b"\x00" + _END


def events(track: bytes) -> Iterator[Event]:
    """Events of a track up to the one that ends it, which comes last; it ends where it breaks."""
    at = tick = running = 0
    try:
        while at < len(track):
            delta, at = _quantity(track, at)
            tick += delta
            status = track[at]
            if status >= 0x80:
                at += 1
            else:
                status = running
            if status in (META, SYSEX, SYSEX_GOES_ON):
                kind = track[at] if status == META else 0
                length, at = _quantity(track, at + (status == META))
                text = track[at : at + length]
                at += length
                if kind == END_OF_TRACK:
                    break
                yield Event(tick, status, kind, 0, text)
            elif status >= SYSEX:
                at += SYSTEM_DATA_BYTES.get(status, 0)
            elif status:
                running = status
                two = status & 0xE0 != PROGRAM  # programs and channel pressure have one
                yield Event(
                    tick, status, min(track[at], 127), min(track[at + 1], 127) if two else 0
                )
                at += 1 + two
            else:
                break
    except IndexError:
        pass  # the track is cut off
    yield Event(tick, META, END_OF_TRACK, 0)


def _quantity(track: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    while True:
        byte = track[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at


def end_ticks(tracks: Iterable[bytes]) -> int:
    """Tick at which the last of all tracks ends."""
    return max((event.tick for track in tracks for event in events(track)), default=0)


def instruments(tracks: Sequence[bytes], ticks_per_quarter: int) -> list[Instrument]:
    """What plays, track by track, in the order in which each begins."""
    return _Merged(tracks).instruments(max(1, ticks_per_quarter // 4))


class _Merged:
    """All tracks as one stream."""

    def __init__(self, tracks: Sequence[bytes]) -> None:
        self.names, self.ends = [""] * len(tracks), [0] * len(tracks)
        self.channels: dict[tuple[int, int], _Channel] = {}
        self.found: dict[tuple[int, int, int, int, bool], Instrument] = {}
        self.changes: dict[tuple[int, int, int], list[_Change]] = defaultdict(list)
        self.system = "gm"
        stream = [row for number, track in enumerate(tracks) for row in self._rows(number, track)]
        # Of what stands at one tick, a reset comes first: it may be on a later track.
        stream.sort(key=lambda row: (row[2].tick, row[2].status != SYSEX))
        for number, port, event in stream:
            self._take(number, port, event)

    def _rows(self, number: int, track: bytes) -> Iterator[tuple[int, int, Event]]:
        port = 0
        for event in events(track):
            if event.status != META:
                yield number, port, event
            elif event.number == TRACK_NAME and not self.names[number]:
                self.names[number] = event.text.decode("utf-8", "replace")
            elif event.number == PORT and event.text:
                port = event.text[0]
            elif event.number == END_OF_TRACK:
                self.ends[number] = event.tick

    def _channel(self, port: int, number: int) -> _Channel:
        if (port, number) not in self.channels:
            self.channels[port, number] = _Channel(number == DRUM_CHANNEL)
        return self.channels[port, number]

    def _take(self, track: int, port: int, event: Event) -> None:
        kind, number = event.status & 0xF0, event.status & 0x0F
        if event.status == SYSEX:
            return self._system(port, event.text)
        if kind == SYSEX:
            return None
        channel = self._channel(port, number)
        if kind in (NOTE_OFF, NOTE_ON):
            starts = kind == NOTE_ON and event.value > 0
            player = self._player(track, port, number, channel) if starts else None
            change = _Change(event.tick, track, event.value, player)
            self.changes[port, number, event.number].append(change)
        elif kind == PROGRAM:
            channel.program = event.number
            if self.system in DRUM_BANKS and channel.bank is not None:
                channel.is_drum = channel.bank in DRUM_BANKS[self.system]
        elif kind == CONTROL:
            channel.controls.append((event.tick, event.number, event.value))
            if event.number == 0:
                channel.bank = event.value
        elif kind == BEND:
            channel.bends.append((event.tick, (event.value << 7 | event.number) - 8192))
        return None

    def _player(self, track: int, port: int, number: int, channel: _Channel) -> Instrument:
        key = track, port, number, channel.program, channel.is_drum
        if key not in self.found:
            name = self.names[track]
            self.found[key] = Instrument(
                name, channel.program, channel.is_drum, [], channel.controls, channel.bends
            )
        return self.found[key]

    def _system(self, port: int, text: bytes) -> None:
        for system, pattern in RESETS.items():
            if pattern.match(text):
                self.system = system
                for (_, number), channel in self.channels.items():
                    channel.is_drum, channel.bank = number == DRUM_CHANNEL, None
        if found := GS_RHYTHM.match(text):
            block = found[1][0] & 0x0F
            part = DRUM_CHANNEL if block == 0 else block - (block <= DRUM_CHANNEL)
            self._channel(port, part).is_drum = found[2][0] > 0
        elif found := XG_PART_MODE.match(text):
            self._channel(port, found[1][0]).is_drum = found[2][0] > 0

    def instruments(self, hit_ticks: int) -> list[Instrument]:
        for (_, _, pitch), changes in self.changes.items():
            for begin, end in _paired(changes):
                assert begin.instrument is not None
                if end is None:  # it never comes
                    end = max(begin.tick, self.ends[begin.track])
                    if begin.instrument.is_drum:
                        end = min(end, begin.tick + hit_ticks)
                begin.instrument.notes.append((begin.tick, end, pitch, begin.velocity))
        for instrument in self.found.values():
            instrument.notes.sort()
        return [self.found[key] for key in sorted(self.found, key=lambda key: key[0])]


def _paired(changes: list[_Change]) -> Iterator[tuple[_Change, int | None]]:
    """Notes of one pitch, each with its end, or None.

    The oldest note ends first. Where an end is missing nobody knows whose it is, and each note
    lasts to whatever comes next.
    """
    found, waiting = list[tuple[_Change, int | None]](), deque[_Change]()
    for change in changes:
        if change.instrument is not None:
            waiting.append(change)
        elif waiting:
            found.append((waiting.popleft(), change.tick))
    if not waiting:
        yield from found
        return
    for number, change in enumerate(changes):
        if change.instrument is not None:
            after = changes[number + 1].tick if number + 1 < len(changes) else None
            if after is not None and change.instrument.is_drum and changes[number + 1].instrument:
                after = None  # a hit lasts no longer than it has to
            yield change, after
