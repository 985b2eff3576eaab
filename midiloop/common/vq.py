"""EMA vector quantisers: plain, and residual with several codebooks.

Each vector of a codebook is an exponential moving average of the rows that are nearest to it (van
den Oord et al. 2017, arXiv:1711.00937, appendix A.1); a rarely used one restarts from one
of them (Dhariwal et al. 2020, arXiv:2005.00341, section 3). Several codebooks are a residual
quantiser: each quantises the residual of those before it (Zeghidour et al. 2021, arXiv:2107.03312,
algorithm 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from midiloop.common import devices


class Quantized(NamedTuple):
    """Output of the quantiser.

    Attributes:
        latent: (B, L, T), sum of the chosen vectors, with the straight-through gradient.
        codes: int64 (B, K, T).
        commitment: (), mean squared distance of input and quantised vectors, over codebooks.
    """

    latent: Tensor
    codes: Tensor
    commitment: Tensor


class ResidualVectorQuantizer(nn.Module):
    """K codebooks one after the other; with one of them it is a plain vector quantiser.

    Args:
        codebooks, size, dim: K codebooks of ``size`` vectors (dim,).
        decay: of the exponential moving averages.
        rare: share of an even count of rows below which a vector is restarted, as the average of an
            even count. None: below one row, as the average of one.
    """

    def __init__(
        self, codebooks: int, size: int, dim: int, *, decay: float, rare: float | None = None
    ) -> None:
        super().__init__()
        self.decay, self.rare = decay, rare
        self.vectors: Tensor
        self.counts: Tensor
        self.register_buffer("vectors", torch.randn(codebooks, size, dim))
        self.register_buffer("counts", torch.zeros(codebooks, size))  # of the rows averaged

    def forward(self, latent: Tensor) -> Quantized:
        """Quantise latents (B, L, T); in training, the codebooks are updated as well."""
        left = rearrange(latent.float(), "b l t -> (b t) l")
        codes, commitments = [], []
        for book in range(len(self.vectors)):
            nearest = self._nearest(left.detach(), book)
            if self.training:
                self._follow(left.detach(), nearest, book)
            chosen = self.vectors[book, nearest]
            commitments.append(F.mse_loss(left, chosen))
            left = left - chosen
            codes.append(nearest)
        missed = rearrange(left, "(b t) l -> b l t", b=len(latent))
        return Quantized(
            latent - missed.detach(),
            rearrange(torch.stack(codes), "k (b t) -> b k t", b=len(latent)),
            torch.stack(commitments).mean(),
        )

    def lookup(self, codes: Tensor) -> Tensor:
        """Look up the latents (B, L, T) of the codes (B, K, T) of the first K codebooks."""
        vectors = [self.vectors[book, row] for book, row in enumerate(codes.unbind(1))]
        return torch.stack(vectors).sum(0).mT

    def _nearest(self, rows: Tensor, book: int) -> Tensor:
        vectors = self.vectors[book]
        with torch.autocast(rows.device.type, enabled=False):
            distance = torch.addmm(vectors.square().sum(1), rows, vectors.T, alpha=-2)
        return distance.argmin(1)

    @torch.no_grad()
    def _follow(self, rows: Tensor, codes: Tensor, book: int) -> None:
        """Move every vector towards the average of its rows, of all processes together."""
        vectors, counts = self.vectors[book], self.counts[book]
        size, first = len(vectors), devices.rank() == 0
        # What stays of the averages so far is in the sum over processes once.
        kept = self.decay * counts if first else torch.zeros_like(counts)
        sums = kept[:, None] * vectors
        sums.index_add_(0, codes, rows, alpha=1 - self.decay)
        counts.copy_(kept + (1 - self.decay) * torch.bincount(codes, minlength=size))
        devices.add_up(sums)
        devices.add_up(counts)
        vectors.copy_(sums / counts[:, None].clamp(min=1e-8))
        even = len(rows) * devices.world() / size
        start = 1.0 if self.rare is None else even
        rare = counts < (1.0 if self.rare is None else self.rare * even)
        fresh = rows[torch.randint(len(rows), (size,), device=rows.device)]
        devices.broadcast([fresh])
        counts[rare] = start
        vectors[rare] = fresh[rare]
