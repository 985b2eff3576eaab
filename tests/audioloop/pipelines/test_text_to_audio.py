"""Loops of a text: a small MAGNeT, a small EnCodec and a small T5, in their published formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import paths
from audioloop.codec import compression
from audioloop.evaluation import validate
from audioloop.io import wave
from audioloop.io.label import LoopLabel
from audioloop.pipelines import text_to_audio
from audioloop.pipelines.inpaint import SamplingConfig
from audioloop.pipelines.text_to_audio import TextToAudio
from audioloop.tokens.magnet import decode, loops
from audioloop.tokens.magnet.decode import DecodeConfig
from midiloop.common.checkpoint import read_tensors
from midiloop.errors import LoopError
from midiloop_cli import main

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("yaml")

GOLDEN, ABOUT = read_tensors(paths.GOLDEN / "magnet.safetensors")
WEIGHTS = {n.removeprefix("weights."): w for n, w in GOLDEN.items() if n.startswith("weights.")}
WORDS = ["<pad>", "</s>", "<unk>", "slow", "dub", "warm", "bass", "drums"]
# As facebook/encodec_32khz, with fewer channels, and 4 codes of 32 as the MAGNeT has.
ENCODEC: dict[str, Any] = {
    "sampling_rate": 32_000, "audio_channels": 1, "normalize": False, "target_bandwidths": [1.0],
    "upsampling_ratios": [8, 5, 4, 4], "use_causal_conv": False, "use_conv_shortcut": False,
    "num_filters": 4, "hidden_size": 16, "codebook_size": 32,
}  # fmt: skip
RATE = 44_100
FAST = SamplingConfig(steps=(4, 2, 2, 2), temperature=3.0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A MAGNeT that writes one second, an EnCodec, and a T5 of eight words; all know nothing."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("magnet", "encodec", "t5")}
    whole = {"best_state": WEIGHTS, "xp.cfg": ABOUT["config"]}
    torch.save(whole, found["magnet"] / "state_dict.bin")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(found["t5"])
    sizes = {"vocab_size": 8, "d_model": 768, "d_kv": 8, "d_ff": 16, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = transformers.T5EncoderModel(transformers.T5Config(**sizes, num_layers=1))
        model.save_pretrained(found["t5"])
        codec = transformers.EncodecModel(transformers.EncodecConfig(**ENCODEC))
        for number, layer in enumerate(codec.quantizer.layers):
            layer.codebook.embed.normal_(std=0.5**number)
        codec.save_pretrained(found["encodec"])
    return found


@pytest.fixture(scope="module")
def writer(folders: dict[str, Path]) -> TextToAudio:
    return text_to_audio.load(folders["magnet"], str(folders["encodec"]), str(folders["t5"]))


@pytest.mark.parametrize("tempo_bpm", [240, 297.3, 300, 400])
def test_every_sample_is_there(tempo_bpm: float, writer: TextToAudio) -> None:
    label = LoopLabel(tempo_bpm, 1)  # from all of the window to a bit over half of it
    loop = writer.loop("warm dub", label, RATE, FAST)
    assert loop.samples.shape == (1, label.samples(RATE))
    assert np.isfinite(loop.samples).all()
    assert loop.peak > 1e-3


def test_a_loop_depends_on_its_text_its_seed_and_its_number(writer: TextToAudio) -> None:
    label = LoopLabel(300, 1)
    ways = [
        writer.loop(
            text, label, RATE, SamplingConfig(FAST.steps, 3.0, seed=seed), number
        ).samples.tobytes()
        for text, seed, number in [
            ("warm dub", 0, 0), ("slow bass", 0, 0), ("", 0, 0), ("warm dub", 1, 0),
            ("warm dub", 0, 1), ("warm dub", 0, 0),
        ]
    ]  # fmt: skip
    assert len(set(ways)) == 5
    assert ways[0] == ways[-1]


def test_words_are_drawn_as_they_were_published(writer: TextToAudio) -> None:
    label, model = LoopLabel(300, 1), writer.published.model
    steps = 4, 2, 2, 2
    sampling = replace(text_to_audio.SAMPLING, steps=steps)
    config = DecodeConfig(steps=steps, spans="stride1", ring=True)  # else as published
    text = model.condition(*writer.texts(["warm dub"]))
    n_frames = compression.n_frames(label.samples(RATE), RATE, writer.codec.config)
    window = round(writer.published.segment_s * 50)
    predict = loops.tiled(lambda _: decode.guided(model, text), n_frames, window)
    blank, chance = decode.blank(model, 1, n_frames), sampling.generator(0, model.device)
    codes = decode.decode(predict, blank, model.config.mask_token, chance, config)
    latent = compression.dequantize(codes, writer.codec)
    wanted = compression.decode(latent, writer.codec, label.samples(RATE), RATE)
    assert np.array_equal(writer.loop("warm dub", label, RATE, sampling).samples, wanted.samples)


def test_a_loop_longer_than_the_window_is_one_error(writer: TextToAudio) -> None:
    with pytest.raises(LoopError, match=r"100 frames does not fit into the model's window of 50"):
        writer.loop("warm dub", LoopLabel(240, 2), RATE, FAST)


def test_a_codec_of_another_size_is_one_error(folders: dict[str, Path], tmp_path: Path) -> None:
    with torch.random.fork_rng():
        config = transformers.EncodecConfig(**{**ENCODEC, "target_bandwidths": [2.0]})
        transformers.EncodecModel(config).save_pretrained(tmp_path)
    with pytest.raises(LoopError, match=r"4 codebooks of 32 codes, and the codec has 8 of 32"):
        text_to_audio.load(folders["magnet"], str(tmp_path), str(folders["t5"]))


# The command.


class Done(NamedTuple):
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def generate(*args: object) -> Done:
    """The command, in this process, which has PyTorch loaded already."""
    found = CliRunner().invoke(main.audioloop, ["generate", *map(str, args)])
    return Done(found.exit_code, found.stdout, found.stderr)


def options(folders: dict[str, Path]) -> list[object]:
    return [part for name, folder in folders.items() for part in (f"--{name}", folder)]


def test_a_text_becomes_files(folders: dict[str, Path], tmp_path: Path) -> None:
    said = ["--text", "warm/dub", "--bpm", 300, "--bars", 1, "--num-samples", 2, "--json"]
    done = generate(*said, "-o", tmp_path, *options(folders))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)["loops"]
    assert [one["files"] for one in found] == [[f"warm-dub-v{n}_300bpm.wav"] for n in (1, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [one["files"][0] for one in found]
    waves = [wave.read(tmp_path / one["files"][0]) for one in found]
    assert [len(each) for each in waves] == [one["samples"] for one in found] == [35_280] * 2
    assert not np.array_equal(waves[0].samples, waves[1].samples)
    for one in found:
        findings = validate.check(tmp_path / one["files"][0])
        assert [each for each in findings if each.what != "seam"] == []


WRONG: dict[str, list[object]] = {
    "no magnet": ["--text", "dub"],
    "no text": ["--magnet", "x"],
    "both": ["--text", "dub", "--magnet", "x", "song.mid"],
    "notes": ["--text", "dub", "--magnet", "x", "--kit", 0],
    "primed": ["--text", "dub", "--magnet", "x", "--causal-prefix"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_one_line(name: str, tmp_path: Path) -> None:
    done = generate(*WRONG[name], "-o", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("without", ["magnet", "encodec", "t5", "room"])
def test_what_is_not_at_hand_is_one_line(
    without: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    named = {**folders, without: tmp_path / "none"}
    bpm = 300
    if without == "room":
        named, bpm = folders, 100
    done = generate(
        "--text", "dub", "--bpm", bpm, "--bars", 1, "-o", tmp_path / "o", *options(named)
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert {"room": "does not fit", "t5": "no T5 can be had"}.get(without, "none") in done.stderr
    assert not (tmp_path / "o").exists()


def test_its_own_t5_is_asked_for_where_none_is_given(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(LoopError, match="t5-base: no T5 can be had"):
        text_to_audio.load(folders["magnet"], str(folders["encodec"]), None)
