"""The command line as a user meets it: exit codes, one-line errors, JSON, files."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mido
import numpy as np
import pyarrow as pa
import pypianoroll
import pytest
from pyarrow import parquet

from handmade import BAR, groove, rows, score, track
from midiloop.dataset import export
from midiloop.dataset import parquet as dataset_parquet
from midiloop.errors import CallError
from midiloop.grid import LOOP
from midiloop.metrics.key import estimate_key
from midiloop.midi import interchange, pianoroll, transposition
from midiloop.midi import score as scores
from midiloop.midi.key import Key, confident, parse_key


def midiloop(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "midiloop_cli", *map(str, args)]
    env = {**os.environ, "CI": "true"}  # with which some libraries print more
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60, env=env)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "songs"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    for number in range(14):
        song = groove(12, pitches=[30 + number, 35, 40, 28])
        (folder / "ab"[number % 2] / f"Song {number:02d} é.mid").write_bytes(scores.to_bytes(song))
    (folder / "waltz.mid").write_bytes(scores.to_bytes(score(track([(0, 480, 60)]))))
    return folder


@pytest.fixture(scope="module")
def loops(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "loops"
    assert midiloop("extract", songs, "-o", out, "--rules", "open").returncode == 0
    return out


def test_help_names_every_command() -> None:
    shown = midiloop("--help")
    assert shown.returncode == 0
    for command in ("extract", "inspect", "plot", "export"):
        assert command in shown.stdout
        assert "--json" in midiloop(command, "--help").stdout
    assert midiloop("--version").stdout.startswith("midiloop")


def test_extract_reports_what_it_found(songs: Path, tmp_path: Path) -> None:
    done = midiloop("extract", songs, "-o", tmp_path / "loops")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "15 files" in done.stdout
    assert "28 loops" in done.stdout
    assert "no_bass 1" in done.stdout
    assert str(tmp_path / "loops") in done.stdout


def test_extract_reports_json(songs: Path, tmp_path: Path) -> None:
    done = midiloop("extract", songs, "-o", tmp_path / "l", "--stride-bars", 4, "--json")
    found = json.loads(done.stdout)
    assert found["counts"]["files"] == 15
    assert found["counts"]["rejects"] == {"no_bass": 1}
    assert found["stride_bars"] == 4
    assert found == json.loads((tmp_path / "l" / "manifest.json").read_text())


def test_progress_is_drawn_on_a_terminal_only(songs: Path, tmp_path: Path) -> None:
    parent, child = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "midiloop_cli",
        "extract",
        str(songs),
        "-o",
        str(tmp_path / "l"),
    ]
    env = {**os.environ, "TERM": "xterm"}  # a dumb terminal has no bars
    process = subprocess.Popen(command, stderr=child, stdout=subprocess.PIPE, env=env)
    os.close(child)
    shown = b""
    while True:
        try:
            shown += os.read(parent, 4096)
        except OSError:  # the terminal's other end is closed
            break
    out, _ = process.communicate(timeout=30)
    os.close(parent)
    assert process.returncode == 0
    assert b"files" in shown
    assert b"loops" in shown
    assert b"28 loops" in out


BAD_CALLS = {
    "no source": ["extract", "-o", "x"],
    "no output": ["extract", "{songs}"],
    "a missing source": ["extract", "none.mid", "-o", "x"],
    "a source of another kind": ["extract", "{script}", "-o", "x"],
    "unknown rules": ["extract", "{songs}", "-o", "x", "--rules", "strict"],
    "no workers": ["extract", "{songs}", "-o", "x", "--workers", "0"],
    "an output that exists": ["extract", "{songs}", "-o", "{loops}"],
    "an unknown command": ["improvise"],
    "an unknown option": ["inspect", "{loops}", "--loud"],
    "export to nothing": ["export", "{loops}"],
    "export to both": ["export", "{loops}", "--midi", "a", "--npz", "b.npz"],
    "export over a folder": ["export", "{loops}", "--midi", "{songs}"],
    "export into no folder": ["export", "{loops}", "--midi", "none/a"],
    "export to another suffix": ["export", "{loops}", "--npz", "a.zip"],
    "inspect a missing folder": ["inspect", "none"],
    "plot of nothing": ["plot", "none.mid", "-o", "x.png"],
    "plot of another kind": ["plot", "{script}", "-o", "x.png"],
}
BAD_WORK = {
    "inspect no dataset": ["inspect", "{songs}"],
    "plot to another suffix": ["plot", "{loops}", "-o", "x.gif"],
    "plot into no folder": ["plot", "{loops}", "-o", "none/x.png"],
    "plot of a file that is no MIDI": ["plot", "{bad}", "-o", "x.png"],
    "plot of no match": ["plot", "{loops}", "-o", "x.png", "--song", "none"],
    "export of no match": ["export", "{loops}", "--midi", "a", "--song", "none"],
    "npz of no match": ["export", "{loops}", "--npz", "a.npz", "--song", "none"],
}


@pytest.mark.parametrize(
    ("args", "code"),
    [(args, 2) for args in BAD_CALLS.values()] + [(args, 1) for args in BAD_WORK.values()],
    ids=[*BAD_CALLS, *BAD_WORK],
)
def test_what_cannot_be_done_is_one_line(
    args: list[str], code: int, songs: Path, loops: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.mid"
    bad.write_bytes(b"no MIDI at all")
    places = {"songs": songs, "loops": loops, "script": Path(__file__), "bad": bad}
    done = midiloop(*(arg.format(**places) for arg in args), cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("midiloop: error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.mid"]


def test_an_unwritable_folder_is_one_line(songs: Path, tmp_path: Path) -> None:
    done = midiloop("extract", songs, "-o", "/proc/loops", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "/proc/loops" in done.stderr


def test_a_broken_archive_exits_1_and_keeps_what_was_read(songs: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        archive.add(songs, arcname="songs")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "whole.tar.gz").read_bytes()[:-2000])
    done = midiloop("extract", "cut.tar.gz", "-o", "loops", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("midiloop: error: cut.tar.gz: broken_archive")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "loops" / "manifest.json").exists()


def test_a_reader_that_goes_away_is_no_traceback(loops: Path) -> None:
    command = f"'{sys.executable}' -m midiloop_cli inspect '{loops}' | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_inspect_shows_counts_histograms_and_metrics(loops: Path) -> None:
    shown = midiloop("inspect", loops).stdout
    for word in ("files", "songs", "distinct", "no_bass", "tempo", "density", "HD", "ND"):
        assert word in shown
    found = json.loads(midiloop("inspect", loops, "--json").stdout)
    assert sum(found["tempo_bpm"]["counts"]) == found["manifest"]["counts"]["loops"] == 70
    assert sum(found["note_density"]["counts"]) == 70
    assert found["tempo_bpm"]["edges"][-1] is None
    assert list(found["metrics"]) == ["HD", "FND", "FNB", "DB", "OS", "US", "UP", "ND"]
    # bars 5, 6, 7, 8 repeat bars 1 to 4 but for the crash
    assert found["metrics"]["FNB"] == found["metrics"]["OS"] == 1


def test_inspect_of_a_dataset_without_loops(tmp_path: Path) -> None:
    (tmp_path / "x.mid").write_bytes(b"")
    assert midiloop("extract", "x.mid", "-o", "l", cwd=tmp_path).returncode == 0
    shown = midiloop("inspect", "l", cwd=tmp_path)
    assert shown.returncode == 0
    assert "not_midi" in shown.stdout


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_draws_a_dataset_and_midi_files(
    suffix: str, songs: Path, loops: Path, tmp_path: Path
) -> None:
    sheet = midiloop("plot", loops, "-o", f"sheet{suffix}", cwd=tmp_path)
    assert (sheet.returncode, sheet.stdout) == (0, f"sheet{suffix}\n")
    files = sorted(songs.rglob("*.mid"))
    two = midiloop("plot", *files[:2], "-o", f"two{suffix}", "--json", cwd=tmp_path)
    assert len(json.loads(two.stdout)["loops"]) == 2
    one = midiloop("plot", songs / "waltz.mid", "-o", f"one{suffix}", cwd=tmp_path)
    assert one.returncode == 0
    start = b"\x89PNG" if suffix == ".png" else b"<?xml"
    for name in ("sheet", "two", "one"):
        assert (tmp_path / f"{name}{suffix}").read_bytes().startswith(start)


def test_exported_files_loop_right_in_a_daw(loops: Path, tmp_path: Path) -> None:
    done = midiloop("export", loops, "--midi", "midi", "--distinct", cwd=tmp_path)
    assert done.returncode == 0
    batches = list(dataset_parquet.LoopDataset(loops).select(distinct=True))
    rolls = np.concatenate([batch.rolls for batch in batches])
    keys = [confident(estimate_key(roll)) for roll in rolls]
    assert None in keys
    assert len(set(keys)) > 3
    files = sorted((tmp_path / "midi").iterdir())
    assert len(files) == len(rolls)
    for file, roll, key in zip(files, rolls, keys, strict=True):
        midi = mido.MidiFile(file)
        assert [sum(message.time for message in t) for t in midi.tracks] == [8 * BAR] * 3
        at_zero = [m for m in midi.tracks[0] if m.time == 0]
        assert [m.type for m in at_zero[:2]] == ["set_tempo", "time_signature"]
        assert [str(parse_key("key", m.key)) for m in at_zero[2:]] == [str(key)] * bool(key)
        assert file.stem.endswith(f"bpm_{key}" if key else "bpm")
        assert [t.name for t in midi.tracks[1:]] == ["drums", "bass"]
        notes = [[m for m in t if m.type == "note_on"] for t in midi.tracks[1:]]
        assert {(m.channel, m.velocity) for m in notes[0]} == {(9, 100)}
        assert {(m.channel, m.velocity) for m in notes[1]} == {(0, 80)}
        np.testing.assert_array_equal(pianoroll.encode(scores.read(file)), roll)
    names = {file.name for file in files}
    first = Path(batches[0].songs[0]).stem.removesuffix(" é").replace(" ", "-")
    of_key = f"_{keys[0]}" if keys[0] else ""
    assert f"00000_{first}_bar001_120bpm{of_key}.mid" in names
    assert all(re.fullmatch(r"[A-Za-z0-9_#-]+\.mid", name) for name in names)


@pytest.mark.parametrize("semitones", [-2, 5])
def test_exported_loops_are_transposed_and_their_keys_with_them(
    semitones: int, loops: Path, tmp_path: Path
) -> None:
    found = []
    for name, moved in (("as they are", 0), ("moved", semitones)):
        done = midiloop(
            "export", loops, "--midi", name, "--transpose", moved, "--json", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["files"])
    for one, other in zip(*found, strict=True):
        before, after = (
            scores.read(tmp_path / name / file["file"])
            for name, file in (("as they are", one), ("moved", other))
        )
        back = transposition.transpose_score(after, -semitones)
        assert rows(back) == rows(before)
        assert rows(after)[0] == rows(before)[0], "drums stay"
        assert other["key_confidence"] == one["key_confidence"]
        assert (other["key"] is None) == (one["key"] is None)
        if one["key"]:
            tonic = (parse_key("key", one["key"]).tonic + semitones) % 12
            assert parse_key("key", other["key"]).tonic == tonic
            assert other["file"].endswith(f"_{other['key']}.mid")


def test_a_bass_that_would_leave_the_grid_is_named_and_nothing_is_written(
    loops: Path, tmp_path: Path
) -> None:
    done = midiloop("export", loops, "--midi", "midi", "--transpose", "-5", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "bar 1: --transpose -5 moves its bass out of C1 to B7" in done.stderr
    assert "--transpose 7 gives the same key" in done.stderr
    assert not (tmp_path / "midi").exists()
    done = midiloop("export", loops, "--midi", "midi", "--transpose", 13, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_keys_of_a_dataset_are_counted(loops: Path) -> None:
    batches = dataset_parquet.LoopDataset(loops).batches()
    keys = [confident(estimate_key(roll)) for batch in batches for roll in batch.rolls]
    expected = Counter(str(key) for key in keys if key)
    assert json.loads(midiloop("inspect", loops, "--json").stdout)["keys"] == expected
    shown = midiloop("inspect", loops).stdout
    for key, n in expected.items():
        assert re.search(rf"^  {key} +{n}  ", shown, re.MULTILINE)


def test_exported_npz_holds_every_loop_in_order(loops: Path, tmp_path: Path) -> None:
    done = midiloop("export", loops, "--npz", "loops.npz", "--limit", 9, "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"written": "loops.npz", "loops": 9}
    song = pypianoroll.load(str(tmp_path / "loops.npz"))
    rolls = interchange.from_multitrack(song).reshape(9, 128, 93)
    expected = next(dataset_parquet.LoopDataset(loops).batches()).rolls[:9]
    np.testing.assert_array_equal(rolls, expected)


LIMITED = """
import resource, sys
kind, most = getattr(resource, sys.argv.pop(1)), int(sys.argv.pop(1))
resource.setrlimit(kind, (most, most))
from midiloop_cli.main import midiloop
midiloop()
"""


def limited(kind: str, most: int, *args: object) -> subprocess.CompletedProcess[str]:
    """A command that may take no more than so much of something."""
    command = [sys.executable, "-c", LIMITED, kind, str(most), *map(str, args)]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # each thread takes address space
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


@pytest.fixture(scope="module")
def many(loops: Path, tmp_path_factory: pytest.TempPathFactory) -> dataset_parquet.LoopDataset:
    """A dataset of 7,000 loops, whose dense piano rolls take 230 MB."""
    out = tmp_path_factory.mktemp("many") / "loops"
    shutil.copytree(loops, out)
    manifest = json.loads((out / "manifest.json").read_text())
    for shard in manifest["shards"]:
        table = pa.concat_tables([parquet.read_table(out / shard["file"])] * 100)
        parquet.write_table(table, out / shard["file"])
        shard["loops"] = len(table)
        shard.pop("sha256")
    counts = manifest["counts"]
    counts["loops"] *= 100
    counts["splits"] = {split: 100 * n for split, n in counts["splits"].items()}
    del manifest["fingerprint"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    return dataset_parquet.LoopDataset(out)


def test_what_is_exported_in_little_memory_is_what_is_loaded(
    many: dataset_parquet.LoopDataset, tmp_path: Path
) -> None:
    out = tmp_path / "loops.npz"
    done = limited("RLIMIT_AS", 640 << 20, "export", many.path, "--npz", out)
    assert (done.returncode, done.stderr) == (0, "")
    song = pypianoroll.load(str(out))
    rolls = interchange.from_multitrack(song).reshape(-1, LOOP.steps, LOOP.columns)
    np.testing.assert_array_equal(rolls, np.concatenate([b.rolls for b in many.batches()]))


@pytest.mark.parametrize("most_mib", [128, 200, 416])
@pytest.mark.parametrize("command", [("inspect",), ("export", "--npz"), ("plot", "-o")])
def test_too_little_address_space_is_one_line(
    loops: Path, most_mib: int, command: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / ("x.npz" if command[0] == "export" else "x.png")
    rest = [*command[1:], out] if command[1:] else []
    done = limited("RLIMIT_AS", most_mib << 20, command[0], loops, *rest)
    assert done.returncode == 1
    assert done.stderr == (
        f"midiloop: error: address space is limited to {most_mib} MiB, and at least 512 MiB are "
        "needed; raise the limit (ulimit -v)\n"
    )
    assert not any(tmp_path.iterdir())


def test_arrow_that_finds_no_memory_is_no_damage(
    loops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 3047424 failed")

    monkeypatch.setattr(dataset_parquet, "cast", fail)
    with pytest.raises(MemoryError):
        next(dataset_parquet.LoopDataset(loops).batches())
    with pytest.raises(MemoryError):
        dataset_parquet.LoopDataset(loops).rejects()


@pytest.mark.parametrize(
    "command",
    [
        ("extract", "{songs}", "-o", "{out}/o"),
        ("export", "{loops}", "--npz", "{out}/o.npz"),
        ("export", "{loops}", "--midi", "{out}/o"),
        ("plot", "{loops}", "-o", "{out}/o.png"),
        ("plot", "{loops}", "-o", "{out}/o.svg"),
    ],
    ids=lambda command: f"{command[0]}{command[2]} {command[3]}",
)
def test_a_file_that_may_not_grow_is_one_line_and_not_half_written(
    songs: Path, loops: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    args = [part.format(songs=songs, loops=loops, out=tmp_path) for part in command]
    done = limited("RLIMIT_FSIZE", 500, *args)
    assert done.returncode == 1
    assert done.stderr.startswith(f"midiloop: error: {tmp_path}/o")
    assert done.stderr.endswith(
        ": File too large; raise the limit on the size of files (ulimit -f), or choose another "
        "place\n"
    )
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert {*left} <= ({"plan.json"} if command[0] == "extract" else set())


def test_an_interrupted_export_leaves_no_folder_under_its_name(loops: Path, tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export.to_midi(dataset_parquet.LoopDataset(loops).select(), tmp_path / "midi", on_loop=fail)
    assert not (tmp_path / "midi").exists()
    assert (
        len(export.to_midi(dataset_parquet.LoopDataset(loops).select(limit=3), tmp_path / "midi"))
        == 3
    )
    with pytest.raises(CallError, match="exists already"):
        export.to_midi(dataset_parquet.LoopDataset(loops).select(), tmp_path / "midi")


def test_file_names_are_safe_and_say_what_it_is() -> None:
    name = export.file_name(3, "a/../ü/Ain't \n it? 🎵.mid", 16, 97.35)
    assert name == "00003_Ain-t-it_bar017_97bpm.mid"
    assert export.file_name(0, "音楽.mid", 0, 120) == "00000_loop_bar001_120bpm.mid"
    assert len(export.file_name(0, "x" * 500, 0, 120)) < 100
    names = [export.file_name(0, "x", 0, 120, Key(6, "minor", sure)) for sure in (0.05, 0.04)]
    assert names == ["00000_x_bar001_120bpm_F#m.mid", "00000_x_bar001_120bpm.mid"]


@pytest.mark.parametrize("tempo_bpm", [0.5, 120, 6e7])
def test_any_tempo_can_be_written(tempo_bpm: float) -> None:
    loop = pianoroll.decode(np.ones((128, 93), dtype=np.bool_), export.writable_tempo(tempo_bpm))
    assert scores.read(scores.to_bytes(loop)).tempos[0].bpm == pytest.approx(
        export.writable_tempo(tempo_bpm), rel=1e-4
    )


@pytest.mark.parametrize("missing", ["torch", "safetensors"])
def test_without_models_the_extra_is_named(missing: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from midiloop_cli import main; "
    code += "main.midiloop(['generate', '-o', sys.argv[1]])"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (f"midiloop: error: {missing} is not installed: pip install {missing}\n")
