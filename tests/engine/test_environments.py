"""What environments do with gradients: taken out, put back, shifted and restored; and what they write into the log."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import gradient, items_of, present, stream, tiny_model, trainer

from ilu_cli.data.encode import collate
from ilu_cli.engine.accel import backend
from ilu_cli.engine.environments import Environments
from ilu_cli.engine.gradients import Gradients, Term
from ilu_cli.engine.loop import Penalty, Trainer
from ilu_cli.engine.view import View
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.specs import TrainSpec


def holding(*gradients: Any) -> Gradients:
    """Parameters [1, 2] with these gradients."""
    found = {}
    for n, g in enumerate(gradients):
        found[str(n)] = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        found[str(n)].grad = None if g is None else torch.tensor(g)
    return Gradients(parts_of(tiny_model()), found, TrainSpec(), 0, backend())


def held(grads: Gradients) -> list[Any]:
    return [None if p.grad is None else p.grad.tolist() for p in grads.params]


def test_gradients_are_taken_and_put_back() -> None:
    mine = holding([1.0, 2.0], None, [3.0, 4.0])
    taken = mine.take()
    assert held(mine) == [None, None, None]
    assert [None if g is None else g.tolist() for g in taken] == [[1.0, 2.0], None, [3.0, 4.0]]
    mine.put(taken)
    assert held(mine) == [[1.0, 2.0], None, [3.0, 4.0]]
    assert mine.params[0].grad is taken[0]


def test_gradients_are_added_times_a_factor() -> None:
    mine = holding([1.0, 2.0], None, [3.0, 4.0])
    mine.put([None, torch.tensor([5.0, 6.0]), torch.tensor([1.0, 1.0])], 2.0)
    assert held(mine) == [[1.0, 2.0], [10.0, 12.0], [5.0, 6.0]]
    mine.put([torch.tensor([1.0, 0.0]), None, torch.tensor([1.0, 1.0])])
    assert held(mine) == [[2.0, 2.0], [10.0, 12.0], [6.0, 7.0]]


def test_a_factor_of_one_leaves_what_is_given() -> None:
    mine, given = holding([1.0, 2.0]), torch.tensor([1.0, 1.0])
    mine.put([given], 1.0)
    assert given.tolist() == [1.0, 1.0]


def test_what_is_set_aside_comes_back_beside_what_is_new_whatever_happens() -> None:
    mine = holding([1.0, 2.0], None)
    with pytest.raises(KeyError), mine.aside():
        assert held(mine) == [None, None]
        mine.put([torch.tensor([10.0, 10.0]), torch.tensor([5.0, 5.0])])
        raise KeyError
    assert held(mine) == [[11.0, 12.0], [5.0, 5.0]]


def test_weights_are_shifted_and_are_back_to_the_bit_whatever_happens() -> None:
    mine = holding(None, None)
    with torch.no_grad():
        mine.params[0].copy_(torch.tensor([0.1, 1e8]))
    before = [p.detach().clone() for p in mine.params]
    with pytest.raises(KeyError), mine.shifted([torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])], 0.5):
        torch.testing.assert_close(mine.params[0].detach(), torch.tensor([0.6, 1e8 + 1]))
        assert mine.params[1].tolist() == [1.0, 4.0]
        raise KeyError
    assert all(torch.equal(p, old) for p, old in zip(mine.params, before))


def environments(t: Trainer, scale: float = 1.0, weights: Any = (1.0, 0.5)) -> Environments:
    streams = [stream(items_of(v, seed=len(n)), name=n) for n, v in {"one": [4, 6], "three": [5, 7]}.items()]
    return Environments(t.grads, streams, torch.tensor(weights, dtype=torch.float64), scale)


def test_the_log_names_statistic_and_environment() -> None:
    t = trainer(tiny_model(), [], [])
    envs = environments(t)
    value = envs.of_means("gap", lambda d: (envs.weights * d.square()).sum())
    assert set(envs.log) == {"D[one]", "D[three]", "nll[one]", "nll[three]"}
    assert value == pytest.approx(envs.log["D[one]"] ** 2 + 0.5 * envs.log["D[three]"] ** 2)
    other = environments(t)
    other.of_means("entropy", lambda h: h.sum())
    assert set(other.log) == {"entropy[one]", "entropy[three]", "nll[one]", "nll[three]"}
    third = environments(t)
    third.gradients()
    assert third.log == pytest.approx({k: v for k, v in envs.log.items() if k.startswith("nll")})


@pytest.mark.parametrize("of", ["gradients", "of_means"])
def test_what_was_in_the_parameters_stays_there(float64: None, of: str) -> None:
    t = trainer(tiny_model(), [Term("x", stream(items_of([5])), lambda view: view.nll, "token")], [])
    before = gradient(t)
    envs = environments(t, scale=0.0)
    envs.gradients() if of == "gradients" else envs.of_means("nll", lambda r: r.sum())
    after = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in t.params.values()])
    torch.testing.assert_close(after, before)


def test_gradients_are_those_of_float32_whatever_the_recipe_says() -> None:
    found = [environments(trainer(tiny_model(), [], [], precision=p)).gradients() for p in ("bf16", "fp32")]
    for bf16, fp32 in zip(*found):
        for a, b in zip(bf16, fp32):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_what_is_added_is_scaled_and_beside_what_is_there() -> None:
    t = trainer(tiny_model(), [], [])
    envs = environments(t, scale=0.5)
    ones = [torch.ones_like(p) for p in t.params.values()]
    envs.add([o.clone() for o in ones])
    envs.add([o.clone() for o in ones])
    assert all(torch.equal(present(p.grad), o) for p, o in zip(t.params.values(), ones))
    assert all(
        a.data_ptr() == p.data_ptr() and not a.requires_grad for a, p in zip(envs.parameters(), t.params.values())
    )


def test_a_penalty_of_weight_zero_is_watched_only() -> None:
    weights = {0: 0.0, 1: 2.0}

    def run(envs: Any) -> float:
        return float(envs.of_means("nll", lambda risk: risk.sum()))

    streams = [stream(items_of([4, 6]), name="one")]
    t = trainer(tiny_model(), [], [Penalty("p", streams, run, weights.__getitem__)])
    off = gradient(t)
    t.step = 1
    assert off.norm() == 0 < gradient(t).norm()


def test_the_log_is_of_the_whole_batch_however_it_is_cut(float64: None) -> None:
    logs = []
    for accumulation in (1, 2):
        envs = environments(trainer(tiny_model(), [], [], accumulation=accumulation))
        envs.of_means("gap", lambda d: d.sum())
        logs.append(envs.log)
    assert set(logs[0]) == {"D[one]", "D[three]", "nll[one]", "nll[three]"}
    assert logs[1] == pytest.approx(logs[0], rel=1e-12)


def test_the_log_counts_scored_tokens_and_keeps_the_digits_of_float64() -> None:
    """Half of the tokens are prompts. Each loss is summed in float64, though the model is in float32."""
    data, t = stream(items_of([6, 9, 7], start=4), name="one"), trainer(tiny_model(), [], [])
    envs = Environments(t.grads, [data], torch.ones(1, dtype=torch.float64), 1.0)
    envs.of_means("gap", lambda d: d.sum())
    view = View(t.grads.parts, collate([data.item(k) for k in data.keys(0)]), 0)
    assert envs.log["nll[one]"] == pytest.approx(view.nll.double().sum().item() / (2 + 5 + 3), rel=1e-12)


def test_of_two_halves_the_log_has_the_mean(float64: None) -> None:
    t, found = trainer(tiny_model(), [], []), {}
    for halves in (False, True):
        envs = environments(t)
        envs.of_means("gap", lambda d: d.sum(), halves=halves)
        found[halves] = envs.log
    streams = environments(t).streams
    for s in streams:
        parts = [View(t.grads.parts, collate([s.item(k) for k in s.keys(0)[n::2]]), 0) for n in (0, 1)]
        by_hand = [(v.gap.sum() / v.lengths.sum()).item() for v in parts]
        assert found[True][f"D[{s.name}]"] == pytest.approx(sum(by_hand) / 2, rel=1e-9)
    assert found[True] != pytest.approx(found[False], rel=1e-6)


def test_the_product_with_nothing_is_nothing_and_that_with_a_unit_vector_is_not() -> None:
    t = trainer(tiny_model(), [], [])
    envs = environments(t)
    none = [torch.zeros_like(p) for p in t.params.values()]
    assert all(torch.equal(x, y) for x, y in zip(envs.hessian_times(0, none), none))
    unit = [z.clone() for z in none]
    word = envs.streams[0].item(envs.streams[0].keys(0)[0]).ids[1]
    unit[0][word, 0] = 1.0
    assert sum(x.norm() for x in envs.hessian_times(0, unit)) > 1e-3
