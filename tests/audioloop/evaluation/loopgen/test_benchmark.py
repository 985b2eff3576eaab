"""Ways to make a loop, compared: the same however it is run, and by figures known by hand."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from audioloop.codec import compression, encoded_dataset
from audioloop.codec.model import Codec, CodecConfig
from audioloop.conditioning import NOTES, Conditioning
from audioloop.evaluation import perplexity
from audioloop.evaluation.loopgen import (
    benchmark,
    measures,
    methods,
    plots,
    summary,
    tables,
    test_set,
)
from audioloop.evaluation.loopgen.benchmark import Settings
from audioloop.evaluation.loopgen.methods import (
    ALIGNED,
    CODES,
    CUT,
    METHODS,
    REFERENCES,
    RENDER,
    SETTINGS,
    SPLICED,
)
from audioloop.evaluation.loopgen.summary import BenchmarkResult
from audioloop.io.wave import Wave, read
from audioloop.pipelines import inpaint
from audioloop.rendering import augment
from audioloop.rendering.synth import SoundFont
from audioloop.signal import beats
from audioloop.tokens.model import Causal, Masked, TokenConfig
from midiloop.common import checkpoint
from midiloop.common.engine import CRASHED, Inline
from midiloop.common.processes import Processes
from midiloop.common.statistics import Interval, Paired
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError
from midiloop.grid import LOOP, Roll
from midiloop.midi.score import Score
from midiloop_cli.main import audioloop
from soundfonts import bundled

TINY = CodecConfig(
    fine=32, coarse=32, latent_dim=8, codebook_size=32, encoder_blocks=1, decoder_blocks=1
)
TINY_TOKENS = TokenConfig(dim=32, heads=2, layers=1, widening=1, codebook_size=32, reach=3)
WANTED = Settings(
    num_loops=2,
    window_s=6.0,
    decode_steps=(2, 1, 1, 1),
    unconditioned_decode_steps=(3, 1, 1, 1),
    seed=3,
)
SAMPLES, FRAME = 640 * 100, 640


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A codec and both models, none of which has learned anything."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(8)
    codec = Codec(TINY)
    config = replace(TINY_TOKENS, codec=encoded_dataset.encode_loop(codec))
    checkpoint.save_model(folder / "codec", compression.KIND, codec, {})
    checkpoint.save_model(folder / "masked", "masked", Masked(config), {})
    checkpoint.save_model(folder / "causal", "causal", Causal(config), {})
    return {name: folder / name for name in ("codec", "masked", "causal")}


Run = Callable[..., BenchmarkResult]


@pytest.fixture(scope="module")
def run(dataset: LoopDataset, models: dict[str, Path]) -> Run:
    """`benchmark.run`, but for what a test says."""

    def compared(out: Path, wanted: Settings = WANTED, **other: Any) -> BenchmarkResult:
        said = {"codec": None, "engine": Inline(), **models, **other}
        return benchmark.run(said.pop("dataset", dataset), out, wanted, bundled(), **said)

    return compared


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchmarkResult]:
    """A folder of a run that nothing interrupted, and what was found."""
    out = tmp_path_factory.mktemp("compared") / "out"
    return out, run(out, replace(WANTED, keep_audio=True))


def timeless(found: BenchmarkResult) -> Any:
    """All of it, but how long it took and in how many workers."""

    def less(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: less(v) for k, v in value.items() if k not in ("seconds", "workers")}
        return [less(one) for one in value] if isinstance(value, list) else value

    shown = tables.as_json(found)
    for one in shown["headline"].values():  # which columns are worse, time among them
        for which in ("fixed_worse_in", "fixed_significantly_worse_in"):
            one[which] = {
                row: [name for name in names if name != "seconds"]
                for row, names in one[which].items()
            }
    return less(json.loads(json.dumps([shown, found.items])))


# Runs.


@pytest.fixture
def copied(whole: tuple[Path, BenchmarkResult], tmp_path: Path) -> Path:
    """A folder of the same comparison, to change."""
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    return out


def test_a_run_that_goes_on_finds_what_one_in_a_piece_does(
    run: Run, whole: tuple[Path, BenchmarkResult], copied: Path
) -> None:
    done, missing = (copied / "items" / f"{number:05d}.json" for number in range(2))
    marked = {**json.loads(done.read_text()), "kept": "as it was"}  # or it was made again
    done.write_text(json.dumps(marked))
    missing.unlink()
    conditioning: list[int] = []
    again = run(copied, resume=True, on_progress=conditioning.append)
    assert conditioning == [1, 1]
    assert again.items[0].pop("kept") == "as it was"
    assert timeless(again) == timeless(whole[1])


def test_any_engine_finds_the_same(
    run: Run, whole: tuple[Path, BenchmarkResult], tmp_path: Path
) -> None:
    assert timeless(run(tmp_path / "out", engine=Processes(2))) == timeless(whole[1])


def test_items_are_added_and_one_that_kills_its_worker_is_left_out_and_named(
    run: Run, whole: tuple[Path, BenchmarkResult], copied: Path
) -> None:
    class Lossy(Inline):
        def map(self, task: Any, jobs: Iterable[Any], *how: Any) -> Generator[Any, None, None]:
            lost = (job.without(0, CRASHED) if job.number == 0 else job for job in jobs)
            return super().map(task, lost, *how)

    (copied / "items" / "00000.json").unlink()
    found = run(copied, replace(WANTED, num_loops=3), resume=True, engine=Lossy())
    assert found.about["lost"] == [0]
    assert [item["number"] for item in found.items] == [1, 2]
    assert found.items[0] == whole[1].items[1]
    assert found.tables["unconditioned"]["ring"]["loops"] == 2
    assert "Lost: items 0." in (copied / "benchmark.md").read_text()


def test_loops_are_kept_that_are_as_long_as_they_should_be(
    whole: tuple[Path, BenchmarkResult],
) -> None:
    out, found = whole
    for item in found.items:
        files = {path.stem: path for path in (out / "audio").glob(f"{item['number']:05d}_*")}
        assert len(files) == 1 + len(SETTINGS) * (len(METHODS) - len(REFERENCES))
        for name, path in files.items():
            frames = WANTED.window_s * 50 if name.endswith("naive") else item["frames"]
            assert len(read(path)) == frames * FRAME
        assert 2 <= item["frames"] / 50 <= 4
        assert item["frames"] % item["bars"] == 0
        assert item["frames"] / 50 == pytest.approx(item["bars"] * 240 / item["tempo_bpm"])


# Tables and pictures.


def test_tables_have_every_row_and_every_figure(whole: tuple[Path, BenchmarkResult]) -> None:
    out, _ = whole
    text = (out / "benchmark.md").read_text()
    shown = json.loads((out / "benchmark.json").read_text())
    for setting in SETTINGS:
        table = text.partition(f"## {setting.capitalize()}:")[2].partition("\n## ")[0]
        assert [line.split("|")[1].strip() for line in table.splitlines() if line[:2] == "| "][
            2:
        ] == list(METHODS)
        for row in METHODS:
            figures = shown["tables"][setting][row]
            assert figures["loops"] == 2
            assert len(figures["around"]) == 2 * measures.REACH + 1
            assert 0 < figures["seam"]["center"] < math.inf
            assert ("conditioned_seam" in figures) == (
                setting == "conditioned" or row in REFERENCES
            )
    assert all(f"- {heading}: " in text for heading in summary.HEADINGS.values())
    assert all(summary.MEANING[name] in text for name in summary.HEADINGS)


def test_a_ring_is_decoded_as_its_endless_repetition_and_a_cut_is_not(
    whole: tuple[Path, BenchmarkResult],
) -> None:
    table = whole[1].tables["unconditioned"]
    for row in (CODES, "tiled", "ring", "hybrid ring"):
        assert table[row]["wrap_error_db"] < -90
    for row in ("causal naive", "masked beat-aligned", "LoopGen"):
        assert table[row]["wrap_error_db"] > -60


def test_pictures_are_drawn(whole: tuple[Path, BenchmarkResult], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    drawn = plots.draw(whole[1], tmp_path)
    assert [path.name for path in drawn] == ["seam_nats.png", "perplexity.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert plots.STYLES.keys() == METHODS.keys()
    assert [row for group in plots.GROUPS for row in group] == list(plots.STYLES)
    assert len(set(plots.STYLES.values())) == len(METHODS)


# Figures.


def test_what_is_around_the_seam_is_what_the_seam_perplexity_is_of() -> None:
    torch.manual_seed(8)
    model = Causal(TINY_TOKENS).eval()
    codes = torch.randint(32, (4, 70))
    around = measures.nats_around(codes, model)
    assert around.shape == (4, 2 * measures.REACH + 1)
    after = around[:, measures.REACH :]
    seam = perplexity.nats_at(codes, [0], model)[0]
    np.testing.assert_allclose(after[:, : perplexity.WINDOW].mean(1), seam, rtol=1e-4)
    before = perplexity.nats_at(codes, [-3], model, window=3, context=70 - 3)[0]
    np.testing.assert_allclose(around[:, measures.REACH - 3 : measures.REACH].mean(1), before, 1e-4)


def test_frechet_distance_is_that_of_gaussians(rng: np.random.Generator) -> None:
    some = rng.normal(size=(50, 3))
    assert measures.frechet(some, some[::-1]) == pytest.approx(0, abs=1e-9)
    # Corners of a box: mean 0, no correlation, the spreads as they are.
    corners = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)], float)
    one, other = corners * [1, 2], corners * [3, 0.5] + [4, -1]
    expected = 4**2 + 1**2 + (3 - 1) ** 2 + (2 - 0.5) ** 2
    assert measures.frechet(one, other) == pytest.approx(expected)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])  # nothing changes when both are turned
    assert measures.frechet(one @ turn, other @ turn) == pytest.approx(expected)
    with pytest.raises(CallError, match="2 or more"):
        measures.frechet(some, some[:1])


def test_windows_go_round_and_know_no_level(rng: np.random.Generator) -> None:
    samples = rng.normal(0, 0.1, (1, SAMPLES)).astype(np.float32)
    found = measures.embedded(Wave(samples, 32_000))
    assert found.shape == (4, 128)
    quarter = SAMPLES // 4
    rolled = measures.embedded(Wave(np.roll(samples, -quarter, 1), 32_000))
    np.testing.assert_allclose(rolled, np.roll(found, -1, 0), atol=1e-4)
    quieter = (samples / 4).astype(np.float32)
    np.testing.assert_allclose(measures.embedded(Wave(quieter, 32_000)), found, atol=1e-3)
    assert measures.embedded(Wave(samples * 0, 32_000)).shape == (0, 128)


def test_a_gain_is_of_the_mean_nats() -> None:
    one = summary.gain([math.log(2), math.log(8)], [math.log(8), math.log(32)])
    assert one == pytest.approx((75, 75, 75))
    half = summary.gain([1, 2, 3], np.array([0.9, 2, 3.1]) + math.log(2))
    assert half.mean == pytest.approx(50)
    assert half.low < 50 < half.high
    # By hand: differences -ln 2 ∓ 0.1, deviation 0.1, t(2) = 4.3027.
    apart = 4.3027 * 0.1 / math.sqrt(3)
    assert half.low == pytest.approx(100 * (1 - 0.5 * math.exp(apart)), abs=1e-3)


def test_a_gain_of_few_loops_is_a_line_that_can_be_read() -> None:
    one = summary.gain([3.0, 9.0], [4.0, 5.0])  # by hand: nats -1 and 4, and t(1) is 12.7
    assert one.low < -1e10
    assert tables.gain_line(one._asdict()) == "-348 % (under -1,000 to 100)"
    many = {"mean": 55.6, "low": -166.4, "high": 71.2}
    assert tables.gain_line(many) == "56 % (-166 to 71)"


def test_a_rest_is_a_stretch_that_is_foreseen_throughout() -> None:
    held = [0.4] * 5 + [2.0] + [0.4] * 4  # six stretches of five, the first of them a rest
    assert summary.rests([held]) == pytest.approx(1 / 6)
    assert summary.rests([held, [2.0] * 10]) == pytest.approx(1 / 12)
    assert summary.rests([[0.5] * 10]) == 0


def test_a_row_is_worse_where_it_is_higher_or_further_from_true_codes() -> None:
    row = {
        "seam": Interval(5.0, 1.0, 4.0, 6.0),
        "seam_all": Interval(5.0, 1.0, 4.0, 6.0),
        "difference": Paired(0.1, 0.0, 0.2, 9),
        "jump": 1.0,
        "residual": 3.0,
        "wrap_error_db": -120.0,
        "frechet": 9.0,
        "seconds": 1.0,
        "flux_percentile": 90.0,
        "bar_flux_percentile": None,
    }
    codes = {**row, "flux_percentile": 80.0, "jump": 0.8, "difference": Paired(0.0, 0, 0, 9)}
    assert summary.worse(row, row, codes) == []
    other = {**row, "jump": 0.7, "difference": Paired(0.0, 0, 0, 9), "flux_percentile": 75.0}
    assert summary.worse(row, other, codes) == ["difference", "jump", "flux_percentile"]
    assert summary.worse(other, row, codes) == []
    assert summary.worse({**row, "frechet": 9.1}, row, codes) == ["frechet"]
    louder, rounded = {**row, "wrap_error_db": -90.0}, {**row, "wrap_error_db": -119.0}
    assert summary.worse(louder, row, codes) == ["wrap_error_db"]
    assert summary.worse(rounded, row, codes) == []


def test_what_is_worse_by_chance_is_told_from_what_is_so(rng: np.random.Generator) -> None:
    nats = rng.normal(5, 1, 40)

    def rows(more: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
        return [{"nats": value, "seconds": 2.0} for value in (nats + more).tolist()]

    by_chance = rng.normal(0, 1, 40)
    by_chance += 0.01 - by_chance.mean()  # a mean above 0 that is far within its interval
    none = np.zeros((0, 128))
    codes = {"seam": None, "seconds": None}
    for more, sure in ((by_chance, []), (np.abs(by_chance), ["seam"])):
        args = ["seam", "seconds"], rows(more), rows(0 * more), codes, none
        assert summary.significantly_worse(*args) == sure
        assert summary.significantly_worse([], *args[1:]) == []


@pytest.mark.parametrize(("n_loops", "sure"), [(1, []), (5, []), (6, ["seam"])])
def test_few_loops_may_all_be_worse_by_chance(n_loops: int, sure: list[str]) -> None:
    rows, others = ([{"nats": nats + n} for n in range(n_loops)] for nats in (3.0, 2.0))
    found = summary.significantly_worse(["seam"], rows, others, {"seam": None}, np.zeros((0, 128)))
    assert found == sure


def test_controls_are_cut_where_they_say(
    dataset: LoopDataset, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dataset
    codec = compression.load(models["codec"])
    inpainter = inpaint.load(models["masked"], models["causal"], models["codec"], with_causal=True)
    ring, other = torch.rand(2, 1, 1, FRAME * 120).sub(0.5).unbind()
    longer = torch.rand(1, 1, FRAME * 240).sub(0.5)
    item = test_set.EvaluationLoop(
        ring, longer, Conditioning(), 120.0, 1, 120
    )  # beats of 30 frames
    method_input = benchmark.asked(inpainter, item, "conditioned", WANTED, 0)
    with torch.inference_mode():
        made = dict(methods.references(method_input, ring, longer, other))
        foreign, line = (
            codec.decode(codec.encode(one, circular=True), circular=True)[0].numpy()
            for one in (other, longer)
        )
    assert tuple(made) == REFERENCES
    true = made[RENDER].wave.samples
    np.testing.assert_allclose(made[ALIGNED].wave.samples, line[:, : FRAME * 120], atol=1e-6)
    np.testing.assert_array_equal(made[CUT].wave.samples, true[:, : FRAME * 105])
    np.testing.assert_array_equal(
        made[SPLICED].wave.samples[:, FRAME * 30 :], true[:, FRAME * 30 :]
    )
    first = made[SPLICED].wave.samples[:, : FRAME * 30]
    np.testing.assert_allclose(first, foreign[:, : FRAME * 30], atol=1e-6)


def test_what_is_free_says_nothing_of_notes(dataset: LoopDataset, models: dict[str, Path]) -> None:
    conditioning = Conditioning(np.ones((16, 93), np.bool_), 16, 5, 33)
    silence = torch.zeros(1, 1, FRAME * 200)
    item = test_set.EvaluationLoop(
        silence[..., : FRAME * 100], silence, conditioning, 120.0, 1, 100
    )
    inpainter = inpaint.load(models["masked"], models["causal"], models["codec"])
    free, all_ = (benchmark.asked(inpainter, item, setting, WANTED, 0) for setting in SETTINGS)
    notes = slice(0, NOTES)
    assert not free.condition.frames[:, notes].any()
    assert all_.condition.frames[:, notes].any()
    assert torch.equal(
        free.condition.frames[:, NOTES:],
        all_.condition.frames[:, NOTES:],
    )
    assert all_.sampling == replace(inpaint.SAMPLING, steps=WANTED.decode_steps, best_of=1)
    assert free.sampling == replace(all_.sampling, steps=WANTED.unconditioned_decode_steps)


def test_items_and_references_are_different_loops(
    dataset: LoopDataset, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = augment.loops(dataset, "train")
    order = np.random.default_rng(WANTED.seed).permutation(len(source.packed)).tolist()
    assert len(order) > 4
    codec, font = compression.load(models["codec"]), SoundFont(bundled(), TINY.rate)
    picked: list[Roll] = []
    performed = augment.perform

    def watched(roll: Roll, *how: Any) -> Score:
        picked.append(roll.copy())
        return performed(roll, *how)

    monkeypatch.setattr(augment, "perform", watched)
    for reference in (False, True):
        for number in range(2):
            test_set.evaluation_loop(
                source, number, WANTED.seed, font, codec, WANTED.window_s, reference=reference
            )
    rolls = LOOP.unpack(source.packed)
    begun, longer = picked[::2], picked[1::2]
    for pick, roll, more in zip(
        (order[0], order[2], order[1], order[3]), begun, longer, strict=True
    ):
        starts = range(0, LOOP.steps - len(roll) + 1, LOOP.steps_per_bar)
        found = [at for at in starts if np.array_equal(rolls[pick, at : at + len(roll)], roll)]
        round_ = [np.roll(rolls[pick], -at, 0)[: 2 * len(roll)] for at in found]
        assert any(np.array_equal(one, more) for one in round_)


@pytest.mark.parametrize("window_s", [*test_set.WINDOWS_S, Settings().window_s])
def test_whole_bars_fit_into_a_window_at_every_tempo(window_s: float) -> None:
    low_s, high_s = test_set.bounds_s(window_s)
    for tempo_bpm in np.linspace(
        encoded_dataset.VARIETY.slowest_bpm, encoded_dataset.VARIETY.fastest_bpm, 1401
    ):
        pulse = beats.said(float(tempo_bpm))
        bars = beats.aligned_bars(pulse, low_s, high_s, test_set.DEFAULT_BARS)
        assert bars is not None
        assert 2 * bars <= LOOP.bars  # there are as many to follow
        assert bars > 1 or window_s < Settings().window_s  # else there is another bar line


# Wrong calls.


def test_a_folder_of_other_settings_is_left_alone(
    run: Run, whole: tuple[Path, BenchmarkResult], tmp_path: Path
) -> None:
    out, _ = whole
    with pytest.raises(CallError, match="exists already; go on with --resume"):
        run(out)
    with pytest.raises(CallError, match=r"begun with steps .* \[2, 1, 1, 1\], not \[1,"):
        run(out, replace(WANTED, decode_steps=(1, 1, 1, 1)), resume=True)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(CallError, match="holds something else"):
        run(tmp_path)
    with pytest.raises(CallError, match="no such folder"):
        run(tmp_path / "none" / "out")


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [({"num_loops": 0}, "0 items"), ({"num_loops": 1}, "1 item;"),
     ({"window_s": 5.9}, "window of 5.9 s"),
     ({"window_s": 14.1}, "window of 14.1 s; give 6 to 14"),
     ({"rescoring_weight": 2.0}, "rescoring-weight 2")],
)  # fmt: skip
def test_settings_are_in_range(wrong: dict[str, Any], cause: str) -> None:
    with pytest.raises(CallError, match=cause):
        Settings(**wrong)


def test_steps_are_of_each_codebook(run: Run, tmp_path: Path) -> None:
    for steps in ((1, 1, 1), (1, 1, 1, 0)):
        for wrong in (
            replace(WANTED, decode_steps=steps),
            replace(WANTED, unconditioned_decode_steps=steps),
        ):
            with pytest.raises(CallError, match="4 codebooks"):
                run(tmp_path / "out", wrong)
    assert not (tmp_path / "out").exists()


def test_models_of_another_codec_and_an_empty_split_are_one_line(
    dataset: LoopDataset,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(9)
    checkpoint.save_model(tmp_path / "codec", compression.KIND, Codec(TINY), {})
    said = [
        "--masked-model",
        models["masked"],
        "--causal-model",
        models["causal"],
        "--soundfont",
        bundled(),
    ]
    call = ["benchmark", dataset.path, "-o", tmp_path / "out", "--num-loops", 2, *said]

    def outcome(*more: Any) -> tuple[int, str]:
        done = CliRunner().invoke(audioloop, [str(part) for part in (*call, *more)])
        return done.exit_code, done.stderr

    code, error = outcome("--codec", tmp_path / "codec")
    assert code == 1
    assert error.count("\n") == 1
    assert "trained on the tokens of another codec" in error
    code, error = outcome("--codec", models["codec"], "--num-loops", 0)
    assert code == 2
    assert error.count("\n") == 1
    assert "0 items" in error
    code, error = outcome("--codec", models["codec"], "--decode-steps", "4,x")
    assert code == 2
    assert error.count("\n") == 1
    assert "whole numbers" in error

    select = LoopDataset.select

    def none_to_test(self: LoopDataset, *, split: str, **how: Any) -> Any:
        return [] if split == "test" else select(self, split=split, **how)

    monkeypatch.setattr(LoopDataset, "select", none_to_test)
    code, error = outcome("--codec", models["codec"])
    assert code == 1
    assert error.count("\n") == 1
    assert "no loop is in the test split" in error
    with pytest.raises(LoopError):
        augment.loops(dataset, "test")
    assert not (tmp_path / "out").exists()
