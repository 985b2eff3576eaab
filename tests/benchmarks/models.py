"""How fast models train and write loops, and how much memory that takes.

    python tests/benchmarks/models.py LOOPS [--repeats N] [--device cpu|cuda]

LOOPS is a loop dataset. Training and coding run on one thread and are given in loops per second of
CPU time; generation runs on all cores and is wall time, from random numbers to rolls. Everything is
a median over the repeats. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

STEPS = 4  # of training in one measurement
LOOPS = 2048
PAPER_BATCH = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("loops", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    show("cores", str(os.cpu_count()))
    show("python", platform.python_version())
    training(options.loops, options.device, options.repeats)
    generation(options.device, options.repeats)
    whole_commands(options.loops, options.repeats)


def show(what: str, figure: float | str) -> None:
    shown = figure if isinstance(figure, str) else f"{figure:,.2f}"
    print(f"{what:<66} {shown:>12}", flush=True)


def training(dataset: Path, device: str, repeats: int) -> None:
    """Steps of the optimiser at batch 256, in both precisions, and compiled."""
    import torch

    from midiloop import models
    from midiloop.dataset import parquet, tensors
    from midiloop.models.vq_vae import VQVAE
    from midiloop.training import recipes
    from midiloop.training.objective import Objective

    torch.set_num_threads(1)
    show("torch", torch.__version__)
    if device == "cuda":
        show("gpu", torch.cuda.get_device_name())
    place = torch.device(device)
    loops = tensors.load(parquet.LoopDataset(dataset), "train", place)
    for model in recipes.MODELS:
        for precision, compiled in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
            codec: VQVAE | None = None
            for stage in recipes.stages(model):
                torch.manual_seed(0)
                objective = Objective(models.build(stage.kind, stage.config).to(place), codec)
                if compiled:
                    objective.compile()
                rate = statistics.median(_training_rates(objective, loops, precision, repeats))
                name = f"train {stage.kind}, {precision}{', compiled' * compiled}"
                show(f"{name}: loops per core-second", rate)
                if isinstance(objective.model, VQVAE):
                    codec = objective.model


def _training_rates(objective, loops, precision: str, repeats: int) -> list[float]:  # type: ignore[no-untyped-def]
    import torch

    from midiloop.common import devices

    optimizer = torch.optim.AdamW(objective.model.parameters())
    device = loops.packed.device

    def steps() -> None:
        for _ in range(STEPS):
            rolls = loops.rolls(torch.randint(len(loops), (256,), device=device))
            with devices.autocast(device, precision):
                loss = objective(rolls, 0.0)
            optimizer.zero_grad()
            torch.autograd.backward(loss.total)
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    steps()  # what is only done once, compilation above all
    return [STEPS * 256 / taken(steps, cpu=device.type == "cpu") for _ in range(repeats)]


def taken(work: Callable[[], object], *, cpu: bool) -> float:
    """Seconds that a call takes, of CPU or of the clock."""
    clock = time.process_time if cpu else time.perf_counter
    began_s = clock()
    work()
    return clock() - began_s


def generation(device: str, repeats: int) -> None:
    """The model that ships, from random numbers to rolls, on all cores; then one bar of a loop."""
    import torch

    from midiloop.generation import sample

    torch.set_num_threads(os.cpu_count() or 1)
    generator = sample.load(sample.SHIPPED, torch.device(device))
    sample.sample(generator, sample.GenerationRequest(LOOPS // 8))
    times = [
        taken(lambda: sample.sample(generator, sample.GenerationRequest(LOOPS)), cpu=False)
        for _ in range(repeats)
    ]
    show("generate: loops per second", LOOPS / statistics.median(times))
    like = sample.sample(generator, sample.GenerationRequest(1)).rolls[0]
    redone = sample.GenerationRequest(1, like=like, keep="1-6,8")
    sample.sample(generator, redone)
    times = [taken(lambda: sample.sample(generator, redone), cpu=False) for _ in range(repeats)]
    show("write bar 7 of a loop anew: seconds", statistics.median(times))


def whole_commands(dataset: Path, repeats: int) -> None:
    """`generate` from a cold start to its end, and the memory of `train` at the paper's batch."""
    with tempfile.TemporaryDirectory() as folder:
        for n in (1, 1000):
            times = []
            for number in range(repeats):
                args = ["generate", "-n", str(n), "-o", str(Path(folder) / f"{n}-{number}")]
                times.append(taken(lambda args=args: command(args), cpu=False))  # type: ignore[misc]
            show(f"generate -n {n} from a cold start: seconds", statistics.median(times))
        for model in ("vq-vae", "cnn-vae", "nonar-lstm-vae", "ar-lstm-vae"):
            out = str(Path(folder) / model)
            args = ["train", model, str(dataset), "-o", out, "--epochs", "1"]
            megabytes = peak_megabytes([*args, "--batch-size", str(PAPER_BATCH)])
            show(f"train {model} at batch {PAPER_BATCH}: peak megabytes", megabytes)


def command(args: list[str]) -> None:
    line = [sys.executable, "-m", "midiloop_cli", *args]
    subprocess.run(line, check=True, capture_output=True)


def peak_megabytes(args: list[str]) -> float:
    """Peak memory of one command, measured in a process that runs nothing else."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "capture_output=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    line = [sys.executable, "-c", code, sys.executable, "-m", "midiloop_cli", *args]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1024


if __name__ == "__main__":
    main()
