"""What a listener hears of a whole loop: counted by hand, and against plain code."""

from __future__ import annotations

import math

import numpy as np
import pytest

from handmade import JIG, WALTZ, groove, random_rolls
from midiloop.grid import KIT, LOOP, Grid, Roll
from midiloop.metrics import bass_line, form
from midiloop.metrics.bits import Bits, as_bits
from midiloop.mining import extract
from midiloop.mining.rules import PRESETS

BASS = LOOP.n_drums


@pytest.fixture
def loop() -> Roll:
    """Bars AAAB AAAB: a kick on each beat, and C1 on 1, E1 on 3; B has F#1 on 3, and a fill."""
    bar = np.zeros((16, LOOP.columns), dtype=np.bool_)
    bar[::4, 0] = True
    bar[0:6, BASS] = True
    bar[8:10, BASS + 4] = True
    last = bar.copy()
    last[8:10, BASS + 4], last[8:10, BASS + 6] = False, True
    last[13:16, 1] = True
    return np.concatenate([bar, bar, bar, last] * 2)[None]


def test_every_row_counted_by_hand(loop: Roll) -> None:
    found = form.measure(loop)
    assert list(found) == list(form.ROWS)
    values = {name: (share.part[0], share.whole[0]) for name, share in found.items()}
    # drums: B is as A but for its last beat; bass: as A in its first half
    assert values["drums same beats"] == values["bass same half"] == (1, 7)
    assert values["drums exact"] == values["bass exact"] == (6, 7)
    assert values["bass new"] == values["bass transposed"] == (0, 7)
    assert values["drums varied"] == values["bass varied"] == (1, 1)
    # the drums of A and B are 3 cells apart, their bass 4
    assert values["drums near pairs"] == values["bass near pairs"] == (0, 28)
    assert values["drums one bar"] == values["all bars distinct"] == (0, 1)
    # B is 7 from six of the others and 0 from one; of the 21 other pairs 6 are 7 apart
    assert values["last bar"] == (pytest.approx(6 * 7 / 7 - 6 * 7 / 21), 1)
    assert values["note lengths"] == (2, 1)
    assert values["length entropy"] == (1, 1)
    assert values["kick with bass"] == (0.5, 1)
    # from C to F# and back, twice, of which the last has no way back
    assert values["tritones"] == (3, 15)
    assert values["breaks open"] == (0, 1)
    assert values["breaks paper"] == (1, 1)  # no crash


def test_rules_are_those_by_which_loops_are_mined(loop: Roll) -> None:
    assert not form.breaks_rules(np.stack(extract.loops(groove(32)))).any()
    broken = loop.repeat(3, axis=0)
    broken[0, 0, 0] = False  # no kick
    broken[1, :6, BASS] = False  # no bass
    broken[2, 64:67, 2] = True  # a bar that differs in 3 cells
    assert form.breaks_rules(broken).tolist() == [1, 1, 1]
    broken[2, 66, 2] = False
    assert form.breaks_rules(broken).tolist() == [1, 1, 0]
    loop[0, [0, 64], 6] = True
    assert form.breaks_rules(loop, LOOP, PRESETS["paper"]) == [0]


def test_notes_out_of_key() -> None:
    roll = np.zeros((1, LOOP.steps, LOOP.columns), dtype=np.bool_)
    for number, pitch in enumerate((0, 0, 4, 7, 2, 5, 9, 0)):  # C major
        roll[0, 16 * number : 16 * number + 12, BASS + pitch] = True
    assert [*form.out_of_key(roll)] == [0, 8 * 12]
    roll[0, 60:63, BASS + 1] = True
    assert [*form.out_of_key(roll)] == [3, 8 * 12 + 3]


def test_the_ends_of_every_scale() -> None:
    silent = np.zeros((1, LOOP.steps, LOOP.columns), dtype=np.bool_)
    for rolls in (silent, ~silent):
        for name, (part, whole) in form.measure(rolls).items():
            assert np.isfinite(part).all(), name
            assert (part <= np.maximum(whole, 1)).all(), name
    found = form.measure(silent)
    assert found["kick with bass"].whole == found["out of key"].whole == [0]
    assert [*found["drums one bar"]] == [1, 1]


def test_notes_are_those_of_plain_code(rng: np.random.Generator) -> None:
    rolls = random_rolls(rng, 20)
    line = bass_line.of(as_bits(rolls, LOOP))
    np.testing.assert_array_equal(line.pitches >= 0, rolls[..., BASS:].any(axis=2))
    for number, pitches in enumerate(line.pitches.tolist()):
        lengths, previous, at = [0] * LOOP.steps, -1, 0
        for step, pitch in enumerate(pitches):
            at = step if pitch != previous else at
            lengths[at] += pitch >= 0
            previous = pitch
        assert line.lengths[number].tolist() == lengths
        assert (line.onsets[number] == (np.array(lengths) > 0)).all()
        kinds, entropy = form.note_lengths(line)
        found = [length for length in lengths if length]
        shares = [found.count(kind) / len(found) for kind in set(found)]
        assert kinds[number] == len(shares)
        assert entropy[number] == pytest.approx(-sum(p * math.log2(p) for p in shares))


def test_intervals_stay_within_their_loops() -> None:
    roll = np.zeros((2, LOOP.steps, LOOP.columns), dtype=np.bool_)
    roll[0, [0, 5, 9], [BASS, BASS + 7, BASS + 7]] = True
    roll[1, [3, 4], [BASS + 3, BASS]] = True
    loops, semitones = bass_line.of(as_bits(roll, LOOP)).intervals()
    assert loops.tolist() == [0, 0, 1]
    assert semitones.tolist() == [7, 0, -3]


@pytest.mark.parametrize(
    "grid",
    [Grid(bars=1), Grid(bars=4, steps_per_beat=6), Grid(bars=2, drums=KIT[:1]), WALTZ, JIG],
    ids=str,
)
def test_other_grids(grid: Grid, rng: np.random.Generator) -> None:
    rolls = rng.random((10, grid.steps, grid.columns)) < 0.05
    bits = Bits(grid.pack(rolls), grid)
    assert list(form.measure(bits, grid)) == [
        name for name in form.ROWS if name != "breaks paper" or len(grid.drums) > 1
    ]
