"""Intervals against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import present

from ilu_cli.metrics.crossed import Rows, paired
from ilu_cli.report.numbers import of_runs, of_seeds, wilson
from ilu_cli.runs.results import Summary


def test_wilson_of_half_and_of_none() -> None:
    # z = 1.96, n = 100: centre (0.5 + z²/200)/(1 + z²/100) = 0.5, half z·√(0.25/100 + z²/40000)/(1 + z²/100)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_seeds_have_students_interval_and_one_has_none() -> None:
    found = of_seeds([0.2, 0.3, 0.4])  # mean 0.3, s = 0.1, t(2) = 4.303
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3 - 0.2484, 0.3 + 0.2484), abs=1e-4)
    assert of_seeds([0.2]).low is None


def test_seeds_that_agree_leave_the_questions() -> None:
    """Three models that answer alike say no more about other questions than one does."""
    alike = [Summary("b", "acc", "share", "forget", 0.3, 0.02, 100)] * 3
    found = of_runs(alike)
    assert (found.low, found.high) == pytest.approx((0.3 - 1.96 * 0.02, 0.3 + 1.96 * 0.02), abs=1e-4)


def rows(values: list[float]) -> Rows:
    return Rows("q", np.array(values), np.ones(len(values)))


def test_pairs_that_move_together_are_told_apart() -> None:
    a, b = rows([1.0, 0.0, 1.0, 1.0] * 10), rows([1.0, 0.0, 0.0, 1.0] * 10)
    found, none = paired([b], [a]), paired([a], [a])
    assert found.value == 0.25 and present(found.low) > 0
    assert present(none.low) <= 0 <= present(none.high)
