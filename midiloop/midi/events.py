"""The events of a MIDI track as arrays, most of them read many at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, BEND = 0x80, 0x90, 0xB0, 0xC0, 0xE0
META, SYSEX, SYSEX_GOES_ON = 0xFF, 0xF0, 0xF7
TRACK_NAME, PORT = 0x03, 0x21
SYSTEM_DATA_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}
END_OF_TRACK = b"\x00\xff\x2f\x00"  # at the time of the event before it


class Events:
    """The events of a track, up to its end-of-track event or to where it is cut off, as arrays.

    Attributes:
        track: the bytes.
        ticks: int64.
        statuses: int64, running status resolved.
        first, second: int64, data bytes from 0 to 127; of a meta event ``first`` is its type.
        end_tick: where the track ends.
    """

    def __init__(self, track: bytes) -> None:
        padded = np.frombuffer(track + bytes(8), np.uint8)
        starts, ends = _times(track, padded)
        here = ends + 1
        self.track = track
        self.ticks = np.cumsum(_quantities(padded, starts, ends))
        stated = padded[here]
        explicit = stated >= 0x80
        sets = explicit & (stated < SYSEX)
        since = np.maximum.accumulate(np.where(sets, np.arange(len(here)), 0))
        running = stated[since] if len(here) else stated
        self.statuses = np.where(explicit, stated, running).astype(np.int64)
        self.bodies = here + explicit
        self.first = np.minimum(padded[self.bodies], 127).astype(np.int64)
        self.second = np.minimum(padded[self.bodies + 1], 127).astype(np.int64)
        self.end_tick = int(self.ticks[-1]) if len(self.ticks) else 0

    @property
    def kinds(self) -> NDArray[np.int64]:
        """High half of each status byte; all of it for events without a channel."""
        return np.where(self.statuses < SYSEX, self.statuses & 0xF0, self.statuses)

    def metas(self, kind: int) -> NDArray[np.int64]:
        """Indices of the meta events of a type."""
        return np.flatnonzero((self.statuses == META) & (self.first == kind))

    def text(self, index: int) -> bytes:
        """The data of a SysEx or meta event."""
        at = int(self.bodies[index]) + (self.statuses[index] == META)
        length, at = _quantity(self.track, at)
        return self.track[at : at + length]

    def ports(self) -> NDArray[np.int64]:
        """The port of each event."""
        ports = np.zeros(len(self.ticks), np.int64)
        for index in self.metas(PORT).tolist():
            ports[index:] = (self.text(index) or b"\0")[0]
        return ports


def _times(track: bytes, padded: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last byte of each event's delta time.

    Most events have two data bytes. Only data and the last byte of a delta time are below 128, so
    in a run of such events every third of these bytes ends a delta time. All other events are read
    one by one.
    """
    lows = np.flatnonzero(padded < 0x80)
    plain = _plain(padded, lows, len(track))
    runs: list[tuple[int, int, int]] = []  # where it starts; of ``lows``, its first; its events
    at, low, more, running = 0, 0, 2, False  # data bytes that follow the running status
    while at < len(track):
        end = int(lows[low])
        if end + 1 >= len(track):
            break
        if track[end + 1] >= 0x80 or (running and more == 2):
            n_events = plain[low % 3].index(False, low // 3) - low // 3
            if n_events:
                runs.append((at, low, n_events))
                low, more, running = low + 3 * n_events, 2, True
                at = int(lows[low - 1]) + 1
                continue
        start, (at, more, running) = at, _next(track, end + 1, more, running)
        if not start < at <= len(track):
            break  # the track is cut off
        runs.append((start, low, 1))
        if track[end + 1 : end + 3] == END_OF_TRACK[1:3]:
            break
        low = int(np.searchsorted(lows, at))
    run_starts, firsts, counts = np.array(runs, np.int64).reshape(-1, 3).T
    begins = np.cumsum(counts) - counts
    which = np.repeat(firsts - 3 * begins, counts) + 3 * np.arange(counts.sum())
    starts = lows[which - 1] + 1
    starts[begins] = run_starts
    return starts, lows[which]


def _plain(padded: NDArray[np.uint8], lows: NDArray[np.int64], size: int) -> list[bytes]:
    """For each third of ``lows``: whether a whole event with two data bytes follows each byte."""
    status, gaps = padded[lows[:-2] + 1], np.diff(lows)
    plain = (gaps[:-1] == 1) | ((gaps[:-1] == 2) & (status < SYSEX) & (status & 0xE0 != PROGRAM))
    plain &= (gaps[1:] == 1) & (lows[2:] < size)
    return [plain[third::3].tobytes() for third in range(3)]


def _next(track: bytes, here: int, more: int, running: bool) -> tuple[int, int, bool]:
    """Where the event ends whose delta time ends before ``here``, and the running status after it.

    An end that is not beyond ``here`` means that the event is cut off or invalid.
    """
    status = track[here]
    if status < 0x80:
        return (here + more if running else 0), more, running
    if status < SYSEX:
        more = 1 if status & 0xE0 == PROGRAM else 2
        return here + 1 + more, more, True
    if status not in (META, SYSEX, SYSEX_GOES_ON):
        return here + 1 + SYSTEM_DATA_BYTES.get(status, 0), more, running
    try:
        length, begin = _quantity(track, here + 1 + (status == META))
    except IndexError:
        return 0, more, running
    return begin + length, more, running


def _quantities(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Variable-length quantities, of which the last four bytes count."""
    values = data[ends].astype(np.int64)
    for back in range(1, 4):
        longer = np.flatnonzero(ends - starts >= back)
        if not len(longer):
            break
        values[longer] += (data[ends[longer] - back] & 0x7F).astype(np.int64) << 7 * back
    return values


def _quantity(track: bytes, at: int) -> tuple[int, int]:
    """A variable-length quantity, and where it ends."""
    value = 0
    while True:
        byte = track[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at


def end_ticks(tracks: Iterable[bytes]) -> int:
    """Tick at which the last of all tracks ends."""
    return max((Events(track).end_tick for track in tracks), default=0)
