"""Models of codes: one knows no first frame, the other knows no later one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from audioloop.conditioning import NULL_PROGRAM, Conditioning, ConditioningTensors, stack
from audioloop.tokens.model import Causal, Masked, TokenConfig
from handmade import random_rolls, rotated

TINY = TokenConfig(
    dim=16, heads=2, layers=2, widening=2, codebooks=4, codebook_size=12, context=3, reach=5
)
BOOKS = range(TINY.codebooks)
FRAMES = 30
HEARD = TINY.layers * 3  # frames away, through all layers of restricted context
ASIDE = TINY.reach // 2  # frames away, of what is told
EXACT = 1e-12


pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


@pytest.fixture
def conditioning(rng: np.random.Generator) -> ConditioningTensors:
    """Of two loops."""
    return conditions_of(rng, FRAMES)


def conditions_of(rng: np.random.Generator, n_frames: int) -> ConditioningTensors:
    one, other = random_rolls(rng, 2)[:, :16]
    found = [Conditioning(one, 16, 3, 33), Conditioning(other, 16, None, 38)]
    return stack([each.on(n_frames, 50.0) for each in found])


def some_codes(n_frames: int = FRAMES, *, gaps: bool = False) -> Tensor:
    return torch.randint(TINY.codebook_size + gaps, (2, TINY.codebooks, n_frames))


def double(condition: ConditioningTensors) -> ConditioningTensors:
    return condition._replace(frames=condition.frames.double())


def changed_at(codes: Tensor, at: int, book: int | None = None) -> Tensor:
    """The same, but for the codes of a frame in both loops, or one of them."""
    codes = codes.clone()
    books = slice(None) if book is None else slice(book, book + 1)
    codes[:, books, at] = (codes[:, books, at] + 1) % TINY.codebook_size
    return codes


def moved(one: Tensor, other: Tensor) -> Tensor:
    """Where logits (B, …, size) differ in both loops: bool (…)."""
    return ((one - other).abs().amax(-1) > EXACT).all(0)


def untouched(one: Tensor, other: Tensor) -> Tensor:
    """Where logits (B, …, size) are the same in both loops: bool (…)."""
    return ((one - other).abs().amax(-1) <= EXACT).all(0)


# `Masked`.


@pytest.mark.parametrize("context", [3, None])
@pytest.mark.parametrize("n_frames", [1, 5, 30])
@pytest.mark.parametrize("stage", BOOKS)
@torch.inference_mode()
def test_logits_on_a_ring_roll_with_the_loop(
    stage: int, n_frames: int, context: int | None, rng: np.random.Generator
) -> None:
    model = Masked(replace(TINY, context=context)).eval()
    codes, condition = some_codes(n_frames, gaps=True), conditions_of(rng, n_frames)
    logits = model(codes, condition, stage, circular=True)
    assert logits.shape == (2, n_frames, TINY.codebook_size)
    for by in {1 % n_frames, n_frames // 2, n_frames - 1}:
        found = model(codes.roll(by, -1), rotated(condition, by), stage, circular=True)
        torch.testing.assert_close(found, logits.roll(by, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("stage", BOOKS)
@torch.inference_mode()
def test_a_line_has_ends(stage: int, conditioning: ConditioningTensors) -> None:
    model, codes = Masked(TINY).eval().double(), some_codes()
    conditioning = double(conditioning)
    line, ring = (
        model(codes, conditioning, stage, circular=circular) for circular in (False, True)
    )
    assert moved(line, ring)[[0, -1]].all()
    rolled = model(codes.roll(7, -1), rotated(conditioning, 7), stage, circular=False)
    assert moved(rolled, line.roll(7, 1))[[6, 7]].all()


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("stage", BOOKS)
@torch.inference_mode()
def test_later_codebooks_hear_what_is_near(
    stage: int, circular: bool, conditioning: ConditioningTensors
) -> None:
    model, codes, at = Masked(TINY).eval().double(), some_codes(), 2
    conditioning = double(conditioning)
    before = model(codes, conditioning, stage, circular=circular)
    frames = conditioning.frames.clone()
    frames[..., at] += 1
    other_codes = model(changed_at(codes, at), conditioning, stage, circular=circular)
    other_told = model(codes, conditioning._replace(frames=frames), stage, circular=circular)
    away = (torch.arange(FRAMES) - at).abs()
    if circular:
        away = torch.minimum(away, FRAMES - away)
    heard = FRAMES if stage == 0 else HEARD
    assert torch.equal(moved(before, other_codes), away <= heard)
    assert torch.equal(untouched(before, other_codes), away > heard)
    assert torch.equal(moved(before, other_told), away <= heard + ASIDE)
    assert torch.equal(untouched(before, other_told), away > heard + ASIDE)


@pytest.mark.parametrize("stage", BOOKS)
@torch.inference_mode()
def test_without_a_context_all_is_heard(stage: int, conditioning: ConditioningTensors) -> None:
    model, codes = Masked(replace(TINY, context=None)).eval().double(), some_codes()
    conditioning = double(conditioning)
    before = model(codes, conditioning, stage, circular=False)
    assert moved(before, model(changed_at(codes, 2), conditioning, stage, circular=False)).all()


@torch.inference_mode()
def test_a_gap_is_no_code(conditioning: ConditioningTensors) -> None:
    model, codes = Masked(TINY).eval(), some_codes()
    found = []
    for code in range(TINY.mask_token + 1):
        codes[:, 1, 4] = code
        found.append(model(codes, conditioning, 1, circular=True)[0, 4])
    assert TINY.mask_token == TINY.codebook_size
    assert torch.pdist(torch.stack(found)).min() > 1e-3


@torch.inference_mode()
def test_every_codebook_has_a_say_of_its_own(conditioning: ConditioningTensors) -> None:
    model, codes = Masked(TINY).eval(), some_codes()
    found = [model(codes, conditioning, stage, circular=True).flatten() for stage in BOOKS]
    found += [model(codes.flip(1), conditioning, stage, circular=True).flatten() for stage in BOOKS]
    assert torch.pdist(torch.stack(found)).min() > 0.1


# What both hear.


@pytest.mark.parametrize("kind", [Masked, Causal])
@torch.inference_mode()
def test_kit_and_bass_and_notes_are_heard_everywhere_or_where_they_are(
    kind: type[Masked | Causal], conditioning: ConditioningTensors
) -> None:
    model, codes = kind(TINY).eval().double(), some_codes()
    conditioning = double(conditioning)

    def logits(condition: ConditioningTensors) -> Tensor:
        found: Tensor
        if isinstance(model, Masked):
            found = model(codes, condition, 1, circular=True)
        else:
            found = model(codes, condition)[:, 1]
        return found

    before, unsaid = logits(conditioning), torch.full((2,), NULL_PROGRAM)
    assert moved(before, logits(conditioning._replace(kit=torch.tensor([40, 41])))).all()
    assert moved(before, logits(conditioning._replace(bass=unsaid))).all()
    swapped = conditioning._replace(kit=conditioning.bass, bass=conditioning.kit)
    assert moved(before, logits(swapped)).all()
    silent = logits(conditioning.null())
    assert moved(before, silent).all()
    nothing = double(stack([Conditioning().on(FRAMES, 50.0)] * 2))
    assert torch.equal(silent, logits(nothing))


# `Causal`.


@pytest.mark.parametrize("book", BOOKS)
@torch.inference_mode()
def test_a_code_is_told_all_before_it_and_nothing_after(
    book: int, conditioning: ConditioningTensors
) -> None:
    model, codes, at = Causal(TINY).eval().double(), some_codes(), 11
    conditioning = double(conditioning)
    before = model(codes, conditioning)
    assert before.shape == (2, TINY.codebooks, FRAMES, TINY.codebook_size)
    after = model(changed_at(codes, at, book), conditioning)
    heard = torch.zeros(TINY.codebooks, FRAMES, dtype=torch.bool)
    heard[:, at + 1 :] = True
    heard[book + 1 :, at] = True
    assert torch.equal(moved(before, after), heard)
    assert torch.equal(untouched(before, after), ~heard)


@torch.inference_mode()
def test_what_is_told_is_heard_a_little_ahead(conditioning: ConditioningTensors) -> None:
    model, codes, at = Causal(TINY).eval().double(), some_codes(), 11
    conditioning = double(conditioning)
    frames = conditioning.frames.clone()
    frames[..., at] += 1
    before, after = model(codes, conditioning), model(codes, conditioning._replace(frames=frames))
    heard = (torch.arange(FRAMES) >= at - ASIDE).expand(TINY.codebooks, FRAMES)
    assert torch.equal(moved(before, after), heard)
    assert torch.equal(untouched(before, after), ~heard)


@torch.inference_mode()
def test_a_line_cut_short_is_the_beginning_of_it(conditioning: ConditioningTensors) -> None:
    model, codes = Causal(TINY).eval(), some_codes()
    whole = model(codes, conditioning)
    short = conditioning._replace(frames=conditioning.frames[..., : 20 + ASIDE])
    found = model(codes[..., : 20 + ASIDE], short)[:, :, :20]
    torch.testing.assert_close(found, whole[:, :, :20], atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("first", [0, 7, FRAMES - 1])
def test_what_is_said_of_the_last_frames_is_the_end_of_the_whole(
    first: int, conditioning: ConditioningTensors
) -> None:
    model, codes = Causal(TINY).eval(), some_codes()
    found = model(codes, conditioning, first)
    assert found.shape[2] == FRAMES - first
    torch.testing.assert_close(found, model(codes, conditioning)[:, :, first:], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_going_on_frame_by_frame_and_code_by_code_is_the_whole(
    conditioning: ConditioningTensors,
) -> None:
    model, codes = Causal(TINY).eval(), some_codes()
    heard = model.listener(conditioning, circular=False)
    state = model.initial_state(2)
    found = torch.empty(2, TINY.codebooks, FRAMES, TINY.codebook_size)
    for frame in range(FRAMES):
        assert all(layer.keys.shape[2] == frame for layer in state.caches)
        x, state = model.decode_step(state, heard[:, frame : frame + 1])
        assert x.shape == (2, 1, TINY.dim)
        for book in BOOKS:
            before = codes[:, book - 1, frame, None] if book else None
            found[:, book, frame], x = model.next_code(x, book, before)
        state = state._replace(last=codes[..., frame : frame + 1])
    torch.testing.assert_close(found, model(codes, conditioning), atol=1e-4, rtol=0)


def test_before_the_first_frame_there_is_a_gap() -> None:
    state = Causal(TINY).initial_state(3)
    assert state.last.dtype == torch.int64
    assert torch.equal(state.last, torch.full((3, TINY.codebooks, 1), TINY.mask_token))
    assert len(state.caches) == TINY.layers
    assert {tuple(part.shape) for heard in state.caches for part in heard} == {(3, 2, 0, 8)}


@pytest.mark.parametrize("stage", BOOKS)
def test_in_16_bits_logits_are_nearly_the_same(
    conditioning: ConditioningTensors, stage: int
) -> None:
    model, codes = Masked(TINY), some_codes(gaps=True)
    before = model(codes, conditioning, stage, circular=True)
    model.in_bfloat16 = True
    after = model(codes, conditioning, stage, circular=True)
    assert after.dtype == torch.float32
    assert 0 < (after - before).abs().max() < 0.02 * before.std()
    model.in_bfloat16 = False
    assert torch.equal(model(codes, conditioning, stage, circular=True), before)


def test_in_16_bits_a_ring_has_no_first_frame(conditioning: ConditioningTensors) -> None:
    model, codes = Masked(TINY), some_codes(gaps=True)
    model.in_bfloat16 = True
    there = model(codes.roll(7, -1), rotated(conditioning, 7), 0, circular=True)
    torch.testing.assert_close(
        there, model(codes, conditioning, 0, circular=True).roll(7, 1), atol=0.02, rtol=0
    )
