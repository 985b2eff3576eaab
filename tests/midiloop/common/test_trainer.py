"""What the trainer does for every model: batches in pieces, averages, the best, processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioloop.tokens import train as token_train
from midiloop import models
from midiloop.common import devices
from midiloop.common.task import Losses, Task, mixed_seed
from midiloop.common.train_config import Budget, TrainConfig
from midiloop.common.trainer import Result, Trainer
from midiloop.errors import CallError
from paths import ROOT
from tests.audioloop.codec import test_train as test_audio_fit
from tests.audioloop.tokens import test_train as test_token_train
from tests.midiloop.training import test_training
from tests.midiloop.training.test_training import (
    HISTORY,
    STATE,
    WEIGHTS,
    Interrupted,
    contents,
    distance,
    interrupt,
    weights,
)
from torchrun import run_together

CPU = torch.device("cpu")
SOUND = ("codec", "masked", "causal")
CONFIG = TrainConfig(batch_size=4, warmup_steps=2, ema_decay=0.9, save_every_s=0.0)
BUDGET = Budget(steps=4)
sound = pytest.mark.parametrize("kind", SOUND)


@pytest.fixture(autouse=True)
def _short_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(token_train, "LOOP_FRAMES", 80)
    monkeypatch.setattr(token_train, "VALID_FRAMES", 60)


def task(kind: str) -> Task:
    return test_audio_fit.task() if kind == "codec" else test_token_train.task(kind)


def run(
    folder: Path, kind: str, config: TrainConfig = CONFIG, budget: Budget = BUDGET, **more: Any
) -> Result:
    return Trainer(task(kind), budget, config).fit(folder, **more)


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Those of the model, of the trainer's next step."""
    trainer._step()
    return {
        name: parameter.grad.clone()
        for name, parameter in trainer.task.model.named_parameters()
        if parameter.grad is not None
    }


# Batches in pieces.


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_gradients_of_pieces_add_up_to_their_mean(kind: str) -> None:
    long = replace(CONFIG, batch_size=3, micro_batch_size=1, max_grad_norm=1e9)
    found = gradients(Trainer(task(kind), BUDGET, long))
    made = task(kind)
    made.model.train()
    step = Trainer(made, BUDGET, long)
    pieces: list[Any] = []
    losses = made.losses

    def noted(batch: Any, at: Any) -> Losses:
        pieces.append((batch, at))
        return losses(batch, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "losses", noted)
        step._step()
    assert len(pieces) == 3
    again = task(kind)
    torch.manual_seed(mixed_seed(0, 0, 0))
    again.model.train()
    mean = sum(again.losses(*piece).minimise[kind] for piece in pieces) / 3
    assert isinstance(mean, Tensor)
    names, parameters = zip(*again.model.named_parameters(), strict=True)
    expected = torch.autograd.grad(mean, parameters, allow_unused=True)
    for name, gradient in zip(names, expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@sound
def test_a_run_in_pieces_is_another_and_resumes_as_well(kind: str, tmp_path: Path) -> None:
    pieces = replace(CONFIG, micro_batch_size=1)
    run(tmp_path / "pieces", kind, pieces)
    run(tmp_path / "whole", kind)
    assert distance(weights(tmp_path / "pieces"), weights(tmp_path / "whole")) > 0
    for at in (1, 3):
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, at)
            with pytest.raises(Interrupted):
                run(tmp_path / "parts", kind, pieces, resume=True)
    run(tmp_path / "parts", kind, pieces, resume=True)
    same = (tmp_path / "parts" / WEIGHTS).read_bytes() == (
        tmp_path / "pieces" / WEIGHTS
    ).read_bytes()
    assert same


# Averages, the best, and other budgets, for models of loops as well.

OPTIONS: dict[str, dict[str, Any]] = {
    "an average": {"ema_decay": 0.9},
    "by steps": {"epochs": None, "steps": 7, "validate_every": 2},
    "the latest": {"keep_best": False, "ema_decay": 0.5, "warmup_steps": 3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", ["cnn-vae", "vq-vae"])
def test_models_of_loops_take_what_models_of_sound_take(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**test_training.SETTINGS, **options}
    result = test_training.run(tmp_path / "whole", kind, settings)
    for number, at in enumerate((1, 4)):
        test_training.run_until(at, tmp_path / "parts", kind, settings=settings, resume=number > 0)
    again = test_training.run(tmp_path / "parts", kind, settings, resume=True)
    assert [{**r, "minutes": 0} for r in again.history] == [
        {**r, "minutes": 0} for r in result.history
    ]
    assert (tmp_path / "parts" / WEIGHTS).read_bytes() == (
        tmp_path / "whole" / WEIGHTS
    ).read_bytes()
    assert not (tmp_path / "parts" / STATE).exists()
    if "steps" in options:
        assert [record["step"] for record in result.history] == [2, 4, 6, 7]


def test_the_average_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    made = test_training.objective("cnn-vae")
    settings = {**test_training.SETTINGS, "ema_decay": 0.9}
    result = test_training.run(tmp_path, "cnn-vae", settings, made=made)
    kept = models.load(tmp_path).model
    assert distance(kept.state_dict(), made.model.state_dict()) > 0
    error = made.of(kept).errors(test_training.VALID.rolls(slice(None))).double().mean()
    assert float(error) == pytest.approx(result.best)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_models_of_sound_keep_the_best_and_stop_as_well(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, keep_best=True, patience=2, validate_every=1)
    errors = iter([0.5, 0.4, 0.6, 0.4, 0.1])
    kept: list[dict[str, Tensor]] = []
    made = task(kind)

    def scripted(model: nn.Module) -> dict[str, float]:
        kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"nats": next(errors)}

    monkeypatch.setattr(made, "validate", scripted)
    found = Trainer(made, Budget(steps=5), config).fit(tmp_path)
    assert (found.steps, found.best) == (4, 0.4)
    assert distance(weights(tmp_path), kept[1]) == 0
    assert not (tmp_path / STATE).exists()


# Precision, compilation, event files.


def test_a_codec_in_16_bits_has_about_the_same_losses() -> None:
    found = []
    for precision in ("float32", "bfloat16"):
        made = Trainer(task("codec"), BUDGET, replace(CONFIG, precision=precision))
        found.append({name: float(term) for name, term in made._step().items()})
        assert all(weight.dtype == torch.float32 for weight in made.task.model.parameters())
    assert found[0] != found[1]
    assert found[0]["mel"] == pytest.approx(found[1]["mel"], rel=0.05)


@sound
def test_a_run_in_16_bits_ends_and_is_read(kind: str, tmp_path: Path) -> None:
    run(tmp_path, kind, replace(CONFIG, precision="bfloat16"))
    assert {t.dtype for t in weights(tmp_path).values()} <= {torch.float32, torch.int64}
    begun = json.loads((tmp_path / HISTORY).read_text())["begun_with"]
    assert begun["settings"]["precision"] == "bfloat16"


def test_auto_is_float32_where_no_unit_multiplies_faster() -> None:
    made = Trainer(task("masked"), BUDGET, replace(CONFIG, precision="auto"))
    assert made.config.precision == "float32"
    assert devices.choose_precision("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize("name", ["tpu", "cuda:77", "cuda:x", "cpu:1", ""])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(CallError, match=f"there is no {name} device .*; use --device cpu") as bad:
        devices.choose_device(name)
    assert "\n" not in str(bad.value)
    assert devices.choose_device("cpu") == CPU


@sound
def test_event_files_hold_what_the_history_holds(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        import torch.utils.tensorboard  # noqa: F401
    config = replace(CONFIG, validate_every=2)
    history = run(tmp_path, kind, config, events=tmp_path / "events").history
    found = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    names = {name for record in history for name in record} - {"step", "minutes"}
    assert set(found.Tags()["scalars"]) == names
    for name in names:  # critics have none before their stage
        of = [record for record in history if name in record]
        assert [s.step for s in found.Scalars(name)] == [record["step"] for record in of]
        expected = [record[name] for record in of]
        assert [s.value for s in found.Scalars(name)] == pytest.approx(expected, rel=1e-6)


def test_compiled_models_of_sound_learn_the_same(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--slow"):
        pytest.skip("takes minutes; add --slow")
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile wants a C++ compiler")
    script = f"""
import sys; sys.path[:0] = {[str(ROOT / "tests" / "support"), str(ROOT)]!r}
from dataclasses import replace
from pathlib import Path
from tests.midiloop.common import test_trainer
for kind in test_trainer.SOUND:
    for compiled in (False, True):
        config = replace(test_trainer.CONFIG, compile=compiled)
        test_trainer.run(Path({str(tmp_path)!r}) / f"{{kind}}-{{compiled}}", kind, config)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)
    for kind in SOUND:
        plain, compiled = (weights(tmp_path / f"{kind}-{one}") for one in (False, True))
        assert distance(plain, compiled) < 1e-2


# Several processes.

TOGETHER = """
import sys
from pathlib import Path

import pytest
import torch
from tests.midiloop.common import test_trainer
from midiloop.common import devices

out = Path(sys.argv[1])
torch.set_num_threads(1)
with devices.processes(torch.device("cpu")):
    for kind in test_trainer.SOUND:
        test_trainer.train_together(out, kind)
    found = test_trainer.shared_gradients(), test_trainer.drawn(), test_trainer.taken_in_turn(out)
    torch.save(found, out / f"{devices.rank()}.pt")
"""
STAGES = replace(CONFIG, validate_every=2)


def train_together(out: Path, kind: str) -> None:
    """Train alone in one go, and once more with an interruption."""
    made = task(kind)
    Trainer(made, BUDGET, STAGES).fit(out / kind)
    state = {**made.model.state_dict()}
    torch.save(state, out / f"{kind}-{devices.rank()}.pt")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 3)
        try:
            run(out / f"{kind}-parts", kind, STAGES)
        except Interrupted:
            pass
        else:
            raise AssertionError
    devices.barrier()  # the first has yet to write when the other is through
    run(out / f"{kind}-parts", kind, STAGES, resume=True)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    run_together(TOGETHER, folder, timeout_s=300)
    return folder


@sound
def test_processes_end_with_the_same_weights_and_codebooks(kind: str, together: Path) -> None:
    first, second = (torch.load(together / f"{kind}-{n}.pt", weights_only=True) for n in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert contents(together / kind).keys() == {"config.json", HISTORY, WEIGHTS}
    assert distance(first, task(kind).model.state_dict()) > 0


@sound
def test_processes_that_were_interrupted_end_as_those_that_were_not(
    kind: str, together: Path
) -> None:
    found, expected = (contents(together / name) for name in (f"{kind}-parts", kind))
    assert found.keys() == expected.keys()
    assert found[WEIGHTS] == expected[WEIGHTS]


def shared_gradients() -> list[Tensor | None]:
    """After an exchange: of a parameter that both use, of one that nobody uses, that one uses."""
    both, neither, one = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    both.grad = torch.full((2,), 1.0 + devices.rank())
    if devices.rank() == 1:
        one.grad = torch.full((2,), 4.0)
    devices.average_gradients([both, neither, one])
    return [both.grad, neither.grad, one.grad]


def drawn() -> Tensor:
    """The codes of a process's first batch."""
    trainer, seen = Trainer(task("causal"), BUDGET, CONFIG), list[Tensor]()
    losses = trainer.task.losses

    def noted(batch: Any, step: Any) -> Losses:
        seen.append(batch[0])
        return losses(batch, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.task, "losses", noted)
        trainer._step()
    return seen[0]


def taken_in_turn(folder: Path) -> list[str]:
    """What a process finds when it is its turn."""
    with devices.in_turn():
        before = sorted(path.name for path in folder.glob("turn-*"))
        (folder / f"turn-{devices.rank()}").touch()
    return before


def test_a_gradient_is_the_mean_of_those_of_all_processes(together: Path) -> None:
    for rank in (0, 1):
        (both, neither, one), *_ = torch.load(together / f"{rank}.pt")
        assert (both.tolist(), neither, one.tolist()) == ([1.5, 1.5], None, [2.0, 2.0])


def test_each_process_draws_batches_of_its_own(together: Path) -> None:
    first, second = (torch.load(together / f"{rank}.pt")[1] for rank in (0, 1))
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_processes_take_turns(together: Path) -> None:
    assert [torch.load(together / f"{rank}.pt")[2] for rank in (0, 1)] == [[], ["turn-0"]]
