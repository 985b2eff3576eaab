"""Loops as tensors: what comes out of a dataset is what lies in it, and a bass that moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from handmade import groove, random_rolls
from midiloop.common.engine import Inline
from midiloop.dataset import tensors
from midiloop.dataset.parquet import LoopDataset
from midiloop.dataset.tensors import PackedLoops, transpose_bass
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Grid
from midiloop.midi import score
from midiloop.mining import extract, rules

CPU = torch.device("cpu")
OPEN = extract.Settings(rules.preset("open"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LoopDataset:
    """Songs of repeated loops, in all three splits."""
    folder = tmp_path_factory.mktemp("songs")
    for number in range(40):
        song = groove(8 + 8 * (number % 2), pitches=[28 + number % 30, 35, 40, 30])
        (folder / f"s{number:02d}.mid").write_bytes(score.to_bytes(song))
    out = tmp_path_factory.mktemp("out") / "loops"
    extract.run([folder], out, OPEN, engine=Inline())
    return LoopDataset(out)


def tensor(rng: np.random.Generator, n: int) -> Tensor:
    return torch.from_numpy(random_rolls(rng, n).view(np.uint8))


def notes(rolls: Tensor) -> Tensor:
    """Bass cells of each loop, (B,)."""
    return rolls[..., LOOP.n_drums :].sum((1, 2))


def within(rolls: Tensor, lowest: int, highest: int) -> Tensor:
    """The same loops with no bass outside of these pitch columns."""
    kept = rolls.clone()
    kept[..., LOOP.n_drums : LOOP.n_drums + lowest] = 0
    kept[..., LOOP.n_drums + highest + 1 :] = 0
    return kept


# Packed loops.


@pytest.mark.parametrize("grid", [LOOP, Grid(bars=1, lowest_pitch=30, highest_pitch=39)])
def test_rolls_are_what_numpy_unpacks(grid: Grid, rng: np.random.Generator) -> None:
    rolls = rng.random((9, grid.steps, grid.columns)) < 0.3
    packed = grid.pack(rolls)
    loops = PackedLoops(torch.from_numpy(packed), grid)
    assert len(loops) == 9
    index = torch.tensor([8, 0, 3, 3])
    found = loops.rolls(index)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), grid.unpack(packed)[index.numpy()])
    np.testing.assert_array_equal(loops.rolls(slice(2, 5)).numpy(), rolls[2:5])


def test_a_split_holds_its_loops_in_order_each_once_or_as_often_as_it_comes(
    dataset: LoopDataset,
) -> None:
    for split in ("train", "valid", "test"):
        stored = np.concatenate([LOOP.pack(b.rolls) for b in dataset.select(split=split)])
        repeats = tensors.load(dataset, split, CPU, distinct=False)
        np.testing.assert_array_equal(repeats.packed.numpy(), stored)
        first = np.sort(np.unique(stored, axis=0, return_index=True)[1])
        assert len(first) < len(stored)
        once = tensors.load(dataset, split, CPU)
        np.testing.assert_array_equal(once.packed.numpy(), stored[first])


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_data_loader_gives_every_loop_once(dataset: LoopDataset, n_workers: int) -> None:
    loops = tensors.load(dataset, "train", CPU)
    rolls = loops.rolls(slice(None))
    in_order = DataLoader(loops, batch_size=5, num_workers=n_workers)
    torch.testing.assert_close(torch.cat([*in_order]), rolls)
    generator = torch.Generator().manual_seed(0)
    shuffled = DataLoader(
        loops, batch_size=5, shuffle=True, num_workers=n_workers, generator=generator
    )
    found = torch.cat([*shuffled])
    assert not torch.equal(found, rolls)
    assert sorted(roll.numpy().tobytes() for roll in found) == sorted(
        roll.numpy().tobytes() for roll in rolls
    )


def test_loops_are_indexed_as_sequences_are(dataset: LoopDataset) -> None:
    loops = tensors.load(dataset, "train", CPU)
    rolls = loops.rolls(slice(None))
    assert loops[0].dtype == torch.uint8
    for index in (0, 3, -1, np.int64(2), slice(1, 4), slice(None, None, 2)):
        torch.testing.assert_close(loops[index], rolls[index])
    for index in (len(loops), -len(loops) - 1):
        with pytest.raises(IndexError):
            loops[index]
    torch.testing.assert_close(torch.stack([loops[at] for at in range(len(loops))]), rolls)


def test_loops_of_another_grid_are_loaded_on_it(tmp_path: Path) -> None:
    grid = Grid(steps_per_beat=3, lowest_pitch=28, highest_pitch=60)
    (tmp_path / "one.mid").write_bytes(score.to_bytes(groove(8)))
    settings = extract.Settings(rules.preset("open"), grid=grid)
    extract.run([tmp_path / "one.mid"], tmp_path / "loops", settings, engine=Inline())
    found = LoopDataset(tmp_path / "loops")
    assert found.grid == grid
    batch = next(found.batches())
    expected = np.stack(extract.loops(groove(8), settings))
    np.testing.assert_array_equal(batch.rolls, expected)
    loops = tensors.load(found, batch.splits[0], CPU, distinct=False)
    np.testing.assert_array_equal(loops.rolls(slice(None)).numpy(), expected)


def test_a_split_without_loops_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "one.mid").write_bytes(score.to_bytes(groove(8)))
    extract.run([tmp_path / "one.mid"], tmp_path / "loops", OPEN, engine=Inline())
    dataset = LoopDataset(tmp_path / "loops")
    there = next(dataset.batches()).splits[0]
    assert len(tensors.load(dataset, there, CPU)) == 1
    for split in {"train", "valid", "test"} - {there}:
        with pytest.raises(LoopError, match=f"{split} split.*extract loops from more files") as bad:
            tensors.load(dataset, split, CPU)
        assert str(tmp_path / "loops") in str(bad.value)
        assert "\n" not in str(bad.value)


# A bass that moves.


def test_to_move_by_nothing_changes_nothing(rng: np.random.Generator) -> None:
    rolls = tensor(rng, 8)
    torch.testing.assert_close(transpose_bass(rolls, torch.zeros(8, dtype=torch.int64)), rolls)


def test_no_note_is_lost_and_no_drum_moves_however_far(rng: np.random.Generator) -> None:
    rolls = torch.cat([tensor(rng, 20), within(tensor(rng, 20), 10, 30)])
    for _ in range(5):
        semitones = torch.from_numpy(rng.integers(-200, 200, len(rolls)))
        moved = transpose_bass(rolls, semitones)
        assert moved.dtype == rolls.dtype
        assert (notes(moved) == notes(rolls)).all()
        assert (moved[..., : LOOP.n_drums] == rolls[..., : LOOP.n_drums]).all()
        # and on every step, so no rhythm changes
        assert (moved.sum(2) == rolls.sum(2)).all()


def test_within_the_grid_each_loop_moves_by_its_own_interval_and_back(
    rng: np.random.Generator,
) -> None:
    rolls = within(tensor(rng, 12), 12, LOOP.n_pitches - 13)
    semitones = torch.arange(-5, 7) * 2
    moved = transpose_bass(rolls, semitones)
    for roll, other, k in zip(rolls, moved, semitones.tolist(), strict=True):
        bass, shifted = roll[:, LOOP.n_drums :], other[:, LOOP.n_drums :]
        torch.testing.assert_close(shifted, bass.roll(k, 1))
    torch.testing.assert_close(transpose_bass(moved, -semitones), rolls)


def test_a_bass_stops_at_the_edge_of_the_grid() -> None:
    rolls = torch.zeros(2, LOOP.steps, LOOP.columns, dtype=torch.uint8)
    lowest, highest = 5, LOOP.n_pitches - 4
    rolls[:, 0, LOOP.n_drums + lowest] = 1
    rolls[:, 9, LOOP.n_drums + highest] = 1
    moved = transpose_bass(rolls, torch.tensor([-12, 12]))
    pitches = [roll[..., LOOP.n_drums :].nonzero().tolist() for roll in moved]
    assert pitches[0] == [[0, 0], [9, highest - 5]]
    assert pitches[1] == [[0, lowest + 3], [9, LOOP.n_pitches - 1]]


def test_a_silent_bass_stays_silent(rng: np.random.Generator) -> None:
    rolls = tensor(rng, 3)
    rolls[..., LOOP.n_drums :] = 0
    torch.testing.assert_close(transpose_bass(rolls, torch.tensor([-7, 0, 7])), rolls)
