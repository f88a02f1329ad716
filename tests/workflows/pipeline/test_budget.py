"""A graph within a time: what comes first, when it stops, and that a stop or a kill loses nothing."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Ilu

from ilu_cli.errors import UsageError
from ilu_cli.recipe.expand import load_suite
from ilu_cli.recipe.load import shipped
from ilu_cli.recipe.search import BoundSpec, RangeSpec, SearchSpec
from ilu_cli.runs.store import Store
from ilu_cli.workflows.pipeline import search as module
from ilu_cli.workflows.pipeline.budget import TimeBudget, by_fall
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.search import TrialSearch
from ilu_cli.workflows.pipeline.worst import Tried


@pytest.mark.parametrize(
    ("text", "seconds"), [("4h", 14400), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("2s", 2)]
)
def test_a_time_in_words(text: str, seconds: float) -> None:
    assert TimeBudget.of(text).seconds == seconds


@pytest.mark.parametrize("text", ["", "4", "h", "4 h", "-1h", "0h", "4x", "1h x"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        TimeBudget.of(text)


def node(key: str) -> Node:
    return Node(key, "attack", {}, {}, "")


def search(name: str, *worth: tuple[float, float]) -> TrialSearch:
    """A search whose next trial is called so, after trials of this FQ and so many seconds."""
    spec = SearchSpec(trials=100, over={"lr": RangeSpec(low=1e-4, high=1e-2)})
    asked: Any = [(None, name)]
    return TrialSearch(spec, 0, "model", lambda *_: node(name), asked, None, list(worth))


def order(*searches: TrialSearch) -> list[str]:
    nodes = [node(key) for s in searches for _, key in s.asked] + [node("no trial")]
    graph = Graph("g", nodes, {}, Store(), {}, None, searches)
    return [n.key for n in by_fall(graph, nodes)]


def test_the_fall_of_the_best_per_second_by_hand() -> None:
    assert search("a", *[(0.5, 10)] * 3).fall(4) == math.inf
    assert search("a", (0.8, 10), (0.9, 10), (0.6, 20), (0.7, 10)).fall(4) == pytest.approx(0.2 / 50)
    assert search("a", (0.9, 99), (0.5, 99), *[(0.6, 5)] * 3, (0.4, 5)).fall(4) == pytest.approx(0.1 / 20)
    assert search("a", (0.3, 99), (0.5, 99), *[(0.6, 5)] * 4).fall(4) == 0


def test_what_falls_most_per_second_comes_first() -> None:
    slow = search("slow", (0.9, 10), *[(0.5, 100)] * 4)
    quick = search("quick", (0.9, 10), *[(0.7, 10)] * 4)
    still = search("still", (0.4, 10), *[(0.5, 10)] * 4)
    stiller = search("stiller", (0.4, 10), *[(0.5, 10)] * 7)
    young, younger = search("young", *[(0.9, 10)] * 3), search("younger", (0.9, 10))
    assert order(still, slow, stiller, young, quick, younger) == [
        "no trial", "younger", "young", "quick", "slow", "still", "stiller",
    ]  # fmt: skip


def test_what_does_not_count_is_worth_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial within the bound, one beyond it, one whose rows are gone: only the first moves the best so far."""
    points = [[Tried(1, np.full(10, 0.4), 0.01)], [Tried(1, np.full(10, 0.1), 0.9)], []]
    monkeypatch.setattr(module, "points_of", lambda *_: points.pop(0))
    monkeypatch.setattr(Graph, "settle", lambda *_: True)
    spec, bound = SearchSpec(trials=3, over={"lr": RangeSpec(low=1e-4, high=1e-2)}), BoundSpec(benchmark="b", loss=0.05)

    def trial(number: int, chosen: object) -> Node:
        return Node(f"trial {number}", "attack", {}, {}, "", status="done", seconds=7.0)

    found = TrialSearch(spec, 0, "model", trial)
    found.grow(Graph("g", [Node("model", "select", {}, {}, "", status="done")], {}, Store(), {}, bound, [found]))
    assert found.worth == [(pytest.approx(0.4), 7.0), (1.0, 7.0), (1.0, 7.0)]
    assert (found.told, found.left) == (3, 0)


@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("suite-")])
def test_every_shipped_suite_is_whole(name: str) -> None:
    recipe, variants = load_suite(name)
    assert len({v.attack for v in variants}) >= len(recipe.attacks)


def test_time_passes() -> None:
    assert 3599 < TimeBudget(3600).left <= 3600
    assert TimeBudget(1, time.monotonic() - 2).left == 0


TRIALS = {"trials": 2, "over": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}}
SUITE = {
    "command": "suite",
    "attacks": [
        {"attack": {"name": "finetune", "task": "elements", "steps": 2, "batch": 2}, "search": TRIALS},
        {"attack": {"name": "noise", "sigmas": [0.1]}},
    ],
    "eval": {"benchmarks": ["capitals", "elements"], "limit": 8},
}


@pytest.fixture
def suite() -> str:
    Path("suite.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    return "suite.yaml"


@pytest.mark.slow
def test_nothing_is_begun_after_the_budget_and_the_same_command_goes_on(
    tiny: Path, ilu: Ilu, suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = TimeBudget.left
    monkeypatch.setattr(TimeBudget, "left", property(lambda _: float(not list(Path("runs").glob("attack-*")))))
    part = ilu("attack", tiny, "--suite", suite, "--budget", "1h", "--json")
    assert part.code == 0, part.err
    assert json.loads(part.out)["state"]["done"] == 2, "the model's own questions, and the attack that was at work"
    assert "the budget is spent; 2 of 4 nodes are left" in part.err
    monkeypatch.setattr(TimeBudget, "left", left)
    whole = ilu("attack", tiny, "--suite", suite, "--budget", "1h", "--json")
    assert whole.code == 0
    rows = {r["attack"]: r["tried"] for r in json.loads(whole.out)["rows"]}
    assert rows == {"finetune": 2, "noise": 1}
    assert "budget is spent" not in whole.err
    bad = ilu("attack", tiny, "--suite", suite, "--budget", "soon")
    assert (bad.code, "--budget soon" in bad.err) == (2, True)
    alone = ilu("attack", tiny, "--budget", "1h")
    assert (alone.code, "--budget needs a --suite" in alone.err) == (2, True)


@pytest.mark.slow
def test_a_killed_search_keeps_every_finished_trial(tiny: Path, ilu: Ilu, suite: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ilu_cli", "attack", str(tiny), "--suite", suite]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs, ends = tmp_path / "runs", time.monotonic() + 120

    def trials() -> dict[str, int]:
        done = [r for r in Store().runs() if r.complete and r.id.startswith("attack-elements")]
        return {r.id: (r.path / "manifest.json").stat().st_mtime_ns for r in done}

    while time.monotonic() < ends and not (runs.is_dir() and trials()):
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = trials()
    assert before
    done = ilu("attack", tiny, "--suite", suite, "--json")
    assert done.code == 0, done.err
    assert before.items() <= trials().items()
    assert len(trials()) == 2
