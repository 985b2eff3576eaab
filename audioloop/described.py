"""What an audio file says of itself: header, tags and name, and the samples that it says it of.

Made for other people's loops as well. What a file says is trusted in the order header, tags, name.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from audioloop import label, riff, wave
from audioloop.riff import Acid, Loop
from audioloop.wave import Wave
from midiloop.errors import LoopError

MAX_BYTES = 1 << 32
MAX_BPM = 10_000.0  # more is no tempo
TAGS = ("BPM", "METER", "LOOPSTART", "LOOPLENGTH")
_METER = re.compile(r"([0-9]{1,3})/([0-9]{1,3})")


class Stated(NamedTuple):
    """A tempo, and who says so.

    Attributes:
        source: as in "the name".
        bpm: quarter notes a minute.
        within_bpm: half a unit of the last digit that it is said with.
    """

    source: str
    bpm: float
    within_bpm: float

    def __str__(self) -> str:
        return f"{label.decimal(self.bpm)} bpm ({self.source})"

    def agrees(self, other: Stated) -> bool:
        """Whether the rougher of both can be the other one, rounded."""
        return abs(self.bpm - other.bpm) <= max(self.within_bpm, other.within_bpm) + 1e-6


@dataclass(frozen=True, eq=False)
class Described:
    """A file's samples, and what it says of them.

    Attributes:
        subtype: how samples are stored, in libsndfile's words.
        acids: contents of ``acid`` chunks, in their order.
        loops: of ``smpl`` chunks.
        tags: those of `TAGS` that a FLAC or OGG file has.
        tempi: what states a tempo, the most trusted first.
        beats: quarter notes, None where they are not known.
    """

    path: Path
    wave: Wave
    subtype: str
    acids: tuple[Acid, ...]
    loops: tuple[Loop, ...]
    tags: dict[str, str]
    tempi: tuple[Stated, ...]
    beats: int | None

    @property
    def tempo_bpm(self) -> float | None:
        """Quarter notes a minute."""
        return self.tempi[0].bpm if self.tempi else None

    @property
    def meter(self) -> tuple[int, int]:
        """Numerator and denominator; 4/4 where nothing is said."""
        tagged = _METER.fullmatch(self.tags.get("METER", ""))
        meters = [acid.meter for acid in self.acids]
        meters += [(int(tagged[1]), int(tagged[2]))] if tagged else []
        return next(filter(_is_meter, meters), (4, 4))

    @property
    def bars(self) -> int | None:
        """Whole bars, None where they are not known."""
        if self.beats is None:
            return None
        bars = self.beats / Fraction(4 * self.meter[0], self.meter[1])
        return int(bars) if bars.denominator == 1 else None

    @property
    def tagged(self) -> Loop | None:
        """The loop that LOOPSTART and LOOPLENGTH tell, if they do."""
        length = whole(self.tags.get("LOOPLENGTH", ""))
        start = whole(self.tags.get("LOOPSTART", "0"))
        return None if length is None or start is None else Loop(start, start + length)

    @property
    def extent(self) -> Loop:
        """The part that repeats: all, but for what comes before LOOPSTART."""
        whole = Loop(0, len(self.wave))
        return self.tagged if self.tagged and _has_intro(self.tagged, whole.end) else whole

    @property
    def repeats(self) -> Wave:
        """Samples of the extent."""
        start, end, _ = self.extent
        return Wave(self.wave.samples[:, start:end], self.wave.rate)


def read(path: Path) -> Described:
    """Read a file's samples, header, tags and name.

    Raises:
        LoopError: it is no audio, or ends before it says.
        OSError: it cannot be read.
    """
    acids, loops = _header(path)
    sound = wave.read(path)
    if not sound.samples.size:
        raise LoopError(f"{path}: no samples; give another file")
    tags = _tags(path)
    tempi = tuple(_tempi(path, acids, tags))
    found = Described(path, sound, wave.subtype(path), acids, loops, tags, tempi, None)
    stated = next((acid.beats for acid in acids if acid.beats), None)
    beats = stated or (_counted(found.repeats, tempi[0]) if tempi else None)
    return replace(found, beats=beats)


def _header(path: Path) -> tuple[tuple[Acid, ...], tuple[Loop, ...]]:
    """The ``acid`` chunks and the loops of a WAV."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF" and path.suffix.lower() != ".wav":
            return (), ()
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise LoopError(f"{path}: over 4 GiB are no loop; cut it first")
        file.seek(0)
        data = file.read()
    try:
        chunks = list(riff.chunks(data))
        acids = tuple(riff.read_acid(chunk.body) for chunk in chunks if chunk.name == b"acid")
        loops = [riff.read_smpl(chunk.body) for chunk in chunks if chunk.name == b"smpl"]
    except LoopError as error:
        raise LoopError(f"{path}: {error}; write it anew") from error
    return acids, tuple(itertools.chain.from_iterable(loops))


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
        raise LoopError(f"{path}: tags that cannot be read ({error}); write it anew") from error
    values = {} if file is None or file.tags is None else file.tags
    return {key: str(values[key][0]) for key in TAGS if key in values}


def _tempi(path: Path, acids: Sequence[Acid], tags: dict[str, str]) -> Iterator[Stated]:
    for acid in acids:
        if 0 < acid.tempo_bpm < MAX_BPM:
            single = np.float32(acid.tempo_bpm)
            # The shortest decimal of a single-precision number is what was put into it.
            yield Stated("acid chunk", float(str(single)), float(np.spacing(single)) / 2)
    tagged = number(tags.get("BPM", ""))
    if tagged is not None:
        yield Stated("BPM tag", tagged, _last_digit(tagged))
    named = label.tempo_in_name(path.stem)
    if named is not None:
        yield Stated("name", named, _last_digit(named))


def _last_digit(value: float) -> float:
    """Half a unit of the last digit: 0.5 for 98, 0.05 for 98.5."""
    return 0.5 * 10.0 ** -len(label.decimal(value).partition(".")[2])


def number(text: str) -> float | None:
    """The tempo that a tag's text says, if it is one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < MAX_BPM else None


def whole(text: str) -> int | None:
    """The number of samples that a tag's text says, if it is one."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _is_meter(meter: tuple[int, int]) -> bool:
    numerator, denominator = meter
    return numerator > 0 and denominator > 0 and denominator & (denominator - 1) == 0


def _has_intro(loop: Loop, n_samples: int) -> bool:
    return 0 < loop.start < loop.end <= n_samples


def _counted(sound: Wave, tempo: Stated) -> int | None:
    """Quarter notes, if the tempo leaves one whole number of them; to a sample, if several."""
    about = nearest(sound, tempo)
    if about is None:
        return None
    exactly = abs(about * 60 / tempo.bpm * sound.rate - len(sound)) <= 1
    return about if exactly or sound.duration_s / 60 * tempo.within_bpm < 0.5 else None


def nearest(sound: Wave, tempo: Stated) -> int | None:
    """The whole number of quarter notes nearest to the tempo, if the tempo leaves one."""
    about = max(1, round(sound.duration_s / 60 * tempo.bpm))
    low, high = samples_of(about, tempo, sound.rate)
    return about if low <= len(sound) <= high else None


def samples_of(beats: int, tempo: Stated, rate: int) -> tuple[int, int]:
    """The fewest and most samples that so many quarter notes can have."""
    most = beats * 60 / max(tempo.bpm - tempo.within_bpm, 1e-9) * rate
    fewest = beats * 60 / (tempo.bpm + tempo.within_bpm) * rate
    return round(fewest) - 1, round(most) + 1
