"""Renders a loop as a player hears it on repeat, exactly as long as its bars.

FluidSynth handles events every 64 samples only, so it renders a loop of a whole number of such
blocks. The loop is played once from silence and then again, because the tail of the first pass is
part of the second: a note that starts while its own tail sounds, a closed hi-hat that chokes an
open one, a bass held over the bar line. As soon as nothing of the first pass is left, the rest of
the second pass equals that of the first::

    first     |================================|
    second    |ringing=|
    kept      |ringing=|=======================|

What is kept is periodic, and is resampled as such to the exact number of samples (under 0.01 % of
tempo and pitch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from audioloop.io.label import DRUMS, LoopLabel
from audioloop.io.wave import SILENT, Samples, Wave, loudness_lufs, resample, tile
from audioloop.rendering.piece import Piece
from audioloop.rendering.piece import of as piece_of
from audioloop.rendering.synth import (
    BEND,
    BLOCK,
    CONTROL,
    DRUM_CHANNEL,
    MAX_CHANNELS,
    NOTE_OFF,
    NOTE_ON,
    Event,
    SoundFont,
)
from audioloop.signal import effects
from midiloop.errors import LoopError
from midiloop.grid import Roll
from midiloop.midi import pianoroll
from midiloop.midi.score import Score, Track

# What is left of the first pass has to be this much softer than the loop before it is nothing.
SETTLED = 1e-4
BANK_SELECT = (0, 32)
BASS, OTHER = "bass", "other"


@dataclass(frozen=True)
class Sound:
    """How a loop is to sound.

    >>> import audioloop
    >>> dub = audioloop.Sound(kit=25, bass=38, reverb=0.2)

    Attributes:
        repeat: passes in one file.
        stems: whether drums, bass and the rest are kept apart as well.
        reverb, chorus: levels beside the dry sound, 0 to 1; both are circular.
        kit: General MIDI drum kit in place of the score's.
        bass: General MIDI program, from 0, for the bass in place of the score's.
        gain_db: applied to what FluidSynth gives; None brings the loop to a level instead.
        peak_db: the largest sample, in dB of full scale; with ``gain_db`` or ``loudness_lufs``
            no more than this is allowed.
        loudness_lufs: integrated loudness to aim at, as far as the peak allows.
    """

    repeat: int = 1
    stems: bool = False
    reverb: float = 0.0
    chorus: float = 0.0
    kit: int | None = None
    bass: int | None = None
    gain_db: float | None = None
    peak_db: float = -1.0
    loudness_lufs: float | None = None


class Rendered(NamedTuple):
    """A rendered loop.

    Attributes:
        mix: float32 (2, samples).
        stems: a wave for each part, which add up to the mix; empty if not requested.
        label: of the mix.
        score: one pass, as it was played.
        held_back_db: requested gain that was not applied, to avoid clipping, in dB.
    """

    mix: Wave
    stems: dict[str, Wave]
    label: LoopLabel
    score: Score
    held_back_db: float


def render(
    source: Score | Roll,
    font: SoundFont | None = None,
    sound: Sound = Sound(),
    *,
    bpm: float | None = None,
    bars: int | None = None,
    name: str = "loop",
) -> Rendered:
    """Render a score, or a roll (steps, columns), that is one loop.

    >>> import audioloop, midiloop, numpy as np
    >>> roll = np.zeros((16, 93), bool)
    >>> roll[::4, 0] = True
    >>> audioloop.render(roll, bpm=150).mix.samples.shape
    (2, 70560)
    >>> apart = audioloop.Sound(stems=True)
    >>> list(audioloop.render(midiloop.decode(roll, 150), sound=apart).stems)
    ['drums', 'bass']

    Args:
        font: what plays it; None for the one that is found, see `synth.soundfont`.
        bpm: another tempo than the score's; of a roll, 120 without it.
        bars: how long it is, where its last note does not say so.
        name: put into the label.

    Raises:
        LoopError: it is no loop, see `piece.of_score`, or silent with this SoundFont.
        ImportError: FluidSynth is missing.
    """
    return loop(piece_of(source, name, bpm=bpm, bars=bars), font or SoundFont(), sound)


def loop(piece: Piece, font: SoundFont, sound: Sound = Sound()) -> Rendered:
    """Render a loop.

    Raises:
        LoopError: it is silent with this SoundFont.
    """
    song = voiced(piece.score, sound)
    label = piece.label.repeated(sound.repeat)
    parts = _parts(song) if sound.stems else {"": song}
    waves = {name: _wave(part, piece.label, label, font, sound) for name, part in parts.items()}
    mix = Wave(added([wave.samples for wave in waves.values()]), font.rate)
    if mix.peak < SILENT:
        raise LoopError(
            f"silent with {font.path.name}, which has no such instrument or drum; "
            "give another SoundFont with --soundfont"
        )
    gain, held_back_db = _gain(mix, sound)
    scaled = {name: Wave(wave.samples * gain, font.rate) for name, wave in waves.items()}
    stems = scaled if sound.stems else {}
    return Rendered(Wave(mix.samples * gain, font.rate), stems, label, song, held_back_db)


def added(parts: Sequence[Samples]) -> Samples:
    """The sum of some parts, each (channels, samples)."""
    return sum(parts[1:], parts[0])


def voiced(song: Score, sound: Sound) -> Score:
    """The score with another drum kit or bass, if requested."""

    def played(track: Track) -> Track:
        if track.is_drum:
            return track if sound.kit is None else track._replace(program=sound.kit)
        if part_of(track) == BASS and sound.bass is not None:
            return track._replace(program=sound.bass)
        return track

    return replace(song, tracks=tuple(map(played, song.tracks)))


def part_of(track: Track) -> str:
    """The stem that a track belongs to."""
    if track.is_drum:
        return DRUMS
    return BASS if track.program in pianoroll.BASS_PROGRAMS else OTHER


def stems_of(song: Score) -> list[str]:
    """The parts that a score has, in the order of its tracks."""
    return list(dict.fromkeys(map(part_of, song.tracks)))


def _parts(song: Score) -> dict[str, Score]:
    return {
        name: replace(song, tracks=tuple(t for t in song.tracks if part_of(t) == name))
        for name in stems_of(song)
    }


def _wave(song: Score, one: LoopLabel, whole: LoopLabel, font: SoundFont, sound: Sound) -> Wave:
    """A score with its effects, at its exact length."""
    n_blocks = snapped(float(one.quarters) * 60 / one.tempo_bpm * font.rate)
    samples = periodic(song, n_blocks, font)
    samples = resample(tile(samples, sound.repeat), whole.samples(font.rate))
    wave = Wave(samples, font.rate)
    if sound.chorus:
        wave = effects.chorus(wave, sound.chorus)
    return effects.reverb(wave, sound.reverb) if sound.reverb else wave


def snapped(n_samples: float) -> int:
    """The whole number of blocks that is nearest to ``n_samples``, at least one."""
    return max(1, round(n_samples / BLOCK))


def periodic(song: Score, n_blocks: int, font: SoundFont) -> Samples:
    """One pass of a loop that has been playing already: float32 (2, 64 · ``n_blocks``).

    Raises:
        LoopError: it has more instruments than FluidSynth has channels.
    """
    events, programs = performance(song, n_blocks)
    # A quarter note at a time, or about that: small enough to stop soon, large enough to tell.
    quarters = max(1, song.length_ticks // song.ticks_per_quarter)
    edges = [round(n_blocks * number / quarters) for number in range(quarters + 1)]
    kept = np.empty((2, n_blocks * BLOCK), np.float32)
    with font.synth(programs) as synth:

        def play(start: int, end: int, out: Samples) -> int:
            due = [event for event in events if start <= event.block < end]
            synth.play(due, start, out)
            return synth.n_voices

        beats = [
            (start, end, kept[:, start * BLOCK : end * BLOCK]) for start, end in pairwise(edges)
        ]
        voices = [play(*beat) for beat in beats]
        floor = SETTLED * Wave(kept, font.rate).peak
        for (start, end, first), sounding in zip(beats, voices, strict=True):
            again = np.empty_like(first)
            settled = play(start, end, again) == sounding
            settled &= bool((np.abs(again - first) <= floor).all())
            first[:] = again
            if settled:
                break
    return kept


def performance(song: Score, n_blocks: int) -> tuple[list[Event], Mapping[int, int]]:
    """What happens in one pass, in order, and the program of each channel.

    All drums share channel 9, as a drummer's hi-hat is one; every other track has a channel of its
    own. What ends at the bar line ends as the next pass begins.

    Raises:
        LoopError: the score has more instruments than there are channels.
    """
    channels = iter(channel for channel in range(MAX_CHANNELS) if channel % 16 != DRUM_CHANNEL)
    events: set[Event] = set()
    programs: dict[int, int] = {}
    for track in song.tracks:
        channel = DRUM_CHANNEL if track.is_drum else next(channels, None)
        if channel is None:
            raise LoopError(f"{len(song.tracks)} instruments are more than can be rendered")
        programs[channel] = track.program
        events |= set(_events(track, channel, n_blocks / song.length_ticks, n_blocks))
    return sorted(events), programs


def _events(track: Track, channel: int, blocks_a_tick: float, n_blocks: int) -> list[Event]:
    events = []
    starts = np.rint(track.onsets * blocks_a_tick).astype(int)
    ends = np.maximum(np.rint(track.ends * blocks_a_tick).astype(int), starts + 1)
    notes = zip(
        (starts % n_blocks).tolist(),
        (ends % n_blocks).tolist(),
        track.pitches.tolist(),
        track.velocities.tolist(),
        strict=True,
    )
    for start, end, pitch, velocity in notes:
        events.append(Event(start, NOTE_ON, channel, pitch, velocity))
        events.append(Event(end, NOTE_OFF, channel, pitch, 0))
    for tick, number, value in track.controls.tolist():
        if number not in BANK_SELECT:  # the score names programs of General MIDI
            block = round(tick * blocks_a_tick) % n_blocks
            events.append(Event(block, CONTROL, channel, number, value))
    for tick, bend in track.bends.tolist():
        events.append(Event(round(tick * blocks_a_tick) % n_blocks, BEND, channel, 0, bend))
    return events


def _gain(mix: Wave, sound: Sound) -> tuple[np.float32, float]:
    """The factor for all samples, and by how many dB it was held back."""
    room_db = sound.peak_db - 20 * np.log10(mix.peak)
    if sound.gain_db is not None:
        wanted_db = sound.gain_db
    elif sound.loudness_lufs is not None:
        wanted_db = sound.loudness_lufs - loudness_lufs(mix)
    else:
        wanted_db = room_db
    given_db = min(wanted_db, room_db)
    return np.float32(10 ** (given_db / 20)), float(wanted_db - given_db)
