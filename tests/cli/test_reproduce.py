"""`ilu reproduce`: two processes come to the same bytes; what differs is found where it began."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu
from safetensors.torch import load_file, save_file
from test_chain import ATTACK, rmu

from ilu_cli.runs import ledger
from ilu_cli.runs.files import sha256
from ilu_cli.runs.store import Run, Store
from ilu_cli.workflows.push import plan as push_plan

pytestmark = pytest.mark.slow


def in_processes(commands: list[list[str]], tmp_path: Path) -> list[Run]:
    """The run of each command, in a process of its own, with other seeds of Python's hashes and in other folders."""
    for i, command in enumerate(commands):
        env = os.environ | {"PYTHONHASHSEED": str(i), "ILU_CACHE": str(tmp_path / f"cache-{i}")}
        done = subprocess.run([sys.executable, "-m", "ilu_cli", *command], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return Store().runs()


def files(run: Run) -> dict[str, str]:
    """The hashes of what a run has come to."""
    kept = {p.name: sha256(p) for p in run.checkpoint.iterdir()}
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return kept | {"losses": json.dumps([{k: v for k, v in r.items() if k != "seconds"} for r in rows])}


def test_two_processes_come_to_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    first, second = in_processes([rmu(tiny), rmu(tiny)], tmp_path)
    assert first.id != second.id
    assert files(first) == files(second)


@pytest.mark.real
def test_two_runs_of_the_quickstart_are_the_same_bytes(ilu: Ilu) -> None:
    quick = ["unlearn", "--steps", "3", "--irm-env", "gsm8k", "--source", "builtin", "--irm-batch", "2"]
    for _ in range(2):
        done = ilu(*quick)
        assert done.code == 0, done.err
    first, second = Store().runs()
    assert files(first) == files(second)
    assert "identical" in ilu("reproduce", first.id, "--with", second.id).out


Made = Callable[..., Run]


@pytest.fixture
def made(ilu: Ilu) -> Made:
    def run(*args: object) -> Run:
        done = ilu(*args)
        assert done.code == 0, done.err
        return Store().get(done.out.splitlines()[-1])

    return run


def again(ilu: Ilu, *args: object) -> dict[str, Any]:
    done = ilu("reproduce", *args, "--json")
    found: dict[str, Any] = json.loads(done.out)
    assert done.code == (4 if found["found"] == "different" else 0), done.err
    return found


def test_an_unlearned_model_its_attack_and_a_sum_are_made_again(ilu: Ilu, made: Made, tiny: Path) -> None:
    u = made(*rmu(tiny))
    assert ilu("eval", u.id, "--limit", "6").code == 0
    a = made("attack", u.id, *ATTACK)
    p = made("taskvec", "apply", u.id, "--alpha", "-1")
    for old, compared in ((u, "rows"), (a, "losses"), (p, "weights")):
        found = again(ilu, old.id)
        assert found["found"] == "identical", found["first"]
        assert next(s for s in found["stages"] if s["stage"] == compared)["compared"] > 0
        new = Store().get(found["again"])
        assert new.manifest.result["reproduces"] == {"run": old.id, "found": "identical"}
        assert new.manifest.weights == old.manifest.weights
    reference = next(r for r in Store().runs() if r.manifest.wanted)
    assert again(ilu, reference.id)["found"] == "identical"


def test_an_attack_stays_clear_of_the_same_environment(ilu: Ilu, made: Made, tiny: Path) -> None:
    small = ["--irm-env", "sst2", "--source", "builtin", "--irm-batch", "2", "--set", "regularizers.0.max_length=24"]
    u = made(*rmu(tiny), *small)
    a = made("attack", u.id, "--task", "sst2", "--source", "builtin", *ATTACK[2:])
    reference = next(r for r in Store().runs() if r.manifest.wanted)
    shutil.rmtree(u.path)
    found = again(ilu, reference.id)  # the run whose environment it is, is gone
    assert found["found"] == "identical", found["first"]
    gone = ilu("reproduce", a.id)
    assert gone.code == 3
    assert "--parent names" in gone.err


def test_measuring_again(ilu: Ilu, made: Made, tiny: Path) -> None:
    u = made(*rmu(tiny))
    assert ilu("eval", u.id, "--limit", "6").code == 0
    for model in (u.id, str(tiny)):
        found = again(ilu, model, "--eval")
        assert found["found"] == "identical"
        assert {s["stage"]: s["compared"] > 0 for s in found["stages"]} == {"metrics": True, "rows": True}
    path = u.eval / "capitals.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"value": 0.9}))
    u.add("eval")
    found = again(ilu, u.id, "--eval")
    assert found["found"] == "different"
    assert (found["first"]["stage"], found["first"]["where"]) == ("metrics", "capitals: acc")
    assert not list(u.path.rglob("*reproduce*"))
    for file in u.eval.glob("*.json"):  # as results of before: how they were asked is not kept
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "asked"}))
    u.add("eval")
    nothing = ilu("reproduce", u.id, "--eval")
    assert nothing.code == 2 and "nothing can be measured again: capitals: how it was asked" in nothing.err
    assert ilu("reproduce", u.id, "--eval", "--out", "x").code == 2
    unmeasured = ilu("reproduce", made(*rmu(tiny)).id, "--eval")
    assert unmeasured.code == 2


def listed_anew(run: Run) -> None:
    """Make a run that was changed by hand one that was written so."""
    run.finish()
    ledger.add(run.path, *ledger.LISTED)


def test_where_two_runs_part(ilu: Ilu, made: Made, tiny: Path) -> None:
    first, second = made(*rmu(tiny)), made(*rmu(tiny))
    name = "model.layers.1.mlp.down_proj.weight"
    weights, before = load_file(second.checkpoint / "model.safetensors"), load_file(tiny / "model.safetensors")
    step = weights[name] - before[name]
    for share, verdict in ((0.01, "within tolerance"), (0.5, "different")):
        changed = weights | {name: weights[name] + share * step}
        save_file(changed, second.checkpoint / "model.safetensors", metadata={"format": "pt"})
        listed_anew(second)
        found = again(ilu, first.id, "--with", second.id)
        assert found["found"] == verdict
        assert (found["first"]["stage"], found["first"]["where"]) == ("weights", name)
        assert found["first"]["by"] == pytest.approx(share, rel=1e-3)
    assert again(ilu, first.id, "--with", second.id, "--tolerance", "weights=0.6")["found"] == "within tolerance"
    lines = (second.path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    lines[2] = json.dumps(row | {"forget": 3 * row["forget"]})
    (second.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    listed_anew(second)
    found = again(ilu, first.id, "--with", second.id)
    assert (found["beyond"]["stage"], found["beyond"]["where"]) == ("losses", "step 3: forget")
    other = made(*rmu(tiny), "--seed", "1")
    found = again(ilu, first.id, "--with", other.id)
    assert (found["first"]["stage"], found["first"]["where"]) == ("recipe", "seed")
    assert ilu("reproduce", first.id, "--tolerance", "weights=x").code == 2
    assert ilu("reproduce", first.id, "--tolerance", "loss=1").code == 2


def test_other_data_is_another_run_before_it_begins(ilu: Ilu, made: Made, tiny: Path, tmp_path: Path) -> None:
    rows = tmp_path / "facts.jsonl"
    rows.write_text("".join(json.dumps({"text": f"Fact {i} is known to all."}) + "\n" for i in range(8)))
    run = made(*rmu(tiny), "--forget", rows)
    rows.write_text(rows.read_text() + json.dumps({"text": "One more."}) + "\n")
    found = again(ilu, run.id)
    assert (found["found"], found["again"], found["first"]["stage"]) == ("different", None, "data")
    assert len(Store().runs()) == 1
    dry = json.loads(ilu("reproduce", run.id, "--dry-run", "--json").out)
    assert dry["reproduces"] == run.id and dry["stages"][0]["different"] == 1


def test_a_pushed_model_carries_what_it_takes(ilu: Ilu, made: Made, tiny: Path, tmp_path: Path) -> None:
    run = made(*rmu(tiny))
    pushed, there = push_plan(run, "me/model"), tmp_path / "model"
    for name, path in pushed.files.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, there / name)
    (there / "README.md").write_text(pushed.card)
    assert "hf download me/model --local-dir model\nilu reproduce model" in pushed.card
    assert str(tiny.parent) not in pushed.card.partition("## Reproduce")[2]
    shutil.rmtree(run.path)
    assert ilu("reproduce", there).code == 3  # nobody knows where the folder lies that it was made from
    found = again(ilu, there, "--parent", tiny)
    assert found["found"] == "identical"
    (there / "config.json").write_text((there / "config.json").read_text() + " ")
    changed = ilu("reproduce", there, "--parent", tiny)
    assert changed.code == 3
    assert "config.json was changed" in changed.err


def test_what_cannot_be_made_again_is_named(ilu: Ilu, made: Made, tiny: Path, tmp_path: Path) -> None:
    run = made(*rmu(tiny))
    run.manifest.status = "running"
    run.save()
    assert ilu("reproduce", run.id).code == 3
    folder = Store().root / "grid"
    folder.mkdir()
    (folder / "pipeline.json").write_text(json.dumps({"nodes": [{"run": "unlearn-x"}, {"run": None}]}))
    done = ilu("reproduce", "grid")
    assert done.code == 2
    assert "ilu reproduce unlearn-x" in done.err
    (tmp_path / "README.md").write_text("a card of somebody else")
    assert "tells of no run" in ilu("reproduce", tmp_path).err
