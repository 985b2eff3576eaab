"""Where an audio file's header, tags, name and samples disagree.

What a file does not say is not held against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audioloop import described, riff, seam
from audioloop.described import MAX_BPM, Described
from audioloop.wave import Samples, Wave
from midiloop.errors import CallError, LoopError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".caf", ".mp3")
# Full scale of what libsndfile calls a file's samples; all others are decoded to floats.
FULL_SCALE = {
    "PCM_S8": 2**7, "PCM_U8": 2**7, "PCM_16": 2**15, "PCM_24": 2**23, "PCM_32": 2**31,
}  # fmt: skip

CLIPPED_SAMPLES = 3  # in a row at full scale: one or two are a peak that was brought to it
SILENT = 1e-4  # -80 dB
OFFSET = 0.01  # of full scale
JUMP, JUMP_OVER_BARS = 3.0, 1.5
MAX_LINES = 64


class Finding(NamedTuple):
    """Two things that disagree.

    Attributes:
        what: is looked at.
        expected: by what else the file says.
        found: instead.
    """

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, found {self.found}"


class Checked(NamedTuple):
    """What was found in a file.

    Attributes:
        findings: what disagrees; empty for a file that is all right.
        notes: what is worth knowing, and no fault.
        jump: at the seam, over the local median; None where it cannot be measured.
    """

    described: Described
    findings: list[Finding]
    notes: list[str]
    jump: float | None


def check(path: Path) -> list[Finding]:
    """What disagrees in a file; see `examined`."""
    return examined(path).findings


def examined(path: Path) -> Checked:
    """Compare header, tags, name and samples of a file.

    Raises:
        LoopError: it is no audio, or ends before it says.
        OSError: it cannot be read.
    """
    found = described.read(path)
    loop = found.repeats
    findings = [*_header_findings(found), *_tempo_findings(found), *_length_findings(found)]
    findings += _sample_findings(found)
    jump = _jump(loop, 0)
    if jump is not None and jump > JUMP:
        bars = _largest_jump(loop, found.bars)
        if jump > JUMP_OVER_BARS * bars:
            limit = f"a jump of at most {max(JUMP, JUMP_OVER_BARS * bars):.1f}"
            findings.append(Finding("seam", limit, f"{jump:.1f}"))
    return Checked(found, findings, list(_notes(found)), jump)


def _header_findings(found: Described) -> Iterator[Finding]:
    n_samples = len(found.wave)
    for acid in found.acids:
        if not 0 < acid.tempo_bpm < MAX_BPM:
            yield Finding("acid chunk", "a tempo", f"{acid.tempo_bpm:g} bpm")
        if acid.one_shot:
            yield Finding("acid chunk", "a loop", "the flag of a one-shot")
    said = {(acid.beats, acid.meter) for acid in found.acids}
    if len(said) > 1:
        texts = [f"{beats} beats of {n}/{d}" for beats, (n, d) in sorted(said)]
        yield Finding("acid chunks", "the same", " and ".join(texts))
    for loop in found.loops[:1]:
        if loop.kind != riff.FORWARD:
            yield Finding("smpl loop", "one that plays forward", f"kind {loop.kind}")
        if (loop.start, loop.end) != (0, n_samples):
            yield Finding("smpl loop", f"samples 0–{n_samples:,}", f"{loop.start:,}–{loop.end:,}")


def _tempo_findings(found: Described) -> Iterator[Finding]:
    if "BPM" in found.tags and described.number(found.tags["BPM"]) is None:
        yield Finding("BPM tag", "a tempo", repr(found.tags["BPM"]))
    for other in found.tempi[1:]:
        if not found.tempi[0].agrees(other):
            yield Finding("tempo", str(found.tempi[0]), str(other))


def _length_findings(found: Described) -> Iterator[Finding]:
    rate, n_samples, extent = found.wave.rate, len(found.wave), found.extent
    length = extent.end - extent.start
    low, high = 0, n_samples
    if found.tempi:
        tempo = found.tempi[0]
        if found.beats is None and described.nearest(found.repeats, tempo) is None:
            beats = length / rate * tempo.bpm / 60
            yield Finding("length", f"whole beats at {tempo}", f"{beats:.2f} beats")
        elif found.beats is not None:
            low, high = described.samples_of(found.beats, tempo, rate)
            expected = round(found.beats * 60 / tempo.bpm * rate)
            if not low <= length <= high:
                wanted = f"{expected:,} samples for {found.beats:,} beats at {tempo}"
                yield Finding("length", wanted, f"{length:,}")
    for key in ("LOOPSTART", "LOOPLENGTH"):
        if key in found.tags and described.whole(found.tags[key]) is None:
            yield Finding(f"{key} tag", "a number of samples", repr(found.tags[key]))
    tagged = found.tagged
    if tagged is None:
        return
    if tagged.end > n_samples:
        yield Finding("LOOPLENGTH tag", f"an end up to {n_samples:,}", f"{tagged.end:,}")
    elif tagged.end == tagged.start:
        yield Finding("LOOPLENGTH tag", "a number of samples", "0")
    elif found.beats is not None and not low <= tagged.end - tagged.start <= high:
        wanted = f"{length:,} samples for {found.beats:,} beats"
        yield Finding("LOOPLENGTH tag", wanted, f"{tagged.end - tagged.start:,}")


def _sample_findings(found: Described) -> Iterator[Finding]:
    samples = found.wave.samples
    if not np.isfinite(samples).all():
        bad = np.count_nonzero(~np.isfinite(samples))
        yield Finding("samples", "numbers", f"{bad:,} that are none")
        return
    peak = found.wave.peak
    if peak < SILENT:
        yield Finding("level", "a sound", f"silence (a peak of {_decibels(peak)})")
    scale = FULL_SCALE.get(found.subtype)
    if scale is None and peak > 1:
        yield Finding("level", "a peak up to full scale", f"{_decibels(peak)} above it")
    elif scale is not None:
        # Nothing within half a step of the largest value but that and the two most negative.
        longest = max(_longest_run(channel, (scale - 1.5) / scale) for channel in samples)
        if longest >= CLIPPED_SAMPLES:
            yield Finding("level", "no clipping", f"{longest:,} samples in a row at full scale")


def _decibels(peak: float) -> str:
    return f"{20 * math.log10(peak):.1f} dB" if peak > 0 else "nothing"


def _longest_run(channel: Samples, full: float) -> int:
    """Samples in a row at one end of the scale."""
    longest = 0
    for signed in (channel, -channel):
        edges = np.flatnonzero(np.diff(signed >= full, prepend=False, append=False))
        longest = max(longest, int(np.diff(edges)[::2].max(initial=0)))
    return longest


def _notes(found: Described) -> Iterator[str]:
    if not found.tempi:
        yield "no tempo in header, tags or name"
    samples = found.wave.samples
    if not np.isfinite(samples).all() or found.wave.peak < SILENT:
        return
    sounds = np.flatnonzero(np.abs(samples).max(0) >= SILENT)
    silent = 1 - (int(sounds[-1]) + 1) / len(found.wave)
    if silent > 0.5:
        yield f"silent for the last {silent:.0%}"
    offset = float(np.abs(samples.mean(1, dtype=np.float64)).max())
    if offset > OFFSET:
        yield f"an offset of {offset:.1%} of full scale"


def _jump(sound: Wave, at: int) -> float | None:
    """None for what is too short, silent or damaged to be measured."""
    try:
        return seam.jump(sound, at)
    except LoopError:
        return None


def _largest_jump(loop: Wave, bars: int | None) -> float:
    """The largest at or near the bar lines other than the seam, 0 where there are none."""
    try:
        lines = seam.bar_lines(loop, bars)
    except CallError:  # the header's beats are no number for so few samples
        return 0.0
    near = (seam.largest_step(loop, line) for line in lines[:: 1 + len(lines) // MAX_LINES])
    return max((_jump(loop, place) or 0.0 for place in near), default=0.0)


def files(sources: Sequence[Path]) -> Iterator[Path]:
    """Files as given, and the audio files in folders and below, in order.

    Raises:
        LoopError: a folder holds none.
    """
    for source in sources:
        if not source.is_dir():
            yield source
            continue
        inside = [
            path
            for path in sorted(source.rglob("*"))
            if path.suffix.lower() in SUFFIXES and path.is_file()
        ]
        if not inside:
            raise LoopError(f"{source}: no audio files; give a folder that holds some")
        yield from inside
