"""Loops as tensors: a whole split, packed, on the training device.

Packed, a million loops take 1.5 GB, so nothing has to be loaded during training.
"""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Grid


class PackedLoops(Dataset[Tensor]):
    """Loops of one split, n of them: uint8 (n, packed_bytes) on a device.

    A map-style dataset, so that `torch.utils.data.DataLoader` takes it; its workers read what lies
    on the CPU.
    """

    def __init__(self, packed: Tensor, grid: Grid = LOOP) -> None:
        self.packed = packed
        self.grid = grid

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: SupportsIndex | slice) -> Tensor:
        """One loop, uint8 (steps, columns) of 0 or 1, or several, (n, steps, columns)."""
        if isinstance(index, slice):
            return self.rolls(index)
        at = range(len(self))[index]  # whole, negative, or an `IndexError`
        return self.rolls(slice(at, at + 1))[0]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """Several loops at once, each uint8 (steps, columns), as `DataLoader` asks for a batch."""
        return [*self.rolls(torch.tensor(indices, device=self.packed.device))]

    def rolls(self, index: Tensor | slice) -> Tensor:
        """The loops at ``index`` as uint8 (B, steps, columns), 0 or 1."""
        packed = self.packed[index]
        # The first cell is the highest bit, as in `numpy.packbits`.
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
        cells = (packed[..., None] >> shifts) & 1
        return cells.flatten(1).view(len(packed), self.grid.steps, self.grid.columns)


def load(
    dataset: LoopDataset,
    split: str,
    device: torch.device,
    *,
    distinct: bool = True,
) -> PackedLoops:
    """All loops of a split; with ``distinct``, equal ones only once.

    Raises:
        LoopError: the split has no loops, or the dataset is damaged.
    """
    grid = dataset.grid
    batches = [batch.packed for batch in dataset.select(split=split, distinct=distinct)]
    if not batches:
        raise no_loops(dataset, split)
    return PackedLoops(torch.from_numpy(np.concatenate(batches)).to(device), grid)


def no_loops(dataset: LoopDataset, split: str) -> LoopError:
    """The error of an empty split."""
    return LoopError(
        f"{dataset.path}: no loop is in the {split} split, for which there are too few songs; "
        "extract loops from more files"
    )


def transpose_bass(rolls: Tensor, semitones: Tensor, grid: Grid = LOOP) -> Tensor:
    """Move the bass of each loop up or down, as far as its notes stay on the grid.

    Args:
        rolls: uint8 (B, steps, columns).
        semitones: int64 (B,), positive upwards.

    Returns:
        uint8 (B, steps, columns); the drums stay.
    """
    drums, bass = torch.split(rolls, [grid.n_drums, grid.n_pitches], 2)
    used = bass.amax(1)  # (B, pitches)
    lowest = used.argmax(1)
    highest = grid.n_pitches - 1 - used.flip(1).argmax(1)
    shift = semitones.clamp(-lowest, grid.n_pitches - 1 - highest)
    pitches = torch.arange(grid.n_pitches, device=rolls.device)
    # What wraps around is silent: no note moves beyond the edge.
    source = (pitches - shift[:, None]) % grid.n_pitches
    moved = bass.gather(2, source[:, None].expand(-1, grid.steps, -1))
    return torch.cat([drums, moved], 2)
