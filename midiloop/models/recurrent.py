"""An LSTM that runs wherever the rest of a model does."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]

# oneDNN, by which PyTorch runs LSTMs on a CPU, has none of 16 bits for a CPU without AVX-512.
HALF_ON_CPU = "AVX512" in torch.backends.cpu.get_cpu_capability()


class LSTM(nn.LSTM):
    """`nn.LSTM`; under autocast, in 32 bits where the CPU has none of 16."""

    def forward(  # type: ignore[override]
        self, rows: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """As `nn.LSTM` has it."""
        wide = rows.device.type == "cpu" and not HALF_ON_CPU and torch.is_autocast_enabled("cpu")
        if wide:
            rows = rows.float()
            state = None if state is None else (state[0].float(), state[1].float())
        with torch.autocast("cpu", enabled=False) if wide else nullcontext():
            found: tuple[Tensor, State] = super().forward(rows, state)
        return found
