"""What commands print: summaries, tables, histograms, JSON, and live progress."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from midiloop.common import files
from midiloop.errors import counted

if TYPE_CHECKING:
    from rich.progress import Progress

    from midiloop.common.trainer import Progress as TrainingProgress
    from midiloop.evaluation.evaluate import Distance, Estimate, Evaluation, Size
    from midiloop.evaluation.overview import Histogram, Overview
    from midiloop.evaluation.two_sample import TwoSample
    from midiloop.generation.outputs import WrittenLoops
    from midiloop.generation.sample import GenerationRequest
    from midiloop.mining.extract import Progress as MiningProgress
    from midiloop.training.recipes import Trained

TELLTALES = 10  # shown
BAR_WIDTH = 40
EIGHTHS = " ▏▎▍▌▋▊▉█"
UNITS = {
    "kick hits": "kick hits a bar",
    "snare hits": "snare hits a bar",
    "hat hits": "hat hits a bar",
    "bass notes": "bass notes a bar",
    "bass range": "bass range (st)",
    "pitch entropy": "pitch entropy (bit)",
}


REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOSPC: "make room there, or choose another place",
    errno.EDQUOT: "make room there, or choose another place",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another place",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "give a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "let this process open more files (ulimit -n)",
    errno.ENOMEM: "free memory, or use fewer --workers",
}
_live: Progress | None = None  # the bar that stands on the terminal, if any


def never_fail_to_encode() -> None:
    """Let stdout and stderr escape what their encoding lacks, as in a C locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def echo(text: str, *, err: bool = False) -> None:
    """Print lines; what would move the cursor, colour or reorder text is shown as escapes.

    Names go through `plain` first: only there is a newline in one distinct from the end of a line.
    """
    if _live:
        _live.stop()
    click.echo("\n".join(files.printable(line) for line in text.split("\n")), err=err)
    if _live:
        _live.start()


def error(command: str | None, message: object) -> None:
    """Print one line on stderr that says what went wrong."""
    echo(f"{command}: error: {files.printable(message)}", err=True)


def note(message: object) -> None:
    """Print one line on stderr that is worth knowing, and no error."""
    echo(f"note: {files.printable(message)}", err=True)


def plain(path: object) -> str:
    """A name as every report shows it: on one line, no control codes, see `files.printable`."""
    return files.printable(path)


def os_error(found: OSError) -> str:
    """Path, cause and remedy."""
    place = plain(os.fsdecode(found.filename)) if isinstance(found.filename, str | bytes) else ""
    if found.errno is None or found.strerror is None:
        return f"{place and place + ': '}{found}; check the disk and its files"
    remedy = REMEDIES.get(found.errno, "check the disk and the permissions there")
    return f"{place and place + ': '}{os.strerror(found.errno)}; {remedy}"


def to_json(found: Any) -> str:
    """Indented JSON, without a mark that a terminal would act on or a stream cannot encode.

    JSON has no nan and no infinity: what is not finite is null.
    """
    ascii_alone = not (sys.stdout.encoding or "ascii").lower().startswith("utf")
    text = json.dumps(_finite(found), indent=2, ensure_ascii=ascii_alone, allow_nan=False)
    return "".join(
        mark if mark.isprintable() or mark == "\n" else json.dumps(mark)[1:-1] for mark in text
    )


def _finite(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {key: _finite(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


class Live:
    """Progress of an extraction, drawn where stderr is a terminal."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.resumed_files = 0
        self.draw: Callable[[MiningProgress, float], None] = lambda *_: None

    def update(self, progress: MiningProgress, in_work: int) -> None:
        """Take note of how far the run is."""
        self.resumed_files = progress.resumed_files
        self.draw(progress, in_work)

    def summary(self, manifest: dict[str, Any], out: Path) -> str:
        """What a finished run found, and where it lies."""
        counts, took_s = manifest["counts"], time.monotonic() - self.began_s
        mined = counts["files"] - self.resumed_files
        lines = [
            f"{counted(counts['files'], 'file')} in {took_s:.1f} s"
            + (f" ({mined / took_s:,.0f} files/s)" if mined > 1000 else ""),
            f"{counted(counts['loops'], 'loop')}, {counts['distinct_loops']:,} of them distinct, "
            f"from {counted(counts['songs'], 'song')} (rules {manifest['rules']['name']})",
        ]
        if self.resumed_files:
            lines[0] += f", {self.resumed_files:,} of them done by an earlier run"
        if counts["rejects"]:
            lines.append(
                f"no loop in {counted(sum(counts['rejects'].values()), 'file')}: "
                + _by_reason(counts["rejects"])
            )
        lines.append(
            f"dataset: {plain(out)}   why a file gave none: {plain(out / 'rejects.parquet')}"
        )
        return "\n".join(lines)


@contextmanager
def live_progress() -> Iterator[Live]:
    """Show files/s, loops, rejects by reason and time left, while an extraction runs."""
    live = Live()
    if not sys.stderr.isatty():
        yield live
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(BAR_WIDTH),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def draw(progress: MiningProgress, in_work: float) -> None:
            files = progress.files + in_work
            rate = (files - progress.resumed_files) / (time.monotonic() - live.began_s)
            text = (
                f"{counted(round(files), 'file')}, {rate:,.0f}/s, {counted(progress.loops, 'loop')}"
            )
            if progress.rejects:
                text += "\nno loop: " + _by_reason(dict(progress.rejects.most_common(6)))
            bar.update(task, completed=progress.seen, description=text)

        live.draw = draw
        yield live


@contextmanager
def counting(noun: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Show how many of ``total`` are done; what it gives is called with how many more are.

    Args:
        total: None where it is not known: a bar that moves, and the time that has passed; and so
            for 1, of which there is nothing to show but that it goes on.
    """
    global _live
    if not sys.stderr.isatty():
        yield lambda _=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}", markup=False), BarColumn(BAR_WIDTH)]
    total = None if total == 1 else total
    if total is not None:
        columns.append(MofNCompleteColumn())
    bar = Progress(
        *columns,
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # rich would send what is printed to stderr, out of a pipe
        redirect_stderr=False,
    )
    task = bar.add_task(noun, total=total)
    with bar:
        _live = bar
        try:
            yield lambda more=1: bar.advance(task, more)
        finally:
            _live = None


def steps(count: Callable[..., None]) -> Callable[[int], None]:
    """Turn how many are done into how many more are."""
    seen = 0

    def update(done: int) -> None:
        nonlocal seen
        count(max(0, done - seen))
        seen = max(seen, done)

    return update


class Training(NamedTuple):
    """What to call as models train, and as they write loops."""

    progress: Callable[[str, TrainingProgress], None] = lambda *_: None
    loops: Callable[[str, int], None] = lambda *_: None


@contextmanager
def training(n_loops: int | None = None) -> Iterator[Training]:
    """Show epochs, loss, validation error and speed, while a model trains.

    Args:
        n_loops: that each model writes in the end, if any.
    """
    if not sys.stderr.isatty():
        yield Training()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[stage]}"),
        BarColumn(BAR_WIDTH),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def draw(stage: str, progress: TrainingProgress) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task("", total=1.0, stage=stage)
            terms = " ".join(f"{name} {_figure(value)}" for name, value in progress.terms.items())
            text = f"epoch {progress.epoch:.1f}, {terms}"
            if progress.figures:
                error = progress.figures["error"]
                text += f", validation {_figure(error)} (best {_figure(progress.best)})"
            text += f", {progress.items_per_s:,.0f} loops/s"
            bar.update(tasks[stage], completed=progress.done, description=text)

        def count(row: str, more: int) -> None:
            name = f"{row}, loops"
            if name not in tasks:
                tasks[name] = bar.add_task("", total=n_loops, stage=name)
            bar.advance(tasks[name], more)

        yield Training(draw, count)


@contextmanager
def sounding(name: str) -> Iterator[Callable[[TrainingProgress], None]]:
    """Show the share that is done, loss and validation, while a model of sound trains."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn(name),
        BarColumn(BAR_WIDTH),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=1.0)

        def draw(progress: TrainingProgress) -> None:
            minutes, seconds = divmod(round(progress.left_s), 60)
            text = f"{minutes}:{seconds:02d} left, step {progress.step:,}"
            shown = {**progress.terms, **progress.figures}
            text += "".join(
                f", {key} {shown[key]:.2f}"
                for key in ("loss", "nats", "waveform", "mel", "si_sdr_db", "si_sdr_codes_db")
                if key in shown
            )
            bar.update(task, completed=progress.done, description=text)

        yield draw


def trained(stages: Sequence[Trained]) -> str:
    """What a training run came to."""
    return "\n".join(
        f"{plain(stage.folder)}: {counted(stage.result.epochs, 'epoch')}, lowest validation "
        f"{stage.measure} {_figure(stage.result.best)}"
        for stage in stages
    )


def generated(found: WrittenLoops, wanted: GenerationRequest, tried: int) -> str:
    """What was written, and how many samples were tried, where some may be rejected."""
    n_loops = wanted.n
    lines = [f"{counted(n_loops, 'loop')} in {plain(found.midi)}   dataset: {plain(found.dataset)}"]
    if wanted.must or wanted.key or wanted.novel or wanted.keep_rules:
        lines.append(
            f"as wanted: {n_loops:,} of {counted(tried, 'sample')} ({n_loops / tried:.1%})"
        )
    picture = (found.picture and plain(found.picture)) or "none; for one: pip install matplotlib"
    return "\n".join([*lines, f"picture: {picture}"])


def _by_reason(rejects: Mapping[str, int]) -> str:
    ordered = sorted(rejects.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{plain(reason)} {count:,}" for reason, count in ordered)


def overview(found: Overview, path: Path) -> str:
    """The report of ``midiloop inspect``; the usual grid is not named."""
    from midiloop.grid import LOOP

    manifest = found.manifest
    counts, rules = manifest["counts"], manifest["rules"]
    lines = [
        f"{plain(path)}: rules {plain(rules['name'])}, every "
        f"{counted(manifest['stride_bars'], 'bar')}, from "
        f"{', '.join(map(plain, manifest['sources']))}",
        *([] if found.grid == LOOP else [f"  {found.grid}"]),
        "",
        f"  files {counts['files']:>10,}",
        f"  songs {counts['songs']:>10,}   with a loop",
        f"  loops {counts['loops']:>10,}   "
        + ", ".join(f"{plain(split)} {n:,}" for split, n in counts["splits"].items()),
        f"  distinct {counts['distinct_loops']:>7,}",
        "",
        *_table("files without a loop", counts["rejects"]),
    ]
    if found.metrics:
        lines += [
            *_histogram("tempo (bpm)", found.tempo_bpm, "{:g}"),
            *_histogram(
                "density (share of steps on which anything sounds)", found.note_density, "{:.1f}"
            ),
            *_table("keys, where the bass has a clear one", found.keys),
            "the paper's metrics of these loops",
            "  " + " ".join(f"{name:>9}" for name in found.metrics),
            "  " + " ".join(f"{_figure(value):>9}" for value in found.metrics.values()),
        ]
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:.2e}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def _table(title: str, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    rows = [
        f"  {plain(reason):<20} {count:>8,}  {_bar(count, max(counts.values()))}"
        for reason, count in counts.items()
    ]
    return [title, *rows, ""]


def _histogram(title: str, histogram: Histogram, edge: str) -> list[str]:
    top = max(*histogram.counts, 1)
    rows = []
    for low, high, count in zip(
        histogram.edges, histogram.edges[1:], histogram.counts, strict=False
    ):
        if low == 0 and edge == "{:g}":
            label = f"below {edge.format(high)}"
        elif high == float("inf"):
            label = f"{edge.format(low)} and more"
        else:
            label = f"{edge.format(low)}–{edge.format(high)}"
        rows.append(f"  {label:<20} {count:>8,}  {_bar(count, top)}")
    return [title, *rows, ""]


def _bar(count: int, top: int) -> str:
    eighths = round(8 * BAR_WIDTH * count / top)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip() or ("▏" if count else "")


def evaluation(
    found: Evaluation,
    error: tuple[str, float] | None,
    rules: str,
    separation: TwoSample | None,
) -> str:
    """The report of ``midiloop evaluate``; ``rules`` are those of the reference."""
    from midiloop.metrics import form

    lines = [f"{_size(found.loops)}, beside {_size(found.reference)}, all distinct"]
    if error:
        name = {"nats_per_loop": "nats a loop"}.get(error[0], "reconstruction error")
        lines.append(f"{name} on the test split: {_figure(error[1])}")
    lines += [
        "",
        _row("metric", "loops", "reference", "", "95 % interval of loops"),
    ]
    for name, metric in found.metrics.items():
        interval = _interval(metric.loops, _figure)
        lines.append(
            _row(name, _figure(metric.loops.value), _figure(metric.reference), "", interval)
        )
    lines += ["", _wide_row("form", "loops", "reference", "95 % interval of loops")]
    for name, metric in found.form.items():
        if not name.startswith("breaks ") or name == f"breaks {rules}":
            interval = _interval(metric.loops, _figure)
            figures = _figure(metric.loops.value), _figure(metric.reference)
            lines.append(_wide_row(form.ROWS[name], *figures, interval))
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
    return "\n".join(lines + (_two_sample(separation) if separation else []))


def _two_sample(found: TwoSample) -> list[str]:
    """What a classifier told apart, and by what."""

    def auc(name: str, estimate: Estimate) -> str:
        interval = _interval(estimate, "{:.3f}".format)
        return _wide_row(name, f"{estimate.value:.3f}", "", interval)

    return [
        "",
        _wide_row("classifier", "AUC", "", "95 % interval"),
        auc("these loops", found.auc),
        auc("control: other real loops", found.control),
        *(auc(f"  by {name} alone", estimate) for name, estimate in found.groups.items()),
        "",
        _wide_row("what gives loops away", "loops", "reference", "AUC of it alone"),
        *(
            _wide_row(of.name, _figure(of.mean), _figure(of.reference_mean), f"{of.auc:.3f}")
            for of in found.telltales[:TELLTALES]
        ),
        "",
        f"classifier: {found.n_loops:,} loops and {found.n_reference:,} of the reference; AUC 0.5: "
        "none is told apart, 1: all are",
    ]


def _wide_row(name: str, loops: str, reference: str, last: str) -> str:
    return f"{name:<38}{loops:>9}{reference:>11}   {last}".rstrip()


def _row(name: str, *cells: str) -> str:
    loops, reference, distance, *intervals = cells
    columns = f"{name:<20}{loops:>9}{reference:>11}{distance:>10}"
    return (columns + "".join(f"   {cell:<22}" for cell in intervals)).rstrip()


def _distance(distance: Distance, digits: int = 3) -> tuple[str, str, str]:
    show = f"{{:.{digits}f}}".format
    estimate, floor = distance
    return show(estimate.value), _interval(estimate, show), _interval(floor, show)


def _size(size: Size) -> str:
    whole = "" if size.sampled_from is None else f" (sampled from {size.sampled_from:,})"
    songs = "" if size.songs is None else f" of {counted(size.songs, 'song')}"
    return f"{counted(size.loops, 'loop')}{whole}{songs}"


def _interval(estimate: Estimate, show: Callable[[float], str]) -> str:
    return f"{show(estimate.low)} to {show(estimate.high)}"
