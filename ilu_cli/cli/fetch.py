"""`ilu fetch`."""

from __future__ import annotations

from ilu_cli.cli import console
from ilu_cli.cli.options import Given, RecipeArgument, shares


@shares("source", "data_root", "plugin", "trust_remote_code", "trust_code", "set_", "as_json")
def fetch(recipe: RecipeArgument, *, given: Given) -> None:
    """Download all that a recipe needs into the data root.

    Laid out as the hub lays it out.
    """
    from ilu_cli.data.root import data_root as root
    from ilu_cli.errors import UnavailableError, UsageError
    from ilu_cli.workflows.needs import fetch as workflow
    from ilu_cli.workflows.needs.find import needs_of, read_recipe

    folder = root()
    if folder is None:
        raise UsageError("there is no folder to download into", hint="name one with --data-root, or set ILU_DATA")
    resolved = given.sourced(read_recipe(recipe, given.sets))
    failed = workflow.fetch(needs_of(resolved, online=False), folder, lambda text: console.err().print(text))
    if failed:
        lines = "\n".join(f"  {need.hub or need.name}: {reason}" for need, reason in failed)
        hint = next((n.todo for n, _ in failed if n.state == "gated"), "check the network; what came is kept")
        raise UnavailableError(f"{len(failed)} of what {recipe} needs could not be had:\n{lines}", hint=hint)
    needs = [need.facts() for need in needs_of(resolved, online=False)]
    console.out_json({"data_root": str(folder), "needs": needs}) if given.as_json else console.out(str(folder))
    console.next_step(f"fetched: {recipe}", [f"data and models are in {folder}"], f"ilu doctor {recipe}")
