"""A graph of runs: what it makes, what it does not make again, and what a failure or a kill leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

BASE = {
    "command": "unlearn",
    "objective": {"name": "grad_diff"},
    "forget": {"data": "capitals", "batch": 4, "max_length": 24},
    "retain": {"name": "nll", "data": ["prose"], "batch": 4, "max_length": 24},
    "train": {"steps": 4, "lr": 1e-3},
}
ATTACK = {"name": "finetune", "task": "elements", "steps": 4, "batch": 4}


@pytest.fixture
def grid(tiny, tmp_path, monkeypatch) -> dict:
    """A pipeline of one method with and without ILU; write it with `save`."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    return {
        "command": "pipeline",
        "model": {"ref": str(tiny)},
        "environments": ["elements"],
        "methods": {
            "GD": {"recipe": "base.yaml"},
            "GD+ILU": {"recipe": "base.yaml", "set": {"regularizers": [{"name": "irm", "batch": 4}]}},
        },
        "attacks": [{"attack": ATTACK, "best_of": {"lr": [1e-4, 1e-2]}}],
        "eval": {"benchmarks": ["capitals", "elements"], "limit": 12},
        "seeds": [0],
    }


def save(recipe: dict) -> str:
    Path("grid.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return "grid.yaml"


def state(ilu, recipe: str) -> dict:
    return json.loads(ilu("pipeline", recipe, "--dry-run", "--json").out)


def test_a_pipeline_makes_each_run_once(grid, ilu, tmp_path):
    name = save(grid)
    planned = state(ilu, name)
    assert planned["state"] == {"waiting": 1 + 2 + 2 * (1 + 1 + 2)}
    assert not (tmp_path / "runs").exists()
    done = ilu("pipeline", name, "--json", "--markdown", "table.md")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [(r["method"], r["attack"]) for r in found["rows"]] == [
        (m, "finetune") for m in ("original", "GD", "GD+ILU(elements)")
    ]
    runs = sorted(p.name for p in (tmp_path / "runs").glob("*/manifest.json"))
    assert len(list((tmp_path / "runs").glob("*/manifest.json"))) == 8
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/manifest.json")}
    again = ilu("pipeline", name, "--json")
    assert json.loads(again.out) == found
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/manifest.json")} == before
    assert runs
    table = Path("table.md").read_text()
    assert "| GD+ILU(elements) | finetune |" in table
    wider = save(grid | {"seeds": [0, 1]})
    assert state(ilu, wider)["state"] == {"done": 11, "waiting": 10}
