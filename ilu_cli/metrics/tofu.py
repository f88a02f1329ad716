"""The measures of TOFU (arXiv 2401.06121, §2.2), from mean log-probabilities per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import hmean, ks_2samp


def truth_ratio(wrong: Sequence[float], paraphrase: float) -> float:
    """R = mean over wrong answers of P(wrong|q)^(1/T), divided by P(paraphrase|q)^(1/T) (§2.2.1).

    The mean is arithmetic, as in the paper and in the authors' model utility.

    Args:
        wrong: mean log-probability per token of every wrong answer.
        paraphrase: that of the paraphrased right answer.
    """
    return float(np.exp(np.asarray(wrong) - paraphrase).mean())


def geometric_truth_ratio(wrong: Sequence[float], paraphrase: float) -> float:
    """As `truth_ratio` with the geometric mean, exp of the mean log-probability: the authors' code in forget quality.

    (Theirs is its inverse, which is the same to a test of ranks.)
    """
    return float(np.exp(np.mean(wrong) - paraphrase))


def closeness(ratio: float) -> float:
    """Of the forget set: min(R, 1/R), 1 where a right answer is no likelier than a wrong one."""
    return min(ratio, 1 / ratio) if ratio > 0 else 0.0


def truthfulness(ratio: float) -> float:
    """Of the other sets: max(0, 1 − R), higher where the right answer is likelier."""
    return max(0.0, 1 - ratio)


def share_of_right(right: float, wrong: Sequence[float]) -> float:
    """P(right) / (P(right) + Σ P(wrong)) of the length-normalised probabilities: real authors and world facts."""
    return float(1 / (1 + np.exp(np.asarray(wrong) - right).sum()))


def model_utility(parts: Mapping[str, float]) -> float:
    """Harmonic mean of probability, ROUGE and truthfulness on the three kept sets (§2.2.1); 0 if one is 0."""
    return float(hmean(list(parts.values())))


def forget_quality(unlearned: Sequence[float], retain: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test between truth ratios on the forget set (§2.2.2).

    The authors' code gives it geometric ones, unlike the rest of its measures. A high value: the unlearned model cannot
    be told from one that never saw the forget set.
    """
    return float(ks_2samp(unlearned, retain).pvalue)
