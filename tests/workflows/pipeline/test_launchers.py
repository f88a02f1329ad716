"""Slurm (submitit's processes on this machine) and Ray (one that is started here) do what this machine does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from conftest import Ilu, present
from test_pipeline import BASE
from workers import when_it_trains

from ilu_cli.runs.lock import HOLDER, let_go
from ilu_cli.runs.store import Store
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.launchers import Launch
from ilu_cli.workflows.pipeline.launchers.away import Away, Errand
from ilu_cli.workflows.pipeline.worker import Answer, Job

pytestmark = pytest.mark.slow

ATTACK = {"name": "finetune", "task": "elements", "steps": 3, "batch": 4}
HERE = ("--launcher", "slurm", "--launcher-options", "cluster=local")
LONG = 600  # steps, of which some are done before they are disturbed, and not all


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of one core, which `--launcher ray` finds in this process.

    Its workers have no less of the cores than the suite's own processes, beside which they would wait for minutes.
    """
    equal = {"worker_niceness": 0}
    ray.init(
        num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False, _system_config=equal
    )
    yield
    ray.shutdown()


@pytest.fixture
def grid(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    """A pipeline of one method and one attack: five nodes, three of them runs."""
    write(BASE, "base.yaml")
    return {
        "command": "pipeline",
        "model": {"ref": str(tiny)},
        "methods": {"GD": {"recipe": "base.yaml"}},
        "attacks": [{"attack": ATTACK}],
        "eval": {"benchmarks": ["capitals"], "limit": 12},
    }


def write(recipe: dict[str, Any], name: str) -> str:
    Path(name).write_text(yaml.safe_dump(recipe, sort_keys=False))
    return name


def long(grid: dict[str, Any]) -> dict[str, Any]:
    """The same, whose method trains for a while and keeps its state."""
    longer = {"train.steps": LONG, "train.save_every": 20}
    return grid | {"methods": {"GD": {"recipe": "base.yaml", "set": longer}}}


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "ilu_cli", "pipeline", *map(str, args)]


def nodes(runs: Path, name: str = "grid") -> dict[str, dict[str, Any]]:
    return {n["key"]: n for n in json.loads((runs / name / "pipeline.json").read_text())["nodes"]}


def notes(runs: Path) -> str:
    return "".join(path.read_text() for path in (runs / "grid" / "jobs").glob("*.log"))


def test_two_launchers_on_one_folder_make_each_run_once(
    grid: dict[str, Any], ilu: Ilu, tmp_path: Path, cluster: None
) -> None:
    mine, other = write(grid, "mine.yaml"), write(grid, "other.yaml")
    beside = subprocess.Popen(
        command(other, *HERE, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    done = ilu("pipeline", mine, "--launcher", "ray", "--json")
    out, err = beside.communicate(timeout=180)
    assert (done.code, beside.returncode) == (0, 0), done.err + err
    assert json.loads(done.out)["rows"] == json.loads(out)["rows"]
    made = sorted(p.parent.name.split("-")[0] for p in (tmp_path / "runs").glob("*/manifest.json"))
    assert made == ["attack", "attack", "unlearn"]
    here = json.loads(ilu("pipeline", write(grid, "third.yaml"), "--dry-run", "--json").out)
    assert {n["key"] for n in here["nodes"] if n["run"]} == {"seed 0/GD/unlearn"}  # this machine takes what they made


def test_a_lost_process_is_replaced_and_goes_on(grid: dict[str, Any], ilu: Ilu, tmp_path: Path, cluster: None) -> None:
    runs = tmp_path / "runs"
    killed = when_it_trains(runs, lambda pid: os.kill(pid, signal.SIGKILL))
    done = ilu("pipeline", write(long(grid), "grid.yaml"), "--launcher", "ray")
    killed.join()
    assert done.code == 0, done.err
    assert "was lost" in done.err and "try 2 of 3" in done.err
    assert "continuing after step" in done.err
    assert done.out.startswith("grid: what the attacks bring back")  # nothing of Ray's own
    assert {n["status"] for n in nodes(runs).values()} == {"done"}


def test_what_is_lost_again_and_again_fails_alone(
    grid: dict[str, Any], ilu: Ilu, tmp_path: Path, cluster: None
) -> None:
    """Three tries, each a process that is killed in the first step."""
    Path("deadly.py").write_text(
        "import os\nfrom ilu_cli.registry import objective\n\n"
        '@objective(needs="logps", per="token")\ndef deadly(forget):\n    """Ends its process."""\n'
        f'    open("{tmp_path}/tries", "a").write("x")\n    os.kill(os.getpid(), 9)\n'
    )
    write(BASE | {"objective": {"name": "deadly"}}, "deadly.yaml")
    both = grid | {"methods": {"GD": {"recipe": "base.yaml"}, "D": {"recipe": "deadly.yaml"}}}
    done = ilu("pipeline", write(both, "grid.yaml"), "--launcher", "ray", "--plugin", "deadly.py", "--json")
    assert done.code == 5
    assert (tmp_path / "tries").read_text() == "xxx"
    assert json.loads(done.out)["state"] == {"done": 5, "failed": 1, "blocked": 2}
    assert "was lost" in present(nodes(tmp_path / "runs")["seed 0/D/unlearn"]["error"])


def test_ctrl_c_cancels_a_task_of_ray(grid: dict[str, Any], ilu: Ilu, tmp_path: Path, cluster: None) -> None:
    runs, at = tmp_path / "runs", list[int]()

    def interrupt(pid: int) -> None:
        at.append(pid)
        os.kill(os.getpid(), signal.SIGINT)

    thread = when_it_trains(runs, interrupt)
    done = ilu("pipeline", write(long(grid), "grid.yaml"), "--launcher", "ray")
    thread.join()
    assert done.code == 130, done.err
    assert nodes(runs)["seed 0/GD/unlearn"]["status"] == "waiting"
    assert not list(runs.glob(f"unlearn-*/{HOLDER}"))  # it let go: its state was saved
    assert psutil.pid_exists(at[0])  # the task was stopped, and Ray's process takes the next


def test_jobs_that_are_lost_or_preempted_go_on_and_ctrl_c_cancels_them(grid: dict[str, Any], tmp_path: Path) -> None:
    """A process that is killed is begun again by us, one that is told to make room is queued again by submitit."""
    runs, known = tmp_path / "runs", list[int]()
    args = command(write(long(grid), "grid.yaml"), *HERE)
    victim = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def send(number: int) -> Callable[[int], None]:
        def act(pid: int) -> None:
            if pid not in known:
                known.append(pid)
                os.kill(pid, number)

        return act

    end = time.monotonic() + 240
    for n, number in enumerate((signal.SIGKILL, signal.SIGUSR2, 0), 1):
        while len(known) < n and time.monotonic() < end:
            when_it_trains(runs, send(number)).join()
    assert len(known) == 3, "it was not begun again"
    while time.monotonic() < end and "continuing after step" not in notes(runs):
        time.sleep(0.1)
    victim.send_signal(signal.SIGINT)
    _, err = victim.communicate(timeout=60)
    assert victim.returncode == 130, err
    assert err.count("was lost") == 1 and "try 2 of 3" in err
    assert "continuing after step" in notes(runs)
    assert "Traceback" not in err
    assert nodes(runs)["seed 0/GD/unlearn"]["status"] == "waiting"
    end = time.monotonic() + 10
    while psutil.pid_exists(known[2]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(known[2])


def test_each_node_has_a_gpu_of_its_own(
    grid: dict[str, Any], ilu: Ilu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slots, whose names the processes see; here are no GPUs, so they train on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8a")
    Path("seen.py").write_text(
        f'import os\nopen("{tmp_path}/seen", "a").write(os.environ.get("CUDA_VISIBLE_DEVICES", "?") + "\\n")\n'
    )
    methods = {f"GD{i}": {"recipe": "base.yaml", "set": {"train.lr": 1e-3 / (i + 1)}} for i in range(3)}
    name = write(grid | {"methods": methods}, "grid.yaml")
    done = ilu("pipeline", name, "--gpus-per-node", 1, "--plugin", "seen.py")
    assert done.code == 0, done.err
    assert sorted((tmp_path / "seen").read_text().splitlines()) == ["3", "3,GPU-8a", "GPU-8a"]  # and this process
    assert "--jobs 3 with a GPU each" in ilu("pipeline", name, "--gpus-per-node", 1, "--jobs", 3, "--dry-run").err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    none = ilu("pipeline", name, "--gpus-per-node", 1, "--dry-run")
    assert none.code == 3 and "there is no GPU here" in none.err


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--launcher", "slurm"], 3, "srun is not found"),
        (["--launcher", "slurm", "--launcher-options", "cluster=moon"], 2, "there are slurm and local"),
        ([*HERE, "--launcher-options", "fast=yes"], 2, "'fast'"),
        ([*HERE, "--launcher-options", "timeout_min=soon"], 2, "timeout_min"),
        ([*HERE, "--launcher-options", "slurm_partitio=gpu"], 2, "slurm_partitio"),
        (["--launcher", "ray", "--launcher-options", "cpus=2"], 2, "there are address, num_cpus"),
        (["--launcher", "ray", "--launcher-options", "num_cpus=-1"], 2, "num_cpus"),
        (["--launcher", "ray", "--gpus-per-node", "2"], 2, "a node is one process"),
        (["--launcher-options", "cluster=local"], 2, "name one with --launcher"),
        ([*HERE, "--launcher-options", "mem_gb"], 2, "KEY=VALUE"),
        (["--launcher", "moon"], 2, "moon"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_the_plan(
    grid: dict[str, Any],
    ilu: Ilu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = ilu("pipeline", write(grid, "grid.yaml"), "--dry-run", *args)
    assert done.code == code, done.err
    assert says in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("package", ["submitit", "ray"])
def test_a_package_that_is_not_there_is_named(
    grid: dict[str, Any], ilu: Ilu, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    name = "slurm" if package == "submitit" else "ray"
    done = ilu("pipeline", write(grid, "grid.yaml"), "--dry-run", "--launcher", name)
    assert done.code == 3
    assert f"pip install 'ilu[{name}]'" in done.err


class Nowhere:
    """A cluster whose jobs say at once that they have made a run."""

    signals = False

    def __init__(self, run: Path) -> None:
        self.run = run

    def submit(self, errand: Errand) -> tuple[Path, str]:
        return self.run, "job 7"

    def ended(self, job: Path) -> bool:
        return True

    def result(self, job: Path) -> Answer:
        return {"run": job, "seconds": 1.0}

    def cancel(self, job: Path) -> None:
        raise AssertionError("it has ended")

    def close(self) -> None:
        """Nothing is left."""


def test_what_was_written_elsewhere_and_does_not_arrive_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ilu_cli.workflows.pipeline.launchers.away.ARRIVAL", 0.2)
    graph, node = Graph("g", [], {}, Store(tmp_path), {}), Node("n", "unlearn", {}, {}, "0")
    task = Job("unlearn", {}, "0", "", {"weights": {}, "digest": None}, None, tmp_path / "result.json", [])
    for made in (False, True):
        if made:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "manifest.json").write_text("{}")
        away = Away(Launch("ray"), graph, Nowhere(tmp_path / "run"))
        away.begin(node, task)
        (_, note), (_, answer) = away.listen()
        assert note["note"].startswith(f"job 7; notes in {tmp_path / 'g' / 'jobs'}")
        assert ("is not seen here: is ILU_RUNS on a file system" in answer.get("error", "")) != made
        away.close()


def test_only_a_lost_process_lets_go_of_its_run(tmp_path: Path) -> None:
    """Whoever holds the run on another machine keeps it, unless it is known to be gone; the name may have been cut."""
    held = {"host": "elsewhere", "pid": 1, "born": 0.0, "since": "2026-11-26T00:00:00+00:00"}
    name = "ilu pipeline 0a1b2c3d grid " + "x" * 300
    (tmp_path / HOLDER).write_text(json.dumps({**held, "command": name[:200]}))
    let_go(tmp_path, ["ilu pipeline ffffffff grid"])
    assert (tmp_path / HOLDER).exists()
    let_go(tmp_path, [name])
    assert not (tmp_path / HOLDER).exists()
    let_go(tmp_path, [name])
