"""What results alone tell of a model: guessing, collapse, answers that are always the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from statistics import NormalDist

from ilu_cli.care import Warned
from ilu_cli.metrics.figure import shown
from ilu_cli.runs.results import Learned, Row, Summary

ERRORS = 2  # standard errors
COLLAPSE = 2.0  # perplexity beyond this multiple of the original's
ENOUGH, SAME, SKEWED = 20, 0.99, 0.9  # rows of which anything is said; share with one choice, and where that is right
COHERENT = 0.5
Z = NormalDist().inv_cdf(0.975)


def guesses(value: float, chance: float, n: int) -> bool:
    """Whether a share of right answers is not above chance by 2 standard errors of guessing, √(c(1−c)/n).

    A model that is below chance knows nothing that could be seen to go either. Of less than 20 rows nothing is said.
    """
    return n >= ENOUGH and value <= chance + ERRORS * sqrt(chance * (1 - chance) / n)


def at_chance(what: str, found: Summary) -> Warned | None:
    """Of the original: what it does not know cannot be forgotten, nor be seen to be kept."""
    if found.kind != "share" or found.chance is None or not guesses(found.value, found.chance, found.n):
        return None
    lost = "forgetting" if found.role == "forget" else "loss"
    return Warned(
        "benchmark-at-chance",
        f"Benchmark at chance: {what} answers {found.value:.1%} of {found.benchmark} (n={found.n}, chance "
        f"{found.chance:.0%}) before any unlearning. No {lost} can be seen on it.",
    )


def fa_at_chance(what: str, fa: Learned) -> Warned | None:
    """The accuracy on the attack's own task is that of a constant answer."""
    if fa.chance is None or not guesses(fa.value, fa.chance, fa.n):
        return None
    return Warned(
        "attack-learned-nothing",
        f"The attack learned nothing: after {fa.step} steps {what} answers {fa.value:.1%} of {fa.task} (n={fa.n}), and "
        f"one constant answer gets {fa.chance:.0%}.",
    )


def collapsed(what: str, after: Summary, before: Summary) -> Warned | None:
    """Perplexity of ordinary text has left the original's order of magnitude."""
    error = after.stderr or 0.0
    if after.kind != "loss" or after.value - Z * error <= COLLAPSE * before.value:
        return None
    return Warned(
        "collapsed",
        f"Over-unlearning: {what} reads {after.benchmark} with a perplexity of {shown(after.value, '.3g')}, "
        f"the original with {shown(before.value, '.3g')}. A model that babbles forgets everything.",
    )


def of_rows(name: str, metric: str, role: str, rows: Sequence[Row]) -> Iterator[Warned]:
    """What the rows of one benchmark on one model tell: always the same answer; or text that is loops or noise."""
    asked = [r for r in rows if {"logps", "prediction", "answer"} <= r.keys() and isinstance(r["answer"], int)]
    if len(asked) >= ENOUGH and (said := _constant(asked)):
        yield Warned("constant-answers", f"Constant answers: on {name} the model {said} of {len(asked)} questions.")
    if metric == "coherence" and role == "utility" and rows:
        mean = sum(r["value"] for r in rows) / len(rows)
        if mean < COHERENT:
            text = f"Degenerate text: the coherence of the model's own text is {mean:.2f} ({name}, n={len(rows)})."
            yield Warned("degenerate-text", text)


def _constant(asked: Sequence[Row]) -> str:
    """How the answers are all the same; nothing if they are not."""
    if all(max(r["logps"]) == min(r["logps"]) for r in asked):
        return "finds all choices equally likely in all"
    (choice, times), right = (
        Counter(r["prediction"] for r in asked).most_common(1)[0],
        Counter(r["answer"] for r in asked),
    )
    if times >= SAME * len(asked) and right[choice] <= SKEWED * len(asked):
        return f"takes choice {choice + 1} in {times}"
    return ""


def along(lineage: Sequence[tuple[str, bool, Mapping[str, Summary]]]) -> Iterator[Warned | None]:
    """Of `(name, whether it is the original, summaries)` of a lineage, the first first."""
    for name, original, results in lineage:
        for bench, summary in results.items():
            if original:
                yield at_chance(name, summary)
            elif summary.role == "utility" and lineage[0][1] and (first := lineage[0][2].get(bench)):
                yield collapsed(name, summary, first)
