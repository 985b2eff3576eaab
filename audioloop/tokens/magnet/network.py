"""MAGNeT's network: codes with gaps, and a text, to what might stand in the gaps.

::

    codes (B, K, T), a gap is the id after the last code -> sum of K embeddings -> (B, T, D)
    + where each frame stands -> layers, each of self-attention, cross-attention, feed-forward
    -> one linear head for each codebook -> logits (B, T, size) of the codebook that is asked for

Source: Ziv et al. 2024, *Masked Audio Generation using a Single Non-Autoregressive Transformer*,
arXiv:2401.04577, section 3; what the paper leaves open is as in audiocraft 1.3.0, whose weights
have the same names here. Codebooks are filled one after the other, each at its own *stage*. The
first is heard everywhere; what a later one adds depends on what is near, so from the second stage
on a frame attends to a few frames on either side only (section 3.3).

On a ring the last frame is next to the first: for the mask of later stages, and for positions,
whose waves are snapped to whole turns a round. Positions are added to frames here, and say where a
frame is and not how far from another. So a ring has no seam, but still an origin, and what
commutes with rotation is the network together with its ``origin``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audioloop.nn.circular import local_mask
from midiloop.common.configs import Codebooks, CodebookSize, Depth, Frames, Heads, Widening, Width

PERIOD = 10_000.0


@dataclass(frozen=True)
class MagnetConfig:
    """Sizes of a MAGNeT. The defaults are facebook/magnet-small: 420,371,456 parameters.

    Attributes:
        dim, heads, layers: of the transformer.
        widening: of the feed-forward layers.
        codebooks, codebook_size: of a frame's codes.
        context: frames on either side that stages after the first attend to; None is all.
        text_dim: of the states of a text.
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
        """What stands for a code that is not known."""
        return self.codebook_size


def positions(
    n_frames: int, dim: int, *, ring: bool, origin: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Where frames stand, as waves from fast to slow: (T, D), cosines first, then sines.

    On a ring every wave makes a whole number of turns a round; one that is slower than half a turn
    stands still.
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
    """Attention of frames to frames, or to a text; no biases."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels are not {heads} heads")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, heard: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Frames (B, T, D) and what they hear (B, S, D), or each other, to (B, T, D).

        Args:
            mask: bool (T, S): what is heard where; None is all.
        """
        if heard is None:
            parts = F.linear(x, self.in_proj_weight).chunk(3, -1)
        else:
            asking, *answering = self.in_proj_weight.chunk(3)
            parts = (F.linear(x, asking), *(F.linear(heard, weight) for weight in answering))
        query, key, value = (rearrange(a, "b t (h d) -> b h t d", h=self.heads) for a in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.out_proj(rearrange(mixed, "b h t d -> b t (h d)"))
        return out


class Layer(nn.Module):
    """Hear the other frames, then the text, then think: (B, T, D) to (B, T, D)."""

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
        thought: Tensor = self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return x + thought


class Transformer(nn.Module):
    """One layer after the other."""

    def __init__(self, config: MagnetConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        """Frames (B, T, D) and a condition (B, S, D) to (B, T, D)."""
        for layer in self.layers:
            x = layer(x, condition, mask)
        return x


class Magnet(nn.Module):
    """Codes with gaps (B, K, T) and a condition to logits (B, T, size) of one codebook."""

    def __init__(self, config: MagnetConfig) -> None:
        super().__init__()
        self.config = config
        dim, size, books = config.dim, config.codebook_size, range(config.codebooks)
        if dim < 4 or dim % 2:
            raise ValueError(f"{dim} channels are not two waves of positions, or not pairs of them")
        # The nesting is that of the names in published checkpoints.
        reader = nn.ModuleDict({"output_proj": nn.Linear(config.text_dim, dim)})
        conditioners = nn.ModuleDict({"description": reader})
        self.condition_provider = nn.ModuleDict({"conditioners": conditioners})
        self.emb = nn.ModuleList(nn.Embedding(size + 1, dim) for _ in books)
        self.transformer = Transformer(config)
        self.out_norm = nn.LayerNorm(dim)
        self.linears = nn.ModuleList(nn.Linear(dim, size, bias=False) for _ in books)
        self._start()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.out_norm.weight.device

    def condition(self, states: Tensor, mask: Tensor) -> Tensor:
        """What a text says, as the network hears it: (B, S, 768) to (B, S, D).

        Padding becomes zeros, which are heard as well. All zeros say nothing.

        Args:
            states: float (B, S, 768), of a text model.
            mask: bool (B, S): what is no padding.
        """
        reader = self.get_submodule("condition_provider.conditioners.description.output_proj")
        heard: Tensor = reader(states) * mask[..., None]
        return heard

    def forward(
        self, codes: Tensor, condition: Tensor, stage: int, *, ring: bool = False, origin: int = 0
    ) -> Tensor:
        """Logits of the codes of one codebook.

        Args:
            codes: int64 (B, K, T), with gaps.
            condition: (B, S, D), of `condition`.
            stage: which codebook.
            ring: the last frame is next to the first.
            origin: where the first frame stands.

        Returns:
            (B, T, size).
        """
        embedded = (table(row) for table, row in zip(self.emb, codes.unbind(1), strict=True))
        x: Tensor = reduce(torch.add, embedded)  # (B, T, D)
        n_frames, dim = x.shape[1:]
        # In 16 bits, late frames would stand together.
        dtype = torch.promote_types(x.dtype, torch.float32)
        x = x + positions(n_frames, dim, ring=ring, origin=origin, dtype=dtype).to(x)
        mask = None
        if stage > 0 and self.config.context is not None:
            mask = local_mask(n_frames, self.config.context, circular=ring).to(x.device)
        x = self.transformer(x, condition, mask)
        logits: Tensor = self.linears[stage](self.out_norm(x))
        return logits

    def _start(self) -> None:
        """Fresh weights, which keep the size of what goes through; less from deep layers."""
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                continue  # of norms, which start as they are, and the reader's bias
            deviation = weight.shape[1] ** -0.5
            if name.startswith("transformer.layers."):
                deviation /= math.sqrt(2 * (int(name.split(".")[2]) + 1))
            nn.init.trunc_normal_(weight, std=deviation, a=-3 * deviation, b=3 * deviation)
