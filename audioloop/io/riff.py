"""WAV files as chunks, with the loop points and the tempo that samplers and DAWs read.

Everything is little-endian; a chunk is four letters, a size, and a body padded to an even size.
Sizes in a header may be wrong: `read` relies on the file itself, and reports what disagrees.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from midiloop.errors import LoopError, counted

PCM, FLOAT = 1, 3
SMPL_HEADER = struct.Struct("<9I")
SMPL_LOOP = struct.Struct("<6I")
ACID = struct.Struct("<IHHfIHHf")
UNITY_NOTE = 60
FORWARD = 0
MAX_BYTES = 2**32 - 1 - 4  # of all chunks: a size has four bytes

ACID_ONE_SHOT, ACID_ROOT, ACID_STRETCH = 1, 2, 4

WIDE = (b"RF64", b"BW64")  # EBU Tech 3306, ITU-R BS.2088: sizes of 64 bits, in a ``ds64`` chunk
KINDS = (b"RIFF", *WIDE)
UNKNOWN = 2**32 - 1  # a size that was not known when it was written, or that stands in ``ds64``
DS64, WIDE_SIZE = struct.Struct("<QQQI"), struct.Struct("<4sQ")
CUE_POINT = struct.Struct("<II4sIII")
# What is read of a header, at most: a file of 4 GiB of empty chunks would take hours.
MAX_CHUNKS, MAX_BODY = 1 << 12, 1 << 20
READ = (b"fmt ", b"smpl", b"acid", b"cue ")
# Names that stand where a chunk begins; by them it is known whether a pad byte was left out.
KNOWN = frozenset(
    (*READ, b"data", b"fact", b"LIST", b"inst", b"bext", b"iXML", b"id3 ", b"ID3 ",
     b"JUNK", b"junk", b"PAD ", b"FLLR", b"PEAK", b"DISP", b"plst", b"strc", b"_PMX", b"cart")
)  # fmt: skip


class Finding(NamedTuple):
    """A contradiction in a file.

    Attributes:
        what: the checked item.
        expected: its value by the rest of the file.
        found: its value.
    """

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, found {self.found}"


class Chunk(NamedTuple):
    """A piece of a file."""

    name: bytes
    body: bytes


class Loop(NamedTuple):
    """A part that repeats, in samples of one channel.

    Attributes:
        start: first sample.
        end: the sample after the last; files store the last one itself.
        kind: `FORWARD`, or another way to play it.
    """

    start: int
    end: int
    kind: int = FORWARD


@dataclass(frozen=True)
class Acid:
    """Contents of an ``acid`` chunk.

    Attributes:
        tempo_bpm: quarter notes a minute.
        beats: quarter notes in the file; 0 where it is not known.
        meter: numerator and denominator of the time signature.
        root: MIDI note, or None.
        one_shot: the file is no loop.
    """

    tempo_bpm: float
    beats: int
    meter: tuple[int, int]
    root: int | None = None
    one_shot: bool = False


def wav(body: bytes, *, channels: int, rate: int, bits: int, chunks: Sequence[Chunk]) -> bytes:
    """A WAV file of interleaved samples.

    Args:
        bits: of a sample; 32 are floats, less are integers.
        chunks: what follows the samples.

    Raises:
        LoopError: it is longer than a WAV can be.
    """
    kind, frame = (FLOAT if bits == 32 else PCM), channels * bits // 8
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * frame, frame, bits)
    parts = [Chunk(b"fmt ", head if kind == PCM else head + b"\0\0")]
    if kind == FLOAT:
        parts.append(Chunk(b"fact", struct.pack("<I", len(body) // frame)))
    return packed([*parts, Chunk(b"data", body), *chunks])


def packed(chunks: Sequence[Chunk]) -> bytes:
    """The WAV file of some chunks.

    Raises:
        LoopError: it is longer than a WAV can be.
    """
    pieces = [piece for chunk in chunks for piece in _packed(chunk)]
    size = sum(map(len, pieces))
    if size > MAX_BYTES:
        raise LoopError("a WAV holds no more than 4 GiB; write FLAC, or less of it")
    return b"".join([b"RIFF", struct.pack("<I", 4 + size), b"WAVE", *pieces])


def _packed(chunk: Chunk) -> tuple[bytes, ...]:
    size = struct.pack("<I", len(chunk.body))
    return chunk.name, size, chunk.body, b"\0" * (len(chunk.body) % 2)


@dataclass(frozen=True)
class Header:
    """The chunks of a WAV file.

    Attributes:
        chunks: in their order; with a body where it is one of `READ`, else with none.
        findings: sizes that are not those of the file.
        data: place and size of the samples, in bytes; None where there are none.
    """

    chunks: tuple[Chunk, ...]
    findings: tuple[Finding, ...]
    data: tuple[int, int] | None = None

    def bodies(self, name: bytes) -> list[bytes]:
        """Of the chunks of a name."""
        return [chunk.body for chunk in self.chunks if chunk.name == name]


def read(file: BinaryIO) -> Header:
    """The header of a WAV file, whatever its sizes say; of the samples nothing is read.

    Raises:
        LoopError: the file is none.
    """
    return _Reader(file).header()


class _Reader:
    """Goes from chunk to chunk, and notes what is wrong with their sizes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.length = file.seek(0, os.SEEK_END)
        self.findings: list[Finding] = []
        self.wide: dict[bytes, int] = {}  # sizes of 64 bits, by the chunks that they are of

    def header(self) -> Header:
        self.file.seek(0)
        head = self.file.read(12)
        if len(head) < 12 or head[:4] not in KINDS or head[8:] != b"WAVE":
            raise LoopError("no RIFF WAVE header")
        declared = int.from_bytes(head[4:8], "little")
        if head[:4] in WIDE:
            self._ds64(head[:4].decode())
            declared = self.wide.get(b"RIFF", declared) if declared == UNKNOWN else declared
        chunks, end, data = [], 12, None
        for chunk, at, size in self._chunks(declared + 8):
            chunks.append(chunk)
            end = at + size if chunk.name in KNOWN else end
            data = (at, size) if chunk.name == b"data" and data is None else data
        self._riff_size(declared, end)
        return Header(tuple(chunks), tuple(self.findings), data)

    def _ds64(self, kind: str) -> None:
        """Read the sizes of 64 bits, which stand in front of all other chunks."""
        if self.length <= MAX_BYTES:
            enough = f"RIFF, whose 32-bit sizes are enough for {self.length:,} bytes"
            self._note("header", enough, f"{kind}, which fewer programs read")
        head = self.file.read(8)
        body = self.file.read(min(int.from_bytes(head[4:], "little"), MAX_BODY))
        if head[:4] == b"ds64" and len(body) >= DS64.size:
            riff_size, data_size, _, n_others = DS64.unpack_from(body)
            others = len(body) - DS64.size
            table = body[DS64.size :][: min(n_others, others // WIDE_SIZE.size) * WIDE_SIZE.size]
            self.wide = dict(WIDE_SIZE.iter_unpack(table))
            self.wide |= {b"RIFF": riff_size, b"data": data_size}

    def _chunks(self, end: int) -> Iterator[tuple[Chunk, int, int]]:
        """Each chunk, and place and size of its body; past the end only those that are known."""
        at = 12
        for _ in range(MAX_CHUNKS):
            self.file.seek(at)
            head = self.file.read(8)
            name = head[:4]
            if len(head) < 8 or (at >= end and name not in KNOWN):
                return
            if not all(0x20 <= byte < 0x7F for byte in name):
                if any(name):  # zeros fill up, which harms nobody
                    self._note(
                        "header", "chunks", f"{counted(self.length - at, 'byte')} that are none"
                    )
                return
            at += 8
            size = self._size(name, int.from_bytes(head[4:], "little"), at)
            self.file.seek(at)
            body = self.file.read(min(size, MAX_BODY)) if name in READ else b""
            yield Chunk(name, body), at, size
            at += size
            if size % 2:
                at += self._padded(name, at)

    def _size(self, name: bytes, size: int, at: int) -> int:
        """Bytes of a chunk that begins at a place: no more than are left."""
        left = self.length - at
        size = self.wide.get(name, size) if size == UNKNOWN else size
        # A recorder that was not shut down in order leaves a size of 0 in front of its samples.
        unclosed = name == b"data" and size == 0 and left > 0 and self._at(at, 4) not in KNOWN
        if size <= left and not unclosed:
            return size
        if unclosed or size == UNKNOWN:
            said = "none, as from a pipe" if size else "0"
            self._note(_called(name), counted(left, "byte"), said)
        else:
            self._note(_called(name), f"at most {counted(left, 'byte')}", f"{size:,}")
        return left

    def _padded(self, name: bytes, at: int) -> bool:
        """Whether a pad byte stands at a place, as it should after an odd size."""
        following = self._at(at, 5)
        padded = len(following) > 0 and (following[:4] not in KNOWN or following[1:] in KNOWN)
        if not padded:
            self._note(_called(name), "a pad byte after its odd size", "none")
        return padded

    def _at(self, place: int, size: int) -> bytes:
        self.file.seek(place)
        return self.file.read(size)

    def _riff_size(self, declared: int, end: int) -> None:
        """The size of all is at most that of the file, and at least that of its chunks."""
        if declared == UNKNOWN:
            self._note("RIFF size", f"{self.length - 8:,} bytes", "none, as from a pipe")
        elif declared + 8 > self.length:
            self._note("RIFF size", f"at most {self.length - 8:,} bytes", f"{declared:,}")
        elif declared + 8 < end:
            self._note("RIFF size", f"at least {end - 8:,} bytes", f"{declared:,}")

    def _note(self, what: str, expected: str, found: str) -> None:
        self.findings.append(Finding(what, expected, found))


def _called(name: bytes) -> str:
    return f"chunk {name.decode('ascii')!r}"


def smpl(loops: Sequence[Loop], rate: int) -> Chunk:
    """Loops that play for ever, for samplers."""
    head = SMPL_HEADER.pack(0, 0, round(1e9 / rate), UNITY_NOTE, 0, 0, 0, len(loops), 0)
    body = [
        SMPL_LOOP.pack(number, loop.kind, loop.start, loop.end - 1, 0, 0)
        for number, loop in enumerate(loops)
    ]
    return Chunk(b"smpl", head + b"".join(body))


def read_smpl(body: bytes) -> list[Loop]:
    """The loops of a ``smpl`` chunk.

    Raises:
        LoopError: it is shorter than it says.
    """
    if len(body) < SMPL_HEADER.size:
        raise LoopError(f"'smpl' has {len(body)} of {SMPL_HEADER.size} bytes")
    n_loops = SMPL_HEADER.unpack_from(body)[7]
    if len(body) < SMPL_HEADER.size + n_loops * SMPL_LOOP.size:
        raise LoopError(f"'smpl' says {counted(n_loops, 'loop')}, and has no room for them")
    found = (
        SMPL_LOOP.unpack_from(body, SMPL_HEADER.size + number * SMPL_LOOP.size)
        for number in range(n_loops)
    )
    return [Loop(start, last + 1, kind) for _, kind, start, last, _, _ in found]


def read_cue(body: bytes) -> list[int]:
    """Samples at which the points of a ``cue`` chunk are.

    Raises:
        LoopError: it is shorter than it says.
    """
    n_points = int.from_bytes(body[:4], "little")
    if len(body) < 4 + n_points * CUE_POINT.size:
        raise LoopError(f"'cue ' says {counted(n_points, 'point')}, and has no room for them")
    return [
        CUE_POINT.unpack_from(body, 4 + number * CUE_POINT.size)[5] for number in range(n_points)
    ]


def acid(found: Acid) -> Chunk:
    """Tempo, beats, meter and root, for DAWs that follow them."""
    flags = ACID_STRETCH | (ACID_ROOT if found.root is not None else 0)
    flags |= ACID_ONE_SHOT if found.one_shot else 0
    root, (numerator, denominator) = found.root or 0, found.meter
    body = ACID.pack(flags, root, 0x8000, 0.0, found.beats, denominator, numerator, found.tempo_bpm)
    return Chunk(b"acid", body)


def read_acid(body: bytes) -> Acid:
    """What an ``acid`` chunk says.

    Raises:
        LoopError: it is too short.
    """
    if len(body) < ACID.size:
        raise LoopError(f"'acid' has {len(body)} of {ACID.size} bytes")
    flags, root, _, _, beats, denominator, numerator, tempo_bpm = ACID.unpack_from(body)
    return Acid(
        tempo_bpm,
        beats,
        (numerator, denominator),
        root if flags & ACID_ROOT else None,
        bool(flags & ACID_ONE_SHOT),
    )
