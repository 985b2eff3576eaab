"""Conditioning rotates with the loop, has its notes, and may be null."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audioloop.conditioning import (
    CHANNELS,
    NOTES,
    NULL_PROGRAM,
    Conditioning,
    ConditioningTensors,
    stack,
)
from handmade import random_rolls, rotated
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Roll

FRAMES_PER_S = 50.0
STEPS = 32
ONSET, HAS_NOTES = NOTES - 2, NOTES - 1
KICK = LOOP.drum_column("kick")


@pytest.fixture
def roll(rng: np.random.Generator) -> Roll:
    return random_rolls(rng, 1)[0, :STEPS]


def frames_of(
    conditioning: Conditioning, n_frames: int, frames_per_s: float = FRAMES_PER_S
) -> Tensor:
    return conditioning.on(n_frames, frames_per_s).frames[0]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# Rotation.


@pytest.mark.parametrize("frames_per_step", [1, 3, 8])
def test_notes_roll_with_the_loop_by_any_step(frames_per_step: int, roll: Roll) -> None:
    n_frames = STEPS * frames_per_step
    frames = frames_of(Conditioning(roll, STEPS), n_frames)
    for by in (1, 5, STEPS - 1):
        found = frames_of(Conditioning(np.roll(roll, by, 0), STEPS), n_frames)
        assert torch.equal(found[:NOTES], frames[:NOTES].roll(by * frames_per_step, -1))


@pytest.mark.parametrize("frames_per_step", [1, 3, 8])
def test_conditioning_rolls_with_the_loop_by_whole_beats(frames_per_step: int, roll: Roll) -> None:
    condition = Conditioning(roll, STEPS, 8, 33).on(STEPS * frames_per_step, FRAMES_PER_S)
    for by in (4, 16, STEPS - 4):
        conditioning = Conditioning(np.roll(roll, by, 0), STEPS, 8, 33)
        found = conditioning.on(STEPS * frames_per_step, FRAMES_PER_S)
        rolled = rotated(condition, by * frames_per_step)
        close(found.frames, rolled.frames)
        assert (found.kit, found.bass) == (rolled.kit, rolled.bass)


def test_places_go_round() -> None:
    condition = Conditioning(steps=STEPS).on(48, FRAMES_PER_S)
    places = torch.arange(-7, 100)
    assert torch.equal(condition.at(places).frames[..., 7:55], condition.frames)
    assert torch.equal(condition.at(places).frames[..., :48], rotated(condition, 7).frames)


# Values.


def test_frames_of_notes_written_out_by_hand() -> None:
    low, high = LOOP.n_drums + 3, LOOP.n_drums + 20
    roll = np.zeros((4, LOOP.columns), np.bool_)
    roll[0, KICK] = True
    roll[[0, 1, 3], low] = True  # from the last step over the bar line to the second
    roll[2, high] = True
    frames = frames_of(Conditioning(roll, 4), 8)
    assert frames.shape == (CHANNELS, 8)
    assert frames[KICK].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert frames[low].tolist() == [1, 1, 1, 1, 0, 0, 1, 1]
    assert frames[high].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert frames[ONSET].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert frames[HAS_NOTES].tolist() == [1] * 8
    assert frames[:NOTES].sum() == 2 + 6 + 2 + 4 + 8


def test_frames_of_the_beat_written_out_by_hand() -> None:
    """Eight frames of half a second: a beat at 120 bpm, and two frames a sixteenth."""
    beat = frames_of(Conditioning(steps=4), 8, 16.0)[NOTES:]
    eighth = torch.arange(8) * (math.pi / 4) + math.pi / 8
    close(beat[0], torch.zeros(8))  # a quarter and three quarters of a turn
    close(beat[1], torch.tensor([1.0, -1] * 4))
    close(beat[2], eighth.cos())
    close(beat[3], eighth.sin())
    close(beat[4], torch.tensor([0.3125, 0.9375] * 4))  # tenths of a second since the sixteenth
    close(beat[5], torch.ones(8))


@pytest.mark.parametrize(("bpm", "tempo"), [(60, 0.5), (120, 1), (240, 1.5)])
def test_an_octave_of_tempo_is_half_of_one(bpm: float, tempo: float) -> None:
    n_frames = round(STEPS / 4 * 60 / bpm * FRAMES_PER_S)
    assert frames_of(Conditioning(steps=STEPS), n_frames)[-1].numpy() == pytest.approx(tempo)


@pytest.mark.parametrize("n_frames", [33, 100, 127, 401])
def test_a_frame_has_the_step_its_middle_is_in(n_frames: int) -> None:
    steps = np.zeros((STEPS, LOOP.columns), np.bool_)
    steps[np.arange(STEPS), np.arange(STEPS)] = True
    frames = frames_of(Conditioning(steps, STEPS), n_frames)
    found = frames[:STEPS].argmax(0).tolist()
    assert found == [(2 * frame + 1) * STEPS // (2 * n_frames) for frame in range(n_frames)]


def test_programs_are_those_of_the_whole_loop() -> None:
    condition = Conditioning(kit=0, bass=127).on(12, FRAMES_PER_S)
    assert (condition.kit.tolist(), condition.bass.tolist()) == ([0], [127])
    assert condition.kit.dtype == condition.bass.dtype == torch.int64


# The null condition.


def test_the_null_condition_is_zeros() -> None:
    condition = Conditioning().on(20, FRAMES_PER_S)
    assert condition.frames.shape == (1, CHANNELS, 20)
    assert condition.frames.dtype == torch.float32
    assert not condition.frames.any()
    assert (condition.kit.tolist(), condition.bass.tolist()) == ([NULL_PROGRAM], [NULL_PROGRAM])


def test_a_beat_needs_no_notes_and_empty_bars_are_notes() -> None:
    beat = frames_of(Conditioning(steps=STEPS), 100)
    rest = frames_of(Conditioning(np.zeros((STEPS, LOOP.columns), np.bool_), STEPS), 100)
    assert not beat[:NOTES].any()
    assert torch.equal(beat[NOTES:], rest[NOTES:])
    assert rest[:NOTES].sum() == rest[HAS_NOTES].sum() == 100
    assert (
        Conditioning(np.zeros((STEPS, LOOP.columns), np.bool_), STEPS).on(100, FRAMES_PER_S).notes
    )
    assert not Conditioning(steps=STEPS, kit=40).on(100, FRAMES_PER_S).notes


def test_the_null_of_a_condition_is_the_null_condition(roll: Roll) -> None:
    conditioning = [Conditioning(roll, STEPS, 1, 35), Conditioning(steps=STEPS, kit=40)]
    null = stack([one.on(64, FRAMES_PER_S) for one in conditioning]).null()
    nothing = stack([Conditioning().on(64, FRAMES_PER_S)] * 2)
    assert all(torch.equal(one, other) for one, other in zip(null, nothing, strict=True))


# Several.


def test_several_are_one_after_the_other(roll: Roll) -> None:
    one, other = Conditioning(roll, STEPS, 1, 35).on(64, 50.0), Conditioning(kit=3).on(64, 50.0)
    both = stack([one, other])
    assert torch.equal(both.frames, torch.cat([one.frames, other.frames]))
    assert (both.kit.tolist(), both.bass.tolist()) == ([1, 3], [35, NULL_PROGRAM])
    expected = stack([one, one, one, other, other, other])
    found = both.repeated(3).to(torch.device("cpu"))
    assert isinstance(found, ConditioningTensors)
    assert all(torch.equal(tensor, wanted) for tensor, wanted in zip(found, expected, strict=True))


# What does not fit together.


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "fewer steps": ({"roll": (16, LOOP.columns), "steps": 32}, r"bool roll \(32, 93\)"),
    "no steps": ({"roll": (16, LOOP.columns)}, r"got bool \(16, 93\)"),
    "fewer columns": ({"roll": (16, 92), "steps": 16}, r"got bool \(16, 92\)"),
    "several rolls": ({"roll": (1, 16, 93), "steps": 16}, r"got bool \(1, 16, 93\)"),
    "nothing": ({"steps": 0}, "a loop of 0 sixteenths"),
    "less than nothing": ({"steps": -16}, "a loop of -16 sixteenths"),
    "a kit too high": ({"kit": NULL_PROGRAM}, "program 128 is not from 0 to 127"),
    "a kit too low": ({"kit": -1}, "program -1 is not"),
    "a bass too high": ({"bass": 500}, "program 500 is not"),
}


@pytest.mark.parametrize(("conditioning", "cause"), BAD.values(), ids=BAD)
def test_conditioning_that_cannot_be_is_one_line(conditioning: dict[str, Any], cause: str) -> None:
    if "roll" in conditioning:
        conditioning = conditioning | {"roll": np.zeros(conditioning["roll"], np.bool_)}
    with pytest.raises(LoopError, match=cause) as bad:
        Conditioning(**conditioning)
    assert "\n" not in str(bad.value)


def test_loudness_is_no_roll() -> None:
    velocities: Any = np.zeros((16, LOOP.columns), np.float32)
    with pytest.raises(LoopError, match="got float32"):
        Conditioning(velocities, 16)
