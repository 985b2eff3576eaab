from __future__ import annotations

import errno
import multiprocessing.process
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from midiloop.common import processes
from midiloop.common.engine import Engine, Inline, Work, usable_cores
from midiloop.common.processes import Processes
from midiloop.errors import LoopError


@dataclass(frozen=True)
class Numbers:
    """A job of numbers to double. Negative ones stand for what goes wrong."""

    number: int
    items: tuple[int, ...]
    lost: tuple[str, ...] = ()
    notes: Path = Path("none")

    def without(self, item: int, cause: str) -> Numbers:
        items = (*self.items[:item], 0, *self.items[item + 1 :])
        return replace(self, items=items, lost=(*self.lost, f"{item} {cause}"))


SEGFAULT, HANG, KILLED, FULL_DISK, DEADLY, NO_MEMORY = -1, -2, -3, -4, -5, -6


def double(job: Numbers, turn_to: Callable[[int], None]) -> list[int]:
    for at, item in enumerate(job.items):
        turn_to(at)
        if item == SEGFAULT:
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == HANG:
            time.sleep(60)
        if item == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if item == NO_MEMORY:
            raise MemoryError
        if item == FULL_DISK:
            raise OSError(errno.ENOSPC, "No space left on device", "disk")
    if DEADLY in job.items[:1] and len(job.items) == 2:
        os._exit(7)
    return [2 * item for item in job.items]


def die_at_once(job: Numbers, turn_to: Callable[[int], None]) -> None:
    os._exit(3)


def run(
    jobs: list[Numbers], n_workers: int, timeout_s: float = 5
) -> dict[int, tuple[list[int], tuple[str, ...]]]:
    done = Processes(n_workers).map(Work(double, timeout_s), jobs)
    return {job.number: (result, job.lost) for job, result in done}


@pytest.mark.parametrize("engine", [Inline(), Processes(1), Processes(2), Processes(5)])
def test_every_job_is_done_once_by_any_engine(engine: Engine) -> None:
    jobs = [Numbers(n, (n, n + 1)) for n in range(23)]
    done = list(engine.map(Work(double, 5), iter(jobs)))
    assert sorted(job.number for job, _ in done) == [*range(23)]
    assert all(result == [2 * job.number, 2 * job.number + 2] for job, result in done)


@pytest.mark.parametrize("engine", [Inline(), Processes(2)])
def test_items_that_are_done_are_counted(engine: Engine) -> None:
    seen: list[int] = []
    assert len(list(engine.map(Work(double, 5), [Numbers(0, (1, 2, 3))], seen.append))) == 1
    assert seen
    assert {*seen} <= {0, 1, 2, 3}


@pytest.mark.parametrize("engine", [Inline(), Processes(2)])
def test_whoever_closes_the_map_ends_the_work(engine: Engine) -> None:
    began = engine.map(Work(double, 5), [Numbers(0, (1,)), Numbers(1, (HANG,))])
    assert next(began)[1] == [2]
    began.close()
    assert list(began) == []


def test_no_jobs_end_at_once() -> None:
    assert run([], 2) == {}


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_worker_that_dies_costs_the_item_it_was_on(n_workers: int) -> None:
    jobs = [Numbers(0, (1, SEGFAULT, 3, KILLED)), Numbers(1, (5,)), Numbers(2, (KILLED,))]
    assert run(jobs, n_workers) == {
        0: ([2, 0, 6, 0], ("1 crashed", "3 crashed")),
        1: ([10], ()),
        2: ([0], ("0 crashed",)),
    }


def once(folder: Path, how: int, job: Numbers, turn_to: Callable[[int], None]) -> list[int]:
    """As `double`, but something ends the process on the second item, one time only."""
    for at, _ in enumerate(job.items):
        turn_to(at)
        if at == 1 and not (folder / str(job.number)).exists():
            (folder / str(job.number)).touch()
            os.kill(os.getpid(), how)
    return [2 * item for item in job.items]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
@pytest.mark.parametrize("n_workers", [1, 3])
def test_what_befell_a_worker_once_is_no_item_s_fault(
    how: signal.Signals, n_workers: int, tmp_path: Path
) -> None:
    jobs = [Numbers(n, (n, n, n)) for n in range(7)]
    done = Processes(n_workers).map(Work(partial(once, tmp_path, how), 5), jobs)
    assert {job.number: (result, job.lost) for job, result in done} == {
        n: ([2 * n] * 3, ()) for n in range(7)
    }


def test_an_item_that_lacks_memory_is_lost_without_a_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run([Numbers(0, (1, NO_MEMORY, 3))], 2) == {0: ([2, 0, 6], ("1 crashed",))}
    assert capfd.readouterr().err == ""


def count_others(job: Numbers, turn_to: Callable[[int], None]) -> int:
    """How many other jobs are in work; the first try of a job that falls ends its process."""
    turn_to(0)
    mine, fallen = job.notes / f"at work {job.number}", job.notes / f"fallen {job.number}"
    mine.touch()
    time.sleep(0.05)
    others = len(list(job.notes.glob("at work *"))) - 1
    mine.unlink()
    if job.items[0] == SEGFAULT and not fallen.exists():
        fallen.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return others


def test_what_ended_a_worker_is_tried_while_no_other_works(tmp_path: Path) -> None:
    """Else one that takes all the memory would cost its neighbours their items."""
    jobs = [Numbers(n, (SEGFAULT if n in (3, 4, 9) else n,), (), tmp_path) for n in range(16)]
    done = Processes(3).map(Work(count_others, 5), jobs)
    others = {job.number: n for job, n in done}
    assert [others[n] for n in (3, 4, 9)] == [0, 0, 0]
    assert max(others.values()) > 0
    assert len(others) == 16


def test_an_item_that_hangs_is_cut_off() -> None:
    done = run([Numbers(0, (1, HANG, 3)), Numbers(1, (4,))], 2, timeout_s=0.5)
    assert done == {0: ([2, 0, 6], ("1 timeout",)), 1: ([8], ())}


def test_large_jobs_and_results_pass_while_others_wait() -> None:
    jobs = [Numbers(n, tuple(range(300_000))) for n in range(6)]
    assert {n: len(result) for n, (result, _) in run(jobs, 2).items()} == dict.fromkeys(
        range(6), 300_000
    )


def test_a_job_that_kills_every_worker_ends_the_run() -> None:
    with pytest.raises(LoopError, match=r"again and again \(exit code 7\)"):
        run([Numbers(0, (DEADLY, 1))], 2)


def test_jobs_are_drawn_as_they_are_needed() -> None:
    drawn = 0

    def endless() -> Iterator[Numbers]:
        nonlocal drawn
        while True:
            drawn += 1
            yield Numbers(drawn, (drawn,))

    done = Processes(2).map(Work(double, 5), endless())
    for ended, _ in enumerate(done, 1):
        assert drawn <= ended + 5
        if ended == 50:
            break


def test_what_the_work_raises_reaches_the_caller() -> None:
    with pytest.raises(OSError, match="No space left on device"):
        run([Numbers(0, (1, FULL_DISK))], 1)


def test_workers_that_cannot_begin_end_the_run() -> None:
    with pytest.raises(LoopError, match=r"end again and again \(exit code 3\)"):
        list(Processes(1).map(Work(die_at_once, 5), [Numbers(0, ())]))


def test_no_process_is_left_behind() -> None:
    import psutil

    run([], 2)  # starts the process that workers are copies of, which stays
    before = psutil.Process().children(recursive=True)
    run([Numbers(0, (1, SEGFAULT)), Numbers(1, (2,))], 2)
    after = psutil.Process().children(recursive=True)
    left = [p for p in after if p not in before and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []


def test_usable_cores_are_those_of_this_process() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert Processes().n_workers == usable_cores()
    assert Path(__file__).exists()


def test_a_worker_that_is_killed_as_it_begins_is_begun_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = 0
    start = multiprocessing.process.BaseProcess.start

    def killed(process: multiprocessing.process.BaseProcess) -> None:
        nonlocal begun
        begun += 1
        if begun in (1, 4):
            raise BrokenPipeError
        start(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", killed)
    assert run([Numbers(n, (n,)) for n in range(9)], 3) == {n: ([2 * n], ()) for n in range(9)}


def note_process(path: Path) -> None:
    path.write_text(str(os.getpid()))


def note_process_or_die(path: Path, parent: int) -> None:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    note_process(path)


def no_module(path: Path) -> None:
    raise ImportError("as where a library is broken")


def test_work_beside_a_block_is_another_process_s(tmp_path: Path) -> None:
    with processes.beside(partial(note_process, tmp_path / "pid")):
        pass
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def test_work_that_lost_its_process_is_done_here(tmp_path: Path) -> None:
    with processes.beside(partial(note_process_or_die, tmp_path / "pid", os.getpid())):
        pass
    assert int((tmp_path / "pid").read_text()) == os.getpid()


def test_work_that_finds_no_process_is_done_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(processes, "_started", no_process)
    with processes.beside(partial(note_process, tmp_path / "pid")):
        pass
    assert int((tmp_path / "pid").read_text()) == os.getpid()


def test_work_that_fails_fails_here_and_says_it_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(ImportError, match="broken"),
        processes.beside(partial(no_module, tmp_path)),
    ):
        pass
    assert capfd.readouterr().err == ""


def test_a_block_that_fails_ends_the_work_beside_it() -> None:
    import psutil

    run([], 1)  # starts the process that workers are copies of, which stays
    before = psutil.Process().children(recursive=True)
    with pytest.raises(ValueError, match="block"), processes.beside(partial(time.sleep, 60)):
        raise ValueError("the block's own")
    after = psutil.Process().children(recursive=True)
    left = [p for p in after if p not in before and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []


LOAD = """
import time
from midiloop.common import processes
processes.warm_up(['slow'])
time.sleep(60)
"""


@pytest.mark.skipif(not processes.FORKSERVER, reason="processes cannot be copied here")
def test_an_interrupt_while_modules_load_is_the_caller_s_alone(tmp_path: Path) -> None:
    """It reaches all processes of a terminal, and one traceback is enough."""
    (tmp_path / "slow.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'begun')!r}).touch()\ntime.sleep(2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate()[1].count("Traceback") == 1
