"""Two-way mean squares by hand, pairing, seeds, ratios; and that the intervals hold the truth as often as they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import present
from scipy import stats

from ilu_cli.metrics.crossed import Rows, compare, single, variance


def rows(values: Any, items: str = "q", weights: Any = None, share: bool = False) -> Rows:
    values = np.asarray(values, float)
    return Rows(items, values, np.ones(len(values)) if weights is None else np.asarray(weights, float), share)


def test_one_run_each_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(25)
    b = a + rng.normal(0.1, 0.2, 25)
    found, test = compare([rows(a)], [rows(b)]), stats.ttest_rel(b, a)
    assert (found.value, found.p) == pytest.approx((test.statistic * stats.sem(b - a), test.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
    assert found.freedom == 24


def test_the_p_value_is_two_sided_and_the_sign_is_that_of_b_minus_a() -> None:
    a, b = [0.1, 0.2, 0.3, 0.2], [0.3, 0.3, 0.6, 0.4]
    up, down = compare([rows(a)], [rows(b)]), compare([rows(b)], [rows(a)])
    assert up.value == pytest.approx(0.2)
    assert down.value == pytest.approx(-0.2)
    assert (up.low, up.high) == pytest.approx((-present(down.high), -present(down.low)))
    assert up.p == down.p == pytest.approx(stats.ttest_rel(b, a).pvalue)


def test_other_questions_are_not_paired() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(40), rng.random(30) + 0.1
    found = compare([rows(a)], [rows(b, "others")])
    welch = stats.ttest_ind(b, a, equal_var=False)
    assert found.p == pytest.approx(welch.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(welch.confidence_interval()))


def test_seeds_and_questions_by_hand() -> None:
    """y = [[0, 2, 4], [2, 6, 10]]: means of the seeds 2 and 6, of the questions 1, 4 and 7, of all 4; rest ±[1, 0, −1].

    Mean squares: seeds 3·(4 + 4)/1 = 24, questions 2·(9 + 0 + 9)/2 = 18, rest 4/2 = 2; each over SQ = 6.
    """
    y = np.array([[0.0, 2, 4], [2, 6, 10]])
    found, freedom = variance([y], [y.mean(0)], share=False)
    seeds, questions, rest = 24 / 6, 18 / 6, 2 / 6
    assert found == pytest.approx(questions + seeds - rest)
    assert freedom == pytest.approx(found**2 / (seeds**2 / 1 + questions**2 / 2 + rest**2 / 2))


def test_two_arms_add_the_seeds_of_each_and_the_questions_of_their_difference() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(0, 1, (3, 8)) + rng.normal(0, 2, (3, 1)), rng.normal(0, 1, (2, 8)) + rng.normal(0, 2, (2, 1))
    found, _ = variance([a, b], [b.mean(0) - a.mean(0)], share=False)
    expected = (b.mean(0) - a.mean(0)).var(ddof=1) / 8
    for y in (a, b):
        s, q = y.shape
        fitted = y.mean(1, keepdims=True) + y.mean(0) - y.mean()
        rest = ((y - fitted) ** 2).sum() / ((s - 1) * (q - 1))
        expected += max(0, y.mean(1).var(ddof=1) / s - rest / (s * q))
    assert found == pytest.approx(expected)
    one = compare([rows(v) for v in a], [rows(v) for v in b])
    assert present(one.high) - one.value == pytest.approx(stats.t.ppf(0.975, one.freedom) * math.sqrt(expected))


def test_seeds_alone_are_students_t_with_one_degree_less() -> None:
    """Questions that differ in nothing: what is left is the t interval of the seeds' means."""
    levels = [0.2, 0.4, 0.6, 0.8]
    found = single(np.repeat(np.array(levels)[:, None], 50, 1))
    half = stats.t.ppf(0.975, 3) * np.std(levels, ddof=1) / 2
    assert (found.low, found.high, found.freedom) == pytest.approx((0.5 - half, 0.5 + half, 3))


def test_a_negative_component_is_none() -> None:
    y = np.array([[0.0, 1, 0, 1], [1.0, 0, 1, 0]])  # the seeds' means are equal: less apart than chance would have them
    found, _ = variance([y], [np.array([0.0, 1, 0, 1])], share=False)
    assert found == pytest.approx(np.var([0, 1, 0, 1], ddof=1) / 4)


def test_there_are_at_least_the_degrees_of_the_smallest_part() -> None:
    """Questions 1/36, seeds 1/36 less a rest of 7/36, so none: Satterthwaite's would be 0.04."""
    y = np.array([[2.0, 3, 4], [3, 3, 2]])
    assert variance([y], [y.mean(0)], share=False) == pytest.approx((1 / 36, 1))


def test_a_ratio_is_the_delta_methods() -> None:
    """r = Σv/Σw: its error is that of the residuals v − r w; not of v, whose spread is mostly that of the lengths."""
    rng = np.random.default_rng(2)
    weights = rng.integers(5, 100, 60).astype(float)
    values = 2 * weights + rng.normal(0, 1, 60)
    one = rows(values, weights=weights)
    r = values.sum() / weights.sum()
    assert one.influence.mean() == pytest.approx(r) == one.estimate
    error = math.sqrt(((values - r * weights) ** 2).sum() * 60 / 59) / weights.sum()
    found = compare([rows(np.zeros(60), weights=weights)], [one])
    assert present(found.high) - found.value == pytest.approx(stats.t.ppf(0.975, 59) * error)
    kept = [np.delete(values, i).sum() / np.delete(weights, i).sum() for i in range(60)]
    assert error == pytest.approx(math.sqrt(59 * np.var(kept)), rel=0.05)  # the jackknife


def test_shares_without_a_difference_leave_room_for_one() -> None:
    same = compare([rows(np.ones(30), share=True)], [rows(np.ones(30), share=True)])
    assert same.value == 0
    assert same.high == pytest.approx(stats.t.ppf(0.975, 29) * math.sqrt(1 / (30 * 31))) == -present(same.low)
    all_right = single(np.ones((1, 30)), share=True)
    assert all_right.high == 1 and 0.9 < present(all_right.low) < 0.95
    apart = compare([rows(np.zeros(3), share=True)], [rows(np.ones(3), share=True)])
    assert apart.high == 1


def test_nothing_differs_and_one_question() -> None:
    found = compare([rows([1.0, 0.5, 1.0])], [rows([1.0, 0.5, 1.0])])
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    one = compare([rows([0.0])], [rows([1.0])])
    assert (one.value, one.low, one.high, one.p) == (1, None, None, None)
    collapsed = compare([rows([1.0, 2.0])], [rows([1.0, math.inf])])
    assert (collapsed.value, collapsed.low) == (math.inf, None)


def test_an_arm_of_unlike_questions_is_refused() -> None:
    with pytest.raises(ValueError, match="different questions"):
        compare([rows([0.0, 1.0]), rows([0.0, 1.0], "others")], [rows([0.0, 1.0])])


@pytest.mark.parametrize(("seeds", "spread"), [(2, 0.0), (2, 0.5), (3, 0.5), (5, 2.0)])
def test_the_interval_holds_the_truth(seeds: int, spread: float) -> None:
    """1,000 data sets each; docs/bench/coverage.py does more, at more settings."""
    rng, held = np.random.default_rng(seeds), 0
    for _ in range(1000):
        y = rng.normal(0, spread, (2, seeds, 1)) + rng.normal(0, 1.5, 30) + rng.normal(0, 0.7, (2, 1, 30))
        y = y + rng.normal(0, 0.7, (2, seeds, 30))
        found = compare([rows(v) for v in y[0]], [rows(v) for v in y[1]])
        held += present(found.low) <= 0 <= present(found.high)
    assert 0.93 <= held / 1000 <= 0.985
