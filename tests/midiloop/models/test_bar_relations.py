"""How bars take up earlier ones: by hand, and by laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from handmade import GRIDS
from midiloop.grid import LOOP, Grid, TimeSignature
from midiloop.metrics.relations import Relation
from midiloop.metrics.relations import of_part as measure
from midiloop.models.bar_relations import (
    MAX_SHIFT,
    Tokens,
    pick,
    relations,
    shifted,
    to_rolls,
    to_tokens,
)
from midiloop.models.layers import RollConfig

SPB = LOOP.steps_per_pulse
NATURAL = torch.arange(LOOP.bars)[None]


def random_tokens(n: int, seed: int = 0, grid: Grid = LOOP) -> Tokens:
    drawn = torch.Generator().manual_seed(seed)
    shape = n, grid.bars, grid.steps_per_bar
    drums = torch.randint(1 << LOOP.n_drums, shape, generator=drawn)
    bass = torch.randint(30, 50, shape, generator=drawn)
    return Tokens(drums, bass * (torch.rand(shape, generator=drawn) < 0.7))


def test_tokens_and_rolls_are_two_forms_of_one_thing() -> None:
    tokens = random_tokens(5)
    rolls = to_rolls(tokens, RollConfig())
    assert rolls.shape == (5, LOOP.steps, LOOP.columns)
    again = to_tokens(rolls, RollConfig())
    assert torch.equal(again.drums, tokens.drums)
    assert torch.equal(again.bass, tokens.bass)


def test_tokens_by_hand() -> None:
    roll = torch.zeros(1, LOOP.steps, LOOP.columns, dtype=torch.bool)
    roll[0, 0, [0, 2]] = True  # kick and closed hi-hat
    roll[0, 17, [LOOP.n_drums + 4, LOOP.n_drums + 7]] = True  # of two pitches the lower counts
    tokens = to_tokens(roll, RollConfig())
    assert tokens.drums[0, 0, 0] == 0b101
    assert tokens.bass[0, 1, 1] == 5
    assert int((tokens.drums > 0).sum() + (tokens.bass > 0).sum()) == 2


@pytest.mark.parametrize("density", [0.02, 0.2])
@pytest.mark.parametrize("grid", [*GRIDS, Grid(5, 2, meter=TimeSignature(7, 8))], ids=str)
def test_kinds_are_those_that_are_measured(density: float, grid: Grid) -> None:
    drawn = torch.Generator().manual_seed(2)
    tokens = random_tokens(200, grid=grid)
    bars = torch.randint(2, (200, grid.bars), generator=drawn)  # two bars, over and over
    drums, bass = (pick(part[:, :2], bars) for part in tokens)
    changed = torch.rand(drums.shape, generator=drawn) < density
    shift = torch.randint(-2, 3, (200, grid.bars), generator=drawn)
    bass = shifted(torch.where(changed, 1 + bass % 60, bass), shift).clamp(min=0)
    tokens = Tokens(drums ^ changed.long(), bass)
    config = RollConfig().on(grid)
    found = relations(tokens, torch.arange(grid.bars).repeat(200, 1), config.steps_per_pulse)
    rolls = to_rolls(tokens, config).numpy()
    for part in ("drums", "bass"):
        measured = measure(rolls, part, grid).kinds
        np.testing.assert_array_equal(getattr(found, part).numpy(), measured)


def test_bars_that_have_nothing_in_common_are_new() -> None:
    found = relations(random_tokens(8), NATURAL.repeat(8, 1), SPB)
    assert (found.drums == int(Relation.NEW)).all()
    assert (found.bass == int(Relation.NEW)).all()
    assert not any(field.any() for field in (found.drum_source, found.bass_source, found.shift))


@pytest.mark.parametrize(
    ("kind", "same_steps"),
    [(Relation.EXACT, 16), (Relation.SAME_BEATS, 12), (Relation.SAME_HALF, 8)],
)
@pytest.mark.parametrize("part", ["drums", "bass"])
def test_bars_that_begin_alike(part: str, kind: Relation, same_steps: int) -> None:
    tokens = random_tokens(1)
    steps = getattr(tokens, part)
    steps[0, 5, :same_steps] = steps[0, 2, :same_steps]
    found = relations(tokens, NATURAL, SPB)
    assert getattr(found, part)[0].tolist() == [Relation.NEW] * 5 + [kind] + [Relation.NEW] * 2
    source = found.drum_source if part == "drums" else found.bass_source
    assert source[0].tolist() == [0] * 5 + [2] + [0] * 2


@pytest.mark.parametrize("shift", [-12, -1, 5, MAX_SHIFT])
def test_transposed_bars(shift: int) -> None:
    tokens = random_tokens(1)
    tokens.bass[0, 3] = shifted(tokens.bass[0, 1], torch.tensor(shift))
    found = relations(tokens, NATURAL, SPB)
    assert [int(of[0, 3]) for of in (found.bass, found.bass_source, found.shift)] == [1, 1, shift]
    # The other way round the other way.
    backwards = relations(tokens, NATURAL.flip(1), SPB)
    assert [int(of[0, 1]) for of in (backwards.bass, backwards.bass_source)] == [1, 3]
    assert backwards.shift[0, 1] == -shift


def test_too_far_is_only_the_rhythm() -> None:
    tokens = random_tokens(1)
    tokens.bass[0, 3] = shifted(tokens.bass[0, 1], torch.tensor(MAX_SHIFT + 1))
    assert relations(tokens, NATURAL, SPB).bass[0, 3] == int(Relation.SAME_RHYTHM)


def test_near_bars() -> None:
    tokens = random_tokens(1)
    tokens.drums[0, 4] = tokens.drums[0, 0]
    tokens.drums[0, 4, 1] ^= 0b11  # two cells
    tokens.bass[0, 6] = tokens.bass[0, 2]
    tokens.bass[0, 6, 0] = tokens.bass[0, 2, 0] % 80 + 1  # another pitch: one cell less, one more
    found = relations(tokens, NATURAL, SPB)
    assert found.drums[0, 4] == int(Relation.NEAR)
    assert found.bass[0, 6] == int(Relation.NEAR)
    tokens.drums[0, 4, 2] ^= 0b1
    assert relations(tokens, NATURAL, SPB).drums[0, 4] == int(Relation.NEW)


def test_a_copy_names_the_first_of_its_kind() -> None:
    tokens = random_tokens(1)
    for bar in (3, 6):
        tokens.drums[0, bar] = tokens.drums[0, 1]
    assert relations(tokens, NATURAL, SPB).drum_source[0, 6] == 1
    order = torch.tensor([[6, 3, 1, 0, 2, 4, 5, 7]])
    found = relations(tokens, order, SPB)
    assert found.drums[0, 6] == int(Relation.NEW)
    assert found.drum_source[0, [3, 1]].tolist() == [6, 6]


def test_sources_come_earlier_in_any_order() -> None:
    tokens = random_tokens(64)
    tokens = Tokens(tokens.drums[:, torch.arange(8) % 3], tokens.bass[:, torch.arange(8) % 2])
    order = torch.rand(64, 8, generator=torch.Generator().manual_seed(1)).argsort(1)
    turn = order.argsort(1)
    found = relations(tokens, order, SPB)
    for kind, source in ((found.drums, found.drum_source), (found.bass, found.bass_source)):
        taken = kind != int(Relation.NEW)
        assert (turn.gather(1, source) < turn)[taken].all()
        assert not taken.gather(1, order[:, :1]).any()
