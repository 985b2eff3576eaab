"""A score that is a loop: whole bars, one tempo, one meter, and what its files will be labelled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from audioloop.io.label import LoopLabel, decimal
from midiloop.errors import LoopError, MidiError
from midiloop.grid import LOOP, Grid, Roll
from midiloop.midi import pianoroll, score
from midiloop.midi.score import DEFAULT_BPM, MICROSECONDS_PER_MINUTE, Meter, Score, Tempo
from midiloop.midi.transposition import transpose_score

MIN_BPM, MAX_BPM = 20.0, 400.0
MAX_BARS = 64
# Tempi of an exporter that rounds at every bar differ by so much.
ROUNDING_US = 1
# Writers end a track up to a quarter note after the bar line or its last note, and a note may ring
# over: what comes later than that was not meant to end there.
LATE_QUARTERS = Fraction(1)


@dataclass(frozen=True, eq=False)
class Piece:
    """A loop to render.

    Attributes:
        score: ends at its last bar line, and has one tempo and one meter.
        label: of the mix, for one pass.
    """

    score: Score
    label: LoopLabel


def read(
    source: Path | bytes, name: str, *, bpm: float | None = None, bars: int | None = None
) -> Piece:
    """Read a MIDI file that is one loop.

    Args:
        source: its path or its bytes.
        name: put into the label.
        bpm: another tempo than the file's.
        bars: how long it is, where its end of track does not say so.

    Raises:
        LoopError: it is no MIDI file, or no loop; the message says why.
        OSError: it cannot be read.
    """
    try:
        song = score.read(source)
    except MidiError as error:
        raise LoopError(f"{error.reason}, {error.detail}; give another file") from error
    end_quarters = score.end_of_tracks_quarters(source) if bars is None else 0.0
    return of_score(song, name, bpm=bpm, bars=bars, end_quarters=end_quarters)


def of(
    source: Score | Roll, name: str, *, bpm: float | None = None, bars: int | None = None
) -> Piece:
    """A score, or a roll (steps, columns), as a loop; see `of_score`.

    Args:
        bpm: another tempo than the score's; of a roll, 120 without it.
    """
    if not isinstance(source, Score):
        source = pianoroll.decode(source, DEFAULT_BPM if bpm is None else _in_range(bpm))
    return of_score(source, name, bpm=bpm, bars=bars)


def of_roll(roll: Roll, tempo_bpm: float, name: str, grid: Grid = LOOP) -> Piece:
    """A roll (steps, columns) as a loop.

    Raises:
        LoopError: nothing sounds in it, or its tempo cannot be rendered.
    """
    song = pianoroll.decode(roll, _in_range(tempo_bpm), grid=grid)
    return of_score(song, name, bpm=tempo_bpm)


def of_score(
    song: Score,
    name: str,
    *,
    bpm: float | None = None,
    bars: int | None = None,
    end_quarters: float = 0.0,
) -> Piece:
    """A score as a loop, if it is one.

    Args:
        end_quarters: where its tracks end, if they go on in silence after the last note.

    Raises:
        LoopError: it has no notes, more than one tempo or meter, or ends elsewhere than at a bar
            line.
    """
    if song.n_notes == 0:
        raise LoopError("no notes; give a loop that sounds")
    tempo_bpm = _in_range(_tempo(song) if bpm is None else bpm)
    meter = _meter(song)
    bar_quarters = Fraction(4 * meter[0], meter[1])
    length = max(Fraction(song.length_ticks, song.ticks_per_quarter), _exact(end_quarters))
    n_bars = length / bar_quarters
    if bars is None:
        n_bars = _whole_bars(song, n_bars, bar_quarters)
    if bars is None and n_bars.denominator != 1:
        whole = -(-n_bars.numerator // n_bars.denominator)
        raise LoopError(
            f"ends after {float(n_bars):.2f} bars of {meter[0]}/{meter[1]}, and a loop ends at a "
            f"bar line; say how long it is with --bars {whole}"
        )
    last = max(int(track.onsets.max()) for track in song.tracks if track.n_notes)
    if bars is not None and last >= bars * bar_quarters * song.ticks_per_quarter:
        bar = last // int(bar_quarters * song.ticks_per_quarter) + 1
        raise LoopError(f"its last note begins in bar {bar}, --bars says {bars}")
    n_bars = Fraction(bars) if bars is not None else n_bars
    if n_bars > MAX_BARS:
        raise LoopError(
            f"{int(n_bars):,} bars are no loop, which has at most {MAX_BARS}; "
            "'midiloop extract' finds the loops in a song"
        )
    label = LoopLabel(tempo_bpm, int(n_bars), meter, name=name)
    ticks = label.quarters * song.ticks_per_quarter
    whole_song = replace(
        song,
        length_ticks=int(ticks),
        tempos=(Tempo(0, tempo_bpm),),
        meters=(Meter(0, *meter),),
    )
    return _in_key(Piece(whole_song, label))


def transposed(loop: Piece, semitones: int) -> Piece:
    """The loop with its notes moved by semitones, positive upwards; drums stay.

    Raises:
        LoopError: a note would leave the pitches of MIDI.
    """
    return _in_key(replace(loop, score=transpose_score(loop.score, semitones)))


def _in_key(loop: Piece) -> Piece:
    key = pianoroll.bass_key(loop.score)
    return Piece(replace(loop.score, key=key), replace(loop.label, key=key))


def _whole_bars(song: Score, n_bars: Fraction, bar_quarters: Fraction) -> Fraction:
    """The bars of a song that ends a little behind a bar line, but begins no note there."""
    whole = int(n_bars)
    late = (n_bars - whole) * bar_quarters
    line = whole * bar_quarters * song.ticks_per_quarter
    last = max(int(track.onsets.max()) for track in song.tracks if track.n_notes)
    return (
        Fraction(whole)
        if whole and late <= min(LATE_QUARTERS, bar_quarters / 2) and last < line
        else n_bars
    )


def _exact(quarters: float) -> Fraction:
    return Fraction(quarters).limit_denominator(score.MAX_BARS * 960)


def _in_range(tempo_bpm: float) -> float:
    if not MIN_BPM <= tempo_bpm <= MAX_BPM:
        raise LoopError(
            f"{decimal(tempo_bpm)} bpm is out of range; give a tempo from {MIN_BPM:.0f} to "
            f"{MAX_BPM:.0f} with --bpm"
        )
    return tempo_bpm


def _tempo(song: Score) -> float:
    """The one tempo of a song, as its author typed it."""
    stated = [tempo for tempo in song.tempos if tempo.tick < song.length_ticks]
    start = _microseconds(song_start(song))
    changes = [t for t in stated if t.tick and abs(_microseconds(t.bpm) - start) > ROUNDING_US]
    if changes:
        change = changes[0]
        quarter = change.tick // song.ticks_per_quarter + 1
        raise LoopError(
            f"its tempo changes on quarter note {quarter}, and a loop has one; choose it with --bpm"
        )
    return song_start(song)


def _microseconds(tempo_bpm: float) -> int:
    return round(MICROSECONDS_PER_MINUTE / tempo_bpm)


def song_start(song: Score) -> float:
    """Tempo at the first tick, in quarter notes a minute."""
    return float(song.tempo_bpm_at(np.zeros(1, np.int64))[0]) if song.tempos else DEFAULT_BPM


def _meter(song: Score) -> tuple[int, int]:
    stated = [meter for meter in song.meters if meter.tick < song.length_ticks]
    meters = {(meter.numerator, meter.denominator) for meter in stated}
    if len(meters) > 1:
        shown = " and ".join(f"{n}/{d}" for n, d in sorted(meters))
        raise LoopError(f"it has bars of {shown}, and a loop has one meter; give another file")
    return meters.pop() if meters else (4, 4)
