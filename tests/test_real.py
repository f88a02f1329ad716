"""The real 135 M model: the figures that the README promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Ilu

pytestmark = pytest.mark.real

STEP = """
import json, sys
from pathlib import Path
from ilu_cli.engine.accel import backend
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.scoring import Scorer
from ilu_cli.models.load import load_model
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.load import load, shipped
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.runs.store import Store
from ilu_cli.workflows import unlearn
from ilu_cli.workflows.training import build_trainer

recipe = load(UnlearnRecipe, shipped()["quickstart-npo"], {}, ["train.steps=2", "forget.batch=8", "retain.batch=4"])
plan = unlearn.plan(recipe, Store())
model = load_model(plan.subject)
if sys.argv[1] == "npo":
    trainer = build_trainer(plan.recipe, plan.streams, Scorer(model, parts_of(model), plan.tokenizer, backend()))
else:  # plain fine-tuning on the same two batches
    terms = [Term(s.stream.name, s.stream, lambda v: v.nll, "token") for s in plan.streams]
    trainer = Trainer(parts_of(model), dict(model.named_parameters()), terms, [], plan.recipe.train, 0, backend())
list(trainer.run())
print(json.dumps([backend().peak_memory(), plan.peak_memory]))
"""


def test_rmu_forgets_the_capitals_and_keeps_the_rest(ilu: Ilu) -> None:
    done = ilu("unlearn", "--method", "rmu")
    assert done.code == 0, done.err
    run = Path(done.out.splitlines()[-1])
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 80
    found = json.loads(ilu("eval", "--json").out)["lineage"]
    before, after = ({n: r["value"] for n, r in stage["results"].items()} for stage in found)
    assert before["capitals"] >= 0.80
    assert before["elements"] >= 0.90
    assert after["capitals"] <= 0.32
    assert after["elements"] >= 0.85
    assert after["prose"] <= 1.10 * before["prose"]


def test_npo_keeps_no_second_model() -> None:
    """The peak of an NPO step is at most 1.15 × that of a plain fine-tuning step on the same sequences."""
    peaks = {}
    for kind in ("npo", "plain"):
        done = subprocess.run([sys.executable, "-c", STEP, kind], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks[kind], estimate = json.loads(done.stdout.splitlines()[-1])
    assert peaks["npo"] <= 1.15 * peaks["plain"]
    assert 0.6 < estimate / peaks["npo"] < 1.4  # --dry-run's estimate
