"""The command that renders: audioloop render.

The library is imported inside it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from midiloop.errors import LoopError, counted
from midiloop_cli import options, report
from midiloop_cli.dataset import (
    INPUT,
    PATH,
    choice_options,
    feel_options,
    json_option,
    seed_option,
    sf2_option,
    transpose_option,
)

if TYPE_CHECKING:
    from audioloop.rendering.batch import FailedLoop, Item, Result


def sound_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of how a loop is to sound."""
    sound = (
        click.option(
            "--repeat", type=click.IntRange(1, 1000), default=1, show_default=True,
            help="Passes in one file.",
        ),
        click.option("--stems", is_flag=True, help="Drums and bass apart as well; they add up."),
        click.option(
            "--loudness", "loudness_lufs", type=click.FloatRange(-70, 0), metavar="LUFS",
            help="Bring it to this loudness, as far as --peak allows.",
        ),
        click.option(
            "--gain", "gain_db", type=click.FloatRange(-60, 60), metavar="DB",
            help="Change FluidSynth's own level by this, as far as --peak allows.",
        ),
        click.option(
            "--peak", "peak_db", type=click.FloatRange(-60, 0), default=-1.0, show_default=True,
            metavar="DB", help="Bring the largest sample to this, in dB of full scale; "
            "with --loudness or --gain no further than this.",
        ),
        click.option(
            "--reverb", type=click.FloatRange(0, 1), default=0.0, show_default=True,
            help="How much of a room is heard, 0 to 1."
        ),
        click.option(
            "--chorus", type=click.FloatRange(0, 1), default=0.0, show_default=True,
            help="How much of a chorus is heard, 0 to 1.",
        ),
        click.option("--kit", type=click.IntRange(0, 127), help="Drum kit, as in 25 for an 808."),
        click.option(
            "--bass", type=click.IntRange(0, 127),
            help="General MIDI program of the bass, as in 33 for fingered.",
        ),
    )  # fmt: skip
    for option in reversed(sound):  # as decorators: the last is applied first
        command = option(command)
    return command


@click.command()
@click.argument("sources", nargs=-1, required=True, type=INPUT, metavar="MIDI|FOLDER|LOOPS...")
@click.option("-o", "--out", required=True, type=PATH, help="New folder for the files.")
@click.option(
    "--format", "form", type=click.Choice(["wav", "flac", "ogg"]), default="wav", show_default=True,
    help="Format of the audio files.",
)  # fmt: skip
@click.option(
    "--depth", type=click.Choice(["16", "24", "float"]), help="Bits of a sample; default: 24."
)
@click.option("--rate", type=click.IntRange(1), default=44_100, show_default=True, metavar="HZ",
    help="Samples a second.",
)  # fmt: skip
@click.option(
    "--bpm", type=click.FloatRange(20, 400), help="Tempo, in place of what each loop says."
)
@click.option(
    "--bars", type=click.IntRange(1, 64), help="Bars of MIDI files, in place of what they say."
)
@transpose_option("all notes")
@sf2_option
@sound_options
@click.option(
    "--name-template", "template", default="default", show_default=True,
    help="How files are named: default, audacity, splice, or a text with {name}, {number}, {bpm}, "
    "{exact_bpm}, {bars}, {part}, {key}, {root}, {meter}.",
)  # fmt: skip
@feel_options(0.0)
@seed_option
@choice_options
@click.option(
    "--workers",
    "n_workers",
    type=click.IntRange(1, 256),
    help="Worker processes; default: all usable cores.",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@json_option
def render(
    sources: tuple[Path, ...],
    out: Path,
    form: str,
    depth: str | None,
    soundfont: Path | None,
    limit: int | None,
    song: str,
    split: str | None,
    feel: float,
    swing: float,
    hands_folder: Path | None,
    seed: int,
    n_workers: int | None,
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Render MIDI loops to audio that repeats without a seam, exactly as long as its bars.

    Beside each audio file lies a MIDI file of the same name that ends at the bar line.
    """
    _check_used(sources)
    options.refuse_unfelt(feel, swing)
    from audioloop.io.wave import Format
    from audioloop.rendering import batch, synth
    from audioloop.rendering.render import Sound
    from midiloop.common.processes import Processes

    kept = ("rate", "bpm", "bars", "transpose", "template")
    wanted = batch.Settings(
        synth.soundfont(soundfont).resolve(),
        form=Format(form, depth or ("lossy" if form == "ogg" else "24")),
        sound=Sound(**{name: value for name, value in settings.items() if name not in kept}),
        **{name: settings[name] for name in kept},
        played=f"feel {feel:g}, swing {swing:g}, seed {seed}" if feel or swing else None,
    )
    items = batch.items(sources, limit=limit, song=song, split=split)
    failed: list[batch.FailedLoop] = []
    if wanted.played:  # what plays needs PyTorch, and nothing else here does
        items, failed = _played(items, feel, swing, seed, hands_folder)
    began_s = time.monotonic()
    with report.counting("loops", len(items)) as count:
        result = batch.run(
            items,
            out,
            wanted,
            engine=Processes(n_workers) if n_workers else None,
            resume=resume,
            on_progress=report.steps(count),
        )
    took_s = time.monotonic() - began_s
    result = result._replace(failed=[*failed, *result.failed])
    report.echo(report.to_json(_as_json(result)) if as_json else _summary(result, out, took_s))
    for name, cause in result.failed:
        report.error("audioloop", f"{name}: {cause}")
    sys.exit(1 if result.failed else 0)


def _played(
    items: list[Item], feel: float, swing: float, seed: int, hands_folder: Path | None
) -> tuple[list[Item], list[FailedLoop]]:
    """The loops that can be humanised, and those that cannot."""
    from audioloop.pipelines import played
    from midiloop.generation import humanize

    hands = humanize.load(hands_folder) if feel else None
    with report.counting("playing", len(items)) as count:
        found, failed = played.items(items, humanize.Feel(feel, swing, seed), hands, on_loop=count)
    if not found:
        raise LoopError(f"{failed[0].source}: {failed[0].cause}")
    return found, failed


def _check_used(sources: Sequence[Path]) -> None:
    """Raise `click.UsageError` for an option that would change nothing."""
    datasets = [options.is_dataset(source) for source in sources]
    if not any(datasets):
        options.refuse("chooses loops of a dataset, and none was given", "song", "split")
    if all(datasets):
        options.refuse("is for MIDI files, and loops of a dataset say their length", "bars")
    if options.passed("loudness_lufs"):
        options.refuse("--loudness says how loud it is to be; give one of both", "gain_db")


def _summary(result: Result, out: Path, took_s: float) -> str:
    total_s = sum(made.duration_s for made in result.made)
    speed = f", {total_s / took_s:,.0f} times real time" if len(result.made) >= 100 else ""
    made_here = counted(len(result.made), "loop")
    lines = [f"{made_here} in {report.plain(out)}   {total_s:,.1f} s of audio{speed}"]
    if len(result.made) <= 12:
        lines += [
            f"{report.plain(made.files[0])}   {counted(made.label.bars, 'bar')} "
            f"at {made.label.tempo_bpm:g} bpm, {counted(made.samples, 'sample')}"
            for made in result.made
        ]
    held = [made.held_back_db for made in result.made if made.held_back_db > 0.05]
    if held:
        lines.append(f"{len(held):,} got up to {max(held):.1f} dB less gain, so as not to clip")
    return "\n".join(lines)


def _as_json(result: Result) -> dict[str, Any]:
    from midiloop.midi.key import as_json

    return {
        "loops": [
            {
                "source": made.source,
                "files": list(made.files),
                "tempo_bpm": made.label.tempo_bpm,
                "bars": made.label.bars,
                "meter": list(made.label.meter),
                **as_json(made.label.key),
                "root": made.label.root,
                "samples": made.samples,
                "held_back_db": round(made.held_back_db, 2),
            }
            for made in result.made
        ],
        "failed": [{"source": name, "cause": cause} for name, cause in result.failed],
    }
