"""Whether text around a forget topic tells a fact of it: by answers, by words beside a subject, by runs of words."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from ilu_cli.care.overlap import sharing, within, words
from ilu_cli.metrics.facts import Fact

Why = Literal["", "answer", "words of an answer", "forget text", "attack text"]
SHORT = 6  # words: an answer of no more is told by its words in a row, a longer one by rare words beside its subject
RUN = 5  # words in a row that a text has of the forget data are too many
RARE = 0.05  # share of the subjects in whose answers a rare word stands at most
NAME = re.compile(r"(?<![.?!:\n] )(?<!^)\b[A-Z][\w'-]+(?: [A-Z][\w'-]+)*")


def plain(text: str) -> list[str]:
    """The words of a text without accents: Bogotá is told by Bogota too."""
    apart = unicodedata.normalize("NFD", text)
    return words("".join(c for c in apart if unicodedata.category(c) != "Mn"))


@dataclass
class Untold:
    """What near text must not say.

    `answers`: their words, by how many; `beside`: of each subject its words and the rare words of its long answers;
    `forget` and `attacks`: texts of which no run of `RUN` words, and no row, may stand in it.
    """

    answers: dict[int, set[tuple[str, ...]]] = field(default_factory=dict)
    beside: list[tuple[tuple[str, ...], set[str]]] = field(default_factory=list)
    forget: Sequence[str] = ()
    attacks: Sequence[str] = ()

    @classmethod
    def of(cls, facts: Sequence[Fact], forget: Sequence[str], attacks: Sequence[str]) -> Untold:
        """Answers are named by facts; what follows a comma in one (`Washington, D.C.`) may be left out."""
        found = cls(forget=forget, attacks=attacks)
        long: dict[str, set[str]] = defaultdict(set)
        for fact in (f for f in facts if f.names):
            for said in {fact.answer, fact.answer.partition(",")[0]}:
                if 0 < len(told := tuple(plain(said))) <= SHORT:
                    found.answers.setdefault(len(told), set()).add(told)
            if len(whole := plain(fact.answer)) > SHORT:
                long[fact.about] |= set(whole)
        used = Counter(w for each in long.values() for w in each)
        most = max(1, RARE * len(long))
        for about, told_of in long.items():
            subject = tuple(plain(about))
            rare = {w for w in told_of if used[w] <= most and (len(w) > 3 or w.isdigit())} - set(subject)
            found.beside += [(subject, rare)] if subject else []
        return found

    def why(self, texts: Sequence[str]) -> list[Why]:
        """Why each text cannot stand; nothing of those that can."""
        taken: set[int] = set(sharing(texts, self.forget, RUN))
        attacked = within(texts, self.attacks).keys() | set(within(self.attacks, texts).values())
        found: list[Why] = []
        for i, text in enumerate(texts):
            told = plain(text)
            if any(holds(told, n, known) for n, known in self.answers.items()):
                found.append("answer")
            elif any(holds(told, len(s), {s}) and rare & set(told) for s, rare in self.beside):
                found.append("words of an answer")
            else:
                found.append("forget text" if i in taken else "attack text" if i in attacked else "")
        return found


def holds(told: Sequence[str], n: int, known: Set[tuple[str, ...]]) -> bool:
    """Whether some n words in a row are among the known ones."""
    return any(tuple(told[i : i + n]) in known for i in range(len(told) - n + 1))


def subjects_of(facts: Sequence[Fact]) -> Iterator[Fact]:
    """The facts with what they are about in words: theirs, else the name that stands most often in their subject's."""
    texts: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        texts[fact.subject] += [fact.prompt, fact.answer]
    for fact in facts:
        names = Counter(n for t in texts[fact.subject] for n in NAME.findall(t))
        about = fact.about or (names.most_common(1)[0][0] if names else "")
        yield Fact(fact.subject, fact.prompt, fact.answer, fact.names, about)


def rare_words(texts: Sequence[str], general: Sequence[str], most: int) -> list[str]:
    """The words of a topic: those of `texts` that general text has least, the most frequent first.

    By count · log((1 + words of general text) / (1 + count there)); words of less than four letters are left out.
    """
    mine, theirs = (Counter(w for t in part for w in plain(t)) for part in (texts, general))
    size = sum(theirs.values())
    weight = {w: n * math.log((1 + size) / (1 + theirs[w])) for w, n in mine.items() if len(w) > 3 and w.isalpha()}
    return sorted(weight, key=lambda w: (-weight[w], w))[:most]
