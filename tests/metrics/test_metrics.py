"""Hand-computed values, degenerate cases, and the same numbers from other implementations."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from ilu_cli.benchmarks import estimate, mean_and_error, perplexity
from ilu_cli.metrics import membership, tofu
from ilu_cli.metrics.memorisation import exact_memorisation, extraction_strength
from ilu_cli.metrics.text import coherence, repetition, rouge_l


def longest_common(a: list[str], b: list[str]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [("the cat sat on the mat", "the cat lay on a mat"), ("a b c d", "d c b a"), ("x", "x"), ("one two", "three")],
)
def test_rouge_l_is_the_longest_common_subsequence(reference: str, candidate: str) -> None:
    a, b = reference.split(), candidate.split()
    common = longest_common(a, b)
    precision, recall = common / len(b), common / len(a)
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    assert rouge_l(reference, candidate) == pytest.approx(f1)
    assert rouge_l(reference, candidate, recall=True) == pytest.approx(recall)


def test_rouge_l_of_nothing_and_of_stems() -> None:
    assert rouge_l("some words", "") == 0
    assert rouge_l("she writes books", "she write book", recall=True) == pytest.approx(1 / 3)
    assert rouge_l("she writes books", "she write book", recall=True, stem=True) == 1


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [([], 0), ([1, 2, 3], 0), ([1, 2, 3, 4], 0), ([7] * 10, 1 - 1 / 7), ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5)],
)
def test_repetition(tokens: Any, expected: Any) -> None:
    assert repetition(tokens) == pytest.approx(expected)


def test_coherence_sees_loops_noise_and_silence() -> None:
    sentence = list(range(20))
    assert coherence(sentence, 2.0, 3.0) == 1  # likelier than what the original says
    assert coherence(sentence, 3.0 + math.log(4), 3.0) == pytest.approx(0.25)
    assert coherence([5] * 20, 0.1, 3.0) == pytest.approx(1 / 17)  # a loop, however likely
    assert coherence([], 0.0, 3.0) == 0


@pytest.mark.parametrize(
    ("hits", "exact", "strength"),
    [("0000", 0, 0), ("1111", 1, 1), ("1110", 0.75, 0), ("0001", 0.25, 0.25), ("0111", 0.75, 0.75), ("1", 1, 1),
     ("0", 0, 0), ("1011", 0.75, 0.5)],
)  # fmt: skip
def test_memorisation(hits: str, exact: float, strength: float) -> None:
    flags = [h == "1" for h in hits]
    assert exact_memorisation(flags) == exact
    assert extraction_strength(flags) == strength
    by_definition = min(k for k in range(len(flags) + 1) if all(flags[k:]))
    assert extraction_strength(flags) == 1 - by_definition / len(flags)


@pytest.mark.parametrize("measure", [exact_memorisation, extraction_strength])
def test_memorisation_of_nothing_is_refused(measure: Any) -> None:
    with pytest.raises(ValueError, match="without tokens"):
        measure([])


def scores(logp: list[float], mean: float = -2.0, std: float = 0.5) -> membership.TokenScores:
    n = len(logp)
    return membership.TokenScores(np.array(logp), np.full(n, mean), np.full(n, std), np.zeros(n, bool))


def test_membership_scores_by_hand() -> None:
    s = scores([-1.0, -4.0, -2.0, -3.0, -0.5])
    assert membership.loss(s) == pytest.approx(-2.1)
    assert membership.min_k(s, 0.4) == pytest.approx(-3.5)
    assert membership.min_k(s, 0.5) == pytest.approx(-3.5)  # int(2.5) tokens, as the authors' code counts
    assert membership.min_k(s, 0.01) == -4  # at least one token
    assert membership.min_k_plus(s, 0.4) == pytest.approx((-4 - 2) / 2)  # (−4+2)/0.5 and (−3+2)/0.5
    assert membership.min_k_plus(scores([-1.0], std=0.0)) == 0
    assert membership.reference(s, scores([-1.0, -1.0])) == pytest.approx(-1.1)
    text = "aaaa" * 50
    assert membership.compressed(s, text) == pytest.approx(-10.5 / len(zlib.compress(text.encode())))


def test_errors_by_hand() -> None:
    """1, 2, 6: mean 3, squares 4 + 1 + 9 = 14 over n − 1 = 2. Ratios: 18/10, residuals 2.8, 0.2 and −3."""
    assert mean_and_error([1, 2, 6]) == pytest.approx((3, math.sqrt(14 / 2 / 3)))
    rows = [{"value": v, "weight": w} for v, w in ((10, 4), (2, 1), (6, 5))]
    error = math.sqrt((2.8**2 + 0.2**2 + 3**2) * 3 / 2) / 10
    assert estimate(rows) == pytest.approx((1.8, error))
    assert perplexity(rows) == pytest.approx((math.exp(1.8), math.exp(1.8) * error))
    assert math.isnan(mean_and_error([1.0])[1]) and math.isnan(estimate(rows[:1])[1])


def test_auc_is_sklearns_and_its_error_is_delongs() -> None:
    rng = np.random.default_rng(3)
    positive, negative = rng.normal(0.5, 1, 40).round(1), rng.normal(0, 1, 25).round(1)  # rounded: with ties
    parts = membership.auc_parts(positive, negative)
    expected = roc_auc_score([1] * 40 + [0] * 25, np.concatenate([positive, negative]))
    value, error = mean_and_error(np.concatenate(parts).tolist())
    assert value == pytest.approx(expected)
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    delong = wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 25
    assert error == pytest.approx(math.sqrt(delong), rel=0.01)


def test_auc_at_its_ends() -> None:
    one = np.ones(1)
    assert np.concatenate(membership.auc_parts(one, np.zeros(1))).mean() == 1
    assert np.concatenate(membership.auc_parts(np.zeros(3), np.ones(3))).mean() == 0
    assert np.concatenate(membership.auc_parts(one, one)).mean() == 0.5
    with pytest.raises(ValueError, match="both kinds"):
        membership.auc_parts(one, np.zeros(0))


def test_tofu_by_hand() -> None:
    assert tofu.truth_ratio([math.log(0.2), math.log(0.4)], math.log(0.6)) == pytest.approx(0.5)
    assert tofu.geometric_truth_ratio([math.log(0.2), math.log(0.8)], math.log(0.5)) == pytest.approx(0.8)
    assert [tofu.closeness(r) for r in (0.5, 2.0, 1.0, 0.0)] == [0.5, 0.5, 1, 0]
    assert [tofu.truthfulness(r) for r in (0.25, 1.0, 3.0)] == [0.75, 0, 0]
    assert tofu.share_of_right(math.log(0.6), [math.log(0.1), math.log(0.3)]) == pytest.approx(0.6)
    assert tofu.model_utility({"a": 0.5, "b": 1.0, "c": 0.25}) == pytest.approx(3 / (2 + 1 + 4))
    assert tofu.model_utility({"a": 0.0, "b": 1.0}) == 0


def test_forget_quality_is_the_ks_test() -> None:
    same = [0.1, 0.2, 0.3, 0.4]
    assert tofu.forget_quality(same, same) == 1
    apart = tofu.forget_quality(np.linspace(0, 1, 50).tolist(), np.linspace(2, 3, 50).tolist())
    assert apart == pytest.approx(stats.kstest(np.linspace(0, 1, 50), np.linspace(2, 3, 50)).pvalue)
    assert apart < 1e-20
    assert 0 <= tofu.forget_quality([0.1], [0.9]) <= 1


def test_forget_quality_tells_apart_what_only_the_geometric_mean_does() -> None:
    """Wrong answers of probability 0.02 and 0.98, against 0.5 twice: equal arithmetic means, unequal geometric ones."""
    mixed, even = ([math.log(0.02), math.log(0.98)], [math.log(0.5)] * 2)
    arithmetic, geometric = (
        tofu.forget_quality(*[[round(mean(wrong, math.log(0.4)), 9)] * 20 for wrong in (mixed, even)])
        for mean in (tofu.truth_ratio, tofu.geometric_truth_ratio)
    )
    assert tofu.truth_ratio(mixed, 0.0) == pytest.approx(tofu.truth_ratio(even, 0.0))
    assert geometric == pytest.approx(2 / math.comb(40, 20))  # two samples of 20 that nowhere meet
    assert arithmetic == 1
