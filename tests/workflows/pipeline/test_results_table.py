"""What a row, a method's summary and results.json hold, from a graph written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import present

from ilu_cli.runs.store import Store
from ilu_cli.workflows.pipeline.figures import figures
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.table import collect, off_target, rows, save, summaries


def score(value: float, role: str = "utility", metric: str = "acc") -> dict[str, Any]:
    return {"role": role, "metric": metric, "value": value, "stderr": 0.03}


def model(key: str, method: str, seed: int = 0, *, weights: str | None = None, **more: Any) -> Node:
    result = {"subject": key, "weights": {"model": weights or key}, "eval": {"elements": score(0.9)}, "step": 40}
    return Node(key, "select", {"method": method, "seed": seed}, {}, "", status="done", result=result | more)


def attack(
    parent: Node | None, fq: list[float], seed: int = 0, *, name: str = "relearn", choice: int = 0, method: str = "",
    source: str = "hub", random: bool = True, env: str | None = None, fa: float | None = None,
) -> Node:  # fmt: skip
    """An attack with FQ 0.7 before it, and a standard error that tells its points apart."""
    points = [{"steps": 4 * i, "value": v, "stderr": 0.01 * (i + 1)} for i, v in enumerate([0.7, *fq])]
    method = parent.tags["method"] if parent else method
    key = f"{method}/{name}/{choice}/{seed}"
    result = {
        "subject": "s", "fq": points, "ra": sum(fq) / len(fq), "axis": "steps", "unattacked": 0,
        "data": [{"name": "d", "source": source}], "manifest_sha256": f"sha of {key}",
        "fa": None if fa is None else {"value": fa, "stderr": 0.05},
    }  # fmt: skip
    tags = {"method": method, "env": env, "attack": name, "choice": {"lr": choice}, "seed": seed, "random": random}
    needs = [parent.key] if parent else []
    return Node(key, "attack", tags, {}, f"recipe of {key}", needs, status="done", run=f"run {key}", result=result)


def graph(*nodes: Node, subjects: tuple[str, ...] = (), store: Store | None = None) -> Graph:
    return Graph("grid", list(nodes), dict.fromkeys(subjects), store or Store(), {})  # type: ignore[arg-type]


def test_the_figures_of_one_attack() -> None:
    found = figures(attack(None, [0.5, 0.2, 0.4], fa=0.8))
    assert [found[k] for k in ("before", "fq", "worst", "fa")] == [0.7, 0.4, 0.2, 0.8]
    assert found["ra"] == pytest.approx(1.1 / 3)
    assert {k: found["stderr"][k] for k in ("before", "fq", "worst", "fa")} == {
        "before": 0.01,
        "fq": 0.04,
        "worst": 0.03,
        "fa": 0.05,
    }
    assert found["stderr"]["ra"] == pytest.approx(0.03)  # the mean of 0.02, 0.03 and 0.04


def test_the_figures_of_an_attack_without_points_after_or_before() -> None:
    node = attack(None, [0.5])
    present(node.result)["fq"] = present(node.result)["fq"][:1]
    only = figures(node)
    assert [only[k] for k in ("before", "fq", "worst", "fa")] == [0.7, None, None, None]
    assert [only["stderr"][k] for k in ("fq", "worst", "fa", "ra")] == [None, None, None, None]
    present(node.result)["unattacked"] = None
    assert figures(node)["before"] is None
    assert figures(node)["stderr"]["before"] is None
    assert figures(node)["fq"] == 0.7


def test_a_row_in_full() -> None:
    models = [model(f"m{s}", "RMU", s, within=s == 0, distance=0.25) for s in (0, 1)]
    nodes = [attack(m, [0.5, 0.3], s, source="hub", env="gsm8k") for s, m in enumerate(models)]
    (row,) = rows(graph(*models, *nodes))
    assert (row["method"], row["env"], row["attack"], row["once"]) == ("RMU", "gsm8k", "relearn", False)
    assert row["choice"] == {"lr": 0}
    assert row["choices"] == [{"choice": {"lr": 0}, "ra": pytest.approx(0.4), "worst": pytest.approx(0.3)}]
    assert row["seeds"] == [0, 1]
    assert row["steps"] == [40, 40]
    assert row["off_target"] == [0.25]
    assert row["builtin"] is False
    assert row["runs"] == ["run RMU/relearn/0/0", "run RMU/relearn/0/1"]
    assert row["recipe_sha256"] == ["recipe of RMU/relearn/0/0", "recipe of RMU/relearn/0/1"]
    assert [present(row[k])["values"] for k in ("before", "fq", "worst")] == [[0.7, 0.7], [0.3, 0.3], [0.3, 0.3]]
    assert present(row["ra"])["values"] == pytest.approx([0.4, 0.4])
    assert row["lowest"] == 0.3
    assert row["fa"] is None
    assert row["utility"]["elements"]["values"] == [0.9, 0.9]
    assert (row["utility"]["elements"]["role"], row["utility"]["elements"]["metric"]) == ("utility", "acc")


def test_builtin_data_mark_a_row_in_any_seed() -> None:
    m = model("m", "RMU")
    nodes = [attack(m, [0.5], s, source=source) for s, source in enumerate(("hub", "builtin"))]
    assert rows(graph(m, *nodes))[0]["builtin"] is True


def test_a_row_is_of_the_seeds_that_all_choices_have() -> None:
    m = model("m", "RMU")
    done = [attack(m, [0.4], s, choice=1) for s in (0, 1, 2)] + [attack(m, [0.5], s, choice=2) for s in (0, 2)]
    running = attack(m, [0.0], 1, choice=2)
    running.status = "running"
    (row,) = rows(graph(m, *done, running))
    assert row["seeds"] == [0, 2]
    assert row["choice"] == {"lr": 1}
    assert [c["choice"]["lr"] for c in row["choices"]] == [1, 2]
    for node in done[3:]:
        node.status = "failed"
    assert rows(graph(m, *done, running)) == []


def test_the_choice_is_the_attackers_and_the_worst_case_that_of_all() -> None:
    m = model("m", "RMU")
    one, two = [0.30, 0.50], [0.45, 0.10]  # RA 0.40 and 0.275, by seed: the second choice has the lower mean
    nodes = [attack(m, [v], s, choice=c) for c, vs in ((1, one), (2, two)) for s, v in enumerate(vs)]
    (row,) = rows(graph(m, *nodes))
    assert row["choice"] == {"lr": 2}
    assert present(row["ra"])["values"] == [0.45, 0.10]
    assert present(row["worst"])["values"] == [0.30, 0.10]
    assert row["lowest"] == 0.10
    assert row["runs"] == ["run RMU/relearn/2/0", "run RMU/relearn/2/1"]


def test_a_choice_without_an_ra_is_nobodys_choice() -> None:
    m = model("m", "RMU")
    none, some = attack(m, [0.1], choice=1), attack(m, [0.9], choice=2)
    present(none.result)["ra"] = None
    present(none.result)["fq"] = present(none.result)["fq"][:1]
    (row,) = rows(graph(m, none, some))
    assert row["choice"] == {"lr": 2}
    assert present(row["worst"])["values"] == [0.9]


def test_one_model_under_an_attack_without_chance_is_one_run() -> None:
    """The original, quantised under three seeds, is the same model three times."""
    nodes = [attack(None, [0.5], s, method="original", random=False, name="quantize") for s in (0, 1, 2)]
    model_of = model("o", "original")
    for node in nodes:
        node.needs = ["o"]
    (row,) = rows(graph(model_of, *nodes, subjects=("original",)))
    assert (row["once"], row["seeds"], present(row["ra"])["values"]) == (True, [0], [0.5])
    for node in nodes:
        node.tags["random"] = True
    (row,) = rows(graph(model_of, *nodes, subjects=("original",)))
    assert (row["once"], row["seeds"]) == (False, [0, 1, 2])
    for node in nodes:
        node.tags["random"] = False
    assert rows(graph(model_of, *nodes))[0]["once"] is False  # unlearned anew under every seed


def test_methods_are_summed_up_in_their_order() -> None:
    a, b = model("a", "RMU"), model("b", "NPO")
    nodes = [attack(b, [0.6], name="x"), attack(a, [0.5, 0.3], name="x"), attack(a, [0.7, 0.5], name="y")]
    first, second = summaries(rows(graph(a, b, *nodes)))
    assert (first["method"], first["attacks"], first["lowest"]) == ("NPO", 1, 0.6)
    assert (second["method"], second["attacks"], second["lowest"]) == ("RMU", 2, 0.3)
    assert present(second["ra"])["values"] == [pytest.approx((0.4 + 0.6) / 2)]
    assert (second["worst"]["attack"], second["worst"]["values"]) == ("x", [0.3])
    assert second["utility"]["elements"]["mean"] == pytest.approx(0.9)


def test_a_mean_over_attacks_is_of_the_seeds_that_all_have() -> None:
    models = [model(f"m{s}", "RMU", s) for s in (0, 1)]
    nodes = [attack(m, [v], s, name="x") for s, (m, v) in enumerate(zip(models, (0.2, 0.4)))]
    nodes.append(attack(models[1], [0.8], 1, name="y"))
    (both,) = summaries(rows(graph(*models, *nodes)))
    assert present(both["ra"])["values"] == [pytest.approx(0.6)]  # of seed 1 alone: 0.4 and 0.8


def test_what_is_the_same_for_all_seeds_counts_in_each() -> None:
    """A quantised original has one value; the relearned one has two."""
    o = model("o", "original")
    nodes = [attack(o, [0.5], s, name="quantize", random=False) for s in (3, 4)]
    nodes += [attack(o, [v], s, name="relearn") for s, v in ((3, 0.1), (4, 0.3))]
    (both,) = summaries(rows(graph(o, *nodes, subjects=("original",))))
    assert present(both["ra"])["values"] == pytest.approx([0.3, 0.4])
    only = summaries(rows(graph(o, *nodes[:2], subjects=("original",))))
    assert present(only[0]["ra"])["values"] == [0.5]


def test_a_method_without_an_ra_has_no_summary() -> None:
    m = model("m", "RMU")
    node = attack(m, [0.5])
    present(node.result)["ra"] = None
    assert summaries(rows(graph(m, node))) == []


def test_results_in_full(tmp_path: Path) -> None:
    m = model("m", "RMU", within=False, target=0.8, distance=0.1, candidates=[1])
    fine = model("n", "NPO")
    done = attack(m, [0.5])
    failed = Node("f", "attack", done.tags | {"seed": 1}, {}, "", [m.key], status="failed", error="out of memory")
    g = graph(m, fine, done, failed, store=Store(tmp_path))
    found = collect(g)
    assert set(found) == {"format", "name", "rows", "methods", "failed", "off_target", "warnings", "manifests"}
    assert (found["format"], found["name"]) == (1, "grid")
    assert found["failed"] == [{"node": "f", "status": "failed", "error": "out of memory"}]
    assert found["manifests"] == {done.run: f"sha of {done.key}"}
    missed = {"node": "m", "step": 40, "target": 0.8, "distance": 0.1, "candidates": [1]}
    assert found["off_target"] == off_target(g) == [missed]
    assert [w["id"] for w in found["warnings"]] == ["utility-unmatched"]
    assert [r["method"] for r in found["methods"]] == ["RMU"]
    g.folder.mkdir()
    assert save(g) == json.loads((g.folder / "results.json").read_text())


def test_one_model_has_one_utility_with_the_interval_of_its_questions() -> None:
    """The same weights, whatever the order in which their files are named."""
    models = [model(f"m{s}", "RMU", s) for s in (0, 1)]
    for m, names in zip(models, (("a", "b"), ("b", "a"))):
        present(m.result)["weights"] = dict.fromkeys(names, "0")
    (row,) = rows(graph(*models, *(attack(m, [0.5], s) for s, m in enumerate(models))))
    found = row["utility"]["elements"]
    assert found["values"] == [0.9]
    assert (found["low"], found["high"]) == pytest.approx((0.9 - 1.95996 * 0.03, 0.9 + 1.95996 * 0.03), abs=1e-6)
