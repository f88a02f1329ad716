"""`ilu runs` and its subcommands: what there is, where it came from, how two differ, and away with it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ilu_cli.cli import complete, console, runs_verify
from ilu_cli.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.tree import Tree

    from ilu_cli.runs.store import Run, Store

app = typer.Typer(help="List the runs; show, compare and remove them.", rich_markup_mode=None)
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id, prefix or path.", autocompletion=complete.runs)]


app.command("verify")(runs_verify.verify)


@app.callback(invoke_without_command=True)
def runs(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the runs, the newest last; or show, compare and remove them."""
    from ilu_cli.runs.store import Store

    if context.invoked_subcommand is not None:
        return
    store = Store()
    found = [_row(run) for run in store.runs()]
    if as_json:
        console.out_json({"runs": found})
        return
    if not found:
        console.next_step(f"no runs in {store.root}", [], "ilu unlearn")
        return
    from rich.table import Table

    table = Table()
    for title in ("run", "status", "parent", "age"):
        table.add_column(title, overflow="fold")
    for row in found:
        table.add_row(row["run"], row["status"], row["parent"] or "-", console.ago(row["created"]))
    console.out_table(table)


def _row(run: Run) -> dict[str, Any]:
    m = run.manifest
    return {
        "run": run.id,
        "command": m.command,
        "status": _status(run),
        "parent": m.parents[0]["id"] if m.parents else None,
        "created": m.created,
        "recipe_sha256": m.recipe_sha256,
        "path": str(run.path),
    }


def _status(run: Run) -> str:
    return run.status


@app.command()
def tree(as_json: JsonOption = False) -> None:
    """Draw what was made from what."""
    from ilu_cli.runs.store import Store

    found = Store().runs()
    below = _below(found)
    ids = {run.id for run in found}
    outside = [name for name in below if name not in ids]
    if as_json:
        console.out_json({"roots": [_branch(name, below) for name in outside]})
        return
    from rich.tree import Tree

    for name in outside:
        top = Tree(name, style="bold", guide_style="dim")
        _grow(top, name, below)
        console.stdout().print(top)


def _below(found: list[Run]) -> dict[str, list[Run]]:
    """The runs by what they were made from. A model in a folder has the name that it was first called by."""
    called: dict[str, str] = {}
    below: dict[str, list[Run]] = {}
    for run in found:
        name = (run.manifest.made_from or ["(no parent)"])[0]
        if run.manifest.parents and run.manifest.parents[0]["kind"] == "folder":
            path = str(run.manifest.parents[0]["path"])
            name = called.setdefault(path, path if name in called.values() else name)
        below.setdefault(name, []).append(run)
    return below


def _branch(name: str, below: dict[str, list[Run]]) -> dict[str, Any]:
    return {"id": name, "children": [_branch(run.id, below) for run in below.get(name, [])]}


def _grow(node: Tree, name: str, below: dict[str, list[Run]]) -> None:
    from rich.text import Text

    for run in below.get(name, []):
        exactly = _row(run)["parent"]
        note = console.ago(run.manifest.created) + ("" if run.complete else f", {run.status}")
        at_step = run.manifest.made_from and run.manifest.made_from[0] != exactly
        note += f", from {exactly}" if at_step else ""
        _grow(node.add(Text.assemble(run.id, (f"  {note}", "dim")), style=""), run.id, below)


@app.command()
def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show what a run was made from, how, and what was measured on it."""
    from dataclasses import asdict

    from ilu_cli.care.kept import kept
    from ilu_cli.runs.results import Summary
    from ilu_cli.runs.store import Store

    found = Store().get(run)
    m = found.manifest
    found.check("eval")
    files = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(found.eval.glob("*.json"))}
    results, warned = {k: s for k, s in files.items() if "benchmark" in s}, kept([found])
    recipe = _recipe(found)
    if as_json:
        told = {"eval": results, "warnings": [w.to_json() for w in warned]}
        console.out_json({"manifest": asdict(m), "recipe": recipe, **told, "path": str(found.path)})
        return
    from ilu_cli.recipe.yaml_text import write_yaml

    lines = [("run", f"{m.id} ({m.command}, {_status(found)})"), ("path", str(found.path))]
    lines.append(("created", f"{m.created[:19]} UTC, {console.ago(m.created)} ago"))
    lines += [(p["role"], f"{p['id']} ({p['kind']})") for p in m.parents]
    lines += [("data", f"{d['role']}: {d['name']} ({d['source']}), {d['rows']} rows") for d in m.data]
    lines.append(("seed", f"{m.seed}, {m.world_size} process(es), {m.precision or 'no'} autocast"))
    lines += [(m.status, m.result["error"])] if "error" in m.result else []
    lines += [("result", f"{key} {value}") for key, value in m.result.items() if isinstance(value, (int, float))]
    for name, s in results.items():
        lines.append(("eval", f"{name} ({s['role']}): {s['metric']} {console.measured(Summary.read(s))}, n={s['n']}"))
    lines += [("warning", f"{w.text} [{w.id}]") for w in warned]
    lines.append(("recipe", f"sha256 {m.recipe_sha256[:16]}"))
    for label, text in lines:
        console.out(f"{label:<10} {text}")
    console.out("\n" + write_yaml(recipe).rstrip())


def _recipe(run: Run) -> dict[str, Any]:
    from ilu_cli.recipe.source import read_layers

    run.check("recipe.yaml")
    path = run.path / "recipe.yaml"
    return read_layers(path).data if path.is_file() else {}


@app.command()
def diff(a: RunArgument, b: RunArgument, as_json: JsonOption = False) -> None:
    """Compare the recipes of two runs, and what they were made from."""
    from ilu_cli.recipe.source import flat
    from ilu_cli.runs.store import Store

    store = Store()
    pair = [store.get(a), store.get(b)]
    left, right = ({"parent": _row(run)["parent"]} | flat(_recipe(run)) | _versions(run) for run in pair)
    keys = [k for k in {**left, **right} if left.get(k, ...) != right.get(k, ...)]
    if as_json:
        found = {k: {"a": left.get(k), "b": right.get(k)} for k in keys}
        console.out_json({"a": pair[0].id, "b": pair[1].id, "differences": found})
        return
    if not keys:
        console.out(f"{pair[0].id} and {pair[1].id} have the same recipe, parent and versions")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for title in ("key", pair[0].id, pair[1].id):
        table.add_column(title, overflow="fold")
    for k in keys:
        table.add_row(k, *(Text("-" if k not in side else json.dumps(side[k])) for side in (left, right)))
    console.out_table(table)


def _versions(run: Run) -> dict[str, str]:
    return {f"(version of {name})": version for name, version in run.manifest.versions.items()}


@app.command()
def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Ids, prefixes or paths.", autocompletion=complete.runs)
    ],
    children: Annotated[bool, typer.Option("--children", help="Remove also what was made from them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove runs. A run that others were made from is kept unless they go too."""
    from ilu_cli.errors import UsageError
    from ilu_cli.runs.lock import refuse_held
    from ilu_cli.runs.store import Store

    store = Store()
    doomed = {run.path.absolute(): run for run in map(store.get, names)}
    orphans = _descendants(list(doomed.values()), store)
    if orphans and not children:
        listed = ", ".join(run.id for run in orphans)
        raise UsageError(f"made from these: {listed}", hint="`--children` removes them too")
    doomed |= {run.path.absolute(): run for run in orphans}
    for path, run in doomed.items():
        refuse_held(path, f"run {run.id}")
    total = sum(map(_bytes_of, doomed))
    for run in doomed.values():
        print(f"{run.path}  ({_status(run)})", file=sys.stderr)
    if not yes:
        _ask("this run" if len(doomed) == 1 else f"these {len(doomed)} runs", total)
    _remove(list(doomed))
    removed = [run.id for run in doomed.values()]
    if as_json:
        console.out_json({"removed": removed, "bytes": total})
        return
    console.next_step(f"removed {len(removed)} run(s), {console.size(total)}", [], "ilu runs")


def _bytes_of(path: Path) -> int:
    """What removing a run frees; of a link nothing."""
    return 0 if path.is_symlink() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def _remove(folders: list[Path]) -> None:
    for path in folders:
        if path.is_symlink():  # what it leads to is not this workspace's
            path.unlink()
            continue
        (path / "manifest.json").unlink()  # first, so that no half of a run is ever taken for a whole one
        shutil.rmtree(path)


def _ask(what: str, size: int) -> None:
    """Go on only after a yes.

    Raises:
        UsageError: if the answer is another, or there is nobody to ask.
    """
    from ilu_cli.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint="add --yes to remove them")
    print(f"remove {what}, {console.size(size)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was removed")


def _descendants(roots: list[Run], store: Store) -> list[Run]:
    """The runs that were made from `roots`, directly or not, without them."""
    ids, found = {run.id for run in roots}, []
    for run in store.runs():  # parents are older than their children
        if run.id not in ids and not ids.isdisjoint(run.manifest.made_from):
            ids.add(run.id)
            found.append(run)
    return found
