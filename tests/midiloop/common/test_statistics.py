"""Intervals are LoopGen's, and Student's t that of the tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from midiloop.common import statistics
from midiloop.common.statistics import Interval
from midiloop.errors import CallError


def test_the_interval_of_two_loops_by_hand() -> None:
    # Perplexities of 2 and 8: nats ln 2 and 3 ln 2. Their mean is 2 ln 2, both are ln 2 from it,
    # so the deviation is sqrt(((ln 2)² + (ln 2)²) / (2 - 1)) = sqrt(2) ln 2, and that of the mean
    # sqrt(2) ln 2 / sqrt(2) = ln 2. Ends: exp(2 ln 2 ± 1.96 ln 2) = 4 · 2 ** ±1.96.
    # 2 ** 0.04 = 1.0281138, so the low end is 4 · 1.0281138 / 4 and the high end 16 / 1.0281138.
    found = statistics.interval([math.log(2), math.log(8)])
    low, high = 1.0281138, 15.5624794
    expected = Interval((low + high) / 2, (high - low) / 2, low, high)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found.center == pytest.approx(8.2952966, rel=1e-6)
    assert found.error == pytest.approx(7.2671828, rel=1e-6)
    assert math.sqrt(found.low * found.high) == pytest.approx(4)  # Eq. 5, between both


def test_the_interval_of_four_loops_by_hand() -> None:
    # Nats 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14, deviation sqrt(14 / 3) = 2.1602469,
    # of the mean 1.0801234, times 1.96 is 2.1170420: from exp(0.8829580) to exp(5.1170420).
    found = statistics.interval([1, 2, 3, 6])
    assert math.log(found.low) == pytest.approx(0.8829580, abs=1e-6)
    assert math.log(found.high) == pytest.approx(5.1170420, abs=1e-6)
    assert found.center == pytest.approx((found.low + found.high) / 2)
    assert found.error == pytest.approx((found.high - found.low) / 2)


def test_loops_that_agree_have_no_error() -> None:
    assert statistics.interval([2.0] * 5) == pytest.approx((math.e**2, 0, math.e**2, math.e**2))


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]]])
def test_one_loop_has_no_interval(values: list[float]) -> None:
    for function in (statistics.interval, statistics.paired):
        with pytest.raises(CallError, match=r"an interval of (1 loop|\d loops); give 2 or more"):
            function(values)


def test_paired_differences_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, of the mean 1 / sqrt(3) = 0.5773503; Student's t of
    # 2 degrees of freedom is 4.3026527: 2 ± 2.4841377.
    found = statistics.paired([1, 2, 3])
    assert found == pytest.approx((2, -0.4841377, 4.4841377, 3), abs=1e-6)
    assert found.indistinguishable
    assert not statistics.paired([2, 2.1, 2.2]).indistinguishable
    assert not statistics.paired([-2, -2.1, -2.2]).indistinguishable


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [
        (1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (9, 2.262157),
        (10, 2.228139), (30, 2.042272), (100, 1.983972), (9_999, 1.960201),
    ],
)  # fmt: skip
def test_students_t_is_that_of_the_tables(freedom: int, expected: float) -> None:
    differences = np.linspace(-1, 1, freedom + 1)
    found = statistics.paired(differences)
    of_mean = differences.std(ddof=1) / math.sqrt(freedom + 1)
    assert (found.high - found.mean) / of_mean == pytest.approx(expected, abs=2e-6)
