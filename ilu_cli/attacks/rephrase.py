from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ilu_cli.errors import UsageError, near
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(strength="wording", access="prompts", unattacked=0, utility=False)
def rephrase(attempt: Attempt, *, wordings: list[str] | None = None) -> Iterator[int]:
    """Ask in other words and other languages: was the fact forgotten, or the phrase?

    arXiv 2402.16835 (paraphrases and translations). A benchmark lists its wordings in `rephrasings()`; null: all.
    Strengths are their numbers, in that order; the label of a point names the wording.

    Raises:
        UsageError: if no benchmark has other wordings, or not this one.
    """
    known = attempt.rephrasings()
    if not known:
        raise UsageError("rephrase: no forget benchmark of this recipe has other wordings")
    for name in wordings or known:
        if name not in known:
            raise UsageError(
                f"attack.wordings: unknown wording {name!r}.{near(name, known)}", hint=f"known: {', '.join(known)}"
            )
        attempt.ask(known[name])
        attempt.name(name)
        yield list(known).index(name) + 1
