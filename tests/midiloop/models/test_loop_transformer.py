"""The loop transformer: its steps are those of the whole, and what it is asked for is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from midiloop.common.sampling import draw, nucleus
from midiloop.errors import LoopError
from midiloop.generation.form import parse_form
from midiloop.grid import LOOP, Grid, meter_from_text
from midiloop.metrics.relations import Relation
from midiloop.models import loop_sampling
from midiloop.models.bar_relations import Relations, relations, to_tokens
from midiloop.models.loop_sampling import Like, sample
from midiloop.models.loop_transformer import LoopTransformer, LoopTransformerConfig

TINY = LoopTransformerConfig(
    bars=4, drums=3, lowest_pitch=30, highest_pitch=33, dim=16, layers=2, heads=2, token_dim=8,
    token_layers=1, dropout=0.0, bass_top_p=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> LoopTransformer:
    return wild(TINY)


def wild(config: LoopTransformerConfig) -> LoopTransformer:
    torch.manual_seed(0)
    made = LoopTransformer(config).eval()
    for parameter in made.parameters():  # further from even chances than fresh weights are
        parameter.data *= 3
    return made


def uniforms(model: LoopTransformer, n: int, seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.rand(n, model.draws, generator=drawn, dtype=torch.float64)


def by_bars(rolls: Tensor) -> Tensor:
    return rolls.reshape(len(rolls), TINY.bars, -1)


def test_sizes() -> None:
    model = LoopTransformer(LoopTransformerConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_630_825
    assert model.draws == LOOP.bars * (3 + 2 * LOOP.steps_per_bar)


def test_a_position_is_a_beat_of_the_meter() -> None:
    for text, spb, beats, slots in (("3/4", 6, 3, 12), ("6/8", 4, 2, 12), ("7/8", 2, 7, 2)):
        grid = Grid(bars=2, meter=meter_from_text(text), steps_per_beat=spb)
        config = TINY.on(grid)
        assert (config.beats, config.slots, config.steps) == (beats, slots, grid.steps)
        assert LoopTransformer(config).draws == 2 * (3 + 2 * grid.steps_per_bar)


@pytest.mark.parametrize(("numerator", "denominator"), [(7, 12), (6, 3), (5, 32)])
def test_a_meter_that_cannot_be_is_no_config(numerator: int, denominator: int) -> None:
    with pytest.raises(LoopError):
        replace(TINY, numerator=numerator, denominator=denominator)


def test_a_loop_does_not_depend_on_those_beside_it(model: LoopTransformer) -> None:
    numbers = uniforms(model, 40)
    whole = sample(model, numbers)
    assert whole.shape == (40, TINY.steps, TINY.columns)
    assert torch.equal(sample(model, numbers[13:33]), whole[13:33])


@pytest.mark.parametrize(
    "of",
    [
        {},
        {"numerator": 3, "steps_per_beat": 6},
        {"numerator": 6, "denominator": 8, "bars": 2},
        {"numerator": 7, "denominator": 8, "steps_per_beat": 2, "bars": 3},
        {"bars": 1},
    ],
    ids=str,
)
def test_surprise_of_a_loop_is_that_of_its_draws(
    of: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps equal the whole: what `errors` says of a loop is the sum over what was drawn for it."""
    config = replace(TINY, **of)
    model = wild(config)
    nats: list[float] = []
    said: list[Relations] = []

    def noted(logits: Tensor, *more: Any) -> Tensor:
        found = draw(logits, *more)
        nats.append(-float(logits.log_softmax(1)[0, found[0]]))
        return found

    def read(self: Any, *more: Any) -> Relations:
        said.append(described(self, *more))
        return said[-1]

    described = loop_sampling._Writing._relations
    monkeypatch.setattr(loop_sampling, "draw", noted)
    monkeypatch.setattr(loop_sampling._Writing, "_relations", read)
    compared = 0
    for seed in range(30):
        nats.clear()
        said.clear()
        roll = sample(model, uniforms(model, 1, seed))
        order = torch.arange(config.bars)[None]
        labels = relations(to_tokens(roll, config), order, config.steps_per_pulse)
        drawn = [torch.cat(field, 1) for field in zip(*said, strict=True)]
        # What is drawn as new may happen to be like an earlier bar, and then has another name.
        if all(map(torch.equal, labels, drawn)):
            assert sum(nats) == pytest.approx(float(model.errors(roll)[0]), rel=1e-5)
            compared += 1
    assert compared >= 5


@pytest.mark.parametrize(("asked", "share"), [(1.0, 0.6), (0.5, 0.5)])
def test_the_bass_is_drawn_from_its_nucleus(
    model: LoopTransformer, monkeypatch: pytest.MonkeyPatch, asked: float, share: float
) -> None:
    smallest: dict[bool, list[float]] = {True: [], False: []}

    def noted(logits: Tensor, *more: Any) -> Tensor:
        found = draw(logits, *more)
        is_bass = logits.shape[1] == TINY.bass_tokens + 1
        left = nucleus(logits.softmax(1), share if is_bass else asked)
        smallest[is_bass].append(float(left.gather(1, found[:, None]).min()))
        return found

    monkeypatch.setattr(loop_sampling, "draw", noted)
    monkeypatch.setattr(model, "config", replace(TINY, bass_top_p=0.6))
    sample(model, uniforms(model, 40), top_p=asked)
    assert min(smallest[True]) > 0
    assert min(smallest[False]) > 0
    monkeypatch.undo()
    monkeypatch.setattr(loop_sampling, "draw", noted)
    sample(model, uniforms(model, 40))
    assert min(smallest[True]) == 0, "what lies outside of it is drawn without it"


@pytest.mark.parametrize(
    ("form", "sources"), [("ABAB", (0, 1, 0, 1)), ("aaaa", (0, 0, 0, 0)), ("ABCA", (0, 1, 2, 0))]
)
def test_a_form_is_kept(model: LoopTransformer, form: str, sources: tuple[int, ...]) -> None:
    bars = by_bars(sample(model, uniforms(model, 30), form=parse_form(form, TINY.bars)))
    for bar, source in enumerate(sources):
        assert torch.equal(bars[:, bar], bars[:, source])
        if source == bar:  # a new letter is another bar, but for what chance draws alike
            differs = (bars[:, :bar] != bars[:, bar : bar + 1]).any(2).all(1)
            assert differs.float().mean() > 0.8


def test_a_prime_is_a_variation(model: LoopTransformer) -> None:
    form = parse_form("ABA'A'", TINY.bars)
    rolls = sample(model, uniforms(model, 60), form=form)
    order = torch.arange(TINY.bars).repeat(60, 1)
    found = relations(to_tokens(rolls, TINY), order, TINY.steps_per_pulse)
    bars = by_bars(rolls)
    assert torch.equal(bars[:, 2], bars[:, 3])
    assert (bars[:, 2] != bars[:, 0]).any(1).float().mean() > 0.8
    assert (found.drums[:, 2] != int(Relation.NEW)).all()
    assert (found.bass[:, 2] != int(Relation.NEW)).all()


def masks(keep: dict[int, list[int]], vary: dict[int, list[int]]) -> tuple[Tensor, Tensor]:
    made = torch.zeros(2, 2, TINY.bars, dtype=torch.bool)
    for mask, named in zip(made, (keep, vary), strict=True):
        for part, bars in named.items():
            mask[part, bars] = True
    return made[0], made[1]


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_that_is_kept_stays(model: LoopTransformer, part: int) -> None:
    like = sample(model, uniforms(model, 1, seed=7))[0]
    rolls = sample(model, uniforms(model, 30), like=Like(like, *masks({part: [0, 1, 2, 3]}, {})))
    columns = [slice(TINY.drums), slice(TINY.drums, None)]
    assert (rolls[..., columns[part]] == like[..., columns[part]]).all()
    assert len(np.unique(rolls[..., columns[1 - part]].flatten(1).numpy(), axis=0)) > 10


@pytest.mark.parametrize("kept", [[0, 1], [2, 3], [3], [0, 2]])
def test_bars_that_are_kept_stay(model: LoopTransformer, kept: list[int]) -> None:
    like = sample(model, uniforms(model, 1, seed=7))[0]
    mask = masks({0: kept, 1: kept}, {})
    bars = by_bars(sample(model, uniforms(model, 30), like=Like(like, *mask)))
    assert (bars[:, kept] == by_bars(like[None])[:, kept]).all()
    assert len(np.unique(bars.flatten(1).numpy(), axis=0)) > 10


@pytest.mark.parametrize("varied", [[0], [2, 3], [0, 1, 2, 3]])
def test_bars_that_are_varied_take_up_their_originals(
    model: LoopTransformer, varied: list[int]
) -> None:
    like = sample(model, uniforms(model, 1, seed=7))[0]
    kept = [bar for bar in range(TINY.bars) if bar not in varied]
    mask = masks({0: kept, 1: kept}, {0: varied, 1: varied})
    rolls = sample(model, uniforms(model, 40), like=Like(like, *mask))
    bars, original = by_bars(rolls), by_bars(like[None])[0]
    assert (bars[:, kept] == original[kept]).all()
    for bar in varied:
        assert (bars[:, bar] != original[bar]).any(1).float().mean() > 0.8
        # The original beside its variation: a relation holds between them.
        pairs = torch.stack([original[bar].expand(40, -1), bars[:, bar]], 1)
        two = replace(TINY, bars=2)
        tokens = to_tokens(pairs.view(40, two.steps, two.columns), two)
        found = relations(tokens, torch.arange(2).repeat(40, 1), TINY.steps_per_pulse)
        assert (found.drums[:, 1] != int(Relation.NEW)).all()
        assert (found.bass[:, 1] != int(Relation.NEW)).all()


def test_training_lowers_the_surprise() -> None:
    torch.manual_seed(1)
    model = LoopTransformer(TINY)
    rolls = sample(model, uniforms(model, 32))
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    first = model.errors(rolls).mean()
    for _ in range(60):
        adam.zero_grad()
        torch.autograd.backward(model.loss(rolls, 0).total)
        adam.step()
    assert model.errors(rolls).mean() < 0.7 * first
