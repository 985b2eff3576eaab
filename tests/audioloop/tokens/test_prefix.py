"""What the causal model writes, and how likely it finds a ring."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from audioloop.conditioning import Conditioning, ConditioningTensors, stack
from audioloop.tokens import prefix
from audioloop.tokens.model import Causal, TokenConfig
from handmade import random_rolls, rotated

TINY = TokenConfig(dim=16, heads=2, layers=2, widening=2, codebook_size=12, reach=5)
FRAMES = 30


pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


@pytest.fixture
def model() -> Causal:
    return Causal(TINY).double().requires_grad_(False)


def conditioning(
    rng: np.random.Generator, n_frames: int = FRAMES, n: int = 1
) -> ConditioningTensors:
    rolls = random_rolls(rng, n)[:, :16]
    found = stack([Conditioning(roll, 16, 3, 33).on(n_frames, 50.0) for roll in rolls])
    return found._replace(frames=found.frames.double())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_codes(n: int = 1, n_frames: int = FRAMES) -> Tensor:
    return torch.randint(TINY.codebook_size, (n, TINY.codebooks, n_frames))


def test_the_same_generator_writes_the_same_line(model: Causal, rng: np.random.Generator) -> None:
    condition = conditioning(rng, n=2)
    lines = [prefix.continuation(model, condition, seeded(seed)) for seed in (1, 1, 2)]
    assert lines[0].shape == (2, TINY.codebooks, FRAMES)
    assert lines[0].dtype == torch.int64
    assert lines[0].min() >= 0
    assert lines[0].max() < TINY.codebook_size
    assert torch.equal(lines[0], lines[1])
    assert not torch.equal(lines[0], lines[2])
    assert not torch.equal(lines[0][0], lines[0][1])


def test_without_chance_each_code_is_the_likeliest_after_all_before_it(
    model: Causal, rng: np.random.Generator
) -> None:
    condition = conditioning(rng, n=2)
    line = prefix.continuation(model, condition, seeded(), top_p=0)
    assert torch.equal(model(line, condition).argmax(-1), line)


def test_a_hotter_line_is_less_likely(model: Causal, rng: np.random.Generator) -> None:
    condition = conditioning(rng, n=8)

    def likely(temperature: float) -> float:
        line = prefix.continuation(model, condition, seeded(), temperature=temperature, top_p=1.0)
        found = model(line, condition).log_softmax(-1).gather(-1, line[..., None])
        return float(found.mean())

    assert likely(0.5) > likely(1.0) > likely(3.0)


@pytest.mark.parametrize("n_frames", [10, FRAMES])
def test_a_prompt_is_the_end_of_a_line_that_has_gone_round(
    n_frames: int, model: Causal, rng: np.random.Generator
) -> None:
    condition = conditioning(rng, n=2)
    both = condition.at(torch.arange(FRAMES + n_frames))
    line = prefix.continuation(model, both, seeded())
    found = prefix.prefix(model, condition, n_frames, seeded())
    assert torch.equal(found, line[..., FRAMES:])


def test_before_a_prompt_of_a_long_ring_only_so_much_is_written(
    model: Causal, rng: np.random.Generator
) -> None:
    condition = conditioning(rng, prefix.WARM_UP_FRAMES + 20)
    heard = condition.at(torch.arange(20, prefix.WARM_UP_FRAMES + 25))
    line = prefix.continuation(model, heard, seeded())
    found = prefix.prefix(model, condition, 5, seeded())
    assert torch.equal(found, line[..., prefix.WARM_UP_FRAMES :])


@pytest.mark.parametrize("stage", range(TINY.codebooks))
def test_a_judge_says_what_the_model_does_of_the_loop_after_itself(
    stage: int, model: Causal, rng: np.random.Generator
) -> None:
    condition, codes = conditioning(rng), some_codes()
    found = prefix.token_probabilities(model, condition)(codes, stage)
    twice = codes.tile(1, 1, 2)
    twice[:, stage + 1 :] = TINY.mask_token
    both = condition._replace(frames=condition.frames.tile(1, 1, 2))
    logits = model(twice, both)[:, stage, FRAMES:]
    wanted = logits.softmax(-1).gather(-1, codes[:, stage][..., None])[..., 0]
    assert ((found > 0) & (found <= 1)).all()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_a_judge_hears_a_long_loop_from_so_far_before_its_seam(
    model: Causal, rng: np.random.Generator
) -> None:
    n_frames = prefix.CONTEXT + 20
    condition, codes = conditioning(rng, n_frames), some_codes(1, n_frames)
    judge = prefix.token_probabilities(model, condition)

    def first(changed: int) -> float:
        other = codes.clone()
        other[..., changed] = (other[..., changed] + 1) % TINY.codebook_size
        return float((judge(other, 0) - judge(codes, 0))[0, 0].abs())

    assert first(n_frames - 1) > 0
    assert first(20) > 0
    assert first(19) == 0


def test_where_a_ring_is_cut_matters_less_than_where_a_line_begins(
    model: Causal, rng: np.random.Generator
) -> None:
    condition, codes = conditioning(rng), some_codes()
    here = prefix.token_probabilities(model, condition)(codes, 0)
    there = prefix.token_probabilities(model, rotated(condition, 11))(codes.roll(11, -1), 0).roll(
        -11, 1
    )
    line = model(codes, condition)[:, 0].softmax(-1).gather(-1, codes[:, 0][..., None])[..., 0]
    at = slice(0, 3)
    assert (here - there)[:, at].abs().max() < 0.5 * (here - line)[:, at].abs().max()


def test_later_codebooks_are_not_heard(model: Causal, rng: np.random.Generator) -> None:
    judge, codes = prefix.token_probabilities(model, conditioning(rng)), some_codes()
    other = codes.clone()
    other[:, 2:] = TINY.mask_token
    assert torch.equal(judge(codes, 1), judge(other, 1))
    assert not torch.equal(judge(codes, 2), judge(other.clamp(max=3), 2))


def test_ways_of_one_loop_are_judged_together(model: Causal, rng: np.random.Generator) -> None:
    judge, codes = prefix.token_probabilities(model, conditioning(rng)), some_codes(3)
    alone = torch.cat([judge(one[None], 1) for one in codes])
    torch.testing.assert_close(judge(codes, 1), alone, rtol=0, atol=1e-12)
