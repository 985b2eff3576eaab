"""An engine as unlike that of this machine as one may be."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable

from midiloop.common.engine import JobT, Result, Task


class Elsewhere:
    """As on other machines: all is pickled, each job is done twice, and the last ends first."""

    n_workers = 3

    def map(
        self,
        task: Task[JobT, Result],
        jobs: Iterable[JobT],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Generator[tuple[JobT, Result], None, None]:
        """See `Engine`."""
        for job in reversed(list(jobs)):
            for _ in range(2):
                work, sent = pickle.loads(pickle.dumps((task.work, job)))
                result = work(sent, on_progress)
            yield pickle.loads(pickle.dumps((job, result)))
