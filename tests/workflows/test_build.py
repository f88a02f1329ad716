"""What the recipe says reaches the trainer: the retain term's weight, weight decay, topics, a dataset's own length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import gradient, items_of, noted, present, stream, tiny_model, trainer

from ilu_cli import registry
from ilu_cli.data.encode import Corpus, Encoded, collate
from ilu_cli.engine.accel import backend
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.stream import TrainStream
from ilu_cli.models.load import load_model
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.load import validate
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.source import Layers
from ilu_cli.runs.store import Store
from ilu_cli.workflows import unlearn
from ilu_cli.workflows.training import build_trainer

LAYER = 1


def built(tiny: Path, **keys: Any) -> Any:
    """The trainer of a recipe on the tiny model."""
    form = {"batch": 4, "max_length": 16}
    data = {
        "model": {"ref": str(tiny)},
        "objective": {"name": "grad_diff"},
        "forget": {"data": "capitals"} | form,
        "retain": {"name": "nll", "data": "elements"} | form | keys.pop("retain", {}),
        "train": {"precision": "fp32"} | keys.pop("train", {}),
    } | keys
    plan = unlearn.plan(validate(UnlearnRecipe, Layers(data)), Store())
    model = load_model(plan.subject)
    return build_trainer(plan.recipe, plan.streams, Scorer(model, parts_of(model), plan.tokenizer, backend()))


def test_the_retain_weight_multiplies_the_retain_gradient(tiny: Path) -> None:
    none, one, eight = (gradient(built(tiny, retain={"weight": w})) for w in (0.0, 1.0, 8.0))
    assert (one - none).norm() > 0.1 * none.norm()
    torch.testing.assert_close(eight, none + 8 * (one - none), rtol=1e-4, atol=1e-5)


def test_weight_decay_shrinks_the_weights_by_rate_times_decay(tiny: Path) -> None:
    """AdamW takes lr·λ·θ off beside the step, which is the same step."""
    found = []
    for decay in (0.0, 0.5):
        t = built(tiny, train={"weight_decay": decay, "lr": 1e-2, "steps": 1})
        before = {n: p.detach().clone() for n, p in t.params.items()}
        next(t.run())
        found.append({n: p.detach().clone() for n, p in t.params.items()})
    for n, p in before.items():
        torch.testing.assert_close(found[0][n] - found[1][n], 1e-2 * 0.5 * p, rtol=1e-3, atol=1e-7)


def test_rmu_has_a_direction_for_each_forget_dataset() -> None:
    """Against its definition over plain hidden states, each row with the direction of its topic."""
    first, second = items_of([5, 7, 6], start=1), items_of([8, 5, 9], start=1, seed=3)
    data = TrainStream("forget", [Corpus(first, 0), Corpus(second, 0)], 6, 0)
    keys = {"layer": LAYER, "coefficient": 3.0, "adaptive": False}
    term = Term("forget", data, lambda v: registry.objective["rmu"].obj(v, **keys), "hidden token", 1.0, LAYER)
    model = tiny_model()
    seen: list[Any] = []
    values = term.values
    term.values = lambda v: noted(seen, v, values(v))
    t = trainer(model, [term], [], accumulation=2)
    value = t.backward()["forget"]
    u = [seen[0].direction("rmu", topic) for topic in (0, 1)]
    assert [float(x.norm()) for x in u] == pytest.approx([1.0, 1.0])
    assert torch.equal(u[0], seen[0].direction("rmu"))  # one topic is as it always was
    assert float(u[0] @ u[1]) < 0.95
    total = count = 0.0
    for rows, direction in ((first, u[0]), (second, u[1])):
        batch = collate(rows)
        out = model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
        real = batch.mask.clone()
        real[:, 0] = False
        error = (out.hidden_states[LAYER + 1].detach() - 3.0 * direction).square().mean(-1)
        total, count = total + float(error[real].sum()), count + int(real.sum())
    assert value == pytest.approx(total / count, rel=1e-5)


def test_topics_survive_a_defence_that_looks_afresh() -> None:
    batch = collate(items_of([4, 4]))
    from ilu_cli.engine.view import View
    from ilu_cli.models.parts import parts_of

    view = View(parts_of(tiny_model()), batch, 0, LAYER, topics=[1, 0])
    again = view.afresh().directions("rmu")
    assert torch.equal(again, view.directions("rmu"))
    assert not torch.equal(again[0], again[1])


def test_a_dataset_may_have_a_length_of_its_own(tiny: Path) -> None:
    Path("a.jsonl").write_text(
        "".join(json.dumps({"text": "the capital of a country is a city " * 9}) + "\n" for _ in range(4))
    )
    forget = {"data": [{"name": "a.jsonl", "max_length": 24}, {"name": "capitals"}], "batch": 4, "max_length": 8}
    longest = [c.longest for c in built(tiny, forget=forget).terms[0].stream.corpora]
    assert longest == [24, 8]


def test_the_published_recipes_have_the_authors_numbers() -> None:
    from ilu_cli.recipe.load import load, shipped

    rmu = load(UnlearnRecipe, shipped()["wmdp-rmu"], {}, [])
    assert [d.max_length for d in rmu.forget.data] == [None, 768]
    assert (rmu.forget.max_length, rmu.forget.batch, rmu.train.steps, rmu.train.lr) == (512, 4, 150, 5e-5)
    retain = present(rmu.retain)
    assert (rmu.objective.params()["coefficient"], retain.weight, retain.data[0].split) == (6.5, 1200, "test")
    simnpo = load(UnlearnRecipe, shipped()["tofu-simnpo"], {}, [])
    keys = simnpo.objective.params()
    assert (keys["beta"], keys["delta"], present(simnpo.retain).weight) == (4.5, 0, 1 / 0.125)


def test_simnpo_by_the_authors_code_is_ours_with_their_weights() -> None:
    """Their 0.125·F + R, with β·(NLL/|y| − γ) inside, has the direction of our F + 8·R, with δ = β·γ."""
    rows, kept = items_of([5, 8, 6], start=2), items_of([7, 5], start=2, seed=5)
    model, beta, gamma = tiny_model(), 4.5, 0.3
    simnpo = registry.objective["simnpo"].obj
    terms = [
        Term("forget", stream(rows), lambda v: simnpo(v, beta=beta, delta=beta * gamma), "sequence"),
        Term("retain", stream(kept, name="retain"), lambda v: v.nll, "token", 8.0),
    ]
    ours = gradient(trainer(model, terms, []))

    def nll(items: list[Encoded]) -> tuple[Any, Any]:
        batch = collate(items)
        logp = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].log_softmax(-1)
        return -logp.gather(-1, batch.ids[:, 1:, None])[..., 0] * batch.scored[:, 1:], batch.scored[:, 1:]

    (f, scored), (r, counted) = nll(rows), nll(kept)
    inside = f.sum(-1) / scored.sum(-1) - gamma
    loss = 0.125 * (-torch.nn.functional.logsigmoid(beta * inside).mean() * 2 / beta) + r.sum() / counted.sum()
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(ours, 8 * theirs, rtol=1e-4, atol=1e-4)
