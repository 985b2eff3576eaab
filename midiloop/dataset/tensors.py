"""Loops as tensors: a whole split, packed, on the training device.

Packed, a million loops take 1.5 GB, so nothing has to be loaded during training.
"""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Grid
from midiloop.midi import performance


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


class PlayedLoops(PackedLoops):
    """Loops and how they are played: `rolls` gives both.

    Args:
        packed: uint8 (n, packed_bytes).
        n_onsets: int64 (n,), of each loop.
        velocities, offsets: uint8 and int8, of the onsets of all loops, one after the other.
        songs: of each loop, (n,).
    """

    def __init__(
        self,
        packed: Tensor,
        n_onsets: Tensor,
        velocities: Tensor,
        offsets: Tensor,
        songs: NDArray[np.str_],
        grid: Grid = LOOP,
    ) -> None:
        super().__init__(packed, grid)
        self.songs = songs
        self.n_onsets, self.velocities, self.offsets = n_onsets, velocities, offsets
        self._first = n_onsets.cumsum(0) - n_onsets

    def rolls(self, index: Tensor | slice) -> Tensor:
        """The loops at ``index`` as int16 (B, 3, steps, columns).

        The planes are the roll, velocities (0 where there is no onset) and offsets.
        """
        rolls = super().rolls(index)
        sizes, first = self.n_onsets[index], self._first[index]
        within = torch.arange(int(sizes.sum()), device=sizes.device)
        at = within + (first - sizes.cumsum(0) + sizes).repeat_interleave(sizes)
        planes = torch.zeros(
            len(rolls), 3, *rolls.shape[1:], dtype=torch.int16, device=rolls.device
        )
        planes[:, 0] = rolls
        struck = rolls.bool()
        struck[:, 1:, self.grid.n_drums :] &= rolls[:, :-1, self.grid.n_drums :] == 0
        planes[:, 1][struck] = self.velocities[at].to(torch.int16)
        planes[:, 2][struck] = self.offsets[at].to(torch.int16)
        return planes


def load_played(
    dataset: LoopDataset,
    split: str,
    device: torch.device,
    *,
    min_deviation: float,
    min_values: int,
) -> PlayedLoops:
    """The distinct loops of a split whose drums have played dynamics.

    Args:
        min_deviation: standard deviation of the velocities of a loop's drums, or more.
        min_values: different velocities of a loop's drums, or more.

    Raises:
        LoopError: there are none, or the dataset does not say how its loops are played.
    """
    dataset.check_played()
    found, kept, songs = [], [], []
    for batch in dataset.select(split=split, distinct=True):
        assert batch.performances is not None  # as was checked
        is_drum = np.arange(dataset.grid.columns) < dataset.grid.n_drums
        struck = performance.onsets(batch.rolls, dataset.grid)
        for number, played in enumerate(batch.performances):
            drums = played.velocities[(struck[number] & is_drum)[struck[number]]]
            if drums.std() > min_deviation and len(np.unique(drums)) >= min_values:
                found.append(batch.packed[number])
                kept.append(played)
                songs.append(batch.songs[number])
    if not kept:
        raise LoopError(
            f"{dataset.path}: no loop of the {split} split has played dynamics ({min_values} "
            f"velocities of its drums that deviate by {min_deviation:g}); extract loops from more "
            "files"
        )
    packed, n_onsets, velocities, offsets = (
        torch.from_numpy(array).to(device)
        for array in (
            np.stack(found),
            np.array([len(played.velocities) for played in kept]),
            np.concatenate([played.velocities for played in kept]),
            np.concatenate([played.offsets for played in kept]),
        )
    )
    return PlayedLoops(packed, n_onsets, velocities, offsets, np.array(songs), dataset.grid)


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
