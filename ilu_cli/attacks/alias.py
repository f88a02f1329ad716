from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ilu_cli.attacks import ask_variants, variant_problems
from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(strength="alias", access="prompts", unattacked=0, utility=False, problems=variant_problems("alias", "names"))
def alias(attempt: Attempt, *, names: Some[str] | None = None) -> Iterator[int]:
    """Call the subject by another name: was the fact forgotten, or what follows after one name?

    Aliases of the subject are one of the probes of RWKU (arXiv 2406.10890). Of the capitals: `official` (the Hellenic
    Republic) and `other`, names of today's country that are in use beside its usual one or were before (Siam, Holland).
    null: all. Only the questions whose subject has such a name are asked, so hold the point against the same point of
    the reference line, not against the point before the attack.
    """
    yield from ask_variants(attempt, "alias", names)
