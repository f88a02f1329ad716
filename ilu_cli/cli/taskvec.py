"""`ilu taskvec`."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from ilu_cli.cli import console
from ilu_cli.cli.options import DryRunOption, JsonOption, RecipeOption, SetOption, given


def taskvec(
    run: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="An unlearning or attack run; default: the latest attack.", show_default=False),
    ] = None,
    include: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--include", help="Glob pattern of the compared weights. Repeatable; default: all."),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show also the layers that unlearning left alone.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare task vectors: does fine-tuning walk back along the unlearning direction?"""
    from ilu_cli.models.subject import find_subject, of_run
    from ilu_cli.recipe.load import digest, find, load
    from ilu_cli.runs.store import Store

    resolved = load("taskvec", find(recipe) if recipe else None, given(include=(("include",), include)), set_ or [])
    store = Store()
    if run:
        subject = find_subject(run, store)
    else:
        from ilu_cli.workflows.vectors import comparable

        subject = of_run(store.latest(comparable, "finished unlearning or attack run"))

    from ilu_cli.workflows import vectors as workflow

    if dry_run:
        roles = workflow.find_roles(subject, store)
        facts: dict[str, Any] = {
            "recipe": resolved.model_dump(),
            "recipe_sha256": digest(resolved),
            "checkpoints": {role: {"id": s.label, "folder": str(s.folder)} for role, s in roles.items()},
        }
        if as_json:
            console.out_json(facts)
        else:
            for role, s in roles.items():
                console.out(f"{role:<10} {s.label}")
        return
    found = workflow.run(resolved, subject, store)  # type: ignore[arg-type]
    if as_json:
        console.out_json({"run": subject.label, **found.as_dict()})
        return
    _tables(found, layers)
    console.out(workflow.verdict(found.grams["all"]))
    console.next_step(f"compared: {subject.label}", [], "ilu list   (other methods, tasks and attacks)")


def _tables(found: Any, every_layer: bool) -> None:
    from rich.table import Table

    checkpoints = Table(title="checkpoints", title_justify="left")
    checkpoints.add_column("role")
    checkpoints.add_column("what", overflow="fold")
    for role, s in found.roles.items():
        checkpoints.add_row(role, s.label)
    console.out_table(checkpoints)
    names = found.grams["all"].names
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    table = Table(title="task vectors", title_justify="left")
    table.add_column("weights")
    for n in names:
        table.add_column(f"‖τ_{n}‖", justify="right")
    for a, b in pairs:
        table.add_column(f"cos(τ_{a}, τ_{b})", justify="right")
    groups = sorted(found.grams, key=lambda g: (g != "all", g == "other", int(g.split()[-1]) if "layer" in g else 0))
    shown = [g for g in groups if g == "all" or every_layer or found.grams[g].norm("u") > 0]
    for group in shown:
        gram = found.grams[group]
        cosines = [gram.cosine(a, b) for a, b in pairs]
        table.add_row(
            group,
            *(f"{gram.norm(n):.4g}" for n in names),
            *("-" if c is None else f"{c:+.4f}" for c in cosines),
        )
    console.out_table(table)
    if len(shown) < len(groups):
        console.out(f"{len(groups) - len(shown)} groups of weights were not touched by unlearning; --layers shows them")
