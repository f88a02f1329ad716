"""`ilu pipeline`."""

from __future__ import annotations

from typing import Annotated

import typer

from ilu_cli.cli.options import DataRootOption, DryRunOption, JsonOption, PluginOption, RecipeArgument, SetOption, given
from ilu_cli.cli.suite import JobsOption, MarkdownOption, SeedsOption, show


def pipeline(
    recipe: RecipeArgument,
    seeds: SeedsOption = None,
    jobs: JobsOption = 1,
    state: Annotated[bool, typer.Option("--state", help="Show how far it is, and the table so far.")] = False,
    markdown: MarkdownOption = None,
    data_root: DataRootOption = None,
    plugin: PluginOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a grid of methods, environments, attacks and seeds.

    What is done is not done again.
    """
    from ilu_cli.recipe.expand import load_pipeline
    from ilu_cli.runs.store import Store

    flags = given(seeds=(("seeds",), list(range(seeds)) if seeds else None))
    loaded = load_pipeline(recipe, set_ or [], flags)

    from ilu_cli.workflows.pipeline import graph_of

    show(graph_of(loaded, Store()), jobs, plugin or [], state, dry_run, as_json, markdown)
