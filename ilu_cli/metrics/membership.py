"""Membership inference: scores of a text, higher for what looks trained on, and how well they separate two sets."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class TokenScores:
    """Per scored token of a text, all [T].

    logp is its log-probability; mean and std are those of log p over the vocabulary, weighted with p; hit says whether
    it is the most probable one.
    """

    logp: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    hit: np.ndarray


def _lowest(values: np.ndarray, share: float) -> float:
    """Mean of the lowest `share` of the values, at least one."""
    count = max(1, int(share * len(values)))
    return float(np.partition(values, count - 1)[:count].mean())


def loss(tokens: TokenScores) -> float:
    """Mean log-probability per token (arXiv 1709.01604: a low loss betrays a member)."""
    return float(tokens.logp.mean())


def compressed(tokens: TokenScores, text: str) -> float:
    """Log-probability of the text per byte of its zlib compression (arXiv 2012.07805, §5.2)."""
    return float(tokens.logp.sum()) / len(zlib.compress(text.encode()))


def min_k(tokens: TokenScores, share: float = 0.2) -> float:
    """Min-K%: mean log-probability of the least probable tokens (arXiv 2310.16789, eq. 1)."""
    return _lowest(tokens.logp, share)


def min_k_plus(tokens: TokenScores, share: float = 0.2) -> float:
    """Min-K%++: as Min-K%, of (log p − μ)/σ, μ and σ over the next-token distribution (arXiv 2404.02936, eq. 3, 4).

    Where all of the vocabulary is equally probable σ is 0 and the token counts 0.
    """
    centred = tokens.logp - tokens.mean
    return _lowest(np.divide(centred, tokens.std, out=np.zeros_like(centred), where=tokens.std > 1e-6), share)


def reference(tokens: TokenScores, original: TokenScores) -> float:
    """Mean log-probability per token minus that under a reference model (arXiv 2012.07805, §5.2)."""
    return loss(tokens) - loss(original)


def auc_parts(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The area under the ROC curve as one number per text, so that it is a mean as any other result.

    With V_i the share of negatives below positive i (ties half) and W_j that of positives above negative j, the mean of
    either is the AUC A. The values A + (N/m)(V_i − A) and A + (N/n)(W_j − A), N = m + n, have the mean A together, and
    the variance of that mean is DeLong's, S_V/m + S_W/n: they are A's influence values.

    Args:
        positive: [m] scores, higher meaning positive.
        negative: [n] scores.

    Raises:
        ValueError: if a set is empty.
    """
    m, n = len(positive), len(negative)
    if not m or not n:
        raise ValueError("an AUC needs texts of both kinds")
    ranks = rankdata(np.concatenate([positive, negative]))
    above = (ranks[:m] - rankdata(positive)) / n
    below = 1 - (ranks[m:] - rankdata(negative)) / m
    auc = above.mean()
    return auc + (m + n) / m * (above - auc), auc + (m + n) / n * (below - auc)
