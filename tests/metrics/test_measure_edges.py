"""Values at the edges of the measures: ties, shares, single tokens, and what each text adds to an AUC."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ilu_cli.metrics import membership, tofu
from ilu_cli.metrics.text import coherence, repetition, rouge_l


def scores(logp: Any, mean: Any = -2.0, std: Any = 0.5) -> membership.TokenScores:
    n = len(logp)
    return membership.TokenScores(np.array(logp), np.full(n, mean), np.full(n, std), np.zeros(n, bool))


def test_a_fifth_of_the_tokens_unless_told() -> None:
    s = scores([-float(i) for i in range(1, 11)])
    assert membership.min_k(s) == pytest.approx(-9.5)  # two of ten: −9 and −10
    assert membership.min_k_plus(s) == pytest.approx((-9.5 + 2) / 0.5)
    assert membership.min_k(s, 0.39) == pytest.approx(-9)  # 3.9 tokens are 3
    assert membership.min_k(s, 1.0) == pytest.approx(-5.5)


def test_the_lowest_are_found_in_any_order() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 40, 5000):
        values = rng.normal(size=n)
        for share in (0.05, 0.5, 0.95):
            lowest = sorted(values)[: max(1, math.floor(share * n))]
            assert membership.min_k(scores(values), share) == pytest.approx(np.mean(lowest))


def test_a_deviation_that_is_hardly_one_counts_as_none() -> None:
    assert membership.min_k_plus(scores([-2.5], std=1e-6)) == 0
    assert membership.min_k_plus(scores([-2.5], std=1e-3)) == pytest.approx(-500)


def test_what_a_text_adds_to_an_auc() -> None:
    """A is 3.5/6. A text whose share exceeds A pulls the value up, in both sets, by N/m and N/n times the excess."""
    positive, negative = np.array([0.0, 2.0, 3.0]), np.array([1.0, 2.0])
    auc, above, below = 3.5 / 6, np.array([0, 0.75, 1]), np.array([2 / 3, 1.5 / 3])
    v, w = membership.auc_parts(positive, negative)
    assert v == pytest.approx(auc + 5 / 3 * (above - auc))
    assert w == pytest.approx(auc + 5 / 2 * (below - auc))


def test_repetition_counts_grams_of_the_length_asked_for() -> None:
    assert repetition([1, 2, 1, 2, 1], 2) == pytest.approx(1 - 2 / 4)
    assert repetition([1, 2, 1, 2, 1], 1) == pytest.approx(1 - 2 / 5)
    assert repetition([1, 2, 3, 4, 1, 2, 3]) == 0  # no four tokens twice
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)


def test_one_token_is_coherent_or_not_by_its_likelihood() -> None:
    assert coherence([7], 3.0, 3.0) == 1
    assert coherence([7], 4.0, 3.0) == pytest.approx(math.exp(-1))


def test_rouge_is_f1_without_stems_unless_told() -> None:
    assert rouge_l("cats sat", "cat sat here now", recall=True) == pytest.approx(1 / 2)
    assert rouge_l("cats sat", "cat sat here now") == pytest.approx(2 * (1 / 4) * (1 / 2) / (1 / 4 + 1 / 2))


def test_tofu_at_its_edges() -> None:
    assert tofu.closeness(1e-9) == pytest.approx(1e-9)
    assert tofu.truthfulness(1.0) == 0
    assert tofu.truthfulness(0.0) == 1
    assert tofu.share_of_right(-1.0, [-1.0]) == 0.5
