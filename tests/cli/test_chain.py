"""The four commands on a tiny model, as a user types them; resuming, several processes, and full disks."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import LAYERS, RMU, Ilu
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

SMALL = ["--set", "forget.batch=4", "--set", "retain.batch=4", "--set", "forget.max_length=24", "--set",
         "retain.max_length=24"]  # fmt: skip
ATTACK = ["--task", "elements", "--steps", "4", "--set", "attack.batch=4", "--set", "eval.limit=12"]


def rmu(tiny: Path, steps: int = 4) -> list[str]:
    return ["unlearn", *RMU, *SMALL, "--model", str(tiny), "--steps", str(steps)]


def npo(tiny: Path, steps: int = 4) -> list[str]:
    return ["unlearn", "--method", "npo", *SMALL, "--model", str(tiny), "--steps", str(steps)]


def process(args: list[str], *, launch: int = 0, **kw: Any) -> subprocess.CompletedProcess[str]:
    """Run ilu as a user does, without a terminal; `launch` processes under `accelerate launch`."""
    head = [sys.executable, "-m"]
    if launch:
        head += ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(launch), "--num_machines", "1",
                 "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | kw.pop("env", {})
    return subprocess.run([*head, "ilu_cli", *args], capture_output=True, text=True, env=env, timeout=300, **kw)


def test_the_chain(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    """unlearn → attack → eval → taskvec, composing by the path that `unlearn` prints and by lineage."""
    done = ilu(*rmu(tiny), "--irm-env", "elements", "--set", "retain.data=[prose]", "--irm-batch", 2)
    assert done.code == 0, done.err
    path = Path(done.out.splitlines()[-1])
    assert path.parent == tmp_path / "runs"
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert {d["role"]: d["source"] for d in manifest["data"]} == dict.fromkeys(
        ("forget", "retain", "elements"), "builtin"
    )
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert {"forget", "retain", "irm", "D[elements]"} <= set(rows[0])
    assert rows[0]["irm"] == pytest.approx(rows[0]["D[elements]"] ** 2, rel=1e-5)
    assert path.name in (path / "README.md").read_text()

    model = AutoModelForCausalLM.from_pretrained(path / "checkpoint")  # plain transformers
    before = AutoModelForCausalLM.from_pretrained(tiny)
    changed = {n for (n, p), q in zip(model.named_parameters(), before.parameters()) if not p.equal(q)}
    assert changed == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    assert AutoTokenizer.from_pretrained(path / "checkpoint")("Paris")["input_ids"]

    attacked = ilu("attack", *ATTACK)
    assert attacked.code == 0, attacked.err
    assert "builtin stand-ins" in attacked.out
    evaluated = ilu("eval", "--limit", 12, "--json")
    assert evaluated.code == 0, evaluated.err
    stages = json.loads(evaluated.out)["lineage"]
    assert [s["stage"] for s in stages] == ["original", "unlearned", "attacked"]
    for stage in stages:
        for summary in stage["results"].values():
            assert summary["stderr"] > 0
            assert summary["data"]["source"] == "builtin"
    angles = ilu("taskvec", "--json")
    assert angles.code == 0, angles.err
    found = json.loads(angles.out)
    assert set(found["checkpoints"]) == {"original", "unlearned", "finetuned", "attacked"}
    assert {"u·ft", "u·u→ft", "ft·u→ft"} == set(found["groups"]["all"]["cosines"])
    assert set(found["groups"]) == {"all", "other", *(f"layer {i}" for i in range(LAYERS))}
    runs = json.loads(ilu("runs", "--json").out)["runs"]
    assert [r["command"] for r in runs] == ["unlearn", "attack", "attack"]


def test_attack_follows_the_protocol(tiny: Path, ilu: Ilu) -> None:
    """Evaluated at 0, first quartile, median and final; RA is the mean of the last three; the original runs too."""
    ilu(*rmu(tiny))
    done = ilu("attack", *ATTACK, "--steps", 8, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [p["steps"] for p in found["points"]] == [0, 2, 4, 8]
    fq = [p["value"] for p in found["fq"]]
    accuracy = [p["eval"]["capitals"]["value"] for p in found["points"]]
    assert fq == pytest.approx([1 - a for a in accuracy])
    assert found["ra"] == pytest.approx(sum(fq[1:]) / 3)
    assert found["reference"]["parent"] != found["parent"]
    again = ilu("attack", *ATTACK, "--steps", 8, "--json")
    second = json.loads(again.out)
    assert second["reference"]["run"] == found["reference"]["run"]  # the reference line is run once
    assert [p["eval"]["capitals"]["value"] for p in second["points"]] == accuracy


def test_a_shell_pipeline_without_a_terminal(tiny: Path, tmp_path: Path) -> None:
    script = f"""set -e
    RUN=$({sys.executable} -m ilu_cli {" ".join(f"'{a}'" for a in rmu(tiny, 2))} 2> log)
    {sys.executable} -m ilu_cli attack "$RUN" {" ".join(f"'{a}'" for a in ATTACK)} --no-reference --json 2>> log"""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, (tmp_path / "log").read_text()
    assert json.loads(done.stdout)["points"]
    assert "step 2/2" in (tmp_path / "log").read_text()
    assert "\x1b" not in (tmp_path / "log").read_text()


def test_dry_run_prices_and_runs_nothing(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    facts = json.loads(ilu(*npo(tiny), "--dry-run", "--json").out)
    assert facts["steps"] == 4
    assert facts["trainable_parameters"] == facts["model"]["parameters"] > 0
    assert facts["peak_memory_bytes"] > 16 * facts["trainable_parameters"]
    assert [d["role"] for d in facts["data"]] == ["forget", "retain", "retain"]
    assert facts["parents"][0]["weights"]
    assert not (tmp_path / "runs").exists()
    text = ilu(*npo(tiny), "--dry-run").out
    assert "trainable" in text
    assert "capitals (builtin)" in text
    ilu(*rmu(tiny, 1))
    assert json.loads(ilu("attack", *ATTACK, "--dry-run", "--json").out)["steps"] == 4


def test_killed_runs_resume_to_the_same_bits(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    """kill -9 in the middle, --resume, and the weights are those of a run that was never stopped."""
    args = [*npo(tiny, 40), "--set", "train.save_every=3"]
    whole = ilu(*args)
    assert whole.code == 0, whole.err
    victim = subprocess.Popen(
        [sys.executable, "-m", "ilu_cli", *args, "--out", "killed"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 8:
        assert victim.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    refused = ilu("eval", "killed")
    assert refused.code == 3
    assert "was not finished" in refused.err
    done = ilu("unlearn", "killed", "--resume")
    assert done.code == 0, done.err
    assert "continuing after step" in done.err
    a, b = (load_file(Path(p) / "checkpoint" / "model.safetensors") for p in (whole.out.strip(), "killed"))
    assert all(a[n].equal(b[n]) for n in a)
    assert not (tmp_path / "killed" / "state").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(tiny: Path, tmp_path: Path) -> None:
    victim = subprocess.Popen(
        [sys.executable, "-m", "ilu_cli", *npo(tiny, 400), "--out", "stopped"], stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert victim.poll() is None
        time.sleep(0.01)
    victim.send_signal(signal.SIGINT)
    _, err = victim.communicate(timeout=60)
    assert victim.returncode == 130
    assert "--resume" in err
    assert list((tmp_path / "stopped" / "state").glob("step-*.pt"))


def test_two_processes_take_the_steps_of_two_micro_batches(tiny: Path, ilu: Ilu) -> None:
    """As a user launches them; tests/workflows/test_sharded.py does so with many other recipes in one launch."""
    common = [*rmu(tiny, 3), "--irm-env", "elements", "--set", "retain.data=[prose]",
              "--irm-batch", "4", "--set", "train.precision=fp32", "--set", "train.lr=1e-3"]  # fmt: skip
    one = ilu(*common, "--set", "train.accumulation=2", "--out", "one")
    assert one.code == 0, one.err
    two = process([*common, "--out", "two"], launch=2)
    assert two.returncode == 0, two.stderr
    assert two.stdout.strip().splitlines()[-1] == "two"
    for a, b in zip(*((Path(n) / "metrics.jsonl").read_text().splitlines() for n in ("one", "two"))):
        a, b = json.loads(a), json.loads(b)
        assert a.keys() == b.keys()
        assert {k: v for k, v in a.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in b.items() if k != "seconds"}, rel=1e-5, abs=1e-7
        )
    weights = [load_file(Path(n) / "checkpoint" / "model.safetensors") for n in ("one", "two")]
    for name in weights[0]:
        assert_close(weights[0][name], weights[1][name], rtol=1e-5, atol=1e-5)
    assert json.loads((Path("two") / "manifest.json").read_text())["world_size"] == 2


def test_a_full_disk_is_said_to_be_full_and_harms_nothing(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    first = Path(ilu(*rmu(tiny, 1)).out.strip())
    before = {p: p.read_bytes() for p in first.rglob("*") if p.is_file()}

    def limit() -> None:  # as a full disk: no file may grow beyond 20 kB
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = process(rmu(tiny, 2), preexec_fn=limit)
    assert done.returncode == 5
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p: p.read_bytes() for p in first.rglob("*") if p.is_file()} == before
    latest = ilu("attack", "--dry-run", "--json", *ATTACK)
    assert json.loads(latest.out)["parents"][0]["id"] == first.name  # the broken run is not taken
