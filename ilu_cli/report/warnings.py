"""What a reader must know before believing the figures: what the data of a family give cause for, a sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, stdev

from ilu_cli import trust
from ilu_cli.metrics.figure import shown
from ilu_cli.report.family import Family, environments
from ilu_cli.report.headline import pairs
from ilu_cli.report.numbers import Estimate, of_summary
from ilu_cli.report.points import Reading
from ilu_cli.runs.results import Data, Row, Summary

TEMPERATURE_SHARE = 0.1  # less of |D|'s fall than this coming with a lower NLL means: re-tempered
COLLAPSE = 2.0  # perplexity beyond this multiple of the original's


def all_warnings(family: Family) -> list[str]:
    """Every warning that the data give cause for."""
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
    return list(dict.fromkeys(w for w in found if w))


def _of_models(family: Family) -> Iterator[str | None]:
    for method in family.methods:
        for bench in family.benchmarks("forget"):
            if now := family.before(method, bench):
                yield over_unlearned(method, now.first)
        for bench in family.benchmarks("utility"):
            now, first = family.before(method, bench), family.before(None, bench)
            if now and first:
                yield collapsed(method, now.first, first.first)
    for m in family.unlearned:
        yield from (temperature_alone(m.method, str(env["name"]), m.steps) for env in environments(m.recipe))


def _of_pairs(family: Family) -> Iterator[str | None]:
    for a, b in pairs(family):
        for bench in family.benchmarks("utility"):
            left, right = family.before(a, bench), family.before(b, bench)
            if left and right and (difference := _difference(left, right)):
                yield utility_unmatched(a, b, bench, difference)


def _of_attacks(family: Family) -> Iterator[str | None]:
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


def builtin_data(records: Iterable[Data]) -> str | None:
    """Some data are built-in stand-ins for published sets."""
    names = sorted({str(r["name"]) for r in records if r.get("source") == "builtin"})
    if not names:
        return None
    which = ", ".join(names)
    return f"Built-in data: {which}. They stand in for published sets and are easier; no published number compares."


def foreign_code(run: str, recorded: Row) -> str | None:
    """A run ran code that is none of ilu's: a model's own, a plug-in, or what a task file names."""
    which = trust.lines(recorded)
    return f"Code of others ran in {run}: {'; '.join(which)}." if which else None


def over_unlearned(what: str, forget: Summary) -> str | None:
    """Forget accuracy is significantly below chance: the model avoids the answers instead of not knowing them."""
    if forget.kind != "share" or forget.chance is None:
        return None
    found = of_summary(forget)
    if found.high is None or found.high >= forget.chance:
        return None
    return (
        f"Over-unlearning: {what} answers {found.value:.1%} of {forget.benchmark}, significantly below chance "
        f"({forget.chance:.0%}). It avoids the answers, which is a trace of knowing them."
    )


def collapsed(what: str, after: Summary, before: Summary) -> str | None:
    """Perplexity of ordinary text has left the original's order of magnitude."""
    if after.kind != "loss" or of_summary(after).bounds[0] <= COLLAPSE * before.value:
        return None
    return (
        f"Over-unlearning: {what} reads {after.benchmark} with a perplexity of {shown(after.value, '.3g')}, "
        f"the original with {shown(before.value, '.3g')}. A model that babbles forgets everything."
    )


def temperature_alone(what: str, env: str, steps: Sequence[Row]) -> str | None:
    """|D| fell because entropy moved, and the environment's NLL hardly did.

    D = NLL − H is the slope of the loss along the temperature. Re-tempering the logits brings D to 0 by moving H, and
    moves NLL to second order only; so |D| must have fallen significantly and by half between the first and the last
    fifth of the steps, while the fall of NLL is less than a tenth of that.
    """
    rows = [s for s in steps if f"D[{env}]" in s and f"nll[{env}]" in s]
    n = len(rows) // 5
    if n < 2:
        return None
    gap = [float(r[f"D[{env}]"]) for r in rows]
    nll = [float(r[f"nll[{env}]"]) for r in rows]
    first, last = fmean(gap[:n]), fmean(gap[-n:])
    error = ((stdev(gap[:n]) ** 2 + stdev(gap[-n:]) ** 2) / n) ** 0.5
    fall, better = abs(first) - abs(last), fmean(nll[:n]) - fmean(nll[-n:])
    if fall < 2 * error or fall < abs(first) / 2 or better >= TEMPERATURE_SHARE * fall:
        return None
    return (
        f"D satisfied by temperature alone: in {what}, D[{env}] went from {first:+.3f} to {last:+.3f} while the "
        f"environment's NLL changed by {-better:+.3f}. Flatter or sharper logits do that without any invariance."
    )


def utility_unmatched(a: str, b: str, bench: str, difference: Estimate | None) -> str | None:
    """Two methods that are compared do not keep the same."""
    if difference is None or not difference.excludes_zero:
        return None
    low, high = difference.bounds
    return (
        f"Utility not matched: {a} and {b} differ on {bench} by {difference.value:+.3g} (95% interval {low:+.3g} to "
        f"{high:+.3g}). A difference in forgetting may be one in damage."
    )


def attack_was_environment(method: str, envs: Iterable[Row], attack: Iterable[Data]) -> str | None:
    """The attack trains on data that were an environment: the same name, whatever the split."""
    shared = sorted({str(e["name"]) for e in envs} & {str(d["name"]) for d in attack})
    if not shared:
        return None
    which = ", ".join(shared)
    return f"Attack data was an environment: {which} regularised {method}, so that attack is not unanticipated."


def one_seed(names: Iterable[tuple[str, int]]) -> str | None:
    """`(method, number of seeds)`: intervals over examples say nothing about training again."""
    single = [name for name, seeds in names if seeds < 2]
    if not single:
        return None
    which = ", ".join(single)
    return f"One seed only: {which}. The intervals are over questions; another seed may move more than they say."


def reference_missing(attacks: Iterable[tuple[str, bool]]) -> str | None:
    """`(attack, whether the original was attacked too)`."""
    missing = [name for name, there in attacks if not there]
    if not missing:
        return None
    return f"Reference line missing: the original model was not attacked by {', '.join(missing)}."
