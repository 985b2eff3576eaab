"""Records of runs: a run resumes with its own settings, and an error says why one cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from midiloop.common import files
from midiloop.common.resume import RunRecord
from midiloop.errors import CallError, LoopError

BEGUN: dict[str, Any] = {
    "settings": {"seed": 1, "steps": (8, 4), "sound": {"stems": False}, "rules": {"name": "paper"}},
    "dataset": "abc",
}


def record(folder: Path, **other: Any) -> RunRecord:
    return RunRecord(folder / "run.json", {**BEGUN, **other})


def settings(**other: Any) -> dict[str, Any]:
    return {"settings": {**BEGUN["settings"], **other}}


def test_a_run_goes_on_as_it_was_begun_and_only_if_that_is_asked_for(tmp_path: Path) -> None:
    record(tmp_path).open(resume=False)
    (tmp_path / "a result").touch()
    record(tmp_path).open(resume=True)
    with pytest.raises(CallError, match="exists already; go on with --resume"):
        record(tmp_path).open(resume=False)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (settings(seed=2), "seed 1, not 2"),
        (settings(steps=(8, 2)), "steps [8, 4], not [8, 2]"),
        (settings(steps=None), "steps [8, 4], not none"),
        (settings(sound={"stems": True}), "sound stems False, not True"),
        (settings(rules={"name": "open", "more": 1}), "rules 'paper', not 'open'"),
        (settings(rules={"name": "paper", "more": 1}), "rules more none, not 1"),
        ({"dataset": "def"}, "another dataset"),
        ({**settings(seed=2), "dataset": "def"}, "seed 1, not 2, another dataset"),
        ({"settings": {"seed": 1}}, "what run.json does not say"),
    ],
)
def test_a_run_that_was_begun_otherwise_is_refused_in_one_line_and_left_as_it_was(
    other: dict[str, Any], says: str, tmp_path: Path
) -> None:
    record(tmp_path).open(resume=False)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(CallError) as bad:
        record(tmp_path, **other).open(resume=True)
    assert str(bad.value) == (
        f"{tmp_path}: the run was begun with {says}; "
        "resume it as it was begun, or choose another name"
    )
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.parametrize("harm", [b"", b"\xff\xfe\0", b"[1]", b'{"begun_with": 5}', b"{}"])
def test_a_record_that_came_to_harm_is_of_another_run(harm: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(harm)
    with pytest.raises(CallError, match=r"begun with what run\.json does not say; resume"):
        record(tmp_path).open(resume=True)
    assert record(tmp_path).found() is None


def test_what_differs_is_shown_in_bounds(tmp_path: Path) -> None:
    record(tmp_path, **settings(steps=[7] * 10_000, seed="\x1b[2J")).open(resume=False)
    with pytest.raises(CallError) as bad:
        record(tmp_path).open(resume=True)
    said = str(bad.value).removeprefix(str(tmp_path))
    assert said.isprintable()
    assert len(said) < 300


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(CallError, match="holds something else; give another folder"):
            record(tmp_path).open(resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_lock_and_what_a_kill_left_are_nothing_else(tmp_path: Path) -> None:
    with files.locked(tmp_path):
        (tmp_path / f".{'0' * 32}.tmp.json").touch()
        record(tmp_path).open(resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_work_that_leaves_nothing_leaves_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fails(*names: str) -> None:
        with RunRecord(out / "run.json", BEGUN).working(resume=True):
            assert (out / "run.json").exists()
            for name in names:
                (out / name).touch()
            raise LoopError("no loop")

    with pytest.raises(LoopError):
        fails()
    assert not out.exists()
    with pytest.raises(LoopError):
        fails("a result")
    assert {path.name for path in out.iterdir()} == {"run.json", "a result"}
    with pytest.raises(CallError, match="exists already"), record(out).working(resume=False):
        pass
    with pytest.raises(LoopError):
        fails()  # what an earlier call left stays
    assert {path.name for path in out.iterdir()} == {"run.json", "a result"}


def test_two_runs_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with (
        record(tmp_path).working(resume=False),
        pytest.raises(CallError, match="another run is at work"),
        record(tmp_path).working(resume=True),
    ):
        pass


def test_what_a_finished_run_found_is_that_of_the_same_run_alone(tmp_path: Path) -> None:
    assert record(tmp_path).found() is None
    record(tmp_path).write(finished=False, error=0.5)
    assert record(tmp_path).found() is None
    record(tmp_path).write(finished=True, error=0.5)
    assert record(tmp_path).found() == {"error": 0.5}
    assert record(tmp_path, dataset="def").found() is None
    assert json.loads((tmp_path / "run.json").read_text())["finished"]


def test_a_record_that_says_the_same_is_not_written_again(tmp_path: Path) -> None:
    record(tmp_path).write(finished=True)
    before = (tmp_path / "run.json").stat().st_ino
    record(tmp_path).write(finished=True)
    record(tmp_path).open(resume=True)
    assert (tmp_path / "run.json").stat().st_ino == before
