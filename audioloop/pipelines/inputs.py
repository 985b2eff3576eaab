"""A loop that is given to be made anew: how it sounds, how long it is, and what is known of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from audioloop.conditioning import REFERENCE_BPM, STEPS_PER_BEAT, Conditioning
from audioloop.io import metadata, sources
from audioloop.io.label import Label, decimal
from audioloop.io.metadata import Metadata
from audioloop.io.wave import SILENT, Wave
from audioloop.rendering import piece, render
from audioloop.rendering.piece import Piece
from audioloop.rendering.render import DRUMS, Sound
from audioloop.rendering.synth import SoundFont
from audioloop.signal import beats, verdict
from audioloop.signal.beats import Pulse
from midiloop.errors import LoopError, counted
from midiloop.grid import LOOP, Roll
from midiloop.midi import pianoroll
from midiloop.midi.score import Score

MIDI = (".mid", ".midi", ".kar", ".rmi")
RATE = 44_100  # of what is rendered
# Of audio that is no whole bars, so many seconds are taken, in whole bars.
SHORTEST_S, LONGEST_S = 2.0, 30.0
# What a loop that was cut well is likely to have, where nothing says its tempo.
LIKELY_BARS, LIKELY_BPM = (1, 2, 4, 8, 16), (70.0, 180.0)
DEFAULT_BARS = 4
NEAR_BEATS = 0.1  # as far as audio may be from whole bars and still be meant to be some
# Times that the tempo of a loop may be heard, each with the share by which it may be off: a tracker
# takes a half or a double for it, and triplets for beats.
TEMPO_RATIOS = {1.0: 0.05, 2.0: 0.05, 0.5: 0.05, 4 / 3: 0.01, 3 / 2: 0.01, 2 / 3: 0.01, 3 / 4: 0.01}
SOUND = Sound()
_STATED_TEMPO = re.compile(r"[ _-]*\d+(?:\.\d+)?[ _-]?bpm$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class SourceLoop:
    """A loop.

    Attributes:
        source: its file.
        wave: whole bars of it.
        label: whose number of samples is that of the wave.
        told: its notes, if they are known, its beat, and what plays them.
        score: of its notes, if they are known.
        notes: what was found out, or is odd.
    """

    source: Path
    wave: Wave
    label: Label
    conditioning: Conditioning
    score: Score | None = None
    notes: tuple[str, ...] = ()


def files(given: Sequence[Path]) -> Iterator[Path]:
    """Files as they are given, and the MIDI files of folders, or else their audio.

    Raises:
        LoopError: there is neither in a folder.
    """
    for source in given:
        inside = sorted(source.rglob("*")) if source.is_dir() else []
        midi = [path for path in inside if path.suffix.lower() in MIDI and path.is_file()]
        if midi:
            yield from midi
        else:
            yield from sources.audio([source])


def read(
    path: Path,
    font: SoundFont | None,
    sound: Sound = SOUND,
    *,
    bpm: float | None = None,
    bars: int | None = None,
) -> SourceLoop:
    """Read a loop.

    Args:
        font: what MIDI is rendered with.
        sound: and how.
        bpm, bars: in place of what the file says. Audio that is longer than so many bars at that
            tempo is cut to them.

    Raises:
        LoopError: it cannot be read, is no loop, or silent, or its tempo can be found nowhere.
    """
    with sources.errors_named(path):
        try:
            if path.suffix.lower() in MIDI:
                assert font is not None  # whoever gives MIDI gives something to play it
                return _of_midi(path, font, sound, bpm, bars)
            return _of_audio(metadata.read(path), bpm, bars)
        except ImportError as error:  # of a tracker, which other files may not need
            raise LoopError(str(error)) from error


def needs_font(paths: Sequence[Path]) -> bool:
    """Whether one of the files is MIDI."""
    return any(path.suffix.lower() in MIDI for path in paths)


def name_of(path: Path) -> str:
    """What a file is called, less the tempo that its name ends in: that is put there again."""
    return _STATED_TEMPO.sub("", path.stem) or path.stem


def _of_midi(
    path: Path, font: SoundFont, sound: Sound, bpm: float | None, bars: int | None
) -> SourceLoop:
    loop = piece.read(path, name_of(path), bpm=bpm, bars=bars)
    rendered = render.loop(loop, font, sound)
    conditioning = conditioning_of(replace(loop, score=rendered.score))
    return SourceLoop(path, rendered.mix, rendered.label, conditioning, rendered.score)


def conditioning_of(loop: Piece) -> Conditioning:
    """What can be told of a piece: its drums and its bass, on the grid."""
    steps = int(loop.label.quarters * STEPS_PER_BEAT)
    drawn = pianoroll.encode(loop.score)[:steps]
    roll: Roll = np.zeros((steps, LOOP.columns), np.bool_)
    roll[: len(drawn)] = drawn
    parts = {render.part_of(track): track.program for track in loop.score.tracks if track.n_notes}
    return Conditioning(roll, steps, parts.get(DRUMS), parts.get(render.BASS))


def _of_audio(found: Metadata, bpm: float | None, bars: int | None) -> SourceLoop:
    loop, notes = found.repeats, found.remarks
    if not np.isfinite(loop.samples).all():
        raise LoopError("samples that are no numbers; export it again")
    if loop.peak < SILENT:
        raise LoopError("silent; give a loop that sounds")
    if len(loop.samples) > 1:
        notes.append(f"{len(loop.samples)} channels mixed to one")
    stated = found.tempo_bpm if bpm is None else bpm
    n_bars, meter = bars or found.bars, found.meter
    if bpm is not None and n_bars is not None:
        loop, remarks = _so_long(loop, bpm, n_bars, meter)
        notes += remarks
    elif n_bars is None:
        loop, n_bars, meter, remarks = _whole_bars(loop, stated, meter)
        notes += remarks
    label = Label(_tempo(loop, n_bars, meter, stated), n_bars, meter, name=name_of(found.path))
    steps = int(label.quarters * STEPS_PER_BEAT)
    return SourceLoop(found.path, loop, label, Conditioning(steps=steps), notes=tuple(notes))


def _so_long(loop: Wave, bpm: float, n_bars: int, meter: tuple[int, int]) -> tuple[Wave, list[str]]:
    """So many bars at a tempo, both of them told, from the beginning of a wave; and what is said.

    Where that is within a little of all of it, all of it is meant.

    Raises:
        LoopError: it is shorter than that.
    """
    wanted = Label(bpm, n_bars, meter)
    n_samples = wanted.samples(loop.rate)
    off_beats = (len(loop) - n_samples) / loop.rate * bpm / 60
    if abs(off_beats) <= NEAR_BEATS:
        return loop, []
    said = f"{counted(n_bars, 'bar')} at {decimal(bpm)} bpm"
    if off_beats < 0:
        raise LoopError(
            f"{said} are {n_samples / loop.rate:.2f} s, and it lasts {loop.duration_s:.2f} s; "
            "give --bpm or --bars alone"
        )
    return _first(loop, n_samples), [f"{said}: {_cut(n_samples, loop)}"]


def _first(loop: Wave, n_samples: int) -> Wave:
    return Wave(loop.samples[:, :n_samples], loop.rate)


def _cut(n_samples: int, loop: Wave) -> str:
    return f"the first {n_samples:,} samples of {len(loop):,}, the rest is left out"


def _tempo(loop: Wave, n_bars: int, meter: tuple[int, int], stated: float | None) -> float:
    """The tempo that gives just as many samples: a stated one may be rounded."""
    one = Label(stated or REFERENCE_BPM, n_bars, meter)
    if stated is not None and one.samples(loop.rate) == len(loop):
        return stated
    tempo_bpm = float(one.quarters) * 60 / loop.duration_s
    if not piece.MIN_BPM <= tempo_bpm <= piece.MAX_BPM:
        raise LoopError(
            f"{counted(n_bars, 'bar')} in {loop.duration_s:.2f} s are {decimal(tempo_bpm)} bpm, "
            f"and tempi are from {piece.MIN_BPM:.0f} to {piece.MAX_BPM:.0f}; say how many it has "
            "with --bars"
        )
    return tempo_bpm


Bars = tuple[Wave, int, tuple[int, int], list[str]]


def _whole_bars(loop: Wave, stated: float | None, meter: tuple[int, int]) -> Bars:
    """Whole bars of a wave, how many they are, their meter, and what is to be said of it.

    All of it, where its tempo is stated or heard and leaves whole bars, or where it is a loop whose
    length tells; else what Algorithm 1 of LoopGen takes.

    Raises:
        LoopError: no tempo is known, or it leaves no whole bars.
    """
    if stated is not None:
        pulse = _said(stated, meter)
        found = _all_of(loop, pulse) or _some_of(loop, pulse)
    else:
        try:
            pulse = beats.track(loop)
        except (LoopError, ImportError) as error:
            found = _by_length(loop, None)
            if found is None:
                raise LoopError(f"{error}, or say with --bars how many it has") from error
            return found
        found = _all_of(loop, pulse) or _by_length(loop, pulse)
        # What leaves no whole bars at all was misheard, if this is a loop.
        found = found or _some_of(loop, pulse) or _by_length(loop, None)
    if found is None:
        raise LoopError(
            f"{loop.duration_s:.1f} s at {pulse.tempo_bpm:.0f} bpm hold no whole bars; "
            "say how many it has with --bars"
        )
    return found


def _all_of(loop: Wave, pulse: Pulse) -> Bars | None:
    """All of a wave, where that is about whole bars of a pulse."""
    n_bars = round(loop.duration_s / pulse.bar_s)
    off_s = abs(n_bars * pulse.bar_s - loop.duration_s)
    if not n_bars or off_s > NEAR_BEATS * pulse.beat_s or loop.duration_s > LONGEST_S:
        return None
    return loop, n_bars, (pulse.beats_per_bar, 4), [_tempo_of(pulse, n_bars)]


def _some_of(loop: Wave, pulse: Pulse) -> Bars | None:
    """The first bars of a pulse, as many as Algorithm 1 of LoopGen takes."""
    longest_s = min(LONGEST_S, loop.duration_s)
    n_bars = beats.aligned_bars(pulse, min(SHORTEST_S, longest_s), longest_s, DEFAULT_BARS)
    if n_bars is None:
        return None
    n_samples = round(n_bars * pulse.bar_s * loop.rate)
    said = _tempo_of(pulse, n_bars)
    if n_samples < len(loop):
        said += f": {_cut(n_samples, loop)}"
    return _first(loop, n_samples), n_bars, (pulse.beats_per_bar, 4), [said]


def _tempo_of(pulse: Pulse, n_bars: int) -> str:
    tracked = "" if pulse.source == "said" else f" ({pulse.source})"
    return f"{counted(n_bars, 'bar')} at {decimal(pulse.tempo_bpm)} bpm{tracked}"


def _by_length(loop: Wave, heard: Pulse | None) -> Bars | None:
    """All of a loop that was cut well, as whole bars of 4/4 by its length; None of what is none.

    Of `LIKELY_BARS` those whose tempo is nearest to the one that is heard, if that can be `HEARD`
    of it; where none is heard, to the middle of `LIKELY_BPM`.
    """
    try:
        if verdict.of(loop, None).bad:
            return None
    except LoopError:
        return None
    tempi = {bars: bars * 240 / loop.duration_s for bars in LIKELY_BARS}
    low, high = LIKELY_BPM
    wanted = heard.tempo_bpm if heard else math.sqrt(low * high)
    n_bars = min(tempi, key=lambda number: abs(math.log(tempi[number] / wanted)))
    tempo_bpm = tempi[n_bars]
    if heard is None:
        likely = low <= tempo_bpm <= high
    else:
        likely = any(
            abs(wanted / tempo_bpm / times - 1) <= off for times, off in TEMPO_RATIOS.items()
        )
    said = (
        f"{counted(n_bars, 'bar')} at {decimal(tempo_bpm)} bpm (by its length; else say --bars or "
        "--bpm)"
    )
    return (loop, n_bars, (4, 4), [said]) if likely else None


def _said(tempo_bpm: float, meter: tuple[int, int]) -> Pulse:
    """Of quarter notes; a bar that is no whole number of them is taken for four."""
    quarters = Fraction(4 * meter[0], meter[1])
    return beats.said(tempo_bpm, int(quarters) if quarters.denominator == 1 else 4)
