"""Encoded loops: the same by number, whoever makes them, and tokens of what was played."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import Elsewhere
from safetensors.torch import load, save
from torch import Tensor

from audioloop.codec import compression, encoded_dataset
from audioloop.codec.encoded_dataset import SNAP, EncodedLoop, Job, Source, prepare
from audioloop.codec.model import Codec
from audioloop.conditioning import Conditioning
from audioloop.rendering import augment, render
from audioloop.rendering.augment import Augmentation, PackedLoops
from audioloop.rendering.synth import BLOCK, SoundFont
from midiloop.common.engine import Inline
from midiloop.common.processes import Processes
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError
from midiloop.grid import LOOP
from midiloop.midi import pianoroll
from midiloop.midi.score import Score
from small_codecs import TINY, saved
from soundfonts import bundled

A_SHARD, N = 3, 7  # so the last of three shards is not needed as a whole
SEED = 5
Prepare = Callable[..., list[EncodedLoop]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread_and_small_shards() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_dataset, "LOOPS_A_SHARD", A_SHARD)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("codec"), 8)


@pytest.fixture(scope="module")
def prepared(dataset: LoopDataset, codec: Path) -> Prepare:
    """`prepare` of the training songs, but for what a test says."""

    def run(folder: Path, **other: Any) -> list[EncodedLoop]:
        said: dict[str, Any] = {"split": "train", "n": N, "soundfont": bundled(), "codec": codec}
        said |= {"engine": Inline(), "seed": SEED, "dataset": dataset, "folder": folder, **other}
        return prepare(**said)

    return run


@pytest.fixture(scope="module")
def made(prepared: Prepare, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `N` loops that no worker made."""
    folder = tmp_path_factory.mktemp("coded") / "loops"
    prepared(folder)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A folder of the same loops, to change."""
    folder = tmp_path / "loops"
    folder.mkdir()
    for path in made.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same(one: list[EncodedLoop], other: list[EncodedLoop]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.codes, b.codes)
        and a.conditioning.roll is not None
        and b.conditioning.roll is not None
        and np.array_equal(a.conditioning.roll, b.conditioning.roll)
        and (a.conditioning.steps, a.conditioning.kit, a.conditioning.bass)
        == (b.conditioning.steps, b.conditioning.kit, b.conditioning.bass)
        for a, b in zip(one, other, strict=True)
    )


# By number.


def test_any_engine_writes_the_same_bytes(made: Path, prepared: Prepare, tmp_path: Path) -> None:
    seen: list[int] = []
    found = prepared(tmp_path / "loops", engine=Processes(2), on_progress=seen.append)
    assert contents(tmp_path / "loops") == contents(made)
    assert same(found, prepared(made))
    assert same(found, prepared(tmp_path / "far", engine=Elsewhere()))
    assert contents(tmp_path / "far") == contents(made)
    assert len(found) == N
    assert max(seen) == seen[-1] == N


def test_a_folder_that_lacks_some_is_completed_to_the_same_bytes(
    made: Path, copied: Path, prepared: Prepare
) -> None:
    whole, kept = contents(made), (copied / "00000.safetensors").stat().st_ino
    (copied / "00001.safetensors").unlink()
    prepared(copied)
    assert contents(copied) == whole
    assert (copied / "00000.safetensors").stat().st_ino == kept
    for name in whole:
        if name != encoded_dataset.RECORD:
            (copied / name).unlink()
    prepared(copied)
    assert contents(copied) == whole


def test_more_loops_are_the_same_ones_and_some_more(
    made: Path, prepared: Prepare, tmp_path: Path
) -> None:
    few = prepared(tmp_path / "loops", n=2)
    assert len(contents(tmp_path / "loops")) == 1 + 1
    more = prepared(tmp_path / "loops")
    assert contents(tmp_path / "loops") == contents(made)
    assert same(few, more[:2])


def test_no_two_loops_and_no_two_seeds_are_alike(
    made: Path, prepared: Prepare, tmp_path: Path
) -> None:
    found = [*prepared(made), *prepared(tmp_path / "loops", seed=SEED + 1, n=2)]
    assert len({loop.codes.numpy().tobytes() for loop in found}) == N + 2


def test_what_is_there_is_read_and_not_made(
    made: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, found = contents(made), prepared(made)
    monkeypatch.setattr(encoded_dataset, "do_job", lambda *_: pytest.fail("made again"))
    assert same(prepared(made, n=2), found[:2])
    assert contents(made) == before


def test_progress_goes_up_to_the_number_that_was_asked_for(copied: Path, prepared: Prepare) -> None:
    for name in ("00001", "00002"):
        (copied / f"{name}.safetensors").unlink()
    seen: list[int] = []
    prepared(copied, on_progress=seen.append)
    assert seen == [3, 4, 5, 6, 6, 7, 7, 7]


# What a loop is.


class Recorder:
    """The scores and waves that loops of one job were encoded from, in order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.songs: list[Score] = []
        self.rings: list[Tensor] = []
        performed, encode = augment.perform, Codec.encode

        def playing(*given: Any) -> Score:
            self.songs.append(performed(*given))
            return self.songs[-1]

        def encoding(codec: Codec, wave: Tensor, *, circular: bool) -> Tensor:
            assert circular
            self.rings.append(wave)
            return encode(codec, wave, circular=circular)

        patch.setattr(augment, "perform", playing)
        patch.setattr(Codec, "encode", encoding)


def made_here(source: Source, folder: Path, job: Job) -> list[EncodedLoop]:
    encoded_dataset.do_job(source, folder, job, lambda _: None)
    return encoded_dataset._read(folder / f"{job.shard:05d}.safetensors")


@pytest.fixture(scope="module")
def source(dataset: LoopDataset, codec: Path) -> Source:
    return Source(augment.loops(dataset, "train"), bundled(), codec, SEED)


def test_codes_are_those_of_the_render_on_a_ring(
    source: Source, codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    loops = made_here(source, tmp_path, Job(0, tuple(range(6))))
    monkeypatch.undo()
    font, model = SoundFont(bundled(), TINY.rate), compression.load(codec)
    for loop, song, ring in zip(loops, recorder.songs, recorder.rings, strict=True):
        codebooks, n_frames = loop.codes.shape
        assert codebooks == TINY.codebooks
        assert not n_frames % SNAP
        asked = song.length_ticks / song.ticks_per_quarter * 60 / song.tempos[0].bpm
        assert abs(n_frames / TINY.frames_per_s - asked) <= SNAP / 2 / TINY.frames_per_s + 1e-9
        samples = render.periodic(song, n_frames * TINY.frame // BLOCK, font).mean(0)
        peak = np.abs(samples).max()
        gain = float(ring.abs().max()) / peak
        assert -3.001 <= 20 * np.log10(gain * peak) <= -0.999
        np.testing.assert_allclose(ring[0, 0].numpy(), gain * samples, atol=1e-6)
        with torch.inference_mode():
            expected = model.quantize(model.encode(ring, circular=True))[0]
        assert loop.codes.dtype == torch.int64
        assert torch.equal(loop.codes, expected)
        assert len(set(expected.flatten().tolist())) > 8


def test_conditioning_is_what_was_played(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    still = replace(source, variety=replace(source.variety, timing_s=0.0, alone=0.3))
    loops = made_here(still, tmp_path, Job(0, tuple(range(12))))
    parts = set()
    for loop, song in zip(loops, recorder.songs, strict=True):
        conditioning = loop.conditioning
        assert conditioning.roll is not None
        assert np.array_equal(conditioning.roll, pianoroll.encode(song))
        assert conditioning.steps == len(conditioning.roll)
        programs = {track.is_drum: track.program for track in song.tracks}
        assert (conditioning.kit, conditioning.bass) == (programs.get(True), programs.get(False))
        parts.add((conditioning.kit is None, conditioning.bass is None))
    assert parts == {(False, False), (True, False), (False, True)}


def test_loops_are_of_as_many_bars_as_asked_for(source: Source, tmp_path: Path) -> None:
    for bars in (1, 3):
        asked = replace(source, bars=(bars,), shares=(1.0,))
        loops = made_here(asked, tmp_path, Job(bars, (0, 1)))
        assert {loop.conditioning.steps for loop in loops} == {bars * LOOP.steps_per_bar}


def test_a_codec_of_another_rate_has_the_same_tempi(prepared: Prepare, tmp_path: Path) -> None:
    half = replace(TINY, rate=16_000, frame=320, window=640)
    folder = saved(tmp_path / "codec", 8, half)
    variety = replace(encoded_dataset.VARIETY, slowest_bpm=120, fastest_bpm=120)
    rings: list[list[int]] = []
    for codec, name in ((folder, "half"), (saved(tmp_path / "other", 8), "whole")):
        found = prepared(tmp_path / name, n=3, codec=codec, variety=variety)
        rings.append([loop.codes.shape[1] for loop in found])
        record = json.loads((tmp_path / name / encoded_dataset.RECORD).read_text())
        variety_of = record["begun_with"]["settings"]["variety"]
        assert variety_of["rate"] == compression.load(codec).config.rate
    assert rings[0] == rings[1]


def test_silent_loops_are_left_out(
    prepared: Prepare, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = source.loops.packed[:2].copy()
    packed[0] = 0
    half = PackedLoops(packed, np.full(2, 120.0))
    monkeypatch.setattr(augment, "loops", lambda *_: half)
    found = prepared(tmp_path / "half", n=9)
    picks = [np.random.default_rng([SEED, number]) for number in range(9)]
    drawn = [(rng.choice(3, p=[0.5, 0.3, 0.2]), rng.integers(2))[1] for rng in picks]
    assert len(found) == sum(drawn)
    assert 0 < len(found) < 9
    assert all(
        loop.conditioning.roll is not None and loop.conditioning.roll.any() for loop in found
    )
    assert len(list((tmp_path / "half").glob("*.safetensors"))) == 3
    monkeypatch.setattr(augment, "loops", lambda *_: PackedLoops(packed[:1], np.full(1, 120.0)))
    with pytest.raises(LoopError, match=r"all loops are silent with TimGM6mb\.sf2") as bad:
        prepared(tmp_path / "none", n=4)
    assert "\n" not in str(bad.value)


def test_loops_by_their_number_of_frames() -> None:
    loops = [
        EncodedLoop(torch.full((4, n_frames), number), Conditioning())
        for number, n_frames in enumerate((32, 16, 48, 16, 32))
    ]
    found = encoded_dataset.batches(loops)
    assert list(found) == [16, 32, 48]
    assert [[int(loop.codes[0, 0]) for loop in group] for group in found.values()] == [
        [1, 3], [0, 4], [2],
    ]  # fmt: skip
    assert encoded_dataset.batches([]) == {}


# Workers that die.


def test_a_job_is_done_again_without_what_killed_its_worker(source: Source, tmp_path: Path) -> None:
    job = Job(0, (4, 5, 6))
    whole = made_here(source, tmp_path, job)
    less = job.without(1, "crashed")
    assert same(made_here(source, tmp_path, less), [whole[0], whole[2]])
    assert less.without(0, "timeout") == Job(0, (4, 5, 6), frozenset({0, 1}))
    assert job == Job(0, (4, 5, 6))
    nothing = less.without(0, "timeout").without(2, "crashed")
    assert made_here(source, tmp_path, nothing) == []


def deadly(source: Source, folder: Path, job: Job, turn_to: Callable[[int], None]) -> None:
    """A task that dies of the number 4."""

    def turning_to(at: int) -> None:
        turn_to(at)
        if job.numbers[at] == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    real_job(source, folder, job, turning_to)


real_job = encoded_dataset.do_job


def test_a_loop_that_kills_its_worker_costs_that_loop(
    made: Path, prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(made)
    monkeypatch.setattr(encoded_dataset, "do_job", deadly)
    lost: list[int] = []
    found = prepared(tmp_path / "loops", engine=Processes(1), on_lost=lost.append)
    assert lost == [4]
    assert same(found[: N - 1], [*whole[:4], *whole[5:]])
    assert len(found) == N  # the next one is of the last shard
    expected = contents(made)
    for name, data in contents(tmp_path / "loops").items():
        assert (data == expected[name]) == (name != "00001.safetensors")


# Folders that hold something else.


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "another seed": ({"seed": SEED + 1}, f"seed {SEED}, not {SEED + 1}"),
    "another split": ({"split": "valid"}, "split 'train', not 'valid'"),
    "another variety": ({"variety": Augmentation()}, "variety .* alone 0.04, not 0.08, .*"),
    "the codec that ships": ({"codec": None}, "another codec"),
}


@pytest.mark.parametrize(("other", "says"), OTHERS.values(), ids=OTHERS)
def test_loops_that_were_encoded_otherwise_are_not_mixed(
    other: dict[str, Any], says: str, made: Path, prepared: Prepare
) -> None:
    before = contents(made)
    with pytest.raises(CallError, match=f"coded with {says}; give another folder") as bad:
        prepared(made, **other)
    assert "\n" not in str(bad.value)
    assert contents(made) == before


def test_another_soundfont_and_weights_of_the_same_shape_are_other_loops(
    made: Path, prepared: Prepare, tmp_path: Path
) -> None:
    font = tmp_path / "other.sf2"
    font.symlink_to(bundled())
    for says, other in (
        ("SoundFont", {"soundfont": font}),
        ("codec", {"codec": saved(tmp_path / "codec", 9)}),
    ):
        with pytest.raises(CallError, match=f"coded with another {says};"):
            prepared(made, **other)


def test_a_codec_is_known_by_what_its_codes_mean(codec: Path) -> None:
    one, other = compression.load(codec), compression.load(codec)
    torch.nn.init.normal_(next(other.decoder.parameters()))
    assert encoded_dataset.encode_loop(one) == encoded_dataset.encode_loop(other)
    torch.nn.init.normal_(next(other.encoder.parameters()))
    assert encoded_dataset.encode_loop(one) != encoded_dataset.encode_loop(other)


def test_a_record_that_is_no_text_is_of_others(copied: Path, prepared: Prepare) -> None:
    (copied / encoded_dataset.RECORD).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CallError, match=r"coded with what coded\.json does not say; give"):
        prepared(copied)


def test_nothing_is_written_among_other_things(prepared: Prepare, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for place, says in (
        (tmp_path, "holds something else; give another folder"),
        (tmp_path / "file", "is a file; give a folder"),
    ):
        with pytest.raises(CallError, match=says) as bad:
            prepared(place)
        assert "\n" not in str(bad.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]
    assert len(prepared(tmp_path / "empty", n=1)) == 1


def test_what_cannot_be_loaded_is_said_before_anything_is_written(
    prepared: Prepare, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.sf2"
    broken.write_bytes(b"RIFF\x68\0\0\0sfbk" + bytes(100))
    with pytest.raises(LoopError, match=r"broken\.sf2: FluidSynth cannot load"):
        prepared(tmp_path / "loops", soundfont=broken)
    with pytest.raises(LoopError, match=r"no config\.json"):
        prepared(tmp_path / "loops", codec=tmp_path)
    assert not (tmp_path / "loops").exists()


# Damage.


def change(data: bytes, **tensors: Callable[[Tensor], Tensor]) -> bytes:
    """A shard with some of its tensors changed."""
    found = load(data)
    return save({**found, **{name: of(found[name]) for name, of in tensors.items()}})


def with_program(rows: Tensor) -> Tensor:
    rows[0, 2] = 128
    return rows


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "less a byte": lambda data: data[:-1],
    "of something else": lambda _: save({"weight": torch.zeros(3)}),
    "fewer codes": functools.partial(change, codes=lambda codes: codes[:, :-1].clone()),
    "more notes": functools.partial(change, rolls=lambda bits: torch.cat([bits, bits])),
    "fewer notes": functools.partial(change, rolls=lambda bits: bits[:100].clone()),
    "fewer numbers": functools.partial(change, loops=lambda rows: rows[:, :3].clone()),
    "numbers in a row": functools.partial(change, loops=lambda rows: rows.flatten().clone()),
    "no program": functools.partial(change, loops=with_program),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_shard_is_one_line_that_names_it(
    damage: Callable[[bytes], bytes], made: Path, copied: Path, prepared: Prepare
) -> None:
    path = copied / "00001.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LoopError, match="delete it to make it again") as bad:
        prepared(copied)
    assert str(bad.value).startswith(f"{path}: ")
    assert "\n" not in str(bad.value)
    assert len(str(bad.value)) < len(str(path)) + 200
    path.unlink()
    prepared(copied)
    assert contents(copied) == contents(made)
