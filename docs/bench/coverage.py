"""How often the 95 % intervals hold the truth: those of `ilu compare`, of a pipeline's table and of the worst case.

    python docs/bench/coverage.py [--repeats 2000]

Data: S seeds of two arms answer the same Q questions. Behind each answer is z = μ + a (seed, new in each arm, normal
with the standard deviation of the column) + b (question, sd 1.5) + c (question in this arm, 0.7) + e (0.7): a
continuous score is z, an answer is right if z > 0. A new data set has new seeds and new questions. Then: the lowest of
k equal attacks, as it is and as chosen on other questions (`ilu_cli.metrics.chosen`), against the true value.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

from ilu_cli.metrics.chosen import chosen_elsewhere
from ilu_cli.metrics.crossed import Interval, Rows, compare, single

SEEDS, SPREADS, QUESTIONS = (1, 2, 3, 5, 10), (0.0, 0.25, 0.5, 1.0, 2.0), (30, 170)
SHARED, OWN, REST = 1.5, 0.7, 0.7
KINDS = {"right or wrong, half right": (0.0, 0.6), "right or wrong, nearly all right": (2.5, 3.5), "score": (0.0, 0.6)}


def answers(
    kind: str, seeds: int, questions: int, spread: float, rng: np.random.Generator, together: float = 0.0
) -> np.ndarray:
    """[2, S, Q]: two arms; `together` is the correlation of the seeds of the two arms."""
    common, own = rng.normal(0, spread, (1, seeds, 1)), rng.normal(0, spread, (2, seeds, 1))
    z = np.array(KINDS[kind])[:, None, None] + together**0.5 * common + (1 - together) ** 0.5 * own
    z = z + rng.normal(0, SHARED, questions) + rng.normal(0, OWN, (2, 1, questions))
    z = z + rng.normal(0, REST, (2, seeds, questions))
    return z if kind == "score" else (z > 0).astype(float)


def truth(kind: str, spread: float) -> np.ndarray:
    """The mean of each arm over all seeds and questions."""
    means = np.array(KINDS[kind])
    if kind == "score":
        return means
    sd = (spread**2 + SHARED**2 + OWN**2 + REST**2) ** 0.5
    return np.array([NormalDist().cdf(m / sd) for m in means])


def _rows(values: np.ndarray, share: bool) -> list[Rows]:
    return [Rows("q", v, np.ones(len(v)), share) for v in values]


def difference(y: np.ndarray, share: bool) -> Interval:
    return compare(_rows(y[0], share), _rows(y[1], share))


def level(y: np.ndarray, share: bool) -> Interval:
    return single(y[0], share=share)


def seeds_alone(y: np.ndarray, share: bool) -> Interval:
    """Student's t over the means of the seeds, which all answered the same questions: what must not be done."""
    means = y[0].mean(1)
    half = float(stdtrit(len(means) - 1, 0.975)) * means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else np.nan
    return Interval(means.mean(), means.mean() - half, means.mean() + half, None, len(means) - 1)


def table(
    title: str, find: Callable[[np.ndarray, bool], Interval], at: Callable[[np.ndarray], float], repeats: int,
    together: float = 0.0,
) -> Iterator[str]:  # fmt: skip
    """Markdown: the share of data sets whose interval holds the truth."""
    yield f"\n{title}\n"
    yield "| data | questions | seeds | " + " | ".join(f"sd {s:g}" for s in SPREADS) + " |"
    yield "|---|---|---|" + "---|" * len(SPREADS)
    for kind in KINDS:
        for questions in QUESTIONS:
            for seeds in SEEDS if find is not seeds_alone else SEEDS[1:]:
                cells = []
                for spread in SPREADS if seeds > 1 else SPREADS[:1]:
                    rng, right = np.random.default_rng(0), at(truth(kind, spread))
                    found = [
                        find(answers(kind, seeds, questions, spread, rng, together), kind != "score")
                        for _ in range(repeats)
                    ]
                    cells.append(f"{np.mean([f.low <= right <= f.high for f in found]):.3f}")
                cells += [""] * (len(SPREADS) - len(cells))
                yield f"| {kind} | {questions} | {seeds} | " + " | ".join(cells) + " |"


def worst(repeats: int) -> Iterator[str]:
    """The bias of the lowest of k equal attacks, of one seed."""
    yield "\nThe lowest of k equal attacks: its mean distance from the truth\n"
    yield "| questions | k | the lowest | chosen on other questions | its interval covers |\n|---|---|---|---|---|"
    for questions in QUESTIONS:
        for k in (2, 6, 20):
            rng, plain, other, covered = np.random.default_rng(0), [], [], []
            right = truth("right or wrong, half right", 0.0)[0]
            for _ in range(repeats):
                z = rng.normal(0, SHARED, questions) + rng.normal(0, (OWN**2 + REST**2) ** 0.5, (k, questions))
                y = (z > 0).astype(float)
                found = single(chosen_elsewhere(y)[None], share=True)
                plain.append(y.mean(1).min() - right)
                other.append(found.value - right)
                covered.append(found.low <= right <= found.high)
            cells = [f"{np.mean(plain):+.4f}", f"{np.mean(other):+.4f}", f"{np.mean(covered):.3f}"]
            yield f"| {questions} | {k} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    n = parser.parse_args().repeats
    for line in table("`ilu compare`: the difference of two arms", difference, lambda t: t[1] - t[0], n):
        print(line, flush=True)
    title = "The same, the seeds of the arms correlated by 0.8"
    for line in table(title, difference, lambda t: t[1] - t[0], n, 0.8):
        print(line, flush=True)
    for line in table("A pipeline's table: one arm", level, lambda t: t[0], n):
        print(line, flush=True)
    for line in table("The same by Student's t over the seeds' means alone", seeds_alone, lambda t: t[0], n):
        print(line, flush=True)
    for line in worst(n):
        print(line, flush=True)


if __name__ == "__main__":
    main()
