"""Loops made anew on the ring: parts of one that is given, or all of one that is only described.

::

    given  -> codes, some bars open -> filled on the ring -> as many samples as before
    told   -> nothing but gaps      -> filled on the ring -> as many samples as its bars have
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from audioloop.codec import compression
from audioloop.conditioning import Conditioning
from audioloop.io import wave
from audioloop.io.label import Label, Names
from audioloop.io.sources import errors_named
from audioloop.io.wave import Format, Wave
from audioloop.pipelines import inputs
from audioloop.pipelines.inpaint import SAMPLING, Inpainter, SamplingConfig
from audioloop.pipelines.inputs import SourceLoop
from midiloop.common.files import printable, working_in
from midiloop.errors import CallError, LoopError, counted
from midiloop.grid import LOOP
from midiloop.midi import score
from midiloop.midi.score import Score

# More would need more memory than a laptop has: attention is between all pairs of frames.
MAX_FRAMES = 4000
MOST_BARS = 1024
# Around a note's beginning, what is made anew where only beginnings are.
ONSET_S = (-0.02, 0.1)
FORMAT = Format()
LOSSY_PEAK = 10 ** (-1 / 20)  # what comes back of OGG reaches a little further than what went in
BAR_SETS = {"even": slice(1, None, 2), "odd": slice(0, None, 2), "last": slice(-1, None)}
_BARS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class InpaintMask:
    """Which part of a loop is made anew.

    Attributes:
        keep: share of the loop that stays, from its beginning, in whole bars, or
            in beats where it is less than one, or all but less than one.
        mask: in place of that: "even" or "odd" bars, "last", "onsets" (where notes begin), or
            bars counted from 1, as in "2,4,7-8".
    """

    keep: float = 0.5
    mask: str | None = None

    def __post_init__(self) -> None:
        """Raise `CallError` for what is no share, and for what no loop has."""
        if not 0 <= self.keep <= 1:
            raise CallError(f"--keep {self.keep:g}: out of range; give 0 to 1")
        if self.mask not in (None, "onsets", *BAR_SETS) and not _listed(self.mask or ""):
            raise CallError(
                f"--mask {self.mask}: no bars; give {', '.join(BAR_SETS)}, onsets, or bars as in "
                "2,4,7-8"
            )

    def inpaint_mask(
        self, conditioning: Conditioning, bars: int, n_frames: int, frames_per_s: float
    ) -> Tensor:
        """Frames to be made anew, bool (T,).

        Raises:
            CallError: none are, or there are no such bars, or no notes are known.
        """
        if self.mask == "onsets":
            return _onsets(conditioning, n_frames, frames_per_s)
        if self.mask is None and not 0 < round(self.keep * bars) < bars and 0 < self.keep < 1:
            return self._beats(conditioning, bars, n_frames)
        regenerated = self._bars(bars)
        if not regenerated:
            raise CallError(
                f"--keep {self.keep:g} keeps all of {counted(bars, 'bar')}, and nothing is left "
                "to be made; keep less, or choose bars with --mask"
            )
        bar = ((np.arange(n_frames) + 0.5) * bars / n_frames).astype(np.int64) + 1
        return torch.from_numpy(np.isin(bar, list(regenerated)))

    def _beats(self, conditioning: Conditioning, bars: int, n_frames: int) -> Tensor:
        """Frames of the beats that go, where the share is less than a bar: at least one stays."""
        beats = max(
            2, round((conditioning.steps or bars * LOOP.steps_per_bar) / LOOP.steps_per_beat)
        )
        kept = min(max(1, round(self.keep * beats)), beats - 1)
        return (torch.arange(n_frames) + 0.5) * beats / n_frames >= kept

    def _bars(self, bars: int) -> set[int]:
        """Bars to be made anew, from 1."""
        every = range(1, bars + 1)
        if self.mask is None:
            return set(every[round(self.keep * bars) :])
        found = set(every[BAR_SETS[self.mask]]) if self.mask in BAR_SETS else _listed(self.mask)
        if not found or not found <= set(every):
            raise CallError(
                f"--mask {self.mask}: no such bars in a loop of {bars}; give others, from 1 on"
            )
        return found


def _listed(text: str) -> set[int]:
    """Bars that a text lists; none if it is no list."""
    found: set[int] = set()
    for word in text.split(","):
        match = _BARS.fullmatch(word.strip())
        if match is None:
            return set()
        first, last = int(match[1]), int(match[2] or match[1])
        found |= set(range(first, min(last, MOST_BARS) + 1))
    return found


def _onsets(conditioning: Conditioning, n_frames: int, frames_per_s: float) -> Tensor:
    if conditioning.roll is None or conditioning.steps is None:
        raise CallError("--mask onsets: no notes are known of audio; give the MIDI file")
    hits = conditioning.roll[:, : LOOP.n_drums].any(1)
    bass = conditioning.roll[:, LOOP.n_drums :]
    begins = hits | (bass & ~np.roll(bass, 1, 0)).any(1)
    inpaint_mask = np.zeros(n_frames, np.bool_)
    before, after = (round(s * frames_per_s) for s in ONSET_S)
    for step in np.flatnonzero(begins).tolist():
        at = round(step * n_frames / conditioning.steps)
        inpaint_mask[np.arange(at + before, at + after + 1) % n_frames] = True
    if not inpaint_mask.any():
        raise CallError("--mask onsets: no note of its drums or bass begins")
    return torch.from_numpy(inpaint_mask)


class WrittenLoop(NamedTuple):
    """A loop that was written.

    Attributes:
        source: file that it was made of; "" where it was made of nothing.
        files: names in the output folder, audio first, then MIDI where notes are known.
        anew: share of its frames that were made.
        notes: what is worth knowing.
    """

    source: str
    files: tuple[str, ...]
    label: Label
    samples: int
    regenerated: float
    notes: tuple[str, ...] = ()


def refine(
    loop: SourceLoop,
    inpainter: Inpainter,
    part: InpaintMask = InpaintMask(),
    *,
    num_samples: int = 1,
    sampling: SamplingConfig = SAMPLING,
    ignore_notes: bool = False,
) -> tuple[list[Wave], float]:
    """Make a part of a loop anew.

    Args:
        ignore_notes: condition the model on nothing of the notes, as where it only has the audio.

    Returns:
        Waves (1, samples) of as many samples as the loop has, and the share that is new.

    Raises:
        CallError: see `Part.opened`.
        LoopError: the loop is too long, shorter than a frame, or silent.
    """
    n_samples, rate = len(loop.wave), loop.wave.rate
    if not 0 < loop.wave.peak < math.inf:
        raise LoopError("silent, or samples that are no numbers; give a loop that sounds")
    n_frames = _frames(inpainter, n_samples, rate)
    frames_per_s = inpainter.codec.config.frames_per_s
    inpaint_mask = part.inpaint_mask(loop.conditioning, loop.label.bars, n_frames, frames_per_s)
    conditioning = _heard(loop, ignore_notes=ignore_notes)
    # Models have learned from loops of about full scale.
    peak = np.float32(loop.wave.peak)
    coded = compression.encode(Wave(loop.wave.samples / peak, rate), inpainter.codec)
    condition = conditioning.on(n_frames, frames_per_s)
    ways = inpainter.filled(coded.codes, inpaint_mask, condition, num_samples, sampling)
    kept = ~inpaint_mask, coded.latent
    made = [inpainter.decoded(codes[None], n_samples, rate, kept) for codes in ways]
    return [Wave(one.samples * peak, rate) for one in made], float(inpaint_mask.float().mean())


def _heard(loop: SourceLoop, *, ignore_notes: bool) -> Conditioning:
    """What the model is told of a loop: all, or all but the notes."""
    return replace(loop.conditioning, roll=None) if ignore_notes else loop.conditioning


def generate(
    label: Label,
    conditioning: Conditioning,
    inpainter: Inpainter,
    *,
    rate: int = inputs.RATE,
    num_samples: int = 1,
    sampling: SamplingConfig = SAMPLING,
    causal_prefix: bool = False,
) -> list[Wave]:
    """Make loops of what is told of them.

    Args:
        label: tempo, bars and meter.
        causal_prefix: let the causal model write the first half, as in LoopGen's hybrid, see
            `prefix.prefix`.

    Returns:
        Waves (1, samples), of exactly as many samples as the label says. Number i depends on the
        seed and i alone.

    Raises:
        LoopError: the loop is too long.
    """
    n_samples = label.samples(rate)
    n_frames = _frames(inpainter, n_samples, rate)
    condition = conditioning.on(n_frames, inpainter.codec.config.frames_per_s)
    codes = torch.zeros(1, inpainter.codec.config.codebooks, n_frames, dtype=torch.int64)
    inpaint_mask = torch.ones(n_frames, dtype=torch.bool)
    half = n_frames // 2
    if causal_prefix and half:
        first = inpainter.primed(condition, half, num_samples, sampling).cpu()
        codes = torch.cat([first, codes[..., half:].expand(num_samples, -1, -1)], -1)
        inpaint_mask[:half] = False
    ways = inpainter.filled(codes, inpaint_mask, condition, num_samples, sampling)
    return [inpainter.decoded(codes[None], n_samples, rate) for codes in ways]


def _frames(inpainter: Inpainter, n_samples: int, rate: int) -> int:
    n_frames = inpainter.n_frames(n_samples, rate)
    if n_frames > MAX_FRAMES:
        longest_s = MAX_FRAMES / inpainter.codec.config.frames_per_s
        raise LoopError(
            f"{n_samples / rate:.0f} s are over {longest_s:.0f}, the longest loop that is made "
            "anew at once; give fewer bars, or a faster tempo"
        )
    return n_frames


def write(
    made: Wave, out: Path, label: Label, form: Format, notes: Score | None
) -> tuple[tuple[str, ...], list[str]]:
    """Write a loop as `render` does: labelled audio, and a MIDI file where its notes are known.

    Returns:
        Names of the files, and what is worth knowing of them.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    remarks = []
    room = LOSSY_PEAK if form.depth == "lossy" else form.headroom
    if made.peak > room:
        remarks.append(f"turned down by {20 * math.log10(made.peak / room):.1f} dB, or it clips")
        made = Wave(made.samples * np.float32(room / made.peak), made.rate)
    stem = label.file_name("default")
    out.mkdir(parents=True, exist_ok=True)
    names = [stem + form.suffix]
    if notes is not None:
        names.append(f"{stem}.mid")
        score.write(notes.cut(), out / names[1])
    try:
        wave.write(out / names[0], made, label, form)
    except BaseException:
        for name in names[1:]:
            (out / name).unlink(missing_ok=True)
        raise
    return tuple(names), remarks


def run(
    sources: Sequence[Path],
    out: Path,
    inpainter: Inpainter,
    read: Callable[[Path], SourceLoop],
    part: InpaintMask = InpaintMask(),
    *,
    num_samples: int = 1,
    sampling: SamplingConfig = SAMPLING,
    ignore_notes: bool = False,
    form: Format = FORMAT,
) -> Iterator[list[WrittenLoop] | LoopError]:
    """Refine files one by one, and write what becomes of each; one that fails costs itself.

    Args:
        read: a loop of a path, see `inputs.read`.

    Raises:
        CallError: ``out`` is a file, or another run is at work there.
    """
    names = reserved_names(sources, out)
    with working_in(out):
        for source in sources:
            try:
                with errors_named(source):
                    made = _one(
                        read(source),
                        out,
                        inpainter,
                        part,
                        num_samples,
                        sampling,
                        ignore_notes,
                        form,
                        names,
                    )
            except LoopError as error:
                yield error
            else:
                yield made


def reserved_names(sources: Sequence[Path], out: Path) -> Names:
    """Names in the output folder that nothing may get: those of what is read."""
    folder = out.resolve()
    return Names(path.stem for path in sources if path.resolve().parent == folder)


def with_unique_name(label: Label, names: Names) -> Label:
    """The label with a name under which no other file is."""

    def more(added: str) -> Label:
        return replace(label, name=label.name + added)

    return more(names.own(lambda added: more(added).file_name("default")))


def with_number(label: Label, number: int, n: int) -> Label:
    """The label of one of ``n`` variations, counted from 1."""
    return replace(label, name=f"{label.name}-v{number}") if n > 1 else label


def _one(
    loop: SourceLoop,
    out: Path,
    inpainter: Inpainter,
    part: InpaintMask,
    num_samples: int,
    sampling: SamplingConfig,
    ignore_notes: bool,
    form: Format,
    names: Names,
) -> list[WrittenLoop]:
    made, regenerated = refine(
        loop, inpainter, part, num_samples=num_samples, sampling=sampling, ignore_notes=ignore_notes
    )
    found = []
    for number, one in enumerate(made, start=1):
        label = with_unique_name(with_number(loop.label, number, len(made)), names)
        files, remarks = write(one, out, label, form, loop.score)
        notes = (*loop.notes, *remarks)
        found.append(
            WrittenLoop(printable(loop.source), files, label, len(one), regenerated, notes)
        )
    return found
