"""RepSelect against singular values by hand and a LoRA that is really built; and the budget that stops training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu, gradient, items_of, present, stream, tiny_model, trainer
from torch.func import functional_call

from ilu_cli.data.encode import Encoded, collate
from ilu_cli.data.sampling import seed_of
from ilu_cli.defences.repselect import RepSelect, collapsed, leading, located, passes
from ilu_cli.engine.budget import Budget
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.stream import RowKey
from ilu_cli.engine.view import View
from ilu_cli.errors import RunFailed, UsageError


def drawn(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("how", "sides", "expected"),
    [
        ("soft", "both", lambda s, k: s[k - 1] ** 2 / s),
        ("soft", "inputs", lambda s, k: s[k - 1] + 0 * s),
        ("soft", "outputs", lambda s, k: s[k - 1] + 0 * s),
        ("quadratic", "inputs", lambda s, k: s[k - 1] ** 2 / s),
        ("quadratic", "both", lambda s, k: s[k - 1] ** 4 / s**3),
        ("hard", "both", lambda s, k: 0 * s),
    ],
)
def test_the_first_singular_values_are_scaled_down_and_the_others_stay(how: Any, sides: Any, expected: Any) -> None:
    g, k = drawn(5, 7), 3
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    found = u.T @ collapsed(g, u[:, :k], s[:k], vt[:k].T, how, sides) @ vt.T
    wanted = torch.cat([expected(s[:k], k), s[k:]])
    torch.testing.assert_close(found, torch.diag(wanted), rtol=1e-10, atol=1e-10)


def test_directions_of_another_matrix_are_taken_out_from_their_side_only() -> None:
    g, other = drawn(5, 7), drawn(7, 5).T
    u, s, v = leading(other, 0.4, "w")
    assert s.shape == (2,)
    inputs, outputs = (collapsed(g, u, s, v, "hard", side) for side in ("inputs", "outputs"))
    torch.testing.assert_close(inputs @ v, torch.zeros(5, 2, dtype=g.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(u.T @ outputs, torch.zeros(2, 7, dtype=g.dtype), rtol=0, atol=1e-12)
    assert (u.T @ inputs).norm() > 0.1


def test_a_low_rank_gives_fewer_directions_and_none_is_refused() -> None:
    g = drawn(6, 2) @ drawn(2, 8)
    assert leading(g, 0.5, "w")[1].shape == (2,)
    with pytest.raises(UsageError, match="gradient of w is 0"):
        leading(0 * g, 0.5, "w")


def nll(model: Any, weights: dict[str, torch.Tensor], items: list[Encoded]) -> torch.Tensor:
    batch = collate(items)
    out = functional_call(model, weights, (batch.ids,), {"attention_mask": batch.mask})
    logp = out.logits[:, :-1].log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
    found: torch.Tensor = -logp[batch.scored[:, 1:]].mean()
    return found


@pytest.mark.parametrize("way", ["built", "followed", "used otherwise"])
def test_the_attacker_is_a_lora_that_was_trained(float64: None, way: str) -> None:
    """Two batches of SGD on A and B themselves, through plain autograd."""
    model, items = tiny_model(), items_of([5, 8, 6, 7])
    data = stream(items, batch=2)
    t = trainer(model, [Term("forget", data, lambda v: -v.nll, "token", defended=True)], [])
    defence = RepSelect(attacker_lr=0.2, rank=2, k=0.3, built=way != "followed")
    if way == "used otherwise":  # a weight that something else than its linear map multiplies by
        mlp = model.model.layers[1].mlp
        mlp.down_proj.register_forward_hook(lambda m, args, _: args[0] @ m.weight.T)
    found = defence._attacker(t.grads, t.terms[0])
    assert all(p.requires_grad and p.grad is None for p in t.params.values())
    names, where = list(t.params), located(t.grads)
    generator = torch.Generator().manual_seed(seed_of(0, "repselect", 0))
    start = {n: p.detach() for n, p in t.params.items()}
    pairs: dict[str, Any] = {}
    for i, m in where:
        rows, columns = m.of(start[names[i]]).shape
        a = torch.empty(2, columns).uniform_(-1, 1, generator=generator) / columns**0.5
        pairs[names[i]] = (torch.zeros(rows, 2).requires_grad_(), a.requires_grad_())
    assert len(pairs) == 3 * 7
    assert passes(data) == 2
    for step in range(2):
        batch = [data.item(k) for k in data.keys(step)]
        loss = nll(model, {n: w + pairs[n][0] @ pairs[n][1] if n in pairs else w for n, w in start.items()}, batch)
        flat = [x for pair in pairs.values() for x in pair]
        slopes = torch.autograd.grad(loss, flat)
        with torch.no_grad():
            for x, g in zip(flat, slopes):
                x -= 0.2 * g
    for n, delta in zip(names, found):
        wanted = (pairs[n][0] @ pairs[n][1]).detach() if n in pairs else torch.zeros_like(delta)
        torch.testing.assert_close(delta, wanted, rtol=1e-8, atol=1e-10)
    assert defence.log["attacker nll at last"] < defence.log["attacker nll at first"]


def test_a_shot_is_the_filtered_gradient_of_all_data_at_the_attackers_weights(float64: None) -> None:
    model, items = tiny_model(), items_of([5, 8, 6, 7])
    data = stream(items, batch=2)
    t = trainer(model, [Term("forget", data, lambda v: -v.nll, "token", defended=True)], [])
    t.defences = [RepSelect(attacker_lr=0.2, rank=2, k=0.3)]
    shot = RepSelect(attacker_lr=0.2, rank=2, k=0.3)
    delta = shot._attacker(t.grads, t.terms[0])
    gradient(t)
    there = {n: (p + d).detach().requires_grad_() for (n, p), d in zip(t.params.items(), delta)}
    batches = [[data.item(k) for k in data.keys(step)] for step in range(2)]
    loss = -torch.stack([nll(model, there, batch) for batch in batches]).sum() / 2
    slopes = dict(zip(there, torch.autograd.grad(loss, list(there.values()))))
    places = {list(t.params)[i] for i, _ in located(t.grads)}
    for name, p in t.params.items():
        assert p.grad is not None
        if name not in places:
            assert p.grad.norm() == 0
            continue
        u, s, v = leading(slopes[name].float(), 0.3, name)
        torch.testing.assert_close(
            p.grad.float(), collapsed(slopes[name].float(), u, s, v, "soft", "both"), rtol=1e-3, atol=1e-6
        )


def test_a_shot_serves_until_the_next_and_is_resumed() -> None:
    t = trainer(tiny_model(), [Term("forget", stream(items_of([5, 8])), lambda v: -v.nll, "token", defended=True)], [])
    defence = RepSelect(k=0.3, every=2)
    t.defences, found = [defence], []
    for step in range(4):
        t.step = step
        found.append(gradient(t).clone())
        with torch.no_grad():
            for p in t.params.values():
                p.mul_(1.01)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    other = RepSelect(k=0.3, every=2)
    other.load(defence.state())
    t.defences = [other]
    assert torch.equal(gradient(t), found[3])


def test_plain_descent_follows_the_gradient() -> None:
    t = trainer(tiny_model(), [Term("x", stream(items_of([5, 8])), lambda v: v.nll, "token")], [], lr=0.1, steps=1,
                optimizer="sgd")  # fmt: skip
    before = {n: p.detach().clone() for n, p in t.params.items()}
    slopes = gradient(t).clone()
    list(t.run())
    moved = torch.cat([(before[n] - p.detach()).flatten() for n, p in t.params.items()])
    torch.testing.assert_close(moved, 0.1 * slopes, rtol=1e-4, atol=1e-6)


def test_training_keeps_the_last_weights_within_the_budget() -> None:
    """KL(start ‖ now) per token, by plain log-probabilities."""
    model, text = tiny_model(), items_of([9, 7], seed=5)

    def logp() -> torch.Tensor:
        batch = collate(text)
        with torch.no_grad():
            found = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].log_softmax(-1)
        out: torch.Tensor = found[batch.scored[:, 1:]]
        return out

    start, seen = logp(), [0.0]
    terms = [Term("x", stream(items_of([5, 8])), lambda v: -v.nll, "token")]
    t = trainer(model, terms, [], lr=0.01, steps=60, optimizer="sgd")
    t.budget = Budget.of(stream(text, name="budget"), 0.05, t.grads)
    for log in t.run():
        now = logp()
        seen.append(float((start.exp() * (start - now)).sum(-1).mean()))
        assert log.losses["budget kl"] == pytest.approx(seen[-1], rel=1e-3, abs=1e-6)
    assert 0 < t.step < 60
    assert seen[-1] <= 0.05 < present(t.budget.over)
    assert float((start.exp() * (start - logp())).sum(-1).mean()) == pytest.approx(seen[-1], rel=1e-5)
    assert t.budget.facts() == {"kl": t.budget.spent, "limit": 0.05, "beyond": t.budget.over}


def test_a_budget_is_measured_in_float32_and_leaves_no_gradient() -> None:
    model, text = tiny_model(), items_of([9, 7], seed=5)
    t = trainer(model, [Term("x", stream(items_of([5, 8])), lambda v: -v.nll, "token")], [], precision="bf16")
    budget = Budget.of(stream(text, name="budget"), 0.5, t.grads)
    assert budget.facts() == {"kl": 0.0, "limit": 0.5, "beyond": None}
    batch = collate(text)

    def logp() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].log_softmax(-1)
            return found

    start = logp()[batch.scored[:, 1:]]
    with torch.no_grad():
        for p in t.params.values():
            p.mul_(1.01)
    exact = float((start.exp() * (start - logp()[batch.scored[:, 1:]])).sum(-1).mean())
    assert budget.admits(t.grads, budget.before(t.grads))
    assert budget.spent == pytest.approx(exact, rel=1e-4)
    assert all(p.grad is None for p in t.params.values())


def test_a_first_step_beyond_the_budget_is_named() -> None:
    t = trainer(tiny_model(), [Term("x", stream(items_of([5, 8])), lambda v: -v.nll, "token")], [], lr=10.0, steps=2,
                optimizer="sgd")  # fmt: skip
    t.budget = Budget.of(stream(items_of([9])), 1e-3, t.grads)
    with pytest.raises(RunFailed, match="first step goes beyond the budget"):
        list(t.run())


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["defences=[{name: repselect, directions: retain}]", "retain=null"], "no retain data"),
        (["defences=[{name: repselect, shot: step, every: 3}]"], "leave it out"),
        (["defences=[{name: repselect, k: 1.5}]"], "less than or equal to 1"),
        (["train.budget={kl: 0}"], "greater than 0"),
        (["train.budget={kl: 0.1, data: nothinglikeit}"], "nothinglikeit"),
    ],
)
def test_what_cannot_be_is_refused_with_the_recipe(ilu: Ilu, sets: list[str], message: str) -> None:
    done = ilu("unlearn", "--method", "npo", "--dry-run", *(x for text in sets for x in ("--set", text)))
    assert done.code == 2, done.err
    assert message in done.err


def test_it_runs_within_a_budget_and_says_so(ilu: Ilu, tiny: Path) -> None:
    sets = ["train.optimizer=sgd", "train.lr=0.05", "train.steps=30", "train.params=['*mlp*']", "forget.batch=8"]
    sets += ["defences=[{name: repselect, k: 0.2}]", "train.budget={kl: 0.001, data: elements, rows: 6}"]
    sets += ["retain=null", "forget.data=[{name: capitals, limit: 16}]"]
    args = [x for text in sets for x in ("--set", text)]
    done = ilu("unlearn", "--method", "grad_ascent", "--model", tiny, "--json", *args)
    assert done.code == 0, done.err
    budget = json.loads(done.out)["result"]["budget"]
    assert 0 < budget["kl"] <= budget["limit"] == 0.001
    assert "the budget was not reached" in done.err if budget["beyond"] is None else budget["beyond"] > 0.001


def test_rows_bound_the_pass_of_attacker_and_shot() -> None:
    data = stream(items_of([5, 8, 6, 7, 5]), batch=2)
    assert [passes(data), passes(data, 3), passes(data, 100)] == [3, 2, 3]
    term = Term("forget", data, lambda v: -v.nll, "token", defended=True)
    found = []
    for rows in (None, 4, 6):
        t = trainer(tiny_model(), [term], [])
        t.defences = [RepSelect(k=0.3, rows=rows)]
        found.append(gradient(t))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("spec", [{}, {"accumulation": 2}, {"packing": False}])
def test_a_mean_gradient_divides_each_row_as_in_its_own_step(
    float64: None, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any]
) -> None:
    data = stream(items_of([5, 18, 6, 7, 5, 12, 4]), batch=2)
    t = trainer(tiny_model(), [Term("forget", data, lambda v: -v.nll, "token", weight=0.5)], [], **spec)
    seen: list[int] = []
    view_of = t.grads._view

    def counted(term: Term, keys: list[RowKey], kind: type[View]) -> View:
        seen.append(len(keys))
        return view_of(term, keys, kind)

    monkeypatch.setattr(t.grads, "_view", counted)
    found = t.grads.mean(t.terms[0], 3)
    joined, seen[:] = list(seen), []
    for step in range(3):
        t.grads.accumulate(t.terms[0], step=step)
    wanted = [g / 3 for g in t.grads.whole()]
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert sum(joined) == sum(seen) == 6
    assert (len(joined) < len(seen)) is (spec != {"packing": False})
