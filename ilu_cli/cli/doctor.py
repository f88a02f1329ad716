"""`ilu doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ilu_cli.cli import complete, console
from ilu_cli.cli.around import AROUND
from ilu_cli.cli.options import Given, shares
from ilu_cli.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from ilu_cli.models.subject import Subject
    from ilu_cli.workflows.needs.find import Need


@shares("source", *AROUND, "set_", "as_json")
def doctor(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|MODEL",
            help="A shipped recipe's name or a YAML file; or a run or model.",
            show_default=False,
            autocompletion=complete.recipes,
        ),
    ],
    *,
    given: Given,
) -> None:
    """Say what a recipe needs and what is here; or check a model.

    Of a recipe also what it will take; exit code 3 if something is missing. Of a run or model: how far its losses and
    scores are from plain transformers'; exit code 3 if that is more than rounding.
    """
    from ilu_cli.data.hub import why_silent
    from ilu_cli.data.root import data_root as root
    from ilu_cli.workflows.needs.checkup import model_named
    from ilu_cli.workflows.needs.find import ABSENT, needs_of, price, read_recipe

    if (subject := model_named(recipe)) is not None:
        if given.sets:
            raise UsageError(f"--set changes a recipe, and {recipe} is a model")
        _check_model(subject, given.as_json)
        return
    resolved = given.sourced(read_recipe(recipe, given.sets))
    online = not why_silent()
    needs = needs_of(resolved, online)
    costs, absent = price(resolved, needs), [n for n in needs if n.state in ABSENT]
    facts = {
        "recipe": recipe,
        "command": getattr(resolved, "command", None),
        "data_root": str(root()) if root() else None,
        "hub_in_reach": online,
        "ready": not absent,
        "needs": [n.facts() for n in needs],
        **asdict(costs),
    }
    if given.as_json:
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


def _check_model(subject: Subject, as_json: bool) -> None:
    from rich.table import Table

    from ilu_cli.workflows.needs.checkup import parity_facts

    facts = parity_facts(subject)
    if as_json:
        console.out_json(facts)
    else:
        table = Table(title=f"{facts['model']} ({facts['class']}) against plain transformers", title_justify="left")
        for column in ("compared", "largest difference, nats a token", "tolerance"):
            table.add_column(column, overflow="fold", justify="left" if column == "compared" else "right")
        for name, key in (("loss of a text", "loss"), ("log-probabilities of its tokens", "logps")):
            shown = "not finite" if facts[key] is None else f"{facts[key]:.1e}"
            table.add_row(name, shown, f"{facts['tolerance']:.1e}")
        console.out_table(table)
        shared = "run once (packed trees)" if facts["trees"] else f"run for every request: {facts['why']}"
        console.out(f"beginnings that requests share are {shared}")
        together = "all together" if facts["padded"] else "together where they are of one length: padding changes them"
        console.out(f"texts are continued {together if facts['decodes'] else 'not at all: a cache changes them'}")
    if not facts["holds"]:
        error = UnavailableError(f"{facts['class']} is not supported: its numbers are not those of plain transformers")
        console.err().print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(error.exit_code)
    console.next_step(f"{facts['model']} is scored as plain transformers would", [], f"ilu eval {facts['model']}")


def _table(needs: list[Need], facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

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
        table.add_row(name, n.role, Text(n.state, colours.get(n.state, "green")), n.where, size)
    console.out_table(table)
    for n in needs:
        if n.todo and n.state != "hub":
            console.out(f"{n.name}: {n.todo}")
    memory, disk = facts["memory_bytes"], facts["disk_bytes"]
    if memory is not None:
        console.out(f"memory: at most about {console.size(memory)} at the peak; disk: {console.size(disk)}")
    if facts["download_bytes"]:
        console.out(f"to download: {console.size(facts['download_bytes'])}")
