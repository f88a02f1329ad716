"""Errors that are meant for people, one exit code per kind."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Iterable

# What a terminal acts on instead of showing it: controls, half surrogate pairs, changes of direction.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Text for a terminal: line ends and tabs stay, other controls are written as escapes."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def brief(value: object, most: int = 120) -> str:
    """How a value of the user's is written, cut where it is too long for a message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


@functools.cache
def tell(text: str) -> None:
    """Say it on stderr, once."""
    print(text, file=sys.stderr)


class IluError(Exception):
    """Base of every error `ilu` reports without a traceback. `hint` says what to do about it (default: `remedy`)."""

    exit_code = 5
    remedy: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint or self.remedy


class UsageError(IluError):
    """The command line or the recipe is wrong."""

    exit_code = 2
    remedy = "`--help` after the command says what it takes, `ilu list` what is known"


class UnavailableError(IluError):
    """A model, run or dataset is missing, damaged or not what it claims to be."""

    exit_code = 3
    remedy = "mend or replace what is named here, or name another"


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
