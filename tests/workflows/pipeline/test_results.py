"""The table of a graph: which choice is the attacker's, what is the worst case, and how sure both are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import present
from scipy import stats

from ilu_cli.report.numbers import Z
from ilu_cli.runs.results import Point, Summary
from ilu_cli.runs.store import Store
from ilu_cli.workflows.attack.protocol import result_of
from ilu_cli.workflows.pipeline.figures import interval
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.shapes import Spread, TableRow
from ilu_cli.workflows.pipeline.table import collect, rows, summaries


def model(key: str, method: str, weights: str) -> Node:
    found = {"role": "utility", "metric": "acc", "value": 0.9, "stderr": 0.03}
    result = {"subject": key, "weights": {"model": weights}, "eval": {"elements": found}}
    return Node(key, "select", {"method": method}, {}, "", status="done", result=result)


def attack(
    parent: Node, seed: int, fq: list[float], choice: int = 0, fa: float | None = None, name: str = "relearn"
) -> Node:
    """An attack with FQ 0.7 before it; RA is the mean of `fq`."""
    points = [{"steps": i, "value": v, "stderr": 0.02} for i, v in enumerate([0.7, *fq])]
    result = {
        "fq": points, "ra": sum(fq) / len(fq), "axis": "steps", "unattacked": 0, "data": [], "manifest_sha256": "",
        "fa": None if fa is None else {"value": fa, "stderr": 0.05},
    }  # fmt: skip
    tags = {"method": parent.tags["method"], "env": None, "attack": name, "choice": {"lr": choice}, "seed": seed}
    key = f"{parent.key}/{name}/{choice}/{seed}"
    return Node(key, "attack", tags | {"random": True}, {}, "", [parent.key], status="done", run=key, result=result)


def table(*nodes: Node) -> list[TableRow]:
    return rows(Graph("g", list(nodes), {}, Store(), {}))


def ends(found: Spread | None) -> tuple[float, float, float]:
    """An interval and its middle, which must be there."""
    low, mean, high = (present(present(found)[key]) for key in ("low", "mean", "high"))
    return low, mean, high


def test_the_worst_case_is_that_of_all_choices_and_the_row_that_of_the_lowest_ra() -> None:
    m = model("m0", "RMU", "a")
    (row,) = table(m, attack(m, 0, [0.4, 0.5], 1), attack(m, 0, [0.3, 0.7], 2))
    assert row["choice"] == {"lr": 1}
    assert present(row["fq"])["mean"] == 0.5  # where the attack ends
    assert present(row["ra"])["mean"] == pytest.approx(0.45)
    assert present(row["worst"])["mean"] == row["lowest"] == 0.3
    assert {c["choice"]["lr"]: c["worst"] for c in row["choices"]} == {1: 0.4, 2: 0.3}


def test_one_model_under_several_seeds_has_one_value_before_the_attack() -> None:
    m = model("m", "RMU", "a")
    (row,) = table(m, attack(m, 0, [0.5]), attack(m, 1, [0.6]))
    before = present(row["before"])
    assert (before["values"], before["how"]) == ([0.7], "normal over the questions")
    assert before["high"] == pytest.approx(0.7 + Z * 0.02)
    assert present(row["ra"])["how"] == "t over 2 seeds and the questions"
    two = [model("m0", "RMU", "a"), model("m1", "RMU", "b")]
    (row,) = table(*two, *(attack(m, seed, [0.5]) for seed, m in enumerate(two)))
    assert present(row["before"])["values"] == [0.7, 0.7]


def test_an_attack_that_asks_each_seed_other_questions_has_a_value_before_it_for_each() -> None:
    m = model("m", "RMU", "a")
    first, second = attack(m, 0, [0.5]), attack(m, 1, [0.6])
    present(second.result)["fq"][0]["value"] = 0.8
    (row,) = table(m, first, second)
    assert present(row["before"])["values"] == [0.7, 0.8]


def test_one_seed_has_intervals_over_the_questions_everywhere() -> None:
    m = model("m", "RMU", "a")
    found = table(m, attack(m, 0, [0.5], fa=0.8), attack(m, 0, [0.6], name="prune"))
    assert present(found[0]["fa"])["low"] == pytest.approx(0.8 - Z * 0.05)
    (both,) = summaries(found)
    assert present(both["ra"])["mean"] == pytest.approx(0.55)
    assert present(both["ra"])["high"] == pytest.approx(0.55 + Z * 0.02)


def test_the_worst_attack_is_that_of_the_lowest_mean_and_the_lowest_value_may_be_anothers() -> None:
    two = [model("m0", "RMU", "a"), model("m1", "RMU", "b")]
    nodes = [attack(m, s, [v], name="A") for s, (m, v) in enumerate(zip(two, [0.6, 0.3]))]
    nodes += [attack(m, s, [0.35], name="B") for s, m in enumerate(two)]
    (both,) = summaries(table(*two, *nodes))
    assert (both["worst"]["attack"], both["lowest"]) == ("B", 0.3)
    assert both["worst"]["mean"] == pytest.approx(0.35)


def test_an_interval_by_hand() -> None:
    """Seeds 0.4, 0.5, 0.6: s²/3 = 1/300, and 0.15 over the questions."""
    found = interval([0.4, 0.5, 0.6], [0.15, 0.15, 0.15])
    variance, seeds = 1 / 300 + 0.0225, 1 / 300
    half = stats.t.ppf(0.975, 2 * (variance / seeds) ** 2) * math.sqrt(variance)
    assert (present(found)["low"], present(found)["high"]) == pytest.approx((0.5 - half, 0.5 + half))
    seeds_alone = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)  # n − 1 twice
    alone = present(interval([0.4, 0.5, 0.6]))
    assert present(alone["high"]) - 0.5 == pytest.approx(seeds_alone)
    # 32 degrees of freedom: would be 0.235 instead of 0.248
    floored = present(interval([0.4, 0.5, 0.6], [0.1, 0.1, 0.1]))
    assert present(floored["high"]) - 0.5 == pytest.approx(seeds_alone)
    assert alone["how"] == "t over 3 seeds"
    assert interval([]) is None
    assert present(interval([0.3]))["low"] is None
    assert present(interval([0.99], [0.02]))["high"] == 1  # a share
    assert present(present(interval([9.0, 11.0], [1.0, 1.0], share=False))["high"]) > 11


def test_the_error_of_several_forget_benchmarks_is_that_of_their_mean() -> None:
    numbers = {"a": (0.2, 0.03), "b": (0.4, 0.04)}
    scores = {n: Summary(n, "acc", "share", "forget", v, e) for n, (v, e) in numbers.items()}
    (fq,) = result_of([Point("steps", 0, scores)], None, 0, quarters=True).fq
    assert fq.strength == 0
    assert (fq.value, fq.stderr) == pytest.approx((0.7, 0.025))


def kept(folder: Path, answers: dict[int, np.ndarray], bench: str = "capitals") -> list[dict[str, Any]]:
    """Write the rows of an attack's points as the attack does; returns their FQ."""
    found = []
    for step, right in answers.items():
        point = folder / "eval" / f"steps-{step:07d}"
        point.mkdir(parents=True, exist_ok=True)
        summary = {"benchmark": bench, "role": "forget", "metric": "acc", "value": float(np.mean(right))}
        (point / f"{bench}.json").write_text(json.dumps(summary))
        (point / f"{bench}.rows.jsonl").write_text("".join(json.dumps({"value": float(r)}) + "\n" for r in right))
        found.append({"steps": step, "value": 1 - float(np.mean(right)), "stderr": 0.02})
    return found


def grid(tmp_path: Path, attacks: int, seeds: int, questions: int, rng: Any) -> Graph:
    """Equal attacks, each with two points of FQ 0.5 on average, and their rows."""
    store, m, nodes = Store(tmp_path), model("m", "RMU", "a"), []
    for i in range(attacks):
        for seed in range(seeds):
            node = attack(m, seed, [0.0], name=f"attack {i}")
            right = {step: rng.random(questions) < 0.5 for step in (0, 4, 8)}
            node.run = f"run-{i}-{seed}"
            fq = kept(tmp_path / node.run, right)
            ra = sum(f["value"] for f in fq[1:]) / 2
            present(node.result).update({"subject": node.run, "fq": fq, "ra": ra, "marks": [4, 8]})
            nodes.append(node)
    return Graph("g", [m, *nodes], {}, store, {})


def test_the_worst_case_is_also_chosen_on_other_questions(tmp_path: Path) -> None:
    found = collect(grid(tmp_path, attacks=3, seeds=2, questions=200, rng=np.random.default_rng(0)))
    (both,) = found["methods"]
    assert present(both["worst"]["mean"]) < 0.49  # the luckiest of six equal points
    assert present(both["worst_elsewhere"])["mean"] == pytest.approx(0.5, abs=0.04)
    low, _, high = ends(both["worst_elsewhere"])
    assert low < 0.5 < high
    assert present(both["worst_elsewhere"])["how"] == "t over 2 seeds and 200 questions"
    for row in found["rows"]:
        assert present(present(row["worst"])["mean"]) < ends(row["worst_elsewhere"])[1] < 0.55
        assert present(row["ra"])["how"] == "t over 2 seeds and 200 questions"
        low, mean, high = ends(row["ra"])
        assert low < mean < high


def test_without_rows_nothing_is_chosen_elsewhere(tmp_path: Path) -> None:
    graph = grid(tmp_path, attacks=2, seeds=1, questions=20, rng=np.random.default_rng(1))
    node = next(n for n in graph if n.command == "attack")
    present(node.result)["fq"][1]["value"] += 0.1  # other rows than were counted
    found = collect(graph)
    assert found["rows"][0]["worst_elsewhere"] is found["methods"][0]["worst_elsewhere"] is None
    assert present(found["rows"][0]["ra"])["how"] == "normal over the questions"
    assert found["rows"][1]["worst_elsewhere"] is not None


def test_several_forget_benchmarks_count_equally_whatever_their_size(tmp_path: Path) -> None:
    graph = grid(tmp_path, attacks=1, seeds=1, questions=20, rng=np.random.default_rng(2))
    node = next(n for n in graph if n.command == "attack")
    more = kept(tmp_path / present(node.run), {s: np.arange(8) < 6 for s in (0, 4, 8)}, "elements")  # FQ 0.25
    for one, two in zip(present(node.result)["fq"], more):
        one["value"] = (one["value"] + two["value"]) / 2
    present(node.result)["ra"] = sum(f["value"] for f in present(node.result)["fq"][1:]) / 2
    (row,) = rows(graph)
    assert present(row["worst_elsewhere"])["how"] == "t over 28 questions"
    assert present(row["before"])["how"] == "t over 28 questions"


def test_a_seed_that_only_one_attack_has_chooses_no_worst_attack() -> None:
    two = [model("m0", "RMU", "a"), model("m1", "RMU", "b")]
    nodes = [attack(m, s, [v], name="A") for s, (m, v) in enumerate(zip(two, [0.6, 0.1]))]
    nodes += [attack(two[0], 0, [0.5], name="B")]
    (both,) = summaries(table(*two, *nodes))
    assert both["worst"]["attack"] == "B"
    assert both["lowest"] == 0.1
