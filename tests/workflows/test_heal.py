"""What follows the forgetting: steps towards what the model said of general text at the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu
from safetensors.torch import load_file
from test_undo import mean_kl, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from ilu_cli.engine.loop import Trainer
from ilu_cli.errors import RunFailed
from ilu_cli.recipe.load import load
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.specs import HealSpec, TrainSpec
from ilu_cli.workflows.training import Streams

FORGET = ["--method", "grad_ascent", "--steps", 3, "--lr", 1e-3, "--set", "forget.batch=2", "--set",
          "forget.max_length=24", "--set", "forget.data=[{name: capitals, limit: 8}]", "--set",
          "train.precision=fp32", "--set", "train.budget={kl: 5, data: [{name: elements, limit: 4}]}"]  # fmt: skip
HEAL = [
    "--set",
    "train.heal={data: [{name: elements, limit: 8}], batch: 2, max_length: 24, steps: 4, lr: 1e-3, warmup: 2}",
]


def run_of(ilu: Ilu, *args: Any) -> Path:
    done = ilu("unlearn", *args)
    assert done.code == 0, done.err
    return Path(done.out.strip().splitlines()[-1])


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_is_adamw_on_the_divergence_from_the_start(ilu: Ilu, tiny: Path) -> None:
    """Against a loop in plain PyTorch, from the checkpoint of the same run without healing."""
    forgot, healed = run_of(ilu, "--model", tiny, *FORGET), run_of(ilu, "--model", tiny, *FORGET, *HEAL)
    recipe = load(UnlearnRecipe, healed / "recipe.yaml", {}, [])
    data = Streams.of(recipe, AutoTokenizer.from_pretrained(tiny)).heal
    assert data is not None
    teacher = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    model = AutoModelForCausalLM.from_pretrained(forgot / "checkpoint", dtype=torch.float32).eval()
    before = weights(model)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    losses = []
    for step, rate in enumerate((0.5e-3, 1e-3, 1e-3, 0.5e-3)):  # two of warm-up, then down to 0 at the fifth
        optimizer.param_groups[0]["lr"] = rate
        rows = [data.stream.item(k) for k in data.stream.keys(step)]
        losses.append(mean_kl(teacher, model, rows))
        total = torch.zeros(())
        for e in rows:
            with torch.no_grad():
                p = teacher(torch.tensor([e.ids])).logits[0, :-1].log_softmax(-1)[e.start - 1 :]
            q = model(torch.tensor([e.ids])).logits[0, :-1].log_softmax(-1)[e.start - 1 :]
            total = total + (p.exp() * (p - q)).sum()
        (total / sum(e.targets for e in rows)).backward()
        optimizer.step()
        optimizer.zero_grad()
    first, told = rows_of(forgot), rows_of(healed)
    assert [r["forget"] for r in told[:3]] == [r["forget"] for r in first]
    assert [r["step"] for r in told] == [1, 2, 3, 4, 5, 6, 7]
    assert [r["lr"] for r in told[3:]] == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])
    assert [r["heal"] for r in told[3:]] == pytest.approx(losses, rel=1e-3)
    saved = load_file(healed / "checkpoint" / "model.safetensors")
    moved = 0.0
    for name, p in model.named_parameters():
        if name in saved:
            torch.testing.assert_close(saved[name].float(), p.detach(), rtol=0, atol=3e-5)
            moved = max(moved, float((p.detach() - before[name]).abs().max()))
    assert moved > 1e-3


def test_the_manifest_tells_what_was_spent_and_what_is_left(ilu: Ilu, tiny: Path) -> None:
    found = json.loads((run_of(ilu, "--model", tiny, *FORGET, *HEAL) / "manifest.json").read_text())["result"]
    assert found["steps"] == 3
    assert found["healed"]["steps"] == 4
    assert 0 < found["healed"]["kl"] < found["budget"]["kl"]


@pytest.mark.parametrize("at", [2, 5])
def test_a_run_that_was_stopped_goes_on(ilu: Ilu, tiny: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Stopped while it forgets or heals; what is done is not done again."""
    whole = run_of(ilu, "--model", tiny, *FORGET, *HEAL)
    update, done = Trainer._update, list[int]()

    def failing(trainer: Trainer, losses: dict[str, float]) -> float:
        if len(done) == at:
            raise RunFailed("stopped")
        done.append(trainer.step)
        return update(trainer, losses)

    monkeypatch.setattr(Trainer, "_update", failing)
    keys = ["--set", "train.save_every=1", "--out", tiny.parent / f"stopped-{at}"]
    assert ilu("unlearn", "--model", tiny, *FORGET, *HEAL, *keys).code == 5
    monkeypatch.setattr(Trainer, "_update", update)
    stopped = run_of(ilu, tiny.parent / f"stopped-{at}", "--resume")
    kept = ["step", "lr", "tokens", "forget", "heal"]
    assert [[r.get(k) for k in kept] for r in rows_of(stopped)] == [[r.get(k) for k in kept] for r in rows_of(whole)]
    one, other = (load_file(run / "checkpoint" / "model.safetensors") for run in (whole, stopped))
    assert all(torch.equal(one[n], other[n]) for n in one)
    results = [json.loads((run / "manifest.json").read_text())["result"] for run in (whole, stopped)]
    assert results[0]["budget"] == results[1]["budget"]
    assert results[0]["healed"] == results[1]["healed"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("{data: [capitals]}", "train.heal.data.0: 'capitals' is the forget data: it would be learned again"),
        ("{steps: 4, warmup: 4}", "train.heal.warmup: 4 warm-up steps do not fit into 4 steps"),
        ("{data: [nothing]}", "train.heal.data.0"),
    ],
)
def test_what_cannot_be_is_said_in_the_plan(ilu: Ilu, tiny: Path, keys: str, told: str) -> None:
    done = ilu("unlearn", "--model", tiny, *FORGET, "--set", f"train.heal={keys}", "--dry-run")
    assert done.code == 2
    assert told in done.err


def test_a_start_that_is_damaged_is_nothing_to_heal_towards(ilu: Ilu, tiny: Path) -> None:
    first = run_of(ilu, "--model", tiny, *FORGET)
    done = ilu("unlearn", first, "--recipe", "quickstart-undo", "--set", "train.heal={steps: 6}", "--dry-run")
    assert done.code == 2
    assert "train.heal: undo changes the weights before the first step" in done.err


def test_the_steps_that_heal_are_adamws_and_fall_to_nothing() -> None:
    spec = TrainSpec(optimizer="sgd", lr=9.0, points=[3], heal=HealSpec(steps=7, lr=1e-3, warmup=2)).healing
    assert spec is not None
    assert (spec.optimizer, spec.steps, spec.rate, spec.schedule, spec.warmup) == ("adamw", 7, 1e-3, "linear", 2)
    assert spec.points == []
    assert spec.heal is None
    assert TrainSpec().healing is None
