"""Where and how to compute: the device, the precision, and the processes of ``torchrun``.

What concerns several processes does nothing where there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from midiloop.errors import CallError

PRECISIONS = ("float32", "bfloat16", "auto")
# How long processes wait for each other: the first may render a data set for all of them.
PATIENCE = timedelta(days=1)


def choose_device(name: str) -> torch.device:
    """``auto`` is the first of CUDA, MPS and CPU that is there; ``cuda:1`` is the second GPU.

    Raises:
        CallError: there is no such device.
    """
    kind, _, index = name.partition(":")
    n_devices = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if name == "auto":
        kind = next(kind for kind, n in n_devices.items() if n)
        name = kind
    if (index or "0") not in map(str, range(n_devices.get(kind, 0))):
        raise CallError(f"there is no {name} device for PyTorch here; use --device cpu")
    if kind == "cuda":  # what is done in another order each time would not resume bit for bit
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` is bfloat16 on a GPU that has units for its matrix products, and else float32."""
    if name != "auto":
        return name
    has_units = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if has_units else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Matrix products in 16 bits, or nothing."""
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def widest(device: torch.device) -> torch.dtype:
    """What to add up in: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


# Several processes.


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes of ``torchrun``, where it started this one.

    Yields:
        the device of this process.
    """
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # What is on the CPU stays there: the clock is asked for at each step, and no GPU waits for it.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, whatever this process is told otherwise."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def in_turn() -> Iterator[None]:
    """One process after the other, so that those that follow find done what the first has done."""
    for _ in range(rank()):
        barrier()
    try:
        yield
    finally:
        for _ in range(rank(), world()):
            barrier()


def of_first(value: float) -> float:
    """The value that the first process has, in all of them."""
    if not dist.is_initialized():
        return value
    found = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(found, 0)
    return float(found)


def agree(value: int) -> bool:
    """Whether all processes have the same value."""
    if not dist.is_initialized():
        return True
    found = torch.tensor([value, -value])
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found.sum()) == 0  # the largest, less the smallest


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Make tensors those of the first process, in all of them."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def add_up(tensor: Tensor) -> None:
    """Make a tensor the sum over all processes, in all of them."""
    if dist.is_initialized():
        dist.all_reduce(tensor)


def averaged(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each term, (), over all processes; they have the same terms."""
    if not dist.is_initialized():
        return dict(terms)
    found = torch.stack([term.to(widest(term.device)) for term in terms.values()]) / world()
    dist.all_reduce(found)
    return dict(zip(terms, found.unbind(), strict=True))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make each gradient its mean over all processes, in one exchange.

    A parameter that no process has a gradient of has none afterwards.
    """
    if not dist.is_initialized():
        return
    parameters = list(parameters)
    used = torch.tensor([parameter.grad is not None for parameter in parameters]).byte()
    dist.all_reduce(used, dist.ReduceOp.MAX)
    gradients = list[Tensor]()
    for parameter in (parameters[at] for at in used.nonzero().flatten()):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / world()
        dist.all_reduce(flat)
        means = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
