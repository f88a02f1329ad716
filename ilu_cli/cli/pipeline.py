"""`ilu pipeline`."""

from __future__ import annotations

from typing import Annotated

import typer

from ilu_cli.cli.options import Flags, Given, RecipeArgument, shares
from ilu_cli.cli.suite import JobsOption, MarkdownOption, SeedsOption, show


@shares("data_root", "plugin", "trust_remote_code", "trust_code", "set_", "dry_run", "as_json", "strict")
def pipeline(
    recipe: RecipeArgument,
    seeds: SeedsOption = None,
    jobs: JobsOption = 1,
    state: Annotated[bool, typer.Option("--state", help="Show how far it is, and the table so far.")] = False,
    markdown: MarkdownOption = None,
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

    from ilu_cli.workflows.pipeline.build import graph_of

    show(graph_of(loaded, Store()), jobs, given, markdown, state=state)
