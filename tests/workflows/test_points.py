"""Checkpoints of intermediate steps: kept, addressed as RUN@STEP, verified, attacked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu
from safetensors.torch import load_file

from ilu_cli.models.subject import find_subject, from_record, lineage
from ilu_cli.runs.store import Store, open_run

pytestmark = pytest.mark.slow

SMALL = ["--method", "npo", "--set", "forget.batch=4", "--set", "retain.batch=4", "--set", "forget.max_length=24",
         "--set", "retain.max_length=24"]  # fmt: skip


@pytest.fixture
def run(tiny: Path, ilu: Ilu) -> Path:
    done = ilu("unlearn", *SMALL, "--model", tiny, "--steps", 4, "--set", "train.points=[2,3]")
    assert done.code == 0, done.err
    return Path(done.out.strip())


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def test_a_point_is_the_model_after_that_many_steps(run: Path, tiny: Path, ilu: Ilu) -> None:
    short = Path(ilu("unlearn", *SMALL, "--model", tiny, "--steps", 2).out.strip())
    point, end = weights(run / "points" / "step-0002"), weights(short / "checkpoint")
    assert all(point[n].equal(end[n]) for n in end)
    later = weights(run / "checkpoint")
    assert any(not point[n].equal(later[n]) for n in later)
    assert set(open_run(run).manifest.points) == {"2", "3"}


def test_a_point_is_a_subject_with_lineage_and_results_of_its_own(run: Path, ilu: Ilu) -> None:
    done = ilu("attack", f"{run.name}@2", "--task", "elements", "--steps", 2, "--set", "attack.batch=2", "--set",
               "eval.limit=8", "--json")  # fmt: skip
    assert done.code == 0, done.err
    attacked = open_run(Path(json.loads(done.out)["path"]))
    parent = attacked.manifest.parents[0]
    assert parent["id"] == f"{run.name}@2"
    assert parent["weights"] == open_run(run).manifest.points["2"]
    subject = from_record(parent, attacked)
    assert (subject.step, subject.folder) == (2, run / "points" / "step-0002")
    assert [s.label for s in lineage(find_subject(str(attacked.path), Store()))][1:] == [f"{run.name}@2", attacked.id]
    before = json.loads(ilu("eval", f"{run}@2", "--alone", "--limit", 8, "--json").out)["results"]
    assert (run / "eval" / "step-0002" / "capitals.json").is_file()
    assert not (run / "eval" / "capitals.json").exists()
    points = json.loads(done.out)["points"]
    assert before["capitals"]["value"] == points[0]["eval"]["capitals"]["value"]


def test_a_point_that_is_not_there_or_was_changed_is_refused(run: Path, ilu: Ilu) -> None:
    absent = ilu("eval", f"{run.name}@1")
    assert absent.code == 3
    assert "kept steps: 2, 3" in absent.err
    (run / "points" / "step-0003" / "model.safetensors").write_bytes(b"changed")
    damaged = ilu("eval", f"{run.name}@3")
    assert damaged.code == 3
    assert "changed or damaged" in damaged.err
    assert ilu("eval", f"{run.name}@2", "--alone", "--limit", 4).code == 0


@pytest.mark.parametrize("points", ["[4]", "[3,2]", "[2,2]", "[0]"])
def test_points_must_rise_below_the_last_step(ilu: Ilu, points: str) -> None:
    done = ilu("unlearn", *SMALL, "--steps", 4, "--set", f"train.points={points}")
    assert done.code == 2
    assert "train.points" in done.err
