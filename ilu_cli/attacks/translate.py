from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ilu_cli.attacks import ask_variants, variant_problems
from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(
    strength="language", access="prompts", unattacked=0, utility=False,
    problems=variant_problems("translate", "languages"),
)  # fmt: skip
def translate(attempt: Attempt, *, languages: Some[str] | None = None) -> Iterator[int]:
    """Ask the whole question in another language: did unlearning reach the fact in every language?

    arXiv 2402.16835 and 2406.13748 (what is unlearned in English alone comes back in others). Beyond the wordings of
    `rephrase`, the subject's name is translated too. The choices are those of the benchmark, English names of cities,
    which is as hard for the reference line. null: all languages.
    """
    yield from ask_variants(attempt, "translate", languages)
