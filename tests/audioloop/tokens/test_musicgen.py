"""A published MusicGen: what transformers makes of it, one column at a time."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from torch import Tensor

from audioloop.codec import encodec
from audioloop.evaluation import perplexity
from audioloop.io.wave import Wave
from audioloop.tokens import musicgen
from audioloop.tokens.musicgen import MusicGen, MusicGenConfig
from midiloop.errors import LoopError
from midiloop_cli.main import audioloop

transformers = pytest.importorskip("transformers")
hub = pytest.importorskip("huggingface_hub")

BOOKS, SIZE = 4, 16
DECODER: dict[str, Any] = {
    "model_type": "musicgen_decoder", "vocab_size": SIZE, "num_codebooks": BOOKS,
    "pad_token_id": SIZE, "bos_token_id": SIZE, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "ffn_dim": 32, "max_position_embeddings": 32,
}  # fmt: skip
TEXT = {
    "model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2,
    "vocab_size": 10,
}  # fmt: skip
SOUND: dict[str, Any] = {
    "sampling_rate": 32_000, "audio_channels": 1, "normalize": False, "target_bandwidths": [0.8],
    "upsampling_ratios": [8, 5, 4, 4], "use_causal_conv": False, "use_conv_shortcut": False,
    "num_filters": 4, "hidden_size": 16, "codebook_size": SIZE,
}  # fmt: skip  # 800 bits a second are 4 codes of 4 bits, 50 times a second


@pytest.fixture(autouse=True, scope="module")
def _quietly() -> None:
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.CRITICAL)


def saved(folder: Path, model: Any) -> Path:
    """A model of random weights, as transformers writes it."""
    rng = torch.Generator().manual_seed(6)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4, generator=rng)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text model, EnCodec and decoder in one, as MusicGen is published."""
    sound = {"model_type": "encodec", **SOUND}
    config = transformers.MusicgenConfig(text_encoder=TEXT, audio_encoder=sound, decoder=DECODER)
    model = transformers.MusicgenForConditionalGeneration(config)
    return saved(tmp_path_factory.mktemp("musicgen"), model)


@pytest.fixture(scope="module")
def model(folder: Path) -> MusicGen:
    return musicgen.load(str(folder))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.MusicgenForConditionalGeneration.from_pretrained(folder).eval()


def drawn(n_frames: int, seed: int = 0, n: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(SIZE, (n, BOOKS, n_frames), generator=rng)


@pytest.mark.parametrize("n_frames", [1, 2, 13])
def test_all_frames_at_once_are_as_one_after_the_other(
    n_frames: int, model: MusicGen, theirs: Any
) -> None:
    codes = drawn(n_frames)
    found = model(codes)
    nothing = theirs.get_unconditional_inputs(1)
    columns: list[list[int]] = [[SIZE] * BOOKS]  # what has been written, a column at a time
    with torch.inference_mode():
        for column in range(n_frames + BOOKS - 1):
            heard = torch.tensor(columns).T
            logits = theirs(
                encoder_outputs=nothing.encoder_outputs,
                attention_mask=nothing.attention_mask,
                decoder_input_ids=heard,
            ).logits[:, -1]
            frames = [column - book for book in range(BOOKS)]
            columns.append([SIZE] * BOOKS)
            for book, frame in enumerate(frames):
                if 0 <= frame < n_frames:
                    torch.testing.assert_close(
                        found[0, book, frame], logits[book], atol=1e-5, rtol=1e-5
                    )
                    columns[-1][book] = int(codes[0, book, frame])
    assert found.shape == (1, BOOKS, n_frames, SIZE)
    assert found.std() > 0.3


def test_columns_are_those_that_it_was_published_with(model: MusicGen, theirs: Any) -> None:
    codes = drawn(9)
    heard: list[Tensor] = []
    hook = model.model.model.register_forward_pre_hook(lambda _, call: heard.append(call[0]))
    model(codes)
    hook.remove()
    start = torch.full((BOOKS, 1), SIZE)
    written = torch.cat([start, codes[0]], 1)
    _, pattern = theirs.decoder.build_delay_pattern_mask(written, SIZE, 9 + BOOKS)
    assert torch.equal(heard[0], pattern[:, : 9 + BOOKS - 1])


def test_several_lines_are_as_each_by_itself(model: MusicGen) -> None:
    codes = drawn(7, n=3)
    alone = torch.cat([model(line[None]) for line in codes])
    torch.testing.assert_close(model(codes), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("first", [0, 4, 6])
def test_what_is_said_of_the_last_frames_is_the_end_of_the_whole(
    first: int, model: MusicGen
) -> None:
    codes = drawn(7, n=2)
    assert torch.equal(model(codes, None, first), model(codes)[:, :, first:])


def test_what_is_expected_knows_only_what_was_written(model: MusicGen) -> None:
    codes = drawn(20)
    found = model(codes)
    for book in range(BOOKS):
        other = codes.clone()
        other[:, book, 10] = (codes[:, book, 10] + 1) % SIZE
        moved = (model(other) - found).abs().amax(-1)[0] > 1e-4
        # The code of frame 10 is heard after column 10 + book: from frame 11 + book - k on.
        first = [11 + book - k for k in range(BOOKS)]
        assert [int(row.nonzero()[0]) for row in moved] == first


def test_the_decoder_alone_is_enough(model: MusicGen, theirs: Any, tmp_path: Path) -> None:
    theirs.decoder.save_pretrained(tmp_path / "decoder")
    codes = drawn(8)
    assert torch.equal(musicgen.load(str(tmp_path / "decoder"))(codes), model(codes))
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert torch.equal(musicgen.load(str(tmp_path / "shards"))(codes), model(codes))


def test_rotating_a_loop_rotates_its_figures(model: MusicGen) -> None:
    codes = drawn(23)[0]
    there = perplexity.nats_at(codes, [0, 7, 20], model, context=40)
    here = perplexity.nats_at(codes.roll(9, -1), [9, 16, 29], model, context=40)
    np.testing.assert_allclose(here, there, atol=1e-4)
    assert np.ptp(there) > 0.1
    # The window's last frames are followed by more of the ring, as every other frame is.
    shorter = perplexity.nats_at(codes, [7], model, window=2, context=40)
    longer = perplexity.nats_at(codes, [7], model, window=4, context=40)
    rest = perplexity.nats_at(codes, [9], model, window=2, context=42)
    np.testing.assert_allclose(longer, (shorter + rest) / 2, atol=1e-4)


def test_loading_leaves_no_trace(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level = logging.root.manager.disable
    assert musicgen.load(str(folder)).config == MusicGenConfig(BOOKS, SIZE)
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == level
    assert not hub.utils.are_progress_bars_disabled()


# What cannot be loaded.


def changed(folder: Path, out: Path, **decoder: Any) -> str:
    """The same weights beside another config."""
    out.mkdir()
    about = json.loads((folder / "config.json").read_text())
    about["decoder"] |= decoder
    (out / "config.json").write_text(json.dumps(about))
    (out / "model.safetensors").symlink_to(folder / "model.safetensors")
    return str(out)


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        ({"hidden_size": 32}, "weights? not in its .*, or of other sizes"),
        ({"num_hidden_layers": 3}, "weights? not in its .*layers.2"),
        ({"num_attention_heads": 3}, "no MusicGen can be made of its config"),
        ({"hidden_size": "x"}, "no MusicGen can be made of its config"),
        ({"audio_channels": 2}, "of more than one channel; give"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(
    folder: Path, tmp_path: Path, decoder: dict[str, Any], words: str
) -> None:
    with pytest.raises(LoopError, match=words) as caught:
        musicgen.load(changed(folder, tmp_path / "odd", **decoder))
    assert "\n" not in str(caught.value)


def test_what_is_no_musicgen_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoopError, match="give facebook/musicgen-small"):
        musicgen.load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(LoopError, match="not a MusicGen, but t5; give"):
        musicgen.load(str(tmp_path))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(LoopError, match="nothing else is read"):
        musicgen.load(str(tmp_path))
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(LoopError, match="download it again"):
        musicgen.load(str(tmp_path))


def test_a_hub_that_is_not_there_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("some/musicgen", "/no/such/folder", "a b"):
        with pytest.raises(LoopError, match=rf"^{name}: no such folder.*give") as caught:
            musicgen.load(name)
        assert "\n" not in str(caught.value)


# With its EnCodec.


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = transformers.EncodecModel(transformers.EncodecConfig(**SOUND))
    return saved(tmp_path_factory.mktemp("encodec"), model)


def test_codes_of_other_numbers_are_refused(codec: Path, tmp_path: Path) -> None:
    config = transformers.MusicgenDecoderConfig(**{**DECODER, "num_codebooks": 2})
    other = saved(tmp_path, transformers.MusicgenForCausalLM(config))
    with pytest.raises(LoopError, match="2 codebooks of 16, the EnCodec has 4 of 16; give"):
        musicgen.of_codec(musicgen.load(str(other)), encodec.load(str(codec)))


def test_the_command_takes_it(folder: Path, codec: Path, model: MusicGen, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    samples = rng.normal(scale=0.1, size=(1, 32_000)).astype(np.float32)
    soundfile.write(tmp_path / "loop.wav", samples.T, 32_000, "FLOAT")
    args = ["seam", str(tmp_path / "loop.wav"), "--bars", "2", "--json", "--perplexity"]
    ears = ["--musicgen", str(folder), "--encodec", str(codec)]
    run = CliRunner().invoke(audioloop, [*args, *ears])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)["files"][0]
    ours = perplexity.of_wave(Wave(samples, 32_000), encodec.load(str(codec)), model, 2)
    assert found["nats"]["seam"] == pytest.approx(ours.nats, rel=1e-4)
    assert found["nats"]["bars"] == pytest.approx(ours.bars, rel=1e-4)
    assert not re.search("warn|Writing", run.stderr)
