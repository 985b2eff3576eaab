"""Headers of WAV files as others write them: sizes, loop points and cue points."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pytest
import soundfile

from audioloop.evaluation import validate
from audioloop.io import metadata, riff, wave
from audioloop.io.label import LoopLabel
from audioloop.io.riff import Acid, Chunk, Loop
from audioloop.io.wave import Format, Wave
from audioloop.pipelines import inputs

RATE = 8_000
LABEL = LoopLabel(120, 4, name="groove")
LENGTH = LABEL.samples(RATE)  # 64,000
UNKNOWN = riff.UNKNOWN


def tones(length: int, channels: int = 1, seed: int = 4) -> Wave:
    """A periodic sound, so that a loop of all of it has no seam."""
    rng = np.random.default_rng(seed)
    bins = np.zeros((channels, length // 2 + 1), complex)
    low = bins[:, 1 : 500 * length // RATE]
    low[:] = rng.normal(size=low.shape) + 1j * rng.normal(size=low.shape)
    samples = np.fft.irfft(bins, length)
    return Wave((samples / np.abs(samples).max() / 2).astype(np.float32), RATE)


def parts(sound: Wave, bits: int, *chunks: Chunk) -> list[Chunk]:
    """Chunks of a WAV of a sound: of the format, the samples, and what follows them."""
    buffer = io.BytesIO()
    subtype = {16: "PCM_16", 24: "PCM_24"}[bits]
    soundfile.write(buffer, sound.samples.T, sound.rate, subtype=subtype, format="WAV")
    data = buffer.getvalue()
    at = data.index(b"data") + 8
    size = len(sound) * len(sound.samples) * bits // 8
    frame = len(sound.samples) * bits // 8
    head = struct.pack("<HHIIHH", 1, len(sound.samples), RATE, RATE * frame, frame, bits)
    return [Chunk(b"fmt ", head), Chunk(b"data", data[at : at + size]), *chunks]


def packed(
    chunks: list[Chunk],
    *,
    kind: bytes = b"RIFF",
    riff_size: int | None = None,
    data_size: int | None = None,
    pad: bool = True,
) -> bytes:
    """A file of chunks, some of whose sizes are said to be others."""
    body = b""
    for name, content in chunks:
        size = len(content)
        size = data_size if name == b"data" and data_size is not None else size
        body += name + struct.pack("<I", size) + content + b"\0" * (pad and len(content) % 2)
    size = 4 + len(body) if riff_size is None else riff_size
    return kind + struct.pack("<I", size) + b"WAVE" + body


def ds64(chunks: list[Chunk], *table: tuple[bytes, int]) -> Chunk:
    total = 4 + 8 + 28 + 12 * len(table) + sum(8 + len(c.body) + len(c.body) % 2 for c in chunks)
    data = next(len(chunk.body) for chunk in chunks if chunk.name == b"data")
    others = b"".join(struct.pack("<4sQ", *entry) for entry in table)
    return Chunk(b"ds64", struct.pack("<QQQI", total, data, 0, len(table)) + others)


def plain() -> bytes:
    return packed(parts(tones(LENGTH), 16))


def pipe() -> bytes:
    return packed(parts(tones(LENGTH), 16), riff_size=UNKNOWN, data_size=UNKNOWN)


def sox_pipe() -> bytes:
    return packed(parts(tones(LENGTH), 16), riff_size=0x7FFFF024, data_size=0x7FFFF000)


def too_large() -> bytes:
    return packed(parts(tones(LENGTH), 16), riff_size=len(plain()) - 8 + 500)


def too_small() -> bytes:
    return packed(parts(tones(LENGTH), 16), riff_size=36)


def unclosed() -> bytes:
    return packed(parts(tones(LENGTH), 16), riff_size=0, data_size=0)


def torn() -> bytes:
    return plain()[: -LENGTH // 2 * 2]


def unpadded() -> bytes:
    chunks = parts(tones(LENGTH - 1), 24, riff.smpl([Loop(0, LENGTH - 1)], RATE), riff.acid(ACID))
    return packed(chunks, pad=False)


def unpadded_list() -> bytes:
    form, data = parts(tones(LENGTH), 16)
    return packed([form, Chunk(b"LIST", b"INFOISFT\5\0\0\0abcd\0"), data], pad=False)


def rf64(kind: bytes = b"RF64") -> bytes:
    chunks = parts(tones(LENGTH), 16, riff.acid(ACID))
    chunks.insert(0, ds64(chunks, (b"abcd", 7)))
    return packed(chunks, kind=kind, riff_size=UNKNOWN, data_size=UNKNOWN)


def bw64() -> bytes:
    return rf64(b"BW64")


ACID = Acid(120, 16, (4, 4))
ODD: dict[str, Callable[[], bytes]] = {
    "pipe": pipe, "sox pipe": sox_pipe, "too large": too_large, "too small": too_small,
    "unclosed": unclosed, "torn": torn, "unpadded": unpadded, "unpadded list": unpadded_list,
    "RF64": rf64, "BW64": bw64,
}  # fmt: skip
BEYOND_LIBSNDFILE = {"unclosed", "unpadded list", "BW64"}  # where ffmpeg and sox read the samples


@pytest.mark.parametrize("name", ODD)
def test_of_a_header_whose_sizes_are_odd_the_samples_are_read_and_check_says_it(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "dub_120bpm.wav"
    path.write_bytes(ODD[name]())
    found = validate.examine(path)
    if name not in BEYOND_LIBSNDFILE:
        reference = soundfile.read(path, dtype="float32", always_2d=True)[0].T
        np.testing.assert_array_equal(found.metadata.wave.samples, reference)
    whole = tones(LENGTH - (name == "unpadded")).samples
    n_samples = len(found.metadata.wave)
    assert n_samples == (LENGTH // 2 if name == "torn" else whole.shape[1])
    np.testing.assert_allclose(found.metadata.wave.samples, whole[:, :n_samples], atol=1e-4)
    assert found.metadata.damage
    assert set(found.metadata.damage) <= set(found.findings), "a finding of check"
    loop = inputs.read(path, None)
    assert len(loop.wave) == n_samples, "and no more than a note for what works with the loop"
    assert set(map(str, found.metadata.damage)) <= set(loop.notes)


def test_what_follows_an_odd_size_without_a_pad_byte_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dub.wav"
    path.write_bytes(unpadded())
    found = metadata.read(path)
    assert found.acids == (ACID,)
    assert found.loops == (Loop(0, LENGTH - 1),)
    path.write_bytes(rf64())
    assert metadata.read(path).acids == (ACID,)


@pytest.mark.parametrize("tail", [b"", b"\0" * 9, b"TAG" + b"x" * 125], ids=["", "zeros", "id3v1"])
def test_a_header_that_is_right_has_no_findings(tail: bytes) -> None:
    odd = [Chunk(b"LIST", b"INFO!"), Chunk(b"own!", b"12345")]
    for bits in (16, 24):
        data = packed([*odd, *parts(tones(999), bits, *odd)]) + tail
        found = riff.read(io.BytesIO(data))
        assert [one for one in found.findings if one.what != "header"] == []
        if tail[:1] == b"\0" or not tail:
            assert not found.findings


def test_a_chunk_that_is_cut_short_is_a_finding_and_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "dub_120bpm.wav"
    smpl = riff.smpl([Loop(0, LENGTH)], RATE).body
    for chunk in (
        Chunk(b"smpl", smpl[:-1]), Chunk(b"acid", b"x" * 23), Chunk(b"cue ", b"\xff" * 4),
        Chunk(b"smpl", struct.pack("<9I", *[0] * 7, 0xFFFFFFFF, 0)),
    ):  # fmt: skip
        path.write_bytes(packed(parts(tones(LENGTH), 16, chunk)))
        (finding,) = validate.check(path)
        assert finding.expected == "whole chunks"
        assert len(inputs.read(path, None).wave) == LENGTH


def test_of_a_large_file_only_the_header_is_read(tmp_path: Path) -> None:
    """Two GiB of nothing take no memory, whatever the file says of it."""
    path = tmp_path / "huge.wav"
    head = plain()[:44]
    for data_size in (0x7FFFFF00, UNKNOWN):
        path.write_bytes(head[:40] + struct.pack("<I", data_size))
        os.truncate(path, 2 << 30)
        code = (
            "import sys, resource, pathlib\n"
            "from audioloop.evaluation import validate\n"
            "from midiloop.errors import LoopError\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: validate.check(pathlib.Path(sys.argv[1]))\n"
            "except LoopError as error: print(error)\n"
            "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "sys.exit((after - before) * 1024 > 64 << 20)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "are no loop; cut it first" in done.stdout


def test_a_header_without_an_end_is_read_in_bounds() -> None:
    many = b"RIFF" + struct.pack("<I", 4 + 8 * 100_000) + b"WAVE" + b"LIST\0\0\0\0" * 100_000
    assert len(riff.read(io.BytesIO(many)).chunks) <= riff.MAX_CHUNKS
    big = packed([Chunk(b"smpl", b"\0" * (2 << 20))])
    assert len(riff.read(io.BytesIO(big)).bodies(b"smpl")[0]) <= riff.MAX_BODY


# Loop points: one rule for headers and tags, and for all that read them.

INTRO = LENGTH // 2
POINTS: dict[str, dict[str, Any]] = {
    "smpl": {"loops": [Loop(INTRO, LENGTH)]},
    "start": {"LOOPSTART": INTRO},
    "length": {"LOOPSTART": INTRO, "LOOPLENGTH": LENGTH - INTRO},
    "end": {"LOOPSTART": INTRO, "LOOPEND": LENGTH},
    "both": {"LOOPSTART": INTRO, "LOOPLENGTH": LENGTH - INTRO, "LOOPEND": LENGTH},
    "lower case": {"loopstart": INTRO, "loopend": LENGTH},
    "last sample": {"LOOPSTART": INTRO, "LOOPEND": LENGTH - 1},
    "beyond": {"LOOPSTART": INTRO, "LOOPEND": LENGTH + 3},
}


def looped(folder: Path, name: str, suffix: str) -> Path:
    """Two bars of an intro and two of a loop, of which the points of a name say where they are."""
    intro = np.random.default_rng(5).uniform(-0.3, 0.3, (1, INTRO)).astype(np.float32)
    samples = np.concatenate([intro, tones(LENGTH - INTRO).samples], axis=1)
    path = folder / f"dub.{suffix}"
    said = POINTS[name]
    if "loops" in said:
        chunks = parts(Wave(samples, RATE), 16, riff.smpl(said["loops"], RATE), riff.acid(ACID))
        path.write_bytes(packed(chunks))
        return path
    soundfile.write(path, samples.T, RATE)
    file: Any = mutagen.File(path)
    file.update({"BPM": "120", **{key: str(value) for key, value in said.items()}})
    file.save()
    return path


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("smpl", "wav"), *((name, form) for name in list(POINTS)[1:] for form in ("flac", "ogg"))],
)
def test_the_loop_is_what_its_points_say(name: str, suffix: str, tmp_path: Path) -> None:
    path = looped(tmp_path, name, suffix)
    last = LENGTH - 1 if name == "last sample" else LENGTH
    found = metadata.read(path)
    assert found.extent == Loop(INTRO, last)
    assert (found.beats, found.bars) == (8, 2), "of the loop, and not of the file"
    note = f"the loop is samples {INTRO:,}–{last:,} of {LENGTH:,}"
    checked = validate.examine(path)
    beyond = ["LOOPEND tag"] if name == "beyond" else []
    assert [finding.what for finding in checked.findings] == beyond
    assert note in checked.notes
    loop = inputs.read(path, None)
    assert (len(loop.wave), loop.label.bars) == (last - INTRO, 2)
    assert note in loop.notes
    np.testing.assert_array_equal(loop.wave.samples, found.wave.samples[:, INTRO:last])


def test_an_outro_is_left_out_as_an_intro_is(tmp_path: Path) -> None:
    path = tmp_path / "dub_120bpm.wav"
    outro = np.full((1, 1234), 0.3, np.float32)
    samples = np.concatenate([tones(INTRO).samples, outro], axis=1)
    path.write_bytes(packed(parts(Wave(samples, RATE), 16, riff.smpl([Loop(0, INTRO)], RATE))))
    found = validate.examine(path)
    assert found.findings == []
    assert (len(found.metadata.repeats), found.metadata.bars) == (INTRO, 2)


@pytest.mark.parametrize("loop", [Loop(5, 5), Loop(LENGTH, LENGTH + 9), Loop(9, 4), Loop(0, 1)])
def test_points_that_leave_nothing_mean_nothing(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "dub_120bpm.wav"
    path.write_bytes(packed(parts(tones(LENGTH), 16, riff.smpl([loop], RATE))))
    assert metadata.read(path).whole
    assert [finding.what for finding in validate.check(path)] == ["smpl loop"]


def test_the_first_of_several_loops_counts_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "dub_120bpm.wav"
    loops = [Loop(0, INTRO), Loop(INTRO, LENGTH)]
    path.write_bytes(packed(parts(tones(LENGTH), 16, riff.smpl(loops, RATE))))
    found = metadata.read(path)
    assert found.extent == loops[0]
    assert "2 loops in its header, of which the first counts" in found.notes


def cue(*places: int) -> Chunk:
    points = [struct.pack("<II4sIII", n, at, b"data", 0, 0, at) for n, at in enumerate(places, 1)]
    return Chunk(b"cue ", struct.pack("<I", len(points)) + b"".join(points))


def test_cue_points_without_a_loop_are_said(tmp_path: Path) -> None:
    path = tmp_path / "dub_120bpm.wav"
    path.write_bytes(packed(parts(tones(LENGTH), 16, cue(INTRO))))
    note = f"a cue point at sample {INTRO:,}, and no loop in its header"
    assert validate.examine(path).notes == [note]
    assert validate.check(path) == []
    loop = inputs.read(path, None)
    assert note in loop.notes
    assert len(loop.wave) == LENGTH, "a point is no loop"
    path.write_bytes(packed(parts(tones(LENGTH), 16, cue(*range(10)))))
    assert (
        "cue points at samples 0, 1, 2, …, and no loop in its header" in metadata.read(path).notes
    )
    path.write_bytes(packed(parts(tones(LENGTH), 16, cue(7), riff.smpl([Loop(0, LENGTH)], RATE))))
    assert metadata.read(path).notes == []


def test_a_codec_that_cannot_seek_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gsm_120bpm.wav"
    soundfile.write(path, tones(LENGTH).samples[0], RATE, subtype="GSM610")
    found = wave.read(path)
    assert len(found) == soundfile.info(path).frames
    assert np.corrcoef(found.samples[0][:LENGTH], tones(LENGTH).samples[0])[0, 1] > 0.9


def test_what_we_write_has_no_findings() -> None:
    assert riff.read(io.BytesIO(plain())).findings == ()
    for bits in ("16", "24", "float"):
        data = wave._wav(tones(777), None, Format("wav", bits))
        assert riff.read(io.BytesIO(data)).findings == ()
