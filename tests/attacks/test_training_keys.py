"""Keys of every attack that trains: how weights are stepped, and what is mixed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu, gradient, items_of, stream, tiny_model, trainer
from test_every_attack import UNLEARN

from ilu_cli import registry
from ilu_cli.data.encode import Corpus
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.stream import LaterStream
from ilu_cli.recipe.schema import AttackRecipe, schema
from ilu_cli.recipe.specs import Form, TrainSpec
from ilu_cli.recipe.training_attack import MixSpec, TrainingAttack
from ilu_cli.workflows.attack.fed import terms
from ilu_cli.workflows.plan import StreamPlan


def test_every_attack_that_trains_has_them_and_no_other() -> None:
    for name, entry in registry.attack.items():
        recipe: Any = schema(AttackRecipe).model_validate({"attack": {"name": name}})
        assert isinstance(recipe.attack, TrainingAttack) == (entry.declared.access == "training")
        assert "optimizer" not in recipe.attack.params()


def test_what_the_attack_says_of_its_steps_is_kept() -> None:
    spec = TrainSpec(steps=10, lr=1e-3, schedule="cosine", precision="fp32", params=["*"])
    keys = TrainingAttack(name="x", optimizer="muon", warmup=3, weight_decay=0.1, max_grad_norm=1.0)
    stepped = keys.stepped(spec).model_dump()
    given = {"optimizer": "muon", "warmup": 3, "weight_decay": 0.1, "max_grad_norm": 1.0}
    assert stepped == {**spec.model_dump(), **given}
    mix = MixSpec.model_validate({"data": "prose", "first": 4})
    assert TrainingAttack(name="x", mix=mix).stepped(spec).steps == 14


def test_text_alone_comes_first_and_then_beside() -> None:
    """The gradient of a step is that of the own rows, from their first step on, and weight times that of the text."""
    own, text, after, weight = items_of([6, 9, 7]), items_of([8, 5, 10], seed=8), 2, 0.5

    def alone(items: Any, name: str, step: int) -> torch.Tensor:
        term = Term("loss", stream(items, 2, name), lambda view: view.nll, "token")
        t = trainer(tiny_model(), [term], [])
        t.step = step
        return gradient(t)

    plans = [
        StreamPlan(LaterStream("attack", [Corpus(own, 0)], 2, 0, after=after), [], [], Form()),
        StreamPlan(stream(text, 2, "attack mix"), [], [], Form()),
    ]
    mix = MixSpec.model_validate({"data": "prose", "weight": weight, "first": after})
    t = trainer(tiny_model(), terms(plans, mix), [])
    for step in range(5):
        t.step = step
        expected = weight * alone(text, "attack mix", step)
        if step >= after:
            expected += alone(own, "attack", step - after)
        torch.testing.assert_close(gradient(t), expected, rtol=1e-5, atol=1e-7)


ATTACK = ["--kind", "relearn_benign", "--no-reference", "--set", "attack.steps=4", "--set", "attack.batch=2"]
ATTACK += ["--set", "eval.limit=4"]
MIX = ["--set", "attack.mix={data: elements, batch: 3, first: 2}", "--set", "attack.optimizer=muon"]


@pytest.mark.slow
def test_an_attack_is_stepped_as_its_keys_say(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    run = ilu(*UNLEARN, "--model", tiny).out.strip()
    plan = json.loads(ilu("attack", run, *ATTACK, *MIX, "--dry-run", "--json").out)
    assert plan["steps"] == 6
    assert [(d["role"], d["name"]) for d in plan["data"]] == [("attack", "surroundings"), ("attack mix", "elements")]
    done = ilu("attack", run, *ATTACK, *MIX, "--set", "attack.warmup=3", "--lr", "0.003", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [p["steps"] for p in found["points"]] == [0, 1, 2, 4]
    steps = [json.loads(line) for line in (tmp_path / "runs" / found["run"] / "metrics.jsonl").read_text().splitlines()]
    assert [s["lr"] for s in steps] == pytest.approx([0.001, 0.002, 0.003, 0.003, 0.003, 0.003])
    assert [s["loss"] > 0 for s in steps] == [False, False, True, True, True, True]
    assert all(s["mix"] > 0 for s in steps)
    roles = {d["role"] for d in json.loads((tmp_path / "runs" / found["run"] / "manifest.json").read_text())["data"]}
    assert {"attack", "attack mix"} <= roles


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["attack.optimizer=adam"], "attack.optimizer"),
        (["attack.warmup=-1"], "attack.warmup"),
        (["attack.mix={batch: 4}"], "attack.mix.data"),
        (["attack.mix={data: nothing}"], "attack.mix.data.0: unknown task 'nothing'"),
        (["attack.mix={data: capitals}"], "capitals"),
    ],
)
def test_what_is_impossible_is_refused_in_the_plan(tiny: Path, ilu: Ilu, sets: list[str], message: str) -> None:
    run = ilu(*UNLEARN, "--model", tiny).out.strip()
    done = ilu("attack", run, *ATTACK, *(x for text in sets for x in ("--set", text)), "--dry-run")
    assert (done.code, message in done.err) == (2, True), done.err


def test_an_attack_without_training_has_none(tiny: Path, ilu: Ilu) -> None:
    done = ilu("attack", tiny, "--kind", "noise", "--set", "attack.optimizer=muon", "--dry-run")
    assert done.code == 2
    assert "optimizer" in done.err
