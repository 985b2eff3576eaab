"""Published MusicGens as a `LanguageModel` of EnCodec's tokens, by transformers.

MusicGen (Copet et al. 2023, arXiv:2306.05284, section 2.2) decodes a column at a time (a delay
pattern): each codebook is one frame later than the one before it::

    column       0   1   2   3   4  …
    codebook 1   –  a1  a2  a3  a4
    codebook 2   –   –  b1  b2  b3       after column t + k it predicts the token
    codebook 3   –   –   –  c1  c2       of frame t in codebook k, both from 0

It is unconditional here. Without a text, the input of cross-attention is zeros; as this attention
has no biases, its output is zero as well.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from audioloop import hub
from audioloop.codec.encodec import EnCodec
from midiloop.common import checkpoint, files
from midiloop.common.configs import Codebooks, CodebookSize, Depth, Heads, Range, Width
from midiloop.errors import LoopError, counted

FITTING = "give facebook/musicgen-small, or a model of its kind"
# By model type: the key of the decoder's config, and the prefix of its weights' names.
KINDS: dict[Any, tuple[str | None, str]] = {
    "musicgen": ("decoder", "decoder."),
    "musicgen_decoder": (None, ""),
}


@dataclass(frozen=True)
class Sizes:
    """What is taken from a config, which could ask for more than a model of these sizes."""

    vocab_size: CodebookSize = 2048
    num_codebooks: Codebooks = 4
    audio_channels: Codebooks = 1
    hidden_size: Width = 1024
    num_hidden_layers: Depth = 24
    ffn_dim: Width = 4096
    num_attention_heads: Heads = 16
    activation_function: str = "gelu"
    scale_embedding: bool = False
    max_position_embeddings: Annotated[int, Range(1, 65_536)] = 2048


@dataclass(frozen=True)
class MusicGenConfig:
    """The shape of its tokens."""

    codebooks: int
    codebook_size: int


class MusicGen:
    """What is expected of each code, knowing what was written before it.

    Args:
        model: transformers' ``MusicgenForCausalLM``, of one channel.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = MusicGenConfig(model.config.num_codebooks, model.config.vocab_size)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return torch.device(self.model.device)

    def __call__(self, codes: Tensor, _: object = None, first: int = 0, /) -> Tensor:
        """Logits (B, K, T - first, size) of codes int64 (B, K, T).

        As it writes the first codebooks of a frame before the later ones of the frames before it,
        the later codes of the last K - 1 frames are expected with less knowledge than others.
        """
        n, n_books, n_frames = codes.shape
        columns = codes.new_full((n, n_books, n_frames + n_books - 1), self.config.codebook_size)
        for book in range(n_books):
            line = columns[:, book, book + 1 :]
            line[..., :n_frames] = codes[:, book, : line.shape[-1]]
        found = self.model(columns.flatten(0, 1), use_cache=False).logits
        found = found.unflatten(0, (n, n_books))
        rows = [found[:, book, first + book : book + n_frames] for book in range(n_books)]
        return torch.stack(rows, 1)


def load(name: str, device: torch.device | None = None) -> MusicGen:
    """A published MusicGen, in evaluation mode; of its files, only tensors and a config are read.

    Args:
        name: a folder with ``config.json`` and weights in ``.safetensors``, or a name on Hugging
            Face.

    Raises:
        ImportError: transformers is not installed.
        LoopError: there is no such folder or name, or the hub cannot be reached, or what is there
            is no MusicGen, or one of two channels, or damaged, or holds pickled weights only.
    """
    transformers = hub.transformers("MusicGen needs")
    with hub.quiet():
        folder = hub.folder(name, ["config.json", "*.safetensors"], FITTING)
        about, prefix = _decoder(folder / "config.json", name)
        sizes = hub.sizes(Sizes, about, name, "MusicGen", FITTING)
        if sizes.audio_channels != 1:
            raise LoopError(f"{name}: a MusicGen of more than one channel; {FITTING}")
        with hub.building_from_config(name, "MusicGen", FITTING):
            config = transformers.MusicgenDecoderConfig(**asdict(sizes))
            with checkpoint.shapes_alone():
                fresh = transformers.MusicgenForCausalLM(config).state_dict()
        _check(fresh, folder, prefix)
        with hub.building_from_config(name, "MusicGen", FITTING):
            model = transformers.MusicgenForCausalLM(config)
        _fill(model, folder, prefix)
    return MusicGen(model.to(device or torch.device("cpu")))


def of_codec(model: MusicGen, codec: EnCodec) -> None:
    """Check that a MusicGen and an EnCodec have the same codebooks.

    Raises:
        LoopError: the number or the size of their codebooks differs.
    """
    known = model.config.codebooks, model.config.codebook_size
    found = codec.config.codebooks, codec.config.codebook_size
    if known != found:
        raise LoopError(
            f"the MusicGen knows {counted(known[0], 'codebook')} of {known[1]}, the EnCodec has "
            f"{found[0]} of {found[1]}; give the one that it was trained with"
        )


def _decoder(path: Path, name: str) -> tuple[dict[str, Any], str]:
    """The decoder's config, and the prefix of its weights' names."""
    about = hub.config(path, FITTING)
    kind = about.get("model_type")
    if not isinstance(kind, str) or kind not in KINDS:
        other = files.shortened(kind) if isinstance(kind, str) else "something else"
        raise LoopError(f"{name}: not a MusicGen, but {other}; {FITTING}")
    part, prefix = KINDS[kind]
    found = about if part is None else about.get(part)
    return (found if isinstance(found, dict) else {}), prefix


def _check(fresh: dict[str, Tensor], folder: Path, prefix: str) -> None:
    """Raise `LoopError` where a folder does not hold the tensors of a model, by their headers."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes = checkpoint.read_shapes(path, hub.AGAIN)
        found |= {one.removeprefix(prefix): shapes[one] for one in shapes if one.startswith(prefix)}
    odd = [name for name in fresh if found.get(name) != tuple(fresh[name].shape)]
    if odd:
        raise LoopError(
            f"{folder}: {counted(len(odd), 'weight')} not in its .safetensors, or of other sizes "
            f"than config.json says, {odd[0]} among them; nothing else is read; {FITTING}"
        )


def _fill(model: Any, folder: Path, prefix: str) -> None:
    """Load the decoder's weights; those of the text encoder and the codec are skipped."""
    wanted = model.state_dict().keys()
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found, _ = checkpoint.read_tensors(path, hub.AGAIN)
        mine = {one.removeprefix(prefix): found[one] for one in found if one.startswith(prefix)}
        mine = {name: mine[name] for name in mine if name in wanted}
        checkpoint.check_finite(path, mine, hub.AGAIN)
        tensors |= mine
    model.load_state_dict(tensors)
