"""Seam perplexity: a ring has no first frame, and the arithmetic is LoopGen's."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import Tensor, nn

from audioloop.codec import compression, encoded_dataset
from audioloop.codec.model import Codec, CodecConfig
from audioloop.conditioning import Conditioning, ConditioningTensors
from audioloop.evaluation import perplexity
from audioloop.evaluation.perplexity import AHEAD, CONTEXT, WINDOW, SeamPerplexity
from audioloop.io.wave import Wave
from audioloop.tokens import pretrained
from audioloop.tokens.model import Causal, Masked, TokenConfig
from handmade import rotated
from midiloop.common import checkpoint, statistics
from midiloop.errors import CallError, LoopError
from midiloop.grid import LOOP
from midiloop_cli.main import audioloop

BOOKS, SIZE = 3, 12
TINY = TokenConfig(
    dim=16, heads=2, layers=2, widening=2, codebooks=BOOKS, codebook_size=SIZE, reach=3
)
CODEC = CodecConfig(
    fine=32, coarse=32, encoder_blocks=1, decoder_blocks=1, latent_dim=16,
    codebooks=BOOKS, codebook_size=SIZE,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def model() -> Causal:
    """A model that expects something, though it has learned nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        found = Causal(TINY).eval().requires_grad_(False)
    for head in found.heads:
        assert isinstance(head, nn.Linear)
        head.weight.mul_(3)
    return found


def drawn(n_frames: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(SIZE, (BOOKS, n_frames), generator=rng)


def conditioning(n_frames: int, steps: int = 32) -> ConditioningTensors:
    rng = np.random.default_rng(5)
    roll = rng.random((steps, LOOP.columns)) < 0.1
    return Conditioning(roll, steps, kit=3, bass=33).on(n_frames, 50.0)


def explicit(
    line: Tensor, condition: ConditioningTensors, first: int, window: int
) -> NDArray[np.float64]:
    """The definition, word for word: mean of -ln of what each code's probability was."""
    probabilities = model()(line[None], condition).softmax(-1)[0]
    frames = range(first, first + window)
    nats = [
        [-math.log(probabilities[book, at, line[book, at]]) for at in frames]
        for book in range(BOOKS)
    ]
    return np.asarray(np.mean(nats, axis=1), np.float64)


# Laws.


@pytest.mark.parametrize("turn", [1, 17, 40])
def test_rotating_a_loop_rotates_its_figures(turn: int) -> None:
    codes, condition, places = drawn(41), conditioning(41), [0, 5, 20, 40]
    moved = [place + turn for place in places]
    turned = codes.roll(turn, -1)
    for here_condition, there_condition in ((None, None), (condition, rotated(condition, turn))):
        there = perplexity.nats_at(codes, places, model(), here_condition)
        here = perplexity.nats_at(turned, moved, model(), there_condition)
        np.testing.assert_allclose(here, there, atol=1e-4)
    assert np.ptp(there[:, 0]) > 0.1  # places do differ
    astray = perplexity.nats_at(turned, moved, model(), condition)  # told of another rotation
    assert np.abs(astray - there).max() > 0.01


@pytest.mark.parametrize("rounds", [2, 3])
def test_a_ring_is_the_line_that_goes_round_it(rounds: int) -> None:
    codes, condition = drawn(30), conditioning(30)
    line = codes.repeat(1, rounds + 2)
    around = ConditioningTensors(
        condition.frames.repeat(1, 1, rounds + 2), condition.kit, condition.bass
    )
    found = perplexity.nats_at(codes, [0], model(), condition, context=30 * rounds)
    expected = explicit(line, around, 30 * rounds, WINDOW)
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_the_line_begins_with_the_context_and_ends_after_the_window() -> None:
    codes, condition = drawn(90), conditioning(90)
    places = torch.arange(20 - 7, 20 + 4 + AHEAD)
    found = perplexity.nats_at(codes, [20], model(), condition, window=4, context=7)
    expected = explicit(codes[:, places], condition.at(places), 7, 4)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    longer = perplexity.nats_at(codes, [20], model(), condition, window=4, context=8)
    assert np.abs(longer - found).max() > 1e-3


def test_the_context_of_a_seam_is_one_loop() -> None:
    for n_frames, context in ((30, 30), (CONTEXT + 50, CONTEXT)):
        codes = drawn(n_frames)
        found = perplexity.nats_at(codes, [0, 7], model())
        once = perplexity.nats_at(codes, [0, 7], model(), context=context)
        np.testing.assert_array_equal(found, once)
    twice = perplexity.nats_at(drawn(30), [0], model(), context=60)
    assert np.abs(perplexity.nats_at(drawn(30), [0], model()) - twice).max() > 1e-3


def test_without_conditioning_the_null_condition_is_used() -> None:
    codes, condition = drawn(50), conditioning(50)
    silent = perplexity.nats_at(codes, [3], model(), condition.null())
    np.testing.assert_array_equal(perplexity.nats_at(codes, [3], model()), silent)
    assert np.abs(perplexity.nats_at(codes, [3], model(), condition) - silent).max() > 1e-3


def test_what_comes_after_the_window_does_not_count() -> None:
    codes = drawn(600)
    other = codes.clone()
    other[:, WINDOW:100] = (codes[:, WINDOW:100] + 1) % SIZE  # out of reach: 600 - CONTEXT > 100
    found, same = (perplexity.nats_at(c, [0], model()) for c in (codes, other))
    np.testing.assert_allclose(found, same, atol=1e-6)
    other[:, WINDOW - 1] = (codes[:, WINDOW - 1] + 1) % SIZE
    assert np.abs(perplexity.nats_at(other, [0], model()) - found).max() > 1e-2
    other = codes.clone()
    other[:, -CONTEXT - 1] = (codes[:, -CONTEXT - 1] + 1) % SIZE
    np.testing.assert_array_equal(perplexity.nats_at(other, [0], model()), found)


def test_a_model_that_expects_nothing_has_as_many_choices_as_codes() -> None:
    blank = Causal(TINY).requires_grad_(False)
    for head in blank.heads:
        for weight in head.parameters():
            weight.zero_()
    found = perplexity.of_wave(noise(4 * 16_000), codec(), blank, 4)
    assert found.measures == pytest.approx(
        {
            "perplexity": SIZE, "perplexity_all": SIZE, "bar_perplexity": SIZE,
            "bar_perplexity_all": SIZE, "difference_nats": 0, "difference_nats_all": 0,
        },
        abs=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("n_frames", "window", "context"), [(1, 5, 400), (3, 5, 0), (3, 7, 2), (30, 1, 0), (30, 40, 10)]
)
def test_any_ring_can_be_measured(n_frames: int, window: int, context: int) -> None:
    codes = drawn(n_frames)
    found = perplexity.nats_at(
        codes, [0, n_frames, -n_frames], model(), window=window, context=context
    )
    assert found.shape == (3, BOOKS)
    assert (found > 0).all()
    np.testing.assert_allclose(found - found[:1], 0, atol=1e-6)  # modulo the ring


def test_many_places_are_as_each_by_itself() -> None:
    codes = drawn(60)
    places = list(range(0, 60, 3))
    assert len(places) > 2 * perplexity.LINES
    together = perplexity.nats_at(codes, places, model(), context=50)
    alone = [perplexity.nats_at(codes, [place], model(), context=50)[0] for place in places]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert perplexity.nats_at(codes, [], model()).shape == (0, BOOKS)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (drawn(9)[:2], r"expected tokens \(3, frames\), got \(2, 9\)"),
        (drawn(9)[None], r"got \(1, 3, 9\)"),
        (drawn(9)[:, :0], r"got \(3, 0\)"),
        (drawn(9) + SIZE, "the model's are from 0 to 11; they are of another codec"),
        (drawn(9) - SIZE, "tokens from -"),
    ],
    ids=["books", "batch", "empty", "high", "low"],
)
def test_codes_that_are_not_the_models_are_refused(codes: Tensor, words: str) -> None:
    with pytest.raises(CallError, match=words):
        perplexity.nats_at(codes, [0], model())


@pytest.mark.parametrize(("window", "context"), [(0, 1), (1, -1)])
def test_frames_that_cannot_be_are_refused(window: int, context: int) -> None:
    with pytest.raises(CallError, match=f"a window of {window} after {context} frames?;"):
        perplexity.nats_at(drawn(9), [0], model(), window=window, context=context)


# A loop's seam, beside its other bar lines.


@pytest.mark.parametrize("bars", [None, 1])
def test_without_other_bar_lines_the_seam_stands_alone(bars: int | None) -> None:
    found = perplexity.of_wave(noise(64_000), codec(), model(), bars)
    assert found.bars == found.bars_all == ()
    assert found.difference is found.difference_all is None
    assert found.measures["bar_perplexity"] is None


@pytest.mark.parametrize("bars", [-1, 0, 43])
def test_bars_that_cannot_be_are_refused(bars: int) -> None:
    with pytest.raises(CallError, match=f"{bars} bars in 42 frames; give"):
        perplexity.of_wave(noise(42 * CODEC.frame), codec(), model(), bars)


def test_measures_are_made_of_nats() -> None:
    found = SeamPerplexity(math.log(8), math.log(3), (0.0, math.log(16)), (1.0, 1.0))
    assert found.measures == pytest.approx(
        {
            "perplexity": 8, "perplexity_all": 3, "bar_perplexity": 4,
            "bar_perplexity_all": math.e, "difference_nats": math.log(2),
            "difference_nats_all": math.log(3) - 1,
        }
    )  # fmt: skip
    assert set(found.measures) == set(perplexity.MEANING)
    shown = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert shown["nats"]["bars"] == [0, math.log(16)]


@cache
def codec() -> Codec:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        found = Codec(CODEC).eval().requires_grad_(False)
    ring = compression.to_frames(noise(64_000), CODEC)
    found.quantizer.vectors.mul_(found.encode(ring, circular=True).std())  # or one code would do
    return found


def noise(n_samples: int, rate: int = 32_000) -> Wave:
    samples = np.random.default_rng(2).normal(scale=0.1, size=(1, n_samples))
    return Wave(samples.astype(np.float32), rate)


@pytest.mark.parametrize(
    ("bars", "n_frames"), [(4, 100.48), (3, 100), (4, 101), (6, 100), (7, 99), (8, 97)]
)
def test_all_bar_lines_of_a_wave_are_measured_alike(bars: int, n_frames: float) -> None:
    wave = noise(bars * round(n_frames * CODEC.frame), 32_000 * bars)  # bars of whole samples
    found = perplexity.of_wave(wave, codec(), model(), bars)
    turned = Wave(np.roll(wave.samples, -len(wave) // bars, 1), wave.rate)
    moved = perplexity.of_wave(turned, codec(), model(), bars)
    np.testing.assert_allclose([moved.nats, *moved.bars], [*found.bars, found.nats], atol=1e-4)
    np.testing.assert_allclose(
        [moved.nats_all, *moved.bars_all], [*found.bars_all, found.nats_all], atol=1e-4
    )
    assert np.ptp([found.nats, *found.bars]) > 0.05


@pytest.mark.parametrize(
    ("n_frames", "bars", "nearest"),
    [
        (100, 4, [[0, 25, 50, 75], [0, 25, 50, 75], [0, 25, 50, 75], [-1, 24, 49, 74]]),
        (65, 2, [[0, 33], [0, 32], [0, 32], [-1, 32]]),  # the second at 32.5
        (65, None, [[0], [0], [0], [-1]]),
    ],
)
def test_a_line_is_measured_at_four_places_within_a_frame(
    n_frames: int, bars: int | None, nearest: list[list[int]]
) -> None:
    wave = noise(n_frames * CODEC.frame)
    nats = []
    for quarter, places in enumerate(nearest):
        moved = np.roll(wave.samples, -quarter * CODEC.frame // 4, 1)
        codes = compression.encode(Wave(moved, wave.rate), codec()).codes[0]
        nats.append(perplexity.nats_at(codes, places, model()))
    assert np.ptp(nats, 0).max() > 0.05  # it does matter where the frames are
    found = perplexity.of_wave(wave, codec(), model(), bars)
    expected = np.mean(nats, axis=0)
    np.testing.assert_allclose([found.nats, *found.bars], expected[:, 0])
    np.testing.assert_allclose([found.nats_all, *found.bars_all], expected.mean(1))


# Several loops.


def test_a_summary_pairs_what_has_bar_lines() -> None:
    whole = [SeamPerplexity(2.0, 1.0, (1.0, 2.0), (1.0, 1.0)), SeamPerplexity(3, 1, (1, 3), (2, 2))]
    alone = SeamPerplexity(9.0, 9.0, (), ())
    found = perplexity.summary([*whole, alone])
    assert found.seam == statistics.interval([2, 3, 9])
    assert found.bars == statistics.interval([1.5, 2])
    assert found.difference == statistics.paired([0.5, 1])
    assert found.difference_all == statistics.paired([0, -1])
    shown = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert shown["difference_all"]["indistinguishable"] is True
    assert shown["seam"]["center"] == found.seam.center
    assert set(perplexity.summary([whole[0]])) == {None}
    assert perplexity.summary([alone, alone]).difference is None


# Models of runs.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    checkpoint.save_model(tmp_path / "run", "causal", model(), {})
    return tmp_path / "run"


def test_a_run_is_loaded_as_it_was_saved(run: Path, tmp_path: Path) -> None:
    found = pretrained.load_causal(run)
    assert found.config == TINY
    assert not found.training
    codes = drawn(20)
    expected = perplexity.nats_at(codes, [0], model())
    np.testing.assert_array_equal(perplexity.nats_at(codes, [0], found), expected)
    masked = Masked(TINY)
    checkpoint.save_model(tmp_path / "masked", "masked", masked, {})
    assert pretrained.load_masked(tmp_path / "masked").config == TINY


def test_a_run_of_another_kind_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(LoopError, match="no model is called 'causal'"):
        pretrained.load_masked(run)
    with pytest.raises(LoopError, match=r"no config\.json; give a folder"):
        pretrained.load_causal(tmp_path / "none")


def test_a_model_knows_its_codec() -> None:
    with pytest.raises(LoopError, match="tokens of another codec; give that codec"):
        pretrained.of_codec(model(), codec())
    known = Causal(
        TokenConfig(dim=16, heads=2, layers=1, codec=encoded_dataset.encode_loop(codec()))
    )
    pretrained.of_codec(known, codec())


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loops, a codec, a model that has learned its codes as it were, and one that has not."""
    out = tmp_path_factory.mktemp("command")
    soundfile.write(out / "four.wav", noise(64_000).samples.T, 32_000)
    soundfile.write(out / "two.wav", noise(48_000).samples.T, 32_000)
    soundfile.write(out / "silence.wav", np.zeros(32_000), 32_000)
    config = TokenConfig(
        dim=16, heads=2, layers=1, codebooks=BOOKS, codebook_size=SIZE,
        codec=encoded_dataset.encode_loop(codec()),
    )  # fmt: skip
    checkpoint.save_model(out / "codec", compression.KIND, codec(), {})
    checkpoint.save_model(out / "model", "causal", Causal(config), {})
    checkpoint.save_model(out / "stranger", "causal", model(), {})
    return out


def ears(folder: Path, model: str = "model") -> list[str]:
    return ["--perplexity", "--causal-model", str(folder / model), "--codec", str(folder / "codec")]


def seam_of(*args: str) -> tuple[int, str, str]:
    run = CliRunner().invoke(audioloop, ["seam", *args])
    return run.exit_code, run.stdout, run.stderr


def test_the_command_says_what_the_library_finds(folder: Path) -> None:
    files = [str(folder / name) for name in ("four.wav", "silence.wav", "two.wav")]
    code, out, err = seam_of(*files, "--bars", "4", "--json", *ears(folder))
    assert code == 1
    assert "silent" in err
    found = json.loads(out)
    trained = pretrained.load_causal(folder / "model")
    each = [
        perplexity.of_wave(noise(n), compression.load(folder / "codec"), trained, 4)
        for n in (64_000, 48_000)
    ]
    for shown, expected in zip((found["files"][0], found["files"][2]), each, strict=True):
        # The file has 16 bits, so that a code may be another one here and there.
        assert shown["perplexity"] == pytest.approx(expected.measures["perplexity"], rel=0.3)
        assert len(shown["nats"]["bars"]) == 3
        assert shown["jump"] > 0
    assert found["perplexity"]["seam"]["error"] > 0
    assert found["perplexity"]["difference"]["n"] == 2
    assert set(perplexity.MEANING) <= set(found["meaning"])


def test_the_command_shows_tables(folder: Path) -> None:
    files = [str(folder / name) for name in ("four.wav", "two.wav")]
    code, out, _ = seam_of(files[0], "--bars", "4", "--explain", *ears(folder))
    assert code == 0
    assert re.search(r"^perplexity \d+\.\d+, of all codebooks \d", out, re.MULTILINE)
    assert re.search(r"^difference nats -?\d\.\d+, of all", out, re.MULTILINE)
    assert perplexity.MEANING["perplexity"] in out
    code, out, _ = seam_of(*files, "--bars", "4", *ears(folder))
    lines = out.splitlines()
    assert code == 0
    assert re.search(r"bars +perplexity +all +at bars +all +apart +all +file$", lines[0])
    assert len(lines) == 7
    assert lines[3].startswith("2 files, ")
    assert re.match(r"perplexity at seams .* ± .*, of all codebooks .* ± ", lines[4])
    assert re.match(r"perplexity at other bar lines .* ± ", lines[5])
    assert re.match(r"seam less other bar lines, mean of 2 in nats: [+-]0\.\d+ \([+-]", lines[6])
    code, out, _ = seam_of(*files, *ears(folder))  # of which no bars are known
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[4:]] == ["perplexity"]


def test_without_it_nothing_is_said_of_it(folder: Path) -> None:
    files = [str(folder / name) for name in ("four.wav", "two.wav")]
    for args in ([*files, "--json"], files, files[:1]):
        assert "perplexity" not in seam_of(*args)[1]


def test_without_it_no_torch_is_loaded(folder: Path) -> None:
    code = (
        "import sys; from midiloop_cli.main import audioloop\n"
        f"try: audioloop(['seam', {str(folder / 'four.wav')!r}, '--bars', '4'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_model_of_another_codec_is_one_line(folder: Path) -> None:
    code, out, err = seam_of(str(folder / "four.wav"), *ears(folder, "stranger"))
    assert (code, out) == (1, "")
    assert err.startswith("audioloop: error: the model was trained on the tokens of another codec")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--causal-model", "RUN"], "give --perplexity as well"),
        (["--encodec", "x", "--perplexity"], "give --musicgen as well"),
        (["--causal-model", "RUN", "--musicgen", "x", "--perplexity"], "give one"),
        (["--codec", "RUN", "--encodec", "x", "--perplexity"], "give one"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    args: list[str], words: str, folder: Path
) -> None:
    named = [str(folder) if word == "RUN" else word for word in args]
    code, _, err = seam_of(str(folder / "four.wav"), *named)
    assert code == 2
    assert words in err
