from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from ilu_cli.benchmarks import own_choices
from ilu_cli.errors import UsageError
from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt
    from ilu_cli.benchmarks import Row


@attack(strength="k", access="prompts", unattacked=0, utility=False)
def fewshot(attempt: Attempt, *, k: Some[PositiveInt] = [1, 4, 16], separator: str = "\n") -> Iterator[int]:
    """Put k answered questions of the forget topic before the question: does the context call the knowledge back?

    In-context relearning, arXiv 2402.16835 and 2409.18025. The demonstrations are other questions of the benchmark,
    drawn by the seed; those of a smaller k are the last of a larger one. They have other right answers, unless all
    items have the same choices (A, B, C, D), where leaving one out would tell it. A heading that all questions have
    is given once.

    Raises:
        UsageError: if a question has fewer than k others.
    """
    questions = attempt.questions()
    asked = [{b: demonstrated(items, n, attempt.seed, separator) for b, items in questions.items()} for n in k]
    for n, items in zip(k, asked):
        attempt.ask(items)
        yield n


def demonstrated(items: list[Row], k: int, seed: int, separator: str) -> list[Row]:
    """The items with k others, answered, before each question.

    Raises:
        UsageError: if there are fewer.
    """

    def answer(item: Row) -> str:
        return str(item["choices"][item["answer"]])

    def same(a: Row, b: Row) -> bool:
        return a["question"] == b["question"] or (telling and answer(a) == answer(b))

    telling, found = own_choices(items), []
    first, blank, _ = items[0]["question"].partition("\n\n")
    heading = first + blank if blank and all(i["question"].startswith(first + blank) for i in items) else ""
    for item in items:
        others = [o for o in items if not same(o, item)]
        if len(others) < k:
            raise UsageError(
                f"attack.k: there are {len(others)} other questions to show before {item['question'][-60:]!r}, not {k}",
                hint="choose a smaller k, or a larger eval.limit",
            )
        random.Random(f"fewshot-{seed}-{item['question']}").shuffle(others)
        shown = [f"{o['question'].removeprefix(heading)}{answer(o)}" for o in others[:k]][::-1]
        found.append(item | {"question": heading + separator.join([*shown, item["question"].removeprefix(heading)])})
    return found
