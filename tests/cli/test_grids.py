"""Loops of other bars, meters and steps, through all commands that take them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from handmade import WALTZ, waltz
from midiloop.dataset.parquet import LoopDataset
from midiloop.midi import pianoroll, score
from midiloop.training import recipes
from midiloop_cli.main import audioloop, midiloop

GROUPS = {"midiloop": midiloop, "audioloop": audioloop}
GRID = ("--bars", 4, "--meter", "3/4", "--steps-per-beat", 6)


def call(command: str, *args: object, code: int = 0) -> str:
    """What a command prints; of one that fails, it is one line."""
    group, name = command.split()
    done = CliRunner().invoke(GROUPS[group], [name, *map(str, args)])
    assert done.exit_code == code, done.output
    assert not code or done.output.count("\n") == 1
    return done.output


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``extract`` finds in waltzes."""
    folder, rng = tmp_path_factory.mktemp("songs"), np.random.default_rng(3)
    for number in range(30):
        song = waltz(4 + number % 3, pitches=[28 + number, 35])
        drums, *others = song.tracks
        loud = rng.integers(20, 120, drums.n_notes).astype(np.int8)
        song = replace(song, tracks=(drums._replace(velocities=loud), *others))
        (folder / f"{number:02d}.mid").write_bytes(score.to_bytes(song))
    out = folder.parent / "waltzes"
    call("midiloop extract", folder, "-o", out, "--rules", "open", *GRID)
    return out


def test_a_waltz_is_mined_looked_at_and_exported(loops: Path, tmp_path: Path) -> None:
    dataset = LoopDataset(loops)
    assert dataset.grid == WALTZ
    assert dataset.manifest["counts"]["rejects"] == {}
    found = json.loads(call("midiloop inspect", loops, "--json"))
    assert found["metrics"]["FNB"] == 1
    assert "  4 bars of 3/4, 18 steps, 9 drums" in call("midiloop inspect", loops)
    call("midiloop plot", loops, "-o", tmp_path / "loops.png")
    call("midiloop export", loops, "--npz", tmp_path / "loops.npz")
    call("midiloop export", loops, "--midi", tmp_path / "midi", "--limit", 3)
    rolls = next(dataset.batches()).rolls
    for path, roll in zip(sorted((tmp_path / "midi").iterdir()), rolls, strict=False):
        song = score.read(path)
        assert song.meters == ((0, 3, 4),)
        np.testing.assert_array_equal(pianoroll.encode(song, WALTZ), roll)


@pytest.mark.parametrize("model", recipes.MODELS)
def test_every_model_learns_and_writes_waltzes(model: str, loops: Path, tmp_path: Path) -> None:
    run, new = tmp_path / "run", tmp_path / "new"
    small = ("--preset", "small", "--epochs", 1, "--batch-size", 16, "--device", "cpu")
    call("midiloop train", model, loops, "-o", run, *small)
    call("midiloop generate", run, "-n", 4, "--any", "--must", "bass", "-o", new, "--bpm", 90)
    assert LoopDataset(new / "dataset").grid == WALTZ
    judged = ("--any", "-n", 20, "--no-classifier")
    found = json.loads(call("midiloop evaluate", run, "--reference", loops, *judged, "--json"))
    assert {"nats_per_loop", "reconstruction_error"} & found.keys()
    call("audioloop render", new / "dataset", "--limit", 1, "-o", tmp_path / "audio")
    (wave,) = (tmp_path / "audio").glob("*.wav")
    assert soundfile.info(wave).frames == 4 * 3 * 60 * 44_100 // 90
    (checked,) = json.loads(call("audioloop check", wave, "--json"))["files"]
    assert (checked["bars"], checked["meter"], checked["tempo_bpm"]) == (4, [3, 4], 90)


def test_files_of_a_waltz_are_rendered_and_judged_as_their_dataset_is(
    loops: Path, tmp_path: Path
) -> None:
    call("midiloop export", loops, "--midi", tmp_path / "midi", "--distinct", "--limit", 8)
    call("audioloop render", tmp_path / "midi", "-o", tmp_path / "audio", "--rate", 8000)
    for wave in (tmp_path / "audio").glob("*.wav"):
        assert soundfile.info(wave).frames == 4 * 3 * 60 * 8000 // 120
    judged = ("--reference", loops, "--no-classifier", "--json")
    found = json.loads(call("midiloop evaluate", tmp_path / "midi", *judged))
    assert found["metrics"]["OS"]["value"] == 1


def test_hands_play_the_grid_that_they_learned_from(loops: Path, tmp_path: Path) -> None:
    run = tmp_path / "hands"
    small = ("--epochs", 1, "--batch-size", 16, "--device", "cpu")
    call("midiloop train", "hands", loops, "-o", run, *small)
    felt = ("--feel", 1, "--hands", run)
    call("midiloop export", loops, "--midi", tmp_path / "midi", "--limit", 2, *felt)
    rolls = next(LoopDataset(loops).batches()).rolls
    for path, roll in zip(sorted((tmp_path / "midi").iterdir()), rolls, strict=False):
        song = score.read(path)
        assert len(set(song.tracks[0].velocities.tolist())) > 1
        drawn = pianoroll.encode(song, WALTZ, circular=True)
        np.testing.assert_array_equal(drawn[: len(roll)], roll)
    call("audioloop render", loops, "--limit", 1, *felt, "-o", tmp_path / "audio", "--rate", 8000)
    (wave,) = (tmp_path / "audio").glob("*.wav")
    assert soundfile.info(wave).frames == 4 * 3 * 60 * 8000 // 120
    for command, *more in (
        ("midiloop export", "--midi", tmp_path / "none"),
        ("audioloop render", "-o", tmp_path / "none"),
    ):
        said = call(command, loops, "--feel", 1, *more, code=1)
        assert "4 steps a beat in 4/4" in said
        assert "6 in 3/4" in said


BAD = {
    "no meter": (("--meter", "3/5"), "3/5: no meter; give one as in 3/4"),
    "no number": (("--meter", "three"), "three: no meter"),
    "no beats": (("--meter", "0/4"), "0/4: no meter"),
    "no bars": (("--bars", 0), "--bars"),
    "no steps": (("--steps-per-beat", 0), "--steps-per-beat"),
    "steps that are not whole": (("--meter", "6/8", "--steps-per-beat", 3), "4.5 steps a pulse"),
    "too many cells": (("--bars", 64, "--steps-per-beat", 96), "over 1,048,576 cells"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_grid_that_cannot_be_is_a_wrong_call(name: str, loops: Path, tmp_path: Path) -> None:
    args, said = BAD[name]
    out = call("midiloop extract", loops, "-o", tmp_path / "out", *args, code=2)
    assert said in out
    assert not (tmp_path / "out").exists()


def test_what_only_knows_the_usual_grid_says_so(loops: Path, tmp_path: Path) -> None:
    said = call("midiloop reproduce", loops, "-o", tmp_path / "out", code=1)
    assert "bars 4, not 8; meter 3/4, not 4/4" in said
    said = call("audioloop train", "codec", loops, "-o", tmp_path / "out", "--steps", 1, code=1)
    assert "4 bars of 3/4" in said
