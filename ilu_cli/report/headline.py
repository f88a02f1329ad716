"""The result in one sentence, and the paired comparisons behind it."""

from __future__ import annotations

from dataclasses import dataclass

from ilu_cli.report.family import Family, base_recipe
from ilu_cli.report.numbers import Estimate
from ilu_cli.report.points import Reading


@dataclass(frozen=True)
class Contrast:
    """What `method` knows at the end of an attack, less what `base` knows."""

    attack: str
    bench: str
    method: str
    base: str
    left: Reading
    right: Reading
    difference: Estimate | None


def pairs(family: Family) -> list[tuple[str, str]]:
    """`(method, base)`: every method with the one that it adds regularisers or defences to, else with the first."""
    recipes = {m.method: m.recipe for m in family.unlearned}
    plain = {name: r for name, r in recipes.items() if not r.get("regularizers") and not r.get("defences")}
    found = []
    for name, recipe in recipes.items():
        base = next((b for b, r in plain.items() if b != name and base_recipe(r) == base_recipe(recipe)), None)
        if base is not None and name not in plain:
            found.append((name, base))
    names = list(recipes)
    return found or [(name, names[0]) for name in names[1:]]


def comparisons(family: Family) -> list[Contrast]:
    """Every pair under every attack on every forget benchmark, at the attack's end."""
    found = []
    for method, base in pairs(family):
        for attack in family.attack_names:
            for bench in family.benchmarks("forget"):
                left, right = family.curve(method, attack, bench), family.curve(base, attack, bench)
                if left and right and left[-1].x == right[-1].x:
                    ends = left[-1], right[-1]
                    found.append(Contrast(attack, bench, method, base, *ends, ends[0].minus(ends[1])))
    return found


def percent(e: Estimate) -> str:
    """`27.1% (21.0–34.2)`."""
    if e.low is None or e.high is None:
        return f"{e.value:.1%}"
    return f"{e.value:.1%} ({100 * e.low:.1f}–{100 * e.high:.1f})"


def decimal(e: Estimate) -> str:
    """`0.271 (0.210–0.342)`."""
    return f"{e.value:.3f}" + ("" if e.low is None or e.high is None else f" ({e.low:.3f}–{e.high:.3f})")


def signed(e: Estimate) -> str:
    """A difference in percentage points: `+1.2 (−3.0 to +5.4)`."""
    text = f"{100 * e.value:+.1f}"
    if e.low is not None and e.high is not None:
        text += f" ({100 * e.low:+.1f} to {100 * e.high:+.1f})"
    return text.replace("-", "−")


def points(e: Estimate) -> str:
    """A difference in percentage points: `+1.2 points (95% interval −3.0 to +5.4)`."""
    return signed(e).replace(" (", " points (95% interval ", 1) if e.low is not None else f"{signed(e)} points"


def headline(family: Family) -> str:
    """The strongest thing that can honestly be said, in a sentence or two."""
    found = [c for c in comparisons(family) if c.left.share]
    if found:
        return _compared(found, family)
    benches = family.benchmarks("forget")
    for method in family.methods:
        for bench in benches:
            now, first = family.before(method, bench), family.before(None, bench)
            if now is None or not now.share:
                continue
            was = f", from {first.estimate.value:.0%}" if first else ""
            text = f"Unlearning by `{method}` leaves {now.estimate.value:.0%} of {bench}{was}{_chance(family, bench)}."
            for attack in family.attack_names:
                curve = family.curve(method, attack, bench)
                back = curve[-1].minus(curve[0]) if len(curve) > 1 else None
                if back is not None:
                    return f"{text} {_returned(attack, back)}"
            return f"{text} No attack has tried to bring it back yet."
    return "Nothing has been evaluated yet, so there is no result to report."


def _chance(family: Family, bench: str) -> str:
    chance = family.chance(bench)
    return "" if chance is None else f" (chance {chance:.0%})"


def _returned(attack: str, back: Estimate) -> str:
    if not back.excludes_zero:
        return f"Under {attack} no return is seen: {points(back)}."
    word = "comes back" if back.value > 0 else "is lost besides"
    return f"Under {attack} some of it {word}: {points(back)}."


def _compared(found: list[Contrast], family: Family) -> str:
    """The first pair, over all its attacks. An interval that excludes 0 in one of many attacks is said to be that."""
    first = found[0]
    mine = [c for c in found if (c.method, c.base, c.bench) == (first.method, first.base, first.bench)]
    known = [(c, c.difference) for c in mine if c.difference is not None]
    pair = f"`{first.method}` and `{first.base}`"
    if len(known) == 1:
        return _once(*known[0], pair, family)
    signs = {c.attack: d.value for c, d in known if d.excludes_zero}
    if not signs:
        return f"Under none of {len(mine)} attacks is a difference between {pair} seen in {first.bench}."
    less, more = ([a for a, value in signs.items() if value * sign > 0] for sign in (-1, 1))
    said = [f"less of it comes back under {', '.join(less)}"] * bool(less)
    said += [f"more under {', '.join(more)}"] * bool(more)
    rest = len(mine) - len(signs)
    tail = f"; under {rest} of {len(mine)} attacks no difference is seen" if rest else ""
    return f"With `{first.method}` instead of `{first.base}`, {' and '.join(said)}{tail} ({first.bench})."


def _once(c: Contrast, d: Estimate, pair: str, family: Family) -> str:
    """Of a single attack, what both know at its end."""
    ends = f"{c.left.estimate.value:.0%} and {c.right.estimate.value:.0%} of {c.bench} are answered"
    verdict = points(d) if d.excludes_zero else f"no difference seen, {points(d)}"
    return f"After {c.attack}, {ends} by {pair}{_chance(family, c.bench)}: {verdict}."
