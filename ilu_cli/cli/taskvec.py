"""`ilu taskvec`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ilu_cli.cli import complete, console, warned
from ilu_cli.cli.around import AROUND
from ilu_cli.cli.options import Given, Sets, shares
from ilu_cli.engine import peers

if TYPE_CHECKING:
    from ilu_cli.taskvec.plane import Placed, Plane

RunsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN",
        help="Unlearning, applied or attack runs; several give a matrix. Default: the latest attack.",
        show_default=False,
        autocompletion=complete.runs,
    ),
]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option("--include", help="Glob pattern of the compared weights. Repeatable; default: all."),
    Sets(("include",)),
]
CommonOption = Annotated[
    bool, typer.Option("--common", help="Compare what all share, and list the rest."), Sets(("common",))
]
PlaneOption = Annotated[
    bool, typer.Option("--plane", help="All checkpoints on the plane of τ_u and τ_ft."), Sets(("plane",))
]
SubspaceOption = Annotated[
    int | None,
    typer.Option("--subspace", metavar="K", help="Overlap with the first K singular directions of τ_u."),
    Sets(("subspace",)),
]
CompleteOption = Annotated[
    bool, typer.Option("--complete", help="First run the same attack on the original model, if that is missing.")
]
LayersOption = Annotated[bool, typer.Option("--layers", help="Show also the layers that unlearning left alone.")]


@shares(*AROUND, "recipe", "set_", "dry_run", "as_json", "strict")
def taskvec(
    runs: RunsArgument = None,
    include: IncludeOption = None,
    common: CommonOption = False,
    plane: PlaneOption = False,
    subspace: SubspaceOption = None,
    complete: CompleteOption = False,
    layers: LayersOption = False,
    *,
    given: Given,
) -> None:
    """Compare task vectors: does fine-tuning walk back?"""
    if not complete and not peers.alone("taskvec"):  # else an attack may be run, which several do together
        return
    from ilu_cli.models.subject import find_subject, of_run
    from ilu_cli.recipe.load import find, load
    from ilu_cli.recipe.schema import TaskvecRecipe
    from ilu_cli.runs.store import Store

    resolved = load(TaskvecRecipe, find(given.recipe) if given.recipe else None, given.flags, given.sets)
    store = Store()

    from ilu_cli.cli.progress import reporter
    from ilu_cli.workflows.taskvec import compare as workflow
    from ilu_cli.workflows.taskvec import roles as lineage

    if runs:
        subjects = [find_subject(r, store) for r in runs]
    else:
        subjects = [of_run(store.latest(lineage.comparable, "finished unlearning or attack run"))]
    if given.dry_run:
        return console.show_plan(workflow.plan(resolved, subjects, store), given.as_json)
    if complete:
        for subject in subjects:
            workflow.complete(subject, store, reporter())
    told = _told(subjects)
    warned.show(told)
    title = ", ".join(s.label for s in subjects)
    if len(subjects) > 1:
        matrix = workflow.matrix(resolved, subjects, store)
        if given.as_json:
            console.out_json(
                {"runs": [s.label for s in subjects], **matrix.as_dict(), "warnings": warned.as_json(told)}
            )
            return warned.conclude(told, given)
        _matrix(matrix)
        _notes(matrix.notes)
    else:
        found = workflow.run(resolved, subjects[0], store)
        if given.as_json:
            console.out_json({"run": title, **found.as_dict(), "warnings": warned.as_json(told)})
            return warned.conclude(told, given)
        _tables(found, layers)
        console.out(workflow.verdict(found.grams))
        _notes(found.roles.notes)
    warned.conclude(told, given)
    console.next_step(f"compared: {title}", [], "ilu report")


def _told(subjects: list[Any]) -> list[Any]:
    """The warnings that the runs keep, and those that they came from."""
    from ilu_cli.care.kept import kept
    from ilu_cli.models.subject import lineage

    return kept(s.run for subject in subjects for s in lineage(subject) if s.run)


def _notes(notes: list[str]) -> None:
    for note in notes:
        console.err().print(f"note: {note}", soft_wrap=True)


def _table(title: str, left: list[str], right: list[str]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _tables(found: Any, every_layer: bool) -> None:
    checkpoints = _table("checkpoints", ["role", "what"], [])
    for role, s in found.roles.by_name.items():
        checkpoints.add_row(role, s.label)
    console.out_table(checkpoints)
    _groups("task vectors", found.groups() | {"touched by unlearning": found.touched()}, every_layer)
    from ilu_cli.taskvec.angles import type_of

    _groups("by type of module", found.grams.by(type_of), every_layer)
    _left_out(found.left_out)
    if found.subspace is not None:
        _subspace(found.subspace)
    if found.plane:
        _plane(found.plane)


def _left_out(left_out: dict[str, str]) -> None:
    if left_out:
        console.out(f"not compared ({len(left_out)}):")
        for name, why in left_out.items():
            console.out(f"  {name} {why}")


def _groups(title: str, groups: dict[str, Any], every: bool) -> None:
    first = next(iter(groups.values()))
    table = _table(
        title, ["weights"], [*(f"‖τ_{n}‖" for n in first.names), *(f"cos(τ_{a}, τ_{b})" for a, b in first.pairs())]
    )
    shown = [g for g, gram in groups.items() if g == "all" or every or gram.norm("u") > 0]
    for group in shown:
        gram = groups[group]
        norms = [f"{gram.norm(n):.4g}" for n in gram.names]
        table.add_row(group, *norms, *(_cosine(gram.cosine(a, b)) for a, b in gram.pairs()))
    console.out_table(table)
    if len(shown) < len(groups):
        console.out(f"{len(groups) - len(shown)} groups of weights were not touched by unlearning; --layers shows them")


def _matrix(matrix: Any) -> None:
    names = matrix.gram.names
    table = _table("cosines", ["", "vector"], ["norm", *(str(i + 1) for i in range(len(names)))])
    for i, a in enumerate(names):
        cosines = [_cosine(matrix.gram.cosine(a, b)) for b in names[: i + 1]]
        table.add_row(str(i + 1), f"τ_{a}", f"{matrix.gram.norm(a):.4g}", *cosines)
    console.out_table(table)
    _left_out(matrix.left_out)


def _subspace(rows: list[Any]) -> None:
    from ilu_cli.taskvec.subspace import by_layer

    table = _table(
        "share of ‖τ_u→ft‖² in the first directions of τ_u (beside it: what a random vector would have)",
        ["weights"], ["K", "‖Uᵀτ‖²", "random", "‖τV‖²", "random", "‖UᵀτV‖²", "random", "τ_u kept", "smallest angle"],
    )  # fmt: skip
    for group, o in by_layer(rows).items():
        shares = [f"{x:.4f}" for pair in zip((o.left, o.right, o.both), o.chance) for x in pair]
        table.add_row(group, str(o.k), *shares, f"{o.kept:.3f}", f"{min(o.angles, default=90):.1f}°")
    console.out_table(table)


def _plane(plane: Plane) -> None:
    table = _table(f"plane: x along {plane['axes'][0]}, y along {plane['axes'][1]}", ["role", "checkpoint"],
                   ["step", "x", "y", "in the plane", "forget accuracy"])  # fmt: skip
    for p in plane["points"]:
        table.add_row(
            p["role"],
            p["label"],
            "-" if p["step"] is None else str(p["step"]),
            f"{p['x']:.4g}",
            f"{p['y']:.4g}",
            "-" if p["explained"] is None else f"{p['explained']:.1%}",
            "-" if p["forget"] is None else f"{p['forget']:.3f}",
        )
    console.out_table(table)
    for line in _drawn(plane["points"]):
        console.out(line)


def _drawn(points: list[Placed], width: int = 64, height: int = 16) -> list[str]:
    """The points as a text plot: O original, U unlearned, F and f fine-tuned, A and a attacked and on the way there."""
    marks = {"original": "O", "unlearned": "U", "finetuned": "F", "attacked": "A"}
    last: dict[str, int] = {}
    for p in points:
        last[p["role"]] = max(last.get(p["role"], 0), p["step"] or 0)
    columns, rows = _places([p["x"] for p in points], width), _places([p["y"] for p in points], height)
    grid = [[" "] * width for _ in range(height)]
    for p, column, row in sorted(zip(points, columns, rows), key=lambda placed: placed[0]["step"] or 0):
        mark = marks[p["role"]]
        grid[height - 1 - row][column] = mark if (p["step"] or 0) == last[p["role"]] else mark.lower()
    legend = "  ".join(f"{marks[role]} {role}" for role in last)
    edge = "+" + "-" * width + "+"
    return [edge, *(f"|{''.join(line)}|" for line in grid), edge, f"{legend}  (small letters: on the way)"]


def _places(values: list[float], cells: int) -> list[int]:
    """The cell of each value, the least in the first and the largest in the last."""
    least = min(values)
    span = (max(values) - least) or 1.0
    return [round((v - least) / span * (cells - 1)) for v in values]
