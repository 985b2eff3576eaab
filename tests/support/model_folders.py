"""Folders of models, ours and published ones, and what may be wrong in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from audioloop.codec import compression, encodec
from audioloop.codec.model import CodecConfig
from audioloop.tokens import musicgen, pretrained
from audioloop.tokens.magnet import checkpoint as magnet
from audioloop.tokens.magnet.network import Magnet, MagnetConfig
from audioloop.tokens.model import TokenConfig
from midiloop import models
from midiloop.common import checkpoint
from midiloop.models.loop_transformer import LoopTransformerConfig
from midiloop.models.lstm_vae import ARLSTMVAEConfig
from midiloop.models.prior import PriorConfig
from midiloop.models.vq_vae import VQVAEConfig

CONFIG = checkpoint.CONFIG


KINDS = {**models.KINDS, **compression.KINDS, **pretrained.KINDS}


TINY: dict[str, Any] = {
    "prior": PriorConfig(codebook_size=16, embed_dim=8, hidden=8, layers=1),
    "loop-transformer": LoopTransformerConfig(dim=16, layers=1, heads=2, token_dim=8),
    "vq-vae": VQVAEConfig(channels=4, embed_channels=4, latent_dim=4, codebook_size=8),
    "ar-lstm-vae": ARLSTMVAEConfig(encoder_hidden=4, latent_dim=4),
    "codec": CodecConfig(
        fine=8, coarse=8, encoder_blocks=1, decoder_blocks=1, latent_dim=4, codebook_size=8
    ),
    "masked": TokenConfig(dim=16, heads=2, layers=1, codebook_size=8),
    "causal": TokenConfig(dim=16, heads=2, layers=1, codebook_size=8),
}


ENCODEC: dict[str, Any] = {
    "model_type": "encodec", "sampling_rate": 32_000, "target_bandwidths": [0.8],
    "upsampling_ratios": [8, 5, 4, 4], "num_filters": 4, "hidden_size": 16, "codebook_size": 16,
}  # fmt: skip


MUSICGEN: dict[str, Any] = {
    "model_type": "musicgen_decoder", "vocab_size": 16, "num_codebooks": 4, "hidden_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16, "max_position_embeddings": 32,
}  # fmt: skip


MAGNET = MagnetConfig(dim=16, heads=2, layers=1, codebook_size=8, text_dim=768)


# What no size, share or name may be.
ODD: tuple[Any, ...] = (
    -1, 10**12, 10**300, -1.5, 2.5e18, float("nan"), float("inf"), True, "x" * 5000, [], [[[]]],
    {}, {"a": 1}, [1] * 100,
)  # fmt: skip


NESTED = "[" * 100_000


TEXTS: dict[str, bytes] = {
    "nothing": b"", "null": b"null", "a number": b"5", "a list": b"[1]", "half": b'{"format": ',
    "no text": b"\xff\xfe\0\0", "zeros": bytes(100), "nested lists": NESTED.encode(),
    "nested and closed": (NESTED + "]" * 100_000).encode(),
    "nested objects": b'{"a":' * 50_000, "an object, nested": b'{"config": ' + NESTED.encode(),
    "digits": b'{"kind": ' + b"9" * 10_000 + b"}", "other": b'{"a": 1}', "empty": b"{}",
}  # fmt: skip


@dataclass(frozen=True)
class Loader:
    """A folder that is right, and what reads it.

    Attributes:
        say: writes another config into the folder.
        text: writes anything there.
    """

    load: Callable[[], object]
    say: Callable[[dict[str, Any]], None]
    text: Callable[[bytes], object]
    config: dict[str, Any]


def ours(kind: str, folder: Path) -> Loader:
    model = KINDS[kind].model(TINY[kind])
    checkpoint.save_model(folder, kind, model, {})
    about = json.loads((folder / CONFIG).read_text())

    def say(config: dict[str, Any]) -> None:
        (folder / CONFIG).write_text(json.dumps({**about, "config": config}))

    return Loader(
        lambda: checkpoint.load_any(folder, KINDS), say, (folder / CONFIG).write_bytes,
        about["config"],
    )  # fmt: skip


def published(name: str, folder: Path) -> Loader:
    transformers = pytest.importorskip("transformers")
    if name == "encodec":
        about, load = ENCODEC, encodec.load
        model = transformers.EncodecModel(transformers.EncodecConfig(**about))
    else:
        about, load = MUSICGEN, musicgen.load  # type: ignore[assignment]
        model = transformers.MusicgenForCausalLM(transformers.MusicgenDecoderConfig(**about))
    folder.mkdir()
    checkpoint.write_tensors(folder / checkpoint.WEIGHTS, model.state_dict())

    def say(config: dict[str, Any]) -> None:
        (folder / CONFIG).write_text(json.dumps(config))

    return Loader(lambda: load(str(folder)), say, (folder / CONFIG).write_bytes, about)


def audiocraft(folder: Path) -> Loader:
    pytest.importorskip("yaml")
    folder.mkdir()
    weights = Magnet(MAGNET).state_dict()
    names = {name: key for key, (_, name) in magnet.SIZES.items()}
    config = {name: getattr(MAGNET, key) for name, key in names.items()}
    del config["subcodes_context"]  # which may be -1

    def text(data: bytes) -> None:
        whole = {"best_state": weights, "xp.cfg": data.decode("utf-8", "surrogateescape")}
        torch.save(whole, folder / magnet.FILE)

    def say(config: dict[str, Any]) -> None:
        text(json.dumps({"transformer_lm": config}).encode())  # which is YAML as well

    return Loader(lambda: magnet.load(folder), say, text, config)
