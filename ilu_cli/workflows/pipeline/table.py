"""The table of a graph: a row per method and attack, means over seeds with intervals, and the worst case."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ilu_cli.care import Warned, once
from ilu_cli.care.kept import kept
from ilu_cli.runs.files import write_json
from ilu_cli.runs.lineage import NEVER
from ilu_cli.runs.results import Row, summaries_of
from ilu_cli.runs.store import open_run
from ilu_cli.workflows.pipeline.figures import Figures, Measure, figures, interval, known_of, mean
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.search import worth
from ilu_cli.workflows.pipeline.shapes import Bounded, Choice, Kept, MethodRow, Missed, Results, Spread, TableRow
from ilu_cli.workflows.pipeline.worst import answered, elsewhere

T = TypeVar("T")
LOSSES = (0.01, 0.05, 0.10)  # of utility, at which the worst case is told


def rows(graph: Graph) -> list[TableRow]:
    """A row per method and attack with at least one finished seed.

    Of the choices that an attacker has (`best_of`), the row is the one with the lowest RA, averaged over the seeds that
    all choices have finished: choosing seed by seed would choose noise. Its worst case is that of all choices.
    """
    groups: dict[tuple[str, str], dict[str, list[Node]]] = {}
    beside = "original", NEVER  # whose nodes come after a search, and whose rows come first
    for node in sorted(graph, key=lambda n: n.tags["method"] not in beside):
        if node.command == "attack":
            by_choice = groups.setdefault((node.tags["method"], node.tags["attack"]), {})
            by_choice.setdefault(json.dumps(node.tags["choice"]), []).append(node)
    found = []
    for (method, attack), by_choice in groups.items():
        done, seeds = _done(by_choice)
        if seeds:
            found.append(_row(graph, method, attack, done, seeds))
    return found


def _done(by_choice: dict[str, list[Node]]) -> tuple[dict[str, dict[int, Node]], list[int]]:
    """What is done of each choice, by seed, and the seeds that all choices have.

    Of a search the trials that failed, or that not all seeds have, are left out.
    """
    done = {choice: {n.tags["seed"]: n for n in nodes if n.status == "done"} for choice, nodes in by_choice.items()}
    if any(n.tags.get("searched") for nodes in by_choice.values() for n in nodes):
        begun = set[int]().union(*done.values())
        done = {choice: nodes for choice, nodes in done.items() if nodes and begun <= nodes.keys()}
    return done, sorted(set.intersection(*(set(nodes) for nodes in done.values()))) if done else []


def _row(graph: Graph, method: str, attack: str, done: dict[str, dict[int, Node]], seeds: list[int]) -> TableRow:
    once = method in graph.subjects and not next(iter(done.values()))[seeds[0]].tags["random"]
    seeds = seeds[:1] if once else seeds  # one model and nothing random: every seed is the same run
    measured = {c: [figures(nodes[s], answered(graph, nodes[s])) for s in seeds] for c, nodes in done.items()}
    choices = _choices(measured)
    nodes, found = _picked(done, measured, _best(graph, done, choices, seeds), seeds)
    lowest = _lowest(measured)
    models = [graph.nodes[n.needs[0]].result or {} for n in nodes]
    return {
        "method": method,
        "env": nodes[0].tags["env"],
        "attack": attack,
        "choice": _chosen(nodes),
        "choices": choices,
        "tried": len(done),
        "seeds": seeds,
        "once": once,
        "before": _over(_of_distinct(found, models, [f["before"] for f in found]), "before"),
        "fq": _over(found, "fq"),
        "ra": _over(found, "ra"),
        "fa": _over(found, "fa"),
        "worst": _over(lowest, "worst"),
        "worst_elsewhere": _elsewhere(graph, method, [{attack: s} for s in seeds]),
        "lowest": min(known_of(f["worst"] for f in lowest), default=None),
        "utility": utility(models),
        "steps": [m.get("step") for m in models],
        "off_target": [m["distance"] for m in models if _missed(m)],
        "builtin": any(map(_builtin, nodes)),
        "runs": [n.run for n in nodes],
        "recipe_sha256": [n.recipe_sha256 for n in nodes],
    }


def _best(graph: Graph, done: dict[str, dict[int, Node]], choices: list[Choice], seeds: list[int]) -> list[str]:
    """The attacker's choice for each seed: one for all by the mean RA, or of a search each seed's best trial."""
    if "chosen" in next(iter(done.values()))[seeds[0]].tags:
        return [min(done, key=lambda c: worth(graph, done[c][s])) for s in seeds]
    return [min(zip(done, choices), key=lambda c: _last(c[1]["ra"]))[0]] * len(seeds)


def _picked(
    done: dict[str, dict[int, Node]], measured: dict[str, list[Figures]], best: list[str], seeds: list[int]
) -> tuple[list[Node], list[Figures]]:
    """The nodes of the attacker's choices, and what they come to, by seed."""
    return [done[c][s] for c, s in zip(best, seeds)], [measured[c][i] for i, c in enumerate(best)]


def _chosen(nodes: list[Node]) -> Row:
    """What `best_of` set, or the keys of a search's best trial; of several seeds, which have one each, none."""
    tags = nodes[0].tags
    if "chosen" not in tags:
        return dict(tags["choice"])
    return dict(tags["chosen"]) if len(nodes) == 1 else {}


def _choices(measured: dict[str, list[Figures]]) -> list[Choice]:
    return [
        {"choice": json.loads(c), "ra": mean([f["ra"] for f in found]), "worst": mean([f["worst"] for f in found])}
        for c, found in measured.items()
    ]


def _lowest(measured: dict[str, list[Figures]]) -> list[Figures]:
    """Of every seed, the choice with the lowest worst point."""
    return [min(at_seed, key=lambda f: _last(f["worst"])) for at_seed in zip(*measured.values())]


def _last(value: float | None) -> float:
    """A key that puts what is not known behind everything."""
    return math.inf if value is None else value


def _builtin(node: Node) -> bool:
    """Whether an attack read a built-in stand-in."""
    return any(d["source"] == "builtin" for d in (node.result or {})["data"])


def _over(found: list[Figures], name: Measure) -> Spread | None:
    """One of the `figures`, over the seeds."""
    there = [(value, f["stderr"][name], f["rows"][name]) for f in found if (value := f[name]) is not None]
    return interval(*(zip(*there) if there else ([],)))


def _bounded(graph: Graph, method: str, seeds: list[dict[str, int]]) -> list[Bounded]:
    """The worst case at several losses of utility, and without a bound; nothing where the recipe has no bound."""
    if graph.bound is None:
        return []
    steps = [*sorted({*LOSSES, graph.bound.loss}), None]
    return [{"loss": loss, "worst": _elsewhere(graph, method, seeds, loss)} for loss in steps]


def _elsewhere(graph: Graph, method: str, seeds: list[dict[str, int]], most: float | None = None) -> Spread | None:
    """The worst case as chosen on other questions than those it is reported on; None if the rows are gone."""
    found = elsewhere(graph, method, seeds, most)
    return interval([float(v.mean()) for v in found], rows=found) if found else None


def _of_distinct(found: list[T], models: list[Row], values: Sequence[float | None] = ()) -> list[T]:
    """What was found of each model; of one model under several seeds, which says the same each time, the first.

    Unless the `values` differ: an attack may ask each seed other questions.
    """
    weights = {json.dumps(m["weights"], sort_keys=True) for m in models}
    return found if len(weights) > 1 or len(set(values)) > 1 else found[:1]


def utility(models: list[Row]) -> dict[str, Kept]:
    """Each benchmark on the models before the attack, over the seeds."""
    evals = [summaries_of(m["eval"]) for m in _of_distinct(models, models)]
    found: dict[str, Kept] = {}
    for name, first in evals[0].items():
        measured = [e[name] for e in evals]
        spread = interval([s.value for s in measured], [s.stderr for s in measured], share=first.kind == "share")
        assert spread is not None, "there is a model, and so a value"
        found[name] = {"role": first.role, "metric": first.metric, **spread}
    return found


def summaries(found: list[TableRow], graph: Graph | None = None) -> list[MethodRow]:
    """Per method over all its attacks: the mean RA, the attack of the lowest worst case (mean over seeds), and the
    lowest FQ of any attack and seed; with the graph the worst case of all attacks, chosen on other questions.

    The questions' error of the mean RA is the mean one of the attacks: an upper bound, as they share questions.
    """
    out = []
    for method in dict.fromkeys(row["method"] for row in found):
        mine = [row for row in found if row["method"] == method and row["ra"] is not None]
        if mine:
            out.append(_summary(method, mine, graph))
    return out


def _summary(method: str, mine: list[TableRow], graph: Graph | None) -> MethodRow:
    """A method's rows, each with an RA and a worst case."""
    seeds = _common(mine)
    asked = [{row["attack"]: row["seeds"][0] if row["once"] else s for row in mine} for s in seeds]
    worst = min(mine, key=lambda row: _last(mean([_at(row["worst"], row, s) for s in seeds]) or _centre(row["worst"])))
    ra = [sum(_at(row["ra"], row, s) for row in mine) / len(mine) for s in seeds]
    return {
        "method": method,
        "attacks": len(mine),
        "tried": sum(row["tried"] for row in mine),
        "ra": interval(ra, [mean([_spread(row["ra"])["error"] for row in mine])]),
        "worst": {"attack": worst["attack"], **_spread(worst["worst"])},
        "worst_elsewhere": _elsewhere(graph, method, asked) if graph else None,
        "bounded": _bounded(graph, method, asked) if graph else [],
        "lowest": min(row["lowest"] for row in mine if row["lowest"] is not None),
        "utility": mine[0]["utility"],
    }


def _common(mine: list[TableRow]) -> list[int]:
    """The seeds that all attacks have; what is the same for all seeds counts in each."""
    varied = [set(row["seeds"]) for row in mine if not row["once"]]
    return sorted(set.intersection(*varied)) if varied else mine[0]["seeds"]


def _centre(found: Spread | None) -> float | None:
    return _spread(found)["mean"]


def _spread(found: Spread | None) -> Spread:
    assert found is not None, "a row with an RA has its points, and so all their numbers"
    return found


def _at(found: Spread | None, row: TableRow, seed: int) -> float:
    """A row's number of one seed."""
    value = _spread(found)["values"][0 if row["once"] else row["seeds"].index(seed)]
    assert value is not None, "shares are finite"
    return value


def collect(graph: Graph) -> Results:
    """All that is known now: rows, summaries, what failed, and the hashes of the finished runs' manifests."""
    found = rows(graph)
    return {
        "format": 1,
        "name": graph.name,
        "rows": found,
        "methods": summaries(found, graph),
        "failed": [{"node": n.key, "status": n.status, "error": n.error} for n in graph if n.error],
        "off_target": off_target(graph),
        "warnings": [w.to_json() for w in warned(graph)],
        "manifests": {n.run: n.result["manifest_sha256"] for n in graph if n.status == "done" and n.run and n.result},
    }


def warned(graph: Graph) -> list[Warned]:
    """What the finished runs say of themselves, and the models whose utility is not matched."""
    runs = [
        open_run(Path(n.run))
        for n in graph
        if n.status == "done" and n.run and (Path(n.run) / "manifest.json").is_file()
    ]
    missed = (
        f"Utility not matched: {o['node']} at step {o['step']} is {abs(o['distance']):.3g} from {o['target']:.3g}."
        for o in off_target(graph)
    )
    matched = any(n.recipe.get("match") for n in graph if n.command == "select")
    left = (
        f"Utility not matched: {n.key} did not reach its budget, so it may have unlearned more at the same cost."
        for n in graph
        if n.command == "unlearn" and not matched and _unspent(n)
    )
    return once([*kept(runs), *(Warned("utility-unmatched", text) for text in (*missed, *left))])


def _unspent(node: Node) -> bool:
    """Whether a run had a budget and ended before it was reached."""
    budget = (node.result or {}).get("budget")
    return budget is not None and budget["beyond"] is None and "beyond" not in budget.get("infinite", "")


def off_target(graph: Graph) -> list[Missed]:
    """The models whose utility could not be matched within the tolerance."""
    return [
        {"node": n.key, "step": r["step"], "target": r["target"], "distance": r["distance"],
         "candidates": r["candidates"]}
        for n in graph
        if n.command == "select" and (r := n.result) and _missed(r)
    ]  # fmt: skip


def _missed(model: Row) -> bool:
    return not model.get("within", True)


def save(graph: Graph) -> Results:
    """Write results.json, atomically."""
    found = collect(graph)
    write_json(graph.folder / "results.json", found)
    return found
