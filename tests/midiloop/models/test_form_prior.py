"""The prior that knows the form: its sentences, its grammar, and that steps equal the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from midiloop.common.sampling import MIN_ROWS, distribution
from midiloop.models.form_prior import UNKNOWN, FormPrior, FormPriorConfig

TINY = FormPriorConfig(codebook_size=32, bar_codes=4, dim=16, layers=2, heads=2, dropout=0.0)
SHIPPED_PARAMETERS = 1_615_112


@pytest.fixture
def prior() -> FormPrior:
    torch.manual_seed(3)
    prior = FormPrior(TINY).eval()
    for parameter in prior.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(8)  # far from uniform, so that mistakes show
    return prior


def repeating_codes(n: int, seed: int = 0) -> Tensor:
    """Loops of at most four different bars: int64 (n, 2, 32)."""
    rng = np.random.default_rng(seed)
    bars = rng.integers(0, TINY.codebook_size, (n, 2, 4, TINY.bar_codes))
    picks = rng.integers(0, 4, (n, 2, 8))
    chosen = np.take_along_axis(bars, picks[..., None], axis=2)
    return torch.from_numpy(rearrange(chosen, "n s bar k -> n s (bar k)"))


def in_order(n: int) -> Tensor:
    return torch.arange(TINY.segments).repeat(n, 1)


def uniforms(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, TINY.places, dtype=torch.float64, generator=generator)


def test_the_preset_has_the_size_that_its_card_says() -> None:
    prior = FormPrior(FormPriorConfig())
    assert sum(p.numel() for p in prior.parameters()) == SHIPPED_PARAMETERS


def test_form_by_hand(prior: FormPrior) -> None:
    bars = torch.tensor([[0, 1, 0, 2, 0, 1, 3, 2], [5, 5, 5, 5, 5, 5, 5, 5]])
    codes = bars.repeat_interleave(TINY.bar_codes, 1)[None]
    drums, bass = rearrange(prior.form(codes, in_order(1))[0], "(bar s) -> s bar", s=2).tolist()
    assert drums == [0, 1, 0, 3, 0, 1, 6, 3]
    assert bass == [0] * 8
    # Read backwards, the last bar of a kind is the one that the others repeat.
    backwards = prior.form(codes, in_order(1).flip(1))[0]
    assert rearrange(backwards, "(bar s) -> s bar", s=2)[0].tolist() == [4, 5, 4, 7, 4, 5, 6, 7]


def test_a_sentence_says_each_new_bar_once(prior: FormPrior) -> None:
    codes = repeating_codes(20)
    sentence = prior.sentence(codes, in_order(20))
    bars = rearrange(codes, "n s (bar k) -> n s bar k", bar=8)
    for row in range(20):
        n_new = sum(len(np.unique(bars[row, stream], axis=0)) for stream in range(2))
        assert int(sentence.valid[row].sum()) == TINY.segments + n_new * TINY.bar_codes
    assert not sentence.valid[:, :-1].logical_not().logical_and(sentence.valid[:, 1:]).any()


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_is_known_comes_out_as_it_went_in(prior: FormPrior, shuffled: bool) -> None:
    codes = repeating_codes(40)
    order = torch.randperm(TINY.segments) if shuffled else None
    assert torch.equal(prior.sample(uniforms(40), known=codes, order=order), codes)


def test_a_loop_does_not_depend_on_those_beside_it(prior: FormPrior) -> None:
    numbers = uniforms(150)
    whole = prior.sample(numbers)
    parts = [prior.sample(piece) for piece in torch.split(numbers, MIN_ROWS + 1)[:-1]]
    joined = torch.cat(parts)
    assert torch.equal(whole[: len(joined)], joined)
    assert len(np.unique(whole, axis=0)) > 100


def test_steps_equal_the_whole(prior: FormPrior) -> None:
    """What `sample` computes token by token is what `forward` computes at once."""
    codes = prior.sample(uniforms(MIN_ROWS))
    sentence = prior.sentence(codes, in_order(len(codes)))
    whole = prior(sentence)
    before = torch.nn.functional.pad(sentence.words[:, :-1], (1, 0), value=TINY.words)
    places = torch.nn.functional.pad(sentence.places[:, :-1], (1, 0), value=TINY.places)
    size = (2, len(codes), TINY.heads, TINY.places, TINY.dim // TINY.heads)
    past = [torch.zeros(size) for _ in prior.layers]
    with torch.no_grad():
        for at in range(sentence.words.shape[1]):
            x = prior.word(before[:, at]) + prior.place(places[:, at])
            x = (x + prior.target(sentence.places[:, at]))[:, None]
            for layer, kept in zip(prior.layers, past, strict=True):
                x = layer.step(x, *kept, at)  # type: ignore[operator]
            torch.testing.assert_close(prior.norm(x[:, 0]), whole[:, at], atol=2e-5, rtol=1e-4)


def test_errors_are_the_surprise_of_a_uniform_model_by_hand() -> None:
    prior = FormPrior(TINY).eval()
    for parameter in prior.parameters():
        parameter.data.zero_()
    codes = torch.zeros(1, 2, 32, dtype=torch.int64)  # one bar each, eight times
    by_hand = 16 * math.log(8) + 2 * TINY.bar_codes * math.log(TINY.codebook_size)
    assert prior.errors(codes).item() == pytest.approx(by_hand, rel=1e-6)
    assert prior.loss(codes, 0.0).terms["nats"].item() == pytest.approx(by_hand, rel=1e-6)


def test_frequencies_of_draws_follow_the_model(prior: FormPrior) -> None:
    codes = prior.sample(uniforms(4000))
    first = codes[:, 0, 0].bincount(minlength=TINY.codebook_size) / len(codes)
    sentence = prior.sentence(codes[:1], in_order(1))
    with torch.no_grad():
        expected = prior.heads[1](prior(sentence)[0, 1]).softmax(0)
    torch.testing.assert_close(first, expected, atol=0.03, rtol=0)


def test_a_form_that_is_asked_for_is_kept(prior: FormPrior) -> None:
    form = torch.tensor([0, 1, 0, 1, 0, 1, 6, 7]).repeat_interleave(2)
    bars = rearrange(prior.sample(uniforms(50), form=form), "n s (bar k) -> n s bar k", bar=8)
    for bar, source in enumerate(form[::2].tolist()):
        assert torch.equal(bars[:, :, bar], bars[:, :, source])


def test_bars_that_are_known_stay_and_the_others_vary(prior: FormPrior) -> None:
    known = repeating_codes(1).expand(60, -1, -1).clone()
    known[:, 1] = UNKNOWN  # the bass is to be drawn, after all drums
    order = torch.arange(TINY.segments).view(8, 2).T.flatten()
    codes = prior.sample(uniforms(60), known=known, order=order)
    assert torch.equal(codes[:, 0], known[:, 0])
    assert len(np.unique(codes[:, 1], axis=0)) > 30
    assert (codes >= 0).all()


def test_training_lowers_the_loss_of_shuffled_sentences() -> None:
    torch.manual_seed(0)
    prior = FormPrior(TINY)
    optimizer = torch.optim.AdamW(prior.parameters(), 1e-2)
    codes = repeating_codes(16)
    losses = []
    for _ in range(40):
        loss = prior.loss(codes, 0.0)
        optimizer.zero_grad()
        torch.autograd.backward(loss.total)
        optimizer.step()
        losses.append(float(loss.terms["nats"]))
    assert losses[-1] < 0.5 * losses[0]


def test_wide_repeats_rows_up_to_the_least_that_are_computed_alike() -> None:
    assert distribution(torch.tensor([4, 7]), into=100).tolist() == [4, 7, *[4] * (MIN_ROWS - 2)]
    assert distribution(torch.tensor([4, 7]), into=3).tolist() == [4, 7, 4]
    assert distribution(torch.arange(40), into=100).tolist() == list(range(40))
