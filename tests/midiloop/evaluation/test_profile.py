"""Profiles of sets, and what a sample of a large one keeps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from handmade import random_rolls
from midiloop.errors import LoopError
from midiloop.evaluation import evaluate
from midiloop.evaluation import profile as profiles
from midiloop.evaluation.profile import LoopSet, Profile, profile
from midiloop.grid import LOOP, Roll
from midiloop.metrics import bits
from midiloop_cli import report

LIMIT = 60


@pytest.fixture
def loops(rng: np.random.Generator) -> Roll:
    """300 loops, all different."""
    return random_rolls(rng, 300)


@pytest.fixture
def songs(rng: np.random.Generator) -> list[str]:
    """Their songs, of 1 to 20 loops or so, mixed."""
    return [f"a song, number {n * n // 40}" for n in rng.integers(40, size=300)]


def chosen(loops: Roll, songs: list[str], of: Profile) -> LoopSet:
    """Of a set, the loops that its profile is of."""
    at = np.flatnonzero(np.isin(LOOP.fingerprints(LOOP.pack(loops)), of.fingerprints))
    return LoopSet(loops[at], np.array(songs)[at])


def same(one: Profile, other: Profile) -> None:
    np.testing.assert_array_equal(one.songs, other.songs)
    np.testing.assert_array_equal(one.fingerprints, other.fingerprints)
    np.testing.assert_array_equal(one.known, other.known)
    for name, values in one.values.items():
        np.testing.assert_array_equal(values, other.values[name])
    assert one.of_loops == other.of_loops


@pytest.mark.parametrize("limit", [profiles.MAX_LOOPS, LIMIT])
@pytest.mark.parametrize("by_song", [True, False])
def test_a_profile_depends_neither_on_the_pieces_nor_on_the_order(
    by_song: bool,
    limit: int,
    loops: Roll,
    songs: list[str],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = np.array(songs)
    loops[200:] = loops[rng.integers(150, size=100)]  # copies, some of them in other songs
    whole = profile([LoopSet(loops, names if by_song else None)], limit=limit)
    assert whole.by_song == by_song
    monkeypatch.setattr(bits, "LOOPS_AT_A_TIME", 3)
    monkeypatch.setattr(profiles, "PIECE", 11)
    mixed = rng.permutation(300)
    cuts = [mixed[:7], mixed[7:7], mixed[7:100], mixed[100:]]
    pieces = [LoopSet(loops[at], names[at] if by_song else None) for at in cuts]
    same(whole, profile(pieces, limit=limit))


def test_up_to_the_limit_every_loop_is_measured(loops: Roll, songs: list[str]) -> None:
    of = LoopSet(loops, np.array(songs))
    same(profile([of], limit=300), profile([of]))
    assert profile([of]).of_loops == len(profile([of]).songs) == 300


def test_a_sample_is_of_whole_songs_and_no_larger_than_it_has_to_be(
    loops: Roll, songs: list[str]
) -> None:
    found = profile([LoopSet(loops, np.array(songs))], limit=LIMIT)
    kept = Counter(chosen(loops, songs, found).songs)
    assert kept == {song: n for song, n in Counter(songs).items() if song in kept}
    assert kept.total() == len(found.songs) >= LIMIT
    assert kept.total() - max(kept.values()) < LIMIT
    assert found.of_loops == 300
    # a larger limit adds songs, and takes none away
    more = profile([LoopSet(loops, np.array(songs))], limit=2 * LIMIT)
    assert {*found.fingerprints.tolist()} < {*more.fingerprints.tolist()}


def test_few_songs_are_kept_however_long(loops: Roll) -> None:
    found = profile([LoopSet(loops, np.arange(300) // 50)], limit=10)
    assert found.n_songs == profiles.MIN_SONGS
    assert np.bincount(found.songs).tolist() == [50] * profiles.MIN_SONGS
    three = profile([LoopSet(loops, np.arange(300) // 100)], limit=10)
    assert len(three.songs) == three.of_loops == 300


def test_a_large_set_is_judged_as_the_set_of_its_sampled_songs(
    loops: Roll, songs: list[str], rng: np.random.Generator
) -> None:
    reference = LoopSet(random_rolls(rng, 200), rng.integers(30, size=200))
    large = [LoopSet(loops[:99], np.array(songs[:99])), LoopSet(loops[99:], np.array(songs[99:]))]
    sample = chosen(loops, songs, profile(large, limit=LIMIT))
    beside = chosen(*_lists(reference), profile([reference], limit=LIMIT))

    found = evaluate.compare_sets(large, [reference], np.random.default_rng(1), limit=LIMIT)
    expected = evaluate.compare(sample, beside, np.random.default_rng(1))
    assert found.loops == expected.loops._replace(sampled_from=300)
    assert found.reference == expected.reference._replace(sampled_from=200)
    # nothing is copied: OS is 0 in both
    assert replace(expected, loops=found.loops, reference=found.reference) == found

    shown = found.as_json()["loops"]
    assert shown == {"loops": len(sample.rolls), "songs": found.loops.songs, "sampled_from": 300}
    assert report.evaluation(found, None, "open", None).startswith(
        f"{len(sample.rolls)} loops (sampled from 300) of {found.loops.songs} songs, beside "
    )


def _lists(of: LoopSet) -> tuple[Roll, list[str]]:
    assert isinstance(of.rolls, np.ndarray)
    assert of.songs is not None
    return of.rolls, of.songs.tolist()


def test_copies_are_looked_for_in_the_whole_reference(
    loops: Roll, songs: list[str], rng: np.random.Generator
) -> None:
    reference = [LoopSet(loops, np.array(songs))]
    few = LoopSet(np.concatenate([loops[::30], random_rolls(rng, 10)]))
    found = evaluate.compare_sets([few], reference, rng, limit=20)
    assert found.reference.sampled_from == 300
    assert found.metrics["OS"].loops.value == 0.5
    assert found.metrics["OS"].reference == 1


def test_loops_of_another_grid_are_refused_with_what_differs(rng: np.random.Generator) -> None:
    drums = (replace(LOOP.drums[0], pitch=35), *LOOP.drums[1:])
    packed = bits.as_bits(random_rolls(rng, 4), LOOP).packed
    with pytest.raises(LoopError, match=r"another grid .* \(kick pitch 35, not 36\)"):
        profile([LoopSet(bits.Bits(packed, replace(LOOP, drums=drums)))])
