"""Estimates with their intervals: 95% everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ilu_cli.metrics.crossed import Interval, summarised
from ilu_cli.runs.results import Learned, Summary

Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; without one if the data give none. `over` says what the interval ranges over."""

    value: float
    low: float | None = None
    high: float | None = None
    over: str = ""

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval, or the bare value twice."""
        return (self.value if self.low is None else self.low, self.value if self.high is None else self.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is there and does not hold 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a proportion: it stays within [0, 1], and is not empty at 0 and 1."""
    scale = 1 + Z**2 / n
    centre = (share + Z**2 / (2 * n)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def of_summary(summary: Summary | Learned) -> Estimate:
    """A benchmark's result: Wilson's interval for a share, else the normal one; over the examples."""
    value, error = summary.value, summary.stderr
    if summary.kind == "share":
        return Estimate(value, *wilson(value, summary.n), over="examples")
    if error is None:
        return Estimate(value)
    return Estimate(value, value - Z * error, value + Z * error, over="examples")


def of_interval(found: Interval, over: str) -> Estimate:
    """An interval of `metrics.crossed` as the report shows it; `over` is what was sampled."""
    return Estimate(found.value, found.low, found.high, over if found.low is not None else "")


def of_seeds(values: Sequence[float], errors: Sequence[float | None] = (), *, share: bool = True) -> Estimate:
    """Mean over seeds, whose `errors` over the questions count beside their spread; one seed without has no interval.

    See `ilu_cli.metrics.crossed.summarised`.
    """
    known = [e for e in errors if e is not None]
    error = math.sqrt(sum(e**2 for e in known) / len(known)) if known else None
    return of_interval(summarised(values, error, share=share), "seeds")


def of_runs(summaries: Sequence[Summary | Learned]) -> Estimate:
    """The same benchmark on runs that differ in their seed: over seeds and questions, or for one over its examples."""
    if len(summaries) == 1:
        return of_summary(summaries[0])
    values, errors = [s.value for s in summaries], [s.stderr for s in summaries]
    return of_seeds(values, errors, share=summaries[0].kind == "share")
