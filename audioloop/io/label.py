"""The label of a loop: one record, from which chunks, tags and file names are made."""

from __future__ import annotations

import re
import string
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Self

from audioloop.io.riff import Acid
from midiloop.errors import CallError, LoopError, counted
from midiloop.midi.key import NAME_PATTERN, Key, confident

ACID_OCTAVE = 48  # root notes are written from this C on

TEMPLATES = {
    # A name that ends in tempo and key, as Audacity and most browsers of samples read them.
    "default": "{name}_{bpm}bpm_{key}",
    "audacity": "{name} {bpm}bpm {key}",
    # Splice: letters, digits, _ - and #, and no number alone but the tempo.
    "splice": "{name}_{bpm}_{part}_{key}",
}
FIELDS = ("name", "number", "bpm", "exact_bpm", "bars", "part", "key", "root", "meter")
MAX_NAME = 120  # bytes; file systems take 255, suffixes and all
# "120bpm", "98.5 BPM", "120_bpm"; "bpm120", "BPM = 120", "tempo-120"; "[120]", "(98.5)".
_NUMBER = r"(?<![0-9])(?<![0-9][.,])([0-9]{2,3}(?:[.,][0-9]+)?)"
_TEMPO_IN_NAME = re.compile(
    rf"{_NUMBER}[ _.-]{{0,3}}bpm(?![a-z])"
    rf"|(?:bpm|(?<![a-z])tempo)[ _.:=-]{{0,3}}{_NUMBER}(?![0-9])"
    rf"|[\[(] ?{_NUMBER} ?[\])]",
    re.IGNORECASE,
)
SPOKEN, BARE = (30, 300), (60, 200)  # bpm: of a number beside its unit, and of one in brackets
# What a name ends in: that of `TEMPLATES` is put there again.
_TEMPO_AND_KEY = re.compile(
    rf"[ _-]*\d+(?:\.\d+)?[ _-]?bpm(?:[ _-]+(?-i:{NAME_PATTERN}))?$", re.IGNORECASE
)
_MAYBE_EMPTY = re.compile(r"[ _.-]?\{(?:key|root)\}")
DRUMS = "drums"
_LONE_NUMBER = re.compile(r"(?<![A-Za-z0-9#])(\d+)(?![A-Za-z0-9#])")


@dataclass(frozen=True)
class LoopLabel:
    """A loop's tempo and extent.

    Attributes:
        tempo_bpm: quarter notes a minute.
        bars: whole bars.
        meter: numerator and denominator.
        key: estimated from the bass, see `pianoroll.bass_key`, or None. Chunks, tags and names have
            it only where it is confident, and not of drums alone.
        name: of the song or file it was made of.
        number: of the loop in a batch.
        part: "" for the mix, else of the stem.
    """

    tempo_bpm: float
    bars: int
    meter: tuple[int, int] = (4, 4)
    key: Key | None = None
    name: str = "loop"
    number: int = 0
    part: str = ""

    def __post_init__(self) -> None:
        if self.quarters != int(self.quarters):
            raise LoopError(
                f"{counted(self.bars, 'bar')} of {self.meter[0]}/{self.meter[1]}: "
                f"{float(self.quarters)} quarter notes, and DAWs count whole ones; give an even "
                "number of bars"
            )

    @property
    def certain_key(self) -> Key | None:
        """The key that chunks, tags and names have."""
        return None if self.part == DRUMS else confident(self.key)

    @property
    def root(self) -> int | None:
        """Its tonic, a pitch class."""
        return self.certain_key.tonic if self.certain_key else None

    @property
    def quarters(self) -> Fraction:
        """Quarter notes of the loop."""
        return self.bars * Fraction(4 * self.meter[0], self.meter[1])

    def samples(self, rate: int) -> int:
        """How many samples the loop has, to the sample: beats · 60 / bpm · rate, rounded."""
        return round(float(self.quarters) * 60 / self.tempo_bpm * rate)

    def repeated(self, times: int) -> Self:
        """The label of ``times`` passes in one file."""
        return replace(self, bars=self.bars * times)

    def acid(self) -> Acid:
        """For WAV files."""
        root = None if self.root is None else ACID_OCTAVE + self.root
        return Acid(self.tempo_bpm, int(self.quarters), self.meter, root)

    def tags(self, n_samples: int) -> dict[str, str]:
        """For FLAC and OGG files."""
        tags = {**loop_tags(n_samples), "BPM": decimal(self.tempo_bpm)}
        if self.certain_key:  # half of the programs read the one, half the other
            tags["INITIALKEY"] = tags["KEY"] = str(self.certain_key)
        tags["METER"] = f"{self.meter[0]}/{self.meter[1]}"
        # What is no text in the name of a file is none in a tag.
        return {**tags, "TITLE": self.name.encode("utf-8", "replace").decode()}

    def file_name(self, template: str) -> str:
        """The name of its file, less the suffix.

        Args:
            template: a key of `TEMPLATES`, or a text with some of `FIELDS` in braces.

        Raises:
            CallError: the template has another field, or leaves nothing of a name, or too much.
        """
        pattern = TEMPLATES.get(template, template)
        _check_fields(pattern)
        if not self.certain_key:
            pattern = _MAYBE_EMPTY.sub("", pattern)
        splice = template == "splice"
        fields = {
            "name": legal(self.name),
            "number": f"{self.number:05d}",
            "bpm": str(round(self.tempo_bpm)),
            "exact_bpm": decimal(self.tempo_bpm),
            "bars": str(self.bars),
            "part": self.part or "loop",
            "key": str(self.certain_key or ""),
            "root": self.certain_key.tonic_name if self.certain_key else "",
            "meter": f"{self.meter[0]}-{self.meter[1]}",
        }
        if splice:  # every other number gets a letter, so that it is not taken for the tempo
            fields["name"] = _LONE_NUMBER.sub(r"n\1", _plain(self.name))
        if self.part and "{part}" not in pattern:
            pattern += "_{part}"

        def filled() -> str:
            text = pattern.format_map(fields)
            return (_plain(text) if splice else legal(text)).strip(" ._-")

        over = len(_bytes(filled())) - MAX_NAME
        if over > 0:  # the tempo and the part stay, and names that differ go on to differ
            fields["name"] = _shortened(fields["name"], over)
        name = filled()
        if not name:
            raise CallError(f"--name-template {pattern!r}: nothing is left of a name")
        if len(_bytes(name)) > MAX_NAME:
            raise CallError(
                f"--name-template {pattern!r}: a name of over {MAX_NAME} bytes; shorten it"
            )
        return name


def loop_tags(n_samples: int) -> dict[str, str]:
    """Tags of a loop of unknown tempo: players of games loop from LOOPSTART for LOOPLENGTH."""
    return {"LOOPSTART": "0", "LOOPLENGTH": str(n_samples)}


def _check_fields(pattern: str) -> None:
    """Raise `CallError` unless a template holds nothing but text and plain `FIELDS`."""
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError:
        parts = [("", "?", None, None)]
    for _, field, spec, conversion in parts:
        if field is not None and (field not in FIELDS or spec or conversion):
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise CallError(f"--name-template {pattern!r}: give text and {known}")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _shortened(name: str, over: int) -> str:
    """The name less ``over`` bytes, and a sum of what it was."""
    whole = _bytes(name)
    tail = f"-x{zlib.crc32(whole):08x}"
    head = whole[: max(0, len(whole) - over - len(tail))].decode("utf-8", "ignore")
    return head.rstrip(string.digits) + tail  # half a word could be a number that is not there


def legal(text: str) -> str:
    """The text in what every file system takes, and every terminal shows as it is."""
    return re.sub(r'[\x00<>:"/\\|?*]+', "-", "".join(c if c.isprintable() else "\0" for c in text))


def _plain(text: str) -> str:
    """The text in A–Z, a–z, 0–9, _, - and #."""
    return re.sub(r"__+", "_", re.sub(r"[^A-Za-z0-9_#-]+", "-", text)).strip("-_")


def decimal(value: float) -> str:
    """The shortest decimal of a number: "120", "98.5", "122.99995"."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def tempo_in_name(name: str) -> float | None:
    """The tempo in a file's name, as in "groove_120bpm", "bpm120" or "[120]"; else None.

    It is from 30 to 300, and from 60 to 200 where nothing but brackets says that it is one: "(2)"
    and "[16]" are of copies and bars. Where a name has several, the last beside "bpm" counts, as
    for Audacity.
    """
    stated = {}
    for before, after, bare in _TEMPO_IN_NAME.findall(name):
        stated[not bare] = float((before or after or bare).replace(",", "."))
    beside = True in stated
    low, high = SPOKEN if beside else BARE
    tempo_bpm = stated.get(beside, 0.0)
    return tempo_bpm if low <= tempo_bpm <= high else None


def without_tempo(name: str) -> str:
    """A file's name less the tempo and the key that it ends in."""
    return _TEMPO_AND_KEY.sub("", name) or name


class Names:
    """File names in one folder, each given once, as file systems compare them that know no case."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(map(_folded, taken))

    def own(self, stem: Callable[[str], str]) -> str:
        """What to add to a name so that it is no other's: "" or "-2", "-3" and so on.

        Args:
            stem: the name, less its suffix, with such an addition.
        """
        again, added = 1, ""
        while _folded(stem(added)) in self._taken:  # as of files of one name in two folders
            again += 1
            added = f"-{again}"
        self._taken.add(_folded(stem(added)))
        return added


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
