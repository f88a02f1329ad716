"""A graph of runs: what it makes, what it does not make again, and what a failure or a kill leaves behind."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Ilu, present
from workers import when_it_trains

from ilu_cli.recipe.expand import load_pipeline, load_suite
from ilu_cli.recipe.load import digest, shipped
from ilu_cli.runs.results import Number
from ilu_cli.workflows.pipeline.figures import interval
from ilu_cli.workflows.pipeline.worker import nearest

pytestmark = pytest.mark.slow

BASE = {
    "command": "unlearn",
    "objective": {"name": "grad_diff"},
    "forget": {"data": "capitals", "batch": 4, "max_length": 24},
    "retain": {"name": "nll", "data": ["prose"], "batch": 4, "max_length": 24},
    "train": {"steps": 4, "lr": 1e-3},
}
ATTACK = {"name": "finetune", "task": "elements", "steps": 4, "batch": 4}


@pytest.fixture
def grid(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
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


def save(recipe: dict[str, Any]) -> str:
    Path("grid.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return "grid.yaml"


def state(ilu: Ilu, recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ilu("pipeline", recipe, "--dry-run", "--json").out)
    return found


def test_a_pipeline_makes_each_run_once(grid: dict[str, Any], ilu: Ilu, tmp_path: Path) -> None:
    name = save(grid)
    planned = state(ilu, name)
    assert planned["state"] == {"waiting": 1 + 2 + 2 * (1 + 1 + 2)}
    assert not (tmp_path / "runs").exists()
    done = ilu("pipeline", name, "--json", "--markdown", "tables/table.md")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [(r["method"], r["attack"]) for r in found["rows"]] == [
        (m, "finetune") for m in ("original", "GD", "GD+ILU(elements)")
    ]
    assert len(list((tmp_path / "runs").glob("*/manifest.json"))) == 8
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/manifest.json")}
    again = ilu("pipeline", name, "--json")
    assert json.loads(again.out) == found
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/manifest.json")} == before
    table = Path("tables/table.md").read_text()
    assert "| GD+ILU(elements) | finetune |" in table
    wider = save(grid | {"seeds": [0, 1]})
    assert state(ilu, wider)["state"] == {"done": 11, "waiting": 10}


def test_a_failure_stays_alone_and_is_tried_again(grid: dict[str, Any], ilu: Ilu, tmp_path: Path) -> None:
    """NaN after a huge learning rate: the other nodes are done, and the next try makes only what is missing."""
    huge = {"recipe": "base.yaml", "set": {"train.lr": 1e9}}
    name = save(grid | {"environments": [], "methods": {"huge": huge, "GD": {"recipe": "base.yaml"}}})
    done = ilu("pipeline", name, "--json")
    assert done.code == 5
    found = json.loads(done.out)
    assert found["state"] == {"done": 7, "failed": 1, "blocked": 3}
    assert found["failed"][0]["node"] == "seed 0/huge/unlearn"
    assert "not finite" in found["failed"][0]["error"]
    assert [f["status"] for f in found["failed"]] == ["failed", *["blocked"] * 3]
    assert [r["method"] for r in found["rows"]] == ["original", "GD"]
    asked = ilu("pipeline", name, "--state")
    assert asked.code == 0
    assert "failed: seed 0/huge/unlearn: step" in asked.out
    again = ilu("pipeline", name)
    assert again.code == 5
    assert re.findall(r"\] (.*): running", again.err) == ["seed 0/huge/unlearn"]
    save(
        grid
        | {"environments": [], "methods": {"huge": huge | {"set": {"train.lr": 1e-3}}, "GD": {"recipe": "base.yaml"}}}
    )
    healed = ilu("pipeline", name, "--json")
    assert healed.code == 0
    rows = json.loads(healed.out)["rows"]
    assert rows[1]["ra"] == rows[2]["ra"]  # it is now the other method, and its runs were found


def test_the_nearest_step_is_chosen_and_of_those_that_cannot_be_told_from_it_the_last() -> None:
    measured = {
        40: Number(0.90, 0.02),
        60: Number(0.91, 0.02),
        80: Number(0.95, 0.02),
    }
    assert nearest(measured, 0.86) == 60  # 0.05 away, the nearest 0.04, its standard error 0.02; 80 is 0.09 away
    assert nearest({40: measured[40], 80: measured[80]}, 0.86) == 40
    assert nearest(measured, 0.94) == 80
    exact = {1: Number(3.0, None), 2: Number(3.1, None), 4: Number(3.0, None)}
    assert nearest(exact, 3.0) == 4


def test_the_step_of_matching_utility_is_attacked(grid: dict[str, Any], ilu: Ilu, tmp_path: Path) -> None:
    matched = {"recipe": "base.yaml", "set": {"train.points": [1, 2]}}
    match = {"benchmark": "elements", "target": 0.25, "of": "value", "tolerance": 0.001, "keep": "chosen"}
    done = ilu("pipeline", save(grid | {"environments": [], "methods": {"GD": matched}, "match": match}), "--json")
    assert done.code == 0, done.err
    nodes = {n["key"]: n for n in json.loads((tmp_path / "runs/grid/pipeline.json").read_text())["nodes"]}
    chosen = nodes["seed 0/GD/select"]["result"]
    distances = {int(step): abs(value - 0.25) for step, value in chosen["candidates"].items()}
    assert set(distances) == {1, 2, 4}
    assert distances[chosen["step"]] == pytest.approx(abs(chosen["distance"]))
    assert all(distances[chosen["step"]] < d for step, d in distances.items() if step > chosen["step"])
    run = tmp_path / "runs" / nodes["seed 0/GD/unlearn"]["run"]
    label = run.name if chosen["step"] == 4 else f"{run.name}@{chosen['step']}"
    attacked = nodes["seed 0/GD/finetune lr=0.01"]["run"]
    assert json.loads((tmp_path / "runs" / attacked / "manifest.json").read_text())["parents"][0]["id"] == label
    kept = [int(p.name[5:]) for p in run.glob("points/*")]
    assert kept == [step for step in (1, 2) if step == chosen["step"]]
    warned = [o["node"] for o in json.loads(done.out)["off_target"]]
    assert warned == ([] if chosen["within"] else ["seed 0/GD/select"])
    same = ilu(
        "pipeline",
        save(grid | {"name": "again", "environments": [], "methods": {"GD": matched}, "match": match}),
        "--json",
    )
    assert json.loads(same.out)["rows"] == json.loads(done.out)["rows"]  # what was deleted is known by its results
    other = grid["eval"] | {"limit": 11}
    done = ilu(
        "pipeline",
        save(grid | {"name": "other", "environments": [], "methods": {"GD": matched}, "match": match, "eval": other}),
    )
    assert done.code == 5
    assert "was deleted by a pipeline with match.keep: chosen (`ilu runs rm" in done.err


def test_what_is_done_on_other_data_is_not_done(grid: dict[str, Any], ilu: Ilu, tmp_path: Path) -> None:
    """A file that was edited, and a dataset that has come into the data root."""
    rows = [{"prompt": f"{a} plus {b} is", "response": f"{a + b}"} for a in range(6) for b in range(6)]
    Path("sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    mine = {"attack": ATTACK | {"task": "sums.jsonl"}}
    name = save(grid | {"environments": [], "methods": {"GD": {"recipe": "base.yaml"}}, "attacks": [mine]})
    assert ilu("pipeline", name).code == 0
    assert state(ilu, name)["state"] == {"done": 5}
    measured = next(tmp_path.glob("runs/*/nodes/*.json"))
    written = measured.read_text()
    measured.write_text(written.replace('"value": 0', '"value": 1'))
    refused = ilu("pipeline", name, "--state")
    assert refused.code == 3
    assert f"{measured} is damaged" in refused.err
    measured.write_text(written)
    Path("sums.jsonl").write_text("".join(json.dumps(r | {"response": "9"}) + "\n" for r in rows))
    assert state(ilu, name)["state"] == {"done": 3, "waiting": 2}
    done = ilu("pipeline", name, "--json")
    assert json.loads(done.out)["state"] == {"done": 5}
    theirs = tmp_path / "data" / "elements"
    theirs.mkdir(parents=True)
    (theirs / "train.jsonl").write_text("")
    name = save(grid | {"environments": [], "methods": {"GD": {"recipe": "base.yaml"}}})
    assert ilu("pipeline", name).code == 0
    assert state(ilu, name)["state"] == {"done": 7}
    found = json.loads(ilu("pipeline", name, "--dry-run", "--json", "--data-root", tmp_path / "data").out)
    assert found["state"] == {"done": 3, "waiting": 4}


def test_all_are_attacked_on_the_same_rows(grid: dict[str, Any], ilu: Ilu, tmp_path: Path) -> None:
    """Those that were in nobody's environment."""
    done = ilu("pipeline", save(grid), "--json")
    rows = json.loads(done.out)["rows"]
    data = [json.loads((tmp_path / "runs" / r["runs"][0] / "manifest.json").read_text())["data"] for r in rows]
    attacked = [[d["fingerprint"] for d in found if d["role"] == "attack"] for found in data]
    assert attacked[0] == attacked[1] == attacked[2] != []
    plain = ilu("attack", grid["model"]["ref"], "--task", "elements", "--steps", 2, "--dry-run", "--json")
    assert json.loads(plain.out)["data"][0]["fingerprint"] != attacked[0][0]


def test_the_state_says_what_another_process_is_at(grid: dict[str, Any], ilu: Ilu, tmp_path: Path) -> None:
    name = save(grid)
    assert ilu("pipeline", name).code == 0
    path = tmp_path / "runs/grid/pipeline.json"
    found = json.loads(path.read_text())
    run = next(n for n in found["nodes"] if n["key"] == "seed 0/GD/finetune lr=0.01")
    shutil.rmtree(tmp_path / "runs" / run["run"])
    run["status"] = "running"
    path.write_text(json.dumps(found))
    assert state(ilu, name)["state"] == {"done": 10, "waiting": 1}  # nobody is at it: the process was killed
    with (tmp_path / "runs/grid/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert state(ilu, name)["state"] == {"done": 10, "running": 1}


def test_ctrl_c_stops_and_the_next_call_goes_on(grid: dict[str, Any], tmp_path: Path) -> None:
    slow = grid | {
        "environments": [],
        "methods": {"GD": {"recipe": "base.yaml", "set": {"train.steps": 1000}}},
        "attacks": grid["attacks"],
    }
    args = [sys.executable, "-m", "ilu_cli", "pipeline", save(slow)]
    heard = functools.partial(
        signal.signal, signal.SIGINT, signal.default_int_handler
    )  # jobs in the background are deaf
    victim = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    lines = []
    for line in present(victim.stderr):
        lines.append(line)
        if "step 100/1000" in line:
            break
    victim.send_signal(signal.SIGINT)
    _, err = victim.communicate(timeout=60)
    assert victim.returncode == 130, err
    assert "Traceback" not in err
    state = sorted((tmp_path / "runs").glob("unlearn-*/state/step-*.pt"))
    assert len(state) == 2  # the newest, and the one before
    nodes = json.loads((tmp_path / "runs/grid/pipeline.json").read_text())["nodes"]
    assert [n["status"] for n in nodes][:4] == ["done", "done", "done", "waiting"]
    assert int(state[-1].stem[5:]) >= 100


def test_kills_lose_nothing(tmp_path: Path) -> None:
    """As many as there is time for; docs/bench/kill_pipeline.py does twenty."""
    script = Path(__file__).parents[3] / "docs" / "bench" / "kill_pipeline.py"
    done = subprocess.run([sys.executable, script, "--kills", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 finished runs lost, 0 tables or weights differ" in done.stdout


def test_a_killed_worker_fails_its_node_and_is_replaced(grid: dict[str, Any], ilu: Ilu, tmp_path: Path) -> None:
    """The out-of-memory killer takes one process; the pipeline goes on."""
    slow = {"recipe": "base.yaml", "set": {"train.steps": 1000, "train.save_every": 20}}
    killed = when_it_trains(tmp_path / "runs", lambda pid: os.kill(pid, signal.SIGKILL))
    done = ilu(
        "pipeline",
        save(grid | {"environments": [], "methods": {"slow": slow, "GD": {"recipe": "base.yaml"}}}),
        "--json",
    )
    killed.join()
    assert done.code == 5, done.err
    found = json.loads(done.out)
    assert found["state"] == {"done": 7, "failed": 1, "blocked": 3}
    assert "killed by SIGKILL" in found["failed"][0]["error"]


def test_a_suite_reports_beside_the_original(grid: dict[str, Any], ilu: Ilu, tiny: Path, tmp_path: Path) -> None:
    Path("base.yaml").write_text(yaml.safe_dump(BASE | {"model": {"ref": str(tiny)}}))
    suite = {"command": "suite", "attacks": grid["attacks"], "eval": grid["eval"]}
    Path("mine.yaml").write_text(yaml.safe_dump(suite))
    run = ilu("unlearn", "--recipe", "base.yaml").out.strip()
    done = ilu("attack", run, "--suite", "mine.yaml", "--seeds", 2, "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    assert [(r["method"], r["seeds"]) for r in rows] == [("original", [0, 1]), (Path(run).name, [0, 1])]
    for row in rows:
        best = min(row["choices"], key=lambda c: c["ra"])
        assert row["choice"] == best["choice"]
        assert row["ra"]["mean"] == pytest.approx(best["ra"]) == pytest.approx(sum(row["ra"]["values"]) / 2)
        assert row["lowest"] == min(row["worst"]["values"]) <= row["ra"]["mean"]
    wider = ilu("attack", run, "--suite", "mine.yaml", "--seeds", 3, "--dry-run", "--json")
    assert json.loads(wider.out)["state"] == {"done": 10, "waiting": 4}
    alone = ilu("attack", run, "--suite", "mine.yaml", "--seeds", 2, "--no-reference", "--json")
    assert alone.code == 0, alone.err
    assert json.loads(alone.out)["rows"] == rows[1:]
    seeded = ilu("attack", run, "--suite", "mine.yaml", "--seed", 0)
    assert "--seed cannot change a suite" in seeded.err
    mixed = ilu("attack", run, "--suite", "mine.yaml", "--lr", "1e-4")
    assert mixed.code == 2
    assert "--lr cannot change a suite" in mixed.err
    assert ilu("attack", run, "--seeds", 2).code == 2


def test_what_is_wrong_in_a_grid_is_said_with_its_line(grid: dict[str, Any], ilu: Ilu, tmp_path: Path) -> None:
    wrong = grid | {
        "methods": {"GD": {"recipe": "base.yaml", "set": {"train.lrr": 1}}, "X": {"recipe": "quickstart-rmo"}},
        "attacks": [{"attack": {"name": "finetun"}}, {"attack": ATTACK, "each": {"task": ["sst3"]}}],
    }
    done = ilu("pipeline", save(wrong))
    assert done.code == 2
    for text in (
        "Did you mean 'lr'",
        "Did you mean 'quickstart-rmu'",
        "'finetune'",
        "Did you mean 'sst2'",
    ):
        assert text in done.err
    lines = Path("grid.yaml").read_text().splitlines()
    assert f"grid.yaml:{1 + next(i for i, line in enumerate(lines) if 'lrr' in line)}: methods.GD.train.lrr" in done.err
    nothing = ilu("pipeline", save({k: v for k, v in grid.items() if k != "attacks"}))
    assert "nothing to attack with" in nothing.err
    twice = ilu("pipeline", save(grid | {"environments": ["elements", "elements"], "seeds": [1, 1]}))
    assert "environments.1: elements stands twice" in twice.err
    assert "seeds.1: 1 stands twice" in twice.err
    taken = ilu("pipeline", save(grid | {"environments": [], "methods": {"original": {"recipe": "base.yaml"}}}))
    assert "methods.original: is what the reference line is called" in taken.err
    useless = ilu("pipeline", save(grid | {"match": {"benchmark": "capitals", "target": 1}}))
    assert "'capitals' measures what is to be forgotten" in useless.err
    again = [{"attack": {"name": "relearn", "k": k}, "best_of": {"lr": [lr]}} for k, lr in ((10, 1e-4), (60, 1e-5))]
    same = ilu("pipeline", save(grid | {"attacks": again}))
    assert "'relearn' stands twice; what is to be told apart belongs under `each`" in same.err
    Path("mine.yaml").write_text(yaml.safe_dump({"command": "suite", "attacks": again, "eval": grid["eval"]}))
    assert "'relearn' stands twice" in ilu("attack", grid["model"]["ref"], "--suite", "mine.yaml").err
    copies = ilu("pipeline", save(grid | {"attacks": [{"attack": ATTACK, "each": {"steps": [4, 4]}}]}))
    assert "'finetune steps=4' makes the same run twice" in copies.err
    unplaced = ilu("pipeline", save(grid | {"environments": []}))
    assert "there are no environments" in unplaced.err
    unread = ilu("pipeline", save(grid | {"methods": {"GD": {"recipe": "base.yaml"}}}))
    assert "environments: are read by no method" in unread.err


@pytest.mark.parametrize("name", [n for n in shipped() if n.startswith(("suite-", "grid-"))])
def test_every_shipped_grid_makes_valid_recipes(name: str) -> None:
    if name.startswith("suite-"):
        assert load_suite(name)[1]
    else:
        pipeline = load_pipeline(name, [])
        assert len({digest(m.recipe) for m in pipeline.methods}) == len(pipeline.methods)


@pytest.mark.parametrize(
    ("values", "errors", "low", "high"),
    [
        ([0.5, 0.6, 0.7], [], 0.6 - 4.302653 * 0.1 / 3**0.5, 0.6 + 4.302653 * 0.1 / 3**0.5),  # t(0.975, 2)
        ([0.5, 0.7], [], 0.6 - 12.706205 * 0.1, 0.6 + 12.706205 * 0.1),  # t(0.975, 1)
        ([0.5], [0.04], 0.5 - 1.959964 * 0.04, 0.5 + 1.959964 * 0.04),
        ([0.5], [], None, None),
    ],
)
def test_intervals(values: list[float], errors: Any, low: Any, high: Any) -> None:
    found = present(interval(values, errors, share=False))
    assert found["low"] == pytest.approx(low) and found["high"] == pytest.approx(high)
