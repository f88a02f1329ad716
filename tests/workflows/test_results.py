"""The table of a graph: which choice is the attacker's, what is the worst case, and how sure both are."""

from __future__ import annotations

import pytest

from ilu_cli.runs.store import Store
from ilu_cli.workflows.graph import Graph, Node
from ilu_cli.workflows.results import Z, rows, summaries


def model(key: str, method: str, weights: str) -> Node:
    found = {"role": "utility", "metric": "acc", "value": 0.9, "stderr": 0.03}
    result = {"subject": key, "weights": {"model": weights}, "eval": {"elements": found}}
    return Node(key, "select", {"method": method}, {}, "", status="done", result=result)


def attack(parent: Node, seed: int, fq: list[float], choice: int = 0, fa: float | None = None, name="relearn") -> Node:
    """An attack with FQ 0.7 before it; RA is the mean of `fq`."""
    points = [{"steps": i, "value": v, "stderr": 0.02} for i, v in enumerate([0.7, *fq])]
    result = {
        "fq": points, "ra": sum(fq) / len(fq), "axis": "steps", "unattacked": 0, "data": [], "manifest_sha256": "",
        "fa": None if fa is None else {"value": fa, "stderr": 0.05},
    }  # fmt: skip
    tags = {"method": parent.tags["method"], "env": None, "attack": name, "choice": {"lr": choice}, "seed": seed}
    key = f"{parent.key}/{name}/{choice}/{seed}"
    return Node(key, "attack", tags | {"random": True}, {}, "", [parent.key], status="done", run=key, result=result)


def table(*nodes: Node) -> list[dict]:
    return rows(Graph("g", list(nodes), {}, Store(), {}))


def test_the_worst_case_is_that_of_all_choices_and_the_row_that_of_the_lowest_ra():
    m = model("m0", "RMU", "a")
    (row,) = table(m, attack(m, 0, [0.4, 0.5], 1), attack(m, 0, [0.3, 0.7], 2))
    assert row["choice"] == {"lr": 1}
    assert row["ra"]["mean"] == pytest.approx(0.45)
    assert row["worst"]["mean"] == row["lowest"] == 0.3
    assert {c["choice"]["lr"]: c["worst"] for c in row["choices"]} == {1: 0.4, 2: 0.3}


def test_one_model_under_several_seeds_has_one_value_before_the_attack():
    m = model("m", "RMU", "a")
    (row,) = table(m, attack(m, 0, [0.5]), attack(m, 1, [0.6]))
    assert (row["before"]["values"], row["before"]["how"]) == ([0.7], "normal over the questions")
    assert row["before"]["high"] == pytest.approx(0.7 + Z * 0.02)
    assert row["ra"]["how"] == "t over 2 seeds"
    two = [model("m0", "RMU", "a"), model("m1", "RMU", "b")]
    (row,) = table(*two, *(attack(m, seed, [0.5]) for seed, m in enumerate(two)))
    assert row["before"]["values"] == [0.7, 0.7]


def test_one_seed_has_intervals_over_the_questions_everywhere():
    m = model("m", "RMU", "a")
    found = table(m, attack(m, 0, [0.5], fa=0.8), attack(m, 0, [0.6], name="prune"))
    assert found[0]["fa"]["low"] == pytest.approx(0.8 - Z * 0.05)
    (both,) = summaries(found)
    assert both["ra"]["mean"] == pytest.approx(0.55)
    assert both["ra"]["high"] == pytest.approx(0.55 + Z * 0.02)


def test_the_worst_attack_is_that_of_the_lowest_mean_and_the_lowest_value_may_be_anothers():
    two = [model("m0", "RMU", "a"), model("m1", "RMU", "b")]
    nodes = [attack(m, s, [v], name="A") for s, (m, v) in enumerate(zip(two, [0.6, 0.3]))]
    nodes += [attack(m, s, [0.35], name="B") for s, m in enumerate(two)]
    (both,) = summaries(table(*two, *nodes))
    assert (both["worst"]["attack"], both["worst"]["mean"], both["lowest"]) == ("B", pytest.approx(0.35), 0.3)
