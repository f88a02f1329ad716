from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ilu_cli.attacks import ask_variants, variant_problems
from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(strength="path", access="prompts", unattacked=0, utility=False, problems=variant_problems("multihop", "paths"))
def multihop(attempt: Attempt, *, paths: Some[str] | None = None) -> Iterator[int]:
    """Ask for what lies behind the fact, so that it is needed in the middle and never said.

    Multi-hop questions bring out what direct ones do not: arXiv 2603.11266 and 2410.15153. Of the capitals: `river`,
    "The river on which the capital of France lies is called the", with four rivers to choose from. null: all paths. An
    answer can be guessed from where a country lies, and the rivers of some capitals are little known: what counts is
    the difference to the same point of the reference line.
    """
    yield from ask_variants(attempt, "multihop", paths)
