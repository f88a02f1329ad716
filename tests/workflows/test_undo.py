"""The second stage of UNDO: what is damaged, what it learns from, and what it must begin with."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Ilu, items_of, stream, tiny_model, trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from ilu_cli import registry
from ilu_cli.data.sampling import seed_of
from ilu_cli.engine.accel import backend
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.job import drive
from ilu_cli.engine.reference import fill
from ilu_cli.engine.reporter import Reporter
from ilu_cli.models.parts import parts_of
from ilu_cli.objectives.undo import corrupt
from ilu_cli.recipe.load import load
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.runs.store import Store
from ilu_cli.workflows.training import Streams

UNDO = registry.objective["undo"]

SMALL = ["--steps", 2, "--set", "forget.batch=2", "--set", "forget.max_length=24", "--set",
         "forget.data=[{name: capitals, limit: 8}]", "--set", "train.precision=fp32"]  # fmt: skip
RETAIN = ["--set", "retain.batch=2", "--set", "retain.max_length=24", "--set",
          "retain.data=[{name: elements, limit: 8}]"]  # fmt: skip
FIRST = ["--method", "npo", *SMALL, *RETAIN, "--lr", 1e-3]
SECOND = ["--recipe", "quickstart-undo", *SMALL, *RETAIN]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(("alpha", "beta"), [(0.25, 0.1), (0.5, 0.0)])
def test_every_weight_shrinks_and_matrices_get_noise(alpha: float, beta: float) -> None:
    model = tiny_model()
    before = weights(model)
    corrupt(SimpleNamespace(alpha=alpha, beta=beta), trainer(model, [], []).grads)
    for name, p in model.named_parameters():
        noise = p.detach() - (1 - alpha) * before[name]
        if p.ndim < 2 or not beta:
            torch.testing.assert_close(noise, torch.zeros_like(noise), rtol=0, atol=1e-7)
            continue
        bound = alpha * beta * math.sqrt(6 / (p.shape[0] + p.shape[1]))  # torch.nn.init.xavier_uniform_
        assert 0.9 * bound < noise.abs().max() <= bound * (1 + 1e-5)
        assert noise.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        assert abs(noise.mean().item()) < 0.2 * bound


def test_the_noise_is_the_seeds_and_of_each_weight_by_itself() -> None:
    def noisy(seed: int) -> dict[str, torch.Tensor]:
        model = tiny_model()
        t = trainer(model, [], [])
        t.grads.seed = seed
        corrupt(SimpleNamespace(alpha=0.25, beta=0.1), t.grads)
        return weights(model)

    one, again, other = noisy(0), noisy(0), noisy(1)
    names = [n for n in one if n.endswith("proj.weight")]
    assert all(torch.equal(one[n], again[n]) and not torch.equal(one[n], other[n]) for n in names)
    generator = torch.Generator().manual_seed(seed_of(0, "undo", names[0]))
    (rows, columns), start = one[names[0]].shape, weights(tiny_model())[names[0]]
    bound = math.sqrt(6 / (rows + columns))
    noise = torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)
    torch.testing.assert_close(one[names[0]], 0.75 * start + 0.025 * noise)


def test_only_what_is_trained_is_damaged() -> None:
    model = tiny_model()
    for n, p in model.named_parameters():
        p.requires_grad_("down_proj" in n)
    before, grads = weights(model), trainer(model, [], []).grads
    grads.named = {n: p for n, p in grads.named.items() if "down_proj" in n}
    corrupt(SimpleNamespace(alpha=0.25, beta=0.1), grads)
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == set(grads.named)


def mean_kl(teacher: Any, student: Any, rows: list[Any]) -> float:
    """KL(teacher ‖ student) per scored token, row by row, by plain transformers."""
    total, count = 0.0, 0
    for e in rows:
        with torch.no_grad():
            p, q = (m(torch.tensor([e.ids])).logits[0, :-1].log_softmax(-1)[e.start - 1 :] for m in (teacher, student))
        total, count = total + float((p.exp() * (p - q)).sum()), count + len(p)
    return total / count


def test_the_copy_learns_what_the_unlearned_parent_says(ilu: Ilu, tiny: Path, tmp_path: Path) -> None:
    first = Path(ilu("unlearn", "--model", tiny, *FIRST).out.strip())
    sets = ["--set", "objective.alpha=0.3", "--set", "train.points=[1]"]
    done = ilu("unlearn", first, *SECOND, *sets)
    assert done.code == 0, done.err
    second = Path(done.out.strip())
    manifest = json.loads((second / "manifest.json").read_text())
    assert manifest["parents"][0]["id"] == first.name
    assert manifest["base"]["path"] == str(tiny)

    recipe = load(UnlearnRecipe, second / "recipe.yaml", {}, [])
    streams = Streams.of(recipe, AutoTokenizer.from_pretrained(first / "checkpoint"))
    parent = AutoModelForCausalLM.from_pretrained(first / "checkpoint", dtype=torch.float32).eval()
    damaged = AutoModelForCausalLM.from_pretrained(first / "checkpoint", dtype=torch.float32).eval()
    corrupt(recipe.objective, trainer(damaged, [], []).grads)
    row = json.loads((second / "metrics.jsonl").read_text().splitlines()[0])
    for name, plan in (("forget", streams.forget), ("retain", streams.retain)):
        assert plan is not None
        rows = [plan.stream.item(k) for k in plan.stream.keys(0)]
        assert row[name] == pytest.approx(mean_kl(parent, damaged, rows), rel=1e-3)
        assert row[name] > 1e-3


def test_a_run_that_was_stopped_goes_on_from_its_state_and_not_from_the_damage(tmp_path: Path) -> None:
    found = []
    for stop in (None, 2):
        run = Store(tmp_path).create("unlearn", "x")
        for part in (stop, None) if stop else (None,):
            model = tiny_model()
            data = stream(items_of([6, 8], start=3))
            cache = fill(data, UNDO.declared.needs, None, 1, parts_of(model), backend(), "fp32")
            term = Term("forget", data, UNDO.obj, "token", cache=cache)
            t = trainer(model, [term], [], steps=4, lr=1e-3, save_every=1)
            corrupt(SimpleNamespace(alpha=0.25, beta=0.1), t.grads)
            for done in drive(t, run, Reporter(), "test"):
                if done == part:
                    break
        found.append(weights(model))
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_a_second_stage_needs_a_first(ilu: Ilu, tiny: Path) -> None:
    done = ilu("unlearn", tiny, *SECOND)
    assert done.code == 2
    assert "model.ref: undo is a second stage" in done.err
    assert "unlearn first" in done.err
    first = Path(ilu("unlearn", "--model", tiny, *FIRST).out.strip())
    asked = ["--set", "eval.benchmarks=[elements]", "--set", "eval.limit=2", "--set", "attack.steps=1"]
    attacked = ilu("attack", first, "--task", "sst2", "--source", "builtin", *asked, "--set", "keep=final")
    assert attacked.code == 0, attacked.err
    done = ilu("unlearn", attacked.out.strip().splitlines()[-1], *SECOND)
    assert done.code == 2
    assert "is not the model of an unlearning run" in done.err


def test_a_first_stage_that_is_gone_is_named(ilu: Ilu, tiny: Path) -> None:
    first = Path(ilu("unlearn", "--model", tiny, *FIRST).out.strip())
    shutil.rmtree(first)
    done = ilu("unlearn", first.name, *SECOND)
    assert done.code == 3
    assert f"no run, model or folder '{first.name}'" in done.err


def test_the_loss_reads_the_scored_tokens_of_the_start() -> None:
    """At the start itself there is nothing to learn."""
    model, data = tiny_model(), stream(items_of([6, 8], start=3))
    cache = fill(data, UNDO.declared.needs, None, 1, parts_of(model), backend(), "fp32")
    t = trainer(model, [Term("forget", data, UNDO.obj, "token", cache=cache)], [])
    assert t.backward()["forget"] == pytest.approx(0.0, abs=1e-5)
    corrupt(SimpleNamespace(alpha=0.25, beta=0.1), t.grads)
    assert t.backward()["forget"] > 1e-3
