"""A render is periodic, exact to the sample, the same every time, and of one loop alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from engines import Elsewhere

from audioloop.io import wave
from audioloop.io.wave import Format, Wave
from audioloop.rendering import batch, piece, render, synth
from audioloop.rendering.render import Sound
from audioloop.rendering.synth import BLOCK, NOTE_OFF, NOTE_ON, SoundFont
from audioloop.signal import effects, seam
from handmade import BAR, HAT, KICK, SNARE, STEP, TPQ, rows, track
from midiloop.common import files
from midiloop.common.engine import Inline
from midiloop.common.processes import Processes
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError
from midiloop.midi import pianoroll, score
from midiloop.midi.key import CONFIDENT
from midiloop.midi.score import Meter, Score, Tempo
from midiloop.midi.transposition import transpose_score
from paths import ROOT

RATE = 44_100
OPEN_HAT = 46


@pytest.fixture(scope="module")
def font() -> SoundFont:
    return SoundFont(bundled(), RATE)


def bundled() -> Path:
    """The SoundFont that is everywhere."""
    import pretty_midi

    return Path(pretty_midi.__file__).parent / synth.BUNDLED_SOUNDFONT


def song(bars: int = 8, tempo_bpm: float = 120.0) -> Score:
    """Drums and bass that fill their bars: the last bass note is held over the bar line."""
    drums, bass = [], []
    for bar in range(bars):
        at = bar * BAR
        drums += [(at, STEP, KICK), (at + TPQ, STEP, SNARE), (at + 3 * TPQ, STEP, SNARE)]
        drums += [(at + beat * TPQ // 2, STEP, HAT) for beat in range(7)]
        drums.append((at + 7 * TPQ // 2, STEP, OPEN_HAT))
        bass += [(at, 2 * TPQ, 40), (at + 2 * TPQ, 2 * TPQ, 43 + bar % 3)]
    tracks = (track(drums, drum=True, name="drums"), track(bass, program=33, name="bass"))
    return Score(TPQ, tracks, (Tempo(0, tempo_bpm),), (Meter(0, 4, 4),), bars * BAR)


def loop_of(tempo_bpm: float = 120.0, bars: int = 8) -> piece.Piece:
    return piece.of_score(song(bars, tempo_bpm), "loop")


def level_db(found: wave.Samples, expected: wave.Samples) -> float:
    off = np.square(found.astype(float) - expected).mean()
    return float(10 * np.log10(max(off, 1e-30) / np.square(expected.astype(float)).mean()))


# Exact.


@pytest.mark.parametrize("tempo_bpm", [40, 61.7, 97.3, 120, 123, 128.5, 174, 199.99, 250])
@pytest.mark.parametrize("rate", [22_050, 48_000])
def test_a_loop_is_exact_to_the_sample(tempo_bpm: float, rate: int) -> None:
    made = render.loop(loop_of(tempo_bpm, bars=2), SoundFont(bundled(), rate))
    assert made.mix.samples.shape == (2, round(2 * 4 * 60 / tempo_bpm * rate))
    assert made.mix.samples.dtype == np.float32


@pytest.mark.parametrize("meter", [(3, 4), (6, 8), (5, 4)])
def test_other_meters_and_repeats_are_exact_too(meter: tuple[int, int], font: SoundFont) -> None:
    ticks = 4 * TPQ * 4 * meter[0] // meter[1]
    waltz = replace(
        song(3), tracks=(track([(0, TPQ, 40), (ticks - TPQ, TPQ, 43)], program=33),),
        meters=(Meter(0, *meter),), length_ticks=ticks, tempos=(Tempo(0, 97.3),),
    )  # fmt: skip
    made = render.loop(piece.of_score(waltz, "w"), font, Sound(repeat=3))
    assert made.label.bars == 12
    assert len(made.mix) == round(3 * ticks / TPQ * 60 / 97.3 * RATE)


@pytest.mark.parametrize("n_samples", [64, 1000, 705_600, 688_390.24, 656_371.8])
def test_the_length_for_the_synth_is_near(n_samples: float) -> None:
    assert abs(render.snapped(n_samples) * BLOCK - n_samples) <= BLOCK / 2


# Periodic.


@pytest.mark.parametrize("tempo_bpm", [90, 123, 161.3])
def test_a_render_repeated_is_what_the_synth_plays(tempo_bpm: float, font: SoundFont) -> None:
    loop = loop_of(tempo_bpm)
    n_blocks = render.snapped(float(loop.label.quarters) * 60 / tempo_bpm * RATE)
    events, programs = render.performance(loop.score, n_blocks)
    with font.synth(programs) as player:
        passes = np.empty((8, 2, n_blocks * BLOCK), np.float32)
        for one in passes:
            player.play(events, 0, one)
    ours = render.periodic(loop.score, n_blocks, font)
    assert all(level_db(later, ours) < -40 for later in passes[1:])
    assert level_db(passes[0], ours) > -45  # the first pass lacks what rings over


def test_the_seam_is_no_special_place(font: SoundFont) -> None:
    """Starting the loop at another bar gives the same sound, turned."""
    whole = song()
    turned = replace(
        whole,
        tracks=tuple(
            t._replace(onsets=np.sort((t.onsets + 3 * BAR) % (8 * BAR)).astype(np.int32))
            for t in whole.tracks[:1]
        ),
    )
    drums = replace(whole, tracks=whole.tracks[:1])
    n_blocks = 8 * 1200
    plain = render.periodic(drums, n_blocks, font)
    order = np.argsort((drums.tracks[0].onsets + 3 * BAR) % (8 * BAR), kind="stable")
    pitches = drums.tracks[0].pitches[order]
    rolled = replace(turned, tracks=(turned.tracks[0]._replace(pitches=pitches),))
    again = render.periodic(rolled, n_blocks, font)
    assert level_db(np.roll(plain, 3 * 1200 * BLOCK, axis=1), again) < -40


def test_seams_of_generated_loops_cannot_be_heard(
    font: SoundFont, rng: np.random.Generator
) -> None:
    """`make bench-seams` says more, of more loops."""
    sample = pytest.importorskip("midiloop.generation.sample")
    request = sample.GenerationRequest(n=24, seed=1)
    rolls = sample.sample(sample.load(sample.SHIPPED), request).rolls
    jumps = []
    for roll in rolls:
        loop = piece.of_roll(roll, float(rng.uniform(40, 250)), "x")
        jumps.append(seam.jump(render.loop(loop, font).mix, 0))
    assert np.mean(jumps) < 1.5
    assert max(jumps) < 3


def test_an_open_hi_hat_is_choked_across_the_seam(font: SoundFont) -> None:
    """The open hi-hat of the last step rings into the first, unless a closed one is there."""

    def head(notes: list[tuple[int, int, int]]) -> float:
        one = replace(song(1), tracks=(track(notes, drum=True),))
        samples = render.periodic(one, 1200, font)
        return float(np.sqrt(np.square(samples[:, 6_000:12_000]).mean()))

    last = BAR - STEP
    rings = head([(last, STEP, OPEN_HAT), (8 * STEP, STEP, KICK)])
    choked = head([(last, STEP, OPEN_HAT), (0, STEP, HAT), (8 * STEP, STEP, KICK)])
    assert choked < rings / 4


def test_the_sustain_pedal_holds_over_the_seam(font: SoundFont) -> None:
    held = track([(BAR // 2, STEP, 60)], program=0)
    pedal = held._replace(controls=np.array([[0, 64, 127]], np.int32))
    dry, wet = (
        render.periodic(replace(song(1), tracks=(t,)), 1200, font)[:, :6000] for t in (held, pedal)
    )
    assert np.abs(wet).max() > 20 * np.abs(dry).max()


# The same every time.


def test_what_was_rendered_before_makes_no_difference(font: SoundFont) -> None:
    before = render.loop(loop_of(123), font).mix.samples
    render.loop(loop_of(97, bars=3), font)
    assert np.array_equal(render.loop(loop_of(123), font).mix.samples, before)
    assert np.array_equal(render.loop(loop_of(123), SoundFont(bundled(), RATE)).mix.samples, before)


def test_events_are_in_order_and_notes_end_after_they_begin() -> None:
    events, programs = render.performance(song(), 9000)
    assert events == sorted(events)
    assert programs == {9: 0, 0: 33}
    ons = [e for e in events if e.kind == NOTE_ON]
    assert len(ons) == song().n_notes
    assert {e.block for e in events if e.kind == NOTE_OFF} >= {0}  # the last bass, at the seam
    assert all(0 <= e.block < 9000 for e in events)


@pytest.mark.parametrize("library", synth.libraries())
def test_every_library_renders(library: str, tmp_path: Path) -> None:
    """In a process of its own, as a process has one FluidSynth."""
    (tmp_path / "loop.mid").write_bytes(score.to_bytes(song(2)))
    code = (
        "import sys; from pathlib import Path; "
        "from audioloop.rendering import piece, render, synth;"
        "font = synth.SoundFont(Path(sys.argv[1]), 44100);"
        "mix = render.loop(piece.read(Path(sys.argv[2]), 'x'), font).mix;"
        "print(synth.load().lib, synth.version(), len(mix), mix.peak)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundled()), str(tmp_path / "loop.mid")],
        env={**os.environ, synth.LIBRARY_VARIABLE: library, "CI": "true"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded, version, length, peak = done.stdout.split()
    assert (loaded, length, done.stderr) == (library, "176400", "")
    assert version.startswith("2.")
    assert float(peak) == pytest.approx(10 ** (-1 / 20), rel=1e-5)


def test_both_ways_to_a_library_are_at_hand() -> None:
    """The system's, which `make test` installs where it may, and that of pip alone."""
    found = synth.libraries()
    if not os.environ.get("CI") and len(found) < 2:
        pytest.skip("this machine has no libfluidsynth of its own; install libfluidsynth3")
    assert any("pygame" in library for library in found)
    assert any("pygame" not in library for library in found)


@pytest.mark.parametrize(
    ("system", "remedy"),
    [
        ("linux", r"pip install pygame-ce, .*libfluidsynth3"),
        ("darwin", r"pip install pygame-ce, .*brew install fluid-synth"),
        ("win32", rf"unpack a release of FluidSynth .*{synth.LIBRARY_VARIABLE} .*\.dll"),
        ("freebsd14", "pip install pygame-ce"),
    ],
)
def test_without_a_library_the_remedies_of_the_system_are_named(
    system: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synth, "libraries", list)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.delitem(sys.modules, "fluidsynth", raising=False)
    with pytest.raises(ImportError, match=remedy) as bad:
        synth.load()
    assert ("pip install" in str(bad.value)) == (system != "win32")  # its wheel holds none


# Level, parts and effects.


def test_stems_add_up_and_have_the_length_of_the_mix(font: SoundFont) -> None:
    made = render.loop(loop_of(97.3), font, Sound(stems=True))
    assert list(made.stems) == ["drums", "bass"]
    assert all(len(stem) == len(made.mix) for stem in made.stems.values())
    assert (
        level_db(made.stems["drums"].samples + made.stems["bass"].samples, made.mix.samples) < -120
    )
    assert level_db(render.loop(loop_of(97.3), font).mix.samples, made.mix.samples) < -40


@pytest.mark.parametrize(
    ("sound", "held_back"),
    [
        (Sound(), False),
        (Sound(peak_db=-6), False),
        (Sound(gain_db=-12), False),
        (Sound(gain_db=60), True),
        (Sound(loudness_lufs=-30), False),
        (Sound(loudness_lufs=0), True),
    ],
)
def test_nothing_clips(sound: Sound, held_back: bool, font: SoundFont) -> None:
    made = render.loop(loop_of(), font, sound)
    assert made.mix.peak <= 10 ** (sound.peak_db / 20) * (1 + 1e-6)
    assert (made.held_back_db > 0.01) == held_back
    if sound.loudness_lufs == -30:
        assert wave.loudness_lufs(made.mix) == pytest.approx(-30, abs=0.1)
    if sound.gain_db is None and sound.loudness_lufs is None:
        assert made.mix.peak == pytest.approx(10 ** (sound.peak_db / 20), rel=1e-5)


@pytest.mark.parametrize("effect", [effects.reverb, effects.chorus])
@pytest.mark.parametrize("length", [9_000, 100_000, 88_211])
def test_effects_know_no_ends(
    effect: Callable[[Wave, float], Wave], length: int, rng: np.random.Generator
) -> None:
    samples = rng.standard_normal((2, length)).astype(np.float32)
    once = effect(Wave(samples, RATE), 0.5).samples
    assert not np.allclose(once, samples, atol=0.01)
    if effect is effects.reverb:  # a chorus swings, so only a room is the same wherever one starts
        rolled = effect(Wave(np.roll(samples, 1234, axis=1), RATE), 0.5).samples
        np.testing.assert_allclose(rolled, np.roll(once, 1234, axis=1), atol=2e-4)
    # Three passes through an effect that is not circular end as the circular one is.
    tiled = effect(Wave(wave.tile(samples, 2), RATE), 0.5).samples
    if effect is effects.reverb:
        np.testing.assert_allclose(tiled[:, length:], once, atol=2e-4)


def test_a_response_longer_than_the_loop_is_wrapped_round_it() -> None:
    response = np.arange(10, dtype=np.float32)[None]
    assert effects.fold(response, 4).tolist() == [[0 + 4 + 8, 1 + 5 + 9, 2 + 6, 3 + 7]]


def test_kit_and_bass_can_be_chosen(font: SoundFont) -> None:
    plain = render.loop(loop_of(bars=1), font, Sound(stems=True)).stems
    other = render.loop(loop_of(bars=1), font, Sound(stems=True, kit=25, bass=38)).stems
    assert level_db(other["drums"].samples, plain["drums"].samples) > -10
    assert level_db(other["bass"].samples, plain["bass"].samples) > -10


# What is a loop.


def test_a_loop_that_ends_in_silence_is_as_long_as_its_tracks(tmp_path: Path) -> None:
    silent = replace(song(3), length_ticks=4 * BAR)
    made = piece.read(score.to_bytes(silent), "x")
    assert (made.label.bars, made.score.length_ticks) == (4, 4 * BAR)


@pytest.mark.parametrize("bpm", [98.5, 123.0, 61.7, 199.99, 120.0, 87.654])
def test_a_tempo_is_the_one_that_was_typed(bpm: float) -> None:
    found = piece.read(score.to_bytes(song(tempo_bpm=bpm)), "x").label.tempo_bpm
    assert found == pytest.approx(bpm, abs=1e-9 if round(bpm, 2) == bpm else 2e-3)


def test_the_key_is_that_of_the_bass_and_moves_with_it() -> None:
    loop = loop_of()
    assert str(loop.label.key) == "Em"
    assert loop.score.key == loop.label.key
    drums = piece.of_score(replace(song(), tracks=song().tracks[:1]), "loop")
    assert drums.label.key is drums.score.key is None
    for semitones in range(-12, 13):
        moved = piece.transposed(loop, semitones)
        assert moved.label.key
        assert moved.label.key.tonic == (4 + semitones) % 12
        assert moved.label.key[1:] == loop.label.key[1:] if loop.label.key else False
        assert rows(moved.score)[0] == rows(loop.score)[0]
        assert rows(piece.transposed(moved, -semitones).score) == rows(loop.score)
    with pytest.raises(LoopError, match=r"--transpose 12 moves C9 out of the pitches of MIDI"):
        piece.transposed(replace(loop, score=transpose_score(loop.score, 75)), 12)


def test_a_batch_is_transposed(midis: Path, tmp_path: Path) -> None:
    found = batch.items([midis], limit=2)
    results = [
        batch.run(
            found, tmp_path / str(semitones), settings(transpose=semitones, template="audacity")
        )
        for semitones in (0, 5)
    ]
    for one, other in zip(results[0].made, results[1].made, strict=True):
        assert other.files == tuple(name.replace(" Em", " Am") for name in one.files)
        assert one.files != other.files
        before, after = (
            score.read(tmp_path / folder / made.files[-1])
            for folder, made in (("0", one), ("5", other))
        )
        assert rows(transpose_score(after, -5)) == rows(before)
    too_high = song(1)
    high = replace(too_high, tracks=(track([(0, BAR, 125)], program=33),))
    (midis / "high.mid").write_bytes(score.to_bytes(high))
    result = batch.run(batch.items([midis]), tmp_path / "high", settings(transpose=5))
    assert len(result.made) == 12
    (failed,) = result.failed
    assert "--transpose -7 gives the same key" in failed.cause


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"tracks": ()}, "no notes"),
        ({"length_ticks": 3 * BAR + STEP, "tracks": (track([(3 * BAR, STEP, 40)]),)}, "--bars 4"),
        ({"length_ticks": 65 * BAR}, "at most 64"),
        ({"tempos": (Tempo(0, 120), Tempo(BAR, 90))}, "its tempo changes on quarter note 5"),
        ({"tempos": (Tempo(0, 700),)}, "out of range"),
        ({"meters": (Meter(0, 4, 4), Meter(4 * BAR, 3, 4))}, "one meter"),
        ({"meters": (Meter(0, 7, 8),), "length_ticks": 7 * TPQ // 2 * 9}, "even number of bars"),
    ],
)
def test_what_is_no_loop_says_why(change: dict[str, object], cause: str) -> None:
    with pytest.raises(LoopError, match=cause):
        piece.of_score(replace(song(), **change), "x")  # type: ignore[arg-type]


def test_bars_and_bpm_settle_what_a_file_leaves_open() -> None:
    odd = replace(song(3), tempos=(Tempo(0, 120), Tempo(BAR, 90)), length_ticks=3 * BAR - 7)
    made = piece.of_score(odd, "x", bpm=100, bars=4)
    assert (made.label.bars, made.label.tempo_bpm) == (4, 100)
    with pytest.raises(LoopError, match="--bars says 2"):
        piece.of_score(song(3), "x", bars=2)


# Soundfonts.


def test_the_soundfont_is_that_named_then_a_system_s_then_the_one_of_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, other = tmp_path / "named.sf2", tmp_path / synth.SOUNDFONT_NAMES[0]
    for path in (named, other):
        path.symlink_to(bundled())
    monkeypatch.setenv(synth.SOUNDFONT_VARIABLE, str(named))
    monkeypatch.setattr(synth, "SOUNDFONT_FOLDERS", (str(tmp_path),))
    assert synth.soundfont(bundled()) == bundled()
    assert synth.soundfont() == named
    monkeypatch.delenv(synth.SOUNDFONT_VARIABLE)
    assert synth.soundfont() == other
    other.unlink()
    assert synth.soundfont() == bundled()
    monkeypatch.setattr(synth, "bundled_soundfont", lambda: None)
    with pytest.raises(LoopError, match="pip install pretty_midi"):
        synth.soundfont()


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "no SoundFont"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "no SoundFont"),
        (b"RIFF\x00\x10\0\0sfbk" + bytes(100), "cut off"),
    ],
)
def test_a_file_that_is_no_soundfont(data: bytes, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "x.sf2"
    path.write_bytes(data)
    with pytest.raises(LoopError, match=cause):
        synth.soundfont(path)


def test_a_soundfont_whose_inside_is_broken(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.sf2"
    path.write_bytes(b"RIFF\x68\0\0\0sfbk" + bytes(100))
    with pytest.raises(LoopError, match="cannot load"):
        SoundFont(synth.soundfont(path), RATE)
    assert capfd.readouterr() == ("", "")


def test_a_soundfont_without_the_instrument_is_silence_and_said(font: SoundFont) -> None:
    whistle = replace(song(1), tracks=(track([(0, STEP, 1)], drum=True),))
    with pytest.raises(LoopError, match="silent"):
        render.loop(piece.of_score(whistle, "x"), font)


# Batches.


def settings(**more: object) -> batch.Settings:
    return batch.Settings(bundled(), **more)  # type: ignore[arg-type]


@pytest.fixture
def midis(tmp_path: Path) -> Path:
    folder = tmp_path / "midi"
    folder.mkdir()
    for number in range(12):
        tempo_bpm = 90 + 7.3 * number
        (folder / f"l{number:02d}_{round(tempo_bpm)}bpm.mid").write_bytes(
            score.to_bytes(song(1 + number % 2, tempo_bpm))
        )
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != batch.RECORD}


def test_any_engine_gives_the_same_bytes(midis: Path, tmp_path: Path) -> None:
    found = batch.items([midis])
    seen: list[int] = []
    one = batch.run(found, tmp_path / "one", settings(), engine=Inline(), on_progress=seen.append)
    two = batch.run(found, tmp_path / "two", settings(), engine=Processes(2))
    far = batch.run(found, tmp_path / "far", settings(), engine=Elsewhere())
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "far")
    assert one == two == far
    assert seen[-1] == 12
    assert [made.files for made in one.made][1] == ("l01_97bpm_Em.wav", "l01_97bpm_Em.mid")


def test_a_run_goes_on_where_it_was_stopped(midis: Path, tmp_path: Path) -> None:
    found, out = batch.items([midis]), tmp_path / "out"
    whole = batch.run(found, out, settings(sound=Sound(stems=True)))
    before = contents(out)
    for path in sorted(out.glob("*drums.wav"))[3:]:
        path.unlink()
    for path in sorted(out.glob("*bpm_Em.wav"))[3:]:
        path.unlink()
    old = {path: path.stat().st_mtime_ns for path in out.glob("*bpm_Em.wav")}
    again = batch.run(found, out, settings(sound=Sound(stems=True)), resume=True)
    assert contents(out) == before
    assert again.made == whole.made
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in old.items())
    with pytest.raises(CallError, match="begun with sound stems True, not False; resume it as"):
        batch.run(found, out, settings(), resume=True)
    with pytest.raises(CallError, match="exists already"):
        batch.run(found, out, settings())


def test_stems_in_files_add_up_to_the_last_bit(midis: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = batch.run(batch.items([midis], limit=2), out, settings(sound=Sound(stems=True)))
    for made in result.made:
        mix, drums, bass = (soundfile.read(out / name, dtype="int32")[0] for name in made.files[:3])
        assert made.files[1:3] == (
            made.files[0].replace("_Em.wav", "_drums.wav"),  # which are in no key
            made.files[0].replace(".wav", "_bass.wav"),
        )
        assert np.array_equal(mix, drums + bass)


def crashing(job: batch.Job, turn_to: Callable[[int], None]) -> Sequence[object] | LoopError:
    """As the batch's own task, but one loop kills its process, as FluidSynth might."""
    lethal = [at for at, item in enumerate(job.items) if item.name.startswith("l05")]
    if lethal and lethal[0] not in job.lost:
        turn_to(lethal[0])
        os.kill(os.getpid(), signal.SIGKILL)
    return batch.do_job(job, turn_to)


def test_a_crash_takes_its_own_loop_and_no_other(
    midis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(batch, "do_job", crashing)
        result = batch.run(batch.items([midis]), tmp_path / "out", settings(), engine=Processes(2))
    assert len(result.made) == 11
    assert [(Path(f.source).name[:3], f.cause[:17]) for f in result.failed] == [
        ("l05", "its process ended")
    ]


def test_a_bad_file_is_named_and_the_rest_is_rendered(midis: Path, tmp_path: Path) -> None:
    (midis / "l03_bad.mid").write_bytes(b"MThd")
    (midis / "l04_song.mid").write_bytes(score.to_bytes(song(70)))
    result = batch.run(batch.items([midis]), tmp_path / "out", settings())
    assert len(result.made) == 12
    causes = {Path(failed.source).name: failed.cause for failed in result.failed}
    assert causes.keys() == {"l03_bad.mid", "l04_song.mid"}
    assert "truncated" in causes["l03_bad.mid"]
    assert "midiloop extract" in causes["l04_song.mid"]


def test_loops_of_a_dataset(dataset: LoopDataset, tmp_path: Path) -> None:
    found = batch.items([dataset.path], limit=5)
    result = batch.run(found, tmp_path / "out", settings())
    rolls = next(iter(dataset.batches())).rolls
    assert len(result.made) == 5
    for made, roll in zip(result.made, rolls, strict=False):
        midi = score.read(tmp_path / "out" / made.files[-1])
        assert np.array_equal(pianoroll.encode(midi), roll)
        assert made.label.bars == 8
    chosen = batch.items([dataset.path], split="valid")
    assert 0 < len(chosen) < len(batch.items([dataset.path]))


def test_loops_of_a_dataset_in_three(waltzes: LoopDataset, tmp_path: Path) -> None:
    found = batch.items([waltzes.path], limit=3)
    result = batch.run(
        found, tmp_path / "out", batch.Settings(bundled(), bpm=97.3), engine=Inline()
    )
    assert not result.failed
    for made in result.made:
        assert (made.label.bars, made.label.meter) == (4, (3, 4))
        assert made.samples == round(4 * 3 * 60 / 97.3 * RATE)
        midi = score.read(tmp_path / "out" / made.files[-1])
        roll = pianoroll.encode(midi, waltzes.grid)
        assert roll.shape == (waltzes.grid.steps, waltzes.grid.columns)
        np.testing.assert_array_equal(roll, next(waltzes.batches()).rolls[int(made.label.number)])


def test_names_are_never_the_same(midis: Path, tmp_path: Path) -> None:
    (midis / "L00 90BPM.mid").write_bytes((midis / "l00_90bpm.mid").read_bytes())
    found = batch.items([midis, tmp_path / "midi" / "l01_97bpm.mid"])
    result = batch.run(found, tmp_path / "out", settings(template="splice"))
    names = [name.lower() for made in result.made for name in made.files]
    assert len(names) == len(set(names)) == 2 * 14
    with pytest.raises(CallError, match=r"put \{name\} or \{number\} into it"):
        batch.run(found, tmp_path / "other", settings(template="{bpm}"))
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that can be filled")
def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(
    midis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing in this process, where the disk can be made to fill after some bytes."""
    out = tmp_path / "out"
    out.mkdir()
    real, left = Path.write_bytes, [3]

    def write_bytes(path: Path, data: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            real(path, data[:100])
            raise OSError(28, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    job = batch.Job(tuple(batch.items([midis])), out, settings())
    with pytest.raises(OSError, match="No space left"):
        batch.do_job(job, lambda _: None)
    assert sorted(path.name for path in out.iterdir()) == ["l00_90bpm_Em.mid", "l00_90bpm_Em.wav"]


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        ({"rate": 192_000}, "FluidSynth renders"),
        ({"template": "{title}"}, "give text and"),
        ({"rate": 100}, "FluidSynth renders"),
    ],
)
def test_calls_that_cannot_be_carried_out(
    more: dict[str, object], cause: str, midis: Path, tmp_path: Path
) -> None:
    with pytest.raises(CallError, match=cause):
        batch.run(batch.items([midis]), tmp_path / "out", settings(**more))
    assert not (tmp_path / "out").exists()


def test_a_depth_that_a_format_cannot_hold() -> None:
    for name, depth in (("flac", "float"), ("ogg", "24"), ("wav", "8")):
        with pytest.raises(CallError, match="holds no samples"):
            Format(name, depth)


def test_a_loop_of_hours_is_refused(midis: Path, tmp_path: Path) -> None:
    long = settings(sound=Sound(repeat=900))
    result = batch.run(batch.items([midis], limit=1), tmp_path / "out", long)
    assert "lower --repeat" in result.failed[0].cause


# The command.


def audioloop(*args: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("audioloop")), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_render_as_a_user_types_it(midis: Path, tmp_path: Path) -> None:
    done = audioloop("render", midis, "-o", tmp_path / "out", "--format", "flac", "--stems")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first.startswith(f"12 loops in {tmp_path / 'out'}   ")
    assert lines[0] == "l00_90bpm_Em.flac   1 bar at 90 bpm, 117,600 samples"
    options = ("-o", tmp_path / "up", "--limit", 2, "--json", "--transpose")
    higher = [audioloop("render", midis, *options, by) for by in (13, 3)]
    assert [done.returncode for done in higher] == [2, 0]
    assert higher[0].stderr.count("\n") == 1
    for one in json.loads(higher[1].stdout)["loops"]:
        assert (one["key"], one["root"]) == ("Gm", 7)
        assert one["key_confidence"] >= CONFIDENT
        assert one["files"][0].endswith("bpm_Gm.wav")
    again = audioloop("render", midis, "-o", tmp_path / "out")
    assert again.returncode == 2
    assert again.stderr.startswith("audioloop: error: ")
    assert again.stderr.count("\n") == 1


def test_a_batch_with_a_bad_file_ends_with_one(midis: Path, tmp_path: Path) -> None:
    (midis / "bad.mid").write_bytes(b"")
    done = audioloop("render", midis, "-o", tmp_path / "out", "--limit", 2, "--json")
    assert done.returncode == 1
    cause = "not_midi, the file is empty; give another file"
    assert done.stderr == f"audioloop: error: {midis / 'bad.mid'}: {cause}\n"
    done = audioloop(
        "render", midis / "l00_90bpm.mid", "-o", tmp_path / "x", "--soundfont", ROOT / "README.md"
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no SoundFont" in done.stderr


def test_passes_of_one_file_are_cut_at_the_tempo(font: SoundFont) -> None:
    loop = loop_of(97.3, bars=1)
    many = render.loop(loop, font, Sound(repeat=4)).mix.samples
    edges = [round(n * 4 * 60 / 97.3 * RATE) for n in range(5)]
    passes = [many[:, start:end] for start, end in pairwise(edges)]
    once = render.loop(loop, font).mix.samples
    shortest = min(part.shape[1] for part in [*passes, once])
    assert all(level_db(part[:, :shortest], once[:, :shortest]) < -20 for part in passes)


def test_a_loop_is_whole_when_all_of_its_files_are_there(midis: Path, tmp_path: Path) -> None:
    out, found = tmp_path / "out", batch.items([midis])
    made = batch.run(found, out, settings(sound=Sound(stems=True)))
    before = contents(out)
    for name in (made.made[0].files[-1], made.made[1].files[1], made.made[2].files[0]):
        (out / name).unlink()
    batch.run(found, out, settings(sound=Sound(stems=True)), resume=True)
    assert contents(out) == before


def test_two_renders_do_not_work_in_one_folder(midis: Path, tmp_path: Path) -> None:
    found, out = batch.items([midis]), tmp_path / "out"
    out.mkdir()
    with files.locked(out), pytest.raises(CallError, match="another run is at work here"):
        batch.run(found, out, settings())
    assert not list(out.iterdir())


def test_a_render_of_nothing_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "bad.mid").write_bytes(b"no music")
    result = batch.run(batch.items([tmp_path / "bad.mid"]), tmp_path / "out", settings())
    assert len(result.failed) == 1
    assert not (tmp_path / "out").exists()
