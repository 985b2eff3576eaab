"""Mine loops: out of one score, or out of a whole corpus into a dataset.

`run` cuts the corpus into batches of files, has workers mine them, and commits each batch as a part
beside the dataset to be; when all are there it seals them. A batch depends on the corpus alone, so
neither the number of workers nor an interruption changes a byte of the dataset.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midiloop import __version__
from midiloop.common import files
from midiloop.common.engine import BETWEEN_ITEMS, CRASHED, TIMEOUT, Engine, TurnTo, Work
from midiloop.common.processes import Processes
from midiloop.dataset.records import Counts, Reject, SongRecord
from midiloop.errors import CallError, LoopError, MidiError, counted
from midiloop.grid import LOOP, Grid, Roll
from midiloop.midi import performance, pianoroll, score
from midiloop.midi.performance import OFFSETS_PER_STEP, WindowPerformances
from midiloop.midi.score import Meter, Player, Score
from midiloop.mining import corpus, partials, plan, rules
from midiloop.mining.corpus import Item, Problem
from midiloop.mining.rules import Rules, Run

BATCH_FILES = 64
BATCH_BYTES = 2 << 20
ITEM_TIMEOUT_S = 10.0
WHOLE = Path("assembled", "loops")  # the dataset, before it has its name
LOST = (CRASHED, TIMEOUT)
SHOWN_ARCHIVES = 3  # of those that a message names
MAX_SEALING_THREADS = 2  # each holds a shard in memory

REASONS = {
    **corpus.REASONS,
    **score.REASONS,
    "not_4_4": "a time signature other than 4/4 is in force somewhere; `not_3_4` and so on, where "
    "another meter was asked for",
    "no_meter": "no time signature is stated",
    "no_bass": "no bass: no note of programs 32 to 39 from C1 to B7",
    "no_drums": "no drums: no note of the nine drum columns on channel 10",
    "no_loop": "no window keeps the loop rules",
    "timeout": f"reading the file took over {ITEM_TIMEOUT_S:g} s",
    "internal_error": "an error of midiloop's own; please report it, with the file",
    "crashed": "reading the file ended the process",
}


@dataclass(frozen=True)
class Settings:
    """What decides which loops are found.

    Attributes:
        rules: when a window is a loop.
        stride_bars: windows start at every so many bars.
        grid: of the loops; bars are those of its meter.
    """

    rules: Rules = rules.PRESETS["paper"]
    stride_bars: int = 1
    grid: Grid = LOOP


PAPER = Settings()

# Importing the parser takes as long as mining a hundred files: workers are copies of a process that
# has it. Arrow, which seals the dataset, is imported by the parent while they work.
WORKERS_NEED = ("midiloop.mining.extract", "symusic.core")


def loops(song: Score, settings: Settings = PAPER) -> list[Roll]:
    """All loops of one song, as bool rolls (steps, columns).

    >>> import midiloop, numpy as np
    >>> roll = np.zeros((256, 93), bool)  # 16 bars
    >>> roll[::4, [0, 6]] = roll[::2, 20:21] = True  # kick, crash, bass
    >>> len(midiloop.extract(midiloop.decode(roll)))  # at every bar that 8 bars begin with
    9

    Raises:
        MidiError: the song cannot have any; ``reason`` is one of `REASONS`.
    """
    grid = settings.grid
    players = {track.player for track in song.tracks}
    _check_usable(song.meters, song.length_ticks, players, settings)
    return [
        roll[start * grid.steps_per_bar :][: grid.steps]
        for _, roll, starts in _windows(song, settings)
        for start in starts.tolist()
    ]


def _check_usable(
    meters: Sequence[Meter],
    length_ticks: int | None,
    players: Collection[Player],
    settings: Settings,
) -> None:
    """Raise `MidiError` where a song of these meters and instruments has no loops."""
    if problem := rules.meter_problem(meters, length_ticks, settings.rules, settings.grid.meter):
        raise MidiError(*problem)
    by_name = settings.rules.bass_by_name
    if not any(pianoroll.is_encoded(p, by_name=by_name) for p in players if not p.is_drum):
        programs = sorted({player.program for player in players if not player.is_drum})
        raise MidiError("no_bass", f"programs {', '.join(map(str, programs)) or 'none'}")
    if not any(player.is_drum for player in players):
        raise MidiError("no_drums", "no note on channel 10")


def _windows(song: Score, settings: Settings) -> list[tuple[Run, Roll, NDArray[np.int64]]]:
    """Each run of bars, its roll, and the bars of it on which a loop starts.

    Raises:
        MidiError: there is no bass, or there are no drums, on any.
    """
    grid, by_name = settings.grid, settings.rules.bass_by_name
    found, used = [], np.zeros(grid.columns, np.bool_)
    tpq = song.ticks_per_quarter
    for run in rules.runs(song.meters, song.length_ticks, tpq, settings.rules, grid.meter):
        roll = pianoroll.encode(song, grid, by_name=by_name, span=run[:2])
        starts = rules.find(roll, settings.rules, stride_bars=settings.stride_bars, grid=grid)
        whole = grid.meter.bars(run.end_tick - run.start_tick, tpq)
        if run.end_tick < song.length_ticks:  # a bar that is cut short is none
            starts = starts[starts + grid.bars <= whole]
        used |= roll.any(axis=0)
        found.append((run, roll, starts))
    if not used[grid.n_drums :].any():
        raise MidiError("no_bass", "all bass notes are outside C1 to B7")
    if not used[: grid.n_drums].any():
        raise MidiError("no_drums", "no note on channel 10 belongs to the nine drum columns")
    return found


def mine(file: str, data: bytes, settings: Settings) -> SongRecord:
    """The loops of one file, as the dataset stores them.

    Raises:
        MidiError: there are none; ``reason`` is one of `REASONS`.
    """
    parsed, grid = score.parse(data), settings.grid
    # Half of all files end here: before their notes are turned into arrays.
    if problem := rules.meter_problem(parsed.meters, None, settings.rules, grid.meter):
        raise MidiError(*problem)
    parsed = parsed.merged(pianoroll.BASS_PROGRAMS)
    _check_usable(parsed.meters, None, parsed.instruments(), settings)
    song = parsed.score(partial(pianoroll.is_encoded, by_name=settings.rules.bass_by_name))
    if problem := rules.meter_problem(song.meters, song.length_ticks, settings.rules, grid.meter):
        raise MidiError(*problem)
    windows = _windows(song, settings)
    if not any(len(starts) for _, _, starts in windows):
        n_bars = [len(roll) // grid.steps_per_bar for _, roll, _ in windows]
        n_windows = sum(max(0, bars - grid.bars + 1) for bars in n_bars)
        raise MidiError("no_loop", f"none of {counted(n_windows, 'window')}")
    packed = [
        np.packbits(roll[start * grid.steps_per_bar :][: grid.steps].ravel())
        for _, roll, starts in windows
        for start in starts.tolist()
    ]
    return SongRecord(
        file,
        hashlib.md5(data, usedforsecurity=False).hexdigest(),
        np.concatenate([starts + run.first_bar for run, _, starts in windows]),
        np.concatenate([_median_tempos(song, run, starts, grid) for run, _, starts in windows]),
        np.concatenate([rules.bar_distances_cells(r, starts, grid) for _, r, starts in windows]),
        np.stack(packed),
        _played(song, windows, settings),
    )


def _played(
    song: Score, windows: list[tuple[Run, Roll, NDArray[np.int64]]], settings: Settings
) -> WindowPerformances:
    """How the loops of a song are played."""
    grid, by_name = settings.grid, settings.rules.bass_by_name
    found = [
        performance.of_windows(
            song, roll, starts * grid.steps_per_bar, grid, by_name=by_name, span=run[:2]
        )
        for run, roll, starts in windows
        if len(starts)
    ]
    return WindowPerformances(*map(np.concatenate, zip(*found, strict=True)))


def _median_tempos(
    song: Score, run: Run, starts: NDArray[np.int64], grid: Grid
) -> NDArray[np.float64]:
    """Median over the steps of each window of the tempo in force."""
    steps = starts[:, None] * grid.steps_per_bar + np.arange(grid.steps)
    ticks = steps * song.ticks_per_quarter // grid.steps_per_beat + run.start_tick
    return np.median(song.tempo_bpm_at(ticks), axis=1)


@dataclass(frozen=True)
class Batch:
    """Consecutive files of a corpus: the unit of work, of commitment and of resumption."""

    number: int
    items: tuple[Item, ...]

    def without(self, item: int, cause: str) -> Batch:
        """The same batch with one file ruled out, which ended or held up a worker."""
        ruled_out = self.items[item]._replace(data=None, problem=Problem(cause, REASONS[cause]))
        return replace(self, items=(*self.items[:item], ruled_out, *self.items[item + 1 :]))

    def digest(self) -> str:
        """What the batch holds, to recognise it by: a file that was written since is another."""
        digest = hashlib.blake2b(digest_size=16)
        for item in self.items:
            digest.update(f"{item.name}\0{item.size}\0{item.changed_ns}\n".encode())
        return digest.hexdigest()

    def part(self, folder: Path) -> Path:
        """Where its part is committed."""
        return folder / f"{self.number:07d}.part"


def batches(items: Iterator[Item]) -> Iterator[Batch]:
    """Cut a corpus into batches of at most `BATCH_FILES` files and about `BATCH_BYTES`."""
    number, batch, n_bytes = 0, list[Item](), 0
    for item in items:
        batch.append(item)
        n_bytes += item.size
        if len(batch) == BATCH_FILES or n_bytes >= BATCH_BYTES:
            yield Batch(number, tuple(batch))
            number, batch, n_bytes = number + 1, [], 0
    if batch:
        yield Batch(number, tuple(batch))


def mine_batch(batch: Batch, turn_to: TurnTo, *, settings: Settings, folder: Path) -> Counts:
    """Mine every file of a batch and commit its part; what a worker does."""
    songs, rejects = [], []
    for index, item in enumerate(batch.items):
        turn_to(index)
        try:
            if item.problem:
                raise MidiError(*item.problem)
            songs.append(mine(item.name, item.read(), settings))
        except MidiError as error:
            rejects.append(Reject(item.name, error.reason, error.detail))
        except Exception as error:  # a file we have no name for yet must not end the run
            detail = f"{type(error).__name__}: {error}"
            rejects.append(Reject(item.name, "internal_error", detail))
    turn_to(BETWEEN_ITEMS)
    partials.write(batch.part(folder), songs, rejects, batch.digest(), settings.grid)
    n_loops = sum(len(song.start_bars) for song in songs)
    return Counts(len(songs), n_loops, Counter(reject.reason for reject in rejects))


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        files, songs, loops: done so far; songs are those with a loop.
        rejects: files without a loop, by reason.
        resumed_files: of the files, those that an earlier run did.
        seen: share of the corpus's bytes that is done, 0 to 1.
    """

    files: int = 0
    songs: int = 0
    loops: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    resumed_files: int = 0
    seen: float = 0.0

    def add(self, batch: Batch, counts: Counts) -> None:
        """Count a batch that is done."""
        self.files += len(batch.items)
        self.songs += counts.songs
        self.loops += counts.loops
        self.rejects += counts.rejects
        self.seen = max(self.seen, batch.items[-1].seen)


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        manifest: of the dataset.
        broken_sources: rejects that stand for a whole archive, which was read in part only.
        lost: rejects whose file ended a worker, or held one up; ``resume`` tries them again.
    """

    manifest: dict[str, Any]
    broken_sources: list[Reject]
    lost: list[Reject]


def run(
    sources: Sequence[Path],
    out: Path,
    settings: Settings = PAPER,
    *,
    engine: Engine | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress, int], None] = lambda *_: None,
    item_timeout_s: float = ITEM_TIMEOUT_S,
) -> Result:
    """Mine every MIDI file of ``sources`` into the loop dataset ``out``.

    >>> import midiloop, numpy as np
    >>> from pathlib import Path
    >>> from midiloop.common.engine import Inline
    >>> roll = np.zeros((256, 93), bool)
    >>> roll[::4, [0, 6]] = roll[::2, 20:21] = True
    >>> midiloop.write(midiloop.decode(roll), "long.mid")
    >>> _ = midiloop.extract_corpus([Path("long.mid")], Path("loops"), engine=Inline())
    >>> len(midiloop.LoopDataset(Path("loops")))
    9

    Until the dataset is whole its parts lie in ``OUT.partial``; a run that was killed goes on from
    there with ``resume``. A whole dataset stays as it is, unless files were lost to workers that
    ended or stood still: then all is mined again.

    Args:
        engine: who mines; a process a usable core unless told otherwise.
        on_progress: called often, with what is done and the number of files in work beyond it.

    Raises:
        CallError: a source or ``out`` cannot be used.
        LoopError: there is no MIDI file.
        OSError: the disk is full or the like; what was committed stays for ``resume``.
    """
    corpus.check_sources(sources)
    provenance = _provenance(sources, settings)
    engine = engine or Processes()
    folder = out.with_name(out.name + ".partial")
    files.check_parent(out)
    if not files.is_text(out):  # Arrow would say so when all is mined
        raise CallError(f"{files.printable(out)}: a name that is not UTF-8; choose another")
    plan.check_ours(folder)
    earlier = _finished(out, provenance, resume) if out.exists() else None
    if earlier and not earlier.lost:
        if folder.exists():  # the run was killed as it removed it
            with files.locked(folder):
                plan.remove(folder)
        return earlier
    folder.mkdir(exist_ok=True)
    with files.locked(folder):
        if not earlier:  # again: another run may have ended before the lock was ours
            files.check_free(out)
        plan.open_partial(folder, provenance, resume=resume)
        manifest = _mine(sources, folder, settings, engine, resume, on_progress, item_timeout_s)
        files.put(folder / WHOLE, out, folder / "earlier" if earlier else None)
        plan.remove(folder)
    return _result(out, manifest)


def _mine(
    sources: Sequence[Path],
    folder: Path,
    settings: Settings,
    engine: Engine,
    resume: bool,
    on_progress: Callable[[Progress, int], None],
    item_timeout_s: float,
) -> dict[str, Any]:
    """Mine into the parts in ``folder``, make the dataset of them, and return its manifest."""
    progress, paths = Progress(), list[Path]()

    def todo() -> Iterator[Batch]:
        for batch in batches(corpus.walk(sources)):
            paths.append(batch.part(folder))
            if resume and (counts := _counts_of_part(paths[-1], batch)):
                progress.add(batch, counts)
                progress.resumed_files += len(batch.items)
            else:
                yield batch

    do = partial(mine_batch, settings=settings, folder=folder)
    work = Work(do, item_timeout_s, WORKERS_NEED)
    for batch, counts in engine.map(work, todo(), lambda in_work: on_progress(progress, in_work)):
        importlib.import_module("midiloop.mining.assemble")  # and Arrow: while the workers work
        progress.add(batch, counts)
        on_progress(progress, 0)
    if progress.files == sum(progress.rejects[reason] for reason in corpus.UNREAD_ARCHIVES):
        archives = [reject.file for path in paths for reject in partials.read(path, 0).rejects]
        plan.remove(folder)
        raise LoopError(_no_midi(sources, archives))
    threads = min(engine.n_workers, MAX_SEALING_THREADS)
    whole = folder / WHOLE
    if whole.parent.exists():  # of a run that was killed as it assembled the dataset
        shutil.rmtree(whole.parent)
    whole.parent.mkdir()
    provenance = _provenance(sources, settings)
    return _seal(paths, whole, provenance, progress, settings.grid, threads)


def _no_midi(sources: Sequence[Path], archives: Sequence[str]) -> str:
    """What to say where there is no MIDI file, but maybe archives that are not opened."""
    names = ", ".join(map(files.printable, sources))
    if not archives:
        return f"{names}: no MIDI file inside; they end in {', '.join(corpus.MIDI_SUFFIXES)}"
    shown = ", ".join(map(files.printable, archives[:SHOWN_ARCHIVES]))
    more = len(archives) - SHOWN_ARCHIVES
    rest = f" and {more:,} more" if more > 0 else ""
    return f"{names}: no MIDI file inside, but archives not opened: {shown}{rest}; unpack them"


def _seal(
    paths: list[Path],
    out: Path,
    provenance: dict[str, Any],
    progress: Progress,
    grid: Grid,
    threads: int,
) -> dict[str, Any]:
    from midiloop.mining.assemble import assemble

    counts = Counts(progress.songs, progress.loops, progress.rejects)
    return assemble(paths, out, provenance, counts, grid=grid, threads=threads)


def _counts_of_part(path: Path, batch: Batch) -> Counts | None:
    """What an earlier run committed for just this batch, or None."""
    if not path.exists():
        return None
    part = partials.read(path, 1)
    if part.digest != batch.digest() or any(reject.reason in LOST for reject in part.rejects):
        return None
    return part.counts()


def _provenance(sources: Sequence[Path], settings: Settings) -> dict[str, Any]:
    return {
        "midiloop_version": __version__,
        "sources": [source.name for source in sources],
        "rules": asdict(settings.rules) | {"first_step_drums": [*settings.rules.first_step_drums]},
        "stride_bars": settings.stride_bars,
        "grid": settings.grid.as_json(),
        "performance": {"offsets_per_step": OFFSETS_PER_STEP},
    }


def _finished(out: Path, provenance: dict[str, Any], resume: bool) -> Result:
    """The result of an earlier run that ended, where resuming means there is nothing to do."""
    if not resume:
        files.check_free(out)
    from midiloop.dataset.parquet import LoopDataset

    manifest = LoopDataset(out).manifest
    made_of = {key: manifest.get(key) for key in provenance}
    plan.check_made(out / "manifest.json", made_of, provenance)
    return _result(out, manifest)


def _result(out: Path, manifest: dict[str, Any]) -> Result:
    broken, lost = {"broken_archive", "archive_bomb"}, set(LOST)
    if (broken | lost).isdisjoint(manifest["counts"]["rejects"]):
        return Result(manifest, [], [])
    from midiloop.dataset.parquet import LoopDataset

    rejects = LoopDataset(out).rejects()
    of = [[reject for reject in rejects if reject.reason in kind] for kind in (broken, lost)]
    return Result(manifest, *of)
