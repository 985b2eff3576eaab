"""Waves: samples at a rate, their level, and audio files.

A file is written beside its place and renamed, so it is there whole or not at all. WAV is written
with the chunks of `riff`, FLAC and OGG with the tags of `LoopLabel`; every other format that
libsndfile knows can be read.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from audioloop.io import riff
from audioloop.io.label import LoopLabel, loop_tags
from midiloop.common import files
from midiloop.errors import CallError, LoopError

if TYPE_CHECKING:
    from types import ModuleType

Samples = NDArray[np.float32]

# The rates that a format holds, as its own libraries accept them; a WAV also counts bytes a second,
# in 32 bits.
RATES = {"wav": (1, 10_000_000), "flac": (1, 655_350), "ogg": (8_000, 192_000)}
FLAC_ANY_RATE = 65_535  # what FLAC's frames say in full; above, they count in tens
DEPTHS = {"wav": ("16", "24", "float"), "flac": ("16", "24"), "ogg": ("lossy",)}
# libsndfile needs stack in proportion to what its Vorbis encoder is given at once.
OGG_BLOCK_FRAMES = 1 << 16
OGG_QUALITY = 0.7
CONTEXT = 2048  # samples on each side, more than the longest filter of libsoxr
FULL_SCALE = {"16": 2**15, "24": 2**23}
MAX_SAMPLES = 1 << 26  # to read, of all channels: 12 minutes of stereo at 44.1 kHz
SILENT = 1e-4  # of full scale, -80 dB: what has no louder sample counts as silence


@dataclass(frozen=True, eq=False)
class Wave:
    """A wave.

    >>> import audioloop, numpy as np
    >>> audioloop.Wave(np.zeros((2, 44_100), np.float32), rate=44_100).duration_s
    1.0

    Attributes:
        samples: float32 (channels, samples), full scale is 1.
        rate: sample rate, in Hz.
    """

    samples: Samples
    rate: int

    def __len__(self) -> int:
        return int(self.samples.shape[1])

    @property
    def duration_s(self) -> float:
        """How long one pass is."""
        return len(self) / self.rate

    @property
    def peak(self) -> float:
        """The largest sample, 0 or more."""
        return float(max(self.samples.max(initial=0), -self.samples.min(initial=0)))


@dataclass(frozen=True)
class Format:
    """How samples are stored: "wav", "flac" or "ogg", and the depth of a sample.

    Attributes:
        depth: "16", "24" or "float"; "lossy" for OGG, which has none.
    """

    name: str = "wav"
    depth: str = "24"

    def __post_init__(self) -> None:
        if self.name not in DEPTHS:
            raise CallError(f"{self.name} is no format to write; choose {', '.join(DEPTHS)}")
        if self.depth not in DEPTHS[self.name]:
            raise CallError(
                f"{self.name} holds no samples of depth {self.depth}; "
                f"choose {' or '.join(DEPTHS[self.name])}, or another --format"
            )

    @property
    def suffix(self) -> str:
        """Of file names."""
        return f".{self.name}"

    @property
    def headroom(self) -> float:
        """The largest sample that it holds."""
        scale = FULL_SCALE.get(self.depth)
        return 1.0 if scale is None else (scale - 1) / scale

    def check_rate(self, rate: int) -> None:
        """Raise `CallError` for a rate that it cannot hold."""
        low, high = RATES[self.name]
        if not low <= rate <= high:
            raise CallError(
                f"{self.name} holds no rate of {rate:,} Hz; choose one from {low:,} to {high:,}"
            )
        if self.name == "flac" and rate > FLAC_ANY_RATE and rate % 10:
            raise CallError(f"flac holds no rate of {rate:,} Hz; choose a multiple of 10, or wav")

    def rounded(self, samples: Samples) -> Samples:
        """The samples as the file will give them back; OGG gives about the same."""
        scale = FULL_SCALE.get(self.depth)
        if scale is None:
            return samples
        return np.asarray(_integers(samples, self.depth) / np.float32(scale), np.float32)


def write(path: Path, wave: Wave, label: LoopLabel | None, form: Format) -> None:
    """Write one loop, labelled with its length, tempo, meter and key, as far as they are known.

    Raises:
        LoopError: there are no samples, or they exceed full scale, or are not finite.
        OSError: the disk is full, or the folder cannot be written.
    """
    if not wave.samples.size:
        raise LoopError(f"{path}: no samples; nothing was written")
    if not np.isfinite(wave.samples).all():
        raise LoopError(f"{path}: samples that are not finite; nothing was written")
    if wave.peak > 1:
        raise LoopError(f"{path}: a peak of {wave.peak:.3f} would clip; lower the gain")
    form.check_rate(wave.rate)
    data = _wav(wave, label, form) if form.name == "wav" else _tagged(wave, label, form)
    files.write(path, data)


def _integers(samples: Samples, depth: str) -> NDArray[np.int32]:
    scale = FULL_SCALE[depth]
    scaled = np.multiply(samples, np.float32(scale), order="C")
    np.rint(scaled, out=scaled)
    np.minimum(scaled, scale - 1, out=scaled)  # full scale itself is only there below zero
    return scaled.astype(np.int32)


def _wav(wave: Wave, label: LoopLabel | None, form: Format) -> bytes:
    interleaved = wave.samples.T
    if form.depth == "float":
        body, bits = interleaved.astype("<f4").tobytes(), 32
    elif form.depth == "16":
        body, bits = _integers(interleaved, "16").astype("<i2").tobytes(), 16
    else:
        wide = _integers(interleaved, "24").astype("<i4", copy=False).reshape(-1, 1)
        packed = np.empty((len(wide), 3), np.uint8)
        for byte in range(3):  # a third of the time that one copy of all three takes
            packed[:, byte] = wide.view(np.uint8)[:, byte]
        body, bits = packed.tobytes(), 24
    loop = riff.Loop(0, len(wave))
    return riff.wav(
        body,
        channels=len(wave.samples),
        rate=wave.rate,
        bits=bits,
        chunks=[riff.smpl([loop], wave.rate), *([riff.acid(label.acid())] if label else [])],
    )


def _tagged(wave: Wave, label: LoopLabel | None, form: Format) -> bytes:
    soundfile = _soundfile()
    subtype = "VORBIS" if form.name == "ogg" else f"PCM_{form.depth}"
    buffer = io.BytesIO()
    options: dict[str, Any] = {"compression_level": 1 - OGG_QUALITY} if form.name == "ogg" else {}
    with soundfile.SoundFile(
        buffer, "w", wave.rate, len(wave.samples), subtype, format=form.name.upper(), **options
    ) as file:
        frames: NDArray[Any] = np.ascontiguousarray(wave.samples.T)
        if form.depth in FULL_SCALE:  # rounded here, as in a WAV, and not as libsndfile does
            frames = _integers(frames, form.depth) << (32 - int(form.depth))
        for at in range(0, len(frames), OGG_BLOCK_FRAMES):
            file.write(frames[at : at + OGG_BLOCK_FRAMES])
    buffer.seek(0)
    _tag(buffer, form.name, label.tags(len(wave)) if label else loop_tags(len(wave)))
    return buffer.getvalue()


def _tag(buffer: io.BytesIO, name: str, tags: dict[str, str]) -> None:
    try:
        from mutagen.flac import FLAC
        from mutagen.oggvorbis import OggVorbis
    except ImportError as error:
        raise needs("mutagen") from error
    kind: Any = FLAC if name == "flac" else OggVorbis
    audio = kind(buffer)
    for key, value in tags.items():
        audio[key] = value
    buffer.seek(0)
    audio.save(buffer)


def read(path: Path) -> Wave:
    """Read the samples of an audio file, at its own rate.

    Raises:
        LoopError: the file is not audio, is damaged, or has more than `MAX_SAMPLES`.
        OSError: it cannot be read.
    """
    soundfile, name = _soundfile(), files.printable(path)
    with path.open("rb"):  # so that a missing file is an OSError with its own words
        pass
    if path.suffix.lower() == ".raw":  # soundfile asks for its rate
        raise LoopError(f"{name}: raw samples do not say what they are; give another file")
    try:
        with _open_sound(path) as file:
            if file.frames * file.channels > MAX_SAMPLES:
                raise LoopError(f"{name}: {file.frames:,} samples are no loop; cut it first")
            # So many, because codecs that cannot seek, as GSM, do not know what is left.
            samples = file.read(file.frames, dtype="float32", always_2d=True)
            rate = int(file.samplerate)
    except soundfile.LibsndfileError as error:
        cause = str(error.error_string).rstrip(".")
        raise LoopError(
            f"{name}: no audio that can be read ({cause}); give another file"
        ) from error
    return Wave(np.ascontiguousarray(samples.T), rate)


def subtype(path: Path) -> str:
    """How an audio file stores samples, as in "PCM_24", "FLOAT" or "VORBIS".

    Raises:
        LoopError: it is no audio.
    """
    soundfile = _soundfile()
    try:
        with _open_sound(path) as file:
            return str(file.subtype)
    except soundfile.LibsndfileError as error:
        name = files.printable(path)
        raise LoopError(f"{name}: no audio that can be read; give another file") from error


def _open_sound(path: Path) -> Any:  # a `soundfile.SoundFile`
    """Open an audio file to read; a WAV with wrong sizes in its header is repaired in memory.

    Raises:
        soundfile.LibsndfileError: it is no audio.
    """
    soundfile = _soundfile()
    # By itself soundfile encodes no name that is not UTF-8.
    place = os.fsencode(path) if os.name == "posix" else path
    try:
        file = soundfile.SoundFile(place)
    except soundfile.LibsndfileError:
        repaired = _repaired(path)
        if repaired is None:
            raise
        return soundfile.SoundFile(repaired)
    repaired = None if file.frames else _repaired(path)
    return file if repaired is None else soundfile.SoundFile(repaired)


def _repaired(path: Path) -> io.BytesIO | None:
    """Format and samples of a WAV under a correct header; None if it is no WAV."""
    with path.open("rb") as file:
        try:
            found = riff.read(file)
        except LoopError:
            return None
        at, size = found.data or (0, 0)
        if not size or size > MAX_SAMPLES * 4 or not found.bodies(b"fmt "):
            return None
        file.seek(at)
        parts = [
            riff.Chunk(b"fmt ", found.bodies(b"fmt ")[0]),
            riff.Chunk(b"data", file.read(size)),
        ]
    return io.BytesIO(riff.packed(parts))


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except ImportError as error:
        raise needs("soundfile") from error
    module: ModuleType = soundfile
    return module


def needs(package: str) -> ImportError:
    """The error for a package that is not installed."""
    return ImportError(f"audio needs {package}: pip install {package}", name=package)


def tile(samples: Samples, times: int) -> Samples:
    """``times`` passes, one after the other: (channels, samples) -> (channels, times · samples)."""
    return np.tile(samples, (1, times))


def resample(samples: Samples, length: int) -> Samples:
    """Resample one period of a periodic signal to another number of samples.

    libsoxr reads the signal a little beyond its ends, where it repeats, so the seam is as any other
    position. What lies below 0.8 of the lower Nyquist
    frequency is kept to -80 dB and better, and all of it is late by less than a sample.

    Args:
        samples: (channels, samples) of one period.
        length: samples that the period is to have.
    """
    was = samples.shape[1]
    if was == length:
        return samples
    try:
        import soxr
    except ImportError as error:
        raise needs("soxr") from error
    edge = samples
    if was < CONTEXT:
        edge = tile(samples, -(-CONTEXT // was))
    around = np.concatenate([edge[:, -CONTEXT:], samples, edge[:, :CONTEXT]], axis=1)
    start = round(CONTEXT * length / was)
    found = np.empty((len(samples), length), np.float32)
    for into, channel in zip(found, around, strict=True):  # one at a time, so that none is copied
        into[:] = soxr.resample(channel, was, length, quality="HQ")[start : start + length]
    return found


def stretch(samples: Samples, length: int) -> Samples:
    """Resample one period by a Fourier series: slower than `resample`, and exact.

    A round trip changes nothing below the lower Nyquist frequency.
    """
    spectrum = np.fft.rfft(samples.astype(np.float64))
    found = np.fft.irfft(spectrum[:, : length // 2 + 1], length)
    return np.asarray(found * (length / samples.shape[1]), np.float32)


def loudness_lufs(wave: Wave) -> float:
    """Integrated loudness (ITU-R BS.1770-4) of the loop as it repeats; -inf for silence."""
    import warnings

    try:
        import pyloudnorm
    except ImportError as error:
        raise needs("pyloudnorm") from error
    passes = 1 + int(np.ceil(1.0 / max(wave.duration_s, 1e-3)))  # a block of it is 0.4 s
    meter = pyloudnorm.Meter(wave.rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the logarithm of silence
        return float(meter.integrated_loudness(tile(wave.samples, passes).T.astype(np.float64)))
