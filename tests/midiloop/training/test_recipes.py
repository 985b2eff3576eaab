"""What ``midiloop train`` does: the stages of a model, and what it says of errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import torch

from handmade import WALTZ, groove
from midiloop import models
from midiloop.common import checkpoint
from midiloop.common.engine import Inline
from midiloop.common.train_config import Budget
from midiloop.dataset import tensors
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError
from midiloop.generation import outputs, sample
from midiloop.grid import LOOP, Drum, Grid, TimeSignature
from midiloop.midi import score
from midiloop.mining import extract
from midiloop.models.loop_transformer import LoopTransformerConfig
from midiloop.models.prior import Prior, PriorConfig
from midiloop.models.vq_vae import VQVAE, VQVAEConfig
from midiloop.training import recipes
from midiloop_cli.main import midiloop

CPU = torch.device("cpu")
BUDGET = Budget(epochs=2)
SETTINGS = replace(recipes.CONFIG, batch_size=16, micro_batch_size=16)
TINY: dict[str, dict[str, Any]] = {
    "vq-vae": {
        "small": VQVAEConfig(channels=8, embed_channels=8, codebook_size=16),
    },
    "prior": {
        "small": PriorConfig(codebook_size=16, embed_dim=8, hidden=8),
    },
    "loop-transformer": {
        "small": LoopTransformerConfig(dim=16, layers=1, heads=2, token_dim=8, token_layers=1),
    },
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets that train in a moment."""
    for model, presets in TINY.items():
        for name, config in presets.items():
            monkeypatch.setitem(models.PRESETS[model], name, config)


def trained(dataset: LoopDataset, out: Path, **more: Any) -> list[recipes.Trained]:
    more = {"model": "vq-vae", "preset": "small", "device": CPU, **more}
    budget, config = more.pop("budget", BUDGET), more.pop("config", SETTINGS)
    return recipes.run(more.pop("model"), dataset, out, budget, config, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# A run.


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("model", "stages"), [("vq-vae", ("vq-vae", "prior")), ("loop-transformer", None)]
)
def test_the_stages_of_a_preset_leave_their_checkpoints(
    model: str, stages: tuple[str, ...] | None, dataset: LoopDataset, tmp_path: Path
) -> None:
    names = stages or (model,)
    once = replace(SETTINGS, batch_size=32, micro_batch_size=32)
    done = trained(dataset, tmp_path / "run", model=model, budget=Budget(epochs=1), config=once)
    found_names = {path.name for path in (tmp_path / "run").iterdir()}
    assert found_names == {*names, "fingerprints.safetensors"}
    assert [stage.folder for stage in done] == [tmp_path / "run" / name for name in names]
    for stage in done:
        found = models.load(stage.folder)
        assert found.kind == stage.folder.name
        assert found.model.config == models.PRESETS[found.kind]["small"]
        assert found.about["data"]["rules"] == "open"
        assert found.about["data"]["counts"] == dataset.manifest["counts"]
        assert found.about["settings"]["epochs"] == 1
        assert found.about["validation_error"] == stage.result.best
        assert json.loads(json.dumps(stage.as_json()))["epochs"] == 1
        assert {path.name for path in stage.folder.iterdir()} == {
            "config.json",
            "model.safetensors",
            "training.json",
        }


@pytest.mark.usefixtures("tiny")
def test_fingerprints_are_those_of_every_distinct_loop(
    dataset: LoopDataset, tmp_path: Path
) -> None:
    trained(dataset, tmp_path / "run")
    found, _ = checkpoint.read_tensors(tmp_path / "run" / recipes.FINGERPRINTS)
    known = found["loops"].numpy().view(np.uint64)
    batches = dataset.select(distinct=True)  # of all splits: what is novel is in none of them
    expected = [LOOP.fingerprints(LOOP.pack(batch.rolls)) for batch in batches]
    np.testing.assert_array_equal(known, np.sort(np.concatenate(expected)))
    assert len(known) == dataset.manifest["counts"]["distinct_loops"]


@pytest.mark.usefixtures("tiny")
def test_one_stage_after_the_other_is_both_at_once(dataset: LoopDataset, tmp_path: Path) -> None:
    both = trained(dataset, tmp_path / "both")
    apart = [
        *trained(dataset, tmp_path / "apart", only="vq-vae"),
        *trained(dataset, tmp_path / "apart", only="prior"),
    ]
    assert [stage.result for stage in apart] == [stage.result for stage in both]
    assert contents(tmp_path / "apart") == contents(tmp_path / "both")


@pytest.mark.usefixtures("tiny")
def test_to_resume_a_finished_run_changes_no_byte(dataset: LoopDataset, tmp_path: Path) -> None:
    first = trained(dataset, tmp_path / "run")
    before = contents(tmp_path / "run")
    again = trained(dataset, tmp_path / "run", resume=True)
    assert again == first
    assert contents(tmp_path / "run") == before


class Interrupted(Exception):  # noqa: N818 - no error
    """What a test stops a run with."""


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("place", ["encoded", "write_fingerprints"])
def test_a_run_that_is_interrupted_between_its_stages_ends_as_one_that_is_not(
    place: str, dataset: LoopDataset, tmp_path: Path
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Interrupted

    trained(dataset, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, place, stop)
        with pytest.raises(Interrupted):
            trained(dataset, tmp_path / "parts")
    trained(dataset, tmp_path / "parts", resume=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("tiny")
def test_a_prior_knows_how_often_each_code_starts_a_loop(
    dataset: LoopDataset, tmp_path: Path
) -> None:
    trained(dataset, tmp_path / "run", preset="small")
    codec = models.load(tmp_path / "run" / "vq-vae").model
    prior = models.load(tmp_path / "run" / "prior").model
    assert isinstance(codec, VQVAE)
    assert isinstance(prior, Prior)
    loops = tensors.load(dataset, "train", CPU)
    codes = codec.encode(loops.rolls(slice(None)))
    assert torch.equal(recipes.encoded(codec, loops), codes)
    assert prior.start_counts.tolist() == codes[:, 0].bincount(minlength=16).tolist()


@pytest.mark.usefixtures("tiny")
def test_repeats_are_learned_from_as_often_as_they_come(
    dataset: LoopDataset, tmp_path: Path
) -> None:
    for name, distinct in {"once": True, "repeats": False}.items():
        trained(dataset, tmp_path / name, distinct=distinct, only="vq-vae")
        n = len(tensors.load(dataset, "train", CPU, distinct=distinct))
        begun = json.loads((tmp_path / name / "vq-vae" / "training.json").read_text())
        assert begun["step"] == 2 * (n // 16)
    weights = [
        (tmp_path / n / "vq-vae" / "model.safetensors").read_bytes() for n in ("once", "repeats")
    ]
    assert weights[0] != weights[1]


# What cannot be trained.

CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "no such model": ({"model": "gan"}, "no model is called 'gan'; choose from"),
    "no such preset": ({"preset": "huge"}, "vq-vae has no preset 'huge'; choose from"),
    "a preset of another model": (
        {"model": "cnn-vae", "preset": "full"},
        "cnn-vae has no preset 'full'; choose from paper, small",
    ),
    "a stage of another model": (
        {"model": "cnn-vae", "preset": "small", "only": "prior"},
        "cnn-vae has no stage 'prior'; it has cnn-vae",
    ),
}


@pytest.mark.parametrize(("call", "says"), CALLS.values(), ids=CALLS)
def test_what_is_not_there_is_named_beside_what_is(
    call: dict[str, Any], says: str, dataset: LoopDataset, tmp_path: Path
) -> None:
    with pytest.raises(CallError) as bad:
        trained(dataset, tmp_path / "run", **call)
    assert str(bad.value).startswith(says)
    assert "\n" not in str(bad.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("tiny")
def test_a_prior_wants_its_first_stage(dataset: LoopDataset, tmp_path: Path) -> None:
    with pytest.raises(LoopError, match="train it first, with --stage vq-vae") as bad:
        trained(dataset, tmp_path / "run", only="prior")
    assert str(bad.value).startswith(f"{tmp_path / 'run' / 'vq-vae'}: ")
    assert "\n" not in str(bad.value)
    trained(dataset, tmp_path / "run", only="vq-vae", preset="small")
    with pytest.raises(CallError, match="another preset"):
        trained(dataset, tmp_path / "run", only="prior", preset="paper")
    shutil.copytree(tmp_path / "run", tmp_path / "odd")
    cnn = models.build("cnn-vae", models.PRESETS["cnn-vae"]["small"])
    checkpoint.save_model(tmp_path / "odd" / "vq-vae", "cnn-vae", cnn, {})
    with pytest.raises(LoopError, match="holds a cnn-vae"):
        trained(dataset, tmp_path / "odd", only="prior", preset="small")
    (tmp_path / "run" / "vq-vae" / "model.safetensors").unlink()
    with pytest.raises(LoopError, match="no such file"):
        trained(dataset, tmp_path / "run", only="prior", preset="small")


# Shipped.


@pytest.mark.usefixtures("tiny")
def test_a_packed_run_is_the_same_in_16_bits(dataset: LoopDataset, tmp_path: Path) -> None:
    trained(dataset, tmp_path / "run")
    recipes.pack(tmp_path / "run", tmp_path / "packed")
    whole, packed = contents(tmp_path / "run"), contents(tmp_path / "packed")
    assert packed.keys() == {name for name in whole if not name.endswith("training.json")}
    assert packed[recipes.FINGERPRINTS] == whole[recipes.FINGERPRINTS]
    for stage in ("vq-vae", "prior"):
        one, other = (models.load(tmp_path / n / stage) for n in ("run", "packed"))
        said = [{**about, checkpoint.SHA256: ""} for about in (one.about, other.about)]
        assert said[0] == said[1]
        for name, tensor in one.model.state_dict().items():
            found = other.model.state_dict()[name]
            torch.testing.assert_close(found, tensor, rtol=1e-3, atol=1e-4)
    with pytest.raises(CallError, match="exists already"):
        recipes.pack(tmp_path / "run", tmp_path / "packed")


def test_what_is_no_run_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match="no such file") as bad:
        recipes.pack(tmp_path / "none", tmp_path / "packed")
    assert "\n" not in str(bad.value)
    assert not (tmp_path / "packed").exists()


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("old", "new"):
        model = models.build("cnn-vae", models.PRESETS["cnn-vae"]["small"])
        checkpoint.save_model(tmp_path / name, "cnn-vae", model, {"name": name})
    return tmp_path / "old", tmp_path / "new"


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_mixed_weights_lie_between_those_of_two_runs(
    two_runs: tuple[Path, Path], share: float, tmp_path: Path
) -> None:
    old, new = two_runs
    checkpoint.mix(new, old, share, tmp_path / "mixed", models.KINDS)
    mixed = models.load(tmp_path / "mixed")
    one, other = (models.load(run).model.state_dict() for run in (new, old))
    for name, tensor in mixed.model.state_dict().items():
        expected = share * one[name].float() + (1 - share) * other[name].float()
        torch.testing.assert_close(tensor.float(), expected, rtol=1e-3, atol=1e-4)
    assert mixed.about["name"] == "new"
    assert mixed.about["share"] == share


def test_what_cannot_be_mixed(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = two_runs
    small = models.build("vq-vae", models.PRESETS["vq-vae"]["small"])
    checkpoint.save_model(tmp_path / "odd", "vq-vae", small, {})
    out = tmp_path / "mixed"
    for run, share, cause in (
        (tmp_path / "odd", 0.5, "same kind"),
        (new, 1.1, "give 0 to 1"),
        (new, float("nan"), "give 0 to 1"),
    ):
        with pytest.raises(CallError, match=cause):
            checkpoint.mix(run, old, share, out, models.KINDS)
        assert not out.exists()
    with pytest.raises(CallError, match="exists already"):
        checkpoint.mix(new, old, 0.5, new, models.KINDS)


# The command.


def call(*args: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(midiloop, ["train", *map(str, args)])


@pytest.mark.usefixtures("tiny")
def test_the_command_trains_resumes_and_reports(dataset: LoopDataset, tmp_path: Path) -> None:
    args = ["vq-vae", dataset.path, "-o", tmp_path / "run", "--preset", "small"]
    args += ["--epochs", 2, "--batch-size", 16, "--device", "cpu"]
    done = call(*args)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'run' / 'vq-vae'}: 2 epochs, lowest validation")
    assert "reconstruction error" in lines[0]
    assert "nats a loop" in lines[1]
    before = contents(tmp_path / "run")
    again = call(*args, "--resume", "--json")
    assert again.exit_code == 0
    found = json.loads(again.stdout)
    assert found.keys() == {"vq-vae", "prior"}
    assert len(found["prior"]["history"]) == 2
    assert contents(tmp_path / "run") == before
    assert train_directly(dataset, tmp_path / "library") == before


def train_directly(dataset: LoopDataset, out: Path) -> dict[str, bytes]:
    trained(dataset, out, config=replace(recipes.CONFIG, batch_size=16))
    return contents(out)


@pytest.mark.usefixtures("tiny")
def test_the_command_writes_event_files_where_it_says(dataset: LoopDataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    args = [dataset.path, "-o", tmp_path / "run", "--preset", "small", "--epochs", 1]
    assert call("vq-vae", *args, "--tensorboard").exit_code == 0
    for stage in ("vq-vae", "prior"):
        assert list((tmp_path / "run" / stage / "events").iterdir())


# What is kept must be what was asked.


@pytest.mark.usefixtures("tiny")
def test_a_run_does_not_go_on_with_another_dataset_of_the_same_size(
    dataset: LoopDataset, reordered: LoopDataset, tmp_path: Path
) -> None:
    assert len(dataset) == len(reordered)
    trained(dataset, tmp_path / "run")
    before = contents(tmp_path)
    for more, says in (
        ({"dataset": reordered}, "another dataset"),
        ({"dataset": dataset, "distinct": False}, "repeats False, not True"),
    ):
        with pytest.raises(CallError, match=f"the run was begun with .*{says}; resume it as"):
            trained(out=tmp_path / "run", resume=True, **more)
    assert contents(tmp_path) == before
    trained(dataset, tmp_path / "run", resume=True)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("tiny")
def test_a_prior_does_not_go_on_with_the_codes_of_another_vq_vae(
    dataset: LoopDataset, tmp_path: Path
) -> None:
    trained(dataset, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "vq-vae")
    trained(dataset, tmp_path / "run", only="vq-vae", config=replace(SETTINGS, seed=5))
    with pytest.raises(CallError, match="begun with another VQ-VAE"):
        trained(dataset, tmp_path / "run", only="prior", resume=True)


@pytest.mark.usefixtures("tiny")
def test_a_card_says_which_dataset_and_which_codes(dataset: LoopDataset, tmp_path: Path) -> None:
    trained(dataset, tmp_path / "run")
    for stage in ("vq-vae", "prior"):
        about = checkpoint.read_config(tmp_path / "run" / stage)
        assert about["data"]["fingerprint"] == dataset.fingerprint
    assert about["codec"] == checkpoint.identity(tmp_path / "run" / "vq-vae")


# What can be known at the start is checked there.


@pytest.mark.usefixtures("tiny")
def test_a_run_of_a_later_stage_is_seen_before_the_first_is_trained(
    dataset: LoopDataset, tmp_path: Path
) -> None:
    trained(dataset, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "vq-vae")
    with pytest.raises(CallError, match=r"run/prior: a run is there already"):
        trained(dataset, tmp_path / "run")
    assert not (tmp_path / "run" / "vq-vae").exists()


BEAT_OF_THREE = TimeSignature(3, 4)
TOO_MANY_DRUMS = tuple(Drum(f"drum {pitch}", pitch, (pitch,)) for pitch in range(35, 48))


@pytest.mark.parametrize(
    ("model", "grid", "said"),
    [
        ("vq-vae", Grid(1, 2, meter=BEAT_OF_THREE), "6 steps cannot be halved 2 times"),
        ("cnn-vae", Grid(1, 4, meter=BEAT_OF_THREE), "12 steps cannot be halved three times"),
        ("ar-lstm-vae", Grid(1, 100), "steps_per_beat is 100, and not a whole number from 1"),
        ("loop-transformer", Grid(1, 96), "96 steps a beat are over 48"),
        ("loop-transformer", Grid(1, drums=TOO_MANY_DRUMS), "drums is 13, and not a whole number"),
    ],
)
def test_a_grid_that_a_model_cannot_take_is_refused_before_anything_is_learned(
    model: str, grid: Grid, said: str, tmp_path: Path
) -> None:
    loops = outputs.write(
        np.zeros((2, grid.steps, grid.columns), np.bool_), tmp_path / "new", tempo_bpm=120, seed=0,
        about={"run": "here"}, grid=grid,
    ).dataset  # fmt: skip
    done = call(model, loops, "-o", tmp_path / "run")
    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    assert said in done.output
    assert "extract other --bars" in done.output
    assert not (tmp_path / "run").exists()


def test_stages_are_on_the_grid_of_the_loops() -> None:
    for model in recipes.MODELS:
        for stage in recipes.stages(model, grid=WALTZ):
            if isinstance(stage.config, PriorConfig):
                assert stage.config.code_steps == 18
            else:
                assert (stage.config.steps, stage.config.steps_per_pulse) == (72, 6)
                assert stage.config.on(LOOP) == recipes.stages(model)[0].config


@pytest.mark.usefixtures("tiny")
def test_a_run_names_a_grid_of_its_own_alone(
    dataset: LoopDataset, waltzes: LoopDataset, tmp_path: Path
) -> None:
    for name, loops in (("usual", dataset), ("waltz", waltzes)):
        trained(loops, tmp_path / name, model="loop-transformer", budget=Budget(epochs=1))
        generator = sample.load(tmp_path / name)
        assert generator.grid == loops.grid
        data = checkpoint.read_config(tmp_path / name / "loop-transformer")["data"]
        assert ("grid" in data) == (name == "waltz")
    with pytest.raises(LoopError, match="bars 4, not 8; meter 3/4, not 4/4"):
        sample.held_out_error(sample.load(tmp_path / "usual"), waltzes.path, "test")
    error, nats = sample.held_out_error(generator, waltzes.path, "test")
    assert (error, nats > 0) == ("nats_per_loop", True)


@pytest.mark.usefixtures("tiny")
def test_a_prior_is_of_the_codes_of_its_own_grid(
    dataset: LoopDataset, waltzes: LoopDataset, tmp_path: Path
) -> None:
    trained(dataset, tmp_path / "run", only="vq-vae")
    with pytest.raises(LoopError, match="another preset"):
        trained(waltzes, tmp_path / "run", only="prior")


BAD: dict[str, tuple[list[str], int, str]] = {
    "no dataset": (["vq-vae", "{out}", "-o", "{out}/run"], 1, "midiloop extract"),
    "a missing dataset": (["vq-vae", "{out}/none", "-o", "{out}/run"], 2, "no such file or folder"),
    "no cuda": (["vq-vae", "{loops}", "-o", "{out}/run", "--device", "cuda"], 2, "--device cpu"),
    "no mps": (["vq-vae", "{loops}", "-o", "{out}/run", "--device", "mps"], 2, "--device cpu"),
    "out in no folder": (["vq-vae", "{loops}", "-o", "{out}/none/run"], 2, "make it first"),
    "out is a file": (["vq-vae", "{loops}", "-o", "{out}/file"], 2, "name of a folder"),
    "a stage of out is a file": (["cnn-vae", "{loops}", "-o", "{out}/odd"], 2, "cnn-vae"),
    "no out": (["vq-vae", "{loops}"], 2, "--out"),
    "no such model": (["gan", "{loops}", "-o", "{out}/run"], 2, "gan"),
    "no such preset": (["cnn-vae", "{loops}", "-o", "{out}/run", "--preset", "full"], 2, "small"),
    "no first stage": (["vq-vae", "{loops}", "-o", "{out}/run", "--stage", "prior"], 1, "first"),
    "no epochs": (["vq-vae", "{loops}", "-o", "{out}/run", "--epochs", "0"], 2, "--epochs"),
    "a learning rate below zero": (
        ["vq-vae", "{loops}", "-o", "{out}/run", "--learning-rate", "-1"],
        2,
        "learning-rate -1.0",
    ),
    "a learning rate that is none": (
        ["vq-vae", "{loops}", "-o", "{out}/run", "--learning-rate", "nan"],
        2,
        "learning-rate nan",
    ),
    "a seed too large": (
        ["vq-vae", "{loops}", "-o", "{out}/run", "--seed", "99999999999999999999"],
        2,
        "seed",
    ),
}


@pytest.mark.parametrize(("args", "code", "says"), BAD.values(), ids=BAD)
def test_what_the_command_cannot_do_is_one_line(
    args: list[str], code: int, says: str, dataset: LoopDataset, tmp_path: Path
) -> None:
    if ("cuda" in args and torch.cuda.is_available()) or (
        "mps" in args and torch.backends.mps.is_available()
    ):
        pytest.skip("the device is there")
    (tmp_path / "file").write_text("")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "cnn-vae").write_text("")
    before = contents(tmp_path)
    done = call(*(arg.format(loops=dataset.path, out=tmp_path) for arg in args))
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("midiloop: error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert contents(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_a_split_without_loops_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "one.mid").write_bytes(score.to_bytes(groove(8)))
    extract.run([tmp_path / "one.mid"], tmp_path / "loops", engine=Inline())
    command = [sys.executable, "-m", "midiloop_cli", "train", "cnn-vae", "loops", "-o", "run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("midiloop: error: loops: no loop is in the ")
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("tiny")
def test_a_run_that_is_there_is_one_line(dataset: LoopDataset, tmp_path: Path) -> None:
    trained(dataset, tmp_path / "run", only="vq-vae")
    args = ["vq-vae", dataset.path, "-o", tmp_path / "run", "--preset", "small", "--device", "cpu"]
    for more, says in {
        (): "--resume",
        ("--resume",): "epochs 2, not 20",
    }.items():
        done = call(*args, *more)
        assert done.exit_code == 2
        assert done.stderr.count("\n") == 1
        assert says in done.stderr
