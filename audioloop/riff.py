"""WAV files as chunks: the loop points and the tempo that samplers and DAWs look for.

Everything is little-endian; a chunk is four letters, a size, and a body padded to an even size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from midiloop.errors import LoopError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
SMPL_HEADER = struct.Struct("<9I")
SMPL_LOOP = struct.Struct("<6I")
ACID = struct.Struct("<IHHfIHHf")
UNITY_NOTE = 60
FORWARD = 0
MAX_BYTES = 2**32 - 1 - 4  # of all chunks: a size has four bytes

ACID_ONE_SHOT, ACID_ROOT, ACID_STRETCH = 1, 2, 4


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
    """What an ``acid`` chunk says.

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
    parts += [Chunk(b"data", body), *chunks]
    pieces = [piece for part in parts for piece in _packed(part)]
    size = sum(map(len, pieces))
    if size > MAX_BYTES:
        raise LoopError("a WAV holds no more than 4 GiB; write FLAC, or less of it")
    return b"".join([b"RIFF", struct.pack("<I", 4 + size), b"WAVE", *pieces])


def _packed(chunk: Chunk) -> tuple[bytes, ...]:
    size = struct.pack("<I", len(chunk.body))
    return chunk.name, size, chunk.body, b"\0" * (len(chunk.body) % 2)


def chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of a WAV file in their order.

    Raises:
        LoopError: the file is none, or ends before a chunk does.
    """
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise LoopError("no RIFF WAVE header")
    size = int.from_bytes(data[4:8], "little")
    if size + 8 > len(data):
        raise LoopError(f"the header promises {size + 8:,} bytes, the file has {len(data):,}")
    at, end = 12, size + 8
    while at + 8 <= end:
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > end:
            raise LoopError(
                f"chunk {name.decode('latin-1')!r} promises {length:,} bytes, "
                f"{end - at - 8:,} are left"
            )
        yield Chunk(name, data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2


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
        raise LoopError(f"'smpl' says {n_loops:,} loops, and has no room for them")
    found = (
        SMPL_LOOP.unpack_from(body, SMPL_HEADER.size + number * SMPL_LOOP.size)
        for number in range(n_loops)
    )
    return [Loop(start, last + 1, kind) for _, kind, start, last, _, _ in found]


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
