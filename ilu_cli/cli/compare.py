"""`ilu compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ilu_cli.cli import complete, console, warned
from ilu_cli.cli.around import AROUND
from ilu_cli.cli.options import Given, Sets, shares

if TYPE_CHECKING:
    from ilu_cli.workflows.compare import Comparison


class Compare(TyperCommand):
    """Lets `--with` take all names up to the next option: `A1 A2 --with B1 B2 --json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Click's own, with several values after one `--with`."""
        found: list[str] = []
        within = False
        for word in args:
            if word.startswith("-"):
                within = word == "--with"
                found += [word]
            elif within and found[-1] != "--with":
                found += ["--with", word]
            else:
                found += [word]
        return super().parse_args(ctx, found)


@shares(*AROUND, "set_", "as_json", "strict")
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN…", help="Runs (id, prefix, path).", autocompletion=complete.runs)
    ],
    others: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="RUN…", help="The second arm; else runs are grouped by recipe, seed left out."),
    ] = None,
    bench: Annotated[
        list[str] | None, typer.Option("--bench", help="Benchmark. Repeatable."), Sets(("eval", "benchmarks"))
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only the first rows of each benchmark."), Sets(("eval", "limit"))
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", min=0.0, help="Utility is the same if its interval differs by no more.")
    ] = 0.05,
    *,
    given: Given,
) -> None:
    """Say which of several runs forgets more, at what utility."""
    from ilu_cli.recipe.load import load
    from ilu_cli.recipe.schema import EvalRecipe
    from ilu_cli.runs.store import Store

    resolved, store = load(EvalRecipe, None, given.flags, given.sets), Store()

    from ilu_cli.care import read
    from ilu_cli.cli.progress import reporter
    from ilu_cli.workflows import compare as workflow

    arms = workflow.arms_of([store.get(n) for n in runs], [store.get(n) for n in others or []])
    found = workflow.run(resolved, arms, margin, reporter())
    told = read(found["warnings"])
    if given.as_json:
        console.out_json(found)
        warned.show(told)
        warned.conclude(told, given)
        return
    alone = [arm["label"] for arm in found["arms"] if len(arm["runs"]) < 2]
    over = f"questions; {', '.join(alone)}: one seed, not over others" if alone else "seeds and questions"
    for comparison in found["comparisons"]:
        _table(comparison, over)
        console.out(comparison["sentence"])
    warned.show(told)
    warned.conclude(told, given)


def _table(comparison: Comparison, over: str) -> None:
    from rich.table import Table

    a, b = comparison["a"], comparison["b"]
    table = Table(title=f"{b} against {a}, 95% intervals over {over}", title_justify="left")
    for title in ("number", a, b, "difference", "interval", "p", "n"):
        table.add_column(title, justify="left" if title == "number" else "right", overflow="fold")
    for r in comparison["numbers"]:
        form = "{:+.1%}" if r["relative"] else "{:+.3f}"
        n = f"{r['n']}" if r["paired"] else f"{r['n']}, not paired"
        low, high = _text(r["low"], form), _text(r["high"], form)
        cells = (_text(r["a"], "{:.3f}"), _text(r["b"], "{:.3f}"), _text(r["difference"], form), f"[{low}, {high}]")
        table.add_row(f"{r['name']} ({r['role']})", *cells, _text(r["p"], "{:.3g}"), n)
    console.out_table(table)


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
