"""A searching attacker: what a trial is worth, that a search goes on where it was, and what it is held to."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Ilu

from ilu_cli.metrics.chosen import chosen_on_the_first, first_half, other_half
from ilu_cli.recipe.search import BoundSpec, RangeSpec, SearchSpec
from ilu_cli.runs.results import Point, Summary
from ilu_cli.runs.store import Store
from ilu_cli.workflows.pipeline import search as module
from ilu_cli.workflows.pipeline.budget import TimeBudget, last_call
from ilu_cli.workflows.pipeline.cost import KeptAt, kept_at, losses
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.line import SearchLine
from ilu_cli.workflows.pipeline.search import TrialSearch, outcome
from ilu_cli.workflows.pipeline.worst import Tried, points_of


def point(strength: float, fq: float, loss: float | None = 0.0) -> Tried:
    return Tried(strength, np.full(10, fq), loss)


def test_a_trial_is_worth_its_lowest_point_within_the_bound() -> None:
    points = [point(1, 0.6, 0.01), point(2, 0.4, 0.04), point(3, 0.1, 0.30)]
    assert outcome(points, None)[0] == pytest.approx(0.1)
    value, over = outcome(points, BoundSpec(benchmark="b", loss=0.05))
    assert value == pytest.approx(0.4)
    assert over == pytest.approx(-0.04)
    value, over = outcome(points, BoundSpec(benchmark="b", loss=0.0))
    assert value == pytest.approx(0.1)
    assert over == pytest.approx(0.01)


def test_what_has_no_known_cost_does_not_count() -> None:
    bound = BoundSpec(benchmark="b", loss=0.05)
    value, over = outcome([point(1, 0.6, None), point(2, 0.4, None)], bound)
    assert value == pytest.approx(0.4)
    assert over > 1
    assert outcome([point(1, 0.6, 0.01), point(2, 0.1, None)], bound) == pytest.approx((0.6, -0.04))


@pytest.mark.parametrize(("attack", "cost"), [("finetune", None), ("rephrase", 0.0)])
def test_only_what_cannot_cost_anything_is_free_unmeasured(
    monkeypatch: pytest.MonkeyPatch, attack: str, cost: float | None
) -> None:
    monkeypatch.setattr("ilu_cli.workflows.pipeline.worst.answered", lambda *_: {0: np.ones(4), 8: np.zeros(4)})
    result = {"axis": "steps", "unattacked": 0, "fq": [], "marks": [], "kept": {}}
    node = Node("a", "attack", {}, {"attack": {"name": attack}}, "", status="done", result=result)
    for bound, wanted in ((BoundSpec(benchmark="elements"), cost), (None, None)):
        (found,) = points_of(Graph("g", [node], {}, Store(), {}, bound), node)
        assert (found.strength, found.loss) == (8, wanted)
    node.result = result | {"kept": {"elements": KeptAt(kind="share", up=True, at=[(0, 0.9), (8, 0.8)])}}
    (found,) = points_of(Graph("g", [node], {}, Store(), {}, BoundSpec(benchmark="elements")), node)
    assert found.loss == pytest.approx(0.1 if attack == "finetune" else 0.0)


def test_only_the_first_half_of_the_questions_is_seen() -> None:
    values = np.zeros(20)
    values[other_half(20)] = 1
    assert outcome([Tried(1, values, None)], None)[0] == 0
    assert sorted([*first_half(7), *other_half(7)]) == [*range(7)]
    assert list(first_half(7)) == list(first_half(7))


def test_what_is_reported_has_no_luck_of_the_choice() -> None:
    """Of thirty equal candidates the lowest is 0.1 below the truth on its own questions, and at it on the others."""
    rng, own, other = np.random.default_rng(0), [], []
    for _ in range(200):
        values = (rng.random((30, 80)) < 0.5).astype(float)
        own.append(values.mean(1).min())
        other.append(chosen_on_the_first(list(values)).mean())
    assert np.mean(own) == pytest.approx(0.39, abs=0.02)
    assert np.mean(other) == pytest.approx(0.5, abs=0.01)


def test_what_an_attack_costs() -> None:
    share = KeptAt(kind="share", up=True, at=[(0, 0.9), (10, 0.85), (20, 0.4)])
    assert losses(share, 0, [10, 15, 20]) == pytest.approx([0.05, 0.5, 0.5])
    loss = KeptAt(kind="loss", up=False, at=[(0, 20.0), (20, 21.0)])
    assert losses(loss, 0, [20]) == pytest.approx([0.05])
    assert losses(share, None, [10]) == [None]
    told = Summary("coherence", "coherence", "ratio", "utility", 0.8, None)
    ruined = (Point("steps", 0, {"coherence": told}), Point("steps", 8, {"coherence": replace(told, value=0.2)}))
    assert losses(kept_at(ruined)["coherence"], 0, [8]) == pytest.approx([0.75])
    worse = tuple(replace(p, eval={"coherence": replace(p.eval["coherence"], more={"up": False})}) for p in ruined)
    assert losses(kept_at(worse)["coherence"], 0, [8]) == pytest.approx([-0.75])


def test_a_perplexity_without_end_is_no_mistake(tmp_path: Path) -> None:
    kept = {"prose": KeptAt(kind="loss", up=False, at=[(0, math.inf), (8, math.inf)])}
    graph = Graph("g", [Node("a", "attack", {}, {}, "", result={"kept": kept})], {}, Store(tmp_path), {})
    graph.save()
    (node,) = json.loads((graph.folder / "pipeline.json").read_text())["nodes"]
    assert node["result"]["kept"]["prose"]["at"] == [[0, None], [8, None]]
    assert losses(kept["prose"], 0, [8]) == [0]


def searched(spec: SearchSpec, worth: Any, seed: int = 0, bound: BoundSpec | None = None) -> list[dict[str, Any]]:
    """The keys of all trials, each worth what `worth` says of its keys: FQ, and the loss of utility."""
    parent = Node("model", "select", {"method": "m"}, {}, "", status="done")
    graph = Graph("g", [parent], {}, Store(), {}, bound)

    def trial(number: int, chosen: dict[str, Any]) -> Node:
        return Node(f"trial {number}", "attack", {"chosen": chosen}, {}, "", status="done")

    found = TrialSearch(spec, seed, "model", trial)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graph, "settle", lambda *_: True)
        patch.setattr(module, "points_of", lambda _, n: [point(1, *worth(n.tags["chosen"]))])
        found.grow(graph)
    return [n.tags["chosen"] for n in graph if n.key != "model"]


SPEC = SearchSpec(trials=40, over={"lr": RangeSpec(low=1e-6, high=1e-1, log=True), "batch": [4, 8, 16]})


def narrow(chosen: dict[str, Any]) -> tuple[float, float]:
    """Best at lr 3e-4 with batch 8."""
    return abs(math.log10(chosen["lr"] / 3e-4)) / 5 + (0.0 if chosen["batch"] == 8 else 0.1), 0.0


def test_a_search_learns_where_random_trials_do_not() -> None:
    ends = {}
    for sampler in ("tpe", "random"):
        spec = SPEC.model_copy(update={"sampler": sampler})
        runs = [searched(spec, narrow, seed) for seed in range(5)]
        ends[sampler] = np.mean([narrow(c)[0] for trials in runs for c in trials[-10:]])
    assert ends["tpe"] < 0.6 * ends["random"]


def test_a_search_is_the_same_each_time_and_another_for_another_seed() -> None:
    first = searched(SPEC, narrow)
    assert first == searched(SPEC, narrow)
    assert first != searched(SPEC, narrow, seed=1)
    assert first[:8] == searched(SPEC.model_copy(update={"trials": 8}), narrow)
    assert len(first) == 40


def test_a_bound_is_kept_to() -> None:
    """A high rate brings everything back and costs everything: the search goes to the edge of what is allowed."""

    def worth(chosen: dict[str, Any]) -> tuple[float, float]:
        return 0.5 - math.log10(chosen["lr"] / 1e-6) / 10, 0.4 if chosen["lr"] > 1e-4 else 0.0

    bound = BoundSpec(benchmark="b", loss=0.05)
    late = {b is None: [math.log10(c["lr"]) for c in searched(SPEC, worth, bound=b)[20:]] for b in (None, bound)}
    assert np.mean(late[True]) > -1.7
    assert abs(np.mean(late[False]) + 4) < 0.5


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> tuple[Graph, TrialSearch, SearchLine]:
    """A search of three trials that ends when they are done, each worth its rate, and its line on the original."""
    models = [Node(name, "select", {"method": name}, {}, "", status="done") for name in ("original", "RMU")]

    def trial(number: int, chosen: dict[str, Any]) -> Node:
        tags = {"method": "RMU", "choice": {"trial": number}, "chosen": chosen}
        return Node(f"trial {number}", "attack", tags, {}, str(chosen), ["RMU"], seconds=10.0)

    def beside(chosen: dict[str, Any]) -> Node:
        return Node("beside", "attack", {"method": "original", "chosen": chosen}, {}, str(chosen), ["original"])

    monkeypatch.setattr(Graph, "settle", lambda *_: False)
    monkeypatch.setattr(module, "points_of", lambda _, n: [point(1, n.tags["chosen"]["lr"])])
    search = TrialSearch(SearchSpec(trials=3, over={"lr": RangeSpec(low=0.1, high=0.9)}), 0, "RMU", trial)
    line = SearchLine(search, beside)
    return Graph("g", models, {}, Store(), {}, None, [search, line]), search, line


def finish(graph: Graph, number: int, status: Any = "done") -> None:
    graph.nodes[f"trial {number}"].status = status
    graph.grow()


def test_what_a_search_found_is_done_to_the_original_once(drawn: tuple[Graph, TrialSearch, SearchLine]) -> None:
    graph, _, line = drawn
    graph.grow()
    assert graph.size == 2 + 3 + 1
    for number in range(3):
        assert (line.left, "beside" in graph.nodes) == (1, False)
        finish(graph, number)
    rates = [n.tags["chosen"]["lr"] for n in graph if n.key.startswith("trial")]
    assert graph.nodes["beside"].tags["chosen"]["lr"] == min(rates)
    assert (line.left, graph.size) == (0, 6)
    graph.grow()
    assert len(graph.nodes) == 6


def test_a_failed_trial_that_is_tried_again_takes_the_line_back(
    drawn: tuple[Graph, TrialSearch, SearchLine],
) -> None:
    graph, _, _ = drawn
    graph.grow()
    finish(graph, 0)
    finish(graph, 1)
    finish(graph, 2, "failed")
    assert graph.nodes["beside"].status == "waiting"
    graph.retry()
    assert "beside" not in graph.nodes
    finish(graph, 2)
    assert "beside" in graph.nodes


def test_a_search_that_is_closed_has_its_line_by_what_it_found(drawn: tuple[Graph, TrialSearch, SearchLine]) -> None:
    """One trial is done and the next has not begun: it is taken back, and counts among what is left."""
    graph, search, line = drawn
    graph.grow()
    finish(graph, 0)
    assert last_call(graph, TimeBudget(19.9)), "a trial and a line take ten seconds each"
    assert not last_call(graph, TimeBudget(21))
    for growing in graph.searches:
        growing.close(graph)
    graph.grow()
    assert list(graph.nodes) == ["original", "RMU", "trial 0", "beside"]
    assert graph.nodes["beside"].tags["chosen"] == graph.nodes["trial 0"].tags["chosen"]
    assert (search.left, line.left) == (2, 0)


def test_a_search_that_found_nothing_has_no_line(drawn: tuple[Graph, TrialSearch, SearchLine]) -> None:
    graph, _, line = drawn
    graph.grow()
    for number in range(3):
        finish(graph, number, "failed")
    assert (line.left, "beside" in graph.nodes) == (0, False)


NOISE = {"attack": {"name": "noise"}, "search": {"trials": 3, "over": {"sigmas": [[0.1], [0.5], [1.0]]}}}
TRAINED = {
    "attack": {"name": "finetune", "task": "elements", "steps": 2, "batch": 2},
    "search": {"trials": 2, "over": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "batch": {"low": 2, "high": 4}}},
}


@pytest.fixture
def suite(tmp_path: Path) -> dict[str, Any]:
    return {
        "command": "suite",
        "attacks": [NOISE, TRAINED],
        "bound": {"benchmark": "elements", "loss": 0.05},
        "eval": {"benchmarks": ["capitals", "elements"], "limit": 8},
    }


def save(recipe: dict[str, Any]) -> str:
    Path("suite.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return "suite.yaml"


@pytest.mark.slow
def test_a_search_from_the_command_line(tiny: Path, ilu: Ilu, suite: dict[str, Any], tmp_path: Path) -> None:
    args = ["attack", tiny, "--suite", save(suite), "--json"]
    done = ilu(*args)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    rows = {r["attack"]: r for r in found["rows"]}
    assert {a: r["tried"] for a, r in rows.items()} == {"noise": 3, "finetune": 2}
    assert rows["finetune"]["choice"].keys() == {"lr", "batch"}
    assert rows["noise"]["choice"]["sigmas"] in [[0.1], [0.5], [1.0]]
    [method] = found["methods"]
    assert method["tried"] == 5
    assert [b["loss"] for b in method["bounded"]] == [0.01, 0.05, 0.1, None]
    assert "4 questions" in method["bounded"][-1]["worst"]["how"]
    runs = {r.id for r in Store().runs()}
    assert len(runs) == len({s for s in runs if s.startswith("attack-noise")}) + 2

    again = ilu(*args)
    assert json.loads(again.out)["rows"] == found["rows"]
    assert {r.id for r in Store().runs()} == runs
    lost = next(r for r in runs if r.startswith("attack-elements"))
    shutil.rmtree(tmp_path / "runs" / lost)
    assert ilu(*args).code == 0
    assert {r.id for r in Store().runs()} == runs, "the same trial is asked for again"
    table = ilu(*args[:-1])
    assert "worst on other questions, by what the attack may cost: at most 0.01" in table.out


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (("attacks", 0, "search", "trials"), 0, "trials"),
        (("attacks", 0, "search", "over"), {"sigma": [1, 2]}, "sigma"),
        (("attacks", 0, "search", "over"), {}, "over"),
        (("attacks", 0, "search", "over"), {"sigmas": [[0.1]]}, "two choices"),
        (("attacks", 0, "search", "over"), {"sigmas": [[0.1], ["x"]]}, "sigmas"),
        (("attacks", 1, "search", "over"), {"lr": {"low": 1e-2, "high": 1e-4}}, "high 0.0001 is not above it"),
        (("attacks", 1, "search", "over"), {"lr": {"low": 0.0, "high": 1e-4, "log": True}}, "begins above 0"),
        (("attacks", 1, "search", "over"), {"steps": {"low": 0, "high": 4}}, "steps"),
        (("attacks", 1, "search", "over"), {"lr": {"lo": 1e-2, "high": 1e-4}}, "lo"),
        (("attacks", 1, "search", "sampler"), "grid", "sampler"),
        (("attacks", 1, "best_of"), {"lr": [1e-3]}, "leave one of them out"),
        (("attacks", 1, "each"), {"lr": [1e-3]}, "stands under each too"),
        (("bound", "benchmark"), "prose", "not among eval.benchmarks"),
        (("bound", "benchmark"), "capitals", "not utility"),
        (("bound", "loss"), -0.1, "loss"),
        (("bound", "loss"), 5, "loses no more than all"),
        (("bound", "loss"), math.inf, "finite"),
        (("attacks", 0, "search", "over"), {"name": ["noise", "prune"]}, "over.name: one attack is searched"),
        (("attacks", 1, "search", "over"), {"batch": [2, 4, 2]}, "over.batch: 2 stands twice"),
        (("attacks", 1, "search", "over"), {"lr": {"low": 1e-4, "high": math.inf}}, "over.lr.high: input"),
        (("attacks", 1, "eval"), {"benchmarks": ["capitals"]}, "does not ask 'elements'"),
    ],
)
def test_what_is_impossible_is_refused_with_the_recipe(
    tiny: Path, ilu: Ilu, suite: dict[str, Any], at: tuple[Any, ...], value: Any, message: str
) -> None:
    recipe: Any = json.loads(json.dumps(suite))
    inside = recipe
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = value
    done = ilu("attack", tiny, "--suite", save(recipe), "--dry-run")
    assert done.code == 2
    assert message in done.err
    assert "suite.yaml:" in done.err


def test_without_optuna_it_is_said_what_to_install(
    tiny: Path, ilu: Ilu, suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    done = ilu("attack", tiny, "--suite", save(suite), "--dry-run")
    assert done.code == 3
    assert "pip install 'ilu[search]'" in done.err
