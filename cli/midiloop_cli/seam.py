"""The command that measures seams: audioloop seam.

The library is imported inside it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from midiloop.common.files import printable
from midiloop.errors import counted
from midiloop_cli import report
from midiloop_cli.dataset import INPUT, PATH, json_option, seed_option

if TYPE_CHECKING:
    from audioloop.codec.compression import CompressionModel
    from audioloop.evaluation.perplexity import LanguageModel, SeamPerplexity
    from audioloop.io.wave import Wave
    from audioloop.signal.seam import Figures, Seam
    from audioloop.signal.verdict import Verdict
    from midiloop.common.statistics import Interval, Paired

PICTURES = (".png", ".svg", ".pdf")
ENCODEC = "facebook/encodec_32khz"


class Ear(NamedTuple):
    """What perplexity is measured with: a codec, and a model that knows its codes."""

    codec: CompressionModel
    model: LanguageModel

    def perplexity(self, wave: Wave, bars: int | None) -> SeamPerplexity:
        """Of one loop."""
        from audioloop.evaluation import perplexity

        return perplexity.of_wave(wave, self.codec, self.model, bars)


class Measured(NamedTuple):
    """A file's seam, what is worth knowing of the file, and the picture of it."""

    file: str
    seam: Seam
    verdict: Verdict
    notes: list[str]
    picture: Path | None = None
    perplexity: SeamPerplexity | None = None

    def excess(self) -> float:
        """The larger of both, of what can be heard."""
        from audioloop.signal import verdict

        return verdict.excess(self.seam, self.verdict)


class Failed(NamedTuple):
    """A file whose seam could not be measured, and why, the file's name in front."""

    file: str
    error: str


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
@click.option("--codec", type=INPUT, metavar="RUN", help="The codec that it learned from.")
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
    from audioloop.io.sources import audio

    _check_ear(perplexity, causal_model or codec, musicgen, encodec)
    files = list(audio(sources))
    if out and out.suffix.lower() in PICTURES and len(files) > 1:
        raise click.UsageError("--out names one picture for several files; give a folder.")
    found: list[Measured | Failed] = []
    with report.counting("files", len(files)) as count:
        ear = _ear(causal_model, codec, musicgen, encodec or ENCODEC) if perplexity else None
        for path, place in _places(files, out):
            found.append(_measured(path, place, bars, seed, ear))
            count()
    measured = [one for one in found if isinstance(one, Measured)]
    failed = [one for one in found if isinstance(one, Failed)]
    over = [one.file for one in measured if limit is not None and one.excess() > limit]
    if as_json:
        report.echo(report.to_json(_as_json(found, over)))
    else:
        lines = _table(measured, len(found), over, limit)
        lines += _explained(measured) if explain and measured else []
        if lines:
            report.echo("\n".join(lines))
    for one in failed:
        report.error("audioloop", one.error)
    sys.exit(1 if over or failed else 0)


def _check_ear(
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


def _ear(causal_model: Path | None, codec: Path | None, musicgen: str | None, encodec: str) -> Ear:
    if musicgen:
        from audioloop.codec import encodec as published
        from audioloop.tokens import musicgen as generators

        generator, coder_of_it = generators.load(musicgen), published.load(encodec)
        generators.of_codec(generator, coder_of_it)
        return Ear(coder_of_it, generator)
    from audioloop.codec import compression
    from audioloop.tokens import pretrained

    own, trained = compression.load(codec), pretrained.load_causal(causal_model)
    pretrained.of_codec(trained, own)
    return Ear(own, trained)


def _places(files: Sequence[Path], out: Path | None) -> Iterator[tuple[Path, Path | None]]:
    """Each file, and where its picture goes."""
    from audioloop.io.label import Names, legal

    if out is None or (len(files) == 1 and out.suffix and not out.is_dir()):
        yield from ((path, out) for path in files)
        return
    out.mkdir(parents=True, exist_ok=True)
    names = Names()
    for path in files:
        stem = legal(path.stem)
        yield path, out / f"{stem + names.own(stem.__add__)}.png"


def _measured(
    path: Path, picture: Path | None, bars: int | None, seed: int, ear: Ear | None
) -> Measured | Failed:
    import numpy as np

    from audioloop.evaluation.plots import seam_plot
    from audioloop.io import metadata
    from audioloop.io.sources import errors_named
    from audioloop.signal import seam, verdict
    from midiloop.errors import LoopError

    name = printable(path)
    try:
        with errors_named(path):
            loop = metadata.read(path)
            rng = np.random.default_rng(seed)
            found = seam.measure(loop.repeats, bars=bars or loop.bars, rng=rng)
            judged = verdict.of(loop.repeats, found.bars)
            expected = ear.perplexity(loop.repeats, found.bars) if ear else None
        if picture:
            with errors_named(picture):
                seam_plot.draw(loop.repeats, found, picture, printable(path.name))
    except LoopError as error:
        return Failed(name, str(error))
    return Measured(name, found, judged, loop.remarks, picture, expected)


def _as_json(found: Sequence[Measured | Failed], over: list[str]) -> dict[str, Any]:
    from audioloop.signal.seam import CONTROLS, MEANING

    files = [_file_as_json(one) for one in found]
    shown = {"files": files, "above": over, "meaning": MEANING, "controls": CONTROLS}
    expected = _perplexities(found)
    if not expected:
        return shown
    from audioloop.evaluation import perplexity

    meaning = {**MEANING, **perplexity.MEANING, **perplexity.SUMMARY}
    return {**shown, "perplexity": perplexity.summary(expected).as_json(), "meaning": meaning}


def _perplexities(found: Sequence[Measured | Failed]) -> list[SeamPerplexity]:
    return [one.perplexity for one in found if isinstance(one, Measured) and one.perplexity]


def _file_as_json(one: Measured | Failed) -> dict[str, Any]:
    if isinstance(one, Failed):
        return {"file": one.file, "error": one.error}
    expected = one.perplexity.as_json() if one.perplexity else {}
    picture = one.picture and printable(one.picture)
    judged = {"bad": one.verdict.bad, "step": one.verdict.step, "notes": one.notes}
    return {"file": one.file, **judged, **one.seam.as_json(), **expected, "picture": picture}


def _table(found: list[Measured], n_files: int, over: list[str], limit: float | None) -> list[str]:
    """One seam with its controls, or a line for each of several; the verdicts first."""
    lines = _one(found[0]) if len(found) == n_files == 1 else list(_several(found))
    lines += [f"picture: {printable(one.picture)}" for one in found if one.picture and n_files == 1]
    return lines + [f"above {limit:g}: {file}" for file in over]


def _one(found: Measured) -> list[str]:
    from audioloop.signal import seam

    word = "bad" if found.verdict.bad else "ok "
    heard = "can be heard" if found.verdict.bad else "cannot be heard"
    lines = [f"{word} {found.file}  the seam {heard}: {found.verdict}"]
    lines += [f"    {note}" for note in found.notes]
    lines.append(f"{'':<14}{'joins':>6}{'jump':>18}{'residual':>18}{'flux percentile':>18}")
    for row in seam.rows(found.seam):
        lines.append(f"{_spoken(row.name):<14}{row.joins:>6}" + _cells(row.median, row.largest))
    among = found.seam.bar_flux_percentile
    if among is not None:
        lines.append(f"bar flux percentile {among:.0f}")
        over = ", ".join(f"{name} {value:.2f}" for name, value in found.seam.excess.items())
        lines.append(f"excess over the other bar lines: {over}")
    return lines + (_one_perplexity(found.perplexity) if found.perplexity else [])


def _explained(found: list[Measured]) -> list[str]:
    """What the figures that were shown mean."""
    from audioloop.evaluation import perplexity
    from audioloop.signal import seam, verdict

    barred = any(one.seam.bar_flux_percentile is not None for one in found)
    meaning = {"verdict": verdict.MEANING, **seam.MEANING}
    if barred:
        meaning["excess"] = seam.EXCESS
    else:
        del meaning["bar_flux_percentile"]
    if len(found) == 1:
        shown = found[0].seam.controls
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


def _several(found: list[Measured]) -> Iterator[str]:
    from audioloop.signal.verdict import percent

    expected = _perplexities(found)
    if found:
        names = f"{'jump':>8}{'step':>8}{'residual':>10}{'flux':>6}{'bar flux':>10}{'bars':>6}"
        more = f"{'perplexity':>12}{'all':>8}{'at bars':>9}{'all':>8}{'apart':>8}{'all':>8}"
        yield "   " + names + more * bool(expected) + "  file"
    for one in found:
        among, bars = one.seam.bar_flux_percentile, one.seam.bars
        cells = [
            "bad" if one.verdict.bad else "ok ",
            f"{_figure(one.seam.figures.jump):>8}",
            f"{percent(one.verdict.step):>8}",
            f"{_figure(one.seam.figures.residual):>10}",
            f"{one.seam.figures.flux_percentile:>6.0f}",
            f"{'–' if among is None else f'{among:.0f}':>10}",
            f"{'–' if bars is None else bars:>6}",
        ]
        if one.perplexity:
            shown = zip((12, 8, 9, 8, 8, 8), one.perplexity.measures.values(), strict=True)
            cells += [f"{_figure(value):>{width}}" for width, value in shown]
        yield "".join(cells) + f"  {one.file}"
        yield from (f"    {note}" for note in one.notes)
    if len(found) > 1:
        bad = sum(one.verdict.bad for one in found)
        yield f"{counted(len(found), 'file')}, " + (f"{bad:,} of them bad" if bad else "all right")
    if expected:
        yield from _all_perplexities(expected)


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
