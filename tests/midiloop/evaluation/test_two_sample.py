"""Telling loops from real ones: AUC by hand, and the laws of the test."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from handmade import GRIDS, random_rolls
from midiloop.errors import LoopError
from midiloop.evaluation import two_sample
from midiloop.evaluation.profile import LoopSet
from midiloop.evaluation.two_sample import Sample
from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics import descriptors
from midiloop.metrics.bits import as_bits

pytest.importorskip("sklearn")


def loops(rng: np.random.Generator, n: int, *, repeat: bool = False) -> Roll:
    rolls = random_rolls(rng, n)
    if repeat:  # the second half is the first again
        rolls[:, LOOP.steps // 2 :] = rolls[:, : LOOP.steps // 2]
    return rolls


def drawn(rolls: Roll, songs: int | None = None) -> Sample:
    named = None if songs is None else np.array([f"song {n % songs}" for n in range(len(rolls))])
    return two_sample.sample([LoopSet(rolls, named)])


def test_auc_by_hand() -> None:
    scores = np.array([0.1, 0.4, 0.4, 0.8])
    right = np.array([False, False, True, True])
    # 0.4 beats 0.1 and ties with 0.4; 0.8 beats both
    assert two_sample.auc(scores, right) == [(1 + 0.5 + 2) / 4]
    assert two_sample.auc(-scores, right) == [0.5 / 4]
    assert two_sample.auc(np.zeros(4), right) == [0.5]
    weights = np.array([[1, 1, 0, 1], [1, 3, 2, 0]])
    # of the second row, the positive 0.4 beats one negative and ties with three
    assert two_sample.auc(scores, right, weights).tolist() == [1, (1 + 1.5) / 4]


def test_auc_is_that_of_scikit_learn(rng: np.random.Generator) -> None:
    from sklearn.metrics import roc_auc_score

    scores, right = rng.integers(0, 20, 100) / 7, rng.random(100) < 0.4
    weights = rng.integers(0, 3, (5, 100)).astype(float)
    expected = [roc_auc_score(right, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(two_sample.auc(scores, right, weights), expected)


def test_a_sample_holds_distinct_loops_in_any_order(rng: np.random.Generator) -> None:
    rolls = loops(rng, 30)
    songs = np.array([f"song {n // 3}" for n in range(30)])
    both = LoopSet(np.concatenate([rolls, rolls[:10]]), np.concatenate([songs, ["a"] * 10]))
    found = two_sample.sample([both])
    assert len(found) == 30
    assert np.count_nonzero(found.songs == "a") == 10  # the first by name
    pieces = [
        LoopSet(as_bits(rolls[at], LOOP), both.songs[at])
        for at in (slice(29, 19, -1), slice(40, None))
        if both.songs is not None
    ]
    mixed = [
        LoopSet(rolls[:20], songs[:20]),
        *pieces[:1],
        LoopSet(rolls[:10], np.array(["a"] * 10)),
    ]
    again = two_sample.sample(mixed)
    np.testing.assert_array_equal(again.bits.packed, found.bits.packed)
    np.testing.assert_array_equal(again.songs, found.songs)
    few = two_sample.sample(mixed, limit=7)
    np.testing.assert_array_equal(few.bits.packed, found.bits.packed[:7])
    with pytest.raises(LoopError, match="no loops"):
        two_sample.sample([])


def test_what_repeats_is_told_from_what_does_not(rng: np.random.Generator) -> None:
    real, others = loops(rng, 60), loops(rng, 60)
    found = two_sample.compare(drawn(loops(rng, 60, repeat=True)), drawn(real, 20), drawn(others))
    assert found.auc.low > 0.95
    assert found.control.low < 0.5 < found.control.high
    assert next(iter(found.groups)) == "form"
    assert found.telltales[0].group == "form"
    aucs = [telltale.auc for telltale in found.telltales]
    assert aucs == sorted(aucs, reverse=True)
    assert min(aucs) >= 0.5
    for estimate in (found.auc, found.control, *found.groups.values()):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert "NaN" not in json.dumps(found.as_json())


def test_the_same_set_is_never_told_from_itself(rng: np.random.Generator) -> None:
    same = drawn(loops(rng, 40), 10)
    found = two_sample.compare(same, same)
    assert found.auc.value == 0.5
    assert all(telltale.auc == 0.5 for telltale in found.telltales)


def test_the_seed_decides_all(rng: np.random.Generator) -> None:
    one, other = drawn(loops(rng, 40)), drawn(loops(rng, 40), 10)
    found = two_sample.compare(one, other, seed=3)
    assert two_sample.compare(one, other, seed=3) == found
    assert two_sample.compare(one, other, seed=4) != found


def test_near_copies_of_a_song_do_not_help(rng: np.random.Generator) -> None:
    """Each song has loops like no other: whoever sees some of them knows the rest."""

    def songs(n: int) -> Sample:
        rolls = loops(rng, n).repeat(8, axis=0)
        rolls[np.arange(len(rolls)), rng.integers(LOOP.steps, size=len(rolls)), 8] ^= True
        return two_sample.sample([LoopSet(rolls, rng.permutation(10**6)[:n].repeat(8))])

    found = two_sample.compare(songs(12), songs(12), songs(12))
    assert found.auc.low < 0.6
    assert found.control.low < 0.6


def test_few_songs_are_an_error(rng: np.random.Generator) -> None:
    few, enough = drawn(loops(rng, 9), 3), drawn(loops(rng, 9))
    for sets in ((few, enough), (enough, few), (enough, enough, few)):
        with pytest.raises(LoopError, match="of 3 songs, a classifier needs 4"):
            two_sample.compare(*sets)


def test_without_scikit_learn_it_says_what_to_do(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    enough = drawn(loops(rng, 9))
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        two_sample.compare(enough, enough)


@pytest.mark.parametrize("grid", [*GRIDS, Grid(bars=1), Grid(bars=4, steps_per_beat=6)], ids=str)
def test_descriptors_are_numbers_of_each_loop(grid: Grid, rng: np.random.Generator) -> None:
    rolls = rng.random((12, grid.steps, grid.columns)) < 0.05
    rolls[0], rolls[1] = False, True
    found = descriptors.describe(as_bits(rolls, grid))
    assert list(found) == list(descriptors.GROUPS)
    names = [name for named in found.values() for name in named]
    assert len(names) == len(set(names))
    for named in found.values():
        for name, values in named.items():
            assert values.shape == (12,), name
            assert values.dtype == np.float64, name
            assert not np.isinf(values).any(), name
