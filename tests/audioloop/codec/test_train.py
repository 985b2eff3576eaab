"""Training of a codec: a run that was interrupted ends bit for bit as one that was not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audioloop.codec import balance, compression, encoded_dataset
from audioloop.codec import train as codec_train
from audioloop.codec.model import Codec, CodecConfig
from audioloop.codec.train import CodecRecipe, CodecTask
from audioloop.io.wave import Samples, Wave
from midiloop.common import checkpoint, trainer
from midiloop.common.task import Losses, Stage, Step, Task
from midiloop.common.train_config import Budget, TrainConfig
from midiloop.common.trainer import Progress, Result, Trainer
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError
from soundfonts import bundled

CONFIG = CodecConfig(
    fine=32, coarse=32, latent_dim=8, codebook_size=32, encoder_blocks=1, decoder_blocks=1
)
RECIPE = CodecRecipe(frames=8, adversarial=0.5)
BUDGET = Budget(steps=6)
SETTINGS = replace(codec_train.TRAINING, batch_size=3, save_every_s=0)
CPU = torch.device("cpu")
STATE, HISTORY, WEIGHTS = "state.safetensors", "training.json", "model.safetensors"
OFTEN = replace(SETTINGS, validate_every=2)
Sounds = Callable[[Sequence[int]], list[Samples]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """What is shared by tests is made with as many threads as what they make themselves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sound(number: int) -> Samples:
    """A quarter of a second of a tone and noise, the same for each number."""
    rng = np.random.default_rng([7, number])
    tone = np.sin(2 * np.pi * rng.integers(20, 500) * np.arange(8000) / 8000)
    return np.asarray(0.3 * tone + 0.05 * rng.standard_normal(8000), np.float32)


def sounds(numbers: Sequence[int]) -> list[Samples]:
    return [sound(number) for number in numbers]


VALID = sound(1000)[: 12 * CONFIG.frame]


def step_of(numbers: Sequence[int]) -> int:
    """Three excerpts a step, two of a sound: two sounds a step."""
    return numbers[0] // 2


def stopping(at: int) -> Sounds:
    """Sounds for a run that is interrupted in the step ``at``, counted from 0."""

    def heard(numbers: Sequence[int]) -> list[Samples]:
        if step_of(numbers) == at:
            raise KeyboardInterrupt
        return sounds(numbers)

    return heard


def task(
    recipe: CodecRecipe = RECIPE,
    heard: Sounds = sounds,
    config: CodecConfig = CONFIG,
    *,
    seed: int = 0,
    decoder_only: bool = False,
) -> CodecTask:
    valid, about = (lambda: [VALID]), {"dataset": "tests"}
    return CodecTask(config, recipe, seed, heard, valid, CPU, about, decoder_only=decoder_only)


def run(
    folder: Path,
    settings: TrainConfig = SETTINGS,
    recipe: CodecRecipe = RECIPE,
    heard: Sounds = sounds,
    config: CodecConfig = CONFIG,
    *,
    budget: Budget = BUDGET,
    decoder_only: bool = False,
    **more: Any,
) -> Result:
    made = task(recipe, heard, config, seed=settings.seed, decoder_only=decoder_only)
    return Trainer(made, budget, settings).fit(folder, about={"of": "tests"}, **more)


def run_until(at: int, folder: Path, **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, heard=stopping(at), **more)


def conditioning(folder: Path) -> dict[str, Any]:
    """The report of a finished run, without the time."""
    found: dict[str, Any] = json.loads((folder / HISTORY).read_text())
    for record in found["history"]:
        del record["minutes"]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def assert_same_run(found: Path, expected: Path) -> None:
    assert (found / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    assert conditioning(found) == conditioning(expected)
    assert {path.name for path in found.iterdir()} == {"config.json", HISTORY, WEIGHTS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both stages that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, OFTEN)
    return folder


# Going on.


def test_a_run_that_was_interrupted_ends_bit_for_bit_as_one_that_was_not(
    whole: Path, tmp_path: Path
) -> None:
    for number, at in enumerate((0, 1, 3, 4, 5)):  # the critics come in the step 3
        run_until(at, tmp_path, settings=OFTEN, resume=number > 0)
    assert run(tmp_path, OFTEN, resume=True).steps == BUDGET.steps
    assert_same_run(tmp_path, whole)


def test_a_run_that_is_interrupted_as_it_reports_goes_on(whole: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_progress=stop)
    run(tmp_path, resume=True)
    assert (tmp_path / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_how_often_a_run_saves_changes_nothing(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, replace(SETTINGS, save_every_s=1e9))
    assert (tmp_path / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_a_finished_run_is_not_touched(whole: Path) -> None:
    before = contents(whole)
    result = run(whole, OFTEN, heard=stopping(0), resume=True)
    assert contents(whole) == before
    assert before.keys() == {"config.json", HISTORY, WEIGHTS}
    assert result.steps == BUDGET.steps
    assert result.history == json.loads(before[HISTORY])["history"]


def test_another_seed_is_another_run(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, replace(SETTINGS, seed=1))
    assert (tmp_path / WEIGHTS).read_bytes() != (whole / WEIGHTS).read_bytes()


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "more steps": ({"budget": Budget(steps=7)}, "steps 6, not 7"),
    "another rate": (
        {"settings": replace(OFTEN, learning_rate=0.1)},
        "learning_rate 0.001, not 0.1",
    ),
    "another seed": ({"settings": replace(OFTEN, seed=1)}, "seed 0, not 1"),
    "by the clock": ({"budget": Budget(minutes=1)}, "steps 6, not none, minutes none, not 1"),
    "another recipe": ({"recipe": replace(RECIPE, mel=0.1)}, "mel 1.5, not 0.1"),
    "another codec": ({"config": replace(CONFIG, fine=48)}, "another model"),
    "its decoder only": ({"decoder_only": True}, "decoder_only False, not True"),
}


@pytest.mark.parametrize(("other", "says"), OTHERS.values(), ids=OTHERS)
def test_a_run_goes_on_only_as_it_was_begun(other: dict[str, Any], says: str, whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(CallError, match=f"the run was begun with {says}; resume it as") as bad:
        run(whole, **{"settings": OFTEN, "resume": True, **other})
    assert "\n" not in str(bad.value)
    assert contents(whole) == before


def test_a_run_is_not_written_over(whole: Path, tmp_path: Path) -> None:
    run_until(1, tmp_path / "half")
    (tmp_path / "file").touch()
    for folder in (whole, tmp_path / "half"):
        before = contents(folder)
        with pytest.raises(CallError, match="a run is there already; add --resume"):
            run(folder)
        assert contents(folder) == before
    with pytest.raises(CallError, match="a file; give the name of a folder"):
        run(tmp_path / "file")


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "less a byte": lambda data: data[:-1],
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_state_is_one_line(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    run_until(4, tmp_path)
    path = tmp_path / STATE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LoopError) as bad:
        run(tmp_path, resume=True)
    assert str(bad.value).startswith(f"{path}: ")
    assert "\n" not in str(bad.value)


def test_weights_in_the_place_of_a_state_are_one_line(whole: Path, tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes((whole / WEIGHTS).read_bytes())
    with pytest.raises(LoopError, match="not the state of a run") as bad:
        run(tmp_path, resume=True)
    assert "\n" not in str(bad.value)


@pytest.mark.parametrize("save_every_s", [0.0, 1e9])
def test_a_loss_that_is_no_number_ends_the_run_and_the_last_state_stands(
    save_every_s: float, whole: Path, tmp_path: Path
) -> None:
    def heard(numbers: Sequence[int]) -> list[Samples]:
        bad = np.nan if step_of(numbers) == 4 else 1
        return [np.asarray(bad * s, np.float32) for s in sounds(numbers)]

    run_until(4, tmp_path)
    good, settings = contents(tmp_path), replace(SETTINGS, save_every_s=save_every_s)
    with pytest.raises(LoopError, match=r"at step \d; the last good checkpoint stands") as failed:
        run(tmp_path, settings, heard=heard, resume=True)
    assert "\n" not in str(failed.value)
    assert contents(tmp_path) == good
    run(tmp_path, resume=True)
    assert (tmp_path / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


# By the clock.


class Clock:
    """Time in which each step takes six seconds and all else none."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        patch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: self.now_s))

    def sounds(self, numbers: Sequence[int]) -> list[Samples]:
        self.now_s += 6
        return sounds(numbers)

    def stopping(self, at: int) -> Sounds:
        def heard(numbers: Sequence[int]) -> list[Samples]:
            stopping(at)(numbers)
            return self.sounds(numbers)

        return heard


def test_a_run_by_the_clock_is_as_long_as_its_minutes_however_often_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    budget = Budget(minutes=1.0)
    for at in (3, 7):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, budget=budget, heard=clock.stopping(at), resume=True)
        clock.now_s += 1e6  # nobody trains
    result = run(tmp_path, budget=budget, heard=clock.sounds, resume=True)
    assert result.steps == 10
    assert result.history[-1]["minutes"] == 1
    assert json.loads((tmp_path / HISTORY).read_text())["finished"]


def test_a_run_by_the_clock_ends_by_a_real_one(tmp_path: Path) -> None:
    result = run(tmp_path, budget=Budget(minutes=0.002))
    assert 0.12 <= result.history[-1]["minutes"] * 60 < 10
    assert result.steps >= 1


def test_progress_says_how_much_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = Clock(monkeypatch), list[Progress]()
    run(tmp_path, heard=clock.sounds, on_progress=seen.append)
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    assert [progress.left_s for progress in seen] == pytest.approx([30, 24, 18, 12, 6, 0])
    assert seen[-1].done == 1
    assert "si_sdr_db" in seen[-1].figures
    assert "critics" not in seen[2].terms
    assert all(math.isfinite(value) for value in seen[-1].terms.values())


# What training does.


def test_figures_of_each_validation_are_in_the_history(whole: Path) -> None:
    found = json.loads((whole / HISTORY).read_text())
    assert found["finished"]
    assert found["step"] == BUDGET.steps
    assert [record["step"] for record in found["history"]] == [2, 4, 6]
    for record in found["history"]:
        assert {"waveform", "mel", "si_sdr_db", "si_sdr_codes_db", "mel_codes"} <= record.keys()
        assert all(math.isfinite(value) for value in record.values())
    assert "critics" in found["history"][-1]
    assert json.loads((whole / "config.json").read_text())["of"] == "tests"


def test_the_average_of_the_weights_is_what_is_shipped_balanced(tmp_path: Path) -> None:
    run_until(5, tmp_path)
    tensors, _ = checkpoint.read_tensors(tmp_path / STATE)
    shipped, _ = checkpoint.read_tensors(tmp_path / WEIGHTS)
    average = Codec(CONFIG)
    average.load_state_dict({name: tensors[f"average.module.{name}"] for name in shipped})
    assert equal(balance.balanced(average, [VALID]).state_dict(), shipped)
    loud = {name for name in shipped if not torch.equal(average.state_dict()[name], shipped[name])}
    assert loud == {"decoder.frames.basis"}
    name = "decoder.split.weight"
    assert not torch.equal(tensors[f"codec.{name}"], shipped[name])


def parts(made: CodecTask) -> dict[str, dict[str, Tensor]]:
    """Copies of the weights of each part."""
    modules = {
        "encoder": made.model.encoder,
        "codes": made.model.quantizer,
        "decoder": made.model.decoder,
        "critics": made.adversary,
    }
    return {
        name: {key: tensor.clone() for key, tensor in module.state_dict().items()}
        for name, module in modules.items()
    }


@pytest.mark.parametrize(
    ("adversarial", "moved"),
    [(0.0, {"codes", "decoder", "critics"}), (1.0, {"encoder", "codes", "decoder"})],
)
def test_each_stage_moves_its_own_parts(
    adversarial: float, moved: set[str], tmp_path: Path
) -> None:
    recipe = replace(RECIPE, adversarial=adversarial)
    made = task(recipe=recipe)
    before = parts(made)
    Trainer(made, BUDGET, SETTINGS).fit(tmp_path)
    after = parts(made)
    assert {name for name in before if not equal(before[name], after[name])} == moved


@pytest.mark.parametrize("adversarial", [0.5, 1.0])
def test_a_decoder_that_learns_alone_leaves_codes_bit_for_bit(
    adversarial: float, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, adversarial=adversarial, change=1.0)
    made = task(recipe=recipe, decoder_only=True)
    with torch.no_grad():
        made.model.encoder.out.weight[0, 0] = -0.0  # which a sum with 0 would make +0
    meant = encoded_dataset.encode_loop(made.model)
    before = made.model.decoder.split.weight.clone()
    Trainer(made, BUDGET, SETTINGS).fit(tmp_path)
    found = compression.load(tmp_path)
    assert encoded_dataset.encode_loop(found) == encoded_dataset.encode_loop(made.model) == meant
    assert not torch.equal(found.decoder.split.weight, before)


def test_a_codec_learns(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS, learning_rate=3e-3, warmup_steps=1, validate_every=5, save_every_s=1e9
    )
    recipe = replace(RECIPE, adversarial=1.0)
    history = run(tmp_path, settings, recipe, budget=Budget(steps=60)).history
    assert history[-1]["mel_codes"] < history[0]["mel_codes"]


def test_every_so_many_steps_excerpts_have_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(recipe=replace(RECIPE, line_every=3))
    seen: list[bool] = []
    decode = made.model.decoder.forward

    def decoded(latent: Tensor, *, circular: bool) -> Tensor:
        seen.append(circular)
        return decode(latent, circular=circular)

    monkeypatch.setattr(made.model.decoder, "forward", decoded)
    for number in range(6):
        step = Step(number, 0, 0.0, 0, 3, 3)
        for batch, _ in made.micro_batches(step):
            made.losses(batch, step)
    assert seen == [False, True, True] * 2


class Line(Task):
    """One weight that grows by the learning rate each step, and notes it."""

    measure = "average"

    def __init__(self) -> None:
        self.model: nn.Linear = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.networks = {"model": self.model}
        self.optimizers = {"model": torch.optim.SGD(self.model.parameters(), lr=99.0)}
        self.stages = Stage(0.0, 1.0), Stage(0.6, 0.5)
        self.seen: list[tuple[int, float, int]] = []

    def micro_batches(self, step: Step) -> Iterator[tuple[Any, float]]:
        for draw in step.draws():
            yield draw, draw.weight

    def losses(self, batch: Any, step: Step) -> Losses:
        rate = self.optimizers["model"].param_groups[0]["lr"]
        self.seen.append((step.stage, rate, int(torch.randint(1 << 40, ()))))
        return Losses({"model": -self.model.weight.sum()}, {"loss": torch.zeros(())})

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, nn.Linear)
        return {"average": float(model.weight)}

    def save(self, folder: Path, model: nn.Module, about: dict[str, Any]) -> None:
        pass

    def begun_with(self) -> dict[str, Any]:
        return {}


def test_the_learning_rate_falls_as_a_cosine_in_each_stage(tmp_path: Path) -> None:
    line = Line()
    settings = TrainConfig(learning_rate=0.1, warmup_steps=4, ema_decay=0.9)
    Trainer(line, Budget(steps=100), settings).fit(tmp_path)
    stages, rates, drawn = zip(*line.seen, strict=True)
    assert stages == (0,) * 60 + (1,) * 40
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1], rel=0.01)
    assert rates[30] == pytest.approx(0.05)  # half of the way down
    assert rates[40] == pytest.approx(0.025)  # cos(2π / 3) is minus one half
    assert rates[60] == pytest.approx(0.05)  # where the second stage begins
    assert rates[80] == pytest.approx(0.025)
    assert len(set(drawn)) == 100


def test_the_average_soon_forgets_the_first_steps(tmp_path: Path) -> None:
    line = Line()
    settings = TrainConfig(ema_decay=0.25, validate_every=1, warmup_steps=100)
    history = Trainer(line, Budget(steps=3), settings).fit(tmp_path).history
    one, two, three = np.cumsum([rate for _, rate, _ in line.seen])
    second = 2 / 11 * one + 9 / 11 * two  # the decay is (1 + n) / (10 + n), and 0.25 at most
    found = [record["average"] for record in history]
    assert found == pytest.approx([one, second, 0.25 * second + 0.75 * three], rel=1e-5)


BAD: list[dict[str, Any]] = [
    {},
    {"minutes": 1.0, "steps": 1},
    {"epochs": 1, "steps": 1},
    {"epochs": 0},
    {"steps": 0},
    {"minutes": 0.0},
    {"minutes": math.nan},
    {"minutes": math.inf},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_budget_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(CallError, match=r"either --minutes or --steps|out of range"):
        Budget(**bad)


def test_settings_at_the_ends_of_their_ranges() -> None:
    assert TrainConfig(batch_size=1, learning_rate=1, seed=2**63 - 1).seed == 2**63 - 1
    assert Budget(minutes=1e-3).steps is None


def test_what_is_drawn_at_random_has_no_epochs() -> None:
    with pytest.raises(CallError, match="drawn at random"):
        Trainer(Line(), Budget(epochs=1), TrainConfig())


# From a dataset.


def test_a_codec_does_not_go_on_with_another_dataset_of_the_same_size(
    dataset: LoopDataset, reordered: LoopDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec_train, "N_VALID", 2)
    settings = replace(SETTINGS, batch_size=2)
    budget = Budget(steps=1)
    given: dict[str, Any] = {
        "training": settings, "config": CONFIG, "recipe": RECIPE, "device": CPU,
    }  # fmt: skip
    codec_train.codec(dataset, tmp_path, budget, [bundled()], **given)
    before = contents(tmp_path)
    with pytest.raises(CallError, match="the run was begun with another dataset; resume it"):
        codec_train.codec(reordered, tmp_path, budget, [bundled()], resume=True, **given)
    assert contents(tmp_path) == before


def test_a_codec_is_trained_from_a_dataset_and_loads(
    dataset: LoopDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec_train, "N_VALID", 2)
    result = codec_train.codec(
        dataset, tmp_path, Budget(steps=3), [bundled()],
        training=SETTINGS, config=CONFIG, recipe=RECIPE, device=CPU,
    )  # fmt: skip
    assert (result.steps, len(result.history)) == (3, 1)
    about = checkpoint.read_config(tmp_path)
    assert about["kind"] == compression.KIND
    assert about["trained"]["steps"] == 3
    assert about["data"]["soundfonts"] == [bundled().name]
    assert about["data"]["rules"] == dataset.manifest["rules"]["name"]
    assert about["data"]["fingerprint"] == dataset.fingerprint
    codec = compression.load(tmp_path)
    assert codec.config == CONFIG
    encoded = compression.encode(Wave(sound(0)[None], 32_000), codec)
    found = compression.decode(compression.dequantize(encoded.codes, codec), codec, 8000, 32_000)
    assert len(found) == 8000
