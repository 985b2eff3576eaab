"""Layers whose signal may be a circle: what comes after its last sample is its first.

Each takes ``circular`` when it is called, so the same weights serve a loop and a signal with ends
(beyond which there is silence). On the circle every layer commutes with rotation: rotating what
goes in rotates what comes out, so no place is a seam.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

ROTARY_PERIOD = 10_000.0
BLOCK = 32  # places of `nearby` that hear together


def pad(x: Tensor, left: int, right: int, *, circular: bool) -> Tensor:
    """More on both sides: (…, T) -> (…, left + T + right).

    A circle goes on as it begins, however often round; a line goes on in zeros.
    """
    n = x.shape[-1]
    if not circular:
        return F.pad(x, (left, right))
    if max(left, right) <= n:
        return torch.cat([x[..., n - left :], x, x[..., :right]], -1)
    return x[..., torch.arange(-left, n + right, device=x.device) % n]


class Conv(nn.Module):
    """A convolution of odd length that keeps the number of places: (B, C, T) -> (B, D, T)."""

    def __init__(self, channels: int, outputs: int, length: int, *, groups: int = 1) -> None:
        super().__init__()
        if length % 2 == 0:
            raise ValueError(f"a kernel of {length} has no middle")
        self.reach = length // 2
        self.conv = nn.Conv1d(channels, outputs, length, groups=groups)

    def forward(self, x: Tensor, *, circular: bool) -> Tensor:
        """(B, C, T) to (B, D, T)."""
        if self.reach:
            x = pad(x, self.reach, self.reach, circular=circular)
        convolved: Tensor = self.conv(x)
        return convolved


class Frames(nn.Module):
    """Overlapping windows, each seen by the same linear map: (B, 1, T · hop) -> (B, D, T).

    Window n is centred on samples n · hop to (n + 1) · hop.
    """

    def __init__(self, window: int, hop: int, outputs: int) -> None:
        super().__init__()
        self.reach, self.hop = _reach(window, hop), hop
        self.basis = nn.Parameter(lapped_transform(outputs, window, hop))

    def forward(self, x: Tensor, *, circular: bool) -> Tensor:
        """(B, 1, T · hop) to (B, D, T)."""
        x = pad(x, self.reach, self.reach, circular=circular)
        return F.conv1d(x, self.basis[:, None], stride=self.hop)


class OverlapAdd(nn.Module):
    """The way back: each place becomes a window, and windows add up: (B, D, T) -> (B, 1, T · hop).

    This is a transposed convolution, whose ends are added to the other end of a circle, or cut off.
    """

    def __init__(self, inputs: int, window: int, hop: int) -> None:
        super().__init__()
        self.reach, self.hop = _reach(window, hop), hop
        self.basis = nn.Parameter(lapped_transform(inputs, window, hop))

    def forward(self, x: Tensor, *, circular: bool) -> Tensor:
        """(B, D, T) to (B, 1, T · hop)."""
        # A window starts before its own hop, so some places on each side reach into the signal.
        more = -(-self.reach // self.hop)
        x = pad(x, more, more, circular=circular)
        whole = F.conv_transpose1d(x, self.basis[:, None], stride=self.hop)
        start = self.reach + more * self.hop
        return whole[..., start : start + (x.shape[-1] - 2 * more) * self.hop]


def _reach(window: int, hop: int) -> int:
    if window < hop or (window - hop) % 2:
        raise ValueError(f"a window of {window} is not centred on a hop of {hop}")
    return (window - hop) // 2


def lapped_transform(n: int, window: int, hop: int) -> Tensor:
    """The lowest ``n`` functions of a lapped transform: (n, window), float32.

    Where a window is two or four hops and ``n`` is ``hop``, they are an orthonormal basis of all
    signals: what `Frames` takes apart `OverlapAdd` puts together again (Malvar 1992, *Signal
    Processing with Lapped Transforms*: the modulated lapped transform, and the extended one with
    its window in closed form).
    """
    at = torch.arange(window, dtype=torch.float64) + 0.5
    if window == 4 * hop:
        envelope = math.sqrt(1 / 8) - 0.5 * torch.cos(2 * math.pi * at / window)
    else:
        envelope = torch.sin(math.pi * at / window)
    bands = torch.arange(n, dtype=torch.float64)[:, None] + 0.5
    basis = envelope * torch.cos(math.pi / hop * bands * (at + hop / 2)) * math.sqrt(2 / hop)
    return basis.float()


class KVCache(NamedTuple):
    """What attention has heard of earlier places: keys and values (B, heads, T, D)."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Self-attention that knows distances, on a line or round a circle: (B, T, D) -> (B, T, D)."""

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
            reach: how far to either side a place hears; None is everywhere.
            causal: a place hears itself and those before it, however far.

        Raises:
            ValueError: both are given.
        """
        query, key, value = self._parts(x)
        query, key = (rotary(a, circular=circular) for a in (query, key))
        if reach is None:
            return self._joined(attend(query, key, value, causal=causal))
        if causal:
            raise ValueError("causal attention has no reach")
        return self._joined(local_attention(query, key, value, reach, circular=circular))

    def after(self, x: Tensor, heard: KVCache) -> tuple[Tensor, KVCache]:
        """What `forward`, causal on a line, gives for places (B, T, D) that come after others."""
        query, key, value = self._parts(x)
        start = heard.keys.shape[2]
        query, key = (rotary(a, circular=False, start=start) for a in (query, key))
        heard = KVCache(torch.cat([heard.keys, key], 2), torch.cat([heard.values, value], 2))
        n_new = x.shape[1]
        mask = torch.ones(n_new, start + n_new, dtype=torch.bool, device=x.device).tril(start)
        mixed = F.scaled_dot_product_attention(query, heard.keys, heard.values, mask)
        return self._joined(mixed), heard

    def nothing(self, x: Tensor) -> KVCache:
        """What has been heard before the first of places (B, T, D)."""
        empty = x.new_zeros(len(x), self.heads, 0, x.shape[2] // self.heads)
        return KVCache(empty, empty)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.inward(x).chunk(3, -1)
        query, key, value = (
            rearrange(a, "b t (h d) -> b h t d", h=self.heads) for a in (query, key, value)
        )
        return query, key, value

    def _joined(self, mixed: Tensor) -> Tensor:
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
    """The same, with room for all pairs of places at once: (…, T, D) to the same.

    Args:
        mask: bool (…, T, S): which place hears which; None is all.
    """
    likeness = (query * query.shape[-1] ** -0.5) @ key.mT
    if mask is not None:
        # A place that hears nothing then has the mean of all, and a gradient, rather than none.
        likeness = likeness.masked_fill(~mask, torch.finfo(likeness.dtype).min)
    mixed: Tensor = likeness.softmax(-1).to(value.dtype) @ value
    return mixed


def local_attention(
    query: Tensor, key: Tensor, value: Tensor, reach: int, *, circular: bool
) -> Tensor:
    """The same for places at most ``reach`` apart, block by block: (B, heads, T, D) to the same.

    ::

        queries            [  block  ][  block  ][  block  ]
        keys of one   [reach|  block  |reach]                  of which each query hears its part
        keys of the next         [reach|  block  |reach]

    So time and room grow as T, and not as its square.
    """
    n = query.shape[2]
    if circular and n <= 2 * reach:  # all hear all, and a block would hear some twice
        return attend(query, key, value, causal=False)
    block = max(BLOCK, 2 * reach)
    n_blocks = math.ceil(n / block)
    left, right = reach, (n_blocks + 1) * block - n - reach

    def around(part: Tensor) -> Tensor:
        wide = pad(part.mT, left, right, circular=circular)
        blocks = rearrange(wide, "b h d (n k) -> b h n k d", k=block)
        return torch.cat([blocks[:, :, :-1], blocks[:, :, 1:, : 2 * reach]], 3)

    after = torch.arange(block + 2 * reach) - torch.arange(block)[:, None]
    heard = (after >= 0) & (after <= 2 * reach)
    if not circular:
        place = torch.arange(n_blocks)[:, None] * block + torch.arange(-reach, block + reach)
        heard = heard & ((place >= 0) & (place < n))[:, None]
    filled = F.pad(query, (0, 0, 0, n_blocks * block - n))
    queries = rearrange(filled, "b h (n q) d -> b h n q d", q=block)
    mixed = explicit_attention(queries, around(key), around(value), heard.to(query.device))
    return rearrange(mixed, "b h n q d -> b h (n q) d")[:, :, :n]


def rotary(x: Tensor, *, circular: bool, start: int = 0) -> Tensor:
    """Rotary positions (Su et al. 2021): (…, T, D) -> (…, T, D), D even.

    Each pair of channels turns by its own angle a place. On a circle of T places every angle is
    snapped to a whole number of turns a round, so that the first place follows the last; pairs too
    slow for one turn do not turn at all.

    Args:
        start: number of the first place.
    """
    n_places, dim = x.shape[-2:]
    cos, sin = _turns(n_places, dim, circular, start, x.device, x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return pairs.flatten(-2)


@functools.lru_cache(maxsize=64)
def _turns(
    n_places: int, dim: int, circular: bool, start: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each place's angles, (T, D / 2): the same in every layer and step."""
    with torch.inference_mode(False):  # for who learns as well, whoever asks first
        rates = ROTARY_PERIOD ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        if circular:
            rates = torch.round(rates * n_places / (2 * math.pi)) * (2 * math.pi) / n_places
        angles = torch.arange(start, start + n_places, dtype=torch.float64)[:, None] * rates
        return torch.cos(angles).to(device, dtype), torch.sin(angles).to(device, dtype)


def local_mask(n_places: int, reach: int, *, circular: bool) -> Tensor:
    """Which places are at most ``reach`` from which: bool (T, T)."""
    places = torch.arange(n_places)
    apart = (places[:, None] - places).abs()
    if circular:
        apart = torch.minimum(apart, n_places - apart)
    return apart <= reach
