"""Drawing: matplotlib's figures in the page's own colours and type, at the size at which they are read."""

from __future__ import annotations

import bisect
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by the colour-blind (after Okabe and Ito), dark enough for lines on white; page.css has lighter ones.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#8c6d00", "#4b5fc4")
INK, SOFT, LINE = "#1c1e21", "#5b6168", "#d9dce0"
VARIABLES = {c: f"--c{i}" for i, c in enumerate(COLOURS)} | {INK: "--ink", SOFT: "--soft", LINE: "--line"}
WIDE, NARROW = 720, 360  # pixels
PAPER = '<rect width="100%" height="100%" fill="white"/>'  # behind a figure that is looked at by itself
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ilu",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "axes.titlesize": 11.5,
    "axes.labelsize": 11.5,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}

Draw = Callable[[int], "Figure"]
"""Draws a figure for a width in pixels."""
Render = Callable[[Draw, str], "tuple[str, str]"]
"""Makes a drawing of this name into SVG for wide and for narrow pages."""
MOST = 6  # panels of a kind
WHOLE = "whole: "  # begins the id of a text that is shortened


def figure(width: int, height: int, layout: Any = "constrained") -> Figure:
    """An empty figure, measured in pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)


def panels(width: int, count: int, height: int, extra: int = 0) -> tuple[Figure, list[Axes]]:
    """Up to two panels beside each other, or on a narrow page one below the other; `extra` pixels for a legend."""
    columns = 1 if width == NARROW else min(2, count)
    rows = -(-count // columns)
    fig = figure(width, rows * height + extra)
    axes = list(fig.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return fig, axes[:count]


def legend(fig: Figure, axes: list[Axes], width: int) -> None:
    """One legend above all panels, every name once."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            found.setdefault(label, handle)
    if found:
        longest = max(map(len, found))
        columns = max(1, min(len(found), width // (7 * longest + 60)))
        names = [shortened(name, width - 60, 11) for name in found]
        fig.legend(list(found.values()), names, loc="outside upper left", ncols=columns, handlelength=1.8)


def shortened(text: str, room: float, size: float = 11.5) -> str:
    """The text, or if it is wider than `room` pixels as much of its two ends as fits."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=[STYLE["font.family"]], size=size)

    def wide(kept: int) -> bool:
        return bool(text_to_path.get_text_width_height_descent(ends(text, kept), font, False)[0] > 0.93 * room)

    if not wide(len(text)):
        return text
    return ends(text, bisect.bisect_left(range(1, len(text)), True, key=wide))


def ends(text: str, kept: int) -> str:
    """`kept` letters of a text, those in the middle left out."""
    return text if kept >= len(text) else f"{text[: kept // 2]}…{text[len(text) - (kept + 1) // 2 :]}"


def label(ax: Axes, x: float, y: float, text: str, room: float, size: float, **style: Any) -> None:
    """Write a text that has `room`; if it is shortened, a page shows the whole of it as a title."""
    short = shortened(text, room, size)
    ax.text(x, y, short, va="center", fontsize=size, gid=None if short == text else WHOLE + text, **style)


def render(draw: Draw, name: str, folder: Path) -> tuple[str, str]:
    """Draw for wide and narrow pages; keep the wide one as SVG and PNG in `folder`.

    Returns:
        The two drawings as SVG elements whose colours are the page's variables.
    """
    import matplotlib

    found = []
    with matplotlib.rc_context(STYLE):
        for width in (WIDE, NARROW):
            fig, svg = draw(width), io.StringIO()
            fig.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            found.append(svg.getvalue())
            if width == WIDE:
                fig.set_layout_engine("none")  # it is laid out already, which takes as long as to draw it
                on_white = re.sub(r"<svg[^>]*>", rf"\g<0>\n {PAPER}", found[0], count=1)
                (folder / f"{name}.svg").write_text(on_white, encoding="utf-8")
                fig.savefig(folder / f"{name}.png", facecolor="white", dpi=180)
    return embedded(found[0], f"{name}-w"), embedded(found[1], f"{name}-n")


def embedded(svg: str, prefix: str) -> str:
    """An SVG file as an element of a page: without its preamble, ids made unique, colours by the page's variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(rf'<g id="{WHOLE}([^"]*)">', r"<g><title>\1</title>", svg)
    svg = re.sub(r'id="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", svg)
    return re.sub("|".join(VARIABLES), lambda m: f"var({VARIABLES[m[0]]})", svg)
