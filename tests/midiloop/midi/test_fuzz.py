"""Damaged files, many of them: each ends as loops or as a reject, and nothing else happens."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from handmade import groove, note, smf
from midiloop.errors import MidiError
from midiloop.midi import pianoroll, score
from midiloop.mining import extract, rules

OPEN = extract.Settings(rules.preset("open"))
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF]
MEMORY_BYTES = 250_000_000  # of a worker


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def set_extremes(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 12)):
        data[rng.randrange(len(data))] = rng.choice(EXTREMES)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def drop_a_slice(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 64)]


def repeat_a_slice(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.randint(1, 2000)]
    data[at:at] = piece * rng.randint(1, 40)


def far_deltas(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 20)):
        at = rng.randrange(14, max(15, len(data)))
        data[at : at + 4] = b"\xff\xff\xff\x7f"


def damage_the_header(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(4, 14)] = rng.choice(EXTREMES)


def damage_a_length(data: bytearray, rng: random.Random) -> None:
    at = data.find(b"MTrk", rng.randrange(len(data)))
    if at >= 0:
        data[at + 4 : at + 8] = rng.choice([0, 1, len(data), 2**31, 2**32 - 1]).to_bytes(4, "big")


def false_meta_events(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(14, max(15, len(data)))
    kind = rng.choice([0x2F, 0x51, 0x54, 0x58, 0x59, 0x7F, rng.randrange(256)])
    body = bytes(rng.choice(EXTREMES) for _ in range(rng.randrange(8)))
    data[at:at] = bytes([0, 0xFF, kind, rng.choice([len(body), 0, 0x7F])]) + body


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    flip_bits,
    set_extremes,
    cut,
    drop_a_slice,
    repeat_a_slice,
    far_deltas,
    damage_the_header,
    damage_a_length,
    false_meta_events,
]


@pytest.fixture(scope="module")
def seeds(request: pytest.FixtureRequest) -> list[bytes]:
    """Real files where they are at hand, else what we write ourselves."""
    own = [score.to_bytes(groove(16)), smf(note(9, 36) * 50 + note(0, 40) + b"\0\xff\x2f\0")]
    try:
        real = request.getfixturevalue("real_files")
    except pytest.skip.Exception:
        return own
    return own + [data for item in real if 100 < len(data := item.read()) < 200_000]


def check_one(data: bytes) -> str:
    """Mine a file and check all that must hold of what came out; say how it ended."""
    try:
        found = extract.mine("x", data, OPEN)
    except MidiError as error:
        return error.reason if error.detail else "no detail"
    song = score.read(data)
    assert all((track.onsets >= 0).all() and (track.durations >= 0).all() for track in song.tracks)
    assert 0 < song.length_ticks <= score.MAX_BARS * 4 * song.ticks_per_quarter
    assert song.n_notes <= score.MAX_NOTES
    whole = pianoroll.encode(song)
    assert len(whole) % 16 == 0
    assert (whole[:, 9:].sum(axis=1) <= 1).all()
    assert found.start_bars[-1] + 8 <= len(whole) // 16
    assert found.rolls.shape == (len(found.start_bars), 1488)
    assert np.isfinite(found.tempos_bpm).all()
    assert (found.tempos_bpm > 0).all()
    return "loops"


def test_damaged_files_end_as_loops_or_as_rejects(
    seeds: list[bytes], request: pytest.FixtureRequest
) -> None:
    rng = random.Random(2026)
    ends: Counter[str] = Counter()
    for _ in range(request.config.getoption("--mutations")):
        data = bytearray(rng.choice(seeds))
        for mutate in rng.choices(MUTATIONS, k=rng.randint(1, 3)):
            if len(data) > 14:
                mutate(data, rng)
        ends[check_one(bytes(data))] += 1
    print(dict(ends.most_common()))
    assert set(ends) <= {"loops", *extract.REASONS} - {"crashed", "timeout"}
    assert ends["loops"] > 0
    assert len(ends) > 5


PEAKS = """
import re, sys
from pathlib import Path
from midiloop.mining import corpus, extract, rules
from midiloop.errors import MidiError

settings = extract.Settings(rules.preset("open"))
for item in corpus.walk([Path(sys.argv[1])]):
    try:
        extract.mine(item.name, item.read(), settings)
        end = "loops"
    except MidiError as error:
        end = error.reason
    status = Path("/proc/self/status").read_text()
    print(item.name, end, re.search(r"VmHWM:\\s+(\\d+)", status)[1], sep="\\t")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_worst_files_that_are_read_need_no_more_memory_than_a_worker_has(
    tmp_path: Path,
) -> None:
    budget = score.MAX_FILE_BYTES - 10_000
    kinds = {
        "controllers": (b"\0\xb0\x07\x40", b"\0\x07\x40"),
        "notes": (b"\0\x90\x30\x40", b"\0\x30\0\0\x30\x40" * 4),
        "long bass": (b"\0\xc0\x21", note(0, 60, 0, 7000)),
        "sysex": (b"", b"\0\xf0\x82\x00" + bytes(255) + b"\xf7"),
        "text": (b"", b"\0\xff\x01\x01a"),
        "tempi": (b"", b"\0\xff\x51\x03\x07\xa1\x20"),
        "meters": (b"", b"\0\xff\x58\4\4\2\x18\x08"),
        "open notes": (b"\0\x90\x30\x40", b"\0\x30\x40"),
    }
    programs = b"".join(
        bytes([0, 0xC0 | c, p, 0, 0x90 | c, 48, 64, 9, 0x80 | c, 48, 0])
        for c in range(16)
        for p in range(128)
    )
    tail = note(0, 60) + note(9, 36) + b"\0\xff\x2f\0"
    files = {
        name: smf(head + event * min(budget // len(event), score.MAX_NOTES - 9) + tail)
        for name, (head, event) in kinds.items()
    }
    files["controllers to the last byte"] = smf(
        b"\0\xb0\x07\x40" + b"\0\x07\x40" * 1_390_000 + tail
    )
    files["tracks"] = smf(*[programs + tail] * 7)
    for name, data in files.items():
        (tmp_path / f"{name}.mid").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    rows = [row.split("\t") for row in done.stdout.splitlines()]
    print(rows)
    assert len(rows) == len(files)
    assert "too_large" not in {end for _, end, _ in rows}
    assert max(int(peak_kb) for _, _, peak_kb in rows) * 1024 < MEMORY_BYTES
