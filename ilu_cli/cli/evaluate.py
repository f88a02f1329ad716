"""`ilu eval`."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from ilu_cli.cli import complete, console
from ilu_cli.cli.options import DataRootOption, DryRunOption, JsonOption, PluginOption, RecipeOption, SetOption, given


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
    )
    resolved = load("eval", find(recipe) if recipe else None, flags, set_ or [])
    store = Store()
    subject = (
        find_subject(run, store)
        if run
        else of_run(store.latest(lambda r: r.has_model, "finished run with a checkpoint"))
    )
    if dry_run:
        from ilu_cli.workflows.evaluate import plan_facts

        facts = plan_facts(resolved, subject, digest(resolved))  # type: ignore[arg-type]
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
    if as_json:
        console.out_json({"run": subject.label, "results": found[-1][2], "lineage": stages})
        return
    _table(stages)
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
            *(f"{c['value']:.3f}" + (f" ±{c['stderr']:.3f}" if c["stderr"] is not None else "") for c in cells),
        )
    console.out_table(table)
    console.out(
        "± standard error; data: " + ", ".join(f"{n} ({s['data']['source']})" for n, s in stages[-1]["results"].items())
    )
