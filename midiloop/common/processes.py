"""The engine of this machine: worker processes, and no more is lost than the item that kills one.

A worker that dies or stands still may not be to blame, nor its item: whoever looks for memory kills
any process. So the job is tried again, alone on the machine as far as this run goes, and only an
item that ends its worker there as well is left out. The module knows nothing of music.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from midiloop.common.engine import (
    BETWEEN_ITEMS,
    CRASHED,
    TIMEOUT,
    JobT,
    Result,
    TurnTo,
    Work,
    usable_cores,
)
from midiloop.errors import LoopError

POLL_S = 0.1
MAX_FAILURES = 3
# What ends a process from outside. It may have asked for too much memory, though.
FROM_OUTSIDE = {-getattr(signal, name, 0) for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")}
FORKSERVER = "forkserver" in multiprocessing.get_all_start_methods()

Function = Callable[[Any, TurnTo], Any]


def warm_up(modules: Sequence[str]) -> None:
    """Begin to import ``modules`` in a process that workers then start as copies of.

    It goes on beside what the caller does next, for example the same imports. Where processes
    cannot be copied, or there can be none, this does nothing.
    """
    if not FORKSERVER:
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload([*modules])
    with suppress(OSError):  # whoever needs a worker will meet it again
        resource_tracker.ensure_running()  # begun with the other, it would undo what follows
        with _uninterrupted():
            forkserver.ensure_running()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that begin here leave interrupts to their parent, even while they import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def beside(work: Callable[[], object], *, preload: Sequence[str] = ()) -> Iterator[None]:
    """Do ``work`` in a process of its own while the block runs, which ends when both have.

    Where there is no such process, or it fails, the work is done here after the block: so whatever
    it raises comes from here.

    Args:
        work: a function that a worker process can import, or a partial of one.
        preload: modules that it needs, see `warm_up`.
    """
    worker = None
    try:
        with suppress(OSError, LoopError):
            warm_up(preload)
            worker = _Worker(_tried)
            worker.begin(work)
        yield
        ended = worker and worker.result()
    finally:
        if worker:
            worker.stop()
    if not (ended and ended[1]):
        work()


def _tried(work: Callable[[], object], turn_to: TurnTo) -> bool:
    """Whether the work was done."""
    del turn_to
    try:
        work()
    except (ImportError, LoopError, OSError):
        return False
    return True


@dataclass(frozen=True)
class Processes:
    """So many worker processes; as many as there are usable cores unless told otherwise."""

    n_workers: int = field(default_factory=usable_cores)

    def map(
        self,
        work: Work[JobT, Result],
        jobs: Iterable[JobT],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Generator[tuple[JobT, Result], None, None]:
        """See `Engine`: at most ``n_workers`` jobs are drawn ahead.

        A worker that stays on one item for too long is killed. ``on_progress`` is called about ten
        times a second.
        """
        warm_up(work.modules)
        unseen = iter(jobs)
        crew: list[_Worker] = []
        waiting: deque[JobT] = deque()
        suspects: deque[_Suspect] = deque()  # jobs whose worker was lost, to be tried alone
        alone: _Suspect | None = None
        done: deque[tuple[JobT, Result]] = deque()
        more = True
        try:
            while True:
                busy = [worker for worker in crew if worker.job is not None]
                # Walking an archive takes time: do it while every worker has something to do.
                wanted = self.n_workers if len(busy) == self.n_workers else 1
                if more and len(waiting) < wanted:
                    job = next(unseen, None)
                    more = job is not None
                    waiting.extend([] if job is None else [job])
                if suspects and not busy:
                    alone = suspects.popleft()
                    _idle(crew, work.do).begin(alone.job)
                    continue
                if waiting and not suspects and not alone and len(busy) < self.n_workers:
                    _idle(crew, work.do).begin(waiting.popleft())
                    continue
                while done:  # only now, so that no worker waits for what the caller does with them
                    yield done.popleft()
                if not busy and not more:
                    return
                behind = more and len(waiting) < wanted
                ready = wait([worker.connection for worker in busy], 0 if behind else POLL_S)
                on_progress(sum(worker.items_done for worker in busy))
                for worker in busy:
                    ended = worker.result() if worker.connection in ready else None
                    if ended is not None:
                        done.append(ended)
                        alone = None
                    elif cause := worker.lost(work.item_timeout_s):
                        worker.stop()
                        suspects.append((alone or _Suspect(worker.job)).after(worker, cause))
                        alone = None
                        crew.remove(worker)
        finally:
            for worker in crew:
                worker.stop()


def _idle(crew: list[_Worker], do: Function) -> _Worker:
    """A worker with nothing to do; a new one joins the crew where all are busy."""
    for worker in [worker for worker in crew if worker.job is None]:
        if worker.process.is_alive():
            return worker
        worker.stop()
        crew.remove(worker)
    crew.append(_Worker(do))
    return crew[-1]


class _Suspect(NamedTuple):
    """A job that lost its worker, to be tried with nothing beside it.

    Attributes:
        item: the one it was on, last; `BETWEEN_ITEMS` where it was on none.
        times: it did so there, one after the other.
        left_out: items that are to blame.
    """

    job: Any
    item: int = BETWEEN_ITEMS
    times: int = 0
    left_out: frozenset[int] = frozenset()

    def after(self, worker: _Worker, cause: str) -> _Suspect:
        """What is to be tried, now that a worker was lost on it for ``cause``."""
        item, code = int(worker.at.value), worker.process.exitcode
        times = self.times + 1 if item == self.item else 1
        to_blame = item != BETWEEN_ITEMS and item not in self.left_out
        patience = MAX_FAILURES if code in FROM_OUTSIDE and cause == CRASHED else 2
        if to_blame and times >= patience:
            job = self.job.without(item, cause)
            return _Suspect(job, left_out=self.left_out | {item})
        if times > MAX_FAILURES:
            raise LoopError(
                f"worker processes end again and again (exit code {code}); "
                "free some memory, or run with fewer --workers"
            )
        return self._replace(item=item, times=times)


class _Worker:
    """The parent's side of one worker process."""

    def __init__(self, do: Function) -> None:
        context: Any = multiprocessing.get_context("forkserver" if FORKSERVER else "spawn")
        self.job: Any = None
        self.at = context.RawValue("i", BETWEEN_ITEMS)
        self.connection, child = context.Pipe()
        self.process = _started(context, child, self.at)
        child.close()
        # Not as the process begins: if this one is killed meanwhile, half of it is a traceback.
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: `lost` will say so
            self.connection.send(do)

    def begin(self, job: Any) -> None:
        self.job, self.at.value = job, BETWEEN_ITEMS
        self.stands_since, self.stands_at, self.looked = 0.0, BETWEEN_ITEMS, time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: `lost` will say so
            self.connection.send(job)

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
        job, self.job = self.job, None
        return job, outcome

    def lost(self, item_timeout_s: float) -> str | None:
        """Why the worker will not end its job, or None."""
        if not self.process.is_alive():
            return CRASHED
        # Only time in which this process ran too counts: a suspended laptop is not a hang.
        now, at = time.monotonic(), self.at.value
        awake_s, self.looked = min(now - self.looked, 10 * POLL_S), now
        if at != self.stands_at or at == BETWEEN_ITEMS:
            self.stands_at, self.stands_since = at, 0.0
        self.stands_since += awake_s
        return TIMEOUT if self.stands_since > item_timeout_s else None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _started(context: Any, child: Connection, at: Any) -> Any:
    """A process that serves; one that is killed as it begins is begun again."""
    for _ in range(MAX_FAILURES):
        process = context.Process(target=_serve, args=(child, at), daemon=True)
        with suppress(BrokenPipeError, ConnectionResetError, EOFError), _main_hidden():
            process.start()
            return process
    raise LoopError("worker processes end as they begin; free some memory, and run it again")


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep new processes from running the caller's script again: no work is defined there.

    So a script needs no ``if __name__ == "__main__"`` around what starts workers.
    """
    main = sys.modules["__main__"]
    hidden = {name: main.__dict__.pop(name, None) for name in ("__file__", "__spec__")}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update({name: value for name, value in hidden.items() if value is not None})


def _serve(connection: Connection, at: Any) -> None:
    """A worker's life: take the function, then a job, send its result, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means

    def turn_to(item: int) -> None:
        at.value = item

    do: Function | None = None
    while True:
        try:
            do = do or connection.recv()
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            outcome = do(job, turn_to)
        except OSError as error:
            outcome = error
        except MemoryError:  # as where the kernel ends it; a traceback would tell nobody anything
            os._exit(1)
        at.value = BETWEEN_ITEMS
        try:
            connection.send(outcome)
        except (BrokenPipeError, ConnectionResetError):
            return
