from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from ilu_cli.recipe.specs import Fraction
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(strength="steps", access="weights", unattacked=0, utility=False, alone=False)
def gcg(
    attempt: Attempt,
    *,
    tokens: PositiveInt = 8,
    share: Fraction = 0.5,
    steps: PositiveInt = 20,
    batch: PositiveInt = 8,
    width: PositiveInt = 32,
    top: PositiveInt = 64,
) -> Iterator[int]:
    """Search words that call the answer back when they stand after a question; on some questions, and ask the others.

    Greedy coordinate gradient (arXiv 2307.15043; see `ilu_cli.engine.suffix`). The suffix of `tokens` tokens is one for
    all questions, and is searched with the answers of a `share` T of them, drawn by the seed, `batch` a step, of which
    `width` other suffixes are tried. All points, the one before the attack too, are of the other questions V, with
    which T shares no subject and no answer. It asks by text: who has found the suffix needs nothing but the prompt. As
    with `soft_prompt` this means nothing without the reference line: the original under the same search.

    Raises:
        UsageError: if T or V is empty, or the tokenizer keeps no suffix; the plan refuses too a suffix that does not
            fit into the model's context beside a question.
    """
    from ilu_cli.attacks import quartiles
    from ilu_cli.engine.suffix import search

    scorer, sides = attempt.scorer, attempt.parted(share, "gcg")
    held = {bench: asked for bench, (_, asked) in sides.items()}
    attempt.ask(held)
    yield 0
    for taught, _ in sides.values():
        attempt.record(taught, "attack fit")
    pairs = [(e.prompt, e.target) for taught, _ in sides.values() for e in taught.examples()]
    found = search(scorer, pairs, tokens=tokens, steps=steps, batch=batch, width=width, top=top, seed=attempt.seed)
    for done, suffix in enumerate(found, 1):
        if done in quartiles(steps):
            attempt.note(f"the suffix after {done} steps: {suffix.text!r}")
            attempt.ask(
                {b: [i | {"question": i["question"] + suffix.text} for i in asked] for b, asked in held.items()}
            )
            yield done
