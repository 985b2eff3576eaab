"""The second implementation finds what the first one finds, in real files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import reference
from handmade import groove
from midiloop.errors import MidiError
from midiloop.grid import LOOP
from midiloop.midi import score
from midiloop.mining import corpus, extract, rules

# Bars from the file's start, and a bass by its program alone: what is not so has tests of its own.
OPEN = replace(rules.preset("open"), bars_by_meter=False, bass_by_name=False)
SETTINGS = {"paper": extract.PAPER, "open": extract.Settings(OPEN)}

# Files in which the two differ, each with the reason why: by the first digits of their MD5. A file
# that is not listed and differs fails the test.
EXPLAINED: dict[str, str] = {}


Found = tuple[list[int], list[reference.Cells]]


def ours(data: bytes) -> dict[str, Found] | None:
    """Start bars and cells of our loops by rules; None where the file cannot be read."""
    found: dict[str, Found] = {}
    for name, settings in SETTINGS.items():
        try:
            song = extract.mine("x", data, settings)
        except MidiError as error:
            if error.reason in score.REASONS:
                return None
            found[name] = ([], [])
        else:
            lit = (np.argwhere(roll).tolist() for roll in LOOP.unpack(song.rolls))
            cells = [frozenset((step, column) for step, column in roll) for roll in lit]
            found[name] = (song.start_bars.tolist(), cells)
    return found


def theirs(data: bytes) -> dict[str, Found] | None:
    try:
        song = reference.read(data)
    except reference.Unreadable:
        return None
    results = {name: reference.find(song, name == "paper", name == "paper") for name in SETTINGS}
    return {name: (found.start_bars, found.rolls) for name, found in results.items()}


def test_they_agree_on_a_groove() -> None:
    found = ours(score.to_bytes(groove(24)))
    assert found == theirs(score.to_bytes(groove(24)))
    assert found is not None
    assert found["paper"][0] == [0, 4, 8, 12, 16]


def test_they_agree_on_real_files(real_files: list[corpus.Item]) -> None:
    both = with_loops = 0
    differing, unexplained = [], []
    for item in real_files:
        one, other = ours(item.read()), theirs(item.read())
        if one is None or other is None:
            continue
        both += 1
        with_loops += bool(one["open"][0])
        if one != other:
            differing.append(item.name)
            if not item.name.rsplit("/", 1)[-1].startswith(tuple(EXPLAINED)):
                unexplained.append(item.name)
    print(f"{both} files read by both, {with_loops} with loops, {len(differing)} differ")
    assert not unexplained
    assert both > 0.9 * len(real_files)
    assert with_loops > 0.2 * both
    assert len(differing) <= 0.005 * both
