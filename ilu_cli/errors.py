"""Errors that are meant for people, one exit code per kind."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IluError(Exception):
    """Base of every error `ilu` reports without a traceback. `hint` says what to do about it."""

    exit_code = 5

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(IluError):
    """The command line or the recipe is wrong."""

    exit_code = 2


class UnavailableError(IluError):
    """A model, run or dataset is missing, damaged or not what it claims to be."""

    exit_code = 3


class RequirementError(IluError):
    """A requirement that the user set was not met."""

    exit_code = 4


class RunFailed(IluError):
    """The run began and could not be finished."""

    exit_code = 5


class Interrupted(RunFailed):
    """The user stopped the run; it can be continued."""

    exit_code = 130


def near(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known name, or the empty string."""
    lower = {k.lower(): k for k in known}
    match = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)
    return f" Did you mean {lower[match[0]]!r}?" if match else ""
