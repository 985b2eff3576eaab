"""All that is known of a loop's seam: its figures, whether it can be heard, how unlikely it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from audioloop.io import metadata
from audioloop.io.label import Names, legal
from audioloop.io.sources import errors_named
from audioloop.io.wave import Wave
from audioloop.signal import seam, verdict
from audioloop.signal.seam import Seam
from audioloop.signal.verdict import Verdict
from midiloop.common.files import printable
from midiloop.errors import LoopError

if TYPE_CHECKING:
    from audioloop.codec.compression import CompressionModel
    from audioloop.evaluation.perplexity import LanguageModel, SeamPerplexity


class Scorer(NamedTuple):
    """What perplexity is measured with: a codec, and a model that knows its tokens."""

    codec: CompressionModel
    model: LanguageModel

    def perplexity(self, wave: Wave, bars: int | None) -> SeamPerplexity:
        """Of one loop, see `perplexity.of_wave`."""
        from audioloop.evaluation import perplexity

        return perplexity.of_wave(wave, self.codec, self.model, bars)


@dataclass(frozen=True)
class SeamReport:
    """What is known of a seam.

    Attributes:
        seam: its figures, beside bar lines and controls.
        verdict: whether it can be heard.
        perplexity: None where no scorer was given.
    """

    seam: Seam
    verdict: Verdict
    perplexity: SeamPerplexity | None = None

    @property
    def excess(self) -> float:
        """The larger excess of jump and residual of a seam that can be heard, else 0."""
        return verdict.excess(self.seam, self.verdict)

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        expected = self.perplexity.as_json() if self.perplexity else {}
        judged = {"bad": self.verdict.bad, "step": self.verdict.step}
        return {**judged, **self.seam.as_json(), **expected}


def seam_report(
    wave: Wave, bars: int | None = None, *, seed: int = 0, scorer: Scorer | None = None
) -> SeamReport:
    """Measure the seam of a loop: the join of its last sample and its first.

    >>> import audioloop, numpy as np
    >>> roll = np.zeros((16, 93), bool)
    >>> roll[::4, 0] = True
    >>> loop = audioloop.render(roll, bpm=120).mix
    >>> audioloop.seam_report(loop).verdict.bad
    False
    >>> cut = audioloop.Wave(loop.samples[:, :70_000], loop.rate)
    >>> len(audioloop.seam_report(cut).seam.controls)
    4

    Args:
        bars: of equal length, that the loop has; None where they are not known.
        seed: of the places of the controls.
        scorer: measures perplexity as well.

    Raises:
        CallError: there are no so many bars in it.
        LoopError: it is too short or silent, or has samples that are no numbers.
    """
    found = seam.measure(wave, bars=bars, rng=np.random.default_rng(seed))
    expected = scorer.perplexity(wave, bars) if scorer else None
    return SeamReport(found, verdict.of(wave, bars), expected)


class FileReport(NamedTuple):
    """A file and its seam.

    Attributes:
        file: as it is printed.
        notes: what is worth knowing of the file.
        picture: of the seam; None where none was asked for.
    """

    file: str
    report: SeamReport
    notes: list[str]
    picture: Path | None = None


class FailedFile(NamedTuple):
    """A file whose seam could not be measured, and why, the file's name in front."""

    file: str
    error: str


def run(
    files: Sequence[Path],
    pictures: Path | None = None,
    *,
    bars: int | None = None,
    seed: int = 0,
    scorer: Scorer | None = None,
) -> Iterator[FileReport | FailedFile]:
    """Measure the seams of files, one by one; one that fails costs itself.

    Args:
        pictures: of one file's seam, or a folder for all.
        bars: in place of what each file says.

    Raises:
        OSError: the folder cannot be made.
    """
    for path, picture in _with_pictures(files, pictures):
        try:
            yield of_file(path, picture, bars=bars, seed=seed, scorer=scorer)
        except LoopError as error:
            yield FailedFile(printable(path), str(error))


def of_file(
    path: Path,
    picture: Path | None = None,
    *,
    bars: int | None = None,
    seed: int = 0,
    scorer: Scorer | None = None,
) -> FileReport:
    """Measure the seam of a file, and draw it where a picture is asked for.

    Raises:
        LoopError: it cannot be read or measured, or the picture cannot be drawn.
        ImportError: matplotlib is missing.
    """
    with errors_named(path):
        loop = metadata.read(path)
        found = seam_report(loop.repeats, bars or loop.bars, seed=seed, scorer=scorer)
    if picture:
        from audioloop.evaluation.plots import seam_plot

        with errors_named(picture):
            seam_plot.draw(loop.repeats, found.seam, picture, printable(path.name))
    return FileReport(printable(path), found, loop.remarks, picture)


def _with_pictures(files: Sequence[Path], out: Path | None) -> Iterator[tuple[Path, Path | None]]:
    """Each file, and where its picture goes."""
    if out is None or (len(files) == 1 and out.suffix and not out.is_dir()):
        yield from ((path, out) for path in files)
        return
    out.mkdir(parents=True, exist_ok=True)
    names = Names()
    for path in files:
        stem = legal(path.stem)
        yield path, out / f"{stem + names.own(stem.__add__)}.png"
