"""Write the songbook: every song of songs.toml as a standard MIDI file.

    python datasets/songbook/prepare.py OUT_DIR [--check]

A song is data: named drum patterns and lines, one character a cell, and a form that says which
track plays what in which section. The notation is explained at the top of songs.toml. The same
input gives the same bytes everywhere; ``--check`` compares what was written with SHA256SUMS.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import mido

HERE = Path(__file__).parent
DRUM_CHANNEL = 9  # MIDI channel 10, counted from 0
CELLS_PER_BEAT = (1, 2, 3, 4, 6, 8)
REST, HOLD = ".", "-"
DRUMS = {
    "kick": 36, "kick2": 35, "rim": 37, "snare": 38, "clap": 39, "snare2": 40, "hat": 42,
    "pedal": 44, "open": 46, "floor": 41, "low": 45, "mid": 47, "high": 50, "crash": 49,
    "crash2": 57, "china": 52, "splash": 55, "ride": 51, "bell": 53, "tambourine": 54,
    "cowbell": 56, "bongo": 60, "conga": 63, "tumba": 64, "timbale": 65, "agogo": 67,
    "cabasa": 69, "shaker": 70, "clave": 75, "block": 76,
}  # fmt: skip
DRUM_VELOCITIES = {"x": 92, "X": 112, "g": 46}
VELOCITIES = {"bass": 92, "chords": 70, "melody": 86}
PITCH_CLASSES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"": 0, "#": 1, "b": -1}
CHORDS = {
    "": (0, 4, 7), "m": (0, 3, 7), "5": (0, 7), "7": (0, 4, 7, 10), "m7": (0, 3, 7, 10),
    "maj7": (0, 4, 7, 11), "m7b5": (0, 3, 6, 10), "9": (0, 4, 7, 10, 14),
    "m9": (0, 3, 7, 10, 14),
}  # fmt: skip
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "harmonic": (0, 2, 3, 5, 7, 8, 11),
    "blues": (0, 3, 5, 6, 7, 10),
}


class Chord(NamedTuple):
    """A root (pitch class) and the intervals above it, in semitones."""

    root: int
    intervals: tuple[int, ...]


class Track(NamedTuple):
    """One instrument: what its patterns mean (``reads``), its program and its lowest pitch."""

    name: str
    reads: str
    program: int = 0
    low: int = 0


@dataclass(frozen=True)
class Section:
    """A stretch of the form; ``plays`` names the pattern of each track that is not silent."""

    name: str
    bars: int
    crash: bool
    fill: bool
    transpose_semitones: int
    chords: str
    plays: dict[str, str]


@dataclass(frozen=True)
class Song:
    """One song as songs.toml has it, its sheets parsed."""

    file: str
    style: str
    tempo_bpm: float
    key: str
    tracks: list[Track]
    sections: list[Section]
    chords: dict[str, list[list[Chord]]]
    lines: dict[str, str]
    drums: dict[str, dict[str, str]] = field(default_factory=dict)
    tempo_changes: tuple[tuple[float, float], ...] = ()
    meters: tuple[tuple[int, int, int], ...] = ((1, 4, 4),)
    ticks_per_beat: int = 480
    midi_format: int = 1
    humanise_ticks: int = 0
    swing: float = 0.5
    crash: str = "crash"
    words: str = ""

    @property
    def gap_ticks(self) -> int:
        """Silence between a note and the next one, so that no two notes of a pitch overlap."""
        return self.ticks_per_beat // 32 + 2 * self.humanise_ticks


class Cell(NamedTuple):
    """One character of a pattern in its place: bar counted in the section, position 0 to 1."""

    symbol: str
    start_ticks: int
    end_ticks: int
    bar: int
    position: float


class Note(NamedTuple):
    """A note, or one of a chord."""

    start_ticks: int
    end_ticks: int
    pitch: int
    velocity: int


class Event(NamedTuple):
    """A message at a tick; at one tick metas come first, then note ends, then note starts."""

    tick: int
    rank: int
    message: Any


# Reading songs.toml ------------------------------------------------------------------------


def pitch_class(name: str) -> int:
    """Pitch class of a note name such as ``"Bb"``."""
    return (PITCH_CLASSES[name[0]] + ACCIDENTALS[name[1:]]) % 12


def parse_chord(symbol: str) -> Chord:
    """Read a chord such as ``"F#m7"``."""
    match = re.fullmatch(r"([A-G][#b]?)(.*)", symbol)
    if match is None or match[2] not in CHORDS:
        raise ValueError(f"unknown chord {symbol!r}; qualities are {sorted(CHORDS)}")
    return Chord(pitch_class(match[1]), CHORDS[match[2]])


def parse_track(row: list[str]) -> Track:
    """Read a row of the tracks: name, reads, program, lowest pitch; drums have the first two."""
    return Track(row[0], row[1], *map(int, row[2:]))


def parse_section(columns: list[str], row: list[str]) -> Section:
    """Read a row of the form: name, bars with its marks, chords, then one pattern a track."""
    match = re.fullmatch(r"(\d+)(\*?)(!?)([+-]\d+)?", row[1])
    if match is None or len(row) != len(columns):
        raise ValueError(f"cannot read {' '.join(row)!r} under {' '.join(columns)!r}")
    patterns = zip(columns[3:], row[3:], strict=True)
    plays = {name: pattern for name, pattern in patterns if pattern != "-"}
    bars, crash, fill, transpose = match.groups()
    return Section(row[0], int(bars), bool(crash), bool(fill), int(transpose or 0), row[2], plays)


def parse_song(table: dict[str, Any]) -> Song:
    """Read a song from its table."""
    columns, *form = [line.split() for line in table.pop("form").strip().splitlines()]
    sheets = {
        "tracks": [parse_track(line.split()) for line in table["tracks"].strip().splitlines()],
        "sections": [parse_section(columns, row) for row in form],
        "chords": {
            name: [[parse_chord(symbol) for symbol in bar.split(",")] for bar in text.split()]
            for name, text in table["chords"].items()
        },
    }
    return Song(**table | sheets)


# From patterns to notes --------------------------------------------------------------------


def bar_lines_ticks(song: Song) -> list[int]:
    """Tick of every bar line, the final one included. A song that states no meter is in 4/4."""
    meters = {bar: (beats, unit) for bar, beats, unit in song.meters}
    lines, meter = [0], (4, 4)
    for bar in range(1, sum(section.bars for section in song.sections) + 1):
        meter = meters.get(bar, meter)
        lines.append(lines[-1] + song.ticks_per_beat * 4 * meter[0] // meter[1])
    return lines


def cells(song: Song, lines_ticks: list[int], texts: list[str]) -> Iterator[Cell]:
    """Place the characters of consecutive bars in time; every second sixteenth may swing."""
    for bar, text in enumerate(texts):
        start_ticks, end_ticks = lines_ticks[bar : bar + 2]
        per_beat = len(text) * song.ticks_per_beat / (end_ticks - start_ticks)
        if per_beat not in CELLS_PER_BEAT:
            raise ValueError(f"{len(text)} cells do not fill a bar: {text!r}")
        cell_ticks = (end_ticks - start_ticks) // len(text)
        late_ticks = round((2 * song.swing - 1) * cell_ticks) if per_beat == 4 else 0
        edges = [start_ticks + i * cell_ticks + i % 2 * late_ticks for i in range(len(text) + 1)]
        for i, symbol in enumerate(text):
            yield Cell(symbol, edges[i], edges[i + 1], bar, i / len(text))


def held(played: Iterator[Cell]) -> Iterator[Cell]:
    """Drop the rests and give each note the length of its holds."""
    note = None
    for cell in played:
        if cell.symbol == HOLD and note is not None:
            note = note._replace(end_ticks=cell.end_ticks)
            continue
        if note is not None:
            yield note
        note = None if cell.symbol in (REST, HOLD) else cell
    if note is not None:
        yield note


def fill_bars(text: str, bars: int) -> list[str]:
    """Repeat a pattern until it fills ``bars`` bars."""
    pattern = text.split()
    return [pattern[bar % len(pattern)] for bar in range(bars)]


def drum_lanes(song: Song, section: Section, track: Track) -> dict[str, list[str]]:
    """Lay out every drum; the first drum track also plays the fill and the opening crash."""
    pattern = song.drums[section.plays[track.name]]
    lanes = {drum: fill_bars(text, section.bars) for drum, text in pattern.items()}
    if track is not next(t for t in song.tracks if t.reads == "drums"):
        return lanes
    silent = [REST * len(text) for text in next(iter(lanes.values()))]
    if section.fill:
        for drum in lanes.keys() | song.drums["fill"].keys():
            last = song.drums["fill"].get(drum, silent[-1])
            lanes[drum] = [*lanes.get(drum, silent)[:-1], last]
    if section.crash:
        for drum in ("kick", song.crash):
            first, *rest = lanes.get(drum, silent)
            lanes[drum] = ["X" + first[1:], *rest]
    return lanes


def bass_pitch(symbol: str, chord: Chord, following: Chord, low: int) -> int:
    """Find a degree of the chord, or a note that leads to the chord that follows."""
    root, target = (low + (c.root - low) % 12 for c in (chord, following))
    third, fifth = chord.intervals[1], next(i for i in chord.intervals if i in (6, 7))
    seventh = next((i for i in chord.intervals if i in (10, 11)), 10)
    pitches = {
        "1": root, "3": root + third, "5": root + fifth, "6": root + 9, "7": root + seventh,
        "8": root + 12, "n": target, "a": target - 1 if target > low else target + 1,
        "b": target + 1,
    }  # fmt: skip
    return pitches[symbol]


def chord_pitches(symbol: str, chord: Chord, low: int) -> list[int]:
    """Voice the chord closely above ``low`` (``x``), or pick its n-th note from below."""
    pitches = sorted({low + (chord.root + interval - low) % 12 for interval in chord.intervals})
    if symbol == "x":
        return pitches
    octaves, index = divmod(int(symbol) - 1, len(pitches))
    return [pitches[index] + 12 * octaves]


def melody_pitch(symbol: str, key: str, low: int) -> int:
    """Find the scale step 0-9, a-z above the lowest tonic of the track."""
    tonic, mode = key.split()
    scale = SCALES[mode]
    octaves, step = divmod(int(symbol, 36), len(scale))
    return low + (pitch_class(tonic) - low) % 12 + 12 * octaves + scale[step]


def pitches_of(song: Song, section: Section, track: Track, cell: Cell) -> list[int]:
    """Find what a melodic track plays for one character, given the harmony under it."""
    bars = song.chords[section.chords]
    bar = bars[cell.bar % len(bars)]
    slot = int(cell.position * len(bar))
    following = [*bar, bars[(cell.bar + 1) % len(bars)][0]][slot + 1]
    if track.reads == "bass":
        pitches = [bass_pitch(cell.symbol, bar[slot], following, track.low)]
    elif track.reads == "chords":
        pitches = chord_pitches(cell.symbol, bar[slot], track.low)
    else:
        pitches = [melody_pitch(cell.symbol, song.key, track.low)]
    return [pitch + section.transpose_semitones for pitch in pitches]


def section_notes(
    song: Song, section: Section, track: Track, lines_ticks: list[int]
) -> Iterator[Note]:
    """Play one track in one section, which begins at the first of ``lines_ticks``."""
    if track.reads == "drums":
        for drum, texts in sorted(drum_lanes(song, section, track).items()):
            for cell in cells(song, lines_ticks, texts):
                if cell.symbol != REST:
                    end_ticks = cell.end_ticks - song.gap_ticks
                    velocity = DRUM_VELOCITIES[cell.symbol]
                    yield Note(cell.start_ticks, end_ticks, DRUMS[drum], velocity)
        return
    text = song.lines[section.plays[track.name].partition("@")[0]]
    for cell in held(cells(song, lines_ticks, fill_bars(text, section.bars))):
        velocity = VELOCITIES[track.reads] + (6 if cell.position % 0.5 == 0 else 0)
        for pitch in pitches_of(song, section, track, cell):
            yield Note(cell.start_ticks, cell.end_ticks - song.gap_ticks, pitch, velocity)


def humanised(notes: list[Note], spread_ticks: int, rng: random.Random) -> list[Note]:
    """Move notes by up to ``spread_ticks`` either way, and strike them a little unevenly."""
    moved = []
    for note in notes:
        shift_ticks = max(rng.randint(-spread_ticks, spread_ticks), -note.start_ticks)
        start_ticks, end_ticks = note.start_ticks + shift_ticks, note.end_ticks + shift_ticks
        velocity = note.velocity + rng.randint(-8, 8)
        moved.append(Note(start_ticks, end_ticks, note.pitch, velocity))
    return moved


# From notes to files -----------------------------------------------------------------------


def conductor_events(song: Song, lines_ticks: list[int]) -> list[Event]:
    """Title, licence, meters, tempi and section names."""
    title = Path(song.file).stem.replace("_", " ")
    metas = [
        (0, mido.MetaMessage("track_name", name=title)),
        (0, mido.MetaMessage("copyright", text="CC0 1.0, no rights reserved")),
        (0, mido.MetaMessage("text", text=song.style)),
    ]
    for bar, beats, unit in song.meters:
        meter = mido.MetaMessage("time_signature", numerator=beats, denominator=unit)
        metas.append((lines_ticks[bar - 1], meter))
    for place, tempo_bpm in ((1, song.tempo_bpm), *song.tempo_changes):
        bar, part = int(place) - 1, place % 1
        tick = lines_ticks[bar] + round(part * (lines_ticks[bar + 1] - lines_ticks[bar]))
        metas.append((tick, mido.MetaMessage("set_tempo", tempo=round(60e6 / tempo_bpm))))
    first_bar = 0
    for section in song.sections:
        metas.append((lines_ticks[first_bar], mido.MetaMessage("marker", text=section.name)))
        first_bar += section.bars
    return [Event(tick, 0, meta) for tick, meta in metas]


def track_events(
    song: Song, track: Track, channel: int, lines_ticks: list[int], rng: random.Random
) -> list[Event]:
    """Name, programs, notes and sung words of one track."""
    events = [Event(0, 0, mido.MetaMessage("track_name", name=track.name))]
    program = mido.Message("program_change", channel=channel, program=track.program)
    events.append(Event(0, 0, program))
    notes: list[Note] = []
    first_bar = 0
    for section in song.sections:
        if track.name in section.plays:
            notes += section_notes(song, section, track, lines_ticks[first_bar:])
            if change := section.plays[track.name].partition("@")[2]:
                program = program.copy(program=int(change))
                events.append(Event(lines_ticks[first_bar], 0, program))
        first_bar += section.bars
    if song.humanise_ticks:
        notes = humanised(notes, song.humanise_ticks, rng)
    for start_ticks, end_ticks, pitch, velocity in notes:
        voice = {"channel": channel, "note": pitch}
        events.append(Event(start_ticks, 2, mido.Message("note_on", velocity=velocity, **voice)))
        events.append(Event(end_ticks, 1, mido.Message("note_off", velocity=0, **voice)))
    if song.words and track.reads == "melody":
        for note, word in zip(notes, cycle(song.words.split()), strict=False):
            text = word[:-1] if word.endswith(HOLD) else word + " "
            events.append(Event(note.start_ticks, 0, mido.MetaMessage("lyrics", text=text)))
    return events


def midi_track(events: list[Event], end_ticks: int) -> mido.MidiTrack:
    """Events in order, each with its delta time, and the end of track on the final bar line."""
    track, now_ticks = mido.MidiTrack(), 0
    for event in sorted(events, key=lambda event: event[:2]):
        track.append(event.message.copy(time=event.tick - now_ticks))
        now_ticks = event.tick
    track.append(mido.MetaMessage("end_of_track", time=end_ticks - now_ticks))
    return track


def write_song(song: Song, folder: Path) -> Path:
    """Write one song and return its path."""
    lines_ticks, rng = bar_lines_ticks(song), random.Random(song.file)
    melodic_channels = (channel for channel in range(16) if channel != DRUM_CHANNEL)
    parts = [conductor_events(song, lines_ticks)]
    for track in song.tracks:
        channel = DRUM_CHANNEL if track.reads == "drums" else next(melodic_channels)
        parts.append(track_events(song, track, channel, lines_ticks, rng))
    if song.midi_format == 0:  # a single track, and its name is the title
        players = [event for part in parts[1:] for event in part]
        parts = [parts[0] + [e for e in players if e.message.type != "track_name"]]
    midi = mido.MidiFile(type=song.midi_format, ticks_per_beat=song.ticks_per_beat)
    midi.tracks.extend(midi_track(events, lines_ticks[-1]) for events in parts)
    path = folder / song.file
    midi.save(path)
    return path


def write_book(source: Path, folder: Path) -> list[Path]:
    """Write every song of a book and return the paths; an error says which song it is in."""
    paths = []
    for table in tomllib.loads(source.read_text(encoding="utf-8"))["song"]:
        try:
            paths.append(write_song(parse_song(table), folder))
        except (KeyError, TypeError, ValueError) as error:
            raise SystemExit(f"{source.name}: {table['file']}: {error!r}") from error
    return paths


# Command line ------------------------------------------------------------------------------


def mismatches(paths: list[Path], sums: Path) -> list[str]:
    """One line for each file whose SHA-256 is not the listed one, or that only one side has."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    lines = sums.read_text(encoding="utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split() for line in lines)}
    return [
        f"{name}: expected {listed.get(name, 'no such file')}, got {found.get(name, 'none')}"
        for name in sorted(found.keys() | listed.keys())
        if found.get(name) != listed.get(name)
    ]


def main() -> int:
    """Write the songs; with ``--check`` also compare them with SHA256SUMS."""
    parser = argparse.ArgumentParser(description="Write the songbook as MIDI files.")
    parser.add_argument("out_dir", type=Path, help="folder to write to, made where missing")
    parser.add_argument("--check", action="store_true", help="compare with SHA256SUMS; 1 if not")
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    paths = write_book(HERE / "songs.toml", args.out_dir)
    wrong = mismatches(paths, HERE / "SHA256SUMS") if args.check else []
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{len(paths)} songs in {args.out_dir}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
