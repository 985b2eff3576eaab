"""Run jobs of many items in worker processes, and lose no more than the item that kills one.

A worker that dies or stands still costs time at first: its job starts again in a new process, while
no other is at work. An item that ends that one too is ruled out, and the job starts without it. The
module knows nothing of music.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from midiloop.errors import LoopError

POLL_S = 0.1
BETWEEN_ITEMS = -1
# An item is ruled out at so many points: two ends of a process by itself, or four by a signal from
# outside, as the kernel sends it where memory runs out. 255: the process that saw it end is gone.
MAX_POINTS = 4
OUTSIDE = (-9, -15, 255)
FORKSERVER = "forkserver" in multiprocessing.get_all_start_methods()

Result = TypeVar("Result")
JobT = TypeVar("JobT", bound="Job")


class Job(Protocol):
    """Work on several items, which can be done again without one of them."""

    def without(self: JobT, item: int, cause: str) -> JobT:
        """The same job with ``item`` ruled out; ``cause`` is "crashed", "timeout" or "killed"."""


# What a worker runs: the job, and a function to call with the index of each item it turns to.
Task = Callable[[Any, Callable[[int], None]], Result]


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def warm_up(modules: Sequence[str]) -> None:
    """Begin to import ``modules`` in a process that workers then start as copies of.

    It goes on beside what the caller does next, for example the same imports. Where processes
    cannot be copied this does nothing.
    """
    if FORKSERVER:
        multiprocessing.get_context("forkserver").set_forkserver_preload([*modules])
        forkserver.ensure_running()


def run(
    task: Task[Result],
    jobs: Iterator[JobT],
    *,
    preload: Sequence[str] = (),
    workers: int,
    item_timeout_s: float,
    on_tick: Callable[[int], None],
) -> Iterator[tuple[JobT, Result]]:
    """Run ``task`` on every job, and yield each with its result as they end.

    Args:
        task: a function that a worker process can import, or a partial of one.
        jobs: drawn as workers need them, ``workers`` ahead at most.
        preload: modules that the task needs, see `warm_up`.
        item_timeout_s: a worker that stays on one item for longer is killed.
        on_tick: called about ten times a second with the number of items in work that are done.

    Raises:
        LoopError: workers die without an item to blame.
        OSError: whatever the task raised, as the task raised it.
    """
    warm_up(preload)
    crew: list[_Worker] = []
    waiting: deque[_Attempt] = deque()
    done: deque[tuple[JobT, Result]] = deque()
    more = True
    try:
        while True:
            busy = [worker for worker in crew if worker.attempt is not None]
            # What has ended a worker is tried alone, when the others are done.
            alone = any(one.points for one in (*waiting, *(w.attempt for w in crew)) if one)
            # Walking an archive takes time: do it while every worker has something to do.
            wanted = workers if len(busy) == workers else 1
            if more and len(waiting) < wanted:
                job = next(jobs, None)
                more = job is not None
                waiting.extend([] if job is None else [_Attempt(job)])
            if waiting and len(busy) < (1 if alone else workers):
                _idle(crew, task).begin(waiting.popleft())
                continue
            while done:  # only now, so that no worker waits for what the caller does with them
                yield done.popleft()
            if not busy and not more:
                return
            behind = more and len(waiting) < wanted
            ready = wait([worker.connection for worker in busy], 0 if behind else POLL_S)
            on_tick(sum(worker.items_done for worker in busy))
            for worker in busy:
                ended = worker.result() if worker.connection in ready else None
                if ended is not None:
                    done.append(ended)
                elif cause := worker.lost(item_timeout_s):
                    waiting.appendleft(worker.given_back(cause))
                    crew[crew.index(worker)] = _Worker(task)
    finally:
        for worker in crew:
            worker.stop()


@dataclass
class _Attempt:
    """A job, and what it has cost so far.

    Attributes:
        points: by item, see `MAX_POINTS`; `BETWEEN_ITEMS` stands for none and for those ruled out.
    """

    job: Any
    points: Counter[int] = field(default_factory=Counter)
    ruled_out: set[int] = field(default_factory=set)

    def failed(self, item: int, cause: str, code: int | None) -> None:
        """Count the end of a worker that was on ``item``, and rule the item out where it is due."""
        item = BETWEEN_ITEMS if item in self.ruled_out else item
        outside = cause == "crashed" and code in OUTSIDE
        self.points[item] += 1 if outside else 2
        if self.points[item] < MAX_POINTS:
            return
        if item == BETWEEN_ITEMS:
            raise LoopError(
                f"worker processes end again and again (exit code {code}); "
                "free some memory, or run with fewer --workers"
            )
        self.job = self.job.without(item, "killed" if outside else cause)
        self.ruled_out.add(item)
        self.points.clear()


def _idle(crew: list[_Worker], task: Task[Any]) -> _Worker:
    """A worker with nothing to do; a new one joins the crew where all are busy."""
    for worker in [worker for worker in crew if worker.attempt is None]:
        if worker.process.is_alive():
            return worker
        worker.stop()
        crew.remove(worker)
    crew.append(_Worker(task))
    return crew[-1]


class _Worker:
    """The parent's side of one worker process."""

    def __init__(self, task: Task[Any]) -> None:
        context: Any = multiprocessing.get_context("forkserver" if FORKSERVER else "spawn")
        self.attempt: _Attempt | None = None
        self.at = context.RawValue("i", BETWEEN_ITEMS)
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(task, child, self.at), daemon=True)
        with _main_hidden():
            self.process.start()
        child.close()

    def begin(self, attempt: _Attempt) -> None:
        self.attempt, self.at.value = attempt, BETWEEN_ITEMS
        self.stands_since, self.stands_at, self.looked = 0.0, BETWEEN_ITEMS, time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: `lost` will say so
            self.connection.send(attempt.job)

    @property
    def items_done(self) -> int:
        return max(0, int(self.at.value))

    def result(self) -> tuple[Any, Any] | None:
        """The job and its result; None where the worker died instead of sending one."""
        try:
            outcome = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(1)
            return None
        if isinstance(outcome, BaseException):
            raise outcome
        assert self.attempt is not None
        job, self.attempt = self.attempt.job, None
        return job, outcome

    def lost(self, item_timeout_s: float) -> str | None:
        """Why the worker will not end its job, or None."""
        if not self.process.is_alive():
            return "crashed"
        # Only time in which this process ran too counts: a suspended laptop is not a hang.
        now, at = time.monotonic(), self.at.value
        awake_s, self.looked = min(now - self.looked, 10 * POLL_S), now
        if at != self.stands_at or at == BETWEEN_ITEMS:
            self.stands_at, self.stands_since = at, 0.0
        self.stands_since += awake_s
        return "timeout" if self.stands_since > item_timeout_s else None

    def given_back(self, cause: str) -> _Attempt:
        """What is to be tried again, after this worker was lost."""
        self.stop()
        assert self.attempt is not None
        self.attempt.failed(int(self.at.value), cause, self.process.exitcode)
        return self.attempt

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep new processes from running the caller's script again: no task is defined there.

    So a script needs no ``if __name__ == "__main__"`` around what starts workers.
    """
    main = sys.modules["__main__"]
    hidden = {name: main.__dict__.pop(name, None) for name in ("__file__", "__spec__")}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update({name: value for name, value in hidden.items() if value is not None})


def _serve(task: Task[Any], connection: Connection, at: Any) -> None:
    """A worker's life: take a job, send its result, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means

    def turn_to(item: int) -> None:
        at.value = item

    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            outcome = task(job, turn_to)
        except OSError as error:
            outcome = error
        except MemoryError:  # as where the kernel ends it; a traceback would tell nobody anything
            os._exit(1)
        at.value = BETWEEN_ITEMS
        try:
            connection.send(outcome)
        except (BrokenPipeError, ConnectionResetError):
            return
