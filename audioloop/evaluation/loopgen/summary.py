"""Summary of a benchmark over all loops: the figures of its tables, and the headline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from audioloop.evaluation.loopgen.measures import Vectors, frechet
from audioloop.evaluation.loopgen.methods import (
    ALIGNED,
    CODES,
    CUT,
    METHODS,
    RENDER,
    SETTINGS,
    SPLICED,
)
from audioloop.evaluation.perplexity import WINDOW
from midiloop.common import statistics
from midiloop.common.statistics import Interval, Paired

BASELINE = "masked beat-aligned"
CONTROLS = (ALIGNED, CUT, SPLICED)
FIXED = {"tiled": "LoopGen tiled", "hybrid tiled": "LoopGen"}

REST_NATS = 0.5  # nats: tokens as predictable as this are rests or held notes

MEANING = {
    "seam": "of the first codebook in the 5 frames after the seam, under the causal model, which "
    "is unconditional: the middle of the 95 % interval ± half its width, as in appendix A of the "
    "paper; lower is better",
    "seam_all": "the same of all codebooks",
    "difference": "nats at the seam less those at the same loop's other bar lines (of a naive "
    "loop: the bar lines in it that are half a bar or more from its end), first codebook, mean "
    "and 95 % interval; loops of one bar have none; 0: the seam is as any other bar line",
    "jump": "sample discontinuity at the seam over the median step nearby, median; about 1 cannot "
    "be heard",
    "residual": "LPC residual there over its local median, median; about 3 where nothing was cut",
    "flux_percentile": "percentile of the spectral flux at the seam among all places, mean; "
    "high on a downbeat and at a cut",
    "bar_flux_percentile": "the same among the other bar lines, mean; 50 is chance",
    "wrap_error_db": "difference of the loop from its tokens decoded within a long repetition, "
    "dB, median; lower is better",
    "frechet": "squared Fréchet distance of Gaussians, of the mean and the standard deviation of "
    "64 log-mel bands in windows of 1 s every 0.5 s of the loop, from renders of other test "
    "loops; lower is better",
    "seconds": "seconds to generate a loop, models loaded, mean",
    "around": "nats of the first codebook in each of the 20 frames before the seam and the 21 from "
    "there on, mean",
    "rests": f"of all stretches of {WINDOW} frames among those, the share in which each has less "
    f"than {REST_NATS} nats",
    "conditioned_seam": "seam perplexity under the causal model, conditioned as the loop was",
}
# Of the table's columns.
HEADINGS = {
    "seam": "seam perplexity",
    "seam_all": "all",
    "difference": "difference",
    "jump": "jump",
    "residual": "residual",
    "flux_percentile": "flux",
    "bar_flux_percentile": "bar flux",
    "wrap_error_db": "wrap",
    "frechet": "Fréchet",
    "seconds": "s",
}
# For these lower is not better: best is the value of a true loop's tokens.
CLOSER_IS_BETTER = ("difference", "jump", "residual", "flux_percentile", "bar_flux_percentile")
EXACT_DB = -100.0  # a wrap error below is rounding
RESAMPLES = 200  # bootstrap samples of the loops
CONFIDENCE = 0.975  # share of the samples in which a significant difference has to hold

Rows = Sequence[Mapping[str, Any]]  # metrics of each loop, by one method


@dataclass(frozen=True)
class BenchmarkResult:
    """Result of a benchmark.

    Attributes:
        about: settings, models, data.
        tables: the figures of `figures`, by setting and by row.
        floor: the Fréchet distance between two sets of renders, each as large as the test set.
        items: all metrics of each loop.
    """

    about: dict[str, Any]
    tables: dict[str, dict[str, dict[str, Any]]]
    floor: float
    items: list[dict[str, Any]]


def summarise(items: Rows, about: Mapping[str, Any]) -> BenchmarkResult:
    """Summarise all loops."""
    reference = windows(items, "reference")
    tables = {
        setting: {row: figures(_rows(items, setting, row), reference) for row in METHODS}
        for setting in SETTINGS
    }
    floor = frechet(windows(items, "render"), reference)
    return BenchmarkResult(dict(about), tables, floor, [dict(item) for item in items])


def windows(items: Rows, name: str) -> Vectors:
    """Embeddings of the windows of all loops: (windows, 128)."""
    return np.concatenate([np.reshape(item[name], (-1, 128)) for item in items])


def _rows(items: Rows, setting: str, row: str) -> Rows:
    return [item["rows"][setting][row] for item in items]


def figures(rows: Rows, reference: Vectors) -> dict[str, Any]:
    """Figures of one row of a table, from the metrics of each loop; None where there are none."""
    found: dict[str, Any] = {
        "loops": len(rows),
        **{name: figure(name, rows, reference) for name in HEADINGS},
        "difference_all": _difference(rows, "nats_all", "bars_all"),
        "around": np.mean([row["around"] for row in rows], axis=0).tolist(),
        "rests": rests([row["around"] for row in rows]),
    }
    if all("conditioned_nats" in row for row in rows):
        found["conditioned_seam"] = statistics.interval([row["conditioned_nats"] for row in rows])
        found["conditioned_seam_all"] = statistics.interval(
            [row["conditioned_nats_all"] for row in rows]
        )
    return found


def rests(around: ArrayLike) -> float:
    """Share of stretches of `WINDOW` frames that have under `REST_NATS` nats each: 0 to 1.

    Args:
        around: nats of each frame around the seam, (loops, frames).
    """
    stretches = np.lib.stride_tricks.sliding_window_view(np.asarray(around), WINDOW, axis=-1)
    return float((stretches < REST_NATS).all(-1).mean())


def figure(name: str, rows: Rows, reference: Vectors) -> Interval | Paired | float | None:
    """The figure of one row and one column of `HEADINGS`."""
    match name:
        case "seam":
            return statistics.interval([row["nats"] for row in rows])
        case "seam_all":
            return statistics.interval([row["nats_all"] for row in rows])
        case "difference":
            return _difference(rows, "nats", "bars")
        case "frechet":
            found = windows(rows, "windows")
            return frechet(found, reference) if len(found) > 1 else None
        case "jump" | "residual" | "wrap_error_db":
            return _of(np.median, rows, name)
        case _:
            return _of(np.mean, rows, name)


def _difference(rows: Rows, nats: str, bars: str) -> Paired | None:
    differences = [row[nats] - float(np.mean(row[bars])) for row in rows if row[bars]]
    return statistics.paired(differences) if len(differences) > 1 else None


def _of(mean: Callable[[list[float]], Any], rows: Rows, name: str) -> float | None:
    known = [float(row[name]) for row in rows if row[name] is not None]
    return float(mean(known)) if known else None


class Gain(NamedTuple):
    """How much lower the seam perplexity of a row is than that of another, in per cent.

    Attributes:
        mean: 100 · (1 - the ratio of both), over all loops.
        low, high: its 95 % interval, from the differences of nats of each loop.
    """

    mean: float
    low: float
    high: float


def gain(nats: ArrayLike, baseline: ArrayLike) -> Gain:
    """The gain of a row over another, from the nats at the seam of each loop."""
    apart = statistics.paired(np.subtract(nats, baseline))
    return Gain(*(100 * (1 - math.exp(value)) for value in (apart.mean, apart.high, apart.low)))


def controls(found: BenchmarkResult) -> dict[str, dict[str, float]]:
    """The gain of true renders over the controls; it does not depend on the setting."""
    setting = next(iter(SETTINGS))
    nats = {
        row: [one["nats"] for one in _rows(found.items, setting, row)]
        for row in (RENDER, *CONTROLS)
    }
    return {row: gain(nats[RENDER], nats[row])._asdict() for row in CONTROLS}


def headline(found: BenchmarkResult) -> dict[str, Any]:
    """The main findings, by setting."""
    shown: dict[str, Any] = {}
    reference = windows(found.items, "reference")
    for setting, table in found.tables.items():
        rows = {row: _rows(found.items, setting, row) for row in METHODS}
        nats = {row: [one["nats"] for one in ones] for row, ones in rows.items()}
        apart = table["ring"]["difference"]
        worse_in, significantly_worse_in = {}, {}
        for row, other in FIXED.items():
            worse_in[row] = worse(table[row], table[other], table[CODES])
            significantly_worse_in[row] = significantly_worse(
                worse_in[row], rows[row], rows[other], table[CODES], reference
            )
        shown[setting] = {
            "gain": {
                row: gain(nats[row], nats[BASELINE])._asdict()
                for row in ("ring", "tiled", "hybrid ring", "hybrid tiled", *FIXED.values())
            },
            "ring_indistinguishable": None if apart is None else apart.indistinguishable,
            "fixed_worse_in": worse_in,
            "fixed_significantly_worse_in": significantly_worse_in,
        }
    return shown


def worse(row: Mapping[str, Any], other: Mapping[str, Any], codes: Mapping[str, Any]) -> list[str]:
    """Columns in which a row is not at least as good as another.

    Lower is better. In `CLOSER_IS_BETTER`, best is the value of true tokens. Wrap errors below
    `EXACT_DB` count as equal.
    """
    return [name for name in HEADINGS if _is_worse(name, row[name], other[name], codes[name])]


def significantly_worse(
    names: Sequence[str], rows: Rows, others: Rows, codes: Mapping[str, Any], reference: Vectors
) -> list[str]:
    """Those of the columns in which a row is worse than another with 95 % confidence (two-sided).

    This is a paired bootstrap: worse in at least `CONFIDENCE` of `RESAMPLES` samples of as many
    loops, with replacement. With so few loops that all might be worse by chance, none is.
    """
    if 0.5 ** len(rows) > 1 - CONFIDENCE:
        return []
    draws = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows))).tolist()
    found = []
    for name in names:
        times = 0
        for draw in draws:
            one, two = (figure(name, [ones[n] for n in draw], reference) for ones in (rows, others))
            times += _is_worse(name, one, two, codes[name])
        if times >= CONFIDENCE * RESAMPLES:
            found.append(name)
    return found


def _is_worse(name: str, row: Any, other: Any, codes: Any) -> bool:
    one, two, aim = _middle(row), _middle(other), _middle(codes)
    if one is None or two is None:
        return False
    if name in CLOSER_IS_BETTER and aim is not None:
        one, two = abs(one - aim), abs(two - aim)
    if name == "wrap_error_db":
        one, two = max(one, EXACT_DB), max(two, EXACT_DB)
    return one > two


def _middle(value: Interval | Paired | float | None) -> float | None:
    if isinstance(value, Interval):
        return value.center
    return value.mean if isinstance(value, Paired) else value
