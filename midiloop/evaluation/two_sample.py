"""Whether a classifier tells loops from real ones, and by what.

A classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545): gradient-boosted trees
learn from `descriptors` which of two sets a loop is of, and are asked about loops that they have
not seen. The figure is the area under the ROC curve (AUC): the probability that, of a loop of each
set, the classifier takes the right one for the real one. 0.5 is chance, 1 is never wrong.

All loops of a song lie in one fold, and intervals resample songs: loops of a song are near copies
of each other. A loop that stands alone, as generated ones do, is a song of its own. Both sets hold
distinct loops: that a generator writes the same loop again and again, `US` of the paper says.

Real loops are not quite told from other real ones by chance alone: each figure comes with a
control, real loops of other songs in the place of those that are judged.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import LoopError, counted
from midiloop.evaluation.evaluate import INTERVAL, N_RESAMPLES, Estimate
from midiloop.evaluation.profile import LoopSet
from midiloop.grid import LOOP, Grid
from midiloop.metrics import descriptors
from midiloop.metrics.bits import Bits, as_bits
from midiloop.metrics.paper import NO_LOOPS, Values

MAX_LOOPS = 3_000  # of each set
N_FOLDS = 5
MIN_SONGS = 4  # so that each half of a reference has one in each of two folds


class Telltale(NamedTuple):
    """A number that gives loops away.

    Attributes:
        name, group: of `descriptors`.
        auc: of this number alone, 0.5 or more, whichever way it points.
        mean, reference_mean: over the loops, and the reference, that have it.
    """

    name: str
    group: str
    auc: float
    mean: float
    reference_mean: float


@dataclass(frozen=True)
class TwoSample:
    """What `compare` finds.

    Attributes:
        n_loops, n_reference: distinct loops that the classifier looked at.
        auc: of the loops against the reference, with its 95 % interval.
        control: of other real loops against the reference.
        groups: AUC with each group of `descriptors` alone, highest first.
        telltales: single numbers, highest AUC first.
    """

    n_loops: int
    n_reference: int
    auc: Estimate
    control: Estimate
    groups: dict[str, Estimate]
    telltales: list[Telltale]

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {
            "loops": self.n_loops,
            "reference": self.n_reference,
            **self.auc._asdict(),
            "control": self.control._asdict(),
            "groups": {name: auc._asdict() for name, auc in self.groups.items()},
            "telltales": [telltale._asdict() for telltale in self.telltales],
        }


@dataclass(frozen=True)
class Sample:
    """Distinct loops of a set, n of them, in the order of their fingerprints.

    Attributes:
        bits: the loops.
        songs: of each, (n,); its fingerprint where it stands alone.
    """

    bits: Bits
    songs: NDArray[Any]

    def __len__(self) -> int:
        return len(self.bits)

    @property
    def n_songs(self) -> int:
        """How many songs there are."""
        return len(np.unique(self.songs))

    def take(self, which: NDArray[Any]) -> Sample:
        """Some of the loops."""
        return Sample(Bits(self.bits.packed[which], self.bits.grid), self.songs[which])


def sample(sets: Iterable[LoopSet], grid: Grid = LOOP, *, limit: int = MAX_LOOPS) -> Sample:
    """The distinct loops of a set that comes in pieces, ``limit`` of them at most.

    Those with the smallest fingerprints are taken: a sample without preference, which depends
    neither on the order of the loops nor on the pieces. A loop of several songs is one of the
    first of them, by name.

    Raises:
        LoopError: there are no loops.
    """
    kept: list[NDArray[Any]] = []  # fingerprints, bits and songs
    for rolls, songs in sets:
        bits = as_bits(rolls, grid)
        prints = grid.fingerprints(bits.packed)
        columns: list[NDArray[Any]] = [prints, bits.packed, prints if songs is None else songs]
        if kept:
            columns = [np.concatenate([a, b]) for a, b in zip(kept, columns, strict=True)]
        order = np.lexsort((columns[2], columns[0]))
        sorted_prints: NDArray[np.uint64] = columns[0][order]
        _, first = np.unique(sorted_prints, return_index=True)
        kept = [column[order[first[:limit]]] for column in columns]
    if not kept or not len(kept[0]):
        raise LoopError(NO_LOOPS)
    return Sample(Bits(kept[1], grid), kept[2])


def compare(
    loops: Sample, reference: Sample, control: Sample | None = None, *, seed: int = 0
) -> TwoSample:
    """Whether loops are told from real ones.

    Args:
        control: other real loops; where there are none, one half of the reference's songs is
            told from the other, with half as many loops to learn from.
        seed: of folds, classifiers and resamples; the same seed gives the same result.

    Raises:
        LoopError: a set has loops of under `MIN_SONGS` songs.
        ImportError: scikit-learn is not installed.
    """
    for what, of in (("set to evaluate", loops), ("reference", reference), ("control", control)):
        if of is not None and of.n_songs < MIN_SONGS:
            raise LoopError(
                f"the {what} has distinct loops of {counted(of.n_songs, 'song')}, "
                f"a classifier needs {MIN_SONGS}; widen the choice, or leave the classifier out"
            )
    task = Task.of(loops, reference)
    groups = {name: judge(task.only(name), seed) for name in descriptors.GROUPS}
    others = _halves(reference, seed) if control is None else (control, reference)
    return TwoSample(
        len(loops),
        len(reference),
        judge(task, seed),
        tell_apart(*others, seed),
        dict(sorted(groups.items(), key=lambda group: -group[1].value)),
        telltales_of(task),
    )


def tell_apart(loops: Sample, reference: Sample, seed: int = 0) -> Estimate:
    """The AUC of `compare` alone.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    return judge(Task.of(loops, reference), seed)


def _halves(reference: Sample, seed: int) -> tuple[Sample, Sample]:
    songs, of = np.unique(reference.songs, return_inverse=True)
    first = np.random.default_rng(seed).permutation(np.arange(len(songs)) % 2 == 0)[of]
    return reference.take(first), reference.take(~first)


class Task(NamedTuple):
    """Loops to tell apart, n of them, with d numbers each.

    Attributes:
        numbers: float (n, d), nan where a loop has none.
        names, groups: of the numbers, (d,) each.
        judged: bool (n,), of the loops; else of the reference.
        songs: int (n,), numbered from 0; a song in both sets is one.
    """

    numbers: Values
    names: list[str]
    groups: list[str]
    judged: NDArray[np.bool_]
    songs: NDArray[np.int64]

    @staticmethod
    def of(loops: Sample, reference: Sample) -> Task:
        """Describe the loops of both sets."""
        packed = np.concatenate([loops.bits.packed, reference.bits.packed])
        described = descriptors.describe(Bits(packed, reference.bits.grid))
        named = [(group, name) for group, of in described.items() for name in of]
        # names of songs and fingerprints: as text, so that both kinds sort
        texts = np.concatenate([loops.songs.astype(str), reference.songs.astype(str)])
        return Task(
            np.stack([described[group][name] for group, name in named], axis=1),
            [name for _, name in named],
            [group for group, _ in named],
            np.arange(len(packed)) < len(loops),
            np.unique(texts, return_inverse=True)[1],
        )

    def only(self, group: str) -> Task:
        """The same with the numbers of one group alone."""
        of = np.array([name == group for name in self.groups])
        return self._replace(
            numbers=self.numbers[:, of],
            names=[name for name, kept in zip(self.names, of, strict=True) if kept],
            groups=[group] * int(of.sum()),
        )


def judge(task: Task, seed: int) -> Estimate:
    """AUC of a classifier on loops whose songs it has not seen."""
    rng = np.random.default_rng(seed)
    folds = _folds(task, rng)
    scores = np.zeros(len(folds))
    classifier = _classifier(seed)
    threads = importlib.import_module("threadpoolctl")  # after what it limits, which needs it
    # threads wait for each other at every node: beside other programs, one is faster by far
    with threads.threadpool_limits(1):
        for fold in range(N_FOLDS):
            seen, asked = folds != fold, folds == fold
            known = np.isfinite(task.numbers[seen]).any(axis=0)  # it takes no column without any
            if asked.any() and known.any():
                classifier.fit(task.numbers[seen][:, known], task.judged[seen])
                found = classifier.predict_proba(task.numbers[asked][:, known])
                scores[asked] = found[:, 1]
    weights = np.concatenate([np.ones((1, len(folds))), _resamples(task, rng)])
    rows = auc(scores, task.judged, weights)
    value = float(rows[0])
    low, high = np.quantile(rows[1:], INTERVAL).tolist()
    return Estimate(value, min(low, value), max(high, value))


def _classifier(seed: int) -> Any:
    try:
        ensemble = importlib.import_module("sklearn.ensemble")
    except ModuleNotFoundError as error:
        raise ImportError(
            "scikit-learn is missing: pip install scikit-learn, or leave the classifier out "
            "with --no-classifier"
        ) from error
    return ensemble.HistGradientBoostingClassifier(
        early_stopping=False, class_weight="balanced", random_state=seed
    )


def _folds(task: Task, rng: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each loop: songs as they come by chance, the largest first, to the emptiest."""
    fold_of = np.full(int(task.songs.max()) + 1, -1)
    for judged in (True, False):
        songs, sizes = np.unique(task.songs[task.judged == judged], return_counts=True)
        filled = np.zeros(N_FOLDS)
        order = rng.permutation(len(songs))
        for at in order[np.argsort(-sizes[order], kind="stable")].tolist():
            if fold_of[songs[at]] < 0:
                fold_of[songs[at]] = filled.argmin()
            filled[fold_of[songs[at]]] += sizes[at]
    found: NDArray[np.int64] = fold_of[task.songs]
    return found


def _resamples(task: Task, rng: np.random.Generator) -> Values:
    """How often each loop counts where songs are drawn anew, from each set, float (rows, n)."""
    weights = np.zeros((N_RESAMPLES, len(task.songs)))
    for judged in (True, False):
        of = task.judged == judged
        songs, at = np.unique(task.songs[of], return_inverse=True)
        drawn = rng.multinomial(len(songs), np.full(len(songs), 1 / len(songs)), N_RESAMPLES)
        weights[:, of] = drawn[:, at]
    return weights


def auc(scores: Values, positive: NDArray[np.bool_], weights: Values | None = None) -> Values:
    """Area under the ROC curve: how likely a positive scores above a negative, ties as half.

    Args:
        scores: float (n,).
        positive: bool (n,).
        weights: not negative, (rows, n): one value for each row. A row of ones unless told
            otherwise.

    Returns:
        float (rows,), nan where a row has none of a kind.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
    weights, positive = weights[:, order], positive[order]
    ours = np.add.reduceat(weights * positive, starts, axis=1)
    theirs = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(theirs, axis=1) - theirs / 2
    with np.errstate(invalid="ignore"):
        found: Values = (ours * below).sum(axis=1) / (ours.sum(axis=1) * theirs.sum(axis=1))
    return found


def telltales_of(task: Task) -> list[Telltale]:
    """Numbers by how well each alone tells loops apart, among the loops that have it."""
    found = []
    for name, group, values in zip(task.names, task.groups, task.numbers.T, strict=True):
        has = np.isfinite(values)
        ours, theirs = values[has & task.judged], values[has & ~task.judged]
        if len(ours) and len(theirs):
            alone = float(auc(values[has], task.judged[has])[0])
            means = float(ours.mean()), float(theirs.mean())
            found.append(Telltale(name, group, max(alone, 1 - alone), *means))
    return sorted(found, key=lambda telltale: (-telltale.auc, telltale.name))
