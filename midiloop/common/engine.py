"""Who runs a map: whatever has many things to do is given an engine, which does them somewhere.

An engine needs little of what it runs. `Work` is a function of a module, or a partial of one; jobs
and results can be pickled; a job can be done again, and again without one of its items. What is
large is left in files, by names that depend on the job alone, so that it is no matter where and how
often a job is done: results are the same bytes for any engine. `Inline` is the shortest,
`midiloop.common.processes.Processes` the usual one; one of a cluster needs no more than they do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

BETWEEN_ITEMS = -1
CRASHED, TIMEOUT = "crashed", "timeout"

Result = TypeVar("Result")
JobT = TypeVar("JobT", bound="Job")
TurnTo = Callable[[int], None]  # called with the index of each item that is turned to


class Job(Protocol):
    """Work on several items, which can be done again without one of them."""

    def without(self: JobT, item: int, cause: str) -> JobT:
        """The same job with ``item`` ruled out; ``cause`` is `CRASHED` or `TIMEOUT`."""


@dataclass(frozen=True)
class Work(Generic[JobT, Result]):
    """What is done with each job.

    Attributes:
        do: does a job and returns its result; it names each item before it works on it, so that
            what ends or holds up a worker costs that item, and `BETWEEN_ITEMS` after the last. It
            raises nothing but `OSError` and `MemoryError`: a job that fails returns why.
        item_timeout_s: how long an item may take, where an engine can tell.
        modules: what ``do`` imports, for engines that can import it before they begin.
    """

    do: Callable[[JobT, TurnTo], Result]
    item_timeout_s: float
    modules: tuple[str, ...] = ()


class Engine(Protocol):
    """Does work, job by job, on this machine or others."""

    @property
    def n_workers(self) -> int:
        """How many jobs are in work at one time."""

    def map(
        self,
        work: Work[JobT, Result],
        jobs: Iterable[JobT],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Generator[tuple[JobT, Result], None, None]:
        """Yield every job with its result, in the order in which they end.

        An item that ends its worker, or takes too long, is ruled out: then the job that is yielded
        is the one without it. Whoever closes the generator ends the work.

        Args:
            jobs: drawn as they are needed, as the result of a long search may be.
            on_progress: called now and then with how many items are done of the jobs in work.

        Raises:
            LoopError: workers are lost without an item to blame.
            OSError: whatever the work raised, as the work raised it.
        """


@dataclass(frozen=True)
class Inline:
    """No process but the caller's, one job after the other: for tests, notebooks and debuggers.

    What would end a worker ends the caller, and nothing is held to a time.
    """

    @property
    def n_workers(self) -> int:
        """One job at a time."""
        return 1

    def map(
        self,
        work: Work[JobT, Result],
        jobs: Iterable[JobT],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Generator[tuple[JobT, Result], None, None]:
        """See `Engine`."""
        for job in jobs:
            yield job, work.do(job, lambda item: on_progress(max(0, item)))


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
