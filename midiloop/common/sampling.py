"""Sampling of codes from logits, with random numbers of the caller."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from midiloop.errors import LoopError

# Products of fewer rows are summed in another order, and a draw on the border could fall elsewhere.
MIN_ROWS = 16
COLDEST = 1e-6  # a temperature below which nothing but the likeliest code is left


def distribution(rows: Tensor, into: int) -> Tensor:
    """Rows (n,) of ``into``, and some of them again, so that there are `MIN_ROWS` if there can be.

    So a row is computed to the same bits whichever rows are beside it.
    """
    lacking = min(MIN_ROWS, into) - len(rows)
    return torch.cat([rows, rows[:1].expand(lacking)]) if lacking > 0 else rows


def draw(logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Sample one code per row by the inverse of its cumulative distribution.

    A row's code depends on its own logits and its own number alone, so the same numbers give the
    same codes in a batch of any size.

    Args:
        logits: (B, K); -inf forbids a code.
        uniforms: float64 (B,), in [0, 1); larger numbers give larger codes.
        temperature: what logits are divided by. Below 1 likely codes become likelier; 0 takes the
            likeliest, the smaller code where two tie.
        top_p: nucleus, in (0, 1]: draw among the fewest codes that hold this probability.

    Returns:
        int64 (B,).

    Raises:
        LoopError: the temperature or top_p is out of range.
    """
    check(temperature, top_p)
    if temperature < COLDEST:
        return logits.argmax(1)
    centred = logits - logits.amax(1, keepdim=True)
    probabilities = (centred / temperature).softmax(1)
    if top_p < 1:
        probabilities = nucleus(probabilities, top_p)
    cumulative = probabilities.cumsum(1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # A number just below 1 may round up to the whole sum, and then no code is left for it.
    targets = torch.minimum(uniforms[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Set to 0 all but the fewest codes whose sum reaches ``top_p``; of equal ones, smaller first.

    Args:
        probabilities: (B, K), each row sums to 1; the result's rows sum to ``top_p`` or more.
    """
    ranked, order = probabilities.sort(dim=1, descending=True, stable=True)
    likelier = nn.functional.pad(
        ranked.cumsum(1)[:, :-1], (1, 0)
    )  # (B, K), sum of the codes ranked before
    kept = torch.zeros_like(probabilities, dtype=torch.bool).scatter_(1, order, likelier < top_p)
    return probabilities * kept


def check(temperature: float, top_p: float) -> None:
    """Raise `LoopError` unless `draw` can work with these."""
    if not 0 <= temperature < float("inf"):
        raise LoopError(
            f"expected a temperature of 0 or more, got {temperature}; 1 changes nothing"
        )
    if not 0 < top_p <= 1:
        raise LoopError(f"expected top_p in (0, 1], got {top_p}; 1 allows every code")
