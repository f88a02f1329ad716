"""The figures, each one idea: functions of plain data to a drawing for a given width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ilu_cli.report.canvas import COLOURS, INK, LINE, NARROW, SOFT, figure, label, legend, panels, shortened
from ilu_cli.report.numbers import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ilu_cli.taskvec.plane import Placed

MARKERS = "osD^vP"
NAMES = {"original": "θo", "unlearned": "θu", "finetuned": "θft", "attacked": "θu,ft"}  # of the models in the plane


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure."""

    colour: str
    marker: str
    dash: str = "-"


REFERENCE = Look(SOFT, "o", ":")
UNKNOWING = Look(SOFT, "s", "-.")
"""A model that never knew."""


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """A colour and a marker for each method; beyond six also a dash."""
    n = len(COLOURS)
    return {m: Look(COLOURS[i % n], MARKERS[i % n], "-" if i < n else "--") for i, m in enumerate(methods)}


@dataclass
class Series:
    """A line with its intervals. `band`: they are over seeds and drawn as a band, else as bars."""

    name: str
    look: Look
    x: list[float]
    y: list[Estimate]
    band: bool = False


@dataclass
class Panel:
    """What one pair of axes shows. `levels` are horizontal lines with their words."""

    title: str
    xlabel: str
    ylabel: str
    series: list[Series]
    levels: dict[str, float] = field(default_factory=dict)
    share: bool = False


def recovery(found: list[Panel], width: int) -> Figure:
    """Curves over an attack's strength."""
    names = {s.name for p in found for s in p.series}
    fig, axes = panels(width, len(found), 300, 22 * (len(names) if width == NARROW else 1))
    for panel, ax in zip(found, axes):
        longest = max((s.x for s in panel.series), key=len)
        even = panel.xlabel != "steps"  # other strengths stand beside each other, whatever their distances
        spread = len(longest) - 1 if even else max(longest) or 1
        for i, s in enumerate(panel.series):
            shift = 0.0 if s.band else (i - (len(panel.series) - 1) / 2) * 0.012 * spread
            x = [(longest.index(v) if even else v) + shift for v in s.x if v in longest]
            _curve(ax, s, x, stroke(i))
        _levels(ax, panel.levels)
        _words(ax, panel)
        ax.set_xticks(list(range(len(longest))) if even else longest, [f"{v:g}" for v in longest])
    legend(fig, axes, width)
    return fig


def _curve(ax: Axes, s: Series, x: list[float], linewidth: float) -> None:
    """A line with the intervals of its points as a band or as bars."""
    low, high = zip(*(e.bounds for e in s.y))
    y, dash, mark = [e.value for e in s.y], s.look.dash, s.look.marker
    ax.plot(x, y, mark, color=s.look.colour, markersize=5, linestyle=dash, linewidth=linewidth, label=s.name)
    if s.band:
        ax.fill_between(x, low, high, color=s.look.colour, alpha=0.18, linewidth=0)
    else:
        ax.vlines(x, low, high, color=s.look.colour, alpha=0.55, linewidth=1)


def _levels(ax: Axes, levels: dict[str, float]) -> None:
    for word, y in levels.items():
        ax.axhline(y, color=SOFT, linewidth=0.9, dashes=(3, 3), zorder=1)
        ax.annotate(word, (0.99, y), xycoords=("axes fraction", "data"), xytext=(0, -12), textcoords="offset points",
                    ha="right", color=SOFT, fontsize=10)  # fmt: skip


def _words(ax: Axes, panel: Panel) -> None:
    ax.set_title(panel.title)
    ax.set_xlabel(panel.xlabel)
    ax.set_ylabel(panel.ylabel)
    if panel.share:
        ax.set_ylim(0, 1.02)
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")


@dataclass
class Dot:
    """A model in the plane of forgetting and keeping."""

    name: str
    look: Look
    x: Estimate
    y: Estimate


Tradeoff = tuple[str, str, bool, list[Dot], float | None]
"""`(x label, y label, y is a share, dots, chance on x)`."""


def tradeoff(found: list[Tradeoff], width: int) -> Figure:
    """A panel for each utility benchmark."""
    names = {d.name for *_, dots, _ in found for d in dots}
    fig, axes = panels(width, len(found), 310, 22 * (len(names) if width == NARROW else 1))
    for (xlabel, ylabel, share, dots, chance), ax in zip(found, axes):
        for i, d in enumerate(dots):
            style: dict[str, Any] = {"color": d.look.colour, "linewidth": 1.2, "alpha": 0.6}
            ax.plot([d.x.bounds[0], d.x.bounds[1]], [d.y.value] * 2, **style)
            ax.plot([d.x.value] * 2, [d.y.bounds[0], d.y.bounds[1]], **style)
            ax.plot(
                [d.x.value],
                [d.y.value],
                d.look.marker,
                color=d.look.colour,
                markersize=max(5, 11 - 2 * i),
                label=d.name,
            )
        ax.set_xlim(0, 1.02)
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        _words(ax, Panel("", xlabel, ylabel, [], share=share))
        if not share:
            ax.invert_yaxis()
        if chance is not None:
            ax.axvline(chance, color=SOFT, linewidth=0.9, dashes=(3, 3))
            ax.annotate("chance", (chance, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
                        textcoords="offset points", color=SOFT, fontsize=10)  # fmt: skip
    legend(fig, axes, width)
    return fig


def curves(found: list[Panel], width: int) -> Figure:
    """Training curves: every step pale, their running median dark."""
    names = {s.name for p in found for s in p.series}
    fig, axes = panels(width, len(found), 210, 22 * (len(names) if width == NARROW else 1))
    for panel, ax in zip(found, axes):
        for i, s in enumerate(panel.series):
            y = [e.value for e in s.y]
            ax.plot(s.x, y, color=s.look.colour, alpha=0.3, linewidth=0.9)
            ax.plot(s.x, smooth(y), color=s.look.colour, linestyle=s.look.dash, linewidth=stroke(i), label=s.name)
        _levels(ax, panel.levels)
        _words(ax, panel)
    legend(fig, axes, width)
    return fig


def stroke(i: int) -> float:
    """Width of the i-th line: later ones are thinner, so that what they cover is still seen."""
    return max(1.4, 3.6 - 1.1 * i)


def smooth(values: list[float]) -> list[float]:
    """Running median over a tenth of the steps on either side."""
    from statistics import median

    reach = max(1, len(values) // 20)
    return [median(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def plane(found: list[tuple[str, list[Placed]]], width: int) -> Figure:
    """Models in the plane of two task vectors, a panel for each attack. Ways go through the points that were kept."""
    fig, axes = panels(width, len(found), 300)
    for (title, points), ax in zip(found, axes):
        for begin, end, colour in (
            ("original", "unlearned", COLOURS[0]),
            ("original", "finetuned", SOFT),
            ("unlearned", "attacked", COLOURS[1]),
        ):
            on = sorted((p for p in points if p["role"] == end), key=lambda p: p["step"] or 0)
            way = [p for p in points if p["role"] == begin][:1] + on
            ax.plot([p["x"] for p in way], [p["y"] for p in way], "-", color=colour, zorder=1)
            if len(way) > 1:
                arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 4}
                a, b = way[-2], way[-1]
                ax.annotate("", (b["x"], b["y"]), (a["x"], a["y"]), arrowprops=arrow)
                ax.plot([p["x"] for p in way[1:-1]], [p["y"] for p in way[1:-1]], "o", color=colour, markersize=4)
                ax.plot([b["x"]], [b["y"]], "o", color=INK, markersize=5)
                ax.annotate(NAMES[end], (b["x"], b["y"]), xytext=(7, 5), textcoords="offset points", fontsize=10.5)
        ax.plot([0], [0], "o", color=INK, markersize=5)
        ax.annotate(NAMES["original"], (0, 0), xytext=(7, 5), textcoords="offset points", fontsize=10.5)
        ax.margins(0.25)
        ax.grid(True, axis="both")
        _words(ax, Panel(title, "along unlearning, τ_u", "across it", []))
    return fig


@dataclass(frozen=True)
class Scale:
    """How a cell of `heat` is written, and its colour above and below 0."""

    write: Callable[[float], str]
    above: str
    below: str


COSINE = Scale("{:+.3f}".format, COLOURS[0], COLOURS[1])
SHARE = Scale("{:.0%}".format, COLOURS[1], COLOURS[0])


def heat(rows: list[str], columns: list[str], cells: list[list[float | None]], scale: Scale, width: int) -> Figure:
    """Numbers in a table, deeper for larger. Long heads of columns are slanted."""
    rows = [shortened(r, 0.45 * width, 10.5) for r in rows]
    columns = [shortened(c, 0.45 * width, 10.5) for c in columns]
    crowded = max(map(len, columns)) * 7 * len(columns) > width - 7 * max(map(len, rows))
    fig = figure(width, 26 * len(rows) + (64 + 5 * max(map(len, columns)) if crowded else 64))
    ax = fig.subplots()
    _cells(ax, cells, scale)
    ax.set_xlim(0, len(columns))
    ax.set_ylim(len(rows), 0)
    slant: dict[str, Any] = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"} if crowded else {}
    ax.set_xticks([j + 0.5 for j in range(len(columns))], columns, **slant)
    ax.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    if crowded:
        fig.draw_without_rendering()  # the layout of slanted heads is right at its second pass
    return fig


def _cells(ax: Axes, cells: list[list[float | None]], scale: Scale) -> None:
    from matplotlib.patches import Rectangle

    largest = max((abs(c) for row in cells for c in row if c is not None), default=0.0) or 1.0
    for i, row in enumerate(cells):
        for j, c in enumerate(row):
            if c is not None:
                colour = scale.above if c >= 0 else scale.below
                ax.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, alpha=0.75 * abs(c) / largest, linewidth=0))
            ax.text(j + 0.5, i + 0.5, "–" if c is None else scale.write(c), ha="center", va="center", fontsize=11)


def tree(rows: list[tuple[int, int | None, str, str, Look]], width: int) -> Figure:
    """Lineage as an indented tree: `(depth, row of the parent, name, what it is, look)`."""
    fig = figure(width, 38 * len(rows) + 16, None)
    ax = fig.add_axes((0, 0, 1, 1))
    for i, (depth, parent, name, what, look) in enumerate(rows):
        x, y = 14 + 26 * depth, 22 + 38 * i
        if parent is not None:
            px, py = 14 + 26 * rows[parent][0], 22 + 38 * parent
            ax.plot([px, px, x], [py, y, y], color=LINE, linewidth=1.4, zorder=1)
        ax.plot([x], [y], look.marker, color=look.colour, markersize=8, zorder=2)
        label(ax, x + 14, y - 6, name, width - x - 18, 11.5)
        label(ax, x + 14, y + 9, what, width - x - 18, 10.5, color=SOFT)
    ax.set_xlim(0, width)
    ax.set_ylim(38 * len(rows) + 16, 0)
    ax.axis("off")
    return fig
