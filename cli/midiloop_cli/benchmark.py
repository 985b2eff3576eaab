"""The command that compares methods of loop generation: audioloop benchmark.

The library is imported inside it, so that ``--help`` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from midiloop_cli import report
from midiloop_cli.dataset import INPUT, PATH, json_option, seed_option, sf2_option

if TYPE_CHECKING:
    from audioloop.evaluation.loopgen.summary import BenchmarkResult


def steps_of(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Steps as they are written: "20,8,6,6"."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: give whole numbers, as in 20,8,6,6") from None


@click.command()
@click.argument("dataset", type=INPUT, metavar="LOOPS")
@click.option("-o", "--out", required=True, type=PATH, metavar="DIR", help="Folder for it all.")
@click.option(
    "--num-loops",
    type=int,
    default=100,
    show_default=True,
    help="How many loops of the test split to generate.",
)
@seed_option
@click.option(
    "--window-s", type=float, default=12.0, show_default=True, metavar="S",
    help="Seconds of a window, for methods that have one; loops last from a third of it to two "
    "thirds.",
)  # fmt: skip
@click.option(
    "--decode-steps", callback=steps_of, metavar="N,N,N,N",
    help="Decoding steps of each codebook, with notes; fewer are faster.  [default: 20,8,6,6]",
)  # fmt: skip
@click.option(
    "--unconditioned-decode-steps", callback=steps_of, metavar="N,N,N,N",
    help="Decoding steps of each codebook, without notes.  [default: 40,8,6,6]",
)  # fmt: skip
@click.option(
    "--rescoring-weight", type=float, default=0.0, show_default=True, metavar="WEIGHT",
    help="The causal model's say in what is kept, from 0 to 1.",
)  # fmt: skip
@click.option("--masked-model", type=INPUT, metavar="RUN", help="A masked model that you trained.")
@click.option("--causal-model", type=INPUT, metavar="RUN", help="A causal model that you trained.")
@click.option("--codec", type=INPUT, metavar="RUN", help="The codec that they were trained with.")
@sf2_option
@click.option("--keep-audio", is_flag=True, help="Write the loops of the first 3 items as WAV.")
@click.option(
    "--workers", "n_workers", type=click.IntRange(1, 256), default=1, show_default=True,
    help="Worker processes, each on one thread.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on; items that are done are not done again.")
@json_option
def benchmark(
    dataset: Path,
    out: Path,
    soundfont: Path | None,
    masked_model: Path | None,
    causal_model: Path | None,
    codec: Path | None,
    n_workers: int,
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Generate loops by all methods and compare their seams: tables and pictures.

    With and without notes: naive sequences, sequences cut at a bar, LoopGen's tiles, tiles with its
    faults fixed, and circular sequences (the ring), beside true renders.
    """
    from audioloop.evaluation.loopgen import benchmark, plots, tables
    from audioloop.rendering import synth
    from midiloop.common.processes import Processes
    from midiloop.dataset.parquet import LoopDataset

    known = {name: value for name, value in settings.items() if value is not None}
    wanted = benchmark.Settings(**known)
    with report.counting("items", wanted.num_loops) as count:
        found = benchmark.run(
            LoopDataset(dataset),
            out,
            wanted,
            synth.soundfont(soundfont).resolve(),
            codec=codec,
            masked=masked_model,
            causal=causal_model,
            engine=Processes(n_workers),
            resume=resume,
            on_progress=count,
        )
    try:
        pictures = ", ".join(map(str, plots.draw(found, out)))
    except ImportError:
        pictures = "none; for some: pip install matplotlib"
    shown = report.to_json(tables.as_json(found)) if as_json else _summary(found)
    report.echo(shown)
    if not as_json:
        report.echo(f"tables: {report.plain(out / 'benchmark.md')}   pictures: {pictures}")


def _summary(found: BenchmarkResult) -> str:
    """The first columns of each table, and what they come to."""
    from audioloop.evaluation.loopgen import tables

    lines = []
    for setting, table in found.tables.items():
        lines.append(f"{setting + ', seam perplexity':<24}{'first codebook':>20}{'all':>20}")
        lines += [
            f"{name:<24}{tables.plus_minus(row['seam']):>20}"
            f"{tables.plus_minus(row['seam_all']):>20}"
            for name, row in table.items()
        ]
        lines.append("")
    lines += [line.removeprefix("- ") for line in tables.headlines(found)]
    return "\n".join(lines)
