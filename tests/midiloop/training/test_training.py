"""Training: a run that was killed ends as one that was not, and what fails leaves what was good."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from handmade import random_rolls
from midiloop import models
from midiloop.common import checkpoint, trainer
from midiloop.common.task import Losses
from midiloop.common.train_config import Budget, TrainConfig
from midiloop.common.trainer import Result, Trainer
from midiloop.dataset.tensors import PackedLoops
from midiloop.errors import CallError, LoopError
from midiloop.grid import LOOP
from midiloop.models.cnn_vae import CNNVAEConfig
from midiloop.models.layers import CodeModel
from midiloop.models.loop_transformer import LoopTransformerConfig
from midiloop.models.lstm_vae import ARLSTMVAEConfig, NonARLSTMVAEConfig
from midiloop.models.prior import PriorConfig
from midiloop.models.vq_vae import VQVAE, VQVAEConfig
from midiloop.training import objective as objectives
from midiloop.training.objective import LoopTask, Objective
from paths import ROOT
from torchrun import run_together

CODEC = VQVAEConfig(channels=8, embed_channels=8, codebook_size=32)
TINY: dict[str, Any] = {
    "ar-lstm-vae": ARLSTMVAEConfig(encoder_hidden=4, latent_dim=4),
    "nonar-lstm-vae": NonARLSTMVAEConfig(encoder_hidden=4, latent_dim=4, decoder_hidden=4),
    "cnn-vae": CNNVAEConfig(channels=4, latent_dim=8),
    "vq-vae": VQVAEConfig(channels=8, embed_channels=8, codebook_size=32),
    # noise from the dropout
    "prior": PriorConfig(codebook_size=32, embed_dim=8, hidden=8, dropout=0.3),
    "loop-transformer": LoopTransformerConfig(
        dim=16, layers=1, heads=2, token_dim=8, token_layers=1
    ),
}
PLAIN_PRIOR = PriorConfig(codebook_size=32, embed_dim=8, hidden=8)
# 40 loops: two steps an epoch, and some loops left over
SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 16, "micro_batch_size": 9, "transpose": 3, "save_every_s": 0,
}  # fmt: skip
DEFAULTS: dict[str, Any] = {
    "epochs": 20, "micro_batch_size": 256, "final_learning_rate": 5e-6, "patience": 10,
    "keep_best": True,
}  # fmt: skip
N_STEPS = 6
STATE, HISTORY, WEIGHTS = "state.safetensors", "training.json", "model.safetensors"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def packed(n: int, seed: int = 8) -> PackedLoops:
    rolls = random_rolls(np.random.default_rng(seed), n)
    return PackedLoops(torch.from_numpy(LOOP.pack(rolls)))


TRAIN, VALID = packed(40), packed(20, 9)


def objective(kind: str = "vq-vae", seed: int = 0, config: Any = None) -> Objective:
    """A tiny model with fresh weights; a prior of the codes of a codec that is ever the same."""
    config = config or TINY[kind]
    codec = None
    if kind == "prior":
        torch.manual_seed(99)
        codec = VQVAE(CODEC).eval()
    torch.manual_seed(seed)
    model = models.build(kind, config)
    if isinstance(model, CodeModel) and codec is not None:
        model.fit_start(codec.encode(TRAIN.rolls(slice(None))))
    return Objective(model, codec)


def run(
    folder: Path,
    kind: str = "vq-vae",
    settings: dict[str, Any] = SETTINGS,
    *,
    made: Objective | None = None,
    config: Any = None,
    train: PackedLoops = TRAIN,
    **more: Any,
) -> Result:
    """Train, by settings that are of the budget, of the configuration or of the task."""
    settings = {**DEFAULTS, **settings}
    transpose = settings.pop("transpose", 0)
    budget = Budget(**{n: settings.pop(n, None) for n in ("epochs", "steps", "minutes")})
    how = TrainConfig(**settings)
    made = made or objective(kind, how.seed, config)
    task = LoopTask(
        made, kind, train, VALID, seed=how.seed, transpose=transpose, epochs=budget.epochs or 0
    )
    return Trainer(task, budget, how).fit(folder, **more)


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.read_tensors(folder / WEIGHTS)[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of any weight."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


class Interrupted(Exception):  # noqa: N818 - no error
    """What a test stops a run with."""


def interrupt(patch: pytest.MonkeyPatch, at: int) -> None:
    """Stop before the step ``at``, counted from 0."""
    whole = Trainer._step

    def step(running: Trainer) -> dict[str, Tensor]:
        if running.step == at:
            raise Interrupted
        return whole(running)

    patch.setattr(Trainer, "_step", step)


def run_until(at: int, folder: Path, kind: str = "vq-vae", **more: Any) -> None:
    """Run, and be stopped before the step ``at``."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(Interrupted):
            run(folder, kind, **more)


# Going on.


@pytest.mark.parametrize("kind", TINY)
def test_a_run_that_was_interrupted_ends_bit_for_bit_as_one_that_was_not(
    kind: str, tmp_path: Path
) -> None:
    result = run(tmp_path / "whole", kind)
    for number, at in enumerate((0, 1, 2, 3, 5)):
        run_until(at, tmp_path / "parts", kind, resume=number > 0)
    assert run(tmp_path / "parts", kind, resume=True) == result
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert contents(tmp_path / "whole").keys() == {"config.json", HISTORY, WEIGHTS}
    assert [record["epoch"] for record in result.history] == [1, 2, 3]


def test_early_stopping_counts_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [0.5, 0.0, 0.2, 0.1, 0.3, 0.0]
    steps_per_epoch = 2
    validate = Trainer._validate
    seen: list[int] = []

    def validated(running: Trainer) -> None:
        monkeypatch.setattr(objectives, "mean_error", lambda *_: errors[len(seen)])
        validate(running)
        seen.append(running.step)

    monkeypatch.setattr(Trainer, "_validate", validated)
    settings = {"epochs": 6, "batch_size": 16, "patience": 3, "save_every_s": 0}
    run_until(3 * steps_per_epoch, tmp_path, settings=settings)
    found = run(tmp_path, settings=settings, resume=True)
    # 0.0, the best there can be, in epoch 2; three epochs without a better one follow
    assert (found.best, found.epochs) == (0.0, 5)
    assert checkpoint.read_config(tmp_path)["epoch"] == 2


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path

sys.path[:0] = sys.argv[3:]
from tests.midiloop.training import test_training

out, seed = Path(sys.argv[1]), int(sys.argv[2])
settings = {**test_training.SETTINGS, "epochs": 60}
test_training.torch.set_num_threads(1)


def train(name, slow):
    # A disk that takes its time, so that many a kill falls between two files, or into one.
    fsync = os.fsync
    if slow:
        os.fsync = lambda file: (time.sleep(0.005), fsync(file), time.sleep(0.005))
    test_training.run(out / name, settings=settings, resume=slow)


def forked(name, slow):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(name, slow)
            code = 0
        finally:
            os._exit(code)
    return child


# Torch loads much at the first step; here, once, and not in every child anew.
weight = test_training.torch.nn.Parameter(test_training.torch.zeros(1))
weight.grad = test_training.torch.zeros(1)
test_training.torch.optim.AdamW([weight]).step()

rng, kills, left = random.Random(seed), 0, []
while kills < 10:
    child = forked("killed", True)
    time.sleep(rng.uniform(0.1, 0.45))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"over after {kills} kills, status {status}"
    kills += 1
    left.append(sorted(path.name for path in (out / "killed").glob("*")))
for child in (forked("killed", True), forked("whole", False)):
    assert os.waitpid(child, 0)[1] == 0
print(json.dumps(left))
"""


def test_a_run_that_is_killed_ten_times_ends_bit_for_bit_as_one_that_was_not(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", KILLED, tmp_path, "5", ROOT / "tests" / "support", ROOT]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(json.loads((tmp_path / "whole" / HISTORY).read_text())["history"]) == 60
    # it did go on where it was, and some kills fell into a write
    left = json.loads(done.stdout)
    assert all(STATE in names for names in left[-5:])
    assert any(".tmp" in name for names in left for name in names)


@pytest.mark.parametrize(
    "odd",
    [
        {}, {"begun_with": 5}, {"begun_with": {}}, {"step": -1}, {"step": 10**9}, {"step": "x"},
        {"step": None}, {"history": 5}, {"history": [5]}, {"history": [{"error": "x"}]},
        {"best": []}, {"since_best": None}, {"sums": [1]}, {"sums": {"loss": "x"}},
        {"sums": {"loss": [1.0, None]}}, {"validated": None}, {"took_s": None}, {"took_s": -1},
    ],
)  # fmt: skip
def test_a_state_that_is_odd_is_one_line(odd: dict[str, Any], tmp_path: Path) -> None:
    run_until(1, tmp_path)
    tensors, about = checkpoint.read_tensors(tmp_path / STATE)
    checkpoint.write_tensors(tmp_path / STATE, tensors, {**about, **odd} if odd else {})
    with pytest.raises(LoopError, match=r"state.safetensors: .*; delete it, and --resume") as bad:
        run(tmp_path, resume=True)
    assert "\n" not in str(bad.value)


@pytest.mark.parametrize("change", ["shape", "name", "nan", "optimizer"])
def test_tensors_of_a_state_that_are_odd_are_one_line(change: str, tmp_path: Path) -> None:
    run_until(1, tmp_path)
    tensors, about = checkpoint.read_tensors(tmp_path / STATE)
    name = next(n for n in tensors if n.startswith("model.") and tensors[n].dim() > 1)
    average = next(n for n in tensors if n.endswith("exp_avg") and tensors[n].dim() > 1)
    if change == "nan":
        tensors[name].fill_(float("nan"))
    elif change == "name":
        tensors["model.other"] = tensors.pop(name)
    else:
        key = name if change == "shape" else average
        tensors[key] = tensors[key][:1].repeat(2, *[1] * (tensors[key].dim() - 1))[..., :1]
    checkpoint.write_tensors(tmp_path / STATE, tensors, about)
    with pytest.raises(LoopError, match=r"state.safetensors: .*; delete it, and --resume") as bad:
        run(tmp_path, resume=True)
    assert "\n" not in str(bad.value)


def test_a_finished_run_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    interrupt(monkeypatch, 0)
    assert run(tmp_path, resume=True) == result
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_run_that_never_began_begins(tmp_path: Path) -> None:
    assert run(tmp_path / "new", resume=True).epochs == 3


@pytest.mark.parametrize("finished", [False, True])
def test_a_folder_with_a_run_is_not_written_over(
    finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if finished:
        run(tmp_path)
    else:
        run_until(1, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(CallError, match="a run is there already; add --resume"):
        run(tmp_path)
    assert contents(tmp_path) == before


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "settings": (
        {"settings": {**SETTINGS, "epochs": 4, "learning_rate": 0.5}},
        "epochs 3, not 4, learning_rate 0.001, not 0.5",
    ),
    "a model": ({"config": VQVAEConfig(channels=4)}, "begun with another model; resume it"),
    "a dataset": ({"train": packed(39)}, "begun with another dataset; resume it"),
}


@pytest.mark.parametrize(("other", "says"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("finished", [False, True])
def test_to_go_on_with_another_run_names_what_differs(
    finished: bool,
    other: dict[str, Any],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if finished:
        run(tmp_path)
    else:
        run_until(1, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(CallError) as bad:
        run(tmp_path, resume=True, **other)
    assert says in str(bad.value)
    assert str(bad.value).startswith(f"{tmp_path}: the run was begun with ")
    assert "\n" not in str(bad.value)
    assert contents(tmp_path) == before


def test_how_often_to_save_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_until(3, tmp_path)
    seldom = {**SETTINGS, "save_every_s": 1e9}
    assert run(tmp_path, settings=seldom, resume=True).epochs == 3


DAMAGED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "an empty state": (STATE, lambda _: b""),
    "a state cut in the header": (STATE, lambda data: data[:100]),
    "half a state": (STATE, lambda data: data[: len(data) // 2]),
    "a state less a byte": (STATE, lambda data: data[:-1]),
    "an empty history": (HISTORY, lambda _: b""),
    "half a history": (HISTORY, lambda data: data[: len(data) // 2]),
    "a history that is a list": (HISTORY, lambda _: b"[]"),
}


@pytest.mark.parametrize(("file", "damage"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_run_is_one_line(
    file: str,
    damage: Callable[[bytes], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_until(3, tmp_path)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LoopError) as bad:
        run(tmp_path, resume=True)
    assert str(bad.value).startswith(f"{path}: ")
    assert "; delete it" in str(bad.value)
    assert "\n" not in str(bad.value)
    path.unlink()  # what the message says
    assert run(tmp_path, resume=True).epochs == 3


def test_weights_in_the_place_of_the_state_are_one_line(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / HISTORY).unlink()
    shutil.copy(tmp_path / WEIGHTS, tmp_path / STATE)
    with pytest.raises(LoopError, match="not the state of a run"):
        run(tmp_path, resume=True)


# What training does.


def test_the_same_seed_gives_the_same_weights_and_another_others(tmp_path: Path) -> None:
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        run(tmp_path / name, settings={"epochs": 1, "batch_size": 16, "seed": seed})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert distance(weights(tmp_path / "a"), weights(tmp_path / "c")) > 0.01


def test_order_and_noise_follow_the_seed_too(tmp_path: Path) -> None:
    for seed in (0, 1):
        made = objective("cnn-vae")  # the same weights to begin with
        settings = {"epochs": 1, "batch_size": 16, "seed": seed}
        run(tmp_path / str(seed), "cnn-vae", settings, made=made)
    assert distance(weights(tmp_path / "0"), weights(tmp_path / "1")) > 1e-4


def test_a_batch_in_pieces_gives_the_weights_of_one_in_one_piece(tmp_path: Path) -> None:
    for micro_batch in (32, 8, 5):
        settings = {
            "epochs": 3, "batch_size": 32, "micro_batch_size": micro_batch, "learning_rate": 1e-2,
        }  # fmt: skip
        run(tmp_path / str(micro_batch), "prior", settings, config=PLAIN_PRIOR)
    whole = weights(tmp_path / "32")
    assert distance(weights(tmp_path / "8"), whole) < 1e-5
    assert distance(weights(tmp_path / "5"), whole) < 1e-5
    assert distance(objective("prior", config=PLAIN_PRIOR).model.state_dict(), whole) > 1e-2


@pytest.mark.parametrize("kind", TINY)
def test_the_loss_falls(kind: str, tmp_path: Path) -> None:
    settings = {"epochs": 15, "batch_size": 20, "learning_rate": 5e-3, "patience": 0}
    history = run(tmp_path, kind, settings).history
    assert history[-1]["nats"] < history[0]["nats"]


@pytest.mark.parametrize("kind", TINY)
def test_in_16_bits_the_loss_falls_as_well(kind: str, tmp_path: Path) -> None:
    settings = {
        "epochs": 15, "batch_size": 20, "learning_rate": 5e-3, "patience": 0,
        "precision": "bfloat16",
    }  # fmt: skip
    history = run(tmp_path, kind, settings).history
    assert history[-1]["nats"] < history[0]["nats"]
    assert {tensor.dtype for tensor in weights(tmp_path).values()} <= {torch.float32, torch.int64}


def test_the_learning_rate_is_a_cosine_from_the_first_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    losses = LoopTask.losses

    def noted(task: LoopTask, *args: Any) -> Losses:
        rates.append(task.optimizers["model"].param_groups[0]["lr"])
        return losses(task, *args)

    monkeypatch.setattr(LoopTask, "losses", noted)
    settings = {
        "epochs": 50, "batch_size": 16, "learning_rate": 1e-3, "final_learning_rate": 1e-5,
    }  # fmt: skip
    history = run(tmp_path, "prior", settings, config=PLAIN_PRIOR).history
    assert len(rates) == 100
    assert rates[0] == 1e-3
    assert rates[50] == pytest.approx(505e-6)  # the mean of both
    # cos(π / 3) is one half: three quarters of the way down are left
    assert rates[33] > 1e-5 + 0.75 * 99e-5 > rates[34]
    assert rates[-1] == pytest.approx(1e-5, rel=0.03)
    assert all(one > other for one, other in itertools.pairwise(rates))
    assert [record["learning_rate"] for record in history] == rates[1::2]


def test_gradients_are_no_longer_than_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[float] = []
    optimise = torch.optim.AdamW.step

    def noted(optimizer: torch.optim.AdamW, *args: Any) -> Any:
        grads = [p.grad.flatten() for p in optimizer.param_groups[0]["params"]]
        lengths.append(float(torch.cat(grads).norm()))
        return optimise(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    run(tmp_path, settings={"epochs": 2, "batch_size": 16, "max_grad_norm": 1e-3})
    assert lengths == pytest.approx([1e-3] * 4, rel=1e-2)


# Which weights are kept.


def scripted(monkeypatch: pytest.MonkeyPatch, errors: list[float]) -> None:
    """Let validation find these errors, epoch by epoch."""
    found = iter(errors)
    monkeypatch.setattr(objectives, "mean_error", lambda *_: next(found))


def test_training_stops_after_so_many_epochs_without_a_better_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.5, 0.4, 0.6, 0.3, 0.3, 0.31, 0.35, 0.1])
    settings = {"epochs": 8, "batch_size": 16, "patience": 3}
    found = run(tmp_path, settings=settings)
    assert found.epochs == 7  # 0.3 again is no better
    assert found.best == 0.3
    assert checkpoint.read_config(tmp_path)["epoch"] == 4
    assert not (tmp_path / STATE).exists()
    assert (
        run(tmp_path, settings={"epochs": 8, "batch_size": 16, "patience": 3}, resume=True) == found
    )


def test_without_patience_it_never_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.1, 0.2, 0.3, 0.4, 0.5])
    found = run(tmp_path, settings={"epochs": 5, "batch_size": 16, "patience": 0})
    assert (found.epochs, found.best) == (5, 0.1)


@pytest.mark.parametrize("kind", TINY)
def test_the_weights_that_are_kept_have_the_error_that_is_recorded(
    kind: str, tmp_path: Path
) -> None:
    settings = {"epochs": 6, "batch_size": 8, "learning_rate": 0.03, "patience": 0}
    found = run(tmp_path, kind, settings)
    kept = models.load(tmp_path)
    whole = Objective(kept.model, objective(kind)._codec[0])
    error = float(whole.errors(VALID.rolls(slice(None))).double().mean())
    assert error == pytest.approx(found.best, rel=1e-6)
    assert kept.about["validation_error"] == found.best
    assert found.history[kept.about["epoch"] - 1]["error"] == found.best
    # a VAE whose β still rises has its latest weights kept, whatever was before
    rising = math.ceil(kept.model.settled_epoch / 100 * 6)
    assert found.best == min(record["error"] for record in found.history[max(rising - 1, 0) :])


def test_while_a_schedule_rises_later_weights_replace_better_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In ten epochs a run passes through a schedule of 100: epoch 4 is 40 in it, epoch 5 is 50.
    scripted(monkeypatch, [0.1, 0.2, 0.3, 0.4, 0.9, 0.5, 0.6, 0.7, 0.8, 0.9])
    found = run(tmp_path, "cnn-vae", {"epochs": 10, "batch_size": 16, "patience": 3})
    assert models.KINDS["cnn-vae"].model(TINY["cnn-vae"]).settled_epoch == 44
    assert found.best == 0.5  # not 0.1, nor 0.4, from before the schedule had run out
    assert checkpoint.read_config(tmp_path)["epoch"] == 6
    assert found.epochs == 9


# What fails.


@pytest.mark.parametrize("name", ["loss", "gradient"])
@pytest.mark.parametrize("at", [4, 5])  # within an epoch, at its end
def test_what_is_no_number_stops_the_run_and_leaves_what_was_good(
    name: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(at, tmp_path)
    before = contents(tmp_path)
    made = objective()
    step = Trainer._step

    def broken(running: Trainer) -> dict[str, Tensor]:
        assert running.step == at
        if name == "loss":
            terms = step(running)
            return {**terms, "loss": terms["loss"] * math.nan}
        weight = next(made.parameters())
        weight.register_hook(lambda grad: grad * math.inf)  # type: ignore[no-untyped-call]
        return step(running)

    monkeypatch.setattr(Trainer, "_step", broken)
    with pytest.raises(LoopError, match=f"at step {at + 1}; the last good checkpoint") as bad:
        run(tmp_path, made=made, resume=True)
    assert str(bad.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(bad.value)
    assert contents(tmp_path) == before
    models.load(tmp_path)
    monkeypatch.setattr(Trainer, "_step", step)
    assert run(tmp_path, resume=True).epochs == 3


def test_a_validation_error_that_is_no_number_is_not_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.5, math.nan])
    with pytest.raises(LoopError, match="validation error is nan"):
        run(tmp_path)
    assert checkpoint.read_config(tmp_path)["epoch"] == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"batch_size": 0},
        {"micro_batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": 1e38},
        {"final_learning_rate": -1e-6},
        {"patience": -1},
        {"max_grad_norm": 0.0},
        {"warmup_steps": -1},
        {"ema_decay": 1.0},
        {"validate_every": 0},
        {"seed": -1},
        {"seed": 2**64},
        {"precision": "float16"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_one_line(odd: dict[str, Any]) -> None:
    with pytest.raises(CallError, match="out of range") as bad:
        TrainConfig(**odd)
    assert next(iter(odd)).replace("_", "-") in str(bad.value)
    assert "\n" not in str(bad.value)


def test_a_batch_is_no_larger_than_the_data(tmp_path: Path) -> None:
    assert run(tmp_path, settings={"epochs": 2, "batch_size": 1000}).epochs == 2


# Beside it.


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[trainer.Progress] = []
    result = run(tmp_path, on_progress=seen.append)
    assert [p.step for p in seen] == sorted(p.step for p in seen)
    last = seen[-1]
    assert (last.done, last.step, last.epoch, last.left_s) == (1, N_STEPS, 3.0, 0)
    assert last.terms["loss"] == result.history[-1]["loss"]
    assert last.figures["error"] == result.history[-1]["error"]
    assert last.best == result.best
    assert last.items_per_s > 0


def test_event_files_hold_the_validation_error_of_every_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        import torch.utils.tensorboard  # noqa: F401
    folder, events = tmp_path / "run", tmp_path / "run" / "events"
    for number, at in enumerate((2, 3)):  # at the end of an epoch, and within one
        run_until(at, folder, events=events, resume=number > 0)
    history = run(folder, events=events, resume=True).history
    found = accumulator.EventAccumulator(str(events)).Reload()
    assert set(found.Tags()["scalars"]) == set(history[0]) - {"epoch"}
    for name in ("error", "loss", "learning_rate"):
        scalars = found.Scalars(name)
        assert [scalar.step for scalar in scalars] == [2, 4, 6]
        assert [s.value for s in scalars] == pytest.approx([r[name] for r in history], rel=1e-6)


def test_no_event_files_unless_asked_for(tmp_path: Path) -> None:
    run(tmp_path, settings={"epochs": 1, "batch_size": 16})
    assert not [path for path in tmp_path.rglob("*") if "events" in path.name]


def test_compiled_it_learns_the_same(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--slow"):
        pytest.skip("takes half a minute; add --slow")
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile wants a C++ compiler")
    script = f"""
import sys
from pathlib import Path
sys.path[:0] = {[str(ROOT / "tests" / "support"), str(ROOT)]!r}
from tests.midiloop.training import test_training
for name, kind, config in (
    ("prior", "prior", test_training.PLAIN_PRIOR),
    ("vq-vae", "vq-vae", None),
    ("loop-transformer", "loop-transformer", None),
):
    for compiled in (False, True):
        settings = {{"epochs": 3, "batch_size": 20, "compile": compiled}}
        folder = Path({str(tmp_path)!r}) / f"{{name}}-{{compiled}}"
        test_training.run(folder, kind, settings, config=config)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)
    assert distance(weights(tmp_path / "prior-True"), weights(tmp_path / "prior-False")) < 1e-5
    # the noise in the dictionary and of the dropout is another one, compiled
    for name in ("vq-vae", "loop-transformer"):
        plain, compiled = (
            json.loads((tmp_path / f"{name}-{c}" / HISTORY).read_text())["history"]
            for c in (False, True)
        )
        assert compiled[-1]["nats"] < compiled[0]["nats"]
        assert compiled[-1]["nats"] == pytest.approx(plain[-1]["nats"], rel=0.1)


# Several processes.

TOGETHER = """
import sys
from pathlib import Path

import torch
from tests.midiloop.training import test_training
from midiloop.common import devices
from midiloop.errors import CallError, LoopError

out = Path(sys.argv[1])
torch.set_num_threads(1)


def train(name, kind, settings, config, resume=False):
    made = test_training.objective(kind, config=config)
    test_training.run(out / name, kind, settings, made=made, resume=resume)
    torch.save(made.model.state_dict(), out / f"{name}-{devices.rank()}.pt")


with devices.processes(torch.device("cpu")):
    assert devices.world() == 2
    train("prior", "prior", test_training.TOGETHER_SETTINGS, test_training.PLAIN_PRIOR)
    train("vq-vae", "vq-vae", test_training.TOGETHER_SETTINGS, None)
    test_training.interrupt_together(lambda resume: train("parts", "vq-vae",
                                test_training.TOGETHER_SETTINGS, None, resume))
    try:
        own = f"own-{devices.rank()}"
        train(own, "prior", test_training.TOGETHER_SETTINGS, test_training.PLAIN_PRIOR, True)
    except LoopError as error:
        sys.stdout.write(f"{error}\\n")  # one call, so that lines of two processes stay apart
    try:
        train("odd", "prior", {"batch_size": 33}, test_training.PLAIN_PRIOR)
    except CallError as error:
        sys.stdout.write(f"{error}\\n")
"""
TOGETHER_SETTINGS: dict[str, Any] = {
    "epochs": 4, "batch_size": 32, "micro_batch_size": 8, "learning_rate": 1e-2, "transpose": 2,
}  # fmt: skip


def interrupt_together(train: Callable[[bool], None]) -> None:
    """Stop all processes at the same step, and let them go on."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 2)
        try:
            train(False)
        except Interrupted:
            pass
        else:
            raise AssertionError
    torch.distributed.barrier()  # the first has yet to write when the other is through
    train(True)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes trained, and the weights that each of them ended with."""
    folder = tmp_path_factory.mktemp("together")
    run_until(2, folder / "own-0", "prior", settings=TOGETHER_SETTINGS, config=PLAIN_PRIOR)
    stdout = run_together(TOGETHER, folder, timeout_s=120)
    (folder / "stdout").write_text(stdout)
    return folder


def ended(folder: Path, name: str, rank: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / f"{name}-{rank}.pt", weights_only=True)
    return found


def test_two_processes_train_to_the_weights_of_one(together: Path, tmp_path: Path) -> None:
    alone = run(tmp_path, "prior", TOGETHER_SETTINGS, config=PLAIN_PRIOR)
    assert distance(weights(together / "prior"), weights(tmp_path)) < 1e-5
    history = json.loads((together / "prior" / HISTORY).read_text())["history"]
    for name in ("loss", "nats", "error"):
        expected = [record[name] for record in alone.history]
        assert [record[name] for record in history] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["prior", "vq-vae", "parts"])
def test_processes_end_with_the_same_weights_and_the_first_wrote_them(
    name: str, together: Path
) -> None:
    first, second = ended(together, name, 0), ended(together, name, 1)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert {path.name for path in (together / name).iterdir()} == {
        "config.json",
        HISTORY,
        WEIGHTS,
    }
    found = json.loads((together / name / HISTORY).read_text())
    if found["best"] == found["history"][-1]["error"]:
        assert distance(weights(together / name), first) == 0
    # what was kept has the error that all of them measured together
    kind = "prior" if name == "prior" else "vq-vae"
    kept = Objective(models.load(together / name).model, objective(kind)._codec[0])
    error = float(kept.errors(VALID.rolls(slice(None))).double().mean())
    assert error == pytest.approx(found["best"], rel=1e-6)


def test_processes_that_were_interrupted_end_as_those_that_were_not(together: Path) -> None:
    assert contents(together / "parts") == contents(together / "vq-vae")


def test_processes_that_cannot_work_together_say_so(together: Path) -> None:
    lines = (together / "stdout").read_text().splitlines()
    assert len(lines) == 4, lines
    assert sum("2 processes cannot share it evenly" in line for line in lines) == 2, lines
    assert not (together / "odd").exists()
    # as on two machines that share no disk, of which one has nothing to resume from
    assert sum("processes find different states" in line for line in lines) == 2, lines
