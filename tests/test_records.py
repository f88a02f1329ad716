"""The records of a run: they write what they read, and read what versions wrote that knew no kinds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ilu_cli.data import made
from ilu_cli.errors import UnavailableError
from ilu_cli.runs.results import AttackResult, Number, Point, Summary, kind_of, read_results, read_rows

SUMMARY = {
    "benchmark": "capitals", "metric": "acc", "kind": "share", "role": "forget", "value": 0.25, "stderr": 0.03,
    "also": {"fq": {"value": 0.75, "stderr": None, "kind": "ratio"}}, "n": 170, "chance": 0.25,
    "data": {"name": "capitals", "source": "builtin", "fingerprint": "ab"}, "precision": "fp32",
    "parity": {"loss": 0.0}, "task_version": {"capitals": "1.0"}, "key": "k", "unseen": {"value": 0.2, "n": 9},
}  # fmt: skip
LOST = {
    "benchmark": "prose", "metric": "word_perplexity", "kind": "loss", "role": "utility", "value": None,
    "stderr": None, "infinite": True, "also": {}, "n": 40, "chance": None, "data": {"source": "builtin"},
}  # fmt: skip
RESULT = {
    "kind": "finetune", "axis": "steps",
    "points": [
        {"steps": 0, "eval": {"capitals": SUMMARY, "prose": LOST}},
        {"steps": 15, "eval": {"capitals": SUMMARY}, "label": "the end",
         "fa": {"task": "sst2", "value": 0.8, "stderr": 0.1, "n": 20, "step": 15}},
    ],
    "fa": {"task": "sst2", "value": 0.8, "stderr": 0.1, "n": 20, "step": 15},
    "fq": [{"steps": 0, "value": 0.75, "stderr": 0.03}, {"steps": 15, "value": 0.7, "stderr": None}],
    "marks": [15], "unattacked": 0, "ra": 0.7, "worst": 0.7, "parity": {"loss": 0.0},
    "disjoint": {"rows": 9, "overlap": 1}, "eval_seconds": 1.5, "seconds": 2.5,
}  # fmt: skip


@pytest.mark.parametrize(("record", "form"), [(Summary, SUMMARY), (Summary, LOST), (AttackResult, RESULT)])
def test_what_is_read_is_written_again(record: Any, form: Any) -> None:
    assert json.loads(json.dumps(record.read(form).to_json())) == form


def test_an_infinite_value_is_infinite() -> None:
    assert Summary.read(LOST).value == math.inf
    assert Number.read({"value": None, "stderr": None, "infinite": True}, "ppl") == Number(math.inf, None, "loss")


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("acc", "share"), ("word_perplexity", "loss"), ("ppl", "loss"), ("original_ppl", "loss"),
        ("acc_norm", "ratio"), ("min_k", "ratio"), ("bits_per_byte", "ratio"),
    ],
)  # fmt: skip
def test_results_of_before_get_their_kind_from_their_metric(metric: str, kind: str, tmp_path: Path) -> None:
    old = {k: v for k, v in SUMMARY.items() if k != "kind"} | {"metric": metric}
    old["also"] = {"said_ppl": {"value": 2.0, "stderr": 0.5}}
    (tmp_path / "b.json").write_text(json.dumps(old))
    found = read_results(tmp_path)["capitals"]
    assert (kind_of(metric), found.kind, found.also["said_ppl"].kind) == (kind, kind, "loss")
    assert found.counts is (kind == "share")


def test_a_kind_that_is_said_is_not_guessed() -> None:
    said = Summary.read(SUMMARY | {"metric": "overlap"})
    assert (said.kind, said.counts, said.words) == ("share", True, "overlap")
    assert Summary.read(SUMMARY | {"role": "utility"}).counts is False


def test_an_attack_of_before_names_its_axis_by_its_points_alone() -> None:
    old = {"points": [{"k": 4, "eval": {"capitals": SUMMARY}}]}
    found = AttackResult.read(old)
    assert (found.axis, found.unattacked, found.ra, found.points) == (
        "k",
        0,
        None,
        (Point.read(old["points"][0], "k"),),
    )
    assert [p.name for p in AttackResult.read(RESULT).points] == ["steps-0000000", "steps-0000015"]
    assert Point("sigma", 0.1, {}).name == "sigma-0.1"


def test_the_points_after_the_attack_began_are_those_of_other_strengths() -> None:
    found = AttackResult.read(RESULT)
    assert [f.strength for f in found.after] == [15]
    assert [f.strength for f in AttackResult.read(RESULT | {"unattacked": None}).after] == [0, 15]


def test_rows_that_are_needed_are_named_when_they_are_gone(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "x.rows.jsonl") == []
    with pytest.raises(UnavailableError, match=r"x\.rows\.jsonl cannot be read"):
        read_rows(tmp_path / "x.rows.jsonl", needed=True)


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_a_row_is_a_line_whatever_its_text_holds(tmp_path: Path, odd: str) -> None:
    """Characters that end a line for `str.splitlines`, and in no jsonl file."""
    rows = [{"question": f"a{odd}b", "value": 1.0}, {"question": "c", "value": 0.0}]
    file = tmp_path / "x.rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_rows(file) == rows
    assert made.texts_of(made.keep("key", [f"a{odd}b", "c"], {})) == [f"a{odd}b", "c"]
