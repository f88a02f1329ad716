"""What a plug-in made is not taken for what it makes after it was edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import Ilu

from ilu_cli import registry

BENCHMARK = '''\
from ilu_cli.benchmarks import Benchmark
from ilu_cli.registry import benchmark


@benchmark()
class Fixed(Benchmark):
    """A number that stands in the code."""

    role = "forget"
    metric = "acc"
    kind = "share"

    def items(self):
        return [{"text": "a"}, {"text": "b"}]

    def score(self, scorer, items):
        return [{"value": VALUE} for _ in items]
'''
OBJECTIVE = '''\
from ilu_cli.registry import objective


@objective(needs="logps", per="sequence")
def scaled(forget):
    """Raise the forget loss, so many times as much."""
    return VALUE * forget.logps
'''
RECIPE = {
    "command": "unlearn",
    "objective": {"name": "scaled"},
    "forget": {"data": "capitals", "batch": 4, "max_length": 24},
    "train": {"steps": 2, "lr": 1e-2},
}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what the plugins of this test registered."""
    for known in (registry.objective, registry.benchmark):
        len(known)
        monkeypatch.setattr(known, "_entries", dict(known._entries))


def edited(file: Path, text: str, value: str, name: str) -> Path:
    """The plug-in with this value; what it registered before is forgotten, as another process has."""
    for known in (registry.objective, registry.benchmark):
        known._entries.pop(name, None)
    file.write_text(text.replace("VALUE", value))
    return file


def test_a_benchmark_whose_code_was_edited_is_scored_again(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    found = []
    for value in ("1.0", "0.0", "0.0"):
        plugin = edited(tmp_path / "fixed.py", BENCHMARK, value, "fixed")
        done = ilu("eval", tiny, "--plugin", plugin, "--bench", "fixed", "--json")
        assert done.code == 0, done.err
        found.append((json.loads(done.out)["results"]["fixed"]["value"], "evaluating" in done.err))
    assert found == [(1.0, True), (0.0, True), (0.0, False)]


@pytest.mark.slow
def test_a_pipeline_runs_what_was_edited_again(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(RECIPE))
    grid = {
        "command": "pipeline",
        "model": {"ref": str(tiny)},
        "methods": {"M": {"recipe": "base.yaml"}},
        "attacks": [{"attack": {"name": "noise"}}],
        "eval": {"benchmarks": ["capitals"], "limit": 4},
        "seeds": [0],
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    made = []
    for value in ("1.0", "-1.0", "-1.0"):
        plugin = edited(tmp_path / "scaled.py", OBJECTIVE, value, "scaled")
        done = ilu("pipeline", "grid.yaml", "--plugin", plugin)
        assert done.code == 0, done.err
        made.append(len(list((tmp_path / "runs").glob("*/metrics.jsonl"))))
    assert made == [1, 2, 2]
