"""`ilu runs`."""

from __future__ import annotations

from ilu_cli.cli import console
from ilu_cli.cli.options import JsonOption


def runs(as_json: JsonOption = False) -> None:
    """List the runs, the newest last."""
    from ilu_cli.runs.store import Store

    store = Store()
    found = [
        {
            "run": r.id,
            "command": r.manifest.command,
            "status": "complete" if r.complete else "unfinished",
            "parent": r.manifest.parents[0]["id"] if r.manifest.parents else None,
            "created": r.manifest.created,
            "recipe_sha256": r.manifest.recipe_sha256,
            "path": str(r.path),
        }
        for r in store.runs()
    ]
    if as_json:
        console.out_json({"runs": found})
        return
    from rich.table import Table

    table = Table()
    for title in ("run", "status", "parent", "age"):
        table.add_column(title, overflow="fold")
    for row in found:
        table.add_row(str(row["run"]), str(row["status"]), str(row["parent"] or "-"), console.ago(str(row["created"])))
    console.out_table(table)
