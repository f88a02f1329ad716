"""The sections with results: what is forgotten at which cost, and what comes back."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from ilu_cli.metrics.figure import shown
from ilu_cli.report import figures
from ilu_cli.report.canvas import MOST, Render
from ilu_cli.report.document import Block, Picture, Table
from ilu_cli.report.family import Family
from ilu_cli.report.figures import REFERENCE, UNKNOWING, Dot, Look, Panel, Series
from ilu_cli.report.headline import comparisons, decimal, percent, signed
from ilu_cli.report.numbers import of_runs, of_seeds
from ilu_cli.report.points import Reading
from ilu_cli.runs.lineage import NEVER
from ilu_cli.runs.results import AttackResult

Model = tuple[str, str | None, Look]  # its name, its method (none: the original), and how it is drawn


def traded(family: Family, styles: dict[str, Look], render: Render) -> list[Block]:
    """Forgetting against utility before any attack: a figure and the table of all numbers."""
    forget, utility = family.benchmarks("forget"), family.benchmarks("utility")
    who: list[Model] = [(family.original_name, None, REFERENCE), *((m, m, styles[m]) for m in family.methods)]
    who += [(family.name_of(NEVER), NEVER, UNKNOWING)] if family.never else []
    blocks: list[Block] = []
    drawn = [panel for keep in utility for panel in _tradeoff(family, who, forget[0], keep)] if forget else []
    if drawn:
        svgs = render(functools.partial(figures.tradeoff, drawn[:MOST]), "tradeoff")
        caption = (
            f"Up and to the left is better: less of {forget[0]}, no less of the rest. Lines are 95% intervals; methods "
            "whose intervals overlap on both axes are not told apart by these data."
        ) + (" Forgetting aims at the model that never knew." if family.never else "")
        blocks.append(Picture("tradeoff", "Forgetting against utility, before any attack", caption, *svgs))
    if forget + utility:
        rows = [[name, *(_cell(family.before(method, b)) for b in forget + utility)] for name, method, _ in who]
        head = ["model", *(f"{b} ({'forget' if b in forget else 'keep'})" for b in forget + utility)]
        note = "Value with its 95% interval: over questions for one seed, over seeds and questions for several."
        blocks.append(Table(head, rows, note))
    return blocks


def _tradeoff(family: Family, who: Sequence[Model], forget: str, keep: str) -> Iterator[figures.Tradeoff]:
    """The panel of a utility benchmark; none unless two models have both it and a share of what was to be forgotten."""
    both = [(name, look, family.before(method, forget), family.before(method, keep)) for name, method, look in who]
    there = [(name, look, x, y) for name, look, x, y in both if x and y and x.share]
    if len(there) > 1:
        _, _, lost, kept = there[0]
        labels = f"{forget}: {lost.first.words}", f"{keep}: {kept.first.words}"
        dots = [Dot(name, look, x.estimate, y.estimate) for name, look, x, y in there]
        yield (*labels, kept.share, dots, family.chance(forget))


def _cell(point: Reading | None) -> str:
    if point is None:
        return "–"
    e = point.estimate
    if point.share:
        return percent(e)
    return shown(e.value, ".4g") + (f" ({e.low:.4g}–{e.high:.4g})" if e.low is not None and e.high is not None else "")


def overview(family: Family, render: Render) -> list[Block]:
    """All attacks on all methods at a glance, the strongest first; nothing for fewer than three attacks."""

    def strongest(cells: Sequence[float | None]) -> float | None:
        return max((c for c in cells if c is not None), default=None)

    models = {"the original": "", **{m: m for m in family.methods}, **({NEVER: NEVER} if family.never else {})}
    cells = {a: [family.at_worst(method, a) for method in models.values()] for a in family.attack_names}
    cells = {a: row for a, row in cells.items() if any(c is not None for c in row)}
    if len(cells) < 3:
        return []
    own = slice(1, 1 + len(family.methods))
    cells = dict(sorted(cells.items(), key=lambda item: strongest(item[1][own]) or 0.0, reverse=True))
    table = [[strongest(column) for column in zip(*cells.values())], *cells.values()]
    rows, elsewhere = ["the strongest of all", *cells], [family.elsewhere(m, list(cells)) for m in models.values()]
    if any(v is not None for v in elsewhere):
        rows.insert(1, "… on other questions")
        table.insert(1, elsewhere)
    svgs = render(functools.partial(figures.heat, rows, list(models), table, figures.SHARE), "overview")
    caption = (
        f"How much of {' and '.join(family.benchmarks('forget'))} is answered at the worst point of each attack, mean "
        "over seeds. The first row is the worst case of each column: what an attacker gets who tries everything, and "
        "the luckiest of all points, too. … on other questions: chosen on one half of the questions, counted on the "
        "other."
    )
    return [Picture("overview", "What each attack brings back", caption, *svgs)]


def returned(family: Family, styles: dict[str, Look], render: Render) -> list[Block]:
    """For every attack its curves, then the tables: RA and FA, and paired differences."""
    blocks = overview(family, render)
    who = [*((m, m, styles[m]) for m in family.methods), (family.original_name, "", REFERENCE)]
    who += [(family.name_of(NEVER), NEVER, UNKNOWING)] if family.never else []
    for number, attack in enumerate(family.attack_names, 1):
        panels = [panel for bench in family.benchmarks("forget") for panel in _recovery(family, who, attack, bench)]
        if panels:
            svgs = render(functools.partial(figures.recovery, panels[:MOST]), f"recovery-{number}")
            caption = (
                "Higher means that more has come back. The dotted line is the original under the same attack"
                f"{', the grey one with squares a model that never knew' if family.never else ''}. "
                f"{_spread(family, attack)}. {_carried(family, attack)}"
            )
            blocks.append(Picture(f"recovery-{number}", f"Under {attack}", caption, *svgs))
    return [*blocks, *_robustness(family), *_differences(family)]


def _recovery(family: Family, who: Sequence[tuple[str, str, Look]], attack: str, bench: str) -> Iterator[Panel]:
    """The curves of a benchmark under an attack; none if nobody has one."""
    curves = [(name, look, curve) for name, m, look in who if (curve := family.curve(m, attack, bench))]
    if not curves:
        return
    axis = next(a.axis for a in family.attacks if a.attack == attack)
    series = [
        Series(name, look, [p.x for p in curve], [p.estimate for p in curve], len(curve[0].sources) > 1)
        for name, look, curve in curves
    ]
    shown_, chance = curves[0][2][0], family.chance(bench)
    levels = {"chance": chance} if chance is not None else {}
    yield Panel(bench, axis, shown_.first.words if shown_.share else "value", series, levels, shown_.share)


def _spread(family: Family, attack: str) -> str:
    """What the intervals of the curves under an attack are over."""
    curves = [family.curve(m, attack, b) for m in [*family.methods, ""] for b in family.benchmarks("forget")]
    seeds = max(len(curve[0].sources) for curve in curves if curve)
    return (
        f"Bands: 95% over up to {seeds} seeds and the questions" if seeds > 1 else "Bars: 95% over questions, one seed"
    )


def _robustness(family: Family) -> list[Block]:
    """RA and FA of every model under every attack."""
    if not family.attacks:
        return []
    tried = dict.fromkeys((a.method, a.attack) for a in family.attacks)
    note = (
        "RA: mean of 1 − forget accuracy over the points after the first (higher is more robust); of several seeds "
        "the mean with its interval."
    )
    head = ["model", "attack", "seeds", "RA", "accuracy on the attack's task"]
    return [Table(head, [_attack_row(family, method, attack) for method, attack in tried], note)]


def _differences(family: Family) -> list[Block]:
    """What methods know at the end of each attack, in pairs."""
    cells = [
        [f"{c.bench}, {c.attack}", c.method, percent(c.left.estimate), c.base, percent(c.right.estimate),
         signed(c.difference) if c.difference else "not comparable"]
        for c in comparisons(family) if c.left.share
    ]  # fmt: skip
    if not cells:
        return []
    note = (
        "What is known at the end of each attack, and the difference in percentage points with its 95% interval: "
        "paired by question, and by seed where there are two or more."
    )
    return [Table(["under attack", "method", "knows", "against", "knows", "difference"], cells, note)]


def _carried(family: Family, attack: str) -> str:
    """Whether the data carry a difference under this attack."""
    mine = [c for c in comparisons(family) if c.attack == attack and c.difference is not None]
    if not mine:
        return "There is no second method to compare with."
    seen = [c for c in mine if c.difference is not None and c.difference.excludes_zero]
    if not seen:
        return "At the end, the paired differences between methods are within their intervals: no difference seen."
    return f"At the end, {len(seen)} of {len(mine)} paired differences exclude 0."


def _attack_row(family: Family, method: str, attack: str) -> list[str]:
    runs = family.under(method, attack)
    results = [a.result for a in runs]
    known = [(r.ra, _error(r)) for r in results if r.ra is not None]
    robust = of_seeds([ra for ra, _ in known], [error for _, error in known]) if known else None
    learned = [r.fa for r in results if r.fa]
    return [
        family.name_of(method),
        attack,
        ", ".join(str(seed) for seed in sorted({a.seed for a in runs})),
        decimal(robust) if robust else "–",
        percent(of_runs(learned)) if learned else "–",
    ]


def _error(result: AttackResult) -> float | None:
    """The standard error of RA over the questions: at most the mean one of its points, which share the questions."""
    known = [f.stderr for f in result.fq if f.strength in result.marks and f.stderr is not None]
    return sum(known) / len(known) if known else None
