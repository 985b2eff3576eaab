"""Checks whether an audio file's header, tags, name and samples agree.

Missing metadata is not a fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audioloop.io import metadata, riff
from audioloop.io.metadata import MAX_BPM, Metadata
from audioloop.io.riff import Finding
from audioloop.io.wave import SILENT, Samples
from audioloop.signal import verdict
from audioloop.signal.verdict import Verdict
from midiloop.common import files
from midiloop.errors import CallError, LoopError, counted

# Full scale by libsndfile's subtype; all other subtypes are decoded to floats.
FULL_SCALE = {
    "PCM_S8": 2**7, "PCM_U8": 2**7, "PCM_16": 2**15, "PCM_24": 2**23, "PCM_32": 2**31,
}  # fmt: skip

CLIPPED_SAMPLES = 3  # in a row at full scale; one or two are a normalised peak
OFFSET = 0.01  # of full scale


class Report(NamedTuple):
    """Report on one file.

    Attributes:
        metadata: header, tags and samples.
        findings: contradictions and faults; empty for a good file.
        notes: remarks that are no faults.
        seam: the verdict on the seam; None where it cannot be measured.
    """

    metadata: Metadata
    findings: list[Finding]
    notes: list[str]
    seam: Verdict | None

    @property
    def jump(self) -> float | None:
        """Sample discontinuity at the seam over its local median."""
        return self.seam.jump if self.seam else None


def check(path: Path) -> list[Finding]:
    """Faults of a file, see `examine`."""
    return examine(path).findings


def examine(path: Path) -> Report:
    """Compare header, tags, name and samples of a file.

    >>> import audioloop, numpy as np
    >>> from pathlib import Path
    >>> roll = np.zeros((16, 93), bool)
    >>> roll[::4, 0] = True
    >>> loop = audioloop.as_loop(roll, bpm=150)
    >>> (file,), _ = audioloop.write(loop.wave, Path("."), loop.label)
    >>> audioloop.check(Path(file)).findings
    []

    Raises:
        LoopError: the file is not audio.
        OSError: the file cannot be read.
    """
    found = metadata.read(path)
    findings = list(found.damage)
    findings += [*_header_findings(found), *_tempo_findings(found), *_length_findings(found)]
    findings += _sample_findings(found)
    judged = _judged(found)
    if judged and judged.bad:
        limit = f"a jump of at most {judged.allowed:.1f}"
        step = f"and a step of {verdict.percent(judged.step)} of the peak"
        findings.append(Finding("seam", limit, f"{judged.jump:.1f}, {step}"))
    return Report(found, findings, [*found.notes, *_notes(found)], judged)


def _judged(found: Metadata) -> Verdict | None:
    """The verdict on the seam; None if the loop is too short, silent or damaged."""
    for bars in (found.bars, None):  # the header's beats may be out of range for so few samples
        try:
            return verdict.of(found.repeats, bars)
        except CallError:
            continue
        except LoopError:
            return None
    return None


def _header_findings(found: Metadata) -> Iterator[Finding]:
    n_samples = len(found.wave)
    for acid in found.acids:
        if not 0 < acid.tempo_bpm < MAX_BPM:
            yield Finding("acid chunk", "a tempo", f"{acid.tempo_bpm:g} bpm")
        if acid.one_shot:
            yield Finding("acid chunk", "a loop", "the flag of a one-shot")
    said = {(acid.beats, acid.meter) for acid in found.acids}
    if len(said) > 1:
        texts = [f"{counted(beats, 'beat')} of {n}/{d}" for beats, (n, d) in sorted(said)]
        yield Finding("acid chunks", "the same", " and ".join(texts))
    for loop in found.loops[:1]:
        if loop.kind != riff.FORWARD:
            yield Finding("smpl loop", "one that plays forward", f"kind {loop.kind}")
        if loop.end > n_samples or loop.end - loop.start < 2:
            inside = f"a part of samples 0–{n_samples:,}"
            yield Finding("smpl loop", inside, f"{loop.start:,}–{loop.end:,}")


def _tempo_findings(found: Metadata) -> Iterator[Finding]:
    if "BPM" in found.tags and metadata.number(found.tags["BPM"]) is None:
        yield Finding("BPM tag", "a tempo", files.shortened(repr(found.tags["BPM"])))
    for other in found.tempi[1:]:
        if not found.tempi[0].agrees(other):
            yield Finding("tempo", str(found.tempi[0]), str(other))


def _length_findings(found: Metadata) -> Iterator[Finding]:
    rate, length = found.wave.rate, len(found.repeats)
    if found.tempi:
        tempo = found.tempi[0]
        if found.beats is None and metadata.nearest(found.repeats, tempo) is None:
            beats = length / rate * tempo.bpm / 60
            yield Finding("length", f"whole beats at {tempo}", f"{beats:.3f} beats")
        elif found.beats is not None:
            low, high = metadata.samples_of(found.beats, tempo, rate)
            expected = round(found.beats * 60 / tempo.bpm * rate)
            if not low <= length <= high:
                wanted = (
                    f"{counted(expected, 'sample')} for {counted(found.beats, 'beat')} at {tempo}"
                )
                yield Finding("length", wanted, f"{length:,}")
    yield from _point_findings(found)


def _point_findings(found: Metadata) -> Iterator[Finding]:
    """Tags of loop points that are outside of the file, or contradict each other."""
    n_samples, tags = len(found.wave), found.tags
    for key in metadata.POINTS:
        if key in tags and metadata.whole(tags[key]) is None:
            said = files.shortened(repr(tags[key]))
            yield Finding(f"{key} tag", "a number of samples", said)
    tagged = found.tagged
    if tagged is None:
        return
    key = next((key for key in metadata.POINTS[1:] if key in tags), "LOOPSTART")
    end = metadata.whole(tags.get("LOOPEND", ""))
    if tagged.end > n_samples:
        yield Finding(f"{key} tag", f"an end up to {n_samples:,}", f"{tagged.end:,}")
    elif tagged.end <= tagged.start:
        yield Finding(f"{key} tag", "a number of samples", f"{tagged.end - tagged.start:,}")
    elif (
        end is not None and abs(end - tagged.end) > 1
    ):  # some tags count the last sample, some the next
        yield Finding("LOOPEND tag", f"an end at {tagged.end:,}", f"{end:,}")


def _sample_findings(found: Metadata) -> Iterator[Finding]:
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
        # Within half a step of the largest value are only that and the two most negative values.
        longest = max(_longest_run(channel, (scale - 1.5) / scale) for channel in samples)
        if longest >= CLIPPED_SAMPLES:
            yield Finding(
                "level", "no clipping", f"{counted(longest, 'sample')} in a row at full scale"
            )


def _decibels(peak: float) -> str:
    return f"{20 * math.log10(peak):.1f} dB" if peak > 0 else "nothing"


def _longest_run(channel: Samples, full: float) -> int:
    """The longest run of samples at either end of the scale."""
    longest = 0
    for signed in (channel, -channel):
        edges = np.flatnonzero(np.diff(signed >= full, prepend=False, append=False))
        longest = max(longest, int(np.diff(edges)[::2].max(initial=0)))
    return longest


def _notes(found: Metadata) -> Iterator[str]:
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
