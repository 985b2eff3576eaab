from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midiloop.errors import LoopError
from midiloop.grid import LOOP, Roll
from midiloop.plotting import figures, plot
from pictures import SIGNATURES, groove, outlines

matplotlib = pytest.importorskip("matplotlib")

History = list[dict[str, float]]
DRUMS, BASS = plot.FAMILIES["kick"], plot.BASS


def falling(epochs: int, loss: float = 4.0, error: float = 0.01) -> History:
    """A history as the trainer writes it."""
    return [
        {"epoch": n, "loss": loss / n, "nats": 500 / n, "error": error / n, "learning_rate": 1e-3}
        for n in range(1, epochs + 1)
    ]


def rows(*values: float) -> History:
    return [{"epoch": n, "loss": value, "error": value} for n, value in enumerate(values, 1)]


def spoilt() -> Roll:
    """The groove without its first kick, and with a snare that it lacks."""
    roll = groove()
    roll[0, LOOP.drum_column("kick")] = False
    roll[4, LOOP.drum_column("snare")] = True
    return roll


def draw(kind: str, path: Path, name: str = "one") -> None:
    """Draw one of each figure."""
    if kind == "curves":
        figures.curves({name: falling(9), "two": falling(4, 2.0)}, path)
    elif kind == "codes":
        rows = [np.arange(32), np.zeros(8, np.int64)]
        figures.codes(rows, ["rising", name], path, codebook_size=64)
    else:
        rolls = np.stack([groove(), spoilt()])
        figures.reconstructions(rolls, {name: rolls[::-1]}, path)


@pytest.mark.parametrize("kind", ["curves", "codes", "reconstructions"])
@pytest.mark.parametrize("suffix", sorted(SIGNATURES))
def test_a_figure_becomes_one_file_with_the_same_bytes_each_time(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    files = [tmp_path / f"{n}{suffix}" for n in range(3)]
    draw(kind, files[0])
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": None}):
        draw(kind, files[1])
    draw(kind, files[2], name="another")
    first, second, other = (file.read_bytes() for file in files)
    assert first.startswith(SIGNATURES[suffix])
    assert first == second != other
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize("kind", ["curves", "codes", "reconstructions"])
def test_impossible_files_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(LoopError, match=r"\.png, \.svg, \.pdf"):
        draw(kind, tmp_path / "figure.gif")
    with pytest.raises(LoopError, match="make it first"):
        draw(kind, tmp_path / "nowhere" / "figure.png")
    assert not list(tmp_path.iterdir())


def test_importing_the_module_loads_neither_matplotlib_nor_torch() -> None:
    code = (
        "import sys, midiloop.plotting.figures; "
        "sys.exit(bool({'matplotlib', 'torch'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Curves


def test_each_run_has_a_colour_a_name_and_a_dot_at_its_lowest_error(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    figures.curves({"alpha": falling(5), "beta": falling(5, 9.0)}, path)
    shapes, svg = outlines(path), path.read_text()
    for colour in figures.COLOURS[:2]:
        assert shapes[f"stroke {colour}"] == 2 * 3, "a line and two parts of its leader, twice"
        assert shapes[f"fill {colour}"] == 1
    for text, times in {"alpha": 2, "beta": 2, "training loss": 1, "epoch": 2}.items():
        assert svg.count(f"<!-- {text} -->") == times
    assert "stroke-dasharray" not in svg, "both reach the last epoch"


def test_dots_lead_a_run_that_stopped_early_to_its_name(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    figures.curves({"alpha": falling(9), "beta": falling(5, 9.0)}, path)
    assert path.read_text().count("stroke-dasharray") == 2


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_a_value_without_a_place_on_the_scale_breaks_the_line(tmp_path: Path, hole: float) -> None:
    path = tmp_path / "curves.svg"
    colour = figures.COLOURS[0]
    figures.curves({"run": rows(4.0, 3.0, hole, 2.0, hole, hole, 1.0, 0.5)}, path)
    shapes = outlines(path)
    assert shapes[f"stroke {colour}"] == 2 * (2 + 2), "two pieces of line, and the leader"
    assert shapes[f"fill {colour}"] == 2 * 1 + 1, "the lone point between, and the lowest"


def test_a_measure_that_no_run_has_leaves_its_panel_empty(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    figures.curves({"run": [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]}, path)
    assert "<!-- no number to draw -->" in path.read_text()
    assert path.read_text().count("<!-- run -->") == 1


@pytest.mark.parametrize(
    "history",
    [
        falling(1),
        falling(2),
        falling(3000),
        rows(1.0, 1.0, 1.0),
        rows(1e-12, 1e9),
        rows(1.0, 1.0 + 1e-9),
        rows(382.5, 395.2),
        falling(20)[12:],
    ],
    ids=["one", "two", "many", "constant", "wide", "narrow", "linear", "resumed"],
)
def test_histories_of_every_kind(tmp_path: Path, history: History) -> None:
    figures.curves({"run": history, "夜 $x_1$": falling(3)}, tmp_path / "a.svg")
    figures.curves({"": history}, tmp_path / "b.png")
    drawn = outlines(tmp_path / "a.svg")
    assert all(drawn[f"fill {colour}"] >= 1 for colour in figures.COLOURS[:2]), "a dot for each run"
    assert (tmp_path / "b.png").read_bytes().startswith(SIGNATURES[".png"])


def test_many_runs_keep_their_names_apart(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    figures.curves({f"run {n}": falling(4 + n % 3) for n in range(40)}, path)
    assert all(path.read_text().count(f"<!-- run {n} -->") == 2 for n in range(40))


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ({}, "there is no run to draw"),
        ({"good": falling(3), "bad": []}, "'bad' has no loss and no error"),
        ({"bad": rows(math.nan, 0.0)}, "'bad' has no loss and no error"),
        ({"bad": [{"loss": 1.0}]}, "a record of 'bad' has no epoch"),
    ],
)
def test_runs_without_a_curve_are_refused(
    tmp_path: Path, histories: dict[str, History], message: str
) -> None:
    path = tmp_path / "curves.png"
    with pytest.raises(LoopError, match=message) as error:
        figures.curves(histories, path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert not path.exists()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.4, 20.5, [0.5, 1, 2, 5, 10, 20]),
        (1e-4, 1.0, [1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        (0.3, 40.0, [0.3, 1, 3, 10, 30]),
        (381.0, 396.0, [385, 390, 395]),
        (2.0, 9.0, [2, 3, 4, 6, 8]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float, expected: list[float]) -> None:
    assert figures.value_ticks(low, high) == expected


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (1, 15, [1, 5, 10, 15]),
        (1, 10, [2, 4, 6, 8, 10]),
        (1, 2, [1, 2]),
        (1, 6, [1, 2, 3, 4, 5, 6]),
        (0, 2, [0, 1, 2]),
        (1, 2000, [1, 500, 1000, 1500, 2000]),
        (13, 20, [14, 16, 18, 20]),
    ],
)
def test_ticks_of_epochs(first: float, last: float, expected: list[float]) -> None:
    assert figures.epoch_ticks(first, last) == expected


def test_names_move_apart_as_little_as_it_takes() -> None:
    assert figures.spread_out([10, 50], 10, 0, 100) == [10, 50]
    assert figures.spread_out([20, 20], 10, 0, 100) == [15, 25]
    assert figures.spread_out([20, 20, 28, 90], 10, 0, 100) == pytest.approx(
        [38 / 3, 68 / 3, 98 / 3, 90]
    )
    assert figures.spread_out([0, 1], 10, 0, 100) == [0, 10]
    assert figures.spread_out([99, 100], 10, 0, 100) == [90, 100]
    assert figures.spread_out([5, 5, 5], 10, 0, 10) == [0, 10, 20], "no room: too low, but apart"


# Codes


def test_every_code_is_a_mark(tmp_path: Path) -> None:
    figures.codes([np.arange(32)] * 3, ["a", "b", "c"], tmp_path / "a.svg", codebook_size=64)
    assert outlines(tmp_path / "a.svg")[f"fill {plot.INK}"] == 3 * 32


def test_a_mark_stands_at_its_step_and_its_index(tmp_path: Path) -> None:
    path = tmp_path / "codes.svg"
    figures.codes([np.array([0, 3, 1, 3])], ["a"], path, codebook_size=4)
    marks = path.read_text().split(f"fill: {plot.INK.lower()}")[0].rsplit('<path d="', 1)[1]
    starts = [line.split()[1:3] for line in marks.splitlines() if line.startswith("M")]
    x, y = np.array(starts, float).T
    assert np.allclose(np.diff(x), figures.CODES_WIDTH / 4 * 0.72, atol=1e-3)
    assert y[0] > y[2] > y[1] == y[3], "a larger index is higher up, which is less in an SVG"
    assert (y[0] - y[2]) * 3 == pytest.approx(y[0] - y[1], abs=1e-3)


@pytest.mark.parametrize("steps", [1, 4, 7, 8, 32, 64, 128])
@pytest.mark.parametrize("size", [1, 2, 5, 512, 100_000])
def test_codes_of_every_size(tmp_path: Path, steps: int, size: int) -> None:
    row = np.full(steps, size - 1, np.int32)
    titles = ["夜 $x_1$", "a long title " * 20, ""]
    figures.codes([row] * 3, titles, tmp_path / "a.svg", codebook_size=size)
    assert outlines(tmp_path / "a.svg")[f"fill {plot.INK}"] == 3 * steps


@pytest.mark.parametrize(
    ("rows", "titles", "message"),
    [
        ([], [], "there are no codes"),
        ([np.zeros(8, int)], ["a", "b"], "expected 1 title, got 2"),
        ([np.zeros(8)], ["a"], r"integer codes \(T,\) for 'a', got float64"),
        ([np.zeros((3, 8), int)], ["a"], r"got int64 \(3, 8\)"),
        ([np.array(3)], ["a"], r"got int64 \(\)"),
        ([np.zeros(0, int)], ["a"], r"got int64 \(0,\)"),
        ([np.full(8, 16)], ["a"], "expected 0 to 15, got 16 to 16"),
        ([np.full(8, -1)], ["a"], "expected 0 to 15, got -1 to -1"),
    ],
)
def test_other_codes_are_refused(
    tmp_path: Path, rows: list[figures.Codes], titles: list[str], message: str
) -> None:
    path = tmp_path / "codes.png"
    with pytest.raises(LoopError, match=message) as error:
        figures.codes(rows, titles, path, codebook_size=16)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert not path.exists()


# The most and the least frequent codes


def test_frequent_codes_by_hand() -> None:
    # At step 0: 5 three times, 2 twice, 7 once; at step 1: 1 and 4 three times each.
    codes = np.array([[5, 5, 5, 2, 2, 7], [4, 1, 4, 1, 4, 1]]).T  # (6, 2)
    expected = {0: [5, 1], 1: [2, 4], 2: [7, 4], 9: [7, 4], -1: [7, 1], -2: [2, 4], -3: [5, 4]}
    for rank, picked in expected.items():
        assert figures.frequent_codes(codes, 8, rank).tolist() == picked


def test_frequent_codes_of_one_loop_are_its_own() -> None:
    codes = np.arange(12)[None]
    for rank in (-3, -1, 0, 5):
        assert (figures.frequent_codes(codes, 12, rank) == codes[0]).all()


@pytest.mark.parametrize("rank", [-40, -2, -1, 0, 1, 3, 40])
def test_frequent_codes_are_those_of_a_plain_count(rank: int) -> None:
    codes = np.random.default_rng(0).integers(0, 9, (30, 10), dtype=np.int16)
    found = figures.frequent_codes(codes, 11, rank)
    assert found.shape == (10,)
    for t in range(10):
        counts = Counter(codes[:, t].tolist())
        ranked = sorted(counts, key=lambda k: (-counts[k] if rank >= 0 else counts[k], k))
        assert found[t] == ranked[min(rank if rank >= 0 else -1 - rank, len(ranked) - 1)]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((4, 3)), "integer codes .* got float64"),
        (np.zeros((4, 2, 3), int), r"got int64 \(4, 2, 3\)"),
        (np.zeros((0, 3), int), r"got int64 \(0, 3\)"),
        (np.full((4, 3), 8), "codes: expected 0 to 7, got 8 to 8"),
    ],
)
def test_codes_outside_the_dictionary_have_no_frequency(codes: figures.Codes, message: str) -> None:
    with pytest.raises(LoopError, match=message):
        figures.frequent_codes(codes, 8, 0)


# Reconstructions


def test_a_row_holds_the_original_and_what_each_model_made_of_it(tmp_path: Path) -> None:
    path = tmp_path / "reconstructions.svg"
    originals = np.stack([groove()] * 3)
    others = {"perfect": originals, "poor": np.stack([spoilt()] * 3)}
    figures.reconstructions(originals, others, path)
    svg, shapes = path.read_text(), outlines(path)
    for text, times in {
        "original": 3, "perfect": 3, "poor": 3,
        "0 missed, 0 added": 3, "1 missed, 1 added": 3,
    }.items():  # fmt: skip
        assert svg.count(f"<!-- {text} -->") == times
    assert shapes[f"stroke {plot.MISSED}"] == shapes[f"fill {plot.ADDED}"] == 3 + 1
    assert shapes[f"fill {plot.BASS}"] == 3 * 32, "the originals alone"


def test_the_rows_of_the_bass_are_those_of_the_loop_that_reaches_furthest(tmp_path: Path) -> None:
    originals, high = groove()[None], groove()[None]
    high[0, 8, LOOP.n_drums + 60] = True
    near, far = tmp_path / "near.svg", tmp_path / "far.svg"
    figures.reconstructions(originals, {"a": originals, "b": originals}, near)
    figures.reconstructions(originals, {"a": originals, "b": high}, far)
    black = "fill " + plot.BLACK_KEY[:7]
    assert outlines(near)[black] % 3 == outlines(far)[black] % 3 == 0
    assert outlines(far)[black] > 2 * outlines(near)[black]


def test_originals_alone_are_drawn_too(tmp_path: Path) -> None:
    path = tmp_path / "originals.svg"
    figures.reconstructions(groove()[None], {}, path)
    assert "<!-- original -->" in path.read_text()
    assert "missed" not in path.read_text()


def test_other_rolls_are_refused(tmp_path: Path) -> None:
    path, rolls = tmp_path / "reconstructions.png", np.stack([groove()] * 2)
    wrong: list[Any] = [rolls[:1], rolls[:, :-1], rolls.astype(np.float32)]
    for others in wrong:
        with pytest.raises(LoopError, match=r"of 'model', got .*; reconstruct the loops"):
            figures.reconstructions(rolls, {"model": others}, path)
    with pytest.raises(LoopError, match="no loop to draw"):
        figures.reconstructions(rolls[:0], {"model": rolls[:0]}, path)
    with pytest.raises(LoopError, match="expected bool rolls"):
        figures.reconstructions(rolls[:, :-1], {"model": rolls[:, :-1]}, path)
    assert not path.exists()
