"""Loops drawn from a loop transformer, bar by bar, in a form or like another loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from midiloop.common.sampling import distribution, draw
from midiloop.metrics.relations import NEAR_CELLS, Relation
from midiloop.models.bar_relations import (
    BASS_KINDS,
    DRUM_KINDS,
    MAX_SHIFT,
    Relations,
    Tokens,
    bass_cells,
    drum_cells,
    is_kind,
    pick,
    possible_shifts,
    relations,
    to_rolls,
    to_tokens,
)
from midiloop.models.loop_transformer import (
    SHIFT,
    Bar,
    Layer,
    LoopTransformer,
    Rhythm,
    allowed_bass,
    allowed_changes,
)


class Like(NamedTuple):
    """A roll (128, 93), of which bars of the drums and of the bass are kept, or varied.

    Attributes:
        keep, vary: bool (2, bars). Bars that are kept whole are drawn first, so that all others
            hear them; what is in neither is drawn anew.
    """

    roll: Tensor
    keep: Tensor
    vary: Tensor


class FormBar(NamedTuple):
    """What a form says of a bar.

    Attributes:
        source: the bar that it takes up; its own number where it is new.
        exact: whether it repeats its source; otherwise it varies it.
    """

    source: int
    exact: bool


class _Writing:
    """Loops that are being drawn, bar by bar.

    Attributes:
        tokens: (n, bars, steps), zeros in bars to come.
    """

    def __init__(
        self,
        model: LoopTransformer,
        uniforms: Tensor,
        temperature: float,
        top_p: float,
        like: Like | None,
    ) -> None:
        self.model, self.config = model, model.config
        self.uniforms, self.temperature, self.top_p = uniforms, temperature, top_p
        c, n, device = self.config, len(uniforms), uniforms.device
        shape = n, c.bars, c.steps // c.bars
        self.tokens = Tokens(
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
        )
        nothing = torch.zeros(2, c.bars, dtype=torch.bool)
        self.kept, self.varied = (nothing, nothing) if like is None else (like.keep, like.vary)
        self.order = (~self.kept.all(0)).to(torch.uint8).argsort(stable=True)
        self.original = self.tokens if like is None else to_tokens(like.roll[None], c)
        for part, said in enumerate(self.original if like is not None else ()):
            self.tokens[part][:, self.kept[part]] = said[:, self.kept[part]]
        # The first bar that is as each one, of drums and bass: what relations name.
        self.roots = torch.arange(c.bars, device=device).repeat(2, n, 1)
        self.n_bars = 0  # so far
        self.n_positions = 0
        room = n, c.heads, c.bars * (1 + c.beats), c.dim // c.heads
        self.past = [torch.zeros(room, device=device) for _ in range(2 * c.layers)]
        self.before = model.start.expand(n, -1)  # content of the position before

    def bar(self, at: int, wanted: FormBar | None) -> None:
        """Draw one bar."""
        model, c = self.model, self.config
        known = self._step(at, 0, self.before)
        sources = self._sources(at)
        found = self._relations(known, at, wanted, sources)
        self.n_bars += 1
        bar = model.bar(sources, found)
        for part in range(2):
            if not self.kept[part, at]:
                self.tokens[part][:, at] = bar.source[part][:, 0]
        copied = torch.stack([bar.copied_drums[:, 0], bar.copied_bass[:, 0]], 2)
        copied = copied | self.kept[:, at].to(copied.device)
        about = model.about(found)[:, 0]
        aligned = model.sources(bar.source)[:, 0] + about[:, None]
        self.before = about
        for beat in range(c.beats):
            known = self._step(at, 1 + beat, self.before + aligned[:, beat])
            steps = slice(beat * c.steps_per_pulse, (beat + 1) * c.steps_per_pulse)
            self._beat(at, steps, known, bar, copied[:, steps].flatten(1))
            said = Tokens(*(part[:, at : at + 1, steps] for part in self.tokens))
            embedded = torch.stack([model.drums(said.drums), model.bass(said.bass)], 3)
            self.before = model.content(embedded.flatten(1))

    def _step(self, bar: int, position: int, x: Tensor) -> Tensor:
        """One position of the backbone: (n, D) to the same."""
        place = bar * (1 + self.config.beats) + position
        x = (x + self.model.place.weight[place])[:, None]
        for layer, keys, values in zip(
            self.model.layers, self.past[::2], self.past[1::2], strict=True
        ):
            assert isinstance(layer, Layer)
            x = layer.step(x, keys, values, self.n_positions)
        self.n_positions += 1
        known: Tensor = self.model.norm(x[:, 0])
        return known

    def _sources(self, at: int) -> Tokens:
        """The bars that a bar may take up; one that is varied takes up its own original."""
        stand_in = self._stand_in(at)
        sources = []
        for part, tokens in enumerate(self.tokens):
            if self.varied[part, at]:
                tokens = tokens.clone()
                tokens[:, stand_in] = self.original[part][:, at]
            sources.append(tokens)
        return Tokens(*sources)

    def _stand_in(self, at: int) -> int:
        """The bar under whose number the original of a varied bar is heard: half a loop away."""
        return (at + max(1, self.config.bars // 2)) % self.config.bars

    def _relations(
        self, known: Tensor, at: int, wanted: FormBar | None, sources: Tokens
    ) -> Relations:
        """Relations (n, 1) of a bar."""
        model, n = self.model, len(known)
        labels = None
        if self.kept[:, at].any():
            every = relations(self.tokens, self.order.repeat(n, 1), self.config.steps_per_pulse)
            labels = Relations(*(field[:, at : at + 1] for field in every))
        found: list[Tensor] = []
        words: list[Tensor] = []
        for part, kinds in enumerate((DRUM_KINDS, BASS_KINDS)):
            if labels is not None and self.kept[part, at]:
                kind, source = labels[2 * part], labels[2 * part + 1]
            else:
                logits = model.relation_logits(known, tuple(words), part)
                allowed = self._allowed_words(part, wanted, at, found, sources)
                word = self._draw(logits.masked_fill(~allowed, -torch.inf), at, part)[:, None]
                kind, source = model.kind(word, kinds)
            if not self.varied[part, at]:
                is_exact = is_kind(kind, Relation.EXACT)
                self.roots[part, :, at] = torch.where(is_exact, source, at)[:, 0]
            words.append(model.word(kind, source, kinds)[:, 0])
            found += [kind, source]
        drums, drum_source, bass, bass_source = found
        if labels is not None and self.kept[1, at]:
            return Relations(drums, drum_source, bass, bass_source, labels.shift)
        is_moved = is_kind(bass, Relation.TRANSPOSED)
        shift = torch.zeros_like(bass)
        if is_moved.any():
            possible = pick(self._shifts(sources), bass_source)[:, 0] | ~is_moved
            logits = model.relation_logits(known, tuple(words), SHIFT)
            drawn = self._draw(logits.masked_fill(~possible, -torch.inf), at, SHIFT)[:, None]
            shift = torch.where(is_moved, drawn - MAX_SHIFT, 0)
        return Relations(drums, drum_source, bass, bass_source, shift)

    def _allowed_words(
        self,
        part: int,
        wanted: FormBar | None,
        at: int,
        drums: list[Tensor],
        sources: Tokens,
    ) -> Tensor:
        """Which words a part's relation may be: bool (n, words)."""
        kinds = (DRUM_KINDS, BASS_KINDS)[part]
        n, n_bars, device = len(self.uniforms), self.config.bars, self.uniforms.device
        bar = torch.arange(n_bars, device=device)
        if self.varied[part, at]:
            wanted = FormBar(self._stand_in(at), exact=False)
            bars = (bar == wanted.source).expand(n, -1)
        elif wanted is not None and wanted.source != at:
            bars = bar == self.roots[part, :, wanted.source, None]
        else:  # of equal bars the first
            bars = (self.roots[part] == bar) & torch.isin(bar, self.order[: self.n_bars])
        may_be_new = wanted is None or wanted.source == at
        allowed = bars[:, None].repeat(1, len(kinds), 1)
        if part:
            allowed[:, kinds.index(Relation.TRANSPOSED)] &= self._shifts(sources).any(2)
        exact = kinds.index(Relation.EXACT)
        if wanted is not None and wanted.exact and not may_be_new:
            allowed[:, [row for row in range(len(kinds)) if row != exact]] = False
        elif self.varied[part, at] and not self.varied[:, at].all():
            allowed[:, exact] = False
        elif wanted is not None and part:  # of a bar that is another, one part may be the same
            allowed[:, exact] &= ~is_kind(drums[0], Relation.EXACT)
        return F.pad(allowed.flatten(1), (1, 0), value=may_be_new)

    def _shifts(self, sources: Tokens) -> Tensor:
        return possible_shifts(sources.bass, self.config.bass_tokens)

    def _beat(self, at: int, steps: slice, known: Tensor, bar: Bar, copied: Tensor) -> None:
        """Draw the tokens of a beat that are not copied (n, slots), in place."""
        model, c = self.model, self.config
        rows = (~copied.all(1)).nonzero()[:, 0]
        if not len(rows):
            return
        rows = distribution(rows, into=len(known))
        heard = known[rows, None] + model.slot  # (m, slots, D)
        for slot in range(c.slots):
            step, part = steps.start + slot // 2, slot % 2
            said = self.tokens[part][:, at, step]
            here = (~copied[rows, slot]).nonzero()[:, 0]
            if len(here):
                here = distribution(here, into=len(rows))
                those = rows[here]
                table = (model.drums, model.bass)[part]
                source = table(bar.source[part][those, 0, step])
                x = heard[here, slot] + model.aligned[part](source)
                logits = model.token_logits(x, part)
                allowed = self._allowed_tokens(those, at, step, part, bar)
                logits = logits.masked_fill(~allowed, -torch.inf)
                numbers = self._uniforms(at, 3 + steps.start * 2 + slot)[those]
                top_p = min(self.top_p, c.bass_top_p) if part else self.top_p
                drawn = draw(logits, numbers, self.temperature, top_p)
                if part and step:
                    drawn = torch.where(
                        drawn == c.bass_tokens, self.tokens.bass[those, at, step - 1], drawn
                    )
                said[those] = drawn
            if slot < c.slots - 1:
                embedded = (model.drums, model.bass)[part](said[rows])
                later = model.before[slot, :, slot + 1 :].flatten(1)  # (E, slots · D)
                heard[:, slot + 1 :] += (embedded @ later).view(len(rows), -1, c.dim)

    def _allowed_tokens(self, rows: Tensor, at: int, step: int, part: int, bar: Bar) -> Tensor:
        """Which tokens of a part may stand at a step of rows: bool (m, tokens)."""
        c = self.config
        said, source = self.tokens[part][rows, at], bar.source[part][rows, 0]  # (m, steps)
        before = said[:, step - 1] if step else torch.zeros_like(rows)
        if part:
            rhythm = Rhythm(*(mask[rows, 0, step] for mask in bar.rhythm))
            allowed = allowed_bass(before, rhythm, c.bass_tokens)
        else:
            allowed = torch.ones(len(rows), c.drum_tokens, dtype=torch.bool, device=rows.device)
        near = (bar.near_drums, bar.near_bass)[part][rows, 0]
        if near.any():
            cells = (drum_cells, bass_cells)[part]
            left = NEAR_CELLS - cells(said[near, :step], source[near, :step]).sum(1)
            n = allowed.shape[1]
            allowed[near] &= allowed_changes(source[near, step], left, cells, before[near], n)
        return allowed

    def _uniforms(self, bar: int, number: int) -> Tensor:
        return self.uniforms[:, bar * self.config.draws_per_bar + number]

    def _draw(self, logits: Tensor, bar: int, number: int) -> Tensor:
        return draw(logits, self._uniforms(bar, number), self.temperature, self.top_p)


@torch.no_grad()
def sample(
    model: LoopTransformer,
    uniforms: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    form: Sequence[FormBar] | None = None,
    like: Like | None = None,
) -> Tensor:
    """Draw loops: rolls bool (n, 128, 93).

    Args:
        uniforms: float64 (n, draws) in [0, 1): one for each token, so that a loop does not
            depend on those that are drawn beside it.
        temperature, top_p: see `sampling.draw`; for the bass see also `bass_top_p` of the config.
        form: what each bar is; without it the form is drawn.
        like: a roll of which parts are kept or varied.
    """
    writing = _Writing(model, uniforms, temperature, top_p, like)
    for at in writing.order.tolist():
        writing.bar(at, None if form is None else form[at])
    return to_rolls(writing.tokens, model.config)
