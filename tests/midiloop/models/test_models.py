"""Laws of the models; sizes and shapes are those of the paper's tables, added up by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from midiloop.common.sampling import draw, nucleus
from midiloop.errors import LoopError
from midiloop.grid import LOOP
from midiloop.models.cnn_vae import CNNVAE, CNNVAEConfig
from midiloop.models.layers import Posterior, divergence, kl_weight
from midiloop.models.lstm_vae import (
    ARLSTMVAE,
    VAE,
    ARLSTMVAEConfig,
    NonARLSTMVAE,
    NonARLSTMVAEConfig,
)
from midiloop.models.prior import Prior, PriorConfig
from midiloop.models.vq_vae import VQVAE, Stack, VQVAEConfig

TINY_PRIOR = PriorConfig(codebook_size=11, code_steps=6, embed_dim=8, hidden=16)
STEREO_PRIOR = PriorConfig(codebook_size=7, streams=2, code_steps=5, embed_dim=8, hidden=16)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(8)
    yield
    torch.set_num_threads(threads)


def random_rolls(n: int) -> Tensor:
    """Rolls uint8 (n, 128, 93) with a note in a cell out of twenty."""
    return (torch.rand(n, LOOP.steps, LOOP.columns) < 0.05).byte()


def vaes() -> list[VAE]:
    return [
        ARLSTMVAE(ARLSTMVAEConfig()),
        NonARLSTMVAE(NonARLSTMVAEConfig()),
        CNNVAE(CNNVAEConfig()),
    ]


def n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def uniforms(n: int, config: PriorConfig) -> Tensor:
    return torch.rand(n, config.positions, dtype=torch.float64)


def shapes(layers: nn.Module, x: Tensor) -> list[tuple[int, int]]:
    """What each layer of a sequence puts out, (steps, channels) as the paper's tables write it."""
    assert isinstance(layers, nn.Sequential)
    out = []
    for layer in layers:
        x = layer(x)
        out.append((x.shape[2], x.shape[1]))
    return out


def started(config: PriorConfig) -> Prior:
    """A prior in which every code has started a loop once."""
    prior = Prior(config).eval()
    prior.start_counts.fill_(1)
    return prior


# The paper's sizes.


def test_models_have_as_many_parameters_as_the_tables_add_up_to() -> None:
    assert [n_parameters(model) for model in vaes()] == [486_109, 713_565, 1_374_557]
    assert n_parameters(Prior(PriorConfig())) == 3_744_256


def test_the_vq_vae_has_as_many_parameters_as_its_table_and_a_dictionary_that_is_none() -> None:
    model = VQVAE(VQVAEConfig())
    assert n_parameters(model) == 62_829
    stack = model.stacks[0]
    assert isinstance(stack, Stack)
    assert stack.quantizer.vectors.numel() == 8_192
    assert not stack.quantizer.vectors.requires_grad


def test_stages_of_the_lstm_vaes_have_the_shapes_of_tables_a_and_b() -> None:
    rolls = random_rolls(3)
    for model, hidden in zip(vaes()[:2], (128, 256), strict=True):
        seen: dict[str, tuple[int, ...]] = {}
        assert isinstance(model, ARLSTMVAE | NonARLSTMVAE)
        model.encoder.posterior.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.update(h=tuple(inputs[0].shape))
        )
        model.head.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.update(x=tuple(inputs[0].shape))
        )
        logits, mean, deviation = model(rolls)
        assert seen["h"] == (3, 256)
        assert mean.shape == deviation.shape == (3, *model.latent_shape) == (3, 128)
        assert seen["x"][0] == 3
        assert seen["x"][2] == hidden
        assert logits.shape == (3, 128, 93)


def test_stages_of_the_cnn_vae_have_the_shapes_of_table_c() -> None:
    model = CNNVAE(CNNVAEConfig()).eval()
    encoded = [(128, 32), (64, 32), (64, 32), (32, 32), (32, 32)]
    assert shapes(model.encoder, torch.zeros(2, 93, 128)) == encoded
    assert model.posterior(torch.zeros(2, 1024))[0].shape == (2, *model.latent_shape) == (2, 512)
    assert model.unflatten(torch.zeros(2, 512)).shape == (2, 512)
    decoded = [(32, 32), (32, 32), (64, 32), (64, 32), (128, 32), (128, 93)]
    assert shapes(model.decoder, torch.zeros(2, 32, 16)) == decoded


def test_stages_of_the_vq_vae_have_the_shapes_of_table_d() -> None:
    model = VQVAE(VQVAEConfig()).eval()
    stack = model.stacks[0]
    assert isinstance(stack, Stack)
    encoded = [(128, 64), (128, 32), (64, 32), (64, 32), (32, 32), (32, 32), (32, 16)]
    assert shapes(stack.encoder, torch.zeros(2, 93, 128)) == encoded
    decoded = [(32, 32), (64, 32), (64, 32), (128, 32), (128, 32), (128, 64), (128, 93)]
    assert shapes(stack.decoder, torch.zeros(2, 16, 32)) == decoded
    codes = model.encode(random_rolls(2))
    assert codes.shape == (2, 1, 32)
    assert codes.dtype == torch.int64
    assert model.decode(codes).shape == (2, 128, 93)


# What the continuous VAEs minimise.


def test_divergence_is_zero_at_the_standard_normal_and_right_by_hand() -> None:
    zeros, ones = torch.zeros(5, 4), torch.ones(5, 4)
    assert divergence(zeros, ones).item() == 0
    # N(1, 2²): ½ (1 + 4 - 1) - ln 2 for each of the 4
    expected = torch.tensor(4 * (2 - math.log(2)))
    torch.testing.assert_close(divergence(ones, 2 * ones), expected)


def test_kl_weight_grows_from_0_to_1() -> None:
    weights = [kl_weight(epoch) for epoch in range(200)]
    assert weights[0] == 0
    assert weights[1] == pytest.approx(0.1)
    assert weights == sorted(weights)
    assert weights[-1] == pytest.approx(1, abs=1e-8)


def test_the_deviation_is_positive_and_the_mean_normalised() -> None:
    mean, deviation = Posterior(6, 9)(100 * torch.randn(20, 6))
    assert (deviation > 0).all()
    torch.testing.assert_close(mean.mean(1), torch.zeros(20), atol=1e-5, rtol=0)


def test_the_loss_of_a_vae_is_equation_1_per_step() -> None:
    rolls = random_rolls(4)
    for model in vaes():
        for epoch in (0.0, 7.0):
            loss = model.loss(rolls, epoch)
            expected = (loss.terms["nats"] + kl_weight(epoch) * loss.terms["kl"]) / 128
            torch.testing.assert_close(loss.total.detach(), expected)
            assert not any(term.requires_grad for term in loss.terms.values())


def test_a_vae_that_knows_nothing_pays_one_bit_a_cell() -> None:
    for model in vaes():
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        loss = model.loss(random_rolls(2), 0)
        assert loss.total.item() == pytest.approx(93 * math.log(2), rel=1e-5)


def test_reconstructions_are_bool_rolls_and_the_same_each_time_for_any_dtype() -> None:
    rolls = random_rolls(2)
    for model in vaes():
        model.eval()
        found = model.reconstruct(rolls)
        assert (found.shape, found.dtype) == (rolls.shape, torch.bool)
        for same in (rolls, rolls.bool(), rolls.float()):
            assert torch.equal(model.reconstruct(same), found)


# The autoregressive decoder.


def stepped(model: ARLSTMVAE, z: Tensor, rolls: Tensor, own: list[bool]) -> Tensor:
    """Table (a)'s decoder step by step, from the equations of an LSTM."""
    w = dict(model.decoder.named_parameters())
    h = c = z
    x = torch.zeros(len(z), 93 + 128)
    logits: list[Tensor] = []
    for step in range(128):
        if step > 0:
            before = (logits[-1] >= 0) if own[step] else rolls[:, step - 1]
            x = torch.cat([before.float(), z], 1)
        gates = x @ w["weight_ih_l0"].T + w["bias_ih_l0"] + h @ w["weight_hh_l0"].T
        i, f, g, o = (gates + w["bias_hh_l0"]).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        logits.append(h @ model.head.weight.T + model.head.bias)
    return torch.stack(logits, 1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_unrolling_in_runs_equals_stepping_by_hand(share: float) -> None:
    model = ARLSTMVAE(ARLSTMVAEConfig())
    z, rolls, own = torch.randn(3, 128), random_rolls(3), torch.rand(128) < share
    with torch.no_grad():
        expected = stepped(model, z, rolls, own.tolist())
        torch.testing.assert_close(model.unroll(z, rolls, own), expected)


def test_decoding_follows_the_models_own_steps_alone() -> None:
    model = ARLSTMVAE(ARLSTMVAEConfig())
    z = torch.randn(3, 128)
    with torch.no_grad():
        found = model.decode(z)
        torch.testing.assert_close(found, stepped(model, z, random_rolls(3), [True] * 128))
        assert torch.equal(model.decode(z), found)


def test_a_teacher_forced_step_knows_the_past_alone() -> None:
    model = ARLSTMVAE(ARLSTMVAEConfig())
    z, rolls = torch.randn(2, 128), random_rolls(2)
    changed = rolls.clone()
    changed[:, 50] ^= 1
    own = torch.zeros(128, dtype=torch.bool)
    with torch.no_grad():
        one, other = model.unroll(z, rolls, own), model.unroll(z, changed, own)
    assert torch.equal(one[:, :51], other[:, :51])
    assert not torch.equal(one[:, 51], other[:, 51])


def test_teacher_forcing_falls_over_training() -> None:
    model = ARLSTMVAE(ARLSTMVAEConfig())
    assert model.truth_probability(0) == pytest.approx(20 / 21)
    assert model.truth_probability(30) == pytest.approx(20 / (20 + math.exp(1.5)))
    assert model.truth_probability(20 * math.log(20)) == pytest.approx(0.5)
    assert model.truth_probability(1e6) == 0


# The prior.


def test_draws_are_as_frequent_as_the_softmax_says() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, -math.inf, 0.3])
    n = 10_000
    numbers = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for temperature in (0.5, 1.0, 3.0):
        codes = draw(logits.expand(n, -1), numbers, temperature)
        expected = n * (logits.double() / temperature).softmax(0)
        assert ((codes.bincount(minlength=5) - expected).abs() <= 1).all()


def test_temperature_0_is_argmax_and_a_tiny_one_too() -> None:
    logits = torch.randn(50, 12)
    logits[0, [3, 5]] = 9.0
    numbers = torch.rand(50, dtype=torch.float64)
    codes = draw(logits, numbers, temperature=0)
    assert codes[0] == 3
    assert torch.equal(codes[1:], logits[1:].argmax(1))
    assert torch.equal(draw(logits[1:], numbers[1:], temperature=1e-300), codes[1:])


def test_the_nucleus_is_the_smallest_set_that_holds_its_share() -> None:
    probabilities = torch.randn(40, 30, dtype=torch.float64).mul(2).softmax(1)
    for top_p in (0.1, 0.5, 0.9):
        kept = nucleus(probabilities, top_p)
        for row, left in zip(probabilities, kept, strict=True):
            ranked = sorted(row.tolist(), reverse=True)
            size = next(n for n in range(1, 31) if math.fsum(ranked[:n]) >= top_p)
            assert sorted(left[left > 0].tolist(), reverse=True) == ranked[:size]


def test_the_nucleus_keeps_the_smaller_of_equal_codes() -> None:
    quarters = torch.full((1, 4), 0.25, dtype=torch.float64)
    assert nucleus(quarters, 0.5).tolist() == [[0.25, 0.25, 0, 0]]
    assert nucleus(quarters, 0.51).tolist() == [[0.25, 0.25, 0.25, 0]]
    numbers = torch.arange(8, dtype=torch.float64) / 8
    drawn = draw(torch.zeros(8, 4), numbers, top_p=0.5)
    assert drawn.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_no_number_draws_a_code_that_is_forbidden() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.1, -math.inf]]).expand(2, -1)
    numbers = torch.tensor([0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, numbers).tolist() == [1, 3]


@pytest.mark.parametrize(("temperature", "top_p"), [(-1, 1), (math.nan, 1), (1, 0), (1, 1.1)])
def test_settings_out_of_range_are_refused(temperature: float, top_p: float) -> None:
    with pytest.raises(LoopError, match="expected"):
        draw(torch.zeros(1, 2), torch.zeros(1, dtype=torch.float64), temperature, top_p)


def test_a_prior_that_knows_nothing_pays_log_k_for_each_code_after_the_first() -> None:
    prior = Prior(PriorConfig())
    nn.init.zeros_(prior.head.weight)
    loss = prior.loss(torch.randint(512, (3, 1, 32)), 0)
    assert loss.total.item() == pytest.approx(math.log(512))
    assert loss.terms["nats"].item() == pytest.approx(31 * math.log(512))


def test_a_prior_reads_step_by_step_with_the_streams_together() -> None:
    prior = Prior(STEREO_PRIOR)
    codes = torch.randint(7, (1, 2, 5))
    changed = codes.clone()
    changed[0, 1, 2] = (codes[0, 1, 2] + 1) % 7  # place 5 of the row: the fifth logits are of it
    with torch.no_grad():
        one, other = prior(codes), prior(changed)
    assert one.shape == (1, 9, 7)
    assert torch.equal(one[:, :5], other[:, :5])
    assert not torch.equal(one[:, 5], other[:, 5])


@pytest.mark.parametrize("config", [TINY_PRIOR, STEREO_PRIOR, PriorConfig()])
def test_a_loop_does_not_depend_on_the_batch_it_is_written_in(config: PriorConfig) -> None:
    prior, numbers = started(config), uniforms(8, config)
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.9), (0.0, 1.0)):
        together = prior.sample(numbers, temperature=temperature, top_p=top_p)
        assert together.shape == (8, config.streams, config.code_steps)
        alone = [prior.sample(n[None], temperature=temperature, top_p=top_p) for n in numbers]
        assert torch.equal(torch.cat(alone), together)


def test_each_drawn_code_is_the_draw_from_what_training_saw_of_it() -> None:
    prior, numbers = started(STEREO_PRIOR), uniforms(4, STEREO_PRIOR)
    codes = prior.sample(numbers)
    row = codes.mT.flatten(1)
    with torch.no_grad():
        logits = prior(codes)
    for position in range(1, 10):
        expected = draw(logits[:, position - 1], numbers[:, position])
        assert torch.equal(row[:, position], expected)


@pytest.mark.parametrize("config", [TINY_PRIOR, STEREO_PRIOR])
def test_known_codes_stay(config: PriorConfig) -> None:
    prior, numbers = started(config), uniforms(20, config)
    known = torch.randint(-1, config.codebook_size, (20, config.streams, config.code_steps))
    codes = prior.sample(numbers, known=known)
    assert torch.equal(codes[known >= 0], known[known >= 0])
    assert (codes >= 0).all()
    # What was written, given back as known, or known nowhere: nothing changes.
    assert torch.equal(prior.sample(torch.rand_like(numbers), known=codes), codes)
    nowhere = torch.full_like(known, -1)
    assert torch.equal(prior.sample(numbers, known=nowhere), prior.sample(numbers))


def test_loops_start_as_often_with_a_code_as_in_training() -> None:
    prior = Prior(TINY_PRIOR)
    starts = torch.tensor([2, 5, 2, 2, 0, 5, 10, 2])
    codes = torch.zeros(8, 1, 6, dtype=torch.int64)
    codes[:, 0, 0] = starts
    prior.fit_start(torch.ones(3, 1, 6, dtype=torch.int64))
    prior.fit_start(codes)  # counts anew
    assert prior.start_counts.tolist() == [1, 0, 4, 0, 0, 2, 0, 0, 0, 0, 1]
    n = 800
    numbers = uniforms(n, TINY_PRIOR)
    numbers[:, 0] = (torch.arange(n) + 0.5) / n
    for temperature in (0.0, 1.0):
        first = prior.sample(numbers, temperature=temperature, top_p=0.5)[:, 0, 0]
        assert torch.equal(first.bincount(minlength=11), prior.start_counts * 100)


def test_sampling_leaves_the_prior_as_it_was() -> None:
    prior = started(TINY_PRIOR).train()
    prior.sample(uniforms(2, TINY_PRIOR))
    assert prior.training
    assert prior.head.weight.dtype == torch.float32


def test_a_prior_says_what_is_wrong_with_a_call() -> None:
    numbers = uniforms(2, TINY_PRIOR)
    with pytest.raises(LoopError, match=r"call fit_start\(\)"):
        Prior(TINY_PRIOR).sample(numbers)
    prior = started(TINY_PRIOR)
    with pytest.raises(LoopError, match=r"expected uniforms \(n, 6\)"):
        prior.sample(numbers[:, 1:])
    with pytest.raises(LoopError, match="float64"):
        prior.sample(numbers.float())
    with pytest.raises(LoopError, match=r"int64 \(2, 1, 6\)"):
        prior.sample(numbers, known=torch.zeros(2, 6, dtype=torch.int64))


# The VQ-VAE's laws.


@pytest.mark.parametrize("streams", ["joint", "parts"])
def test_bars_that_change_places_take_their_codes_with_them(streams: str) -> None:
    config = VQVAEConfig(span="bar", streams="parts" if streams == "parts" else "joint")
    model = VQVAE(config).eval()
    rolls, order = random_rolls(3), torch.randperm(8).tolist()

    def moved(x: Tensor, dim: int) -> Tensor:
        """Bars along ``dim`` in another order."""
        return torch.cat([x.chunk(8, dim)[bar] for bar in order], dim)

    with torch.no_grad():
        codes = model.encode(rolls)
        assert torch.equal(model.encode(moved(rolls, 1)), moved(codes, 2))
        decoded = model.decode(codes)
        torch.testing.assert_close(model.decode(moved(codes, 2)), moved(decoded, 1))


@pytest.mark.parametrize("span", ["loop", "bar"])
def test_what_repeats_is_decoded_as_what_does_not(span: Literal["loop", "bar"]) -> None:
    model = VQVAE(VQVAEConfig(span=span)).eval()
    codes = torch.randint(512, (3, 1, 32))
    codes[:, :, 4:8] = codes[:, :, :4]
    with torch.no_grad():
        together = model.decode(codes[[0, 1, 0, 2, 1]])
        alone = torch.cat([model.decode(codes[[row]]) for row in (0, 1, 0, 2, 1)])
    torch.testing.assert_close(together, alone)
    if span == "bar":
        assert torch.equal(together[:, :16], together[:, 16:32])


def test_codes_of_one_part_know_nothing_of_the_other() -> None:
    model = VQVAE(VQVAEConfig(streams="parts")).eval()
    rolls, other = random_rolls(2), random_rolls(2)
    other[..., :9] = rolls[..., :9]
    codes, changed = model.encode(rolls), model.encode(other)
    assert torch.equal(codes[:, 0], changed[:, 0])
    assert not torch.equal(codes[:, 1], changed[:, 1])
    with torch.no_grad():
        mixed = model.decode(torch.stack([codes[:, 0], changed[:, 1]], 1))
        torch.testing.assert_close(mixed, model.decode(changed))


# Every model learns.


@pytest.mark.parametrize("kind", ["ar", "nonar", "cnn", "vq", "prior"])
def test_a_model_learns_one_batch_by_heart(kind: str) -> None:
    models: dict[str, VAE | VQVAE | Prior] = {
        **dict(zip(("ar", "nonar", "cnn"), vaes(), strict=True)),
        "vq": VQVAE(VQVAEConfig()),
        "prior": Prior(TINY_PRIOR),
    }
    model = models[kind]
    batch = torch.randint(11, (4, 1, 6)) if kind == "prior" else random_rolls(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    totals = []
    for _ in range(30):
        total = model.loss(batch, 0).total
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0] / 2
