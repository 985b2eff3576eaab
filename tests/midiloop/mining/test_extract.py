from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from engines import Elsewhere

from handmade import (
    BAR,
    GRIDS,
    JIG,
    TPQ,
    WALTZ,
    groove,
    note,
    random_rolls,
    score,
    smf,
    track,
    waltz,
)
from midiloop.common import files
from midiloop.common.engine import Engine, Inline
from midiloop.common.processes import Processes
from midiloop.dataset import parquet
from midiloop.errors import CallError, LoopError, MidiError
from midiloop.grid import Grid
from midiloop.midi import pianoroll
from midiloop.midi import score as scores
from midiloop.midi.score import Meter, Tempo
from midiloop.mining import extract, rules

OPEN = extract.Settings(rules.preset("open"))
END = b"\0\xff\x2f\0"


def digest(folder: Path) -> dict[str, str]:
    """What a dataset is made of, byte by byte."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six hundred small files: grooves, copies of them, and files that give nothing."""
    folder = tmp_path_factory.mktemp("songs")
    rng = random.Random(5)
    for number in range(600):
        data = smf(note(0, 60) + END)
        if number % 3 == 0:
            pitches = [rng.randrange(28, 48) for _ in range(4)]
            data = scores.to_bytes(groove(rng.choice([8, 12, 20]), pitches=pitches))
        elif number % 7 == 0:
            data = data[: number % 40]
        (folder / f"{number // 100}").mkdir(exist_ok=True)
        (folder / f"{number // 100}" / f"{number:03d}.mid").write_bytes(data)
    shutil.copy(folder / "0" / "000.mid", folder / "copy.mid")
    return folder


@pytest.fixture(scope="module")
def mined(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset that one undisturbed worker makes of them."""
    out = tmp_path_factory.mktemp("mined") / "loops"
    extract.run([songs], out, engine=Inline())
    return out


def test_loops_of_one_song_are_rolls() -> None:
    song = groove(20)
    found = extract.loops(song, OPEN)
    whole = pianoroll.encode(song)
    assert len(found) == 13
    for start, roll in enumerate(found):
        np.testing.assert_array_equal(roll, whole[16 * start :][:128])
    assert len(extract.loops(song)) == 4
    assert len(extract.loops(song, extract.Settings(OPEN.rules, stride_bars=6))) == 3


BASS = track([(0, 8 * BAR, 33)], program=33)
DRUM = track([(0, 120, 36)], drum=True)


@pytest.mark.parametrize(
    ("song", "reason"),
    [
        (score(DRUM, track([(0, 8 * BAR, 33)], program=0)), "no_bass"),
        (score(DRUM, track([(0, 8 * BAR, 20)], program=33)), "no_bass"),
        (score(BASS), "no_drums"),
        (score(BASS, track([(0, 120, 81)], drum=True)), "no_drums"),
        (score(BASS, DRUM, meters=[]), "no_meter"),
        (score(BASS, DRUM, meters=[Meter(0, 3, 4)]), "not_4_4"),
    ],
)
def test_a_song_without_what_a_loop_needs_says_so(song: scores.Score, reason: str) -> None:
    with pytest.raises(MidiError) as caught:
        extract.loops(song)
    assert caught.value.reason == reason
    assert reason in extract.REASONS


def test_a_song_with_all_but_a_loop_has_none() -> None:
    assert extract.loops(score(BASS, DRUM)) == []
    with pytest.raises(MidiError, match="no_loop"):
        extract.mine("x", scores.to_bytes(score(BASS, DRUM)), extract.PAPER)


IN_THREE = extract.Settings(OPEN.rules, grid=WALTZ)


def test_loops_of_a_waltz_are_bars_of_three() -> None:
    song = waltz(8)
    whole = pianoroll.encode(song, WALTZ)
    found = extract.loops(song, IN_THREE)
    assert len(found) == 5
    for start, roll in enumerate(found):
        np.testing.assert_array_equal(roll, whole[18 * start :][:72])
    assert whole[[6, 8, 10], 1].all()  # a triplet is where it is played
    record = extract.mine("x", scores.to_bytes(song), IN_THREE)
    assert record.start_bars.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(WALTZ.unpack(record.rolls), np.stack(found))
    with pytest.raises(MidiError, match="not_4_4: 3/4, and no bar of 4/4"):
        extract.loops(song, OPEN)
    with pytest.raises(MidiError, match="not_3_4: 4/4, and no bar of 3/4"):
        extract.loops(groove(8), IN_THREE)
    with pytest.raises(MidiError, match="not_6_8: 3/4, and no bar of 6/8"):
        extract.loops(song, extract.Settings(OPEN.rules, grid=JIG))
    paper = extract.Settings(grid=WALTZ)
    assert len(extract.loops(song, paper)) == 2  # where its crashes are


def test_a_bar_that_is_cut_short_is_none_in_any_meter() -> None:
    song = waltz(12)
    meters = (Meter(0, 3, 4), Meter(7 * 3 * TPQ - 1, 4, 4))
    cut = scores.Score(TPQ, song.tracks, song.tempos, meters, song.length_ticks)
    assert len(extract.loops(cut, IN_THREE)) == 3  # in six whole bars


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_a_grid_writes_is_found_on_it(
    grid: Grid, rng: np.random.Generator, tmp_path: Path
) -> None:
    """A roll becomes a MIDI file, and the file a dataset that holds just that roll."""
    folder = tmp_path / "songs"
    folder.mkdir()
    rolls = random_rolls(rng, 5, grid=grid)
    bars = rolls.reshape(len(rolls), grid.bars, -1, grid.columns)
    rolls[:, 0, [0, 6, 9]] = True
    rolls[:, 0, 10:] = False
    bars[:, [0, -1], -1, 0] = True  # the last step sounds, so that the file is as long as the roll
    bars[:, grid.middle_bar] = bars[:, 0]
    for number, roll in enumerate(rolls):
        song = pianoroll.decode(roll, 97.0, grid=grid)
        (folder / f"{number}.mid").write_bytes(scores.to_bytes(song))
    for name in rules.PRESETS:
        out = tmp_path / name
        extract.run([folder], out, extract.Settings(rules.preset(name), grid=grid), engine=Inline())
        loops = parquet.LoopDataset(out)
        assert loops.grid == grid
        batch = parquet.LoopBatch.joined([*loops.batches()])
        order = np.argsort(batch.songs)
        np.testing.assert_array_equal(batch.rolls[order], rolls)
        assert not batch.distances_cells.any()


def test_the_tempo_is_the_median_over_the_window() -> None:
    song = groove(12)
    slow_end = scores.Score(
        TPQ, song.tracks, (Tempo(0, 100.0), Tempo(6 * BAR, 60.0)), song.meters, song.length_ticks
    )
    found = extract.mine("x", scores.to_bytes(slow_end), OPEN)
    # six of eight bars at 100; four and four: the mean of the middle two
    np.testing.assert_allclose(found.tempos_bpm[[0, 1, 2, 3, 4]], [100, 100, 80, 60, 60], rtol=1e-6)


def test_every_file_is_in_the_loops_or_in_the_rejects(songs: Path, mined: Path) -> None:
    dataset = parquet.LoopDataset(mined)
    names = {str(path.relative_to(songs)) for path in songs.rglob("*.mid")}
    with_loops = {song for batch in dataset.batches() for song in batch.songs}
    without = [reject.file for reject in dataset.rejects()]
    assert with_loops | set(without) == names
    assert len(with_loops) + len(without) == len(names) == 601
    counts = dataset.manifest["counts"]
    assert counts["files"] == 601
    assert counts["songs"] == len(with_loops)
    assert sum(counts["rejects"].values()) == len(without)
    assert {reject.reason for reject in dataset.rejects()} <= set(extract.REASONS)
    assert all(reject.detail for reject in dataset.rejects())


def test_loops_lie_in_order_with_what_they_are(songs: Path, mined: Path) -> None:
    rows = []
    for batch in parquet.LoopDataset(mined).batches(50):
        for at in range(len(batch)):
            data = (songs / batch.songs[at]).read_bytes()
            whole = pianoroll.encode(scores.read(data))
            start = int(batch.start_bars[at])
            np.testing.assert_array_equal(batch.rolls[at], whole[16 * start :][:128])
            assert hashlib.md5(data).hexdigest() == batch.md5s[at]
            assert batch.distances_cells[at] == 0
            assert batch.tempos_bpm[at] == 120
            rows.append((batch.splits[at], batch.songs[at], start))
    assert rows == sorted(rows)
    assert len({split for split, _, _ in rows}) == 3
    assert len(rows) == len(parquet.LoopDataset(mined))


@pytest.mark.parametrize("engine", [Processes(2), Processes(3), Elsewhere()])
def test_any_engine_gives_the_same_bytes(
    engine: Engine, songs: Path, mined: Path, tmp_path: Path
) -> None:
    extract.run([songs], tmp_path / "loops", engine=engine)
    assert digest(tmp_path / "loops") == digest(mined)
    assert [path.name for path in tmp_path.iterdir()] == ["loops"]


def test_an_archive_gives_what_its_folder_gives(songs: Path, mined: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "songs.tar.gz", "w:gz") as archive:
        archive.add(songs, arcname=".", filter=None)
    extract.run([tmp_path / "songs.tar.gz"], tmp_path / "loops", engine=Processes(2))

    def loops(folder: Path) -> list[tuple[str, int, str, str, bytes]]:
        batches = parquet.LoopDataset(folder).batches()
        rows: list[tuple[str, int, str, str, bytes]] = [
            (song.removeprefix("./"), int(start), md5, split, roll.tobytes())
            for b in batches
            for song, start, md5, split, roll in zip(
                b.songs, b.start_bars, b.md5s, b.splits, b.rolls, strict=True
            )
        ]
        return sorted(rows)

    assert loops(tmp_path / "loops") == loops(mined)


def start(songs: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "midiloop_cli", "extract", str(songs), "-o", str(out)]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return list(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def wait_for_parts(out: Path, n_parts: int, process: subprocess.Popen[bytes]) -> None:
    folder = out.with_name(out.name + ".partial")
    while process.poll() is None and len(list(folder.glob("*.part"))) < n_parts:
        time.sleep(0.002)


def interrupt(songs: Path, out: Path, after_files: int) -> None:
    """Leave a run that has committed so many files, and not many more."""

    def stop(progress: extract.Progress, _: int) -> None:
        if progress.files >= after_files:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract.run([songs], out, engine=Processes(1), on_progress=stop)


@pytest.mark.parametrize("n_parts", [0, 1, 2, 4])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    n_parts: int, how: signal.Signals, songs: Path, mined: Path, tmp_path: Path
) -> None:
    out = tmp_path / "loops"
    process = start(songs, out, "--workers", "2")
    wait_for_parts(out, n_parts, process)
    process.send_signal(how)
    process.communicate(timeout=30)
    assert not out.exists() or digest(out) == digest(mined)
    extract.run([songs], out, engine=Processes(1), resume=True)
    assert digest(out) == digest(mined)
    assert [path.name for path in tmp_path.iterdir()] == ["loops"]


def test_resuming_does_not_mine_again(songs: Path, mined: Path, tmp_path: Path) -> None:
    interrupt(songs, tmp_path / "loops", 128)
    reports: list[tuple[int, int]] = []
    extract.run(
        [songs],
        tmp_path / "loops",
        engine=Processes(1),
        resume=True,
        on_progress=lambda p, _: reports.append((p.files, p.resumed_files)),
    )
    assert reports[-1][0] == 601
    assert reports[-1][1] >= 128
    assert digest(tmp_path / "loops") == digest(mined)


def test_a_part_of_other_files_is_not_taken_for_ours(
    songs: Path, mined: Path, tmp_path: Path
) -> None:
    """A corpus that changed between two runs is mined as it is now."""
    corpus = tmp_path / songs.name
    shutil.copytree(songs, corpus)
    (corpus / "0" / "aaa.mid").write_bytes(b"new")
    interrupt(corpus, tmp_path / "loops", 128)
    (corpus / "0" / "aaa.mid").unlink()
    extract.run([corpus], tmp_path / "loops", engine=Processes(1), resume=True)
    assert digest(tmp_path / "loops") == digest(mined)


def test_a_worker_that_is_killed_costs_at_most_its_file(songs: Path, tmp_path: Path) -> None:
    killed, tries = 0, 0
    while not killed and tries < 5:  # a busy machine may let the run end before it is looked at
        tries += 1
        out = tmp_path / f"loops{tries}"
        process = start(songs, out, "--workers", "2")
        while process.poll() is None and killed < 2:
            for child in family(process):
                # workers are the children of the process that they are copies of
                if child.ppid() != process.pid:
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
                        killed += 1
                    time.sleep(0.1)
                    break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts["files"] == 601
    lost = [r for r in parquet.LoopDataset(out).rejects() if r.reason == "crashed"]
    assert len(lost) <= killed
    assert killed > 0


def stubborn(name: str, data: bytes, settings: extract.Settings) -> object:
    """Mine a file, unless its bytes say how to fail."""
    if data.startswith(b"KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    if data.startswith(b"HANG"):
        time.sleep(60)
    if data.startswith(b"EXHAUST"):
        raise MemoryError("no memory for this one")
    return MINE(name, data, settings)


MINE = extract.mine


def stubborn_batch(*args: object, **more: object) -> object:
    extract.mine = stubborn  # type: ignore[assignment]
    return MINE_BATCH(*args, **more)  # type: ignore[arg-type]


MINE_BATCH = extract.mine_batch


def test_files_that_kill_hang_or_exhaust_are_rejected_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "songs"
    folder.mkdir()
    for name, data in [("a", scores.to_bytes(groove(8))), ("b", b"KILL"), ("c", b"HANG"),
                       ("d", b"EXHAUST"), ("e", scores.to_bytes(groove(12)))]:  # fmt: skip
        (folder / f"{name}.mid").write_bytes(data)
    monkeypatch.setattr(extract, "mine_batch", stubborn_batch)
    result = extract.run([folder], tmp_path / "loops", engine=Processes(2), item_timeout_s=0.6)
    assert result.manifest["counts"]["songs"] == 2
    rejects = {
        r.file: (r.reason, r.detail) for r in parquet.LoopDataset(tmp_path / "loops").rejects()
    }
    assert rejects == {
        "b.mid": ("crashed", extract.REASONS["crashed"]),
        "c.mid": ("timeout", extract.REASONS["timeout"]),
        "d.mid": ("internal_error", "MemoryError: no memory for this one"),
    }


def run_limited(songs: Path, out: Path, file_bytes: int) -> subprocess.CompletedProcess[str]:
    """Extract with a disk on which no file may grow beyond ``file_bytes``."""
    code = (
        "import resource, sys; from midiloop_cli.main import midiloop; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_bytes}, {file_bytes})); midiloop()"
    )
    command = [sys.executable, "-c", code, "extract", str(songs), "-o", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_full_disk_is_one_line_and_can_be_resumed(
    songs: Path, mined: Path, tmp_path: Path
) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    out = tmp_path / "loops"
    outcome = run_limited(songs, out, 2000)
    assert outcome.returncode == 1
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    assert outcome.stderr.startswith("midiloop: error: ")
    assert "too large" in outcome.stderr
    assert not out.exists()
    extract.run([songs], out, resume=True)
    assert digest(out) == digest(mined)


def test_an_output_that_exists_is_left_alone(songs: Path, mined: Path, tmp_path: Path) -> None:
    before = digest(mined)
    with pytest.raises(CallError, match="exists already"):
        extract.run([songs], mined)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CallError, match="exists already"):
        extract.run([songs], tmp_path / "file")
    assert digest(mined) == before


def test_resuming_what_is_finished_says_so(songs: Path, mined: Path) -> None:
    before = digest(mined)
    assert extract.run([songs], mined, resume=True).manifest["counts"]["files"] == 601
    assert digest(mined) == before
    with pytest.raises(CallError, match="made with rules 'paper', not 'open'; choose another"):
        extract.run([songs], mined, OPEN, resume=True)


def test_a_rest_of_an_earlier_run_is_neither_used_nor_lost_unasked(
    songs: Path, tmp_path: Path
) -> None:
    interrupt(songs, tmp_path / "loops", 64)
    with pytest.raises(CallError, match="--resume"):
        extract.run([songs], tmp_path / "loops")
    with pytest.raises(CallError, match="begun with rules 'paper', not 'open'; use the same"):
        extract.run([songs], tmp_path / "loops", OPEN, resume=True)
    assert list((tmp_path / "loops.partial").glob("*.part"))


def test_two_runs_do_not_work_at_one_place(songs: Path, mined: Path, tmp_path: Path) -> None:
    refused = 0

    def run_again(progress: extract.Progress, _: int) -> None:
        nonlocal refused
        with pytest.raises(CallError, match="another run is at work"):
            extract.run([songs], tmp_path / "loops", resume=True)
        refused += 1

    extract.run([songs], tmp_path / "loops", engine=Processes(1), on_progress=run_again)
    assert refused
    assert digest(tmp_path / "loops") == digest(mined)


def test_places_that_cannot_be_written_are_named(songs: Path, tmp_path: Path) -> None:
    with pytest.raises(CallError, match="no such folder"):
        extract.run([songs], tmp_path / "none" / "loops")
    (tmp_path / "loops.partial").write_text("a file in the way")
    with pytest.raises(CallError, match="is in the way"):
        extract.run([songs], tmp_path / "loops")


def test_a_corpus_without_midi_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoopError, match="no MIDI file"):
        extract.run([tmp_path / "empty"], tmp_path / "loops")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_corpus_of_rejects_is_a_dataset_without_loops(tmp_path: Path) -> None:
    (tmp_path / "x.mid").write_bytes(b"no")
    result = extract.run([tmp_path / "x.mid"], tmp_path / "loops")
    assert result.manifest["counts"]["loops"] == 0
    assert list(parquet.LoopDataset(tmp_path / "loops").batches()) == []
    assert [r.reason for r in parquet.LoopDataset(tmp_path / "loops").rejects()] == ["not_midi"]


def test_a_broken_archive_is_reported_and_what_was_read_is_kept(
    songs: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "songs.tar.gz", "w:gz") as archive:
        archive.add(songs, arcname="songs")
    data = (tmp_path / "songs.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(data[: len(data) // 2])
    result = extract.run([tmp_path / "cut.tar.gz"], tmp_path / "loops")
    assert [(r.file, r.reason) for r in result.broken_sources] == [("cut.tar.gz", "broken_archive")]
    assert 0 < result.manifest["counts"]["songs"] < 201


def test_batches_depend_on_the_corpus_alone(songs: Path) -> None:
    from midiloop.mining import corpus

    cut = list(extract.batches(corpus.walk([songs])))
    assert [len(batch.items) for batch in cut] == [64] * 9 + [25]
    assert [batch.number for batch in cut] == list(range(10))
    small: Callable[[int], corpus.Item] = lambda n: corpus.Item(f"{n}", 1 << 20, 0.0, data=b"")  # noqa: E731
    assert [len(b.items) for b in extract.batches(small(n) for n in range(10))] == [2] * 5


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("left", ["thesis.txt", ".hidden", "folder/thesis.txt", "plan.json"])
def test_somebody_else_s_folder_is_refused_and_left_as_it_was(
    left: str, resume: bool, songs: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "loops.partial" / left
    precious.parent.mkdir(parents=True)
    precious.write_text('{"precious": true}')
    with pytest.raises(CallError, match="is in the way"):
        extract.run([songs], tmp_path / "loops", engine=Processes(1), resume=resume)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [precious]
    assert precious.read_text() == '{"precious": true}'


@pytest.mark.parametrize("removed", [0, 1])
def test_a_run_that_is_killed_as_it_cleans_up_goes_on(
    removed: int, songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, calls = Path.unlink, []

    def until_killed(path: Path, missing_ok: bool = False) -> None:
        if (tmp_path / "loops").exists() and path.name != files.LOCK:
            calls.append(path)
            if len(calls) > removed:
                raise KeyboardInterrupt
        unlink(path, missing_ok)

    few = tmp_path / "few"
    shutil.copytree(songs / "0", few)
    monkeypatch.setattr(Path, "unlink", until_killed)
    with pytest.raises(KeyboardInterrupt):
        extract.run([few], tmp_path / "loops", engine=Inline())
    monkeypatch.undo()
    assert (tmp_path / "loops.partial").exists()
    extract.run([few], tmp_path / "loops", engine=Inline(), resume=True)
    extract.run([few], tmp_path / "whole", engine=Inline())
    assert digest(tmp_path / "loops") == digest(tmp_path / "whole")
    assert not (tmp_path / "loops.partial").exists()


def test_a_file_that_was_written_since_is_mined_again(songs: Path, tmp_path: Path) -> None:
    changing = tmp_path / "songs"
    shutil.copytree(songs, changing)
    interrupt(changing, tmp_path / "loops", 128)
    first = changing / "0" / "000.mid"
    size = first.stat().st_size
    other = scores.to_bytes(groove(20, pitches=[33, 28, 36, 31]))
    first.write_bytes(other[:size].ljust(size, b"\0"))
    extract.run([changing], tmp_path / "loops", engine=Processes(1), resume=True)
    extract.run([changing], tmp_path / "whole", engine=Processes(1))
    assert digest(tmp_path / "loops") == digest(tmp_path / "whole")


def test_workers_that_are_killed_from_outside_cost_nothing(
    songs: Path, mined: Path, tmp_path: Path
) -> None:
    process = start(songs, tmp_path / "loops", "--workers", "2")
    killed, rng = 0, random.Random(3)
    while process.poll() is None and killed < 3:
        time.sleep(0.01)
        # Not the process that workers are copies of, nor the one that counts what they share.
        workers = [child for child in family(process) if child.ppid() != process.pid]
        if workers and list(tmp_path.glob("loops.partial/*.part")):
            with suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()
                killed += 1
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert digest(tmp_path / "loops") == digest(mined)


def test_what_a_worker_was_lost_on_is_said_and_tried_again(
    songs: Path, mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(extract, "mine_batch", deadly)
        result = extract.run([songs], tmp_path / "loops", engine=Processes(2))
    assert [(reject.file, reject.reason) for reject in result.lost] == [("0/003.mid", "crashed")]
    again = extract.run([songs], tmp_path / "loops", engine=Processes(2), resume=True)
    assert again.lost == []
    assert digest(tmp_path / "loops") == digest(mined)
    assert [path.name for path in tmp_path.iterdir()] == ["loops"]


MINE_BATCH = extract.mine_batch


def deadly(
    batch: extract.Batch,
    turn_to: Callable[[int], None],
    *,
    settings: extract.Settings,
    folder: Path,
) -> object:
    """As `extract.mine_batch`, but one file ends the process that reads it."""
    for at, item in enumerate(batch.items):
        if item.name == "0/003.mid" and not item.problem:
            turn_to(at)
            os._exit(3)
    return MINE_BATCH(batch, turn_to, settings=settings, folder=folder)


def test_archives_that_are_not_opened_are_named_where_there_is_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    with zipfile.ZipFile(folder / "outer.zip", "w") as archive:
        archive.writestr("inner.zip", b"")
        archive.writestr("deep/inner.rar", b"")
    for name in ("a.7z", "more/b.LZH"):
        (folder / name).write_bytes(b"")
    named = "a.7z, more/b.LZH, outer.zip/inner.zip and 1 more; unpack them"
    with pytest.raises(LoopError, match=f"in: no MIDI file inside, but archives .*: {named}"):
        extract.run([folder], tmp_path / "loops", engine=Processes(1))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    (folder / "z.mid").write_bytes(smf(note(0, 60) + END))
    rejects = extract.run([folder], tmp_path / "loops", engine=Processes(1)).manifest["counts"][
        "rejects"
    ]
    assert rejects == {"unread_archive": 3, "nested_archive": 1, "no_meter": 1}
    with pytest.raises(CallError, match=r"a\.7z: an archive .* unpack it"):
        extract.run([folder / "a.7z"], tmp_path / "more")


def test_a_dataset_without_the_columns_of_onsets_is_not_gone_on_with(tmp_path: Path) -> None:
    """Earlier versions did not write them, and parts of both would not fit together."""
    (tmp_path / "song.mid").write_bytes(scores.to_bytes(groove(16)))
    out, sources = tmp_path / "loops", [tmp_path / "song.mid"]
    extract.run(sources, out, engine=Inline())
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["performance"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CallError, match="made with another set of columns; choose another name"):
        extract.run(sources, out, engine=Inline(), resume=True)
