"""Loops to render, humanised beforehand: rendering itself needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from audioloop.rendering.batch import FailedLoop, Item
from midiloop.dataset.export import writable_tempo
from midiloop.errors import LoopError
from midiloop.generation import humanize
from midiloop.generation.humanize import Feel
from midiloop.midi import performance, score
from midiloop.models.hands import Hands


def items(
    found: Sequence[Item],
    feel: Feel,
    hands: Hands | None = None,
    *,
    on_loop: Callable[[], None] = lambda: None,
) -> tuple[list[Item], list[FailedLoop]]:
    """What `batch.items` gave, played, and what cannot be.

    Raises:
        LoopError: see `humanize.player`.
    """
    if not feel.changes:
        return [*found], []
    hands = hands or (humanize.load() if feel.feel else None)
    grids = {item.grid for item in found if item.roll is not None}
    players = {grid: humanize.player(feel, hands, grid) for grid in grids}
    played, failed = list[Item](), list[FailedLoop]()
    for item in found:
        try:
            if item.roll is not None:
                play = players[item.grid]
                assert play is not None  # as something changes
                roll = item.grid.unpack(np.frombuffer(item.roll, np.uint8)[None])[0]
                bpm = writable_tempo(item.tempo_bpm)
                song = performance.decode(roll, play(item.number, roll), bpm, grid=item.grid)
                data = score.to_bytes(song)
            else:
                assert item.midi is not None  # as what is no roll is
                data = humanize.midi(item.midi, feel, hands, number=item.number)
            played.append(item._replace(midi=data, roll=None))
        except LoopError as error:
            failed.append(FailedLoop(item.source, str(error)))
        on_loop()
    return played, failed
