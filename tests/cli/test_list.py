"""What `ilu list methods` says is measured is what the committed tables hold, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from conftest import Ilu

from ilu_cli import registry

DOCS = Path(__file__).parents[2] / "docs"
METHODS = (DOCS / "methods.md").read_text(encoding="utf-8")


def test_the_packaged_table_is_what_the_study_and_the_costs_come_to() -> None:
    assert subprocess.run([sys.executable, DOCS / "measured.py", "--check"], check=False).returncode == 0


def test_worst_cases_are_the_lowest_of_the_studys_table(ilu: Ilu) -> None:
    """By the printed table, not by the results that the packaged one is made from."""
    told = json.loads(ilu("list", "methods", "--json").out)["measured"]
    table = (DOCS / "study" / "table.md").read_text()
    for name in ("rmu", "npo"):
        worst = {attack: float(row) for attack, row in _worst(table, name.upper())}
        attack = min(worst, key=worst.__getitem__)
        assert f"{worst[attack]:.2f} after {attack}, the worst of {len(worst)} attacks" in told[name]


def _worst(table: str, method: str) -> list[tuple[str, str]]:
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith(f"| {method} |")]
    return [(c[1], c[5].split(" ")[0]) for c in rows if not c[1].startswith("all ")]


def test_what_the_study_has_not_is_told_by_the_grid_of_methods(ilu: Ilu) -> None:
    """By the printed table, where FQ before and after both attacks are the first three columns."""
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \[.*?\| ([\d.]+) \[.*?\| ([\d.]+) \[", METHODS, re.MULTILINE)
    table = {name: tuple(map(float, fq)) for name, *fq in rows}
    told = json.loads(ilu("list", "methods", "--json").out)["measured"]
    before, benign, samples = table["dpo"]
    assert samples < benign < before
    assert told["dpo"].startswith(
        f"quickstart: FQ {before:.2f} before, {samples:.2f} after relearn, the worst of 2 attacks, 1 seed; trained in "
    )


def test_what_is_not_measured_says_so(ilu: Ilu) -> None:
    said = ilu("list", "methods").out.splitlines()[1:]
    assert len(said) == 2 * len(registry.objective)
    below = {said[i].split()[0]: said[i + 1].strip() for i in range(0, len(said), 2)}
    assert below["undo"] == "not measured"
    assert "not measured" not in ilu("list", "defences").out
