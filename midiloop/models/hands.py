"""Hands: a velocity and an offset for every onset of a roll, as someone might play it.

Humanisation (Gillick et al. 2019, arXiv:1905.06118, who do it by a recurrent network), here by a
masked transformer: values are sampled in a few rounds, each conditioned on those of the rounds
before it (Chang et al. 2022, arXiv:2202.04200), so that bars that repeat are played alike. All are
conditioned on a style, which is that of some training loop: what a roll looks like says little of
how loud its song is, and without a style the network would recall the songs that it knows. Time is
circular.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from midiloop.common.configs import Depth, Heads, Range, Share, Width
from midiloop.common.sampling import draw
from midiloop.models.layers import Loss, Model, RollConfig

ROLL, VELOCITY, OFFSET = 0, 1, 2  # planes of a played loop
VELOCITIES = 128
OFFSETS = 256
REPEATS_BARS = (1, 2, 4)  # how far apart bars are whose velocities may be the same
STYLE = 6 + len(REPEATS_BARS)  # numbers of an instrument's style
AROUND = 2  # steps before and after an onset whose onsets are part of its input
SORTED = 4  # parts of a batch by how many onsets they have
VALIDATION_SEED = 1905


@dataclass(frozen=True)
class HandsConfig(RollConfig):
    """Sizes, and which loops it learns from. The defaults have 209,268 parameters.

    Attributes:
        dim, layers, heads: of the transformer; its inner layers are twice as wide.
        dropout: of embeddings and of what the layers add.
        offset_bins: values that an offset is drawn from; the middle one is exactly on the grid.
        rounds: in which a performance is drawn.
        styles: of training loops, of which each sampled performance takes one.
        no_style: share of the training loops, and of their instruments, whose style is hidden.
        min_velocity_deviation, min_velocity_values: what the drums of a loop need to count as
            played: more than this standard deviation, and as many different velocities.
    """

    dim: Width = 80
    layers: Depth = 3
    heads: Heads = 4
    dropout: Share = 0.1
    offset_bins: Annotated[int, Range(2, 256)] = 64
    rounds: Depth = 16
    styles: Annotated[int, Range(1, 65_536)] = 256
    no_style: Share = 0.2
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
        timing: float, offset in halves of a step.
        bass: float (B, T, 2): whether it sounds, and how high from 0 to 1.
    """

    onsets: Tensor
    velocities: Tensor
    offsets: Tensor
    timing: Tensor
    bass: Tensor


def _copy(played: Played, known: Tensor, periods: Tensor) -> None:
    """Make unknown onsets like a known one some periods of steps away, in place."""
    n_steps = known.shape[1]
    for period in sorted(set(periods.tolist())):
        for shift in range(period, n_steps, period):
            there = known.roll(shift, 1) & played.onsets & ~known & (periods == period)
            for values in (played.velocities, played.offsets):
                values[there] = values.roll(shift, 1)[there]
            known |= there


class Layer(nn.Module):
    """Attention among onsets, then two linear layers: (B, N, D) to the same."""

    def __init__(self, config: HandsConfig) -> None:
        super().__init__()
        d = config.dim
        self.heads = config.heads
        self.norm_attention, self.norm_inner = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.mix = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.inner = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, nearness: Tensor) -> Tensor:
        """Args: x (B, N, D), and what is added to the scores, (B, H, N, N)."""
        qkv = self.qkv(self.norm_attention(x))
        q, k, v = rearrange(qkv, "b n (x h d) -> x b h n d", x=3, h=self.heads)
        scores = (q * q.shape[3] ** -0.5) @ k.mT + nearness
        mixed = rearrange(scores.softmax(3) @ v, "b h n d -> b n (h d)")
        x = x + self.dropout(self.mix(mixed))
        added: Tensor = x + self.dropout(self.inner(self.norm_inner(x)))
        return added


class Hands(Model):
    """Played loops int16 (B, 3, T, columns): roll, velocities (0: no onset), offsets.

    A transformer whose tokens are the onsets. How near two are is what is learned for each distance
    in steps, the shorter way round, and for each pair of instruments.
    """

    def __init__(self, config: HandsConfig) -> None:
        super().__init__()
        self.config: HandsConfig = config
        c = config
        if c.dim % c.heads:
            raise ValueError(f"{c.dim} channels are not {c.heads} heads")
        self.bin_width = OFFSETS / c.offset_bins
        self.bar_steps = c.steps_per_bar
        self.velocity = nn.Embedding(VELOCITIES + 1, c.dim)  # the last one is not known
        self.offset = nn.Embedding(c.offset_bins + 1, c.dim)
        self.beat = nn.Embedding(self.bar_steps, c.dim)
        self.instrument = nn.Embedding(c.instruments, c.dim)
        self.around = nn.Linear(c.instruments * (2 * AROUND + 1) + 2, c.dim)
        self.style = nn.Linear(STYLE, c.dim)  # of an onset's own instrument
        self.styles = nn.Linear(c.instruments * STYLE, c.dim)  # of all of them
        self.bank: Tensor  # (styles, I, `STYLE`), of training loops
        self.register_buffer("bank", torch.zeros(c.styles, c.instruments, STYLE))
        self.copies: Tensor  # (styles, I), see `copies_of`
        self.register_buffer("copies", torch.zeros(c.styles, c.instruments))
        self.distance = nn.Embedding(c.steps + 1, c.heads)
        self.pair = nn.Embedding(c.instruments**2, c.heads)
        self.dropout = nn.Dropout(c.dropout)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.dim)
        self.head = nn.Sequential(nn.Linear(c.dim, c.dim), nn.GELU())
        self.to_velocity = nn.Linear(c.dim, VELOCITIES)
        self.to_offset = nn.Linear(c.dim, c.offset_bins)
        for embedding in (self.velocity, self.offset, self.beat, self.instrument):
            nn.init.normal_(embedding.weight, std=0.2)
        for bias in (self.distance, self.pair):
            nn.init.zeros_(bias.weight)

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
            offsets / (OFFSETS / 2),
            torch.stack([bass.any(2).float(), height], 2),
        )

    def style_of(self, played: Played) -> Tensor:
        """How each instrument of a loop is played on the whole: float (B, I, `STYLE`).

        Mean and deviation of its velocities, how many different ones it has for each onset, mean
        offset, share of its onsets that are on the grid, shares of those that are as loud as the
        ones `REPEATS_BARS` before, and 1; all 0 where it has no onset.
        """
        n = played.onsets.sum(1).clamp(min=1)  # (B, I)
        there = played.onsets.float()
        velocities = played.velocities / VELOCITIES
        mean = (velocities * there).sum(1) / n
        spread = ((velocities - mean[:, None]).square() * there).sum(1) / n
        ordered = played.velocities.sort(1).values  # 0 where there is no onset
        different = (ordered.diff(dim=1, prepend=torch.zeros_like(ordered[:, :1])) > 0).sum(1) / n
        late = (played.timing * there).sum(1) / n
        on_grid = ((played.timing == 0) * there).sum(1) / n
        repeats = []
        for bars in REPEATS_BARS:
            before = played.velocities.roll(bars * self.bar_steps, 1)
            both = played.onsets & (before > 0)
            as_loud = both & (before == played.velocities)
            repeats.append(as_loud.sum(1) / both.sum(1).clamp(min=1))
        found = torch.stack(
            [
                mean,
                4 * spread.sqrt(),
                different,
                4 * late,
                on_grid,
                *repeats,
                torch.ones_like(mean),
            ],
            2,
        )
        return found * played.onsets.any(1)[:, :, None]

    def copies_of(self, played: Played) -> Tensor:
        """After how many bars an instrument is played exactly as before: float (B, I).

        The fewest of `REPEATS_BARS`; 0 where it is never, or where fewer than half of its onsets
        have one there to be compared with. What is sampled onset by onset is never quite the same.
        """
        found = torch.zeros_like(played.onsets[:, 0], dtype=torch.float32)
        for bars in reversed(REPEATS_BARS):
            shift = bars * self.bar_steps
            both = played.onsets & played.onsets.roll(shift, 1)
            other = played.velocities != played.velocities.roll(shift, 1)
            other |= played.offsets != played.offsets.roll(shift, 1)
            often = (2 * both.sum(1) >= played.onsets.sum(1)) & both.any(1)
            found[often & ~(both & other).any(1)] = bars
        return found

    @torch.no_grad()
    def fit_styles(self, loops: Callable[[Tensor], Tensor], n_loops: int) -> None:
        """Take the styles of training loops, evenly spread over them.

        Args:
            loops: gives the batch (B, 3, T, columns) of loops by their numbers.
        """
        rows = torch.linspace(0, n_loops - 1, self.config.styles).round().long()
        played = [self.played(loops(index)) for index in torch.split(rows, 256)]
        self.bank.copy_(torch.cat([self.style_of(one) for one in played]))
        self.copies.copy_(torch.cat([self.copies_of(one) for one in played]))

    def forward(
        self, played: Played, known: Tensor, wanted: Tensor, style: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of the velocities (n, 128) and offsets (n, bins) of the n onsets ``wanted``.

        Args:
            known: bool (B, T, I), onsets whose values are the condition.
            wanted: bool (B, T, I).
            style: float (B, I, `STYLE`), see `Hands.style_of`; 0 where it is not known.
        """
        found = wanted.nonzero(as_tuple=True)
        x = self.norm.weight.new_zeros(*wanted.shape, self.config.dim)
        # Short loops apart from long ones, so that there is little padding.
        counts = played.onsets.sum((1, 2))
        for rows in counts.argsort().tensor_split(min(SORTED, len(counts))):
            part = Played(*(value[rows] for value in played))
            here = part.onsets.nonzero(as_tuple=True)
            x = x.index_put(
                (rows[here[0]], *here[1:]), self._hidden(part, known[rows], style[rows]).to(x.dtype)
            )
        h = self.head(x[found])
        logits = self.to_velocity(h)
        silent = torch.arange(VELOCITIES, device=h.device) == 0  # of no onset
        return logits.masked_fill(silent, -torch.inf), self.to_offset(h)

    def _hidden(self, played: Played, known: Tensor, style: Tensor) -> Tensor:
        """The vector of every onset, (n, D), in C order."""
        c, (size, n_steps) = self.config, known.shape[:2]
        rows, steps, instruments = played.onsets.nonzero(as_tuple=True)
        values = known[rows, steps, instruments]
        velocities = played.velocities[rows, steps, instruments].where(values, VELOCITIES)
        offsets = played.offsets[rows, steps, instruments].where(values, c.offset_bins)
        onsets = played.onsets.float()
        near = [onsets.roll(shift, 1) for shift in range(-AROUND, AROUND + 1)]
        around = self.around(torch.cat([*near, played.bass], 2))  # (B, T, D)
        tokens = (
            self.velocity(velocities)
            + self.offset(offsets)
            + self.instrument(instruments)
            + self.beat(steps % self.bar_steps)
            + around[rows, steps]
            + self.style(style)[rows, instruments]
            + self.styles(style.flatten(1))[rows]
        )
        counts = played.onsets.sum((1, 2))
        at = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        shape = (size, int(counts.max()))
        x = tokens.new_zeros(*shape, c.dim).index_put((rows, at), tokens)
        x = self.dropout(x)
        nearness = self._nearness(rows, at, steps, instruments, shape, n_steps)
        for layer in self.layers:
            x = layer(x, nearness)
        hidden: Tensor = self.norm(x)[rows, at]
        return hidden

    def _nearness(
        self,
        rows: Tensor,
        at: Tensor,
        steps: Tensor,
        instruments: Tensor,
        shape: tuple[int, int],
        n_steps: int,
    ) -> Tensor:
        """What is added to the scores of two onsets, (B, H, N, N)."""
        c = self.config
        of_step = self.distance.weight.new_zeros(*shape, n_steps)  # one-hot: products of matrices
        of_instrument = of_step.new_zeros(*shape, c.instruments)  # are faster than to look up
        of_step[rows, at, steps] = of_instrument[rows, at, instruments] = 1
        time = torch.arange(n_steps, device=rows.device)
        half = n_steps // 2
        away = (time - time[:, None] + half) % n_steps - half + c.steps // 2
        distance = self.distance(away).movedim(2, 0)  # (H, T, T)
        pair = rearrange(self.pair.weight, "(i j) h -> h i j", i=c.instruments)
        bias = of_step[:, None] @ distance @ of_step.mT[:, None]
        bias = bias + of_instrument[:, None] @ pair @ of_instrument.mT[:, None]
        valid = of_step.any(2)
        nearness: Tensor = bias.masked_fill(~valid[:, None, None], -torch.inf)
        return nearness

    def loss(self, batch: Tensor, epoch: float) -> Loss:
        """Cross-entropy of the onsets that a random mask hides, in nats an onset."""
        del epoch
        played = self.played(batch)
        shares = torch.rand(len(batch), 1, 1, device=batch.device)
        hidden = played.onsets & (torch.rand(played.onsets.shape, device=batch.device) >= shares)
        velocities, offsets = self(played, ~hidden, hidden, self._partly(self.style_of(played)))
        of_velocity = F.cross_entropy(velocities.float(), played.velocities[hidden])
        of_offset = F.cross_entropy(offsets.float(), played.offsets[hidden])
        terms = {"velocity": of_velocity.detach(), "offset": of_offset.detach()}
        return Loss(of_velocity + of_offset, terms)

    def _partly(self, style: Tensor) -> Tensor:
        """The styles of a batch, some of which are hidden, as are some of their instruments."""
        chance = torch.rand(*style.shape[:2], 1, device=style.device)
        whole = torch.rand(len(style), 1, 1, device=style.device)
        least = self.config.no_style
        return style * (chance >= least) * (whole >= least)

    @torch.no_grad()
    def errors(self, batch: Tensor) -> Tensor:
        """Surprise in nats an onset of a third to all of each loop's, the rest known, (B,).

        The style is known too.
        """
        played = self.played(batch)
        generator = torch.Generator().manual_seed(VALIDATION_SEED)  # the same masks each time
        chance = torch.rand(played.onsets.shape, generator=generator).to(batch.device)
        shares = torch.linspace(0, 2 / 3, len(batch), device=batch.device)[:, None, None]
        hidden = played.onsets & (chance >= shares)
        velocities, offsets = self(played, ~hidden, hidden, self.style_of(played))
        surprise = F.cross_entropy(velocities.float(), played.velocities[hidden], reduction="none")
        surprise += F.cross_entropy(offsets.float(), played.offsets[hidden], reduction="none")
        total = torch.zeros(len(batch), device=batch.device)
        total.index_add_(0, hidden.nonzero()[:, 0], surprise)
        return total / hidden.sum((1, 2)).clamp(min=1)

    @torch.no_grad()
    def expected_velocities(self, batch: Tensor) -> Tensor:
        """Mean velocity of every onset where only the roll is known, float (n,), in C order."""
        played = self.played(batch)
        nothing = torch.zeros_like(played.onsets)
        velocities, _ = self(
            played, nothing, played.onsets, torch.zeros_like(self.style_of(played))
        )
        values = torch.arange(VELOCITIES, device=batch.device, dtype=torch.float32)
        mean: Tensor = velocities.float().softmax(1) @ values
        return mean

    @torch.no_grad()
    def sample(
        self, planes: Tensor, uniforms: Tensor, *, temperature: float = 1.0, top_p: float = 1.0
    ) -> Tensor:
        """Play one loop: new velocities and offsets for its onsets.

        Args:
            planes: int16 (3, T, columns); where a velocity is above 0 there is an onset.
            uniforms: float64 (T · I, 3) in [0, 1), for each instrument of each step; the first of
                all takes the style.
            temperature, top_p: see `sampling.draw`.

        Returns:
            int16 (3, T, columns).
        """
        played = self.played(planes[None])
        n_steps, window = planes.shape[1], self.config.steps
        known = torch.zeros_like(played.onsets)
        chosen = int(uniforms[0, 0] * len(self.bank))
        style = self.bank[chosen][None]
        periods = self.copies[chosen].long() * self.bar_steps
        periods[(periods == 0) | (min(n_steps, window) % periods.clamp(min=1) > 0)] = window
        # A song is played half a loop at a time, each half after what came before it.
        for start in range(0, max(1, n_steps - window // 2), window // 2):
            start = max(0, min(start, n_steps - window))
            here = slice(start, start + window)
            part = Played(*(value[:, here] for value in played))
            chances = uniforms.view(n_steps, -1, 3)[here].flatten(0, 1)
            self._fill(part, known[:, here], chances, style, periods, temperature, top_p)
        return self._planes(planes, played)

    def _fill(
        self,
        played: Played,
        known: Tensor,
        uniforms: Tensor,
        style: Tensor,
        periods: Tensor,
        temperature: float,
        top_p: float,
    ) -> None:
        """Draw what is not known of one loop, in place.

        Args:
            periods: int64 (I,): onsets of an instrument that are these steps apart are alike.
        """
        rounds, n_instruments = self.config.rounds, len(periods)
        _copy(played, known, periods)
        onsets = (played.onsets & ~known)[0].flatten().nonzero()[:, 0]  # cells, in C order
        order = onsets[uniforms[onsets, 0].argsort(stable=True)]
        instruments = order % n_instruments
        alike = order % (periods[instruments] * n_instruments)
        _, first = np.unique(alike.cpu().numpy(), return_index=True)
        order = order[np.sort(first)]  # the others of each are its copies
        done = 0
        for turn in range(1, rounds + 1):
            # Few at first, when nothing is known that the others could be drawn after.
            end = math.ceil(len(order) * (1 - math.cos(math.pi / 2 * turn / rounds)))
            cells = order[done:end].sort().values
            done = end
            if not len(cells):
                continue
            wanted = torch.zeros(known.numel(), dtype=torch.bool, device=known.device)
            wanted[cells] = True
            wanted = wanted.view(known.shape)
            velocities, offsets = self(played, known, wanted, style)
            chances = uniforms[cells]
            for values, logits, column in (
                (played.velocities, velocities, 1),
                (played.offsets, offsets, 2),
            ):
                values[wanted] = draw(logits.double(), chances[:, column], temperature, top_p)
            known |= wanted
            _copy(played, known, periods)

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
