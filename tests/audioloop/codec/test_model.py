"""The codec: on a circle no place is special, and what it codes it gives back as long as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audioloop.codec import compression
from audioloop.codec.fidelity import si_sdr_db
from audioloop.codec.model import Block, Codec, CodecConfig
from audioloop.io.wave import Wave
from midiloop import models
from midiloop.common import checkpoint
from midiloop.common.vq import ResidualVectorQuantizer
from midiloop.errors import CallError, LoopError
from midiloop.models.vq_vae import VQVAEConfig

TINY = CodecConfig(
    fine=32, coarse=32, latent_dim=8, codebook_size=32, encoder_blocks=1, decoder_blocks=1
)
FRAME, RATE = TINY.frame, TINY.rate
LENGTHS = (1, 2, 3, 20)  # frames; the first are shorter than what the blocks reach
CONTEXT = 12  # frames, more than they reach


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(8)


def tiny() -> Codec:
    """A codec whose blocks do something, as those of a fresh one do not."""
    codec = Codec(TINY).eval()
    for module in codec.modules():
        if isinstance(module, Block):
            nn.init.normal_(module.narrow.weight, std=0.2)
            nn.init.normal_(module.narrow.bias, std=0.2)
    return codec


def noise(frames: int) -> Tensor:
    return 0.3 * torch.randn(2, 1, frames * FRAME)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def middle(of: Callable[..., Tensor], x: Tensor, frames: int) -> Tensor:
    """One round of what a codec makes of enough rounds of a line."""
    aside = -(-CONTEXT // frames)
    return of(x.repeat(1, 1, 2 * aside + 1), circular=False).chunk(2 * aside + 1, -1)[aside]


# On a circle.


@pytest.mark.parametrize("frames", LENGTHS)
@torch.inference_mode()
def test_latents_codes_and_waves_roll_with_the_loop(frames: int) -> None:
    codec, wave = tiny(), noise(frames)
    latent = codec.encode(wave, circular=True)
    codes = codec.quantize(latent)
    decoded = codec.decode(latent, circular=True)
    for by in (1, frames // 2, frames - 1):
        rolled = codec.encode(wave.roll(by * FRAME, -1), circular=True)
        close(rolled, latent.roll(by, -1))
        assert torch.equal(codec.quantize(rolled), codes.roll(by, -1))
        close(codec.decode(latent.roll(by, -1), circular=True), decoded.roll(by * FRAME, -1))


@pytest.mark.parametrize("frames", LENGTHS)
@torch.inference_mode()
def test_a_loop_is_the_middle_of_a_wave_that_repeats_it(frames: int) -> None:
    codec, wave = tiny(), noise(frames)
    latent = codec.encode(wave, circular=True)
    close(latent, middle(codec.encode, wave, frames))
    close(codec.decode(latent, circular=True), middle(codec.decode, latent, frames))


@torch.inference_mode()
def test_a_wave_with_ends_knows_nothing_of_its_other_end() -> None:
    codec, wave = tiny(), noise(40)
    changed = wave.clone()
    changed[..., -FRAME:] = 0
    for circular in (False, True):
        latents = [codec.encode(x, circular=circular) for x in (wave, changed)]
        waves = [codec.decode(latent, circular=circular) for latent in latents]
        same = torch.equal(waves[0][..., : 4 * FRAME], waves[1][..., : 4 * FRAME])
        assert same == (not circular)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("frames", [1, 7])
def test_a_frame_is_one_latent_and_a_code_of_each_codebook(circular: bool, frames: int) -> None:
    codec, wave = tiny(), noise(frames)
    latent = codec.encode(wave, circular=circular)
    codes = codec.quantize(latent)
    assert latent.shape == (2, TINY.latent_dim, frames)
    assert (codes.shape, codes.dtype) == ((2, TINY.codebooks, frames), torch.int64)
    assert codec.dequantize(codes).shape == latent.shape
    assert codec.decode(latent, circular=circular).shape == wave.shape
    output = codec(wave, torch.tensor([True, False]), circular=circular)
    close(output.wave[:1], codec.decode(latent, circular=circular)[:1])
    close(output.wave[1:], codec.decode(codec.dequantize(codes), circular=circular)[1:])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hz", [60, 200, 1000])
@torch.inference_mode()
def test_a_codec_that_learned_nothing_passes_low_tones(hz: int, seed: int) -> None:
    torch.manual_seed(seed)
    codec = Codec(CodecConfig()).eval()
    tone = np.sin(2 * np.pi * hz * np.arange(RATE) / RATE).astype(np.float32)
    latent = codec.encode(torch.from_numpy(tone)[None, None], circular=True)
    assert si_sdr_db(codec.decode(latent, circular=True)[0, 0].numpy(), tone) > 20


def test_fresh_blocks_add_nothing() -> None:
    x = torch.randn(2, 6, 9)
    assert torch.equal(Block(6, 2)(x, circular=True), x)


# The quantiser.


def quantizer(**changes: Any) -> ResidualVectorQuantizer:
    return Codec(replace(TINY, **changes)).eval().quantizer


def test_the_nearest_vector_is_the_nearest_and_each_codebook_sees_what_is_left() -> None:
    books, latent = quantizer(), torch.randn(2, TINY.latent_dim, 50)
    codes = books(latent).codes
    left = latent.mT.double()
    for book in range(TINY.codebooks):
        vectors = books.vectors[book].double()
        nearest = (left[:, :, None] - vectors).square().sum(-1).argmin(-1)
        assert torch.equal(codes[:, book], nearest)
        left = left - vectors[nearest]


def test_codes_looked_up_are_the_quantised_latent() -> None:
    books, latent = quantizer(), torch.randn(2, TINY.latent_dim, 50)
    found = books(latent)
    close(books.lookup(found.codes), found.latent)
    parts = [books.vectors[book][found.codes[:, book]].mT for book in range(TINY.codebooks)]
    for n in range(1, TINY.codebooks + 1):
        close(books.lookup(found.codes[:, :n]), torch.stack(parts[:n]).sum(0))


def test_the_gradient_goes_straight_through() -> None:
    books = quantizer()
    latent = torch.randn(2, TINY.latent_dim, 5, requires_grad=True)
    towards = torch.randn(2, TINY.latent_dim, 5)
    (gradient,) = torch.autograd.grad(books(latent).latent, latent, towards)
    assert torch.equal(gradient, towards)
    assert not list(books.parameters())


def test_commitment_is_the_mean_square_of_what_each_codebook_misses() -> None:
    books = quantizer(codebooks=2, codebook_size=2, latent_dim=1)
    books.vectors.copy_(torch.tensor([[[0.0], [10.0]], [[-1.0], [1.0]]]))
    latent = torch.tensor([[[2.0, 9.0]]], requires_grad=True)
    found = books(latent)
    assert found.codes.tolist() == [[[0, 1], [1, 0]]]
    assert found.latent.tolist() == [[[1.0, 9.0]]]
    # the first misses 2 and -1, the second 1 and 0
    assert found.commitment.item() == ((4 + 1) / 2 + (1 + 0) / 2) / 2
    (gradient,) = torch.autograd.grad(found.commitment, latent)
    assert gradient.tolist() == [[[(2 + 1) / 2, (-1 + 0) / 2]]]


def followed(rows: list[float], rare: float) -> ResidualVectorQuantizer:
    """Two vectors 0 and 10, each the average of two rows, after some more rows at a decay of ½."""
    books = quantizer(codebooks=1, codebook_size=2, latent_dim=1, decay=0.5, rare=rare).train()
    books.vectors.copy_(torch.tensor([[[0.0], [10.0]]]))
    books.counts.copy_(torch.tensor([[2.0, 2.0]]))
    books(torch.tensor([[rows]]))
    return books


def test_vectors_follow_the_averages_of_their_rows() -> None:
    books = followed([1.0, 1.0, 3.0, 12.0], rare=0.1)
    # ½ · 2 + ½ · 3 rows and ½ · 2 + ½ · 1; ½ · 0 + ½ · 5 in sum and ½ · 20 + ½ · 12
    assert books.counts.tolist() == [[2.5, 1.5]]
    close(books.vectors, torch.tensor([[[1.0], [16 / 1.5]]]))


def test_a_vector_that_few_rows_want_starts_again_from_one_of_them() -> None:
    rows = [1.0, 2.0, 3.0, 4.0]
    # 1 is left of the 2 rows of the second vector, and 2 would be even
    kept, regenerated = followed(rows, rare=0.5), followed(rows, rare=0.6)
    assert kept.vectors[0, 1].item() == 10
    assert regenerated.vectors[0, 1].item() in rows
    assert regenerated.counts.tolist() == [[3.0, 2.0]]
    assert torch.equal(kept.vectors[0, 0], regenerated.vectors[0, 0])


def test_vectors_settle_on_the_rows_there_are_and_stand_still_outside_training() -> None:
    rows = torch.randn(8, TINY.latent_dim)
    books = quantizer(codebooks=1, codebook_size=8, decay=0.9).train()
    for _ in range(200):
        books(rows[torch.randint(8, (64,))].T[None])
    books.eval()
    before = {name: tensor.clone() for name, tensor in books.state_dict().items()}
    missed = books(rows.T[None]).latent - rows.T
    assert missed.abs().max() < 0.05
    assert all(torch.equal(tensor, before[name]) for name, tensor in books.state_dict().items())


# Loops of any length.


@pytest.mark.parametrize(("bpm", "bars"), [(120, 8), (97.3, 2), (174.99, 1), (61.7, 1), (333, 1)])
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (RATE, 1), (48_000, 1), (22_050, 2)])
def test_any_tempo_comes_back_to_the_sample(
    bpm: float, bars: int, rate: int, channels: int, rng: np.random.Generator
) -> None:
    n = round(bars * 4 * 60 / bpm * rate)
    wave, codec = Wave(rng.uniform(-1, 1, (channels, n)).astype(np.float32), rate), tiny()
    encoded = compression.encode(wave, codec)
    frames = encoded.codes.shape[2]
    assert (encoded.n_samples, encoded.rate) == (n, rate)
    assert abs(frames * FRAME / RATE - n / rate) <= FRAME / RATE / 2
    assert encoded.latent.shape == (1, TINY.latent_dim, frames)
    for latent in (encoded.latent, compression.dequantize(encoded.codes, codec)):
        found = compression.decode(latent, codec, n, rate)
        assert found.samples.shape == (1, n)
        assert found.samples.dtype == np.float32
        assert found.rate == rate
        assert np.isfinite(found.samples).all()


@pytest.mark.parametrize(
    ("n", "rate", "frames"),
    [(640, RATE, 1), (959, RATE, 1), (961, RATE, 2), (882, 44_100, 1), (44_100, 44_100, 50)],
)
def test_a_loop_has_the_nearest_whole_number_of_frames(n: int, rate: int, frames: int) -> None:
    assert compression.n_frames(n, rate, TINY) == frames


@pytest.mark.parametrize(("n", "rate"), [(639, RATE), (881, 44_100), (0, RATE)])
def test_less_than_a_frame_is_no_loop(n: int, rate: int) -> None:
    with pytest.raises(LoopError, match="are less than a frame of 20 ms; give a longer loop"):
        compression.encode(Wave(np.zeros((2, n), np.float32), rate), tiny())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers(bad: float) -> None:
    samples = np.zeros((2, RATE), np.float32)
    samples[1, 77] = bad
    with pytest.raises(LoopError, match="samples that are not finite"):
        compression.encode(Wave(samples, RATE), tiny())


@pytest.mark.parametrize("circular", [False, True])
def test_silence_comes_back_as_numbers(circular: bool) -> None:
    codec = tiny()
    encoded = compression.encode(Wave(np.zeros((2, 30_000), np.float32), 44_100), codec)
    for latent in (encoded.latent, compression.dequantize(encoded.codes, codec)):
        found = compression.from_frames(codec.decode(latent, circular=circular), 30_000, 44_100)
        assert np.isfinite(found.samples).all()


def periodic(n: int, rate: int, rng: np.random.Generator) -> Wave:
    """One period of sines of equal strength up to 10 kHz, or as far as a codec hears."""
    lines = int(min(10_000, 0.4 * rate) * n / rate)
    spectrum = np.zeros(n // 2 + 1, complex)
    spectrum[1:lines] = np.exp(2j * np.pi * rng.random(lines - 1))
    samples = np.fft.irfft(spectrum, n)
    return Wave((samples / np.abs(samples).max())[None].astype(np.float32), rate)


@pytest.mark.parametrize(
    ("n", "rate"), [(64_000, RATE), (88_200, 44_100), (91_237, 44_100), (1_411, 44_100),
                    (7_001, 22_050), (100_001, 48_000)],
)  # fmt: skip
def test_a_ring_gives_back_what_was_put_onto_it(
    n: int, rate: int, rng: np.random.Generator
) -> None:
    wave = periodic(n, rate, rng)
    found = compression.from_frames(compression.to_frames(wave, TINY), n, rate)
    missed = np.square(found.samples - wave.samples).mean() / np.square(wave.samples).mean()
    assert missed < 1e-6  # -60 dB


def test_channels_are_mixed_to_one(rng: np.random.Generator) -> None:
    samples = rng.uniform(-1, 1, (2, 10 * FRAME)).astype(np.float32)
    ring = compression.to_frames(Wave(samples, RATE), TINY)
    assert (ring.shape, ring.dtype) == ((1, 1, 10 * FRAME), torch.float32)
    np.testing.assert_allclose(ring[0, 0].numpy(), samples.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        (torch.full((1, 4, 5), 32), "tokens from 32 to 32, but this codec's are from 0 to 31"),
        (torch.full((1, 4, 5), -1), "tokens from -1 to -1"),
        (torch.zeros(1, 5, 5, dtype=torch.int64), r"expected tokens \(1, up to 4, frames\)"),
        (torch.zeros(1, 0, 5, dtype=torch.int64), r"got \(1, 0, 5\)"),
        (torch.zeros(1, 4, 0, dtype=torch.int64), r"got \(1, 4, 0\)"),
        (torch.zeros(4, 5, dtype=torch.int64), r"got \(4, 5\)"),
    ],
)
def test_codes_of_another_codec(codes: Tensor, cause: str) -> None:
    with pytest.raises(CallError, match=cause):
        compression.dequantize(codes, tiny())


# On disk.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save_model(tmp_path / "codec", compression.KIND, tiny(), {})
    return tmp_path / "codec"


def test_a_codec_comes_back_bit_for_bit(tmp_path: Path) -> None:
    codec = tiny()
    checkpoint.save_model(tmp_path, compression.KIND, codec, {"trained": {"steps": 3}})
    found = compression.load(tmp_path)
    assert found.config == TINY
    assert not found.training
    old, new = codec.state_dict(), found.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_model_of_another_kind_is_no_codec(tmp_path: Path) -> None:
    other = models.build("vq-vae", VQVAEConfig(channels=4, embed_channels=4, codebook_size=8))
    checkpoint.save_model(tmp_path, "vq-vae", other, {})
    with pytest.raises(LoopError, match="no model is called 'vq-vae'; there are codec") as bad:
        compression.load(tmp_path)
    assert "\n" not in str(bad.value)


def cut(name: str) -> Callable[[Path], None]:
    def shorten(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:200])

    return shorten


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def say(**changes: Any) -> Callable[[Path], None]:
    """Change what config.json says of the codec."""

    def change(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        said["config"] |= changes
        (folder / "config.json").write_text(json.dumps(said))

    return change


DAMAGED: dict[str, Callable[[Path], None]] = {
    "no config": remove("config.json"),
    "no weights": remove("model.safetensors"),
    "half a config": cut("config.json"),
    "half the weights": cut("model.safetensors"),
    "other sizes": say(fine=40),
    "more codebooks": say(codebooks=5),
    "no frames": say(frame=0),
    "a window of no hop": say(window=1281),
    "more numbers than channels": say(latent_dim=64),
    "more channels than there are to mix": say(coarse=100),
    "a word": say(fine="many"),
    "a name that there is not": say(colour="red"),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_codec_is_one_line(damage: Callable[[Path], None], saved: Path) -> None:
    damage(saved)
    with pytest.raises(LoopError) as bad:
        compression.load(saved)
    assert str(bad.value).startswith(str(saved))
    assert "\n" not in str(bad.value)
