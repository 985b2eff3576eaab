"""Judge loops beside a reference set: the paper's metrics, and distances of distributions.

Loops of one song are near copies of each other, so every interval resamples songs, not loops;
generated loops are a song each. `compare` measures four things:

- the metrics of `midiloop.metrics.paper`, of both sets;
- the rows of `midiloop.metrics.form`: how bars vary one another, and what the parts make of it;
- for each of `FEATURES` the 1-Wasserstein distance of its values in both sets, in standard
  deviations of the reference: 0 for the same distribution, 1 for one moved by a deviation;
- one distance of all features together, the squared maximum mean discrepancy.

Each distance comes with its floor: that of the reference's songs, half of them against the rest.
Chance alone puts a set of fewer songs than that further away, a set of more a little nearer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import LoopError, counted
from midiloop.evaluation.profile import MAX_LOOPS, MIN_SONGS, LoopSet, Profile, profile
from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics import form
from midiloop.metrics.distances import Points, Weights, mmd2, wasserstein, weighted_sums
from midiloop.metrics.features import FEATURES
from midiloop.metrics.paper import Values, as_values

N_RESAMPLES = 200
N_HALVINGS = 50
MMD_LOOPS = 3_000  # of each set, drawn by chance: all pairs of them are looked at
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
# would drown all else that `Evaluation.mmd2` looks at.
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
        form: by the names in `form.ROWS`, those that both sets have any of.
        means, reference_means: of each of `FEATURES`, in its own unit.
        distances: 1-Wasserstein, for each of `FEATURES`, in deviations of the reference.
        mmd2: of all `EMBEDDED` features.
    """

    loops: Size
    reference: Size
    metrics: dict[str, Metric]
    form: dict[str, Metric]
    means: dict[str, float]
    reference_means: dict[str, float]
    distances: dict[str, Distance]
    mmd2: Distance

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {
            "loops": self.loops.as_json(),
            "reference": self.reference.as_json(),
            "metrics": _with_reference(self.metrics),
            "form": _with_reference(self.form),
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


def _with_reference(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {
        name: {**metric.loops._asdict(), "reference": metric.reference}
        for name, metric in metrics.items()
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
        _form(loops, draws, reference),
        {name: float(loops.values[name].mean()) for name in FEATURES},
        {name: float(reference.values[name].mean()) for name in FEATURES},
        _wassersteins(loops, draws, reference, reference_draws, halves),
        _mmd2s(loops, draws, reference, reference_draws, halves, rng),
    )


def _size(of: Profile) -> Size:
    n_loops = len(of.songs)
    sampled_from = of.of_loops if of.of_loops > n_loops else None
    return Size(n_loops, of.n_songs if of.by_song else None, sampled_from)


# Resampling: how often each song counts. Row 0 counts each once, so that what is computed of it is
# the value itself, and what is computed of the other rows its resamples.


def _draws(n_songs: int, rng: np.random.Generator) -> Weights:
    drawn = (
        np.bincount(rng.integers(n_songs, size=n_songs), minlength=n_songs)
        for _ in range(N_RESAMPLES)
    )
    return np.stack([np.ones(n_songs, dtype=np.uint16), *(row.astype(np.uint16) for row in drawn)])


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
    n_loops = weighted_sums(draws, np.bincount(of.songs))
    rows = dict(zip(per_loop, (weighted_sums(draws, sums) / n_loops[:, None]).T, strict=True))
    rows["US"] = np.minimum(rows["US"] + shared.sum() / n_loops, 1)
    return rows


def _form(loops: Profile, draws: Weights, reference: Profile) -> dict[str, Metric]:
    """Each share of `form` that both sets have any of."""
    found = {}
    for name in form.ROWS:
        part, whole = (f"{name} {side}" for side in form.Share._fields)
        of_both = (loops.values.get(whole), reference.values.get(whole))
        if all(values is not None and values.any() for values in of_both):
            sums = [np.bincount(loops.songs, loops.values[side]) for side in (part, whole)]
            with np.errstate(invalid="ignore"):
                rows = as_values(np.divide(*weighted_sums(draws, np.stack(sums, axis=1)).T))
            lowest = -np.inf if name == "last bar" else 0.0
            beside = [reference.values[side].sum(dtype=np.float64) for side in (part, whole)]
            found[name] = Metric(_estimate(rows, lowest=lowest), float(beside[0] / beside[1]))
    return found


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
    floor = mmd2(others, others, halves, 1 - halves)
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
