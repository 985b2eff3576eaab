"""The verdict on a seam: bad where it can be heard, and the same in every command."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from numpy.typing import ArrayLike

from audioloop.evaluation import validate
from audioloop.io.wave import Wave
from audioloop.signal import seam, verdict
from midiloop.errors import CallError, LoopError
from midiloop_cli import check as check_command
from midiloop_cli import seam as seam_command

RATE = 44_100
LENGTH = 2 * RATE


def wave_of(samples: ArrayLike, rate: int = RATE) -> Wave:
    return Wave(np.atleast_2d(np.asarray(samples, np.float32)), rate)


def tone(cycles: float = 440) -> np.ndarray:
    """Whole periods, so that there is no seam."""
    return 0.5 * np.sin(2 * np.pi * cycles * np.arange(LENGTH) / LENGTH)


def decaying(step: float) -> np.ndarray:
    """A loud note that fades into a quiet tail, which ends a step away from where it began."""
    fading = np.exp(-np.arange(LENGTH) / LENGTH * 12)
    samples = (
        0.9 * fading * np.sin(np.arange(LENGTH) * 0.05) * (1 - np.exp(-np.arange(LENGTH) / 400))
    )
    samples[-2000:] += np.linspace(0, step, 2000) - samples[-1] * np.linspace(0, 1, 2000)
    return np.asarray(samples)


@pytest.mark.parametrize("step", [0.0007, 0.0013, 0.005])
def test_a_step_in_a_quiet_tail_is_not_heard(step: float) -> None:
    loop = wave_of(decaying(step))
    found = verdict.of(loop, None)
    assert found.jump > verdict.JUMP, "it is many times its local median"
    assert found.step == pytest.approx(step / loop.peak, rel=0.05)
    assert not found.bad


@pytest.mark.parametrize("step", [0.03, 0.14, 0.34])
def test_a_step_that_is_loud_is_heard(step: float) -> None:
    assert verdict.of(wave_of(decaying(step)), None).bad


@pytest.mark.parametrize("gain", [0.01, 0.3, 1.0])
def test_the_level_of_a_file_does_not_matter(gain: float) -> None:
    for step in (0.0013, 0.14):
        one, other = (verdict.of(wave_of(decaying(step) * g), None) for g in (1.0, gain))
        assert one.bad == other.bad
        assert one == pytest.approx(other, rel=0.02)


def test_whole_periods_are_fine_and_broken_ones_are_not() -> None:
    for cycles in (100, 440, 2000):
        assert not verdict.of(wave_of(tone(cycles)), None).bad
        whole = tone(cycles)
        broken = whole[: -round(0.3 * LENGTH / cycles)]
        assert verdict.of(wave_of(broken), None).bad


def test_a_note_that_begins_at_once_on_the_first_beat_is_no_click() -> None:
    rng = np.random.default_rng(3)
    snare = rng.standard_normal(LENGTH) * np.exp(-np.arange(LENGTH) / 4000) * 0.25
    snare[0] = 0.2
    found = verdict.of(wave_of(snare.clip(-1, 1)), None)
    assert found.jump > verdict.JUMP
    assert found.step > verdict.AUDIBLE
    assert not found.bad, "it is one of many such steps"
    click = 0.001 * rng.standard_normal(LENGTH) + tone(3)
    click[0] += 0.2
    assert verdict.of(wave_of(click), None).bad, "alone, the same step is one"


def test_what_masks_a_step_is_near_it() -> None:
    def loop(burst_s: float) -> Wave:
        samples = 0.5 * tone(5)
        samples[0] += 0.05
        at = round(burst_s * RATE)
        where = np.arange(at, at + 200) % LENGTH
        samples[where] += 0.5 * (-1.0) ** np.arange(200)
        return wave_of(samples)

    assert not verdict.of(loop(0.004), None).bad, "a louder sound 4 ms later hides it"
    assert not verdict.of(loop(-0.012), None).bad, "and 12 ms before"
    assert verdict.of(loop(0.03), None).bad, "one 30 ms later does not"
    assert verdict.of(loop(-0.05), None).bad, "nor does one 50 ms before"


def test_a_loop_that_does_the_same_on_every_bar_line_is_fine() -> None:
    samples = tone(4)
    for bar in range(4):
        samples[bar * LENGTH // 4 : bar * LENGTH // 4 + 2000] += 0.3
    assert verdict.of(wave_of(samples), None).bad
    found = verdict.of(wave_of(samples), 4)
    assert not found.bad
    assert found.allowed > verdict.JUMP


def test_silence_has_no_seam_and_a_silent_end_is_fine() -> None:
    with pytest.raises(LoopError, match="silent throughout"):
        verdict.of(wave_of(np.full(LENGTH, 0.9e-4)), None)
    samples = np.zeros(LENGTH)
    samples[100:40_000] = 0.5 * np.sin(np.arange(39_900) * 0.05)
    assert not verdict.of(wave_of(samples), None).bad


@pytest.mark.parametrize("rate", [1000, 2000, 8000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_any_channels(rate: int, channels: int) -> None:
    n = rate
    turns = 2 * np.pi * 20 * np.arange(n) / n
    loop = wave_of(np.stack([0.5 * np.sin(turns + k) for k in range(channels)]), rate)
    assert not verdict.of(loop, None).bad
    assert verdict.of(Wave(loop.samples[:, : -round(0.3 * n / 20)], rate), None).bad


def test_a_rate_of_a_few_hertz_is_refused() -> None:
    for rate in (1, 8, 999):
        with pytest.raises(LoopError, match=f"{rate} Hz are too few to measure a seam"):
            verdict.of(wave_of(tone(), rate), None)
    with pytest.raises(CallError):
        verdict.of(wave_of(tone()), 10_000)


# The commands.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, samples in {
        "fine": tone(), "tail": decaying(0.0013), "cut": decaying(0.2),
        "broken": tone(440)[:-70], "line": tone(1)[: -LENGTH // 5],
    }.items():  # fmt: skip
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE, subtype="PCM_24")
    return tmp_path


def invoked(command: click.Command, *args: object) -> dict[str, bool]:
    run = CliRunner().invoke(command, [*map(str, args), "--json"])
    files = json.loads(run.stdout)["files"]
    return {
        Path(one["file"]).name: one.get(
            "bad", any(f["what"] == "seam" for f in one.get("disagrees", ()))
        )
        for one in files
    }


def test_check_and_seam_agree(folder: Path) -> None:
    judged = invoked(seam_command.seam, folder)
    assert judged == invoked(check_command.check, folder)
    assert judged == {
        "broken.wav": True, "cut.wav": True, "fine.wav": False, "line.wav": True, "tail.wav": False,
    }  # fmt: skip
    for path in folder.iterdir():
        assert judged[path.name] == bool(validate.examine(path).seam and validate.check(path))


def test_seam_says_its_verdict_first(folder: Path) -> None:
    for name, word in (("cut", "bad"), ("fine", "ok ")):
        run = CliRunner().invoke(seam_command.seam, [str(folder / f"{name}.wav")])
        assert run.exit_code == 0
        first = run.output.splitlines()[0]
        assert first.startswith(f"{word} {folder / name}.wav  the seam can")
        assert ("cannot be heard" in first) == (word == "ok ")
    run = CliRunner().invoke(seam_command.seam, [str(folder)])
    lines = run.output.splitlines()
    assert [line[:3] for line in lines[1:6]] == ["bad", "bad", "ok ", "bad", "ok "]
    assert lines[-1] == "5 files, 3 of them bad"


def test_nothing_is_said_of_bar_lines_that_are_not_known(folder: Path) -> None:
    path = str(folder / "fine.wav")
    for more in ([], ["--explain"]):
        shown = CliRunner().invoke(seam_command.seam, [path, *more]).output
        assert "excess" not in shown
        assert "bar lines" not in shown.replace("times that at the other bar lines", "")
        assert ("steady state:" in shown) == bool(more)
    shown = CliRunner().invoke(seam_command.seam, [path, "--bars", "2", "--explain"]).output
    assert "excess over the other bar lines: jump" in shown
    assert "bar lines: the loop's other bar lines" in shown
    assert "bar flux percentile: " in shown
    assert "splice:" not in CliRunner().invoke(seam_command.seam, [str(folder), "--explain"]).output


def test_a_limit_of_ones_own_counts_what_can_be_heard(folder: Path) -> None:
    samples = np.zeros(LENGTH)
    samples[:2000] = 0.8 * np.sin(np.arange(2000) * 0.3)  # out of silence, at once
    soundfile.write(folder / "silent_end.wav", samples, RATE)
    measured = seam.measure(wave_of(samples), bars=None, rng=np.random.default_rng(0))
    assert max(measured.excess.values()) > 3
    run = CliRunner().invoke(seam_command.seam, [str(folder), "--fail-above", "3"])
    assert run.exit_code == 1
    above = {line.rpartition("/")[2] for line in run.output.splitlines() if "above" in line}
    assert above == {"broken.wav", "cut.wav", "line.wav"}
    for name in ("silent_end", "tail", "fine"):
        path = str(folder / f"{name}.wav")
        assert CliRunner().invoke(seam_command.seam, [path, "--fail-above", "3"]).exit_code == 0
