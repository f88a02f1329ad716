"""What an interval of the table says of itself, when rows count, and which attack is the worst without common seeds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import present
from scipy import stats
from test_results import attack, grid, kept, model, table

from ilu_cli.metrics.chosen import first_half, other_half
from ilu_cli.runs.store import Store
from ilu_cli.workflows.pipeline.figures import figures, interval
from ilu_cli.workflows.pipeline.graph import Graph
from ilu_cli.workflows.pipeline.shapes import TableRow
from ilu_cli.workflows.pipeline.table import collect, save, summaries, utility
from ilu_cli.workflows.pipeline.worst import elsewhere, tried


def test_an_infinite_seed_leaves_no_mean() -> None:
    assert interval([1.5, math.inf, math.inf], [0.1, None, None]) == {
        "mean": None, "low": None, "high": None, "values": [1.5, None, None], "error": None,
        "how": "none: infinite for 2 of 3 seeds",
    }  # fmt: skip


def test_an_interval_in_full() -> None:
    assert interval([0.5], [0.02]) == {
        "mean": 0.5, "low": pytest.approx(0.5 - 0.0391993), "high": pytest.approx(0.5 + 0.0391993), "values": [0.5],
        "error": pytest.approx(0.02), "how": "normal over the questions",
    }  # fmt: skip
    assert interval([0.5]) == {
        "mean": 0.5, "low": None, "high": None, "values": [0.5], "error": None, "how": "none: one seed",
    }  # fmt: skip
    both = present(interval([0.4, 0.6], [0.03, 0.04]))
    assert both["error"] == pytest.approx(math.sqrt(0.00125))
    assert both["how"] == "t over 2 seeds and the questions"


def test_rows_count_where_every_seed_has_as_many_and_more_than_one() -> None:
    rows = [np.array([0.2, 0.4, 0.9]), np.array([0.1, 0.8, 0.9])]
    assert present(interval([0.5, 0.6], rows=rows))["how"] == "t over 2 seeds and 3 questions"
    assert present(interval([0.5, 0.6], rows=[r[:2] for r in rows]))["how"] == "t over 2 seeds and 2 questions"
    alone = present(interval([0.5], rows=rows[:1], share=False))
    assert alone["how"] == "t over 3 questions"
    half = stats.t.ppf(0.975, 2) * np.std(rows[0], ddof=1) / math.sqrt(3)
    assert (alone["low"], alone["high"]) == pytest.approx((0.5 - half, 0.5 + half))
    assert present(alone["high"]) > 1 == present(interval([0.5], rows=rows[:1]))["high"]
    for other in ([rows[0], None], [rows[0]], [rows[0], rows[1][:2]], [rows[0][:1], rows[1][:1]]):
        assert present(interval([0.5, 0.6], rows=other))["how"] == "t over 2 seeds"


def test_only_the_marks_count_in_the_rows_of_ra() -> None:
    node = attack(model("m", "RMU", "a"), 0, [0.5, 0.4, 0.3])
    known = {float(step): np.array([step / 10, step / 10 + 0.01]) for step in range(4)}
    assert figures(node, known)["rows"]["ra"] == pytest.approx([0.2, 0.21])  # without marks all three points
    present(node.result)["marks"] = [1, 2]
    found = figures(node, known)["rows"]
    assert found["ra"] == pytest.approx([0.15, 0.16])
    assert [present(found[k])[0] for k in ("before", "fq", "worst")] == pytest.approx([0, 0.3, 0.3])
    del known[2]
    assert figures(node, known)["rows"]["ra"] is None


def test_an_accuracy_ends_at_1_and_a_perplexity_does_not() -> None:
    scores = {n: {"role": "utility", "metric": n, "value": 0.99, "stderr": 0.1} for n in ("acc", "perplexity")}
    found = utility([{"weights": {}, "eval": scores}])
    assert found["acc"]["high"] == 1
    assert found["perplexity"]["high"] == pytest.approx(0.99 + 0.195996)


def test_an_original_under_one_seed_is_once() -> None:
    m = model("m", "original", "a")
    node = attack(m, 0, [0.5])
    node.tags["random"] = False
    found = table(m, node)[0], _rows_of_subject(m, node)
    assert [row["once"] for row in found] == [False, True]


def _rows_of_subject(*nodes: Any) -> TableRow:
    from ilu_cli.workflows.pipeline.table import rows

    return rows(Graph("g", list(nodes), {"original": None}, Store(), {}))[0]  # type: ignore[dict-item]


def test_attacks_without_a_common_seed_are_weighed_by_their_own_means() -> None:
    m = model("m", "RMU", "a")
    (both,) = summaries(table(m, attack(m, 0, [0.6], name="A"), attack(m, 1, [0.3], name="B")))
    assert (both["worst"]["attack"], both["worst"]["mean"], both["lowest"], both["ra"]) == ("B", 0.3, 0.3, None)


def test_an_attack_that_still_runs_has_no_worst_case(tmp_path: Path) -> None:
    graph = grid(tmp_path, attacks=1, seeds=2, questions=8, rng=np.random.default_rng(0))
    asked = [{"attack 0": 0}, {"attack 0": 1}]
    assert [len(v) for v in present(elsewhere(graph, "RMU", asked))] == [8, 8]
    next(n for n in graph if n.command == "attack").status = "running"
    assert tried(graph, "RMU", asked[0]) is None
    assert [len(v) for v in present(tried(graph, "RMU", asked[1]))] == [8, 8]
    assert elsewhere(graph, "RMU", asked) is None


def test_attacks_that_asked_different_questions_are_chosen_by_half_of_their_own(tmp_path: Path) -> None:
    one = grid(tmp_path / "one", attacks=1, seeds=1, questions=8, rng=np.random.default_rng(0))
    two = grid(tmp_path, attacks=2, seeds=1, questions=6, rng=np.random.default_rng(0))
    (tmp_path / "one" / "run-0-0").rename(tmp_path / "other")
    first, second = (next(n for n in g if n.command == "attack") for g in (one, two))
    present(second.result).update({**present(first.result), "subject": "other"})
    assert [len(v) for v in present(tried(two, "RMU", {"attack 0": 0}))] == [8, 8]
    assert [len(v) for v in present(tried(two, "RMU", {"attack 1": 0}))] == [6, 6]
    both = {"attack 0": 0, "attack 1": 0}
    assert [len(v) for v in present(tried(two, "RMU", both))] == [8, 8, 6, 6]
    (found,) = present(elsewhere(two, "RMU", [both]))
    lowest = min(present(tried(two, "RMU", both)), key=lambda v: v[first_half(len(v))].mean())
    assert found.mean() == lowest[other_half(len(lowest))].mean()
    assert tried(two, "RMU", {}) is None


def test_an_attack_that_asks_fewer_questions_at_some_points_hides_no_worst_case(tmp_path: Path) -> None:
    """As `alias` does: each name is of the questions that have one."""
    graph = grid(tmp_path, attacks=2, seeds=1, questions=8, rng=np.random.default_rng(0))
    right = {0: [1, 0] * 4, 4: [1, 0, 1, 1, 1, 1], 8: [1, 0, 0, 1]}
    node = next(n for n in graph if n.command == "attack")
    present(node.result)["fq"] = kept(tmp_path / str(node.run), {s: np.array(r) for s, r in right.items()})
    assert [len(v) for v in present(tried(graph, "RMU", {"attack 0": 0}))] == [6, 4]
    found = collect(graph)
    assert [present(r["worst_elsewhere"])["mean"] is not None for r in found["rows"]] == [True, True]
    assert present(found["methods"][0]["worst_elsewhere"])["how"] == "t over 3 questions"  # half of six
    assert present(found["rows"][0]["worst"])["how"] == "t over 6 questions"
    assert present(found["rows"][0]["ra"])["how"] == "normal over the questions"


def test_an_attack_without_points_has_no_lowest_and_its_method_does_not_hide_the_next() -> None:
    lost, fine = model("m", "RMU", "a"), model("n", "NPO", "b")
    none, some = attack(lost, 0, [0.5]), attack(fine, 0, [0.6])
    present(none.result)["fq"], present(none.result)["ra"] = present(none.result)["fq"][:1], None
    found = table(lost, fine, none, some)
    assert [row["lowest"] for row in found] == [None, 0.6]
    assert [row["method"] for row in summaries(found)] == ["NPO"]


def test_each_seed_has_its_own_worst_case_elsewhere(tmp_path: Path) -> None:
    graph = grid(tmp_path, attacks=2, seeds=2, questions=30, rng=np.random.default_rng(4))
    asked = [{"attack 0": s, "attack 1": s} for s in (0, 1)]
    values = [float(v.mean()) for v in present(elsewhere(graph, "RMU", asked))]
    assert values[0] != values[1]
    (both,) = collect(graph)["methods"]
    assert present(both["worst_elsewhere"])["values"] == pytest.approx(values)


def test_what_is_the_same_for_all_seeds_is_taken_from_the_one_that_is_there(tmp_path: Path) -> None:
    """A quantised original under seed 0 alone, beside a relearned one under both."""
    made = grid(tmp_path, attacks=2, seeds=2, questions=30, rng=np.random.default_rng(5))
    graph = Graph("g", list(made), {"RMU": None}, made.store, {})  # type: ignore[dict-item]
    (second,) = [n for n in graph if n.tags.get("attack") == "attack 0" and n.tags["seed"] == 1]
    for node in graph:
        if node.tags.get("attack") == "attack 0":
            node.tags["random"] = False
    second.status = "failed"
    asked = [{"attack 0": 0, "attack 1": s} for s in (0, 1)]
    values = [float(v.mean()) for v in present(elsewhere(graph, "RMU", asked))]
    (both,) = collect(graph)["methods"]
    assert present(both["worst_elsewhere"])["values"] == pytest.approx(values)


def test_what_is_saved_is_what_is_collected(tmp_path: Path) -> None:
    graph = grid(tmp_path, attacks=1, seeds=1, questions=8, rng=np.random.default_rng(6))
    graph.folder.mkdir(parents=True, exist_ok=True)
    assert save(graph) == collect(graph) == json.loads((graph.folder / "results.json").read_text())
