"""`ilu attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ilu_cli.cli import complete, console, suite
from ilu_cli.cli.options import Given, Sets, shares, unfinished
from ilu_cli.errors import UsageError

DEFAULT_RECIPE = "quickstart-finetune"


@shares("seed", "track", "data_root", "plugin", "recipe", "set_", "out", "dry_run", "as_json", "resume")
def attack(
    run: Annotated[
        str | None,
        typer.Argument(
            help="Run (id, prefix, path) or model; default: the latest unlearned.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="The attack; `ilu list` shows all.", autocompletion=complete.attacks),
        Sets(("attack",), lambda name: {"name": name}),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="Task, file, folder, or hub name to fine-tune on.", autocompletion=complete.tasks),
        Sets(("attack", "task")),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimiser steps."), Sets(("attack", "steps"))] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate."), Sets(("attack", "lr"))] = None,
    reference: Annotated[
        bool, typer.Option(help="Attack the original model too (once per recipe): the line to compare with.")
    ] = True,
    suite_: suite.SuiteOption = None,
    seeds: suite.SeedsOption = None,
    jobs: suite.JobsOption = 1,
    markdown: suite.MarkdownOption = None,
    *,
    given: Given,
) -> None:
    """Try to bring the forgotten back, and watch what returns."""
    from ilu_cli import registry
    from ilu_cli.models.subject import find_subject, from_record, of_run
    from ilu_cli.recipe.load import find, load
    from ilu_cli.recipe.schema import AttackRecipe
    from ilu_cli.runs.store import Store

    if name := suite.asked_for(suite_, given):
        return suite.attack(run, name, seeds or 1, jobs, given, markdown)
    store, old = Store(), None
    if given.resume:
        given.only_resume()
        old = unfinished(store, "attack", run)
        resolved = load(AttackRecipe, old.path / "recipe.yaml", {}, [])
        subject = from_record(old.manifest.parents[0], old)
    else:
        if kind is not None:
            registry.attack[kind]
        resolved = load(AttackRecipe, find(given.recipe or DEFAULT_RECIPE), given.flags, given.sets)
        if run is None:
            newest = store.latest(lambda r: r.complete and r.manifest.command == "unlearn", "finished unlearning run")
            subject = of_run(newest)
        else:
            if run in registry.task and store.find(run) is None:
                raise UsageError(f"{run!r} is a task, not a run", hint=f"--task {run}")
            subject = find_subject(run, store)

    from ilu_cli.engine.accel import backend
    from ilu_cli.workflows.attack import run as workflow

    plan = workflow.plan(resolved, subject)
    if given.dry_run:
        console.out_json(plan.facts) if given.as_json else console.out(console.plan_text(plan.facts))
        return
    reporter = console.reporter()
    out, base = given.out, workflow.reference_run(plan, store, reporter, given.out) if reference and not old else None
    if old is not None and old.manifest.wanted:  # a reference line was interrupted: what was asked for comes after it
        base, wanted = workflow.run(plan, store, reporter, subject, None, old), old.manifest.wanted
        plan = workflow.plan(resolved, subject := from_record(wanted, old))
        out, old = Path(wanted["out"]) if wanted["out"] else None, None
    done = workflow.run(plan, store, reporter, subject, out, old)
    if not backend().main:
        return
    found = describe(done) | {"reference": describe(base) if base else None}
    if given.as_json:
        console.out_json(found)
    else:
        _table(found)
        console.out(str(done.path))
    kept = "recipe, rows and checkpoint are" if done.has_model else "recipe and rows are"
    console.next_step(
        f"attacked: {done.id}", [f"{kept} in {done.path}"], "ilu eval" if done.has_model else "ilu list attacks"
    )


def describe(run: Any) -> dict[str, Any]:
    """A finished attack as JSON."""
    m = run.manifest
    r = m.result
    return {
        "run": m.id,
        "path": str(run.path),
        "parent": m.parents[0]["id"],
        **{key: r[key] for key in ("kind", "axis", "fa", "fq", "ra", "worst", "marks", "unattacked", "points")},
        "disjoint": r.get("disjoint"),
        "data": m.data,
        "seed": m.seed,
        "recipe_sha256": m.recipe_sha256,
    }


def _table(found: dict[str, Any]) -> None:
    from rich.table import Table

    columns = [("this model", found)] + ([("original", found["reference"])] if found["reference"] else [])
    axis = found["axis"]
    names = list(dict.fromkeys(name for p in found["points"] for name in p["eval"]))
    table = Table(title=f"{found['run']}: what comes back", title_justify="left")
    table.add_column(axis)
    for title, _ in columns:
        for name in names:
            table.add_column(f"{name}\n{title}", justify="right")
    for point in found["points"]:
        same: list[dict[str, Any]] = [
            next((p for p in c["points"] if p[axis] == point[axis]), {"eval": {}}) for _, c in columns
        ]
        table.add_row(
            str(point.get("label", point[axis])),
            *(console.measured(p["eval"].get(name)) for p in same for name in names),
        )
    console.out_table(table)
    for title, c in columns:
        fa = f"FA {c['fa']['value']:.3f} ({c['fa']['task']}, n={c['fa']['n']})  " if c["fa"] else ""
        ra = f"RA {c['ra']:.3f}  worst FQ {c['worst']:.3f}" if c["ra"] is not None else ""
        console.out(f"{title}: {fa}{ra}")
    if found["disjoint"] and found["disjoint"]["overlap"]:
        d = found["disjoint"]
        console.out(f"attack data: {d['overlap']} rows overlap with the environments, {d['rows']} rows were used")
    if any(d["source"] == "builtin" for d in found["data"]):
        console.out("data: builtin stand-ins")
