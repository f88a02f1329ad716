"""Which warnings the data of a family give cause for."""

from __future__ import annotations

from typing import Any

from ilu_cli.report import warnings
from ilu_cli.report.family import Family, Point, environments
from ilu_cli.report.headline import pairs
from ilu_cli.report.numbers import Estimate


def all_warnings(family: Family) -> list[str]:
    """Every warning that the data give cause for."""
    found: list[str | None] = [warnings.builtin_data(all_data(family))]
    for method in family.methods:
        for bench in family.benchmarks("forget"):
            if now := family.before(method, bench):
                found.append(warnings.over_unlearned(method, now.sources[0].summary))
        for bench in family.benchmarks("utility"):
            now, first = family.before(method, bench), family.before(None, bench)
            if now and first:
                found.append(warnings.collapsed(method, now.sources[0].summary, first.sources[0].summary))
    for m in family.unlearned:
        found += [warnings.temperature_alone(m.method, str(env["name"]), m.steps) for env in environments(m.recipe)]
    for a, b in pairs(family):
        for bench in family.benchmarks("utility"):
            left, right = family.before(a, bench), family.before(b, bench)
            if left and right and (difference := _difference(left, right)):
                found.append(warnings.utility_unmatched(a, b, bench, difference))
    for attack in family.attacks:
        target = next((m for m in family.unlearned if m.id == attack.parent), None)
        if target:
            trained = [d for d in attack.run.manifest.data if d["role"] == "attack"]
            found.append(warnings.attack_was_environment(target.method, environments(target.recipe), trained))
    found.append(warnings.one_seed([(m, len({r.seed for r in family.of_method(m)})) for m in family.methods]))
    there = {a.attack for a in family.attacks if a.method == ""}
    found.append(warnings.reference_missing([(a, a in there) for a in family.attack_names]))
    return list(dict.fromkeys(w for w in found if w))


def _difference(left: Point, right: Point) -> Estimate | None:
    """Paired where rows are values of the metric; for a perplexity, as two estimates that are apart or not."""
    if left.sources[0].summary["metric"] == "acc":
        return left.minus(right)
    (al, ah), (bl, bh) = left.estimate.bounds, right.estimate.bounds
    return Estimate(left.estimate.value - right.estimate.value, al - bh, ah - bl)


def all_data(family: Family) -> list[dict[str, Any]]:
    records = [d for m in family.members for d in m.run.manifest.data]
    results = [s["data"] for m in family.members for s in m.results.values()]
    results += [s["data"] for m in family.attacks for p in m.points for s in p["eval"].values()]
    return records + results
