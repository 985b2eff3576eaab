"""A loop that is given to be made anew: how it sounds, how long it is, and what is known of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from audioloop import beats, check, described, piece, render
from audioloop.beats import Pulse
from audioloop.conditions import STEPS_PER_BEAT, USUAL_BPM, Told
from audioloop.described import Described
from audioloop.label import Label, decimal
from audioloop.piece import Piece
from audioloop.render import DRUMS, Sound
from audioloop.synth import SoundFont
from audioloop.wave import Wave
from midiloop import pianoroll
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Roll
from midiloop.score import Score

MIDI = (".mid", ".midi", ".kar", ".rmi")
RATE = 44_100  # of what is rendered
# Of audio whose tempo has to be tracked, so many seconds are taken, in whole bars.
SHORTEST_S, LONGEST_S = 2.0, 30.0
USUAL_BARS = 4
NEAR_BEATS = 0.1  # as far as audio may be from whole bars and still be meant to be some
SOUND = Sound()
_STATED_TEMPO = re.compile(r"[ _-]*\d+(?:\.\d+)?[ _-]?bpm$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Given:
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
    told: Told
    score: Score | None = None
    notes: tuple[str, ...] = ()


def files(sources: Sequence[Path]) -> Iterator[Path]:
    """Files as they are given, and the MIDI files of folders, or else their audio.

    Raises:
        LoopError: there is neither in a folder.
    """
    for source in sources:
        inside = sorted(source.rglob("*")) if source.is_dir() else []
        midi = [path for path in inside if path.suffix.lower() in MIDI and path.is_file()]
        if midi:
            yield from midi
        else:
            yield from check.files([source])


def read(
    path: Path,
    font: SoundFont | None,
    sound: Sound = SOUND,
    *,
    bpm: float | None = None,
    bars: int | None = None,
) -> Given:
    """Read a loop.

    Args:
        font: what MIDI is rendered with.
        sound: and how.
        bpm, bars: of what the file does not say it of; for MIDI, the tempo in place of its own.

    Raises:
        LoopError: it is no loop, or silent, or its tempo can be found nowhere.
        OSError: it cannot be read.
    """
    try:
        if path.suffix.lower() in MIDI:
            assert font is not None  # whoever gives MIDI gives something to play it
            return _of_midi(path, font, sound, bpm, bars)
        return _of_audio(described.read(path), bpm, bars)
    except (LoopError, ImportError) as error:
        raise LoopError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def needs_font(paths: Sequence[Path]) -> bool:
    """Whether one of the files is MIDI."""
    return any(path.suffix.lower() in MIDI for path in paths)


def name_of(path: Path) -> str:
    """What a file is called, less the tempo that its name ends in: that is put there again."""
    return _STATED_TEMPO.sub("", path.stem) or path.stem


def _of_midi(
    path: Path, font: SoundFont, sound: Sound, bpm: float | None, bars: int | None
) -> Given:
    loop = piece.read(path, name_of(path), bpm=bpm, bars=bars)
    rendered = render.loop(loop, font, sound)
    told = told_of(replace(loop, score=rendered.score))
    return Given(path, rendered.mix, rendered.label, told, rendered.score)


def told_of(loop: Piece) -> Told:
    """What can be told of a piece: its drums and its bass, on the grid."""
    steps = int(loop.label.quarters * STEPS_PER_BEAT)
    drawn = pianoroll.encode(loop.score)[:steps]
    roll: Roll = np.zeros((steps, LOOP.columns), np.bool_)
    roll[: len(drawn)] = drawn
    parts = {render.part_of(track): track.program for track in loop.score.tracks if track.n_notes}
    return Told(roll, steps, parts.get(DRUMS), parts.get(render.BASS))


def _of_audio(found: Described, bpm: float | None, bars: int | None) -> Given:
    loop, notes = found.repeats, []
    if not np.isfinite(loop.samples).all():
        raise LoopError("samples that are no numbers; export it again")
    if loop.peak < render.SILENT:
        raise LoopError("silent; give a loop that sounds")
    if len(loop.samples) > 1:
        notes.append(f"{len(loop.samples)} channels mixed to one")
    stated = found.tempo_bpm if bpm is None else bpm
    n_bars, meter = bars or found.bars, found.meter
    if n_bars is None:
        loop, n_bars, pulse = _whole_bars(loop, stated, meter)
        meter = pulse.beats_per_bar, 4
        tracked = f" ({pulse.source})" if stated is None else ""
        notes.append(f"{n_bars} bars at {decimal(pulse.tempo_bpm)} bpm{tracked}")
    label = Label(_tempo(loop, n_bars, meter, stated), n_bars, meter, name=name_of(found.path))
    steps = int(label.quarters * STEPS_PER_BEAT)
    return Given(found.path, loop, label, Told(steps=steps), notes=tuple(notes))


def _tempo(loop: Wave, n_bars: int, meter: tuple[int, int], stated: float | None) -> float:
    """The tempo that gives just as many samples: a stated one may be rounded."""
    one = Label(stated or USUAL_BPM, n_bars, meter)
    if stated is not None and one.samples(loop.rate) == len(loop):
        return stated
    tempo_bpm = float(one.quarters) * 60 / loop.duration_s
    if not piece.MIN_BPM <= tempo_bpm <= piece.MAX_BPM:
        raise LoopError(
            f"{n_bars} bars in {loop.duration_s:.2f} s are {decimal(tempo_bpm)} bpm, and tempi are "
            f"from {piece.MIN_BPM:.0f} to {piece.MAX_BPM:.0f}; say how many it has with --bars"
        )
    return tempo_bpm


def _whole_bars(
    loop: Wave, stated: float | None, meter: tuple[int, int]
) -> tuple[Wave, int, Pulse]:
    """Whole bars of a wave: all of it, or what Algorithm 1 of LoopGen takes, and its pulse."""
    pulse = beats.track(loop) if stated is None else _said(stated, meter)
    all_bars = round(loop.duration_s / pulse.bar_s)
    off_s = abs(all_bars * pulse.bar_s - loop.duration_s)
    if all_bars and off_s <= NEAR_BEATS * pulse.beat_s and loop.duration_s <= LONGEST_S:
        return loop, all_bars, pulse
    longest_s = min(LONGEST_S, loop.duration_s)
    n_bars = beats.aligned_bars(pulse, min(SHORTEST_S, longest_s), longest_s, USUAL_BARS)
    if n_bars is None:
        raise LoopError(
            f"{loop.duration_s:.1f} s at {pulse.tempo_bpm:.0f} bpm hold no whole bars; "
            "say how many it has with --bars"
        )
    n_samples = round(n_bars * pulse.bar_s * loop.rate)
    return Wave(loop.samples[:, :n_samples], loop.rate), n_bars, pulse


def _said(tempo_bpm: float, meter: tuple[int, int]) -> Pulse:
    """Of quarter notes; a bar that is no whole number of them is taken for four."""
    quarters = Fraction(4 * meter[0], meter[1])
    return beats.said(tempo_bpm, int(quarters) if quarters.denominator == 1 else 4)
