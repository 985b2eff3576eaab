"""Commands that regenerate and generate audio loops: audioloop refine, audioloop generate.

The library is imported inside each command, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from midiloop.errors import counted
from midiloop_cli import report
from midiloop_cli.dataset import INPUT, PATH, TOP_P, json_option, seed_option, sf2_option
from midiloop_cli.models import device_option
from midiloop_cli.options import refuse, refuse_top_p

if TYPE_CHECKING:
    from audioloop.io.wave import Format
    from audioloop.pipelines.inpaint import Inpainter, SamplingConfig
    from audioloop.pipelines.outputs import WrittenLoop
    from audioloop.rendering.synth import SoundFont
    from midiloop.errors import LoopError

    Outcome = list[WrittenLoop] | LoopError


def sampling_options(*, texts: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options of sampling and of models; for texts as well, or for notes only."""

    def of_texts(default: str) -> str:
        return default if texts else ""

    options = (
        seed_option,
        click.option(
            "-n", "--num-samples", type=click.IntRange(1, 1000), default=1, show_default=True,
            help="How many loops to write from each source.",
        ),
        click.option(
            "--temperature", type=click.FloatRange(0, 100),
            help="Lower is tamer, higher is wilder; of the first codebook. Default: 0.8 with "
            f"notes, 1 without{of_texts(', 3 for a text')}.",
        ),
        click.option(
            "--top-p", type=TOP_P,
            help="Draw tokens among the likeliest that hold this probability. Default: 0.9 with "
            f"notes, 1 without{of_texts(', 0.9 for a text')}.",
        ),
        click.option(
            "--cfg-scale", type=click.FloatRange(0, 100),
            help=f"How strictly notes, kit{of_texts(', text')} and tempo are followed. Default: 1 "
            "with notes, 1.5 with notes and --best-of 1, 4 without notes"
            f"{of_texts(', 10 for a text')}.",
        ),
        click.option(
            "--choice-temperature", type=click.FloatRange(0, 1), metavar="WEIGHT",
            help="How much chance decides of what is kept at first, from 0 to 1. Default: 1"
            f"{of_texts('; 0 for a text')}.",
        ),
        click.option(
            "--rescoring-weight", type=click.FloatRange(0, 1), metavar="WEIGHT",
            help="The causal model's say in what is kept, from 0 to 1. Default: 0.",
        ),
        click.option(
            "--best-of", type=click.IntRange(1, 16), metavar="N",
            help="Drafts of each loop, 1 to 16, of which the one that fits the notes best is kept. "
            "Default: 4.",
        ),
        click.option(
            "--masked-model", type=INPUT, metavar="RUN", help="A masked model that you trained."
        ),
        click.option(
            "--causal-model", type=INPUT, metavar="RUN", help="A causal model that you trained."
        ),
        click.option(
            "--codec", type=INPUT, metavar="RUN", help="The codec that they were trained with."
        ),
        click.option(
            "--format", "form", type=click.Choice(["wav", "flac", "ogg"]), default="wav",
            show_default=True, help="Format of the audio files.",
        ),
        click.option(
            "--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="float32",
            show_default=True,
            help="Precision of products inside the masked model. auto measures at the start which "
            "is faster; the same seed gives other loops in each.",
        ),
        device_option,
        json_option,
    )  # fmt: skip

    def added(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):  # as decorators: the last is applied first
            command = option(command)
        return command

    return added


def _config(options: dict[str, Any], defaults: SamplingConfig) -> SamplingConfig:
    names = (
        "seed",
        "temperature",
        "top_p",
        "cfg_scale",
        "choice_temperature",
        "rescoring_weight",
        "best_of",
    )
    given = {name: options[name] for name in names if options[name] is not None}
    return replace(defaults, **given)


@click.command()
@click.argument("sources", nargs=-1, required=True, type=INPUT, metavar="MIDI|AUDIO|FOLDER...")
@click.option(
    "-o", "--out", required=True, type=PATH, metavar="DIR", help="Folder for what is made."
)
@click.option(
    "--keep", type=click.FloatRange(0, 1), default=0.5, show_default=True,
    help="Share of the loop that stays, from its beginning, in whole bars.",
)  # fmt: skip
@click.option(
    "--mask", metavar="BARS",
    help="What is regenerated, in place of --keep: even or odd bars, last, onsets, or bars as in "
    "2,4,7-8.",
)  # fmt: skip
@click.option("--ignore-notes", is_flag=True, help="Generate without the notes of MIDI files.")
@click.option(
    "--bpm", type=click.FloatRange(20, 400), help="Tempo, in place of what each file says."
)
@click.option("--bars", type=click.IntRange(1, 1024), help="Bars, in place of what each file says.")
@sf2_option
@click.option(
    "--kit", type=click.IntRange(0, 127), help="Drum kit of MIDI files, as in 25 for an 808."
)
@click.option(
    "--bass",
    type=click.IntRange(0, 127),
    help="General MIDI program of the bass of MIDI files, as in 33 for fingered.",
)
@sampling_options(texts=False)
def refine(
    sources: tuple[Path, ...],
    out: Path,
    keep: float,
    mask: str | None,
    ignore_notes: bool,
    bpm: float | None,
    bars: int | None,
    soundfont: Path | None,
    kit: int | None,
    bass: int | None,
    num_samples: int,
    form: str,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Regenerate a part of a loop as a circular sequence, so that it leads back into what is kept.

    A MIDI file is rendered first; audio is read, its tempo known from the file or tracked.
    """
    if mask is not None:
        refuse("--mask says what is regenerated, and --keep what stays; give one", "keep")
    if not options["rescoring_weight"]:
        refuse("is used only with --rescoring-weight", "causal_model")
    refuse_top_p(options["temperature"])
    from audioloop.pipelines import inpaint, inputs, masks
    from audioloop.pipelines import refine as pipeline
    from audioloop.rendering.render import Sound

    part = masks.InpaintMask(keep, mask)
    sampling = _config(options, inpaint.SAMPLING)  # out of range: an error before anything is read
    paths = list(inputs.files(sources))
    font = _font(paths, soundfont, ignore_notes=ignore_notes)
    sound = Sound(kit=kit, bass=bass)
    made = pipeline.run(
        paths,
        out,
        _inpainter(options, device),
        lambda path: inputs.read(path, font, sound, bpm=bpm, bars=bars),
        part,
        num_samples=num_samples,
        sampling=sampling,
        ignore_notes=ignore_notes,
        form=_format(form),
    )
    _report(made, out, "files", len(paths), as_json=as_json)


def _font(paths: Sequence[Path], soundfont: Path | None, *, ignore_notes: bool) -> SoundFont | None:
    """What plays MIDI files, None where there are none; options that change nothing are refused."""
    from audioloop.pipelines import inputs
    from audioloop.rendering import synth

    midi = inputs.needs_font(paths)
    if not midi:
        refuse("is for MIDI files, and none was given", "soundfont", "kit", "bass", "ignore_notes")
    if ignore_notes or not midi:
        refuse("are compared by the notes, and no notes are used", "best_of")
    return synth.SoundFont(synth.soundfont(soundfont), inputs.RATE) if midi else None


@click.command()
@click.argument("sources", nargs=-1, type=INPUT, metavar="[MIDI|FOLDER]...")
@click.option(
    "-o", "--out", required=True, type=PATH, metavar="DIR", help="Folder for what is made."
)
@click.option("--bpm", type=click.FloatRange(20, 400), help="Tempo; default: the file's, or 120.")
@click.option("--bars", type=click.IntRange(1, 64), help="Bars; default: the file's, or 4.")
@click.option(
    "--kit",
    type=click.IntRange(0, 127),
    help="Drum kit, as in 25 for an 808; default: the file's, or 0.",
)
@click.option(
    "--bass",
    type=click.IntRange(0, 127),
    help="General MIDI program of the bass, as in 33 for fingered; default: the file's, or 33.",
)
@click.option("--causal-prefix", is_flag=True, help="Let the causal model write the first half.")
@click.option("--text", help="Words for a published MAGNeT, see --magnet.")
@click.option("--magnet", metavar="NAME",
    help="A published MAGNeT, as a folder or as NAME or NAME@REVISION of Hugging Face.",
)  # fmt: skip
@click.option(
    "--encodec",
    metavar="NAME",
    help="The EnCodec of the MAGNeT, as a folder or as NAME or NAME@REVISION of Hugging Face.",
)
@click.option("--t5", metavar="NAME", help="The T5 that reads its text, likewise.")
@sampling_options(texts=True)
def generate(
    sources: tuple[Path, ...],
    out: Path,
    text: str | None,
    magnet: str | None,
    as_json: bool,
    form: str,
    **options: Any,
) -> None:
    """Write audio loops from the notes of MIDI files, from a drum kit and a tempo, or from a text.

    No SoundFont is used: a model generates the sound, as a circular sequence.
    """
    from audioloop.pipelines import inputs

    if (text is None) != (magnet is None):
        raise click.UsageError("--text and --magnet go together: words, and who reads them.")
    if text is not None and sources:
        raise click.UsageError("--text and MIDI files are two ways to say what to write; give one.")
    _check_used(text, sources, options)
    paths = list(inputs.files(sources))
    wanted = {name: options[name] for name in ("bpm", "bars", "num_samples")}
    wanted["form"] = _format(form)
    if text is not None and magnet is not None:
        made = _of_text(text, magnet, out, wanted, options)
    else:
        made = _of_notes(paths, out, wanted, options)
    # What is made of a file comes all at once, else one comes after the other.
    n_at_once = options["num_samples"] if paths else 1
    n_loops = max(1, len(paths)) * options["num_samples"]
    _report(made, out, "loops", n_loops, n_at_once, as_json=as_json)


def _check_used(text: str | None, sources: tuple[Path, ...], options: dict[str, Any]) -> None:
    """Raise `click.UsageError` for an option that would change nothing."""
    refuse_top_p(options["temperature"])
    if text is not None:
        notes = (
            "kit",
            "bass",
            "causal_prefix",
            "rescoring_weight",
            "best_of",
            "masked_model",
            "causal_model",
            "codec",
        )
        refuse("is for what has notes, and not for --text", *notes)
        refuse("is of the masked model, and not for --text", "precision")
        return
    refuse("belongs to a published MAGNeT; give --text and --magnet as well", "encodec", "t5")
    if not sources:
        refuse("are compared by the notes; give MIDI files", "best_of")
    if not options["rescoring_weight"] and not options["causal_prefix"]:
        refuse("is used only with --rescoring-weight or --causal-prefix", "causal_model")


def _of_notes(
    paths: Sequence[Path], out: Path, wanted: dict[str, Any], options: dict[str, Any]
) -> Iterable[Outcome]:
    """Loops of the notes of files, or of no notes at all."""
    from audioloop.pipelines import generate, inpaint
    from audioloop.rendering.render import Sound

    sampling = _config(options, inpaint.SAMPLING)  # out of range: an error before anything is read
    primed = options["causal_prefix"]
    inpainter = _inpainter(options, options["device"], primed)
    sound = Sound(kit=options["kit"], bass=options["bass"])
    return generate.run(
        paths, out, inpainter, sound, sampling=sampling, causal_prefix=primed, **wanted
    )


def _of_text(
    text: str, magnet: str, out: Path, wanted: dict[str, Any], options: dict[str, Any]
) -> Iterable[Outcome]:
    from audioloop.pipelines import text_to_audio
    from midiloop.common.devices import choose_device

    sampling = _config(options, text_to_audio.SAMPLING)
    device = choose_device(options["device"])
    writer = text_to_audio.load(magnet, options["encodec"], options["t5"], device)
    return text_to_audio.run(writer, text, out, sampling=sampling, **wanted)


def _format(name: str) -> Format:
    from audioloop.io.wave import Format

    return Format(name, "lossy" if name == "ogg" else "24")


def _inpainter(options: dict[str, Any], device: str, causal_prefix: bool = False) -> Inpainter:
    from audioloop.pipelines import inpaint
    from midiloop.common.devices import choose_device

    return inpaint.load(
        options["masked_model"],
        options["causal_model"],
        options["codec"],
        choose_device(device),
        with_causal=causal_prefix or bool(options["rescoring_weight"]),
        precision=options["precision"],
    )


def _report(
    outcomes: Iterable[Outcome], out: Path, unit: str, total: int, each: int = 1, *, as_json: bool
) -> NoReturn:
    """Print what is written, as it is, and exit.

    Args:
        unit: what is counted on a terminal, ``total`` of them, ``each`` in an outcome.
    """
    from midiloop.errors import LoopError

    done: list[WrittenLoop] = []
    failed: list[LoopError] = []
    with report.counting(unit, total) as count:
        for outcome in outcomes:
            count(each)
            if isinstance(outcome, LoopError):
                failed.append(outcome)
                continue
            done += outcome
            if not as_json:
                report.echo("\n".join(_lines(outcome, out)))
    _end(done, failed, as_json)


def _lines(found: Sequence[WrittenLoop], out: Path) -> Iterator[str]:
    for one in found:
        label = one.label
        regenerated = f", {one.regenerated:.0%} regenerated" if one.source else ""
        yield (
            f"{report.plain(out / one.files[0])}   {counted(label.bars, 'bar')} "
            f"at {label.tempo_bpm:g} bpm, {counted(one.samples, 'sample')}{regenerated}"
        )
        yield from (f"    {report.plain(note)}" for note in one.notes)


def _end(done: Sequence[WrittenLoop], failed: Sequence[LoopError], as_json: bool) -> NoReturn:
    if as_json:
        from midiloop.midi.key import as_json as key_as_json

        loops = [
            {
                "source": one.source,
                "files": list(one.files),
                "tempo_bpm": one.label.tempo_bpm,
                "bars": one.label.bars,
                **key_as_json(one.label.key),
                "samples": one.samples,
                "regenerated": one.regenerated,
                "notes": list(one.notes),
            }
            for one in done
        ]
        report.echo(report.to_json({"loops": loops, "failed": [str(error) for error in failed]}))
    for error in failed:
        report.error("audioloop", error)
    sys.exit(1 if failed else 0)
