"""Processes that compute together, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from paths import ROOT, TESTS


def run_together(script: str, folder: Path, *, timeout_s: float) -> str:
    """Run a script in two processes of a thread each, and return what both of them print.

    The script imports what tests can; ``folder`` is its argument, and where it is written to.
    """
    path = folder / "together.py"
    path.write_text(script)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    places = [str(TESTS / "support"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *launcher, str(path), str(folder)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
