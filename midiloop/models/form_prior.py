"""A prior that knows the form: which bar repeats which, and what the bars are that do not.

Its codec's span is a bar (see `vq_vae`), so equal bars have equal codes. A loop is then a sentence:
for each bar of the drums and of the bass a form token, the bar that it repeats or itself, and after
a bar that is new its codes. A causal transformer (Vaswani et al. 2017, arXiv:1706.03762, with norms
before the layers) reads such sentences. What is repeated is never drawn twice, so it is repeated
exactly, and a form that a user writes is one more thing that is known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from midiloop.common.configs import Codebooks, CodebookSize, Depth, Heads, Range, Share, Width
from midiloop.common.sampling import MIN_ROWS, distribution, draw
from midiloop.grid import LOOP
from midiloop.models.layers import CodeModel, Loss

UNKNOWN = -1
MORE_PLACES = (
    48  # that keys and values get room for at a time: read when dense, they are read faster
)
WORTH_KEEPING = 0.9  # share of loops that go on, below which the others are put aside


@dataclass(frozen=True)
class FormPriorConfig:
    """Sizes of the transformer.

    Attributes:
        codebook_size: K, codes in each stream's dictionary.
        streams: S, rows of codes.
        bar_codes: codes of a bar in one stream.
        dim, layers, heads: of the transformer; its inner layers are four times as wide.
        dropout: of embeddings and of what the inner layers add.
        shuffled: share of the training loops whose segments come in random order, so that any bars
            can be drawn after any others.
        bars: of a loop.
    """

    codebook_size: CodebookSize = 512
    streams: Codebooks = 2
    bar_codes: Annotated[int, Range(1, 256)] = 8
    dim: Width = 160
    layers: Depth = 4
    heads: Heads = 5
    dropout: Share = 0.15
    shuffled: Share = 0.5
    bars: Annotated[int, Range(1, 64)] = LOOP.bars

    @property
    def code_steps(self) -> int:
        """T: codes of a loop in one stream."""
        return self.bars * self.bar_codes

    @property
    def segments(self) -> int:
        """Bars of all streams."""
        return self.streams * self.bars

    @property
    def places(self) -> int:
        """Where a token may stand: a form token and codes in each segment."""
        return self.segments * (self.bar_codes + 1)

    @property
    def words(self) -> int:
        """Values of a token: form tokens, then the codes of each stream."""
        return self.bars + self.streams * self.codebook_size


class Sentence(NamedTuple):
    """Tokens of loops, and where each stands: int64 (B, L), padded at the end.

    Attributes:
        words: value of each token.
        places: segment · (bar_codes + 1) + slot; slot 0 is the form token.
        valid: bool, False on padding.
    """

    words: Tensor
    places: Tensor
    valid: Tensor


class Layer(nn.Module):
    """Attention to what came before, then two linear layers: (B, L, D) to the same."""

    def __init__(self, config: FormPriorConfig) -> None:
        super().__init__()
        d = config.dim
        self.heads = config.heads
        self.norm_attention, self.norm_inner = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.mix = nn.Linear(d, d)
        self.inner = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """All tokens at once."""
        q, k, v = self._heads(x)  # (B, H, L, D / H)
        # Written out, because PyTorch's fused attention takes three times as long on a CPU to go
        # back through sentences as short as these.
        length = x.shape[1]
        later = torch.full((length, length), -torch.inf, device=x.device, dtype=q.dtype).triu(1)
        scores = (q * q.shape[3] ** -0.5) @ k.mT + later  # (B, H, L, L)
        return self._add(x, scores.softmax(3).to(v.dtype) @ v)

    def step(self, x: Tensor, keys: Tensor, values: Tensor, at: int) -> Tensor:
        """One token (B, 1, D) more, whose key and value those (B, H, L, D / H) before take up."""
        q, k, v = self._heads(x)
        keys[:, :, at], values[:, :, at] = k[:, :, 0], v[:, :, 0]
        scores = (q * q.shape[3] ** -0.5) @ keys[:, :, : at + 1].mT  # (B, H, 1, L)
        return self._add(x, scores.softmax(3) @ values[:, :, : at + 1])

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(self.norm_attention(x))
        q, k, v = rearrange(qkv, "b l (n h d) -> n b h l d", n=3, h=self.heads)
        return q, k, v

    def _add(self, x: Tensor, heard: Tensor) -> Tensor:
        x = x + self.mix(rearrange(heard, "b h l d -> b l (h d)"))
        added: Tensor = x + self.dropout(self.inner(self.norm_inner(x)))
        return added


class FormPrior(CodeModel):
    """Codes int64 (B, S, T) as sentences of form and codes."""

    def __init__(self, config: FormPriorConfig) -> None:
        super().__init__()
        self.config: FormPriorConfig = config
        c, d = config, config.dim
        self.word = nn.Embedding(c.words + 1, d)  # the last one begins a sentence
        self.place = nn.Embedding(c.places + 1, d)  # of a token; the last one is before the first
        self.target = nn.Embedding(c.places, d)  # of the token to come
        self.dropout = nn.Dropout(c.dropout)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.LayerNorm(d)
        if d % c.heads:
            raise ValueError(f"{d} channels are not {c.heads} heads")
        sizes = [c.bars] + [c.codebook_size] * c.streams
        self.heads = nn.ModuleList(nn.Linear(d, size) for size in sizes)  # one for a sort of words
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            for last in (layer.mix, layer.inner[2]):  # what all layers add up
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=0.02 / (2 * c.layers) ** 0.5)

    @property
    def draws(self) -> int:
        """Random numbers that `sample` takes for a loop: one for each place of a sentence."""
        return self.config.places

    def forward(self, sentence: Sentence) -> Tensor:
        """What is known before each token, and where it stands: (B, L, D)."""
        before = F.pad(sentence.words[:, :-1], (1, 0), value=self.config.words)
        places = F.pad(sentence.places[:, :-1], (1, 0), value=self.place.num_embeddings - 1)
        x = self.dropout(self.word(before) + self.place(places) + self.target(sentence.places))
        for layer in self.layers:
            x = layer(x)
        known: Tensor = self.norm(x)
        return known

    def loss(self, codes: Tensor, epoch: float) -> Loss:
        """Cross-entropy in nats a loop, mean over the batch."""
        del epoch
        order = torch.arange(self.config.segments, device=codes.device).repeat(len(codes), 1)
        chance = torch.rand(len(codes), self.config.segments, device=codes.device)
        n_shuffled = round(self.config.shuffled * len(codes))
        order[:n_shuffled] = chance[:n_shuffled].argsort(1)
        nats = codes.new_zeros(1 + self.config.streams, dtype=torch.float32)  # by sort of word
        n_right, n_words = codes.new_zeros(()), 0
        for sentence in self._by_length(codes, order):
            for sort, (surprise, right, _) in enumerate(self._surprises(sentence)):
                nats = nats + F.pad(surprise.sum()[None], (sort, self.config.streams - sort))
                n_right, n_words = n_right + right.sum(), n_words + len(right)
        nats = nats / len(codes)
        # Per bar and code of it, as if nothing repeated: the scale of the other models' losses.
        total = nats.sum() / (self.config.segments * self.config.bar_codes)
        terms = {"nats": nats.detach().sum(), "form_nats": nats.detach()[0]}
        return Loss(total, {**terms, "accuracy": n_right / n_words})

    @torch.no_grad()
    def errors(self, batch: Tensor) -> Tensor:
        """Surprise in nats of each loop's codes (B, S, T), (B,), its segments in order."""
        order = torch.arange(self.config.segments, device=batch.device).repeat(len(batch), 1)
        nats = torch.zeros(len(batch), device=batch.device)
        for surprise, _, rows in self._surprises(self.sentence(batch, order)):
            nats.index_add_(0, rows, surprise)
        return nats

    def _surprises(self, sentence: Sentence) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each sort of word: nats, whether it was the likeliest, and the row, (n,) each."""
        known = self(sentence)
        sorts = self._sort(sentence.places)
        for sort, head in enumerate(self.heads):
            here = (sorts == sort) & sentence.valid
            logits = head(known[here]).float()  # (n, words of this sort)
            targets = sentence.words[here] - self._first_word(sort)
            surprise = F.cross_entropy(logits, targets, reduction="none")
            yield surprise, logits.argmax(1) == targets, here.nonzero()[:, 0]

    def _sort(self, places: Tensor) -> Tensor:
        """Which sort of word stands at a place: 0 a form token, s + 1 a code of stream s."""
        segment, slot = places // (self.config.bar_codes + 1), places % (self.config.bar_codes + 1)
        return torch.where(slot == 0, 0, segment % self.config.streams + 1)

    def _first_word(self, sort: int) -> int:
        return 0 if sort == 0 else self.config.bars + (sort - 1) * self.config.codebook_size

    def sentence(self, codes: Tensor, order: Tensor) -> Sentence:
        """Codes (B, S, T) as tokens; ``order`` (B, S · 8) is that of the segments (bar, stream)."""
        c = self.config
        bars = self._bars(codes)  # (B, segments, bar_codes)
        form = self.form(codes, order)
        segment = torch.arange(c.segments, device=codes.device)
        offset = c.bars + segment % c.streams * c.codebook_size
        words = torch.cat([form[..., None], bars + offset[:, None]], 2)
        places = torch.arange(words[0].numel(), device=codes.device).view(words[0].shape)
        is_new = (form == segment // c.streams)[..., None].expand(-1, -1, c.bar_codes)
        valid = torch.cat([torch.ones_like(form, dtype=torch.bool)[..., None], is_new], 2)
        pick = order[..., None].expand(-1, -1, c.bar_codes + 1)
        words, valid = words.gather(1, pick).flatten(1), valid.gather(1, pick).flatten(1)
        places = places[order].flatten(1)
        # Valid words go to the front, in their order.
        order_ = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
        order_ = order_[:, : int(valid.sum(1).max())]
        return Sentence(words.gather(1, order_), places.gather(1, order_), valid.gather(1, order_))

    def form(self, codes: Tensor, order: Tensor) -> Tensor:
        """For each segment the bar that it repeats, first in ``order``: int64 (B, segments)."""
        c = self.config
        bars = rearrange(self._bars(codes), "b (bar s) k -> b s bar k", s=c.streams)
        same = (bars[:, :, :, None] == bars[:, :, None]).all(4)  # (B, S, 8, 8)
        turn = rearrange(order.argsort(1), "b (bar s) -> b s bar", s=c.streams)
        first = torch.where(same, turn[:, :, None], c.segments).argmin(3)
        return rearrange(first, "b s bar -> b (bar s)")

    @torch.no_grad()
    def sample(
        self,
        uniforms: Tensor,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        known: Tensor | None = None,
        form: Tensor | None = None,
        order: Tensor | None = None,
    ) -> Tensor:
        """Draw loops: codes int64 (n, S, T).

        Args:
            uniforms: float64 (n, places) in [0, 1), one for each place, so that
                a loop does not depend on those that are drawn beside it.
            temperature, top_p: see `sampling.draw`.
            known: int64 (n, S, T), `UNKNOWN` in the bars to be drawn.
            form: int64 (segments,), the bar that each shall repeat, `UNKNOWN` where it is drawn.
            order: int64 (segments,), in which they are drawn; what is known should come first.
        """
        c, n, device = self.config, len(uniforms), uniforms.device
        if order is None:
            order = torch.arange(c.segments, device=device)
        state = _Writing(self, n, order, known, form, device)
        empty = torch.empty(n, c.heads, 0, c.dim // c.heads, device=device)
        past = [empty] * (2 * c.layers)  # keys, values, keys, … (n, H, L, D / H)
        words = torch.full((n,), c.words, device=device)
        places = torch.full((n,), c.places, device=device)
        rows = torch.arange(n, device=device)  # of the loops that go on
        for at in range(c.places):
            going = state.going(rows)
            n_going = int(going.sum())
            if not n_going:
                break
            n_kept = max(n_going, min(MIN_ROWS, n))
            if n_kept < WORTH_KEEPING * len(rows):
                rows, words, places, *past = _first([rows, words, places, *past], going, n_kept)
            if at == past[0].shape[2]:
                past = [_roomier(heard) for heard in past]
            target = state.places(rows)
            x = (self.word(words) + self.place(places) + self.target(target))[:, None]
            for layer, keys, values in zip(self.layers, past[::2], past[1::2], strict=True):
                assert isinstance(layer, Layer)
                x = layer.step(x, keys, values, at)
            chances = uniforms[rows, target]
            words = self._next(self.norm(x[:, 0]), target, state, rows, chances, temperature, top_p)
            state.write(rows, words)
            places = target
        return state.codes()

    def _next(
        self,
        known: Tensor,
        target: Tensor,
        state: _Writing,
        rows: Tensor,
        chances: Tensor,
        temperature: float,
        top_p: float,
    ) -> Tensor:
        """The word that each of ``rows`` says at its place ``target``: int64 (n,)."""
        words = torch.empty_like(target)
        sorts = self._sort(target)
        for sort, head in enumerate(self.heads):
            here = (sorts == sort).nonzero()[:, 0]
            if not len(here):
                continue
            at = distribution(here, into=len(rows))
            logits = head(known[at])
            if sort == 0:
                logits = logits.masked_fill(~state.possible_forms(rows[at]), -torch.inf)
            drawn = draw(logits, chances[at], temperature, top_p)
            words[here] = drawn[: len(here)] + self._first_word(sort)
        given = state.given(rows)
        return torch.where(given == UNKNOWN, words, given)

    def _by_length(self, codes: Tensor, order: Tensor) -> Iterator[Sentence]:
        """Sentences of a batch, the short apart from the long, so that there is little padding."""
        bar = torch.arange(self.config.segments, device=codes.device) // self.config.streams
        n_new = self.form(codes, order) == bar
        for rows in n_new.sum(1).argsort().tensor_split(min(4, len(codes))):
            yield self.sentence(codes[rows], order[rows])

    def _bars(self, codes: Tensor) -> Tensor:
        """(B, S, T) to (B, segments, bar_codes), bar by bar, stream by stream."""
        return rearrange(codes, "b s (bar k) -> b (bar s) k", bar=self.config.bars)


def _first(tensors: Sequence[Tensor], going: Tensor, n_kept: int) -> list[Tensor]:
    """The first ``n_kept`` rows of tensors (n, …), whose ``going`` rows, bool (n,), move there."""
    moved = going[n_kept:].nonzero()[:, 0] + n_kept
    gaps = (~going[:n_kept]).nonzero()[: len(moved), 0]
    for tensor in tensors:
        tensor[gaps] = tensor[moved]
    return [tensor[:n_kept] for tensor in tensors]


def _roomier(heard: Tensor) -> Tensor:
    """Keys or values (n, H, L, D / H) with room for `MORE_PLACES`."""
    n, heads, length, width = heard.shape
    room = heard.new_empty(n, heads, length + MORE_PLACES, width)
    room[:, :, :length] = heard
    return room


class _Writing:
    """Loops that are being drawn: where each is, and what the grammar lets it say next.

    ``rows`` (n,) says everywhere which loops are meant.
    """

    def __init__(
        self,
        prior: FormPrior,
        n: int,
        order: Tensor,
        known: Tensor | None,
        form: Tensor | None,
        device: torch.device,
    ) -> None:
        self.c = c = prior.config
        self.order = order
        self.turn = torch.zeros(n, dtype=torch.int64, device=device)  # in the order of segments
        self.slot = torch.zeros_like(self.turn)
        self.bars = torch.full((n, c.segments, c.bar_codes), UNKNOWN, device=device)
        self.first = torch.zeros(n, c.streams, c.bars, dtype=torch.bool, device=device)
        self.forms = torch.full((n, c.segments), UNKNOWN, device=device)
        if form is not None:
            self.forms[:] = form
        self.known = self.bars.clone()
        if known is not None:
            self.known = rearrange(known, "b s (bar k) -> b (bar s) k", bar=c.bars)
            whole = (self.known != UNKNOWN).all(2)
            forms = prior.form(known, order.repeat(n, 1))
            self.forms = torch.where(whole, forms, self.forms)

    def going(self, rows: Tensor) -> Tensor:
        """Whether a loop is not yet done, bool (n,)."""
        return self.turn[rows] < self.c.segments

    def places(self, rows: Tensor) -> Tensor:
        """Place of the next token, (n,); of a loop that is done, its last form token again."""
        return self._segment(rows) * (self.c.bar_codes + 1) + self.slot[rows]

    def _segment(self, rows: Tensor) -> Tensor:
        segment: Tensor = self.order[self.turn[rows].clamp(max=self.c.segments - 1)]
        return segment

    def possible_forms(self, rows: Tensor) -> Tensor:
        """Bars that the next one may repeat, bool (n, 8): those that were said, or itself."""
        segment = self._segment(rows)
        possible = self.first[rows, segment % self.c.streams]
        possible[torch.arange(len(rows)), segment // self.c.streams] = True
        return possible

    def given(self, rows: Tensor) -> Tensor:
        """The next word where it is known beforehand, else `UNKNOWN`: (n,)."""
        c, segment, slot = self.c, self._segment(rows), self.slot[rows]
        code = self.known[rows, segment, (slot - 1).clamp(min=0)]
        word = code + c.bars + segment % c.streams * c.codebook_size
        code_word = torch.where(code == UNKNOWN, UNKNOWN, word)
        return torch.where(slot == 0, self.forms[rows, segment], code_word)

    def write(self, rows: Tensor, words: Tensor) -> None:
        """Take up the next word of each loop, (n,)."""
        going = self.going(rows)
        rows, words = rows[going], words[going]
        c, segment, slot = self.c, self._segment(rows), self.slot[rows]
        bar, stream = segment // c.streams, segment % c.streams
        is_new = (slot == 0) & (words == bar)
        repeats = (slot == 0) & ~is_new
        is_code = slot > 0
        self.first[rows[is_new], stream[is_new], bar[is_new]] = True
        source = (words * c.streams + stream)[repeats]
        self.bars[rows[repeats], segment[repeats]] = self.bars[rows[repeats], source]
        code = words - c.bars - stream * c.codebook_size
        self.bars[rows[is_code], segment[is_code], slot[is_code] - 1] = code[is_code]
        over = repeats | (slot == c.bar_codes)
        self.turn[rows] += over.long()
        self.slot[rows] = torch.where(over, 0, slot + 1)

    def codes(self) -> Tensor:
        """What was written: int64 (n, S, T)."""
        return rearrange(self.bars, "b (bar s) k -> b s (bar k)", s=self.c.streams)
