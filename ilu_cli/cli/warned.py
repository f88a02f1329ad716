"""Warnings on stderr, and `--strict`, which makes an error of them when all results are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from ilu_cli.cli import console
from ilu_cli.cli.options import Given
from ilu_cli.errors import RequirementError

if TYPE_CHECKING:
    from ilu_cli.care import Warned
    from ilu_cli.runs.results import Row


def as_json(found: Sequence[Warned]) -> list[Row]:
    """Warnings for `--json`."""
    return [w.to_json() for w in found]


def show(found: Sequence[Warned]) -> None:
    """Each with its id and what to do."""
    err = console.err()
    for w in found:
        err.print(f"warning: {w.text} [{w.id}]", markup=False, soft_wrap=True)
        err.print(f"         {w.remedy}", markup=False, soft_wrap=True, style="dim")


def conclude(found: Sequence[Warned], given: Given) -> None:
    """With `--strict`, exit as a failed requirement does (code 4) if there are warnings that it counts."""
    counted = list(dict.fromkeys(w.id for w in found if w.strict))
    if given.strict and counted:
        error = RequirementError(f"--strict: {len(counted)} kinds of warnings: {', '.join(counted)}; results are kept")
        console.err().print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(error.exit_code)
