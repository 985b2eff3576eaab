"""Judging loops beside a reference: every figure by hand, then the laws they keep."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handmade import groove, random_rolls
from midiloop.errors import LoopError
from midiloop.evaluation import evaluate
from midiloop.evaluation.profile import LoopSet, profile
from midiloop.grid import LOOP, Roll
from midiloop.metrics import features, form
from midiloop.midi import pianoroll
from midiloop.midi import score as scores


@pytest.fixture
def loop() -> Roll:
    """One loop written by hand: everything below is counted on paper.

    Drums: 2 kicks in bar 1, 1 kick in bar 5, 1 snare in bar 1, 3 closed and 1 open hi-hat in bar 1.
    Bass: C1 for 6 steps from bar 1 on, C2 for 3 steps in bar 5, G1 for 3 in bar 7, which begin
    again after a gap of one.
    """
    roll = np.zeros((1, 128, 93), dtype=np.bool_)
    roll[0, [0, 6, 64], 0] = True
    roll[0, 4, 1] = True
    roll[0, [0, 4, 8], 2] = True
    roll[0, 14, 4] = True
    roll[0, 0:6, 9] = True
    roll[0, 64:67, 9 + 12] = True
    roll[0, [97, 98, 100], 9 + 7] = True
    return roll


def silent(n: int = 1) -> Roll:
    return np.zeros((n, 128, 93), dtype=np.bool_)


def songs_of_copies(rng: np.random.Generator, n_songs: int, copies: int) -> LoopSet:
    rolls = random_rolls(rng, n_songs).repeat(copies, axis=0)
    # a loop of its own length of silence each, so that songs differ in every feature
    for at, roll in enumerate(rolls):
        roll[: 3 * (at // copies) % 128] = False
    return LoopSet(rolls, np.arange(n_songs).repeat(copies))


def compared(
    loops: LoopSet, reference: LoopSet, seed: int = 0
) -> tuple[evaluate.Evaluation, dict[str, Any]]:
    found = evaluate.compare(loops, reference, np.random.default_rng(seed))
    return found, found.as_json()


# By hand


def test_every_feature_of_a_loop_counted_by_hand(loop: Roll) -> None:
    expected = {
        # bars 1 and 5: kick at 0 in both; 1 kick, 1 snare, 4 hats, 6 C1 in bar 1; 3 C2 in bar 5
        "HD": (1 + 1 + 4 + 6 + 3) / 1488,
        # bar 1 kick, snare, both hats, C1; bar 5 kick, C2; bar 7 G1
        "UP": (5 + 2 + 1) / 8,
        # steps 0-5, 6, 8, 14; 64-66; 97, 98, 100
        "ND": (9 + 3 + 3) / 128,
        "kick hits": 3 / 8,
        "snare hits": 1 / 8,
        "hat hits": 4 / 8,
        "bass notes": 4 / 8,
        "bass range": 12,
        # C on 9 steps, G on 3
        "pitch entropy": -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)),
        # bars 1, 5, 7, and silence
        "distinct bars": 4,
        # 8 hits and 4 bass onsets; off the beat: kick 6, hat 14, G1 97
        "off-beat share": 3 / 12,
    }
    assert expected.keys() == features.FEATURES.keys()
    for name, value in expected.items():
        assert features.FEATURES[name](loop, LOOP) == pytest.approx([value]), name


@pytest.mark.parametrize(
    ("name", "of_silence", "of_all"),
    [
        ("kick hits", 0, 16),
        ("snare hits", 0, 16),
        ("hat hits", 0, 32),
        ("bass notes", 0, 84 / 8),  # each pitch is one note eight bars long
        ("bass range", 0, 83),
        ("pitch entropy", 0, math.log2(12)),
        ("distinct bars", 1, 1),
        # nine drums on each step, and all pitches on the first
        ("off-beat share", 0, 9 * 96 / (9 * 128 + 84)),
    ],
)
def test_the_ends_of_every_scale(name: str, of_silence: float, of_all: float) -> None:
    both = np.concatenate([silent(), ~silent()])
    assert features.FEATURES[name](both, LOOP) == pytest.approx([of_silence, of_all])


def test_eight_distinct_bars() -> None:
    roll = silent()
    for bar in range(8):
        roll[0, bar * 16 : bar * 16 + bar] = True
    assert features.distinct_bars(roll) == [8]


def test_a_pitch_that_changes_begins_a_note() -> None:
    roll = silent()
    roll[0, 0:4, 9], roll[0, 4:8, 10] = True, True
    assert features.bass_notes(roll) == [2 / 8]


def test_reconstruction_error_is_the_share_of_cells() -> None:
    rolls, wrong = silent(3), silent(3)
    wrong[1, 5, :3] = True
    wrong[2] = True
    assert evaluate.reconstruction_error(rolls, wrong).tolist() == [0, 3 / (128 * 93), 1]
    with pytest.raises(LoopError, match=r"\(2, 128, 93\)"):
        evaluate.reconstruction_error(rolls, wrong[:2])


def test_the_table_adds_the_kick_alone(loop: Roll) -> None:
    rolls = np.concatenate([loop, silent(4)])
    rolls[1, 0, [0, 6]] = True  # kick and crash
    found, _ = compared(LoopSet(rolls), LoopSet(rolls[:4]))
    values = {name: metric.loops.value for name, metric in found.metrics.items()}
    assert list(values) == ["HD", "FND", "FND kick", "FNB", "DB", "OS", "US", "UP", "ND"]
    # both loops that play repeat nothing of bar 1 in bar 5
    expected = {
        "HD": (15 + 2) / 1488 / 5,
        "FND": 1 / 5,
        "FND kick": 2 / 5,
        "FNB": 1 / 5,
        "DB": 0,
        "OS": 1,
        "US": 3 / 5,
        "UP": (1 + 2 / 8) / 5,
        "ND": (15 + 1) / 128 / 5,
    }
    assert values == pytest.approx(expected)
    assert found.metrics["US"].reference == 3 / 4
    assert found.metrics["FND"].reference == 1 / 4


# Laws


def test_a_set_is_no_distance_from_itself(rng: np.random.Generator) -> None:
    loops = songs_of_copies(rng, 40, 3)
    found, _ = compared(loops, loops)
    for distance in found.distances.values():
        assert distance.loops.value == 0
        assert distance.loops.low == 0
        assert distance.floor.low >= 0
    assert abs(found.mmd2.loops.value) < 0.1
    assert found.mmd2.loops.low <= 0 <= found.mmd2.loops.high
    assert found.metrics["OS"].loops == (1, 1, 1)


@pytest.mark.parametrize("deviations", [1.0, -2.5])
def test_a_move_by_a_deviation_is_a_distance_of_one(
    deviations: float, rng: np.random.Generator
) -> None:
    reference = profile([songs_of_copies(rng, 30, 2)])
    moved = reference._replace(
        values={name: v + deviations * v.std() for name, v in reference.values.items()}
    )
    found = evaluate.compare_profiles(moved, reference, rng)
    for name, distance in found.distances.items():
        if np.ptp(reference.values[name]) > 0:
            assert distance.loops.value == pytest.approx(abs(deviations)), name
    assert found.mmd2.loops.low > 0


def test_a_reference_that_does_not_vary_leaves_the_unit(rng: np.random.Generator) -> None:
    kicks = silent(4)
    kicks[:, :8, 0] = True  # one a bar more than in silence
    found, shown = compared(LoopSet(kicks), LoopSet(silent(4)))
    assert found.distances["kick hits"].loops.value == 1
    assert found.distances["bass range"].loops.value == 0
    assert "NaN" not in json.dumps(shown)
    assert "Infinity" not in json.dumps(shown)


def test_intervals_contain_their_values(rng: np.random.Generator) -> None:
    for seed in range(5):
        found, _ = compared(
            songs_of_copies(rng, 12, 2), LoopSet(random_rolls(rng, 30, monophonic=False)), seed
        )
        estimates = [
            *(metric.loops for metric in found.metrics.values()),
            *(distance.loops for distance in found.distances.values()),
            found.mmd2.loops,
        ]
        for estimate in estimates:
            assert estimate.low <= estimate.value <= estimate.high
        for name, metric in found.metrics.items():
            assert metric.loops.low >= 0
            assert metric.loops.high <= (93 if name == "UP" else 1)


def test_copies_of_a_song_widen_the_interval(rng: np.random.Generator) -> None:
    loops, reference = songs_of_copies(rng, 30, 16), songs_of_copies(rng, 100, 1)
    by_song, _ = compared(loops, reference)
    by_loop, _ = compared(LoopSet(loops.rolls), reference)

    def width(estimate: evaluate.Estimate) -> float:
        return estimate.high - estimate.low

    for name in ("ND", "UP"):
        one, other = by_song.metrics[name].loops, by_loop.metrics[name].loops
        assert one.value == pytest.approx(other.value)
        assert width(one) / width(other) == pytest.approx(4, rel=0.4)  # the root of 16
        assert width(by_song.distances[name].loops) > width(by_loop.distances[name].loops)
    assert width(by_song.mmd2.loops) > width(by_loop.mmd2.loops)


def test_the_interval_of_a_mean_covers_the_truth(rng: np.random.Generator) -> None:
    # 40 songs of 2 copies, of which each plays a bass on its first step with a chance of one half.
    inside = 0
    for _ in range(60):
        rolls = silent(80)
        rolls[:, 0, 9] = rng.integers(2, size=40).repeat(2)
        of = profile([LoopSet(rolls, np.arange(40).repeat(2))])
        low, high = evaluate.compare_profiles(of, of, rng).metrics["FNB"].loops[1:]
        inside += low <= 0.5 <= high
    assert inside >= 51  # 57 are expected, give or take 1.7


def test_drawing_a_song_twice_makes_no_copies(rng: np.random.Generator) -> None:
    # all loops are different: no resample may count fewer
    found, _ = compared(LoopSet(random_rolls(rng, 50)), songs_of_copies(rng, 20, 1))
    assert found.metrics["US"].loops == (1, 1, 1)
    # each loop comes twice, once in each of two songs
    rolls = random_rolls(rng, 25)
    pairs = LoopSet(np.concatenate([rolls, rolls]), np.arange(50))
    found, _ = compared(pairs, pairs)
    assert found.metrics["US"].loops.value == 0.5


def test_the_order_of_loops_does_not_matter(rng: np.random.Generator) -> None:
    loops, reference = songs_of_copies(rng, 20, 4), LoopSet(random_rolls(rng, 50))
    _, expected = compared(loops, reference)
    mixed, others = rng.permutation(80), rng.permutation(50)
    assert loops.songs is not None
    assert isinstance(loops.rolls, np.ndarray)
    assert isinstance(reference.rolls, np.ndarray)
    again, _ = compared(
        LoopSet(loops.rolls[mixed], loops.songs[mixed]), LoopSet(reference.rolls[others])
    )
    assert _flat(again.as_json()) == pytest.approx(_flat(expected), abs=1e-9)


def test_the_seed_decides_all(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MMD_LOOPS", 40)
    loops, reference = songs_of_copies(rng, 20, 4), LoopSet(random_rolls(rng, 50))
    _, one = compared(loops, reference, 3)
    assert compared(loops, reference, 3)[1] == one
    _, other = compared(loops, reference, 4)
    assert other != one
    assert other["distances"]["ND"]["value"] == one["distances"]["ND"]["value"]


def test_few_songs_and_other_shapes_are_errors(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = songs_of_copies(rng, 4, 1)
    compared(enough, enough)
    few = LoopSet(enough.rolls, np.array([0, 0, 1, 2]))
    bad: dict[str, Callable[[], object]] = {
        "set to evaluate has loops of 3": lambda: compared(few, enough),
        "reference has loops of 3": lambda: compared(enough, few),
        "no loops": lambda: compared(LoopSet(silent(0)), enough),
        "expected rolls": lambda: compared(LoopSet(silent()[0]), enough),
        "got bool": lambda: compared(LoopSet(silent(4)[:, :64]), enough),
        "got uint8": lambda: compared(LoopSet(silent(4).astype(np.uint8)), enough),
        "4 loops, but 3 songs": lambda: compared(LoopSet(silent(4), np.arange(3)), enough),
    }
    for message, call in bad.items():
        with pytest.raises(LoopError, match=message):
            call()
    monkeypatch.setattr(evaluate, "MMD_LOOPS", 3)
    with pytest.raises(LoopError, match="nearly all loops"):
        compared(enough, enough)


def _flat(tree: dict[str, Any], at: str = "") -> dict[str, float]:
    """A tree of numbers as one level."""
    flat: dict[str, float] = {}
    for name, branch in tree.items():
        path = f"{at}/{name}"
        flat |= _flat(branch, path) if isinstance(branch, dict) else {path: branch}
    return flat


# The command


def midiloop(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "midiloop_cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


def write_song(path: Path, number: int, n_bars: int) -> None:
    song = groove(n_bars, pitches=[30 + number, 35 + number % 3, 40, 28])
    path.write_bytes(scores.to_bytes(song))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``songs``, their ``loops``, and a folder ``files`` of one loop each, some below others."""
    place = tmp_path_factory.mktemp("place")
    (place / "songs").mkdir()
    (place / "files" / "more").mkdir(parents=True)
    for number in range(14):
        write_song(place / "songs" / f"{number}.mid", number, 12)
        write_song(place / "files" / "more"[: number % 2 * 4] / f"{number}.MID", number + 1, 8)
    for name in ("empty", "few", "short", "bad"):
        (place / name).mkdir()
    for name in ("few", "short", "bad"):
        write_song(place / name / "a.mid", 0, 8)
    write_song(place / "short" / "b.mid", 0, 6)
    (place / "bad" / "b.mid").write_bytes(b"no MIDI at all")
    assert midiloop("extract", "songs", "-o", "loops", cwd=place).returncode == 0
    assert midiloop("extract", "bad/b.mid", "-o", "silence", cwd=place).returncode == 0
    return place


def test_evaluate_prints_a_table(place: Path) -> None:
    done = midiloop("evaluate", "files", "--reference", "loops", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert "14 loops, beside 14 loops of 14 songs, all distinct" in done.stdout
    first_words = {line.split()[0] for line in done.stdout.splitlines() if line}
    assert set(evaluate.TABLE) - {"FND kick"} <= first_words
    for words in (
        "FND kick", "95 % interval", "floor", "MMD²", "distinct bars", "drums AAAAAAAA",
        "loops that break the rules 'paper'", "control: other real loops", "by form alone",
    ):  # fmt: skip
        assert words in done.stdout
    assert "'open'" not in done.stdout  # by which the reference was not mined
    assert max(map(len, done.stdout.splitlines())) <= 100
    short = midiloop("evaluate", "files", "--reference", "loops", "--no-classifier", cwd=place)
    assert done.stdout.startswith(short.stdout)
    assert "AUC" not in short.stdout


def test_evaluate_prints_json(place: Path) -> None:
    args = ("evaluate", "loops", "--reference", "loops", "--json")
    done = midiloop(*args, cwd=place)
    found = json.loads(done.stdout)
    assert found["loops"] == {"loops": 28, "songs": 14}
    assert found["reference"] == {"loops": 14, "songs": 14}  # each comes twice in its song
    assert found["seed"] == 0
    assert list(found["metrics"]) == list(evaluate.TABLE)
    assert found["metrics"]["FND"] == {"value": 1, "low": 1, "high": 1, "reference": 1}
    assert list(found["distances"]) == list(features.FEATURES)
    for distance in found["distances"].values():
        assert distance["value"] == 0
        assert distance["mean"] == pytest.approx(distance["reference_mean"])
        assert set(distance["floor"]) == {"value", "low", "high"}
    assert set(found["mmd2"]) == {"value", "low", "high", "floor"}
    assert set(found["form"]) <= set(form.ROWS)
    assert found["form"]["drums exact"]["value"] == found["form"]["drums exact"]["reference"]
    assert found["two_sample"]["value"] == 0.5  # nothing is told from itself
    assert set(found["two_sample"]["control"]) == {"value", "low", "high"}
    assert midiloop(*args, cwd=place).stdout == done.stdout
    other = json.loads(midiloop(*args, "--seed", 1, cwd=place).stdout)
    assert other["mmd2"]["low"] != found["mmd2"]["low"]


def test_a_midi_file_is_its_first_eight_bars(place: Path, tmp_path: Path) -> None:
    """Longer ones are cut; exported ones are whole, however long they are silent at the end."""
    (tmp_path / "files").mkdir()
    rolls = silent(6)
    for number, roll in enumerate(rolls):
        roll[: 16 * (number + 1), [0, 9 + number]] = True  # sounds up to bar 1, 2, … 6
        scores.write(pianoroll.decode(roll), tmp_path / "files" / f"{number}.mid")
    longer = np.concatenate([rolls[5], ~silent()[0]])
    scores.write(pianoroll.decode(longer), tmp_path / "files" / "5.mid")
    seven = rolls[4][: 7 * 16]
    scores.write(pianoroll.decode(seven), tmp_path / "files" / "4.mid")
    args = ("evaluate", "files", "--reference", place / "loops", "--no-classifier", "--json")
    found = json.loads(midiloop(*args, cwd=tmp_path).stdout)
    assert found["loops"] == {"loops": 6, "songs": None}
    assert found["metrics"]["ND"]["value"] == pytest.approx(np.mean([1, 2, 3, 4, 5, 6]) / 8)
    assert found["distances"]["bass range"]["mean"] == 0


BAD = {
    "no reference": (2, ["evaluate", "loops"], "--reference"),
    "nothing there": (
        2,
        ["evaluate", "none", "--reference", "loops"],
        "none: no such file or folder",
    ),
    "a file": (2, ["evaluate", "files/0.MID", "--reference", "loops"], "no such folder"),
    "an empty folder": (2, ["evaluate", "empty", "--reference", "loops"], "neither"),
    "files with a split": (
        2,
        ["evaluate", "files", "--split", "test", "--reference", "loops"],
        "no splits",
    ),
    "an unknown split": (2, ["evaluate", "loops", "--split", "x", "--reference", "loops"], "x"),
    "a reference of files": (1, ["evaluate", "loops", "--reference", "files"], "manifest.json"),
    "no loops": (1, ["evaluate", "silence", "--reference", "loops"], "silence: no loops"),
    "no loops in a split": (
        1,
        ["evaluate", "loops", "--reference", "silence", "--reference-split", "test"],
        "silence: no loops in split test",
    ),
    "few songs": (1, ["evaluate", "few", "--reference", "loops"], "of 1 song, intervals"),
    "a short file": (1, ["evaluate", "short", "--reference", "loops"], "b.mid: ends in bar 6"),
    "a bad file": (1, ["evaluate", "bad", "--reference", "loops"], "b.mid: not_midi"),
}


@pytest.mark.parametrize(("code", "args", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_evaluated_is_one_line(
    code: int, args: list[str], words: str, place: Path
) -> None:
    done = midiloop(*args, cwd=place)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("midiloop: error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
