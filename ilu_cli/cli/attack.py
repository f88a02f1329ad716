"""`ilu attack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ilu_cli.cli import complete, console, suite, warned
from ilu_cli.cli.options import SHARED, Given, Sets, shares
from ilu_cli.cli.plan import show_priced
from ilu_cli.cli.resumed import unfinished
from ilu_cli.errors import UsageError

if TYPE_CHECKING:
    from ilu_cli.models.subject import Subject
    from ilu_cli.recipe.schema import AttackRecipe
    from ilu_cli.runs.results import AttackResult, Row
    from ilu_cli.runs.store import Run, Store
    from ilu_cli.workflows.attack.run import AttackPlan

DEFAULT_RECIPE = "quickstart-finetune"

RunArgument = Annotated[
    str | None,
    typer.Argument(
        help="Run (id, prefix, path) or model; default: the latest unlearned.",
        show_default=False,
        autocompletion=complete.runs,
    ),
]
KindOption = Annotated[
    str | None,
    typer.Option("--kind", help="The attack; `ilu list` shows all.", autocompletion=complete.attacks),
    Sets(("attack",), lambda name: {"name": name}),
]
TaskOption = Annotated[
    str | None,
    typer.Option("--task", help="Task, file, folder, or hub name to fine-tune on.", autocompletion=complete.tasks),
    Sets(("attack", "task")),
]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Optimiser steps."), Sets(("attack", "steps"))]
RateOption = Annotated[float | None, typer.Option("--lr", help="Learning rate."), Sets(("attack", "lr"))]
ReferenceOption = Annotated[
    bool, typer.Option(help="Attack the original model too (once per recipe): the line to compare with.")
]


@shares(*SHARED)
def attack(
    run: RunArgument = None,
    kind: KindOption = None,
    task: TaskOption = None,
    steps: StepsOption = None,
    lr: RateOption = None,
    reference: ReferenceOption = True,
    suite_: suite.SuiteOption = None,
    seeds: suite.SeedsOption = None,
    jobs: suite.JobsOption = None,
    markdown: suite.MarkdownOption = None,
    budget: suite.BudgetOption = None,
    *,
    given: Given,
) -> None:
    """Try to bring the forgotten back, and watch what returns."""
    if name := suite.asked_for(suite_, given):
        return suite.attack(run, name, seeds or 1, jobs, given, markdown, budget, reference=reference)
    from ilu_cli.runs.store import Store

    store = Store()
    resolved, subject, old = _resumed(run, store, given) if given.resume else _asked(run, kind, store, given)
    if devices := given.priced():
        return _price(resolved, subject, devices, given)
    given.agreed(resolved)

    from ilu_cli.care.kept import kept as of_runs
    from ilu_cli.engine.accel import backend
    from ilu_cli.runs.lineage import NEVER
    from ilu_cli.workflows.attack import run as workflow

    if not reference and subject.run is not None:
        suite.check_alone(resolved)
    plan = workflow.plan(resolved, subject, recorded=old is not None)
    if given.dry_run:
        return console.show_plan(plan, given.as_json)
    lines, done = _resume(plan, store, old) if old else _all(plan, store, reference, given.out)
    if not backend().main:
        return
    if given.as_json:
        keys = {"reference": "original", "never_knew": NEVER}
        console.out_json(describe(done) | {k: describe(lines[n]) if n in lines else None for k, n in keys.items()})
    else:
        _show(done, lines)
        console.out(str(done.path))
    told = of_runs([done, *lines.values()])
    warned.show(told)
    kept = "recipe, rows and checkpoint are" if done.has_model else "recipe and rows are"
    console.next_step(
        f"attacked: {done.id}", [f"{kept} in {done.path}"], "ilu eval" if done.has_model else "ilu list attacks"
    )
    warned.conclude(told, given)


def _price(recipe: AttackRecipe, subject: Subject, devices: str, given: Given) -> None:
    """Price it on the model that it is of."""
    model = subject.label, subject.root
    show_priced(given.recipe or DEFAULT_RECIPE, "attack", recipe, devices, given, model=model)


def _all(plan: AttackPlan, store: Store, reference: bool, out: Path | None) -> tuple[dict[str, Run], Run]:
    """The reference lines, if they are wanted and not there yet, and the attack."""
    from ilu_cli.cli.progress import reporter
    from ilu_cli.workflows.attack import run as workflow

    lines = workflow.reference_runs(plan, store, reporter(), out) if reference else {}
    return lines, workflow.run(plan, store, reporter(), plan.subject, out)


def _resume(plan: AttackPlan, store: Store, old: Run) -> tuple[dict[str, Run], Run]:
    """Go on with an attack; after a reference line that was interrupted comes what it was made for."""
    from ilu_cli.cli.progress import reporter
    from ilu_cli.models.subject import from_record
    from ilu_cli.workflows.attack import run as workflow

    wanted, done = old.manifest.wanted, workflow.run(plan, store, reporter(), plan.subject, None, old)
    if not wanted:
        return {}, done
    plan = workflow.plan(plan.asked, from_record(wanted, old), recorded=True)
    return _all(plan, store, True, Path(wanted["out"]) if wanted["out"] else None)


def _resumed(run: str | None, store: Store, given: Given) -> tuple[AttackRecipe, Subject, Run | None]:
    """Recipe, target and run of an attack that was stopped."""
    from ilu_cli.models.subject import from_record
    from ilu_cli.recipe.load import load
    from ilu_cli.recipe.schema import AttackRecipe

    given.only_resume()
    old = unfinished(store, "attack", run)
    resolved = load(AttackRecipe, old.path / "recipe.yaml", {}, [])
    return resolved, from_record(old.manifest.parents[0], old), old


def _asked(run: str | None, kind: str | None, store: Store, given: Given) -> tuple[AttackRecipe, Subject, Run | None]:
    """Recipe and target of a new attack; the target is by default the latest unlearned model.

    Raises:
        UsageError: if there is no such attack, or the target is a task.
    """
    from ilu_cli import registry
    from ilu_cli.models.subject import find_subject, of_run
    from ilu_cli.recipe.load import find, load
    from ilu_cli.recipe.schema import AttackRecipe

    if kind is not None:
        registry.attack[kind]
    resolved = given.sourced(load(AttackRecipe, find(given.recipe or DEFAULT_RECIPE), given.flags, given.sets))
    if run is None:
        unlearned = store.latest(lambda r: r.complete and r.manifest.command == "unlearn", "finished unlearning run")
        return resolved, of_run(unlearned), None
    if run in registry.task and store.find(run) is None:
        raise UsageError(f"{run!r} is a task, not a run", hint=f"--task {run}")
    return resolved, find_subject(run, store), None


def describe(run: Run) -> Row:
    """A finished attack as JSON."""
    from ilu_cli.runs.results import AttackResult

    m = run.manifest
    result = AttackResult.read(m.result)
    kept = ("kind", "axis", "fa", "fq", "ra", "worst", "marks", "unattacked", "points")
    return {
        "run": m.id,
        "path": str(run.path),
        "parent": m.parents[0]["id"],
        **{key: value for key, value in result.to_json().items() if key in kept},
        **({"numbers": result.more["numbers"]} if "numbers" in result.more else {}),
        "disjoint": result.more.get("disjoint"),
        "data": m.data,
        "warnings": result.more.get("warnings") or [],
        "content": result.more.get("content"),
        "seed": m.seed,
        "recipe_sha256": m.recipe_sha256,
    }


def _show(run: Run, lines: dict[str, Run]) -> None:
    """All lines side by side, what they add up to, and what is to be known of the data."""
    from ilu_cli.runs.results import AttackResult

    runs = {"this model": run} | lines
    results = {title: AttackResult.read(r.manifest.result) for title, r in runs.items()}
    _curves(f"{run.id}: what comes back", results)
    for title, r in results.items():
        fa = f"FA {r.fa.value:.3f} ({r.fa.task}, n={r.fa.n})  " if r.fa else ""
        none = "no RA: no benchmark that counts in FQ was asked; name one in eval.benchmarks"
        ra = f"RA {r.ra:.3f}  worst FQ {r.worst:.3f}" if r.ra is not None else none
        console.out(f"{title}: {fa}{ra}")
    left_out = results["this model"].more.get("disjoint") or {}
    if left_out.get("overlap"):
        overlap, used = left_out["overlap"], left_out["rows"]
        console.out(f"attack data: {overlap} rows overlap with the environments, {used} rows were used")
    if any(d["source"] == "builtin" for d in run.manifest.data):
        console.out("data: builtin stand-ins")


def _curves(title: str, results: dict[str, AttackResult]) -> None:
    """A row for each point: the benchmarks on every model."""
    from rich.table import Table

    this = next(iter(results.values()))
    names = list(dict.fromkeys(name for p in this.points for name in p.eval))
    table = Table(title=title, title_justify="left")
    table.add_column(this.axis)
    for model in results:
        for name in names:
            table.add_column(f"{name}\n{model}", justify="right")
    for point in this.points:
        same = [next((p.eval for p in r.points if p.strength == point.strength), {}) for r in results.values()]
        strength = str(point.strength) if point.label is None else point.label
        table.add_row(strength, *(console.measured(found.get(name)) for found in same for name in names))
    console.out_table(table)
