"""`ilu push`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ilu_cli.cli import console
from ilu_cli.cli.options import DryRunOption, JsonOption
from ilu_cli.errors import UnavailableError, UsageError


def push(
    run: Annotated[str, typer.Argument(help="Run (id, prefix, path).", show_default=False)],
    name: Annotated[str, typer.Argument(help="Repository on the hub: OWNER/NAME.", show_default=False)],
    private: Annotated[
        bool, typer.Option("--private/--public", help="A new repository is private, unless --public is said.")
    ] = True,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Upload a run's checkpoint, card and recipe to the hub.

    To a private repository. Shows the list of files first.
    """
    from ilu_cli.runs.store import Store
    from ilu_cli.workflows import push as workflow

    store = Store()
    found = store.find(run)
    if found is None:
        raise UnavailableError(f"there is no run {run!r}.{store.near(run)}", hint="`ilu runs` lists the runs")
    plan = workflow.plan(found, name, private=private)
    if dry_run:
        return console.show_plan(plan, as_json)
    print("\n".join(plan.lines()), file=sys.stderr)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("pushing asks first, and there is no terminal to answer on", hint="confirm with --yes")
        whose = "a private repository" if private else "a public repository, which everybody can read"
        print(f"{len(plan.sizes)} files, {sum(plan.sizes.values()) / 1e6:.1f} MB, to {name}: {whose}. Push? [y/N] ",
              end="", file=sys.stderr, flush=True)  # fmt: skip
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("not pushed")
    address = workflow.upload(plan)
    console.out_json({"run": found.id, "url": address, "files": [*plan.sizes]}) if as_json else console.out(address)
