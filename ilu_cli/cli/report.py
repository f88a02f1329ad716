"""`ilu report`."""

from __future__ import annotations

from typing import Annotated

import typer

from ilu_cli.cli import complete, console, warned
from ilu_cli.cli.options import Given, shares


@shares("plugin", "out", "as_json", "strict")
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN…|PIPELINE]",
            help="Default: the latest run and its whole family.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    *,
    given: Given,
) -> None:
    """Write one page about what was done and what came of it.

    As HTML and Markdown, with the figures as SVG and PNG.
    """
    from ilu_cli.cli.progress import reporter
    from ilu_cli.runs.store import Store
    from ilu_cli.workflows import report as workflow

    paths, told = workflow.run(runs or [], Store(), reporter(), given.out)
    if given.as_json:
        console.out_json(paths | {"warnings": warned.as_json(told)})
        return warned.conclude(told, given)
    lines = [f"figures as SVG and PNG are in {paths['figures']}", "open it in a browser"]
    console.next_step(f"report: {paths['html']}", lines, "ilu runs tree")
    console.out(paths["html"])
    warned.show(told)
    warned.conclude(told, given)
