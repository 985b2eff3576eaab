"""Loops as one pypianoroll file, written without pypianoroll's dense arrays.

Piano rolls in the file are sparse: for each of 128 pitches, the steps on which it sounds. That
takes a few bytes a note, where the dense arrays take 256 bytes a step.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midiloop.dataset.parquet import LoopBatch
from midiloop.grid import Grid
from midiloop.midi import pianoroll

PITCHES = 128


class SparseLoops:
    """Loops one after the other, as the steps on which each column of their grid is set."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._tempos_bpm: list[NDArray[np.float64]] = []
        self._steps: list[list[NDArray[np.int32]]] = [[] for _ in range(grid.columns)]
        self._n_loops = 0

    def __len__(self) -> int:
        return self._n_loops

    def add(self, batch: LoopBatch) -> None:
        """Append loops, up to 2³¹ steps in all."""
        first = self._n_loops * self.grid.steps
        cells = batch.rolls.reshape(-1, self.grid.columns)
        for column, steps in enumerate(self._steps):
            steps.append((np.flatnonzero(cells[:, column]) + first).astype(np.int32))
        self._tempos_bpm.append(batch.tempos_bpm)
        self._n_loops += len(batch)

    def save(self, path: Path) -> None:
        """Write the file that ``pypianoroll.save`` writes of `interchange.to_multitrack`.

        The same loops give the same bytes.
        """
        grid, n_steps = self.grid, self._n_loops * self.grid.steps
        drums = {drum.pitch: column for column, drum in enumerate(grid.drums)}
        bass = {
            pitch: grid.n_drums + at
            for at, pitch in enumerate(range(grid.lowest_pitch, grid.highest_pitch + 1))
        }
        np.savez_compressed(
            path,
            tempo=np.repeat(np.concatenate(self._tempos_bpm), grid.steps).reshape(-1, 1),
            downbeat=np.arange(n_steps) % grid.steps_per_bar == 0,
            **self._track("pianoroll_0", drums, pianoroll.DRUM_VELOCITY),
            **self._track("pianoroll_1", bass, pianoroll.BASS_VELOCITY),
        )
        info = {
            "resolution": grid.steps_per_beat,
            "name": None,
            "0": {"program": 0, "is_drum": True, "name": "drums"},
            "1": {"program": pianoroll.DECODED_PROGRAM, "is_drum": False, "name": "bass"},
        }
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(zipfile.ZipInfo("info.json"), json.dumps(info))

    def _track(self, name: str, columns: dict[int, int], velocity: int) -> dict[str, Any]:
        """A track's arrays, as SciPy's ``csc_matrix`` names them: (steps, 128 pitches)."""
        nowhere = [np.zeros(0, np.int32)]
        steps = [
            np.concatenate(self._steps[columns[pitch]] if pitch in columns else nowhere)
            for pitch in range(PITCHES)
        ]
        ends = np.cumsum([0, *map(len, steps)], dtype=np.int32)
        return {
            f"{name}_csc_data": np.full(ends[-1], velocity, np.uint8),
            f"{name}_csc_indices": np.concatenate(steps),
            f"{name}_csc_indptr": ends,
            f"{name}_csc_shape": np.array([self._n_loops * self.grid.steps, PITCHES]),
        }
