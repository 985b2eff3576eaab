"""Loops that are given: how long they are, what is known of them, and what none is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pytest
import soundfile

from audioloop.io import wave
from audioloop.io.label import LoopLabel
from audioloop.io.wave import Format, Wave
from audioloop.pipelines import inputs
from audioloop.rendering import synth
from audioloop.rendering.render import Sound
from audioloop.signal.beats import Pulse
from handmade import JIG, WALTZ, groove, random_rolls
from midiloop.errors import LoopError
from midiloop.grid import Grid, TimeSignature
from midiloop.midi import pianoroll, score

RATE = 8_000
Saved = Callable[..., Path]


def noise(n_samples: int, channels: int = 1) -> Wave:
    samples = np.random.default_rng(3).uniform(-0.5, 0.5, (channels, n_samples))
    return Wave(samples.astype(np.float32), RATE)


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    def write(name: str, seconds: float, label: LoopLabel | None = None, channels: int = 1) -> Path:
        path = tmp_path / name
        form = Format(path.suffix[1:], "lossy" if path.suffix == ".ogg" else "16")
        wave.write(path, noise(round(seconds * RATE), channels), label, form)
        return path

    return write


@pytest.fixture(scope="module")
def font() -> synth.SoundFont:
    return synth.SoundFont(synth.soundfont(), inputs.RATE)


def read(path: Path, **said: Any) -> inputs.SourceLoop:
    return inputs.read(path, None, **said)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("tempo_bpm", [97.3, 123.0])
def test_a_label_is_believed(suffix: str, tempo_bpm: float, saved: Saved) -> None:
    label = LoopLabel(tempo_bpm, 3, (3, 4), name="dub")
    path = saved(f"dub.{suffix}", label.samples(RATE) / RATE, label)
    loop = read(path)
    assert loop.label.tempo_bpm == pytest.approx(tempo_bpm, abs=1e-5)
    assert (loop.label.bars, loop.label.meter, loop.label.name) == (3, (3, 4), "dub")
    assert len(loop.wave) == label.samples(RATE) == loop.label.samples(RATE)
    assert (loop.conditioning.steps, loop.conditioning.roll, loop.score) == (36, None, None)
    assert loop.notes == ()


@pytest.mark.parametrize(
    ("grid", "quarters"),
    [(WALTZ, 12), (JIG, 6), (Grid(2, meter=TimeSignature(7, 8)), 7)],
    ids=str,
)
def test_midi_of_other_meters_is_as_long_as_its_bars(
    grid: Grid, quarters: int, font: synth.SoundFont, tmp_path: Path
) -> None:
    roll = random_rolls(np.random.default_rng(1), 1, grid=grid)[0]
    score.write(pianoroll.decode(roll, 97.3, grid=grid), tmp_path / "loop.mid")
    loop = inputs.read(tmp_path / "loop.mid", font)
    assert (loop.label.bars, loop.label.meter) == (grid.bars, grid.meter)
    assert len(loop.wave) == round(quarters * 60 / 97.3 * inputs.RATE)
    assert loop.conditioning.steps == 4 * quarters  # sixteenths, whatever the grid


def test_a_rounded_tempo_gives_way_to_the_length(saved: Saved) -> None:
    exact = LoopLabel(122.7, 4)
    loop = read(saved("dub_123bpm.wav", exact.samples(RATE) / RATE))
    assert loop.label.bars == 4
    assert loop.label.tempo_bpm == pytest.approx(122.7, abs=0.01)
    assert len(loop.wave) == exact.samples(RATE)
    assert loop.label.name == "dub"  # or it would be dub_123bpm_123bpm in the end


@pytest.mark.parametrize(("seconds", "bars"), [(9.1, 4), (5.0, 2), (2.7, 1), (16.0, 8), (29.0, 4)])
def test_what_is_no_whole_bars_is_cut_and_says_so(seconds: float, bars: int, saved: Saved) -> None:
    loop = read(saved("dub.wav", seconds), bpm=120)
    assert loop.label.bars == bars
    assert loop.label.tempo_bpm == 120
    assert len(loop.wave) == bars * 2 * RATE
    assert loop.source is not None
    np.testing.assert_array_equal(loop.wave.samples, read_all(loop.source)[:, : len(loop.wave)])
    said = f"{'1 bar' if bars == 1 else f'{bars} bars'} at 120 bpm"
    if len(loop.wave) < round(seconds * RATE):
        said += f": the first {len(loop.wave):,} samples of {round(seconds * RATE):,}, "
        said += "the rest is left out"
    assert loop.notes == (said,)


def read_all(path: Path) -> np.ndarray[Any, Any]:
    return wave.read(path).samples


def test_a_tempo_in_its_name_will_do(saved: Saved) -> None:
    loop = read(saved("dub 120 bpm.wav", 5.0))
    assert (loop.label.bars, loop.label.tempo_bpm, loop.label.name) == (2, 120, "dub")


@pytest.mark.parametrize("off_s", [-0.02, 0, 0.02])
def test_of_a_tracked_tempo_all_bars_stay(
    off_s: float, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulse = Pulse(0.4997, 0.1, 3, "librosa")
    monkeypatch.setattr("audioloop.signal.beats.track", lambda _: pulse)
    loop = read(saved("dub.wav", 9 + off_s))
    assert len(loop.wave) == (9 + off_s) * RATE
    assert (loop.label.bars, loop.label.meter) == (6, (3, 4))
    assert loop.label.samples(RATE) == len(loop.wave)
    assert loop.notes == ("6 bars at 120.072043 bpm (librosa)",)


def test_bars_that_are_said_give_the_tempo(saved: Saved) -> None:
    loop = read(saved("dub.wav", 5.0), bars=3)
    assert loop.label.tempo_bpm == 144
    assert len(loop.wave) == 5 * RATE
    assert loop.conditioning.steps == 48


def test_an_intro_is_left_out(saved: Saved) -> None:
    path = saved("dub.flac", 5.0)
    tags: Any = mutagen.File(path)
    tags.update({"LOOPSTART": str(RATE), "LOOPLENGTH": str(4 * RATE), "BPM": "120"})
    tags.save()
    loop = read(path)
    assert (len(loop.wave), loop.label.bars) == (4 * RATE, 2)
    np.testing.assert_array_equal(loop.wave.samples, read_all(path)[:, RATE:])


def test_channels_are_said_to_be_mixed(saved: Saved) -> None:
    label = LoopLabel(120, 1)
    assert read(saved("dub.wav", 2.0, label, 2)).notes == ("2 channels mixed to one",)


@pytest.mark.parametrize("bpm", [None, 97.3])
def test_midi_is_rendered_and_its_notes_are_known(
    bpm: float | None, font: synth.SoundFont, tmp_path: Path
) -> None:
    path = tmp_path / "dub_120bpm.mid"
    path.write_bytes(score.to_bytes(groove(2)))
    loop = inputs.read(path, font, Sound(kit=25, bass=38), bpm=bpm)
    assert loop.label.tempo_bpm == (bpm or 120)
    assert (loop.label.bars, loop.label.name) == (2, "dub")
    assert len(loop.wave) == loop.label.samples(inputs.RATE)
    assert (loop.conditioning.kit, loop.conditioning.bass, loop.conditioning.steps) == (25, 38, 32)
    assert loop.conditioning.roll is not None
    np.testing.assert_array_equal(loop.conditioning.roll, pianoroll.encode(groove(2)))
    assert loop.score is not None
    assert {track.program for track in loop.score.tracks} == {25, 38}


def test_bars_of_silence_at_the_end_of_midi_are_told(tmp_path: Path, font: synth.SoundFont) -> None:
    path = tmp_path / "dub.mid"
    path.write_bytes(score.to_bytes(groove(2)))
    loop = inputs.read(path, font, bars=3)
    assert loop.conditioning.roll is not None
    assert loop.conditioning.roll.shape == (48, 93)
    assert loop.conditioning.roll[:32].any(1).all()
    assert not loop.conditioning.roll[32:].any()


def nothing(path: Path) -> None:
    wave.write(path, Wave(np.zeros((1, RATE), np.float32), RATE), LoopLabel(240, 1), Format())


def no_numbers(path: Path) -> None:
    samples = np.full(RATE, 0.1, np.float32)
    samples[77:79] = np.nan, np.inf
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def short(path: Path) -> None:
    wave.write(path, noise(RATE), LoopLabel(240, 1), Format())


BAD: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "silent": (nothing, {}, "silent; give a loop"),
    "no numbers": (no_numbers, {"bpm": 240}, "no numbers; export it again"),
    "no audio": (lambda path: path.write_bytes(b"RIFF"), {}, "write it again"),
    "too many bars": (short, {"bars": 64}, "64 bars in 1.00 s are 15360 bpm.*with --bars"),
    "too slow": (short, {"bars": 1, "bpm": None, "of": 30}, "1 bar in 30.00 s are 8 bpm"),
    "less than a bar": (short, {"bpm": 120, "of": 0.9}, "0.9 s at 120 bpm hold no whole bars"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_loop_is_one_line_with_its_file(name: str, tmp_path: Path) -> None:
    make, said, cause = BAD[name]
    path = tmp_path / "x.wav"
    make(path)
    if seconds := said.get("of"):
        wave.write(path, noise(round(seconds * RATE)), None, Format())
    with pytest.raises(LoopError, match=cause) as caught:
        read(path, **{key: value for key, value in said.items() if key != "of"})
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count("x.wav") == 1
    assert "\n" not in str(caught.value)


def test_without_a_tracker_it_says_what_to_do(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(_: Wave) -> Pulse:
        raise ImportError("tracking beats: pip install librosa", name="librosa")

    monkeypatch.setattr("audioloop.signal.beats.track", absent)
    torn = saved("dub.wav", 5.0)  # no loop that was cut well: its end and its beginning are apart
    soundfile.write(torn, np.linspace(-0.5, 0.5, 5 * RATE), RATE)
    with pytest.raises(LoopError, match=r"dub.wav: tracking beats: pip install"):
        read(torn)


def test_beats_are_tracked_where_no_tempo_is_known(font: synth.SoundFont, tmp_path: Path) -> None:
    pytest.importorskip("librosa")
    path = tmp_path / "dub.mid"
    path.write_bytes(score.to_bytes(groove(4)))
    loop = inputs.read(path, font).wave
    wave.write(tmp_path / "dub.wav", loop, None, Format())
    found = read(tmp_path / "dub.wav")
    assert found.label.tempo_bpm == pytest.approx(120, abs=0.1)
    assert (found.label.bars, len(found.wave)) == (4, len(loop))
    assert "(" in found.notes[-1]


def test_of_a_folder_midi_is_taken_or_else_audio(saved: Saved, tmp_path: Path) -> None:
    sound = saved("a.wav", 1.0)
    assert list(inputs.files([tmp_path])) == [sound]
    (tmp_path / "b.mid").mkdir()  # which is none
    (tmp_path / "b.mid" / "b.MID").write_bytes(b"")
    assert list(inputs.files([tmp_path])) == [tmp_path / "b.mid" / "b.MID"]
    missing = tmp_path / "missing.wav"
    assert list(inputs.files([missing, sound])) == [missing, sound]
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoopError, match="no audio files"):
        list(inputs.files([tmp_path / "empty"]))
    assert inputs.needs_font([sound, tmp_path / "b.MID"])
    assert not inputs.needs_font([sound])


# A tempo that nothing states.


def heard(monkeypatch: pytest.MonkeyPatch, tempo_bpm: float | None) -> None:
    def track(_: Wave) -> Pulse:
        if tempo_bpm is None:
            raise LoopError("no beats: what there is has no even pulse; give the tempo with --bpm")
        return Pulse(60 / tempo_bpm, 0.0, 4, "librosa")

    monkeypatch.setattr("audioloop.signal.beats.track", track)


def smooth(path: Path) -> Path:
    """As long as before, and whole periods of a tone: a loop that was cut well."""
    n_samples = soundfile.info(path).frames
    turns = 2 * np.pi * 100 * np.arange(n_samples) / n_samples
    soundfile.write(path, 0.5 * np.sin(turns), RATE)
    return path


@pytest.mark.parametrize("bars", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("tempo_bpm", [82.0, 97.0, 120.0, 133.7])
def test_the_length_of_a_loop_says_its_tempo_where_none_is_heard(
    bars: int, tempo_bpm: float, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard(monkeypatch, None)
    loop = read(smooth(saved("dub.wav", bars * 240 / tempo_bpm)))
    assert len(loop.wave) == round(bars * 240 / tempo_bpm * RATE), "all of it stays"
    assert loop.label.bars == bars
    assert loop.label.tempo_bpm == pytest.approx(tempo_bpm, rel=1e-4)
    assert "by its length" in loop.notes[-1]


@pytest.mark.parametrize("tempo_bpm", [75.0, 90.0, 150.0, 170.0])
@pytest.mark.parametrize("times", [0.98, 2.02, 0.49, 4 / 3, 2 / 3])
def test_what_is_heard_chooses_among_the_lengths(
    tempo_bpm: float, times: float, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard(monkeypatch, tempo_bpm * times)
    seconds = 4 * 240 / tempo_bpm
    loop = read(smooth(saved("dub.wav", seconds)))
    assert len(loop.wave) == round(seconds * RATE)
    octave = np.log2(loop.label.tempo_bpm / (tempo_bpm * times))
    assert abs(octave) <= 0.51, "of all whole bars, those nearest to what is heard"


def test_the_length_of_what_is_no_loop_says_nothing(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = saved("dub.wav", 8.0)
    soundfile.write(torn, np.linspace(-0.5, 0.5, 8 * RATE), RATE)
    heard(monkeypatch, None)
    with pytest.raises(LoopError, match="no even pulse; give the tempo with --bpm"):
        read(torn)
    heard(monkeypatch, 133.0)
    loop = read(torn)  # 17.7 beats
    assert len(loop.wave) < 8 * RATE
    assert f"of {8 * RATE:,}, the rest is left out" in loop.notes[-1]
    heard(monkeypatch, None)
    for seconds in (0.5, 60.0):
        with pytest.raises(LoopError, match="no even pulse"):
            read(smooth(saved("long.wav", seconds)))


def test_bars_and_a_tempo_that_are_both_told_are_both_heeded(saved: Saved) -> None:
    path = saved("dub_90bpm.wav", 9.0)
    loop = read(path, bpm=120, bars=2)
    assert (loop.label.tempo_bpm, loop.label.bars, len(loop.wave)) == (120, 2, 4 * RATE)
    assert "the first 32,000 samples of 72,000, the rest is left out" in loop.notes[-1]
    with pytest.raises(LoopError, match=r"8 bars at 120 bpm are 16.00 s, and it lasts 9.00 s"):
        read(path, bpm=120, bars=8)
    nearly = read(saved("nearly.wav", 8.02), bpm=120, bars=4)
    assert len(nearly.wave) == round(8.02 * RATE), "a tempo that is rounded cuts nothing off"
    assert nearly.label.tempo_bpm == pytest.approx(119.7, abs=0.01)
