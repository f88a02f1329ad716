"""The table of a graph: a row per method and attack, means over seeds with intervals, and the worst case."""

from __future__ import annotations

import json
import math
from statistics import NormalDist
from typing import Any

from ilu_cli.metrics.figure import strict, value_of
from ilu_cli.runs.files import write_json
from ilu_cli.workflows.graph import Graph, Node

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def interval(values: list[float], stderr: float | None = None) -> dict[str, Any] | None:
    """Mean of one value per seed with its 95 % interval.

    Several seeds: Student's t over them, which is wide for few, as it should be. One seed: the normal interval of the
    questions, from `stderr`. `how` says which. None without values.
    """
    from scipy.stats import t

    if not values:
        return None
    if infinite := sum(map(math.isinf, values)):
        how = f"none: infinite for {infinite} of {len(values)} seeds"
        return {"mean": None, "low": None, "high": None, "values": strict(values), "how": how}
    n, mean = len(values), sum(values) / len(values)
    if n > 1:
        sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
        half, how = float(t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n), f"t over {n} seeds"
    elif stderr is not None:
        half, how = Z * stderr, "normal over the questions"
    else:
        half, how = math.nan, "none: one seed"
    low, high = (None, None) if math.isnan(half) else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "values": values, "how": how}


def figures(node: Node) -> dict[str, Any]:
    """FQ before, after, its mean (RA) and lowest value over the attack's points, and FA, of one finished attack.

    `stderr` are their standard errors over the questions; that of RA is the mean over the points, an upper bound as the
    points share the questions.
    """
    result = node.result or {}
    before = [f for f in result["fq"] if f[result["axis"]] == result["unattacked"]]
    after = [f for f in result["fq"] if f[result["axis"]] != result["unattacked"]]
    worst = min(after, key=lambda f: f["value"], default=None)
    return {
        "before": before[0]["value"] if before else None,
        "fq": after[-1]["value"] if after else None,
        "ra": result["ra"],
        "worst": worst["value"] if worst else None,
        "stderr": {
            "before": before[0]["stderr"] if before else None,
            "fq": after[-1]["stderr"] if after else None,
            "ra": _mean([f["stderr"] for f in after]),
            "worst": worst["stderr"] if worst else None,
            "fa": result["fa"]["stderr"] if result["fa"] else None,
        },
        "fa": result["fa"]["value"] if result["fa"] else None,
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
    measured = {choice: [figures(nodes[s]) for s in seeds] for choice, nodes in done.items()}
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
    return interval([f[name] for f in found if f[name] is not None], found[0]["stderr"][name])


def _distinct(models: list[dict[str, Any]]) -> set[str]:
    return {json.dumps(m["weights"], sort_keys=True) for m in models}


def utility(models: list[dict[str, Any]]) -> dict[str, Any]:
    """Each benchmark on the models before the attack, over the seeds."""
    models = models if len(_distinct(models)) > 1 else models[:1]
    found = {}
    for name, first in models[0]["eval"].items():
        values = [value_of(m["eval"][name]) for m in models]
        found[name] = {"role": first["role"], "metric": first["metric"], **(interval(values, first["stderr"]) or {})}
    return found


def summaries(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per method over all its attacks: the mean RA, the attack of the lowest worst case (mean over seeds), and the
    lowest FQ of any attack and seed.

    With one seed the interval of RA is the mean one of the attacks: an upper bound, as they share questions.
    """
    out = []
    for method in dict.fromkeys(row["method"] for row in found):
        mine = [row for row in found if row["method"] == method and row["ra"] is not None]
        if not mine:
            continue
        varied = [set(row["seeds"]) for row in mine if not row["once"]]
        common = sorted(set.intersection(*varied)) if varied else mine[0]["seeds"]
        per_seed = [_mean([_at(row, seed) for row in mine]) for seed in common]
        worst = min(mine, key=lambda row: row["worst"]["mean"])
        half = _mean([row["ra"]["high"] - row["ra"]["mean"] for row in mine if row["ra"]["high"] is not None])
        out.append(
            {
                "method": method,
                "attacks": len(mine),
                "ra": interval([v for v in per_seed if v is not None], None if half is None else half / Z),
                "worst": {"attack": worst["attack"], **worst["worst"]},
                "lowest": min(row["lowest"] for row in mine),
                "utility": mine[0]["utility"],
            }
        )
    return out


def _at(row: dict[str, Any], seed: int) -> float:
    """A row's RA of one seed."""
    return row["ra"]["values"][0 if row["once"] else row["seeds"].index(seed)]


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
        "methods": summaries(found),
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
