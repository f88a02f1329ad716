"""What is printed where: results on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import json
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ilu_cli.engine.peers import first
from ilu_cli.errors import UNSEEN, plain
from ilu_cli.metrics.figure import shown, strict
from ilu_cli.metrics.figure import size as size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ilu_cli.runs.results import Number, Summary
    from ilu_cli.workflows.plan import Plan

WIDEST = 100  # columns of a panel
PIPE = 140  # columns of a table without a terminal


@functools.cache
def err() -> Console:
    """The console on stderr. rich is imported when something is drawn, not for `--help`."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, quiet=not first())


def drawing() -> bool:
    """Whether stderr is a terminal on which lines can be drawn again."""
    return err().is_terminal and not err().is_dumb_terminal


def out(text: str) -> None:
    """Print a result line; of a launch the first process does."""
    if first():
        print(plain(text), flush=True)


def out_json(value: Any, indent: int | None = None) -> None:
    """Print one JSON object; of a launch the first process does."""
    if first():
        print(json_text(strict(value), indent), flush=True)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON as people read it; in ASCII where it holds what no terminal shows."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return json.dumps(value, allow_nan=False, indent=indent) if UNSEEN.search(text) else text


def stdout() -> Console:
    """The console on stdout, for tables and trees; wide enough for a pipe, plain without a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE, highlight=False, markup=False, quiet=not first())


def out_table(table: Table) -> None:
    """Print a table on stdout. In a terminal that is too narrow for it, each row becomes a short list."""
    console = stdout()
    natural = console.measure(table, options=console.options.update(width=1000)).maximum
    if console.width >= natural:
        console.print(table)
        return
    from rich.text import Text

    def words(cell: Any) -> str:
        return " ".join((cell if isinstance(cell, Text) else Text(str(cell))).plain.split())

    headers = [words(column.header) for column in table.columns]
    if table.title:
        console.print(words(table.title), style="italic", markup=False)
    for row in zip(*(column.cells for column in table.columns)):
        first, *rest = map(words, row)
        console.print(Text.assemble((f"{headers[0]} {first}", "bold")))
        for header, cell in zip(headers[1:], rest):
            console.print(f"  {header}: {cell}", markup=False)


def command_for(command: str | None, recipe: str) -> str:
    """How a recipe of a command is run."""
    if command == "suite":
        return f"ilu attack --suite {recipe.removeprefix('suite-')}"
    return f"ilu pipeline {recipe}" if command == "pipeline" else f"ilu {command} --recipe {recipe}"


def typed(flags: Sequence[str], valued: Sequence[str]) -> str:
    """The command line as it was typed, without these `flags` and the `valued` options."""
    words, kept = iter(sys.argv[1:]), list[str]()
    for word in words:
        if word in valued:
            next(words, None)
        elif word not in flags and word.partition("=")[0] not in valued:
            kept.append(word)
    return shlex.join(["ilu", *kept])


def measured(found: Number | Summary | None) -> str:
    """A number with its standard error, for a table."""
    if found is None:
        return "-"
    error = f" ±{shown(found.stderr)}" if found.stderr is not None else ""
    return f"{shown(found.value)}{error}"


def next_step(title: str, lines: list[str], command: str, *, done: bool = True) -> None:
    """The closing summary of a command on stderr, with what to do next: a panel on a terminal, else plain lines."""
    console, mark, colour = err(), *(("✓", "green") if done else ("✗", "yellow"))
    if not drawing():
        for line in (f"{mark} {title}", *(f"  {line}" for line in lines), f"  next: {command}"):
            console.print(line, markup=False, soft_wrap=True)
        return
    from rich.panel import Panel
    from rich.text import Text

    body = Text("\n").join([*map(Text, lines), Text.assemble("next  ", (command, "cyan"))])
    body.overflow = "fold"
    heading = Text.assemble((f"{mark} ", colour), (title, "bold"))
    if len(heading) > min(console.width, WIDEST) - 6:  # it would be cut in the frame
        body, heading = Text("\n").join([heading, body]), Text(mark, colour)
    console.print(Panel(body, title=heading, title_align="left", width=min(console.width, WIDEST), border_style="dim"))


def show_plan(plan: Plan, as_json: bool) -> None:
    """What `--dry-run` prints."""
    out_json(plan.to_json()) if as_json else out("\n".join(plan.lines()))


def clock(seconds: float) -> str:
    """`0:42`, `12:05`, `3:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ago(iso: str) -> str:
    """How long ago an ISO time was, in one unit."""
    from datetime import datetime

    seconds = max(0.0, time.time() - datetime.fromisoformat(iso).timestamp())
    for unit, unit_size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= unit_size:
            return f"{int(seconds // unit_size)} {unit}"
    return f"{int(seconds)} s"
