"""How bars relate: each relation by hand, then the laws they keep on any grid."""

from __future__ import annotations

import numpy as np
import pytest

from handmade import JIG, WALTZ, random_rolls
from midiloop.grid import KIT, LOOP, Grid, Roll, TimeSignature
from midiloop.metrics import relations
from midiloop.metrics.bits import Bits
from midiloop.metrics.relations import OF_PART, BarRelations, Part, Relation

GRIDS = [
    LOOP,
    Grid(bars=4, steps_per_beat=6),
    Grid(bars=3, steps_per_beat=2, lowest_pitch=1, highest_pitch=127),  # three words
    Grid(bars=2, drums=KIT[:1], lowest_pitch=24, highest_pitch=86),  # 64 columns: one word
    WALTZ,
    JIG,
    Grid(bars=5, steps_per_beat=2, meter=TimeSignature(7, 8)),  # half of seven steps are three
]
BASS, STEPS = LOOP.n_drums, LOOP.steps_per_bar
PARTS: tuple[Part, ...] = ("drums", "bass")


def two_bars(first: dict[int, int], second: dict[int, int]) -> Roll:
    """Bars of a bass line each, from steps to pitches above the lowest; six silent bars follow."""
    roll = np.zeros((1, LOOP.steps, LOOP.columns), dtype=np.bool_)
    for bar, line in enumerate((first, second)):
        for step, pitch in line.items():
            roll[0, bar * STEPS + step, BASS + pitch] = True
    return roll


LINE = {0: 12, 1: 12, 4: 15, 8: 10, 12: 7, 13: 7}
RELATED = {
    "the same": (LINE, Relation.EXACT, 0),
    "up a fifth": ({at: pitch + 7 for at, pitch in LINE.items()}, Relation.TRANSPOSED, 7),
    "down an octave": ({at: pitch - 7 for at, pitch in LINE.items()}, Relation.TRANSPOSED, -7),
    "another last beat": (LINE | {12: 8, 13: 9}, Relation.SAME_BEATS, 0),
    "another second half": (LINE | {8: 3, 12: 8, 13: 9}, Relation.SAME_HALF, 0),
    "another pitch on beat 1": (LINE | {4: 3}, Relation.NEAR, 0),
    "a note longer": (LINE | {2: 12}, Relation.NEAR, 0),
    "other pitches": ({0: 3, 1: 3, 4: 8, 8: 9, 12: 1, 13: 1}, Relation.SAME_RHYTHM, 0),
    "longer notes at other pitches": (
        {0: 3, 1: 3, 4: 8, 5: 8, 8: 9, 12: 1, 13: 1},
        Relation.NEW,
        0,
    ),
    "silence": ({}, Relation.NEW, 0),
}


@pytest.mark.parametrize(("line", "kind", "semitones"), RELATED.values(), ids=RELATED)
def test_each_relation_of_the_bass(line: dict[int, int], kind: Relation, semitones: int) -> None:
    found = relations.of_part(two_bars(LINE, line), "bass")
    assert Relation(found.kinds[0, 1]) is kind
    assert found.references[0, 1] == (-1 if kind is Relation.NEW else 0)
    assert found.semitones[0, 1] == semitones
    # the first bar, and what is silent for the first time, takes up nothing
    assert (found.kinds[0, 0], found.references[0, 0]) == (Relation.NEW, -1)


def test_each_relation_of_the_drums() -> None:
    bar = np.zeros((STEPS, LOOP.columns), dtype=np.bool_)
    bar[::4, 0] = bar[4::8, 1] = bar[::2, 2] = True
    fill, half, near = bar.copy(), bar.copy(), bar.copy()
    fill[13:, [1, 3]] = True
    half[10:, [1, 3]] = True
    near[2, [2, 4]] ^= True
    other = np.roll(bar, 1, axis=0)
    roll = np.concatenate([bar, fill, half, near, other, bar, other, fill])[None]
    found = relations.of_part(roll, "drums")
    assert [Relation(kind).name for kind in found.kinds[0]] == [
        "NEW", "SAME_BEATS", "SAME_HALF", "NEAR", "NEW", "EXACT", "EXACT", "EXACT",
    ]  # fmt: skip
    assert found.references[0].tolist() == [-1, 0, 1, 0, -1, 0, 4, 1]


def test_the_relation_counts_before_the_distance_and_then_the_nearest_bar() -> None:
    roll = np.zeros((1, LOOP.steps, LOOP.columns), dtype=np.bool_)
    for bar, pitch in enumerate((12, 12, 14, 12, 14, 17)):
        roll[0, bar * STEPS : bar * STEPS + 6, BASS + pitch] = True
    found = relations.of_part(roll, "bass")
    # bar 4 repeats bar 2, though it is bar 3 transposed; bar 6 is transposed of the bar before it
    assert found.references[0].tolist() == [-1, 0, 1, 1, 2, 4, -1, 6]
    assert found.semitones[0].tolist() == [0, 0, 2, 0, 0, 3, 0, 0]


@pytest.mark.parametrize(
    ("grid", "all_but_a_beat", "half"), [(LOOP, 12, 8), (WALTZ, 12, 9), (JIG, 6, 6)], ids=str
)
def test_beats_are_those_of_the_meter(grid: Grid, all_but_a_beat: int, half: int) -> None:
    drums = np.random.default_rng(0).random((2, grid.steps_per_bar, grid.n_drums)) < 0.5
    for same, kind in ((all_but_a_beat, Relation.SAME_BEATS), (half, Relation.SAME_HALF)):
        roll = np.zeros((1, grid.bars, grid.steps_per_bar, grid.columns), dtype=np.bool_)
        roll[0, :2, :, : grid.n_drums] = drums
        roll[0, 1, :same] = roll[0, 0, :same]
        found = relations.of_part(roll.reshape(1, grid.steps, -1), "drums", grid)
        # of 6/8 the first half is all but a beat
        assert Relation(found.kinds[0, 1]) == (Relation.SAME_BEATS if grid == JIG else kind)


# Laws


def plain(rolls: Roll, part: Part, grid: Grid) -> BarRelations:
    """The same, bar by bar, as the definitions say it."""
    of = slice(0, grid.n_drums) if part == "drums" else slice(grid.n_drums, None)
    bars = rolls[:, :, of].reshape(len(rolls), grid.bars, grid.steps_per_bar, -1)
    found = BarRelations(
        np.full(bars.shape[:2], Relation.NEW, np.int8),
        np.full(bars.shape[:2], -1, np.int16),
        np.zeros(bars.shape[:2], np.int8),
    )
    beats, half = grid.steps_per_bar - grid.steps_per_pulse, grid.steps_per_bar // 2

    def holds(kind: Relation, one: Roll, other: Roll) -> bool:
        if kind is Relation.EXACT:
            return bool((one == other).all())
        if kind is Relation.TRANSPOSED:
            by = lowest(one) - lowest(other)
            return one.sum() == other.sum() > 0 and bool((np.roll(other, by, 1) == one).all())
        if kind in (Relation.SAME_BEATS, Relation.SAME_HALF):
            end = beats if kind is Relation.SAME_BEATS else half
            return bool(one[:end].any() and (one[:end] == other[:end]).all())
        if kind is Relation.NEAR:
            return bool((one != other).sum() <= 2)
        return rhythm(one) == rhythm(other)

    def lowest(bar: Roll) -> int:
        return int(bar.any(axis=0).argmax())

    def rhythm(bar: Roll) -> list[tuple[bool, bool]]:
        before = np.concatenate([np.zeros_like(bar[:1]), bar[:-1]])
        onsets = bar & ~before
        return [
            (bool(one.any()), bool(other.any())) for one, other in zip(bar, onsets, strict=True)
        ]

    for loop, bar in np.ndindex(*bars.shape[:2]):
        for kind, earlier in ((k, e) for k in OF_PART[part][:-1] for e in reversed(range(bar))):
            one, other = bars[loop, bar], bars[loop, earlier]
            if holds(kind, one, other):
                found.kinds[loop, bar], found.references[loop, bar] = kind, earlier
                if kind is Relation.TRANSPOSED:
                    found.semitones[loop, bar] = lowest(one) - lowest(other)
                break
    return found


def varied(rng: np.random.Generator, grid: Grid, n: int, *, monophonic: bool) -> Roll:
    """Loops whose bars copy, move and change earlier ones."""
    rolls = np.zeros((n, grid.steps, grid.columns), dtype=np.bool_)
    for roll in rolls:
        bars = roll.reshape(grid.bars, grid.steps_per_bar, grid.columns)
        for number, bar in enumerate(bars):
            if number and rng.random() < 0.8:
                bar[:] = bars[rng.integers(number)]
                way = rng.integers(5)
                if way == 0:
                    bar[:, grid.n_drums :] = np.roll(bar[:, grid.n_drums :], rng.integers(-3, 4), 1)
                elif way == 1:
                    bar[rng.integers(grid.steps_per_bar), rng.integers(grid.columns)] ^= True
                elif way == 2:
                    bar[rng.integers(grid.steps_per_bar) :] = False
                elif way == 3:
                    bar[:, grid.n_drums :] = bar[:, grid.n_drums :][:, ::-1]
            else:
                n_drums = grid.n_drums
                bar[:, :n_drums] = rng.random(bar[:, :n_drums].shape) < 0.2
                for step in np.flatnonzero(rng.random(grid.steps_per_bar) < 0.5):
                    bar[step, n_drums + 5 + rng.integers(grid.n_pitches - 10)] = True
                if not monophonic:
                    bar[:, n_drums:] |= rng.random((grid.steps_per_bar, grid.n_pitches)) < 0.02
    return rolls


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("part", PARTS)
def test_relations_are_what_their_definitions_say(
    part: Part, grid: Grid, rng: np.random.Generator
) -> None:
    for monophonic in (True, False):
        rolls = varied(rng, grid, 40, monophonic=monophonic)
        expected, found = plain(rolls, part, grid), relations.of_part(rolls, part, grid)
        for name, column in expected._asdict().items():
            np.testing.assert_array_equal(getattr(found, name), column, name)
        assert {*np.unique(found.kinds).tolist()} <= {*OF_PART[part]}
        again = relations.of_part(Bits(grid.pack(rolls), grid), part, grid)
        np.testing.assert_array_equal(again.kinds, found.kinds)


def test_a_copied_bar_is_exact_whatever_stands_before_it(rng: np.random.Generator) -> None:
    rolls = random_rolls(rng, 30)
    bars = rolls.reshape(30, LOOP.bars, STEPS, LOOP.columns)
    bars[:, 6] = bars[:, 2]
    for part in PARTS:
        found = relations.of_part(rolls, part)
        assert (found.kinds[:, 6] == Relation.EXACT).all()
        assert (found.references[:, 6] == 2).all()


def test_a_moved_bass_is_transposed_by_as_much(rng: np.random.Generator) -> None:
    rolls = random_rolls(rng, 30)
    rolls[..., BASS : BASS + 12] = rolls[..., -12:] = False
    bars = rolls.reshape(30, LOOP.bars, STEPS, LOOP.columns)
    for semitones in (-12, -1, 5, 12):
        bars[:, 7, :, BASS:] = np.roll(bars[:, 1, :, BASS:], semitones, axis=2)
        found = relations.of_part(rolls, "bass")
        assert (found.kinds[:, 7] == Relation.TRANSPOSED).all()
        assert (found.references[:, 7] == 1).all()
        assert (found.semitones[:, 7] == semitones).all()


def test_the_bass_of_a_whole_loop_may_move(rng: np.random.Generator) -> None:
    rolls = varied(rng, LOOP, 20, monophonic=True)
    rolls[..., -5:] = False
    moved = rolls.copy()
    moved[..., BASS:] = np.roll(rolls[..., BASS:], 5, axis=2)
    for name, column in relations.of_part(rolls, "bass")._asdict().items():
        np.testing.assert_array_equal(getattr(relations.of_part(moved, "bass"), name), column)


def test_one_part_does_not_hear_the_other(rng: np.random.Generator) -> None:
    rolls = varied(rng, LOOP, 20, monophonic=True)
    others = rolls[::-1].copy()
    others[..., :BASS] = np.roll(rolls[..., :BASS], 4, axis=2)  # which drum plays what is one
    for found, other in zip(
        relations.of_part(rolls, "drums"), relations.of_part(others, "drums"), strict=True
    ):
        np.testing.assert_array_equal(found, other)


def test_no_loops_have_no_relations() -> None:
    empty = relations.of_part(np.zeros((0, LOOP.steps, LOOP.columns), dtype=np.bool_), "bass")
    assert empty.kinds.shape == empty.references.shape == (0, LOOP.bars)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("part", PARTS)
def test_distances_of_bars_are_counted_cell_by_cell(
    part: Part, grid: Grid, rng: np.random.Generator
) -> None:
    rolls = varied(rng, grid, 10, monophonic=False)
    of = rolls[..., : grid.n_drums] if part == "drums" else rolls[..., grid.n_drums :]
    bars = of.reshape(10, grid.bars, -1)
    one, other = np.triu_indices(grid.bars, 1)
    expected = (bars[:, one] != bars[:, other]).sum(axis=2)
    np.testing.assert_array_equal(relations.bar_distances(rolls, part, grid), expected)
