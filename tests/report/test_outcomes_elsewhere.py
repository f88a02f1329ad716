"""The worst case on other questions in the overview, and the error of RA that one seed has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_outcomes import Drawn, Folder, forget

from ilu_cli.report.document import Table
from ilu_cli.report.figures import Look
from ilu_cli.report.outcomes import overview, returned


def test_the_second_row_is_the_worst_case_on_other_questions(tmp_path: Path) -> None:
    """Each attack brings back one half of the questions, the third all of them at every point: 1 on any question."""
    folder, drawn = Folder(tmp_path), Drawn()
    rmu, npo = folder.unlearned("rmu"), folder.unlearned("npo")
    known = {"prune": [1.0, 1, 0, 0] * 5, "noise": [0.0, 0, 1, 1] * 5, "lens": [1.0] * 20}
    for name, right in known.items():
        value = sum(right) / 20
        fq = [{"steps": s, "value": 1 - v} for s, v in ((0, 0.0), (4, value))]
        result: dict[str, Any] = {"axis": "steps", "unattacked": 0, "fq": fq, "worst": 1 - value}
        folder.attack(rmu, name, [(0, forget(0.0)), (4, forget(value))], rows={0: [0.0] * 20, 4: right}, **result)
        folder.attack(npo, name, [(0, forget(0.0)), (4, forget(value))], worst=1 - value)
    for rows in tmp_path.rglob("capitals.rows.jsonl"):
        summary = {"benchmark": "capitals", "role": "forget", "metric": "acc", "value": 0.0}
        rows.with_name("capitals.json").write_text(json.dumps(summary))
    overview(folder.family(forget(0.5)), drawn)
    _, (names, models, table, _) = drawn.calls["overview"]
    assert names == ["the strongest of all", "… on other questions", "lens", "prune", "noise"]
    assert models == ["the original", "rmu", "npo"]
    assert table[1] == [None, pytest.approx(1.0), None]  # NPO's rows are gone
    assert table[0] == [None, pytest.approx(1.0), pytest.approx(1.0)]


def test_the_error_of_ra_is_the_mean_one_of_its_marks(tmp_path: Path) -> None:
    """Errors of 0.02 and 0.04 at the marks 4 and 8; others, and what is not known, are left out."""
    folder, drawn = Folder(tmp_path), Drawn()
    rmu = folder.unlearned("rmu")
    errors = {0: 0.5, 4: 0.02, 6: 0.3, 8: 0.04, 9: None}
    fq = [{"steps": s, "value": 0.5, "stderr": e} for s, e in errors.items()]
    points = [(s, forget(0.5)) for s in errors]
    folder.attack(rmu, "prune", points, ra=0.5, axis="steps", marks=[4, 8, 9], fq=fq)
    folder.attack(rmu, "noise", points, ra=0.5, axis="steps", marks=[9], fq=fq)
    folder.attack(rmu, "lens", points, ra=0.5)
    tables = [b for b in returned(folder.family(forget(0.5)), {"rmu": Look("red", "s")}, drawn) if isinstance(b, Table)]
    shown = {row[1]: row[3] for row in next(t for t in tables if t.head[3] == "RA").rows}
    low, high = 0.5 - 1.959964 * 0.03, 0.5 + 1.959964 * 0.03
    assert shown == {"prune": f"0.500 ({low:.3f}–{high:.3f})", "noise": "0.500", "lens": "0.500"}
