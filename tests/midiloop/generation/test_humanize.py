"""What is humanised is played otherwise, and quantises to the same roll."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handmade import BAR, JIG, STEP, WALTZ, groove, random_rolls, rows, score, track
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError
from midiloop.generation import humanize, outputs
from midiloop.generation.humanize import Feel
from midiloop.grid import LOOP, Grid, Roll
from midiloop.midi import performance, pianoroll
from midiloop.midi import score as score_module
from midiloop.midi.score import Score, read, to_bytes
from midiloop.mining import midi_loop
from midiloop.models.hands import Hands, HandsConfig

SMALL = HandsConfig(dim=16, layers=2, heads=2, rounds=4)


@pytest.fixture(scope="module")
def hands() -> Hands:
    torch.manual_seed(3)
    return Hands(SMALL).eval()


def encoded(song: Score, *, circular: bool) -> Roll:
    return pianoroll.encode(song, by_name=True, circular=circular)


def songs(rng: np.random.Generator) -> list[Score]:
    """Loops and songs, on the grid and off it, in few ticks and in many, with other tracks."""
    found = [groove(8), groove(12), groove(3)]
    for roll in random_rolls(rng, 6):
        n = int(performance.onsets(roll).sum())
        off = rng.integers(-128, 128, n).astype(np.int8)
        played = performance.Performance(np.full(n, 90, np.uint8), off)
        found.append(performance.decode(roll, played))
    piano = track([(0, BAR, 60), (BAR, 5, 64)], program=0, name="Piano")
    again = track([(at * STEP, STEP, 30) for at in range(32)], program=33)  # struck again
    folded = track([(0, 10, 42), (0, 10, 44), (3, 9, 56), (STEP, 9, 35)], drum=True)
    found.append(score(piano, again, folded, length=2 * BAR))
    coarse = score(track([(0, 1, 36), (4, 1, 38)], drum=True), tpq=4, length=16)
    return [*found, coarse]


def test_it_quantises_to_the_same_roll(hands: Hands, rng: np.random.Generator) -> None:
    for song in songs(rng):
        song = read(to_bytes(song))  # as commands see it
        circular = len(encoded(song, circular=False)) <= LOOP.steps
        for feel in (Feel(1.0, seed=5), Feel(0.5, 1.0), Feel(0.0, 0.7)):
            played = read(to_bytes(humanize.humanize(song, feel, hands)))
            expected, found = (encoded(one, circular=circular) for one in (song, played))
            np.testing.assert_array_equal(found[: len(expected)], expected)
            assert not found[len(expected) :].any()


def test_other_tracks_stay_as_they_are(hands: Hands, rng: np.random.Generator) -> None:
    song = songs(rng)[-2]
    played = humanize.humanize(song, Feel(seed=2), hands)
    assert rows(played)[0] == rows(song)[0]
    cowbell = played.tracks[2].pitches == 56
    assert played.tracks[2].onsets[cowbell].tolist() == [3]
    assert len(set(played.tracks[1].velocities.tolist())) > 4  # each of the notes struck again


def test_texts_lyrics_markers_and_sysex_stay_in_time(hands: Hands) -> None:
    """In a file of so few ticks that it gets more of them."""
    song = score(track([(0, 1, 36), (4, 1, 38)], drum=True), tpq=4, length=16)
    remarks = [
        (0, bytes((0xFF, 0x59, 2, 1, 0))),
        (0, bytes((0xF0, 5, 0x7E, 0x7F, 9, 1, 0xF7))),
        (4, b"\xff\x05\x02la"),
        (16, b"\xff\x06\x03end"),
    ]
    data = to_bytes(song, [*remarks, (17, b"\xff\x06\x04late")])
    played = humanize.midi(data, Feel(), hands)
    assert read(played).ticks_per_quarter == 240
    assert [(tick // 60, event) for tick, event in score_module.remarks(played)] == remarks


def test_without_feel_nothing_changes(hands: Hands, rng: np.random.Generator) -> None:
    data = to_bytes(groove(8))
    assert humanize.midi(data, Feel(0.0), hands) is data
    assert humanize.player(Feel(0.0)) is None


def test_a_seed_gives_one_performance(hands: Hands, rng: np.random.Generator) -> None:
    data = to_bytes(groove(8))
    drawn = [humanize.midi(data, Feel(seed=seed), hands, number=n) for seed, n in
             ((1, 0), (1, 0), (2, 0), (1, 1))]  # fmt: skip
    assert drawn[0] == drawn[1]
    assert len({*drawn}) == 3


def test_feel_is_how_far_it_goes(hands: Hands) -> None:
    roll = midi_roll(groove(8))
    plays = [humanize.player(Feel(feel, seed=4), hands) for feel in (0.5, 1.0)]
    half, whole = (play(0, roll) for play in plays if play)
    own = performance.on_grid(roll)
    middle = (own.velocities.astype(float) + whole.velocities) / 2
    assert np.abs(half.velocities - middle).max() <= 0.5
    assert np.abs(half.offsets - whole.offsets / 2).max() <= 0.5


def midi_roll(song: Score) -> Roll:
    return pianoroll.encode(song)


def test_full_swing_is_triplets() -> None:
    roll = np.zeros((128, 93), np.bool_)
    roll[:, 2] = True
    play = humanize.player(Feel(0.0, 1.0))
    assert play is not None
    song = performance.decode(roll, play(0, roll))
    assert np.diff(song.tracks[0].onsets)[:4].tolist() == [160, 80, 160, 80]


def test_hands_are_equivariant_under_bars_and_circular(hands: Hands) -> None:
    """A loop begun a bar later is heard alike."""
    planes = torch.zeros(1, 3, 128, 93, dtype=torch.int16)
    planes[0, 0] = torch.from_numpy(random_rolls(np.random.default_rng(1), 1)[0])
    planes[0, 1] = planes[0, 0] * 64
    with torch.no_grad():
        mean = hands.expected_velocities(planes)
        later = hands.expected_velocities(planes.roll(16, 2))
    steps = (planes[0, 1, :, :9] > 0).sum(1) + (planes[0, 1, :, 9:] > 0).any(1)
    n_last = int(steps[-16:].sum())
    torch.testing.assert_close(later, mean.roll(n_last), rtol=1e-4, atol=1e-3)


def test_generated_loops_are_played(hands: Hands, rng: np.random.Generator, tmp_path: Path) -> None:
    rolls = random_rolls(rng, 3)
    about = {"run": "x"}
    for name, play in (("plain", None), ("played", humanize.player(Feel(), hands))):
        outputs.write(rolls, tmp_path / name, tempo_bpm=100, seed=0, about=about, play=play)
        dataset = LoopDataset(tmp_path / name / "dataset")
        (batch,) = dataset.batches()
        np.testing.assert_array_equal(batch.rolls, rolls)
        assert (batch.performances is None) == (play is None)
        paths = sorted((tmp_path / name / "midi").iterdir())
        for roll, path in zip(rolls, paths, strict=True):
            np.testing.assert_array_equal(midi_loop.read(path).roll, roll)
    assert batch.performances is not None
    velocities = read(paths[0]).tracks[0].velocities
    is_drum = np.nonzero(performance.onsets(rolls[0]))[1] < 9
    assert sorted(velocities) == sorted(batch.performances[0].velocities[is_drum])


def test_a_folder_of_files_loses_the_bad_ones(hands: Hands, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.mid").write_bytes(to_bytes(groove(8)))
    piano = score(track([(0, BAR, 60)], program=0))
    (tmp_path / "b" / "piano.mid").write_bytes(to_bytes(piano))
    found = humanize.midi_files([tmp_path / "a", tmp_path / "b"], tmp_path / "out", Feel(), hands)
    assert [path.name for path in found.written] == ["x.mid", "x-v2.mid"]
    assert all(path.exists() for path in found.written)
    ((name, cause),) = found.failed
    assert name.endswith("piano.mid")
    assert cause.startswith("no drum and no bass note to humanise; give")
    with pytest.raises(LoopError, match=r"piano.mid: no drum"):
        humanize.midi_files([tmp_path / "b" / "piano.mid"], tmp_path / "none", Feel(), hands)
    assert not (tmp_path / "none").exists()


def test_what_is_out_of_range_is_refused(hands: Hands) -> None:
    with pytest.raises(CallError, match="feel 2: out of range; give 0 to 1"):
        Feel(2)
    with pytest.raises(CallError, match=r"swing -0.1: out of range"):
        Feel(1, -0.1)
    coarse = replace(LOOP, steps_per_beat=6)
    with pytest.raises(LoopError, match="hands for 4 steps a beat"):
        humanize.player(Feel(), hands, coarse)
    assert humanize.player(Feel(), hands, Grid(bars=2)) is not None


@pytest.mark.parametrize("grid", [JIG, replace(WALTZ, steps_per_beat=4)], ids=str)
def test_a_loop_in_another_meter_keeps_its_bars(
    hands: Hands, grid: Grid, rng: np.random.Generator
) -> None:
    roll = random_rolls(rng, 1, grid=grid)[0]
    roll[-1, 0] = True
    song = pianoroll.decode(roll, grid=grid)
    data = humanize.midi(to_bytes(song), Feel(), hands)
    assert score_module.end_of_tracks_quarters(data) == grid.bars * grid.meter.beats
    played = read(data)
    assert played.meters == song.meters
    back = pianoroll.encode(played, grid, circular=True)
    np.testing.assert_array_equal(back[: len(roll)], roll)
    with pytest.raises(LoopError, match="hands for 4 steps a beat in 4/4"):
        humanize.player(Feel(), hands, grid)
