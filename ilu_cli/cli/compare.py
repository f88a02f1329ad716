"""`ilu compare`."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from ilu_cli.cli import complete, console
from ilu_cli.cli.options import JsonOption, SetOption, given


class Compare(TyperCommand):
    """Lets `--with` take all names up to the next option: `A1 A2 --with B1 B2 --json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
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


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN…", help="Runs (id, prefix, path).", autocompletion=complete.runs)
    ],
    others: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--with", metavar="RUN…", help="The second arm; else runs are grouped by recipe, seed left out."),
    ] = None,
    bench: Annotated[Optional[list[str]], typer.Option("--bench", help="Benchmark. Repeatable.")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option("--limit", help="Only the first rows of each benchmark.")] = None,  # noqa: UP045
    margin: Annotated[
        float, typer.Option("--margin", min=0.0, help="Utility is the same if its interval differs by no more.")
    ] = 0.05,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which of two or more runs forgets more, and at what utility, with intervals."""
    from ilu_cli.errors import UnavailableError
    from ilu_cli.recipe.load import load
    from ilu_cli.runs.store import Run, Store

    flags = given(bench=(("eval", "benchmarks"), bench), limit=(("eval", "limit"), limit))
    resolved = load("eval", None, flags, set_ or [])
    store = Store()

    def find(name: str) -> Run:
        run = store.find(name)
        if run is None:
            raise UnavailableError(f"there is no run {name!r}.{store.near(name)}", hint="`ilu runs` lists the runs")
        return run

    from ilu_cli.workflows import compare as workflow

    arms = workflow.arms_of([find(n) for n in runs], [find(n) for n in others or []])
    found = workflow.run(resolved, arms, margin, console.reporter())  # type: ignore[arg-type]
    if as_json:
        console.out_json(found)
        return
    alone = [arm["label"] for arm in found["arms"] if len(arm["runs"]) < 2]
    over = f"questions; {', '.join(alone)}: one seed, not over others" if alone else "seeds and questions"
    for comparison in found["comparisons"]:
        _table(comparison, over)
        console.out(comparison["sentence"])


def _table(comparison: dict[str, Any], over: str) -> None:
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
