"""How fast attention learns on a CPU, as `nn.attention` computes it, and by PyTorch's own.

    python tests/benchmarks/attention.py [--repeats 15]

Forward and backward of one layer's attention, on a batch as the models of codes learn from: to all
places and to those before by plain products, and to those that are near block by block. Both take
turns, so that what else the machine does hits both; the figures are medians, and the median of each
turn's ratio.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from audioloop.nn import attention
from audioloop.tokens.train import CONFIGS, LOOP_FRAMES

BATCH = 8
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    config = CONFIGS["masked"]
    shape = BATCH, config.heads, LOOP_FRAMES, config.dim // config.heads
    print(f"{shape}, {torch.get_num_threads()} threads, {options.repeats} turns\n")
    print("             mask      PyTorch's ms       ours ms   ratio")
    for dtype in (torch.float32, torch.bfloat16):
        for mask, (theirs, ours) in masks(config.context or 0).items():
            took = timed(shape, dtype, theirs, ours, options.repeats)
            print(
                f"{str(dtype).removeprefix('torch.'):>9} {mask:>7} {np.median(took[0]):17.1f} "
                f"{np.median(took[1]):13.1f} {np.median(took[1] / took[0]):7.2f}",
                flush=True,
            )


def masks(reach: int) -> dict[str, tuple[Attention, Attention]]:
    """Which frames attend to which, by PyTorch's own attention and by ours."""
    near = attention.local_mask(LOOP_FRAMES, reach, circular=True)
    before = torch.ones(LOOP_FRAMES, LOOP_FRAMES, dtype=torch.bool).tril()
    return {
        "all": (
            scaled_dot_product_attention,
            functools.partial(attention.explicit_attention, mask=None),
        ),
        "nearby": (
            functools.partial(scaled_dot_product_attention, attn_mask=near),
            functools.partial(attention.local_attention, reach=reach, circular=True),
        ),
        "before": (
            functools.partial(scaled_dot_product_attention, is_causal=True),
            functools.partial(attention.explicit_attention, mask=before),
        ),
    }


def timed(
    shape: tuple[int, ...], dtype: torch.dtype, theirs: Attention, ours: Attention, repeats: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Milliseconds (2, repeats): PyTorch's own, and ours."""
    torch.manual_seed(0)
    parts = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]
    took = np.zeros((2, repeats + 2))
    for turn in range(repeats + 2):
        for row, way in zip(took, (theirs, ours), strict=True):
            began = time.perf_counter()
            way(*parts).sum().backward()  # type: ignore[no-untyped-call]
            row[turn] = 1000 * (time.perf_counter() - began)
    return took[:, 2:]  # the first ones make room


if __name__ == "__main__":
    main()
