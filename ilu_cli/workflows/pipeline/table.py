"""The table of a graph: a row per method and attack, means over seeds with intervals, and the worst case."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ilu_cli.metrics.crossed import single, summarised
from ilu_cli.metrics.figure import strict, value_of
from ilu_cli.report.answers import Answers
from ilu_cli.runs.files import write_json
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.worst import answered, elsewhere


def interval(
    values: Sequence[float], errors: Sequence[float | None] = (), rows: Sequence[np.ndarray | None] = (),
    *, share: bool = True,
) -> dict[str, Any] | None:  # fmt: skip
    """Mean of one value per seed with its 95 % interval over seeds and questions; `how` says of what it is made.

    With the `rows` of every seed, [Q] each, from the mean squares of both (`ilu_cli.metrics.crossed`). Without, from
    the spread of the seeds and their `errors` over the questions, which counts twice what seed and question do together
    and is a little wide. `error` is that over the questions of one seed. A share's interval is kept within [0, 1]. None
    without values.
    """
    if not values:
        return None
    if infinite := sum(map(math.isinf, values)):
        how = f"none: infinite for {infinite} of {len(values)} seeds"
        return {"mean": None, "low": None, "high": None, "values": strict(list(values)), "error": None, "how": how}
    n, known = len(values), [e for e in errors if e is not None]
    error = math.sqrt(sum(e**2 for e in known) / len(known)) if known else None
    given, over = [r for r in rows if r is not None], [f"{n} seeds"] * (n > 1)
    if len(given) == n and len({len(r) for r in given}) == 1 and len(given[0]) > 1:
        found = single(np.stack(given), share=share)
        how = f"t over {' and '.join([*over, f'{len(given[0])} questions'])}"
    else:
        found = summarised(values, error, share=share)
        how = f"t over {' and '.join(over + ['the questions'] * (error is not None))}"
        how = how if n > 1 else "normal over the questions" if error is not None else "none: one seed"
    ends = {"low": found.low, "high": found.high}
    return {"mean": sum(values) / n, **ends, "values": list(values), "error": error, "how": how}


def figures(node: Node, known: Answers | None = None) -> dict[str, Any]:
    """FQ before, after, its mean (RA) and lowest value over the attack's points, and FA, of one finished attack.

    `stderr` are their standard errors over the questions; that of RA is the mean over the points, an upper bound as the
    points share the questions. `rows` are their values by question, from `known`.
    """
    result = node.result or {}
    axis, untouched = result["axis"], result["unattacked"]
    before = next((f for f in result["fq"] if f[axis] == untouched), None)
    after = [f for f in result["fq"] if f[axis] != untouched]
    points = {"before": before, "fq": after[-1] if after else None,
              "worst": min(after, key=lambda f: f["value"], default=None)}  # fmt: skip
    marks = result.get("marks") or [f[axis] for f in after]
    known = known or {}
    ra = np.mean([known[m] for m in marks], axis=0) if marks and all(m in known for m in marks) else None
    return {
        **{name: f["value"] if f else None for name, f in points.items()},
        "ra": result["ra"],
        "fa": result["fa"]["value"] if result["fa"] else None,
        "stderr": {
            **{name: f["stderr"] if f else None for name, f in points.items()},
            "ra": _mean([f["stderr"] for f in after]),
            "fa": result["fa"]["stderr"] if result["fa"] else None,
        },
        "rows": {"ra": ra, "fa": None} | {name: known.get(f[axis]) if f else None for name, f in points.items()},
    }


def rows(graph: Graph) -> list[dict[str, Any]]:
    """A row per method and attack with at least one finished seed.

    Of the choices that an attacker has (`best_of`), the row is the one with the lowest RA, averaged over the seeds that
    all choices have finished: choosing seed by seed would choose noise. Its worst case is that of all choices.
    """
    groups: dict[tuple[str, str], dict[str, list[Node]]] = {}
    for node in graph:
        if node.command == "attack":
            by_choice = groups.setdefault((node.tags["method"], node.tags["attack"]), {})
            by_choice.setdefault(json.dumps(node.tags["choice"]), []).append(node)
    found = []
    for (method, attack), by_choice in groups.items():
        done = {choice: {n.tags["seed"]: n for n in nodes if n.status == "done"} for choice, nodes in by_choice.items()}
        seeds = sorted(set.intersection(*(set(nodes) for nodes in done.values())))
        if seeds:
            found.append(_row(graph, method, attack, done, seeds))
    return found


def _row(graph: Graph, method: str, attack: str, done: dict[str, dict[int, Node]], seeds: list[int]) -> dict[str, Any]:
    once = method in graph.subjects and not next(iter(done.values()))[seeds[0]].tags["random"]
    seeds = seeds[:1] if once else seeds  # one model and nothing random: every seed is the same run
    measured = {c: [figures(nodes[s], answered(graph, nodes[s])) for s in seeds] for c, nodes in done.items()}
    means = {choice: _mean([f["ra"] for f in found]) for choice, found in measured.items()}
    best = min(means, key=lambda c: math.inf if (mean := means[c]) is None else mean)
    nodes, found = [done[best][s] for s in seeds], measured[best]
    lowest = [min(at_seed, key=lambda f: math.inf if f["worst"] is None else f["worst"])
              for at_seed in zip(*measured.values())]  # fmt: skip
    models = [graph.nodes[n.needs[0]].result or {} for n in nodes]
    before = found if len(_distinct(models)) > 1 else found[:1]
    lows = [f["worst"] for f in lowest if f["worst"] is not None]
    return {
        "method": method,
        "env": nodes[0].tags["env"],
        "attack": attack,
        "choice": json.loads(best),
        "choices": [
            {"choice": json.loads(c), "ra": mean, "worst": _mean([f["worst"] for f in measured[c]])}
            for c, mean in means.items()
        ],
        "seeds": seeds,
        "once": once,
        "before": _over(before, "before"),
        **{k: _over(found, k) for k in ("fq", "ra", "fa")},
        "worst": _over(lowest, "worst"),
        "worst_elsewhere": _elsewhere(graph, method, [{attack: s} for s in seeds]),
        "lowest": min(lows, default=None),
        "utility": utility(models),
        "steps": [m.get("step") for m in models],
        "off_target": [m["distance"] for m in models if not m.get("within", True)],
        "builtin": any(d["source"] == "builtin" for n in nodes for d in (n.result or {})["data"]),
        "runs": [n.run for n in nodes],
        "recipe_sha256": [n.recipe_sha256 for n in nodes],
    }


def _over(found: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """One of the `figures`, over the seeds."""
    there = [f for f in found if f[name] is not None]
    return interval([f[name] for f in there], *([f[kind][name] for f in there] for kind in ("stderr", "rows")))


def _elsewhere(graph: Graph, method: str, seeds: list[dict[str, int]]) -> dict[str, Any] | None:
    """The worst case as chosen on other questions than those it is reported on; None if the rows are gone."""
    found = elsewhere(graph, method, seeds)
    return interval([float(v.mean()) for v in found], rows=found) if found else None


def _distinct(models: list[dict[str, Any]]) -> set[str]:
    return {json.dumps(m["weights"], sort_keys=True) for m in models}


def utility(models: list[dict[str, Any]]) -> dict[str, Any]:
    """Each benchmark on the models before the attack, over the seeds."""
    models = models if len(_distinct(models)) > 1 else models[:1]
    found = {}
    for name, first in models[0]["eval"].items():
        measured = [m["eval"][name] for m in models]
        values, errors = [value_of(s) for s in measured], [s["stderr"] for s in measured]
        spread = interval(values, errors, share=first["metric"] == "acc") or {}
        found[name] = {"role": first["role"], "metric": first["metric"], **spread}
    return found


def summaries(found: list[dict[str, Any]], graph: Graph | None = None) -> list[dict[str, Any]]:
    """Per method over all its attacks: the mean RA, the attack of the lowest worst case (mean over seeds), and the
    lowest FQ of any attack and seed; with the graph the worst case of all attacks, chosen on other questions.

    The questions' error of the mean RA is the mean one of the attacks: an upper bound, as they share questions.
    """
    out = []
    for method in dict.fromkeys(row["method"] for row in found):
        mine = [row for row in found if row["method"] == method and row["ra"] is not None]
        if not mine:
            continue
        varied = [set(row["seeds"]) for row in mine if not row["once"]]
        common = sorted(set.intersection(*varied)) if varied else mine[0]["seeds"]
        seeds = [{row["attack"]: row["seeds"][0] if row["once"] else s for row in mine} for s in common]
        worst = min(mine, key=lambda row: _mean([_at(row, seed, "worst") for seed in common]) or row["worst"]["mean"])
        out.append(
            {
                "method": method,
                "attacks": len(mine),
                "ra": interval(
                    [sum(_at(row, seed, "ra") for row in mine) / len(mine) for seed in common],
                    [_mean([row["ra"]["error"] for row in mine])],
                ),
                "worst": {"attack": worst["attack"], **worst["worst"]},
                "worst_elsewhere": _elsewhere(graph, method, seeds) if graph else None,
                "lowest": min(row["lowest"] for row in mine),
                "utility": mine[0]["utility"],
            }
        )
    return out


def _at(row: dict[str, Any], seed: int, name: str) -> float:
    """A row's number of one seed."""
    value: float = row[name]["values"][0 if row["once"] else row["seeds"].index(seed)]
    return value


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def collect(graph: Graph) -> dict[str, Any]:
    """All that is known now: rows, summaries, what failed, and the hashes of the finished runs' manifests."""
    found = rows(graph)
    return {
        "format": 1,
        "name": graph.name,
        "rows": found,
        "methods": summaries(found, graph),
        "failed": [{"node": n.key, "status": n.status, "error": n.error} for n in graph if n.error],
        "off_target": off_target(graph),
        "manifests": {n.run: n.result["manifest_sha256"] for n in graph if n.status == "done" and n.run and n.result},
    }


def off_target(graph: Graph) -> list[dict[str, Any]]:
    """The models whose utility could not be matched within the tolerance."""
    return [
        {"node": n.key, **{k: n.result[k] for k in ("step", "target", "distance", "candidates")}}
        for n in graph
        if n.command == "select" and n.result and not n.result.get("within", True)
    ]


def save(graph: Graph) -> dict[str, Any]:
    """Write results.json, atomically."""
    found = collect(graph)
    write_json(graph.folder / "results.json", found)
    return found
