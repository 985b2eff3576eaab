"""Hands: a velocity and an offset for every onset of a roll, as someone might play it.

Humanisation (Gillick et al. 2019, arXiv:1905.06118, who do it by a recurrent network), here by a
network that knows some onsets' values and fills in the others: masked ones are drawn in a few
rounds, and each round hears what the ones before it drew (Chang et al. 2022, arXiv:2202.04200). So
a performance has a character that runs through it, and bars that repeat are played alike. Time is
circular, and of any length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from midiloop.common.configs import Depth, Range, Steps, Width
from midiloop.common.sampling import draw
from midiloop.grid import BEATS_PER_BAR
from midiloop.models.layers import Loss, Model, RollConfig

ROLL, VELOCITY, OFFSET = 0, 1, 2  # planes of a played loop
VELOCITIES = 128
OFFSETS = 256
VALIDATION_SEED = 1905


@dataclass(frozen=True)
class HandsConfig(RollConfig):
    """Sizes, and which loops it learns from. The defaults have 562,840 parameters.

    Attributes:
        dim: of a step's vector; inner layers are twice as wide.
        dilations: of each block, in steps: 16 and 64 look for the same beat of other bars.
        value_dim: of a velocity's or an offset's vector.
        offset_bins: values that an offset is drawn from; the middle one is exactly on the grid.
        rounds: in which a performance is drawn.
        min_velocity_deviation, min_velocity_values: what the drums of a loop need to count as
            played: more than this standard deviation, and as many different velocities.
    """

    dim: Width = 80
    dilations: tuple[Steps, ...] = (1, 4, 16, 2, 32, 64, 16, 1)
    value_dim: Width = 12
    offset_bins: Annotated[int, Range(2, 256)] = 64
    rounds: Depth = 16
    min_velocity_deviation: Annotated[float, Range(0, 127)] = 8.0
    min_velocity_values: Annotated[int, Range(1, 127)] = 8

    @property
    def instruments(self) -> int:
        """The drums, and the bass."""
        return self.drums + 1


class Played(NamedTuple):
    """A played loop, instrument by instrument: (B, T, I).

    Attributes:
        onsets: bool.
        velocities: int64, 0 where there is no onset.
        offsets: int64, index of a bin.
        bass: float (B, T, 2): whether it sounds, and how high from 0 to 1.
    """

    onsets: Tensor
    velocities: Tensor
    offsets: Tensor
    bass: Tensor


class Block(nn.Module):
    """What stands ``dilation`` steps before and after, and the whole: (B, T, D) to the same."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.norm = nn.LayerNorm(dim)
        self.near = nn.Linear(3 * dim, 2 * dim)
        self.whole = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        h = self.norm(x)
        # A dilated convolution on a circle, however short that is.
        near = torch.cat([h.roll(self.dilation, 1), h, h.roll(-self.dilation, 1)], 2)
        inner = F.gelu(self.near(near) + self.whole(h.mean(1, keepdim=True)))
        added: Tensor = x + self.out(inner)
        return added


class Hands(Model):
    """Played loops int16 (B, 3, T, columns): roll, velocities (0: no onset), offsets."""

    def __init__(self, config: HandsConfig) -> None:
        super().__init__()
        self.config: HandsConfig = config
        c = config
        self.bin_width = OFFSETS / c.offset_bins
        self.velocity = nn.Embedding(VELOCITIES + 1, c.value_dim)  # the last one is not known
        self.offset = nn.Embedding(c.offset_bins + 1, c.value_dim)
        self.beat = nn.Embedding(c.steps_per_beat * BEATS_PER_BAR, c.dim)
        self.stem = nn.Linear(c.instruments * (2 + 2 * c.value_dim) + 2, c.dim)
        self.blocks = nn.ModuleList(Block(c.dim, dilation) for dilation in c.dilations)
        self.norm = nn.LayerNorm(c.dim)
        self.instrument = nn.Embedding(c.instruments, c.dim)
        self.head = nn.Sequential(nn.Linear(c.dim, c.dim), nn.GELU())
        self.to_velocity = nn.Linear(c.dim, VELOCITIES)
        self.to_offset = nn.Linear(c.dim, c.offset_bins)

    def played(self, planes: Tensor) -> Played:
        """A batch, instrument by instrument."""
        n_drums = self.config.drums
        roll, velocities, offsets = planes[:, ROLL] > 0, planes[:, VELOCITY], planes[:, OFFSET]
        bass = roll[:, :, n_drums:]  # (B, T, pitches)
        height = bass.to(torch.uint8).argmax(2) / self.config.pitches
        loudest, at = velocities[:, :, n_drums:].max(2, keepdim=True)
        velocities = torch.cat([velocities[:, :, :n_drums], loudest], 2).long()
        bass_offset = offsets[:, :, n_drums:].gather(2, at)
        offsets = torch.cat([offsets[:, :, :n_drums], bass_offset], 2)
        bins = (offsets / self.bin_width).round().long() + self.config.offset_bins // 2
        return Played(
            velocities > 0,
            velocities,
            bins.clamp(0, self.config.offset_bins - 1),
            torch.stack([bass.any(2).float(), height], 2),
        )

    def forward(self, played: Played, known: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the velocities (n, 128) and offsets (n, bins) of the n onsets ``wanted``.

        Args:
            known: bool (B, T, I), onsets whose values may be looked at.
            wanted: bool (B, T, I).
        """
        c, n_steps = self.config, known.shape[1]
        known = known & played.onsets
        velocities = played.velocities.where(known, VELOCITIES)
        offsets = played.offsets.where(known, c.offset_bins)
        values = torch.cat([self.velocity(velocities), self.offset(offsets)], 3)
        flags = torch.stack([played.onsets, known], 3).float()
        step = torch.cat([flags, values], 3).flatten(2)  # (B, T, I · (2 + 2 E))
        bar = c.steps_per_beat * BEATS_PER_BAR
        x = self.stem(torch.cat([step, played.bass], 2))
        x = x + self.beat(torch.arange(n_steps, device=x.device) % bar)
        for block in self.blocks:
            x = block(x)
        rows, steps, instruments = wanted.nonzero(as_tuple=True)
        h = self.head(self.norm(x)[rows, steps] + self.instrument(instruments))
        logits = self.to_velocity(h)
        silent = torch.arange(VELOCITIES, device=h.device) == 0  # of no onset
        return logits.masked_fill(silent, -torch.inf), self.to_offset(h)

    def loss(self, batch: Tensor, epoch: float) -> Loss:
        """Cross-entropy of the onsets that a random mask hides, in nats an onset."""
        del epoch
        played = self.played(batch)
        shares = torch.rand(len(batch), 1, 1, device=batch.device)
        hidden = played.onsets & (torch.rand(played.onsets.shape, device=batch.device) >= shares)
        velocities, offsets = self(played, ~hidden, hidden)
        of_velocity = F.cross_entropy(velocities.float(), played.velocities[hidden])
        of_offset = F.cross_entropy(offsets.float(), played.offsets[hidden])
        terms = {"velocity": of_velocity.detach(), "offset": of_offset.detach()}
        return Loss(of_velocity + of_offset, terms)

    @torch.no_grad()
    def errors(self, batch: Tensor) -> Tensor:
        """Surprise in nats an onset of a third to all of each loop's, the rest known, (B,)."""
        played = self.played(batch)
        generator = torch.Generator().manual_seed(VALIDATION_SEED)  # the same masks each time
        chance = torch.rand(played.onsets.shape, generator=generator).to(batch.device)
        shares = torch.linspace(0, 2 / 3, len(batch), device=batch.device)[:, None, None]
        hidden = played.onsets & (chance >= shares)
        velocities, offsets = self(played, ~hidden, hidden)
        surprise = F.cross_entropy(velocities.float(), played.velocities[hidden], reduction="none")
        surprise += F.cross_entropy(offsets.float(), played.offsets[hidden], reduction="none")
        total = torch.zeros(len(batch), device=batch.device)
        total.index_add_(0, hidden.nonzero()[:, 0], surprise)
        return total / hidden.sum((1, 2)).clamp(min=1)

    @torch.no_grad()
    def expected_velocities(self, batch: Tensor) -> Tensor:
        """Mean velocity of every onset where only the roll is known, float (n,), in C order."""
        played = self.played(batch)
        velocities, _ = self(played, torch.zeros_like(played.onsets), played.onsets)
        values = torch.arange(VELOCITIES, device=batch.device, dtype=torch.float32)
        mean: Tensor = velocities.float().softmax(1) @ values
        return mean

    @torch.no_grad()
    def sample(self, planes: Tensor, uniforms: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Play one loop: new velocities and offsets for its onsets.

        Args:
            planes: int16 (3, T, columns); where a velocity is above 0 there is an onset.
            uniforms: float64 (T · I, 3) in [0, 1), for each instrument of each step.
            temperature: see `sampling.draw`.

        Returns:
            int16 (3, T, columns).
        """
        c = self.config
        played = self.played(planes[None])
        onsets = played.onsets[0].flatten().nonzero()[:, 0]  # cells, in C order
        order = onsets[uniforms[onsets, 0].argsort(stable=True)]
        known = torch.zeros_like(played.onsets)
        done = 0
        for turn in range(1, c.rounds + 1):
            # Few at first, when nothing is known that the others could be drawn after.
            end = math.ceil(len(order) * (1 - math.cos(math.pi / 2 * turn / c.rounds)))
            cells = order[done:end].sort().values
            done = end
            if not len(cells):
                continue
            wanted = torch.zeros_like(known).flatten()
            wanted[cells] = True
            wanted = wanted.view_as(known)
            velocities, offsets = self(played, known, wanted)
            chances = uniforms[cells]
            played.velocities[wanted] = draw(velocities.double(), chances[:, 1], temperature)
            played.offsets[wanted] = draw(offsets.double(), chances[:, 2], temperature)
            known |= wanted
        return self._planes(planes, played)

    def _planes(self, planes: Tensor, played: Played) -> Tensor:
        """What was drawn, cell by cell."""
        c, n_drums = self.config, self.config.drums
        struck = planes[VELOCITY] > 0
        columns = torch.arange(c.columns, device=planes.device).clamp(max=n_drums)
        offsets = (played.offsets[0] - c.offset_bins // 2) * self.bin_width
        drawn = torch.stack([played.velocities[0].float(), offsets]).round()[:, :, columns]
        found = planes.clone()
        found[VELOCITY:] = (drawn * struck).to(planes.dtype)
        return found
