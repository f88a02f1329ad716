"""Hierarchical bootstrap of the difference between two arms: seeds, then samples; paired where samples are shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 500  # resamples drawn at a time


@dataclass(frozen=True)
class Rows:
    """One run's rows of one number: its value is Σ values / Σ weights (a mean if all weights are 1).

    Runs with the same `items` answered the same questions in the same order.
    """

    items: str
    values: np.ndarray
    weights: np.ndarray

    @property
    def estimate(self) -> float:
        return float(self.values.sum() / self.weights.sum())


@dataclass(frozen=True)
class Difference:
    """Arm b minus arm a: estimate, percentile interval, two-sided p."""

    value: float
    low: float
    high: float
    p: float


def compare(a: Sequence[Rows], b: Sequence[Rows], *, level: float = 0.95, resamples: int = 10_000) -> Difference:
    """Bootstrap mean(b) − mean(a), each the mean over the arm's runs.

    A resample draws the runs (seeds) of each arm with replacement, and the samples with replacement, once for all runs
    that have the same samples: the questions of a benchmark are the same for all seeds, so that drawing them anew for
    every seed would average their share of the error away. The p-value is twice the smaller share of resamples on one
    side of 0, each count with one added (Davison and Hinkley 1997, §4.2). The same input gives the same output.

    Args:
        a, b: one entry per run.
        level: of the interval.
        resamples: number of resamples.
    """
    rng = np.random.default_rng(0)
    found = []
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        counts: dict[str, np.ndarray] = {}
        means = []
        for arm in (a, b):
            runs = rng.multinomial(len(arm), np.full(len(arm), 1 / len(arm)), size)  # [R, runs]
            drawn = np.stack([_estimates(r, counts, rng, size) for r in arm], axis=1)
            means.append((runs * drawn).sum(1) / len(arm))
        found.append(means[1] - means[0])
    d = np.concatenate(found)
    value = float(np.mean([r.estimate for r in b]) - np.mean([r.estimate for r in a]))
    low, high = np.quantile(d, [(1 - level) / 2, (1 + level) / 2])
    tail = min((d <= 0).sum(), (d >= 0).sum())
    return Difference(value, float(low), float(high), float(min(1.0, 2 * (tail + 1) / (len(d) + 1))))


def _estimates(rows: Rows, counts: dict[str, np.ndarray], rng: np.random.Generator, size: int) -> np.ndarray:
    n = len(rows.values)
    if rows.items not in counts:
        counts[rows.items] = rng.multinomial(n, np.full(n, 1 / n), size).astype(float)  # [R, n]
    drawn = counts[rows.items]
    return (drawn @ rows.values) / (drawn @ rows.weights)
