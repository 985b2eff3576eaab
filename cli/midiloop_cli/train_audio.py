"""Commands of models of sound: audioloop train, audioloop reconstruct.

The library is imported inside each command, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from midiloop.errors import counted
from midiloop_cli import report
from midiloop_cli.dataset import INPUT, PATH, json_option, seed_option
from midiloop_cli.models import compile_option, device_option, precision_option

if TYPE_CHECKING:
    from audioloop.codec.compression import CompressionModel
    from audioloop.evaluation.reconstruct import Figures, Reconstructed, Summary
    from midiloop.common.trainer import Result
    from midiloop.errors import LoopError


@click.command()
@click.argument("model", type=click.Choice(["codec", "masked", "causal"]))
@click.argument("dataset", type=INPUT, metavar="LOOPS")
@click.option("-o", "--out", required=True, type=PATH, metavar="RUN", help="Folder for the run.")
@click.option("--minutes", type=float, help="Minutes to train, over all sessions.")
@click.option("--steps", type=click.IntRange(1), help="Steps to train, in place of --minutes.")
@click.option(
    "--batch-size", "batch_size", type=click.IntRange(1), default=8, show_default=True,
    help="Excerpts of loops a step.",
)  # fmt: skip
@click.option(
    "--micro-batch-size", "micro_batch_size", type=click.IntRange(1),
    help="Excerpts in memory at a time, whose gradients add up; default: all of a batch.",
)  # fmt: skip
@click.option("--learning-rate", type=float, default=1e-3, show_default=True,
    help="The largest, after the warm-up.",
)  # fmt: skip
@click.option(
    "--soundfont", "soundfonts", type=INPUT, multiple=True,
    help="SoundFont to render with; several take turns for a codec; default: AUDIOLOOP_SOUNDFONT, "
    "a system's FluidR3, or a small one.",
)  # fmt: skip
@click.option(
    "--init-from",
    type=INPUT,
    metavar="RUN",
    help="A model that gives the first weights and the sizes.",
)
@click.option(
    "--loss-weight", "changes", multiple=True, metavar="NAME=VALUE",
    help="What counts how much for a codec: waveform, convergence, magnitude, mel, level, change, "
    "deceit, features; adversarial: where in the run critics begin.",
)  # fmt: skip
@click.option(
    "--decoder-only", is_flag=True,
    help="Keep the encoder and the tokens of a codec, for models that were trained on them.",
)  # fmt: skip
@click.option(
    "--loops", "n_loops", type=click.IntRange(1), metavar="N",
    help="Loops to render and encode before masked or causal are trained; default: 10,000.",
)  # fmt: skip
@click.option(
    "--token-cache", type=PATH, metavar="FOLDER",
    help="Where those are, or will be, for several runs; default: in RUN.",
)  # fmt: skip
@click.option(
    "--codec",
    "run",
    type=INPUT,
    metavar="RUN",
    help="The codec whose tokens masked or causal model.",
)
@seed_option
@click.option(
    "--workers", "n_workers", type=click.IntRange(1, 256), default=1, show_default=True,
    help="Worker processes that render.",
)  # fmt: skip
@device_option
@precision_option
@compile_option
@click.option("--tensorboard", is_flag=True, help="Write event files into RUN/events.")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@json_option
def train(
    model: str,
    dataset: Path,
    out: Path,
    minutes: float | None,
    steps: int | None,
    soundfonts: tuple[Path, ...],
    init_from: Path | None,
    changes: tuple[str, ...],
    decoder_only: bool,
    n_loops: int | None,
    token_cache: Path | None,
    run: Path | None,
    n_workers: int,
    device: str,
    compiled: bool,
    tensorboard: bool,
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train on renders of a loop dataset, each with a performance of its own.

    codec encodes sound as tokens and decodes it, masked regenerates masked tokens, causal continues
    them.
    Start it under torchrun to use several GPUs or machines.
    """
    from audioloop.rendering import synth
    from midiloop.common import devices
    from midiloop.common.processes import Processes

    mine = {"--loss-weight": changes or None, "--decoder-only": decoder_only or None}
    theirs = {"--loops": n_loops, "--token-cache": token_cache, "--codec": run}
    _check(model, mine, theirs, init_from)
    fonts = [synth.soundfont(path).resolve() for path in soundfonts or (None,)]
    if model != "codec" and len(fonts) > 1:
        raise click.UsageError(
            "--soundfont: masked and causal are trained with one SoundFont; give one."
        )
    shared: dict[str, Any] = {
        "budget": (steps, minutes), "init_from": init_from, "engine": Processes(n_workers),
        "resume": resume, "events": tensorboard, "training": {**settings, "compile": compiled},
    }  # fmt: skip
    with devices.processes(devices.choose_device(device)) as place:
        if model == "codec":
            result = _train_codec(
                dataset, out, fonts, changes, decoder_only=decoder_only, device=place, **shared
            )
        else:
            result = _train_tokens(
                model, dataset, out, fonts[0], n_loops, folder=token_cache, codec=run,
                device=place, **shared,
            )  # fmt: skip
    if int(os.environ.get("RANK", "0")):
        return  # the first of several processes reports for all
    figures = {**result.history[-1], "folder": str(out), "steps": result.steps}
    report.echo(report.to_json(figures) if as_json else _trained(model, figures))


def _check(
    model: str, mine: dict[str, Any], theirs: dict[str, Any], init_from: Path | None
) -> None:
    """Raise `click.UsageError` for options of another model, or that lack another."""
    _only(model == "codec", mine, "a codec")
    if mine["--decoder-only"] and init_from is None:
        raise click.UsageError("--decoder-only: say which codec's decoder by --init-from.")
    _only(model != "codec", theirs, "masked and causal")


def _train_codec(
    dataset: Path,
    out: Path,
    fonts: list[Path],
    changes: tuple[str, ...],
    *,
    budget: tuple[int | None, float | None],
    training: dict[str, Any],
    **options: Any,
) -> Result:
    from audioloop.codec import train
    from midiloop.common.train_config import Budget
    from midiloop.dataset.parquet import LoopDataset

    recipe = train.with_loss_weights(changes)
    loops, lasting = LoopDataset(dataset), Budget(steps=budget[0], minutes=budget[1])
    with report.sounding("codec") as live:
        return train.codec(
            loops, out, lasting, fonts, recipe=recipe, on_progress=live,
            training=replace(train.TRAINING, **training), **options,
        )  # fmt: skip


def _train_tokens(
    model: str,
    dataset: Path,
    out: Path,
    font: Path,
    n_loops: int | None,
    *,
    budget: tuple[int | None, float | None],
    training: dict[str, Any],
    **options: Any,
) -> Result:
    from audioloop.tokens import train
    from midiloop.common.train_config import Budget
    from midiloop.dataset.parquet import LoopDataset

    n = n_loops or train.N_LOOPS
    loops, lasting = LoopDataset(dataset), Budget(steps=budget[0], minutes=budget[1])
    with report.counting("loops", n) as count, report.sounding(model) as live:
        return train.tokens(
            model, loops, out, lasting, font, n_loops=n, on_encoded=report.steps(count),
            on_lost=_left_out, on_progress=live,
            training=replace(train.TRAINING, **training), **options,
        )  # fmt: skip


def _left_out(split: str, number: int) -> None:
    report.note(f"loop {number} of the {split} loops is left out: coding it ends its process")


def _only(fits: bool, options: dict[str, Any], who: str) -> None:
    """Raise `click.UsageError` for an option of other models."""
    for name, value in options.items():
        if value is not None and not fits:
            raise click.UsageError(f"{name} is for {who}.")


def _trained(model: str, figures: dict[str, Any]) -> str:
    steps = counted(figures["steps"], "step")
    begin = f"{report.plain(figures['folder'])}: {steps} in {figures['minutes']:.1f} minutes; "
    if model == "codec":
        return begin + (
            f"on validation songs, SI-SDR {figures['si_sdr_db']:.2f} dB from the latent, "
            f"{figures['si_sdr_codes_db']:.2f} dB from the codes"
        )
    return begin + (
        f"on validation songs, {figures['nats']:.2f} nats a token, and "
        f"{figures['nats_unconditional']:.2f} without conditioning"
    )


@click.command()
@click.argument("files", nargs=-1, required=True, type=INPUT, metavar="FILE|FOLDER...")
@click.option(
    "-o", "--out", required=True, type=PATH, metavar="DIR", help="Folder for what comes back."
)
@click.option("--codec", "run", type=INPUT, metavar="RUN", help="A codec that you trained.")
@click.option(
    "--encodec", metavar="NAME",
    help="A published EnCodec of 32 kHz instead, as a folder or as NAME or NAME@REVISION of "
    "Hugging Face.",
)  # fmt: skip
@json_option
def reconstruct(
    files: tuple[Path, ...], out: Path, run: Path | None, encodec: str | None, as_json: bool
) -> None:
    """Encode and decode loops with a codec; write and measure the result.

    For each file: DIR/NAME_latent.wav, DIR/NAME_codes.wav, and NAME.png with their spectra.
    """
    from audioloop.evaluation import reconstruct
    from audioloop.io.sources import audio

    if run and encodec:
        raise click.UsageError("--codec and --encodec are two codecs; give one.")
    sources = list(audio(files))

    shown: list[Reconstructed] = []

    def show(outcome: Reconstructed | LoopError) -> None:
        if as_json or isinstance(outcome, Exception):
            return  # errors come with the others, at the end
        if not shown:
            report.echo(HEADER)
        shown.append(outcome)
        _show(outcome)

    with report.counting("files", len(sources)) as count:

        def finished(outcome: Reconstructed | LoopError) -> None:
            show(outcome)
            count()

        codec = _codec(run, encodec)
        done, failed = reconstruct.run(sources, out, codec, on_file=finished)
    if as_json:
        report.echo(report.to_json(reconstruct.as_json(done, failed, codec.config)))
    elif done:
        report.echo(_summary_lines(reconstruct.summary(done, codec.config), len(done), out))
    for error in failed:
        report.error("audioloop", error)
    sys.exit(1 if failed else 0)


def _codec(run: Path | None, encodec: str | None) -> CompressionModel:
    from audioloop.codec import compression

    if encodec is None:
        return compression.load(run)
    from audioloop.codec import encodec as published

    return published.load(encodec)


HEADER = (
    f"{'':<32} {'way':<8} {'SI-SDR dB':>9} {'STFT':>6} {'mel':>6} {'>8 kHz dB':>9} "
    f"{'wrap dB':>8} {'jump':>6} {'flux %':>6}"
)


def _show(outcome: Reconstructed) -> None:
    for way, figures in outcome.figures.items():
        report.echo(
            _line(report.plain(outcome.source.stem) if way == "latent" else "", way, figures)
        )
    for note in outcome.notes:
        report.echo(f"{'':<32} {note}")


def _line(name: str, way: str, figures: Figures) -> str:
    formats = ("9.2f", "6.2f", "6.2f", "+9.1f", "8.0f", "6.2f", "6.0f")
    shown = [
        "–".rjust(int(form.strip("+").split(".")[0])) if value is None else format(value, form)
        for value, form in zip(figures, formats, strict=True)
    ]
    name = name if len(name) <= 32 else f"{name[:16]}…{name[-15:]}"
    return f"{name:<32} {way:<8} {' '.join(shown)}"


def _summary_lines(found: Summary, n_files: int, out: Path) -> str:
    lines = [""]
    lines += [
        _line(f"median of {n_files:,}" if way == "latent" else "", way, figures)
        for way, figures in found.median.items()
    ]
    used = ", ".join(f"{share:.0%}" for share in found.use)
    lines.append(f"codes: {found.kilobits_per_s:g} kbit/s; of each codebook in use: {used}")
    lines.append(f"sounds and pictures: {report.plain(out)}")
    return "\n".join(lines)
