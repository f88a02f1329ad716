"""`ilu pipeline`, and what it shares with `ilu attack --suite`: the run of a graph, its state and its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ilu_cli.cli import console
from ilu_cli.cli.options import DryRunOption, JsonOption, PluginOption, SetOption, given

if TYPE_CHECKING:
    from ilu_cli.workflows.graph import Graph, Node

SeedsOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--seeds", min=1, help="Number of seeds, from 0 on.", show_default=False),
]
JobsOption = Annotated[int, typer.Option("--jobs", min=1, help="Nodes that run at the same time, a process each.")]
MarkdownOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--markdown", metavar="FILE", help="Write the table as Markdown too."),
]


def pipeline(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.", show_default=False)],
    seeds: SeedsOption = None,
    jobs: JobsOption = 1,
    state: Annotated[bool, typer.Option("--state", help="Show how far it is, and the table so far.")] = False,
    markdown: MarkdownOption = None,
    plugin: PluginOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run methods × environments × attacks × seeds; what is done is not done again."""
    from ilu_cli.recipe.expand import load_pipeline
    from ilu_cli.runs.store import Store

    flags = given(seeds=(("seeds",), list(range(seeds)) if seeds else None))
    loaded = load_pipeline(recipe, set_ or [], flags)

    from ilu_cli.workflows.pipeline import graph_of

    show(graph_of(loaded, Store()), jobs, plugin or [], state, dry_run, as_json, markdown)


def show(
    graph: Graph, jobs: int, plugins: list[Path], state: bool, dry_run: bool, as_json: bool, markdown: Path | None
) -> None:
    """Run a graph, or say how far it is, and print its table.

    Raises:
        RunFailed: if a node failed; the others are done nevertheless.
    """
    from ilu_cli.workflows import results

    if state or dry_run:
        graph.refresh()
    if dry_run:
        console.out_json(_plan(graph, jobs)) if as_json else _print_plan(graph, jobs)
        return
    if not state:
        _run(graph, jobs, plugins)
    found = results.collect(graph) | {"state": graph.counts(), "folder": str(graph.folder)}
    if markdown:
        from ilu_cli.runs.files import write_text

        write_text(markdown, to_markdown(found))
    if as_json:
        console.out_json(found)
    else:
        _print(graph, found)
    if found["failed"] and not state:
        raise typer.Exit(5)


def _run(graph: Graph, jobs: int, plugins: list[Path]) -> None:
    import time

    from ilu_cli.workflows import execute, results
    from ilu_cli.workflows.pipeline import bytes_needed
    from ilu_cli.workflows.plan import check_disk

    graph.refresh()
    check_disk(graph.folder, bytes_needed(graph, jobs))
    err, began, size = console.err(), time.monotonic(), len(graph.nodes)
    known = graph.counts().get("done", 0)
    err.print(f"{graph.name}: {size} nodes, {known} done already; state in {graph.folder}", soft_wrap=True)

    def changed(node: Node) -> None:
        done = graph.counts().get("done", 0)
        line = f"[{done}/{size}] {node.key}: {node.status}"
        if node.status == "done":
            results.save(graph)
            pace = (time.monotonic() - began) / max(1, done - known)
            line += f" ({node.seconds or 0:.0f} s; about {pace * (size - done) / 60:.0f} min left)"
        err.print(line + (f": {node.error}" if node.error else ""), markup=False, soft_wrap=True)

    execute.run(graph, jobs, plugins, changed)
    results.save(graph)


def _plan(graph: Graph, jobs: int) -> dict[str, Any]:
    from ilu_cli.workflows.pipeline import bytes_needed

    nodes = [{"key": n.key, "command": n.command, "status": n.status, "run": n.run, "tags": n.tags} for n in graph]
    return {
        "command": "pipeline",
        "name": graph.name,
        "state": graph.counts(),
        "disk_bytes": bytes_needed(graph, jobs),
        "nodes": nodes,
    }


def _print_plan(graph: Graph, jobs: int) -> None:
    plan = _plan(graph, jobs)
    for node in graph:
        console.out(f"{node.status:<8} {node.command:<8} {node.key}")
    counts = ", ".join(f"{n} {status}" for status, n in plan["state"].items())
    console.out(f"{len(graph.nodes)} nodes: {counts}; up to {plan['disk_bytes'] / 1e9:.1f} GB of disk for what is left")


def _print(graph: Graph, found: dict[str, Any]) -> None:
    from rich.table import Table

    head, body = cells(found)
    table = Table(title=f"{graph.name}: what the attacks bring back", title_justify="left")
    for i, title in enumerate(head):
        table.add_column(title, justify="left" if i < 3 else "right", overflow="fold")
    for row in body:
        table.add_row(*row)
    console.out_table(table)
    for line in notes(found):
        console.out(line)


def cells(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table as text: titles and rows. The last rows are those of all attacks of a method."""
    benchmarks = list(found["rows"][0]["utility"]) if found["rows"] else []
    kept = [b for b in benchmarks if found["rows"][0]["utility"][b]["role"] != "forget"]
    head = ["method", "attack", "attacker's choice", "FQ before", "RA", "worst", "lowest", "FA", *kept]
    body = []
    for row in found["rows"]:
        choice = ", ".join(f"{k}={v}" for k, v in row["choice"].items())
        numbers = [_range(row[k]) for k in ("before", "ra", "worst")]
        lowest = "-" if row["lowest"] is None else f"{row['lowest']:.3f}"
        body.append(
            [row["method"], row["attack"], choice, *numbers, lowest, _range(row["fa"])]
            + [_range(row["utility"][b]) for b in kept]
        )
    for m in found["methods"]:
        body.append(
            [
                m["method"],
                f"all {m['attacks']}",
                m["worst"]["attack"],
                "",
                _range(m["ra"]),
                _range(m["worst"]["interval"]),
            ]
            + [f"{m['worst']['value']:.3f}", ""]
            + [_range(m["utility"][b]) for b in kept]
        )
    return head, body


def _range(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    spread = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['mean']:.3f}{spread}"


def notes(found: dict[str, Any]) -> list[str]:
    """What one must know to read the table."""
    lines = [
        "FQ = 1 - accuracy on the forget benchmarks; RA = its mean over the attack's points; worst = its lowest point,",
        "mean over seeds; lowest = that of any seed; `original` is the reference line. [ ] are 95 % intervals: "
        "Student's t over the seeds, or with one seed normal over the questions.",
        "Of an attack's choices the row shows the attacker's best, by mean RA over the seeds that all choices have.",
    ]
    if any(row["builtin"] for row in found["rows"]):
        lines.append("data: builtin stand-ins")
    lines += [
        f"warning: {o['node']}: utility {o['target'] + o['distance']:.3f} at step {o['step']} is "
        f"{abs(o['distance']):.3f} from the target {o['target']:.3f}"
        for o in found["off_target"]
    ]
    lines += [f"{f['status']}: {f['node']}: {f['error']}" for f in found["failed"]]
    lines.append("state: " + ", ".join(f"{n} {status}" for status, n in found["state"].items()))
    return lines


def to_markdown(found: dict[str, Any]) -> str:
    """The table and its notes as Markdown."""
    head, body = cells(found)
    lines = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)]
    return "\n".join([f"# {found['name']}", "", *lines, "", *(f"- {line}" for line in notes(found))]) + "\n"
