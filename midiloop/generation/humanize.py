"""Humanise: play rolls and anyone's MIDI with velocities and timing, as `models.hands` has learned.

What is humanised quantises to the same roll as before: no offset leaves the cell of its step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from unicodedata import category

import numpy as np
import torch
from numpy.typing import NDArray

from midiloop import models
from midiloop.common import devices, files
from midiloop.errors import CallError, LoopError, MidiError, counted
from midiloop.grid import LOOP, Grid, Roll
from midiloop.midi import performance, pianoroll, score
from midiloop.midi.performance import LAST_OFFSET, MAX_VELOCITY, OFFSETS_PER_STEP, Performance
from midiloop.midi.score import Meter, Score, Tempo
from midiloop.mining import corpus, midi_loop
from midiloop.models.hands import OFFSET, ROLL, VELOCITY, Hands

SHIPPED = Path(__file__).parents[1] / "pretrained" / "hands"
FINE_TICKS = 240  # a quarter note, below which a score gets more of them
UNPRINTABLE = ("Cc", "Cf", "Zl", "Zp", "Cs")  # categories of characters
# Chosen on validation songs: with all of the tail, performances repeat themselves too little.
TEMPERATURE, TOP_P = 1.0, 0.95
SIXTEENTHS = 4  # in a quarter note
TRIPLET = OFFSETS_PER_STEP / 3  # how late the second of two steps is at full swing

Play = Callable[[int, Roll], Performance]


@dataclass(frozen=True)
class Feel:
    """How to play.

    >>> import midiloop
    >>> midiloop.Feel(0.8, swing=0.3).changes
    True

    Attributes:
        feel: 0 leaves velocities and timing as they are, 1 replaces them.
        swing: 0 to 1: how late every second step is; at 1 two steps are two thirds and one third.
        seed: of all random numbers.
    """

    feel: float = 1.0
    swing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `CallError` unless each is in its range."""
        for name, value in (("feel", self.feel), ("swing", self.swing)):
            if not 0 <= value <= 1:
                raise CallError(f"{name} {value}: out of range; give 0 to 1")

    @property
    def changes(self) -> bool:
        """Whether anything is played otherwise."""
        return self.feel > 0 or self.swing > 0


def load(folder: Path | None = None) -> Hands:
    """Load a run of ``midiloop train hands``; None for the one that ships.

    Raises:
        LoopError: the folder holds none, or a damaged one.
    """
    folder = folder or SHIPPED
    inside = folder / "hands"
    model, kind, _ = models.load(inside if inside.is_dir() else folder)
    if not isinstance(model, Hands):
        raise LoopError(
            f"{files.printable(folder)}: holds a {kind}; give a run of 'midiloop train hands'"
        )
    return model


def player(feel: Feel, hands: Hands | None = None, grid: Grid = LOOP) -> Play | None:
    """What plays rolls by their number, or None where nothing would change.

    Args:
        hands: None loads those that ship, if ``feel`` is above 0.

    Raises:
        LoopError: see `load`; or the hands are of another grid.
    """
    if not feel.changes:
        return None
    hands = _hands(feel, hands, grid)

    def play(number: int, roll: Roll) -> Performance:
        struck, own = performance.onsets(roll, grid), performance.on_grid(roll, grid)
        return _felt(feel, hands, roll, struck, own, number)

    return play


def humanize(
    song: Score,
    feel: Feel = Feel(),
    hands: Hands | None = None,
    *,
    number: int = 0,
    grid: Grid = LOOP,
) -> Score:
    """Play the drums and the bass of a song with a feel; other tracks stay as they are.

    Bars are those of the grid from tick 0. What is as long as a loop, or shorter, is circular: a
    drum hit that is early on its first step stands at its end. The hands may be of another meter:
    what they know of places in a bar is then of little use.

    >>> import midiloop, numpy as np
    >>> song = midiloop.decode(np.eye(16, 93, dtype=bool))
    >>> played = midiloop.humanize(song, midiloop.Feel(0.8))
    >>> bool((midiloop.encode(played) == midiloop.encode(song)).all())
    True
    >>> len(set(played.tracks[0].velocities.tolist())) > 1
    True

    Args:
        hands: None loads those that ship, if ``feel`` is above 0.
        number: of the song, of which there may be several with one seed.

    Raises:
        LoopError: it has no onset; or see `player`.
    """
    circular, roll = False, pianoroll.encode(song, grid, by_name=True)
    if len(roll) <= grid.steps:
        circular, roll = True, pianoroll.encode(song, grid, by_name=True, circular=True)
    struck, own = performance.struck(song, roll, grid, by_name=True, circular=circular)
    if not struck.any():
        raise LoopError(
            "no drum and no bass note to humanise; give a file with drums on channel 10, or a bass"
        )
    if not feel.changes:
        return song
    hands = _hands(feel, hands, grid, any_meter=True)
    played = _felt(feel, hands, roll, struck, own, number)
    return performance.perform(_finer(song), struck, played, grid, by_name=True, circular=circular)


def midi(source: Path | bytes, feel: Feel, hands: Hands | None = None, *, number: int = 0) -> bytes:
    """A MIDI file, humanised; its own bytes where nothing would change.

    Notes, controllers, bends, tempi, meters, names, and `score.remarks` are kept.

    Args:
        source: its path, or its bytes.

    Raises:
        LoopError: it cannot be read, or see `humanize`.
        OSError: it cannot be read.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        song = score.read(data)
    except MidiError as error:
        raise LoopError(f"{error.reason}, {error.detail}; give another file") from error
    grid = midi_loop.in_meter_of(song)
    if not feel.changes:
        humanize(song, feel, grid=grid)  # so that it is refused for the same reasons
        return data
    # A loop that ends in silence repeats after it.
    n_bars = int(score.end_of_tracks_quarters(data) / grid.meter.beats)
    end_ticks = round(n_bars * grid.meter.beats * song.ticks_per_quarter)
    if song.length_ticks < end_ticks and n_bars <= score.MAX_BARS:
        song = replace(song, length_ticks=end_ticks)
    played = humanize(song, feel, hands, number=number, grid=grid)
    times = played.ticks_per_quarter // song.ticks_per_quarter
    remarks = [(tick * times, event) for tick, event in score.remarks(data)]
    return score.to_bytes(played, remarks)


class HumanizedFiles(NamedTuple):
    """What became of MIDI files: paths that were written, and rows of a name and a cause."""

    written: list[Path]
    failed: list[tuple[str, str]]


def midi_files(
    sources: Sequence[Path],
    out: Path,
    feel: Feel,
    hands: Hands | None = None,
    *,
    on_file: Callable[[], None] = lambda: None,
) -> HumanizedFiles:
    """Humanise MIDI files, and those in folders and archives, into a new folder.

    Each keeps its name; of several with one name, all but the first get a number. The folder is
    there whole or not at all, and lacks files that cannot be humanised.

    Raises:
        CallError: see `files.check_free` and `corpus.check_sources`.
        LoopError: none can be; or see `load`.
    """
    if feel.feel and hands is None:
        hands = load()
    names, failed = list[str](), list[tuple[str, str]]()
    with files.new_folder(out) as building:
        for number, item in enumerate(corpus.walk(sources)):
            try:
                if item.problem:
                    raise LoopError(f"{item.problem.reason}, {item.problem.detail}")
                data = midi(item.read(), feel, hands, number=number)
            except LoopError as error:
                failed.append((item.path or item.name, str(error)))
            else:
                names.append(_free_name(PurePosixPath(item.name), names))
                (building / names[-1]).write_bytes(data)
            on_file()
        if not names:
            cause = ": ".join(failed[0]) if failed else "no MIDI file in what was given"
            raise LoopError(cause)
    return HumanizedFiles([out / name for name in names], failed)


def _free_name(path: PurePosixPath, used: Collection[str]) -> str:
    """The name of a MIDI file, less what no name should hold, that is not yet in use."""
    stem = "".join("-" if category(mark) in UNPRINTABLE else mark for mark in path.stem)
    suffix = path.suffix if path.suffix.lower() in (".mid", ".midi") else ".mid"
    folded = {name.lower() for name in used}
    name, again = f"{stem}{suffix}", 1
    while name.lower() in folded:
        again += 1
        name = f"{stem}-v{again}{suffix}"
    return name


def _hands(feel: Feel, hands: Hands | None, grid: Grid, *, any_meter: bool = False) -> Hands | None:
    """The hands that are needed, if any."""
    if feel.swing and grid.steps_per_beat != SIXTEENTHS:
        raise LoopError(
            f"--swing moves sixteenths, and a quarter note of these loops has "
            f"{counted(grid.steps_per_beat, 'step')}; leave it out"
        )
    if feel.feel == 0:
        return None
    hands = hands or load()
    config = hands.config
    on_grid = replace(config.on(grid), bars=config.bars)
    if any_meter:
        meter = {"numerator": config.numerator, "denominator": config.denominator}
        on_grid = replace(on_grid, **meter)
    if on_grid != config:
        raise LoopError(
            f"hands for {config.steps_per_beat} steps a beat in {config.meter}, {config.drums} "
            f"drums and {config.pitches} bass pitches, and these loops have {grid.steps_per_beat} "
            f"in {grid.meter}, {grid.n_drums} and {grid.n_pitches}; give others with --hands"
        )
    return hands


def _felt(
    feel: Feel,
    hands: Hands | None,
    roll: Roll,
    struck: Roll,
    own: Performance,
    number: int,
) -> Performance:
    """How a roll is played that plays itself as ``own``."""
    velocities, offsets = own.velocities.astype(np.float64), own.offsets.astype(np.float64)
    if hands is not None:
        drawn = sampled(hands, roll, struck, feel.seed, number)
        velocities += feel.feel * (drawn.velocities - velocities)
        offsets += feel.feel * (drawn.offsets - offsets)
    steps, _ = np.nonzero(struck)
    offsets += feel.swing * TRIPLET * (steps % 2)
    return Performance(
        np.clip(velocities.round(), 1, MAX_VELOCITY).astype(np.uint8),
        np.clip(offsets.round(), -LAST_OFFSET - 1, LAST_OFFSET).astype(np.int8),
    )


def sampled(
    hands: Hands,
    roll: Roll,
    struck: Roll,
    seed: int,
    number: int,
    *,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
) -> Performance:
    """A performance of the cells ``struck`` of a roll, which is any number of bars long."""
    planes = torch.zeros(3, *roll.shape, dtype=torch.int16)
    planes[ROLL], planes[VELOCITY] = torch.from_numpy(roll), torch.from_numpy(struck)
    chance = np.random.default_rng([seed, number])
    uniforms = torch.from_numpy(chance.random((len(roll) * hands.config.instruments, 3)))
    # One loop at a time in one thread: so its sums, and draws, do not depend on what is beside it.
    with devices.one_thread():
        drawn = hands.sample(planes, uniforms, temperature=temperature, top_p=top_p).numpy()
    return Performance(
        drawn[VELOCITY][struck].astype(np.uint8), drawn[OFFSET][struck].astype(np.int8)
    )


def _finer(song: Score) -> Score:
    """The same in more ticks, where they are too few for what is off the grid."""
    times = -(-FINE_TICKS // song.ticks_per_quarter)
    if times == 1:
        return song
    tracks = tuple(
        track._replace(
            onsets=track.onsets * times,
            durations=track.durations * times,
            controls=_later(track.controls, times),
            bends=_later(track.bends, times),
        )
        for track in song.tracks
    )
    return Score(
        song.ticks_per_quarter * times,
        tracks,
        tuple(Tempo(tempo.tick * times, tempo.bpm) for tempo in song.tempos),
        tuple(Meter(m.tick * times, m.numerator, m.denominator) for m in song.meters),
        song.length_ticks * times,
    )


def _later(rows: NDArray[np.int32], times: int) -> NDArray[np.int32]:
    """Rows whose first column is a tick, in finer ticks."""
    finer = rows.copy()
    finer[:, 0] *= times
    return finer
