"""Every method of loop generation under the same metrics: LoopGen's table 2 for our own models.

A comparison is a folder::

    benchmark.md .json      the tables, and what stands in them
    seam_nats.png         cross-entropy around the seam, as figure 3 of the paper
    perplexity.png        seam perplexities of all loops, as figure 4
    items/NNNNN.json      metrics of an item; a run resumes where these end
    audio/…               loops of the first items, if wanted

Neither model was trained on a loop of the test split. An item always gives the same loops, whatever
the worker and the number of items.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audioloop.codec import compression
from audioloop.evaluation.loopgen import measures, methods, tables, test_set
from audioloop.evaluation.loopgen.methods import SETTINGS, MethodInput
from audioloop.evaluation.loopgen.summary import BenchmarkResult, summarise
from audioloop.evaluation.loopgen.test_set import EvaluationLoop
from audioloop.io.wave import Format, Wave
from audioloop.io.wave import write as write_wave
from audioloop.pipelines import inpaint
from audioloop.pipelines.inpaint import SAMPLING, Inpainter, SamplingConfig
from audioloop.rendering import augment
from audioloop.rendering.augment import PackedLoops
from audioloop.rendering.synth import SoundFont
from audioloop.tokens import pretrained
from midiloop.common import checkpoint, devices, files
from midiloop.common.engine import Engine, TurnTo, Work
from midiloop.common.processes import Processes
from midiloop.common.resume import RunRecord
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError, counted

ITEM_TIMEOUT_S = 3600.0
KEPT_ITEMS = 3  # whose loops can be kept to be heard
RECORD = "settings.json"
UNRELATED = ("num_loops", "keep_audio")  # settings that change nothing of an item
# What no option says: by setting, and in both.
PER_SETTING, SHARED = (
    ("steps", "temperature", "top_p", "cfg_scale"),
    ("fine_temperature", "choice_temperature"),
)


@dataclass(frozen=True)
class Settings:
    """What is compared, and how.

    Attributes:
        num_loops: loops of each method.
        window_s: of the model that has one, see `test_set.WINDOWS_S`; naive loops are as long,
            others a third to two thirds of it.
        decode_steps, unconditioned_decode_steps: of each codebook, with and without notes;
            None for those of `inpaint.CONDITIONED` and `inpaint.UNCONDITIONED`.
        rescoring_weight: see `inpaint.SamplingConfig`.
        keep_audio: write the loops of the first items as files.
    """

    num_loops: int = 100
    seed: int = 0
    window_s: float = 12.0
    decode_steps: tuple[int, ...] | None = None
    unconditioned_decode_steps: tuple[int, ...] | None = None
    rescoring_weight: float = SAMPLING.rescoring_weight
    keep_audio: bool = False

    def __post_init__(self) -> None:
        """Raise `CallError` unless each is in its range."""
        if self.num_loops < 2:
            raise CallError(f"{counted(self.num_loops, 'item')}; intervals need 2 or more")
        low_s, high_s = test_set.WINDOWS_S
        if not low_s <= self.window_s <= high_s:
            raise CallError(f"a window of {self.window_s:g} s; give {low_s:g} to {high_s:g}")
        SamplingConfig(rescoring_weight=self.rescoring_weight)

    def sampling(self, setting: str) -> SamplingConfig:
        """How tokens are sampled: one draft each, as methods are compared and not drafts."""
        steps = self.decode_steps if setting == "conditioned" else self.unconditioned_decode_steps
        return replace(SAMPLING, steps=steps, rescoring_weight=self.rescoring_weight, best_of=1)


@dataclass(frozen=True, eq=False)
class Source:
    """What workers need."""

    loops: PackedLoops
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


def run(
    dataset: LoopDataset,
    out: Path,
    settings: Settings,
    soundfont: Path,
    *,
    codec: Path | None = None,
    masked: Path | None = None,
    causal: Path | None = None,
    engine: Engine | None = None,
    resume: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> BenchmarkResult:
    """Generate all loops that the folder lacks, measure them, and write the tables.

    Args:
        engine: runs the workers; by default one process, since time is measured too.
        on_progress: called with the number of items done since the last call.

    Raises:
        CallError: the settings fit no model, or the folder holds something else, or a comparison
            and ``resume`` is not asked for.
        LoopError: no loop is in the test split, or a model cannot be loaded, or is of another
            codec.
    """
    engine = engine or Processes(1)
    inpainter = inpaint.load(masked, causal, codec, with_causal=True)
    assert inpainter.causal is not None  # as it was asked for
    shape = inpainter.codec.config
    configs = {
        name: settings.sampling(name).config(conditioned=name == "conditioned") for name in SETTINGS
    }
    for config in configs.values():
        if len(config.steps) != shape.codebooks or min(config.steps) < 1:
            raise CallError(
                f"steps {','.join(map(str, config.steps))}: give one or more for each of the "
                f"codec's {shape.codebooks} codebooks"
            )
    source = Source(augment.loops(dataset, "test"), soundfont, codec, masked, causal, settings)
    SoundFont(soundfont, shape.rate)  # one that cannot be loaded is an error here
    kept = {key: value for key, value in asdict(settings).items() if key not in UNRELATED}
    about: dict[str, Any] = {
        "settings": kept,
        "sampling": {
            **{
                key: {name: getattr(config, key) for name, config in configs.items()}
                for key in PER_SETTING
            },
            **{key: getattr(configs["unconditioned"], key) for key in SHARED},
        },
        "models": {
            "codec": checkpoint.identity(codec or compression.SHIPPED),
            "masked": checkpoint.identity(masked or pretrained.SHIPPED["masked"]),
            "causal": checkpoint.identity(causal or pretrained.SHIPPED["causal"]),
        },
        "data": {
            "rules": dataset.manifest["rules"]["name"],
            "counts": dataset.manifest["counts"],
            "fingerprint": dataset.fingerprint,
            "test_loops": len(source.loops.packed),
            "soundfont": soundfont.name,
            "soundfont_sha256": files.digest(soundfont),
        },
        "measured": {"rows": list(methods.METHODS)},
    }
    files.check_parent(out)
    record = RunRecord(out / RECORD, _begun_with(about))
    with record.working(resume=resume):
        record.write(finished=False)
        (out / "items").mkdir(exist_ok=True)
        _make(source, out, engine, on_progress)
        found = _summarised(out, settings, about, engine.n_workers)
        tables.write(found, out)
        record.write(finished=not found.about["lost"])
    return found


def _begun_with(about: Mapping[str, Any]) -> dict[str, Any]:
    """What an item depends on; how many there are changes nothing of it."""
    given, data = about["settings"], about["data"]
    settings = {name: given[name] for name in ("seed", "window_s", "rescoring_weight")}
    return {
        "settings": {**settings, **about["sampling"]},
        **{
            f"{name} model" if name != "codec" else name: it for name, it in about["models"].items()
        },
        "dataset": [data["fingerprint"], data["rules"]],
        "SoundFont": [data["soundfont"], data["soundfont_sha256"]],
        "set of rows": about["measured"]["rows"],
    }


def _summarised(
    out: Path, settings: Settings, about: dict[str, Any], n_workers: int
) -> BenchmarkResult:
    """The tables of all items that were measured.

    Raises:
        LoopError: there are too few.
    """
    found = [files.read_json(_place(out, n)) for n in range(settings.num_loops)]
    done = [item for item in found if not item["lost"]]
    if len(done) < 2:
        raise LoopError(
            f"{out}: workers lost all items but {len(done)}; delete {out / 'items'}, free some "
            "memory and run it again"
        )
    about = about | {
        "items": len(done),
        "lost": [item["number"] for item in found if item["lost"]],
        "threads": 1,
        "workers": n_workers,
        "machine": platform.machine(),
        "torch": str(torch.__version__),
    }
    return summarise(done, about)


def _place(out: Path, number: int) -> Path:
    return out / "items" / f"{number:05d}.json"


def _make(source: Source, out: Path, engine: Engine, on_progress: Callable[[int], None]) -> None:
    settings = source.settings
    missing = [n for n in range(settings.num_loops) if not _is_done(out, n, settings.keep_audio)]
    on_progress(settings.num_loops - len(missing))
    do = functools.partial(do_job, source, out)
    modules = ("audioloop.evaluation.loopgen.benchmark",)
    for _ in engine.map(Work(do, ITEM_TIMEOUT_S, modules), map(Job, missing)):
        on_progress(1)


def _is_done(out: Path, number: int, keep_audio: bool) -> bool:
    """Whether an item was measured; one that workers were lost on is tried again."""
    place = _place(out, number)
    there = place.exists() and not json.loads(place.read_text())["lost"]
    if keep_audio and number < KEPT_ITEMS:
        there = there and any((out / "audio").glob(f"{number:05d}_*"))
    return there


def do_job(source: Source, out: Path, job: Job, turn_to: TurnTo) -> None:
    """Make and measure one item, in a worker, and write what was found."""
    found: dict[str, Any] = {"number": job.number, "lost": job.lost}
    if not job.lost:
        turn_to(0)
        with devices.one_thread():  # as many workers as cores, and the same for any number
            found |= _measure_item(source, out, job.number)
    text = json.dumps(found) + "\n"
    files.write(_place(out, job.number), text.encode())


@functools.lru_cache(maxsize=1)
def _tools(
    soundfont: Path, codec: Path | None, masked: Path | None, causal: Path | None
) -> tuple[SoundFont, Inpainter]:
    inpainter = inpaint.load(masked, causal, codec, with_causal=True)
    return SoundFont(soundfont, inpainter.codec.config.rate), inpainter


@torch.inference_mode()
def _measure_item(source: Source, out: Path, number: int) -> dict[str, Any]:
    settings = source.settings
    font, inpainter = _tools(source.soundfont, source.codec, source.masked, source.causal)
    codec = inpainter.codec
    item, other = (
        test_set.evaluation_loop(
            source.loops, number, settings.seed, font, codec, settings.window_s, reference=reference
        )
        for reference in (False, True)
    )
    keep = out / "audio" if settings.keep_audio and number < KEPT_ITEMS else None
    true = methods.wave_of(item.ring, codec)
    _keep(keep, f"{number:05d}_original", true)
    method_input = asked(inpainter, item, "conditioned", settings, number)
    truth = {
        name: measures.of(made, inpainter, conditioned=True)
        for name, made in methods.references(method_input, item.ring, item.longer, other.ring)
    }
    rows: dict[str, dict[str, Any]] = {}
    for setting in SETTINGS:
        method_input = asked(inpainter, item, setting, settings, number)
        rows[setting] = dict(truth)
        for name, made in methods.methods(method_input):
            rows[setting][name] = measures.of(made, inpainter, conditioned=setting == "conditioned")
            _keep(keep, f"{number:05d}_{setting}_{name}", made.wave)
    return {
        "tempo_bpm": item.tempo_bpm,
        "bars": item.bars,
        "frames": item.n_frames,
        "kit": item.conditioning.kit,
        "bass": item.conditioning.bass,
        "render": measures.windows(true),
        "reference": measures.windows(methods.wave_of(other.ring, codec)),
        "rows": rows,
    }


def asked(
    inpainter: Inpainter, item: EvaluationLoop, setting: str, settings: Settings, number: int
) -> MethodInput:
    """An item in a setting of `SETTINGS`."""
    conditioning = (
        item.conditioning if setting == "conditioned" else replace(item.conditioning, roll=None)
    )
    frames_per_s = inpainter.codec.config.frames_per_s
    return MethodInput(
        inpainter,
        conditioning.on(item.n_frames, frames_per_s),
        item.n_frames,
        item.bars,
        round(settings.window_s * frames_per_s),
        settings.sampling(setting),
        f"{settings.seed} {number} {setting}",
    )


def _keep(folder: Path | None, name: str, wave: Wave) -> None:
    if folder is None:
        return
    folder.mkdir(exist_ok=True)
    quieter = Wave(wave.samples / np.float32(max(1.0, wave.peak)), wave.rate)
    write_wave(folder / f"{name.replace(' ', '_')}.wav", quieter, None, Format())
