"""`ilu eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ilu_cli.cli import complete, console, warned
from ilu_cli.cli.around import AROUND
from ilu_cli.cli.options import Given, Sets, shares
from ilu_cli.errors import RequirementError

if TYPE_CHECKING:
    from ilu_cli.models.subject import Subject
    from ilu_cli.recipe.evaluation import GateSpec
    from ilu_cli.recipe.requirement import Verdict
    from ilu_cli.runs.results import Row, Summary

RunArgument = Annotated[
    str | None,
    typer.Argument(
        help="Run (id, prefix, path) or model; default: the latest run.",
        show_default=False,
        autocompletion=complete.runs,
    ),
]
BenchOption = Annotated[
    list[str] | None,
    typer.Option("--bench", help="Benchmark or lm-eval task. Repeatable.", autocompletion=complete.benchmarks),
    Sets(("eval", "benchmarks")),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="Only the first rows of each benchmark."), Sets(("eval", "limit"))
]
FewshotOption = Annotated[
    int | None, typer.Option("--fewshot", help="Solved examples before each question."), Sets(("eval", "fewshot"))
]
RequireOption = Annotated[
    list[str] | None,
    typer.Option("--require", help='Fail with exit code 4 unless it holds: "capitals.acc <= 0.32". Repeatable.'),
    Sets(("eval", "require")),
]
RetainOption = Annotated[
    str | None,
    typer.Option("--retain-run", metavar="RUN", help="For TOFU: a model that never saw the forget set."),
    Sets(("eval", "retain_run")),
]
AloneOption = Annotated[bool, typer.Option("--alone", help="Only this model, not what it came from.")]


@shares(*AROUND, "recipe", "set_", "dry_run", "as_json", "strict")
def evaluate(
    run: RunArgument = None,
    bench: BenchOption = None,
    limit: LimitOption = None,
    fewshot: FewshotOption = None,
    require: RequireOption = None,
    retain_run: RetainOption = None,
    alone: AloneOption = False,
    *,
    given: Given,
) -> None:
    """Measure what is forgotten and what is kept.

    Along the lineage of a run: original, unlearned, attacked.
    """
    from ilu_cli.models.subject import find_subject, of_run
    from ilu_cli.recipe.load import find, load
    from ilu_cli.recipe.schema import EvalRecipe
    from ilu_cli.runs.store import Store

    resolved = load(EvalRecipe, find(given.recipe) if given.recipe else None, given.flags, given.sets)
    given.agreed(resolved)
    store = Store()
    subject = (
        find_subject(run, store)
        if run is not None
        else of_run(store.latest(lambda r: r.has_model, "finished run with a checkpoint"))
    )
    from ilu_cli.workflows.attack.seen import unlearning_recipes
    from ilu_cli.workflows.gates import check_possible
    from ilu_cli.workflows.settle import fitting, forgotten_by

    spec = fitting(resolved.eval, forgotten_by(unlearning_recipes(subject)))
    resolved = resolved.model_copy(update={"eval": spec})
    check_possible(spec, subject, alone)
    if given.dry_run:
        from ilu_cli.workflows.evaluate import plan

        return console.show_plan(plan(resolved, subject, alone=alone), given.as_json)

    _evaluate(spec, subject, alone, given)


def _evaluate(spec: GateSpec, subject: Subject, alone: bool, given: Given) -> None:
    """Evaluate, print, and judge: a requirement that failed, or with --strict a warning, is exit code 4."""
    from ilu_cli.cli.progress import reporter
    from ilu_cli.engine.accel import backend
    from ilu_cli.workflows import evaluate as workflow
    from ilu_cli.workflows.gates import verdicts
    from ilu_cli.workflows.warned import of_lineage

    evaluation = workflow.Evaluation(spec, reporter())
    found = workflow.run(evaluation, subject, alone=alone)
    told = of_lineage(evaluation, found)
    if not backend().main:
        return
    checked = verdicts(spec, [results for _, _, results in found])
    failed = [v["require"] for v in checked if not v["passed"]]
    if given.as_json:
        stages = [
            {"stage": stage, "id": s.label, "kind": s.kind, "folder": str(s.folder), "results": _json(results)}
            for stage, s, results in found
        ]
        results = _json(found[-1][2])
        console.out_json(
            {
                "run": subject.label,
                "results": results,
                "lineage": stages,
                "requirements": checked,
                "warnings": warned.as_json(told),
            }
        )
    else:
        _table([(f"{stage}\n{s.label}", results) for stage, s, results in found])
        _verdict_table(checked)
    warned.show(told)
    if failed:
        error = RequirementError(f"{len(failed)} of {len(checked)} requirements failed: {'; '.join(failed)}")
        console.err().print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(error.exit_code)
    warned.conclude(told, given)
    console.next_step(f"evaluated: {subject.label}", [], "ilu taskvec" if subject.run else "ilu unlearn")


def _json(results: dict[str, Summary]) -> dict[str, Row]:
    return {name: summary.to_json() for name, summary in results.items()}


def _table(stages: list[tuple[str, dict[str, Summary]]]) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("benchmark")
    table.add_column("metric")
    for title, _ in stages:
        table.add_column(title, justify="right", overflow="fold")
    last = stages[-1][1]
    for name, s in last.items():
        chance = f", chance {s.chance}" if s.chance is not None else ""
        cells = [results[name] for _, results in stages]
        table.add_row(f"{name} ({s.role})", f"{s.metric}, n={s.n}{chance}", *map(console.measured, cells))
        for other in s.also:
            table.add_row("", other, *(console.measured(c.also.get(other)) for c in cells))
    console.out_table(table)
    console.out("± standard error; data: " + ", ".join(f"{n} ({s.data['source']})" for n, s in last.items()))


def _verdict_table(checked: list[Verdict]) -> None:
    from rich.table import Table

    from ilu_cli.metrics.figure import shown

    if not checked:
        return
    table = Table(title="requirements", title_justify="left")
    for title in ("", "requirement", "left", "right", "measured"):
        table.add_column(title, overflow="fold")
    for v in checked:
        left, right = ("not known" if x is None else shown(x, ".4g") for x in (v["left"], v["right"]))
        measured = ", ".join(f"{n} = {'not known' if x is None else shown(x, '.4g')}" for n, x in v["values"].items())
        table.add_row("passed" if v["passed"] else "FAILED", v["require"], left, right, measured)
    console.out_table(table)
