"""Distances of two samples, of loops that come in songs: how often a song counts is its weight.

Loops of one song are near copies of each other. What resamples songs asks for one distance for each
row of weights, which is much quicker than the distances one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.metrics.paper import Values, as_values

Weights = NDArray[Any]  # whole numbers, not negative, (rows, songs): how often each song counts

PAIRS_AT_A_TIME = 4_096
ROWS_AT_A_TIME = 72


def wasserstein(
    values: Values,
    others: Values,
    weights: Weights | None = None,
    other_weights: Weights | None = None,
    songs: NDArray[np.int64] | None = None,
    other_songs: NDArray[np.int64] | None = None,
) -> Values:
    """1-Wasserstein distance of two samples: the area between their distribution functions.

    Range: 0, the same distribution, upwards, in the unit of the values; one moved by x is x away.

    Args:
        values: float (n,).
        others: float (m,).
        weights, other_weights: one distance for each row. One row of ones unless told otherwise.
        songs, other_songs: int (n,) and (m,), column of the weights of each value; a column of its
            own unless told otherwise.

    Returns:
        float (rows,).
    """
    places, inverse = np.unique(np.concatenate([values, others]), return_inverse=True)
    one = _Sample.of(inverse[: len(values)], weights, songs)
    other = _Sample.of(inverse[len(values) :], other_weights, other_songs)
    gaps = np.append(np.diff(places), 0.0)
    surplus, area = np.zeros(one.weights.shape[1]), np.zeros(one.weights.shape[1])
    for first, end in _blocks(one.n_pairs(len(places)) + other.n_pairs(len(places))):
        steps = one.shares(first, end) - other.shares(first, end)
        # the difference of both distribution functions from each place to the next
        between = np.cumsum(np.vstack([surplus, steps]), axis=0)
        area += gaps[first:end] @ np.abs(between[1:])
        surplus = between[-1]
    return as_values(area)


class _Sample(NamedTuple):
    """Values of a sample, by their place among all that there are, and by song.

    Attributes:
        at: int (pairs,), ascending, the place of each pair of a place and a song that has it.
        songs: int (pairs,), row of the weights.
        counts: int (pairs,), how often the song has it.
        weights: whole numbers, (songs, rows).
        total: float (rows,), the weight of all.
    """

    at: NDArray[np.int64]
    songs: NDArray[np.int64]
    counts: NDArray[np.int32]
    weights: Weights
    total: Values

    @staticmethod
    def of(
        at: NDArray[np.int64], weights: Weights | None, songs: NDArray[np.int64] | None
    ) -> _Sample:
        """Count pairs; see `wasserstein`."""
        songs = np.arange(len(at)) if songs is None else songs
        n_songs = int(songs.max()) + 1
        weights = np.ones((1, n_songs), dtype=np.uint16) if weights is None else weights
        pairs, counts = np.unique(at * n_songs + songs, return_counts=True)
        found_at, found_songs = np.divmod(pairs, n_songs)
        by_song = np.ascontiguousarray(weights.T)
        n_values = np.bincount(songs, minlength=len(by_song))
        total = as_values(weighted_sums(weights, n_values))
        return _Sample(found_at, found_songs, counts.astype(np.int32), by_song, total)

    def n_pairs(self, n_places: int) -> NDArray[np.int64]:
        """How many pairs each place has, int (places,)."""
        found: NDArray[np.int64] = np.bincount(self.at, minlength=n_places)
        return found

    def shares(self, first: int, end: int) -> Values:
        """Share of the sample at each place of a block, float (places, rows)."""
        low, high = np.searchsorted(self.at, (first, end)).tolist()
        found = np.zeros((end - first, self.weights.shape[1]))
        for start in range(low, high, PAIRS_AT_A_TIME):  # a single place may have any number
            pairs = slice(start, min(start + PAIRS_AT_A_TIME, high))
            at = self.at[pairs]
            weights = self.weights[self.songs[pairs]] * self.counts[pairs, None]
            starts = np.flatnonzero(np.diff(at, prepend=-1))
            found[at[starts] - first] += np.add.reduceat(weights, starts, axis=0)
        return found / self.total


def _blocks(n_pairs: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut places into blocks of at most `PAIRS_AT_A_TIME` pairs, or of a single place."""
    ends = np.cumsum(n_pairs)
    first = 0
    while first < len(ends):
        done = int(ends[first - 1]) if first else 0
        end = int(np.searchsorted(ends, done + PAIRS_AT_A_TIME, side="right"))
        yield first, max(first + 1, end)
        first = max(first + 1, end)


class Points(NamedTuple):
    """Loops as points, n of them in d dimensions.

    Attributes:
        places: float (n, d).
        songs: int (n,), column of the weights of each.
    """

    places: Values
    songs: NDArray[np.int64]


def mmd2(points: Points, others: Points, weights: Weights, other_weights: Weights) -> Values:
    """Squared maximum mean discrepancy of two samples of songs, unbiased.

    With k(x, y) = exp(-|x - y|² / 2d): the mean of k over pairs of one sample, plus that over pairs
    of the other, less twice that over pairs across. Pairs of one song do not count. Gretton et al.,
    *A Kernel Two-Sample Test*, JMLR 13 (2012), lemma 6, with songs in the place of points.

    Range: about 0, the same distribution (by chance a little below it), to 2.

    Args:
        points, others: what the samples hold.
        weights, other_weights: one value for each row.

    Returns:
        float (rows,), nan where a row counts fewer than two songs.
    """
    of_points, of_others = weights[:, points.songs], other_weights[:, others.songs]
    return (
        _mean_within(points, of_points)
        + _mean_within(others, of_others)
        - 2 * _pair_mean(_kernel(points.places, others.places), None, of_points, of_others)
    )


def _kernel(places: Values, others: Values) -> Values:
    squares = (places**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    squares -= 2 * places @ others.T
    return as_values(np.exp(squares / (-2 * places.shape[1])))


def _mean_within(points: Points, weights: Weights) -> Values:
    apart = as_values(points.songs[:, None] != points.songs)
    return _pair_mean(_kernel(points.places, points.places), apart, weights, weights)


def _pair_mean(kernel: Values, apart: Values | None, weights: Weights, others: Weights) -> Values:
    """Weighted mean of a kernel over its pairs, those only that are ``apart``; float (rows,)."""
    if apart is None:
        pairs = weights.sum(axis=1, dtype=float) * others.sum(axis=1, dtype=float)
    else:
        kernel *= apart
        pairs = ((weights @ apart) * others).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return as_values(((weights @ kernel) * others).sum(axis=1) / pairs)


def weighted_sums(weights: Weights, sums: NDArray[Any]) -> NDArray[Any]:
    """``weights @ sums``, of which only a few rows at a time are copied to the type of the sums."""
    starts = range(0, len(weights), ROWS_AT_A_TIME)
    return np.concatenate([weights[at : at + ROWS_AT_A_TIME] @ sums for at in starts])
