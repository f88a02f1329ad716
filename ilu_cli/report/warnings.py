"""What a reader must know before believing the figures: small pure functions of the data, each one sentence or None."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from ilu_cli.metrics.figure import shown, value_of
from ilu_cli.report.numbers import Estimate, of_summary

TEMPERATURE_SHARE = 0.1  # less of |D|'s fall than this coming with a lower NLL means: re-tempered
COLLAPSE = 2.0  # perplexity beyond this multiple of the original's


def builtin_data(records: Iterable[dict[str, Any]]) -> str | None:
    """Some data are built-in stand-ins for published sets."""
    names = sorted({str(r["name"]) for r in records if r.get("source") == "builtin"})
    if not names:
        return None
    which = ", ".join(names)
    return f"Built-in data: {which}. They stand in for published sets and are easier; no published number compares."


def over_unlearned(what: str, forget: dict[str, Any]) -> str | None:
    """Forget accuracy is significantly below chance: the model avoids the answers instead of not knowing them."""
    if forget["metric"] != "acc" or forget["chance"] is None:
        return None
    found = of_summary(forget)
    if found.high is None or found.high >= forget["chance"]:
        return None
    return (
        f"Over-unlearning: {what} answers {found.value:.1%} of {forget['benchmark']}, significantly below chance "
        f"({forget['chance']:.0%}). It avoids the answers, which is a trace of knowing them."
    )


def collapsed(what: str, after: dict[str, Any], before: dict[str, Any]) -> str | None:
    """Perplexity of ordinary text has left the original's order of magnitude."""
    if not after["metric"].endswith(("ppl", "perplexity")) or of_summary(after).bounds[0] <= COLLAPSE * value_of(
        before
    ):
        return None
    return (
        f"Over-unlearning: {what} reads {after['benchmark']} with a perplexity of {shown(value_of(after), '.3g')}, "
        f"the original with {shown(value_of(before), '.3g')}. A model that babbles forgets everything."
    )


def temperature_alone(what: str, env: str, steps: Sequence[dict[str, Any]]) -> str | None:
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


def attack_was_environment(method: str, envs: Iterable[dict[str, Any]], attack: Iterable[dict[str, Any]]) -> str | None:
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
