"""What a listener hears of a loop as a whole: whether bars vary one another, and parts listen.

Each row is a share: the sum of one number over loops, divided by that of another. Where the latter
is 1 for each loop, it is a mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midiloop.grid import LOOP, Grid, Roll
from midiloop.metrics import bass_line, key, paper, relations
from midiloop.metrics.bass_line import BassLine
from midiloop.metrics.bits import Bits, as_bits
from midiloop.metrics.paper import Values, as_values
from midiloop.metrics.relations import NEAR_CELLS, OF_PART, BarRelations, Part, Relation
from midiloop.mining.rules import PRESETS, Rules

PARTS: tuple[Part, ...] = ("bass", "drums")
TRITONE = 6


class Share(NamedTuple):
    """A part and what it is a part of, for each of n loops, float (n,) each."""

    part: Values
    whole: Values


ROWS = {
    **{f"breaks {name}": f"loops that break the rules '{name}'" for name in PRESETS},
    **{
        f"{part} {name}": f"{part.removesuffix('s') if part == 'drums' else part} bars: {words}"
        for part in PARTS
        for name, words in (
            ("exact", "exact repeats"),
            ("transposed", "transposed repeats"),
            ("same beats", "same but the last beat"),
            ("same half", "same first half"),
            ("near", "1 or 2 cells differ"),
            ("same rhythm", "same rhythm only"),
            ("new", "unrelated to earlier ones"),
        )
        if Relation[name.upper().replace(" ", "_")] in OF_PART[part]
    },
    **{f"{part} varied": f"{part}: new bars that vary others" for part in PARTS},
    **{f"{part} near pairs": f"{part}: pairs 1–2 cells apart" for part in PARTS},
    "drums one bar": "drums AAAAAAAA",
    "all bars distinct": "loops ABCDEFGH",
    "last bar": "last bar's departure, cells",
    "note lengths": "kinds of bass note lengths",
    "length entropy": "entropy of those, bits",
    "kick with bass": "kicks on a bass onset",
    "out of key": "bass steps out of key",
    "tritones": "tritones among intervals",
}


def measure(rolls: Roll | Bits, grid: Grid = LOOP) -> dict[str, Share]:
    """Each of `ROWS`, by its name.

    - ``breaks NAME``: loops that the rules of that preset would not find; left out where the grid
      lacks a drum that they ask for.
    - ``PART RELATION``: bars after the first that take up an earlier one so, see `relations`.
    - ``PART varied``: of those that are no exact repeat, those that take up an earlier one at all.
    - ``PART near pairs``: pairs of bars that differ in 1 or 2 cells.
    - ``drums one bar``, ``all bars distinct``: loops whose drums never change; none of whose bars
      comes twice.
    - ``last bar``: mean distance of the last bar from the others, less that between those.
    - ``note lengths``, ``length entropy``: how many different lengths the bass notes of a loop
      have, and the entropy of those lengths.
    - ``kick with bass``: share of a loop's kicks on which a bass note begins, mean over the loops
      that have a kick.
    - ``out of key``: steps on which a bass pitch sounds that is not in the loop's own key.
    - ``tritones``: steps of six semitones, octaves aside, from a bass note to the next.
    """
    bits = as_bits(rolls, grid)
    one = np.ones(len(bits))
    found = {
        f"breaks {name}": Share(breaks_rules(bits, grid, rules), one)
        for name, rules in PRESETS.items()
        if {*rules.first_step_drums} <= {drum.name for drum in grid.drums}
    }
    distances = {part: relations.bar_distances(bits, part, grid) for part in PARTS}
    for part in PARTS:
        found |= _of_relations(part, relations.of_part(bits, part, grid))
    for part in PARTS:
        apart = distances[part]
        near = np.count_nonzero((apart > 0) & (apart <= NEAR_CELLS), axis=1)
        found[f"{part} near pairs"] = Share(as_values(near), one * apart.shape[1])
    whole = distances["bass"] + distances["drums"]
    found["drums one bar"] = Share(as_values((distances["drums"] == 0).all(axis=1)), one)
    found["all bars distinct"] = Share(as_values((whole > 0).all(axis=1)), one)
    found["last bar"] = Share(last_bar_departure(whole, grid), one)
    line = bass_line.of(bits)
    kinds, entropy = note_lengths(line)
    found["note lengths"] = Share(kinds, one)
    found["length entropy"] = Share(entropy, one)
    kicks = _kicks(bits)
    n_kicks = np.count_nonzero(kicks, axis=1)
    together = np.count_nonzero(kicks & line.onsets, axis=1) / np.maximum(n_kicks, 1)
    found["kick with bass"] = Share(as_values(together), as_values(n_kicks > 0))
    found["out of key"] = out_of_key(bits, grid)
    loops, intervals = line.intervals()
    tritones = np.abs(intervals) % 12 == TRITONE
    n_tritones = np.bincount(loops[tritones], minlength=len(bits))
    n_intervals = np.bincount(loops, minlength=len(bits))
    found["tritones"] = Share(as_values(n_tritones), as_values(n_intervals))
    return {name: found[name] for name in ROWS if name in found}


def _of_relations(part: Part, of: BarRelations) -> dict[str, Share]:
    later = of.kinds[:, 1:]
    n_bars = np.full(len(later), float(later.shape[1]))
    counts = {kind: as_values(np.count_nonzero(later == kind, axis=1)) for kind in OF_PART[part]}
    found = {
        f"{part} {kind.name.lower().replace('_', ' ')}": Share(n, n_bars)
        for kind, n in counts.items()
    }
    varied = n_bars - counts[Relation.EXACT] - counts[Relation.NEW]
    found[f"{part} varied"] = Share(varied, n_bars - counts[Relation.EXACT])
    return found


def breaks_rules(rolls: Roll | Bits, grid: Grid = LOOP, rules: Rules = PRESETS["open"]) -> Values:
    """Whether the rules would not find a loop: 1 where they would not, else 0.

    Drums and bass on the first step, and the first bar against the one half-way; float (n,).
    """
    bits = as_bits(rolls, grid)
    cells = paper.bar_distance(bits, grid) * grid.cells_per_bar
    kept = paper.first_note_drum(bits, grid, rules.first_step_drums) > 0
    kept &= paper.first_note_bass(bits, grid) > 0
    return as_values(~(kept & (cells.round() <= rules.max_distance_cells)))


def last_bar_departure(distances: NDArray[np.int64], grid: Grid = LOOP) -> Values:
    """Mean distance of the last bar from the others, less that between those, float (n,).

    Args:
        distances: int (n, pairs), see `relations.bar_distances`.
    """
    of_last = np.triu_indices(grid.bars, 1)[1] == grid.bars - 1
    means = [
        distances[:, which].mean(axis=1) if which.any() else np.zeros(len(distances))
        for which in (of_last, ~of_last)
    ]
    return as_values(means[0] - means[1])


def note_lengths(line: BassLine) -> tuple[Values, Values]:
    """Different lengths of a loop's bass notes, and the entropy of the lengths, bits; (n,) each."""
    loops, steps = np.nonzero(line.onsets)
    n, n_steps = line.onsets.shape
    at = loops * (n_steps + 1) + line.lengths[loops, steps]
    counts = np.bincount(at, minlength=n * (n_steps + 1)).reshape(n, -1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1) + 0.0
    return as_values(np.count_nonzero(counts, axis=1)), as_values(entropy)


def out_of_key(rolls: Roll | Bits, grid: Grid = LOOP) -> Share:
    """Steps on which the bass is not in the key that `key.estimate_keys` finds, of all it plays."""
    classes, keys = key.pitch_classes(rolls, grid), key.estimate_keys(rolls, grid)
    degrees = np.take_along_axis(classes, (keys.tonics[:, None] + np.arange(12)) % 12, axis=1)
    outside = degrees * ~key.SCALES[keys.modes]
    return Share(as_values(outside.sum(axis=1)), as_values(classes.sum(axis=1)))


def _kicks(bits: Bits) -> NDArray[np.bool_]:
    """Bool (n, steps); none where the grid has no kick."""
    columns = [at for at, drum in enumerate(bits.grid.drums) if drum.name == "kick"]
    kicks: NDArray[np.bool_] = np.bitwise_or.reduce(bits.words & bits.mask(columns), axis=0) != 0
    return kicks
