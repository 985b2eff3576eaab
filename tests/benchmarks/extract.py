"""How fast `midiloop extract` is, beside the paper's way and beside bare parsing.

    python tests/benchmarks/extract.py CORPUS [--baseline-files N] [--repeats N] [--copies N]

CORPUS is a folder of MIDI files. Everything runs on the same files, one core each (Linux). The
paper's way (pretty_midi and pypianoroll) takes minutes, so it runs on an even sample of the files.
Times are CPU seconds of the process and all its children, medians over the repeats. Two workers
against one is wall time, since that is what a second core is for.

With ``--copies``, time and peak memory are those of a quarter, half and all of a corpus so many
times as large. Its songs are all different, and so are their loops: each copy of a file has a text
event and a pattern of toms of its own. How long the dataset takes to be assembled, once all files
are mined, is shown for each loop: the same for all three where time grows with the loops alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

LAKH_FILES = 176_581
PR_SET_CHILD_SUBREAPER = 36
SUFFIXES = (".mid", ".midi", ".kar", ".rmi")
MIDILOOP = [sys.executable, "-m", "midiloop_cli"]
HEADER = b"MThd" + struct.pack(">I", 6)

# `midiloop extract --rules open --workers 2`, which notes how long the last step takes.
ASSEMBLING = """
import sys, time
from pathlib import Path
from midiloop.common.processes import Processes
from midiloop.mining import assemble, extract, rules

def timed(*args, original=assemble.assemble, **options):
    began = time.perf_counter()
    found = original(*args, **options)
    out.with_suffix(".seconds").write_text(str(time.perf_counter() - began))
    return found

assemble.assemble = timed
out, *sources = map(Path, sys.argv[1:])
extract.run(sources, out, extract.Settings(rules.preset("open")), engine=Processes(2))
"""


def midi_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def paper_way(path: Path) -> int:
    """Mine one file as the paper does, with pretty_midi and pypianoroll; how many loops."""
    import numpy as np
    import pretty_midi
    import pypianoroll

    folds = [(35, 36), (37, 38, 39, 40), (42, 44), (41, 43, 45), (46,), (47, 48), (49, 52, 55, 57),
             (50,), (51, 53, 59)]  # fmt: skip
    song = pretty_midi.PrettyMIDI(str(path))
    meters = [(m.numerator, m.denominator) for m in song.time_signature_changes]
    if not meters or any(meter != (4, 4) for meter in meters):
        return 0
    rolls = pypianoroll.from_pretty_midi(song, resolution=4)
    drums = [track.pianoroll > 0 for track in rolls.tracks if track.is_drum]
    bass = [t.pianoroll > 0 for t in rolls.tracks if not t.is_drum and 32 <= t.program < 40]
    if not drums or not bass:
        return 0
    n_steps = max(len(track) for track in drums + bass) // 16 * 16
    roll = np.zeros((n_steps, 93), dtype=bool)
    for track in drums:
        for column, pitches in enumerate(folds):
            roll[: len(track), column] |= track[:n_steps, list(pitches)].any(axis=1)
    for step in range(n_steps):
        sounding = [p for t in bass if step < len(t) for p in np.flatnonzero(t[step, 24:108])]
        if sounding:
            roll[step, 9 + min(sounding)] = True
    bars = roll.reshape(-1, 16, 93)
    loops = 0
    for start in range(len(bars) - 7):
        first = bars[start, 0]
        near = np.mean(bars[start] != bars[start + 4]) < 0.0015
        loops += int(near and first[0] and first[6] and first[9:].any())
    return loops


def run_paper_way(files: list[Path]) -> tuple[list[Path], int]:
    """Mine all files; those that have bass and drums in 4/4, and the loops."""
    warnings.simplefilter("ignore")
    loops, good = 0, []
    for path in files:
        try:
            loops += paper_way(path)
            good.append(path)
        except Exception:  # what pretty_midi raises on bad files has many names
            continue
    return good, loops


def run_symusic(files: list[Path]) -> int:
    """Parse every file, and take the notes of every track as arrays."""
    from symusic.core import ScoreTick

    notes = 0
    for path in files:
        try:
            score = ScoreTick.from_midi(path.read_bytes())
        except RuntimeError:
            continue
        notes += sum(len(track.notes.numpy()["time"]) for track in score.tracks)
    return notes


def run_extract(folder: Path, scratch: Path, n_workers: int) -> None:
    out = scratch / uuid.uuid4().hex
    command = [*MIDILOOP, "extract", str(folder), "-o", str(out), "--workers", str(n_workers)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def import_all() -> None:
    """Load the libraries of the baselines, so that their time is that of files alone."""
    import pretty_midi  # noqa: F401
    import pypianoroll  # noqa: F401
    import symusic.core  # noqa: F401


def cpu_s_on_one_core(work: Callable[[], object]) -> float:
    """CPU seconds of ``work``, and of all that it starts, in a process that may use one core."""
    before = os.times()
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        # Workers outlive the command that started them by an instant: adopt them, to count them.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        work()
        with suppress(ChildProcessError):
            while True:
                os.wait()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, "the measured process failed"
    after = os.times()
    used_s = after.children_user + after.children_system
    return used_s - before.children_user - before.children_system


def show_help() -> None:
    subprocess.run([*MIDILOOP, "--help"], check=True, stdout=subprocess.DEVNULL)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def with_bass_and_drums(files: list[Path]) -> list[Path]:
    """Those of the files that `midiloop` reads and finds bass and drums in."""
    from midiloop.errors import MidiError
    from midiloop.midi import pianoroll, score

    found = []
    for path in files:
        try:
            song = score.read(path)
        except MidiError:
            continue
        if pianoroll.bass_tracks(song) and pianoroll.drum_tracks(song):
            found.append(path)
    return found


def linked(files: list[Path], folder: Path) -> Path:
    """A folder of just these files."""
    folder.mkdir()
    for number, path in enumerate(files):
        (folder / f"{number:06d}{path.suffix}").symlink_to(path.resolve())
    return folder


def peak_memory_mb(command: list[Any]) -> dict[str, float]:
    """Peak resident memory of a command and of its hungriest worker, in MB (Linux)."""
    peaks: dict[str, float] = {"parent": 0.0, "worker": 0.0}
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)

    def look() -> None:
        import psutil

        while process.poll() is None:
            try:
                parent = psutil.Process(process.pid)
                for child in [parent, *parent.children(recursive=True)]:
                    role = "parent" if child.pid == process.pid else "worker"
                    status = Path(f"/proc/{child.pid}/status").read_text()
                    peak = re.search(r"VmHWM:\s+(\d+)", status)
                    if peak:
                        peaks[role] = max(peaks[role], int(peak[1]) * 1024 / 1e6)
            except (psutil.NoSuchProcess, OSError):
                pass
            time.sleep(0.01)

    watcher = threading.Thread(target=look)
    watcher.start()
    process.wait()
    watcher.join()
    assert process.returncode == 0, command
    return peaks


def varied(data: bytes, copy: int) -> bytes:
    """A MIDI file with a text event and a pattern of toms of its own, the same in every bar."""
    from symusic.core import ScoreTick

    try:
        score = ScoreTick.from_midi(data)
    except RuntimeError:
        return data
    kind, n_tracks, division = struct.unpack_from(">HHH", data, 8)
    step = division // 4
    if data[:8] != HEADER or not step or kind == 2:
        return data
    text = f"copy {copy}".encode()
    events = bytes([0, 0xFF, 0x01, len(text)]) + text
    rng, waited = random.Random(f"{copy} {len(data)} {score.end()}"), 0
    bar = [rng.choice([45, 50, None, None]) for _ in range(16)]
    for tom in bar * min(score.end() // (4 * division), 2000):
        if tom is not None:
            events += variable_length(waited) + bytes([0x99, tom, 90, 1, tom, 0])
            waited = -1
        waited += step
    events += bytes([0, 0xFF, 0x2F, 0])
    track = b"MTrk" + struct.pack(">I", len(events)) + events
    header = HEADER + struct.pack(">HHH", 1, n_tracks + 1, division)
    return header + data[14:] + track


def variable_length(number: int) -> bytes:
    out = [number & 127]
    while number := number >> 7:
        out.append(number & 127 | 128)
    return bytes(reversed(out))


def large_corpus(files: list[Path], copies: int, scratch: Path) -> dict[str, dict[str, float]]:
    """Wall seconds and peak memory, rules ``open``, of corpora of up to so many copies."""
    folders = []
    for copy in range(copies):
        folders.append(scratch / "large" / f"{copy:04d}")
        folders[-1].mkdir(parents=True)
        for number, path in enumerate(files):
            name = f"{number:06d}{path.suffix}"
            (folders[-1] / name).write_bytes(varied(path.read_bytes(), copy))
    found = {}
    for n_copies in (copies // 4, copies // 2, copies):
        out = scratch / "loops"
        began = time.perf_counter()
        peaks = peak_memory_mb([sys.executable, "-c", ASSEMBLING, out, *folders[:n_copies]])
        taken_s = time.perf_counter() - began
        assembling_s = float((scratch / "loops.seconds").read_text())
        counts = json.loads((out / "manifest.json").read_text())["counts"]
        shutil.rmtree(out)
        found[f"{n_copies} copies"] = {
            "files": n_copies * len(files),
            "loops": counts["loops"],
            "songs": counts["songs"],
            "wall_s": taken_s,
            "assembling_us_per_loop": 1e6 * assembling_s / counts["loops"],
        } | {f"peak megabytes, {role}": peak for role, peak in peaks.items()}
    return found


def measure(corpus: Path, n_baseline: int, repeats: int, scratch: Path) -> dict[str, Any]:
    files = midi_files(corpus)
    n_bytes = sum(path.stat().st_size for path in files)
    out = scratch / "loops"

    def cpu(work: Callable[[], object]) -> float:
        return statistics.median(cpu_s_on_one_core(work) for _ in range(repeats))

    # The interpreter and what it imports count for midiloop alone, which starts afresh each time.
    import_all()
    parse_s = cpu(lambda: run_symusic(files))
    ours_s = cpu(lambda: run_extract(corpus, scratch, 1))
    one, two = [], []
    for _ in range(repeats):
        one.append(timed(lambda: run_extract(corpus, scratch, 1)))
        two.append(timed(lambda: run_extract(corpus, scratch, 2)))
    sample = files[:: max(1, len(files) // n_baseline)]
    usable = with_bass_and_drums(sample)
    sample_s = cpu_s_on_one_core(lambda: run_paper_way(sample))
    usable_s = cpu_s_on_one_core(lambda: run_paper_way(usable))
    usable_all = linked(with_bass_and_drums(files), scratch / "usable")
    n_usable = len(midi_files(usable_all))
    ours_usable_s = cpu(lambda: run_extract(usable_all, scratch, 1))
    rate, usable_rate = len(files) / ours_s, n_usable / ours_usable_s
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "files": len(files),
        "megabytes": n_bytes / 1e6,
        "cpu_s": {"symusic alone": parse_s, "midiloop extract": ours_s},
        "files_per_s": {
            "paper's way": len(sample) / sample_s,
            "symusic alone": len(files) / parse_s,
            "midiloop extract": rate,
        },
        "megabytes_per_s": {
            "paper's way": sum(path.stat().st_size for path in sample) / 1e6 / sample_s,
            "symusic alone": n_bytes / 1e6 / parse_s,
            "midiloop extract": n_bytes / 1e6 / ours_s,
        },
        "files_per_s_with_bass_and_drums": {
            "paper's way": len(usable) / usable_s,
            "midiloop extract": usable_rate,
        },
        "times_the_papers_way": rate * sample_s / len(sample),
        "times_the_papers_way_with_bass_and_drums": usable_rate * usable_s / len(usable),
        "cpu_over_symusic_alone": ours_s / parse_s,
        "wall_s": {"one worker": statistics.median(one), "two workers": statistics.median(two)},
        "two_workers_over_one": statistics.median(a / b for a, b in zip(one, two, strict=True)),
        "help_wall_s": statistics.median(timed(show_help) for _ in range(5)),
        "peak_megabytes": peak_memory_mb(
            [*MIDILOOP, "extract", str(corpus), "-o", str(out), "--workers", "2"]
        ),
        "lakh_full_minutes": {
            "paper's way, one core": LAKH_FILES / (len(sample) / sample_s) / 60,
            "midiloop, one core": LAKH_FILES / rate / 60,
            "midiloop, two workers": LAKH_FILES / len(files) * statistics.median(two) / 60,
        },
        "sample": {"files": len(sample), "with_bass_and_drums": len(usable)},
    }


def flat(found: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += flat(value, f"{prefix}{name}: ")
        else:
            shown = f"{value:,.2f}" if isinstance(value, float) else value
            lines.append(f"{prefix + name:<60} {shown:>12}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--baseline-files", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--copies", type=int, default=0, help="4 at least, for three sizes")
    parser.add_argument("--only-copies", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = {}
        if not args.only_copies:
            found = measure(args.corpus, args.baseline_files, args.repeats, Path(scratch))
        if args.copies:
            files = midi_files(args.corpus)
            found["large corpus"] = large_corpus(files, args.copies, Path(scratch))
    print(json.dumps(found, indent=2) if args.json else "\n".join(flat(found)))


if __name__ == "__main__":
    main()
