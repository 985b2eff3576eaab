"""The source of refine and generate: a loop's wave, its length and its conditioning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audioloop.conditioning import REFERENCE_BPM, STEPS_PER_BEAT, Conditioning
from audioloop.io import metadata, sources
from audioloop.io.label import DRUMS, LoopLabel, decimal, without_tempo
from audioloop.io.metadata import Metadata
from audioloop.io.wave import SILENT, Wave
from audioloop.rendering import piece, render
from audioloop.rendering.piece import Piece
from audioloop.rendering.render import Sound
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


@dataclass(frozen=True, eq=False)
class SourceLoop:
    """A loop.

    Attributes:
        source: its file; None where it comes from memory.
        wave: whole bars of it.
        label: whose number of samples is that of the wave.
        conditioning: its notes, if they are known, its beat, and what plays them.
        score: of its notes, if they are known.
        notes: what was found out, or is odd.
    """

    source: Path | None
    wave: Wave
    label: LoopLabel
    conditioning: Conditioning
    score: Score | None = None
    notes: tuple[str, ...] = ()


def files(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as they are given, and the MIDI files of folders, or else their audio.

    Raises:
        LoopError: there is neither in a folder.
    """
    for source in paths:
        inside = sorted(source.rglob("*")) if source.is_dir() else []
        midi = [path for path in inside if path.suffix.lower() in MIDI and path.is_file()]
        if midi:
            yield from midi
        else:
            yield from sources.audio([source])


def read(
    path: Path,
    font: SoundFont | None = None,
    sound: Sound = SOUND,
    *,
    bpm: float | None = None,
    bars: int | None = None,
) -> SourceLoop:
    """Read a loop.

    >>> import audioloop, midiloop, numpy as np
    >>> from pathlib import Path
    >>> roll = np.zeros((16, 93), bool)
    >>> roll[::4, 0] = True
    >>> midiloop.write(midiloop.decode(roll, 150), "beat.mid")
    >>> audioloop.read_loop(Path("beat.mid")).label.tempo_bpm
    150.0

    Args:
        font: what MIDI is rendered with; None for the one that is found, see `synth.soundfont`.
        sound: and how.
        bpm, bars: in place of what the file says. Audio that is longer than so many bars at that
            tempo is cut to them.

    Raises:
        LoopError: it cannot be read, is no loop, or silent, or its tempo can be found nowhere.
    """
    with sources.errors_named(path):
        try:
            if path.suffix.lower() in MIDI:
                loop = piece.read(path, name_of(path), bpm=bpm, bars=bars)
                return replace(_of_piece(loop, font, sound), source=path)
            return _of_audio(metadata.read(path), bpm, bars)
        except ImportError as error:  # of a tracker, which other files may not need
            raise LoopError(str(error)) from error


def needs_font(paths: Sequence[Path]) -> bool:
    """Whether one of the files is MIDI."""
    return any(path.suffix.lower() in MIDI for path in paths)


def name_of(path: Path) -> str:
    """What a file is called, less the tempo and key at its end, which are put there again."""
    return without_tempo(path.stem)


def of(
    source: Score | Roll | Wave,
    font: SoundFont | None = None,
    sound: Sound = SOUND,
    *,
    bpm: float | None = None,
    bars: int | None = None,
    name: str = "loop",
) -> SourceLoop:
    """A loop of what is in memory: a score, a roll or a wave; see `of_score` and so on.

    >>> import audioloop, numpy as np
    >>> roll = np.zeros((16, 93), bool)
    >>> roll[::4, 0] = True
    >>> loop = audioloop.as_loop(roll, bpm=150)
    >>> loop.label.bars, len(loop.wave)
    (1, 70560)

    Raises:
        LoopError: it is no loop, or silent, or its tempo can be found nowhere.
        ImportError: FluidSynth, or a tracker of beats, is missing.
    """
    if isinstance(source, Wave):
        return of_wave(source, bpm=bpm, bars=bars, name=name)
    if isinstance(source, Score):
        return of_score(source, font, sound, bpm=bpm, bars=bars, name=name)
    return of_roll(source, font, sound, bpm=bpm, bars=bars, name=name)


def of_score(
    song: Score,
    font: SoundFont | None = None,
    sound: Sound = SOUND,
    *,
    bpm: float | None = None,
    bars: int | None = None,
    name: str = "loop",
) -> SourceLoop:
    """A score, rendered: the same as `read` gives of its file.

    Raises:
        LoopError: see `piece.of_score`; or it is silent with this SoundFont.
        ImportError: FluidSynth is missing.
    """
    return _of_piece(piece.of_score(song, name, bpm=bpm, bars=bars), font, sound)


def of_roll(
    roll: Roll,
    font: SoundFont | None = None,
    sound: Sound = SOUND,
    *,
    bpm: float | None = None,
    bars: int | None = None,
    name: str = "loop",
) -> SourceLoop:
    """A roll (steps, columns), rendered, at 120 bpm where no tempo is given.

    Raises:
        LoopError: see `of_score`.
        ImportError: FluidSynth is missing.
    """
    return _of_piece(piece.of(roll, name, bpm=bpm, bars=bars), font, sound)


def of_wave(
    loop: Wave,
    *,
    bpm: float | None = None,
    bars: int | None = None,
    meter: tuple[int, int] = (4, 4),
    name: str = "loop",
) -> SourceLoop:
    """A wave, as `read` takes a file that states nothing.

    Args:
        bpm, bars: that it has; what is longer than so many bars at that tempo is cut to them.
            Without them the tempo is tracked, or found by its length.

    Raises:
        LoopError: it is silent, or its tempo can be found nowhere.
        ImportError: a tracker of beats is missing.
    """
    if not loop.samples.size:
        raise LoopError("no samples; give a loop that sounds")
    return _of_wave(loop, name, [], _Length(bpm, bars, meter, exact=bpm is not None))


def _of_piece(loop: Piece, font: SoundFont | None, sound: Sound) -> SourceLoop:
    rendered = render.loop(loop, font or SoundFont(), sound)
    conditioning = conditioning_of(replace(loop, score=rendered.score))
    return SourceLoop(None, rendered.mix, rendered.label, conditioning, rendered.score)


def conditioning_of(loop: Piece) -> Conditioning:
    """Conditioning of a piece: its drums and its bass, on the grid."""
    steps = int(loop.label.quarters * STEPS_PER_BEAT)
    drawn = pianoroll.encode(loop.score)[:steps]
    roll: Roll = np.zeros((steps, LOOP.columns), np.bool_)
    roll[: len(drawn)] = drawn
    parts = {render.part_of(track): track.program for track in loop.score.tracks if track.n_notes}
    return Conditioning(roll, steps, parts.get(DRUMS), parts.get(render.BASS))


class _Length(NamedTuple):
    """What is said of a wave.

    Attributes:
        exact: the tempo is said by the caller; with bars, the wave is cut to as much.
    """

    tempo_bpm: float | None
    bars: int | None
    meter: tuple[int, int]
    exact: bool


def _of_audio(found: Metadata, bpm: float | None, bars: int | None) -> SourceLoop:
    tempo_bpm = found.tempo_bpm if bpm is None else bpm
    length = _Length(tempo_bpm, bars or found.bars, found.meter, exact=bpm is not None)
    loop = _of_wave(found.repeats, name_of(found.path), found.remarks, length)
    return replace(loop, source=found.path)


def _of_wave(loop: Wave, name: str, notes: list[str], length: _Length) -> SourceLoop:
    tempo_bpm, n_bars, meter, exact = length
    if not np.isfinite(loop.samples).all():
        raise LoopError("samples that are no numbers; export it again")
    if loop.peak < SILENT:
        raise LoopError("silent; give a loop that sounds")
    if len(loop.samples) > 1:
        notes.append(f"{len(loop.samples)} channels mixed to one")
    if exact and tempo_bpm is not None and n_bars is not None:
        loop, remarks = _so_long(loop, tempo_bpm, n_bars, meter)
        notes += remarks
    elif n_bars is None:
        loop, n_bars, meter, remarks = _whole_bars(loop, tempo_bpm, meter)
        notes += remarks
    label = LoopLabel(_tempo(loop, n_bars, meter, tempo_bpm), n_bars, meter, name=name)
    steps = int(label.quarters * STEPS_PER_BEAT)
    return SourceLoop(None, loop, label, Conditioning(steps=steps), notes=tuple(notes))


def _so_long(loop: Wave, bpm: float, n_bars: int, meter: tuple[int, int]) -> tuple[Wave, list[str]]:
    """So many bars at a tempo, both of them told, from the beginning of a wave; and what is said.

    Where that is within a little of all of it, all of it is meant.

    Raises:
        LoopError: it is shorter than that.
    """
    wanted = LoopLabel(bpm, n_bars, meter)
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
    one = LoopLabel(stated or REFERENCE_BPM, n_bars, meter)
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
