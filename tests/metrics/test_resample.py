"""Intervals agree with scipy's, see pairing, and grow with the spread between seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from ilu_cli.metrics.resample import Rows, compare


def rows(values, items: str = "q", weights=None) -> Rows:
    values = np.asarray(values, float)
    return Rows(items, values, np.ones(len(values)) if weights is None else np.asarray(weights, float))


def test_one_run_each_is_scipys_paired_bootstrap():
    rng = np.random.default_rng(0)
    a = rng.random(80)
    b = a + rng.normal(0.1, 0.2, 80)
    found = compare([rows(a)], [rows(b)])
    other = bootstrap((b - a,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert found.value == pytest.approx((b - a).mean())
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.004)
    assert found == compare([rows(a)], [rows(b)])


def test_other_questions_are_not_paired():
    a = np.random.default_rng(1).random(100)
    paired, apart = compare([rows(a)], [rows(a + 0.05)]), compare([rows(a)], [rows(a + 0.05, "others")])
    assert paired.high - paired.low == pytest.approx(0, abs=1e-9)
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * np.sqrt(2 / 12 / 100), rel=0.1)
    assert paired.p < 0.001 < apart.p


def test_seeds_count():
    same, spread = [rows([0.5] * 50)] * 4, [rows([v] * 50) for v in (0.2, 0.4, 0.6, 0.8)]
    found = compare(same, spread)
    assert found.value == pytest.approx(0)
    assert found.high == pytest.approx(1.96 * np.std([0.2, 0.4, 0.6, 0.8]) / 2, rel=0.1)


def test_a_ratio_is_resampled_as_a_ratio():
    values, weights = [10.0, 40.0], [10, 20]
    assert rows(values, weights=weights).estimate == pytest.approx(50 / 30)
    found = compare([rows([0.0, 0.0], weights=weights)], [rows(values, weights=weights)])
    assert (found.low, found.high) == pytest.approx((1, 2))


def test_nothing_differs():
    found = compare([rows([1.0, 0.0, 1.0])], [rows([1.0, 0.0, 1.0])])
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_one_sample():
    found = compare([rows([0.0])], [rows([1.0])])
    assert (found.low, found.high) == (1, 1)
