"""Whose code a command may run: what the user names for this one command, and nothing else.

What was said lies in the environment while the command runs, as `--data-root` does, so that its worker processes hear
of it; a command that is not told anew has forgotten it (`ilu_cli.cli.options`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TypedDict

from ilu_cli.errors import UsageError

REMOTE, FILES = "ILU_SAID_TRUST_REMOTE_CODE", "ILU_SAID_TRUST_CODE"
RAN: dict[str, str] = {}
"""The files of code that this command runs, plug-ins and what task files name, with their sha256."""


class Trusted(TypedDict, total=False):
    """Whose code could run: what the model brings along, and files, with their sha256."""

    remote_code: bool
    code: dict[str, str]


def remote() -> bool:
    """Whether Python code that a model brings along may run: `--trust-remote-code`."""
    return os.environ.get(REMOTE) == "1"


def said(remote_code: bool | None, files: list[Path] | None) -> dict[str, str]:
    """What the environment holds of this."""
    found = {REMOTE: "1"} if remote_code else {}
    return found | ({FILES: os.pathsep.join(str(f.absolute()) for f in files)} if files else {})


def named() -> list[Path]:
    """The files of `--trust-code`."""
    return [Path(text) for text in os.environ.get(FILES, "").split(os.pathsep) if text]


def is_named(file: Path) -> bool:
    """Whether `--trust-code` names this very file."""
    return any(known.is_file() and file.is_file() and known.samefile(file) for known in named())


def digest(file: Path) -> str:
    """sha256 of a file of code."""
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()


def note(file: Path) -> None:
    """Remember that this file is run."""
    RAN[str(file)] = digest(file)


def record() -> Trusted:
    """How a manifest tells whose code could run; empty if none could."""
    code = {str(f): digest(f) for f in named()} | RAN
    found = Trusted()
    if remote():
        found["remote_code"] = True
    if code:
        found["code"] = code
    return found


def codes(recorded: Trusted) -> list[str]:
    """The sha256 of every file of a record."""
    return sorted(set((recorded.get("code") or {}).values()))


def codes_of(kind: type) -> list[str]:
    """The sha256 of the files that a class and those above it stand in, but for ours."""
    modules = [sys.modules.get(c.__module__) for c in kind.__mro__ if c.__module__.partition(".")[0] != "ilu_cli"]
    return [digest(Path(file)) for m in modules if (file := getattr(m, "__file__", None))]


def changed(then: Trusted, now: Trusted) -> bool:
    """Whether a file that both ran, by its name, was another then."""
    before, after = ({Path(f).name: sha for f, sha in (r.get("code") or {}).items()} for r in (then, now))
    return any(before[name] != after[name] for name in before.keys() & after.keys())


def lines(recorded: Trusted) -> list[str]:
    """A record as lines for people; file names without their folders."""
    first = ["Python code that the model brings along (`--trust-remote-code`)"] if recorded.get("remote_code") else []
    code = recorded.get("code") or {}
    return first + [f"`{Path(name).name}`: sha256 `{sha}`" for name, sha in sorted(code.items())]


def check_again(recorded: Trusted, what: str) -> None:
    """Whoever uses the model of a run that ran a model's own code must say it again: nothing is inherited.

    Raises:
        UsageError: if it is not said.
    """
    if recorded.get("remote_code") and not remote():
        raise UsageError(
            f"{what} was made with --trust-remote-code: its model brings Python code along, which is not run unasked",
            hint="read the *.py files beside its config.json; --trust-remote-code runs them",
        )


def check_same(recorded: Trusted, what: str) -> None:
    """A run that goes on runs the code that it began with.

    Raises:
        UsageError: if a file is not named again, or was changed.
    """
    check_again(recorded, what)
    if remote() and not recorded.get("remote_code"):
        raise UsageError(f"{what} was begun without --trust-remote-code", hint="leave it out")
    code = recorded.get("code") or {}
    now = set((record().get("code") or {}).values())
    for name, sha in code.items():
        if sha not in now:
            raise UsageError(
                f"{what} was begun with {name} (sha256 {sha[:12]}…), which is not named now, or was changed",
                hint="name the same file again with --plugin or --trust-code",
            )
