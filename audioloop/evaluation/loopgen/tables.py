"""Tables of a benchmark, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from audioloop.evaluation.loopgen import test_set
from audioloop.evaluation.loopgen.methods import METHODS, REFERENCES, SETTINGS
from audioloop.evaluation.loopgen.summary import (
    BASELINE,
    CONFIDENCE,
    FIXED,
    HEADINGS,
    MEANING,
    RESAMPLES,
    BenchmarkResult,
    controls,
    headline,
)
from midiloop.common import files
from midiloop.common.statistics import Interval, Paired

PAPER_GAIN = 55  # per cent, of the abstract of LoopGen's paper


def as_json(found: BenchmarkResult) -> dict[str, Any]:
    """All but the single loops, as JSON values."""
    tables = {
        setting: {
            name: {**METHODS[name]._asdict(), **{key: _plain(value) for key, value in row.items()}}
            for name, row in table.items()
        }
        for setting, table in found.tables.items()
    }
    return {
        "about": found.about,
        "meaning": MEANING,
        "settings": SETTINGS,
        "controls": controls(found),
        "headline": headline(found),
        "frechet_floor": found.floor,
        "tables": tables,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Paired):
        return {**value._asdict(), "indistinguishable": value.indistinguishable}
    return value._asdict() if isinstance(value, Interval) else value


def write(found: BenchmarkResult, out: Path) -> None:
    """Write ``benchmark.md`` and ``benchmark.json``."""
    text = json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n"
    files.write(out / "benchmark.json", text.encode())
    files.write(out / "benchmark.md", markdown(found).encode())


def _sampled(sampling: Mapping[str, Any], setting: str) -> str:
    steps, temperature, cfg_scale, top_p = (
        sampling[key][setting] for key in ("steps", "temperature", "cfg_scale", "top_p")
    )
    return (
        f"Steps {', '.join(map(str, steps))}, temperature {temperature:g}, CFG scale "
        f"{cfg_scale:g} at first, top-p {top_p:g}"
    )


def markdown(found: BenchmarkResult) -> str:
    """The tables as Markdown."""
    about = found.about
    settings, data, sampling = about["settings"], about["data"], about["sampling"]
    one_bar = sum(item["bars"] == 1 for item in found.items)
    shortest_s, longest_s = test_set.bounds_s(settings["window_s"])
    names = ", ".join(f"{name} {print_[:8]}" for name, print_ in about["models"].items())
    lines = [
        "# Benchmark of loop generation",
        "",
        f"{about['items']} loops of {data['test_loops']:,} in the test split (rules "
        f"{data['rules']}), {shortest_s:.3g} to {longest_s:.3g} s of whole bars (of one bar, "
        f"and so without another bar line: {one_bar}); SoundFont {data['soundfont']}. Window "
        f"{settings['window_s']:g} s. {_sampled(sampling, 'unconditioned')} without notes, "
        f"{_sampled(sampling, 'conditioned')} with them; choice temperature "
        f"{sampling['choice_temperature']:g} at first, the likeliest tokens of codebooks after the "
        f"first, rescoring weight {settings['rescoring_weight']:g}, seed {settings['seed']}. "
        f"Models: {names}. One thread on {about['machine']}, {about['workers']} at a time.",
        *([f"Lost: items {', '.join(map(str, about['lost']))}."] if about["lost"] else []),
        "",
        "## Main findings",
        "",
        *headlines(found),
        "",
        "Seam measures are best where they equal those of true tokens; for all others, lower is "
        f"better. Worse with 95 % confidence: in {CONFIDENCE:.1%} of {RESAMPLES} bootstrap "
        "samples of the loops.",
    ]
    for setting, what in SETTINGS.items():
        lines += [
            "",
            f"## {setting.capitalize()}: {what}",
            "",
            *_table(found.tables[setting]),
        ]
    lines += [
        "",
        f"Fréchet distance between two sets of {about['items']} renders each, of different loops: "
        f"{found.floor:.0f}. A method at this distance is no worse than renders.",
        "",
        'The column "paper" has the paper\'s own seam perplexity, of loops of up to 30 s by '
        "published models, under another model. Only the order can be compared.",
        "",
        "## Rows",
        "",
        *(f"- {name}: {row.how}" for name, row in METHODS.items()),
        "",
        "## Columns",
        "",
        *(f"- {heading}: {MEANING[name]}" for name, heading in HEADINGS.items()),
    ]
    return "\n".join(lines) + "\n"


def headlines(found: BenchmarkResult) -> Iterator[str]:
    """`controls` and `headline` as lines of Markdown."""
    for control, one in controls(found).items():
        line = gain_line(one)
        yield f"- control: seam perplexity lower than of {control} by the true render {line}."
    for setting, shown in headline(found).items():
        gains = ", ".join(f"{row} {gain_line(one)}" for row, one in shown["gain"].items())
        yield (
            f"- {setting}: seam perplexity lower than {BASELINE} by {gains}; the paper has "
            f"{PAPER_GAIN} %."
        )
        apart = found.tables[setting]["ring"]["difference"]
        if apart is not None:
            verdict = "includes 0" if apart.indistinguishable else "does not include 0"
            yield f"- {setting}: the ring's difference to its other bar lines {verdict}."
        for row, columns in shown["fixed_worse_in"].items():
            but = f" but {_names(columns)}" if columns else ""
            sure = shown["fixed_significantly_worse_in"][row]
            more = f"; with 95 % confidence: {_names(sure) or 'none'}" if columns else ""
            yield (
                f"- {setting}: {row} is at least as good as {FIXED[row]} in every "
                f"column{but}{more}."
            )


def gain_line(one: Mapping[str, float]) -> str:
    """A `summary.Gain` as text: its mean and its interval."""
    low = "under -1,000" if one["low"] < -1000 else f"{one['low']:.0f}"  # as of two or three loops
    return f"{one['mean']:.0f} % ({low} to {one['high']:.0f})"


def _names(columns: Sequence[str]) -> str:
    return ", ".join(HEADINGS[name] for name in columns)


def _table(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    headings = list(HEADINGS.values())
    head = ("", headings[0], "paper", *headings[1:])
    body = []
    for name, row in table.items():
        body.append(
            (
                name,
                plus_minus(row["seam"]),
                METHODS[name].paper or "–",
                plus_minus(row["seam_all"]),
                _within(row["difference"]),
                _figure(row["jump"]),
                _figure(row["residual"]),
                _whole(row["flux_percentile"]),
                _whole(row["bar_flux_percentile"]),
                _whole(row["wrap_error_db"]),
                _whole(row["frechet"]),
                "–" if name in REFERENCES else _figure(row["seconds"]),
            )
        )
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def plus_minus(found: Interval) -> str:
    """As in "56.2 ± 11.8"."""
    return f"{_figure(found.center)} ± {_figure(found.error)}"


def _within(found: Paired | None) -> str:
    return "–" if found is None else f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
