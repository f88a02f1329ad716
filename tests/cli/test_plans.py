"""What `--dry-run` prints, of every command that has it: the keys of the JSON form, and the words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Ilu
from test_chain import ATTACK, npo, rmu
from typer.main import get_command

from ilu_cli.cli.app import app

pytestmark = pytest.mark.slow

RUN = ["command", "recipe", "recipe_sha256", "model", "parents", "data"]
TRAINING = ["steps", "trainable_parameters", "peak_memory_bytes", "memory_bytes"]
CONTENT = ["content", "warnings"]
KEYS = {
    "unlearn": {*RUN, *TRAINING, *CONTENT},
    "attack": {*RUN, *TRAINING, *CONTENT, "asked_sha256"},
    "attack --kind quantize": {*RUN, "asked_sha256"},
    "eval": {*RUN},
    "taskvec": {"recipe", "recipe_sha256", "checkpoints"},
    "taskvec apply": {*RUN},
    "pipeline": {"command", "name", "state", "disk_bytes", "nodes"},
    "attack --suite": {"command", "name", "state", "disk_bytes", "nodes"},
    "push": {"run", "repository", "private", "files"},
    "reproduce": {*RUN, *TRAINING, *CONTENT, "reproduces", "stages"},
}
"""As they are promised to scripts."""
PARENT = {"role", "kind", "id", "path", "weights", "digest"}


def calls(run: str) -> dict[str, list[Any]]:
    """A call of every command that has a `--dry-run`, on one run."""
    return {
        "attack": ["attack", run, *ATTACK],
        "attack --kind quantize": ["attack", run, "--kind", "quantize", "--set", "eval.limit=4"],
        "eval": ["eval", run, "--bench", "capitals", "--limit", 4],
        "taskvec": ["taskvec", run],
        "taskvec apply": ["taskvec", "apply", run, "--alpha", "-1"],
        "attack --suite": ["attack", run, "--suite", "suite.yaml"],
        "pipeline": ["pipeline", "grid.yaml"],
        "push": ["push", run, "somebody/model"],
        "reproduce": ["reproduce", run],
    }


@pytest.fixture
def files(tiny: Path, tmp_path: Path) -> None:
    """A suite and a pipeline in the working folder."""
    attack = {"name": "finetune", "task": "elements", "steps": 2}
    measured = {"benchmarks": ["capitals"], "limit": 4}
    base = {"model": {"ref": str(tiny)}, "objective": {"name": "grad_diff"}, "forget": {"data": ["capitals"]}}
    kept = {"retain": {"name": "nll", "data": ["elements"]}, "train": {"steps": 2}}
    grid = {"command": "pipeline", "model": base["model"], "methods": {"GD": {"recipe": "base.yaml"}}}
    for name, recipe in {
        "base.yaml": base | kept,
        "suite.yaml": {"command": "suite", "attacks": [{"attack": attack}], "eval": measured},
        "grid.yaml": grid | {"attacks": [{"attack": attack}], "eval": measured},
    }.items():
        (tmp_path / name).write_text(yaml.safe_dump(recipe))


@pytest.mark.usefixtures("files")
def test_every_plan_has_its_keys(tiny: Path, ilu: Ilu) -> None:
    found = {"unlearn": json.loads(ilu(*npo(tiny), "--dry-run", "--json").out)}
    run = Path(ilu(*rmu(tiny, 1)).out.splitlines()[-1]).name
    words = {}
    for name, args in calls(run).items():
        done = ilu(*args, "--dry-run", "--json")
        assert done.code == 0, (name, done.err)
        found[name], words[name] = json.loads(done.out), ilu(*args, "--dry-run").out
    assert {name: set(plan) for name, plan in found.items()} == KEYS
    for name, plan in found.items():
        if "model" not in plan:
            continue
        assert plan["command"] == plan["recipe"]["command"], name
        assert set(plan["model"]) == {"ref", "kind", "folder", "parameters"}
        assert all(set(p) - {"alpha"} == PARENT for p in plan["parents"]), name
        assert all({"role", "name", "source", "rows", "fingerprint"} <= set(d) for d in plan["data"]), name
    apply = found["taskvec apply"]
    assert [(p["role"], p.get("alpha")) for p in apply["parents"]] == [
        ("onto", None), ("vector end", -1.0), ("vector start", None)
    ]  # fmt: skip
    assert {r: set(s) for r, s in found["taskvec"]["checkpoints"].items()} == {
        r: {"id", "folder"} for r in ("original", "unlearned")
    }
    assert words["taskvec"] == f"original   {tiny}\nunlearned  {run}\n"
    nodes = found["pipeline"]["nodes"]
    assert all(set(n) == {"key", "command", "status", "run", "tags"} for n in nodes)
    lines = words["pipeline"].splitlines()
    assert lines[:-1] == [f"{n['status']:<8} {n['command']:<8} {n['key']}" for n in nodes]
    assert lines[-1].startswith(f"{len(nodes)} nodes: {len(nodes)} waiting; up to 0.0 GB of disk for what is left")
    assert [w["id"] for w in found["attack"]["warnings"]] == ["rows-overlap"]  # elements are retained, too
    text = words["attack"].partition("\n\n")[2].splitlines()
    assert [line[:12].strip() for line in text] == [
        "model", "steps", "trainable", "memory", "data", "warning", "parent", "recipe"
    ]  # fmt: skip


def test_every_command_with_a_dry_run_is_looked_at() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    dry = {name.replace("-", " ") for name, c in commands.items() if any("--dry-run" in p.opts for p in c.params)}
    assert dry == {name.partition(" --")[0] for name in KEYS}
