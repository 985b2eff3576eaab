"""A published EnCodec as a codec: as in transformers on a line, and without a seam if circular."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audioloop.codec import compression, encodec
from audioloop.codec.encodec import EnCodec, EnCodecConfig
from audioloop.io.wave import Wave
from midiloop.errors import LoopError

transformers = pytest.importorskip("transformers")
hub = pytest.importorskip("huggingface_hub")

# The architecture of facebook/encodec_32khz, with fewer channels and fewer codes.
TINY: dict[str, Any] = {
    "sampling_rate": 32_000, "audio_channels": 1, "normalize": False, "target_bandwidths": [2.2],
    "upsampling_ratios": [8, 5, 4, 4], "use_causal_conv": False, "use_conv_shortcut": False,
    "num_filters": 4, "hidden_size": 16, "codebook_size": 32,
}  # fmt: skip
FRAME, DIM, BOOKS = 640, 16, 8  # 2,200 bits a second are 8 codes of 5 bits, 50 times a second
CONTEXT = 100  # frames


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def saved(folder: Path, **changes: Any) -> Path:
    """A model of random weights, as transformers writes it."""
    with torch.random.fork_rng():
        torch.manual_seed(8)
        model = transformers.EncodecModel(transformers.EncodecConfig(**{**TINY, **changes}))
        for number, layer in enumerate(model.quantizer.layers):
            layer.codebook.embed.normal_(std=0.5**number)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("encodec"))


@pytest.fixture(scope="module")
def codec(folder: Path) -> EnCodec:
    return encodec.load(str(folder))


def noise(rng: np.random.Generator, n_frames: int, batch: int = 1) -> Tensor:
    samples = rng.normal(scale=0.3, size=(batch, 1, n_frames * FRAME)).astype(np.float32)
    return torch.from_numpy(samples)


def changed(folder: Path, out: Path, **changes: Any) -> Path:
    """A copy of a model, whose config says something else."""
    shutil.copytree(folder, out)
    about = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(about | changes))
    return out


# On a line.


@pytest.mark.parametrize("n_frames", [1, 2, 57])
def test_a_line_is_what_transformers_makes_of_it(
    n_frames: int, codec: EnCodec, folder: Path, rng: np.random.Generator
) -> None:
    theirs = transformers.EncodecModel.from_pretrained(folder).eval()
    wave = noise(rng, n_frames, batch=2)
    with torch.inference_mode():
        found = theirs.encode(wave, bandwidth=2.2)
        expected = theirs.decode(found.audio_codes, found.audio_scales).audio_values
    latent = codec.encode(wave, circular=False)
    codes = codec.quantize(latent)
    back = codec.decode(codec.dequantize(codes), circular=False)
    assert latent.shape == (2, DIM, n_frames)
    assert codes.shape == (2, BOOKS, n_frames)
    assert codes.dtype == torch.int64
    assert len(set(codes.flatten().tolist())) > 4  # or there would be little to agree on
    assert torch.equal(codes, found.audio_codes[0])
    assert back.shape == wave.shape
    torch.testing.assert_close(back, expected, atol=1e-5, rtol=0)


def test_the_config_is_the_models(codec: EnCodec, tmp_path: Path) -> None:
    assert codec.config == EnCodecConfig(32_000, FRAME, BOOKS, 32, DIM)
    assert codec.config.context_frames == CONTEXT
    # As facebook/encodec_24khz, which is causal, with as many codes as the highest rate has.
    causal = saved(
        tmp_path, sampling_rate=24_000, upsampling_ratios=[8, 5, 4, 2], use_causal_conv=True,
        use_conv_shortcut=True, target_bandwidths=[1.5, 3.0],
    )  # fmt: skip
    config = encodec.load(str(causal)).config
    assert config == EnCodecConfig(24_000, 320, 8, 32, DIM)
    assert config.context_frames == 150


def test_the_first_codebooks_are_enough(codec: EnCodec, rng: np.random.Generator) -> None:
    latent = codec.encode(noise(rng, 20), circular=False)
    codes = codec.quantize(latent)
    missed = [
        float((latent - compression.dequantize(codes[:, :k], codec)).square().mean())
        for k in range(1, BOOKS + 1)
    ]
    assert missed[-1] < missed[0] / 2


# On a circle.


@pytest.mark.parametrize("n_frames", [130, 37, 1])
def test_there_is_no_seam(n_frames: int, codec: EnCodec, rng: np.random.Generator) -> None:
    wave = noise(rng, n_frames, batch=2)
    latent = codec.encode(wave, circular=True)
    codes = codec.quantize(latent)
    back = codec.decode(codec.dequantize(codes), circular=True)
    for turn in (1, n_frames // 2, n_frames - 1):
        turned = codec.encode(wave.roll(turn * FRAME, -1), circular=True)
        torch.testing.assert_close(turned, latent.roll(turn, -1), atol=1e-4, rtol=0)
        assert torch.equal(codec.quantize(turned), codes.roll(turn, -1))
        again = codec.decode(codec.dequantize(codes.roll(turn, -1)), circular=True)
        torch.testing.assert_close(again, back.roll(turn * FRAME, -1), atol=1e-4, rtol=0)


def test_a_line_has_a_seam(codec: EnCodec, rng: np.random.Generator) -> None:
    wave = noise(rng, 130)
    latent = codec.encode(wave, circular=False)
    turned = codec.encode(wave.roll(65 * FRAME, -1), circular=False)
    assert (turned - latent.roll(65, -1)).abs().max() > 1e-2
    back = codec.decode(latent, circular=False)
    again = codec.decode(latent.roll(65, -1), circular=False)
    assert (again - back.roll(65 * FRAME, -1)).abs().max() > 1e-3


@pytest.mark.parametrize("n_frames", [120, 70])
def test_a_circular_wave_is_the_middle_of_many_rounds(
    n_frames: int, codec: EnCodec, rng: np.random.Generator
) -> None:
    wave = noise(rng, n_frames)
    latent = codec.encode(wave, circular=True)
    rounds = codec.encode(wave.repeat(1, 1, 5), circular=False)
    middle = rounds[..., 2 * n_frames : 3 * n_frames]
    torch.testing.assert_close(latent, middle, atol=1e-4, rtol=0)
    back = codec.decode(latent, circular=True)
    rounds = codec.decode(latent.repeat(1, 1, 5), circular=False)
    middle = rounds[..., 2 * n_frames * FRAME : 3 * n_frames * FRAME]
    torch.testing.assert_close(back, middle, atol=1e-4, rtol=0)


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("n_frames", [1, 2, 3, 99, 100, 101, 201])
def test_every_length_is_exact(
    n_frames: int, circular: bool, codec: EnCodec, rng: np.random.Generator
) -> None:
    latent = codec.encode(noise(rng, n_frames), circular=circular)
    assert latent.shape == (1, DIM, n_frames)
    assert codec.decode(latent, circular=circular).shape == (1, 1, n_frames * FRAME)


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("n_samples", [1000, 44_100 + 123])
def test_a_loop_comes_back_with_every_sample(
    n_samples: int, circular: bool, codec: EnCodec, rng: np.random.Generator
) -> None:
    samples = rng.uniform(-0.5, 0.5, (2, n_samples)).astype(np.float32)
    encoded = compression.encode(Wave(samples, 44_100), codec, circular=circular)
    n_frames = round(n_samples / 44_100 * 50)
    assert encoded.codes.shape == (1, BOOKS, n_frames)
    latent = compression.dequantize(encoded.codes, codec)
    back = compression.from_frames(
        codec.decode(latent, circular=circular), encoded.n_samples, encoded.rate
    )
    assert back.samples.shape == (1, n_samples)
    assert back.rate == 44_100
    assert np.isfinite(back.samples).all()


# Files.


def test_weights_under_the_names_of_old_are_the_same(
    codec: EnCodec, folder: Path, tmp_path: Path
) -> None:
    """Published checkpoints are older than PyTorch's present names for normed weights."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        stem, _, which = name.rpartition(".parametrizations.weight.")
        new = {"original0": f"{stem}.weight_g", "original1": f"{stem}.weight_v"}.get(which, name)
        renamed[new] = tensor
    assert renamed.keys() != tensors.keys()
    shutil.copy(folder / "config.json", tmp_path)
    save_file(renamed, tmp_path / "model.safetensors")
    loaded = encodec.load(str(tmp_path), torch.device("cpu")).model.state_dict()
    for name, tensor in codec.model.state_dict().items():
        assert torch.equal(loaded[name], tensor)


def test_nothing_is_learned_printed_or_left_changed(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    model = encodec.load(str(folder)).model
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert capfd.readouterr() == ("", "")
    assert [logger.level for logger in loggers] == levels
    assert not hub.utils.are_progress_bars_disabled()


class Bomb:
    """What touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(folder: Path, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "went off"))
    # A config that would have from_pretrained read a pickle beside the safetensors file.
    lured = changed(folder, tmp_path / "lured", transformers_weights="adapter_model.bin")
    for name in ("adapter_model.bin", "pytorch_model.bin"):
        (lured / name).write_bytes(bomb)
    encodec.load(str(lured))
    (lured / "model.safetensors").unlink()
    with pytest.raises(
        LoopError, match=r"no model\.safetensors, and nothing is unpickled.*convert"
    ):
        encodec.load(str(lured))
    assert not (tmp_path / "went off").exists()


MISFITS: dict[str, dict[str, Any]] = {
    "more than one channel": {"audio_channels": 2},
    "normalises its input": {"normalize": True},
    "normalises": {"norm_type": "time_group_norm"},
    "in chunks": {"chunk_length_s": 1.0, "overlap": 0.01},
    "not an EnCodec, but musicgen": {"model_type": "musicgen"},
    "not an EnCodec, but something else": {"model_type": None},
    "num_filters is 'x', and not": {"num_filters": "x"},
    "num_filters is -1, and not": {"num_filters": -1},
    "power of 2": {"codebook_size": 100},
    "sampling_rate is 0, and not": {"sampling_rate": 0},
    "list index": {"target_bandwidths": []},
    "can be made of its config": {"codebook_dim": 5},
    "can be made of": {"pad_mode": "fold"},
    "not of the sizes": {"num_filters": 8},
    "lacks [0-9]+ weights": {"target_bandwidths": [4.4]},
}


@pytest.mark.parametrize("reason", MISFITS)
def test_a_model_that_does_not_fit_is_one_error(reason: str, folder: Path, tmp_path: Path) -> None:
    odd = changed(folder, tmp_path / "odd", **MISFITS[reason])
    with pytest.raises(LoopError, match=reason) as caught:
        encodec.load(str(odd))
    assert str(odd) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "data", "reason"),
    [
        ("config.json", None, "no config.json; give facebook/encodec_32khz"),
        ("config.json", b"{", "config.json: .*; download it again"),
        ("config.json", b"\xff", "config.json: .*; download it again"),
        ("config.json", b"[]", "config.json: .*not an object; download it again"),
        ("model.safetensors", None, "no model.safetensors, and nothing is unpickled here"),
        ("model.safetensors", b"", "model.safetensors: .*; download it again"),
        ("model.safetensors", b"no tensors" * 99, "model.safetensors: .*; download it again"),
    ],
)
def test_a_damaged_folder_is_one_error(
    file: str, data: bytes | None, reason: str, folder: Path, tmp_path: Path
) -> None:
    damaged = changed(folder, tmp_path / "damaged")
    (damaged / file).unlink()
    if data is not None:
        (damaged / file).write_bytes(data)
    with pytest.raises(LoopError, match=reason) as caught:
        encodec.load(str(damaged))
    assert "\n" not in str(caught.value)


def test_weights_that_end_early_are_one_error(folder: Path, tmp_path: Path) -> None:
    cut = changed(folder, tmp_path / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(LoopError, match=r"model\.safetensors: .*; download it again"):
        encodec.load(str(cut.parent))
    with pytest.raises(LoopError, match="a file; give the folder"):
        encodec.load(str(cut))


# The hub, none of which is asked for anything here.


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what has been downloaded, with no way to more."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_downloaded_is_found_by_its_name(
    offline: Path, folder: Path, codec: EnCodec
) -> None:
    model = offline / "models--some--encodec"
    shutil.copytree(folder, model / "snapshots" / ("0" * 40))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    assert encodec.load("some/encodec").config == codec.config


@pytest.mark.parametrize("name", [".hidden/x", "/no/such/folder", "no/such/folder", "a b"])
def test_what_can_only_be_a_folder_is_not_there(name: str, offline: Path) -> None:
    with pytest.raises(LoopError, match="no such folder; give"):
        encodec.load(name)


def test_a_hub_that_is_not_there_is_one_error(offline: Path) -> None:
    with pytest.raises(LoopError, match=r"some/encodec: no such folder.*cannot be reached"):
        encodec.load("some/encodec")


def test_a_hub_that_has_no_such_thing_is_one_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, file: str, revision: str | None) -> str:
        raise OSError("404 Client Error\n\nRepository Not Found\nmake sure you are logged in")

    monkeypatch.setattr(hub, "hf_hub_download", refused)
    with pytest.raises(LoopError, match=r"nothing to be had .*Repository Not Found") as caught:
        encodec.load("some/encodec")
    assert "\n" not in str(caught.value)

    def pickled_only(name: str, file: str, revision: str | None) -> str:
        if file == "config.json":
            return str(folder / file)
        raise hub.errors.EntryNotFoundError(f"no {file}")

    monkeypatch.setattr(hub, "hf_hub_download", pickled_only)
    with pytest.raises(LoopError, match="nothing is unpickled here"):
        encodec.load("some/encodec")


def test_without_transformers_it_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install transformers"):
        encodec.load(str(folder))
