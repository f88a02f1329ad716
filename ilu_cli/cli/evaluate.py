"""`ilu eval`."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from ilu_cli.cli import complete, console
from ilu_cli.cli.options import DataRootOption, DryRunOption, JsonOption, PluginOption, RecipeOption, SetOption, given
from ilu_cli.errors import RequirementError


def evaluate(
    run: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            help="Run (id, prefix, path) or model; default: the latest run.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    bench: Annotated[
        list[str] | None,
        typer.Option("--bench", help="Benchmark or lm-eval task. Repeatable.", autocompletion=complete.benchmarks),
    ] = None,
    limit: Annotated[Optional[int], typer.Option("--limit", help="Only the first rows of each benchmark.")] = None,  # noqa: UP045
    fewshot: Annotated[Optional[int], typer.Option("--fewshot", help="Solved examples before each question.")] = None,  # noqa: UP045
    require: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--require", help='Fail with exit code 4 unless it holds: "capitals.acc <= 0.32". Repeatable.'),
    ] = None,
    retain_run: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--retain-run", metavar="RUN", help="For TOFU: a model that never saw the forget set."),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Only this model, not what it came from.")] = False,
    data_root: DataRootOption = None,
    plugin: PluginOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what is forgotten and what is kept.

    Along the lineage of a run: original, unlearned, attacked.
    """
    from ilu_cli.models.subject import find_subject, of_run
    from ilu_cli.recipe.load import digest, find, load
    from ilu_cli.runs.store import Store

    flags = given(
        bench=(("eval", "benchmarks"), bench),
        limit=(("eval", "limit"), limit),
        fewshot=(("eval", "fewshot"), fewshot),
        require=(("eval", "require"), require),
        retain_run=(("eval", "retain_run"), retain_run),
    )
    resolved = load("eval", find(recipe) if recipe else None, flags, set_ or [])
    spec, store = resolved.eval, Store()  # type: ignore[attr-defined]
    subject = (
        find_subject(run, store)
        if run
        else of_run(store.latest(lambda r: r.has_model, "finished run with a checkpoint"))
    )
    from ilu_cli.workflows.gates import check_possible, verdicts

    check_possible(spec, subject, alone)
    if dry_run:
        from ilu_cli.workflows.evaluate import plan_facts

        facts = plan_facts(resolved, subject, digest(resolved), alone=alone)  # type: ignore[arg-type]
        console.out_json(facts) if as_json else console.out(console.plan_text(facts))
        return

    from ilu_cli.engine.accel import backend
    from ilu_cli.workflows import evaluate as workflow

    found = workflow.run(resolved, subject, console.reporter(), alone=alone)  # type: ignore[arg-type]
    if not backend().main:
        return
    stages = [
        {"stage": stage, "id": s.label, "kind": s.kind, "folder": str(s.folder), "results": results}
        for stage, s, results in found
    ]
    checked = verdicts(spec, [results for _, _, results in found])
    failed = [v["require"] for v in checked if not v["passed"]]
    if as_json:
        console.out_json({"run": subject.label, "results": found[-1][2], "lineage": stages, "requirements": checked})
    else:
        _table(stages)
        _verdict_table(checked)
    if failed:
        error = RequirementError(f"{len(failed)} of {len(checked)} requirements failed: {'; '.join(failed)}")
        console.err().print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(error.exit_code)
    console.next_step(f"evaluated: {subject.label}", [], "ilu taskvec" if subject.run else "ilu unlearn")


def _table(stages: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("benchmark")
    table.add_column("metric")
    for s in stages:
        table.add_column(f"{s['stage']}\n{s['id']}", justify="right", overflow="fold")
    for name, last in stages[-1]["results"].items():
        chance = f", chance {last['chance']}" if last["chance"] is not None else ""
        cells = [s["results"][name] for s in stages]
        table.add_row(
            f"{name} ({last['role']})",
            f"{last['metric']}, n={last['n']}{chance}",
            *(console.measured(c) for c in cells),
        )
        for other in last.get("also", {}):
            table.add_row("", other, *(console.measured(c.get("also", {}).get(other)) for c in cells))
    console.out_table(table)
    console.out(
        "± standard error; data: " + ", ".join(f"{n} ({s['data']['source']})" for n, s in stages[-1]["results"].items())
    )


def _verdict_table(checked: list[dict[str, Any]]) -> None:
    from rich.table import Table

    if not checked:
        return
    table = Table(title="requirements", title_justify="left")
    for title in ("", "requirement", "left", "right", "measured"):
        table.add_column(title, overflow="fold")
    for v in checked:
        left, right = ("not known" if v[side] is None else f"{v[side]:.4g}" for side in ("left", "right"))
        measured = ", ".join(f"{n} = {'not known' if x is None else f'{x:.4g}'}" for n, x in v["values"].items())
        table.add_row("passed" if v["passed"] else "FAILED", v["require"], left, right, measured)
    console.out_table(table)
