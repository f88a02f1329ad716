from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ilu_cli import registry
from ilu_cli.errors import near
from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt
    from ilu_cli.recipe.schema import AttackRecipe
    from ilu_cli.recipe.source import Key


def problems(own: Any, key: Key, recipe: AttackRecipe) -> Iterator[tuple[Key, str]]:
    benches = [registry.benchmark[name].obj for name in recipe.eval.names if name in registry.benchmark]
    known = [wording for bench in benches if bench.role == "forget" for wording in bench().rephrasings([])]
    if not known:
        yield ("eval", "benchmarks"), "none is a forget benchmark with other wordings, so there is nothing to rephrase"
    for i, name in enumerate(own.wordings or []):
        if known and name not in known:
            yield (*key, "wordings", i), f"unknown wording {name!r}.{near(name, known)} Known: {', '.join(known)}"


@attack(strength="wording", access="prompts", unattacked=0, utility=False, problems=problems)
def rephrase(attempt: Attempt, *, wordings: Some[str] | None = None) -> Iterator[int]:
    """Ask in other words and other languages: was the fact forgotten, or the phrase?

    arXiv 2402.16835 (paraphrases and translations). A benchmark lists its wordings in `rephrasings()`; null: all.
    Strengths are their numbers, in that order; the label of a point names the wording.
    """
    known = attempt.rephrasings()
    for name in wordings or known:
        attempt.ask(known[name])
        attempt.name(name)
        yield list(known).index(name) + 1
