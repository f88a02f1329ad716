"""`ilu reproduce`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ilu_cli.cli import complete, console
from ilu_cli.cli.around import ALLOWED, AROUND
from ilu_cli.cli.options import Given, shares
from ilu_cli.engine import peers
from ilu_cli.errors import RequirementError, UsageError

if TYPE_CHECKING:
    from ilu_cli.runs.store import Run, Store
    from ilu_cli.workflows.reproduce.recorded import Recorded
    from ilu_cli.workflows.reproduce.stages import Pair, Stage

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A finished run (id, prefix, path), or a downloaded model that `ilu push` made.",
        autocompletion=complete.runs,
    ),
]  # fmt: skip
OtherOption = Annotated[
    str | None,
    typer.Option("--with", metavar="RUN", help="Compare with this run, which is there already; run nothing."),
]
EvalOption = Annotated[
    bool, typer.Option("--eval", help="Only measure again what was measured on the run's model, or on any model.")
]
ParentOption = Annotated[
    list[str] | None,
    typer.Option("--parent", metavar="RUN", help="Where a parent is now, if not in its place. Repeatable."),
]
ToleranceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tolerance", metavar="KEY=VALUE",
        help="How much losses, weights or metrics may differ, relatively. Default: 0.05. Repeatable.",
    ),
]  # fmt: skip


@shares(*AROUND, "out", "dry_run", "as_json")
def reproduce(
    run: RunArgument,
    other: OtherOption = None,
    only_eval: EvalOption = False,
    parent: ParentOption = None,
    tolerance: ToleranceOption = None,
    *,
    given: Given,
) -> None:
    """Run a run again, and say whether it came out the same.

    By its manifest; identical, within tolerance, or different and where first. Exit code 4 if it is different.
    """
    from ilu_cli.runs.store import Store

    store, tolerances = Store(), _tolerances(tolerance or [])
    alone = [n for n, there in (("--with", other), ("--eval", only_eval)) if there]
    wrong = given.besides(*alone, "--tolerance", "--json", *ALLOWED) if alone else []
    if len(alone) > 1 or wrong:
        said = " and ".join(alone) if len(alone) > 1 else f"{alone[0]} and {', '.join(wrong)}"
        raise UsageError(f"{said} do not go together: nothing is run")
    if only_eval:
        return _say(run, run, *_measured(run, store, tolerances), tolerances, given.as_json)
    from ilu_cli.workflows.reproduce.recorded import recorded

    was = recorded(run, store)
    if other is not None:
        if not peers.alone("reproduce --with"):
            return
        found = _compared(was, store.get(other), store, tolerances)
        return _say(was.manifest.id, other, *found, tolerances, given.as_json)
    _again(was, parent or [], store, tolerances, given)


def _again(was: Recorded, parents: list[str], store: Store, tolerances: dict[str, float], given: Given) -> None:
    """Run it again; what would be another run is not begun."""
    from ilu_cli.cli.progress import reporter
    from ilu_cli.engine.accel import backend
    from ilu_cli.workflows.reproduce import again, compare
    from ilu_cli.workflows.reproduce.recorded import of_finished
    from ilu_cli.workflows.reproduce.stages import verdict

    planned = again.plan(was, parents, store)
    if given.dry_run:
        if given.as_json:
            stages = [s.to_json() for s in planned.stages]
            return console.out_json(planned.plan.to_json() | {"reproduces": was.manifest.id, "stages": stages})
        console.show_plan(planned.plan, False)
        return _table(planned.stages)
    if verdict(planned.stages) == "different":
        return _say(was.manifest.id, None, planned.stages, [], tolerances, given.as_json)
    notes = reporter()
    new = planned.run(store, notes, given.out)
    missed = again.measure_again(was, new, notes)
    if not backend().main:
        return
    found = compare.compare(was, of_finished(new), planned.parent, tolerances)
    again.keep(was, new, found)
    _say(was.manifest.id, new.id, found, missed, tolerances, given.as_json)


def _compared(was: Recorded, new: Run, store: Store, tolerances: dict[str, float]) -> tuple[list[Stage], list[str]]:
    """The stages of two runs that are there, and what only one of them has."""
    from ilu_cli.errors import IluError
    from ilu_cli.workflows.reproduce import compare
    from ilu_cli.workflows.reproduce.recorded import of_finished, parent_of_record

    now = of_finished(new)
    try:
        parent = parent_of_record(was.manifest.parents[0], was, [], store)
    except IluError:  # the difference is then a share of the weights themselves
        parent = None
    return compare.compare(was, now, parent, tolerances), compare.unmatched(was.eval, now.eval)


def _measured(text: str, store: Store, tolerances: dict[str, float]) -> tuple[list[Stage], list[str]]:
    """The stages of the results of a model, and of the same measured anew."""
    from ilu_cli.cli.progress import reporter
    from ilu_cli.engine.accel import backend
    from ilu_cli.models.subject import find_subject
    from ilu_cli.workflows.reproduce import again, compare
    from ilu_cli.workflows.reproduce.stages import stage_of

    with tempfile.TemporaryDirectory(prefix="ilu-reproduce-") as folder:
        old, missed = again.measured_again(find_subject(text, store), reporter(), Path(folder))
        found = compare.results(old, Path(folder)) if backend().main else {}
        return [stage_of(name, pairs, tolerances) for name, pairs in found.items()], missed


def _tolerances(texts: list[str]) -> dict[str, float]:
    """`--tolerance weights=0.1` over the defaults.

    Raises:
        UsageError: if a key is not known, or a value no number from 0 on.
    """
    from ilu_cli.workflows.reproduce.stages import TOLERANCES

    found = dict(TOLERANCES)
    for text in texts:
        key, _, value = text.partition("=")
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = -1.0
        if key not in TOLERANCES or not found[key] >= 0:
            raise UsageError(f"--tolerance {text}: write KEY=NUMBER, with KEY among {', '.join(TOLERANCES)}")
    return found


def _say(
    was: str, now: str | None, stages: list[Stage], missed: list[str], tolerances: dict[str, float], as_json: bool
) -> None:
    """Print what was found; end with the code of a requirement that failed, if the runs are different."""
    from ilu_cli.workflows.reproduce.stages import first_difference, verdict

    how, first, beyond = verdict(stages), first_difference(stages), first_difference(stages, beyond=True)
    if as_json:
        told = {"first": first, "beyond": beyond}
        pairs = {k: {"stage": f[0], **f[1].to_json()} if f else None for k, f in told.items()}
        rest = {"tolerances": tolerances, "stages": [s.to_json() for s in stages], "not_compared": missed}
        console.out_json({"run": was, "again": now, "found": how, **pairs, **rest})
    else:
        _table(stages)
        for note in missed:
            console.out(f"not compared: {note}")
        if first:
            console.out(f"first difference: {_words(*first)}")
        if not beyond:
            console.out(f"{how}: {was} and {now}" if was != now else f"{how}: {was}, measured again")
    if beyond:
        begun = "" if now else "; nothing was run"
        error = RequirementError(f"different, first beyond tolerance in {_words(*beyond)}{begun}")
        console.err().print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(error.exit_code)


def _words(stage: str, pair: Pair) -> str:
    if stage == "weights":
        by = f"{pair.by:.2g} of what the run changed" if pair.by != float("inf") else f"{pair.was} → {pair.now}"
        return f"weights, {pair.where}: {by}"
    by = f" ({pair.by:.2g} relative)" if 0 < pair.by < float("inf") else ""
    return f"{stage}, {pair.where}: {_short(pair.was)} → {_short(pair.now)}{by}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:40]}…"


def _table(stages: list[Stage]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for title in ("", "compared", "different", "largest", "first"):
        table.add_column(title, overflow="fold")
    for s in stages:
        largest = "-" if not s.different else "not a number" if s.largest == float("inf") else f"{s.largest:.2g}"
        cells = (s.name, str(s.compared), str(s.different), largest, s.first.where if s.first else "-")
        table.add_row(*map(Text, cells))
    console.out_table(table)
