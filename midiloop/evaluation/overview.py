"""What is in a loop dataset: counts, histograms, and the paper's row of metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midiloop.dataset.parquet import LoopDataset
from midiloop.grid import Grid, grid_from_json
from midiloop.metrics import paper
from midiloop.metrics.bits import Bits
from midiloop.metrics.key import estimate_keys
from midiloop.midi.key import CONFIDENT, MODES, Key, Keys

TEMPO_EDGES_BPM = (0, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150, 160, 180, 200, np.inf)
READ_AT_A_TIME = 8_192
DENSITY_EDGES = tuple(np.linspace(0, 1, 11).round(1).tolist())


@dataclass(frozen=True)
class Histogram:
    """How many values lie from each edge to the next, the last edge included."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Overview:
    """What `of` finds.

    Attributes:
        manifest: of the dataset.
        metrics: the paper's training-set row; empty where there are no loops.
        tempo_bpm: of loops.
        note_density: share of a loop's steps on which anything sounds.
        keys: loops of each key, the most frequent first; of those whose bass has a confident one.
    """

    manifest: dict[str, Any]
    metrics: dict[str, float]
    tempo_bpm: Histogram
    note_density: Histogram
    keys: dict[str, int]

    @property
    def grid(self) -> Grid:
        """That the loops lie on."""
        return grid_from_json(self.manifest["grid"])

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it; an open last edge is null."""
        found = asdict(self)
        edges = found["tempo_bpm"]["edges"]
        found["tempo_bpm"]["edges"] = [*edges[:-1], None]
        return found


def of(dataset: LoopDataset) -> Overview:
    """Look at every loop of a dataset, batch by batch, and keep none."""
    tempo = np.zeros(len(TEMPO_EDGES_BPM) - 1, dtype=np.int64)
    density = np.zeros(len(DENSITY_EDGES) - 1, dtype=np.int64)
    keys: Counter[str] = Counter()

    def loops() -> Iterator[Bits]:
        for batch in dataset.batches(READ_AT_A_TIME):
            add(tempo, batch.tempos_bpm, TEMPO_EDGES_BPM)
            for bits in Bits(batch.packed, dataset.grid).pieces():
                add(density, paper.note_density(bits, dataset.grid), DENSITY_EDGES)
                add_keys(estimate_keys(bits, dataset.grid))
                yield bits

    def add(counts: NDArray[np.int64], values: Any, edges: tuple[float, ...]) -> None:
        counts += np.histogram(values, edges)[0]

    def add_keys(found: Keys) -> None:
        certain = found.confidences >= CONFIDENT
        pairs = zip(found.tonics[certain].tolist(), found.modes[certain].tolist(), strict=True)
        keys.update(str(Key(tonic, MODES[mode])) for tonic, mode in pairs)

    metrics = _metrics(loops(), dataset) if len(dataset) else {}
    return Overview(
        dataset.manifest,
        metrics,
        Histogram(TEMPO_EDGES_BPM, tuple(tempo.tolist())),
        Histogram(DENSITY_EDGES, tuple(density.tolist())),
        dict(keys.most_common()),
    )


def _metrics(loops: Iterator[Bits], dataset: LoopDataset) -> dict[str, float]:
    """The paper's row. How many loops are distinct was counted when the dataset was assembled."""
    row = paper.means(loops, grid=dataset.grid)
    # each loop of a set is in that set
    row |= {"US": dataset.manifest["counts"]["distinct_loops"] / len(dataset), "OS": 1.0}
    return {name: row[name] for name in paper.TABLE}
