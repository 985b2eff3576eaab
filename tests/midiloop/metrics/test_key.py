"""Keys of bass lines: scales, and how they move."""

from __future__ import annotations

import numpy as np
import pytest

from handmade import random_rolls
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics import key
from midiloop.metrics.key import estimate_key
from midiloop.midi import pianoroll
from midiloop.midi.key import MODES, Key

MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)


def line(pitches: list[int], grid: Grid = LOOP) -> Roll:
    """A bass line of MIDI pitches, half a bar each, the first two of them longest."""
    roll = np.zeros((grid.steps, grid.columns), dtype=np.bool_)
    at = 0
    for number, pitch in enumerate(pitches):
        steps = 16 if number < 2 else 8
        roll[at : at + steps, grid.n_drums + pitch - grid.lowest_pitch] = True
        at += steps
    return roll


@pytest.mark.parametrize("tonic", range(12))
def test_scales_are_in_their_key(tonic: int) -> None:
    for mode, scale in (("major", MAJOR), ("minor", MINOR)):
        degrees = (scale[0], scale[4], *scale)
        found = estimate_key(line([36 + tonic + degree for degree in degrees]))
        assert (found.tonic, found.mode) == (tonic, mode)
        assert found.confidence > 0.05


def test_a_key_moves_with_its_bass_and_not_by_octaves(rng: np.random.Generator) -> None:
    rolls = random_rolls(rng, 40)
    rolls[..., -12:] = False
    before = key.estimate_keys(rolls)
    for semitones in (1, 7, 12):
        moved = rolls.copy()
        moved[..., LOOP.n_drums :] = np.roll(rolls[..., LOOP.n_drums :], semitones, axis=2)
        found = key.estimate_keys(moved)
        np.testing.assert_array_equal(found.tonics, (before.tonics + semitones) % 12)
        np.testing.assert_array_equal(found.modes, before.modes)
        np.testing.assert_allclose(found.confidences, before.confidences, atol=1e-8)


def test_one_by_one_as_all_at_once(rng: np.random.Generator) -> None:
    rolls = random_rolls(rng, 10)
    found = key.estimate_keys(rolls)
    for number, roll in enumerate(rolls):
        of_one = estimate_key(roll)
        assert of_one == found.key(number)
        assert (of_one.tonic, MODES.index(of_one.mode)) == (
            found.tonics[number],
            found.modes[number],
        )


def test_a_score_is_in_the_key_of_its_roll(rng: np.random.Generator) -> None:
    rolls = random_rolls(rng, 20, monophonic=False)
    for roll in (*rolls, line([36, 40, 43, 41, 38, 47])):
        found = pianoroll.decode(roll).key
        assert found is not None
        assert found[:2] == estimate_key(roll)[:2]
        assert found.confidence == pytest.approx(estimate_key(roll).confidence, abs=1e-8)
    assert pianoroll.decode(line([])).key is None


def test_a_bass_is_moved_to_a_tonic_by_the_fewest_semitones(rng: np.random.Generator) -> None:
    scale = [36 + degree for degree in (0, 7, *MAJOR)]  # in C
    for tonic in range(12):
        moved = key.transpose_to(line(scale)[None], tonic)[0]
        shift = tonic if tonic < 6 else tonic - 12
        np.testing.assert_array_equal(moved, line([pitch + shift for pitch in scale]))
    low = [24 + degree for degree in (0, 7, *MAJOR)]  # which goes no lower, so it goes up instead
    moved = key.transpose_to(line(low)[None], 11)[0]
    np.testing.assert_array_equal(moved, line([pitch + 11 for pitch in low]))
    rolls = random_rolls(rng, 30)  # over seven octaves, so that most of them cannot move far
    moved = key.transpose_to(rolls, 9)
    np.testing.assert_array_equal(moved[..., : LOOP.n_drums], rolls[..., : LOOP.n_drums])
    np.testing.assert_array_equal(moved.sum((1, 2)), rolls.sum((1, 2)))


def test_what_has_no_key_says_so() -> None:
    assert estimate_key(line([])) == Key(0, "major", 0.0)
    chromatic = estimate_key(line([]) | np.eye(1, LOOP.columns, 0, dtype=np.bool_))
    assert chromatic.confidence == 0  # drums alone
    one_pitch = estimate_key(line([36]))
    assert one_pitch.tonic == 0
    assert one_pitch.confidence < 0.05  # major or minor, who knows
    with pytest.raises(LoopError, match="expected a bool roll"):
        estimate_key(line([36])[:64])
