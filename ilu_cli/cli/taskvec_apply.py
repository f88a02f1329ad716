"""`ilu taskvec-apply`."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from ilu_cli.cli import console
from ilu_cli.cli.options import DryRunOption, JsonOption, OutOption, RecipeOption, SeedOption, SetOption, given


def taskvec_apply(
    runs: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="RUN", help="Runs whose task vectors are added: checkpoint minus parent.", show_default=False
        ),
    ] = None,
    alpha: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option("--alpha", help="Coefficient; one for all, or one for each RUN, in order. Default: 1."),
    ] = None,
    onto: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--onto", help="Run or model to add them to; default: their original.", show_default=False),
    ] = None,
    merge: Annotated[Optional[str], typer.Option("--merge", help="linear, ties, dare or magnitude.")] = None,  # noqa: UP045
    density: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--density", help="Share of the entries that ties, dare and magnitude keep."),
    ] = None,
    seed: SeedOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add task vectors to a model: negation, scaling, TIES, DARE."""
    from ilu_cli.recipe.load import find, load
    from ilu_cli.runs.store import Store

    flags = given(
        RUN=(("vectors",), _vectors(runs or [], alpha or [])),
        onto=(("onto",), onto),
        merge=(("merge",), merge),
        density=(("density",), density),
        seed=(("seed",), seed),
    )
    resolved: Any = load("apply", find(recipe) if recipe else None, flags, set_ or [])

    from ilu_cli.workflows import arithmetic as workflow

    store = Store()
    plan = workflow.plan(resolved, store)
    if dry_run:
        console.out_json(plan.facts) if as_json else console.out(console.plan_text(plan.facts))
        return
    done = workflow.run(plan, store, console.reporter(), out)
    console.out_json(workflow.describe(done)) if as_json else console.out(str(done.path))
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
