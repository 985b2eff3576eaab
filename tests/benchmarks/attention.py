"""How fast attention learns on a CPU, by plain products as `circular` has it, and by PyTorch's own.

    python tests/benchmarks/attention.py [--repeats 15]

Forward and backward of one layer's attention, on a batch as the models of codes learn from. Both
take turns, so that what else the machine does hits both; the figures are medians, and the median
of each turn's ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from audioloop import circular
from audioloop.token_train import CONFIGS, LOOP_FRAMES

BATCH = 8
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    config = CONFIGS["masked"]
    shape = BATCH, config.heads, LOOP_FRAMES, config.dim // config.heads
    print(f"{shape}, {torch.get_num_threads()} threads, {options.repeats} turns\n")
    print("            hears      PyTorch's ms   products ms   ratio")
    assert config.context is not None
    nearby = circular.near(LOOP_FRAMES, config.context, circular=True)
    for dtype in (torch.float32, torch.bfloat16):
        for hears, mask, causal in (
            ("all", None, False),
            ("nearby", nearby, False),
            ("before", None, True),
        ):
            theirs, ours = timed(shape, dtype, mask, causal=causal, repeats=options.repeats)
            print(
                f"{str(dtype).removeprefix('torch.'):>9} {hears:>7} {np.median(theirs):17.1f} "
                f"{np.median(ours):13.1f} {np.median(ours / theirs):7.2f}",
                flush=True,
            )


def timed(
    shape: tuple[int, ...], dtype: torch.dtype, mask: Tensor | None, *, causal: bool, repeats: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Milliseconds (2, repeats): PyTorch's own, and ours."""
    torch.manual_seed(0)
    parts = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]
    ways: tuple[Attention, Attention] = (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal),
        lambda q, k, v: circular.by_products(q, k, v, mask, causal=causal),
    )
    took = np.zeros((2, repeats + 2))
    for turn in range(repeats + 2):
        for row, way in zip(took, ways, strict=True):
            began = time.perf_counter()
            way(*parts).sum().backward()  # type: ignore[no-untyped-call]
            row[turn] = 1000 * (time.perf_counter() - began)
    return took[:, 2:]  # the first ones make room


if __name__ == "__main__":
    main()
