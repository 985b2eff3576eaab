"""An engine as unlike that of this machine as one may be."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable

from midiloop.common.engine import JobT, Result, Work


class Elsewhere:
    """As on other machines: all is pickled, each job is done twice, and the last ends first."""

    n_workers = 3

    def map(
        self,
        work: Work[JobT, Result],
        jobs: Iterable[JobT],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Generator[tuple[JobT, Result], None, None]:
        """See `Engine`."""
        for job in reversed(list(jobs)):
            for _ in range(2):
                do, sent = pickle.loads(pickle.dumps((work.do, job)))
                result = do(sent, on_progress)
            yield pickle.loads(pickle.dumps((job, result)))
