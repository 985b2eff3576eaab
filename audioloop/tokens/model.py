"""Two models of a loop's codes: one fills gaps wherever they are, one goes on after the last frame.

::

    Masked   codes (B, K, T) with gaps   -> frames (B, T, D) -> logits of one codebook (B, T, size)
    Causal   codes (B, K, T) up to here  -> frames (B, T, D) -> logits of the next frame's codes

Both hear what is told of a loop, see `conditions`. `Masked` is a MAGNeT (Ziv et al. 2024,
arXiv:2401.04577, section 3: codebooks one after the other, the later ones with restricted context)
whose positions are rotary and snapped to the ring: so there is no first frame, and rotating what
goes in rotates what comes out. `Causal` writes the codes of a frame one after the other, each
knowing those before it (as the small transformer of Lee et al. 2022, arXiv:2203.01941, section
3.2, does); so what it says of a frame is a probability of all of its codes together.
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
from audioloop.nn.circular import Attention, Conv, KVCache
from midiloop.common import configs
from midiloop.common.configs import Codebooks, CodebookSize, Depth, Heads, Kernel, Widening, Width


@dataclass(frozen=True)
class TokenConfig:
    """Sizes of a model of codes.

    Attributes:
        dim, heads, layers, widening: of the transformer.
        codebooks, codebook_size: of a frame's codes.
        context: frames on either side that codebooks after the first attend to; None is all.
        reach: frames of notes that are heard together.
        codec: a short name for what the codes mean.
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
        """What stands for a code that is not known."""
        return self.codebook_size


class Layer(nn.Module):
    """Hear the other frames, then think: (B, T, D) to (B, T, D)."""

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
        return self._thought(x)

    def after(self, x: Tensor, heard: KVCache) -> tuple[Tensor, KVCache]:
        """The same, causal, for frames that come after others."""
        mixed, heard = self.attention.after(self.norm1(x), heard)
        return self._thought(x + mixed), heard

    def _thought(self, x: Tensor) -> Tensor:
        thought: Tensor = self.narrow(F.gelu(self.widen(self.norm2(x)), approximate="tanh"))
        return x + thought


class Layers(nn.ModuleList):
    """One layer after the other."""

    def __iter__(self) -> Iterator[Layer]:
        """From the first to the last."""
        return cast("Iterator[Layer]", super().__iter__())


class ConditionEmbedding(nn.Module):
    """What is told of a loop, as frames: (B, T, D)."""

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        self.frames = Conv(CHANNELS, config.dim, config.reach)
        self.kit = nn.Embedding(PROGRAMS, config.dim)
        self.bass = nn.Embedding(PROGRAMS, config.dim)

    def forward(self, condition: ConditioningTensors, *, circular: bool) -> Tensor:
        """What each frame hears."""
        frames: Tensor = self.frames(condition.frames, circular=circular).mT
        played = self.kit(condition.kit) + self.bass(condition.bass)
        heard: Tensor = frames + played[:, None]
        return heard


class Backbone(nn.Module):
    """Codes and what is told, to frames: what both models have."""

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
        """Where it is."""
        return self.norm.weight.device

    def take_over(self, other: Backbone) -> None:
        """Begin with the weights of another model of as wide layers, as far as both have them.

        One of the same kind gives all it has; one of the other kind gives no heads.
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

    def embedded(self, codes: Tensor) -> Tensor:
        """Codes (B, K, T) to frames (B, T, D)."""
        pairs = zip(self.codes, codes.unbind(1), strict=True)
        rows: list[Tensor] = [table(row) for table, row in pairs]
        return reduce(torch.add, rows)


def _start(module: nn.Module, n_layers: int) -> None:
    """Fresh weights of what both models have; what a layer adds is small at first."""
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
    """Fills gaps: codes (B, K, T) and what is told, to logits (B, T, size) of one codebook.

    Attributes:
        in_bfloat16: multiply so inside the layers. What they add up, and logits, stay in 32 bits.
    """

    in_bfloat16 = False

    def __init__(self, config: TokenConfig) -> None:
        super().__init__(config)
        dim, size = config.dim, config.codebook_size
        self.heads = nn.ModuleList(nn.Linear(dim, size) for _ in range(config.codebooks))

    def forward(
        self, codes: Tensor, condition: ConditioningTensors, stage: int, *, circular: bool
    ) -> Tensor:
        """Logits of the codes of one codebook.

        Args:
            codes: int64 (B, K, T), with gaps.
            condition: of as many frames.
            stage: which codebook.
            circular: the last frame is next to the first.

        Returns:
            (B, T, size).
        """
        x = self.embedded(codes) + self.listener(condition, circular=circular)
        reach = self.config.context if stage else None
        # Whoever learns says for all of the model how it multiplies.
        half = torch.autocast(x.device.type, torch.bfloat16) if self.in_bfloat16 else nullcontext()
        with half:
            for layer in self.layers:
                x = layer(x, circular=circular, reach=reach)
        logits: Tensor = self.heads[stage](self.norm(x))
        return logits


class State(NamedTuple):
    """Where `Causal` is: what each layer has heard, and the last frame's codes (B, K, 1)."""

    heard: list[KVCache]
    last: Tensor


class Causal(Backbone):
    """Goes on: what each frame's codes are, after all frames before it."""

    def __init__(self, config: TokenConfig) -> None:
        super().__init__(config)
        dim, size, books = config.dim, config.codebook_size, range(config.codebooks)
        # Within a frame, each code is told those before it.
        self.told = nn.ModuleList(nn.Embedding(size, dim) for _ in books[1:])
        self.thoughts = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU("tanh"))
            for _ in books
        )
        self.heads = nn.ModuleList(nn.Linear(2 * dim, size) for _ in books)

    def forward(self, codes: Tensor, condition: ConditioningTensors, first: int = 0) -> Tensor:
        """What is expected of each code, knowing all before it: logits (B, K, T - first, size).

        Args:
            codes: int64 (B, K, T), on a line; before the first frame there is nothing. All of
                the last codebooks may be gaps; what is said of those means nothing.
            condition: of as many frames. A frame hears what is told of the frames around it.
            first: frame from which on logits are asked for.
        """
        nothing = torch.full_like(codes[..., :1], self.config.mask_token)
        before = torch.cat([nothing, codes[..., :-1]], -1)
        x = self.embedded(before) + self.listener(condition, circular=False)
        for layer in self.layers:
            x = layer(x, circular=False, causal=True)
        return torch.stack(self._within(self.norm(x[:, first:]), codes[..., first:]), 1)

    def _within(self, x: Tensor, codes: Tensor) -> list[Tensor]:
        """Logits of each codebook (B, T, size), from frames (B, T, D) and the codes of each."""
        logits = []
        for book, (think, head) in enumerate(zip(self.thoughts, self.heads, strict=True)):
            if book:
                # After a gap nothing can be said; it only must not be an index out of range.
                x = x + self.told[book - 1](
                    codes[:, book - 1].clamp(max=self.config.mask_token - 1)
                )
            logits.append(head(think(x)))
        return logits

    def begin(self, n: int) -> State:
        """Before the first frame of ``n`` lines."""
        last = torch.full((n, self.config.codebooks, 1), self.config.mask_token, device=self.device)
        empty = self.norm.weight.new_zeros(n, 0, self.config.dim)
        return State([layer.attention.nothing(empty) for layer in self.layers], last)

    def go_on(self, state: State, condition: Tensor) -> tuple[Tensor, State]:
        """The next frame (B, 1, D), for `next_code`, and the state after it, less its codes.

        Args:
            condition: (B, 1, D), of `listener`, at that frame.
        """
        x = self.embedded(state.last) + condition
        heard = []
        for layer, before in zip(self.layers, state.heard, strict=True):
            x, now = layer.after(x, before)
            heard.append(now)
        return self.norm(x), State(heard, state.last)

    def next_code(self, x: Tensor, book: int, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (B, size) of a codebook in a frame, and the frame for the next codebook.

        Args:
            x: (B, 1, D).
            before: int64 (B, 1), the code of the codebook before; None for the first.
        """
        if before is not None:
            x = x + self.told[book - 1](before)
        return self.heads[book](self.thoughts[book](x))[:, 0], x
