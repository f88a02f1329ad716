"""`ilu pipeline`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import typer

from ilu_cli.cli.around import AROUND
from ilu_cli.cli.options import Flags, Given, RecipeArgument, shares
from ilu_cli.cli.suite import BudgetOption, JobsOption, MarkdownOption, SeedsOption, show
from ilu_cli.errors import UsageError


@shares("source", *AROUND, "set_", "dry_run", "as_json", "strict")
def pipeline(
    recipe: RecipeArgument,
    seeds: SeedsOption = None,
    jobs: JobsOption = None,
    state: Annotated[bool, typer.Option("--state", help="Show how far it is, and the table so far.")] = False,
    markdown: MarkdownOption = None,
    budget: BudgetOption = None,
    launcher: Annotated[
        Literal["local", "slurm", "ray"],
        typer.Option("--launcher", help="Who does the nodes: this machine, Slurm, or Ray."),
    ] = "local",
    launcher_options: Annotated[
        list[str] | None,
        typer.Option("--launcher-options", metavar="KEY=VALUE", help="Of submitit or Ray, by their names. Repeatable."),
    ] = None,
    gpus_per_node: Annotated[
        int, typer.Option("--gpus-per-node", min=0, help="GPUs that each node has to itself: 0 or 1.")
    ] = 0,
    *,
    given: Given,
) -> None:
    """Run a grid of methods, environments, attacks and seeds.

    What is done is not done again.
    """
    from ilu_cli.recipe.expand import load_pipeline
    from ilu_cli.runs.store import Store

    flags: Flags = {"--seeds": (("seeds",), list(range(seeds)))} if seeds else {}
    loaded = load_pipeline(recipe, given.sets, flags)
    loaded.methods = [replace(m, recipe=given.sourced(m.recipe)) for m in loaded.methods]
    loaded.variants = [v.sourced(given.source) if given.source else v for v in loaded.variants]

    from ilu_cli.workflows.pipeline.build import graph_of
    from ilu_cli.workflows.pipeline.launchers import Launch

    launch = Launch(launcher, jobs, gpus_per_node, _options(launcher_options or []), given.plugins)
    show(graph_of(loaded, Store()), launch, given, markdown, budget, state=state)


def _options(texts: list[str]) -> dict[str, Any]:
    """`KEY=VALUE`, the value as YAML.

    Raises:
        UsageError: if there is no `=`, or the value is not YAML.
    """
    from ilu_cli.recipe.source import parse_scalar

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--launcher-options {text!r}: KEY=VALUE is needed")
        found[key] = parse_scalar(value, f"--launcher-options {key}: ")
    return found
