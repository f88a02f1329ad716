"""Measures of generated text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer

_SCORERS = {stem: RougeScorer(["rougeL"], use_stemmer=stem) for stem in (False, True)}


def rouge_l(reference: str, candidate: str, *, recall: bool = False, stem: bool = False) -> float:
    """ROUGE-L in [0, 1]: the F1 over words as in MUSE (arXiv 2407.06460), or the recall with stems as in TOFU's code.

    An empty candidate scores 0.
    """
    score = _SCORERS[stem].score(reference, candidate)["rougeL"]
    return float(score.recall if recall else score.fmeasure)


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that occurred before: 1 − distinct / all (arXiv 1908.04319, seq-rep-n). 0 if there is none."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def coherence(tokens: Sequence[int], nll: float, original_nll: float) -> float:
    """How far a continuation is neither a loop nor noise, in [0, 1]: (1 − repetition) · min(1, exp(b − a)).

    a is the mean NLL per token of the continuation under the original model, b that of the original's own greedy
    continuation: a text that the original model finds as likely as what it would have said loses nothing. What a
    person wrote is no yardstick: the original is far less sure of it than of any greedy text, damaged or not. A loop
    is likely under any model, so that repetition must count by itself; noise does not repeat itself, so that the
    likelihood must. The measure is ours.

    Args:
        tokens: the continuation; an empty one scores 0.
        nll: a, in nats.
        original_nll: b, in nats.
    """
    if not tokens:
        return 0.0
    return (1 - repetition(tokens)) * math.exp(min(0.0, original_nll - nll))
