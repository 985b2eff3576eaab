"""Training renders: the same by number, as varied as configured, and their circular excerpts."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from audioloop.io.wave import Samples
from audioloop.rendering import augment, synth
from audioloop.rendering.augment import (
    HELD_OUT_INSTRUMENTS,
    TRAINING_INSTRUMENTS,
    Augmentation,
    PackedLoops,
    Renders,
    circular_excerpts,
    perform,
    render_circular,
)
from audioloop.rendering.synth import SoundFont
from handmade import groove, random_rolls
from midiloop.common.engine import Engine, Inline
from midiloop.common.processes import Processes
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import LoopError
from midiloop.grid import LOOP
from midiloop.midi import pianoroll, score
from midiloop.mining import extract, rules
from soundfonts import bundled

VARIETY = Augmentation(bars=1)
SEED = 3


@pytest.fixture(scope="module")
def source(dataset: LoopDataset) -> PackedLoops:
    return augment.loops(dataset, "train")


@pytest.fixture(scope="module")
def font() -> SoundFont:
    return SoundFont(bundled(), VARIETY.rate)


@pytest.fixture
def making(source: PackedLoops) -> Iterator[Renders]:
    """Renders of one worker that makes one at a time."""
    made = Renders(source, [bundled()], VARIETY, seed=SEED, ahead=1)
    yield made
    made.close()


def same(found: Sequence[Samples], expected: Sequence[Samples]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


# By number.


def test_a_render_is_the_same_whoever_makes_it_and_whatever_was_asked_before(
    source: PackedLoops, font: SoundFont, making: Renders
) -> None:
    here = [render_circular(source, number, SEED, [font], VARIETY) for number in range(8)]
    assert same(making.take([5, 2, 3, 0, 7]), [here[n] for n in (5, 2, 3, 0, 7)])
    both = Renders(source, [bundled()], VARIETY, seed=SEED, engine=Processes(2), ahead=3)
    try:
        assert same(both.take(range(4)), here[:4])
        assert same(both.take(range(4, 8)), here[4:])
    finally:
        both.close()


@pytest.mark.parametrize("engine", [Inline(), Processes(2)])
def test_no_more_is_rendered_than_is_asked_for_and_wanted_ahead(
    engine: Engine, source: PackedLoops, font: SoundFont
) -> None:
    begun: list[int] = []

    class Counting:
        n_workers = engine.n_workers

        def map(self, task: Any, jobs: Iterable[Any], *how: Any) -> Generator[Any, None, None]:
            for job, found in engine.map(task, jobs, *how):
                begun.append(job.number)
                yield job, found

    def enough(numbers: Sequence[int]) -> bool:
        """Whether each that was or is wanted, up to the fourth, is there with three after it."""
        return all(
            wanted in numbers and sum(number >= wanted for number in numbers) >= 4
            for wanted in range(4)
        )

    made = Renders(source, [bundled()], VARIETY, seed=SEED, engine=Counting(), ahead=4)
    assert not begun
    expected = [render_circular(source, number, SEED, [font], VARIETY) for number in range(3)]
    assert same(made.take(range(3)), expected)
    deadline_s = time.monotonic() + 30
    while not enough(begun) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    made.close()
    # Workers pass one another, so how many there are is not known, only that none was too many.
    assert enough(begun)
    assert not enough(begun[:-1])
    assert len({*begun}) == len(begun)


class Failing:
    """An engine that finds no disk."""

    n_workers = 1

    def map(self, *_: Any) -> Generator[Any, None, None]:
        yield from ()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_an_engine_fails_of_is_said_to_whoever_asks(source: PackedLoops) -> None:
    made = Renders(source, [bundled()], VARIETY, seed=SEED, engine=Failing())
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            made.take([0])
    made.close()


def test_closing_stops_what_is_begun_and_can_be_done_twice(
    source: PackedLoops, making: Renders
) -> None:
    Renders(source, [bundled()], VARIETY, seed=SEED).close()  # of which nothing was taken
    making.take([0])
    (worker,) = workers(psutil.Process())
    making.close()
    worker.wait(10)
    making.close()


def test_a_render_that_ends_its_worker_each_time_is_silence(
    source: PackedLoops, font: SoundFont, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "do_job", deadly)
    made = Renders(source, [bundled()], VARIETY, seed=SEED, ahead=2)
    first, second, third = made.take(range(3))
    made.close()
    assert not second.any()
    assert second.dtype == np.float32
    expected = (render_circular(source, number, SEED, [font], VARIETY) for number in (0, 2))
    assert same([first, third], list(expected))


REAL_JOB = augment.do_job


def deadly(*given: Any) -> Samples:
    """As the task is, but render 1 ends its process."""
    job, turn_to = given[-2:]
    if job.number == 1 and not job.lost:
        turn_to(0)
        os.kill(os.getpid(), signal.SIGSEGV)
    return REAL_JOB(*given)


def test_no_two_renders_and_no_two_seeds_are_alike(source: PackedLoops, font: SoundFont) -> None:
    found = [
        render_circular(source, number, seed, [font], VARIETY)
        for seed in (0, 1)
        for number in range(6)
    ]
    assert len({samples.tobytes() for samples in found}) == 12


def test_a_render_is_one_pass_at_a_level_of_the_variety(
    source: PackedLoops, font: SoundFont
) -> None:
    for number in range(12):
        samples = render_circular(source, number, SEED, [font], VARIETY)
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        assert not len(samples) % synth.BLOCK
        bpm = 4 * 60 * VARIETY.rate / len(samples)
        assert VARIETY.slowest_bpm * 0.99 < bpm < VARIETY.fastest_bpm * 1.01
        peak_db = 20 * np.log10(np.abs(samples).max())
        assert VARIETY.quietest_db - 1e-3 <= peak_db <= -1 + 1e-3


def test_fonts_take_turns(source: PackedLoops, font: SoundFont) -> None:
    class Unheard(SoundFont):
        def __init__(self) -> None:
            pass

    fonts = [font, Unheard()]
    assert render_circular(source, 4, SEED, fonts, VARIETY).any()
    with pytest.raises(AttributeError):
        render_circular(source, 5, SEED, fonts, VARIETY)


def test_bars_without_notes_are_silence(font: SoundFont) -> None:
    empty = np.zeros((1, LOOP.steps, LOOP.columns), np.bool_)
    nothing = PackedLoops(LOOP.pack(empty), np.array([120.0]))
    samples = render_circular(nothing, 0, SEED, [font], VARIETY)
    assert len(samples)
    assert not samples.any()


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_that_is_killed_costs_no_render(
    busy: bool, source: PackedLoops, font: SoundFont, making: Renders
) -> None:
    expected = [render_circular(source, number, SEED, [font], VARIETY) for number in range(6)]
    assert same(making.take([0]), expected[:1])
    (worker,) = workers(psutil.Process())
    if busy:  # killed while the run waits for it
        worker.suspend()
        threading.Timer(0.2, worker.kill).start()
    else:  # killed while the run does something else
        worker.kill()
        worker.wait(10)
    assert same(making.take(range(1, 6)), expected[1:])


def test_a_soundfont_that_cannot_be_loaded_is_said_at_once(
    source: PackedLoops, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.sf2"
    broken.write_bytes(b"RIFF\x68\0\0\0sfbk" + bytes(100))
    with pytest.raises(LoopError, match=r"broken\.sf2: FluidSynth cannot load"):
        Renders(source, [bundled(), broken], VARIETY, seed=SEED)


# What is played.


def test_a_performance_keeps_all_notes_and_stays_inside_the_variety(
    rng: np.random.Generator,
) -> None:
    variety = replace(VARIETY, alone=0.0)
    for roll in random_rolls(rng, 10):
        written = pianoroll.decode(roll, 120)
        song = perform(roll, 120, rng, variety)
        assert [track.is_drum for track in song.tracks] == [True, False]
        for found, track in zip(song.tracks, written.tracks, strict=True):
            assert sorted(found.pitches.tolist()) == sorted(track.pitches.tolist())
            assert sorted(found.durations.tolist()) == sorted(track.durations.tolist())
            instruments = variety.instruments
            assert found.program in (instruments.kits if found.is_drum else instruments.basses)
            assert 1 <= found.velocities.min() <= found.velocities.max() <= 127
            assert 0 <= found.onsets.min() <= found.onsets.max() < song.length_ticks
            ((tick, controller, volume),) = found.controls.tolist()
            assert (tick, controller) == (0, augment.VOLUME)
            assert 0 < volume < 128


def test_a_performance_is_a_score_with_its_notes_in_order(rng: np.random.Generator) -> None:
    for roll in random_rolls(rng, 5):
        for track in perform(roll, 180, rng, replace(VARIETY, timing_s=0.03)).tracks:
            assert (np.diff(track.onsets) >= 0).all()


def test_timing_is_as_loose_as_asked_for(rng: np.random.Generator) -> None:
    rolls = random_rolls(rng, 20)
    for timing_s in (0.0, 0.01):
        off_s = []
        for roll in rolls:
            song = perform(roll, 120, rng, replace(VARIETY, timing_s=timing_s, alone=0.0))
            seconds_a_tick = 60 / song.tempos[0].bpm / song.ticks_per_quarter
            written = pianoroll.decode(roll, 120).tracks[0]
            inner = (written.onsets > 0) & (written.onsets < song.length_ticks - 1)
            moved = np.sort(song.tracks[0].onsets) - np.sort(written.onsets)
            off_s.append(moved[inner] * seconds_a_tick)
        assert np.concatenate(off_s).std() == pytest.approx(timing_s, rel=0.1, abs=1e-6)


@pytest.mark.parametrize("song_bpm", [40.0, 100.0, 150.0, 400.0])
def test_tempi_are_near_the_songs_and_in_the_range(
    song_bpm: float, rng: np.random.Generator
) -> None:
    (roll,) = random_rolls(rng, 1)
    found = [perform(roll, song_bpm, rng, VARIETY).tempos[0].bpm for _ in range(50)]
    low, high = (song_bpm * 2**octaves for octaves in (-0.5, 0.5))
    low, high = (min(max(bpm, 60), 200) for bpm in (low, high))
    assert low <= min(found) <= max(found) <= high
    assert max(found) - min(found) >= 0.8 * (high - low)


def test_some_renders_have_only_drums_and_as_many_only_bass(rng: np.random.Generator) -> None:
    (roll,) = random_rolls(rng, 1)
    songs = [perform(roll, 120, rng, replace(VARIETY, alone=0.25)) for _ in range(200)]
    parts = [[track.is_drum for track in song.tracks] for song in songs]
    assert 70 <= parts.count([True, False]) <= 130
    assert 30 <= parts.count([True]) <= 70
    assert 30 <= parts.count([False]) <= 70


def test_what_is_measured_with_was_not_learned_from() -> None:
    assert not {*TRAINING_INSTRUMENTS.kits} & {*HELD_OUT_INSTRUMENTS.kits}
    assert not {*TRAINING_INSTRUMENTS.basses} & {*HELD_OUT_INSTRUMENTS.basses}
    assert {*TRAINING_INSTRUMENTS.basses, *HELD_OUT_INSTRUMENTS.basses} == {*range(32, 40)}
    assert all(0 <= kit < 128 for kit in (*TRAINING_INSTRUMENTS.kits, *HELD_OUT_INSTRUMENTS.kits))


def test_a_split_has_each_loop_once(dataset: LoopDataset) -> None:
    found = [augment.loops(dataset, split) for split in ("train", "valid", "test")]
    packed = np.concatenate([source.packed for source in found])
    assert len(np.unique(packed, axis=0)) == len(packed)
    assert all(len(source.packed) == len(source.tempos_bpm) for source in found)


def test_a_split_without_songs(tmp_path: Path) -> None:
    (tmp_path / "songs").mkdir()
    (tmp_path / "songs" / "one.mid").write_bytes(score.to_bytes(groove(8)))
    settings = extract.Settings(rules.preset("open"))
    extract.run([tmp_path / "songs"], tmp_path / "loops", settings, engine=Inline())
    found = LoopDataset(tmp_path / "loops")
    empty = [split for split in ("train", "valid", "test") if not list(found.select(split=split))]
    assert len(empty) == 2
    with pytest.raises(LoopError, match=f"no loop is in the {empty[0]} split") as bad:
        augment.loops(found, empty[0])
    assert "\n" not in str(bad.value)


# Excerpts.


@pytest.mark.parametrize("length", [100, 1000, 2500])
def test_an_excerpt_is_the_signal_outside_its_fade_and_ends_before_its_beginning(
    length: int, rng: np.random.Generator
) -> None:
    period, fade = 1000, 20
    found = circular_excerpts(np.arange(period, dtype=np.float32), 50, length, fade, rng)
    assert found.shape == (50, length)
    assert found.dtype == np.float32
    starts = found[:, :1]
    assert np.array_equal(found[:, :-fade], (starts + np.arange(length - fade)) % period)
    np.testing.assert_allclose(found[:, -1:], (starts - 1) % period, atol=1e-3)
    assert len(np.unique(starts)) > 40


@pytest.mark.parametrize("hz", [50, 441, 3000, 11_111])
def test_a_tone_goes_on_round_the_end_of_an_excerpt(hz: int, rng: np.random.Generator) -> None:
    rate = 32_000
    tone = np.sin(2 * np.pi * hz * np.arange(rate) / rate).astype(np.float32)
    found = circular_excerpts(tone, 50, 5120, 640, rng)
    inner = np.abs(np.diff(found, axis=1)).max(1)
    assert (np.abs(found[:, 0] - found[:, -1]) <= 2 * inner).all()


def test_a_render_goes_on_round_the_end_of_an_excerpt(
    source: PackedLoops, font: SoundFont, rng: np.random.Generator
) -> None:
    samples = render_circular(source, 0, SEED, [font], VARIETY)
    found = circular_excerpts(samples, 50, 5120, 640, rng)
    steps = np.abs(np.diff(found, axis=1, append=found[:, :1]))
    near = np.concatenate([steps[:, -50:-1], steps[:, :49]], axis=1)
    assert (steps[:, -1] <= 2 * near.max(1) + 1e-6).all()


def test_noise_is_as_loud_in_the_fade_as_elsewhere(rng: np.random.Generator) -> None:
    noise = rng.standard_normal(100_000).astype(np.float32)
    power = np.square(circular_excerpts(noise, 400, 1000, 200, rng)).mean(0)
    by_place = power.reshape(-1, 50).mean(1)
    np.testing.assert_allclose(by_place, 1, rtol=0.1)


def workers(parent: psutil.Process) -> list[psutil.Process]:
    """Not the process that workers are copies of, nor the one that counts what they share."""
    return [child for child in parent.children(recursive=True) if child.ppid() != parent.pid]


CHILD = """
import sys, time
from pathlib import Path
from audioloop.rendering import augment
from midiloop.dataset.parquet import LoopDataset
source = augment.loops(LoopDataset(Path(sys.argv[1])), "train")
making = augment.Renders(source, [Path(sys.argv[2])], augment.Augmentation(), seed=0)
making.take([0])
print(flush=True)
time.sleep(60)
"""


def test_workers_leave_with_a_parent_that_is_killed(dataset: LoopDataset) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(dataset.path), str(bundled())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline()
    (worker,) = workers(psutil.Process(parent.pid))
    parent.kill()
    assert parent.communicate(timeout=30) == ("", "")
    worker.wait(30)
