"""What is in memory is taken as the same thing in a file is, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_inpainter import small_inpainter

from audioloop.conditioning import Conditioning
from audioloop.evaluation import seam_report
from audioloop.io.label import LoopLabel
from audioloop.io.wave import Wave
from audioloop.pipelines import generate, inputs, outputs, refine
from audioloop.pipelines.generate import LoopPrompt
from audioloop.pipelines.inpaint import Inpainter, SamplingConfig
from audioloop.pipelines.inputs import SourceLoop
from audioloop.pipelines.masks import InpaintMask
from audioloop.rendering import piece
from audioloop.rendering.render import Sound
from audioloop.rendering.synth import SoundFont
from handmade import groove, random_rolls
from midiloop.errors import LoopError
from midiloop.grid import Roll
from midiloop.midi import pianoroll, score

FAST = SamplingConfig(steps=(4, 2, 2, 2), seed=3)
RATE = 44_100
DUB = Sound(kit=25)


@pytest.fixture(scope="module")
def font() -> SoundFont:
    return SoundFont()


@pytest.fixture(scope="module")
def inpainter() -> Inpainter:
    return small_inpainter()


@pytest.fixture
def roll(rng: np.random.Generator) -> Roll:
    """Two bars, the last steps of which are silent."""
    found = random_rolls(rng, 1)[0, :32].copy()
    found[30:] = False
    return found


def facts(told: Conditioning) -> tuple[int | None, ...]:
    return told.steps, told.kit, told.bass


def assert_same(one: SourceLoop, other: SourceLoop) -> None:
    np.testing.assert_array_equal(one.wave.samples, other.wave.samples)
    assert (one.wave.rate, one.label, one.notes) == (other.wave.rate, other.label, other.notes)
    assert one.source is None
    told, heard = one.conditioning, other.conditioning
    np.testing.assert_array_equal(told.roll, heard.roll)
    assert facts(told) == facts(heard)


@pytest.mark.parametrize("bars", [None, 3])
def test_a_score_is_the_loop_of_its_file(bars: int | None, font: SoundFont, tmp_path: Path) -> None:
    song, path = groove(2), tmp_path / "dub.mid"
    score.write(song, path)
    loop = inputs.of(song, font, DUB, bpm=133.7, bars=bars, name="dub")
    assert_same(loop, inputs.read(path, font, DUB, bpm=133.7, bars=bars))
    assert loop.label.bars == (bars or 2)


def test_a_roll_is_the_loop_of_its_file(roll: Roll, font: SoundFont, tmp_path: Path) -> None:
    path = tmp_path / "dub.mid"
    score.write(pianoroll.decode(roll, 97.5), path)
    loop = inputs.of(roll, font, bpm=97.5, name="dub")
    assert_same(loop, inputs.read(path, font))
    np.testing.assert_array_equal(loop.conditioning.roll, roll)
    assert inputs.of(roll, font).label.tempo_bpm == 120


@pytest.mark.parametrize(("bpm", "bars"), [(120, 1), (120, None), (None, 2), (None, None)])
def test_a_wave_is_the_loop_of_a_file_that_states_nothing(
    bpm: float | None, bars: int | None, roll: Roll, font: SoundFont, tmp_path: Path
) -> None:
    loop = inputs.of(roll, font, bpm=120).wave
    soundfile.write(tmp_path / "dub.wav", loop.samples.T, loop.rate, subtype="FLOAT")
    found = inputs.of(loop, bpm=bpm, bars=bars, name="dub")
    assert_same(found, inputs.read(tmp_path / "dub.wav", bpm=bpm, bars=bars))


@pytest.mark.parametrize("samples", [np.zeros((1, 0)), np.zeros((1, 99)), np.full((1, 99), np.nan)])
def test_a_wave_that_does_not_sound_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(LoopError, match=r"give a loop that sounds|export it again"):
        inputs.of(Wave(samples.astype(np.float32), RATE), bpm=120, bars=1)


def test_refining_a_roll_needs_no_file(
    roll: Roll, font: SoundFont, inpainter: Inpainter, tmp_path: Path
) -> None:
    score.write(pianoroll.decode(roll, 240), tmp_path / "dub.mid")
    part = InpaintMask(mask="2")
    made = [
        refine.refine(loop, inpainter, part, num_samples=2, sampling=FAST)
        for loop in (inputs.of(roll, font, bpm=240), inputs.read(tmp_path / "dub.mid", font))
    ]
    assert made[0][1] == made[1][1] == 0.5
    for one, other in zip(made[0][0], made[1][0], strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)


def test_generating_from_a_roll_or_a_score_needs_no_file(
    roll: Roll, inpainter: Inpainter, tmp_path: Path
) -> None:
    song, path = pianoroll.decode(roll), tmp_path / "dub.mid"
    score.write(song, path)
    of_file = generate.prompt_of(piece.read(path, "loop"))
    waves = [
        generate.generate(source, inpainter, sampling=FAST)[0]
        for source in (roll, song, generate.prompt_of(roll), of_file)
    ]
    assert len(waves[0]) == of_file.label.samples(RATE)
    for wave in waves[1:]:
        np.testing.assert_array_equal(wave.samples, waves[0].samples)


def test_a_run_writes_what_is_generated_in_memory(
    roll: Roll, inpainter: Inpainter, tmp_path: Path
) -> None:
    path, out, again = (tmp_path / name for name in ("dub.mid", "out", "again"))
    score.write(pianoroll.decode(roll, 240), path)
    done = generate.run([path], out, inpainter, DUB, num_samples=2, sampling=FAST)
    (written,) = list(done)
    assert not isinstance(written, LoopError)
    prompt = generate.prompt_of(roll, DUB, bpm=240, name="dub")
    waves = generate.generate(prompt, inpainter, num_samples=2, sampling=FAST)
    for made in outputs.numbered(waves, prompt.label, prompt.score):
        outputs.write(made.wave, again, made.label, notes=made.score)
    names = sorted(name for one in written for name in one.files)
    assert names == sorted(one.name for one in again.iterdir())
    for name in names:
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_without_notes_a_kit_and_a_bass_are_told_all_the_same() -> None:
    prompt = generate.without_notes()
    assert (prompt.label, prompt.score) == (LoopLabel(120, 4, name="loop"), None)
    told = prompt.conditioning
    assert (told.roll, *facts(told)) == (None, 64, 0, 33)
    assert facts(generate.without_notes(kit=25).conditioning) == (64, 25, 33)
    assert isinstance(prompt, LoopPrompt)


@pytest.mark.parametrize("bars", [None, 2])
def test_a_seam_is_reported_as_of_its_file(
    bars: int | None, roll: Roll, font: SoundFont, tmp_path: Path
) -> None:
    wave = inputs.of(roll, font).wave
    cut = Wave(wave.samples[:, 3_000:100_000], wave.rate)
    for name, loop in {"whole": wave, "cut": cut}.items():
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, loop.samples.T, loop.rate, subtype="FLOAT")
        of_file = seam_report.of_file(path, bars=bars, seed=5)
        found = seam_report.seam_report(loop, bars, seed=5)
        assert of_file.report == found
        assert found.as_json()["bad"] is found.verdict.bad
        assert found.excess >= 0
    ((empty,),) = [list(seam_report.run([tmp_path / "none.wav"]))]
    assert isinstance(empty, seam_report.FailedFile)
    assert empty.error.startswith(f"{tmp_path / 'none.wav'}: ")
