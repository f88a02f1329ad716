"""Tables and panels in wide and narrow terminals, and without one."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from ilu_cli.cli import console


def table() -> Table:
    found = Table(title="what comes back")
    for header in ("steps", "capitals\nthis model", "elements\nthis model", "prose\nthis model"):
        found.add_column(header)
    found.add_row("0", "0.125 ±0.125", "0.625 ±0.183", "404.970 ±4.349")
    return found


def drawn(monkeypatch: pytest.MonkeyPatch, width: int, draw: Any) -> list[str]:
    """What `draw` prints on a terminal of that width, stdout and stderr alike."""
    file = io.StringIO()
    terminal = Console(file=file, width=width, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(console, "stdout", lambda: terminal)
    monkeypatch.setattr(console, "err", lambda: terminal)
    monkeypatch.setattr(console, "drawing", lambda: True)
    draw()
    return [line.rstrip() for line in file.getvalue().replace("\x1b[1m", "").splitlines()]


def test_a_table_that_does_not_fit_becomes_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = drawn(monkeypatch, 100, lambda: console.out_table(table()))
    assert any("┃" in line for line in wide)
    narrow = drawn(monkeypatch, 40, lambda: console.out_table(table()))
    assert narrow == [
        "what comes back",
        "steps 0",
        "  capitals this model: 0.125 ±0.125",
        "  elements this model: 0.625 ±0.183",
        "  prose this model: 404.970 ±4.349",
    ]


@pytest.mark.parametrize("width", [40, 80])
def test_the_summary_panel_keeps_every_word(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    title, path = "unlearned: unlearn-rmu-irm-gsm8k-0123ab", "in runs/[x]/unlearn-rmu-irm-gsm8k-0123ab"
    lines = drawn(monkeypatch, width, lambda: console.next_step(title, [path], "ilu attack --task sst2"))
    assert max(map(len, lines)) <= width
    told = "".join("".join(lines).replace("│", "").split())
    for text in (title, path, "ilu attack --task sst2"):
        assert "".join(text.split()) in told


def test_without_a_terminal_the_summary_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console.err.cache_clear()
    console.next_step("done: x", ["[bold] is a name, not markup"], "ilu eval")
    assert capsys.readouterr().err == "✓ done: x\n  [bold] is a name, not markup\n  next: ilu eval\n"
