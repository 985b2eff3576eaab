"""What the continuous VAEs have in common, and the two of them that are made of LSTMs.

Source: Han, Ihm and Lim 2021, arXiv:2111.07657, equations 1 and 3 and appendix tables (a), (b);
scheduled sampling: Bengio et al. 2015, arXiv:1506.03099.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from midiloop.common.configs import Range, Width
from midiloop.models.layers import (
    Loss,
    Posterior,
    RollConfig,
    RollModel,
    binary_nats,
    divergence,
    initialise,
    kl_weight,
    reparametrise,
)
from midiloop.models.recurrent import LSTM


class Reconstruction(NamedTuple):
    """A batch that went through a VAE.

    Attributes:
        logits: (B, 128, 93), of a note in each cell.
        mean, deviation: (B, L), of the latent.
    """

    logits: Tensor
    mean: Tensor
    deviation: Tensor


class VAE(RollModel):
    """Loops to latents (B, L) and back. A model says how: `encode`, `decode`, `latent_shape`."""

    settled_epoch = 44.0  # of the schedules: β is 0.99 from here on

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one loop's latent; a new loop is `decode` of numbers from N(0, 1)."""
        raise NotImplementedError

    def encode(self, rolls: Tensor) -> tuple[Tensor, Tensor]:
        """Rolls (B, 128, 93) to mean and deviation, (B, L) each."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, L) to logits (B, 128, 93)."""
        raise NotImplementedError

    def forward(self, rolls: Tensor) -> Reconstruction:
        """Rolls (B, 128, 93) through a latent sampled from their posterior."""
        mean, deviation = self.encode(rolls)
        return Reconstruction(self.decode(reparametrise(mean, deviation)), mean, deviation)

    def loss(self, rolls: Tensor, epoch: float) -> Loss:
        """Equation 1: nats a loop, and β times the divergence of its latent from N(0, 1)."""
        return self._loss(self(rolls), rolls, epoch)

    @torch.no_grad()
    def reconstruct(self, rolls: Tensor) -> Tensor:
        """Rolls to bool rolls, (B, 128, 93) both, through the mean latent; call in eval mode."""
        mean, _ = self.encode(rolls)
        return self.rolls(self.decode(mean))

    def rolls(self, logits: Tensor) -> Tensor:
        """Logits to bool rolls of the same shape: a note where its probability is ≥ 0.5."""
        return logits >= 0

    def _loss(self, batch: Reconstruction, rolls: Tensor, epoch: float) -> Loss:
        nats = binary_nats(batch.logits, rolls)
        kl = divergence(batch.mean, batch.deviation)
        # Per step: of the same size as other models' losses, so one learning rate suits all.
        total = (nats + kl_weight(epoch) * kl) / self.config.steps
        return Loss(total, {"nats": nats.detach(), "kl": kl.detach()})


@dataclass(frozen=True)
class ARLSTMVAEConfig(RollConfig):
    """Sizes of an autoregressive LSTM-VAE. The defaults are the paper's: 486,109 parameters.

    Attributes:
        encoder_hidden: of each direction.
        latent_dim: L; also the decoder's hidden size, as the latent is where its state begins.
        sampling_rate: k of `truth_probability`, in epochs.
    """

    encoder_hidden: Width = 128
    latent_dim: Width = 128
    sampling_rate: Annotated[float, Range(1e-3, 1e6)] = 20.0


@dataclass(frozen=True)
class NonARLSTMVAEConfig(RollConfig):
    """Sizes of a non-autoregressive LSTM-VAE. The defaults are the paper's: 713,565 parameters.

    Table (b) gives the decoder's output 256 values and calls it "LSTM", the encoder "Bi-LSTM":
    so one direction of 256. Two of 128 would make 582,493 parameters.

    Attributes:
        encoder_hidden: of each direction.
        latent_dim: L.
        decoder_hidden: of the one direction.
    """

    encoder_hidden: Width = 128
    latent_dim: Width = 128
    decoder_hidden: Width = 256


class Encoder(nn.Module):
    """A bidirectional LSTM whose last hidden states give the latent, tables (a) and (b)."""

    def __init__(self, columns: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.lstm = LSTM(columns, hidden, batch_first=True, bidirectional=True)
        self.posterior = Posterior(2 * hidden, latent_dim)

    def forward(self, rolls: Tensor) -> tuple[Tensor, Tensor]:
        """Rolls (B, 128, 93) to mean and deviation, (B, L) each."""
        _, (h, _) = self.lstm(rolls.float())  # (2, B, H): after the last step, after the first
        mean, deviation = self.posterior(rearrange(h, "d b h -> b (d h)"))
        return mean, deviation


class ARLSTMVAE(VAE):
    """Each step from the steps before it and the latent, table (a).

    In training the input of a step is the true step before it, or the model's own output; the share
    of true steps falls (scheduled sampling). One coin for each step decides for the whole batch,
    where Bengio et al. toss one for each loop: steps between two own ones are then a single call
    of the LSTM.
    """

    def __init__(self, config: ARLSTMVAEConfig) -> None:
        super().__init__()
        self.config: ARLSTMVAEConfig = config
        self.encoder = Encoder(config.columns, config.encoder_hidden, config.latent_dim)
        width = config.columns + config.latent_dim
        self.decoder = LSTM(width, config.latent_dim, batch_first=True)
        self.head = nn.Linear(config.latent_dim, config.columns)
        initialise(self)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (self.config.latent_dim,)

    def encode(self, rolls: Tensor) -> tuple[Tensor, Tensor]:
        """Rolls (B, 128, 93) to mean and deviation, (B, L) each."""
        mean, deviation = self.encoder(rolls)
        return mean, deviation

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, L) to logits (B, 128, 93), every step from the model's own steps."""
        unused = z.new_zeros(1, 1, 1).expand(len(z), self.config.steps, self.config.columns)
        return self.unroll(z, unused, torch.ones(self.config.steps, dtype=torch.bool))

    def forward(self, rolls: Tensor, truth: float = 1.0) -> Reconstruction:
        """Rolls (B, 128, 93) through a latent sampled from their posterior.

        Args:
            truth: probability that the input of a step is the true step before it.
        """
        mean, deviation = self.encode(rolls)
        own = torch.rand(self.config.steps) >= truth
        logits = self.unroll(reparametrise(mean, deviation), rolls, own)
        return Reconstruction(logits, mean, deviation)

    def loss(self, rolls: Tensor, epoch: float) -> Loss:
        """Equation 1 with scheduled sampling."""
        return self._loss(self(rolls, self.truth_probability(epoch)), rolls, epoch)

    def truth_probability(self, epoch: float) -> float:
        """Inverse sigmoid decay, k / (k + exp(epoch / k)): 0.95 at first, half at epoch 60."""
        k = self.config.sampling_rate
        decay = k * math.exp(-epoch / k)  # the fraction times exp(-epoch / k) never overflows
        return decay / (decay + 1)

    def unroll(self, z: Tensor, rolls: Tensor, own: Tensor) -> Tensor:
        """Decode, with the true step before as input at some steps.

        Args:
            z: (B, L).
            rolls: (B, 128, 93), the truth.
            own: bool (128,): steps that follow the model's own step before them, cut at one half;
                the others follow the true one. The first follows nothing, whatever it says.

        Returns:
            Logits (B, 128, 93).
        """
        # From one own step to the next all inputs are at hand: the steps between are one call.
        #
        #   step     0      1      2      3      4      5
        #   own                           x      x
        #   input    0    roll 0 roll 1 | out 2 | out 3 roll 4
        starts = [0, *(own[1:].nonzero()[:, 0] + 1).tolist(), self.config.steps]
        first = z.new_zeros(len(z), 1, self.config.columns + z.shape[1])
        state = (z[None], z[None])  # (1, B, L), hidden and cell
        logits = []
        for start, stop in pairwise(starts):
            truth = self._beside(rolls[:, start : stop - 1], z)
            h, state = self.decoder(torch.cat([first, truth], 1), state)
            logits.append(self.head(h))  # (B, stop - start, 93)
            first = self._beside(self.rolls(logits[-1][:, -1:]), z)
        return torch.cat(logits, 1)

    def _beside(self, rolls: Tensor, z: Tensor) -> Tensor:
        """Rolls (B, T, 93) with the latent (B, L) at every step: (B, T, 93 + L)."""
        return torch.cat([rolls.to(z.dtype), z[:, None].expand(-1, rolls.shape[1], -1)], 2)


class NonARLSTMVAE(VAE):
    """All steps from the latent alone, table (b)."""

    def __init__(self, config: NonARLSTMVAEConfig) -> None:
        super().__init__()
        self.config: NonARLSTMVAEConfig = config
        self.encoder = Encoder(config.columns, config.encoder_hidden, config.latent_dim)
        self.decoder = LSTM(config.latent_dim, config.decoder_hidden, batch_first=True)
        self.head = nn.Linear(config.decoder_hidden, config.columns)
        initialise(self)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (self.config.latent_dim,)

    def encode(self, rolls: Tensor) -> tuple[Tensor, Tensor]:
        """Rolls (B, 128, 93) to mean and deviation, (B, L) each."""
        mean, deviation = self.encoder(rolls)
        return mean, deviation

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, L) to logits (B, 128, 93)."""
        h, _ = self.decoder(repeat(z, "b l -> b t l", t=self.config.steps))  # (B, 128, H)
        logits: Tensor = self.head(h)
        return logits
