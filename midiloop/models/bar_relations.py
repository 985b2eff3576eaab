"""How a bar takes up an earlier one: tokens of bars, and relations between them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from midiloop.metrics.relations import NEAR_CELLS, OF_PART, Relation
from midiloop.models.layers import RollConfig

MAX_DRUMS = 12  # columns; there is a token for every set of them
MAX_SHIFT = 24  # semitones that a bar may be transposed by


DRUM_KINDS, BASS_KINDS = (
    tuple(kind for kind in OF_PART[part] if kind != Relation.NEW) for part in ("drums", "bass")
)


class Tokens(NamedTuple):
    """Bars as tokens: int64 (B, bars, steps) each.

    Attributes:
        drums: bit c is set where drum column c is struck.
        bass: 0 is silence, p + 1 pitch column p.
    """

    drums: Tensor
    bass: Tensor


class Relations(NamedTuple):
    """How bars take up earlier ones: int64 (B, bars) each.

    Attributes:
        drums, bass: a `Relation`.
        drum_source, bass_source: the earlier bar; 0 where the kind is `NEW`.
        shift: semitones from the earlier bar to this one; 0 unless the kind is `TRANSPOSED`.
    """

    drums: Tensor
    drum_source: Tensor
    bass: Tensor
    bass_source: Tensor
    shift: Tensor


def to_tokens(rolls: Tensor, config: RollConfig) -> Tokens:
    """Rolls (B, steps, columns) as tokens; of several bass pitches on a step the lowest."""
    bars = rearrange(rolls.bool(), "b (bar step) c -> b bar step c", bar=config.bars)
    bits = 1 << torch.arange(config.drums, device=rolls.device)
    drums = (bars[..., : config.drums] * bits).sum(3)
    pitches = bars[..., config.drums :]
    sounds, lowest = pitches.to(torch.uint8).max(3)
    return Tokens(drums, torch.where(sounds > 0, lowest + 1, 0))


def to_rolls(tokens: Tokens, config: RollConfig) -> Tensor:
    """Undo `to_tokens`: bool (B, steps, columns)."""
    bits = torch.arange(config.drums, device=tokens.drums.device)
    drums = (tokens.drums[..., None] >> bits & 1).bool()
    bass = tokens.bass[..., None] == 1 + torch.arange(config.pitches, device=drums.device)
    return torch.cat([drums, bass], 3).flatten(1, 2)


def continues(bass: Tensor) -> Tensor:
    """Steps that say what the step before in their bar says: bool (…, steps)."""
    return F.pad(bass[..., 1:] == bass[..., :-1], (1, 0))


def shifted(bass: Tensor, shift: Tensor) -> Tensor:
    """Bass tokens (…, steps) transposed by semitones (…)."""
    return torch.where(bass > 0, bass + shift[..., None], 0)


def drum_cells(one: Tensor, other: Tensor) -> Tensor:
    """How many cells two drum tokens differ in: int64, broadcast."""
    return ((one ^ other)[..., None] >> torch.arange(MAX_DRUMS, device=one.device) & 1).sum(-1)


def bass_cells(one: Tensor, other: Tensor) -> Tensor:
    """How many cells two bass tokens differ in: another pitch is one less and one more."""
    return torch.where((one == 0) | (other == 0), 1, 2) * (one != other)


def possible_shifts(bass: Tensor, n_tokens: int) -> Tensor:
    """Semitones that move a bar (…, steps), and keep it within the pitches: bool (…, shifts)."""
    silent = (bass == 0).all(-1, keepdim=True)
    highest = bass.amax(-1, keepdim=True)
    lowest = bass.where(bass > 0, n_tokens).amin(-1, keepdim=True)
    shifts = torch.arange(-MAX_SHIFT, MAX_SHIFT + 1, device=bass.device)
    return (lowest + shifts >= 1) & (highest + shifts < n_tokens) & (shifts != 0) & ~silent


def relations(tokens: Tokens, order: Tensor, steps_per_pulse: int) -> Relations:
    """The relations of bars (B, bars, steps) that are written in an order (B, bars).

    Kinds are those of `metrics.relations`, transpositions up to `MAX_SHIFT`. Of the bars with which
    a kind holds the first in order is the source, so that all copies of a bar name the same one.
    """
    turn = order.argsort(1)
    earlier = turn[:, :, None] < turn[:, None]  # (B, source, bar)
    drums = _alike(tokens.drums, steps_per_pulse)
    cells = drum_cells(tokens.drums[:, :, None], tokens.drums[:, None]).sum(3)
    drums[Relation.NEAR] = cells <= NEAR_CELLS
    source, bar = tokens.bass[:, :, None], tokens.bass[:, None]  # (B, source, bar, steps)
    bass = _alike(tokens.bass, steps_per_pulse)
    bass[Relation.NEAR] = bass_cells(source, bar).sum(3) <= NEAR_CELLS
    goes_on = continues(tokens.bass)
    same_rhythm = ((source > 0) == (bar > 0)) & (goes_on[:, :, None] == goes_on[:, None])
    bass[Relation.SAME_RHYTHM] = same_rhythm.all(3)
    both = (source > 0) & (bar > 0)
    difference = torch.where(both, bar - source, 0)  # (B, source, bar, steps)
    at = both.to(torch.uint8).argmax(3, keepdim=True)
    shift = difference.gather(3, at)[..., 0]
    moved = (difference == shift[..., None]) | ~both
    bass[Relation.TRANSPOSED] = (
        (moved & ((source > 0) == (bar > 0))).all(3) & (shift != 0) & (shift.abs() <= MAX_SHIFT)
    )
    drum_kind, drum_source = _first(drums, DRUM_KINDS, earlier, turn)
    bass_kind, bass_source = _first(bass, BASS_KINDS, earlier, turn)
    shift = shift.gather(1, bass_source[:, None])[:, 0]
    return Relations(
        drum_kind,
        drum_source,
        bass_kind,
        bass_source,
        torch.where(bass_kind == int(Relation.TRANSPOSED), shift, 0),
    )


def is_kind(kind: Tensor, what: Relation) -> Tensor:
    """Where kinds are ``what``: bool."""
    return kind == int(what)


def pick(values: Tensor, order: Tensor) -> Tensor:
    """Bars (B, bars, …) in an order (B, n)."""
    at = order.view(*order.shape, *(1,) * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, at)


def _alike(tokens: Tensor, steps_per_pulse: int) -> dict[Relation, Tensor]:
    """Which bars (B, bars, steps) begin alike, for how long: bool (B, source, bar)."""
    same = (tokens[:, :, None] == tokens[:, None]).cumprod(3).bool()
    sounds = (tokens > 0).cumsum(2)[:, None] > 0  # up to each step, (B, 1, bar, steps)
    steps = tokens.shape[2]
    return {
        Relation.EXACT: same[..., -1],
        Relation.SAME_BEATS: (same & sounds)[..., steps - steps_per_pulse - 1],
        Relation.SAME_HALF: (same & sounds)[..., steps // 2 - 1],
    }


def _first(
    holds: dict[Relation, Tensor], kinds: tuple[Relation, ...], earlier: Tensor, turn: Tensor
) -> tuple[Tensor, Tensor]:
    n_bars = turn.shape[1]
    found = torch.stack([holds[kind] for kind in kinds], 1) & earlier[:, None]  # (B, K, src, bar)
    rank = torch.arange(len(kinds), device=turn.device)[:, None] * n_bars + turn[:, None]
    cost = torch.where(found, rank[..., None], len(kinds) * n_bars).flatten(1, 2)
    best, at = cost.min(1)  # (B, bar)
    none = best == len(kinds) * n_bars
    kind = torch.tensor(kinds, device=turn.device)[at.div(n_bars, rounding_mode="floor")]
    kind = torch.where(none, int(Relation.NEW), kind)
    return kind, torch.where(none, 0, at % n_bars)
