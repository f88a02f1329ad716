from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ilu_cli.attacks import ask_variants, variant_problems
from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(
    strength="wording", access="prompts", unattacked=0, utility=False, problems=variant_problems("rephrase", "wordings")
)
def rephrase(attempt: Attempt, *, wordings: Some[str] | None = None) -> Iterator[int]:
    """Ask in other words and other languages: was the fact forgotten, or the phrase?

    arXiv 2402.16835 (paraphrases and translations). A benchmark lists its wordings in `rephrasings()`; null: all.
    Strengths are their numbers, in that order; the label of a point names the wording.
    """
    yield from ask_variants(attempt, "rephrase", wordings)
