"""`ilu schema`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ilu_cli.cli import console
from ilu_cli.cli.options import PluginOption


def schema(
    command: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            help="Whose recipe: unlearn, attack, ...; default: any, told apart by `command`.", show_default=False
        ),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from ilu_cli.errors import UsageError, near
    from ilu_cli.recipe.schema import COMMANDS, json_schema

    if command is not None and command not in COMMANDS:
        raise UsageError(
            f"there is no recipe for {command!r}.{near(command, COMMANDS)}", hint=f"one of {', '.join(COMMANDS)}"
        )
    console.out_json(json_schema(command), indent=2)
