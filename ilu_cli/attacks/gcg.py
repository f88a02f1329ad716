from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from ilu_cli.recipe.specs import Fraction
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import quartiles
    from ilu_cli.engine.prompted import check_room
    from ilu_cli.engine.suffix import search

    scorer, sides = attempt.scorer, attempt.parted(share, "gcg")
    check_room(scorer, attempt.questions(), tokens, "suffix")
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
