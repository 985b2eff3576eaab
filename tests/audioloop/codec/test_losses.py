"""Distances of waves and critics of sound: least where waves are equal, the same all round."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from audioloop.codec import discriminator, losses
from audioloop.codec.discriminator import (
    Discriminator,
    DiscriminatorOutput,
    MultiResolutionDiscriminator,
    compressed,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from audioloop.codec.losses import Distances, distances, mel, spectrum

RATE = 32_000
N = 5120  # samples, a whole number of the largest hop
FILTERS = list(zip(losses.WINDOWS, losses.MEL_BANDS, strict=True))
WINDOWS = sorted({*losses.WINDOWS, *discriminator.WINDOWS})


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(8)


def noise(n: int = N) -> Tensor:
    return 0.3 * torch.randn(2, 1, n)


def tone(window: int, amplitude: float) -> Tensor:
    """A sine in the middle of bin 10, (1, samples)."""
    return amplitude * torch.sin(2 * torch.pi * 10 * torch.arange(N) / window + 1)[None]


def total(found: Distances) -> Tensor:
    return torch.stack(list(found)).sum()


# Distances.


@pytest.mark.parametrize("circular", [False, True])
def test_equal_waves_are_at_no_distance(circular: bool) -> None:
    x = noise()
    found = distances(x, x.clone(), RATE, circular=circular)
    assert float(found.waveform) == pytest.approx(-3, abs=1e-2)
    assert (float(found.magnitude), float(found.mel), float(found.change)) == (0, 0, 0)
    assert float(found.convergence) == pytest.approx(0, abs=0.02)  # a root has a floor


@pytest.mark.parametrize("circular", [False, True])
def test_the_farther_the_worse(circular: bool) -> None:
    x, other = noise(), noise()
    found = [distances(x + a * other, x, RATE, circular=circular) for a in (0, 0.01, 0.1, 1)]
    for term in zip(*found, strict=True):
        assert [float(value) for value in term] == sorted(float(value) for value in term)
        assert float(term[0]) < float(term[1])


def test_the_waveform_term_is_a_tenth_of_decibels_by_hand() -> None:
    x = noise()
    for amplitude in (0.1, 1.0):  # 20 and 0 dB below the wave
        found = distances((1 + amplitude) * x, x, RATE, circular=True)
        expected = math.log10(amplitude**2 + 1e-3)
        assert float(found.waveform) == pytest.approx(expected, abs=1e-3)


def test_twice_as_loud_is_the_logarithm_of_2_in_every_loud_bin() -> None:
    x = 100 * noise()
    found = distances(2 * x, x, RATE, circular=True)
    assert float(found.magnitude) == pytest.approx(0.6931, abs=2e-3)
    assert float(found.mel) == pytest.approx(0.6931, abs=2e-3)
    assert float(found.convergence) == pytest.approx(1, abs=2e-3)


def test_louder_throughout_is_no_change_and_swelling_is_one_by_hand() -> None:
    x = 100 * noise(4 * N)
    assert float(distances(2 * x, x, RATE, circular=True).change) == pytest.approx(0, abs=1e-4)
    swell = 2 ** torch.sin(2 * torch.pi * torch.arange(4 * N) / (4 * N))
    found = distances(swell * x, x, RATE, circular=True)
    # The mean size of a sine is 2 / pi; and sin(t) - sin(t - a) is one of 2 sin(a / 2).
    moves = [2 * math.sin(math.pi * window / (4 * N)) for window in losses.WINDOWS]
    mean = math.log(2) * 2 / math.pi
    assert float(found.mel) == pytest.approx(mean, rel=0.02)
    assert float(found.change) == pytest.approx(mean * sum(moves) / len(moves), rel=0.02)


@pytest.mark.parametrize("hops", [1, 4, 9])
def test_distances_are_the_same_wherever_a_circular_wave_begins(hops: int) -> None:
    x, y = noise(), noise()
    by = hops * max(losses.WINDOWS) // 4
    once = distances(x, y, RATE, circular=True)
    rolled = distances(x.roll(by, -1), y.roll(by, -1), RATE, circular=True)
    torch.testing.assert_close(list(rolled), list(once), atol=1e-5, rtol=1e-5)


SILENT = {"found": (0.0, 1.0), "wanted": (1.0, 0.0), "both": (0.0, 0.0), "neither": (1.0, 1.0)}


@pytest.mark.parametrize(("ours", "theirs"), SILENT.values(), ids=SILENT)
@pytest.mark.parametrize("circular", [False, True])
def test_silence_has_a_distance_and_a_gradient(ours: float, theirs: float, circular: bool) -> None:
    found = (ours * noise()).requires_grad_()
    terms = distances(found, theirs * noise(), RATE, circular=circular)
    assert all(term.isfinite() for term in terms)
    assert torch.autograd.grad(total(terms), found)[0].isfinite().all()


def test_distances_can_be_learned_from_after_they_were_only_measured() -> None:
    rate = 12_345  # that no other test has
    found, wanted = noise().requires_grad_(), noise()
    with torch.inference_mode():
        measured = total(distances(found, wanted, rate, circular=True))
    loss = total(distances(found, wanted, rate, circular=True))
    assert float(loss.detach()) == float(measured)
    assert torch.autograd.grad(loss, found)[0].any()


# Spectra.


@pytest.mark.parametrize("window", WINDOWS)
def test_a_sine_has_its_amplitude_in_its_bin(window: int) -> None:
    n = N // window * window
    found = spectrum(tone(window, 0.5)[:, :n], window, circular=True)
    assert found.shape == (1, window // 2 + 1, n * 4 // window)
    torch.testing.assert_close(found[:, 10], torch.full_like(found[:, 10], 0.5), atol=1e-3, rtol=0)
    parts = compressed(tone(window, 0.5)[:, :n], window, circular=True)
    size = parts.square().sum(1).sqrt()[:, 10]
    torch.testing.assert_close(size, torch.full_like(size, 0.5**0.3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("window", WINDOWS)
def test_circular_spectra_are_the_middle_of_those_of_a_line_that_repeats(window: int) -> None:
    x = noise().squeeze(1)
    places = N * 4 // window
    for of in (spectrum, compressed):
        tiled = of(x.repeat(1, 3), window, circular=False)[..., places : 2 * places]
        torch.testing.assert_close(of(x, window, circular=True), tiled, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("window", "bands"), FILTERS)
@pytest.mark.parametrize("rate", [22_050, RATE, 48_000])
def test_mel_filters_are_averages_that_leave_out_no_bin(window: int, bands: int, rate: int) -> None:
    filters = mel(window // 2 + 1, bands, rate)
    assert filters.shape == (bands, window // 2 + 1)
    assert (filters >= 0).all()
    torch.testing.assert_close(filters.sum(1), torch.ones(bands))
    assert (filters.sum(0)[1:-1] > 0).all()  # 0 and half the rate are the corners of triangles
    centres = filters @ torch.arange(window // 2 + 1.0)
    assert (centres.diff() > 0).all()


# Critics.


@pytest.mark.parametrize("window", discriminator.WINDOWS)
def test_compressed_spectra_roll_with_the_wave(window: int) -> None:
    x = noise().squeeze(1)
    rolled = compressed(x.roll(3 * window // 4, -1), window, circular=True)
    expected = compressed(x, window, circular=True).roll(3, -1)
    torch.testing.assert_close(rolled, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", discriminator.WINDOWS)
def test_a_critic_finds_the_same_wherever_a_circular_wave_begins(window: int) -> None:
    critic, x = Discriminator(window, channels=4), noise()
    once = critic(x, circular=True)
    rolled = critic(x.roll(3 * window // 4, -1), circular=True)
    for found, expected in zip(
        [rolled.score, *rolled.features], [once.score, *once.features], strict=True
    ):
        torch.testing.assert_close(found, expected.roll(3, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("circular", [False, True])
def test_every_resolution_has_a_critic_with_a_gradient_even_of_silence(circular: bool) -> None:
    x = torch.zeros(2, 1, N, requires_grad=True)
    verdicts = MultiResolutionDiscriminator(channels=4)(x, circular=circular)
    assert len(verdicts) == len(discriminator.WINDOWS)
    assert torch.autograd.grad(generator_loss(verdicts), x)[0].isfinite().all()


def verdict(score: list[float], *features: list[float]) -> DiscriminatorOutput:
    return DiscriminatorOutput(torch.tensor(score), [torch.tensor(feature) for feature in features])


def test_losses_of_critics_and_decoder_by_hand() -> None:
    real, fake = verdict([2.0, 0.0]), verdict([-3.0, 0.5])
    # real: (0 + 1) / 2; fake: (0 + 1.5) / 2
    assert float(discriminator_loss([real], [fake])) == 1.25
    assert float(generator_loss([fake])) == (4 + 0.5) / 2
    # the other pair costs (1 + 1) and 1
    unsure = verdict([0.0, 0.0])
    assert float(discriminator_loss([real, unsure], [fake, unsure])) == (1.25 + 2) / 2
    assert float(generator_loss([fake, unsure])) == (2.25 + 1) / 2


def test_critics_that_are_sure_and_right_have_nothing_to_learn() -> None:
    assert float(discriminator_loss([verdict([1.0, 7.0])], [verdict([-1.0, -7.0])])) == 0
    assert float(generator_loss([verdict([1.0, 7.0])])) == 0


def test_the_distance_of_features_is_relative_and_0_for_equal_waves() -> None:
    real = verdict([0.0], [2.0, -2.0], [10.0, 10.0])
    fake = verdict([0.0], [3.0, -2.0], [0.0, 10.0])
    assert float(feature_matching_loss([real], [fake])) == (0.25 + 0.5) / 2
    assert float(feature_matching_loss([real], [real])) == 0
    critics, x = MultiResolutionDiscriminator(channels=4), noise()
    ours, same = critics(x, circular=True), critics(x.clone(), circular=True)
    assert float(feature_matching_loss(ours, same).detach()) == 0
