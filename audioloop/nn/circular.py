"""Layers for circular sequences: the first position follows the last.

Each layer takes ``circular`` when it is called, so the same weights serve a loop and a signal with
ends. Beyond the ends of a signal there are zeros. On a circular sequence every layer commutes with
rotation: rotating the input rotates the output, so no position is a seam.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pad(x: Tensor, left: int, right: int, *, circular: bool) -> Tensor:
    """Pad the last axis on both sides: (…, T) -> (…, left + T + right).

    A circular sequence is repeated, as often as needed. Another one is padded with zeros.
    """
    n = x.shape[-1]
    if not circular:
        return F.pad(x, (left, right))
    if max(left, right) <= n:
        return torch.cat([x[..., n - left :], x, x[..., :right]], -1)
    return x[..., torch.arange(-left, n + right, device=x.device) % n]


class Conv(nn.Module):
    """A convolution of odd length that keeps the number of positions: (B, C, T) -> (B, D, T)."""

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
    """Overlapping windows, each projected by the same linear map: (B, 1, T · hop) -> (B, D, T).

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
    """The synthesis of `Frames`: windows, overlapped and added: (B, D, T) -> (B, 1, T · hop).

    This is a transposed convolution. What reaches beyond an end is added at the other end of a
    circular sequence, and cut off otherwise.
    """

    def __init__(self, inputs: int, window: int, hop: int) -> None:
        super().__init__()
        self.reach, self.hop = _reach(window, hop), hop
        self.basis = nn.Parameter(lapped_transform(inputs, window, hop))

    def forward(self, x: Tensor, *, circular: bool) -> Tensor:
        """(B, D, T) to (B, 1, T · hop)."""
        # A window starts before its own hop, so some positions on each side reach into the signal.
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
    signals: `OverlapAdd` then reconstructs what `Frames` analysed. Source: Malvar 1992, *Signal
    Processing with Lapped Transforms*: the modulated lapped transform, and the extended one with
    its window in closed form.
    """
    at = torch.arange(window, dtype=torch.float64) + 0.5
    if window == 4 * hop:
        envelope = math.sqrt(1 / 8) - 0.5 * torch.cos(2 * math.pi * at / window)
    else:
        envelope = torch.sin(math.pi * at / window)
    bands = torch.arange(n, dtype=torch.float64)[:, None] + 0.5
    basis = envelope * torch.cos(math.pi / hop * bands * (at + hop / 2)) * math.sqrt(2 / hop)
    return basis.float()
