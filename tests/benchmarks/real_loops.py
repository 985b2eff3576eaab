"""Whether the verdicts on seams are true of 40 loops that others made.

    python tests/benchmarks/real_loops.py FOLDER

The loops are those of Debian's packages sonic-pi-samples and lmms-common, which are downloaded and
unpacked into the folder where they are not there yet. The table says of each whether its seam can
be heard, decided by looking at its last and first 12 ms and at what healing the step takes away
from the spectrum there; and how large the step is, in full scale: the largest difference of last
and first sample over the channels. The step is measured here again, without the code that judges.
It exits with 1 where a file, `check` or `seam` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import soundfile
from click.testing import CliRunner

from midiloop_cli import check as check_command
from midiloop_cli import seam as seam_command

PACKAGES = ("sonic-pi-samples", "lmms-common")
SONIC_PI = "usr/share/sonic-pi/samples"
BEATS, BASSES = "usr/share/lmms/samples/beats", "usr/share/lmms/samples/bassloops"


class Truth(NamedTuple):
    """Of one loop: whether its seam can be heard, the step there, and why where one may ask."""

    bad: bool
    step: float
    why: str = ""


TRUTHS = {
    f"{SONIC_PI}/loop_3d_printer.flac": Truth(False, 0.0229, "a step like its neighbours"),
    f"{SONIC_PI}/loop_amen.flac": Truth(False, 0.0),
    f"{SONIC_PI}/loop_amen_full.flac": Truth(False, 0.0),
    f"{SONIC_PI}/loop_breakbeat.flac": Truth(False, 0.0018),
    f"{SONIC_PI}/loop_compus.flac": Truth(False, 0.0002),
    f"{SONIC_PI}/loop_drone_g_97.flac": Truth(True, 0.1554, "faded out, and begins within a wave"),
    f"{SONIC_PI}/loop_electric.flac": Truth(True, 0.1095, "a note is cut off, silence follows"),
    f"{SONIC_PI}/loop_garzul.flac": Truth(False, 0.0002, "ends in silence"),
    f"{SONIC_PI}/loop_industrial.flac": Truth(False, 0.0060),
    f"{SONIC_PI}/loop_mehackit1.flac": Truth(False, 0.0013, "a quiet tail"),
    f"{SONIC_PI}/loop_mehackit2.flac": Truth(False, 0.0109, "7 ms before a hit of 60 times that"),
    f"{SONIC_PI}/loop_mika.flac": Truth(False, 0.0002),
    f"{SONIC_PI}/loop_perc1.flac": Truth(False, 0.0001),
    f"{SONIC_PI}/loop_perc2.flac": Truth(True, 0.0444, "cut off; healed, 26 dB less above 6 kHz"),
    f"{SONIC_PI}/loop_safari.flac": Truth(True, 0.0208, "cut off; healed, 17 dB less above 4 kHz"),
    f"{SONIC_PI}/loop_tabla.flac": Truth(False, 0.0007, "a quiet tail"),
    f"{SONIC_PI}/loop_weirdo.flac": Truth(False, 0.0051),
    f"{BEATS}/909beat01.ogg": Truth(False, 0.0010, "silence, then the kick begins"),
    f"{BEATS}/break01.ogg": Truth(True, 0.1878, "a slow wave is cut; healed, 10 dB less at 1 kHz"),
    f"{BEATS}/break02.ogg": Truth(True, 0.1739, "cut; healed, 11 dB less at 1 kHz"),
    f"{BEATS}/break03.ogg": Truth(False, 0.0037),
    f"{BEATS}/electro_beat01.ogg": Truth(False, 0.2398, "the snare's first sample, one of many"),
    f"{BEATS}/electro_beat02.ogg": Truth(False, 0.0087),
    f"{BEATS}/house_loop01.ogg": Truth(False, 0.0185, "a step like its neighbours"),
    f"{BEATS}/jungle01.ogg": Truth(False, 0.0013),
    f"{BEATS}/rave_hihat01.ogg": Truth(False, 0.0052),
    f"{BEATS}/rave_hihat02.ogg": Truth(False, 0.0001),
    f"{BEATS}/rave_kick01.ogg": Truth(False, 0.0237, "the kick begins, 30 times as loud in 2 ms"),
    f"{BEATS}/rave_kick02.ogg": Truth(False, 0.0052, "the kick begins"),
    f"{BEATS}/rave_snare01.ogg": Truth(False, 0.0044),
    f"{BASSES}/briff01.ogg": Truth(False, 0.0013),
    f"{BASSES}/rave_bass01.ogg": Truth(False, 0.0022),
    f"{BASSES}/rave_bass02.ogg": Truth(False, 0.0100, "a step like its neighbours"),
    f"{BASSES}/tb303_01.ogg": Truth(False, 0.0153, "healed, nothing less above 1 kHz"),
    f"{BASSES}/techno_bass01.ogg": Truth(False, 0.0001),
    f"{BASSES}/techno_bass02.ogg": Truth(False, 0.0006),
    f"{BASSES}/techno_synth01.ogg": Truth(True, 0.0509, "a saw is cut off, silence follows"),
    f"{BASSES}/techno_synth02.ogg": Truth(False, 0.0069),
    f"{BASSES}/techno_synth03.ogg": Truth(True, 0.1459, "cut off, silence follows"),
    f"{BASSES}/techno_synth04.ogg": Truth(True, 0.3424, "cut at the top of a wave"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the packages are, or will be, unpacked")
    folder = parser.parse_args().folder
    if not all((folder / path).is_file() for path in TRUTHS):
        download(folder)
    paths = [folder / path for path in TRUTHS]
    by_seam = {row["file"]: row["bad"] for row in said(seam_command.seam, paths)}
    by_check = {
        row["file"]: any(found["what"] == "seam" for found in row["disagrees"])
        for row in said(check_command.check, paths)
    }
    wrong = 0
    print(f"{'step':>8}{'truth':>7}{'check':>7}{'seam':>7}  loop")
    for path, truth in zip(paths, TRUTHS.values(), strict=True):
        found = step(path)
        right = by_check[str(path)] == by_seam[str(path)] == truth.bad
        right &= abs(found - truth.step) < 1e-4
        wrong += not right
        words = [word(truth.bad), word(by_check[str(path)]), word(by_seam[str(path)])]
        columns = "".join(f"{one:>7}" for one in words)
        print(f"{found:8.4f}{columns}  {path.name}  {truth.why}{'' if right else '  <- WRONG'}")
    print(f"{len(paths)} loops, {wrong} verdicts that the samples contradict")
    sys.exit(1 if wrong else 0)


def download(folder: Path) -> None:
    """Unpack the packages into the folder; nothing is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "-qq", "download", *PACKAGES], cwd=folder, check=True)
    for package in PACKAGES:
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
        archive.unlink()


def step(path: Path) -> float:
    """The largest difference of the last and the first sample, in full scale."""
    samples, _ = soundfile.read(path, always_2d=True)
    return float(np.abs(samples[0] - samples[-1]).max())


def said(command: click.Command, paths: list[Path]) -> list[dict[str, Any]]:
    done = CliRunner().invoke(command, [*map(str, paths), "--json"])
    rows: list[dict[str, Any]] = json.loads(done.stdout)["files"]
    return rows


def word(bad: bool) -> str:
    return "bad" if bad else "fine"


if __name__ == "__main__":
    main()
