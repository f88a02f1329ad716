"""`ilu doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ilu_cli.cli import console
from ilu_cli.cli.options import DataRootOption, JsonOption, PluginOption, RecipeArgument, SetOption

if TYPE_CHECKING:
    from ilu_cli.workflows.needs import Need


def doctor(
    recipe: RecipeArgument,
    data_root: DataRootOption = None,
    plugin: PluginOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a recipe needs, and what of it is here.

    And what it will take. Exit code 3 if something is missing.
    """
    from ilu_cli.data.root import data_root as root
    from ilu_cli.workflows.needs import ABSENT, hub_in_reach, needs_of, price, read_recipe

    resolved = read_recipe(recipe, set_ or [])
    online = hub_in_reach()
    needs = needs_of(resolved, online)
    costs, absent = price(resolved, needs), [n for n in needs if n.state in ABSENT]
    facts = {
        "recipe": recipe,
        "command": getattr(resolved, "command", None),
        "data_root": str(root()) if root() else None,
        "hub_in_reach": online,
        "ready": not absent,
        "needs": [n.facts() for n in needs],
        **{f"{name}_bytes": value for name, value in costs.items()},
    }
    if as_json:
        console.out_json(facts)
    else:
        _table(needs, facts)
        missing = ", ".join(dict.fromkeys(n.name for n in absent))
        if absent:
            console.next_step(f"{recipe} is not ready", [f"missing: {missing}"], f"ilu fetch {recipe}", done=False)
        else:
            console.next_step(f"{recipe} is ready", [], console.command_for(facts["command"], recipe))
    if absent:
        raise typer.Exit(3)


def _table(needs: list[Need], facts: dict[str, Any]) -> None:
    from rich.table import Table

    colours = {
        "here": "green",
        "builtin": "green",
        "cached": "green",
        "hub": "cyan",
        "gated": "yellow",
        "missing": "red",
    }
    table = Table(title=f"{facts['recipe']} ({facts['command']})", title_justify="left")
    for column in ("needed", "as", "state", "where", "size"):
        table.add_column(column, overflow="fold", justify="right" if column == "size" else "left")
    for n in needs:
        name = f"{n.name}, {n.split}" if n.split else n.name
        size = console.size(n.bytes) if n.bytes else ""
        table.add_row(name, n.role, f"[{colours.get(n.state, 'green')}]{n.state}[/]", n.where, size)
    console.out_table(table)
    for n in needs:
        if n.todo and n.state != "hub":
            console.out(f"{n.name}: {n.todo}")
    memory, disk = facts["memory_bytes"], facts["disk_bytes"]
    if memory is not None:
        console.out(f"memory: at most about {console.size(memory)} at the peak; disk: {console.size(disk)}")
    if facts["download_bytes"]:
        console.out(f"to download: {console.size(facts['download_bytes'])}")
