"""Intervals against numbers worked out by hand."""

from __future__ import annotations

import pytest

from ilu_cli.report.numbers import of_pairs, of_seeds, student, wilson


def test_wilson_of_half_and_of_none():
    # z = 1.96, n = 100: centre (0.5 + z²/200)/(1 + z²/100) = 0.5, half z·√(0.25/100 + z²/40000)/(1 + z²/100)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_seeds_have_students_interval_and_one_has_none():
    found = of_seeds([0.2, 0.3, 0.4])  # mean 0.3, s = 0.1, t(2) = 4.303
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3 - 0.2484, 0.3 + 0.2484), abs=1e-4)
    assert of_seeds([0.2]).low is None


@pytest.mark.parametrize("freedom, expected", [(1, 12.706), (11, 2.201), (20, 2.086), (60, 2.000)])
def test_students_quantile(freedom, expected):
    assert student(freedom) == pytest.approx(expected, abs=1e-3)


def test_pairs_that_move_together_are_told_apart():
    a, b = [1.0, 0.0, 1.0, 1.0] * 10, [1.0, 0.0, 0.0, 1.0] * 10
    found = of_pairs(a, b)
    assert found.value == 0.25 and found.excludes_zero
    assert not of_pairs(a, a).excludes_zero
