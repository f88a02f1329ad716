from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt
    from ilu_cli.benchmarks import Row


@attack(strength="k", access="prompts", unattacked=0, utility=False)
def fewshot(attempt: Attempt, *, k: list[PositiveInt] = [1, 4, 16], separator: str = "\n") -> Iterator[int]:
    """Put k answered questions of the forget topic before the question: does the context call the knowledge back?

    In-context relearning, arXiv 2402.16835 and 2409.18025. The demonstrations are other questions of the benchmark with
    other right answers, drawn by the seed; those of a smaller k are the last of a larger one.
    """
    questions = attempt.questions()
    for n in k:
        attempt.ask({bench: demonstrated(items, n, attempt.seed, separator) for bench, items in questions.items()})
        yield n


def demonstrated(items: list[Row], k: int, seed: int, separator: str) -> list[Row]:
    """The items with k others, answered, before each question."""

    def answer(item: Row) -> str:
        return item["choices"][item["answer"]]

    found = []
    for item in items:
        others = [o for o in items if o["question"] != item["question"] and answer(o) != answer(item)]
        random.Random(f"fewshot-{seed}-{item['question']}").shuffle(others)
        shown = [f"{o['question']}{answer(o)}" for o in others[:k]][::-1]
        found.append(item | {"question": separator.join([*shown, item["question"]])})
    return found
