"""The prior: which code follows which, so that a VQ-VAE can write loops of its own.

Source: Han, Ihm and Lim 2021, arXiv:2111.07657, section "Music VQ-VAE": a 2-layer LSTM over the
codes of the training set. The paper gives no sizes; those here are ours.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from midiloop.common.configs import CodebookSize, Depth, Share, Steps, Width
from midiloop.common.sampling import draw
from midiloop.errors import LoopError
from midiloop.models.layers import CodeModel, Loss, initialise
from midiloop.models.recurrent import LSTM

UNKNOWN = -1  # of a code that is to be drawn


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of a prior. The defaults suit the paper's VQ-VAE: 3,744,256 parameters.

    Attributes:
        codebook_size, code_steps: K and T: a loop has T codes from 0 to K - 1.
        embed_dim, hidden, layers: of the LSTM.
        dropout: between its layers.
    """

    codebook_size: CodebookSize = 512
    code_steps: Steps = 32
    embed_dim: Width = 128
    hidden: Width = 512
    layers: Depth = 2
    dropout: Share = 0.0


class Prior(CodeModel):
    """Codes (B, T) one after another, each from all before it; the first as in training."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config: PriorConfig = config
        self.embedding = nn.Embedding(config.codebook_size, config.embed_dim)
        self.lstm = LSTM(
            config.embed_dim,
            config.hidden,
            config.layers,
            dropout=config.dropout,
            batch_first=True,
        )
        self.head = nn.Linear(config.hidden, config.codebook_size)
        self.start_counts: Tensor
        self.register_buffer("start_counts", torch.zeros(config.codebook_size, dtype=torch.int64))
        initialise(self)

    @property
    def draws(self) -> int:
        """Random numbers that `sample` takes for a loop: one for each code."""
        return self.config.code_steps

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (B, T) to logits (B, T - 1, K) of every code after the first."""
        h, _ = self.lstm(self.embedding(codes[:, :-1]))  # (B, T - 1, H)
        logits: Tensor = self.head(h)
        return logits

    def loss(self, codes: Tensor, epoch: float) -> Loss:
        """Cross-entropy of every code after the first, from the true codes before it.

        The total is per code, as the other models' is per step; the term ``nats`` is their sum
        over a loop, ``accuracy`` the share of codes that are the likeliest.
        """
        del epoch
        logits = self(codes).float()
        targets = codes[:, 1:]
        total = nn.functional.cross_entropy(logits.mT, targets)
        nats = total.detach() * targets.shape[1]
        accuracy = (logits.argmax(2) == targets).float().mean()
        return Loss(total, {"nats": nats, "accuracy": accuracy})

    @torch.no_grad()
    def errors(self, batch: Tensor) -> Tensor:
        """Surprise in nats of each loop's codes (B, T) after the first, (B,)."""
        logits = self(batch).float().mT
        surprise = nn.functional.cross_entropy(logits, batch[:, 1:], reduction="none")
        return surprise.sum(1)

    def fit_start(self, codes: Tensor) -> None:
        """Count the first codes of all training loops, codes int64 (N, T)."""
        counts = codes[:, 0].bincount(minlength=self.config.codebook_size)
        self.start_counts.copy_(counts)

    @torch.no_grad()
    def sample(
        self,
        uniforms: Tensor,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        known: Tensor | None = None,
    ) -> Tensor:
        """Write the codes of n loops.

        The same numbers give the same loop in a batch of any size. The first code is drawn as
        often as it starts a training loop whatever ``temperature`` and ``top_p`` are: at
        temperature 0 loops differ by nothing else.

        Args:
            uniforms: float64 (n, T), in [0, 1): one number for each code.
            temperature, top_p: see `sampling.draw`.
            known: int64 (n, T), codes to keep, `UNKNOWN` where one is to be drawn; no number
                moves to another code for it.

        Returns:
            int64 (n, T).

        Raises:
            LoopError: shapes are not these, or no start was counted.
        """
        row = self._row(uniforms, known)
        # How a matrix product rounds depends on the size of the batch. In float64 that is too
        # little to move a draw.
        twin = copy.deepcopy(self).double().eval()
        starts = self.start_counts.double().log().expand(len(row), -1)  # (n, K)
        drawn = draw(starts, uniforms[:, 0])
        state = None
        for position in range(row.shape[1]):
            if position > 0:
                before = twin.embedding(row[:, position - 1 : position])
                h, state = twin.lstm(before, state)  # (n, 1, H)
                drawn = draw(twin.head(h[:, 0]), uniforms[:, position], temperature, top_p)
            row[:, position] = torch.where(row[:, position] < 0, drawn, row[:, position])
        return row

    def _row(self, uniforms: Tensor, known: Tensor | None) -> Tensor:
        """Check what `sample` was given; known codes, int64 (n, T)."""
        config = self.config
        if uniforms.ndim != 2 or uniforms.shape[1] != config.code_steps:
            raise LoopError(
                f"expected uniforms (n, {config.code_steps}), one for each code, got "
                f"{tuple(uniforms.shape)}"
            )
        if uniforms.dtype != torch.float64:
            raise LoopError(
                f"expected uniforms in float64, got {uniforms.dtype}; draw them with "
                "torch.rand(…, dtype=torch.float64)"
            )
        if not self.start_counts.any():
            raise LoopError("no start code was counted; call fit_start() with the training codes")
        if known is None:
            return torch.full(uniforms.shape, -1, dtype=torch.int64, device=uniforms.device)
        if known.shape != uniforms.shape or known.dtype != torch.int64:
            raise LoopError(
                f"expected known codes int64 {tuple(uniforms.shape)}, {UNKNOWN} where one is to be "
                f"drawn, got {known.dtype} {tuple(known.shape)}"
            )
        return known.clone()
