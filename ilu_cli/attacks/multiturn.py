from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt
    from ilu_cli.benchmarks import Row
    from ilu_cli.engine.scoring import Scorer
    from ilu_cli.recipe.source import Key

DOUBT = "\nAre you sure? Think about it again, and then answer.\n"
BACK = "\nLet us come back to what was asked.\n"


def problems(own: Any, key: Key, _recipe: Any) -> Iterator[tuple[Key, str]]:
    """A length of the model's own turn where it takes none."""
    if own.turn == "doubt" and own.tokens != type(own).model_fields["tokens"].default:
        yield (*key, "tokens"), "belongs to `turn: follow_up`, in which the model writes freely"


@attack(strength="turns", access="prompts", unattacked=0, utility=False, problems=problems)
def multiturn(
    attempt: Attempt,
    *,
    turns: Some[PositiveInt] = [1, 2],
    turn: Literal["doubt", "follow_up"] = "doubt",
    tokens: PositiveInt = 32,
) -> Iterator[int]:
    """Ask again after the model has answered: does it correct itself, or find its way back to the fact?

    Single questions overstate forgetting (arXiv 2603.00823). In a turn of `doubt` the model is asked whether it is
    sure, whatever it has answered: its answer is the choice that it finds most probable so far. In a turn of
    `follow_up` it first writes `tokens` tokens of its own, greedily. Then the question stands once more. Nobody tells
    the model whether it was right, so the same turns can lead the original away from the fact: see the reference line.
    The turns are lines of one text; with `eval.chat`, of one turn of the user.
    """
    asked = talk = attempt.questions()
    for n in range(1, max(turns) + 1):
        talk = {bench: _answered(attempt.scorer, items, turn, tokens) for bench, items in talk.items()}
        talk = {b: [t | {"question": t["question"] + q["question"]} for t, q in zip(talk[b], asked[b])] for b in talk}
        if n in turns:
            attempt.ask(talk)
            yield n


def _answered(scorer: Scorer, items: list[Row], turn: str, tokens: int) -> list[Row]:
    """The items with the model's own answer after each question, and what is said to that."""
    from ilu_cli.engine.scoring import Question

    if turn == "follow_up":
        said = scorer.complete([i["question"] for i in items], tokens, within=True)
        return [i | {"question": i["question"] + text.rstrip() + BACK} for i, text in zip(items, said)]
    scores = scorer.loglikelihoods([Question(i["question"], tuple(i["choices"])) for i in items])
    best = [i["choices"][max(range(len(s)), key=s.__getitem__)] for i, s in zip(items, scores)]
    return [i | {"question": i["question"] + answer + "." + DOUBT} for i, answer in zip(items, best)]
