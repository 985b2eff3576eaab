"""The encoded dataset: loops rendered on many kits and basses, as tokens of a codec.

A folder of shards. Number n of a seed is always the same loop, so any number of workers writes the
same bytes, and an interrupted run can be resumed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from audioloop.codec import compression
from audioloop.codec.model import Codec
from audioloop.conditioning import Conditioning
from audioloop.io.wave import SILENT
from audioloop.rendering import augment, render
from audioloop.rendering.augment import TRAINING_INSTRUMENTS, Augmentation, Instruments, PackedLoops
from audioloop.rendering.synth import BLOCK, SoundFont
from midiloop.common import checkpoint, devices, files
from midiloop.common.engine import Engine, TurnTo, Work
from midiloop.common.processes import Processes
from midiloop.common.resume import RunRecord
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import LoopError
from midiloop.grid import LOOP
from midiloop.midi.pianoroll import DECODED_PROGRAM

LOOPS_A_SHARD = 16
LOOP_TIMEOUT_S = 300.0
RECORD = "coded.json"
# Rings are of a multiple of so many frames, so that several are as long as each other. That moves
# the tempo, which is drawn at random anyway, by 7 % at most.
SNAP = 16
# Half of what is heard is the kit and the bass that midiloop writes its loops for.
INSTRUMENTS = Instruments(
    (*TRAINING_INSTRUMENTS.kits, *[0] * 20), (*TRAINING_INSTRUMENTS.basses, *[DECODED_PROGRAM] * 4)
)
VARIETY = Augmentation(instruments=INSTRUMENTS, alone=0.04, quietest_db=-3.0)


class EncodedLoop(NamedTuple):
    """A loop as a circular sequence of tokens, with its conditioning.

    Attributes:
        codes: int64 (K, T) tokens.
        conditioning: its notes and what plays them.
    """

    codes: Tensor
    conditioning: Conditioning


@dataclass(frozen=True, eq=False)
class Source:
    """What loops are made of.

    Attributes:
        bars, shares: loops are of so many bars, in these shares.
    """

    loops: PackedLoops
    soundfont: Path
    codec: Path | None
    seed: int
    variety: Augmentation = VARIETY
    bars: tuple[int, ...] = (2, 4, 8)
    shares: tuple[float, ...] = (0.5, 0.3, 0.2)


@dataclass(frozen=True)
class Job:
    """Numbers for one worker, less those that killed one."""

    shard: int
    numbers: tuple[int, ...]
    lost: frozenset[int] = field(default_factory=frozenset)

    def without(self, item: int, cause: str) -> Job:  # noqa: ARG002 - as workers call it
        """The same job with ``item`` ruled out, whatever the cause."""
        return replace(self, lost=self.lost | {item})


def prepare(
    dataset: LoopDataset,
    split: str,
    n: int,
    folder: Path,
    soundfont: Path,
    codec: Path | None = None,
    *,
    seed: int = 0,
    variety: Augmentation = VARIETY,
    engine: Engine | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
    on_lost: Callable[[int], None] = lambda _: None,
) -> list[EncodedLoop]:
    """Render and encode ``n`` loops of a split, as far as the folder lacks them, and read all.

    Shards are made whole, so the folder may hold some more. Silent loops are left out.

    Args:
        variety: of which ``bars`` is not looked at; the rate is the codec's.
        engine: renders and encodes; one process by default.
        on_progress: called with how many are done.
        on_lost: called with the number of each loop that ended its worker, or took it over
            `LOOP_TIMEOUT_S`, each time it was tried; the folder lacks it from now on.

    Raises:
        CallError: the folder holds others.
        LoopError: there is no loop in the split, or the SoundFont or codec cannot be loaded.
    """
    model = compression.load(codec)
    variety = replace(variety, rate=model.config.rate)
    made_of = Source(augment.loops(dataset, split), soundfont, codec, seed, variety)
    SoundFont(soundfont, variety.rate)  # one that cannot be loaded is an error here
    record = RunRecord(
        folder / RECORD,
        {
            "settings": {
                "split": split,
                "seed": seed,
                "bars": made_of.bars,
                "shares": made_of.shares,
                "snap": SNAP,
                "variety": {k: value for k, value in asdict(variety).items() if k != "bars"},
            },
            "dataset": [dataset.fingerprint, dataset.manifest["rules"]["name"]],
            "SoundFont": [soundfont.name, files.digest(soundfont)],
            "codec": encode_loop(model),
        },
        said="holds loops that were coded",
        remedy="give another folder, or delete it",
    )
    with record.working(resume=True):
        return _prepared(made_of, n, record, engine or Processes(1), on_progress, on_lost)


def _prepared(
    made_of: Source,
    n: int,
    record: RunRecord,
    engine: Engine,
    on_progress: Callable[[int], None],
    on_lost: Callable[[int], None],
) -> list[EncodedLoop]:
    """Make the shards that the record's folder lacks, and read all."""
    folder = record.folder
    shards = range(math.ceil(n / LOOPS_A_SHARD))
    missing = [shard for shard in shards if not _place(folder, shard).exists()]
    jobs = (
        Job(shard, tuple(range(shard * LOOPS_A_SHARD, (shard + 1) * LOOPS_A_SHARD)))
        for shard in missing
    )
    done = (len(shards) - len(missing)) * LOOPS_A_SHARD
    if missing:
        record.write(finished=False)

    def tell(in_work: int) -> None:
        on_progress(min(n, done + in_work))

    do = functools.partial(do_job, made_of, folder)
    modules = ("audioloop.codec.encoded_dataset",)
    for job, _ in engine.map(Work(do, LOOP_TIMEOUT_S, modules), jobs, tell):
        done += LOOPS_A_SHARD
        tell(0)
        for at in sorted(job.lost):
            on_lost(job.numbers[at])
    record.write(finished=True)
    found = [loop for shard in shards for loop in _read(_place(folder, shard))][:n]
    if not found:
        raise LoopError(
            f"{folder}: all loops are silent with {made_of.soundfont.name}; give another"
        )
    return found


def encode_loop(codec: Codec) -> str:
    """A fingerprint of what the tokens of a codec mean: of its encoder and codebooks."""
    return compression.fingerprint(codec.encoder, codec.quantizer)


def _place(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.safetensors"


def do_job(made_of: Source, folder: Path, job: Job, turn_to: TurnTo) -> None:
    """Make the loops of a job, in a worker, and write them as a shard."""
    font, codec = _tools(made_of.soundfont, made_of.variety.rate, made_of.codec)
    found: list[EncodedLoop] = []
    with devices.one_thread():  # as many workers as cores, and the same tokens for any number
        for at, number in enumerate(job.numbers):
            if at not in job.lost:
                turn_to(at)
                found += _made(made_of, number, font, codec)
    files.write(_place(folder, job.shard), _packed(found))


@functools.lru_cache(maxsize=1)
def _tools(soundfont: Path, rate: int, codec: Path | None) -> tuple[SoundFont, Codec]:
    return SoundFont(soundfont, rate), compression.load(codec)


@torch.inference_mode()
def _made(made_of: Source, number: int, font: SoundFont, codec: Codec) -> Iterator[EncodedLoop]:
    """Loop ``number``; none where it is silent."""
    rng = np.random.default_rng([made_of.seed, number])
    loops, variety = made_of.loops, made_of.variety
    bars = int(rng.choice(made_of.bars, p=made_of.shares))
    pick = int(rng.integers(len(loops.packed)))
    start = int(rng.integers(LOOP.bars - bars + 1)) * LOOP.steps_per_bar
    steps = bars * LOOP.steps_per_bar
    roll = LOOP.unpack(loops.packed[pick : pick + 1])[0][start : start + steps].copy()
    song = augment.perform(roll, float(loops.tempos_bpm[pick]), rng, variety)
    beats = song.length_ticks / song.ticks_per_quarter
    frames_per_s = codec.config.frames_per_s
    n_frames = SNAP * max(1, round(beats * 60 / song.tempos[0].bpm * frames_per_s / SNAP))
    samples = render.periodic(song, n_frames * codec.config.frame // BLOCK, font).mean(0)
    peak = float(np.abs(samples).max())
    if peak < SILENT:
        return
    level_db = -1 - rng.uniform(0, 1) * (-1 - variety.quietest_db)
    ring = torch.from_numpy(samples * np.float32(10 ** (level_db / 20) / peak))[None, None]
    tokens = codec.quantize(codec.encode(ring, circular=True))[0]
    kit = next((track.program for track in song.tracks if track.is_drum), None)
    bass = next((track.program for track in song.tracks if not track.is_drum), None)
    roll[:, : LOOP.n_drums] &= kit is not None
    roll[:, LOOP.n_drums :] &= bass is not None
    yield EncodedLoop(tokens, Conditioning(roll, steps, kit, bass))


def _packed(found: Sequence[EncodedLoop]) -> bytes:
    """Loops end to end, and where each ends."""
    conditionings = [loop.conditioning for loop in found]
    numbers = [
        (loop.codes.shape[1], one.steps, _number(one.kit), _number(one.bass))
        for loop, one in zip(found, conditionings, strict=True)
    ]
    rolls = [one.roll for one in conditionings if one.roll is not None]
    bits = np.packbits(np.concatenate([np.zeros((0, LOOP.columns), np.bool_), *rolls]))
    tokens = [loop.codes.to(torch.int16) for loop in found]
    tensors = {
        "loops": torch.tensor(numbers, dtype=torch.int32).reshape(-1, 4),
        "rolls": torch.from_numpy(bits),
        "codes": torch.cat(tokens, 1) if tokens else torch.zeros((1, 0), dtype=torch.int16),
    }
    return save(tensors)


def _number(program: int | None) -> int:
    return -1 if program is None else program


def _read(path: Path) -> list[EncodedLoop]:
    try:
        tensors, _ = checkpoint.read_tensors(path)
    except LoopError as error:
        raise LoopError(f"{path}: damaged; delete it to make it again") from error
    try:
        return _unpacked(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        cause = str(error).partition("\n")[0]
        raise LoopError(f"{path}: no coded loops ({cause}); delete it to make it again") from error


def _unpacked(tensors: Mapping[str, Tensor]) -> list[EncodedLoop]:
    """Undo `_packed`."""
    rows: list[list[int]] = tensors["loops"].tolist()
    frames, steps = ([row[column] for row in rows] for column in (0, 1))
    tokens = torch.split(tensors["codes"].long(), frames, 1)
    n_cells = sum(steps) * LOOP.columns
    if tensors["rolls"].numel() != -(-n_cells // 8):
        raise ValueError(f"notes of {n_cells} cells in {tensors['rolls'].numel()} bytes")
    bits = np.unpackbits(tensors["rolls"].numpy(), count=n_cells)
    rolls = bits.reshape(-1, LOOP.columns).view(np.bool_)
    ends = np.cumsum(steps, dtype=np.int64)
    found = []
    for (_, n_steps, *programs), end, one in zip(rows, ends, tokens, strict=True):
        kit, bass = (program if program >= 0 else None for program in programs)
        found.append(EncodedLoop(one, Conditioning(rolls[end - n_steps : end], n_steps, kit, bass)))
    return found


def batches(loops: Sequence[EncodedLoop]) -> dict[int, list[EncodedLoop]]:
    """Loops by their number of frames."""
    found: dict[int, list[EncodedLoop]] = {}
    for loop in loops:
        found.setdefault(loop.codes.shape[1], []).append(loop)
    return dict(sorted(found.items()))
