"""`ilu attack --suite`, and what it shares with `ilu pipeline`: the run of a graph, its state and its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ilu_cli.cli import console, table, warned
from ilu_cli.cli.around import ALLOWED
from ilu_cli.cli.options import Given
from ilu_cli.engine import peers
from ilu_cli.errors import UsageError

if TYPE_CHECKING:
    from ilu_cli.recipe.schema import AttackRecipe
    from ilu_cli.workflows.pipeline.budget import TimeBudget
    from ilu_cli.workflows.pipeline.graph import Graph, Node
    from ilu_cli.workflows.pipeline.launchers import Launch, Launcher
    from ilu_cli.workflows.pipeline.shapes import Told

SuiteOption = Annotated[
    str | None,
    typer.Option(
        "--suite",
        metavar="NAME",
        help="Run a grid of attacks: quick, topic, study, standard, red, paper, or a YAML file.",
    ),
]
SeedsOption = Annotated[
    int | None,
    typer.Option("--seeds", min=1, help="Number of seeds, from 0 on.", show_default=False),
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs", min=1, show_default=False,
        help="Nodes at work at a time, a process each (default: 1, or one for each GPU; on a cluster all).",
    ),
]  # fmt: skip
MarkdownOption = Annotated[
    Path | None,
    typer.Option("--markdown", metavar="FILE", help="Write the table as Markdown too."),
]


BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget", metavar="TIME", help="As in 4h: spend it where searches still find more; nothing is begun after it."
    ),
]


OPTIONS = ("--suite", "--seeds", "--jobs", "--markdown", "--budget")


KEPT = (*ALLOWED, "--reference", "--no-reference", "--source", "--dry-run", "--json", "--strict")


def asked_for(suite: str | None, given: Given) -> str | None:
    """The suite that is asked for, if any.

    Raises:
        UsageError: if options of a single attack and of a suite are mixed.
    """
    wrong = given.besides(*OPTIONS, *KEPT)
    if suite and wrong:
        raise UsageError(
            f"{', '.join(wrong)} cannot change a suite", hint="write a suite of your own: docs/pipeline.md"
        )
    if only := [name for name in OPTIONS if name in given.options and not suite]:
        raise UsageError(f"{', '.join(only)} needs a --suite")
    return suite


def check_alone(recipe: AttackRecipe) -> None:
    """Refuse an attack without its reference line if it means nothing alone.

    Raises:
        UsageError: if it does not.
    """
    from ilu_cli import registry

    if not registry.attack[recipe.attack.name].declared.alone:
        raise UsageError(
            f"{recipe.attack.name} means nothing without the reference line, the original under the same attack",
            hint="leave --no-reference out",
        )


def attack(
    run: str | None, name: str, seeds: int, jobs: int | None, given: Given, markdown: Path | None, budget: str | None,
    *, reference: bool,
) -> None:  # fmt: skip
    """Run a suite on a model and, as the `reference` line, on its original, and print the table."""
    if not peers.alone("attack --suite"):
        return
    from ilu_cli.models.subject import find_subject, of_run
    from ilu_cli.recipe.expand import find_suite, load_suite
    from ilu_cli.runs.store import Store
    from ilu_cli.workflows.pipeline.build import suite_graph
    from ilu_cli.workflows.pipeline.launchers import Launch

    recipe, variants = load_suite(name)
    variants = [v.sourced(given.source) if given.source else v for v in variants]
    store = Store()
    if run is None:
        newest = store.latest(lambda r: r.complete and r.manifest.command == "unlearn", "finished unlearning run")
        subject = of_run(newest)
    else:
        subject = find_subject(run, store)
    for v in variants if subject.run is not None and not reference else []:
        check_alone(v.recipe)
    label = find_suite(name).stem.removeprefix("suite-")
    graph = suite_graph(label, variants, recipe, subject, list(range(seeds)), store, reference=reference)
    show(graph, Launch(jobs=jobs, plugins=given.plugins), given, markdown, budget)


def show(
    graph: Graph, launch: Launch, given: Given, markdown: Path | None, budget: str | None, *, state: bool = False
) -> None:
    """Run a graph, or say how far it is, and print its table.

    Raises:
        RunFailed: if a node failed; the others are done nevertheless.
    """
    from ilu_cli.care import read
    from ilu_cli.workflows.pipeline import table as results
    from ilu_cli.workflows.pipeline.budget import TimeBudget
    from ilu_cli.workflows.pipeline.launch import launcher

    chosen, time = None if state else launcher(launch, graph), TimeBudget.of(budget) if budget else None
    if state or given.dry_run:
        graph.watch()
    if markdown:
        markdown.parent.mkdir(parents=True, exist_ok=True)
    if given.dry_run:
        from ilu_cli.workflows.pipeline.build import plan

        return console.show_plan(plan(graph, chosen.room if chosen else 1), given.as_json)
    if chosen:
        _run(graph, chosen, time)
    found: Told = {**results.collect(graph), "state": graph.counts(), "folder": str(graph.folder)}
    if markdown:
        from ilu_cli.runs.files import write_text

        write_text(markdown, table.to_markdown(found))
    if given.as_json:
        console.out_json(found)
    else:
        _print(graph, found)
        if not found["failed"] and not state:
            console.next_step(
                f"{graph.name}: {graph.counts().get('done', 0)} nodes done", [], f"ilu report {graph.name}"
            )
    told = read(found["warnings"])
    warned.show(told)
    if found["failed"] and not state:
        raise typer.Exit(5)
    warned.conclude(told, given)


def _run(graph: Graph, launcher: Launcher, budget: TimeBudget | None) -> None:
    import contextlib
    import math
    import sys
    import time

    from ilu_cli.runs.files import check_disk
    from ilu_cli.workflows.pipeline import execute
    from ilu_cli.workflows.pipeline import table as results
    from ilu_cli.workflows.pipeline.build import bytes_needed

    graph.refresh()
    check_disk(graph.folder, bytes_needed(graph, launcher.room))
    err, began, size = console.err(), time.monotonic(), graph.size
    known = graph.counts().get("done", 0)
    err.print(f"{graph.name}: {size} nodes, {known} done already; state in {graph.folder}", soft_wrap=True)

    def changed(node: Node, note: str | None) -> None:
        if note:
            err.print(f"      {node.key}: {note}", style="dim", markup=False, soft_wrap=True)
            return
        done = graph.counts().get("done", 0)
        line = f"[{done}/{size}] {node.key}: {node.status}"
        if node.status == "done":
            results.save(graph)
            pace = (time.monotonic() - began) / max(1, done - known)
            left = min(pace * (size - done), budget.left if budget else math.inf)
            line += f" ({node.seconds or 0:.0f} s; about {left / 60:.0f} min left)"
        err.print(line + (f": {node.error}" if node.error else ""), markup=False, soft_wrap=True)

    with contextlib.redirect_stdout(sys.stderr):  # Ray's own messages; stdout belongs to the result
        execute.run(graph, launcher, changed, budget)
    results.save(graph)
    waiting = graph.size - len(graph.nodes) + graph.counts().get("waiting", 0)
    if budget and waiting:
        err.print(f"the budget is spent; {waiting} of {size} nodes are left, and the same command goes on with them")


def _print(graph: Graph, found: Told) -> None:
    from rich.table import Table

    head, body = table.cells(found)
    drawn = Table(title=f"{graph.name}: what the attacks bring back", title_justify="left")
    for i, title in enumerate(head):
        drawn.add_column(title, justify="left" if i < 3 else "right", overflow="fold")
    for row in body:
        drawn.add_row(*row)
    console.out_table(drawn)
    for line in table.notes(found):
        console.out(line)
