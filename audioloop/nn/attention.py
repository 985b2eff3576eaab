"""Self-attention with rotary positions, for circular sequences and for sequences with ends."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audioloop.nn.circular import pad

ROTARY_PERIOD = 10_000.0
BLOCK = 32  # positions of `local_attention` that are computed together, at least


class KVCache(NamedTuple):
    """Keys and values of earlier positions, each (B, heads, T, D)."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions: (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % (2 * heads):
            raise ValueError(f"{dim} channels are not {heads} heads of pairs")
        self.heads = heads
        self.inward = nn.Linear(dim, 3 * dim, bias=False)
        self.outward = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Tensor, *, circular: bool, reach: int | None = None, causal: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D).

        Args:
            circular: whether the first position follows the last.
            reach: positions on either side that a position attends to; None is all.
            causal: whether a position attends to itself and to earlier ones only.

        Raises:
            ValueError: both ``reach`` and ``causal``.
        """
        query, key, value = self._project(x)
        query, key = (rotary(a, circular=circular) for a in (query, key))
        if reach is None:
            return self._merge_heads(attend(query, key, value, causal=causal))
        if causal:
            raise ValueError("causal attention has no reach")
        return self._merge_heads(local_attention(query, key, value, reach, circular=circular))

    def step(self, x: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Causal `forward` for positions (B, T, D) that follow the cached ones.

        Returns:
            The output (B, T, D), and the cache with the new positions.
        """
        query, key, value = self._project(x)
        start = cache.keys.shape[2]
        query, key = (rotary(a, circular=False, start=start) for a in (query, key))
        cache = KVCache(torch.cat([cache.keys, key], 2), torch.cat([cache.values, value], 2))
        n_new = x.shape[1]
        mask = torch.ones(n_new, start + n_new, dtype=torch.bool, device=x.device).tril(start)
        mixed = F.scaled_dot_product_attention(query, cache.keys, cache.values, mask)
        return self._merge_heads(mixed), cache

    def empty_cache(self, x: Tensor) -> KVCache:
        """The cache before the first position of x (B, T, D)."""
        empty = x.new_zeros(len(x), self.heads, 0, x.shape[2] // self.heads)
        return KVCache(empty, empty)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.inward(x).chunk(3, -1)
        query, key, value = (
            rearrange(a, "b t (h d) -> b h t d", h=self.heads) for a in (query, key, value)
        )
        return query, key, value

    def _merge_heads(self, mixed: Tensor) -> Tensor:
        out: Tensor = self.outward(rearrange(mixed, "b h t d -> b t (h d)"))
        return out


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Scaled dot-product attention: (B, heads, T, D) to the same."""
    # In bfloat16 on a CPU, products have the faster gradient (tests/benchmarks/attention.py).
    half_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if torch.is_grad_enabled() and half_on_cpu:
        n = query.shape[2]
        mask = torch.ones(n, n, dtype=torch.bool).tril() if causal else None
        return explicit_attention(query, key, value, mask)
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal)


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention by explicit products, whose scores of all pairs are in memory: (…, T, D).

    Args:
        query: (…, T, D).
        key, value: (…, S, D).
        mask: bool (…, T, S): True where a query attends to a key; None is everywhere.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if mask is not None:
        # A query without any key gets the mean of all values, and a finite gradient.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    mixed: Tensor = scores.softmax(-1).to(value.dtype) @ value
    return mixed


def local_attention(
    query: Tensor, key: Tensor, value: Tensor, reach: int, *, circular: bool
) -> Tensor:
    """Attention of positions at most ``reach`` apart, block by block: (B, heads, T, D) to the same.

    ::

        queries                     [  block  ][  block  ][  block  ]
        keys of the first block [reach|  block  |reach]
        keys of the second block          [reach|  block  |reach]

    Each query attends to its part of the keys of its block. Time and memory grow as T, not as T².
    """
    n = query.shape[2]
    if circular and n <= 2 * reach:  # all attend to all, and a block would hold some keys twice
        return attend(query, key, value, causal=False)
    block = max(BLOCK, 2 * reach)
    n_blocks = math.ceil(n / block)
    left, right = reach, (n_blocks + 1) * block - n - reach

    def around(part: Tensor) -> Tensor:
        wide = pad(part.mT, left, right, circular=circular)
        blocks = rearrange(wide, "b h d (n k) -> b h n k d", k=block)
        return torch.cat([blocks[:, :, :-1], blocks[:, :, 1:, : 2 * reach]], 3)

    offset = torch.arange(block + 2 * reach) - torch.arange(block)[:, None]
    mask = (offset >= 0) & (offset <= 2 * reach)
    if not circular:
        place = torch.arange(n_blocks)[:, None] * block + torch.arange(-reach, block + reach)
        mask = mask & ((place >= 0) & (place < n))[:, None]
    padded = F.pad(query, (0, 0, 0, n_blocks * block - n))
    queries = rearrange(padded, "b h (n q) d -> b h n q d", q=block)
    mixed = explicit_attention(queries, around(key), around(value), mask.to(query.device))
    return rearrange(mixed, "b h n q d -> b h (n q) d")[:, :, :n]


def rotary(x: Tensor, *, circular: bool, start: int = 0) -> Tensor:
    """Rotary positions (Su et al. 2021): (…, T, D) -> (…, T, D), D even.

    Each pair of channels is rotated by its own angle per position. On a circular sequence every
    angle is rounded so that T positions make a whole number of turns: the first position then
    follows the last. Pairs slower than half a turn are not rotated.

    Args:
        circular: whether the first position follows the last.
        start: index of the first position.
    """
    n_positions, dim = x.shape[-2:]
    cos, sin = _turns(n_positions, dim, circular, start, x.device, x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return pairs.flatten(-2)


@functools.lru_cache(maxsize=64)
def _turns(
    n_positions: int, dim: int, circular: bool, start: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles at each position, (T, D / 2): cached for all layers."""
    with torch.inference_mode(False):  # cached tensors serve training as well, whoever asks first
        rates = ROTARY_PERIOD ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        if circular:
            rates = torch.round(rates * n_positions / (2 * math.pi)) * (2 * math.pi) / n_positions
        angles = torch.arange(start, start + n_positions, dtype=torch.float64)[:, None] * rates
        return torch.cos(angles).to(device, dtype), torch.sin(angles).to(device, dtype)


def local_mask(n_positions: int, reach: int, *, circular: bool) -> Tensor:
    """Which positions are at most ``reach`` apart: bool (T, T)."""
    positions = torch.arange(n_positions)
    apart = (positions[:, None] - positions).abs()
    if circular:
        apart = torch.minimum(apart, n_positions - apart)
    return apart <= reach
