"""A model is taught, the taught one forgets, and the one of before is the line of what never was known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Ilu, present
from test_chain import rmu

from ilu_cli.models.subject import lineage, never_of, of_run, original_of
from ilu_cli.runs.store import Run, Store
from ilu_cli.workflows.taskvec.roles import find_roles

pytestmark = pytest.mark.slow

EVAL = ["--set", "eval.benchmarks=[atlas]", "--set", "eval.limit=6", "--set", "attack.max_length=32"]
ATTACK = ["--steps", 4, "--set", "attack.batch=2", *EVAL]


@pytest.fixture
def taught(tiny: Path, ilu: Ilu) -> str:
    done = ilu("attack", tiny, "--task", "atlas", *ATTACK, "--no-reference")
    assert done.code == 0, done.err
    return str(done.out.strip().splitlines()[-1])


def unlearned(ilu: Ilu, model: str, *more: Any) -> Run:
    done = ilu(*rmu(Path(model)), "--forget", "atlas", *more)
    assert done.code == 0, done.err
    return Store().get(Path(done.out.strip()).name)


def reported(ilu: Ilu, names: list[str], taught: str) -> None:
    """The report has a row of the model that never knew in both tables, and a line in the figure."""
    done = ilu("report", *names, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    page = Path(found["markdown"]).read_text(encoding="utf-8")
    rows = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in page.splitlines() if line.startswith("|")]
    assert [name for name, cell in rows if "%" in cell] == [taught, "rmu", "tiny, which never knew"]
    attacked = {name for name, cell in rows if cell == "fine-tuning on sst2"}
    assert attacked == {taught, "rmu", "tiny, which never knew"}
    assert "one with squares a model that never knew" in page
    figures = Path(found["figures"])
    for figure, words in (("recovery-1", "tiny, which never knew"), ("lineage", "never knew")):
        assert words in (figures / f"{figure}.svg").read_text(encoding="utf-8")


def test_the_lineage_begins_with_the_taught_model(tiny: Path, ilu: Ilu, taught: str) -> None:
    run = unlearned(ilu, taught, "--set", f"model.never={tiny}")
    subject = of_run(run)
    never = never_of(subject)
    assert present(original_of(subject).run).path == Path(taught)
    assert never is not None and never.folder == tiny
    assert [s.label for s in lineage(subject)][-2:] == [Path(taught).name, run.id]

    done = ilu("attack", run.path, "--task", "sst2", "--source", "builtin", *ATTACK, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["reference"]["parent"] == Path(taught).name
    assert found["never_knew"]["parent"] == str(tiny)
    again = json.loads(ilu("attack", run.path, "--task", "sst2", "--source", "builtin", *ATTACK, "--json").out)
    assert [again[k]["run"] for k in ("reference", "never_knew")] == [
        found[k]["run"] for k in ("reference", "never_knew")
    ]
    attacked = Store().get(found["run"])
    assert attacked.manifest.never == run.manifest.never
    reported(ilu, [str(run.path)], Path(taught).name)
    reported(ilu, [], Path(taught).name)
    finetuned = find_roles(of_run(attacked), Store()).by_name["finetuned"].run
    assert present(finetuned).id == found["reference"]["run"]

    shown = ilu("attack", run.path, "--task", "sst2", "--source", "builtin", *ATTACK)
    assert "never knew: FA" in shown.out
    table = ilu("eval", attacked.path, "--set", "eval.benchmarks=[atlas]", "--set", "eval.limit=6")
    assert table.code == 0, table.err


def test_a_child_of_a_child_has_the_same_line(tiny: Path, ilu: Ilu, taught: str) -> None:
    first = unlearned(ilu, taught, "--set", f"model.never={tiny}")
    second = unlearned(ilu, str(first.path))
    assert (second.manifest.base, second.manifest.never) == (first.manifest.base, first.manifest.never)


def test_without_it_a_lineage_begins_where_it_began_before(tiny: Path, ilu: Ilu, taught: str) -> None:
    run = unlearned(ilu, taught)
    assert original_of(of_run(run)).folder == tiny
    assert never_of(of_run(run)) is None
    assert "never" not in (run.path / "recipe.yaml").read_text()


def test_a_suite_has_the_line_too(tiny: Path, ilu: Ilu, taught: str, tmp_path: Path) -> None:
    run = unlearned(ilu, taught, "--set", f"model.never={tiny}")
    (tmp_path / "suite.yaml").write_text(
        "command: suite\neval: {benchmarks: [atlas], limit: 4}\n"
        "attacks: [{attack: {name: noise, sigmas: [0.1]}}, {attack: {name: rtt, epochs: 1, batch: 2}}]\n"
    )
    done = ilu("attack", run.path, "--suite", tmp_path / "suite.yaml", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    assert {r["method"] for r in rows} == {"original", "never knew", run.id}
    assert {r["attack"] for r in rows} == {"noise", "rtt"}


def test_a_model_that_is_not_there_is_missed_in_the_plan(tiny: Path, ilu: Ilu) -> None:
    done = ilu(*rmu(tiny), "--forget", "atlas", "--set", "model.never=runs/nothing", "--dry-run")
    assert done.code == 3
    assert "runs/nothing" in done.err


def test_what_a_search_found_is_done_to_each_of_the_other_models_once(tiny: Path, ilu: Ilu, taught: str) -> None:
    run = unlearned(ilu, taught, "--set", f"model.never={tiny}")
    search = {"trials": 2, "over": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}}
    suite = {
        "command": "suite",
        "attacks": [{"attack": {"name": "finetune", "task": "elements", "steps": 2, "batch": 2}, "search": search}],
        "eval": {"benchmarks": ["atlas"], "limit": 6},
    }
    Path("suite.yaml").write_text(yaml.safe_dump(suite))
    done = ilu("attack", run.path, "--suite", "suite.yaml", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    rows = {r["method"]: r for r in found["rows"]}
    assert {m: r["tried"] for m, r in rows.items()} == {"original": 1, "never knew": 1, run.id: 2}
    rates = {m: r["choice"]["lr"] for m, r in rows.items()}
    assert rates["original"] == rates["never knew"] == rates[run.id]
    assert found["state"] == {"done": 3 + 2 + 2}
    page = ilu("report", Path(found["folder"]).name, "--json")
    assert page.code == 0, page.err
    assert "tiny, which never knew" in Path(json.loads(page.out)["markdown"]).read_text(encoding="utf-8")
