"""`ilu push`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ilu_cli.cli import console
from ilu_cli.cli.options import JsonOption
from ilu_cli.errors import UnavailableError, UsageError


def push(
    run: Annotated[str, typer.Argument(help="Run (id, prefix, path).", show_default=False)],
    name: Annotated[str, typer.Argument(help="Repository on the hub: OWNER/NAME.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private if it is new.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload a run's checkpoint, card and recipe to the hub."""
    from ilu_cli.runs.store import Store
    from ilu_cli.workflows import push as workflow

    store = Store()
    found = store.find(run)
    if found is None:
        raise UnavailableError(f"there is no run {run!r}.{store.near(run)}", hint="`ilu runs` lists the runs")
    plan = workflow.plan(found, name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("pushing asks first, and there is no terminal to answer on", hint="confirm with --yes")
        where = "a private repository" if private else "a public repository, unless it is there and private"
        print(f"{plan.lines()[0]}: {where}. Push? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("not pushed")
    address = workflow.upload(plan, private=private)
    console.out_json(plan.to_json() | {"url": address}) if as_json else console.out(address)
