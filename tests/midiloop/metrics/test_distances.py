"""Distances of distributions: by hand, then the laws they keep."""

from __future__ import annotations

import math

import numpy as np
import pytest

from midiloop.metrics import distances
from midiloop.metrics.distances import Points

stats = pytest.importorskip("scipy.stats")


def test_wasserstein_by_hand() -> None:
    a, b = np.array([0.0, 1.0]), np.array([0.0, 3.0])
    assert distances.wasserstein(a, b) == [1]  # half of the mass moves by 2
    assert distances.wasserstein(a, np.array([5.0])) == [4.5]
    # of the second row only the 0 and the 3 count
    ones = np.array([[1, 1], [1, 0]])
    assert distances.wasserstein(a, b, ones, np.array([[1, 1], [0, 2]])).tolist() == [1, 3]


def test_mmd2_by_hand() -> None:
    # Four loops in one dimension, each its own song: x = 0, 1 and y = 0, 2; k = exp(-(x - y)² / 2).
    def points(*places: float) -> Points:
        return Points(np.array(places)[:, None], np.arange(len(places)))

    once = np.ones((1, 2))
    across = (1 + math.exp(-2) + math.exp(-0.5) + math.exp(-0.5)) / 4
    expected = math.exp(-0.5) + math.exp(-2) - 2 * across
    assert distances.mmd2(points(0, 1), points(0, 2), once, once) == pytest.approx([expected])
    far = distances.mmd2(points(0, 0), points(99, 99), once, once)
    assert far == pytest.approx([2])


def test_mmd2_leaves_out_pairs_of_one_song() -> None:
    # songs at 0 (twice) and at 1: only pairs 0-1 count; weights of 2 on a song double its loops
    of = Points(np.array([[0.0], [0.0], [1.0]]), np.array([0, 0, 1]))
    other = Points(np.array([[0.0], [1.0]]), np.arange(2))
    once = np.ones((1, 2))
    k = math.exp(-0.5)
    across = (2 * (1 + k) + (k + 1)) / 6
    assert distances.mmd2(of, other, once, once) == pytest.approx([2 * k - 2 * across])
    twice = np.array([[1, 4]])  # 2 loops at 0, 4 at 1
    across = (2 * (1 + k) + 4 * (k + 1)) / 12
    assert distances.mmd2(of, other, twice, once) == pytest.approx([2 * k - 2 * across])


def test_wasserstein_by_song_is_that_of_its_loops(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = rng.integers(0, 9, 60) / 7, rng.normal(0.5, 1, 80).round(1)
    songs, others = rng.integers(0, 12, 60), rng.integers(0, 15, 80)
    weights, other_weights = rng.integers(1, 4, (5, 12)), rng.integers(1, 4, (5, 15))
    expected = distances.wasserstein(a, b, weights[:, songs], other_weights[:, others])
    for at_a_time in (4_096, 7, 1):
        monkeypatch.setattr(distances, "PAIRS_AT_A_TIME", at_a_time)
        found = distances.wasserstein(a, b, weights, other_weights, songs, others)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_wasserstein_is_that_of_scipy(rng: np.random.Generator) -> None:
    for round_to in (0, 9):
        a, b = rng.normal(size=50).round(round_to), rng.gamma(2, size=80).round(round_to)
        weights, others = rng.integers(0, 4, (3, 50)), rng.integers(0, 4, (3, 80))
        found = distances.wasserstein(a, b, weights, others)
        expected = [
            stats.wasserstein_distance(a, b, u, v) for u, v in zip(weights, others, strict=True)
        ]
        assert found == pytest.approx(expected)


def test_distances_are_symmetric(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=50), rng.normal(1, 2, size=30)
    assert distances.wasserstein(a, b) == pytest.approx(distances.wasserstein(b, a))
    p, q = (Points(rng.normal(size=(n, 4)), np.arange(n) // 2) for n in (40, 60))
    once, others = np.ones((1, 20)), np.ones((1, 30))
    assert distances.mmd2(p, q, once, others) == pytest.approx(distances.mmd2(q, p, others, once))


def test_mmd2_is_unbiased_whatever_the_copies(rng: np.random.Generator) -> None:
    # Two samples of one distribution, ten near copies to a song: 0 on average, not above it.
    def draw() -> Points:
        songs = rng.normal(size=(12, 3)).repeat(10, axis=0)
        return Points(songs + rng.normal(0, 0.01, songs.shape), np.arange(12).repeat(10))

    once = np.ones((1, 12))
    found = np.array([distances.mmd2(draw(), draw(), once, once)[0] for _ in range(300)])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(len(found))
