"""Checkpoints: what is written is what is read, damage is named, and nothing is unpickled."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from midiloop import models
from midiloop.common import checkpoint
from midiloop.common.files import digest
from midiloop.errors import LoopError
from midiloop.models.layers import Model
from midiloop.models.prior import PriorConfig
from midiloop.models.vq_vae import VQVAEConfig
from paths import ROOT

SMALL = {
    **{kind: presets["small"] for kind, presets in models.PRESETS.items()},
}
TINY = PriorConfig(codebook_size=16, embed_dim=8, hidden=8, layers=1)
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(8)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The checkpoint of a tiny prior."""
    folder = tmp_path / "prior"
    checkpoint.save_model(folder, "prior", models.build("prior", TINY), {"epoch": 3})
    return folder


def shuffled(kind: str, config: Any) -> Model:
    """A model whose buffers, too, are not what they are when it is built."""
    model = models.build(kind, config)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand_like(tensor, dtype=torch.float32) * 100)
    return model


def test_every_kind_is_there() -> None:
    assert SMALL.keys() == models.KINDS.keys()


@pytest.mark.parametrize("kind", SMALL)
def test_a_model_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = shuffled(kind, SMALL[kind])
    about = {"epoch": 7, "data": {"rules": "open", "of": ["é"]}}
    checkpoint.save_model(tmp_path / "a" / "b", kind, model, about)
    found = models.load(tmp_path / "a" / "b")
    assert found.kind == kind
    assert found.model.config == model.config
    assert not found.model.training
    assert found.about.items() >= about.items()
    old, new = model.state_dict(), found.model.state_dict()
    assert list(old) == list(new)
    for name, tensor in old.items():
        assert torch.equal(tensor, new[name]), name
        assert tensor.dtype == new[name].dtype
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("kind", SMALL)
def test_half_precision_halves_the_file_and_loads(kind: str, tmp_path: Path) -> None:
    model = shuffled(kind, SMALL[kind])
    checkpoint.save_model(tmp_path / "whole", kind, model, {})
    checkpoint.save_model(tmp_path / "half", kind, model, {}, half=True)
    whole, half = ((tmp_path / name / WEIGHTS).stat().st_size for name in ("whole", "half"))
    # integers stay what they are, and so do the names and places of the tensors
    integers = sum(t.nbytes for t in model.state_dict().values() if not t.is_floating_point())
    assert half < whole / 2 + integers + 120 * len(model.state_dict())
    for name, tensor in models.load(tmp_path / "half").model.state_dict().items():
        assert tensor.dtype == model.state_dict()[name].dtype
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_what_16_bits_cannot_hold_stays_whole(tmp_path: Path) -> None:
    model = models.build("prior", TINY)
    model.state_dict()["head.bias"][0] = 1e6
    checkpoint.save_model(tmp_path, "prior", model, {}, half=True)
    found = models.load(tmp_path).model.state_dict()
    assert torch.equal(found["head.bias"], model.state_dict()["head.bias"])


def test_tensors_and_what_is_said_of_them_are_one_file(tmp_path: Path) -> None:
    tensors = {"a.b": torch.arange(5), "c": torch.tensor([[float("-inf")], [0.1]])}
    about = {"step": 3, "best": 0.1 + 0.2, "history": [{"é": None}]}
    checkpoint.write_tensors(tmp_path / "x.safetensors", tensors, about)
    found, said = checkpoint.read_tensors(tmp_path / "x.safetensors")
    assert said == about
    assert all(torch.equal(found[name], tensors[name]) for name in tensors | found)
    checkpoint.write_tensors(tmp_path / "x.safetensors", tensors)
    assert checkpoint.read_tensors(tmp_path / "x.safetensors")[1] is None


# What cannot be read.


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return put


def cut(name: str, share: float) -> Callable[[Path], None]:
    def shorten(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return shorten


def say(**changes: Any) -> Callable[[Path], None]:
    """Change what config.json says; None takes an entry out."""

    def change(folder: Path) -> None:
        said = {**json.loads((folder / CONFIG).read_text()), **changes}
        said = {name: value for name, value in said.items() if value is not None}
        (folder / CONFIG).write_text(json.dumps(said))

    return change


def say_config(**changes: Any) -> Callable[[Path], None]:
    config = {**asdict(TINY), **changes}
    return say(config={name: value for name, value in config.items() if value is not None})


def other_weights(folder: Path) -> None:
    other = models.build("vq-vae", VQVAEConfig(channels=4, embed_channels=4, codebook_size=8))
    checkpoint.write_tensors(folder / WEIGHTS, other.state_dict())


def one_weight_less(folder: Path) -> None:
    tensors, _ = checkpoint.read_tensors(folder / WEIGHTS)
    del tensors["head.bias"]
    checkpoint.write_tensors(folder / WEIGHTS, tensors)


def another_shape(folder: Path) -> None:
    tensors, _ = checkpoint.read_tensors(folder / WEIGHTS)
    tensors["head.bias"] = tensors["head.bias"][:-1]
    checkpoint.write_tensors(folder / WEIGHTS, tensors)


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no config": (remove(CONFIG), "", "train"),
    "an empty config": (write(CONFIG, b""), CONFIG, "train it again"),
    "half a config": (cut(CONFIG, 0.5), CONFIG, "train it again"),
    "a config that is no text": (write(CONFIG, b"\xff\xfe\0"), CONFIG, "train it again"),
    "a config that is a list": (write(CONFIG, b"[1]"), CONFIG, "not an object"),
    "another format": (say(format="midiloop-loops"), CONFIG, "not a checkpoint"),
    "no format": (say(format=None), CONFIG, "not a checkpoint"),
    "another version": (say(format_version=99), CONFIG, "version 99, this midiloop reads 1"),
    "no version": (say(format_version=None), CONFIG, "train it again"),
    "another kind": (say(kind="gan"), CONFIG, "no model is called 'gan'"),
    "no kind": (say(kind=None), CONFIG, "train it again"),
    "a kind that is a list": (say(kind=["prior"]), CONFIG, "train it again"),
    "no config of the model": (say(config=None), CONFIG, "train it again"),
    "a config of the model that is a number": (say(config=5), CONFIG, "train it again"),
    "the config of another kind": (say(kind="vq-vae"), CONFIG, "another version"),
    "a field more": (say_config(width=3), CONFIG, "width"),
    "a field less": (say_config(hidden=None), CONFIG, "hidden"),
    "a size in words": (say_config(hidden="many"), CONFIG, "train it again"),
    "a size below zero": (say_config(hidden=-8), CONFIG, "train it again"),
    "no weights": (remove(WEIGHTS), WEIGHTS, "copy the whole folder"),
    "empty weights": (write(WEIGHTS, b""), WEIGHTS, "copy the file again"),
    "weights that are none": (write(WEIGHTS, b"{}" * 500), WEIGHTS, "copy the file again"),
    "weights cut in the header": (cut(WEIGHTS, 0.01), WEIGHTS, "copy the file again"),
    "weights cut at a quarter": (cut(WEIGHTS, 0.25), WEIGHTS, "copy the file again"),
    "weights cut near the end": (cut(WEIGHTS, 0.999), WEIGHTS, "copy the file again"),
    "weights of another model": (other_weights, WEIGHTS, "copy both files again"),
    "a weight less": (one_weight_less, WEIGHTS, "head.bias"),
    "a weight of another shape": (another_shape, WEIGHTS, "head.bias"),
    "weights for another size": (say_config(hidden=9), WEIGHTS, "copy both files again"),
}


@pytest.mark.parametrize(("damage", "file", "says"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_line_with_path_cause_and_remedy(
    damage: Callable[[Path], None], file: str, says: str, saved: Path
) -> None:
    damage(saved)
    with pytest.raises(LoopError) as bad:
        models.load(saved)
    message = str(bad.value)
    assert message.startswith(f"{saved / file}: ")
    assert says in message
    assert "; " in message
    assert "\n" not in message


def test_no_folder_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match=r"none: no config\.json; give a folder"):
        models.load(tmp_path / "none")


def test_what_is_said_of_tensors_may_be_damaged_too(tmp_path: Path) -> None:
    from safetensors.torch import save

    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.zeros(1)}, {"about": "{"}))
    with pytest.raises(LoopError, match="copy the file again"):
        checkpoint.read_tensors(path)


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_leaves_what_was_there(
    failing: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save_model(saved, "prior", models.build("prior", TINY), {"epoch": 4})
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert models.load(saved).about["epoch"] == 3


# Weights are those that were saved.


@pytest.mark.parametrize("half", [False, True])
def test_every_byte_of_the_weights_that_changes_is_noticed(half: bool, tmp_path: Path) -> None:
    checkpoint.save_model(tmp_path, "prior", models.build("prior", TINY), {}, half=half)
    data = (tmp_path / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    rng = torch.Generator().manual_seed(4)
    for at in torch.randint(start, len(data), (30,), generator=rng).tolist():
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        (tmp_path / WEIGHTS).write_bytes(flipped)
        with pytest.raises(LoopError, match=r"SHA-256 is not the one that .*; copy both") as bad:
            models.load(tmp_path)
        assert str(bad.value).startswith(f"{tmp_path / WEIGHTS}: ")
    (tmp_path / WEIGHTS).write_bytes(data)
    models.load(tmp_path)


def test_weights_of_another_run_of_the_same_sizes_are_noticed(saved: Path) -> None:
    checkpoint.write_tensors(saved / WEIGHTS, models.build("prior", TINY).state_dict())
    with pytest.raises(LoopError, match="SHA-256 is not the one"):
        models.load(saved)


def test_a_checkpoint_of_before_hashes_is_read(saved: Path) -> None:
    say(**{checkpoint.SHA256: None})(saved)
    assert models.load(saved).about["epoch"] == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("half", [False, True])
def test_weights_that_are_not_finite_are_one_line(value: float, half: bool, saved: Path) -> None:
    model = models.build("prior", TINY)
    model.state_dict()["head.weight"][1, 1] = value
    checkpoint.save_model(saved, "prior", model, {}, half=half)
    with pytest.raises(LoopError, match=r"not finite, in head.weight; copy the file again"):
        models.load(saved)


def test_a_header_that_is_too_long_is_not_read(saved: Path) -> None:
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes((1 << 40).to_bytes(8, "little") + data[8:])
    with pytest.raises(LoopError, match="a header of over 16 MiB; copy"):
        models.load(saved)


def test_an_identity_is_of_config_and_weights(saved: Path, tmp_path: Path) -> None:
    known = checkpoint.identity(saved)
    say(epoch=5)(saved)
    assert checkpoint.identity(saved) == known
    say_config(dropout=0.5)(saved)
    assert checkpoint.identity(saved) != known
    other = tmp_path / "other"
    checkpoint.save_model(other, "prior", models.build("prior", TINY), {})
    assert checkpoint.identity(other) != known


def test_the_models_that_ship_name_their_hashes() -> None:
    shipped = [*ROOT.glob("*/pretrained/*/config.json")]
    assert len(shipped) == 6
    for path in shipped:
        about = checkpoint.read_config(path.parent)
        assert about[checkpoint.SHA256] == digest(path.parent / WEIGHTS)


# Nothing is unpickled.

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def unpickles(source: str) -> list[str]:
    """What in a module could run code out of a file that it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names} - {
                "UnpicklingError"
            }  # which reads nothing
            if (node.module or "").split(".")[0] in UNPICKLERS and names:
                found.append(str(node.module))
        elif isinstance(node, ast.Call):
            call = ast.unparse(node)
            given = {key.arg: ast.unparse(key.value) for key in node.keywords}
            is_torch_load = ast.unparse(node.func) in ("torch.load", "torch.jit.load")
            if is_torch_load and given.get("weights_only") != "True":
                found.append(call)
            if given.get("allow_pickle", "False") != "False":
                found.append(call)
            if ast.unparse(node.func).endswith("read_pickle"):
                found.append(call)
    return found


def test_nothing_in_the_project_unpickles() -> None:
    folders = ("midiloop", "audioloop", "cli", "examples", "datasets")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 30
    found = {str(path): unpickles(path.read_text()) for path in files}
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import pandas as pd\npd.read_pickle('x')",
    ],
)
def test_what_unpickles_would_be_found(source: str) -> None:
    assert unpickles(source)


@pytest.mark.parametrize(
    "source", ["import torch\ntorch.load('x', weights_only=True)", "np.load('x')", "json.load(f)"]
)
def test_what_does_not_is_left_alone(source: str) -> None:
    assert not unpickles(source)
