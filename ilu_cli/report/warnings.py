"""What a reader must know before believing the figures: what the data of a family give cause for, a sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ilu_cli import trust
from ilu_cli.care import Warned, once, read
from ilu_cli.care.measured import at_chance, collapsed
from ilu_cli.care.steps import temperature_alone
from ilu_cli.report.family import Family, environments
from ilu_cli.report.headline import pairs
from ilu_cli.report.numbers import Estimate, of_summary
from ilu_cli.report.points import Reading
from ilu_cli.runs.files import read_json
from ilu_cli.runs.lineage import NEVER
from ilu_cli.runs.results import WARNINGS, Data, Row, Summary


def all_warnings(family: Family) -> list[Warned]:
    """Every warning that the data give cause for, and those that the runs keep."""
    there = {a.attack for a in family.attacks if a.method == ""}
    found = [
        builtin_data(all_data(family)),
        *(foreign_code(m.run.id, m.run.manifest.trust) for m in family.members),
        *_of_models(family),
        *_of_pairs(family),
        *_of_attacks(family),
        one_seed([(m, len({r.seed for r in family.of_method(m)})) for m in family.methods]),
        reference_missing([(a, a in there) for a in family.attack_names]),
    ]
    return once([*found, *_kept(family, {w.id for w in found if w})])


def _kept(family: Family, told: set[str]) -> Iterator[Warned]:
    """What the runs say of themselves and of their models, but for what is told of the whole family already."""
    for m in family.members:
        stored = list(m.run.manifest.result.get("warnings") or [])
        if (path := m.folder / WARNINGS).is_file():
            stored += read_json(path).get("warnings") or []
        for result in [m.results, *(p.eval for p in m.points)]:
            stored += [w for s in result.values() for w in s.more.get("warnings") or []]
        aim = {"benchmark-at-chance"} if m.method == NEVER else set[str]()  # what was never known is at chance
        yield from (w for w in read(stored) if w.id not in told | aim)


def _of_models(family: Family) -> Iterator[Warned | None]:
    for role in ("forget", "utility"):
        for bench in family.benchmarks(role):
            if first := family.before(None, bench):
                yield at_chance(family.original_name, first.first)
    for method in family.methods:
        for bench in family.benchmarks("forget"):
            if now := family.before(method, bench):
                yield over_unlearned(method, now.first)
        for bench in family.benchmarks("utility"):
            now, first = family.before(method, bench), family.before(None, bench)
            if now and first:
                yield collapsed(method, now.first, first.first)
    for m in family.unlearned:
        measured = m.run.manifest.result.get("temperature") or {}
        names = [str(env["name"]) for env in environments(m.recipe)]
        yield from (temperature_alone(m.method, name, m.steps, measured.get(name)) for name in names)


def _of_pairs(family: Family) -> Iterator[Warned | None]:
    for a, b in pairs(family):
        for bench in family.benchmarks("utility"):
            left, right = family.before(a, bench), family.before(b, bench)
            if left and right and (difference := _difference(left, right)):
                yield utility_unmatched(a, b, bench, difference)


def _of_attacks(family: Family) -> Iterator[Warned | None]:
    for attack in family.attacks:
        target = next((m for m in family.unlearned if m.id == attack.parent), None)
        if target:
            trained = [d for d in attack.run.manifest.data if d["role"] == "attack"]
            yield attack_was_environment(target.method, environments(target.recipe), trained)


def _difference(left: Reading, right: Reading) -> Estimate | None:
    """Paired where rows are values of the metric; for a perplexity, as two estimates that are apart or not."""
    if left.share:
        return left.minus(right)
    (al, ah), (bl, bh) = left.estimate.bounds, right.estimate.bounds
    return Estimate(left.estimate.value - right.estimate.value, al - bh, ah - bl)


def all_data(family: Family) -> list[Data]:
    """The records of every dataset that a family was trained, attacked or scored on; the same one may come again."""
    records = [d for m in family.members for d in m.run.manifest.data]
    results = [s.data for m in family.members for s in m.results.values()]
    results += [s.data for m in family.attacks for p in m.points for s in p.eval.values()]
    return records + results


def builtin_data(records: Iterable[Data]) -> Warned | None:
    """Some data are built-in stand-ins for published sets."""
    names = sorted({str(r["name"]) for r in records if r.get("source") == "builtin"})
    if not names:
        return None
    which = ", ".join(names)
    return Warned(
        "builtin-data",
        f"Built-in data: {which}. They stand in for published sets and are easier; no published number compares.",
    )


def foreign_code(run: str, recorded: trust.Trusted) -> Warned | None:
    """A run ran code that is none of ilu's: a model's own, a plug-in, or what a task file names."""
    which = trust.lines(recorded)
    return Warned("foreign-code", f"Code of others ran in {run}: {'; '.join(which)}.") if which else None


def over_unlearned(what: str, forget: Summary) -> Warned | None:
    """Forget accuracy is significantly below chance: the model avoids the answers instead of not knowing them."""
    if forget.kind != "share" or forget.chance is None:
        return None
    found = of_summary(forget)
    if found.high is None or found.high >= forget.chance:
        return None
    return Warned(
        "below-chance",
        f"Over-unlearning: {what} answers {found.value:.1%} of {forget.benchmark}, significantly below chance "
        f"({forget.chance:.0%}). It avoids the answers, which is a trace of knowing them.",
    )


def utility_unmatched(a: str, b: str, bench: str, difference: Estimate | None) -> Warned | None:
    """Two methods that are compared do not keep the same."""
    if difference is None or not difference.excludes_zero:
        return None
    low, high = difference.bounds
    return Warned(
        "utility-unmatched",
        f"Utility not matched: {a} and {b} differ on {bench} by {difference.value:+.3g} (95% interval {low:+.3g} to "
        f"{high:+.3g}). A difference in forgetting may be one in damage.",
    )


def attack_was_environment(method: str, envs: Iterable[Row], attack: Iterable[Data]) -> Warned | None:
    """The attack trains on data that were an environment: the same name, whatever the split."""
    shared = sorted({str(e["name"]) for e in envs} & {str(d["name"]) for d in attack})
    if not shared:
        return None
    which = ", ".join(shared)
    return Warned(
        "attack-was-environment",
        f"Attack data was an environment: {which} regularised {method}, so that attack is not unanticipated.",
    )


def one_seed(names: Iterable[tuple[str, int]]) -> Warned | None:
    """`(method, number of seeds)`: intervals over examples say nothing about training again."""
    single = [name for name, seeds in names if seeds < 2]
    if not single:
        return None
    which = ", ".join(single)
    return Warned(
        "one-seed",
        f"One seed only: {which}. The intervals are over questions; another seed may move more than they say.",
    )


def reference_missing(attacks: Iterable[tuple[str, bool]]) -> Warned | None:
    """`(attack, whether the original was attacked too)`."""
    missing = [name for name, there in attacks if not there]
    if not missing:
        return None
    return Warned(
        "reference-missing", f"Reference line missing: the original model was not attacked by {', '.join(missing)}."
    )
