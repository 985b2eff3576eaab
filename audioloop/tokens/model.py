"""Two transformers over a loop's codec tokens: a masked (inpainting) and a causal language model.

::

    Masked   tokens (B, K, T), some masked   -> (B, T, D) -> logits of one codebook (B, T, size)
    Causal   tokens (B, K, T) so far         -> (B, T, D) -> logits of the next frame's tokens

Both are conditioned on notes, beat, drum kit and bass, see `audioloop.conditioning`.

`Masked` is a MAGNeT (Ziv et al. 2024, arXiv:2401.04577, section 3): it decodes one codebook after
the other, the later ones with restricted context. Its rotary positions are rounded to the circular
sequence, so no frame is the first: rotating the input rotates the output.

`Causal` decodes the tokens of a frame one after the other, each conditioned on those before it, as
the depth transformer of Lee et al. 2022, arXiv:2203.01941, section 3.2. So it gives the joint
probability of a frame's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioloop.conditioning import CHANNELS, PROGRAMS, ConditioningTensors
from audioloop.nn.attention import Attention, KVCache
from audioloop.nn.circular import Conv
from midiloop.common import configs
from midiloop.common.configs import Codebooks, CodebookSize, Depth, Heads, Kernel, Widening, Width


@dataclass(frozen=True)
class TokenConfig:
    """Sizes of a model of tokens.

    Attributes:
        dim, heads, layers, widening: of the transformer.
        codebooks, codebook_size: of a frame's tokens.
        context: frames on either side that codebooks after the first attend to; None is all.
        reach: kernel size of the convolution over the conditioning, in frames; odd.
        codec: fingerprint of the codec whose tokens it models.
    """

    dim: Width = 256
    heads: Heads = 4
    layers: Depth = 8
    widening: Widening = 3
    codebooks: Codebooks = 4
    codebook_size: CodebookSize = 1024
    context: configs.Frames | None = 5
    reach: Kernel = 9
    codec: str = ""

    @property
    def mask_token(self) -> int:
        """The id of a masked token: the one after the last token."""
        return self.codebook_size


class Layer(nn.Module):
    """Self-attention, then a feed-forward layer, both residual: (B, T, D) to (B, T, D)."""

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        dim, wide = config.dim, config.widening * config.dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, config.heads)
        self.widen, self.narrow = nn.Linear(dim, wide), nn.Linear(wide, dim)

    def forward(
        self, x: Tensor, *, circular: bool, reach: int | None = None, causal: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = x + self.attention(self.norm1(x), circular=circular, reach=reach, causal=causal)
        return self._feed_forward(x)

    def step(self, x: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Causal `forward` for frames that follow the cached ones."""
        mixed, cache = self.attention.step(self.norm1(x), cache)
        return self._feed_forward(x + mixed), cache

    def _feed_forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.narrow(F.gelu(self.widen(self.norm2(x)), approximate="tanh"))
        return x + update


class Layers(nn.ModuleList):
    """A list of layers, typed."""

    def __iter__(self) -> Iterator[Layer]:
        """Iterate from the first to the last."""
        return cast("Iterator[Layer]", super().__iter__())


class ConditionEmbedding(nn.Module):
    """Embeds the conditioning of a loop as frames (B, T, D)."""

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        self.frames = Conv(CHANNELS, config.dim, config.reach)
        self.kit = nn.Embedding(PROGRAMS, config.dim)
        self.bass = nn.Embedding(PROGRAMS, config.dim)

    def forward(self, condition: ConditioningTensors, *, circular: bool) -> Tensor:
        """Embeddings (B, T, D) that are added to those of the tokens."""
        frames: Tensor = self.frames(condition.frames, circular=circular).mT
        programs = self.kit(condition.kit) + self.bass(condition.bass)
        embedding: Tensor = frames + programs[:, None]
        return embedding


class Backbone(nn.Module):
    """What both models share: embeddings of tokens and conditioning, and the layers."""

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        self.config = config
        size, dim, books = config.codebook_size + 1, config.dim, range(config.codebooks)
        self.codes = nn.ModuleList(nn.Embedding(size, dim) for _ in books)
        self.listener = ConditionEmbedding(config)
        self.layers = Layers(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        _start(self, config.layers)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.norm.weight.device

    def init_from(self, other: Backbone) -> None:
        """Copy the weights of another model, as far as both have them, of the same widths.

        A model of the same kind gives all weights, one of the other kind all but the heads.
        """
        theirs = other.state_dict()
        if not isinstance(other, type(self)):
            shared = ("codes.", "listener.", "layers.", "norm.")
            theirs = {
                name: weight
                for name, weight in theirs.items()
                if name.startswith(shared) and name in self.state_dict()
            }
        self.load_state_dict(self.state_dict() | theirs)

    def embed(self, codes: Tensor) -> Tensor:
        """Sum of the codebooks' embeddings: tokens (B, K, T) to (B, T, D)."""
        pairs = zip(self.codes, codes.unbind(1), strict=True)
        rows: list[Tensor] = [table(row) for table, row in pairs]
        return reduce(torch.add, rows)


def _start(module: nn.Module, n_layers: int) -> None:
    """Initialise the shared weights; the residual updates of layers start small."""
    for name, weight in module.named_parameters():
        if name.endswith("bias") or "norm" in name:
            continue
        if weight.dim() == 3:
            nn.init.normal_(weight, std=0.1)
        elif "kit" in name or "bass" in name or name.startswith("codes"):
            nn.init.normal_(weight, std=0.3)
        else:
            adds = "outward" in name or "narrow" in name
            scale = 0.5 / n_layers**0.5 if adds else 0.7
            nn.init.normal_(weight, std=scale * weight.shape[1] ** -0.5)


class Masked(Backbone):
    """The inpainting model: tokens (B, K, T), some masked, to logits (B, T, size) of a codebook.

    Attributes:
        in_bfloat16: matrix products inside the layers are in bfloat16. The residual stream and the
            logits stay in float32.
    """

    in_bfloat16 = False

    def __init__(self, config: TokenConfig) -> None:
        super().__init__(config)
        dim, size = config.dim, config.codebook_size
        self.heads = nn.ModuleList(nn.Linear(dim, size) for _ in range(config.codebooks))

    def forward(
        self, codes: Tensor, condition: ConditioningTensors, stage: int, *, circular: bool
    ) -> Tensor:
        """Logits of one codebook's tokens.

        Args:
            codes: int64 (B, K, T) tokens, of which some are the mask token.
            condition: of B loops of T frames.
            stage: index of the codebook.
            circular: whether the first frame follows the last.

        Returns:
            (B, T, size).
        """
        x = self.embed(codes) + self.listener(condition, circular=circular)
        reach = self.config.context if stage else None
        # A trainer sets the precision of the whole model by an autocast of its own.
        half = torch.autocast(x.device.type, torch.bfloat16) if self.in_bfloat16 else nullcontext()
        with half:
            for layer in self.layers:
                x = layer(x, circular=circular, reach=reach)
        logits: Tensor = self.heads[stage](self.norm(x))
        return logits


class State(NamedTuple):
    """State of decoding with `Causal`: each layer's KV cache, and the last tokens (B, K, 1)."""

    caches: list[KVCache]
    last: Tensor


class Causal(Backbone):
    """The causal model: the tokens of a frame, after all frames before it.

    ``told`` embeds the earlier tokens of the same frame, and ``thoughts`` is one MLP per codebook:
    the names are those in the weights that ship.
    """

    def __init__(self, config: TokenConfig) -> None:
        super().__init__(config)
        dim, size, books = config.dim, config.codebook_size, range(config.codebooks)
        self.told = nn.ModuleList(nn.Embedding(size, dim) for _ in books[1:])
        self.thoughts = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU("tanh"))
            for _ in books
        )
        self.heads = nn.ModuleList(nn.Linear(2 * dim, size) for _ in books)

    def forward(self, codes: Tensor, condition: ConditioningTensors, first: int = 0) -> Tensor:
        """Logits (B, K, T - first, size) of each token, given all before it.

        Args:
            codes: int64 (B, K, T) tokens; nothing precedes the first frame. The last codebooks may
                be masked as a whole; the logits that follow a mask token mean nothing.
            condition: of B loops of T frames.
            first: index of the first frame whose logits are returned.
        """
        nothing = torch.full_like(codes[..., :1], self.config.mask_token)
        before = torch.cat([nothing, codes[..., :-1]], -1)
        x = self.embed(before) + self.listener(condition, circular=False)
        for layer in self.layers:
            x = layer(x, circular=False, causal=True)
        return torch.stack(self._within(self.norm(x[:, first:]), codes[..., first:]), 1)

    def _within(self, x: Tensor, codes: Tensor) -> list[Tensor]:
        """Logits of each codebook (B, T, size): frames (B, T, D), then their tokens (B, K, T)."""
        logits = []
        for book, (mlp, head) in enumerate(zip(self.thoughts, self.heads, strict=True)):
            if book:
                # Logits after a mask token mean nothing, but its index must not be out of range.
                x = x + self.told[book - 1](
                    codes[:, book - 1].clamp(max=self.config.mask_token - 1)
                )
            logits.append(head(mlp(x)))
        return logits

    def initial_state(self, n: int) -> State:
        """The state before the first frame of ``n`` sequences."""
        last = torch.full((n, self.config.codebooks, 1), self.config.mask_token, device=self.device)
        empty = self.norm.weight.new_zeros(n, 0, self.config.dim)
        return State([layer.attention.empty_cache(empty) for layer in self.layers], last)

    def decode_step(self, state: State, condition: Tensor) -> tuple[Tensor, State]:
        """The next frame (B, 1, D), for `next_code`, and the state after it.

        The caller replaces ``last`` of that state by the tokens that it sampled.

        Args:
            condition: (B, 1, D), the condition embedding (`listener`) of that frame.
        """
        x = self.embed(state.last) + condition
        caches = []
        for layer, before in zip(self.layers, state.caches, strict=True):
            x, cache = layer.step(x, before)
            caches.append(cache)
        return self.norm(x), State(caches, state.last)

    def next_code(self, x: Tensor, book: int, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (B, size) of a codebook in a frame, and the input for the next codebook.

        Args:
            x: (B, 1, D), of `decode_step` or of the codebook before.
            book: index of the codebook.
            before: int64 (B, 1), the token of the codebook before; None for the first.
        """
        if before is not None:
            x = x + self.told[book - 1](before)
        return self.heads[book](self.thoughts[book](x))[:, 0], x
