"""Checkpoints: a folder with ``config.json`` and ``model.safetensors``. Nothing is unpickled.

``config.json`` holds the model's kind and config, the SHA-256 of its weights, and whatever the
trainer wants to be known of where the weights come from. Checkpoints come from other people too:
sizes are compared with what the weights' header says before anything is built of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from midiloop.common import configs, devices, files
from midiloop.errors import CallError, LoopError

FORMAT = "midiloop-checkpoint"
FORMAT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SHA256 = "weights_sha256"  # where config.json says it
MAX_HEADER_BYTES = 16 << 20  # of a file of tensors
REMEDY = "copy the file again, or train it again"  # of one that is damaged


class Kind(NamedTuple):
    """A kind of model.

    Attributes:
        model: the network's class, which is made of a config.
        config: the config's class, a frozen dataclass.
        may_lack: fields of the config that earlier versions did not write.
    """

    model: type[Any]
    config: type[Any]
    may_lack: frozenset[str] = frozenset()


@runtime_checkable
class Configured(Protocol):
    """A network that knows the frozen dataclass that it is built from."""

    @property
    def config(self) -> Any:
        """The dataclass."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name."""


def save_model(
    folder: Path, kind: str, model: Configured, about: dict[str, Any], *, half: bool = False
) -> None:
    """Write a checkpoint, each of its files whole or not at all.

    A kill between the two leaves weights that are not those of ``config.json``, which `load_any`
    refuses, and which a run that resumes writes again.

    Args:
        about: what else to say in ``config.json``.
        half: store floats in 16 bits: half the size, three digits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict()
    if half:
        tensors = {name: _halved(tensor) for name, tensor in tensors.items()}
    data = _serialised(tensors)
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": asdict(model.config),
        **about,
        SHA256: hashlib.sha256(data).hexdigest(),
    }
    files.write(folder / WEIGHTS, data)
    files.write(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def _halved(tensor: Tensor) -> Tensor:
    """In 16 bits, unless it is of whole numbers or too large for them."""
    if tensor.dtype != torch.float32 or not torch.isfinite(tensor.half()).all():
        return tensor
    return tensor.half()


def load_any(
    folder: Path, kinds: Mapping[str, Kind], device: torch.device | None = None
) -> tuple[nn.Module, str, dict[str, Any]]:
    """Read a checkpoint of one of ``kinds``: the model, its kind, and what else is said of it.

    Raises:
        LoopError: the folder holds none, one of another kind or version, or a damaged one.
    """
    about = read_config(folder)
    kind = about["kind"]
    try:
        config = config_of(kind, about["config"], kinds)
    except LoopError as error:
        raise _odd_config(folder, str(error)) from None
    try:
        with shapes_alone():
            model = kinds[kind].model(config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        cause = files.shortened(str(error).partition("\n")[0], 200)
        raise _odd_config(folder, f"no {kind} can be made of this config ({cause})") from error
    path = folder / WEIGHTS
    fresh = model.state_dict()
    check_shapes(path, fresh, kind)
    _check_unchanged(path, about)
    tensors, _ = read_tensors(path)
    with devices.one_thread():  # hundreds of small tensors, each done before a second has woken up
        check_finite(path, tensors)
        model.load_state_dict(
            {name: tensor.to(fresh[name].dtype) for name, tensor in tensors.items()}, assign=True
        )
    return model.to(device or torch.device("cpu")).eval(), kind, about


def config_of(kind: str, found: dict[str, Any], kinds: Mapping[str, Kind]) -> Any:
    """A model's config, of what JSON holds of it.

    Raises:
        LoopError: there is no such kind, or the config is one of another version, or of sizes that
            no model has; the message names neither file nor remedy.
    """
    if kind not in kinds:
        name = files.shortened(repr(kind))
        raise LoopError(f"no model is called {name}; there are {', '.join(kinds)}")
    try:
        return configs.from_json(kinds[kind].config, found, may_lack=kinds[kind].may_lack)
    except LoopError as error:
        raise LoopError(f"{kind}: {error}") from None


class _NoDraws(TorchFunctionMode):
    """Weights are not drawn: on the meta device PyTorch would import its compiler to do that."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.randn:
            return torch.empty(*args, **named)
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else named["tensor"]
        return func(*args, **named)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Within this context, models are built on the meta device: they have shapes and no memory."""
    with torch.device("meta"), _NoDraws():
        yield


def _odd_config(folder: Path, cause: str) -> LoopError:
    return LoopError(f"{files.printable(folder / CONFIG)}: {cause}; train it again")


def check_shapes(path: Path, fresh: Mapping[str, Tensor], kind: str) -> None:
    """Raise `LoopError` where a file does not hold the tensors of a model, by its header alone."""
    found = read_shapes(path)
    odd = sorted(
        name
        for name in found.keys() | fresh.keys()
        if name not in found or name not in fresh or found[name] != tuple(fresh[name].shape)
    )
    if odd:
        raise LoopError(
            f"{files.printable(path)}: the weights are not those of the {kind} that {CONFIG} "
            f"describes ({files.shortened(odd[0])} and {len(odd) - 1} more); copy both files again"
        )


def _check_unchanged(path: Path, about: Mapping[str, Any]) -> None:
    """Raise `LoopError` for weights that are not those that were saved, if it is known."""
    if SHA256 in about and files.digest(path) != about[SHA256]:  # earlier versions did not say it
        raise LoopError(
            f"{files.printable(path)}: damaged, its SHA-256 is not the one that {CONFIG} says; "
            "copy both files again, or train it again"
        )


def check_finite(path: Path, tensors: Mapping[str, Tensor], remedy: str = REMEDY) -> None:
    """Raise `LoopError` for weights that are not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise LoopError(
                f"{files.printable(path)}: weights that are not finite, in "
                f"{files.shortened(name)}; {remedy}"
            )


def identity(folder: Path) -> str:
    """What tells a checkpoint from any other, 32 hexadecimal digits, by its config and weights.

    Raises:
        LoopError: the folder holds none.
    """
    about = read_config(folder)
    try:
        weights = files.digest(folder / WEIGHTS)
    except OSError as error:
        raise LoopError(
            f"{files.printable(folder / WEIGHTS)}: {error.strerror}; copy the whole folder, or "
            "train it again"
        ) from error
    text = json.dumps([about["kind"], about["config"], weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def pack(run: Path, out: Path, kinds: Mapping[str, Kind]) -> None:
    """Copy the checkpoint of a run in 16 bits, to ship it.

    Raises:
        CallError: see `files.check_free`.
        LoopError: the run holds no model of these kinds.
    """
    files.check_free(out)
    model, kind, about = load_any(run, kinds)
    assert isinstance(model, Configured)  # as all models with a kind are
    save_model(out, kind, model, about, half=True)


def mix(run: Path, other: Path, share: float, out: Path, kinds: Mapping[str, Kind]) -> None:
    """Interpolate the weights of two runs of a model, one of which continued the other.

    Weights on the line between both are often better than either (Wortsman et al. 2022, *Robust
    fine-tuning of zero-shot models*, arXiv:2109.01903).

    Args:
        share: of ``run``, from 0 to 1; the rest is that of ``other``.

    Raises:
        CallError: see `files.check_free`; or the share is out of range, or the models are
            not alike.
        LoopError: a run holds no model of these kinds.
    """
    files.check_free(out)
    if not 0 <= share <= 1:
        raise CallError(f"a share of {share}; give 0 to 1")
    model, kind, about = load_any(run, kinds)
    before, kind_before, _ = load_any(other, kinds)
    assert isinstance(model, Configured)  # as all models with a kind are
    assert isinstance(before, Configured)
    if (kind, model.config) != (kind_before, before.config):
        raise CallError(f"{run} and {other}: no models of the same kind and sizes; give two of one")
    old = before.state_dict()
    between = {
        name: old[name].lerp(weight, share) if weight.is_floating_point() else weight
        for name, weight in model.state_dict().items()
    }
    model.load_state_dict(between)
    save_model(out, kind, model, {**about, "share": share}, half=True)


def read_config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says of a checkpoint.

    Raises:
        LoopError: the folder holds no checkpoint, or one of another version.
    """
    path = folder / CONFIG
    name = files.printable(path)
    try:
        about = files.read_json(path)
    except FileNotFoundError:
        raise LoopError(
            f"{files.printable(folder)}: no {CONFIG}; give a folder that 'train' wrote"
        ) from None
    except LoopError as error:
        raise LoopError(f"{error}; train it again") from error
    if about.get("format") != FORMAT:
        raise LoopError(f"{name}: not a checkpoint; give a folder that 'train' wrote")
    configs.check_version(name, about, FORMAT_VERSION, "train it again")
    if not isinstance(about.get("kind"), str) or not isinstance(about.get("config"), dict):
        raise LoopError(f"{name}: neither kind nor config of a model in it; train it again")
    return about


def _serialised(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, metadata)


def write_tensors(path: Path, tensors: dict[str, Tensor], about: Any = None) -> None:
    """Write tensors, and anything that JSON holds, as one file, whole or not at all."""
    said = None if about is None else {"about": json.dumps(about)}
    files.write(path, _serialised(tensors, said))


def read_shapes(path: Path, remedy: str = REMEDY) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a file, by name; only its header is read.

    Raises:
        LoopError: the file is missing or damaged.
    """
    with _opened(path, remedy) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict


def read_tensors(path: Path, remedy: str = REMEDY) -> tuple[dict[str, Tensor], Any]:
    """Undo `write_tensors`.

    Raises:
        LoopError: the file is missing or damaged.
    """
    with _opened(path, remedy) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        about = (file.metadata() or {}).get("about")
    try:
        return tensors, None if about is None else files.parse_json(about)
    except LoopError as error:
        raise LoopError(f"{files.printable(path)}: {error}; {remedy}") from error


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser, by name, as in ``3.exp_avg``."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{key}": value for number, of in state.items() for key, value in of.items()}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo `optimizer_tensors`.

    Raises:
        ValueError: they are not the state of this optimiser.
    """
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        if int(number) >= len(parameters) or tensor.shape not in (
            parameters[int(number)].shape,
            torch.Size(),  # a count of steps
        ):
            raise ValueError(f"{name} is of no parameter")
        state.setdefault(int(number), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


@contextmanager
def _opened(path: Path, remedy: str) -> Iterator[Any]:
    """A file of tensors; whatever is wrong with it is a `LoopError`."""
    name = files.printable(path)
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise LoopError(f"{name}: no such file; copy the whole folder, or train it again") from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise LoopError(f"{name}: {files.shortened(error, 200)}; {remedy}") from error


def _check_header(path: Path) -> None:
    """Raise `ValueError` for a header that is too long to be one, before it is read."""
    if not path.is_file() and path.exists():
        raise ValueError("not a file")
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
    if n_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"a header of over {MAX_HEADER_BYTES >> 20} MiB")
