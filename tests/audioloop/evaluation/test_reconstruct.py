"""Loops through a codec and back: files, report, and the quality of the codec that ships."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pretty_midi
import pytest
import torch
from click.testing import CliRunner

from audioloop.codec import compression
from audioloop.codec.model import Codec, CodecConfig
from audioloop.evaluation import reconstruct
from audioloop.io import metadata, wave
from audioloop.io.label import LoopLabel
from audioloop.io.wave import Format, Wave
from audioloop.rendering import piece, render, synth
from handmade import groove
from midiloop.common import checkpoint, files
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import LoopError
from midiloop.generation import sample
from midiloop_cli import main

TINY = CodecConfig(
    fine=32, coarse=32, encoder_blocks=1, decoder_blocks=1, latent_dim=16, codebook_size=32
)
RATE = 44_100


class Done(NamedTuple):
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def audioloop(*args: object) -> Done:
    """The command, in this process, which has PyTorch loaded already."""
    found = CliRunner().invoke(main.audioloop, [*map(str, args)])
    return Done(found.exit_code, found.stdout, found.stderr)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec that has learned nothing."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save_model(folder, compression.KIND, Codec(TINY), {})
    return folder


@pytest.fixture(scope="module")
def rendered() -> render.Rendered:
    font = synth.SoundFont(synth.soundfont(), RATE)
    return render.loop(piece.of_score(groove(2), "groove", bpm=123.4), font)


@pytest.fixture
def loop(rendered: render.Rendered, tmp_path: Path) -> Path:
    path = tmp_path / "groove_123bpm.wav"
    wave.write(path, rendered.mix, rendered.label, Format())
    return path


def test_what_comes_back_is_as_long_as_what_went_in_and_says_its_tempo(
    loop: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = audioloop("reconstruct", loop, "-o", out, "--codec", run)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "groove_123bpm.png",
        "groove_123bpm_codes.wav",
        "groove_123bpm_latent.wav",
        "reconstruct.json",
    ]
    original = wave.read(loop)
    for way in reconstruct.DECODED_FROM:
        back = metadata.read(out / f"groove_123bpm_{way}.wav")
        assert back.wave.rate == RATE
        assert back.wave.samples.shape == (1, len(original))
        assert back.tempo_bpm == pytest.approx(123.4, abs=1e-4)
        assert back.bars == 2
    assert "2 channels mixed to one" in done.stdout
    assert "44,100 Hz, resampled to 32,000" in done.stdout
    assert "2 kbit/s" not in done.stdout  # that of this codec is another
    assert "1 kbit/s" in done.stdout


def test_json_holds_what_the_record_holds(loop: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = audioloop("reconstruct", loop, "-o", out, "--codec", run, "--json")
    found = json.loads(done.stdout)
    assert found == json.loads((out / "reconstruct.json").read_text())
    figures = found["files"][0]["figures"]
    assert set(figures) == set(reconstruct.DECODED_FROM)
    assert set(figures["codes"]) == set(reconstruct.MEANING)
    assert found["median"] == figures
    assert found["kilobits_per_s"] == 4 * 5 * 50 / 1000
    assert len(found["codebook_use"]) == 4


def test_a_folder_is_read_and_a_bad_file_does_not_stop_the_rest(
    loop: Path, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    short = Wave(np.full((1, 200), 0.1, np.float32), RATE)
    wave.write(tmp_path / "short.wav", short, None, Format())
    done = audioloop("reconstruct", tmp_path, "-o", tmp_path / "out", "--codec", run)
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    assert len(errors) == 2
    assert "broken.wav" in errors[0]
    assert "short.wav: 4.5 ms are less than a frame of 20 ms" in errors[1]
    assert (tmp_path / "out" / "groove_123bpm_codes.wav").exists()


def test_samples_that_are_no_numbers_are_refused(run: Path, tmp_path: Path) -> None:
    import soundfile

    samples = np.full(RATE, 0.1, np.float32)
    samples[77] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, RATE, subtype="FLOAT")
    done = audioloop("reconstruct", tmp_path / "nan.wav", "-o", tmp_path / "out", "--codec", run)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "not finite" in done.stderr


def test_silence_comes_back_soft_and_says_so(run: Path, tmp_path: Path) -> None:
    silence = Wave(np.zeros((1, RATE), np.float32), RATE)
    wave.write(tmp_path / "silence.wav", silence, None, Format())
    done = audioloop(
        "reconstruct", tmp_path / "silence.wav", "-o", tmp_path / "out", "--codec", run
    )
    assert done.returncode == 0, done.stderr
    assert "silent" in done.stdout
    assert "nan" not in done.stdout


def test_clipping_is_named_and_what_would_clip_is_turned_down(run: Path, tmp_path: Path) -> None:
    seconds = np.arange(RATE) / RATE
    loud = np.clip(3 * np.sin(2 * np.pi * 100 * seconds), -1, 1).astype(np.float32)
    wave.write(tmp_path / "loud.wav", Wave(loud[None], RATE), None, Format("wav", "float"))
    done = audioloop("reconstruct", tmp_path / "loud.wav", "-o", tmp_path / "out", "--codec", run)
    assert done.returncode == 0, done.stderr
    assert "samples at full scale or beyond" in done.stdout
    assert "turned down by" in done.stdout
    assert wave.read(tmp_path / "out" / "loud_latent.wav").peak <= 1


def test_one_run_at_a_time_works_in_a_folder(loop: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with files.locked(out):
        done = audioloop("reconstruct", loop, "-o", out, "--codec", run)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "another run is at work here" in done.stderr
    assert not list(out.iterdir())


def test_nothing_is_written_where_nothing_came_back(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty.wav").touch()
    done = audioloop("reconstruct", tmp_path / "empty.wav", "-o", out, "--codec", run)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_without_matplotlib_there_is_sound_and_no_picture(
    loop: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    done, failed = reconstruct.run([loop], tmp_path / "out", compression.load(run))
    assert not failed
    assert set(done[0].files) == {"latent", "codes"}
    assert "pip install matplotlib" in done[0].notes[-1]


def test_files_of_one_name_do_not_overwrite_each_other(
    loop: Path, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    copy = tmp_path / "other" / loop.name
    copy.write_bytes(loop.read_bytes())
    done = audioloop("reconstruct", loop, copy, "-o", tmp_path / "out", "--codec", run, "--json")
    written = [file["written"]["codes"] for file in json.loads(done.stdout)["files"]]
    assert written == ["groove_123bpm_codes.wav", "groove_123bpm-2_codes.wav"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--codec", "nowhere"], 2, "no such file or folder"),
        (["--codec", ".", "--encodec", "x"], 2, "two codecs"),
    ],
)
def test_bad_calls_are_one_line(
    loop: Path, tmp_path: Path, args: list[str], code: int, words: str
) -> None:
    done = audioloop("reconstruct", loop, "-o", tmp_path / "out", *args)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_refused(loop: Path, tmp_path: Path) -> None:
    shipped = sample.SHIPPED / "loop-transformer"
    done = audioloop("reconstruct", loop, "-o", tmp_path / "out", "--codec", shipped)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "loop-transformer" in done.stderr


def test_a_loop_of_unknown_tempo_is_labelled_as_a_loop_only(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 100 * np.arange(30_000) / 30_000).astype(np.float32)
    for form in (Format(), Format("flac"), Format("ogg", "lossy")):
        path = tmp_path / f"tone{form.suffix}"
        wave.write(path, Wave(0.5 * tone[None], RATE), None, form)
        found = metadata.read(path)
        assert found.tempo_bpm is None
        loops = found.loops or (found.tagged,)
        assert loops[0] is not None
        assert tuple(loops[0])[:2] == (0, 30_000)


def test_a_codec_is_trained_with_one_command_and_goes_on(
    dataset: LoopDataset, tmp_path: Path
) -> None:
    font = synth.soundfont(Path(pretty_midi.__file__).with_name(synth.BUNDLED_SOUNDFONT))
    call = ["train", "codec", dataset.path, "-o", tmp_path / "run", "--soundfont", font, "--json"]
    call += ["--steps", 2, "--batch-size", 2, "--device", "cpu"]
    done = audioloop(*call)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] == 2
    assert found["si_sdr_codes_db"] < found["si_sdr_db"]
    again = audioloop(*call)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert again.stderr.count("\n") == 1
    resumed = audioloop(*call, "--resume")
    assert json.loads(resumed.stdout)["si_sdr_db"] == found["si_sdr_db"]
    checkpoint.pack(tmp_path / "run", tmp_path / "packed", compression.KINDS)
    packed, whole = (compression.load(tmp_path / name) for name in ("packed", "run"))
    for ours, theirs in zip(packed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    size = (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert size < 14e6


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, "either --minutes or --steps"),
        (["--steps", 1, "--learning-rate", 0], 2, "learning-rate"),
        (["--steps", 1, "--loss-weight", "volume=1"], 2, "it has waveform, convergence"),
        (["--steps", 1, "--loss-weight", "mel=loud"], 2, "'loud' is no number"),
        (["--steps", 1, "--loss-weight", "adversarial=2"], 2, "out of range"),
        (["--steps", 1, "--decoder-only"], 2, "--init-from"),
        (["--steps", 1, "--init-from", "nowhere"], 2, "no such file or folder"),
        (["--steps", 1, "--soundfont", "nowhere.sf2"], 2, "nowhere.sf2"),
    ],
)
def test_training_that_cannot_begin_is_one_line(
    dataset: LoopDataset, tmp_path: Path, args: list[object], code: int, words: str
) -> None:
    done = audioloop("train", "codec", dataset.path, "-o", tmp_path / "run", *args)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def codec() -> Codec:
    """The one in the package."""
    return compression.load()


def test_the_shipped_codec_is_small() -> None:
    files = [path for path in compression.SHIPPED.iterdir() if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in files) < 14e6


def test_a_render_comes_back_from_the_shipped_codec(
    codec: Codec, rendered: render.Rendered
) -> None:
    figures, _, _ = reconstruct.measure(rendered.mix, codec)
    least = {"latent": 8.0, "codes": 5.0}
    for way, found in figures.items():
        assert found.si_sdr_db is not None
        assert found.si_sdr_db > least[way]
        assert found.high_gap_db is not None
        # Strong in this SoundFont above 8 kHz, where the codec learned from another: see its card.
        assert found.high_gap_db is not None
        assert -12 < found.high_gap_db < 6
        assert found.wrap_error_db is not None
        assert found.wrap_error_db < -100


def test_codes_of_a_rotated_loop_are_the_rotated_codes(
    codec: Codec, rendered: render.Rendered
) -> None:
    ring = compression.to_frames(rendered.mix, codec.config)
    with torch.inference_mode():
        codes = codec.quantize(codec.encode(ring, circular=True))
        turned = ring.roll(7 * codec.config.frame, -1)
        codes_turned = codec.quantize(codec.encode(turned, circular=True))
    agree = (codes_turned == codes.roll(7, -1)).float().mean()
    assert agree > 0.999  # a vector as near as another may lose by rounding


@pytest.mark.parametrize(("tempo_bpm", "bars"), [(40.0, 1), (123.456, 3), (250.0, 8)])
def test_any_tempo_and_number_of_bars_comes_back_exact(
    codec: Codec, tempo_bpm: float, bars: int
) -> None:
    label = LoopLabel(tempo_bpm, bars)
    rng = np.random.default_rng(1)
    samples = rng.normal(0, 0.1, (2, label.samples(RATE))).astype(np.float32)
    encoded = compression.encode(Wave(samples, RATE), codec)
    latent = compression.dequantize(encoded.codes, codec)
    assert len(compression.decode(latent, codec, encoded.n_samples, RATE)) == label.samples(RATE)


def test_an_empty_folder_holds_no_codec(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match=r"no config\.json"):
        compression.load(tmp_path)
