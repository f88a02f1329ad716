"""`ilu list`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ilu_cli.cli import console
from ilu_cli.cli.around import PluginOption
from ilu_cli.cli.options import JsonOption

MEASURED = {"methods", "defences"}  # the lists that tell what is measured on the quickstart


def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help="methods, retain, regularisers, defences, tasks, attacks, benchmarks, models, recipes, warnings."
        ),
    ] = "all",
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what there is: methods, tasks, attacks, recipes."""
    from ilu_cli.errors import UsageError, near

    groups = _groups()
    if kind != "all" and kind not in groups:
        raise UsageError(f"there is no list of {kind!r}.{near(kind, groups)}", hint=f"lists: {', '.join(groups)}")
    chosen = groups if kind == "all" else {kind: groups[kind]}
    told = _measured() if chosen.keys() & MEASURED else {}
    if as_json:
        console.out_json(chosen | ({"measured": told} if told else {}))
        return
    width = max(len(name) for group in chosen.values() for name in group)
    for title, group in chosen.items():
        console.out(f"{title}")
        for name, text in group.items():
            console.out(f"  {name:<{width}}  {text}")
            if title == "methods" or (title == "defences" and name in told):
                console.out(f"  {'':<{width}}  {told.get(name, 'not measured')}")
        if title == "benchmarks":
            console.out("  and lm-eval's tasks by their names (mmlu, wmdp_bio, gsm8k, …), or a task.yaml of your own")


def _measured() -> dict[str, str]:
    """What is measured of the methods on the quickstart: the worst case and the cost, by name; docs/measured.py."""
    from ilu_cli.data.tables import read_table

    found = {}
    for r in read_table("measured.tsv"):
        over = f"the worst of {r['attacks']} attacks, {r['seeds']} seed{'s' * (r['seeds'] != '1')}"
        worst = f"FQ {r['before']} before, {r['worst']} after {r['attack']}, {over}"
        cost = ", ".join(r[key] for key in ("seconds", "memory") if r[key] != "-")
        found[r["method"]] = f"quickstart: {worst}" + (f"; trained in {cost}" if cost else "")
    return found


def _groups() -> dict[str, dict[str, str]]:
    """What there is, by kind: name → a line about it."""
    from ilu_cli import registry
    from ilu_cli.care import KINDS
    from ilu_cli.models.builtin import MODELS
    from ilu_cli.recipe.load import about, shipped

    kinds: dict[str, registry.Registry[Any]] = {
        "methods": registry.objective,
        "retain": registry.retain_term,
        "regularisers": registry.regularizer,
        "defences": registry.defence,
        "tasks": registry.task,
        "attacks": registry.attack,
        "benchmarks": registry.benchmark,
    }
    found = {title: {n: e.help for n, e in known.items()} for title, known in kinds.items()}
    found["models"] = {n: hub for n, (_, _, hub) in MODELS.items()}
    found["warnings"] = {n: kind.tells for n, kind in KINDS.items()}
    return found | {"recipes": {n: about(p) for n, p in shipped().items()}}
