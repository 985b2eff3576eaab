"""The real corpora, where they are at hand."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from midiloop.common.processes import Processes
from midiloop.dataset import parquet
from midiloop.mining import corpus, extract, rules

# Python 3.11.4 brought the filter, and 3.12 warns where none is named.
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
OPEN = extract.Settings(rules.preset("open"))


def test_every_file_that_is_wrong_on_purpose_ends_as_loops_or_as_a_reject(
    archive: Callable[[str], Path], tmp_path: Path
) -> None:
    source = archive("badinput.tar.xz")
    names = Counter(item.name for item in corpus.walk([source]))
    assert len(names) == sum(names.values()) == 666
    result = extract.run([source], tmp_path / "loops", OPEN, engine=Processes(2))
    dataset = parquet.LoopDataset(tmp_path / "loops")
    with_loops = {song for batch in dataset.batches() for song in batch.songs}
    rejects = {reject.file: reject for reject in dataset.rejects()}
    assert with_loops | set(rejects) == set(names)
    assert not with_loops & set(rejects)
    assert result.manifest["counts"]["files"] == 666
    assert {reject.reason for reject in rejects.values()} <= set(extract.REASONS)
    assert not {"crashed", "timeout", "internal_error"} & {
        reject.reason for reject in rejects.values()
    }
    # what the folders' names promise
    by_folder = {
        folder: Counter(r.reason for f, r in rejects.items() if f"/{folder}/" in f)
        for folder in ("No Header Chunk", "Invalid Channel Event")
    }
    assert by_folder["No Header Chunk"]["not_midi"] >= 90
    assert by_folder["Invalid Channel Event"] == {"bad_event": 1}
    print(dict(Counter(r.reason for r in rejects.values())), len(with_loops), "with loops")


@pytest.mark.parametrize("folder", ["No End of Track", "Invalid Key Signature Scale"])
def test_damage_that_touches_no_note_is_read(folder: str, archive: Callable[[str], Path]) -> None:
    from midiloop.midi import score

    found = [i for i in corpus.walk([archive("badinput.tar.xz")]) if f"/{folder}/" in i.name]
    assert len(found) > 10
    for item in found:
        assert score.read(item.read()).n_notes > 0


def test_the_archive_and_its_folder_give_the_same_loops(
    archive: Callable[[str], Path], tmp_path: Path
) -> None:
    """On the whole corpus: read from the archive, and unpacked; figures as counted beforehand."""

    source = archive("dev.tar.xz")
    with tarfile.open(source) as packed:
        packed.extractall(tmp_path / "unpacked", **SAFELY)
    extract.run([source], tmp_path / "a", OPEN, engine=Processes(2))
    extract.run([tmp_path / "unpacked"], tmp_path / "b", OPEN, engine=Processes(2))
    one, other = parquet.LoopDataset(tmp_path / "a"), parquet.LoopDataset(tmp_path / "b")
    assert one.manifest["counts"] == other.manifest["counts"]
    assert one.manifest["counts"]["files"] == 6899

    def rows(dataset: parquet.LoopDataset) -> list[tuple[str, int, bytes, str]]:
        return sorted(
            (song, int(start), roll.tobytes(), split)
            for b in dataset.batches()
            for song, start, roll, split in zip(
                b.songs, b.start_bars, dataset.grid.pack(b.rolls), b.splits, strict=True
            )
        )

    assert rows(one) == rows(other)
    assert sorted(one.rejects()) == sorted(other.rejects())
    # 44,683 windows in the files that the parser reads as they are, in bars from the file's start;
    # the rest in repaired ones, after pickups, and of a bass that is one by its name
    assert 44_683 <= len(one) < 48_000
