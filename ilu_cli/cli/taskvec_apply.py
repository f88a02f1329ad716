"""`ilu taskvec apply`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ilu_cli.cli import console
from ilu_cli.cli.options import Flags, Given, Sets, shares


@shares("seed", "trust_remote_code", "recipe", "set_", "out", "dry_run", "as_json")
def taskvec_apply(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN", help="Runs whose task vectors are added: checkpoint minus parent.", show_default=False
        ),
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option("--alpha", help="Coefficient; one for all, or one for each RUN, in order. Default: 1."),
    ] = None,
    onto: Annotated[
        str | None,
        typer.Option("--onto", help="Run or model to add them to; default: their original.", show_default=False),
        Sets(("onto",)),
    ] = None,
    merge: Annotated[
        str | None, typer.Option("--merge", help="linear, ties, dare or magnitude."), Sets(("merge",))
    ] = None,
    density: Annotated[
        float | None,
        typer.Option("--density", help="Share of the entries that ties, dare and magnitude keep."),
        Sets(("density",)),
    ] = None,
    *,
    given: Given,
) -> None:
    """Add task vectors to a model: negation, scaling, TIES, DARE."""
    from ilu_cli.recipe.load import find, load
    from ilu_cli.recipe.schema import ApplyRecipe
    from ilu_cli.runs.store import Store

    vectors: Flags = {"RUN": (("vectors",), found)} if (found := _vectors(runs or [], alpha or [])) else {}
    path = find(given.recipe) if given.recipe else None
    resolved = load(ApplyRecipe, path, vectors | given.flags, given.sets)

    from ilu_cli.cli.progress import reporter
    from ilu_cli.workflows.taskvec import apply as workflow

    store = Store()
    plan = workflow.plan(resolved, store)
    if given.dry_run:
        return console.show_plan(plan, given.as_json)
    done = workflow.run(plan, store, reporter(), given.out)
    console.out_json(workflow.describe(done)) if given.as_json else console.out(str(done.path))
    console.next_step(f"applied: {done.id}", [], f"ilu eval {done.id}")


def _vectors(runs: list[str], alphas: list[float]) -> list[dict[str, Any]] | None:
    """The recipe's vectors; None leaves those of the recipe file.

    Raises:
        UsageError: if there are neither one coefficient nor as many as runs.
    """
    from ilu_cli.errors import UsageError

    if len(alphas) not in (0, 1, len(runs)) or (alphas and not runs):
        raise UsageError(f"{len(alphas)} --alpha for {len(runs)} runs: give one, or one for each RUN")
    each = alphas if len(alphas) == len(runs) else (alphas or [1.0]) * len(runs)
    return [{"run": run, "alpha": a} for run, a in zip(runs, each)] or None
