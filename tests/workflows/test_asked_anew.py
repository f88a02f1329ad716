"""Results are of what is asked now: a task file's data, or a plug-in's code, edited in place, is asked again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Ilu

from ilu_cli import registry
from ilu_cli.data.sources import load_dataset
from ilu_cli.recipe.load import validate
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.schema import AttackRecipe
from ilu_cli.recipe.source import Layers
from ilu_cli.recipe.taskfile import files_of
from ilu_cli.workflows.attack.protocol import Follow
from ilu_cli.workflows.attack.seen import Regularised, Seen, Written
from ilu_cli.workflows.needs.inputs import inputs_of

pytestmark = pytest.mark.slow

TASK = """task: own
dataset_path: json
dataset_kwargs: {data_files: {test: own.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{a}}"
metric_list: [{metric: acc}]
metadata: {role: utility}
"""
PLUGIN = '''\
from ilu_cli.benchmarks import Benchmark
from ilu_cli.registry import benchmark


@benchmark(name="mine")
class Mine(Benchmark):
    """Says the same of every model."""

    role = "utility"

    def items(self):
        return [{"question": str(i)} for i in range(4)]

    def score(self, scorer, items):
        return [i | {"value": VALUE} for i in items]
'''
OBJECTIVE = '''\
from ilu_cli.registry import objective


@objective(name="scaled", needs="logps", per="sequence")
def scaled(forget):
    """Raise the forget loss, so many times as much."""
    return VALUE * forget.logps
'''
SHORT = ["attack.task=elements", "attack.batch=2", "attack.steps=2", "attack.max_length=24", "attack.test_rows=4"]
ATTACK = [part for text in (*SHORT, "eval.benchmarks=[own.yaml]") for part in ("--set", text)]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what the plug-ins of this test registered."""
    for known in (registry.objective, registry.benchmark):
        len(known)
        monkeypatch.setattr(known, "_entries", dict(known._entries))


def task(right: int) -> None:
    """A task file whose right answer is `yes` (0) or `no` (1) throughout."""
    Path("own.yaml").write_text(TASK)
    Path("own.jsonl").write_text("".join(json.dumps({"q": f"Is it {i}?", "a": right}) + "\n" for i in range(8)))


def plugin(value: float, text: str = PLUGIN) -> Path:
    """A plug-in with this value: by default a benchmark whose every row has it."""
    registry.objective._entries.pop("scaled", None)  # as another process has not registered it before
    path = Path("mine_plugin.py").absolute()
    path.write_text(text.replace("VALUE", str(value)))
    os.utime(path, (1e9, 1e9))  # edited within a second
    return path


def test_an_edited_plug_in_is_measured_again(tiny: Path, ilu: Ilu) -> None:
    for value in (0.25, 0.75):
        done = ilu("eval", tiny, "--plugin", plugin(value), "--bench", "mine", "--json")
        assert json.loads(done.out)["results"]["mine"]["value"] == value
    again = ilu("eval", tiny, "--plugin", plugin(0.75), "--bench", "mine")
    assert again.code == 0 and "evaluating" not in again.err


@pytest.mark.parametrize("what", ["own.yaml", "mine"])
def test_a_pipeline_measures_again_what_was_edited(tiny: Path, ilu: Ilu, what: str) -> None:
    base = {"command": "unlearn", "objective": {"name": "grad_ascent"}, "train": {"steps": 1},
            "forget": {"data": "capitals", "batch": 2, "max_length": 24}}  # fmt: skip
    attack = {"name": "noise", "sigmas": [0.1]}
    grid = {"command": "pipeline", "model": {"ref": str(tiny)}, "methods": {"GA": {"recipe": "base.yaml"}},
            "attacks": [{"attack": attack}], "eval": {"benchmarks": [what, "capitals"], "limit": 8}}  # fmt: skip
    Path("base.yaml").write_text(yaml.safe_dump(base))
    Path("grid.yaml").write_text(yaml.safe_dump(grid))

    def state(right: int) -> tuple[dict[str, int], list[float]]:
        task(right)
        more = ["--plugin", plugin(float(right))] if what == "mine" else []
        planned = json.loads(ilu("pipeline", "grid.yaml", "--dry-run", "--json", *more).out)["state"]
        done = ilu("pipeline", "grid.yaml", "--json", *more)
        assert done.code == 0, done.err
        nodes = json.loads((Path("runs/grid") / "pipeline.json").read_text())["nodes"]
        return planned, [n["result"]["eval"][what]["value"] for n in nodes if n["command"] == "select"]

    (planned, zero), (edited, one), (known, same) = state(0), state(1), state(1)
    assert planned == {"waiting": 5} and edited["done"] == 1 and known == {"done": 5}, "the training alone is known"
    assert one == pytest.approx([1 - v for v in zero] if what == "own.yaml" else [1, 1]) and same == one != zero


def test_a_pipeline_trains_again_by_an_edited_objective(tiny: Path, ilu: Ilu) -> None:
    base = {"command": "unlearn", "objective": {"name": "scaled"}, "train": {"steps": 2, "lr": 1e-2},
            "forget": {"data": "capitals", "batch": 4, "max_length": 24}}  # fmt: skip
    grid = {"command": "pipeline", "model": {"ref": str(tiny)}, "methods": {"M": {"recipe": "base.yaml"}},
            "attacks": [{"attack": {"name": "noise"}}], "eval": {"benchmarks": ["capitals"], "limit": 4},
            "seeds": [0]}  # fmt: skip
    Path("base.yaml").write_text(yaml.safe_dump(base))
    Path("grid.yaml").write_text(yaml.safe_dump(grid))
    made = []
    for value in (1.0, -1.0, -1.0):
        done = ilu("pipeline", "grid.yaml", "--plugin", plugin(value, OBJECTIVE))
        assert done.code == 0, done.err
        made.append(len(list(Path("runs").glob("*/metrics.jsonl"))))
    assert made == [1, 2, 2]


def test_a_reference_line_answered_the_same_questions(tiny: Path, ilu: Ilu) -> None:
    """The right answers are turned round, so that the original's accuracies of before say nothing."""
    task(0)
    short = ["--set", "objective.name=grad_ascent", "--set", "forget.max_length=24", "--steps", 1]
    assert ilu("unlearn", "--method", "grad_ascent", "--model", tiny, *short).code == 0
    lines = []
    for right in (0, 1, 1):
        task(right)
        done = ilu("attack", *ATTACK, "--json")
        assert done.code == 0, done.err
        reference = json.loads(done.out)["reference"]
        lines.append((reference["run"], reference["points"][0]["eval"]["own.yaml"]["value"]))
    assert lines[0][0] != lines[1][0] and lines[1] == lines[2]
    assert lines[1][1] == pytest.approx(1 - lines[0][1])


def test_an_attack_does_not_go_on_with_other_questions(tiny: Path, ilu: Ilu, monkeypatch: pytest.MonkeyPatch) -> None:
    task(0)

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Follow, "_score", stopped)
        assert ilu("attack", tiny, *ATTACK).code == 130
    task(1)
    refused = ilu("attack", "--resume")
    assert refused.code == 2 and "would be another run than was begun. (asked: own.jsonl)" in refused.err
    task(0)
    assert ilu("attack", "--resume").code == 0


def test_an_environment_is_known_under_another_name() -> None:
    """Its rows are left out of the attack, so that an attack of before there was one is not the same."""
    Path("mine.jsonl").write_text("".join(json.dumps({"text": f"A line, number {i}."}) + "\n" for i in range(8)))
    attack = {"name": "finetune", "task": "mine.jsonl"}
    recipe = validate(AttackRecipe, Layers({"command": "attack", "attack": attack}))
    told = []
    for name in ("gsm8k", "mine.jsonl", "./mine.jsonl"):
        reg = Regularised(env=[{"name": name}], batch=4)
        run = Written(seed=0, train={"steps": 2}, forget={"data": []}, regularizers=[reg])
        told.append([t for t in inputs_of(recipe, [run]) if t.startswith("environment")])
        left = Seen([run]).without(load_dataset(DataRef(name="mine.jsonl"), "train"))[1]["overlap"]
        assert (left > 0) == bool(told[-1])
    assert told == [[]] + [[f"environment {n}: 2 steps of 4, seed 0"] for n in ("mine.jsonl", "./mine.jsonl")]


def test_all_files_of_a_task_file_are_found(tmp_path: Path) -> None:
    for name in ("data/a.jsonl", "data/b.jsonl", "data/c.csv", "extra/d.jsonl", "code.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "base.yaml").write_text("dataset_kwargs: {data_dir: data, data_files: {test: ['*.jsonl']}}\n")
    (tmp_path / "own.yaml").write_text("include: base.yaml\nprocess_docs: !function code.go\ndataset_path: extra\n")
    assert {p.absolute().relative_to(tmp_path).as_posix() for p in files_of(Path("own.yaml"))} == {
        "own.yaml", "base.yaml", "code.py", "data/a.jsonl", "data/b.jsonl", "extra/d.jsonl",
    }  # fmt: skip
    away = f"dataset_kwargs: {{data_files: '{tmp_path}/data/*.csv'}}\n"
    (tmp_path / "base.yaml").write_text(away)
    assert tmp_path / "data/c.csv" in files_of(Path("base.yaml"))
