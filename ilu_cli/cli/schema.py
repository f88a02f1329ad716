"""`ilu schema`."""

from __future__ import annotations

from typing import Annotated

import typer

from ilu_cli.cli import console
from ilu_cli.cli.around import PluginOption


def schema(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="Whose recipe: unlearn, attack, ...; default: any, told apart by `command`.", show_default=False
        ),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from ilu_cli.errors import UsageError, near
    from ilu_cli.recipe.command import today
    from ilu_cli.recipe.schema import RECIPES, json_schema

    name = today(" ".join(command)) if command else None
    if name is not None and name not in RECIPES:
        raise UsageError(f"there is no recipe for {name!r}.{near(name, RECIPES)}", hint=f"one of {', '.join(RECIPES)}")
    console.out_json(json_schema(name), indent=2)
