"""Intervals of a single arm: what is known of its questions is their error only, or runs are paired; against scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ilu_cli.metrics.crossed import Interval, Rows, compare, paired, single, summarised


def row(values: Any, share: bool = False) -> Rows:
    return Rows("q", np.asarray(values, float), np.ones(len(values)), share)


def ends(found: Interval) -> tuple[float | None, ...]:
    return found.value, found.low, found.high, found.p, found.freedom


def students(values: Any) -> tuple[float, ...]:
    """What scipy's t test says of a sample's mean."""
    test = stats.ttest_1samp(values, 0)
    return float(np.mean(values)), *test.confidence_interval(), test.pvalue, len(values) - 1


def test_one_seed_with_the_error_of_its_questions_is_normal() -> None:
    found = summarised([0.4], 0.1)
    assert ends(found) == pytest.approx((0.4, 0.4 - 0.1959964, 0.4 + 0.1959964, 2 * stats.norm.sf(4), math.inf))


def test_several_seeds_without_an_error_are_students() -> None:
    assert ends(summarised([1, 2, 4], None)) == pytest.approx(students([1, 2, 4]))
    assert ends(summarised([-1, 2], None)) == pytest.approx(students([-1, 2]))


def test_seeds_and_an_error_add_up() -> None:
    """s² = 7/3 of three seeds: 7/9, and 9 of the questions; 2 degrees of freedom, times (9 7/9 / (7/9))²."""
    total = 7 / 9 + 9
    freedom = 2 * (total / (7 / 9)) ** 2
    half = stats.t.ppf(0.975, freedom) * math.sqrt(total)
    p = 2 * stats.t.sf(7 / 3 / math.sqrt(total), freedom)
    assert ends(summarised([1, 2, 4], 3.0)) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half, p, freedom))


@pytest.mark.parametrize("values", [[1, 2, 4], [1, 3], [-1.5, -0.5]])
def test_it_is_never_narrower_than_the_seeds_alone(values: Any) -> None:
    """With an error of a tenth the degrees of freedom grow by more than the variance does."""
    assert ends(summarised(values, 0.1)) == pytest.approx(students(values))


def test_equal_seeds_without_an_error_have_an_interval_of_one_point() -> None:
    assert ends(summarised([0.3, 0.3], 0.0)) == (0.3, 0.3, 0.3, 0, math.inf)
    assert ends(summarised([0.0, 0.0], None)) == (0, 0, 0, 1, math.inf)


@pytest.mark.parametrize(("values", "error"), [([0.7], None), ([1, math.inf], 0.1), ([math.inf], None)])
def test_what_has_no_interval(values: Any, error: float | None) -> None:
    found = summarised(values, error)
    assert (found.value, found.low, found.high, found.p) == (np.mean(values), None, None, None)
    assert math.isnan(found.freedom)


def test_seeds_that_answered_one_question_have_none() -> None:
    found = single(np.array([[1.0], [3.0]]))
    assert (found.value, found.low, found.high, found.p) == (2, None, None, None)
    assert math.isnan(found.freedom)


def test_a_share_stays_within_0_and_1_and_nothing_else_does() -> None:
    assert summarised([0.95], 0.1).high == pytest.approx(0.95 + 0.1959964)
    high, low = summarised([0.95], 0.1, share=True), summarised([0.05], 0.1, share=True)
    assert (high.low, high.high) == pytest.approx((0.95 - 0.1959964, 1))
    assert (low.low, low.high) == pytest.approx((0, 0.05 + 0.1959964))
    assert low.p == pytest.approx(2 * stats.norm.sf(0.5)) and low.freedom == math.inf
    half = stats.t.ppf(0.975, 1)
    seeds = single(np.array([[0.0, 0, 0], [2, 2, 2]]))
    assert (seeds.low, seeds.high) == pytest.approx((1 - half, 1 + half))
    assert not Rows("q", np.zeros(2), np.ones(2)).share


def test_pairs_of_seeds_are_the_differences() -> None:
    """b − a = [[0, 2, 4], [2, 6, 10]], whose seeds alone, 2 and 6, have the wider interval."""
    base = np.array([[5.0, 1, 7], [3, 3, 9]])
    y = np.array([[0.0, 2, 4], [2, 6, 10]])
    found = paired([row(a) for a in base], [row(b) for b in base + y])
    assert ends(found) == pytest.approx(students([2, 6]))


def test_pairs_whose_questions_differ_more_than_their_seeds() -> None:
    """The seeds' means are all 10, so that theirs is 0 less a rest: what is left is the spread of the questions'."""
    y = np.array([[0.0, 10, 20], [1, 9, 20], [0, 11, 19]])
    found = paired([row(np.zeros(3))] * 3, [row(v) for v in y])
    profile = [1 / 3, 10, 59 / 3]
    total = np.var(profile, ddof=1) / 3
    rest = ((y - [profile]) ** 2).sum() / 4 / 9
    freedom = total**2 / (total**2 / 2 + rest**2 / 4)
    half = stats.t.ppf(0.975, max(2, freedom)) * math.sqrt(total)
    assert (found.value, found.low, found.high) == pytest.approx((10, 10 - half, 10 + half))


def test_pairs_of_shares_leave_room_and_stay_within_their_bounds() -> None:
    """Three questions, all changed: of variance 0 and half a question more on either side, 1/12."""
    half = stats.t.ppf(0.975, 2) * math.sqrt(1 / 12)
    none, all_ = [row([0, 0, 0], share=True)], [row([1, 1, 1], share=True)]
    up, down = paired(none, all_), paired(all_, none)
    assert (up.low, up.high, down.low, down.high) == pytest.approx((1 - half, 1, -1, half - 1))
    assert up.p == down.p == pytest.approx(2 * stats.t.sf(math.sqrt(12), 2))
    scores = [row([0, 1, 2])]
    for a, b in ((none, scores), ([row([0, 0, 0])], scores)):  # one that is no share, and both
        found = paired(a, b)
        assert ends(found) == pytest.approx(students([0, 1, 2]))
    assert (down.low, compare(all_, none).low, compare(none, all_).high) == (-1, -1, 1)
    apart = compare([row([0, 0, 0])], scores)
    assert apart.high == pytest.approx(1 + stats.t.ppf(0.975, 2) / math.sqrt(3))


def test_the_influence_of_plain_values_is_they_themselves() -> None:
    assert row([0.0, 1, 0.25]).influence.tolist() == [0, 1, 0.25]


def test_two_seeds_add_their_variance_to_that_of_the_questions() -> None:
    """Seeds 1 and 3: s²/2 = 1, beside 900."""
    freedom = 901**2
    half = stats.t.ppf(0.975, freedom) * math.sqrt(901)
    assert ends(summarised([1, 3], 30.0))[:3] == pytest.approx((2, 2 - half, 2 + half))


@pytest.mark.parametrize("values", [[-5.0], [0.0, 0.0], [-5.0, -5.0]])
def test_the_sign_of_the_value_has_no_part_in_the_width(values: list[float]) -> None:
    found = summarised(values, 0.1)
    assert (found.low, found.high) == pytest.approx((values[0] - 0.1959964, values[0] + 0.1959964))


def test_two_questions_have_an_interval() -> None:
    expected = students([0.0, 1.0])
    assert ends(single(np.array([[0.0, 1.0]]))) == pytest.approx(expected)
    assert ends(compare([row([0, 0])], [row([0, 1])])) == pytest.approx(expected)


def test_an_infinite_difference_has_no_interval_and_no_degrees_of_freedom() -> None:
    found = compare([row([1.0, 2.0])], [row([1.0, math.inf])])
    assert (found.value, found.low, found.high, found.p) == (math.inf, None, None, None)
    assert math.isnan(found.freedom)
