"""Loops made anew: what stays, how long they are, what is written, and what a user is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from small_inpainter import CODEC, small_inpainter
from torch import Tensor

from audioloop.codec import compression
from audioloop.codec.model import Codec
from audioloop.conditioning import Conditioning, ConditioningTensors
from audioloop.evaluation import reconstruct, validate
from audioloop.io import metadata, wave
from audioloop.io.label import LoopLabel
from audioloop.io.wave import Format, Samples, Wave
from audioloop.pipelines import generate, inpaint, outputs, refine
from audioloop.pipelines.generate import LoopPrompt
from audioloop.pipelines.inpaint import Inpainter, SamplingConfig
from audioloop.pipelines.inputs import SourceLoop
from audioloop.pipelines.masks import InpaintMask
from audioloop.tokens.magnet import decode, loops
from audioloop.tokens.model import Masked, TokenConfig
from handmade import groove, random_rolls
from midiloop.common import checkpoint, files
from midiloop.errors import CallError, LoopError
from midiloop.midi import score
from midiloop_cli import main

FAST = SamplingConfig(steps=(4, 2, 2, 2))
RATE = 44_100
# Seconds: a block sees 3 places of 10 or 20 ms on either side, inward one of 20, and a window half
# a hop; and the loop was resampled.
REACH_S = 0.2


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def inpainter() -> Inpainter:
    return small_inpainter()


@pytest.fixture(scope="module")
def models(inpainter: Inpainter, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same as folders, and the options that name them."""
    options = []
    folder = tmp_path_factory.mktemp("models")
    parts: dict[str, Any] = {
        "masked": inpainter.masked, "codec": inpainter.codec, "causal": inpainter.causal,
    }  # fmt: skip
    for kind, model in parts.items():
        checkpoint.save_model(folder / kind, kind, model, {})
        options += [f"--{kind}" if kind == "codec" else f"--{kind}-model", str(folder / kind)]
    return options[:4]  # the causal model is asked for with some options only


def with_causal(models: list[str]) -> list[str]:
    """The options and the causal model's."""
    return [*models, "--causal-model", str(Path(models[1]).with_name("causal"))]


def tones(n_samples: int, rate: int = RATE, channels: int = 1) -> Wave:
    """A periodic sound: harmonics of the loop below 2 kHz, and at every one of 16 steps others."""
    random = np.random.default_rng(5)
    bins = np.zeros((channels, n_samples // 2 + 1), complex)
    low = bins[:, 1 : 2000 * n_samples // rate]
    low[:] = random.normal(size=low.shape) + 1j * random.normal(size=low.shape)
    samples = np.fft.irfft(bins, n_samples)
    return Wave((samples / np.abs(samples).max() / 2).astype(np.float32), rate)


def loop_of(label: LoopLabel, rate: int = RATE, *, roll: bool = False) -> SourceLoop:
    steps = int(label.quarters * 4)
    notes = random_rolls(np.random.default_rng(1), 1)[0, :steps] if roll else None
    conditioning = Conditioning(notes, steps, 3, 33)
    return SourceLoop(Path("x.wav"), tones(label.samples(rate), rate), label, conditioning)


def codec_alone(loop: Wave, inpainter: Inpainter) -> Wave:
    """What the codec makes of a loop's latent."""
    scaled = Wave(loop.samples / np.float32(loop.peak), loop.rate)
    latent = compression.encode(scaled, inpainter.codec).latent
    back = compression.decode(latent, inpainter.codec, len(loop), loop.rate)
    return Wave(back.samples * np.float32(loop.peak), loop.rate)


# How long, and what stays.


@pytest.mark.parametrize("tempo_bpm", [40, 97.3, 123, 250])
@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_every_sample_is_there(tempo_bpm: float, rate: int, inpainter: Inpainter) -> None:
    label = LoopLabel(tempo_bpm, 1)
    made, regenerated = refine.refine(
        loop_of(label, rate), inpainter, InpaintMask(0), sampling=FAST
    )
    assert [one.samples.shape for one in made] == [(1, label.samples(rate))]
    assert (made[0].rate, regenerated) == (rate, 1.0)
    conditioning = Conditioning(steps=16, kit=25)
    written = generate.generate(
        LoopPrompt(label, conditioning), inpainter, rate=rate, sampling=FAST
    )
    assert [one.samples.shape for one in written] == [(1, label.samples(rate))]


@pytest.mark.parametrize(
    ("part", "regenerated"),
    [
        (InpaintMask(), {3, 4}), (InpaintMask(0.25), {2, 3, 4}), (InpaintMask(0), {1, 2, 3, 4}),
        (InpaintMask(1), {}), (InpaintMask(mask="even"), {2, 4}), (InpaintMask(mask="odd"), {1, 3}),
        (InpaintMask(mask="last"), {4}), (InpaintMask(mask="2, 4"), {2, 4}),
        (InpaintMask(1.0, "1-2,4"), {1, 2, 4}), (InpaintMask(mask="3-3"), {3}),
    ],
)  # fmt: skip
def test_bars_are_opened_from_their_first_frame_to_their_last(
    part: InpaintMask, regenerated: set[int], inpainter: Inpainter
) -> None:
    conditioning = Conditioning(steps=64)
    if not regenerated:
        with pytest.raises(CallError, match=r"keeps all of 4 bars.*keep less, or choose bars"):
            part.inpaint_mask(conditioning, 4, 100, 50)
        return
    inpaint_mask = part.inpaint_mask(conditioning, 4, 100, 50)
    assert {1 + frame // 25 for frame in inpaint_mask.nonzero()[:, 0].tolist()} == regenerated
    assert int(inpaint_mask.sum()) == 25 * len(regenerated)


@pytest.mark.parametrize("n_frames", [7, 8, 99, 101])
def test_bars_meet_wherever_frames_do_not_fit(n_frames: int) -> None:
    conditioning = Conditioning(steps=48)
    halves = [
        InpaintMask(mask=mask).inpaint_mask(conditioning, 3, n_frames, 50)
        for mask in ("odd", "even")
    ]
    assert (halves[0] ^ halves[1]).all()
    assert abs(int(halves[1].sum()) - n_frames / 3) <= 1


def test_onsets_are_opened_and_nothing_else_is() -> None:
    roll = np.zeros((16, 93), np.bool_)
    roll[0, 0] = roll[8, 2] = True
    roll[4:7, 30] = True  # a note of three steps, with one beginning
    inpaint_mask = InpaintMask(mask="onsets").inpaint_mask(Conditioning(roll, 16), 1, 160, 50)
    wanted = {(10 * step + late) % 160 for step in (0, 4, 8) for late in range(-1, 6)}
    assert set(inpaint_mask.nonzero()[:, 0].tolist()) == wanted


BAD_PARTS: dict[str, dict[str, Any]] = {
    "none": {"mask": "none"}, "empty": {"mask": ""}, "backwards": {"mask": "8-2"},
    "a sign": {"mask": "-1"}, "a fraction": {"mask": "1.5"}, "an end": {"mask": "2,"},
    "a huge one": {"mask": "99999999999"}, "too much": {"keep": 1.5}, "no number": {"keep": np.nan},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PARTS)
def test_what_is_no_part_is_a_wrong_call(name: str) -> None:
    with pytest.raises(CallError, match="give") as caught:
        InpaintMask(**BAD_PARTS[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mask", ["0", "5", "3-9", "1-99999999999"])
def test_bars_that_are_not_there_are_a_wrong_call(mask: str) -> None:
    with pytest.raises(CallError, match="no such bars in a loop of 4"):
        InpaintMask(mask=mask).inpaint_mask(Conditioning(steps=64), 4, 100, 50)


@pytest.mark.parametrize("roll", [None, np.zeros((64, 93), np.bool_)])
def test_where_no_note_begins_there_are_no_onsets(roll: Any) -> None:
    with pytest.raises(CallError, match=r"no notes are known of audio|no note .* begins"):
        InpaintMask(mask="onsets").inpaint_mask(Conditioning(roll, 64), 4, 100, 50)


@pytest.mark.parametrize("part", [InpaintMask(0.5), InpaintMask(mask="2,3")])
def test_what_stays_is_what_the_codec_makes_of_it(part: InpaintMask, inpainter: Inpainter) -> None:
    label = LoopLabel(240, 4)
    loop = loop_of(label)
    (made,), regenerated = refine.refine(loop, inpainter, part, sampling=FAST)
    assert regenerated == 0.5
    wanted = codec_alone(loop.wave, inpainter)
    bar = len(made) // 4
    kept = [0, 1] if part.mask is None else [0, 3]
    reach = round(REACH_S * RATE)
    off = np.abs(made.samples - wanted.samples)[0].reshape(4, bar)
    assert off[kept, reach : bar - reach].max() < 1e-5
    others = [number for number in range(4) if number not in kept]
    assert off[others, reach : bar - reach].max() > 0.01
    if part.mask is not None:  # bars 4 and 1 are next to each other
        assert max(off[3, reach:].max(), off[0, : bar - reach].max()) < 1e-5


def test_a_loop_has_no_seam(inpainter: Inpainter) -> None:
    loop = loop_of(LoopLabel(240, 4))
    codes = compression.encode(loop.wave, inpainter.codec).codes
    inpaint_mask = InpaintMask().inpaint_mask(loop.conditioning, 4, codes.shape[-1], 50)
    codes = inpainter.inpaint(
        codes, inpaint_mask, loop.conditioning.on(codes.shape[-1], 50), 1, FAST
    )
    latent = compression.dequantize(codes, inpainter.codec)
    ring = inpainter.codec.decode(latent, circular=True)
    assert reconstruct.wrap_error_db(latent, ring, inpainter.codec) < -100
    # And the way back to its own number of samples is circular as well.
    decoded = inpainter.decoded(codes, len(loop.wave), RATE)
    rolled = inpainter.decoded(codes.roll(50, -1), len(loop.wave), RATE)
    turned = np.roll(decoded.samples, len(loop.wave) // 4, 1)
    np.testing.assert_allclose(rolled.samples, turned, atol=1e-5)


def test_the_level_is_that_of_the_loop(inpainter: Inpainter) -> None:
    loop = loop_of(LoopLabel(240, 2))
    soft = replace(loop, wave=Wave(loop.wave.samples * np.float32(2**-6), RATE))
    (loud,), _ = refine.refine(loop, inpainter, sampling=FAST)
    (low,), _ = refine.refine(soft, inpainter, sampling=FAST)
    np.testing.assert_allclose(low.samples * 2**6, loud.samples, atol=1e-5)


def test_notes_are_told_unless_it_is_to_be_free(inpainter: Inpainter) -> None:
    loop = loop_of(LoopLabel(240, 2), roll=True)
    heard = refine.refine(loop, inpainter, InpaintMask(0), sampling=FAST)[0][0].samples
    free = refine.refine(loop, inpainter, InpaintMask(0), sampling=FAST, ignore_notes=True)[0][
        0
    ].samples
    plain = replace(loop, conditioning=replace(loop.conditioning, roll=None))
    np.testing.assert_array_equal(
        free, refine.refine(plain, inpainter, InpaintMask(0), sampling=FAST)[0][0].samples
    )
    assert np.abs(heard - free).max() > 0.01


@pytest.mark.parametrize("level", [0.0, np.nan, np.inf])
def test_silence_and_no_numbers_are_refused(level: float, inpainter: Inpainter) -> None:
    samples = np.full((1, RATE), level, np.float32)
    loop = replace(loop_of(LoopLabel(240, 1)), wave=Wave(samples, RATE))
    with pytest.raises(LoopError, match="silent, or samples that are no numbers"):
        refine.refine(loop, inpainter, sampling=FAST)


def test_what_is_too_long_or_too_short_is_refused(inpainter: Inpainter) -> None:
    with pytest.raises(LoopError, match=r"96 s are over 80.*give fewer bars, or a faster tempo"):
        generate.generate(LoopPrompt(LoopLabel(20, 8), Conditioning(steps=128)), inpainter)
    samples = np.full((1, 300), 0.1, np.float32)
    loop = replace(loop_of(LoopLabel(240, 1)), wave=Wave(samples, RATE))
    with pytest.raises(LoopError, match="less than a frame"):
        refine.refine(loop, inpainter, InpaintMask(0))


# Ways.


@pytest.mark.parametrize("notes", [False, True])
@pytest.mark.parametrize("primed", [False, True])
@pytest.mark.parametrize("rescoring_weight", [0.0, 0.7])
def test_a_way_depends_on_the_seed_and_its_number_alone(
    notes: bool, primed: bool, rescoring_weight: float, inpainter: Inpainter
) -> None:
    label = LoopLabel(240, 1)
    conditioning = loop_of(label, roll=True).conditioning if notes else Conditioning(steps=16)

    def made(seed: int, n: int) -> list[Any]:
        sampling = replace(FAST, seed=seed, rescoring_weight=rescoring_weight)
        waves = generate.generate(
            LoopPrompt(label, conditioning),
            inpainter,
            num_samples=n,
            sampling=sampling,
            causal_prefix=primed,
        )
        return [one.samples.tobytes() for one in waves]

    three, other = made(1, 3), made(2, 3)
    assert made(1, 1) == three[:1]
    assert made(1, 2) == three[:2]
    assert len({*three, *other}) == 6  # nor is a way of one seed one of the next


@pytest.mark.parametrize("best_of", [1, 3])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
@pytest.mark.parametrize("max_frames", [1, 40 * 7, 40 * 12, 100_000])
def test_variations_decoded_together_are_those_decoded_one_by_one(
    best_of: int,
    cfg_scale: float,
    max_frames: int,
    inpainter: Inpainter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = torch.randint(32, (1, 4, 40), generator=torch.Generator().manual_seed(3))
    inpaint_mask = torch.arange(40) < 30
    condition = loop_of(LoopLabel(240, 1), roll=True).conditioning.on(40, 50)
    sampling = replace(FAST, best_of=best_of, cfg_scale=cfg_scale, seed=2)
    rows: list[int] = []

    def count(_: Any, args: tuple[Tensor, ...]) -> None:
        rows.append(len(args[0]))

    def made(n: int) -> Tensor:
        return inpainter.inpaint(tokens, inpaint_mask, condition, n, sampling)

    # One by one, by a cap below one row.
    monkeypatch.setattr(inpaint, "MAX_BATCH_FRAMES", 1)
    alone = made(5)
    monkeypatch.setattr(inpaint, "MAX_BATCH_FRAMES", max_frames)
    hook = inpainter.masked.register_forward_pre_hook(count)
    try:
        assert torch.equal(made(5), alone)
    finally:
        hook.remove()
    one_variation = best_of * (1 if cfg_scale == 1 else 2)
    assert max(rows) == one_variation * min(5, max(1, max_frames // (40 * one_variation)))
    assert torch.equal(made(2), alone[:2])


def test_frames_that_stay_keep_their_codes(inpainter: Inpainter) -> None:
    codes = torch.randint(32, (1, 4, 40), generator=torch.Generator().manual_seed(1))
    inpaint_mask = torch.arange(40) % 7 < 3
    condition = Conditioning(steps=16).on(40, 50)
    found = inpainter.inpaint(codes, inpaint_mask, condition, 3, FAST)
    assert found.shape == (3, 4, 40)
    assert (found[..., ~inpaint_mask] == codes[..., ~inpaint_mask]).all()
    assert (found != codes).any(1).any(1).all()
    begun = inpainter.inpaint(codes.expand(2, -1, -1), inpaint_mask, condition, 2, FAST)
    assert torch.equal(begun, found[:2])


def test_of_candidates_the_one_goes_on_that_the_notes_say_most_about(inpainter: Inpainter) -> None:
    codes = torch.randint(32, (1, 4, 40), generator=torch.Generator().manual_seed(3))
    inpaint_mask = torch.arange(40) < 30
    condition = loop_of(LoopLabel(240, 1), roll=True).conditioning.on(40, 50)

    def found(best_of: int, conditioning: ConditioningTensors = condition) -> Tensor:
        sampling = replace(FAST, best_of=best_of, seed=2)
        return inpainter.inpaint(codes, inpaint_mask, conditioning, 1, sampling)

    mask_token = inpainter.masked.config.mask_token
    generator = replace(FAST, seed=2).generator(0, inpainter.device)
    drawn = decode.decode(
        loops.ring(inpainter.masked, condition),
        torch.where(inpaint_mask, mask_token, codes).expand(5, -1, -1),
        mask_token, generator, FAST.config(conditioned=True), books=1,
    )  # fmt: skip
    assert (drawn[:, 1:, inpaint_mask] == mask_token).all()
    assert len({tuple(row.tolist()) for row in drawn[:, 0]}) == 5
    conditioning = loops.mutual_information(
        inpainter.masked, drawn, condition, inpaint_mask, generator
    )
    assert torch.equal(found(5)[:, 0], drawn[conditioning.argmax(), None, 0])
    assert not torch.equal(found(5), found(1))
    free = condition._replace(frames=torch.zeros_like(condition.frames))
    assert torch.equal(found(5, free), found(1, free))


@pytest.mark.parametrize("known", [0, 1, 3, 4])
def test_the_first_codebooks_may_be_known_and_stay(inpainter: Inpainter, known: int) -> None:
    codes = torch.randint(32, (1, 4, 40), generator=torch.Generator().manual_seed(3))
    inpaint_mask = torch.ones(4, 40, dtype=torch.bool)
    inpaint_mask[:known] = False
    found = inpainter.inpaint(codes, inpaint_mask, Conditioning(steps=16).on(40, 50), 1, FAST)
    assert torch.equal(found[:, :known], codes[:, :known])
    assert (found[:, known:] != codes[:, known:]).any(2).all()


def test_who_is_not_there_has_no_say(inpainter: Inpainter) -> None:
    alone = replace(inpainter, causal=None)
    with pytest.raises(CallError, match="no prefix without a causal model"):
        generate.generate(
            LoopPrompt(LoopLabel(240, 1), Conditioning(steps=16)),
            alone,
            sampling=FAST,
            causal_prefix=True,
        )
    with pytest.raises(CallError, match="no rescoring weight without a causal model"):
        refine.refine(
            loop_of(LoopLabel(240, 1)),
            alone,
            InpaintMask(0),
            sampling=replace(FAST, rescoring_weight=0.5),
        )


def test_where_notes_are_told_codes_are_drawn_tamer_unless_said_otherwise(
    inpainter: Inpainter,
) -> None:
    loop = loop_of(LoopLabel(240, 1), roll=True)

    def made(free: bool, temperature: float | None) -> Samples:
        sampling = replace(FAST, temperature=temperature)
        return refine.refine(loop, inpainter, InpaintMask(0), ignore_notes=free, sampling=sampling)[
            0
        ][0].samples

    conditioning, untold = inpaint.CONDITIONED.temperature, inpaint.UNCONDITIONED.temperature
    assert conditioning < untold
    for free, defaults, other in ((False, conditioning, untold), (True, untold, conditioning)):
        assert np.array_equal(made(free, None), made(free, defaults))
        assert not np.array_equal(made(free, None), made(free, other))


def test_drafts_that_are_chosen_among_are_not_led_unless_said_otherwise() -> None:
    free, conditioning = inpaint.UNCONDITIONED.cfg_scale, inpaint.CONDITIONED.cfg_scale
    cases = {(1, False): free, (4, False): free, (1, True): conditioning, (4, True): 1.0}
    for (best_of, conditioning), defaults in cases.items():
        sampling = replace(FAST, best_of=best_of)
        assert sampling.config(conditioned=conditioning).cfg_scale == defaults
        assert replace(sampling, cfg_scale=2.0).config(conditioned=conditioning).cfg_scale == 2


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -1},
        {"top_p": 1.1},
        {"cfg_scale": np.nan},
        {"rescoring_weight": 2},
        {"top_p": -0.1},
        {"choice_temperature": 1.5},
        {"best_of": 0},
        {"best_of": 17},
    ],
)
def test_a_taste_out_of_range_is_a_wrong_call(change: dict[str, Any]) -> None:
    with pytest.raises(CallError, match=next(iter(change)).replace("_", "-")):
        replace(FAST, **change)


def test_models_of_another_codec_are_refused(models: list[str], tmp_path: Path) -> None:
    torch.manual_seed(5)
    checkpoint.save_model(tmp_path, compression.KIND, Codec(CODEC), {})
    masked, codec, causal = (Path(path) for path in with_causal(models)[1::2])
    with pytest.raises(LoopError, match="the tokens of another codec"):
        inpaint.load(masked, causal, tmp_path)
    found = inpaint.load(masked, None, codec)
    assert found.causal is None
    assert inpaint.load(masked, causal, codec).causal is not None


@pytest.mark.parametrize("form", [Format(), Format("flac", "16"), Format("ogg", "lossy")])
def test_what_would_clip_is_turned_down_and_says_so(form: Format, tmp_path: Path) -> None:
    label = LoopLabel(240, 1, name="dub")
    loud = tones(label.samples(RATE))
    loud = Wave(loud.samples * np.float32(4), RATE)
    files, conditioning = outputs.write(loud, tmp_path, label, form, None)
    assert files == (f"dub_240bpm{form.suffix}",)
    room_db = 7.0 if form.name == "ogg" else 6.0
    assert conditioning == [f"turned down by {room_db:.1f} dB, or it clips"]
    assert sound(tmp_path / files[0]) == []
    files, conditioning = outputs.write(tones(label.samples(RATE)), tmp_path, label, form, None)
    assert conditioning == []
    assert wave.read(tmp_path / files[0]).peak == pytest.approx(0.5, abs=0.05)


# The commands.


class Done(NamedTuple):
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def audioloop(*args: object) -> Done:
    """The command, in this process, which has PyTorch loaded already."""
    found = CliRunner().invoke(main.audioloop, [*map(str, args)])
    return Done(found.exit_code, found.stdout, found.stderr)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "dub.mid"
    path.write_bytes(score.to_bytes(groove(2)))
    return path


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    label = LoopLabel(197.3, 2, name="dub")
    path = tmp_path / "dub_197bpm.wav"
    wave.write(path, tones(label.samples(RATE), channels=2), label, Format())
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sound(path: Path) -> list[str]:
    """What is wrong with a file, but for what untrained models make jump."""
    return [str(found) for found in validate.check(path) if found.what != "seam"]


@pytest.mark.parametrize("form", ["wav", "flac", "ogg"])
def test_audio_keeps_its_length_and_label(
    form: str, loop: Path, models: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = audioloop("refine", loop, "-o", out, "--format", form, *models)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(out) == [f"dub_197bpm.{form}"]
    found = metadata.read(out / f"dub_197bpm.{form}")
    assert len(found.wave) == LoopLabel(197.3, 2).samples(RATE)
    assert found.tempo_bpm == pytest.approx(197.3, abs=1e-4)
    assert (found.bars, found.wave.rate) == (2, RATE)
    assert sound(found.path) == []
    assert "2 bars at 197.3 bpm, 107,288 samples, 50% regenerated" in done.stdout
    assert "2 channels mixed to one" in done.stdout


def test_midi_is_written_beside_what_was_made_of_it(
    song: Path, models: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--bpm", 120, "--mask", "onsets", "--kit", 25, "--num-samples", 2, "--json"]
    done = audioloop(
        "refine", song, "-o", out, *options, "--rescoring-weight", 0.5, *with_causal(models)
    )
    assert (done.returncode, done.stderr) == (0, "")
    stems = ["dub-v1_120bpm_Am", "dub-v2_120bpm_Am"]
    assert names(out) == sorted(f"{stem}.{end}" for stem in stems for end in ("mid", "wav"))
    found = json.loads(done.stdout)
    assert found["failed"] == []
    assert [one["files"] for one in found["loops"]] == [[f"{s}.wav", f"{s}.mid"] for s in stems]
    assert all(0 < one["regenerated"] < 1 and one["samples"] == 176_400 for one in found["loops"])
    assert {one["source"] for one in found["loops"]} == {str(song)}
    back = score.read(out / "dub-v1_120bpm_Am.mid")
    assert back.n_notes == groove(2).n_notes
    assert {track.program for track in back.tracks} == {25, 33}
    assert sound(out / "dub-v1_120bpm_Am.wav") == []
    waves = [wave.read(out / f"{stem}.wav").samples for stem in stems]
    assert np.abs(waves[0] - waves[1]).max() > 1e-3


def test_a_bad_file_costs_itself(loop: Path, models: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    wave.write(tmp_path / "silent.wav", Wave(np.zeros((1, RATE), np.float32), RATE), None, Format())
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    bad = [tmp_path / f"{name}.wav" for name in ("broken", "silent", "nan")]
    done = audioloop("refine", *bad[:1], loop, *bad[1:], "-o", out, "--json", *models)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    for line, path in zip(lines, bad, strict=True):
        assert line.startswith(f"audioloop: error: {path}: ")
        assert line.count(path.name) == 1
    found = json.loads(done.stdout)
    assert len(found["loops"]) == 1
    assert len(found["failed"]) == 3
    assert names(out) == ["dub_197bpm.wav"]


def test_nothing_is_written_over_what_is_read_or_was_made(
    loop: Path, models: list[str], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "DUB.wav"
    twin.write_bytes(loop.read_bytes())
    before = loop.read_bytes()
    done = audioloop("refine", loop, twin, "-o", tmp_path, *models)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["DUB-3_197bpm.wav", "dub-2_197bpm.wav", "dub_197bpm.wav", "other"]
    assert loop.read_bytes() == before


@pytest.mark.parametrize("command", ["refine", "generate"])
def test_one_run_at_a_time_works_in_a_folder(
    command: str, song: Path, models: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with files.locked(out):
        done = audioloop(command, song, "-o", out, *models)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "another run is at work here" in done.stderr
    assert names(out) == []


def test_what_cannot_be_written_leaves_nothing_half_done(
    song: Path, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "dub_240bpm.wav")

    monkeypatch.setattr(wave, "write", full)
    done = audioloop("refine", song, "-o", tmp_path / "out", "--bpm", 240, *models)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--mask", "7-"], ["--keep", "2"], ["--top-p", "3"]])
def test_a_wrong_call_is_one_line_before_anything_is_read(
    option: list[str], loop: Path, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    models = ["--masked-model", tmp_path / "none"]
    done = audioloop("refine", loop, "-o", tmp_path / "out", *option, *models)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert option[0][2:] in done.stderr
    assert not (tmp_path / "out").exists()


def test_keeping_all_leaves_nothing_to_do(loop: Path, models: list[str], tmp_path: Path) -> None:
    done = audioloop("refine", loop, "-o", tmp_path / "out", "--keep", 1, *models)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{loop}: --keep 1 keeps all of 2 bars" in done.stderr


def test_models_that_are_not_there_are_one_line(loop: Path, tmp_path: Path) -> None:
    done = audioloop("refine", loop, "-o", tmp_path / "out", "--masked-model", tmp_path / "none")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "none" in done.stderr


def test_a_loop_comes_of_nothing_but_a_kit_and_a_tempo(models: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = ["--kit", 25, "--bpm", 297.3, "--bars", 3, "--seed", 7, "--num-samples", 2]
    done = audioloop("generate", "-o", out, *said, "--causal-prefix", *with_causal(models))
    assert (done.returncode, done.stderr) == (0, "")
    assert names(out) == ["seed-7-v1_297bpm.wav", "seed-7-v2_297bpm.wav"]
    length = LoopLabel(297.3, 3).samples(RATE)
    for name in names(out):
        assert len(wave.read(out / name)) == length
        assert sound(out / name) == []
    again = audioloop(
        "generate", "-o", tmp_path / "b", *said[:-1], 1, "--causal-prefix", *with_causal(models)
    )
    assert again.returncode == 0
    first = (out / "seed-7-v1_297bpm.wav").read_bytes()
    assert (tmp_path / "b" / "seed-7_297bpm.wav").read_bytes() == first


def test_loops_are_written_of_notes_and_a_bad_file_costs_itself(
    song: Path, models: list[str], tmp_path: Path
) -> None:
    folder, out = tmp_path / "more", tmp_path / "out"
    folder.mkdir()
    (folder / "broken.mid").write_bytes(b"MThd")
    (folder / "dub.mid").write_bytes(song.read_bytes())
    said = ["--bpm", 300, "--kit", 25, "--json"]
    done = audioloop("generate", song, folder, "-o", out, *said, *models)
    assert done.returncode == 1
    assert "broken.mid: " in done.stderr.splitlines()[0]
    assert names(out) == [
        "dub-2_300bpm_Am.mid",
        "dub-2_300bpm_Am.wav",
        "dub_300bpm_Am.mid",
        "dub_300bpm_Am.wav",
    ]
    found = json.loads(done.stdout)
    assert [one["source"] for one in found["loops"]] == [str(song), str(folder / "dub.mid")]
    written = score.read(out / "dub_300bpm_Am.mid")
    assert written.n_notes == groove(2).n_notes
    assert {track.program for track in written.tracks if track.is_drum} == {25}  # as it sounds
    one, two = (wave.read(out / f"{name}_300bpm_Am.wav").samples for name in ("dub", "dub-2"))
    np.testing.assert_array_equal(one, two)


def test_a_loop_that_is_too_long_is_one_line(models: list[str], tmp_path: Path) -> None:
    done = audioloop("generate", "-o", tmp_path / "out", "--bars", 64, "--bpm", 60, *models)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "256 s are over 80" in done.stderr
    assert not (tmp_path / "out").exists()


def test_precision_is_chosen_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for pays in (False, True):
        monkeypatch.setattr(inpaint, "bfloat16_is_faster", lambda _, pays=pays: pays)
        assert inpaint.load(precision="auto").masked.in_bfloat16 is pays
        assert not inpaint.load(precision="float32").masked.in_bfloat16
        assert inpaint.load(precision="bfloat16").masked.in_bfloat16
    assert not inpaint.load().masked.in_bfloat16


def test_what_is_measured_leaves_all_as_it_was() -> None:
    model = Masked(TokenConfig(dim=32, heads=2, layers=1))
    threads = torch.get_num_threads()
    assert inpaint.bfloat16_is_faster(model) in (False, True)
    assert torch.get_num_threads() == threads
    assert not model.in_bfloat16
