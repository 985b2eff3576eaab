"""Judge loops beside a reference set: the paper's metrics, and distances of distributions.

Loops of one song are near copies of each other, so every interval resamples songs, not loops;
generated loops are a song each. `compare` measures three things:

- the metrics of `midiloop.metrics.paper`, of both sets;
- for each of `FEATURES` the 1-Wasserstein distance of its values in both sets, in standard
  deviations of the reference: 0 for the same distribution, 1 for one moved by a deviation;
- one distance of all features together, the squared maximum mean discrepancy (`mmd2`).

Each distance comes with its floor: that of the reference's songs, half of them against the rest.
Chance alone puts a set of fewer songs than that further away, a set of more a little nearer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import LoopError, counted
from midiloop.evaluation.profile import MAX_LOOPS, MIN_SONGS, LoopSet, Profile, profile
from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics.features import FEATURES
from midiloop.metrics.paper import Values, as_values

Weights = NDArray[Any]

N_RESAMPLES = 200
N_HALVINGS = 50
MMD_LOOPS = 3_000  # of each set, drawn by chance: all pairs of them are looked at
PAIRS_AT_A_TIME = 4_096
DRAWS_AT_A_TIME = 72
INTERVAL = (0.025, 0.975)


def reconstruction_error(rolls: Roll, reconstructed: Roll) -> Values:
    """Share of a loop's cells that differ after coding and decoding it (the paper's table 1).

    Range: 0, all are right, to 1, none is. Better: lower.

    Args:
        rolls, reconstructed: bool (n, steps, columns).

    Returns:
        float (n,).

    Raises:
        LoopError: the two are of different shapes.
    """
    if rolls.shape != reconstructed.shape:
        raise LoopError(
            f"expected reconstructions {rolls.shape}, got {reconstructed.shape}; "
            "reconstruct each of the loops, in order"
        )
    return np.asarray((rolls != reconstructed).mean(axis=(1, 2)), dtype=np.float64)


# Loops are mined for a bar distance of next to nothing: in deviations of that, a single wrong cell
# would drown all else that `mmd2` looks at.
EMBEDDED = tuple(name for name in FEATURES if name != "HD")
TABLE = ("HD", "FND", "FND kick", "FNB", "DB", "OS", "US", "UP", "ND")


class Estimate(NamedTuple):
    """A value, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Metric(NamedTuple):
    """A metric of the loops, and of the reference."""

    loops: Estimate
    reference: float


class Distance(NamedTuple):
    """A distance of the loops from the reference.

    Attributes:
        loops: the distance.
        floor: that of half the reference's songs from the rest: mean of `N_HALVINGS` ways to halve
            them, and the interval in which 95 % of those lie. What a perfect generator can reach.
    """

    loops: Estimate
    floor: Estimate


class Size(NamedTuple):
    """How large a set is.

    Attributes:
        loops: how many are judged.
        songs: that these are of; None where they are not known.
        sampled_from: how many loops there are; None where all of them are judged.
    """

    loops: int
    songs: int | None
    sampled_from: int | None = None

    def as_json(self) -> dict[str, int | None]:
        """The size, as JSON holds it; ``sampled_from`` stands in that of a sample alone."""
        size = self._asdict()
        if self.sampled_from is None:
            del size["sampled_from"]
        return size


@dataclass(frozen=True)
class Evaluation:
    """What `compare` finds.

    Attributes:
        loops, reference: sizes of the two sets.
        metrics: by the names in `TABLE`.
        means, reference_means: of each of `FEATURES`, in its own unit.
        distances: 1-Wasserstein, for each of `FEATURES`, in deviations of the reference.
        mmd2: of all `EMBEDDED` features.
    """

    loops: Size
    reference: Size
    metrics: dict[str, Metric]
    means: dict[str, float]
    reference_means: dict[str, float]
    distances: dict[str, Distance]
    mmd2: Distance

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {
            "loops": self.loops.as_json(),
            "reference": self.reference.as_json(),
            "metrics": {
                name: {**metric.loops._asdict(), "reference": metric.reference}
                for name, metric in self.metrics.items()
            },
            "distances": {
                name: {
                    "mean": self.means[name],
                    "reference_mean": self.reference_means[name],
                    **_flat(distance),
                }
                for name, distance in self.distances.items()
            },
            "mmd2": _flat(self.mmd2),
        }


def _flat(distance: Distance) -> dict[str, Any]:
    return {**distance.loops._asdict(), "floor": distance.floor._asdict()}


def compare(
    loops: LoopSet, reference: LoopSet, rng: np.random.Generator, *, grid: Grid = LOOP
) -> Evaluation:
    """Judge ``loops`` beside ``reference``; sets beyond memory: `compare_sets`.

    >>> import midiloop, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> one, two = (midiloop.LoopSet(rng.random((20, 128, 93)) < 0.02) for _ in range(2))
    >>> found = midiloop.evaluate(one, two, rng)
    >>> found.loops.loops, found.mmd2.loops.value < 0.1
    (20, True)

    Raises:
        LoopError: one of them has under `MIN_SONGS` songs, or is of another shape.
    """
    return compare_sets([loops], [reference], rng, grid=grid)


def compare_sets(
    loops: Iterable[LoopSet],
    reference: Iterable[LoopSet],
    rng: np.random.Generator,
    *,
    grid: Grid = LOOP,
    limit: int = MAX_LOOPS,
) -> Evaluation:
    """Judge loops beside a reference; both come in pieces, and are looked at once.

    A set of over ``limit`` loops is judged by a sample of its songs, see `profile`; copies are
    looked for in the whole reference all the same.

    Raises:
        LoopError: see `compare`.
    """
    measured = profile(loops, grid, limit=limit)
    beside = profile(reference, grid, limit=limit, sought=measured.fingerprints)
    return compare_profiles(measured, beside, rng)


def compare_profiles(loops: Profile, reference: Profile, rng: np.random.Generator) -> Evaluation:
    """Judge loops beside a reference, both of them measured already.

    ``OS`` counts loops that are among `Profile.known` of the reference.

    Raises:
        LoopError: one of them has loops of under `MIN_SONGS` songs, or next to none of the others.
    """
    for of, what in ((loops, "set to evaluate"), (reference, "reference")):
        if of.n_songs < MIN_SONGS:
            raise LoopError(
                f"the {what} has loops of {counted(of.n_songs, 'song')}, intervals need "
                f"{MIN_SONGS}; widen the choice, or give more loops"
            )
    draws, reference_draws = _draws(loops.n_songs, rng), _draws(reference.n_songs, rng)
    halves = _halves(reference.n_songs, rng)
    rows = _metric_rows(loops, draws, np.isin(loops.fingerprints, reference.known))
    in_itself = np.ones(len(reference.songs), dtype=np.bool_)
    reference_rows = _metric_rows(reference, reference_draws[:1], in_itself)
    return Evaluation(
        _size(loops),
        _size(reference),
        {
            name: Metric(
                # pitches are counted, the others are shares
                _estimate(rows[name], highest=np.inf if name == "UP" else 1.0),
                float(reference_rows[name][0]),
            )
            for name in TABLE
        },
        {name: float(loops.values[name].mean()) for name in FEATURES},
        {name: float(reference.values[name].mean()) for name in FEATURES},
        _wassersteins(loops, draws, reference, reference_draws, halves),
        _mmd2s(loops, draws, reference, reference_draws, halves, rng),
    )


def _size(of: Profile) -> Size:
    n_loops = len(of.songs)
    sampled_from = of.of_loops if of.of_loops > n_loops else None
    return Size(n_loops, of.n_songs if of.by_song else None, sampled_from)


# Resampling: how often each song counts, int (rows, songs). Row 0 counts each once, so that what is
# computed of it is the value itself, and what is computed of the other rows its resamples.


def _draws(n_songs: int, rng: np.random.Generator) -> Weights:
    drawn = (
        np.bincount(rng.integers(n_songs, size=n_songs), minlength=n_songs)
        for _ in range(N_RESAMPLES)
    )
    return np.stack([np.ones(n_songs, dtype=np.uint16), *(row.astype(np.uint16) for row in drawn)])


def _resampled(draws: Weights, sums: NDArray[Any]) -> NDArray[Any]:
    """``draws @ sums``, of which only a few rows at a time are copied to the type of the sums."""
    starts = range(0, len(draws), DRAWS_AT_A_TIME)
    return np.concatenate([draws[at : at + DRAWS_AT_A_TIME] @ sums for at in starts])


def _halves(n_songs: int, rng: np.random.Generator) -> Weights:
    """Half of the songs, at random, int (N_HALVINGS, songs) of 0 and 1."""
    first = np.arange(n_songs) < n_songs // 2
    return np.stack([rng.permutation(first) for _ in range(N_HALVINGS)]).astype(np.uint16)


def _estimate(rows: Values, *, lowest: float = 0.0, highest: float = np.inf) -> Estimate:
    """The first row, and an interval from the others.

    The interval is that of the resamples, moved so that their median is the value: resampling adds
    noise, and noise alone drives distributions apart.
    """
    value, resamples = rows[0], rows[1:][np.isfinite(rows[1:])]
    moved = value + np.quantile(resamples, INTERVAL) - np.median(resamples)
    low, high = np.clip(moved, lowest, highest)
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))


def _floor(rows: Values) -> Estimate:
    rows = rows[np.isfinite(rows)]
    low, high = np.quantile(rows, INTERVAL)
    return Estimate(float(rows.mean()), float(low), float(high))


def _metric_rows(of: Profile, draws: Weights, copied: NDArray[np.bool_]) -> dict[str, Values]:
    """Each metric by resample, float (rows,); ``copied`` (n,) are the loops that ``OS`` counts."""
    _, first, inverse, counts = np.unique(
        of.fingerprints, return_index=True, return_inverse=True, return_counts=True
    )
    # Drawing a song twice makes no copies. What a song adds to the distinct loops is those that no
    # other has; the rest are there whichever songs are drawn.
    shared = np.zeros(len(first), dtype=np.bool_)
    shared[inverse[of.songs != of.songs[first][inverse]]] = True
    per_loop = {name: of.values[name] for name in TABLE if name in of.values}
    per_loop["OS"] = as_values(copied)
    per_loop["US"] = np.where(shared, 0, 1 / counts)[inverse]
    sums = np.stack([np.bincount(of.songs, values) for values in per_loop.values()], axis=1)
    n_loops = _resampled(draws, np.bincount(of.songs))
    rows = dict(zip(per_loop, (_resampled(draws, sums) / n_loops[:, None]).T, strict=True))
    rows["US"] = np.minimum(rows["US"] + shared.sum() / n_loops, 1)
    return rows


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
        weights, other_weights: whole numbers, not negative, (rows, songs): one distance for each
            row. One row of ones unless told otherwise.
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
        total = as_values(_resampled(weights, n_values))
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


def _deviation(values: Values) -> float:
    """Standard deviation; 1 where all are the same, which leaves them in their own unit."""
    return float(values.std()) if np.ptp(values) > 0 else 1.0


def _wassersteins(
    loops: Profile, draws: Weights, reference: Profile, reference_draws: Weights, halves: Weights
) -> dict[str, Distance]:
    found = {}
    songs, others = loops.songs, reference.songs
    for name in FEATURES:
        values, reference_values = loops.values[name], reference.values[name]
        unit = _deviation(reference_values)
        apart = wasserstein(values, reference_values, draws, reference_draws, songs, others)
        floor = wasserstein(reference_values, reference_values, halves, 1 - halves, others, others)
        found[name] = Distance(_estimate(apart / unit), _floor(floor / unit))
    return found


class Points(NamedTuple):
    """Loops as points, n of them in d dimensions.

    Attributes:
        places: float (n, d).
        songs: int (n,), column of the weights of each.
    """

    places: Values
    songs: NDArray[np.int64]


def mmd2(points: Points, others: Points, draws: Weights, other_draws: Weights) -> Values:
    """Squared maximum mean discrepancy of two samples of songs, unbiased.

    With k(x, y) = exp(-|x - y|² / 2d): the mean of k over pairs of one sample, plus that over pairs
    of the other, less twice that over pairs across. Pairs of one song do not count. Gretton et al.,
    *A Kernel Two-Sample Test*, JMLR 13 (2012), lemma 6, with songs in the place of points.

    Range: about 0, the same distribution (by chance a little below it), to 2.

    Args:
        points, others: what the samples hold.
        draws, other_draws: how often each song counts, (rows, songs): one value for each row.

    Returns:
        float (rows,), nan where a row counts fewer than two songs.
    """
    weights, other_weights = draws[:, points.songs], other_draws[:, others.songs]
    return (
        _mean_within(points, weights, weights)
        + _mean_within(others, other_weights, other_weights)
        - 2 * _pair_mean(_kernel(points.places, others.places), None, weights, other_weights)
    )


def _kernel(places: Values, others: Values) -> Values:
    squares = (places**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    squares -= 2 * places @ others.T
    return as_values(np.exp(squares / (-2 * places.shape[1])))


def _mean_within(points: Points, weights: Weights, others: Weights) -> Values:
    apart = as_values(points.songs[:, None] != points.songs)
    return _pair_mean(_kernel(points.places, points.places), apart, weights, others)


def _pair_mean(kernel: Values, apart: Values | None, weights: Weights, others: Weights) -> Values:
    """Weighted mean of a kernel over its pairs, those only that are ``apart``; float (rows,)."""
    if apart is None:
        pairs = weights.sum(axis=1, dtype=float) * others.sum(axis=1, dtype=float)
    else:
        kernel *= apart
        pairs = ((weights @ apart) * others).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return as_values(((weights @ kernel) * others).sum(axis=1) / pairs)


def _mmd2s(
    loops: Profile,
    draws: Weights,
    reference: Profile,
    reference_draws: Weights,
    halves: Weights,
    rng: np.random.Generator,
) -> Distance:
    points, others = _points(loops, reference, rng), _points(reference, reference, rng)
    apart = mmd2(points, others, draws, reference_draws)
    half = halves[:, others.songs]
    rest = 1 - half
    floor = (
        _mean_within(others, half, half)
        + _mean_within(others, rest, rest)
        - 2 * _mean_within(others, half, rest)
    )
    return Distance(_estimate(apart, lowest=-np.inf), _floor(floor))


def _points(of: Profile, reference: Profile, rng: np.random.Generator) -> Points:
    """At most `MMD_LOOPS` loops: their embedded features, less the reference's mean, in deviations.

    Raises:
        LoopError: they are of under `MIN_SONGS` songs.
    """
    size = min(MMD_LOOPS, len(of.songs))
    chosen = np.sort(rng.choice(len(of.songs), size, replace=False))
    if len(np.unique(of.songs[chosen])) < MIN_SONGS:
        raise LoopError("nearly all loops are of the same song; evaluate loops of more songs")
    places = [
        (of.values[name][chosen] - reference.values[name].mean())
        / _deviation(reference.values[name])
        for name in EMBEDDED
    ]
    return Points(np.stack(places, axis=1), of.songs[chosen])
