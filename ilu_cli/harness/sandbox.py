"""lm-eval renders the templates of a task with a plain jinja2, which runs any code that they hold; here they cannot."""

from __future__ import annotations

from typing import Any

import lm_eval.utils
from jinja2.sandbox import SandboxedEnvironment

from ilu_cli.errors import UsageError


class Sandbox(SandboxedEnvironment):
    """jinja2's own sandbox, whose refusals are ours."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """Refuse what jinja2 would answer with an undefined value."""
        raise UsageError(
            f"a template of the task reaches for {attribute!r} of a {type(obj).__name__}, by which code is run",
            hint="templates name the fields of a row; see docs/trust.md",
        )

    def is_safe_callable(self, obj: Any) -> bool:
        """True; what is not safe is refused, not asked about."""
        if not super().is_safe_callable(obj):
            raise UsageError(f"a template of the task calls {obj!r}, which it may not")
        return True


def sandbox() -> None:
    """Put the sandbox in the place of lm-eval's environment, with the same settings and filters."""
    theirs = lm_eval.utils.env
    if isinstance(theirs, Sandbox):
        return
    ours = Sandbox(loader=theirs.loader, undefined=theirs.undefined, keep_trailing_newline=theirs.keep_trailing_newline)
    ours.filters.update(theirs.filters)
    lm_eval.utils.env = ours
