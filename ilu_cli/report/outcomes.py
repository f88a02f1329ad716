"""The sections with results: what is forgotten at which cost, and what comes back."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ilu_cli.metrics.figure import shown
from ilu_cli.report import figures
from ilu_cli.report.canvas import MOST, Render
from ilu_cli.report.document import Block, Picture, Table
from ilu_cli.report.family import Family, Reading
from ilu_cli.report.figures import REFERENCE, Dot, Look, Panel, Series
from ilu_cli.report.headline import comparisons, decimal, percent, signed
from ilu_cli.report.numbers import of_runs, of_seeds
from ilu_cli.runs.results import AttackResult


def traded(family: Family, styles: dict[str, Look], render: Render) -> list[Block]:
    """Forgetting against utility before any attack: a figure and the table of all numbers."""
    forget, utility = family.benchmarks("forget"), family.benchmarks("utility")
    who: list[tuple[str, str | None, Look]] = [(family.original_name, None, REFERENCE)]
    who += [(m, m, styles[m]) for m in family.methods]
    drawn = []
    for keep in utility:
        dots = []
        for name, method, look in who:
            x = family.before(method, forget[0]) if forget else None
            y = family.before(method, keep)
            if x and y and x.share:
                dots.append(Dot(name, look, x.estimate, y.estimate))
        if len(dots) > 1:
            lost, kept = (next(p for _, m, _ in who if (p := family.before(m, b))) for b in (forget[0], keep))
            labels = f"{forget[0]}: {lost.first.words}", f"{keep}: {kept.first.words}"
            drawn.append((*labels, kept.share, dots, family.chance(forget[0])))
    blocks: list[Block] = []
    if drawn:
        svgs = render(functools.partial(figures.tradeoff, drawn[:MOST]), "tradeoff")
        caption = (
            f"Up and to the left is better: less of {forget[0]}, no less of the rest. Lines are 95% intervals; methods "
            "whose intervals overlap on both axes are not told apart by these data."
        )
        blocks.append(Picture("tradeoff", "Forgetting against utility, before any attack", caption, *svgs))
    rows = [[name, *(_cell(family.before(method, b)) for b in forget + utility)] for name, method, _ in who]
    if forget + utility:
        head = ["model", *(f"{b} ({'forget' if b in forget else 'keep'})" for b in forget + utility)]
        blocks.append(
            Table(
                head,
                rows,
                "Value with its 95% interval: over questions for one seed, over seeds and questions for several.",
            )
        )
    return blocks


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

    models = {"the original": "", **{m: m for m in family.methods}}
    cells = {a: [family.at_worst(method, a) for method in models.values()] for a in family.attack_names}
    cells = {a: row for a, row in cells.items() if any(c is not None for c in row)}
    if len(cells) < 3:
        return []
    cells = dict(sorted(cells.items(), key=lambda item: strongest(item[1][1:]) or 0.0, reverse=True))
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
    for number, attack in enumerate(family.attack_names, 1):
        axis = next(a.axis for a in family.attacks if a.attack == attack)
        found, seeds = [], 1
        for bench in family.benchmarks("forget"):
            series = []
            for name, method, look in [
                *((m, m, styles[m]) for m in family.methods),
                (family.original_name, "", REFERENCE),
            ]:
                curve = family.curve(method, attack, bench)
                if curve:
                    many = len(curve[0].sources) > 1
                    seeds = max(seeds, len(curve[0].sources))
                    series.append(Series(name, look, [p.x for p in curve], [p.estimate for p in curve], many))
            if series:
                first = family.curve(*_first(family, attack, bench), bench)[0]
                chance = family.chance(bench)
                levels = {"chance": chance} if chance is not None else {}
                found.append(
                    Panel(bench, axis, first.first.words if first.share else "value", series, levels, first.share)
                )
        if found:
            svgs = render(functools.partial(figures.recovery, found[:MOST]), f"recovery-{number}")
            spread = (
                f"Bands: 95% over up to {seeds} seeds and the questions"
                if seeds > 1
                else "Bars: 95% over questions, one seed"
            )
            caption = (
                "Higher means that more has come back. The dotted line is the original under the same attack. "
                f"{spread}. {_carried(family, attack)}"
            )
            blocks.append(Picture(f"recovery-{number}", f"Under {attack}", caption, *svgs))
    if family.attacks:
        rows = [
            _attack_row(family, method, a) for method, a in dict.fromkeys((a.method, a.attack) for a in family.attacks)
        ]
        head = ["model", "attack", "seeds", "RA", "accuracy on the attack's task"]
        note = (
            "RA: mean of 1 − forget accuracy over the points after the first (higher is more robust); of several seeds "
            "the mean with its interval."
        )
        blocks.append(Table(head, rows, note))
    compared = [c for c in comparisons(family) if c.left.share]
    if compared:
        cells = [
            [f"{c.bench}, {c.attack}", c.method, percent(c.left.estimate), c.base, percent(c.right.estimate),
             signed(c.difference) if c.difference else "not comparable"]
            for c in compared
        ]  # fmt: skip
        note = (
            "What is known at the end of each attack, and the difference in percentage points with its 95% interval: "
            "paired by question, and by seed where there are two or more."
        )
        blocks.append(Table(["under attack", "method", "knows", "against", "knows", "difference"], cells, note))
    return blocks


def _first(family: Family, attack: str, bench: str) -> tuple[str, str]:
    """Any method with a curve under the attack."""
    return next(m for m in [*family.methods, ""] if family.curve(m, attack, bench)), attack


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
        method or family.original_name,
        attack,
        ", ".join(str(seed) for seed in sorted({a.seed for a in runs})),
        decimal(robust) if robust else "–",
        percent(of_runs(learned)) if learned else "–",
    ]


def _error(result: AttackResult) -> float | None:
    """The standard error of RA over the questions: at most the mean one of its points, which share the questions."""
    known = [f.stderr for f in result.fq if f.strength in result.marks and f.stderr is not None]
    return sum(known) / len(known) if known else None
