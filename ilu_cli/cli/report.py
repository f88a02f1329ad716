"""`ilu report`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ilu_cli.cli import complete, console
from ilu_cli.cli.options import JsonOption, OutOption


def report(
    runs: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="[RUN…|PIPELINE]",
            help="Default: the latest run and its whole family.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one page about what was done and what came of it.

    As HTML and Markdown, with the figures as SVG and PNG.
    """
    from ilu_cli.runs.store import Store
    from ilu_cli.workflows import report as workflow

    paths = workflow.run(runs or [], Store(), console.reporter(), out)
    if as_json:
        console.out_json(paths)
        return
    lines = [f"figures as SVG and PNG are in {paths['figures']}", "open it in a browser"]
    console.next_step(f"report: {paths['html']}", lines, "ilu runs tree")
    console.out(paths["html"])
