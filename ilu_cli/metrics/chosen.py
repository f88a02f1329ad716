"""The worst of several attacks without the bias of looking: chosen on some questions, reported on the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SPLITS = 10  # halvings that are averaged, so that the outcome hangs little on any of them


def first_half(n: int) -> np.ndarray:
    """The places of n questions that a search looks at, drawn from a fixed seed; it is reported on the others."""
    return np.sort(np.random.default_rng(1).permutation(n)[: n // 2])


def other_half(n: int) -> np.ndarray:
    """The places of the questions that no search has seen."""
    return np.setdiff1d(np.arange(n), first_half(n))


def chosen_on_the_first(values: Sequence[np.ndarray]) -> np.ndarray:
    """What the candidate that is lowest on the first half scores on the other half, which no search has seen.

    A search is led by its questions from trial to trial, so that its candidates themselves are fitted to them:
    halving what it found afterwards would not help.

    Args:
        values: for each candidate its value on each of its questions, [Q].

    Returns:
        [Q/2] (ties: the first of as many questions, averaged); of a single question its own.
    """
    means = np.array([v[first_half(len(v))].mean() if len(v) > 1 else v.mean() for v in values])
    lowest = [v for v, low in zip(values, np.isclose(means, means.min(), rtol=0, atol=1e-9)) if low]
    n = len(lowest[0])
    alike = np.stack([v for v in lowest if len(v) == n])
    return np.asarray(alike[:, other_half(n)].mean(0) if n > 1 else alike.mean(0))


def chosen_elsewhere(values: np.ndarray) -> np.ndarray:
    """What the lowest candidate scores on questions that did not choose it.

    The lowest of k means over the same questions lies below the lowest true one, for it is also the luckiest: with six
    equal attacks by 0.01 to 0.03. So the questions are halved at random; each half names the candidate of the lowest
    mean on it (ties: all of them, averaged), and its values are taken from the other half (cross-fitting, arXiv
    1608.00060). The mean over the questions is unbiased for the attack that half of the questions would choose, so that
    it is not below the lowest true value on average, but may be above it. The halves are drawn from a fixed seed by the
    place of a question, so that every attack, seed and wording has the same ones.

    Args:
        values: [k, Q], for each candidate its value on each question; the lowest mean is the worst.

    Returns:
        [Q], whose mean is the estimate. Of a single candidate or question these are its own (lowest) values.
    """
    k, n = values.shape
    if k == 1 or n < 2:
        return np.asarray(values[values.mean(1).argmin()])
    rng, total = np.random.default_rng(0), np.zeros(n)
    for _ in range(SPLITS):
        order = rng.permutation(n)
        for half, other in ((order[: n // 2], order[n // 2 :]), (order[n // 2 :], order[: n // 2])):
            means = values[:, half].mean(1)
            total[other] += values[np.isclose(means, means.min(), rtol=0, atol=1e-9)][:, other].mean(0)
    return total / SPLITS
