"""Every way to make a loop of codes, measured alike: LoopGen's table 2 for our own models.

A comparison is a folder::

    compare.md .json      the tables, and what stands in them
    seam_nats.png         cross-entropy around the seam, as figure 3 of the paper
    perplexity.png        seam perplexities of all loops, as figure 4
    items/NNNNN.json      what was measured of an item; a run goes on where these end
    audio/…               loops of the first items, if asked for

An item is a loop of the test split that neither model has learned from, played on a kit and a bass
at a tempo of its own, of as many whole bars as last from 2 to 4 s (Algorithm 1 of Marincione et al.
2025, arXiv:2504.04466, for a tempo that is known). Item number n of a seed is always the same, and
so are the loops that are made for it, by whatever worker and however many items there are.
"""

from __future__ import annotations

import functools
import json
import math
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from audioloop import (
    beats,
    coded,
    coder,
    fill,
    mel,
    perplexity,
    priming,
    reconstruct,
    render,
    renders,
    seam,
)
from audioloop.codec import Codec
from audioloop.conditions import Condition, Told
from audioloop.fill import TASTE, Filler, Taste
from audioloop.magnet import decode, loops
from audioloop.magnet.decode import Judge, Predict, Rescoring
from audioloop.perplexity import AHEAD, CONTEXT, WINDOW, Interval, Paired
from audioloop.renders import Loops
from audioloop.synth import BLOCK, SoundFont
from audioloop.tokens import Causal
from audioloop.wave import Format, Wave
from audioloop.wave import write as write_wave
from midiloop import checkpoint, workers
from midiloop.errors import CallError, LoopError
from midiloop.grid import LOOP
from midiloop.store import LoopDataset

SHORTEST_S, LONGEST_S = 2.0, 4.0  # of a loop
USUAL_BARS = 2  # one where two are too long: such a loop has no other bar line
ITEM_TIMEOUT_S = 3600.0
KEPT_ITEMS = 3  # whose loops can be kept to be heard
REACH = 20  # frames on each side of the seam that figure 3 shows
EMBEDDED_S, HOP_S, SPECTRUM_S = 1.0, 0.5, 0.02

SETTINGS = {
    "free": "the models are told beat, kit and bass, and no notes",
    "told": "they are told the notes as well",
}


class Row(NamedTuple):
    """A way to make a loop.

    Attributes:
        paper: its seam perplexity in table 2 of the paper (loops of 30 s by published models).
    """

    model: str
    how: str
    paper: str = ""


RENDER, CODES = "render", "codes"
ROWS = {
    RENDER: Row("none", "the true render, through the codec's latent"),
    CODES: Row("none", "its codes, decoded: what the codec alone does"),
    "causal naive": Row("causal", "a line of the window's length, repeated", "2512.39 ± 903.16"),
    "causal beat-aligned": Row("causal", "that line, cut at a bar line", "507.07 ± 163.67"),
    "masked naive": Row("masked", "a line of the window's length, repeated", "1549.06 ± 556.03"),
    "masked beat-aligned": Row("masked", "that line, cut at a bar line", "153.22 ± 47.69"),
    "LoopGen tiled": Row("masked", "tiles in the window, by LoopGen's procedure", "56.17 ± 11.78"),
    "LoopGen": Row("masked", "the same, its first half by the causal model", "84.29 ± 22.66"),
    "tiled": Row("masked", "tiles in the window, LoopGen's procedure mended"),
    "hybrid tiled": Row("masked", "the same, its first half by the causal model"),
    "ring": Row("masked", "on the ring"),
    "hybrid ring": Row("masked", "the same, its first half by the causal model"),
}
REFERENCES = (RENDER, CODES)
BASELINE = "masked beat-aligned"
MENDED = {"tiled": "LoopGen tiled", "hybrid tiled": "LoopGen"}
PAPER_GAIN = 55  # per cent, of its abstract

MEANING = {
    "seam": "of the first codebook in the 5 frames after the seam, under the causal model, which "
    "is told nothing: the middle of the 95 % interval ± half its width, as the paper's appendix A "
    "has it; lower is better",
    "seam_all": "the same of all codebooks",
    "difference": "nats at the seam less those at the same loop's other bar lines (of a naive "
    "loop: the bar lines in it that are half a bar or more from its end), first codebook, mean "
    "and 95 % interval; loops of one bar have none; 0: the seam is a bar line like any other",
    "jump": "step at the seam over the median step nearby, median; about 1 cannot be heard",
    "residual": "error of linear prediction there over its local median, median; about 3 where "
    "nothing was cut",
    "flux_percentile": "percentile of the change of spectrum at the seam among all places, mean; "
    "high on a downbeat and at a cut",
    "bar_flux_percentile": "the same among the other bar lines, mean; 50 is chance",
    "wrap_error_db": "difference of the loop from its codes decoded as a part of their endless "
    "repetition, dB, median; lower is better",
    "frechet": "squared Fréchet distance of Gaussians, of the mean and the standard deviation of "
    "64 log-mel bands in windows of 1 s every 0.5 s round the loop, from renders of other test "
    "loops; lower is better",
    "seconds": "seconds to make a loop, models loaded, mean",
    "told_seam": "seam perplexity under the causal model that is told what the loop was made with",
}
# Of the table's columns.
HEADINGS = {
    "seam": "seam perplexity",
    "seam_all": "all",
    "difference": "difference",
    "jump": "jump",
    "residual": "residual",
    "flux_percentile": "flux",
    "bar_flux_percentile": "bar flux",
    "wrap_error_db": "wrap",
    "frechet": "Fréchet",
    "seconds": "s",
}
# Less is not better here, but what is near to the codes of a true loop.
NEARER = ("flux_percentile", "bar_flux_percentile")
EXACT_DB = -100.0  # a wrap error below is the rounding of floats

Found = TypeVar("Found")
Vectors = NDArray[np.float64]  # (windows, 128)


@dataclass(frozen=True)
class Settings:
    """What is compared, and how.

    Attributes:
        items: how many loops each way makes.
        window_s: of the model that has one; naive loops are as long.
        steps, rescoring: see `fill.Taste`.
        keep_audio: write the loops of the first items as files.
    """

    items: int = 100
    seed: int = 0
    window_s: float = 6.0
    steps: tuple[int, ...] = TASTE.steps
    rescoring: float = TASTE.rescoring
    keep_audio: bool = False

    def __post_init__(self) -> None:
        """Raise `CallError` unless each is in its range."""
        if self.items < 2:
            raise CallError(f"{self.items} items; intervals need 2 or more")
        if self.window_s < LONGEST_S:
            raise CallError(
                f"a window of {self.window_s:g} s; loops last up to {LONGEST_S:g} s, so give "
                "that or more"
            )
        Taste(rescoring=self.rescoring)

    def taste(self, setting: str) -> Taste:
        """How codes are drawn in a setting."""
        guidance = TASTE.guidance if setting == "told" else 1.0
        return replace(TASTE, steps=self.steps, rescoring=self.rescoring, guidance=guidance)


@dataclass(frozen=True, eq=False)
class Source:
    """What workers need."""

    loops: Loops
    soundfont: Path
    codec: Path | None
    masked: Path | None
    causal: Path | None
    settings: Settings


@dataclass(frozen=True)
class Job:
    """One item; what befell the worker that was on it, if something did."""

    number: int
    lost: str = ""

    def without(self, item: int, cause: str) -> Job:  # noqa: ARG002 - as workers call it
        """The same, to be left out."""
        return replace(self, lost=cause)


class Item(NamedTuple):
    """A loop to be made.

    Attributes:
        ring: its true render, float32 (1, 1, samples), a whole number of frames.
        told: all that can be told of it.
    """

    ring: Tensor
    told: Told
    tempo_bpm: float
    bars: int
    n_frames: int


class Made(NamedTuple):
    """A loop that was made.

    Attributes:
        bar_lines: samples at which its other bars begin.
        condition: what is told of its frames, as a ring.
    """

    wave: Wave
    wrap_error_db: float
    seconds: float
    bar_lines: list[int]
    condition: Condition


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        about: settings, models, data.
        tables: by setting, by row, the figures of `figures`.
        floor: the Fréchet distance between two sets of renders, as many as items.
        items: all that was measured of each.
    """

    about: dict[str, Any]
    tables: dict[str, dict[str, dict[str, Any]]]
    floor: float
    items: list[dict[str, Any]]


def run(
    dataset: LoopDataset,
    out: Path,
    settings: Settings,
    soundfont: Path,
    *,
    codec: Path | None = None,
    masked: Path | None = None,
    causal: Path | None = None,
    n_workers: int = 1,
    resume: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Make all loops that the folder lacks, measure them, and write tables and pictures.

    Args:
        on_progress: called with how many more items are done.

    Raises:
        CallError: the settings fit no model, or the folder holds something else, or a comparison
            and ``resume`` is not asked for.
        LoopError: no loop is in the test split, or a model cannot be loaded, or is of another
            codec.
    """
    filler = fill.load(masked, causal, codec, with_causal=True)
    assert filler.causal is not None  # as it was asked for
    shape = filler.codec.config
    if len(settings.steps) != shape.codebooks or min(settings.steps) < 1:
        raise CallError(
            f"steps {','.join(map(str, settings.steps))}: give one or more for each of the "
            f"codec's {shape.codebooks} codebooks"
        )
    source = Source(renders.loops(dataset, "test"), soundfont, codec, masked, causal, settings)
    SoundFont(soundfont, shape.rate)  # one that cannot be loaded is an error here
    kept = {key: value for key, value in asdict(settings).items() if key not in _FREE}
    about: dict[str, Any] = {
        "settings": {**kept, "temperature": TASTE.temperature, "top_p": TASTE.top_p},
        "guidance": {name: settings.taste(name).guidance for name in SETTINGS},
        "models": {
            "codec": coder.fingerprint(filler.codec),
            "masked": coder.fingerprint(filler.masked),
            "causal": coder.fingerprint(filler.causal),
        },
        "data": {
            "rules": dataset.manifest["rules"]["name"],
            "counts": dataset.manifest["counts"],
            "test_loops": len(source.loops.packed),
            "soundfont": soundfont.name,
        },
    }
    _open(out, json.dumps(about, indent=2) + "\n", resume)
    _make(source, out, n_workers, on_progress)
    found = [json.loads(_place(out, n).read_text()) for n in range(settings.items)]
    items = [item for item in found if not item["lost"]]
    if len(items) < 2:
        raise LoopError(
            f"{out}: workers lost all items but {len(items)}; delete {out / 'items'}, free some "
            "memory and run it again"
        )
    about |= {
        "items": len(items),
        "lost": [item["number"] for item in found if item["lost"]],
        "threads": 1,
        "workers": n_workers,
        "machine": platform.machine(),
        "torch": str(torch.__version__),
    }
    comparison = summed(items, about)
    write_report(comparison, out)
    return comparison


_FREE = ("items", "keep_audio")  # settings that change nothing of an item
_RECORD = "settings.json"


def _open(out: Path, record: str, resume: bool) -> None:
    if not out.parent.is_dir():
        raise CallError(f"{out.parent}: no such folder; make it first")
    place = out / _RECORD
    if place.exists():
        if not resume:
            raise CallError(f"{out}: exists already; go on with --resume, or choose another name")
        if place.read_text() != record:
            odd = _different(json.loads(place.read_text()), json.loads(record))
            raise CallError(
                f"{out}: holds a comparison of other {odd}; give what it was begun with, or "
                "another folder"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CallError(f"{out}: holds something else; give another folder")
    (out / "items").mkdir(parents=True, exist_ok=True)
    checkpoint.write_whole(place, record.encode())


def _different(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Names of what is not the same, as in "settings (steps)"."""
    found = []
    for name in now:
        old = before.get(name, {})
        inner = [key for key, value in now[name].items() if old.get(key) != value]
        found += [f"{name} ({', '.join(inner)})"] if inner else []
    return " and ".join(found) or "settings"


def _place(out: Path, number: int) -> Path:
    return out / "items" / f"{number:05d}.json"


def _make(source: Source, out: Path, n_workers: int, on_progress: Callable[[int], None]) -> None:
    settings = source.settings
    missing = [n for n in range(settings.items) if not _is_done(out, n, settings.keep_audio)]
    on_progress(settings.items - len(missing))
    if not missing:
        return
    for _ in workers.run(
        functools.partial(task, source, out),
        (Job(number) for number in missing),
        preload=("audioloop.compare",),
        workers=min(n_workers, len(missing)),
        item_timeout_s=ITEM_TIMEOUT_S,
        on_tick=lambda _: None,
    ):
        on_progress(1)


def _is_done(out: Path, number: int, keep_audio: bool) -> bool:
    there = _place(out, number).exists()
    if keep_audio and number < KEPT_ITEMS:
        there = there and any((out / "audio").glob(f"{number:05d}_*"))
    return there


def task(source: Source, out: Path, job: Job, turn_to: Callable[[int], None]) -> None:
    """Make and measure one item, in a worker, and write what was found."""
    found: dict[str, Any] = {"number": job.number, "lost": job.lost}
    if not job.lost:
        turn_to(0)
        found |= _measured_item(source, out, job.number)
    text = json.dumps(found) + "\n"
    checkpoint.write_whole(_place(out, job.number), text.encode())


@functools.lru_cache(maxsize=1)
def _tools(
    soundfont: Path, codec: Path | None, masked: Path | None, causal: Path | None
) -> tuple[SoundFont, Filler]:
    torch.set_num_threads(1)  # as many workers as cores, and the same figures for any number
    filler = fill.load(masked, causal, codec, with_causal=True)
    return SoundFont(soundfont, filler.codec.config.rate), filler


@torch.inference_mode()
def _measured_item(source: Source, out: Path, number: int) -> dict[str, Any]:
    settings = source.settings
    font, filler = _tools(source.soundfont, source.codec, source.masked, source.causal)
    codec, causal = filler.codec, filler.causal
    assert causal is not None  # as it was loaded
    item = drawn(source.loops, number, settings.seed, font, codec)
    other = drawn(source.loops, number, settings.seed, font, codec, reference=True)
    keep = out / "audio" if settings.keep_audio and number < KEPT_ITEMS else None
    rows: dict[str, dict[str, Any]] = {}
    sought = asked(filler, item, "told", settings, number)
    references = {
        name: measured(made, filler, told=True) for name, made in _references(sought, item, keep)
    }
    for setting in SETTINGS:
        sought = asked(filler, item, setting, settings, number)
        rows[setting] = dict(references)
        for name, made in ways(sought):
            rows[setting][name] = measured(made, filler, told=setting == "told")
            _keep(keep, f"{number:05d}_{setting}_{name}", made.wave)
    return {
        "tempo_bpm": item.tempo_bpm,
        "bars": item.bars,
        "frames": item.n_frames,
        "kit": item.told.kit,
        "bass": item.told.bass,
        "render": _listed(embedded(_wave(item.ring, codec))),
        "reference": _listed(embedded(_wave(other.ring, codec))),
        "rows": rows,
    }


def _keep(folder: Path | None, name: str, wave: Wave) -> None:
    if folder is None:
        return
    folder.mkdir(exist_ok=True)
    quieter = Wave(wave.samples / np.float32(max(1.0, wave.peak)), wave.rate)
    write_wave(folder / f"{name.replace(' ', '_')}.wav", quieter, None, Format())


# Items.


def drawn(
    source: Loops,
    number: int,
    seed: int,
    font: SoundFont,
    codec: Codec,
    *,
    reference: bool = False,
) -> Item:
    """Item ``number``, or the render of another loop that stands beside it.

    Half of the loops are for items and half for references. One that is silent gives way to the
    next.
    """
    rng = np.random.default_rng([seed, number, int(reference)])
    order = np.random.default_rng(seed).permutation(len(source.packed))
    half = order[int(reference) :: 2] if len(order) > 1 else order
    variety = replace(coded.VARIETY, rate=codec.config.rate, tempo_octaves=0.0)
    picks = (int(half[(number + more) % len(half)]) for more in range(max(len(half), 8)))
    for pick in picks:
        octaves = rng.uniform(-coded.VARIETY.tempo_octaves, coded.VARIETY.tempo_octaves)
        tempo_bpm = float(source.tempos_bpm[pick]) * 2**octaves
        tempo_bpm = float(np.clip(tempo_bpm, variety.slowest_bpm, variety.fastest_bpm))
        pulse = beats.said(tempo_bpm)
        bars = beats.aligned_bars(pulse, SHORTEST_S, LONGEST_S, USUAL_BARS)
        assert bars is not None  # at such tempi one bar or two always are
        n_frames = max(1, round(bars * pulse.bar_s * codec.config.frames_per_s))
        steps = bars * LOOP.steps_per_bar
        start = int(rng.integers(LOOP.bars - bars + 1)) * LOOP.steps_per_bar
        roll = LOOP.unpack(source.packed[pick : pick + 1])[0][start : start + steps].copy()
        song = renders.performed(roll, tempo_bpm, rng, variety)
        samples = render.periodic(song, n_frames * codec.config.frame // BLOCK, font).mean(0)
        peak = float(np.abs(samples).max())
        if peak < render.SILENT:
            continue
        kit = next((track.program for track in song.tracks if track.is_drum), None)
        bass = next((track.program for track in song.tracks if not track.is_drum), None)
        roll[:, : LOOP.n_drums] &= kit is not None
        roll[:, LOOP.n_drums :] &= bass is not None
        ring = torch.from_numpy(samples * np.float32(10 ** (-1 / 20) / peak))[None, None]
        # A whole number of frames, so that no way has to resample what it has cut.
        tempo_bpm = 60 * bars * pulse.beats_per_bar * codec.config.frames_per_s / n_frames
        return Item(ring, Told(roll, steps, kit, bass), tempo_bpm, bars, n_frames)
    raise LoopError("the loops of the test split are silent with this SoundFont; give another")


# Ways to make a loop.


@dataclass(frozen=True, eq=False)
class Asked:
    """An item in a setting, and what it is made with.

    Attributes:
        condition: what is told of the item's ring.
        window: frames.
        seed: of everything that is drawn.
    """

    filler: Filler
    condition: Condition
    n_frames: int
    bars: int
    window: int
    taste: Taste
    seed: str

    @property
    def causal(self) -> Causal:
        """The model that goes on."""
        assert self.filler.causal is not None  # as it was loaded
        return self.filler.causal

    @property
    def gap(self) -> int:
        """What stands for a code that is not known."""
        return self.filler.masked.config.gap

    def generator(self, row: str) -> torch.Generator:
        """Of one row."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {row}".encode()))

    def taken(self, start: int, n_frames: int) -> Condition:
        """What is told of a line that goes round the ring."""
        return self.condition.taken(torch.arange(start, start + n_frames))


def asked(filler: Filler, item: Item, setting: str, settings: Settings, number: int) -> Asked:
    """An item in a setting of `SETTINGS`."""
    told = item.told if setting == "told" else replace(item.told, roll=None)
    frames_per_s = filler.codec.config.frames_per_s
    return Asked(
        filler,
        told.on(item.n_frames, frames_per_s),
        item.n_frames,
        item.bars,
        round(settings.window_s * frames_per_s),
        settings.taste(setting),
        f"{settings.seed} {number} {setting}",
    )


def _references(sought: Asked, item: Item, keep: Path | None) -> Iterator[tuple[str, Made]]:
    codec = sought.filler.codec
    latent = codec.encode(item.ring, circular=True)
    codes = codec.quantize(latent)
    if keep is not None:
        _keep(keep, f"{sought.seed.split()[1]:0>5}_original", _wave(item.ring, codec))
    yield RENDER, _on_ring(sought, latent, 0.0)
    yield CODES, _on_ring(sought, codec.dequantize(codes), 0.0)


def ways(sought: Asked) -> Iterator[tuple[str, Made]]:
    """The loops of all rows but the references."""
    for name, write in (("causal", _causal_line), ("masked", _masked_line)):
        line, seconds = _timed(functools.partial(write, sought))
        yield f"{name} naive", _cut(sought, line, 0, sought.window, seconds)
        yield f"{name} beat-aligned", _cut(sought, line, 0, sought.n_frames, seconds)
    prompt, prompt_s = _timed(functools.partial(_prompt, sought))
    open_ = torch.full((1, prompt.shape[1], sought.n_frames), sought.gap)
    begun = open_.clone()
    begun[..., : prompt.shape[2]] = prompt
    for name, codes, before_s in (("LoopGen tiled", open_, 0.0), ("LoopGen", begun, prompt_s)):
        left = loops.margin(codes, sought.window, sought.gap)
        tile, seconds = _timed(functools.partial(_loopgen, sought, name, codes, left))
        window = tile[..., (torch.arange(sought.window) - left) % sought.n_frames]
        yield name, _cut(sought, window, left, sought.n_frames, before_s + seconds)
    masked, condition = sought.filler.masked, sought.condition
    line_ = loops.on_line(masked, condition)
    for name, predict in (
        ("tiled", loops.tiled(line_, sought.n_frames, sought.window)),
        ("ring", loops.ring(masked, condition)),
    ):
        for row, codes, before_s in ((name, open_, 0.0), (f"hybrid {name}", begun, prompt_s)):
            ring, seconds = _timed(functools.partial(_goes_round, sought, row, predict, codes))
            latent = coder.latent_of(ring, sought.filler.codec)
            yield row, _on_ring(sought, latent, before_s + seconds)


def _causal_line(sought: Asked) -> Tensor:
    """The window's codes (1, K, T) by the causal model."""
    condition = sought.taken(0, sought.window)
    return priming.written(sought.causal, condition, sought.generator("causal"))


def _prompt(sought: Asked) -> Tensor:
    """The first half of the ring's codes, by the causal model."""
    condition = sought.taken(0, sought.n_frames // 2)
    return priming.written(sought.causal, condition, sought.generator("prompt"))


def _masked_line(sought: Asked) -> Tensor:
    """The window's codes by the masked model, which knows of no ring."""
    condition = sought.taken(0, sought.window)
    masked = sought.filler.masked
    codes = torch.full((1, masked.config.codebooks, sought.window), sought.gap)
    predict = loops.asked(masked, condition, circular=False)
    config = replace(sought.taste.config, ring=False)
    generator = sought.generator("masked")
    rescoring = _rescoring(sought, _line_judge(sought.causal, condition))
    return decode.decode(predict, codes, sought.gap, generator, config, rescoring)


def _loopgen(sought: Asked, row: str, codes: Tensor, left: int) -> Tensor:
    condition = sought.taken(-left, sought.window)
    return loops.loopgen(
        loops.asked(sought.filler.masked, condition, circular=False),
        codes,
        sought.window,
        sought.gap,
        sought.generator(row),
        replace(sought.taste.config, ring=False),
        _rescoring(sought, _line_judge(sought.causal, condition)),
    )


def _goes_round(sought: Asked, row: str, predict: Predict, codes: Tensor) -> Tensor:
    config, generator = sought.taste.config, sought.generator(row)
    rescoring = _rescoring(sought, priming.judge(sought.causal, sought.condition))
    return decode.decode(predict, codes, sought.gap, generator, config, rescoring)


def _rescoring(sought: Asked, judge: Judge) -> Rescoring | None:
    weight = sought.taste.rescoring
    return Rescoring(judge, weight) if weight else None


def _line_judge(model: Causal, condition: Condition) -> Judge:
    """As `priming.judge`, on a line."""

    def chances(codes: Tensor, stage: int) -> Tensor:
        line = codes.clone()
        line[:, stage + 1 :] = model.config.gap
        said = model(line, condition)[:, stage].softmax(-1)
        found: Tensor = said.gather(-1, codes[:, stage][..., None])[..., 0]
        return found

    return chances


def _timed(make: Callable[[], Found]) -> tuple[Found, float]:
    began_s = time.perf_counter()
    found = make()
    return found, time.perf_counter() - began_s


def _on_ring(sought: Asked, latent: Tensor, seconds: float) -> Made:
    """A loop that is decoded on the circle."""
    codec = sought.filler.codec
    samples, more_s = _timed(lambda: codec.decode(latent, circular=True))
    return _as_made(sought, latent, samples, sought.bars, seconds + more_s)


def _cut(sought: Asked, codes: Tensor, start: int, n_frames: int, seconds: float) -> Made:
    """A loop that is cut out of a window's codes (1, K, T), decoded as a line."""
    codec = sought.filler.codec
    latent = coder.latent_of(codes, codec)
    line, more_s = _timed(lambda: codec.decode(latent, circular=False))
    frame = codec.config.frame
    samples = line[..., start * frame : (start + n_frames) * frame]
    bars = sought.bars * n_frames / sought.n_frames
    tile = latent[..., start : start + n_frames]
    return _as_made(sought, tile, samples, bars, seconds + more_s)


def _as_made(sought: Asked, latent: Tensor, samples: Tensor, bars: float, seconds: float) -> Made:
    codec, n_frames = sought.filler.codec, latent.shape[-1]
    length = samples.shape[-1]
    # A line that ends within a bar has no bar line at its end but those well before it.
    lines = [round(length * bar / bars) for bar in range(1, math.ceil(bars)) if bars - bar >= 0.5]
    error_db = reconstruct.wrap_error_db(latent, samples, codec)
    condition = sought.taken(0, n_frames)
    return Made(_wave(samples, codec), error_db, seconds, lines, condition)


def _wave(samples: Tensor, codec: Codec) -> Wave:
    return Wave(samples[0].numpy(), codec.config.rate)


# Figures.


def measured(made: Made, filler: Filler, *, told: bool) -> dict[str, Any]:
    """All that is measured of a loop, on the loop as it sounds: coded anew on the circle.

    Args:
        told: also as a model sees the seam that is told what the loop was made with.
    """
    wave, codec, causal = made.wave, filler.codec, filler.causal
    assert causal is not None  # as it was loaded
    codes = coder.encoded(wave, codec).codes[0]
    nats = nats_around(codes, causal)
    seam_nats = nats[:, REACH : REACH + WINDOW].mean(1)
    at_bars = [_nats_from(wave, line, filler) for line in made.bar_lines]
    found: dict[str, Any] = {
        "nats": float(seam_nats[0]),
        "nats_all": float(seam_nats.mean()),
        "bars": [float(one[0]) for one in at_bars],
        "bars_all": [float(one.mean()) for one in at_bars],
        "around": [round(value, 4) for value in nats[0].tolist()],
    }
    if told:
        heard = perplexity.nats_at(codes, [0], causal, made.condition)[0]
        found |= {"told_nats": float(heard[0]), "told_nats_all": float(heard.mean())}
    return {
        **found,
        **_sounds(wave, made.bar_lines),
        "wrap_error_db": made.wrap_error_db,
        "windows": _listed(embedded(wave)),
        "seconds": round(made.seconds, 3),
    }


@torch.inference_mode()
def nats_around(codes: Tensor, model: Causal, reach: int = REACH) -> NDArray[np.float64]:
    """Cross-entropy of each frame on both sides of a ring's seam (K, T): (K, 2 · reach + 1).

    Value number ``reach`` is of the first frame after the seam. The model is told nothing, and
    hears `perplexity.CONTEXT` frames before the seam.
    """
    n_frames = codes.shape[1]
    span = torch.arange(-CONTEXT, reach + 1 + AHEAD)
    line = codes[None][..., span % n_frames]
    logits = model(line, Told().on(n_frames, 1.0).taken(span))[0].float()
    nats = F.cross_entropy(logits.flatten(0, 1), line[0].flatten(), reduction="none")
    around = nats.reshape(len(codes), -1)[:, CONTEXT - reach : CONTEXT + reach + 1]
    return around.double().numpy()


def _nats_from(wave: Wave, place: int, filler: Filler) -> NDArray[np.float64]:
    """Of each codebook, at a place of the loop that is coded anew to begin there: (K,)."""
    assert filler.causal is not None  # as it was loaded
    rotated = Wave(np.roll(wave.samples, -place, 1), wave.rate)
    codes = coder.encoded(rotated, filler.codec).codes[0]
    found: NDArray[np.float64] = perplexity.nats_at(codes, [0], filler.causal)[0]
    return found


def _sounds(wave: Wave, bar_lines: Sequence[int]) -> dict[str, float | None]:
    if wave.peak < seam.SILENT:
        names = ("jump", "residual", *NEARER)
        return dict.fromkeys(names)
    among = [seam.flux(wave, line) for line in bar_lines]
    return {
        "jump": seam.jump(wave, 0),
        "residual": seam.residual(wave, 0),
        "flux_percentile": seam.flux_percentile(wave, 0),
        "bar_flux_percentile": seam.percentile(seam.flux(wave, 0), among) if among else None,
    }


def embedded(wave: Wave) -> Vectors:
    """Mean and standard deviation of 64 log-mel bands in windows round a loop: (windows, 128), dB.

    Windows are 1 s long, about every 0.5 s, so that a whole number of them goes round; spectra are
    relative to the loop's peak, every 20 ms. A silent loop has none.
    """
    if wave.peak < seam.SILENT:
        return np.zeros((0, 2 * mel.BANDS))
    n_spectra = max(1, round(wave.duration_s / SPECTRUM_S))
    centres = np.floor((np.arange(n_spectra) + 0.5) * (len(wave) / n_spectra)).astype(np.int64)
    spectra = mel.decibels(wave, centres)
    n_windows = max(1, round(wave.duration_s / HOP_S))
    starts = np.arange(n_windows) * n_spectra // n_windows
    levels = spectra[(starts[:, None] + np.arange(round(EMBEDDED_S / SPECTRUM_S))) % n_spectra]
    return np.concatenate([levels.mean(1), levels.std(1)], axis=1)


def _listed(vectors: Vectors) -> list[list[float]]:
    found: list[list[float]] = np.round(vectors, 3).tolist()
    return found


def frechet(some: ArrayLike, others: ArrayLike) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of vectors (n, d): 0 or more.

    |m - m'|² + tr(C + C' - 2 (C½ C' C½)½), with covariances over n.

    Raises:
        CallError: there are fewer than two in one.
    """
    means, spreads = [], []
    for vectors in (np.asarray(some, np.float64), np.asarray(others, np.float64)):
        if len(vectors) < 2:
            raise CallError(f"a distance of {len(vectors)} windows; give 2 or more")
        means.append(vectors.mean(0))
        spreads.append(np.cov(vectors.T, bias=True).reshape(2 * (vectors.shape[1],)))
    root = _root(spreads[0])
    shared = np.sqrt(np.linalg.eigvalsh(root @ spreads[1] @ root).clip(0)).sum()
    apart = np.square(means[0] - means[1]).sum()
    return max(0.0, float(apart + np.trace(spreads[0]) + np.trace(spreads[1]) - 2 * shared))


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The square root of a covariance."""
    values, axes = np.linalg.eigh(matrix)
    return np.asarray((axes * np.sqrt(values.clip(0))) @ axes.T)


# Tables.


def summed(items: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> Comparison:
    """All items together."""
    reference = np.concatenate([np.reshape(item["reference"], (-1, 128)) for item in items])
    originals = np.concatenate([np.reshape(item["render"], (-1, 128)) for item in items])
    tables = {
        setting: {
            row: figures([item["rows"][setting][row] for item in items], reference) for row in ROWS
        }
        for setting in SETTINGS
    }
    found = [dict(item) for item in items]
    return Comparison(dict(about), tables, frechet(originals, reference), found)


def figures(rows: Sequence[Mapping[str, Any]], reference: Vectors) -> dict[str, Any]:
    """Of one row of a table, from what was measured of each item; None where nothing was."""
    windows = np.concatenate([np.reshape(row["windows"], (-1, 128)) for row in rows])
    found: dict[str, Any] = {
        "loops": len(rows),
        "seam": perplexity.interval([row["nats"] for row in rows]),
        "seam_all": perplexity.interval([row["nats_all"] for row in rows]),
        "difference": _apart(rows, "nats", "bars"),
        "difference_all": _apart(rows, "nats_all", "bars_all"),
        "jump": _of(np.median, rows, "jump"),
        "residual": _of(np.median, rows, "residual"),
        "flux_percentile": _of(np.mean, rows, "flux_percentile"),
        "bar_flux_percentile": _of(np.mean, rows, "bar_flux_percentile"),
        "wrap_error_db": _of(np.median, rows, "wrap_error_db"),
        "frechet": frechet(windows, reference) if len(windows) > 1 else None,
        "seconds": _of(np.mean, rows, "seconds"),
        "around": np.mean([row["around"] for row in rows], axis=0).tolist(),
    }
    if all("told_nats" in row for row in rows):
        found["told_seam"] = perplexity.interval([row["told_nats"] for row in rows])
        found["told_seam_all"] = perplexity.interval([row["told_nats_all"] for row in rows])
    return found


def _apart(rows: Sequence[Mapping[str, Any]], nats: str, bars: str) -> Paired | None:
    apart = [row[nats] - float(np.mean(row[bars])) for row in rows if row[bars]]
    return perplexity.paired(apart) if len(apart) > 1 else None


def _of(
    mean: Callable[[list[float]], Any], rows: Sequence[Mapping[str, Any]], name: str
) -> float | None:
    known = [float(row[name]) for row in rows if row[name] is not None]
    return float(mean(known)) if known else None


class Gain(NamedTuple):
    """How much lower the seam perplexity of a row is than that of another, in per cent.

    Attributes:
        mean: 100 · (1 - the ratio of both), of all items.
        low, high: its 95 % interval, from the differences of nats of each item.
    """

    mean: float
    low: float
    high: float


def gain(nats: ArrayLike, baseline: ArrayLike) -> Gain:
    """The gain of a row over another, from the nats at the seam of each item."""
    apart = perplexity.paired(np.subtract(nats, baseline))
    return Gain(*(100 * (1 - math.exp(value)) for value in (apart.mean, apart.high, apart.low)))


def headline(found: Comparison) -> dict[str, Any]:
    """What the tables come to, by setting."""
    shown: dict[str, Any] = {}
    for setting, table in found.tables.items():
        nats = {row: [item["rows"][setting][row]["nats"] for item in found.items] for row in ROWS}
        apart = table["ring"]["difference"]
        shown[setting] = {
            "gain": {
                row: gain(nats[row], nats[BASELINE])._asdict()
                for row in ("ring", "tiled", "LoopGen tiled", "LoopGen")
            },
            "ring_indistinguishable": None if apart is None else apart.indistinguishable,
            "mended_worse_in": {
                row: worse(table[row], table[other], table[CODES]) for row, other in MENDED.items()
            },
        }
    return shown


def worse(row: Mapping[str, Any], other: Mapping[str, Any], codes: Mapping[str, Any]) -> list[str]:
    """Columns in which a row is not at least as good as another.

    Lower is better, but for percentiles of flux, which are better near to those of true codes, and
    wrap errors below `EXACT_DB`, which are alike.
    """
    found = []
    for name in HEADINGS:
        one, two = _middle(row[name]), _middle(other[name])
        aim = _middle(codes[name]) if name in NEARER else None
        if one is None or two is None:
            continue
        if aim is not None:
            one, two = abs(one - aim), abs(two - aim)
        if name == "wrap_error_db":
            one, two = max(one, EXACT_DB), max(two, EXACT_DB)
        if one > two:
            found.append(name)
    return found


def _middle(value: Interval | Paired | float | None) -> float | None:
    if isinstance(value, Interval):
        return value.center
    return value.mean if isinstance(value, Paired) else value


def as_json(found: Comparison) -> dict[str, Any]:
    """All but the items, as JSON holds it."""
    tables = {
        setting: {
            name: {**ROWS[name]._asdict(), **{key: _plain(value) for key, value in row.items()}}
            for name, row in table.items()
        }
        for setting, table in found.tables.items()
    }
    return {
        "about": found.about,
        "meaning": MEANING,
        "settings": SETTINGS,
        "headline": headline(found),
        "frechet_floor": found.floor,
        "tables": tables,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Paired):
        return {**value._asdict(), "indistinguishable": value.indistinguishable}
    return value._asdict() if isinstance(value, Interval) else value


def write_report(found: Comparison, out: Path) -> None:
    """Write ``compare.md`` and ``compare.json``."""
    text = json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n"
    checkpoint.write_whole(out / "compare.json", text.encode())
    checkpoint.write_whole(out / "compare.md", report(found).encode())


def report(found: Comparison) -> str:
    """The tables as Markdown."""
    about = found.about
    settings, data = about["settings"], about["data"]
    one_bar = sum(item["bars"] == 1 for item in found.items)
    names = ", ".join(f"{name} {print_[:8]}" for name, print_ in about["models"].items())
    lines = [
        "# Ways to make a loop, measured alike",
        "",
        f"{about['items']} loops of {data['test_loops']:,} in the test split (rules "
        f"{data['rules']}), {SHORTEST_S:g} to {LONGEST_S:g} s of whole bars (of one bar, "
        f"and so without another bar line: {one_bar}); SoundFont {data['soundfont']}. Window "
        f"{settings['window_s']:g} s, steps {', '.join(map(str, settings['steps']))}, temperature "
        f"{settings['temperature']:g}, top-p {settings['top_p']:g}, rescoring "
        f"{settings['rescoring']:g}, seed {settings['seed']}. Models: {names}. One thread on "
        f"{about['machine']}, {about['workers']} at a time.",
        *([f"Lost: items {', '.join(map(str, about['lost']))}."] if about["lost"] else []),
        "",
        "## What it comes to",
        "",
        *headlines(found),
    ]
    for setting, what in SETTINGS.items():
        guidance = about["guidance"][setting]
        lines += [
            "",
            f"## {setting.capitalize()}: {what}",
            "",
            f"Guidance {guidance:g} at first.",
            "",
            *_table(found.tables[setting]),
        ]
    lines += [
        "",
        f"Fréchet distance between two sets of {about['items']} renders each, of different loops: "
        f"{found.floor:.0f}. What is as near is no worse than renders.",
        "",
        "In the paper's column: its own seam perplexity, of loops of up to 30 s by published "
        "models, under another model. Only the order can be compared.",
        "",
        "## Rows",
        "",
        *(f"- {name}: {row.how}" for name, row in ROWS.items()),
        "",
        "## Columns",
        "",
        *(f"- {heading}: {MEANING[name]}" for name, heading in HEADINGS.items()),
    ]
    return "\n".join(lines) + "\n"


def headlines(found: Comparison) -> Iterator[str]:
    """`headline` as lines of Markdown."""
    for setting, shown in headline(found).items():
        gains = ", ".join(
            f"{row} {one['mean']:.0f} % ({one['low']:,.0f} to {one['high']:.0f})"
            for row, one in shown["gain"].items()
        )
        yield (
            f"- {setting}: seam perplexity lower than {BASELINE} by {gains}; the paper has "
            f"{PAPER_GAIN} %."
        )
        apart = found.tables[setting]["ring"]["difference"]
        if apart is not None:
            verdict = "includes 0" if apart.indistinguishable else "does not include 0"
            yield f"- {setting}: the ring's difference to its other bar lines {verdict}."
        for row, columns in shown["mended_worse_in"].items():
            names = ", ".join(HEADINGS[name] for name in columns)
            but = f" but {names}" if columns else ""
            yield f"- {setting}: {row} is at least as good as {MENDED[row]} in every column{but}."


def _table(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    headings = list(HEADINGS.values())
    head = ("", headings[0], "paper", *headings[1:])
    body = []
    for name, row in table.items():
        body.append(
            (
                name,
                plus_minus(row["seam"]),
                ROWS[name].paper or "–",
                plus_minus(row["seam_all"]),
                _within(row["difference"]),
                _figure(row["jump"]),
                _figure(row["residual"]),
                _whole(row["flux_percentile"]),
                _whole(row["bar_flux_percentile"]),
                _whole(row["wrap_error_db"]),
                _whole(row["frechet"]),
                "–" if name in REFERENCES else _figure(row["seconds"]),
            )
        )
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def plus_minus(found: Interval) -> str:
    """As in "56.2 ± 11.8"."""
    return f"{_figure(found.center)} ± {_figure(found.error)}"


def _within(found: Paired | None) -> str:
    return "–" if found is None else f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
