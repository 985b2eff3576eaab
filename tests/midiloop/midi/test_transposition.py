"""Transposition: there and back is where it was, and drums stay."""

from __future__ import annotations

import numpy as np
import pytest

from handmade import groove, random_rolls, rows, score, track
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Roll
from midiloop.midi import transposition
from midiloop.midi.transposition import transpose_bass, transpose_score


def near_middle(rng: np.random.Generator) -> Roll:
    """Rolls whose bass may move by an octave, up and down."""
    rolls = random_rolls(rng, 40, monophonic=False)
    rolls[..., LOOP.n_drums : LOOP.n_drums + 12] = rolls[..., -12:] = False
    return rolls


def test_rolls_there_and_back(rng: np.random.Generator) -> None:
    rolls, shifts = near_middle(rng), rng.integers(-12, 13, 40)
    assert transposition.room(rolls).has(shifts).all()
    moved = transpose_bass(rolls, shifts)
    np.testing.assert_array_equal(transpose_bass(moved, -shifts), rolls)
    np.testing.assert_array_equal(moved[..., : LOOP.n_drums], rolls[..., : LOOP.n_drums])
    for one, other, shift in zip(rolls, moved, shifts.tolist(), strict=True):
        steps, columns = np.nonzero(one[:, LOOP.n_drums :])
        assert other[steps, LOOP.n_drums + columns + shift].all()


def test_room_reaches_to_the_edges_of_the_grid(rng: np.random.Generator) -> None:
    rolls = near_middle(rng)
    room = transposition.room(rolls)
    for shift in (-room.down, room.up):
        assert room.has(shift).all()
        assert not room.has(shift + np.sign(shift)).any()
        used = transpose_bass(rolls, shift)[..., LOOP.n_drums :].max(1)
        assert used[:, 0 if (shift <= 0).all() else -1].all()
    silent = np.zeros_like(rolls)
    assert transposition.room(silent).has(12).all()
    assert transposition.room(silent).has(-12).all()


@pytest.mark.parametrize("semitones", [-12, -1, 0, 7, 12])
def test_scores_there_and_back(semitones: int) -> None:
    song = groove(4)
    moved = transpose_score(song, semitones)
    assert rows(transpose_score(moved, -semitones)) == rows(song)
    assert rows(moved)[0] == rows(song)[0]
    assert (moved.tracks[1].pitches == song.tracks[1].pitches + semitones).all()
    chords = score(track([(0, 480, 60)], program=4))
    assert transpose_score(chords, semitones).tracks[0].pitches.tolist() == [60 + semitones]


@pytest.mark.parametrize(
    ("semitones", "pitch", "instead"), [(5, 125, "--transpose -7"), (-5, 2, "--transpose 7")]
)
def test_what_leaves_midi_is_one_line(semitones: int, pitch: int, instead: str) -> None:
    song = score(track([(0, 480, 60), (0, 480, pitch)], program=33))
    with pytest.raises(LoopError, match=instead) as caught:
        transpose_score(song, semitones)
    assert "\n" not in str(caught.value)
