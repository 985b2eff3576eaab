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
from test_renders import bundled
from torch import Tensor, nn

from audioloop import balance, coded, coder, fit, train
from audioloop.codec import Codec, CodecConfig
from audioloop.fit import Progress, Settings, Stage
from audioloop.train import CodecTask, Lesson
from audioloop.wave import Samples, Wave
from midiloop import checkpoint
from midiloop.errors import CallError, LoopError
from midiloop.store import LoopDataset

CONFIG = CodecConfig(
    fine=32, coarse=32, latent_dim=8, codebook_size=32, encoder_blocks=1, decoder_blocks=1
)
LESSON = Lesson(frames=8, adversarial=0.5)
SETTINGS = Settings(steps=6, batch=3, save_every_s=0)
CPU = torch.device("cpu")
STATE, HISTORY, WEIGHTS = "state.safetensors", "training.json", "model.safetensors"
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
    settings: Settings = SETTINGS,
    lesson: Lesson = LESSON,
    heard: Sounds = sounds,
    config: CodecConfig = CONFIG,
    *,
    decoder_only: bool = False,
) -> CodecTask:
    valid, about = (lambda: [VALID]), {"of": "tests"}
    return CodecTask(config, lesson, settings, heard, valid, CPU, about, decoder_only=decoder_only)


def run(
    folder: Path,
    settings: Settings = SETTINGS,
    lesson: Lesson = LESSON,
    heard: Sounds = sounds,
    config: CodecConfig = CONFIG,
    *,
    decoder_only: bool = False,
    **more: Any,
) -> fit.Result:
    made = task(settings, lesson, heard, config, decoder_only=decoder_only)
    return fit.fit(made, settings, folder, about={"of": "tests"}, **more)


def run_until(at: int, folder: Path, **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, heard=stopping(at), **more)


def state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of the saved state, and what is said of them but for the time."""
    tensors, about = checkpoint.read_tensors(folder / STATE)
    del about["took_s"]
    for record in about["history"]:
        del record["minutes"]
    return tensors, about


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def assert_same_run(found: Path, expected: Path) -> None:
    assert (found / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    tensors, about = state(found)
    others, said = state(expected)
    assert equal(tensors, others)
    assert about == said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both stages that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "VALIDATE_EVERY", 2)
        run(folder)
    return folder


# Going on.


def test_a_run_that_was_interrupted_ends_bit_for_bit_as_one_that_was_not(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "VALIDATE_EVERY", 2)
    for number, at in enumerate((0, 1, 3, 4, 5)):  # the critics come in the step 3
        run_until(at, tmp_path, resume=number > 0)
    assert run(tmp_path, resume=True).steps == SETTINGS.steps
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
    result = run(whole, heard=stopping(0), resume=True)
    assert contents(whole) == before
    assert before.keys() == {"config.json", HISTORY, WEIGHTS, STATE}
    assert result.steps == SETTINGS.steps


def test_another_seed_is_another_run(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, replace(SETTINGS, seed=1))
    assert (tmp_path / WEIGHTS).read_bytes() != (whole / WEIGHTS).read_bytes()


OTHERS: dict[str, dict[str, Any]] = {
    "more steps": {"settings": replace(SETTINGS, steps=7)},
    "another rate": {"settings": replace(SETTINGS, learning_rate=0.1)},
    "another seed": {"settings": replace(SETTINGS, seed=1)},
    "by the clock": {"settings": replace(SETTINGS, steps=None, minutes=1.0)},
    "another lesson": {"lesson": replace(LESSON, mel=0.1)},
    "another codec": {"config": replace(CONFIG, fine=48)},
    "its decoder only": {"decoder_only": True},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_run_goes_on_only_as_it_was_begun(other: dict[str, Any], whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(CallError, match="the run was begun with other settings") as bad:
        run(whole, resume=True, **other)
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
def test_a_damaged_state_is_one_line(
    damage: Callable[[bytes], bytes], whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / STATE
    path.write_bytes(damage((whole / STATE).read_bytes()))
    with pytest.raises(LoopError) as bad:
        run(tmp_path, resume=True)
    assert str(bad.value).startswith(f"{path}: ")
    assert "\n" not in str(bad.value)


def test_weights_in_the_place_of_a_state_are_one_line(whole: Path, tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes((whole / WEIGHTS).read_bytes())
    with pytest.raises(LoopError, match="not the state of such a run") as bad:
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
    with pytest.raises(LoopError, match="not finite at step") as failed:
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
        patch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: self.now_s))

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
    settings = Settings(minutes=1.0, batch=3, save_every_s=0)
    for at in (3, 7):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, settings, heard=clock.stopping(at), resume=True)
        clock.now_s += 1e6  # nobody trains
    result = run(tmp_path, settings, heard=clock.sounds, resume=True)
    assert (result.steps, result.took_s) == (10, 60)
    assert result.history[-1]["minutes"] == 1
    assert json.loads((tmp_path / HISTORY).read_text())["finished"]


def test_a_run_by_the_clock_ends_by_a_real_one(tmp_path: Path) -> None:
    result = run(tmp_path, Settings(minutes=0.002, batch=1))
    assert 0.12 <= result.took_s < 10
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
    assert found["step"] == SETTINGS.steps
    assert [record["step"] for record in found["history"]] == [2, 4, 6]
    for record in found["history"]:
        assert {"waveform", "mel", "si_sdr_db", "si_sdr_codes_db", "mel_codes"} <= record.keys()
        assert all(math.isfinite(value) for value in record.values())
    assert "critics" in found["history"][-1]
    assert json.loads((whole / "config.json").read_text())["of"] == "tests"


def test_the_average_of_the_weights_is_what_is_shipped_balanced(whole: Path) -> None:
    tensors, _ = state(whole)
    shipped, _ = checkpoint.read_tensors(whole / WEIGHTS)
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
    lesson = replace(LESSON, adversarial=adversarial)
    made = task(lesson=lesson)
    before = parts(made)
    fit.fit(made, SETTINGS, tmp_path, about={})
    after = parts(made)
    assert {name for name in before if not equal(before[name], after[name])} == moved


@pytest.mark.parametrize("adversarial", [0.5, 1.0])
def test_a_decoder_that_learns_alone_leaves_codes_bit_for_bit(
    adversarial: float, tmp_path: Path
) -> None:
    lesson = replace(LESSON, adversarial=adversarial, change=1.0)
    made = task(lesson=lesson, decoder_only=True)
    with torch.no_grad():
        made.model.encoder.out.weight[0, 0] = -0.0  # which a sum with 0 would make +0
    meant = coded.codes_of(made.model)
    before = made.model.decoder.split.weight.clone()
    fit.fit(made, SETTINGS, tmp_path, about={})
    found = coder.load(tmp_path)
    assert coded.codes_of(found) == coded.codes_of(made.model) == meant
    assert not torch.equal(found.decoder.split.weight, before)


def test_a_codec_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "VALIDATE_EVERY", 5)
    monkeypatch.setattr(fit, "WARM_UP", 1)
    settings = Settings(steps=60, batch=3, learning_rate=3e-3, save_every_s=1e9)
    history = run(tmp_path, settings, replace(LESSON, adversarial=1.0)).history
    assert history[-1]["mel_codes"] < history[0]["mel_codes"]


def test_every_so_many_steps_excerpts_have_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(lesson=replace(LESSON, open_every=3))
    seen: list[bool] = []
    decode = made.model.decoder.forward

    def decoded(latent: Tensor, *, circular: bool) -> Tensor:
        seen.append(circular)
        return decode(latent, circular=circular)

    monkeypatch.setattr(made.model.decoder, "forward", decoded)
    for number in range(6):
        made.step(number, 0)
    assert seen == [False, True, True] * 2


class Line(fit.Task):
    """One weight that grows by the learning rate each step, and notes it."""

    def __init__(self) -> None:
        self.model: nn.Linear = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.modules = {"model": self.model}
        self.optimizers = {"model": torch.optim.SGD(self.model.parameters(), lr=99.0)}
        self.stages = Stage(0.0, 1.0), Stage(0.6, 0.5)
        self.seen: list[tuple[int, float, int]] = []

    def step(self, number: int, stage: int) -> dict[str, Tensor]:
        optimizer = self.optimizers["model"]
        self.seen.append((stage, optimizer.param_groups[0]["lr"], int(torch.randint(1 << 40, ()))))
        self.model.weight.grad = -torch.ones(1, 1)
        optimizer.step()
        return {"loss": torch.zeros(())}

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, nn.Linear)
        return {"average": float(model.weight)}

    def save(self, folder: Path, model: nn.Module, about: dict[str, Any]) -> None:
        pass

    def begun_with(self) -> dict[str, Any]:
        return {}


def test_the_learning_rate_falls_as_a_cosine_in_each_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "WARM_UP", 4)
    line = Line()
    fit.fit(line, Settings(steps=100, learning_rate=0.1), tmp_path, about={})
    stages, rates, drawn = zip(*line.seen, strict=True)
    assert stages == (0,) * 60 + (1,) * 40
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1], rel=0.01)
    assert rates[30] == pytest.approx(0.05)  # half of the way down
    assert rates[40] == pytest.approx(0.025)  # cos(2π / 3) is minus one half
    assert rates[60] == pytest.approx(0.05)  # where the second stage begins
    assert rates[80] == pytest.approx(0.025)
    assert len(set(drawn)) == 100


def test_the_average_soon_forgets_the_first_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "VALIDATE_EVERY", 1)
    line = Line()
    history = fit.fit(line, Settings(steps=3, decay=0.25), tmp_path, about={}).history
    one, two, three = np.cumsum([rate for _, rate, _ in line.seen])
    second = 2 / 11 * one + 9 / 11 * two  # the decay is (1 + n) / (10 + n), and 0.25 at most
    found = [record["average"] for record in history]
    assert found == pytest.approx([one, second, 0.25 * second + 0.75 * three], rel=1e-5)


BAD: list[dict[str, Any]] = [
    {},
    {"minutes": 1.0, "steps": 1},
    {"steps": 0},
    {"minutes": 0.0},
    {"minutes": math.nan},
    {"minutes": math.inf},
    {"steps": 1, "batch": 0},
    {"steps": 1, "learning_rate": 0.0},
    {"steps": 1, "learning_rate": 1.1},
    {"steps": 1, "learning_rate": math.nan},
    {"steps": 1, "seed": -1},
    {"steps": 1, "seed": 2**63},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_settings_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(CallError, match=r"either --minutes or --steps|out of range"):
        Settings(**bad)


def test_settings_at_the_ends_of_their_ranges() -> None:
    assert Settings(steps=1, batch=1, learning_rate=1, seed=2**63 - 1).minutes is None
    assert Settings(minutes=1e-3).steps is None


# From a dataset.


def test_a_codec_does_not_go_on_with_another_dataset_of_the_same_size(
    dataset: LoopDataset, reordered: LoopDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "N_VALID", 2)
    settings = Settings(steps=1, batch=2, save_every_s=0)
    given: dict[str, Any] = {"config": CONFIG, "lesson": LESSON, "device": CPU}
    train.codec(dataset, tmp_path, settings, [bundled()], **given)
    before = contents(tmp_path)
    with pytest.raises(CallError, match="the run was begun with another dataset; resume it"):
        train.codec(reordered, tmp_path, settings, [bundled()], resume=True, **given)
    assert contents(tmp_path) == before


def test_a_codec_is_trained_from_a_dataset_and_loads(
    dataset: LoopDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "N_VALID", 2)
    settings = Settings(steps=3, batch=3, save_every_s=0)
    result = train.codec(
        dataset, tmp_path, settings, [bundled()], config=CONFIG, lesson=LESSON, device=CPU
    )
    assert (result.steps, len(result.history)) == (3, 1)
    about = checkpoint.read_config(tmp_path)
    assert about["kind"] == coder.KIND
    assert about["trained"]["steps"] == 3
    assert about["data"]["soundfonts"] == [bundled().name]
    assert about["data"]["rules"] == dataset.manifest["rules"]["name"]
    assert about["data"]["fingerprint"] == dataset.fingerprint
    codec = coder.load(tmp_path)
    assert codec.config == CONFIG
    coding = coder.encoded(Wave(sound(0)[None], 32_000), codec)
    found = coder.decoded(coder.latent_of(coding.codes, codec), codec, 8000, 32_000)
    assert len(found) == 8000
