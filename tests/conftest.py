"""What tests share: a generator of random numbers, and the corpora where they are at hand."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from audioloop.rendering import synth
from handmade import WALTZ, groove, waltz
from midiloop.common.engine import Inline
from midiloop.dataset.parquet import LoopDataset
from midiloop.grid import LOOP, Grid
from midiloop.midi import score
from midiloop.midi.score import Score
from midiloop.mining import corpus, extract, rules
from paths import ROOT

# Tests share the cores, and what they and the commands they start compute is the same on any
# number of them. What they render is rendered with what pip brings, whatever else a system has.
os.environ["OMP_NUM_THREADS"] = "1"
if _font := synth.bundled_soundfont():
    os.environ[synth.SOUNDFONT_VARIABLE] = str(_font)

CORPUS = Path(os.environ.get("MIDILOOP_CORPUS", ROOT.parent / "shared" / "corpus"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutations", type=int, default=500, help="damaged files to read")
    parser.addoption("--every", type=int, default=12, help="compare every so many real files")
    parser.addoption("--slow", action="store_true", help="also what takes half a minute")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


@pytest.fixture(scope="session")
def archive() -> Callable[[str], Path]:
    """An archive of real MIDI files, by name."""

    def find(name: str) -> Path:
        path = CORPUS / name
        if not path.exists():
            pytest.skip(f"{name} is not in {CORPUS}; set MIDILOOP_CORPUS to the folder it is in")
        return path

    return find


@pytest.fixture(scope="session")
def real_files(archive: Callable[[str], Path], request: pytest.FixtureRequest) -> list[corpus.Item]:
    """Files of the real corpus, evenly spread over it, with their bytes."""
    every = request.config.getoption("--every")
    return [item for n, item in enumerate(corpus.walk([archive("dev.tar.xz")])) if n % every == 0]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LoopDataset:
    """Loops of songs that repeat themselves, in all three splits."""
    songs = [groove(8 + n % 3, pitches=[28 + n % 30, 35, 40, 30]) for n in range(40)]
    return _loops_of(songs, LOOP, tmp_path_factory)


@pytest.fixture(scope="session")
def waltzes(tmp_path_factory: pytest.TempPathFactory) -> LoopDataset:
    """The same on a grid of four bars of 3/4 with room for triplets."""
    songs = [waltz(4 + n % 3, pitches=[28 + n % 30, 35]) for n in range(40)]
    return _loops_of(songs, WALTZ, tmp_path_factory)


def _loops_of(songs: list[Score], grid: Grid, places: pytest.TempPathFactory) -> LoopDataset:
    folder, out = places.mktemp("songs"), places.mktemp("mined") / "loops"
    for number, song in enumerate(songs):
        (folder / f"s{number:02d}.mid").write_bytes(score.to_bytes(song))
    extract.run([folder], out, extract.Settings(rules.preset("open"), grid=grid), engine=Inline())
    return LoopDataset(out)


@pytest.fixture(scope="session")
def reordered(dataset: LoopDataset, tmp_path_factory: pytest.TempPathFactory) -> LoopDataset:
    """As many loops, songs and loops a split as `dataset` has, and yet another dataset."""
    out = tmp_path_factory.mktemp("reordered") / "loops"
    shutil.copytree(dataset.path, out)
    manifest = json.loads((out / "manifest.json").read_text())
    for shard in manifest["shards"]:
        table = parquet.read_table(out / shard["file"])
        parquet.write_table(table.take(list(range(len(table)))[::-1]), out / shard["file"])
        shard.pop("sha256")  # as datasets of earlier versions are
    del manifest["fingerprint"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    return LoopDataset(out)


@pytest.fixture
def one_thread_and_seed() -> Iterator[None]:
    """The same sums and draws whatever ran before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(8)
    yield
    torch.set_num_threads(before)
