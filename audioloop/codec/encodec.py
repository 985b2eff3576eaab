"""Published EnCodecs as a `CompressionModel`, by transformers.

EnCodec (Défossez et al. 2022, *High Fidelity Neural Audio Compression*, section 3) is a stack of
strided convolutions with an LSTM at its end, a residual quantiser, and a mirrored decoder. An LSTM
has a first step, so the network cannot be circular. A loop is tiled and cropped instead::

    … g h | a b c d e f g h | a b …     tile: repeat the loop on both sides
    run the network, with ends
          | a b c d e f g h |           crop: drop what is near the ends

The kept frames have at least `CONTEXT_S` of context on either side, more than one pass if the loop
is shorter. So it commutes with rotation as far as the LSTM has forgotten what was before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from einops import rearrange
from torch import Tensor

from audioloop import hub
from audioloop.nn.circular import pad
from midiloop.common import checkpoint, files
from midiloop.common.configs import (
    Codebooks,
    CodebookSize,
    Depth,
    Kernel,
    Range,
    SampleRate,
    Share,
    Widening,
    Width,
)
from midiloop.errors import LoopError, counted

CONTEXT_S = 2.0  # on each side: what the LSTM remembers, and what the convolutions see
PROBE_FRAMES = 3
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FITTING = "give facebook/encodec_32khz, or a model of its kind"
MAX_CODEBOOKS = 64


@dataclass(frozen=True)
class Sizes:
    """What is taken from a config, which could ask for more than a model of these sizes."""

    target_bandwidths: tuple[Annotated[float, Range(0.01, 1000)], ...] = (1.5, 3.0, 6.0, 12.0, 24.0)
    sampling_rate: SampleRate = 24_000
    audio_channels: Codebooks = 1
    normalize: bool = False
    chunk_length_s: Annotated[float, Range(0, 3600)] | None = None
    overlap: Share | None = None
    hidden_size: Width = 128
    num_filters: Width = 32
    num_residual_layers: Depth = 1
    upsampling_ratios: tuple[Annotated[int, Range(1, 64)], ...] = (8, 5, 4, 2)
    norm_type: str = "weight_norm"
    kernel_size: Kernel = 7
    last_kernel_size: Kernel = 7
    residual_kernel_size: Kernel = 3
    dilation_growth_rate: Widening = 2
    use_causal_conv: bool = True
    pad_mode: str = "reflect"
    compress: Widening = 2
    num_lstm_layers: Annotated[int, Range(0, 128)] = 2
    trim_right_ratio: Share = 1.0
    codebook_size: CodebookSize = 1024
    codebook_dim: Width | None = None
    use_conv_shortcut: bool = True


@dataclass(frozen=True)
class EnCodecConfig:
    """The shape of an EnCodec's tokens.

    Attributes:
        rate: samples a second.
        frame: samples of a code.
        codebooks, codebook_size: of a frame's tokens, at the highest of its bandwidths.
        latent_dim: numbers of a frame.
    """

    rate: int
    frame: int
    codebooks: int
    codebook_size: int
    latent_dim: int

    @property
    def context_frames(self) -> int:
        """Frames of padding on each side: 100 at 32 kHz."""
        return math.ceil(CONTEXT_S * self.rate / self.frame)


class EnCodec:
    """Waves (B, 1, frame · T) to latents (B, L, T) or tokens (B, K, T), and back.

    Args:
        model: transformers' ``EncodecModel``, of one channel, whose level is left as it is.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = EnCodecConfig(
            rate=model.config.sampling_rate,
            frame=math.prod(model.config.upsampling_ratios),
            codebooks=len(model.quantizer.layers),
            codebook_size=model.config.codebook_size,
            latent_dim=model.config.hidden_size,
        )

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return torch.device(self.model.device)

    def encode(self, wave: Tensor, *, circular: bool) -> Tensor:
        """(B, 1, frame · T) to latents (B, L, T)."""
        if not circular:
            line: Tensor = self.model.encoder(wave)
            return line
        more = self.config.context_frames
        reach = more * self.config.frame
        tiled: Tensor = self.model.encoder(pad(wave, reach, reach, circular=True))
        return tiled[..., more:-more]

    def quantize(self, latent: Tensor) -> Tensor:
        """Latents (B, L, T) to tokens, int64 (B, K, T)."""
        tokens: Tensor = self.model.quantizer.encode(latent)
        return rearrange(tokens, "k b t -> b k t")

    def dequantize(self, tokens: Tensor) -> Tensor:
        """Codes (B, K, T), of the first K codebooks, to latents (B, L, T)."""
        latent: Tensor = self.model.quantizer.decode(rearrange(tokens, "b k t -> k b t"))
        return latent

    def decode(self, latent: Tensor, *, circular: bool) -> Tensor:
        """Latents (B, L, T) to (B, 1, frame · T)."""
        if not circular:
            line: Tensor = self.model.decoder(latent)
            return line
        more = self.config.context_frames
        reach = more * self.config.frame
        tiled: Tensor = self.model.decoder(pad(latent, more, more, circular=True))
        return tiled[..., reach:-reach]


def load(name: str, device: torch.device | None = None) -> EnCodec:
    """A published EnCodec, in evaluation mode.

    Its two files are read here and not by ``from_pretrained``, which a config can lead to a
    pickle even with ``use_safetensors``, and which initialises missing weights at random.

    Args:
        name: a folder with ``config.json`` and ``model.safetensors``, or a name on Hugging Face.

    Raises:
        ImportError: transformers is not installed.
        LoopError: there is no such folder or name, or the hub cannot be reached, or what is there
            is no EnCodec, or one that does not fit, or damaged, or holds pickled weights only.
    """
    transformers = hub.transformers("EnCodec needs")
    with hub.quiet():
        about = _read_config(_file(name, CONFIG), name)
        weights = _file(name, WEIGHTS)
        sizes = hub.sizes(Sizes, about, name, "EnCodec", FITTING)
        values = {field.name: getattr(sizes, field.name) for field in fields(sizes)}
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        with hub.building_from_config(name, "EnCodec", FITTING):
            config = transformers.EncodecConfig(**values)
            _check_fits(config, name)
        _check_room(config, weights, name)
        with hub.building_from_config(name, "EnCodec", FITTING):
            codec = EnCodec(transformers.EncodecModel(config))
            _probe(codec)
        _fill(codec.model, weights)
    codec.model.to(device or torch.device("cpu"))
    return codec


def _file(name: str, wanted: str) -> Path:
    try:
        return hub.file(name, wanted, FITTING)
    except FileNotFoundError as error:
        raise LoopError(_lacks(name, wanted)) from error


def _lacks(name: str, file: str) -> str:
    if file == CONFIG:
        return f"{name}: no {file}; {FITTING}"
    return (
        f"{name}: no {file}, and nothing is unpickled here; if you trust its weights, convert "
        "them: transformers.EncodecModel.from_pretrained(…).save_pretrained(FOLDER)"
    )


def _read_config(path: Path, name: str) -> dict[str, Any]:
    about = hub.config(path, hub.AGAIN)
    kind = about.get("model_type")
    if kind != "encodec":
        found = files.shortened(kind) if isinstance(kind, str) else "something else"
        raise LoopError(f"{name}: not an EnCodec, but {found}; {FITTING}")
    return about


def _check_fits(config: Any, name: str) -> None:
    """Raise `LoopError` for what cannot be tiled and cropped as one channel."""
    odd = {
        "of more than one channel": config.audio_channels != 1,
        "that normalises its input": config.normalize or config.norm_type != "weight_norm",
        "that works in chunks": config.chunk_length_s is not None,
    }
    found = [what for what, there in odd.items() if there]
    if found:
        raise LoopError(f"{name}: an EnCodec {' and '.join(found)}; {FITTING}")


@torch.inference_mode()
def _probe(codec: EnCodec) -> None:
    """Take a short wave there and back: some configs are found wanting only when they are run."""
    latent = codec.encode(torch.zeros(1, 1, PROBE_FRAMES * codec.config.frame), circular=False)
    codec.decode(codec.dequantize(codec.quantize(latent)), circular=False)


def _check_room(config: Any, path: Path, name: str) -> None:
    """Raise `LoopError` for a config of far more than its weights, before room is taken for it.

    Names are not compared, as normed weights have two; `_fill` compares what is in them.
    """
    transformers = hub.transformers("EnCodec needs")
    with hub.building_from_config(name, "EnCodec", FITTING):
        if config.num_quantizers > MAX_CODEBOOKS:
            raise ValueError(f"more than {MAX_CODEBOOKS} codebooks")
        with checkpoint.shapes_alone():
            fresh = transformers.EncodecModel(config).state_dict().values()
    found = checkpoint.read_shapes(path, hub.AGAIN).values()
    if sum(one.numel() for one in fresh) > 2 * sum(math.prod(shape) for shape in found):
        raise LoopError(
            f"{path}: the weights are not of the sizes that {CONFIG} says; download both again"
        )


def _fill(model: Any, path: Path) -> None:
    """Give the model its weights.

    PyTorch itself knows the names that normed weights had when EnCodec was published.
    """
    tensors, _ = checkpoint.read_tensors(path, hub.AGAIN)
    checkpoint.check_finite(path, tensors, hub.AGAIN)
    try:
        missing = model.load_state_dict(tensors, strict=False).missing_keys
    except RuntimeError as error:
        raise LoopError(
            f"{path}: the weights are not of the sizes that {CONFIG} says; download both again"
        ) from error
    if missing:
        raise LoopError(
            f"{path}: lacks {counted(len(missing), 'weight')}, {missing[0]} among them; {hub.AGAIN}"
        )
