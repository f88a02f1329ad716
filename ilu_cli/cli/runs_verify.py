"""`ilu runs verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypedDict

import typer

from ilu_cli.cli import complete, console
from ilu_cli.cli.options import JsonOption


class Looked(TypedDict):
    """What was found of a file of a run."""

    run: str
    file: str
    found: str
    bad: bool


def verify(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Id, prefix or path.", autocompletion=complete.runs)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All runs of the workspace.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare every file of a run, or of --all, with what was listed when it was written."""
    from ilu_cli.errors import RequirementError, UsageError
    from ilu_cli.runs.store import Store

    if (run is None) != every:
        raise UsageError("name a RUN, or give --all")
    store = Store()
    paths = [store.root / name for name in store.ids()] if run is None else [store.path_of(run)]
    found = [row for path in paths for row in _rows(path)]
    bad = sorted({row["run"] for row in found if row["bad"]})
    if as_json:
        console.out_json({"runs": found, "damaged": bad})
    else:
        _print(found)
    if bad:
        raise RequirementError(f"{len(bad)} of {len(paths)} run(s) are not as they were written: {', '.join(bad)}")


def _rows(path: Path) -> list[Looked]:
    from ilu_cli.errors import IluError
    from ilu_cli.runs import ledger
    from ilu_cli.runs.store import open_run

    def row(name: str, file: str, how: str, *, bad: bool = False) -> Looked:
        return {"run": name, "file": file, "found": how, "bad": bad}

    try:
        run = open_run(path)
        if not run.complete:
            return [row(run.id, "-", f"{run.status}: nothing is listed yet")]
        if not run.manifest.listed:
            run.verify() if run.manifest.weights else None
            how = "weights and configuration as recorded; the rest is not listed (made by an earlier version)"
            return [row(run.id, "-", how)]
        files = ledger.read(run.path)
        if files is None:
            return [row(run.id, ledger.NAME, "is missing", bad=True)]
        wrong = ledger.differences(run.path, files, ledger.LISTED)
    except IluError as error:
        return [row(path.name, "-", str(error), bad=True)]
    total = console.size(sum(e["size"] for e in files.values()))
    good = row(run.id, f"{len(files)} files, {total}", "as written")
    return [row(run.id, name, how, bad=True) for name, how in wrong.items()] or [good]


def _print(found: list[Looked]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for title in ("run", "file", "found"):
        table.add_column(title, overflow="fold")
    for row in found:
        table.add_row(*(Text(cell) for cell in (row["run"], row["file"], row["found"])))
    console.out_table(table)
