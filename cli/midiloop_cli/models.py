"""Commands of models: train, generate, evaluate, reproduce.

The library is imported inside each command, so that ``--help`` answers at once.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from midiloop.errors import counted
from midiloop_cli import options, report
from midiloop_cli.dataset import INPUT, PATH, TOP_P, feel_options, json_option, seed_option


class Device(click.ParamType[str]):
    """A device of PyTorch, or "auto"; whether it is there is found out where it is used."""

    name = "device"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself."""
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value):
            self.fail(f"{value!r} is none of auto, cpu, mps, cuda and cuda:N.", param, ctx)
        return value


device_option = click.option(
    "--device",
    type=Device(),
    metavar="auto|cpu|cuda[:N]|mps",
    default="auto",
    show_default=True,
    help="Where to compute, as in cuda:1; auto: a GPU where there is one.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "auto"]),
    default="float32",
    show_default=True,
    help="Precision of matrix products; bfloat16 is faster on GPUs and on CPUs with AMX; auto: "
    "bfloat16 on GPUs that have units for it.",
)
compile_option = click.option(
    "--compile", "compiled", is_flag=True, help="Compile the model by torch.compile."
)
any_option = click.option(
    "--any",
    "keep_rules",
    flag_value=False,
    default=True,
    help="Also what is no loop by the rules: of which the first and the middle bar differ, or "
    "whose first step lacks kick or bass.",
)
# `recipes.MODELS`, and the hands: importing them would load PyTorch for the help.
TRAINED = ("ar-lstm-vae", "nonar-lstm-vae", "cnn-vae", "vq-vae", "loop-transformer", "hands")
epochs_option = click.option("--epochs", type=click.IntRange(1), default=20, show_default=True,
    help="Passes over the loops at most.",
)  # fmt: skip
batch_size_option = click.option("--batch-size", type=click.IntRange(1), default=256,
    show_default=True, help="Loops a step.",
)  # fmt: skip
split_choice = click.Choice(["train", "valid", "test"])


def judged_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """How many loops are measured of what draws them."""
    return click.option(
        "-n",
        "--num-samples",
        "n",
        type=click.IntRange(1),
        default=20_000,
        show_default=True,
        help=f"How many loops to draw from {what}.",
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import without the garbage collector, which takes a seventh of the time and finds nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@click.command()
@click.argument("model", type=click.Choice(TRAINED))
@click.argument("dataset", type=INPUT, metavar="LOOPS")
@click.option("-o", "--out", required=True, type=PATH, metavar="RUN", help="Folder for the run.")
@click.option(
    "--preset",
    type=click.Choice(["paper", "full", "small"]),
    help="Sizes. paper: its appendix; full: of loop-transformer, as it ships; small: less to wait "
    "for. Default: paper, or full.",
)
@click.option(
    "--stage",
    "only",
    type=click.Choice(["vq-vae", "prior"]),
    help="Of vq-vae: train the one or the other; default: both.",
)
@epochs_option
@batch_size_option
@click.option(
    "--micro-batch-size",
    "micro_batch_size",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Loops in memory at a time; a larger batch adds up its gradients.",
)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True,
    help="At the first step.",
)  # fmt: skip
@click.option("--final-learning-rate", type=float, default=5e-6, show_default=True,
    help="At the last step.",
)  # fmt: skip
@click.option(
    "--patience",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Epochs without a better validation error after which to stop; 0: never.",
)
@click.option(
    "--transpose",
    type=click.IntRange(0, 24),
    default=0,
    show_default=True,
    help="Move each bass up or down at random, so many semitones at most.",
)
@click.option(
    "--repeats", is_flag=True, help="Train on each loop as often as it occurs, instead of once."
)
@seed_option
@device_option
@precision_option
@compile_option
@click.option("--tensorboard", is_flag=True, help="Write event files into RUN/MODEL/events.")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@json_option
def train(
    model: str,
    dataset: Path,
    out: Path,
    preset: str | None,
    only: str | None,
    epochs: int,
    transpose: int,
    repeats: bool,
    device: str,
    compiled: bool,
    tensorboard: bool,
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a generator on a loop dataset; vq-vae also trains the prior of its codes.

    hands learns to play loops, velocity and timing, from those that are played.

    Start it under torchrun to use several GPUs or machines.
    """
    from midiloop.common import devices
    from midiloop.common.train_config import Budget
    from midiloop.dataset import parquet
    from midiloop.training import recipes

    config = replace(recipes.CONFIG, **settings, compile=compiled)
    with devices.processes(devices.choose_device(device)) as place, report.training() as live:
        trained = recipes.run(
            model,
            parquet.LoopDataset(dataset),
            out,
            Budget(epochs=epochs),
            config,
            preset=preset,
            only=only,
            transpose=transpose,
            distinct=not repeats,
            device=place,
            resume=resume,
            events=tensorboard,
            on_progress=live.progress,
        )
    if int(os.environ.get("RANK", "0")):
        return  # the first of several processes reports for all
    found = {stage.folder.name: stage.as_json() for stage in trained}
    report.echo(report.to_json(found) if as_json else report.trained(trained))


@click.command()
@click.argument("run", type=INPUT, required=False)
@click.option("-n", "--num-samples", "n", type=click.IntRange(1), default=8, show_default=True,
    help="How many loops to write.",
)  # fmt: skip
@click.option("-o", "--out", required=True, type=PATH, metavar="DIR", help="New folder.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Below 1: tamer; above: wilder; 0: the likeliest.",
)
@click.option(
    "--top-p",
    type=TOP_P,
    default=1.0,
    show_default=True,
    help="Draw each code among the likeliest that hold this probability.",
)
@seed_option
@click.option("--bpm", type=click.FloatRange(4, 1000), default=120.0, show_default=True,
    help="Tempo of the MIDI files.",
)  # fmt: skip
@click.option(
    "--copy-latents", is_flag=True, help="Copy bar 1's first half to the middle bar, in codes."
)
@click.option(
    "--pattern",
    metavar="ABABA'CA'D",
    help="Which bars are the same: a letter for each; a prime makes a variation.",
)
@click.option("--like", type=INPUT, metavar="MIDI", help="Vary the first loop of this file.")
@click.option(
    "--keep",
    metavar="BARS",
    help="What stays of --like: bars, as in 1-4,8, or drums, or bass. Default: all but --vary, or "
    "the first half.",
)
@click.option("--vary", metavar="BARS", help="What of --like is varied; what is neither is new.")
@click.option("--key", metavar="Am", help="Key of every loop, as in C, Am, F#m or Bb.")
@click.option("--novel", is_flag=True, help="No loop of the training set.")
@click.option(
    "--must",
    metavar="kick,crash,bass",
    help="What plays on the first step.",
)
@any_option
@feel_options(0.0)
@click.option("--batch-size", type=click.IntRange(1), help="Loops sampled at a time; default: 512.")
@json_option
def generate(
    run: Path | None,
    out: Path,
    bpm: float,
    like: Path | None,
    must: str | None,
    key: str | None,
    feel: float,
    swing: float,
    hands_folder: Path | None,
    batch_size: int | None,
    as_json: bool,
    **request: Any,
) -> None:
    """Write new loops: MIDI files, a loop dataset and a contact sheet.

    RUN is a folder that train wrote; without it the model that comes with midiloop is used.
    """
    if like is None:
        options.refuse("is about --like; give --like as well", "keep", "vary")
    options.refuse_top_p(request["temperature"])
    if feel == 0:
        options.refuse("plays where --feel is above 0", "hands_folder")
    from midiloop.common import files, processes
    from midiloop.midi.key import parse_key
    from midiloop.plotting import plot

    wanted_key = None if key is None else parse_key("--key", key)
    files.check_free(out)
    processes.warm_up(plot.MODULES)  # while this process loads PyTorch
    with _uncollected():
        from midiloop.generation import humanize, outputs, sample
        from midiloop.mining import midi_loop

    request["must"] = _listed(must or "")
    hands = humanize.load(hands_folder) if feel else None
    generator = sample.load(run)
    play = humanize.player(humanize.Feel(feel, swing, request["seed"]), hands, generator.grid)
    varied = midi_loop.read(like, generator.grid, search=True).roll if like else None
    wanted = sample.GenerationRequest(**request, key=wanted_key, like=varied)
    with report.counting("loops", wanted.n) as count:
        drawn = sample.sample(generator, wanted, batch=batch_size or sample.BATCH, on_loops=count)
    about = {"run": run.name if run else "midiloop", "tried": drawn.tried, **request}
    about["key"] = wanted_key and str(wanted_key)
    if play is not None:
        about |= {"feel": feel, "swing": swing}
    found = outputs.write(
        drawn.rolls,
        out,
        tempo_bpm=bpm,
        seed=wanted.seed,
        about=about,
        grid=generator.grid,
        play=play,
    )
    if as_json:
        shown = {"loops": wanted.n, "tried": drawn.tried, **found.as_json()}
        report.echo(report.to_json(shown))
    else:
        report.echo(report.generated(found, wanted, drawn.tried))


@click.command()
@click.argument("sources", nargs=-1, required=True, type=INPUT, metavar="MIDI...")
@click.option("-o", "--out", required=True, type=PATH, metavar="DIR", help="New folder.")
@feel_options(1.0)
@seed_option
@json_option
def humanize(
    sources: tuple[Path, ...],
    out: Path,
    feel: float,
    swing: float,
    hands_folder: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Play MIDI files with velocities and timing, as someone might; what they play stays.

    Drums and bass get velocities and timing, other tracks stay as they are. Sources may be folders
    and archives too. Eight bars or fewer are a loop: what is early on its first step stands at its
    end.
    """
    options.refuse_unfelt(feel, swing)
    with _uncollected():
        from midiloop.generation import humanize

    hands = humanize.load(hands_folder) if feel else None
    with report.counting("files", None) as count:
        found = humanize.midi_files(
            sources, out, humanize.Feel(feel, swing, seed), hands, on_file=count
        )
    written = {
        "written": [str(path) for path in found.written],
        "failed": [{"source": name, "cause": cause} for name, cause in found.failed],
    }
    text = f"{counted(len(found.written), 'file')} in {report.plain(out)}"
    report.echo(report.to_json(written) if as_json else text)
    for name, cause in found.failed:
        report.error("midiloop", f"{name}: {cause}")
    sys.exit(1 if found.failed else 0)


def _listed(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


@click.command()
@click.argument("dataset", type=INPUT, metavar="LOOPS")
@click.option("-o", "--out", required=True, type=PATH, metavar="DIR", help="Folder for it all.")
@epochs_option
@batch_size_option
@seed_option
@judged_option("each model")
@device_option
@precision_option
@click.option("--resume", is_flag=True, help="Go on; what is there is not trained again.")
@json_option
def reproduce(
    dataset: Path,
    out: Path,
    epochs: int,
    n: int,
    device: str,
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train the paper's models under one budget, and set its tables 1 to 4 beside ours."""
    from midiloop.common import files
    from midiloop.common.devices import choose_device
    from midiloop.common.train_config import Budget
    from midiloop.dataset import parquet
    from midiloop.evaluation import reproduce
    from midiloop.training import recipes

    with report.training(n) as live:
        reproduce.run(
            parquet.LoopDataset(dataset),
            out,
            Budget(epochs=epochs),
            replace(recipes.CONFIG, **settings),
            n=n,
            device=choose_device(device),
            resume=resume,
            on_progress=live.progress,
            on_loops=live.loops,
        )
    if as_json:
        report.echo(report.to_json(files.read_json(out / "report.json")))
    else:
        report.echo((out / "report.md").read_text().rstrip())


@click.command()
@click.argument("source", type=INPUT, required=False, metavar="[LOOPS|DIR|RUN]")
@click.option("--reference", required=True, type=INPUT, help="Loop dataset to compare with.")
@click.option(
    "--split", type=split_choice, help="Loops of one split of LOOPS; default: all of them."
)
@click.option(
    "--reference-split",
    type=split_choice,
    help="Loops of one split of the reference; default: all of them.",
)
@judged_option("a RUN")
@any_option
@click.option(
    "--classifier/--no-classifier",
    default=True,
    show_default=True,
    help="Let a classifier tell the loops from those of the reference; a minute or so.",
)
@seed_option
@json_option
def evaluate(
    source: Path | None,
    reference: Path,
    split: str | None,
    reference_split: str | None,
    n: int,
    keep_rules: bool,
    classifier: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Measure loops beside a reference: the paper's metrics, and how far their distributions are.

    The reference is of distinct loops. A classifier learns to separate the loops from it. Its
    control are real loops in their place: those of the training split, or, where that is the
    reference or a part of it, one half of the reference's songs against the other.

    Loops are those of a loop dataset, MIDI files in a folder, each of them one loop, or what a run
    writes, of which the reconstruction error on the reference's test split is measured as well.
    Without a source it is the model that comes with midiloop.

    Of more than 262,144 loops, songs are sampled, and the first line says how many loops of how
    many are judged; copies (OS) are looked for in the whole reference.
    """
    import numpy as np

    from midiloop.dataset import parquet
    from midiloop.evaluation import evaluate, sources, two_sample
    from midiloop.evaluation.profile import LoopSet

    of_run = source is None or sources.is_run(source)
    if of_run:
        options.refuse("chooses loops of a dataset, and the source is a run", "split")
    else:
        options.refuse("is for what a run writes, and the source is no run", "n", "keep_rules")
    error: tuple[str, float] | None = None
    dataset = parquet.LoopDataset(reference)
    grid = dataset.grid
    if source and not of_run:
        loops = partial(sources.open_source, source, split, grid)
    else:
        from midiloop.generation import sample

        generator = sample.load(source or sample.SHIPPED)
        error = sample.held_out_error(generator, reference, "test")
        with report.counting("loops", n) as count:
            wanted = sample.GenerationRequest(n, seed=seed, keep_rules=keep_rules)
            drawn = sample.sample(generator, wanted, on_loops=count)
        loops = partial(iter, [LoopSet(drawn.rolls)])
    beside = partial(sources.of_dataset, reference, reference_split, distinct=True)
    with report.counting("measuring", None):
        found = evaluate.compare_sets(loops(), beside(), np.random.default_rng(seed), grid=grid)
        separation = None
        if classifier:
            others = None
            if reference_split not in (None, "train"):
                others = two_sample.sample(sources.of_dataset(reference, "train"), grid)
            separation = two_sample.compare(
                two_sample.sample(loops(), grid),
                two_sample.sample(beside(), grid),
                others,
                seed=seed,
            )
    shown = {
        **dict([error] if error else []),
        **found.as_json(),
        "two_sample": separation and separation.as_json(),
        "seed": seed,
    }
    rules = dataset.manifest["rules"]["name"]
    text = report.evaluation(found, error, rules, separation)
    report.echo(report.to_json(shown) if as_json else text)
