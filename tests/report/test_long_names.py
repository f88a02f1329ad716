"""Names of any length stay inside a figure, and the page knows the whole of them."""

from __future__ import annotations

import functools
import html
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from ilu_cli.report import figures
from ilu_cli.report.canvas import NARROW, STYLE, WIDE, ends, render, shortened
from ilu_cli.report.figures import REFERENCE, SHARE, Panel, Series
from ilu_cli.report.numbers import Estimate

NAMES = ["/tmp/some/where/<far>/&/away/" + "a-model-of-long-name/" * 12, "W" * 300, "$x_1$" * 40, "short"]


def drawn(names: list[str]) -> dict[str, Any]:
    lines = [Series(name, REFERENCE, [0.0, 1.0], [Estimate(0.1), Estimate(0.2)]) for name in names]
    rows = [(0, None, names[0], "the original", REFERENCE), *((1, 0, n, n, REFERENCE) for n in names[1:])]
    cells: list[list[float | None]] = [[0.5, 0.5] for _ in names]
    return {
        "tree": functools.partial(figures.tree, rows),
        "recovery": functools.partial(figures.recovery, [Panel("", "steps", "y", lines)]),
        "heat": functools.partial(figures.heat, names, names[:2], cells, SHARE),
    }


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("kind", ["tree", "recovery", "heat"])
def test_no_text_leaves_its_figure(kind: str, width: Any) -> None:
    with matplotlib.rc_context(STYLE):
        figure = drawn(NAMES)[kind](width)
        figure.draw_without_rendering()
        texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text()]
        assert any("…" in t.get_text() for t in texts)
        for t in texts:
            box = t.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= width + 1, t.get_text()
        (axes,) = figure.axes
        assert axes.get_window_extent().width > width / 4


def test_the_page_has_the_whole_name_as_a_title(tmp_path: Path) -> None:
    _, narrow = render(drawn(NAMES)["tree"], "tree", tmp_path)
    for name in NAMES[:3]:
        assert f"<title>{html.escape(name, quote=False)}</title>" in narrow
    assert "<title>short</title>" not in narrow and ">short<" in narrow


def test_what_fits_is_left_and_the_middle_goes_first() -> None:
    assert [ends("abcdef", n) for n in (1, 4, 5, 6)] == ["…f", "ab…ef", "ab…def", "abcdef"]
    assert shortened("abc", 1000) == "abc"
    assert shortened("", 0) == ""
    found = shortened("x" * 200, 100)
    assert found[0] == found[-1] == "x" and found.count("…") == 1
    assert 10 < len(found) < 20  # an x is 6.8 pixels wide
