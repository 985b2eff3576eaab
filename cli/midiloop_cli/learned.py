"""Commands on loops that a model wrote: evaluate.

The library is imported inside each command, so that ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from midiloop_cli import report
from midiloop_cli.symbolic import PATH, json_option

if TYPE_CHECKING:
    from midiloop.evaluate import Distance, Estimate, Evaluation, LoopSet, Size
    from midiloop.grid import Roll

UNITS = {
    "kick hits": "kick hits a bar",
    "snare hits": "snare hits a bar",
    "hat hits": "hat hits a bar",
    "bass notes": "bass notes a bar",
    "bass range": "bass range (st)",
    "pitch entropy": "pitch entropy (bit)",
}

split_choice = click.Choice(["train", "valid", "test"])


@click.command()
@click.argument("model", type=click.Choice(["ar-lstm-vae", "nonar-lstm-vae", "cnn-vae", "vq-vae"]))
@click.argument("dataset", type=PATH, metavar="LOOPS")
@click.option("-o", "--out", required=True, type=PATH, metavar="RUN", help="Folder for the run.")
@click.option(
    "--preset",
    type=click.Choice(["paper", "small", "bars"]),
    default="paper",
    show_default=True,
    help="Sizes. paper: its appendix; small: less to wait for; bars (vq-vae only): codes of single "
    "bars, and a prior that knows which bar repeats which.",
)
@click.option(
    "--stage",
    "only",
    type=click.Choice(["vq-vae", "prior"]),
    help="Of vq-vae: train the one or the other; default: both.",
)
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--micro-batch",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Loops in memory at a time; a larger batch adds up its gradients.",
)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True)
@click.option("--final-learning-rate", type=float, default=5e-6, show_default=True)
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
@click.option("--repeats", is_flag=True, help="Learn from each loop as often as it comes.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of matrix products; bfloat16 pays on GPUs and on CPUs with AMX.",
)
@click.option("--compile", "compiled", is_flag=True, help="Through torch.compile.")
@click.option("--tensorboard", is_flag=True, help="Write event files into RUN/MODEL/events.")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@json_option
def train(
    model: str,
    dataset: Path,
    out: Path,
    preset: str,
    only: str | None,
    repeats: bool,
    device: str,
    compiled: bool,
    tensorboard: bool,
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a generator on a loop dataset; vq-vae also trains the prior of its codes.

    Start it under torchrun to use several GPUs or machines.
    """
    from midiloop import fit, store, train

    with fit.processes(fit.choose_device(device)) as place, report.training() as live:
        trained = train.run(
            model,
            store.LoopDataset(dataset),
            out,
            fit.Settings(**settings, compile=compiled),
            preset=preset,
            only=only,
            distinct=not repeats,
            device=place,
            resume=resume,
            events=tensorboard,
            on_progress=live,
        )
    found = {stage.folder.name: stage.as_json() for stage in trained}
    click.echo(report.to_json(found) if as_json else report.trained(trained))


@click.command()
@click.argument("source", type=PATH, metavar="LOOPS|DIR")
@click.option("--reference", required=True, type=PATH, help="Loop dataset to compare with.")
@click.option("--split", type=split_choice, help="Of LOOPS; default: all of them.")
@click.option("--reference-split", type=split_choice, help="Of the reference; default: all of it.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
def evaluate(
    source: Path,
    reference: Path,
    split: str | None,
    reference_split: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Measure loops beside a reference: the paper's metrics, and how far their distributions are.

    Loops are those of a loop dataset, or MIDI files in a folder, each of them one loop.
    """
    import numpy as np

    from midiloop import evaluate

    found = evaluate.compare_profiles(
        evaluate.profile(loop_sets(source, split)),
        evaluate.profile(of_dataset(reference, reference_split)),
        np.random.default_rng(seed),
    )
    click.echo(report.to_json({**found.as_json(), "seed": seed}) if as_json else table(found))


def loop_sets(source: Path, split: str | None) -> Iterator[LoopSet]:
    """Loops of a dataset, or of a folder of MIDI files, in pieces.

    Raises:
        CallError: it is neither, or files are asked for a split.
        LoopError: one cannot be read, or nothing matches.
    """
    from midiloop import corpus
    from midiloop.errors import CallError

    if not source.is_dir():
        raise CallError(f"{source}: no such folder; give a loop dataset or a folder of MIDI files")
    if (source / "manifest.json").exists():
        return of_dataset(source, split)
    names = (path for path in source.rglob("*") if path.is_file())
    files = sorted(path for path in names if path.name.lower().endswith(corpus.MIDI_SUFFIXES))
    if not files:
        raise CallError(f"{source}: neither a loop dataset nor MIDI files in it; give one of them")
    if split:
        raise CallError(f"{source}: a folder of MIDI files has no splits; leave --split out")
    return of_midi(files)


def of_dataset(path: Path, split: str | None) -> Iterator[LoopSet]:
    """Loops of a dataset, batch by batch, with their songs."""
    import numpy as np

    from midiloop import store
    from midiloop.errors import LoopError
    from midiloop.evaluate import LoopSet

    n_loops = 0
    for batch in store.LoopDataset(path).select(split=split):
        n_loops += len(batch)
        yield LoopSet(batch.rolls, np.array(batch.md5s))
    if n_loops == 0:
        part = f" in split {split}" if split else ""
        raise LoopError(f"{path}: no loops{part}; 'midiloop inspect' shows what there is")


def of_midi(files: list[Path]) -> Iterator[LoopSet]:
    """Loops of MIDI files, one from each, which stand alone."""
    import numpy as np

    from midiloop.evaluate import LoopSet

    with report.counting("files", len(files)) as count:
        for file in files:
            yield LoopSet(np.stack([first_loop(file)]))
            count()


def first_loop(path: Path) -> Roll:
    """The first loop's worth of a MIDI file; a last bar that is silent may lack.

    Raises:
        LoopError: the file cannot be read, or is shorter.
    """
    import numpy as np

    from midiloop import pianoroll, score
    from midiloop.errors import LoopError, MidiError
    from midiloop.grid import LOOP

    try:
        roll = pianoroll.encode(score.read(path))[: LOOP.steps]
    except MidiError as error:
        raise LoopError(f"{path}: {error.reason}, {error.detail}; give another file") from error
    n_bars = len(roll) // LOOP.steps_per_bar
    if n_bars < LOOP.bars - 1 and last_tick_bars(path) < LOOP.bars - 1:
        raise LoopError(
            f"{path}: ends in bar {n_bars}, a loop has {LOOP.bars}; "
            "take it out of the folder, or make it longer"
        )
    return np.pad(roll, ((0, LOOP.steps - len(roll)), (0, 0)))


def last_tick_bars(path: Path) -> float:
    """Where the tracks of a MIDI file end, in bars of 4/4; 0 where that cannot be told.

    A score ends with its last note, but a loop that fades into bars of silence is whole.
    """
    from mido import KeySignatureError, MidiFile

    try:
        midi = MidiFile(path, clip=True)
    except (OSError, EOFError, ValueError, LookupError, KeySignatureError):
        return 0.0  # damaged in a way that our own parser repairs
    ticks = max(sum(message.time for message in track) for track in midi.tracks)
    return float(ticks / midi.ticks_per_beat / 4)


def table(found: Evaluation) -> str:
    """The report of ``midiloop evaluate``."""
    lines = [
        f"{_size(found.loops)}, beside {_size(found.reference)}",
        "",
        _row("metric", "loops", "reference", "", "95 % interval of loops"),
    ]
    for name, metric in found.metrics.items():
        interval = _interval(metric.loops, _figure)
        lines.append(
            _row(name, _figure(metric.loops.value), _figure(metric.reference), "", interval)
        )
    lines += [
        "",
        _row("mean of feature", "loops", "reference", "distance", "95 % interval", "floor"),
    ]
    for name, distance in found.distances.items():
        means = _figure(found.means[name]), _figure(found.reference_means[name])
        lines.append(_row(UNITS.get(name, name), *means, *_distance(distance)))
    lines += [
        _row("all but HD (MMD²)", "", "", *_distance(found.mmd2, digits=4)),
        "",
        "distance: Wasserstein, in standard deviations of the reference; 0: the same distribution",
        "floor: 95 % of the ways to compare half the reference's songs with the rest lie there",
    ]
    return "\n".join(lines)


def _row(name: str, *cells: str) -> str:
    loops, reference, distance, *intervals = cells
    columns = f"{name:<20}{loops:>9}{reference:>11}{distance:>10}"
    return (columns + "".join(f"   {cell:<22}" for cell in intervals)).rstrip()


def _distance(distance: Distance, digits: int = 3) -> tuple[str, str, str]:
    show = f"{{:.{digits}f}}".format
    estimate, floor = distance
    return show(estimate.value), _interval(estimate, show), _interval(floor, show)


def _size(size: Size) -> str:
    songs = "" if size.songs is None else f" of {size.songs:,} songs"
    return f"{size.loops:,} loops{songs}"


def _interval(estimate: Estimate, show: Callable[[float], str]) -> str:
    return f"{show(estimate.low)} to {show(estimate.high)}"


def _figure(value: float) -> str:
    return f"{value:.2e}" if 0 < abs(value) < 0.01 else f"{value:.3f}"
