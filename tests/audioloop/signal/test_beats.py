"""Beats: a line through all of them, and loops of whole bars."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from audioloop.io.wave import Wave
from audioloop.rendering import piece, render, synth
from audioloop.rendering.synth import SoundFont
from audioloop.signal import beats
from audioloop.signal.beats import Pulse, Times
from handmade import groove
from midiloop.errors import CallError, LoopError
from midiloop.midi.score import Tempo

RATE = 44_100
TRUTHS = [90.0, 120.0, 123.0, 128.0, 174.0]


def apart_s(place_s: float, expected_s: float, period_s: float) -> float:
    """From one place of a circle to another."""
    return abs((place_s - expected_s + period_s / 2) % period_s - period_s / 2)


def damaged(rng: np.random.Generator, beat_s: float, n_beats: int = 64) -> Times:
    """Beats of which 10 % are missing and 5 % doubled half a beat on, all up to 10 ms off."""
    exact = 0.3 + beat_s * np.arange(n_beats)
    kept = exact[rng.permutation(n_beats)[: round(0.9 * n_beats)]]
    doubled = rng.choice(exact, round(0.05 * n_beats), replace=False) + beat_s / 2
    times = np.concatenate([kept, doubled])
    return np.sort(times + rng.uniform(-0.01, 0.01, len(times)))


def papers_bars(bar_s: float, low_s: float, high_s: float, bars: int) -> float | None:
    """LoopGen's Algorithm 1 to the letter, None where it does not end or gives nothing."""
    whole_s = length_s = bars * bar_s
    for _ in range(4_000):  # more than there are powers of two between floats
        if low_s <= length_s <= high_s:
            break
        length_s = 2 * length_s if length_s < low_s else length_s / 2
    else:
        return None
    return length_s if whole_s / 4 <= length_s <= 4 * whole_s else None


# The regression.


@pytest.mark.parametrize("tempo_bpm", [*range(40, 251, 15), 61.7, 122.999, 250])
def test_damaged_beats_give_the_tempo(tempo_bpm: float, rng: np.random.Generator) -> None:
    for _ in range(5):
        beat_s, first_s = beats.regressed(damaged(rng, 60 / tempo_bpm))
        assert beat_s == pytest.approx(60 / tempo_bpm, rel=1e-3)
        assert apart_s(first_s, 0.3, beat_s) < 0.008


@pytest.mark.parametrize("n_beats", [2, 3, 7, 33, 2000])
@pytest.mark.parametrize("tempo_bpm", [40, 123, 250])
def test_exact_beats_give_the_exact_tempo(tempo_bpm: float, n_beats: int) -> None:
    beat_s, first_s = beats.regressed(7.1 + 60 / tempo_bpm * np.arange(n_beats))
    assert beat_s == pytest.approx(60 / tempo_bpm, rel=1e-12)
    assert 0 <= first_s < beat_s
    assert apart_s(first_s, 7.1, beat_s) < 1e-9


def test_a_beat_of_whole_frames_is_not_what_its_frames_say() -> None:
    """At 123 bpm a beat is 24.39 frames of 20 ms: the median of what a tracker says is 24."""
    exact = 60 / 123 * np.arange(64)
    frames = np.round(exact / 0.02) * 0.02
    assert np.median(np.diff(frames)) == pytest.approx(0.48)
    assert beats.regressed(frames)[0] == pytest.approx(60 / 123, rel=2e-4)


def test_a_few_beats_out_of_place_move_nothing(rng: np.random.Generator) -> None:
    times = 0.5 * np.arange(40)
    times[[3, 17, 38]] += [0.2, -0.15, 0.1]
    assert beats.regressed(times)[0] == pytest.approx(0.5, rel=1e-12)
    assert beats.regressed(rng.permutation(times)) == beats.regressed(times)


def test_any_times_give_a_place_on_the_circle(rng: np.random.Generator) -> None:
    for size in rng.integers(2, 40, 300):
        times = rng.choice([rng.uniform(0, 30, size), rng.integers(0, 9, size) * 0.4])
        if np.ptp(times) == 0:
            continue
        beat_s, first_s = beats.regressed(times)
        assert 0 <= first_s < beat_s < math.inf


@pytest.mark.parametrize("times", [[], [1.0], [2.0, 2.0], [0.0, 1.0, math.nan], [0.0, math.inf]])
def test_no_line_without_two_beats(times: list[float]) -> None:
    with pytest.raises(LoopError, match=r"no two beats .*--bpm"):
        beats.regressed(times)


# Bars.


BARS_S = [1e-9, 0.3, 0.96, 60 / 123 * 4, 2.0, 2.25, 2.5, 6.0, 9.0, 1e9]
BOUNDS_S = [
    (10, 15),
    (10, 20),
    (10, 10),
    (0, 0),
    (0, 1e-12),
    (0, math.inf),
    (7.9, 8.1),
    (1e9, 1e12),
]


def test_aligned_bars_are_those_of_the_paper() -> None:
    found = 0
    for bar_s, (low_s, high_s), bars in itertools.product(BARS_S, BOUNDS_S, [1, 2, 3, 4, 6, 8, 12]):
        pulse = Pulse(bar_s / 4, 0.0)
        number = beats.aligned_bars(pulse, low_s, high_s, bars)
        expected_s = papers_bars(pulse.bar_s, low_s, high_s, bars)
        if number is None:
            if expected_s is not None:  # only where the paper cuts a bar in two
                assert expected_s / pulse.bar_s % 1
        else:
            assert isinstance(number, int)
            assert max(bars, number) in (min(bars, number) * 2**n for n in range(3))
            assert number * pulse.bar_s == expected_s
            assert low_s <= number * pulse.bar_s <= high_s
            found += 1
    assert found > 100


@pytest.mark.parametrize(
    ("tempo_bpm", "bounds_s", "bars", "expected"),
    [
        (120, (10, 20), 4, 8),  # 8 s, then 16
        (120, (3, 5), 4, 2),
        (120, (10, 15), 4, None),  # 8, then 16, then 8 ...
        (4 * 60 / 9, (10, 15), 1, None),  # 9 s, then 18, then 9 ...
        (120, (3, 3.5), 3, None),  # a half of three bars are 3 s, and none
        (120, (0.4, 0.9), 4, None),  # an eighth is too far
        (120, (30, 40), 4, 16),
        (120, (60, 70), 4, None),
        (120, (8, 8), 4, 4),  # both bounds are inside
    ],
)
def test_aligned_bars_by_hand(
    tempo_bpm: float, bounds_s: tuple[float, float], bars: int, expected: int | None
) -> None:
    assert beats.aligned_bars(beats.said(tempo_bpm), *bounds_s, bars) == expected


def test_the_meter_counts() -> None:
    assert beats.aligned_bars(beats.said(120, beats_per_bar=3), 10, 13) == 8
    assert beats.aligned_bars(beats.said(123, beats_per_bar=7), 10, 20) == 4


@pytest.mark.parametrize(
    ("low_s", "high_s", "bars"), [(15, 10, 4), (-1, 10, 4), (math.nan, 9, 4), (1, 9, 0)]
)
def test_bounds_that_are_none(low_s: float, high_s: float, bars: int) -> None:
    with pytest.raises(CallError):
        beats.aligned_bars(beats.said(120), low_s, high_s, bars)


def test_a_tempo_that_is_said() -> None:
    pulse = beats.said(123, 3)
    assert (pulse.first_s, pulse.beats_per_bar, pulse.source) == (0, 3, "said")
    assert pulse.tempo_bpm == pytest.approx(123)
    assert pulse.bar_s == pytest.approx(180 / 123)


@pytest.mark.parametrize("tempo_bpm", [0, -120, math.nan, math.inf])
def test_a_tempo_that_is_none(tempo_bpm: float) -> None:
    with pytest.raises(CallError, match="no tempo"):
        beats.said(tempo_bpm)
    with pytest.raises(CallError, match="0 beats"):
        beats.said(120, 0)


# Audio.


@pytest.fixture
def with_librosa(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("librosa", exc_type=ImportError)
    monkeypatch.setattr(beats, "_beat_this", lambda: None)


@pytest.fixture(scope="module")
def font() -> SoundFont:
    pretty_midi = pytest.importorskip("pretty_midi")
    return SoundFont(Path(pretty_midi.__file__).parent / synth.BUNDLED_SOUNDFONT, RATE)


def rendered(tempo_bpm: float, font: SoundFont) -> Wave:
    """8 bars of drums and bass."""
    song = replace(groove(8), tempos=(Tempo(0, tempo_bpm),))
    return render.loop(piece.of_score(song, "groove"), font).mix


def bursts(
    at_s: NDArray[np.floating], rng: np.random.Generator, duration_s: float, rate: int = RATE
) -> Wave:
    """Noise that begins at given times and dies down in 50 ms, in two channels."""
    samples = 1e-3 * rng.standard_normal((2, round(duration_s * rate)))
    for start in np.round(at_s * rate).astype(int):
        n = min(round(0.3 * rate), samples.shape[1] - start)
        samples[:, start : start + n] += (
            0.2 * rng.standard_normal((2, n)) * np.exp(-np.arange(n) / rate / 0.05)
        )
    return Wave(samples.astype(np.float32), rate)


@pytest.mark.usefixtures("with_librosa")
@pytest.mark.parametrize("truth_bpm", TRUTHS)
def test_bars_of_a_render_are_as_long_as_they_are(truth_bpm: float, font: SoundFont) -> None:
    pulse = beats.track(rendered(truth_bpm, font))
    octave = 2.0 ** round(math.log2(pulse.tempo_bpm / truth_bpm))
    print(f"{truth_bpm:g} bpm: tracked {pulse.tempo_bpm:.3f}, {octave:g} times as fast")
    assert octave in (0.5, 1, 2)
    assert 8 * pulse.bar_s * octave == pytest.approx(8 * 4 * 60 / truth_bpm, rel=5e-3)
    assert apart_s(pulse.first_s, 0, 60 / truth_bpm / 2) < 0.02
    assert (pulse.source, pulse.beats_per_bar) == ("librosa", 4)


@pytest.mark.usefixtures("with_librosa")
def test_bars_of_generated_loops_too(font: SoundFont) -> None:
    """But for one whose drums play across the beat, and which is said to have no even pulse."""
    sample = pytest.importorskip("midiloop.generation.sample")
    rolls = sample.sample(sample.load(sample.SHIPPED), sample.GenerationRequest(n=6, seed=1)).rolls
    near = 0
    for number, roll in enumerate(rolls):
        truth_bpm = TRUTHS[number % len(TRUTHS)]
        mix = render.loop(piece.of_roll(roll, truth_bpm, "x"), font).mix
        try:
            pulse = beats.track(mix)
        except LoopError:
            continue
        octave = 2.0 ** round(math.log2(pulse.tempo_bpm / truth_bpm))
        near += abs(pulse.tempo_bpm / octave / truth_bpm - 1) < 5e-3
    assert near >= 5


@pytest.mark.usefixtures("with_librosa")
@pytest.mark.parametrize("rate", [22_050, 48_000])
@pytest.mark.parametrize("first_s", [0.1, 0.35])
def test_a_pulse_is_where_it_sounds(first_s: float, rate: int, rng: np.random.Generator) -> None:
    pulse = beats.track(bursts(first_s + 0.5 * np.arange(24), rng, 12.4, rate))
    assert pulse.tempo_bpm == pytest.approx(120, rel=1e-3)
    assert apart_s(pulse.first_s, first_s, 0.5) < 0.015
    assert 0 <= pulse.first_s < pulse.beat_s


@pytest.mark.usefixtures("with_librosa")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("duration_s", [10, 20])
def test_noise_has_no_beats(duration_s: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = 0.1 * rng.standard_normal((1, duration_s * RATE)).astype(np.float32)
    with pytest.raises(LoopError, match=r"^no beats: .*give the tempo with --bpm$"):
        beats.track(Wave(samples, RATE))


@pytest.mark.usefixtures("with_librosa")
@pytest.mark.parametrize(
    ("wave", "cause"),
    [
        (Wave(np.zeros((2, 10 * RATE), np.float32), RATE), "it is silent"),
        (Wave(np.zeros((2, 0), np.float32), RATE), "it is silent"),
        (Wave(np.ones((1, 10 * RATE), np.float32), RATE), r"0 in 10\.0 s"),
        (Wave(np.ones((1, 1), np.float32), RATE), r"0 in 0\.0 s"),
        (Wave(np.full((1, 10 * RATE), np.nan, np.float32), RATE), "not finite"),
    ],
)
def test_no_sound_has_no_beats(wave: Wave, cause: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LoopError, match=f"^no beats: .*{cause}"):
        beats.track(wave)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("with_librosa")
def test_a_bar_is_too_short(rng: np.random.Generator) -> None:
    with pytest.raises(LoopError, match=r"^no beats: \d in 2\.0 s, and it takes 6"):
        beats.track(bursts(0.5 * np.arange(4), rng, 2.0))


# Who tracks.


def test_without_librosa_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(beats, "_beat_this", lambda: None)
    for module in ("librosa", "librosa.onset", "librosa.beat"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"tracking beats: pip install librosa"):
        beats.track(bursts(0.5 * np.arange(8), rng, 4.0))


Network = Callable[[np.ndarray, int], tuple[Times, Times]]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A beat_this that hears 123 bpm in 3/4 from 0.1 s on; the place of its checkpoint, empty."""
    pytest.importorskip("torch.hub")

    def audio2beats(checkpoint: str) -> Network:
        assert Path(checkpoint).is_file()

        def found(signal: np.ndarray, rate: int) -> tuple[Times, Times]:
            assert signal.shape == (12 * rate, 2)
            times = 0.1 + 60 / 123 * np.arange(24)
            return np.round(times * 50) / 50, np.round(times[1::3] * 50) / 50

        return found

    inference = types.ModuleType("beat_this.inference")
    inference.Audio2Beats = audio2beats  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "beat_this", types.ModuleType("beat_this"))
    monkeypatch.setitem(sys.modules, "beat_this.inference", inference)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / beats.CHECKPOINT


def test_beat_this_is_asked_where_its_checkpoint_is(
    stand_in: Path, rng: np.random.Generator
) -> None:
    stand_in.touch()
    pulse = beats.track(bursts(0.5 * np.arange(24), rng, 12.0))
    assert (pulse.source, pulse.beats_per_bar) == ("beat_this", 3)
    assert pulse.tempo_bpm == pytest.approx(123, rel=1e-3)
    assert pulse.first_s == pytest.approx(0.1 + 60 / 123, abs=0.01)  # the first downbeat


def test_beat_this_without_its_checkpoint_downloads_nothing(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(beats, "_librosa", lambda wave: 0.25 + 0.5 * np.arange(20))
    pulse = beats.track(bursts(0.5 * np.arange(24), rng, 12.0))
    assert pulse.source == "librosa"
    assert pulse.tempo_bpm == pytest.approx(120)
    assert not stand_in.exists()


def test_a_beat_this_that_cannot_be_imported_is_none(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.touch()
    assert beats._beat_this() is not None
    monkeypatch.setitem(sys.modules, "beat_this.inference", None)
    assert beats._beat_this() is None


def test_importing_is_free() -> None:
    code = "import sys, audioloop.signal.beats; print(*{n.split('.')[0] for n in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"librosa", "torch", "scipy", "soxr", "numba"} & set(loaded)
