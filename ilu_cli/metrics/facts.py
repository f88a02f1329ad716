"""Facts to teach a model again, and others to ask it for: two sides that share no subject and no answer."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LINKED = 0.4  # cosine above which two texts are of one subject


@dataclass(frozen=True)
class Fact:
    """What a question asks for. `names`: the answer is the fact's own words, and not a letter or a yes.

    `about` is the subject in words, where it is known.
    """

    subject: str
    prompt: str
    answer: str
    names: bool = True
    about: str = ""


def subjects_by_words(texts: Sequence[str]) -> list[str]:
    """A subject for each text: those that share many rare words have one.

    Texts are bags of words, weighed by log(n / texts that have the word), so that what all have in common counts
    nothing; those whose cosine is above `LINKED` are linked, and a subject is what hangs together by links. So the
    words of one subject tell little of another's, as the folds of arXiv 2410.08827 are to have little information in
    common.
    """
    import numpy as np
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    bags = [Counter(re.findall(r"\w+", t.lower())) for t in texts]
    known = {w: i for i, w in enumerate(dict.fromkeys(w for bag in bags for w in bag))}
    used = Counter(w for bag in bags for w in bag)
    found = [(i, known[w], c * math.log(len(texts) / used[w])) for i, bag in enumerate(bags) for w, c in bag.items()]
    rows, columns, values = (np.array(x) for x in zip(*found)) if found else (np.zeros(0, int),) * 3
    weights = csr_array((values, (rows, columns)), shape=(len(texts), max(len(known), 1)))
    norms = np.sqrt(weights.multiply(weights).sum(axis=1))
    near = (weights @ weights.T).tocoo()
    linked = near.data > LINKED * norms[near.row] * norms[near.col]
    graph = csr_array((linked[linked], (near.row[linked], near.col[linked])), shape=near.shape)
    return [str(label) for label in connected_components(graph, directed=False)[1]]


def parted(facts: Sequence[Fact], share: float, rng: random.Random) -> tuple[list[int], list[int]]:
    """T and V: whole subjects of about a share of the facts, drawn, and those that share neither subject nor answer."""
    by_subject: dict[str, list[int]] = {}
    for i in rng.sample(range(len(facts)), len(facts)):
        by_subject.setdefault(facts[i].subject, []).append(i)
    taught: list[int] = []
    for members in by_subject.values():
        if len(taught) + len(members) / 2 <= share * len(facts):
            taught += members
    subjects = {facts[i].subject for i in taught}
    told = {facts[i].answer for i in taught if facts[i].names}
    left = [i for members in by_subject.values() for i in members if facts[i].subject not in subjects]
    return taught, [i for i in left if not (facts[i].names and facts[i].answer in told)]
