"""What users write about bars."""

from __future__ import annotations

import numpy as np
import pytest

from midiloop.errors import CallError
from midiloop.generation.form import parse_bars, parse_form


@pytest.mark.parametrize(
    ("form", "sources", "varied"),
    [
        ("ABABABCD", [0, 1, 0, 1, 0, 1, 6, 7], []),
        ("ababABcd", [0, 1, 0, 1, 0, 1, 6, 7], []),
        ("ABA'CABA'D", [0, 1, 0, 3, 0, 1, 2, 7], [2]),
        ("AA'A''A'AAAA", [0, 0, 0, 1, 0, 0, 0, 0], [1, 2]),
        ("AA’A′BBBBB", [0, 0, 1, 3, 3, 3, 3, 3], [1]),
    ],
)
def test_forms_by_hand(form: str, sources: list[int], varied: list[int]) -> None:
    bars = parse_form(form)
    assert [bar.source for bar in bars] == sources
    assert [at for at, bar in enumerate(bars) if not bar.exact] == varied


@pytest.mark.parametrize("form", ["ABAB", "ABABABABA", "ABAB1234", "", "'ABABABAB", "AB AB AB"])
def test_a_form_has_a_letter_for_each_bar(form: str) -> None:
    with pytest.raises(CallError, match="8 letters"):
        parse_form(form)


def test_a_prime_comes_after_its_letter() -> None:
    with pytest.raises(CallError, match="B' varies B, which does not come before it"):
        parse_form("AB'BAABAB")


@pytest.mark.parametrize("text", ["0-3", "5-4", "1-9", "x", "1,,2", "piano"])
def test_bars_that_make_no_sense(text: str) -> None:
    with pytest.raises(CallError, match="--keep"):
        parse_bars("--keep", text)


def test_bars_by_hand() -> None:
    kept = parse_bars("--keep", "2,4-5")
    assert np.flatnonzero(kept[0]).tolist() == [1, 3, 4]
    assert (kept[0] == kept[1]).all()
    assert parse_bars("--vary", "bass").tolist() == [[False] * 8, [True] * 8]
    assert not parse_bars("--vary", "").any()
