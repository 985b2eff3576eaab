"""The network of MAGNeT: masked tokens and a text to logits of the masked tokens.

::

    tokens (B, K, T), of which some are the mask token -> sum of K embeddings -> (B, T, D)
    + positions -> layers, each of self-attention, cross-attention, feed-forward
    -> one linear head for each codebook -> logits (B, T, size) of the codebook of this stage

Source: Ziv et al. 2024, *Masked Audio Generation using a Single Non-Autoregressive Transformer*,
arXiv:2401.04577, section 3; what the paper leaves open is as in audiocraft 1.3.0, whose weights
have the same names here. Codebooks are decoded one after the other, each at its own *stage*. At
the first stage attention is global. From the second stage on, a frame attends to a few frames on
either side only (section 3.3).

On a circular sequence (``ring``) the first frame follows the last: for the attention mask of later
stages, and for the positions, whose periods are rounded so that they divide the length. Positions
are absolute and added to the frames. So a circular sequence has no seam, but it has an origin: the
network commutes with rotation if ``origin`` moves along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audioloop.nn.attention import local_mask
from midiloop.common.configs import Codebooks, CodebookSize, Depth, Frames, Heads, Widening, Width

PERIOD = 10_000.0


@dataclass(frozen=True)
class MagnetConfig:
    """Sizes of a MAGNeT. The defaults are facebook/magnet-small: 420,371,456 parameters.

    Attributes:
        dim, heads, layers: of the transformer.
        widening: of the feed-forward layers.
        codebooks, codebook_size: of a frame's tokens.
        context: frames on either side that stages after the first attend to; None is all.
        text_dim: width of the text encoder's hidden states.
    """

    dim: Width = 1024
    heads: Heads = 16
    layers: Depth = 24
    widening: Widening = 4
    codebooks: Codebooks = 4
    codebook_size: CodebookSize = 2048
    context: Frames | None = 5
    text_dim: Width = 768

    @property
    def mask_token(self) -> int:
        """The id of a masked token: the one after the last token."""
        return self.codebook_size


def positions(
    n_frames: int, dim: int, *, ring: bool, origin: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Sinusoidal positions: (T, D), cosines first, then sines, from short to long periods.

    Args:
        n_frames: T.
        dim: D.
        ring: whether the first frame follows the last. Each period is then rounded so that a whole
            number of them fits T; a wave slower than half a turn is constant.
        origin: position of the first frame.
        dtype: of the computation and the result.
    """
    half = dim // 2
    periods = PERIOD ** (torch.arange(half, dtype=dtype) / (half - 1))
    places = (torch.arange(n_frames) + origin)[:, None]
    if ring:
        turns = torch.round(n_frames / (2 * math.pi * periods)).long()
        angles = (places * turns % n_frames).to(dtype) * (2 * math.pi / n_frames)
    else:
        angles = places / periods
    return torch.cat([angles.cos(), angles.sin()], -1)


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention to a text; no biases."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels are not {heads} heads")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attention of frames x (B, T, D) to memory (B, S, D): (B, T, D).

        Args:
            x: the queries.
            memory: what they attend to; None is x itself.
            mask: bool (T, S): True where a query attends to a key; None is everywhere.
        """
        if memory is None:
            parts = F.linear(x, self.in_proj_weight).chunk(3, -1)
        else:
            of_query, *of_memory = self.in_proj_weight.chunk(3)
            parts = (F.linear(x, of_query), *(F.linear(memory, weight) for weight in of_memory))
        query, key, value = (rearrange(a, "b t (h d) -> b h t d", h=self.heads) for a in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.out_proj(rearrange(mixed, "b h t d -> b t (h d)"))
        return out


class Layer(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward, all residual."""

    def __init__(self, config: MagnetConfig) -> None:
        super().__init__()
        dim, wide = config.dim, config.widening * config.dim
        self.self_attn = Attention(dim, config.heads)
        self.cross_attention = Attention(dim, config.heads)
        self.linear1 = nn.Linear(dim, wide, bias=False)
        self.linear2 = nn.Linear(wide, dim, bias=False)
        self.norm1, self.norm_cross, self.norm2 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        """Frames (B, T, D) and a condition (B, S, D) to (B, T, D)."""
        x = x + self.self_attn(self.norm1(x), mask=mask)
        x = x + self.cross_attention(self.norm_cross(x), condition)
        update: Tensor = self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return x + update


class Transformer(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: MagnetConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        """Frames (B, T, D) and a condition (B, S, D) to (B, T, D)."""
        for layer in self.layers:
            x = layer(x, condition, mask)
        return x


class Magnet(nn.Module):
    """Tokens (B, K, T), some masked, and a condition to logits (B, T, size) of one codebook."""

    def __init__(self, config: MagnetConfig) -> None:
        super().__init__()
        self.config = config
        dim, size, books = config.dim, config.codebook_size, range(config.codebooks)
        if dim < 4 or dim % 2:
            raise ValueError(
                f"sinusoidal positions need an even number of channels from 4, not {dim}"
            )
        # The nesting is that of the names in published checkpoints.
        projection = nn.ModuleDict({"output_proj": nn.Linear(config.text_dim, dim)})
        conditioners = nn.ModuleDict({"description": projection})
        self.condition_provider = nn.ModuleDict({"conditioners": conditioners})
        self.emb = nn.ModuleList(nn.Embedding(size + 1, dim) for _ in books)
        self.transformer = Transformer(config)
        self.out_norm = nn.LayerNorm(dim)
        self.linears = nn.ModuleList(nn.Linear(dim, size, bias=False) for _ in books)
        self._start()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.out_norm.weight.device

    def condition(self, states: Tensor, mask: Tensor) -> Tensor:
        """Project the hidden states of a text: (B, S, 768) to (B, S, D).

        Padding becomes zeros, to which frames attend as well. All zeros are the null condition.

        Args:
            states: float (B, S, 768), of a text encoder.
            mask: bool (B, S): False at padding.
        """
        projection = self.get_submodule("condition_provider.conditioners.description.output_proj")
        condition: Tensor = projection(states) * mask[..., None]
        return condition

    def forward(
        self, codes: Tensor, condition: Tensor, stage: int, *, ring: bool = False, origin: int = 0
    ) -> Tensor:
        """Logits of one codebook's tokens.

        Args:
            codes: int64 (B, K, T) tokens, of which some are the mask token.
            condition: (B, S, D), of `condition`.
            stage: index of the codebook.
            ring: whether the first frame follows the last.
            origin: position of the first frame.

        Returns:
            (B, T, size).
        """
        embedded = (table(row) for table, row in zip(self.emb, codes.unbind(1), strict=True))
        x: Tensor = reduce(torch.add, embedded)  # (B, T, D)
        n_frames, dim = x.shape[1:]
        # In 16 bits, late frames would get the same positions.
        dtype = torch.promote_types(x.dtype, torch.float32)
        x = x + positions(n_frames, dim, ring=ring, origin=origin, dtype=dtype).to(x)
        mask = None
        if stage > 0 and self.config.context is not None:
            mask = local_mask(n_frames, self.config.context, circular=ring).to(x.device)
        x = self.transformer(x, condition, mask)
        logits: Tensor = self.linears[stage](self.out_norm(x))
        return logits

    def _start(self) -> None:
        """Initialise the weights: variance is kept, and deep layers start smaller."""
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                continue  # norms, and the bias of the text projection
            deviation = weight.shape[1] ** -0.5
            if name.startswith("transformer.layers."):
                deviation /= math.sqrt(2 * (int(name.split(".")[2]) + 1))
            nn.init.trunc_normal_(weight, std=deviation, a=-3 * deviation, b=3 * deviation)
