"""Read and write MIDI files: bytes to `Score` and back.

Every guard against bad files lives here. `read` returns a score whose ticks, tempi and meters can
be trusted, or raises `MidiError` with one of `REASONS`; it never allocates more than the caps below
allow. Files that are damaged in a way that loses no music are repaired: a RIFF wrapper, junk before
the header or after the last track, a long header, a missing end of the last end-of-track event, and
data bytes above 127 (clamped).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.common import files
from midiloop.errors import LoopError, MidiError, counted
from midiloop.midi import channels
from midiloop.midi.channels import DRUM_CHANNEL
from midiloop.midi.events import END_OF_TRACK, SYSEX, Events, end_ticks
from midiloop.midi.key import Key, confident

if TYPE_CHECKING:
    from symusic.core import ScoreTick, TrackTick, TrackTickList

REASONS = {
    "not_midi": "no MIDI header in the file",
    "truncated": "the file ends before its last track does",
    "bad_header": "the header is not one of a standard MIDI file",
    "smpte_division": "time is counted in SMPTE frames, not in beats",
    "bad_division": "no ticks in a quarter note",
    "format_2": "several patterns that no common time joins; each belongs into a file of its own",
    "bad_event": "an event that no MIDI file may hold",
    "bad_meter": "a time signature whose denominator is not a power of two from 1 to 128",
    "bad_tempo": "a tempo of zero microseconds a quarter note",
    "tick_out_of_range": "a time beyond 2^31 ticks",
    "too_large": "more bytes than a song has",
    "too_many_tracks": "more tracks than a song has",
    "too_many_notes": "more notes than a song has",
    "too_long": "more bars than a song has",
    "no_notes": "no notes at all",
}

# The caps keep a worker's memory under 250 MB whatever the file. The largest values in 6,899 real
# files from the web are 1.9 MB, 256 tracks, 150,733 notes and 1,230 bars.
MAX_FILE_BYTES = 4 << 20
MAX_TRACKS = 16_000
MAX_NOTES = 250_000
MAX_BARS = 5_000

DEFAULT_BPM = 120.0
MICROSECONDS_PER_MINUTE = 60_000_000
TEMPO_DECIMALS = 4
REMARKS = (0x01, 0x02, 0x05, 0x06, 0x07, 0x59)  # text, copyright, lyric, marker, cue, key
NO_CONTROLS, NO_BENDS = np.zeros((0, 3), np.int32), np.zeros((0, 2), np.int32)

Event = tuple[int, bytes]  # its tick, and its bytes with their status byte


class Tempo(NamedTuple):
    """A tempo from ``tick`` on."""

    tick: int
    bpm: float


class Meter(NamedTuple):
    """A time signature from ``tick`` on."""

    tick: int
    numerator: int
    denominator: int


class Player(NamedTuple):
    """What plays a track: a program, or a drum kit, and the track's name."""

    program: int
    is_drum: bool
    name: str = ""


class Track(NamedTuple):
    """The notes of one instrument, as four arrays of one length, in order of onset.

    Attributes:
        name: track name, may be empty.
        program: General MIDI program, 0 to 127; meaningless for drums.
        is_drum: whether the notes are on channel 10.
        onsets, durations: int32 ticks, not negative.
        pitches, velocities: int8, 0 to 127.
        controls: int32 (n, 3), rows of tick, controller and value, in order of tick.
        bends: int32 (n, 2), rows of tick and pitch bend from -8192 to 8191.
    """

    name: str
    program: int
    is_drum: bool
    onsets: NDArray[np.int32]
    durations: NDArray[np.int32]
    pitches: NDArray[np.int8]
    velocities: NDArray[np.int8]
    controls: NDArray[np.int32] = NO_CONTROLS
    bends: NDArray[np.int32] = NO_BENDS

    @property
    def player(self) -> Player:
        """What plays it."""
        return Player(self.program, self.is_drum, self.name)

    @property
    def n_notes(self) -> int:
        """Notes in the track."""
        return len(self.onsets)

    @property
    def ends(self) -> NDArray[np.int32]:
        """Tick at which each note ends."""
        return self.onsets + self.durations


@dataclass(frozen=True, eq=False)
class Score:
    """A song: tracks of notes, tempi and meters, all in ticks.

    Attributes:
        ticks_per_quarter: ticks in a quarter note, 1 to 32,767.
        tracks: one for each instrument that has a note.
        tempos, meters: in order of tick; empty where the file states none.
        length_ticks: where the song ends, never before its last note does. A file that was read
            ends with its last note, since parsers do not tell where its end of track stands.
        key: estimated from its bass, see `pianoroll.bass_key`. What a file states is not read: many
            programs write C major into every file.
    """

    ticks_per_quarter: int
    tracks: tuple[Track, ...]
    tempos: tuple[Tempo, ...]
    meters: tuple[Meter, ...]
    length_ticks: int
    key: Key | None = None

    def cut(self) -> Score:
        """The same score with notes cut at its end; those of a loop may last into the next pass."""
        tracks = [
            track._replace(durations=np.minimum(track.durations, self.length_ticks - track.onsets))
            for track in self.tracks
        ]
        return replace(self, tracks=tuple(tracks))

    @property
    def n_notes(self) -> int:
        """Notes in all tracks."""
        return sum(track.n_notes for track in self.tracks)

    def tempo_bpm_at(self, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Tempo in force at each of ``ticks``, in quarter notes a minute; 120 before the first."""
        tempos = [Tempo(-1, DEFAULT_BPM), *self.tempos]
        index = np.searchsorted([t.tick for t in tempos], ticks, side="right") - 1
        return np.array([t.bpm for t in tempos])[index]


def read(source: Path | str | bytes) -> Score:
    """Read a standard MIDI file from a path or from its bytes.

    >>> import midiloop, numpy as np
    >>> midiloop.write(midiloop.decode(np.eye(16, 93, dtype=bool), 97.5), "loop.mid")
    >>> song = midiloop.read("loop.mid")
    >>> song.n_notes, song.tempos[0].bpm
    (16, 97.5)

    Raises:
        MidiError: the file holds no usable score; ``reason`` is one of `REASONS`.
        OSError: the path cannot be read.
    """
    return parse(source).merged().score()


def parse(source: Path | str | bytes) -> Parsed:
    """Parse a file without extracting its notes; `Parsed.score` gives what `read` gives.

    Raises:
        MidiError: as `read`, except for errors that only notes show.
        OSError: the path cannot be read.
    """
    if not isinstance(source, bytes):
        size = Path(source).stat().st_size
        data = b"" if size > MAX_FILE_BYTES else Path(source).read_bytes()
    else:
        data, size = source, len(source)
    if size > MAX_FILE_BYTES:
        raise MidiError("too_large", f"{size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
    data = _unwrap(data)
    tracks = list(_track_chunks(data))
    if data[9] == 2 and len(tracks) > 1:
        raise MidiError("format_2", f"{len(tracks)} patterns; save each as a file of its own")
    parsed = _parse(tracks, data)
    n_notes = parsed.note_num()
    if n_notes > MAX_NOTES:
        raise MidiError("too_many_notes", f"{n_notes:,} notes; at most {MAX_NOTES:,} are read")
    if n_notes == 0:
        raise MidiError("no_notes", "the file holds no complete note")
    return Parsed(parsed, _meters(parsed), tracks)


def end_of_tracks_quarters(source: Path | str | bytes) -> float:
    """Where the last track of a MIDI file ends, in quarter notes; 0 where it is unknown.

    A score that was read ends with its last note, but a loop that ends in silence is longer.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        data = _unwrap(data)
        ticks = end_ticks(_track_chunks(data))
    except MidiError:
        return 0.0
    return ticks / int.from_bytes(data[12:14], "big")


def remarks(source: Path | str | bytes) -> list[Event]:
    """What a file holds that no note plays: texts, lyrics, markers, keys, and SysEx, of all tracks.

    Raises:
        MidiError: it is no MIDI file.
        OSError: the path cannot be read.
    """
    data = _unwrap(source if isinstance(source, bytes) else Path(source).read_bytes())
    found: list[Event] = []
    for events in map(Events, _track_chunks(data)):
        for kind in REMARKS:
            found += [
                (int(events.ticks[at]), _meta(kind, events.text(at)))
                for at in events.metas(kind).tolist()
            ]
        for at in np.flatnonzero(events.statuses == SYSEX).tolist():
            body = events.text(at)
            found.append((int(events.ticks[at]), bytes((SYSEX,)) + _variable(len(body)) + body))
    return _in_order(found)


class Parsed(NamedTuple):
    """A parsed file, its notes not yet extracted.

    Attributes:
        file: what the parser found.
        meters: in order of tick.
        tracks: events of each, in bytes.
    """

    file: ScoreTick
    meters: tuple[Meter, ...]
    tracks: list[bytes]

    def merged(self, wanted: range = range(128)) -> Parsed:
        """The same file with each note on the instrument that plays it, and with an end.

        The parser looks at each track by itself, which is right for nine files of ten.

        Args:
            wanted: programs that matter, besides drums.
        """
        late = self.file.end() >= channels.LATE_TICKS
        if late or channels.shared(self.tracks, wanted):
            self.file.tracks = _merged(self.tracks, self.file.ticks_per_quarter)
        return self

    def instruments(self) -> set[Player]:
        """The players of all tracks that have a note."""
        return {
            Player(track.program, track.is_drum, track.name)
            for track in self.file.tracks
            if len(track.notes)
        }

    def score(self, keep: Callable[[Player], bool] = lambda _: True) -> Score:
        """The song as a `Score`.

        Args:
            keep: whether to keep the tracks of a player. Length and checks take in all notes.

        Raises:
            MidiError: its ticks or its tempi are impossible.
        """
        from symusic.core import NoteTickList

        tracks, rest = [], NoteTickList()
        for track in self.file.tracks:
            if not keep(Player(track.program, track.is_drum, track.name)):
                rest.extend(track.notes)  # one array of all is quicker to make than many
            elif track.notes:
                tracks.append(_track(track))
        others = rest.numpy()
        onsets = np.concatenate([*(track.onsets for track in tracks), others["time"]])
        durations = np.concatenate([*(track.durations for track in tracks), others["duration"]])
        ends = onsets + durations
        # Ticks are 32-bit in the parser: what runs over comes back negative.
        if onsets.min() < 0 or (ends < onsets).any():
            raise MidiError("tick_out_of_range", "notes later than 2^31 ticks")
        tpq, length_ticks = self.file.ticks_per_quarter, int(ends.max())
        if length_ticks > MAX_BARS * 4 * tpq:
            raise MidiError("too_long", f"{length_ticks // (4 * tpq):,} bars; at most {MAX_BARS:,}")
        return Score(tpq, tuple(tracks), _tempos(self.file), self.meters, length_ticks)


def _unwrap(data: bytes) -> bytes:
    """The standard MIDI file inside ``data``: what follows its first ``MThd``, header checked."""
    start = 0 if data.startswith(b"MThd") else data.find(b"MThd")
    if start < 0:
        raise MidiError("not_midi", _what_it_looks_like(data))
    data = data[start:]
    if len(data) < 14:
        raise MidiError("truncated", f"the header ends after {len(data)} of 14 bytes")
    length, kind, _, division = struct.unpack(">IHHH", data[4:14])
    if length < 6 or length > len(data) or kind > 2:
        raise MidiError("bad_header", f"header of {counted(length, 'byte')}, format {kind}")
    if division & 0x8000:
        raise MidiError("smpte_division", f"{256 - (division >> 8)} frames a second")
    if division == 0:
        raise MidiError("bad_division", "0 ticks a quarter note")
    return data


def _what_it_looks_like(data: bytes) -> str:
    if not data:
        return "the file is empty"
    if data.lstrip()[:1] == b"<":
        return "this is a web page"
    return f"no MThd in {counted(len(data), 'byte')}; they begin with {data[:4]!r}"


def _parse(tracks: list[bytes], data: bytes) -> ScoreTick:
    from symusic.core import ScoreTick  # slow to import, and only needed to read

    # The parser needs about 5 kB for each track, and makes a track of every channel and program
    # that plays a note: 11 bytes of file. A bound on them, before it is too late.
    if len(data) > MAX_TRACKS * 6:
        seen = np.frombuffer(data, np.uint8)
        programs = np.count_nonzero(((seen[:-1] & 0xF0) == 0xC0) & (seen[1:] < 0x80))
        if programs + 16 * data.count(b"MTrk") > MAX_TRACKS:
            raise MidiError(
                "too_many_tracks", f"up to {programs:,}; at most {MAX_TRACKS:,} are read"
            )
    whole = _file_of([channels.closed(track) for track in tracks], data)
    try:
        return ScoreTick.from_midi(whole)
    except RuntimeError:
        pass
    try:
        return ScoreTick.from_midi(whole, sanitize_data=True)
    except RuntimeError as error:
        raise MidiError("bad_event", _damaged_track(tracks, data)) from error


def _merged(tracks: list[bytes], ticks_per_quarter: int) -> TrackTickList:
    """A track for each instrument, of files whose tracks depend on one another."""
    from symusic.core import (
        ControlChangeTickList,
        NoteTickList,
        PitchBendTickList,
        TrackTick,
        TrackTickList,
    )

    found, players = TrackTickList(), channels.instruments(tracks, ticks_per_quarter)
    n_notes = sum(len(player.notes) for player in players)
    if n_notes > MAX_NOTES:
        raise MidiError("too_many_notes", f"{n_notes:,} notes; at most {MAX_NOTES:,} are read")
    for played in players:
        if played.notes.max() >= 1 << 31:
            raise MidiError("tick_out_of_range", "notes later than 2^31 ticks")
        onsets, ends, pitches, velocities = played.notes.T
        track = TrackTick(played.name, played.program, played.is_drum)
        track.notes = NoteTickList.from_numpy(
            onsets.astype(np.int32),
            (ends - onsets).astype(np.int32),
            pitches.astype(np.int8),
            velocities.astype(np.int8),
        )
        if len(played.controls):
            times, numbers, values = played.controls.T
            track.controls = ControlChangeTickList.from_numpy(
                times.astype(np.int32), numbers.astype(np.uint8), values.astype(np.uint8)
            )
        if len(played.bends):
            times, values = played.bends.T
            track.pitch_bends = PitchBendTickList.from_numpy(
                times.astype(np.int32), values.astype(np.int32)
            )
        found.append(track)
    return found


def _file_of(tracks: list[bytes], data: bytes) -> bytes:
    """A file with a plain header and these tracks; format and division are those of ``data``."""
    header = struct.pack(">4sI2sH2s", b"MThd", 6, data[8:10], len(tracks) & 0xFFFF, data[12:14])
    chunks = (b"MTrk" + struct.pack(">I", len(track)) + track for track in tracks)
    return header + b"".join(chunks)


def _damaged_track(tracks: list[bytes], data: bytes) -> str:
    from symusic.core import ScoreTick

    # The parser's own message depends on memory behind the file, into which it looks.
    for number, track in enumerate(tracks, 1):
        try:
            ScoreTick.from_midi(_file_of([track], data), sanitize_data=True)
        except RuntimeError:
            return f"an event in track {number} of {len(tracks)} is damaged or cut off"
    return "an event is damaged or cut off"


def _track_chunks(data: bytes) -> Iterator[bytes]:
    """All whole tracks; an end-of-track event that is cut off in the last one is completed.

    Raises:
        MidiError: a track lacks more than its end-of-track event, so music would be lost.
    """
    at = 8 + int.from_bytes(data[4:8], "big")
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "big")
        chunk = data[at + 8 : at + 8 + length]
        missing = length - len(chunk)
        if name != b"MTrk":
            if missing or not name.isalpha():
                return  # junk after the last track
        elif missing == 0:
            yield chunk
        elif missing <= 4 and (chunk + END_OF_TRACK[4 - missing :]).endswith(END_OF_TRACK[1:]):
            yield chunk + END_OF_TRACK[4 - missing :]
        else:
            raise MidiError("truncated", f"the last track lacks {missing:,} of {length:,} bytes")
        at += 8 + length


def _track(track: TrackTick) -> Track:
    notes = track.notes.numpy()
    return Track(
        track.name,
        track.program,
        track.is_drum,
        notes["time"],
        notes["duration"],
        notes["pitch"],
        notes["velocity"],
        _rows(track.controls, "time", "number", "value") if track.controls else NO_CONTROLS,
        _rows(track.pitch_bends, "time", "value") if track.pitch_bends else NO_BENDS,
    )


def _rows(events: Any, *fields: str) -> NDArray[np.int32]:
    found = events.numpy()
    rows = np.stack([found[field] for field in fields], axis=1).astype(np.int32)
    return rows[np.argsort(rows[:, 0], kind="stable")]


def _tempos(parsed: ScoreTick) -> tuple[Tempo, ...]:
    found = parsed.tempos.numpy()
    microseconds = found["mspq"].tolist()
    if 0 in microseconds:
        raise MidiError("bad_tempo", "0 microseconds a quarter note")
    changes = zip(found["time"].tolist(), microseconds, strict=True)
    return tuple(_in_order([Tempo(tick, typed_bpm(us)) for tick, us in changes]))


@lru_cache(maxsize=4096)
def typed_bpm(microseconds: int) -> float:
    """The tempo as it was typed: the shortest decimal with these microseconds a quarter note."""
    exact = MICROSECONDS_PER_MINUTE / microseconds
    for places in range(TEMPO_DECIMALS + 1):
        short = round(exact, places)
        if short > 0 and round(MICROSECONDS_PER_MINUTE / short) == microseconds:
            return short
    return exact


def _meters(parsed: ScoreTick) -> tuple[Meter, ...]:
    meters = [Meter(m.time, m.numerator, m.denominator) for m in parsed.time_signatures]
    for meter in meters:
        if meter.denominator not in (1, 2, 4, 8, 16, 32, 64, 128) or meter.numerator == 0:
            raise MidiError("bad_meter", f"{meter.numerator}/{meter.denominator}")
    return tuple(_in_order(meters))


def _in_order(changes: list[Any]) -> list[Any]:
    """Changes by tick; those at one tick stay in file order, so that the last one counts."""
    return sorted(changes, key=itemgetter(0)) if len(changes) > 1 else changes


def write(score: Score, path: Path | str) -> None:
    """Write a format-1 MIDI file: a conductor track, then one track for each instrument.

    Tempo, meter, a confident key and track name stand at tick 0, drums are on channel 10, and every
    track ends exactly at ``score.length_ticks``: importers take the length of a clip from there.

    >>> import midiloop, numpy as np
    >>> midiloop.write(midiloop.decode(np.eye(16, 93, dtype=bool)), "loop.mid")
    """
    files.write(Path(path), to_bytes(score))


def to_bytes(score: Score, others: Iterable[Event] = ()) -> bytes:
    """The bytes that `write` writes.

    Args:
        others: more events for the conductor track, such as `remarks`; those after the end of the
            score are left out.

    Raises:
        ValueError: the score holds what no MIDI file can.
    """
    parts = zip(score.tracks, channels_of(score.tracks), strict=True)
    within = [event for event in others if event[0] <= score.length_ticks]
    chunks = [
        _chunk([*_conductor(score), *within], score.length_ticks),
        *(_chunk(_events(track, channel), score.length_ticks) for track, channel in parts),
    ]
    header = struct.pack(">4sIhhh", b"MThd", 6, 1, len(chunks), score.ticks_per_quarter)
    return header + b"".join(chunks)


def channels_of(tracks: Sequence[Track]) -> list[int]:
    """A channel for each track: 9 for drums, else one a track, or one a program if too few.

    Raises:
        LoopError: the tracks have more than 15 programs.
    """
    free = [channel for channel in range(16) if channel != DRUM_CHANNEL]
    melodic = [track.program for track in tracks if not track.is_drum]
    keys = list(range(len(melodic))) if len(melodic) <= len(free) else melodic
    own = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(own) > len(free):
        raise LoopError(
            f"{len(own)} programs, and a MIDI file has channels for {len(free)}; "
            "leave some instruments out"
        )
    assigned = iter(keys)
    return [DRUM_CHANNEL if t.is_drum else free[own[next(assigned)]] for t in tracks]


def _conductor(score: Score) -> Iterator[Event]:
    for tempo in score.tempos:
        microseconds = _within(round(MICROSECONDS_PER_MINUTE / tempo.bpm), 0, 0xFFFFFF, "tempo")
        yield tempo.tick, _meta(0x51, microseconds.to_bytes(3, "big"))
    for tick, numerator, denominator in score.meters:
        power = denominator.bit_length() - 1
        if denominator != 1 << max(power, 0):
            raise ValueError(f"no MIDI file can state a meter of {numerator}/{denominator}")
        beats = _within(numerator, 0, 255, "beats of a bar")
        # 24 clocks a click and 8 thirty-seconds a quarter note are what everyone writes.
        yield tick, _meta(0x58, bytes((beats, power, 24, 8)))
    if key := confident(score.key):
        yield 0, _meta(0x59, bytes((key.sharps & 0xFF, key.mode == "minor")))


def _events(track: Track, channel: int) -> Iterator[Event]:
    """The events of a track, in a valid order within each tick."""
    for values in (track.controls[:, 1:], track.pitches, track.velocities):
        _within(values, 0, 127, "control, pitch or velocity")
    _within(track.bends[:, 1], -8192, 8191, "pitch bend")
    yield 0, _meta(0x03, track.name.encode())
    yield 0, bytes((0xC0 | channel, _within(track.program, 0, 127, "program")))
    for tick, number, value in track.controls.tolist():
        yield tick, bytes((0xB0 | channel, number, value))
    for tick, bend in track.bends.tolist():
        yield tick, bytes((0xE0 | channel, bend + 8192 & 0x7F, bend + 8192 >> 7))
    ons: list[Event] = []
    offs: list[Event] = []
    notes = (track.onsets, track.ends, track.pitches, track.velocities)
    on, off = 0x90 | channel, 0x80 | channel
    for onset, end, pitch, velocity in zip(*(array.tolist() for array in notes), strict=True):
        ons.append((onset, bytes((on, pitch, velocity))))
        # A note of no length has to end after it began, every other one before the next begins.
        (ons if end == onset else offs).append((end, bytes((off, pitch, 0))))
    yield from offs
    yield from ons


def _within(value: Any, low: int, high: int, what: str) -> Any:
    """The number or numbers, once none is out of range."""
    if np.size(value) and not (low <= np.min(value) and np.max(value) <= high):
        raise ValueError(f"{what} not from {low} to {high}, which no MIDI file can state")
    return value


def _meta(kind: int, data: bytes) -> bytes:
    return bytes((0xFF, kind)) + _variable(len(data)) + data


def _chunk(events: Iterable[Event], length_ticks: int) -> bytes:
    """A track chunk of events, with running status, that ends at ``length_ticks``."""
    data, now, running = bytearray(), 0, 0
    for tick, event in sorted(events, key=itemgetter(0)):
        data += _variable(tick - now)
        now, status = tick, event[0]
        data += event[1:] if status == running else event
        running = status if status < 0xF0 else 0
    data += _variable(max(0, length_ticks - now)) + END_OF_TRACK[1:]
    return b"MTrk" + struct.pack(">I", len(data)) + data


@lru_cache(maxsize=4096)
def _variable(value: int) -> bytes:
    """A variable-length quantity: seven bits a byte, the high bit set in all but the last."""
    if value < 0:
        raise ValueError(f"an event at a tick below 0: {value}")
    found = [value & 0x7F]
    while value := value >> 7:
        found.append(value & 0x7F | 0x80)
    return bytes(reversed(found))
