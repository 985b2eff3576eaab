"""A transformer that writes loops bar by bar, and says how each bar takes up an earlier one.

::

    bar      relation         beat 1     beat 2     beat 3     beat 4
             drums  bass      d b d b …  d b d b …  d b d b …  d b d b …
    1        new    new       drawn      drawn      drawn      drawn
    2        = 1    new       drums are those of bar 1; the bass is drawn
    3        = 1    = 1 + 5   copied, the bass five semitones up
    4        ~ 1    = 1       drums: the same first three beats, and the last one drawn

A backbone (Vaswani et al. 2017, arXiv:1706.03762, with norms before the layers) has one position
for the relations of a bar and one for each of its beats, so both parts hear each other and all bars
before. A small network draws what stands at a position token by token, as the depth transformer of
Lee et al. 2022, arXiv:2203.01941, does. Tokens are exact: what drums strike on a step, and which
pitch the bass sounds. What a relation says to be the same is copied, never drawn again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from midiloop.common.configs import Depth, Heads, Range, Share, Width
from midiloop.metrics.relations import NEAR_CELLS, Relation
from midiloop.models.bar_relations import (
    BASS_KINDS,
    DRUM_KINDS,
    MAX_DRUMS,
    MAX_SHIFT,
    Relations,
    Tokens,
    bass_cells,
    continues,
    drum_cells,
    is_kind,
    pick,
    possible_shifts,
    relations,
    shifted,
    to_tokens,
)
from midiloop.models.layers import Loss, Model, RollConfig

SHIFT = 2  # the third word of a relation, after those of drums and bass
SHIFTS = 2 * MAX_SHIFT + 1
MAX_SLOTS = 96  # of a beat: weights from each to each later one grow with their square


@dataclass(frozen=True)
class LoopTransformerConfig(RollConfig):
    """Sizes of the transformer.

    Attributes:
        dim, layers, heads: of the backbone; its inner layers are four times as wide.
        token_dim: of a token's embedding.
        token_layers: of the network that draws tokens.
        dropout: of embeddings, attention weights and what the inner layers add.
        shuffled: share of the training loops whose bars come in random order, so that any bars can
            be drawn after any others.
        bass_top_p: nucleus that the bass is drawn from, whatever is asked for: what hardly ever
            follows is overrated, as training songs are few, and sounds wrong at once.
    """

    drums: Annotated[int, Range(1, MAX_DRUMS)] = 9
    dim: Width = 192
    layers: Depth = 5
    heads: Heads = 6
    token_dim: Width = 48
    token_layers: Depth = 2
    dropout: Share = 0.25
    shuffled: Share = 0.3
    bass_top_p: Annotated[float, Range(0.5, 1.0)] = 0.97

    @property
    def beats(self) -> int:
        """Of a bar, as its meter counts them: two of 6/8."""
        return self.meter.pulses

    @property
    def slots(self) -> int:
        """Tokens of a beat: drums and bass of each step."""
        return 2 * self.steps_per_pulse

    @property
    def drum_tokens(self) -> int:
        """Sets of drums."""
        return 1 << self.drums

    @property
    def bass_tokens(self) -> int:
        """Silence, and each pitch."""
        return self.pitches + 1

    @property
    def draws_per_bar(self) -> int:
        """Random numbers of a bar: three for its relations, one for each token."""
        return 3 + self.beats * self.slots


class Layer(nn.Module):
    """Attention to what came before, then two linear layers: (B, L, D) to the same."""

    def __init__(self, config: LoopTransformerConfig) -> None:
        super().__init__()
        d = config.dim
        self.heads = config.heads
        self.norm_attention, self.norm_inner = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.mix = nn.Linear(d, d)
        self.inner = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """All positions at once."""
        q, k, v = self._heads(x)  # (B, H, L, D / H)
        # Written out, because PyTorch's fused attention takes three times as long on a CPU to go
        # back through sequences as short as these.
        length = x.shape[1]
        later = torch.full((length, length), -torch.inf, device=x.device, dtype=q.dtype).triu(1)
        scores = (q * q.shape[3] ** -0.5) @ k.mT + later  # (B, H, L, L)
        return self._add(x, self.dropout(scores.softmax(3).to(v.dtype)) @ v)

    def step(self, x: Tensor, keys: Tensor, values: Tensor, at: int) -> Tensor:
        """One position (B, 1, D) more; its key and value join those (B, H, L, D / H) before."""
        q, k, v = self._heads(x)
        keys[:, :, at], values[:, :, at] = k[:, :, 0], v[:, :, 0]
        scores = (q * q.shape[3] ** -0.5) @ keys[:, :, : at + 1].mT  # (B, H, 1, L)
        return self._add(x, scores.softmax(3) @ values[:, :, : at + 1])

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(self.norm_attention(x))
        q, k, v = rearrange(qkv, "b l (n h d) -> n b h l d", n=3, h=self.heads)
        return q, k, v

    def _add(self, x: Tensor, heard: Tensor) -> Tensor:
        x = x + self.dropout(self.mix(rearrange(heard, "b h l d -> b l (h d)")))
        added: Tensor = x + self.dropout(self.inner(self.norm_inner(x)))
        return added


class Block(nn.Module):
    """Norm, two linear layers, added: (…, D) to the same."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim),
            nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Add what the body makes of it."""
        added: Tensor = x + self.body(x)
        return added


class Rhythm(NamedTuple):
    """What the rhythm of another bar says of bass steps: bool (B, bars, steps) each.

    Attributes:
        held: they say what the step before says.
        rests: they are silence.
        struck: they are a pitch, and not that of the step before.
    """

    held: Tensor
    rests: Tensor
    struck: Tensor


class Bar(NamedTuple):
    """What is known of a bar before it is drawn.

    Attributes:
        source: tokens of the bar that it takes up, the bass transposed; where it is new, the last
            row of the tables.
        copied_drums, copied_bass: bool (B, bars, steps), what the relations say to be the same.
        rhythm: that of the source, where the relation is `Relation.SAME_RHYTHM`.
        near_drums, near_bass: bool (B, bars), where it is `Relation.NEAR`.
    """

    source: Tokens
    copied_drums: Tensor
    copied_bass: Tensor
    rhythm: Rhythm
    near_drums: Tensor
    near_bass: Tensor


class LoopTransformer(Model):
    """Rolls (B, 128, 93) as bars with relations."""

    def __init__(self, config: LoopTransformerConfig) -> None:
        super().__init__()
        self.config: LoopTransformerConfig = config
        c, d, e = config, config.dim, config.token_dim
        if d % c.heads:
            raise ValueError(f"{d} channels are not {c.heads} heads")
        if c.slots > MAX_SLOTS:
            raise ValueError(f"{c.steps_per_pulse} steps a beat are over {MAX_SLOTS // 2}")
        self.n_words = [1 + len(kinds) * c.bars for kinds in (DRUM_KINDS, BASS_KINDS)]
        # One more token in each table: there is no source.
        self.drums = nn.Embedding(c.drum_tokens + 1, e)
        self.bass = nn.Embedding(c.bass_tokens + 1, e)
        self.content = nn.Linear(c.slots * e, d)
        self.source = nn.Linear(c.slots * e, d)
        self.drum_relation = nn.Embedding(self.n_words[0], d)
        self.bass_relation = nn.Embedding(self.n_words[1], d)
        self.shift = nn.Embedding(SHIFTS, d)
        self.place = nn.Embedding(c.bars * (1 + c.beats), d)
        self.start = nn.Parameter(torch.zeros(d))
        self.dropout = nn.Dropout(c.dropout)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.LayerNorm(d)
        self.relation_block = Block(d, c.dropout)
        self.relation_heads = nn.ModuleList(nn.Linear(d, n) for n in (*self.n_words, SHIFTS))
        self.before = nn.Parameter(torch.empty(c.slots, e, c.slots, d))  # from token to later slot
        self.slot = nn.Parameter(torch.zeros(c.slots, d))
        self.aligned = nn.ModuleList(nn.Linear(e, d) for _ in range(2))
        self.blocks = nn.ModuleList(Block(d, c.dropout) for _ in range(c.token_layers))
        self.token_norm = nn.LayerNorm(d)
        self.token_heads = nn.ModuleList(
            nn.Linear(d, n) for n in (c.drum_tokens, c.bass_tokens + 1)
        )
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for table in (self.drums, self.bass):
            nn.init.normal_(table.weight, std=0.2)
        nn.init.normal_(self.before, std=0.02)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            for last in (layer.mix, layer.inner[2]):  # what all layers add up
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=0.02 / (2 * c.layers) ** 0.5)

    @property
    def draws(self) -> int:
        """Random numbers that `sample` takes for a loop."""
        return self.config.bars * self.config.draws_per_bar

    def loss(self, batch: Tensor, epoch: float) -> Loss:
        """Cross-entropy of rolls (B, 128, 93) in nats a loop, mean over the batch."""
        del epoch
        order = self._natural(len(batch), batch.device)
        chance = torch.rand(len(batch), self.config.bars, device=batch.device)
        n_shuffled = round(self.config.shuffled * len(batch))
        order[:n_shuffled] = chance[:n_shuffled].argsort(1)
        nats = torch.stack([part.sum() for part in self._nats(batch, order)]) / len(batch)
        names = ("relation_nats", "drum_nats", "bass_nats")
        terms = dict(zip(names, nats.detach(), strict=True))
        # Per token, as if nothing repeated: the scale of the other models' losses.
        return Loss(nats.sum() / (2 * self.config.steps), {"nats": nats.detach().sum(), **terms})

    @torch.no_grad()
    def errors(self, batch: Tensor) -> Tensor:
        """Surprise in nats of each roll, (B,), its bars in order."""
        return torch.stack(self._nats(batch, self._natural(len(batch), batch.device))).sum(0)

    def _natural(self, n: int, device: torch.device) -> Tensor:
        return torch.arange(self.config.bars, device=device).repeat(n, 1)

    def _nats(self, rolls: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of relations, drums and bass: (B,) each. Order (B, bars) is that of writing."""
        tokens = to_tokens(rolls, self.config)
        found = relations(tokens, order, self.config.steps_per_pulse)
        ordered = Tokens(*(pick(part, order) for part in tokens))
        found = Relations(*(pick(field, order) for field in found))
        bar = self.bar(tokens, found)
        known = self._known(ordered, found, bar, order)  # (B, bars, 1 + beats, D)
        relation = self._relation_nats(known[:, :, 0], found, order, tokens.bass)
        drums, bass = self._token_nats(known[:, :, 1:], ordered, bar)
        return relation, drums, bass

    def _relation_nats(
        self, known: Tensor, found: Relations, order: Tensor, bass: Tensor
    ) -> Tensor:
        words = self.words(found)
        shifts = possible_shifts(bass, self.config.bass_tokens)  # (B, bars, shifts)
        earlier = self._earlier(order)
        may_be = [
            (earlier & self._by_bar(part != int(Relation.EXACT), order)[:, None])[:, :, None]
            .expand(-1, -1, len(kinds), -1)
            .clone()
            for part, kinds in ((found.drums, DRUM_KINDS), (found.bass, BASS_KINDS))
        ]  # (B, bars, kinds, sources)
        may_be[1][:, :, BASS_KINDS.index(Relation.TRANSPOSED)] &= shifts.any(2)[:, None]
        is_moved = is_kind(found.bass, Relation.TRANSPOSED)
        allowed = (
            *(F.pad(words.flatten(2), (1, 0), value=True) for words in may_be),
            pick(shifts, found.bass_source) | ~is_moved[..., None],
        )
        nats = torch.zeros(known.shape[:2], device=known.device)
        for which, target in enumerate(words):
            logits = self.relation_logits(known, words, which)
            logits = logits.masked_fill(~allowed[which], -torch.inf)
            surprise = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            surprise = surprise.view(target.shape)
            if which == SHIFT:
                surprise = surprise * is_moved
            nats = nats + surprise
        return nats.sum(1)

    def relation_logits(self, known: Tensor, words: tuple[Tensor, ...], which: int) -> Tensor:
        """Logits (…, words) of drums, bass or shift, after the words before it."""
        tables = (self.drum_relation, self.bass_relation)
        for table, word in zip(tables[:which], words, strict=False):
            known = known + table(word)
        logits: Tensor = self.relation_heads[which](self.relation_block(known))
        return logits.float()

    def words(self, found: Relations) -> tuple[Tensor, Tensor, Tensor]:
        """Words of drums and bass, and of shifts: int64, of the relations' shape."""
        drums = self.word(found.drums, found.drum_source, DRUM_KINDS)
        bass = self.word(found.bass, found.bass_source, BASS_KINDS)
        return drums, bass, found.shift + MAX_SHIFT

    def word(self, kind: Tensor, source: Tensor, kinds: tuple[Relation, ...]) -> Tensor:
        """The word of a part's relation: 0 is new, then each kind with each source."""
        at = torch.full((len(Relation),), 0, device=kind.device)
        at[torch.tensor(kinds)] = torch.arange(len(kinds), device=kind.device)
        return torch.where(is_kind(kind, Relation.NEW), 0, 1 + at[kind] * self.config.bars + source)

    def kind(self, word: Tensor, kinds: tuple[Relation, ...]) -> tuple[Tensor, Tensor]:
        """Undo `_word`: kind and source."""
        table = torch.tensor([Relation.NEW, *kinds], device=word.device)
        row = (word - 1).div(self.config.bars, rounding_mode="floor") + 1
        return table[row], (word - 1).clamp(min=0) % self.config.bars

    def _by_bar(self, values: Tensor, order: Tensor) -> Tensor:
        """Values (B, bars) that stand in an order, by number of the bar."""
        return pick(values, order.argsort(1))

    def _earlier(self, order: Tensor) -> Tensor:
        """Which bars come before each one in order: bool (B, bars, bars)."""
        turn = order.argsort(1)
        at = torch.arange(self.config.bars, device=order.device)
        earlier: Tensor = turn[:, None] < at[:, None]
        return earlier

    def bar(self, tokens: Tokens, found: Relations) -> Bar:
        """What relations (B, n) leave to draw; tokens (B, bars, steps) hold the bars before."""
        c = self.config
        spb = c.steps_per_pulse
        drums = pick(tokens.drums, found.drum_source)
        bass = shifted(pick(tokens.bass, found.bass_source), found.shift)
        step = torch.arange(c.beats * spb, device=drums.device)
        shared = torch.zeros(len(Relation), len(step), dtype=torch.bool, device=drums.device)
        shared[[Relation.EXACT, Relation.TRANSPOSED]] = True
        shared[Relation.SAME_BEATS] = step < len(step) - spb
        shared[Relation.SAME_HALF] = step < len(step) // 2
        rhythm = is_kind(found.bass, Relation.SAME_RHYTHM)[..., None]
        held = continues(bass) & (bass > 0)
        new_drums = is_kind(found.drums, Relation.NEW)[..., None]
        new_bass = is_kind(found.bass, Relation.NEW)[..., None]
        return Bar(
            Tokens(
                drums.masked_fill(new_drums, c.drum_tokens),
                bass.masked_fill(new_bass, c.bass_tokens),
            ),
            shared[found.drums],
            shared[found.bass],
            Rhythm(rhythm & held, rhythm & (bass == 0), rhythm & (bass > 0) & ~held),
            is_kind(found.drums, Relation.NEAR),
            is_kind(found.bass, Relation.NEAR),
        )

    def _known(self, ordered: Tokens, found: Relations, bar: Bar, order: Tensor) -> Tensor:
        """What is known before each position: (B, bars, 1 + beats, D)."""
        about = self.about(found)
        content = self.content_of(ordered)  # (B, bars, beats, D)
        last = torch.cat([self.start.expand(len(order), 1, -1), content[:, :-1, -1]], 1)
        before = torch.cat([last[:, :, None], about[:, :, None], content[:, :, :-1]], 2)
        aligned = self.sources(bar.source) + about[:, :, None]
        x = before + self._places(order) + F.pad(aligned, (0, 0, 1, 0))
        x = self.dropout(rearrange(x, "b bar p d -> b (bar p) d"))
        for layer in self.layers:
            x = layer(x)
        known: Tensor = rearrange(self.norm(x), "b (bar p) d -> b bar p d", bar=self.config.bars)
        return known

    def about(self, found: Relations) -> Tensor:
        """Relations (B, n) as vectors (B, n, D)."""
        drums, bass, shift = self.words(found)
        shifts = self.shift(shift) * is_kind(found.bass, Relation.TRANSPOSED)[..., None]
        about: Tensor = self.drum_relation(drums) + self.bass_relation(bass) + shifts
        return about

    def _places(self, order: Tensor) -> Tensor:
        """(B, n, 1 + beats, D) of bars (B, n)."""
        positions = 1 + self.config.beats
        within = torch.arange(positions, device=order.device)
        places: Tensor = self.place(order[..., None] * positions + within)
        return places

    def embedded(self, tokens: Tokens) -> Tensor:
        """(B, n, steps) to (B, n, beats, slots, E)."""
        both = torch.stack([self.drums(tokens.drums), self.bass(tokens.bass)], 3)
        spb = self.config.steps_per_pulse
        return rearrange(both, "b n (beat step) part e -> b n beat (step part) e", step=spb)

    def content_of(self, tokens: Tokens) -> Tensor:
        """Beats of bars (B, n, steps) as vectors (B, n, beats, D)."""
        content: Tensor = self.content(self.embedded(tokens).flatten(3))
        return content

    def sources(self, tokens: Tokens) -> Tensor:
        """Beats of the bars (B, n, steps) that bars take up, as vectors (B, n, beats, D)."""
        sources: Tensor = self.source(self.embedded(tokens).flatten(3))
        return sources

    def _token_nats(self, known: Tensor, tokens: Tokens, bar: Bar) -> tuple[Tensor, Tensor]:
        spb = self.config.steps_per_pulse
        by_beat = "b bar (beat step) -> (b bar beat) step"

        def beats(steps: Tensor) -> Tensor:
            return rearrange(steps, by_beat, step=spb)

        drawn = ~beats(bar.copied_drums & bar.copied_bass).all(1)
        rows = drawn.nonzero()[:, 0]
        h = known.flatten(0, 2)[rows]
        embedded = self.embedded(tokens).flatten(0, 2)[rows]  # (N, slots, E)
        x = h[:, None] + self.slot + self._earlier_slots(embedded)
        sources = self.embedded(bar.source).flatten(0, 2)[rows]
        x = x + torch.stack(
            [part(sources[:, at::2]) for at, part in enumerate(self.aligned)], 2
        ).flatten(1, 2)
        found = []
        allowed = self._allowed_tokens(tokens, bar)
        loops = rows.div(known.shape[1] * known.shape[2], rounding_mode="floor")
        for part, (said, copied) in enumerate(
            ((tokens.drums, bar.copied_drums), (tokens.bass, bar.copied_bass))
        ):
            logits = self.token_logits(x[:, part::2], part)
            masks = rearrange(allowed[part], "b bar (beat step) v -> (b bar beat) step v", step=spb)
            logits = logits.masked_fill(~masks[rows], -torch.inf)
            if part:
                said = hold(said, F.pad(said[..., :-1], (1, 0)), self.config.bass_tokens)
            target = beats(said)[rows]
            nats = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            nats = (nats.view(target.shape) * ~beats(copied)[rows]).sum(1)
            found.append(torch.zeros(len(known), device=nats.device).index_add(0, loops, nats))
        return found[0], found[1]

    def _allowed_tokens(self, tokens: Tokens, bar: Bar) -> tuple[Tensor, Tensor]:
        """Which tokens may stand where: bool (B, bars, steps, tokens) of drums and bass."""
        c = self.config
        before = F.pad(tokens.bass[..., :-1], (1, 0))
        bass = allowed_bass(before, bar.rhythm, c.bass_tokens)
        drums = torch.ones(*bass.shape[:3], c.drum_tokens, dtype=torch.bool, device=bass.device)
        for allowed, few, said, source, cells in (
            (drums, bar.near_drums, tokens.drums, bar.source.drums, drum_cells),
            (bass, bar.near_bass, tokens.bass, bar.source.bass, bass_cells),
        ):
            changed = cells(said[few], source[few])  # (n, steps)
            left = NEAR_CELLS - (changed.cumsum(1) - changed)
            changes = allowed_changes(source[few], left, cells, before[few], allowed.shape[3])
            allowed[few] &= changes
        return drums, bass

    def _earlier_slots(self, embedded: Tensor) -> Tensor:
        """What each slot hears of the tokens before it: (N, slots, E) to (N, slots, D)."""
        slots = self.config.slots
        mask = torch.ones(slots, slots, device=embedded.device).triu(1)[:, None, :, None]
        weight = (self.before * mask).flatten(2).flatten(0, 1)  # (slots · E, slots · D)
        return (embedded.flatten(1) @ weight).view(len(embedded), slots, -1)

    def token_logits(self, x: Tensor, part: int) -> Tensor:
        """Vectors of slots (…, D) to logits of drums or bass, (…, tokens)."""
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.token_heads[part](self.token_norm(x))
        return logits.float()


def allowed_changes(
    source: Tensor,
    left: Tensor,
    cells: Callable[[Tensor, Tensor], Tensor],
    before: Tensor,
    n: int,
) -> Tensor:
    """Which of n choices differ from ``source`` (…) in no more cells than are left: bool (…, n).

    Choices are tokens; of the bass, the last one is the token ``before`` (…).
    """
    token = torch.arange(n, device=source.device).expand(*source.shape, -1)
    if cells is bass_cells:
        token = torch.where(token == n - 1, before[..., None], token)
    return cells(source[..., None], token) <= left[..., None]


def allowed_bass(before: Tensor, rhythm: Rhythm, n: int) -> Tensor:
    """What the bass may do after tokens ``before`` (…), by a rhythm: bool (…, n + 1).

    It sounds one of n tokens, or, the last column, goes on with the pitch before; so that pitch
    itself is not struck.
    """
    token = torch.arange(n + 1, device=before.device)
    sounds = (before > 0)[..., None]
    allowed = torch.where(token == n, sounds, ~sounds | (token != before[..., None]))
    allowed = torch.where(rhythm.held[..., None], token == n, allowed)
    allowed = torch.where(rhythm.rests[..., None], token == 0, allowed)
    return allowed & (~rhythm.struck[..., None] | ((token > 0) & (token < n)))


def hold(bass: Tensor, before: Tensor, n: int) -> Tensor:
    """What the bass does (…): one of n tokens, or n where it goes on with the pitch before."""
    return torch.where((bass == before) & (bass > 0), n, bass)
