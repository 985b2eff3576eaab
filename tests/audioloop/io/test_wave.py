"""Audio files of loops: the right samples, as many as bars have, and labels that others read."""

from __future__ import annotations

import io
import itertools
import random
import re
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pytest
import scipy.signal
import soundfile
import wavinfo

from audioloop.io import label, riff, wave
from audioloop.io.label import LoopLabel, Names
from audioloop.io.riff import Acid, Chunk, Loop
from audioloop.io.wave import Format, Wave
from midiloop.errors import CallError, LoopError
from midiloop.midi.key import MODES, Key

EXACT = [
    Format("wav", "16"),
    Format("wav", "24"),
    Format("wav", "float"),
    Format("flac", "16"),
    Format("flac", "24"),
]
OGG = Format("ogg", "lossy")
FOUR_BARS = LoopLabel(123.4, 4, key=Key(4, "minor"), name="groove é")


def noise(rng: np.random.Generator, length: int, channels: int = 2, rate: int = 44_100) -> Wave:
    """Samples of all sizes, some at the very ends of the scale."""
    samples = rng.uniform(-1, 1, (channels, length)).astype(np.float32)
    samples[:, :4] = [1, -1, 0, -0.0][: samples[:, :4].shape[1]]
    return Wave(samples, rate)


def written(path: Path, sound: Wave, form: Format, said: LoopLabel = FOUR_BARS) -> Path:
    wave.write(path.with_suffix(form.suffix), sound, said, form)
    return path.with_suffix(form.suffix)


# Length.


def test_a_loop_has_as_many_samples_as_its_beats_at_any_tempo(rng: np.random.Generator) -> None:
    tempi = [*range(40, 251), *rng.uniform(40, 250, 300).tolist(), 98.5, 122.99995, 174.6]
    for tempo_bpm, rate, meter in itertools.product(
        tempi, (8_000, 32_000, 44_100, 48_000, 96_000), ((4, 4), (3, 4), (6, 8))
    ):
        said = LoopLabel(tempo_bpm, 8, meter)
        beats = Fraction(8 * 4 * meter[0], meter[1])
        exact = beats * 60 * rate / Fraction(tempo_bpm)
        assert abs(said.samples(rate) - exact) <= Fraction(1, 2) + Fraction(1, 10**6)
        assert said.quarters == beats


def test_repeats_are_as_long_as_their_beats_and_not_as_rounded_passes() -> None:
    once, ten = LoopLabel(123.4, 1), LoopLabel(123.4, 1).repeated(10)
    assert ten.bars == 10
    assert ten.samples(44_100) != 10 * once.samples(44_100)
    assert ten.samples(44_100) == round(40 * 60 / 123.4 * 44_100)


def test_a_loop_of_half_beats_says_that_its_bars_have_to_be_even() -> None:
    assert LoopLabel(120, 2, (7, 8)).quarters == 7
    with pytest.raises(LoopError, match=r"3\.5 quarter notes.*even number of bars"):
        LoopLabel(120, 1, (7, 8))


# Samples.


@pytest.mark.parametrize("form", EXACT, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 2, 1023, 70_001])
def test_what_is_read_is_what_was_written(
    form: Format, channels: int, length: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    sound = noise(rng, length, channels)
    back = wave.read(written(tmp_path / "a", sound, form))
    assert back.rate == sound.rate
    np.testing.assert_array_equal(back.samples, form.rounded(sound.samples))
    step = 0 if form.depth == "float" else 1 / wave.FULL_SCALE[form.depth]
    assert np.abs(back.samples - sound.samples).max() <= step  # at +1 a step, elsewhere half
    np.testing.assert_array_equal(form.rounded(back.samples), back.samples)


@pytest.mark.parametrize("form", EXACT, ids=str)
def test_a_peak_at_the_headroom_is_kept(form: Format, tmp_path: Path) -> None:
    samples = np.array([[form.headroom, -form.headroom, 0.0]], np.float32)
    back = wave.read(written(tmp_path / "a", Wave(samples, 44_100), form))
    np.testing.assert_array_equal(back.samples, samples)


@pytest.mark.parametrize("depth", ["16", "24", "float"])
def test_the_same_loop_has_the_same_bytes(depth: str, tmp_path: Path) -> None:
    form = Format("wav", depth)
    files = []
    for name in ("a", "b"):
        sound = noise(np.random.default_rng(3), 999)
        files.append(written(tmp_path / name, sound, form).read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("rate", [8_000, 44_100, 192_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_ogg_has_every_sample(
    rate: int, channels: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    for length in (1, 2, 63, 64, 1023, 1024, 1025, 65_535, 65_536, 65_537, 100_003):
        path = written(tmp_path / "a", noise(rng, length, channels, rate), OGG)
        assert len(wave.read(path)) == length
        assert soundfile.info(path).frames == length


def test_ogg_is_about_the_same(tmp_path: Path) -> None:
    samples = np.sin(2 * np.pi * 440 / 44_100 * np.arange(44_100, dtype=np.float32))[None] / 2
    back = wave.read(written(tmp_path / "a", Wave(samples, 44_100), OGG))
    assert np.abs(back.samples - samples).max() < 0.02


@pytest.mark.parametrize("form", [*EXACT, OGG], ids=str)
def test_each_rate_is_written_or_refused(
    form: Format, tmp_path: Path, rng: np.random.Generator
) -> None:
    low, high = wave.RATES[form.name]
    rates = [1, 7_999, 8_000, 11_025, 32_000, 65_535, 65_536, 65_540, 88_201, 192_000, 192_001]
    for rate in (*rates, 655_350, 655_351, low, high, high + 1):
        sound = noise(rng, 500, rate=rate)
        if low <= rate <= high and (form.name != "flac" or rate < 65_536 or rate % 10 == 0):
            back = wave.read(written(tmp_path / "a", sound, form))
            assert (back.rate, len(back)) == (rate, 500)
        else:
            with pytest.raises(CallError, match=f"{rate:,} Hz; choose"):
                written(tmp_path / "b", sound, form)
            assert not list(tmp_path.glob("*b*"))
    for rate in (8_000, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000):
        form.check_rate(rate)


def test_a_depth_that_a_format_has_not_is_refused() -> None:
    for name, depth in (("flac", "float"), ("ogg", "24"), ("wav", "lossy"), ("wav", "8")):
        with pytest.raises(CallError, match=f"{name} holds no samples of depth {depth}; choose"):
            Format(name, depth)
    with pytest.raises(CallError, match="mp3 is no format to write; choose wav, flac, ogg"):
        Format("mp3", "16")


@pytest.mark.parametrize("form", [*EXACT, OGG], ids=str)
def test_what_would_clip_or_is_no_number_or_nothing_is_refused(
    form: Format, tmp_path: Path
) -> None:
    for value, cause in (
        (1.01, "1.010 would clip"),
        (np.nan, "not finite"),
        (-np.inf, "not finite"),
    ):
        with pytest.raises(LoopError, match=cause):
            written(tmp_path / "a", Wave(np.full((2, 9), value, np.float32), 44_100), form)
    with pytest.raises(LoopError, match="no samples"):
        written(tmp_path / "a", Wave(np.zeros((2, 0), np.float32), 44_100), form)
    assert not list(tmp_path.iterdir())


# Never half a file.


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """No file may become longer: the system refuses to write on, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("form", [*EXACT, OGG], ids=str)
def test_a_full_disk_leaves_no_file_and_names_it(
    form: Format, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = tmp_path / f"a{form.suffix}"
    with room_for(2_000), pytest.raises(OSError, match="too large") as caught:
        written(path, noise(rng, 20_000), form)
    assert caught.value.filename == str(path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_file_that_was_there(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = written(tmp_path / "a", noise(rng, 100), EXACT[0])
    before = path.read_bytes()
    with room_for(2_000), pytest.raises(OSError, match="too large"):
        written(path, noise(rng, 20_000), EXACT[0])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        written(tmp_path / "none" / "a", noise(rng, 9), EXACT[0])
    assert caught.value.filename == str(tmp_path / "none" / "a.wav")


# Labels, as others read them.


class Instrument(struct.Struct):
    """libsndfile's SF_INSTRUMENT and its first loop; command 0x10D0."""

    def __init__(self) -> None:
        super().__init__("=i6bxxi iIII 240x")


class LoopInfo(struct.Struct):
    """libsndfile's SF_LOOP_INFO; command 0x10E0."""

    def __init__(self) -> None:
        super().__init__("=hhiifi24x")


def libsndfile_says(path: Path, command: int, layout: struct.Struct) -> tuple[Any, ...]:
    """What libsndfile itself answers, for which soundfile has no call."""
    with soundfile.SoundFile(path) as file:
        answer = soundfile._ffi.new("char[]", layout.size)
        assert soundfile._snd.sf_command(file._file, command, answer, layout.size) == 1
        return layout.unpack(bytes(soundfile._ffi.buffer(answer)))


def acid_by_hand(data: bytes) -> tuple[Any, ...]:
    """The 24 bytes of the ``acid`` chunk, found by walking the chunks as the RIFF layout says."""
    at = 12
    while data[at : at + 4] != b"acid":
        (length,) = struct.unpack_from("<I", data, at + 4)
        at += 8 + length + length % 2
    assert struct.unpack_from("<I", data, at + 4) == (24,)
    return struct.unpack_from("<IHHfIHHf", data, at + 8)


LABELS = [
    LoopLabel(120, 8),
    LoopLabel(98.5, 2, (3, 4), key=Key(0, "minor")),
    LoopLabel(122.99995, 4, (6, 8), key=Key(11, "major")),
    LoopLabel(40, 1, (5, 4)),
    LoopLabel(250, 2, (7, 8), key=Key(7, "minor", 0.01)),
]


@pytest.mark.parametrize("said", LABELS, ids=str)
@pytest.mark.parametrize("depth", ["16", "24", "float"])
@pytest.mark.parametrize("length", [1001, 1002])
def test_libsndfile_and_wavinfo_read_loop_tempo_and_meter(
    said: LoopLabel, depth: str, length: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    for channels in (1, 2):
        form = Format("wav", depth)
        path = written(tmp_path / "a", noise(rng, length, channels), form, said)
        instrument = libsndfile_says(path, 0x10D0, Instrument())
        n_loops, mode, start, end, count = instrument[-5:]
        assert (n_loops, mode, start, end, count) == (1, 801, 0, length, 0)  # its end is exclusive
        numerator, denominator, mode, beats, tempo_bpm, key = libsndfile_says(
            path, 0x10E0, LoopInfo()
        )
        assert (numerator, denominator) == said.meter
        assert (mode, beats) == (801, said.quarters)
        assert tempo_bpm == np.float32(said.tempo_bpm)
        assert key == (-1 if said.root is None else 48 + said.root)

        sampler = wavinfo.WavInfoReader(str(path)).smpl
        assert sampler.midi_note == 60
        assert sampler.sample_period_ns == round(1e9 / 44_100)
        (loop,) = sampler.sample_loops
        assert loop.loop_type_desc() == "FORWARD"
        assert (loop.start, loop.end, loop.repetition_count) == (0, length - 1, 0)


@pytest.mark.parametrize("said", LABELS, ids=str)
def test_the_acid_chunk_has_the_published_layout(
    said: LoopLabel, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = written(tmp_path / "a", noise(rng, 1000), EXACT[0], said)
    flags, root, magic, zero, beats, denominator, numerator, tempo_bpm = acid_by_hand(
        path.read_bytes()
    )
    assert flags == 4 | (0 if said.root is None else 2)
    assert root == (0 if said.root is None else 48 + said.root)
    assert (magic, zero) == (0x8000, 0.0)
    assert (beats, numerator, denominator) == (said.quarters, *said.meter)
    assert tempo_bpm == np.float32(said.tempo_bpm)


@pytest.mark.parametrize("form", [*EXACT[3:], OGG], ids=str)
def test_tags_are_read_back_by_mutagen(
    form: Format, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = written(tmp_path / "a", noise(rng, 5000), form)
    tags = mutagen.File(path).tags.as_dict()
    tags.pop("encoder", None)
    assert tags == {
        "bpm": ["123.4"],
        "initialkey": ["Em"],
        "key": ["Em"],
        "loopstart": ["0"],
        "looplength": ["5000"],
        "meter": ["4/4"],
        "title": ["groove é"],
    }


def test_a_name_that_is_no_text_can_be_a_tag(tmp_path: Path, rng: np.random.Generator) -> None:
    said = LoopLabel(120, 1, name="b\udcffd")  # as Python gives a file name of the byte 255
    path = written(tmp_path / "a", noise(rng, 500), EXACT[3], said)
    assert mutagen.File(path)["title"] == ["b?d"]


@pytest.mark.parametrize("form", [*EXACT, OGG], ids=str)
def test_soundfile_opens_every_format(
    form: Format, tmp_path: Path, rng: np.random.Generator
) -> None:
    info = soundfile.info(path := written(tmp_path / "a", noise(rng, 4321), form))
    assert (info.frames, info.samplerate, info.channels) == (4321, 44_100, 2)
    assert info.subtype == wave.subtype(path)


# Chunks.


def test_chunks_say_again_what_they_were_made_of(rng: np.random.Generator) -> None:
    for _ in range(200):
        start, length, kind = (int(n) for n in rng.integers(0, [1 << 20, 1 << 30, 3]))
        loops = [Loop(start, start + length + 1, kind)] * int(rng.integers(0, 4))
        assert riff.read_smpl(riff.smpl(loops, 44_100).body) == loops
        root = None if rng.random() < 0.5 else int(rng.integers(0, 128))
        said = Acid(
            float(np.float32(rng.uniform(20, 400))),
            int(rng.integers(0, 1000)),
            (int(rng.integers(1, 20)), 2 ** int(rng.integers(0, 6))),
            root,
            bool(rng.integers(2)),
        )
        assert riff.read_acid(riff.acid(said).body) == said


def test_chunks_of_odd_size_are_padded_and_found() -> None:
    more = [Chunk(b"odd ", b"123"), Chunk(b"even", b"12"), Chunk(b"none", b"")]
    data = riff.wav(b"\1\2\3", channels=1, rate=8_000, bits=24, chunks=more)
    assert len(data) % 2 == 0
    found = riff.read(io.BytesIO(data))
    assert [chunk.name for chunk in found.chunks] == [
        b"fmt ", b"data", b"odd ", b"even", b"none"
    ]  # fmt: skip
    assert found.findings == ()


def test_a_file_that_ends_early_is_one_error(tmp_path: Path, rng: np.random.Generator) -> None:
    data = written(tmp_path / "a", noise(rng, 33), Format("wav", "24")).read_bytes()
    names = [b"fmt ", b"data", b"smpl", b"acid"]
    for end in range(12):
        with pytest.raises(LoopError, match="no RIFF WAVE"):
            riff.read(io.BytesIO(data[:end]))
    for end in range(12, len(data)):  # every boundary of a chunk is among them
        found = riff.read(io.BytesIO(data[:end]))
        assert any(one.what == "RIFF size" for one in found.findings)
        fixed = data[:4] + struct.pack("<I", end - 8) + data[8:end]
        again = riff.read(io.BytesIO(fixed))
        assert found.chunks == again.chunks
        assert [chunk.name for chunk in again.chunks] == names[: len(again.chunks)]


@pytest.mark.parametrize("start", [b"RF64", b"RIFX", b"OggS", b"", b"RIFF"])
def test_what_is_no_riff_says_so(start: bytes) -> None:
    with pytest.raises(LoopError, match="no RIFF WAVE header"):
        riff.read(io.BytesIO(start + b"\0" * 40))


def test_chunks_too_short_for_what_they_say() -> None:
    whole = riff.smpl([Loop(0, 9), Loop(3, 4)], 44_100).body
    for body in (whole[:-1], whole[:36], whole[:35], b""):
        with pytest.raises(LoopError, match="'smpl'"):
            riff.read_smpl(body)
    with pytest.raises(LoopError, match="'acid' has 23 of 24 bytes"):
        riff.read_acid(riff.acid(FOUR_BARS.acid()).body[:-1])


# Reading others' files.


def test_what_is_no_audio_is_one_error(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac", "a.ogg", "a.raw", "a.mp3", "a"):
        (tmp_path / name).write_bytes(b"no audio" * 99)
        with pytest.raises(LoopError, match="give another file") as caught:
            wave.read(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        wave.read(tmp_path / "none.wav")
    with pytest.raises(IsADirectoryError):
        wave.read(tmp_path)


def test_a_file_too_long_for_a_loop_is_not_read(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a", noise(rng, 500), EXACT[0])
    monkeypatch.setattr(wave, "MAX_SAMPLES", 999)
    with pytest.raises(LoopError, match="500 samples are no loop; cut it first"):
        wave.read(path)


# Other lengths of the same loop.


def harmonics(length: int, highest: int, rng: np.random.Generator, channels: int = 2) -> Any:
    """A periodic signal, float64 (channels, length), of harmonics up to the highest."""
    spectrum = np.zeros((channels, length // 2 + 1), complex)
    size = (channels, highest)
    spectrum[:, 1 : highest + 1] = rng.normal(size=size) + 1j * rng.normal(size=size)
    samples = np.fft.irfft(spectrum, length)
    return samples / np.abs(samples).max()


def undelayed(samples: Any, reference: Any, highest: int) -> tuple[Any, float]:
    """The samples earlier by the one delay that brings them nearest to the reference."""
    length = samples.shape[1]
    turn = 2 * np.pi * np.arange(length // 2 + 1) / length
    spectrum, wanted = np.fft.rfft(samples), np.fft.rfft(reference)
    delay = 0.0
    for top in (1, 8, 64, highest):  # each as fine as the harmonics so far can tell
        kept = slice(1, min(top, highest) + 1)
        cross = spectrum * np.exp(1j * turn * delay) * wanted.conj()
        angle, power = np.angle(cross[:, kept]), np.abs(cross[:, kept])
        delay -= float((angle * power * turn[kept]).sum() / (power * turn[kept] ** 2).sum())
    return np.fft.irfft(spectrum * np.exp(1j * turn * delay), length), delay


LENGTHS = [
    (9408, 9411), (9411, 9408), (9411, 9409), (70_016, 70_001), (70_016, 70_033), (500, 301),
    (20_000, 31_111),
]  # fmt: skip


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(("was", "length"), LENGTHS[:5])
def test_resampling_is_that_of_scipy_less_a_delay(
    channels: int, was: int, length: int, rng: np.random.Generator
) -> None:
    highest = int(0.4 * min(was, length))
    samples = harmonics(was, highest, rng, channels)
    ours = wave.resample(samples.astype(np.float32), length)
    assert ours.dtype == np.float32
    assert ours.shape == (channels, length)
    expected = scipy.signal.resample(samples, length, axis=1)
    back, delay = undelayed(ours, expected, highest)
    assert abs(delay) < 1
    np.testing.assert_allclose(back, expected, atol=1e-4)


@pytest.mark.parametrize(("was", "length"), LENGTHS)
def test_resampling_has_every_sample_and_no_ends(
    was: int, length: int, rng: np.random.Generator
) -> None:
    samples = harmonics(was, max(1, int(0.4 * min(was, length))), rng).astype(np.float32)
    assert wave.resample(samples, length).shape == (2, length)
    assert wave.resample(samples, was) is samples
    constant = wave.resample(np.full((1, was), 0.5, np.float32), length)
    np.testing.assert_allclose(constant, 0.5, atol=1e-4)


def test_there_and_back_is_where_it_was(rng: np.random.Generator) -> None:
    samples = harmonics(9408, 3700, rng)
    there = wave.resample(samples.astype(np.float32), 9411)
    back, delay = undelayed(wave.resample(there, 9408), samples, 3700)
    assert abs(delay) < 2
    np.testing.assert_allclose(back, samples, atol=2e-4)


# Names.


# How Audacity reads a tempo off a file's name: a whole number, 30 to 300, between separators.
AUDACITY = re.compile(r"(?:.*[_\-\s./\\])?(\d+)[_\-\s.]?bpm(?:[_\-\s.].*)?", re.IGNORECASE)
LETTERS = 'abZ019 _-.#é语\\/:*?"<>|\0\n\t{}%\udcff'


def random_names(count: int) -> Iterator[str]:
    random_source = random.Random(5)
    for _ in range(count):
        length = random_source.choice([0, 1, 5, 20, 90, 300])
        yield "".join(random_source.choices(LETTERS, k=length))


def bare_numbers(name: str) -> list[str]:
    return [word for word in re.split(r"[_-]", name) if word.isdigit()]


def test_any_name_becomes_one_that_file_systems_take(tmp_path: Path) -> None:
    for number, name in enumerate(random_names(400)):
        said = LoopLabel(
            98.5,
            8,
            key=Key(6, "minor"),
            name=name,
            number=number,
            part="drums" if number % 2 else "",
        )
        for template in (*label.TEMPLATES, "{number}-{name}-{bars}-{meter}-{exact_bpm}"):
            made = said.file_name(template)
            assert not re.search(r'[\x00-\x1f<>:"/\\|?*]', made)
            assert made == made.strip(" .") != ""
            assert len(made.encode("utf-8", "surrogateescape")) <= label.MAX_NAME
            if said.part:
                assert "drums" in made
        (tmp_path / f".{said.file_name('default')}.flac.part").touch()


def test_every_name_states_the_tempo() -> None:
    for number, name in enumerate([*random_names(300), "a_90bpm", "90 BPM", "bpm", "x" * 500]):
        said = LoopLabel(40.0 + number % 200, 4, name=name, part="bass" if number % 3 else "")
        for template in ("default", "audacity"):
            made = said.file_name(template)
            found = AUDACITY.fullmatch(made)
            assert found is not None
            assert int(found[1]) == said.tempo_bpm
            assert label.tempo_in_name(made) == said.tempo_bpm


def test_names_for_splice_have_its_letters_and_one_bare_number() -> None:
    for name in [*random_names(400), "12 3-4_5", "x" * 300, "7" * 300]:
        said = LoopLabel(174, 4, key=Key(1, "minor"), name=name, part="bass")
        made = said.file_name("splice")
        assert re.fullmatch(r"[A-Za-z0-9_#-]+", made)
        assert bare_numbers(made) == ["174"]
        assert made.endswith("174_bass_C#m")


def test_long_names_that_differ_go_on_to_differ() -> None:
    start = "a very long name, " * 20
    made = {LoopLabel(120, 8, name=start + end).file_name("default") for end in ("1", "2", "3")}
    assert len(made) == 3
    parts = {
        LoopLabel(120, 8, name=start, part=p).file_name("default") for p in ("", "drums", "bass")
    }
    assert len(parts) == 3


def test_templates() -> None:
    said = LoopLabel(98.5, 8, (3, 4), key=Key(6, "minor"), name="My Song", number=7)
    assert said.file_name("default") == "My Song_98bpm_F#m"
    assert said.file_name("audacity") == "My Song 98bpm F#m"
    assert said.file_name("splice") == "My-Song_98_loop_F#m"
    every = "{number} {name} {bpm} {exact_bpm} {bars} {part} {key} {root} {meter}"
    assert said.file_name(every) == "00007 My Song 98 98.5 8 loop F#m F# 3-4"
    unsure = replace(said, key=Key(6, "minor", 0.04))
    for without in (unsure, replace(said, key=None)):
        assert without.file_name("default") == "My Song_98bpm"
        assert without.file_name("audacity") == "My Song 98bpm"
        assert without.file_name("splice") == "My-Song_98_loop"
        assert without.file_name(every) == "00007 My Song 98 98.5 8 loop 3-4"
    assert {f"{{{field}}}" for field in label.FIELDS} == set(every.split())


def test_no_key_is_claimed_of_drums_or_of_what_has_no_clear_one() -> None:
    sure = LoopLabel(120, 8, key=Key(9, "minor", 0.05))
    assert sure.acid().root == 48 + 9
    assert sure.tags(100)["INITIALKEY"] == sure.tags(100)["KEY"] == "Am"
    assert replace(sure, part="bass").file_name("default") == "loop_120bpm_Am_bass"
    for without in (
        replace(sure, part="drums"),
        replace(sure, key=Key(9, "minor", 0.049)),
        replace(sure, key=None),
    ):
        assert without.acid().root is None
        assert not {"INITIALKEY", "KEY"} & set(without.tags(100))
        assert "Am" not in without.file_name("default")


def test_what_a_name_ends_in_is_put_there_again() -> None:
    for tonic, mode in itertools.product(range(12), MODES):
        for key in (Key(tonic, mode), None):
            for template in ("default", "audacity"):
                said = LoopLabel(98, 8, key=key, name="My Song 2")
                assert label.without_tempo(said.file_name(template)) == "My Song 2"


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("dub_120bpm_Bbm", "dub"), ("dub 98.5 BPM", "dub"), ("dub_120bpm Db", "dub"),
        ("dub_120bpm_a", "dub_120bpm_a"), ("dub_120bpm_H", "dub_120bpm_H"), ("dub_Am", "dub_Am"),
        ("dub_120bpm_Am2", "dub_120bpm_Am2"), ("120bpm_Am", "120bpm_Am"), ("Am_120bpm", "Am"),
    ],
)  # fmt: skip
def test_a_name_without_its_tempo_and_key(name: str, left: str) -> None:
    assert label.without_tempo(name) == left


@pytest.mark.parametrize(
    "template",
    [
        "{}", "{0}", "{nme}", "{name", "name}", "{name.upper}", "{name[0]}", "{name[x]}",
        "{name!r}", "{name:>999999999}", "{name:{bpm}}", "", "...", "{root}", "{key}", "x" * 130,
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_filled_is_one_error(template: str) -> None:
    with pytest.raises(CallError, match="--name-template") as caught:
        LoopLabel(120, 8).file_name(template)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tempo_bpm"),
    [
        ("groove_120bpm", 120), ("groove 98.5 BPM", 98.5), ("120-bpm_x", 120),
        ("x_90bpm_120bpm", 120), ("x_400bpm", None), ("x_29bpm", None), ("x_1200bpm", None),
        ("120bpmx", None), ("120", None), ("", None), ("bpm120", 120),
        ("bpm120_loop", 120), ("loop_[120]", 120), ("120 BPM", 120), ("loop-120bpm", 120),
        ("120_bpm", 120), ("BPM 98.5 dub", 98.5), ("bpm_174_break", 174), ("BPM=90", 90),
        ("tempo 128", 128), ("Tempo-87,5", 87.5), ("dub 87,5 bpm", 87.5), ("loop (96)", 96),
        ("loop [98.5] A", 98.5), ("groove.120bpm", 120), ("120 - bpm", 120), ("[90] x 120bpm", 120),
        ("120bpm_99", 120), ("120bpm (64)", 120), ("LoopBPM120", 120),
        # Numbers of other things: kits, machines, takes, years, bars, copies, keys, rates.
        ("kit808", None), ("tr909", None), ("take 2", None), ("2024", None), ("loop_2024", None),
        ("(2024)", None), ("[808]", None), ("loop [16]", None), ("take (2)", None), ("(12)", None),
        ("bpm", None), ("bpm 5", None), ("bpm1200", None), ("bpm 12000", None), ("44100", None),
        ("allegro_tempo", None), ("mytempo120", None), ("99 problems", None), ("v1.120bpm", None),
    ],
)  # fmt: skip
def test_tempo_in_name(name: str, tempo_bpm: float | None) -> None:
    assert label.tempo_in_name(name) == tempo_bpm


def test_names_are_given_once_whatever_their_case_and_accents() -> None:
    names = Names(["Dub_90bpm"])
    own = [names.own(lambda added: f"dub{added}_90bpm") for _ in range(3)]
    assert own == ["-2", "-3", "-4"]
    assert [names.own(word.__add__) for word in ("é", "e\u0301", "É")] == ["", "-2", "-3"]
