"""Commands on symbolic loops: extract, inspect, plot, export.

The library is imported inside each command, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from midiloop.errors import CallError, LoopError, counted
from midiloop_cli import options, report

if TYPE_CHECKING:
    from midiloop.grid import TimeSignature

Command = Callable[..., Any]
PATH = click.Path(path_type=Path)


class Existing(click.Path):
    """The path of something that is read: one that is not there is a wrong call, exit 2."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """The path, or one line that says that it is not there."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise CallError(
                f"{report.plain(path)}: no such file or folder; check the path"
            ) from None
        except (OSError, ValueError):
            pass  # what is there and cannot be read is told by whoever reads it
        return path


INPUT = Existing(path_type=Path)
TOP_P = click.FloatRange(0, 1, min_open=True)  # of no probability at all, nothing can be drawn
seed_option = click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Start of all random numbers: the same seed gives the same result.",
)

sf2_option = click.option(
    "--soundfont",
    type=INPUT,
    help="SoundFont to render with; default: AUDIOLOOP_SOUNDFONT, a system's FluidR3, or a small "
    "one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
rules_option = click.option(
    "--rules",
    "rules_name",
    type=click.Choice(["paper", "open"]),
    default="paper",
    show_default=True,
    help="What counts as a loop. paper: kick, crash and bass on the first step, the meter stated. "
    "open: no crash needed, and no time signature means 4/4.",
)


class MeterType(click.ParamType[Any]):
    """A meter, as in 3/4."""

    name = "meter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The meter as a `TimeSignature`."""
        from midiloop.grid import meter_from_text

        try:
            return meter_from_text(value)
        except LoopError as error:
            self.fail(f"{error}.", param, ctx)


def grid_options(command: Command) -> Command:
    """Options of the grid that loops lie on."""
    grid = (
        click.option(
            "--steps-per-beat", type=click.IntRange(1, 96), default=4, show_default=True,
            help="Steps in a quarter note: 6 has room for triplets of eighths and for sixteenths "
            "in swing.",
        ),
        click.option(
            "--meter", type=MeterType(), metavar="N/M", default="4/4", show_default=True,
            help="Loops in bars of this meter, as in 3/4.",
        ),
        click.option(
            "--bars", type=click.IntRange(1, 64), default=8, show_default=True,
            help="Bars in a loop.",
        ),
    )  # fmt: skip
    for option in grid:
        command = option(command)
    return command


def transpose_option(what: str) -> Callable[[Command], Command]:
    """How far something is transposed."""
    return click.option(
        "--transpose",
        type=click.IntRange(-12, 12),
        default=0,
        show_default=True,
        metavar="SEMITONES",
        help=f"Move {what} up, or down where negative; drums stay.",
    )


def feel_options(default: float) -> Callable[[Command], Command]:
    """Options of how loops are played; ``default`` is that of ``--feel``."""

    def add(command: Command) -> Command:
        feel = (
            click.option(
                "--feel", type=click.FloatRange(0, 1), default=default, show_default=True,
                help="How much of played velocities and timing, 0 to 1; 0: none.",
            ),
            click.option(
                "--swing", type=click.FloatRange(0, 1), default=0.0, show_default=True,
                help="How late every second 16th is, 0 to 1; 1: as in triplets.",
            ),
            click.option(
                "--hands", "hands_folder", type=INPUT, metavar="RUN",
                help="Play by a run of 'train hands', in place of the one that comes with "
                "midiloop.",
            ),
        )  # fmt: skip
        for option in reversed(feel):
            command = option(command)
        return command

    return add


def choice_options(command: Command) -> Command:
    """Options that choose loops, most of them of a dataset."""
    choice = (
        click.option("--limit", type=click.IntRange(1), help="At most so many loops."),
        click.option(
            "--split", type=click.Choice(["train", "valid", "test"]),
            help="Loops of one split of a dataset.",
        ),
        click.option(
            "--song", default="*", metavar="PATTERN",
            help="Loops of a dataset from songs whose path matches, as in '*/funk*'.",
        ),
    )  # fmt: skip
    for option in choice:
        command = option(command)
    return command


NAMED = 10  # of files that were lost; all are among the rejects


@click.command()
@click.argument("sources", nargs=-1, required=True, type=INPUT, metavar="SOURCE...")
@click.option("-o", "--out", required=True, type=PATH, help="Folder for the loop dataset.")
@rules_option
@grid_options
@click.option(
    "--stride-bars",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Look for a loop at every so many bars.",
)
@click.option(
    "--workers",
    "n_workers",
    type=click.IntRange(1, 256),
    help="Worker processes; default: all usable cores.",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@json_option
def extract(
    sources: tuple[Path, ...],
    out: Path,
    rules_name: str,
    bars: int,
    meter: TimeSignature,
    steps_per_beat: int,
    stride_bars: int,
    n_workers: int | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Mine loops out of folders, MIDI files, .zip and .tar archives into a loop dataset.

    Of each window of so many bars, the first bar and the one in the middle are nearly the same:
    bars 1 and 5 of 8, 1 and 3 of 4.

    Archives (also .tar.gz, .tar.xz, .tar.zst) are read in one stream, without unpacking.
    """
    from midiloop.common.processes import Processes, warm_up

    # NumPy would start a thread a core for products of matrices, in every process; there are none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What workers need takes as long to import as the library here: both at one time.
    warm_up(("midiloop.mining.extract", "symusic.core"))
    from midiloop.grid import Grid
    from midiloop.mining import extract, rules

    try:
        grid = Grid(bars=bars, meter=meter, steps_per_beat=steps_per_beat)
    except LoopError as error:
        raise CallError(str(error)) from None
    settings = extract.Settings(rules.preset(rules_name), stride_bars, grid)
    engine = Processes(n_workers) if n_workers else None
    with report.live_progress() as live:
        result = extract.run(
            sources, out, settings, engine=engine, resume=resume, on_progress=live.update
        )
    report.echo(report.to_json(result.manifest) if as_json else live.summary(result.manifest, out))
    for broken in result.broken_sources:
        detail = f"{broken.reason} ({broken.detail})"
        report.error("midiloop", f"{broken.file}: {detail}; fetch the archive again")
    for lost in result.lost[:NAMED]:
        detail = f"{lost.reason} ({lost.detail})"
        report.error("midiloop", f"{lost.file}: {detail}; --resume tries it again")
    if more := len(result.lost[NAMED:]):
        report.error("midiloop", f"{counted(more, 'file')} more, in rejects.parquet")
    sys.exit(1 if result.broken_sources or result.lost else 0)


@click.command()
@click.argument("dataset", type=INPUT, metavar="LOOPS")
@json_option
def inspect(dataset: Path, as_json: bool) -> None:
    """Show what is in a loop dataset: counts, rejects, histograms, the paper's metrics."""
    from midiloop.dataset import parquet
    from midiloop.evaluation import overview

    with report.counting("reading loops", None):
        found = overview.of(parquet.LoopDataset(dataset))
    report.echo(report.to_json(found.as_json()) if as_json else report.overview(found, dataset))


@click.command()
@click.argument("sources", nargs=-1, required=True, type=INPUT, metavar="LOOPS|MIDI...")
@click.option("-o", "--out", required=True, type=PATH, help="Picture: .png, .svg or .pdf.")
@click.option(
    "--columns",
    type=click.IntRange(1, 12),
    default=3,
    show_default=True,
    help="Loops side by side.",
)
@choice_options
@json_option
def plot(sources: tuple[Path, ...], out: Path, columns: int, as_json: bool, **choice: Any) -> None:
    """Draw piano rolls: one loop large, several as a contact sheet.

    Of a loop dataset, the first loop of each of 12 songs (--limit); of MIDI files, the first loop
    of each, or its first 8 bars where it has none.
    """
    from midiloop.plotting import contact_sheet

    chosen = options.passed("song", "split")
    if chosen and not any(source.is_dir() for source in sources):
        raise click.UsageError(f"{chosen} chooses loops of a dataset; none was given.")
    with report.counting("drawing", None):
        shown = contact_sheet.pictures(sources, **choice)
        contact_sheet.draw(shown, out, columns=columns)
    if len(shown.pictures) == 1 and (unused := options.passed("columns")):
        report.note(f"{unused} is for several loops; one was drawn")
    found = {"picture": str(out), "loops": [picture.title for picture in shown.pictures]}
    report.echo(report.to_json(found) if as_json else report.plain(out))


@click.command()
@click.argument("dataset", type=INPUT, metavar="LOOPS")
@click.option("--midi", "midi_folder", type=PATH, help="New folder for one MIDI file a loop.")
@click.option(
    "--npz", "npz_file", type=PATH, help="One pypianoroll file of all loops, on the grid."
)
@click.option("--distinct", is_flag=True, help="Each loop once, however often it comes.")
@transpose_option("the bass")
@feel_options(0.0)
@seed_option
@choice_options
@json_option
def export(
    dataset: Path,
    midi_folder: Path | None,
    npz_file: Path | None,
    transpose: int,
    feel: float,
    swing: float,
    hands_folder: Path | None,
    seed: int,
    as_json: bool,
    **choice: Any,
) -> None:
    """Write loops as MIDI files that loop right in a DAW, or as one pypianoroll .npz.

    With --distinct, --limit spreads over the songs; without it takes the first loops.
    """
    from midiloop.dataset import export, parquet

    if (midi_folder is None) == (npz_file is None):
        raise click.UsageError("Give one of --midi DIR and --npz FILE.")
    if npz_file:
        options.refuse("is for --midi; pypianoroll knows no timing", "feel", "swing")
    options.refuse_unfelt(feel, swing)
    loops = parquet.LoopDataset(dataset)
    play = None
    if feel or swing:  # what plays needs PyTorch, and nothing else here does
        from midiloop.generation import humanize

        hands = humanize.load(hands_folder) if feel else None
        play = humanize.player(humanize.Feel(feel, swing, seed), hands, loops.grid)
    total = min(len(loops), choice["limit"] or len(loops))
    if choice["distinct"] and choice["limit"]:
        chosen = loops.spread(choice.pop("limit"), **choice)
    else:
        chosen = loops.select(**choice)
    if transpose:
        chosen = export.transposed(chosen, transpose)
    written: dict[str, Any] = {"written": str(midi_folder or npz_file)}
    if midi_folder:
        with report.counting("loops", total) as count:
            files = export.to_midi(chosen, midi_folder, play=play, on_loop=count)
        n_loops = len(files)
        written |= {"loops": n_loops, "files": [file.as_json() for file in files]}
    elif npz_file:
        with report.counting("loops", None):
            written["loops"] = n_loops = export.to_npz(chosen, npz_file)
    text = f"{counted(n_loops, 'loop')} in {report.plain(written['written'])}"
    report.echo(report.to_json(written) if as_json else text)
