"""What a user writes about bars: the form of a loop, and which of its bars stay."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from midiloop.errors import CallError
from midiloop.grid import LOOP
from midiloop.models.loop_sampling import FormBar

PARTS = ("drums", "bass")

_PRIMES = "'’′"


def parse_form(form: str, n_bars: int = LOOP.bars) -> list[FormBar]:
    """A form as in ``ABABA'CA'D``: a letter a bar; with a prime, a variation of the bar it names.

    The same letter with as many primes is the same bar again.

    >>> [bar.source for bar in parse_form("ABABA'CA'D")]
    [0, 1, 0, 1, 0, 5, 4, 7]

    Raises:
        CallError: it has not a letter for each bar, or a prime before its letter.
    """
    names = re.findall(rf"[^\W\d_][{_PRIMES}]*", form)
    if "".join(names) != form or len(names) != n_bars:
        raise CallError(
            f"--pattern {form}: expected {n_bars} letters, one for each bar, as in ABABABCD; a "
            "prime makes a variation, as in ABA'C"
        )
    names = [re.sub(f"[{_PRIMES}]", "'", name.upper()) for name in names]
    bars = []
    for at, name in enumerate(names):
        first, letter = names.index(name), name.rstrip("'")
        if first < at or letter == name:
            bars.append(FormBar(first, exact=True))
        elif letter in names[:at]:
            bars.append(FormBar(names.index(letter), exact=False))
        else:
            raise CallError(
                f"--pattern {form}: {name} varies {letter}, which does not come before it; begin "
                f"with {letter}"
            )
    return bars


def parse_bars(option: str, text: str, n_bars: int = LOOP.bars) -> NDArray[np.bool_]:
    """Which bars of the drums and of the bass an option names: bool (2, bars).

    Args:
        option: its name, for the message.
        text: bars, as in ``1-4,8``, or ``drums``, or ``bass``; empty for none.

    Raises:
        CallError: it is neither bars nor a part.
    """
    named = np.zeros((len(PARTS), n_bars), dtype=np.bool_)
    if text in PARTS:
        named[PARTS.index(text)] = True
        return named
    for item in text.split(",") if text else ():
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= n_bars:
            raise CallError(
                f"{option} {text}: expected bars from 1 to {n_bars}, as in 1-4,8, or "
                f"{' or '.join(PARTS)}"
            )
        named[:, first - 1 : last] = True
    return named
