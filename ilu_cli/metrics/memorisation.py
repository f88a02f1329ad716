"""How much of a text a model reproduces, from whether each token is the most probable one given those before it."""

from __future__ import annotations

from collections.abc import Sequence


def exact_memorisation(hits: Sequence[bool]) -> float:
    """Share of the tokens that are the most probable next one (arXiv 2205.10770, §2; open-unlearning's EM).

    Raises:
        ValueError: if there is no token.
    """
    if not hits:
        raise ValueError("an answer without tokens has no exact memorisation")
    return sum(hits) / len(hits)


def extraction_strength(hits: Sequence[bool]) -> float:
    """1 − k/T, with k the shortest prefix after which greedy decoding yields all the rest (arXiv 2012.07805).

    In teacher forcing the rest after k is reproduced just if every token from k on is a hit. If the last token is none,
    k = T and the strength is 0; open-unlearning's loop ends at T − 1 and so gives 1/T to an answer that is all wrong.

    Raises:
        ValueError: if there is no token.
    """
    if not hits:
        raise ValueError("an answer without tokens has no extraction strength")
    last_miss = max((i for i, hit in enumerate(hits) if not hit), default=-1)
    return 1 - (last_miss + 1) / len(hits)
