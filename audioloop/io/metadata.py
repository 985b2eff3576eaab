"""Metadata of an audio file: header, tags and name, with the samples they describe.

It reads loops of any origin. Header, tags and name are trusted in this order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from audioloop.io import label, riff, wave
from audioloop.io.riff import Acid, Finding, Loop
from audioloop.io.wave import Wave
from midiloop.common import files
from midiloop.errors import LoopError

MAX_BPM = 10_000.0  # a larger number is not a tempo
POINTS = ("LOOPSTART", "LOOPLENGTH", "LOOPEND")
TAGS = ("BPM", "METER", *POINTS)
SHOWN_CUES = 3
_METER = re.compile(r"([0-9]{1,3})/([0-9]{1,3})")


class TempoTag(NamedTuple):
    """A tempo and its source.

    Attributes:
        source: as in "name" or "BPM tag".
        bpm: quarter notes a minute.
        within_bpm: half a unit of its last digit.
    """

    source: str
    bpm: float
    within_bpm: float

    def __str__(self) -> str:
        return f"{label.decimal(self.bpm)} bpm ({self.source})"

    def agrees(self, other: TempoTag) -> bool:
        """Whether the less exact one can be the other one, rounded."""
        return abs(self.bpm - other.bpm) <= max(self.within_bpm, other.within_bpm) + 1e-6


@dataclass(frozen=True, eq=False)
class Metadata:
    """Samples and metadata of a file.

    Attributes:
        path: the file.
        wave: all of its samples.
        subtype: libsndfile's name of the sample format.
        acids: contents of ``acid`` chunks, in their order.
        loops: of ``smpl`` chunks.
        cues: positions of ``cue`` points, in samples.
        damage: faults in the header's sizes and chunks.
        tags: those of `TAGS` that a FLAC or OGG file has.
        tempi: all tempi found, the most trusted first.
        beats: quarter notes; None if the number is not known.
    """

    path: Path
    wave: Wave
    subtype: str
    acids: tuple[Acid, ...]
    loops: tuple[Loop, ...]
    cues: tuple[int, ...]
    damage: tuple[Finding, ...]
    tags: dict[str, str]
    tempi: tuple[TempoTag, ...]
    beats: int | None

    @property
    def tempo_bpm(self) -> float | None:
        """Quarter notes a minute."""
        return self.tempi[0].bpm if self.tempi else None

    @property
    def meter(self) -> tuple[int, int]:
        """Numerator and denominator; 4/4 by default."""
        tagged = _METER.fullmatch(self.tags.get("METER", ""))
        meters = [acid.meter for acid in self.acids]
        meters += [(int(tagged[1]), int(tagged[2]))] if tagged else []
        return next(filter(_is_meter, meters), (4, 4))

    @property
    def bars(self) -> int | None:
        """Whole bars; None if the number is not known."""
        if self.beats is None:
            return None
        bars = self.beats / Fraction(4 * self.meter[0], self.meter[1])
        return int(bars) if bars.denominator == 1 else None

    @property
    def tagged(self) -> Loop | None:
        """The loop by the tags LOOPSTART, and LOOPLENGTH or LOOPEND; None without them.

        A start alone means a loop to the end of the file. An end is the sample after the last.
        """
        start = whole(self.tags.get("LOOPSTART", "0"))
        if start is None or not any(key in self.tags for key in POINTS):
            return None
        length = whole(self.tags.get("LOOPLENGTH", ""))
        end = whole(self.tags.get("LOOPEND", ""))
        if length is not None:
            return Loop(start, start + length)
        if end is not None:
            return Loop(start, end)
        return Loop(start, len(self.wave)) if "LOOPSTART" in self.tags else None

    @property
    def extent(self) -> Loop:
        """The part that repeats: by the header's loop points, else by tags, else all.

        Points beyond the end are moved to the end; if that leaves nothing, they are ignored.
        """
        everything = Loop(0, len(self.wave))
        points = self.loops[0] if self.loops else self.tagged
        if points is None:
            return everything
        start, end = points.start, min(points.end, everything.end)
        return Loop(start, end) if end - start > 1 else everything

    @property
    def whole(self) -> bool:
        """Whether all of the file repeats."""
        return self.extent == Loop(0, len(self.wave))

    @property
    def notes(self) -> list[str]:
        """Remarks on loop and cue points, unless all of the file repeats."""
        notes = []
        if not self.whole:
            start, end, _ = self.extent
            notes.append(f"the loop is samples {start:,}–{end:,} of {len(self.wave):,}")
        if len(self.loops) > 1:
            notes.append(f"{len(self.loops):,} loops in its header, of which the first counts")
        if self.cues and not self.loops:
            places = ", ".join(f"{cue:,}" for cue in self.cues[:SHOWN_CUES])
            more = ", …" if len(self.cues) > SHOWN_CUES else ""
            noun = "cue points at samples" if len(self.cues) > 1 else "a cue point at sample"
            notes.append(f"{noun} {places}{more}, and no loop in its header")
        return notes

    @property
    def remarks(self) -> list[str]:
        """The notes, and faults of the header."""
        return [*self.notes, *map(str, self.damage)]

    @property
    def repeats(self) -> Wave:
        """Samples of the extent."""
        start, end, _ = self.extent
        return Wave(self.wave.samples[:, start:end], self.wave.rate)


def read(path: Path) -> Metadata:
    """Read a file's samples, header, tags and name.

    Raises:
        LoopError: the file is not audio.
        OSError: the file cannot be read.
    """
    header = _header(path)
    damage = list(header.findings)
    acids = tuple(_contents(header, b"acid", riff.read_acid, damage))
    loops = [one for found in _contents(header, b"smpl", riff.read_smpl, damage) for one in found]
    cues = [one for found in _contents(header, b"cue ", riff.read_cue, damage) for one in found]
    sound = wave.read(path)
    if not sound.samples.size:
        raise LoopError(f"{files.printable(path)}: no samples; give another file")
    tags = _tags(path)
    tempi = tuple(_tempi(path, acids, tags))
    found = Metadata(
        path, sound, wave.subtype(path), acids, tuple(loops), tuple(cues), tuple(damage), tags,
        tempi, None,
    )  # fmt: skip
    # The header counts the beats of the file, and the loop may be less.
    from_header = next((acid.beats for acid in acids if acid.beats), None) if found.whole else None
    beats = from_header or (_counted(found.repeats, tempi[0]) if tempi else None)
    return replace(found, beats=beats)


def _header(path: Path) -> riff.Header:
    """The chunks of a WAV; none of other files."""
    with path.open("rb") as file:
        if file.read(4) not in riff.KINDS and path.suffix.lower() != ".wav":
            return riff.Header((), ())
        try:
            return riff.read(file)
        except LoopError as error:
            raise LoopError(f"{files.printable(path)}: {error}; write it again") from error


def _contents(
    header: riff.Header, name: bytes, read: Callable[[bytes], Any], damage: list[Finding]
) -> Iterator[Any]:
    """Yield the contents of the chunks of a name; a truncated one becomes a finding."""
    for body in header.bodies(name):
        try:
            yield read(body)
        except LoopError as error:
            damage.append(Finding("header", "whole chunks", str(error)))


def _tags(path: Path) -> dict[str, str]:
    try:
        import mutagen
        from mutagen.flac import FLAC
        from mutagen.oggflac import OggFLAC
        from mutagen.oggopus import OggOpus
        from mutagen.oggvorbis import OggVorbis
    except ImportError as error:
        raise wave.needs("mutagen") from error
    readers = [FLAC, OggVorbis, OggFLAC, OggOpus]
    try:
        file: Any = mutagen.File(path, options=readers)
    except mutagen.MutagenError as error:
        name, cause = files.printable(path), files.shortened(error)
        raise LoopError(f"{name}: tags that cannot be read ({cause}); write it again") from error
    values = {} if file is None or file.tags is None else file.tags
    return {key: str(values[key][0]) for key in TAGS if key in values}


def _tempi(path: Path, acids: Sequence[Acid], tags: dict[str, str]) -> Iterator[TempoTag]:
    for acid in acids:
        if 0 < acid.tempo_bpm < MAX_BPM:
            single = np.float32(acid.tempo_bpm)
            # The shortest decimal of a single-precision number is the tempo as it was entered.
            yield TempoTag("acid chunk", float(str(single)), float(np.spacing(single)) / 2)
    tagged = number(tags.get("BPM", ""))
    if tagged is not None:
        yield TempoTag("BPM tag", tagged, _last_digit(tagged))
    named = label.tempo_in_name(path.stem)
    if named is not None:
        yield TempoTag("name", named, _last_digit(named))


def _last_digit(value: float) -> float:
    """Half a unit of the last digit: 0.5 for 98, 0.05 for 98.5."""
    return 0.5 * 10.0 ** -len(label.decimal(value).partition(".")[2])


def number(text: str) -> float | None:
    """A tag's text as a tempo; None if it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < MAX_BPM else None


def whole(text: str) -> int | None:
    """A tag's text as a number of samples; None if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _is_meter(meter: tuple[int, int]) -> bool:
    numerator, denominator = meter
    return numerator > 0 and denominator > 0 and denominator & (denominator - 1) == 0


def _counted(sound: Wave, tempo: TempoTag) -> int | None:
    """Quarter notes, if the tempo allows one whole number; if several, one exact to a sample."""
    about = nearest(sound, tempo)
    if about is None:
        return None
    exactly = abs(about * 60 / tempo.bpm * sound.rate - len(sound)) <= 1
    return about if exactly or sound.duration_s / 60 * tempo.within_bpm < 0.5 else None


def nearest(sound: Wave, tempo: TempoTag) -> int | None:
    """The nearest whole number of quarter notes, if the tempo allows it."""
    about = max(1, round(sound.duration_s / 60 * tempo.bpm))
    low, high = samples_of(about, tempo, sound.rate)
    return about if low <= len(sound) <= high else None


def samples_of(beats: int, tempo: TempoTag, rate: int) -> tuple[int, int]:
    """The fewest and most samples that so many quarter notes can have."""
    most = beats * 60 / max(tempo.bpm - tempo.within_bpm, 1e-9) * rate
    fewest = beats * 60 / (tempo.bpm + tempo.within_bpm) * rate
    return round(fewest) - 1, round(most) + 1
