"""Highs that a decoder lost come back, and nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from audioloop.codec import balance
from audioloop.codec.fidelity import high_gap_db
from audioloop.codec.model import Codec, CodecConfig
from audioloop.io.wave import Samples
from audioloop.nn.circular import lapped_transform

# As many numbers of a frame as it has samples: fresh, such a codec keeps all frequencies.
CONFIG = CodecConfig(
    frame=320, window=640, fine=160, coarse=320, latent_dim=320, codebook_size=8,
    encoder_blocks=1, decoder_blocks=1,
)  # fmt: skip
RATE = CONFIG.rate
LENGTH = 40 * CONFIG.frame


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(5)
    yield
    torch.set_num_threads(before)


def hiss(number: int, level: float = 0.1) -> Samples:
    """Noise, the same for each number."""
    noise = np.random.default_rng([3, number]).standard_normal(LENGTH)
    return np.asarray(level * noise, np.float32)


def bass(hz: float = 100.0) -> Samples:
    """A tone without highs."""
    return np.asarray(0.5 * np.sin(2 * np.pi * hz * np.arange(LENGTH) / RATE), np.float32)


RINGS = [hiss(0), hiss(1)]


def dull(lost_db: float) -> Codec:
    """A codec that gives back what it is given, but for the highs."""
    codec = Codec(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            if name.endswith("bias"):  # a sound of their own
                parameter.zero_()
        basis = codec.decoder.frames.basis
        basis.copy_(balance.shelved(basis, RATE, -lost_db))
    return codec


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """What codes stand for is the latent itself."""
    monkeypatch.setattr(Codec, "quantize", lambda _, latent: latent)
    monkeypatch.setattr(Codec, "dequantize", lambda _, codes: codes)


@torch.no_grad()
def reconstruction(codec: Codec, samples: Samples) -> Samples:
    """What comes back from the latent."""
    latent = codec.encode(torch.from_numpy(samples)[None, None], circular=True)
    return codec.decode(latent, circular=True)[0, 0].numpy()


def weights(codec: Codec) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in codec.state_dict().items()}


def changed(codec: Codec, before: dict[str, Tensor]) -> set[str]:
    after = codec.state_dict()
    assert after.keys() == before.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


# The shelf.


@pytest.mark.parametrize(("hz", "db"), [(500, 0), (5_500, 0), (7_000, 2), (8_500, 4), (15_000, 4)])
def test_the_shelf_raises_what_is_high_and_nothing_else(hz: float, db: float) -> None:
    at = torch.arange(1280) / RATE
    tone = torch.hann_window(1280) * (2 * math.pi * hz * at).sin()
    found = balance.shelved(torch.stack([tone, torch.zeros(1280)]), RATE, 4.0)
    expected = torch.stack([tone * 10 ** (db / 20), torch.zeros(1280)])
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_a_shelf_of_nothing_and_one_of_as_much_less_change_nothing() -> None:
    windows = lapped_transform(320, 1280, 320)
    torch.testing.assert_close(balance.shelved(windows, RATE, 0.0), windows)
    there = balance.shelved(windows, RATE, 4.0)
    assert not torch.allclose(there, windows, atol=1e-3)
    torch.testing.assert_close(balance.shelved(there, RATE, -4.0), windows, atol=1e-3, rtol=0)


# What is measured.


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("lost_db", [1.0, 4.0])
def test_what_was_lost_is_found_and_given_back(lost_db: float) -> None:
    codec = dull(lost_db)
    assert balance.missing_db(codec, RINGS) == pytest.approx(lost_db, abs=0.1)
    made = balance.balanced(codec, RINGS)
    for number in range(3):  # one of them was not measured
        samples = hiss(number)
        assert high_gap_db(reconstruction(codec, samples), samples, RATE) < 0.1 - lost_db
        assert high_gap_db(reconstruction(made, samples), samples, RATE) == pytest.approx(
            0, abs=0.1
        )


def test_both_ways_count_as_much() -> None:
    codec = dull(1.0)
    codec.quantizer.vectors.normal_(std=0.02)
    found = []
    for ring in RINGS:
        latent = codec.encode(torch.from_numpy(ring)[None, None], circular=True)
        for way in (latent, codec.dequantize(codec.quantize(latent))):
            with torch.no_grad():
                wave = codec.decode(way, circular=True)[0, 0].numpy()
            found.append(high_gap_db(wave, ring, RATE))
    assert abs(found[1] - found[0]) > 2  # else any mean would do
    assert 0 < -np.mean(found) < balance.MOST_DB
    assert balance.missing_db(codec, RINGS) == pytest.approx(-np.mean(found), abs=0.2)


@pytest.mark.usefixtures("exact")
def test_loops_without_highs_do_not_decide() -> None:
    codec = dull(4.0)
    rings = [*RINGS, *map(bass, (50, 100, 200))]
    each = [high_gap_db(reconstruction(codec, ring), ring, RATE) for ring in rings]
    assert np.mean(each) > 20  # what comes back of the bass has highs, which it had not
    alone = balance.missing_db(codec, RINGS)
    assert balance.missing_db(codec, rings) == pytest.approx(alone, abs=0.3)


@pytest.mark.usefixtures("exact")
def test_where_a_loop_begins_does_not_matter() -> None:
    codec, ring = dull(4.0), hiss(0)[: 3 * CONFIG.frame]
    found = [balance.missing_db(codec, [np.roll(ring, by * CONFIG.frame)]) for by in range(3)]
    assert found == pytest.approx([found[0]] * 3, abs=1e-4)


@pytest.mark.usefixtures("exact")
def test_no_more_is_raised_than_six_db_and_nothing_is_lowered() -> None:
    assert balance.missing_db(dull(20.0), RINGS) == 6.0
    assert balance.missing_db(dull(-3.0), RINGS) == 0.0


# What changes.


@pytest.mark.usefixtures("exact")
def test_only_windows_of_the_decoder_change_and_only_in_the_copy() -> None:
    codec = dull(4.0).train()
    before = weights(codec)
    made = balance.balanced(codec, RINGS)
    assert changed(made, before) == {"decoder.frames.basis"}
    assert changed(codec, before) == set()
    assert codec.training
    assert not made.training
    assert torch.equal(
        balance.balanced(codec, RINGS).decoder.frames.basis, made.decoder.frames.basis
    )


def test_codebooks_of_a_codec_that_learns_do_not_move() -> None:
    codec = dull(4.0).train()
    before = weights(codec)
    assert changed(balance.balanced(codec, RINGS), before) <= {"decoder.frames.basis"}
    assert changed(codec, before) == set()


@pytest.mark.usefixtures("exact")
def test_a_balanced_codec_is_the_old_one_and_a_circular_filter() -> None:
    codec = dull(4.0)
    made = balance.balanced(codec, RINGS)
    before, after = (
        np.fft.rfft(reconstruction(one, hiss(9)).astype(np.float64)) for one in (codec, made)
    )
    hz = np.fft.rfftfreq(LENGTH, 1 / RATE)
    db = 4 * (1 - np.cos(np.pi * np.clip((hz - 6_000) / 2_000, 0, 1))) / 2
    error = np.abs(after - before * 10 ** (db / 20)) ** 2
    for band in (hz < 6_000, (hz > 6_000) & (hz < 8_000), hz > 8_000):
        assert error[band].sum() < 1e-3 * (np.abs(after[band]) ** 2).sum()


@torch.no_grad()
def test_a_balanced_codec_still_rolls_with_the_loop() -> None:
    made = balance.balanced(dull(4.0), RINGS)
    latent = made.encode(torch.from_numpy(hiss(0))[None, None], circular=True)
    found = made.decode(latent.roll(7, -1), circular=True)
    expected = made.decode(latent, circular=True).roll(7 * CONFIG.frame, -1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# Where there is nothing to raise.


def test_a_codec_that_decodes_silence_comes_back_as_it_was() -> None:
    codec = dull(0.0)
    torch.nn.init.zeros_(codec.decoder.frames.basis)
    assert changed(balance.balanced(codec, RINGS), weights(codec)) == set()


@pytest.mark.parametrize("rings", [[], [np.zeros(LENGTH, np.float32)], [bass()]], ids=len)
def test_loops_without_highs_raise_nothing(rings: list[Samples]) -> None:
    codec = dull(4.0)
    assert changed(balance.balanced(codec, rings), weights(codec)) == set()


def test_a_rate_without_highs_raises_nothing() -> None:
    codec = Codec(CodecConfig(rate=16_000, fine=32, coarse=32, latent_dim=8, codebook_size=8))
    assert changed(balance.balanced(codec, [hiss(0)]), weights(codec)) == set()
