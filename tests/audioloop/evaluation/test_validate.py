"""`audioloop check`: silent on good loops, and each disagreement is found where it is planted."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click.testing
import mutagen
import numpy as np
import pytest
import soundfile

from audioloop.evaluation import validate
from audioloop.io import metadata, riff, sources, wave
from audioloop.io.label import LoopLabel
from audioloop.io.riff import Acid, Chunk, Loop
from audioloop.io.wave import Format, Wave
from midiloop.errors import LoopError
from midiloop.midi.key import Key
from midiloop_cli import check as check_command

RATE = 8_000
WAV, FLAC, OGG = Format("wav", "16"), Format("flac", "16"), Format("ogg", "lossy")
FORMATS = [WAV, Format("wav", "24"), Format("wav", "float"), FLAC, Format("flac", "24"), OGG]
LABEL = LoopLabel(120, 2, name="groove")
LENGTH = LABEL.samples(RATE)  # 32,000


def tones(length: int, rng: np.random.Generator, rate: int = RATE) -> Wave:
    """A periodic sound without a seam: harmonics of the loop below 1 kHz."""
    bins = np.zeros((2, length // 2 + 1), complex)
    low = bins[:, 1 : 1000 * length // rate]
    low[:] = rng.normal(size=low.shape) + 1j * rng.normal(size=low.shape)
    samples = np.fft.irfft(bins, length)
    return Wave((samples / np.abs(samples).max() / 2).astype(np.float32), rate)


@pytest.fixture
def loop(tmp_path: Path, rng: np.random.Generator) -> Callable[..., Path]:
    """Write a loop with `wave.write`, under the name that its label gives."""

    def write(said: LoopLabel = LABEL, form: Format = WAV, name: str = "", **change: Any) -> Path:
        sound = change.get("sound") or tones(said.samples(RATE), rng)
        path = tmp_path / ((name or said.file_name("default")) + form.suffix)
        wave.write(path, sound, said, form)
        return path

    return write


@pytest.fixture
def header(tmp_path: Path, rng: np.random.Generator) -> Callable[..., Path]:
    """Write a WAV of any sound, with any chunks and under any name."""

    def write(*chunks: Chunk, name: str = "x.wav", samples: Any = None, bits: int = 16) -> Path:
        data = tones(LENGTH, rng).samples if samples is None else np.asarray(samples, np.float32)
        scaled = data if bits == 32 else np.rint(data * 32_767)
        body = scaled.T.astype("<f4" if bits == 32 else "<i2").tobytes()
        path = tmp_path / name
        path.write_bytes(
            riff.wav(body, channels=len(data), rate=RATE, bits=bits, chunks=list(chunks))
        )
        return path

    return write


def acid(tempo_bpm: float = 120, beats: int = 8, **more: Any) -> Chunk:
    return riff.acid(Acid(tempo_bpm, beats, more.pop("meter", (4, 4)), **more))


def smpl(start: int = 0, end: int = LENGTH, kind: int = riff.FORWARD) -> Chunk:
    return riff.smpl([Loop(start, end, kind)], RATE)


def texts(path: Path) -> list[str]:
    return list(map(str, validate.check(path)))


def only(path: Path) -> str:
    """The one thing that disagrees."""
    (found,) = texts(path)
    return found


# Good loops.


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize(
    "said",
    [
        LABEL,
        LoopLabel(98.5, 3, (3, 4), key=Key(3, "major")),
        LoopLabel(122.99995, 2, (6, 8)),
        LoopLabel(174.613, 4, (7, 8)),
        LoopLabel(40.4999, 2, (5, 4)),
        LoopLabel(33.3, 3),
    ],
    ids=str,
)
def test_nothing_is_wrong_with_what_we_write(
    form: Format, said: LoopLabel, loop: Callable[..., Path]
) -> None:
    for template in ("default", "audacity", "{name}_{exact_bpm}bpm", "{name}"):
        found = validate.examine(loop(said, form, said.file_name(template)))
        assert not found.findings
        assert not found.notes
        assert found.jump is not None
        assert found.jump < 3
        read = found.metadata
        assert read.tempo_bpm == pytest.approx(said.tempo_bpm, abs=1e-6)
        assert (read.bars, read.meter) == (said.bars, said.meter)
        assert read.beats == said.quarters


def test_loops_of_any_tempo_are_all_right(
    loop: Callable[..., Path], rng: np.random.Generator
) -> None:
    for number, tempo_bpm in enumerate(rng.uniform(40, 250, 60).tolist()):
        said = LoopLabel(tempo_bpm, 1 + number % 4)
        for form in (WAV, FLAC):
            path = loop(said, form)
            assert texts(path) == []
            assert metadata.read(path).bars == said.bars


# What others make.


def test_a_file_that_says_nothing_is_all_right(header: Callable[..., Path]) -> None:
    found = validate.examine(header(samples=tones(12_345, np.random.default_rng(1)).samples))
    assert not found.findings
    assert found.notes == ["no tempo in header, tags or name"]
    assert (found.metadata.tempo_bpm, found.metadata.bars) == (None, None)


def test_a_name_alone_tells_the_bars(header: Callable[..., Path]) -> None:
    found = validate.examine(header(name="Someone - Beat 120 BPM.wav"))
    assert not found.findings
    assert (found.metadata.tempo_bpm, found.metadata.bars) == (120, 2)


def test_a_rounded_tempo_in_the_name_is_taken_for_one(
    header: Callable[..., Path], rng: np.random.Generator
) -> None:
    length = round(8 * 60 / 98.4 * RATE)
    samples = tones(length, rng).samples
    assert texts(header(name="a_98bpm.wav", samples=samples)) == []
    assert texts(header(name="a_98.4bpm.wav", samples=samples)) == []
    assert metadata.read(header(name="b_98bpm.wav", samples=samples)).beats == 8
    assert "whole beats at 98.1 bpm" in only(header(name="a_98.1bpm.wav", samples=samples))


def test_a_tempo_too_rough_to_count_beats_leaves_them_unknown(
    header: Callable[..., Path], rng: np.random.Generator
) -> None:
    long = tones(round(200.3 * 60 / 50 * RATE), rng).samples  # 200.3 beats, give or take 2
    found = validate.examine(header(name="a_50bpm.wav", samples=long))
    assert not found.findings
    assert found.metadata.beats is None


def test_a_header_without_beats_gets_them_from_the_length(header: Callable[..., Path]) -> None:
    read = metadata.read(header(acid(beats=0, meter=(0, 0))))
    assert (read.beats, read.meter, read.bars) == (8, (4, 4), 2)


def test_header_before_tags_before_name(
    header: Callable[..., Path], loop: Callable[..., Path]
) -> None:
    assert metadata.read(header(acid(120), name="a_60bpm.wav")).tempo_bpm == 120
    path = loop(form=FLAC, name="a_60bpm")
    assert metadata.read(path).tempo_bpm == 120
    assert only(path) == "tempo: expected 120 bpm (BPM tag), found 60 bpm (name)"


def test_music_of_games_may_begin_before_its_loop(
    loop: Callable[..., Path], rng: np.random.Generator
) -> None:
    intro = rng.uniform(-0.1, 0.1, (2, 777)).astype(np.float32)
    sound = Wave(np.concatenate([intro, tones(LENGTH, rng).samples], axis=1), RATE)
    path = loop(form=OGG, sound=sound)
    retag(path, LOOPSTART="777", LOOPLENGTH=str(LENGTH))
    assert texts(path) == []
    assert metadata.read(path).bars == 2


# What is planted is found.


@pytest.mark.parametrize("off", [-400, -2, 2, 3, 4000])
def test_length(off: int, header: Callable[..., Path], rng: np.random.Generator) -> None:
    path = header(acid(), samples=tones(LENGTH + off, rng).samples)
    assert only(path) == (
        f"length: expected 32,000 samples for 8 beats at 120 bpm (acid chunk), "
        f"found {LENGTH + off:,}"
    )
    named = header(name="a_120.0001bpm.wav", samples=tones(LENGTH + 2000, rng).samples)
    assert "whole beats at 120.0001 bpm" in only(named)


def test_tempo_in_the_name(loop: Callable[..., Path]) -> None:
    assert texts(loop(replace(LABEL, tempo_bpm=119.5), name="a_120bpm")) == []
    for name in ("a_121bpm", "a_120.1bpm", "a_60bpm"):
        assert only(loop(name=name)).startswith("tempo: expected 120 bpm (acid chunk), found ")


@pytest.mark.parametrize(
    ("chunk", "cause"),
    [
        (smpl(end=LENGTH + 1), "smpl loop: expected a part of samples 0–32,000, found 0–32,001"),
        (smpl(LENGTH), "smpl loop: expected a part of samples 0–32,000, found 32,000–32,000"),
        (smpl(kind=1), "smpl loop: expected one that plays forward, found kind 1"),
        (acid(119), "tempo: expected 120 bpm (acid chunk), found 119 bpm (acid chunk)"),
        (acid(beats=4), "acid chunks: expected the same, found 4 beats of 4/4 and 8 beats of 4/4"),
        (acid(meter=(3, 4)), "acid chunks: expected the same, found 8 beats of 3/4 and"),
        (acid(one_shot=True), "acid chunk: expected a loop, found the flag of a one-shot"),
        (acid(float("nan")), "acid chunk: expected a tempo, found nan bpm"),
        (acid(0), "acid chunk: expected a tempo, found 0 bpm"),
        (acid(-1), "acid chunk: expected a tempo, found -1 bpm"),
    ],
)
def test_chunks_that_contradict(chunk: Chunk, cause: str, header: Callable[..., Path]) -> None:
    assert texts(header(acid(), smpl())) == []
    assert texts(header(acid(), smpl(), acid())) == []
    more = [] if chunk.name == b"smpl" else [smpl()]
    assert only(header(acid(), *more, chunk)).startswith(cause)


def retag(path: Path, **tags: str) -> None:
    file = mutagen.File(path)
    file.update(tags)
    file.save()


@pytest.mark.parametrize("form", [FLAC, OGG], ids=str)
@pytest.mark.parametrize(
    ("tags", "cause"),
    [
        ({"BPM": "121"}, "tempo: expected 121 bpm (BPM tag), found 120 bpm (name)"),
        ({"BPM": "fast"}, "BPM tag: expected a tempo, found 'fast'"),
        ({"BPM": "nan"}, "BPM tag: expected a tempo, found 'nan'"),
        ({"BPM": "9e999"}, "BPM tag: expected a tempo, found '9e999'"),
        ({"LOOPLENGTH": "32001"}, "LOOPLENGTH tag: expected an end up to 32,000, found 32,001"),
        ({"LOOPLENGTH": "15000"}, "length: expected whole beats at 120 bpm (BPM tag), found 3.75"),
        ({"LOOPEND": "31000"}, "LOOPEND tag: expected an end at 32,000, found 31,000"),
        ({"LOOPEND": "soon"}, "LOOPEND tag: expected a number of samples, found 'soon'"),
        ({"LOOPLENGTH": "0"}, "LOOPLENGTH tag: expected a number of samples, found 0"),
        ({"LOOPLENGTH": "-1"}, "LOOPLENGTH tag: expected a number of samples, found '-1'"),
        ({"LOOPSTART": "1.5"}, "LOOPSTART tag: expected a number of samples, found '1.5'"),
        ({"LOOPSTART": "100"}, "LOOPLENGTH tag: expected an end up to 32,000, found 32,100"),
    ],
)
def test_tags(form: Format, tags: dict[str, str], cause: str, loop: Callable[..., Path]) -> None:
    path = loop(form=form)
    retag(path, **tags)
    assert any(text.startswith(cause) for text in texts(path))
    assert len(texts(path)) <= 2


@pytest.mark.parametrize("bits", [16, 32])
def test_clipping(bits: int, header: Callable[..., Path], rng: np.random.Generator) -> None:
    samples = tones(LENGTH, rng).samples
    samples[1, 700:702] = 1  # two at full scale are a peak
    assert texts(header(acid(), samples=samples, bits=bits)) == []
    samples[1, 700:704] = 1 if bits == 16 else 1.5
    expected = "4 samples in a row at full scale" if bits == 16 else "3.5 dB above it"
    assert only(header(acid(), samples=samples, bits=bits)).endswith(expected)
    samples[1, 700:704] *= -1
    assert only(header(acid(), samples=samples, bits=bits)).endswith(expected)


def test_clipping_at_both_ends_of_24_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    for value in (2**23 - 1, -(2**23) + 1, -(2**23)):
        frames = np.rint(tones(LENGTH, rng).samples.T * 2**23).astype(np.int32)
        frames[40:43, 0] = value
        soundfile.write(tmp_path / "a.wav", frames << 8, RATE, subtype="PCM_24")
        assert only(tmp_path / "a.wav").endswith("3 samples in a row at full scale")
        frames[40:43, 0] = value - 2 * np.sign(value)
        soundfile.write(tmp_path / "a.wav", frames << 8, RATE, subtype="PCM_24")
        assert texts(tmp_path / "a.wav") == []


def test_silence(header: Callable[..., Path], rng: np.random.Generator) -> None:
    samples = tones(LENGTH, rng).samples
    quiet = header(acid(), samples=samples * np.float32(1e-4))
    assert only(quiet).startswith("level: expected a sound, found silence")
    assert "nothing" in only(header(acid(), samples=samples * 0))
    samples[:, LENGTH * 2 // 5 :] = 0
    assert validate.examine(header(acid(), samples=samples)).notes == ["silent for the last 60%"]


def test_numbers_that_are_none(header: Callable[..., Path], rng: np.random.Generator) -> None:
    samples = tones(LENGTH, rng).samples
    samples[0, 5], samples[1, 9] = np.nan, np.inf
    assert only(header(acid(), samples=samples, bits=32)) == (
        "samples: expected numbers, found 2 that are none"
    )


def test_an_offset_is_noted(header: Callable[..., Path], rng: np.random.Generator) -> None:
    samples = tones(LENGTH, rng).samples + np.float32(0.02)
    found = validate.examine(header(acid(), samples=samples))
    assert not found.findings
    assert found.notes == ["an offset of 2.0% of full scale"]


def test_a_seam(header: Callable[..., Path], rng: np.random.Generator) -> None:
    sine = np.cos(np.arange(LENGTH) * 0.2)[None] / 2  # ends in the middle of a period
    assert only(header(acid(), samples=sine)).startswith("seam: expected a jump of at most 3.0")
    assert "jump of at most 3.0" in only(header(samples=sine))  # of anyone's file

    beats = tones(LENGTH, rng).samples
    beats[:, :400] += np.float32(0.4)  # an attack on the first beat alone
    assert "seam" in only(header(acid(), samples=beats))
    beats[:, LENGTH // 2 + 5 : LENGTH // 2 + 405] += np.float32(0.4)  # and on every bar line
    assert texts(header(acid(), samples=beats)) == []


# Damage.


def test_a_file_that_is_no_wav_inside(tmp_path: Path, loop: Callable[..., Path]) -> None:
    flac = loop(form=FLAC)
    renamed = flac.rename(tmp_path / "a.wav")
    with pytest.raises(LoopError, match=r"a\.wav: no RIFF WAVE header; write it again"):
        validate.check(renamed)
    soundfile.write(tmp_path / "c.wav", np.zeros((0, 2)), RATE)
    with pytest.raises(LoopError, match="no samples"):
        validate.check(tmp_path / "c.wav")


def small(tmp_path: Path, form: Format) -> Path:
    rng = np.random.default_rng(2)
    said = LoopLabel(400, 1, (1, 4), key=Key(2, "minor"))
    path = tmp_path / f"a_400bpm{form.suffix}"
    wave.write(path, tones(said.samples(RATE) // 8, rng), said, form)
    return path


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_every_prefix_of_a_file_is_at_most_a_loop_error(form: Format, tmp_path: Path) -> None:
    path = small(tmp_path, form)
    data = path.read_bytes()
    for end in range(0, len(data), 1 if form.name == "wav" else 7):
        path.write_bytes(data[:end])
        said = at_most_a_loop_error(path)
        assert said or form.name != "wav", "what is missing is missed"


def at_most_a_loop_error(path: Path) -> list[str]:
    said: list[str] = []
    try:
        said += texts(path)
    except LoopError as error:
        said.append(str(error))
    assert all("\n" not in text for text in said)
    return said


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_damaged_bytes_are_at_most_a_loop_error(
    form: Format, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = small(tmp_path, form)
    data = path.read_bytes()
    # Most of a WAV is samples, and the rest more delicate.
    labels = np.concatenate([np.arange(60), np.arange(max(0, len(data) - 120), len(data))])
    for _ in range(300):
        damaged = bytearray(data)
        places = labels if rng.random() < 0.7 else np.arange(len(data))
        for place in rng.choice(places, size=rng.integers(1, 4)):
            damaged[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
        path.write_bytes(damaged)
        at_most_a_loop_error(path)


def test_sizes_at_their_limits_are_at_most_a_loop_error(tmp_path: Path) -> None:
    path = small(tmp_path, WAV)
    data = path.read_bytes()
    for at in range(len(data) - 4):
        if at > 60 and at < data.rindex(b"smpl"):
            continue
        for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
            path.write_bytes(data[:at] + struct.pack("<I", value) + data[at + 4 :])
            at_most_a_loop_error(path)


# The command.


def run(*args: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(check_command.check, list(map(str, args)))


def test_the_command_prints_a_line_a_file(
    loop: Callable[..., Path], header: Callable[..., Path], tmp_path: Path
) -> None:
    good, plain = loop(), header(name="plain.wav")
    done = run(good, plain)
    assert done.exit_code == 0
    first, second, last = done.output.splitlines()
    assert first.startswith(f"ok  {good}  2 bars at 120 bpm, 32,000 samples, jump ")
    assert second.startswith(f"ok  {plain}  32,000 samples, jump ")
    assert second.endswith("no tempo in header, tags or name")
    assert last == "2 files, all right"

    bad, torn = header(acid(90), name="bad.wav"), tmp_path / "torn.wav"
    torn.write_bytes(good.read_bytes()[:999])
    done = run(tmp_path)
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[0].startswith(f"bad {bad}  length: expected ")
    assert lines[1].startswith(f"ok  {good}")
    assert f"bad {torn}  RIFF size: expected at most 991 bytes, found 128,136" in lines
    assert lines[-1] == "4 files, 2 of them bad"


def test_the_command_reports_json(loop: Callable[..., Path], tmp_path: Path) -> None:
    path = loop(name="x_90bpm")
    (tmp_path / "empty.wav").touch()
    done = run(path, tmp_path / "empty.wav", "--json")
    assert done.exit_code == 1
    found = json.loads(done.output)
    assert found["bad"] == 2
    assert found["files"][0]["bars"] == 2
    assert found["files"][0]["disagrees"] == [
        {"what": "tempo", "expected": "120 bpm (acid chunk)", "found": "90 bpm (name)"}
    ]
    assert "write it again" in found["files"][1]["error"]


def test_a_folder_without_audio_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match="no audio files"):
        list(sources.audio([tmp_path]))
