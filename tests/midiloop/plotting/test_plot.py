from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import handmade
from handmade import TPQ
from midiloop.common import canvas
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import LoopError
from midiloop.grid import LOOP, Drum, Grid, Roll, TimeSignature
from midiloop.midi import pianoroll, score
from midiloop.midi.score import Meter
from midiloop.plotting import contact_sheet, plot
from pictures import SIGNATURES, groove, outlines

matplotlib = pytest.importorskip("matplotlib")

ODD_TITLES = (
    "",
    "   ",
    "costs $5, or $6_a^b \\frac{x}",
    "two\nlines\tand\x00a null",
    "夜に駆ける \U0001f3b5 ver. 2.mid",
    "bad bytes \udcff\udce9.mid",
    "e\u0301te\u0301, Привет, Ελλάδα, شكرا",
    "a name that is far too long for any tile " * 5,
)


def fits(room: int, line: str) -> bool:
    return len(line) <= room


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_one_loop_becomes_one_file_of_the_named_kind(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"loop{suffix}"
    plot.draw(plot.Picture(groove(), "A groove", 120.0), path)
    assert path.read_bytes().startswith(SIGNATURES[suffix.lower()])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", sorted(SIGNATURES))
def test_the_same_sheet_has_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    pictures = [plot.Picture(groove(), f"song {n}", 90.0 + n) for n in range(4)]
    files = [tmp_path / f"{n}{suffix}" for n in range(3)]
    plot.contact_sheet(pictures, files[0], title="Loops")
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": None, "path.snap": False}):
        plot.contact_sheet(pictures, files[1], title="Loops")
        assert matplotlib.rcParams["font.size"] == 30
    plot.contact_sheet([*pictures[:3], plot.Picture(groove(), "another")], files[2], title="Loops")
    first, second, other = (file.read_bytes() for file in files)
    assert first == second != other


def test_threads_draw_the_same_as_one_after_the_other(tmp_path: Path) -> None:
    picture = plot.Picture(groove(), "threads")
    files = [tmp_path / f"{n}.svg" for n in range(4)]
    threads = [threading.Thread(target=plot.draw, args=(picture, file)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize("title", ODD_TITLES)
def test_any_title_is_drawn_without_a_warning(tmp_path: Path, title: str) -> None:
    picture = plot.Picture(groove(), title)
    plot.draw(picture, tmp_path / "loop.svg")
    plot.contact_sheet([picture, picture], tmp_path / "sheet.svg", title=title)
    once, twice = outlines(tmp_path / "loop.svg"), outlines(tmp_path / "sheet.svg")
    bass = f"fill {plot.BASS}"
    assert twice[bass] == 2 * once[bass] > 0, "the loop is drawn whatever its title"


def test_file_names_with_odd_characters(tmp_path: Path) -> None:
    path = tmp_path / "ünï 夜 $1$ #%.v2.png"
    plot.draw(plot.Picture(groove()), path)
    assert path.stat().st_size > 1000


def test_a_title_loses_its_middle_and_keeps_its_ends() -> None:
    text = "The beginning of a long name.mid"
    for room in range(1, len(text)):
        short = canvas.shorten(text, partial(fits, room))
        head, tail = short.split("…")
        assert len(short) <= room
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(short) >= room - 2, "no more is lost than the blanks beside the ellipsis"
    assert canvas.shorten(text, lambda line: True) == text


def test_rolls_of_every_kind(tmp_path: Path) -> None:
    silent = np.zeros((LOOP.steps, LOOP.columns), dtype=bool)
    drums, bass = groove(), groove()
    drums[:, LOOP.n_drums :] = False
    bass[:, : LOOP.n_drums] = False
    rolls = [silent, drums, bass, ~silent, groove(1), groove(3), groove(16), groove(40)]
    plot.contact_sheet([plot.Picture(roll) for roll in rolls], tmp_path / "all.png", columns=99)
    assert (tmp_path / "all.png").read_bytes().startswith(SIGNATURES[".png"])
    for roll in rolls:
        plot.draw(plot.Picture(roll), tmp_path / "one.svg")
        drawn = outlines(tmp_path / "one.svg")[f"fill {plot.BASS}"]
        assert bool(drawn) == bool(roll[:, LOOP.n_drums :].any())


@pytest.mark.parametrize(
    ("pitches", "expected"),
    [
        ([], range(24, 37)),
        ([24], range(24, 37)),
        ([107], range(95, 108)),
        ([40], range(34, 47)),
        ([40, 60], range(39, 62)),
        ([24, 107], range(24, 108)),
    ],
)
def test_bass_lane_shows_the_used_pitches_and_at_least_an_octave(
    pitches: list[int], expected: range
) -> None:
    roll = np.zeros((LOOP.steps, LOOP.columns), dtype=bool)
    roll[0, [LOOP.n_drums + pitch - LOOP.lowest_pitch for pitch in pitches]] = True
    assert plot._pitch_range(roll, LOOP) == expected


def test_drums_have_distinct_short_names() -> None:
    short = [plot._short(drum.name) for drum in LOOP.drums]
    assert short == ["K", "S", "CH", "LT", "OH", "MT", "CR", "HT", "RD"]


def test_another_grid(tmp_path: Path) -> None:
    kit = (Drum("cowbell", 56, (56,)), Drum("kick", 36, (36,)))
    grid = Grid(bars=2, steps_per_beat=3, drums=kit, lowest_pitch=30, highest_pitch=35)
    roll = np.random.default_rng(0).random((grid.steps, grid.columns)) < 0.2
    plot.draw(plot.Picture(roll), tmp_path / "loop.png", grid=grid)
    plot.contact_sheet([plot.Picture(roll)] * 2, tmp_path / "sheet.png", grid=grid)
    for name in ("loop.png", "sheet.png"):
        assert (tmp_path / name).read_bytes().startswith(SIGNATURES[".png"])


def test_a_reference_marks_what_was_missed_and_what_was_added(tmp_path: Path) -> None:
    meant, roll = groove(), groove()
    meant[[1, 5], LOOP.drum_column("snare")] = True  # two missed
    roll[0, LOOP.drum_column("crash")] = False  # a third
    meant[0, LOOP.drum_column("crash")] = True
    roll[9:11, LOOP.n_drums + 30] = True  # one note of two cells added
    one, sheet = tmp_path / "one.svg", tmp_path / "sheet.svg"
    plot.draw(plot.Picture(roll, "a", 90.0, reference=meant), one)
    plot.contact_sheet([plot.Picture(meant), plot.Picture(roll, reference=meant)], sheet)
    for file in (one, sheet):
        shapes = outlines(file)
        assert shapes[f"stroke {plot.MISSED}"] == 3 + 1, "and one in the legend"
        assert shapes[f"fill {plot.ADDED}"] == 1 + 1
        assert "3 missed, 2 added" in file.read_text()
    assert outlines(one)[f"fill {plot.KEPT}"] == 32 + 32 + 32 + 1
    assert f"fill {plot.BASS}" not in outlines(one), "colours of instruments are for what is whole"
    assert "3 missed, 2 added, 90 bpm" in one.read_text()


def test_the_exact_roll_has_nothing_but_grey_notes(tmp_path: Path) -> None:
    path = tmp_path / "same.svg"
    plot.draw(plot.Picture(groove(), reference=groove()), path)
    shapes = outlines(path)
    assert shapes[f"stroke {plot.MISSED}"] == shapes[f"fill {plot.ADDED}"] == 1, "the legend's"
    assert "0 missed, 0 added" in path.read_text()


def test_pictures_side_by_side_have_the_same_rows(tmp_path: Path) -> None:
    low, high = groove(), groove()
    high[0, LOOP.n_drums + 50] = True
    files = [tmp_path / f"{n}.svg" for n in range(3)]
    plot.draw(plot.Picture(low), files[0])
    plot.draw(plot.Picture(low, beside=low | high), files[1])
    plot.draw(plot.Picture(high), files[2])
    grounds = [outlines(file)["fill " + plot.BLACK_KEY[:7]] for file in files]
    assert grounds[0] < grounds[1] == grounds[2]


@pytest.mark.parametrize("other", [groove(4), groove().astype(np.uint8)], ids=["shape", "type"])
def test_what_a_roll_is_compared_with_has_its_shape(tmp_path: Path, other: Roll) -> None:
    compared = plot.Picture(groove(), "mine", reference=other)
    aligned = plot.Picture(groove(), "mine", beside=other)
    for picture in (compared, aligned):
        with pytest.raises(LoopError, match=r"loop\.png: expected a bool roll .* 'mine'"):
            plot.draw(picture, tmp_path / "loop.png")


def test_lines_join_points_and_can_be_dashed(tmp_path: Path) -> None:
    path = tmp_path / "lines.svg"
    with canvas.open_canvas(path, 100, 50) as sheet:
        sheet.line([(0, 0), (100, 50)], "#4477AA", 2)
        sheet.line([(0, 50), (50, 0), (100, 50)], "#EE6677", 1, dashes=(4, 2))
        sheet.line([(10, 10)], "#228833", 1)
        sheet.line([], "#228833", 1)
        assert sheet.text(50, 25, "middle", 10, "#000000", align="center") > 0
    svg = path.read_text()
    assert "M 0 0" in svg, "the top left corner"
    assert "L 72 36" in svg, "a page of 100 × 50 pixels has 72 × 36 points"
    assert "#228833" not in svg
    assert outlines(path)["stroke #4477AA"] == outlines(path)["stroke #EE6677"] == 1
    assert "stroke-dasharray: 2.88,1.44" in svg


@pytest.mark.parametrize("name", ["loop.gif", "loop", ".png", "loop.png.tmp"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoopError, match=r"\.png, \.svg, \.pdf") as error:
        plot.draw(plot.Picture(groove()), tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "roll",
    [
        groove()[:-1],
        groove()[:, 1:],
        groove()[:0],
        groove()[None],
        groove()[0],
        np.array(True),
        groove().astype(np.uint8),
    ],
    ids=lambda roll: f"{roll.dtype}{roll.shape}",
)
def test_other_shapes_are_refused(tmp_path: Path, roll: Roll) -> None:
    good, bad = plot.Picture(groove()), plot.Picture(roll, "the wrong one")
    with pytest.raises(LoopError, match=r"sheet\.png: expected bool rolls .* 'the wrong one'"):
        plot.contact_sheet([good, bad], tmp_path / "sheet.png")


def test_impossible_sheets_are_refused(tmp_path: Path) -> None:
    picture, path = plot.Picture(groove()), tmp_path / "sheet.png"
    with pytest.raises(LoopError, match="no loop to draw"):
        plot.contact_sheet([], path)
    with pytest.raises(LoopError, match="at least one column"):
        plot.contact_sheet([picture], path, columns=0)
    with pytest.raises(LoopError, match="draw fewer"):
        plot.contact_sheet([picture] * 200, path, columns=1)
    with pytest.raises(LoopError, match="make it first"):
        plot.draw(picture, tmp_path / "nowhere" / "loop.png")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "loop.png"
    path.write_bytes(b"old")

    def full(self: Path, target: Path) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        plot.draw(plot.Picture(groove()), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_importing_the_module_does_not_load_matplotlib() -> None:
    code = "import sys, midiloop.plotting.plot; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drawing_does_not_load_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys, numpy, pathlib, midiloop.plotting.plot as plot;"
        f"roll = numpy.zeros(({LOOP.steps}, {LOOP.columns}), bool);"
        "plot.draw(plot.Picture(roll), pathlib.Path(sys.argv[1]));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "loop.png")], check=True)


def test_without_matplotlib_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib"):
        plot.draw(plot.Picture(groove()), tmp_path / "loop.png")


def test_a_waltz_is_drawn_in_bars_of_three(waltzes: LoopDataset, tmp_path: Path) -> None:
    path = tmp_path / "waltz.mid"
    path.write_bytes(score.to_bytes(handmade.waltz(6)))
    alone = contact_sheet.pictures([path])
    assert alone.grid == replace(LOOP, meter=TimeSignature(3, 4))
    assert alone.pictures[0].roll.shape == (6 * 12, 93)
    beside = contact_sheet.pictures([path, waltzes.path], limit=3)
    assert beside.grid == waltzes.grid
    whole = pianoroll.encode(handmade.waltz(6), waltzes.grid)
    np.testing.assert_array_equal(beside.pictures[0].roll, whole[: waltzes.grid.steps])
    contact_sheet.draw(beside, tmp_path / "sheet.png")
    contact_sheet.draw(alone, tmp_path / "one.svg")
    assert "nearly equal" not in (tmp_path / "one.svg").read_text()  # six bars, and not eight
    (tmp_path / "four.mid").write_bytes(score.to_bytes(handmade.groove(8)))
    assert contact_sheet.pictures([path, tmp_path / "four.mid"]).grid == LOOP


def test_a_song_after_a_pickup_is_drawn_as_it_is_mined(tmp_path: Path) -> None:
    song = handmade.groove(12)
    late = [t._replace(onsets=t.onsets + TPQ) for t in song.tracks]
    meters = (Meter(0, 1, 4), Meter(TPQ, 4, 4))
    length = song.length_ticks + TPQ
    pickup = replace(song, tracks=tuple(late), meters=meters, length_ticks=length)
    for name, one in (("pickup", pickup), ("straight", song)):
        (tmp_path / f"{name}.mid").write_bytes(score.to_bytes(one))
    drawn, straight = (
        contact_sheet.pictures([tmp_path / f"{name}.mid"]).pictures[0]
        for name in ("pickup", "straight")
    )
    np.testing.assert_array_equal(drawn.roll, straight.roll)
    assert (drawn.title, straight.title) == ("pickup · bar 2", "straight · bar 1")
