"""What commands print: summaries, tables, histograms, JSON, and live progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midiloop.extract import Progress as MiningProgress
    from midiloop.fit import Progress as TrainingProgress
    from midiloop.overview import Histogram, Overview
    from midiloop.train import Trained

BAR_WIDTH = 40
EIGHTHS = " ▏▎▍▌▋▊▉█"


def to_json(found: Any) -> str:
    """Indented JSON."""
    return json.dumps(found, indent=2, ensure_ascii=False)


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
            f"{counts['files']:,} files in {took_s:.1f} s"
            + (f" ({mined / took_s:,.0f} files/s)" if mined > 1000 else ""),
            f"{counts['loops']:,} loops, {counts['distinct_loops']:,} of them distinct, "
            f"from {counts['songs']:,} songs (rules {manifest['rules']['name']})",
        ]
        if self.resumed_files:
            lines[0] += f", {self.resumed_files:,} of them done by an earlier run"
        if counts["rejects"]:
            lines.append(
                f"no loop in {sum(counts['rejects'].values()):,} files: "
                + _by_reason(counts["rejects"])
            )
        lines.append(f"dataset: {out}   why a file gave none: {out / 'rejects.parquet'}")
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
            text = f"{files:,.0f} files, {rate:,.0f}/s, {progress.loops:,} loops"
            if progress.rejects:
                text += "\nno loop: " + _by_reason(dict(progress.rejects.most_common(6)))
            bar.update(task, completed=progress.seen, description=text)

        live.draw = draw
        yield live


@contextmanager
def counting(noun: str, total: int) -> Iterator[Callable[[], None]]:
    """Show how many of ``total`` are done."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(noun, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def training() -> Iterator[Callable[[str, TrainingProgress], None]]:
    """Show epochs, loss, validation error and speed, while a model trains."""
    if not sys.stderr.isatty():
        yield lambda *_: None
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
                tasks[stage] = bar.add_task("", total=progress.n_steps, stage=stage)
            terms = " ".join(f"{name} {_figure(value)}" for name, value in progress.terms.items())
            text = f"epoch {progress.epoch:.1f}, {terms}"
            if progress.error == progress.error:  # nan before the first epoch's end
                text += f", validation {_figure(progress.error)} (best {_figure(progress.best)})"
            text += f", {progress.loops_per_s:,.0f} loops/s"
            bar.update(tasks[stage], completed=progress.step, description=text)

        yield draw


def trained(stages: Sequence[Trained]) -> str:
    """What a training run came to."""
    return "\n".join(
        f"{stage.folder}: {stage.result.epochs} epochs, lowest validation "
        f"{stage.measure} {_figure(stage.result.best)}"
        for stage in stages
    )


def _by_reason(rejects: Mapping[str, int]) -> str:
    ordered = sorted(rejects.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered)


def overview(found: Overview, path: Path) -> str:
    """The report of ``midiloop inspect``."""
    manifest = found.manifest
    counts, rules = manifest["counts"], manifest["rules"]
    lines = [
        f"{path}: rules {rules['name']}, every {manifest['stride_bars']} bar(s), "
        f"from {', '.join(manifest['sources'])}",
        "",
        f"  files {counts['files']:>10,}",
        f"  songs {counts['songs']:>10,}   with a loop",
        f"  loops {counts['loops']:>10,}   "
        + ", ".join(f"{name} {n:,}" for name, n in counts["splits"].items()),
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
            "the paper's metrics of these loops",
            "  " + " ".join(f"{name:>9}" for name in found.metrics),
            "  " + " ".join(f"{_figure(value):>9}" for value in found.metrics.values()),
        ]
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:.2e}" if 0 < value < 0.01 else f"{value:.3f}"


def _table(title: str, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    rows = [
        f"  {reason:<20} {count:>8,}  {_bar(count, max(counts.values()))}"
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
