"""Seam measures know no level and no beginning, and tell what was cut from what was not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from numpy.typing import ArrayLike

from audioloop.evaluation.plots import seam_plot
from audioloop.io.wave import Wave, tile
from audioloop.rendering import piece, render, synth
from audioloop.signal import mel, seam
from audioloop.signal.seam import Seam
from handmade import groove
from midiloop.common import canvas
from midiloop.errors import CallError, LoopError
from midiloop_cli import seam as seam_command

RATE = 44_100
FUNCTIONS = (seam.jump, seam.residual, seam.flux, seam.flux_percentile)
UNCUT_JUMP = 2**0.5  # of a sine: its steepest step over the median of a cosine's magnitude


def wave_of(samples: ArrayLike, rate: int = RATE) -> Wave:
    return Wave(np.atleast_2d(np.asarray(samples, np.float32)), rate)


def sine(cycles: float, duration_s: float = 1.0, rate: int = RATE) -> Wave:
    n = round(duration_s * rate)
    return wave_of(0.5 * np.sin(2 * np.pi * cycles * np.arange(n) / n + 0.3), rate)


def noise(n: int = RATE, channels: int = 1, rate: int = RATE) -> Wave:
    return wave_of(0.2 * np.random.default_rng(1).standard_normal((channels, n)).clip(-4, 4), rate)


@cache
def rendered() -> Wave:
    """Eight bars of drums and bass, which repeat without a seam."""
    import pretty_midi

    font = Path(pretty_midi.__file__).parent / synth.BUNDLED_SOUNDFONT
    loop = piece.of_score(groove(8), "loop")
    return render.loop(loop, synth.SoundFont(font, RATE)).mix


def measured(wave: Wave, bars: int | None = 8, seed: int = 0) -> Seam:
    return seam.measure(wave, bars=bars, rng=np.random.default_rng(seed))


# Laws.


@pytest.mark.parametrize("gain", [0.5, 0.03, 1.1])
def test_level_does_not_matter(gain: float) -> None:
    loud = rendered()
    soft = Wave(loud.samples * np.float32(gain), RATE)
    for function in FUNCTIONS:
        for at in (0, 10_000, 352_800):
            assert function(soft, at) == pytest.approx(function(loud, at), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("by", [1, 12_345, 700_000])
def test_places_rotate_with_the_loop(by: int) -> None:
    loop = rendered()
    turned = Wave(np.roll(loop.samples, by, axis=1), RATE)
    for function in FUNCTIONS:
        assert function(turned, by) == function(loop, 0)
        assert function(turned, 5_000 + by - len(loop)) == function(loop, 5_000)


def test_the_order_of_channels_and_a_silent_one_do_not_matter() -> None:
    loop = rendered()
    left, right = loop.samples
    for samples in ([right, left], [left, right, 0 * left]):
        other = Wave(np.stack(samples), RATE)
        for function in FUNCTIONS:
            assert function(other, 0) == pytest.approx(function(loop, 0), rel=1e-4)


def test_a_loop_written_twice_has_the_same_seam() -> None:
    loop = rendered()
    once, twice = measured(loop), measured(Wave(tile(loop.samples, 2), RATE), bars=16)
    assert twice.figures == pytest.approx(once.figures, rel=1e-3, abs=0.1)
    lines, more = once.controls["bar_lines"], twice.controls["bar_lines"]
    assert len(lines.draws) == 7
    assert len(more.draws) == 15, "the end of the first pass is a bar line like any other"
    assert more.largest.jump == pytest.approx(lines.largest.jump, rel=1e-3)


def test_measuring_gives_what_the_functions_give() -> None:
    loop = rendered()
    found = measured(loop)
    values = [seam.jump(loop, 0), seam.residual(loop, 0), seam.flux_percentile(loop, 0)]
    assert list(found.figures) == values
    assert found.measures == {
        **dict(zip(found.figures._fields, values, strict=True)),
        "bar_flux_percentile": seam.bar_flux_percentile(loop, 8),
    }
    assert set(found.measures) == set(seam.MEANING)
    assert set(found.controls) == set(seam.CONTROLS)


def test_a_seed_decides_the_controls_and_nothing_else() -> None:
    loop = rendered()
    assert measured(loop, seed=1) == measured(loop, seed=1)
    one, other = measured(loop, seed=1), measured(loop, seed=2)
    assert one.measures == other.measures
    assert one.controls["bar_lines"] == other.controls["bar_lines"]
    assert one.controls["steady_state"] != other.controls["steady_state"]


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_any_channels(rate: int, channels: int) -> None:
    found = measured(noise(round(0.5 * rate), channels, rate), bars=2)
    assert found.figures.jump < 8
    assert found.figures.residual < 8
    for control in found.controls.values():
        assert control.median.jump < 8, "of noise every join is as good as any other"
        assert 0 <= control.median.flux_percentile <= 100


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 192_000])
def test_bands_cover_the_whole_spectrum(rate: int) -> None:
    edges = mel.band_hz(rate)
    assert (np.diff(edges) > 0).all()
    assert edges[-1] == pytest.approx(min(16_000, rate / 2))
    hz = np.geomspace(60, 0.9 * edges[-1], 12)
    for frequency in np.rint(hz).tolist():
        tone = Wave(sine(frequency, 1.0, rate).samples / np.float32(0.5), rate)
        levels = mel.decibels(tone, np.array([rate // 2]))[0]
        heard = int(levels.argmax())
        width = rate / (mel.WINDOW_S * rate)  # Hz of a bin
        assert edges[heard] - width <= frequency <= edges[heard + 2] + width
        assert levels[heard] == pytest.approx(0, abs=6), "a tone as loud as the peak has 0 dB"


# Figures made by hand.


def test_a_jump_worked_out_by_hand() -> None:
    zigzag = np.tile([0.0, 0.01], RATE // 2)  # every step is 0.01
    assert seam.jump(wave_of(zigzag), 0) == pytest.approx(1)
    zigzag[-1] = 0.05
    loop = wave_of(zigzag)
    assert seam.jump(loop, 0) == pytest.approx(5, rel=1e-5)
    assert seam.jump(loop, -1) == pytest.approx(5, rel=1e-5)
    assert seam.jump(loop, 1) == pytest.approx(1, rel=1e-5)
    stereo = wave_of([zigzag, np.tile([0.0, 0.01], RATE // 2)])
    # Over the channels, the step is the root of 0.05² + 0.01², and the median that of 2 · 0.01².
    assert seam.jump(stereo, 0) == pytest.approx(13**0.5, rel=1e-5)


def test_out_of_silence_a_step_is_measured_by_what_can_be_heard() -> None:
    samples = np.zeros(RATE)
    samples[20_000:21_000] = 0.5 * np.sin(np.arange(1000))
    assert seam.jump(wave_of(samples), 0) == 0
    assert seam.residual(wave_of(samples), 0) == 0
    peak = wave_of(samples).peak
    samples[0] = seam.FLOOR * peak / 2
    assert seam.jump(wave_of(samples), 0) == pytest.approx(0.5, rel=1e-4)
    samples[0] = 0.1 * peak
    assert seam.jump(wave_of(samples), 0) == pytest.approx(1000, rel=1e-4)
    assert seam.residual(wave_of(samples), 0) == pytest.approx(1000, rel=1e-4)


@pytest.mark.parametrize("cycles", [50, 440, 3000])
def test_whole_periods_join_and_broken_ones_do_not(cycles: int) -> None:
    assert seam.jump(sine(cycles), 0) <= 1.01 * UNCUT_JUMP
    assert seam.residual(sine(cycles), 0) < 3
    whole = sine(cycles)
    broken = Wave(whole.samples[:, : -round(0.4 * RATE / cycles)], RATE)
    assert seam.jump(broken, 0) > min(20, 3 * UNCUT_JUMP * 3000 / cycles / 4)
    assert seam.residual(broken, 0) > 20


def test_a_bend_without_a_step_is_a_residual() -> None:
    # Half a period too many: it ends and begins at 0, rising to the end and from the beginning.
    bent = wave_of(np.abs(np.sin(np.pi * 101 * np.arange(RATE) / RATE)) * 0.5)
    assert seam.jump(bent, 0) < 2
    assert seam.residual(bent, 0) > 20


def test_a_change_of_sound_is_a_large_flux() -> None:
    low, high = sine(100).samples, sine(4000).samples
    loop = Wave(np.concatenate([low, high], axis=1), RATE)
    assert seam.flux_percentile(loop, RATE) > 94
    assert seam.flux_percentile(loop, 0) > 94
    assert seam.flux(loop, 0) > 20 * seam.flux(loop, RATE // 2)


def test_where_nothing_changes_every_place_is_chance() -> None:
    assert seam.flux_percentile(sine(441), 0) == 50
    assert seam.bar_flux_percentile(sine(441), 4) == 50


@pytest.mark.parametrize(
    ("value", "others", "expected"),
    [(1, [0, 0, 2, 2], 50), (3, [1, 2], 100), (0, [1, 2], 0), (1, [1, 1], 50), (2, [1, 2], 75)],
)
def test_percentiles_count_what_is_alike_by_half(
    value: float, others: list[float], expected: float
) -> None:
    assert seam.percentile(value, others) == expected


# Renders, and what is cut out of them.


def test_a_render_is_as_smooth_at_its_seam_as_where_nothing_was_cut() -> None:
    found = measured(rendered())
    assert found.figures.jump < 2
    assert found.excess["jump"] < 1
    assert found.excess["residual"] < 1.5
    steady = found.controls["steady_state"].median
    assert 0.4 < steady.jump < 2
    for name in ("random_cut", "splice", "shuffle"):
        assert found.controls[name].median.jump > 2 * steady.jump, name
        assert found.controls[name].median.residual > 2 * steady.residual, name
        assert found.controls[name].median.flux_percentile > steady.flux_percentile, name


def test_a_piece_that_is_no_whole_number_of_beats_is_found_out() -> None:
    loop = rendered()
    jumps, residuals = [], []
    for number in range(1, 9):
        cut = Wave(loop.samples[:, 1000 * number : 1000 * number + 37_123 * number], RATE)
        jumps.append(seam.jump(cut, 0))
        residuals.append(seam.residual(cut, 0))
    assert np.median(jumps) > 3
    assert np.median(residuals) > 6


def test_bar_lines_are_taken_at_their_attack() -> None:
    samples = 1e-3 * noise(2 * RATE).samples
    samples[0, RATE + 30 :] += np.float32(0.5)
    assert seam.largest_step(Wave(samples, RATE), RATE) == RATE + 30
    assert seam.largest_step(Wave(samples, RATE), -1) == 0


def test_without_bars_there_are_no_bar_lines() -> None:
    for bars in (None, 1):
        found = measured(rendered(), bars=bars)
        assert found.bar_flux_percentile is None
        assert "bar_lines" not in found.controls
        assert found.excess == {"jump": found.figures.jump, "residual": found.figures.residual}


def test_a_result_is_json_and_a_table() -> None:
    found = measured(rendered())
    shown = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert shown["jump"] == found.figures.jump
    assert set(shown["controls"]["splice"]["median"]) == set(found.figures._fields)
    table = seam.rows(found)
    assert [row.name for row in table] == ["seam", *found.controls]
    assert table[0].median == found.figures
    assert all(row.largest and row.largest >= row.median for row in table[1:])


# What cannot be measured.


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (noise(1000), r"0\.023 s is too short .* give at least"),
        (wave_of(np.zeros((2, RATE))), "silent throughout, .* give another"),
        (wave_of(np.full(RATE, np.nan)), "not finite; repair"),
        (wave_of(np.where(np.arange(RATE) == 7, np.inf, 0.1)), "not finite; repair"),
        (wave_of(np.zeros((2, 0))), "too short"),
    ],
    ids=["short", "silent", "nan", "inf", "empty"],
)
def test_a_wave_without_a_seam_is_refused(wave: Wave, words: str) -> None:
    for function in FUNCTIONS:
        with pytest.raises(LoopError, match=words):
            function(wave, 0)
    with pytest.raises(LoopError, match=words):
        measured(wave)


@pytest.mark.parametrize("bars", [0, -1, 100])
def test_bars_that_cannot_be_are_refused(bars: int) -> None:
    with pytest.raises(CallError, match=f"{bars} bars in 1.00 s; give"):
        measured(noise(), bars=bars)


def test_importing_is_cheap() -> None:
    code = (
        "import sys, audioloop.signal.seam, audioloop.evaluation.plots.seam_plot;"
        "sys.exit(any(name in sys.modules for name in ('scipy', 'matplotlib', 'soundfile')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Pictures.


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_seam_is_the_same_picture(tmp_path: Path, suffix: str) -> None:
    loop = rendered()
    found = measured(loop)
    files = [tmp_path / f"{number}{suffix}" for number in range(2)]
    for file in files:
        seam_plot.draw(loop, found, file, "a loop")
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("wave", "bars"),
    [
        (noise(RATE // 4), None),
        (noise(4_000, 1, 8_000), 1),
        (noise(60_000, 6, 192_000), 3),
        (wave_of([0.5 * np.ones(RATE), np.zeros(RATE)]), 4),
    ],
    ids=["short", "slow", "fast", "constant"],
)
def test_any_loop_can_be_drawn(tmp_path: Path, wave: Wave, bars: int | None) -> None:
    path = tmp_path / "seam.svg"
    seam_plot.draw(wave, measured(wave, bars), path, "odd 夜 $1$")
    assert ("other bar lines" in path.read_text()) == (bars is not None and bars > 1)


def test_a_picture_says_the_figures(tmp_path: Path) -> None:
    found = measured(rendered())
    seam_plot.draw(rendered(), found, tmp_path / "seam.svg", "The Title")
    text = (tmp_path / "seam.svg").read_text()
    for words in ("The Title", "8 bars", f"jump {found.figures.jump:.2f}", "random cut"):
        assert words in text


def test_an_image_fills_its_box_first_row_uppermost(tmp_path: Path) -> None:
    from matplotlib import image

    path = tmp_path / "image.png"
    with canvas.open_canvas(path, 100, 60) as sheet:
        sheet.boxes([(0, 0, 100, 60)], "#FF0000")
        sheet.image(np.array([[0.0, 1.0], [1.0, 0.0]]), (20, 10, 40, 30), colours="gray")
    dots = image.imread(path)[:, :, 0] * 2 + image.imread(path)[:, :, 1]  # red is 2, white is 3
    across, down = canvas.PNG_DPI // canvas.INCH_PX, canvas.PNG_DPI // canvas.INCH_PX
    found = {(x, y): dots[y * down, x * across] for x in (18, 22, 58, 62) for y in (8, 12, 38, 42)}
    assert found[22, 12] == found[58, 38] == 0
    assert found[58, 12] == found[22, 38] == 3
    assert {found[x, y] for x, y in found if x in (18, 62) or y in (8, 42)} == {2}


# The command.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A loop, a piece that was cut out of it, and a file that is silent."""
    loop = rendered()
    soundfile.write(tmp_path / "loop_120bpm.wav", loop.samples.T, RATE)
    soundfile.write(tmp_path / "cut.wav", loop.samples[:, 5_000:150_000].T, RATE)
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    return tmp_path


def test_the_command_shows_one_seam_and_draws_it(folder: Path) -> None:
    picture = folder / "seam.png"
    run = CliRunner().invoke(
        seam_command.seam, [str(folder / "loop_120bpm.wav"), "-o", str(picture), "--explain"]
    )
    assert run.exit_code == 0, run.output
    assert re.search(r"^seam +1 ", run.output, re.MULTILINE)
    for text in (*seam.MEANING.values(), *seam.CONTROLS.values()):
        assert text in run.output
    assert picture.stat().st_size > 10_000


def test_the_command_goes_on_after_a_bad_file(folder: Path) -> None:
    (folder / "empty.wav").touch()
    files = [str(folder / name) for name in ("silence.wav", "loop_120bpm.wav", "empty.wav")]
    out = folder / "pictures"
    run = CliRunner().invoke(seam_command.seam, [*files, "--bars", "8", "--json", "-o", str(out)])
    assert run.exit_code == 1
    found = json.loads(run.stdout)["files"]
    assert [one["file"] for one in found] == files
    assert "silent" in found[0]["error"]
    assert found[1]["bars"] == 8
    assert [line.split(": ")[2] for line in run.stderr.splitlines()] == [files[0], files[2]]
    assert [path.name for path in out.iterdir()] == ["loop_120bpm.png"]


def test_the_command_fails_above_a_limit(folder: Path) -> None:
    loop, cut = str(folder / "loop_120bpm.wav"), str(folder / "cut.wav")
    assert CliRunner().invoke(seam_command.seam, [loop, "--fail-above", "2"]).exit_code == 0
    run = CliRunner().invoke(seam_command.seam, [loop, cut, "--fail-above", "2"])
    assert run.exit_code == 1
    assert run.output.splitlines()[-1] == f"above 2: {cut}"
    assert CliRunner().invoke(seam_command.seam, [cut, "--fail-above", "100000"]).exit_code == 0


def test_the_command_refuses_one_picture_for_several_files(folder: Path) -> None:
    files = [str(folder / "cut.wav"), str(folder / "loop_120bpm.wav")]
    run = CliRunner().invoke(seam_command.seam, [*files, "-o", str(folder / "seam.png")])
    assert run.exit_code == 2
    assert "give a folder" in run.output


def test_files_of_one_name_get_pictures_of_their_own(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "cut.wav").write_bytes((folder / "cut.wav").read_bytes())
    files = [str(folder / "cut.wav"), str(folder / "other" / "cut.wav"), str(folder / "cut.wav")]
    out = folder / "pictures"
    assert CliRunner().invoke(seam_command.seam, [*files, "-o", str(out)]).exit_code == 0
    assert len(list(out.iterdir())) == 3
