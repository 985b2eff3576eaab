"""The command that measures seams: audioloop seam.

The library is imported inside it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from midiloop.common.files import printable
from midiloop.errors import counted
from midiloop_cli import report
from midiloop_cli.dataset import INPUT, PATH, json_option, seed_option

if TYPE_CHECKING:
    from audioloop.evaluation.perplexity import SeamPerplexity
    from audioloop.evaluation.seam_report import FailedFile, FileReport, Scorer, SeamReport
    from audioloop.signal.seam import Figures
    from midiloop.common.statistics import Interval, Paired

PICTURES = (".png", ".svg", ".pdf")
ENCODEC = "facebook/encodec_32khz"


@click.command()
@click.argument("sources", nargs=-1, required=True, type=INPUT, metavar="FILE|FOLDER...")
@click.option("--bars", type=click.IntRange(1), help="Bars, in place of what each file says.")
@click.option(
    "-o", "--out", type=PATH, help="Picture of one file's seam (.png, .svg, .pdf), or a folder."
)
@click.option(
    "--fail-above", "limit", type=click.FloatRange(0), metavar="X",
    help="Exit with 1 where the jump or the residual at a seam can be heard, is over X times its "
    "local median and, where bars are known, over X times the largest at its other bar lines.",
)  # fmt: skip
@click.option("--explain", is_flag=True, help="Say what each figure means, as --json always does.")
@seed_option
@click.option(
    "--perplexity", is_flag=True,
    help="Measure as well how unlikely a model of codes finds what follows the seam.",
)  # fmt: skip
@click.option("--causal-model", type=INPUT, metavar="RUN", help="A causal model that you trained.")
@click.option("--codec", type=INPUT, metavar="RUN", help="The codec that it was trained with.")
@click.option(
    "--musicgen", metavar="NAME",
    help="A published MusicGen instead, as a folder or as NAME or NAME@REVISION of Hugging Face.",
)  # fmt: skip
@click.option("--encodec", metavar="NAME", help=f"The EnCodec of a MusicGen.  [default: {ENCODEC}]")
@json_option
def seam(
    sources: tuple[Path, ...],
    bars: int | None,
    out: Path | None,
    limit: float | None,
    explain: bool,
    seed: int,
    perplexity: bool,
    causal_model: Path | None,
    codec: Path | None,
    musicgen: str | None,
    encodec: str | None,
    as_json: bool,
) -> None:
    """Say whether the seams of loops can be heard, and measure them beside bar lines and controls.

    The verdict is the one of audioloop check. Exit with 0 unless a file cannot be measured, or is
    above --fail-above.
    """
    from audioloop.evaluation import seam_report
    from audioloop.io.sources import audio

    _check_scorer(perplexity, causal_model or codec, musicgen, encodec)
    files = list(audio(sources))
    if out and out.suffix.lower() in PICTURES and len(files) > 1:
        raise click.UsageError("--out names one picture for several files; give a folder.")
    found: list[FileReport | FailedFile] = []
    with report.counting("files", len(files)) as count:
        scorer = _scorer(causal_model, codec, musicgen, encodec) if perplexity else None
        for one in seam_report.run(files, out, bars=bars, seed=seed, scorer=scorer):
            found.append(one)
            count()
    _report(found, limit, explain=explain, as_json=as_json)


def _report(
    found: Sequence[FileReport | FailedFile], limit: float | None, *, explain: bool, as_json: bool
) -> NoReturn:
    """Print what was found, and exit."""
    from audioloop.evaluation.seam_report import FailedFile, FileReport

    measured = [one for one in found if isinstance(one, FileReport)]
    failed = [one for one in found if isinstance(one, FailedFile)]
    over = _above(measured, limit)
    if as_json:
        report.echo(report.to_json(_as_json(found, measured, over)))
    else:
        _print(measured, len(found), over, limit, explain=explain)
    for one in failed:
        report.error("audioloop", one.error)
    sys.exit(1 if over or failed else 0)


def _above(found: Sequence[FileReport], limit: float | None) -> list[str]:
    """Files whose seams are above a limit."""
    return [] if limit is None else [one.file for one in found if one.report.excess > limit]


def _print(
    found: list[FileReport], n_files: int, over: list[str], limit: float | None, *, explain: bool
) -> None:
    lines = _table(found, n_files, over, limit)
    lines += _explained(found) if explain and found else []
    if lines:
        report.echo("\n".join(lines))


def _check_scorer(
    perplexity: bool, own: Path | None, musicgen: str | None, encodec: str | None
) -> None:
    if (own or musicgen or encodec) and not perplexity:
        raise click.UsageError("A model or a codec measures perplexity; give --perplexity as well.")
    if own and (musicgen or encodec):
        raise click.UsageError(
            "--causal-model and --codec are of one kind, --musicgen and --encodec of another; "
            "give one."
        )
    if encodec and not musicgen:
        raise click.UsageError("--encodec is the codec of a MusicGen; give --musicgen as well.")


def _scorer(
    causal_model: Path | None, codec: Path | None, musicgen: str | None, encodec: str | None
) -> Scorer:
    from audioloop.evaluation.seam_report import Scorer

    if musicgen:
        from audioloop.codec import encodec as published
        from audioloop.tokens import musicgen as generators

        generator, its_codec = generators.load(musicgen), published.load(encodec or ENCODEC)
        generators.of_codec(generator, its_codec)
        return Scorer(its_codec, generator)
    from audioloop.codec import compression
    from audioloop.tokens import pretrained

    own, trained = compression.load(codec), pretrained.load_causal(causal_model)
    pretrained.of_codec(trained, own)
    return Scorer(own, trained)


def _as_json(
    found: Sequence[FileReport | FailedFile], measured: Sequence[FileReport], over: list[str]
) -> dict[str, Any]:
    from audioloop.signal.seam import CONTROLS, MEANING

    rows = [_row(one) for one in found]
    shown = {"files": rows, "above": over, "meaning": MEANING, "controls": CONTROLS}
    expected = _perplexities(measured)
    if not expected:
        return shown
    from audioloop.evaluation import perplexity

    meaning = {**MEANING, **perplexity.MEANING, **perplexity.SUMMARY}
    return {**shown, "perplexity": perplexity.summary(expected).as_json(), "meaning": meaning}


def _perplexities(found: Sequence[FileReport]) -> list[SeamPerplexity]:
    return [one.report.perplexity for one in found if one.report.perplexity]


def _row(one: FileReport | FailedFile) -> dict[str, Any]:
    """A file as JSON holds it."""
    from audioloop.evaluation.seam_report import FailedFile

    if isinstance(one, FailedFile):
        return one._asdict()
    figures = one.report.as_json()
    judged = {"bad": figures.pop("bad"), "step": figures.pop("step"), "notes": one.notes}
    return {
        "file": one.file,
        **judged,
        **figures,
        "picture": one.picture and printable(one.picture),
    }


def _table(
    found: list[FileReport], n_files: int, over: list[str], limit: float | None
) -> list[str]:
    """One seam with its controls, or a line for each of several; the verdicts first."""
    lines = _one(found[0]) if len(found) == n_files == 1 else list(_several(found))
    lines += [f"picture: {printable(one.picture)}" for one in found if one.picture and n_files == 1]
    return lines + [f"above {limit:g}: {file}" for file in over]


def _one(found: FileReport) -> list[str]:
    from audioloop.signal import seam

    word = "bad" if found.report.verdict.bad else "ok "
    heard = "can be heard" if found.report.verdict.bad else "cannot be heard"
    lines = [f"{word} {found.file}  the seam {heard}: {found.report.verdict}"]
    lines += [f"    {note}" for note in found.notes]
    lines.append(f"{'':<14}{'joins':>6}{'jump':>18}{'residual':>18}{'flux percentile':>18}")
    for row in seam.rows(found.report.seam):
        lines.append(f"{_spoken(row.name):<14}{row.joins:>6}" + _cells(row.median, row.largest))
    among = found.report.seam.bar_flux_percentile
    if among is not None:
        lines.append(f"bar flux percentile {among:.0f}")
        over = ", ".join(f"{name} {value:.2f}" for name, value in found.report.seam.excess.items())
        lines.append(f"excess over the other bar lines: {over}")
    return lines + (_one_perplexity(found.report.perplexity) if found.report.perplexity else [])


def _explained(found: list[FileReport]) -> list[str]:
    """What the figures that were shown mean."""
    from audioloop.evaluation import perplexity
    from audioloop.signal import seam, verdict

    barred = any(one.report.seam.bar_flux_percentile is not None for one in found)
    meaning = {"verdict": verdict.MEANING, **seam.MEANING}
    if barred:
        meaning["excess"] = seam.EXCESS
    else:
        del meaning["bar_flux_percentile"]
    if len(found) == 1:
        shown = found[0].report.seam.controls
        meaning |= {name: text for name, text in seam.CONTROLS.items() if name in shown}
        meaning["in brackets, beside a median"] = "the largest"
    if _perplexities(found):
        meaning |= perplexity.MEANING
    return ["", *(f"{_spoken(name)}: {text}" for name, text in meaning.items())]


def _one_perplexity(found: SeamPerplexity) -> list[str]:
    shown = found.measures
    return [
        f"{_spoken(name)} {_figure(shown[name])}, of all codebooks {_figure(shown[f'{name}_all'])}"
        for name in ("perplexity", "bar_perplexity", "difference_nats")
        if shown[name] is not None
    ]


def _cells(median: Figures, largest: Figures | None) -> str:
    cells = [_figure(value) for value in median[:2]] + [f"{median.flux_percentile:.0f}"]
    if largest:
        most = [_figure(value) for value in largest[:2]] + [f"{largest.flux_percentile:.0f}"]
        cells = [f"{cell} ({top})" for cell, top in zip(cells, most, strict=True)]
    return "".join(f"{cell:>18}" for cell in cells)


def _several(found: list[FileReport]) -> Iterator[str]:
    """A line for each file under a line of names, and one for all."""
    expected = _perplexities(found)
    if found:
        names = f"{'jump':>8}{'step':>8}{'residual':>10}{'flux':>6}{'bar flux':>10}{'bars':>6}"
        more = f"{'perplexity':>12}{'all':>8}{'at bars':>9}{'all':>8}{'apart':>8}{'all':>8}"
        yield "   " + names + more * bool(expected) + "  file"
    for one in found:
        yield _line(one.report) + f"  {one.file}"
        yield from (f"    {note}" for note in one.notes)
    if len(found) > 1:
        bad = sum(one.report.verdict.bad for one in found)
        yield f"{counted(len(found), 'file')}, " + (f"{bad:,} of them bad" if bad else "all right")
    if expected:
        yield from _all_perplexities(expected)


def _line(one: SeamReport) -> str:
    from audioloop.signal.verdict import percent

    figures, among, bars = one.seam.figures, one.seam.bar_flux_percentile, one.seam.bars
    cells = [
        "bad" if one.verdict.bad else "ok ",
        f"{_figure(figures.jump):>8}",
        f"{percent(one.verdict.step):>8}",
        f"{_figure(figures.residual):>10}",
        f"{figures.flux_percentile:>6.0f}",
        f"{'–' if among is None else f'{among:.0f}':>10}",
        f"{'–' if bars is None else bars:>6}",
    ]
    if one.perplexity:
        shown = zip((12, 8, 9, 8, 8, 8), one.perplexity.measures.values(), strict=True)
        cells += [f"{_figure(value):>{width}}" for width, value in shown]
    return "".join(cells)


def _all_perplexities(found: list[SeamPerplexity]) -> Iterator[str]:
    from audioloop.evaluation import perplexity

    summed = perplexity.summary(found)
    for place, first, all_ in (
        ("seams", summed.seam, summed.seam_all),
        ("other bar lines", summed.bars, summed.bars_all),
    ):
        if first and all_:
            of_all = f"of all codebooks {_plus_minus(all_)}"
            yield f"perplexity at {place} {_plus_minus(first)}, {of_all}"
    if summed.difference and summed.difference_all:
        yield (
            f"seam less other bar lines, mean of {summed.difference.n} in nats: "
            f"{_within(summed.difference)}; of all codebooks {_within(summed.difference_all)}"
        )


def _plus_minus(found: Interval) -> str:
    return f"{_figure(found.center)} ± {_figure(found.error)}"


def _within(found: Paired) -> str:
    verdict = ", indistinguishable" if found.indistinguishable else ""
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}{verdict})"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _spoken(name: str) -> str:
    return name.replace("_", " ")
