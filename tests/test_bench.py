"""What the scripts of docs/bench compute from their measurements, and the page that is written from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "docs" / "bench"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules `measure` and `run`, as the scripts see them."""
    monkeypatch.syspath_prepend(str(BENCH))
    for name in ("measure", "run"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import measure
    import run

    return measure, run


def test_the_exponent_of_a_power_law_by_hand(scripts: Any) -> None:
    measure, _ = scripts
    assert measure.exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    assert measure.exponent([1, 2, 4, 8], [5, 5, 5, 5]) == pytest.approx(0)
    assert measure.exponent([1, 10], [1, 1000]) == pytest.approx(3)


def test_a_ratio_is_that_of_pairs_and_not_of_medians(scripts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs 10/10, 20/5 and 90/30 have the ratios 1, 4 and 3; the medians alone would give 20/10."""
    measure, _ = scripts
    measure.tell("a row", [10.0, 20.0, 90.0], [10.0, 5.0, 30.0], limit="x")
    told = json.loads(capsys.readouterr().out)
    assert told == {"name": "a row", "plain_s": 20.0, "ilu_s": 10.0, "ratio": 3.0, "limit": "x"}


def test_works_take_turns_and_the_first_rounds_are_left_out(scripts: Any) -> None:
    measure, _ = scripts
    done = list[str]()
    took = measure.turns({n: lambda n=n: done.append(n) for n in "ab"}, repeats=2, warm=1)
    assert done == list("ababab")
    assert {name: len(seconds) for name, seconds in took.items()} == {"a": 2, "b": 2}


def test_the_page_of_figures_is_that_of_the_kept_results(scripts: Any) -> None:
    _, run = scripts
    assert run.PAGE.read_text(encoding="utf-8") == run.page(), "run `python docs/bench/run.py page`"


def test_what_was_measured_of_this_code_is_kept(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose result is of this code is left alone, unless it is named; one that fails ends the whole."""
    _, run = scripts
    (tmp_path / "quick.py").write_text("import json; print('words'); print(json.dumps({'name': 'q', 'plain_s': 2.0,"
                                       "'ilu_s': 1.0, 'ratio': 2.0}))")  # fmt: skip
    for name, value in {"HERE": tmp_path, "RESULTS": tmp_path / "results", "PAGE": tmp_path / "page.md"}.items():
        monkeypatch.setattr(run, name, value)
    (tmp_path / "measure.py").touch()
    monkeypatch.setattr(run, "ROWS", {"quick": run.Row("quick.py", target=3), "absent": run.Row("absent.py")})
    kept, times = tmp_path / "results" / "quick.json", list[int]()

    def go(*rows: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *rows])
        run.main()
        return kept.stat().st_mtime_ns

    times = [go(), go(), go("quick")]
    assert times[0] == times[1] < times[2]
    assert "| q | 2 s | 1 s | 2.00 | 3.00 |" in (tmp_path / "page.md").read_text(encoding="utf-8")
    (tmp_path / "quick.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match=r"quick.py ended with code 3"):
        go()
