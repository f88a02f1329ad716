"""What one step does with weights, rates, seeds and counts: each number by hand, or one run against another."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import gradient, items_of, noted, present, stream, tiny_model, trainer

from ilu_cli.data.encode import Corpus
from ilu_cli.defences import Defence
from ilu_cli.engine.gradients import Term, norm
from ilu_cli.engine.loop import Penalty, StepLog, Trainer, learning_rate
from ilu_cli.engine.stream import TrainStream
from ilu_cli.errors import RunFailed
from ilu_cli.recipe.specs import TrainSpec

LENGTHS = [6, 9, 5, 8]


def term(weight: float = 1.0, **more: Any) -> Term:
    return Term("loss", stream(items_of(LENGTHS)), lambda view: view.nll, "token", weight, **more)


def mean_nll(envs: Any) -> float:
    return float(envs.of_means("nll", lambda risk: (envs.weights * risk).sum()))


def flat(t: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in t.params.values()])


def test_a_term_counts_by_its_weight(float64: None) -> None:
    whole = gradient(trainer(tiny_model(), [term()], []))
    assert whole.norm() > 0.1
    torch.testing.assert_close(gradient(trainer(tiny_model(), [term(0.25)], [])), 0.25 * whole)


def test_a_weight_of_zero_is_a_value_without_a_gradient() -> None:
    t = trainer(tiny_model(), [term(0.0)], [])
    value = t.backward()["loss"]
    assert value == pytest.approx(trainer(tiny_model(), [term()], []).backward()["loss"])
    assert all(p.grad is None for p in t.params.values())


def test_a_term_is_of_weight_one_and_open_to_no_defence_unless_told() -> None:
    plain = Term("x", stream(items_of([4])), lambda view: view.nll, "token")
    assert (plain.weight, plain.layer, plain.defended, plain.cache.logps) == (1.0, None, False, {})


def test_weight_decay_takes_a_share_of_the_weights(float64: None) -> None:
    """AdamW (arXiv 1711.05101): decay is lr·λ·θ beside the step, and nothing else differs."""
    found = {}
    for decay in (0.0, 0.5):
        t = trainer(tiny_model(), [term()], [], steps=1, lr=1e-2, weight_decay=decay)
        before = flat(t)
        next(t.run())
        found[decay] = flat(t)
    torch.testing.assert_close(found[0.0] - found[0.5], 1e-2 * 0.5 * before)


def test_the_first_step_of_adam_is_the_learning_rate_in_every_weight(float64: None) -> None:
    t = trainer(tiny_model(), [term()], [], steps=4, lr=1e-3, warmup=2)
    grad, before = gradient(t), flat(t)
    log = next(t.run())
    large = grad.abs() > 1e-3  # Adam's ε of 1e-8 counts for nothing there
    torch.testing.assert_close((flat(t) - before)[large], -5e-4 * grad.sign()[large], rtol=1e-4, atol=0)
    assert log.lr == 5e-4


def test_every_step_has_the_rate_of_its_schedule() -> None:
    t = trainer(tiny_model(), [term()], [], steps=6, lr=1.0e-4, warmup=2, schedule="linear")
    assert [log.lr / 1e-4 for log in t.run()] == pytest.approx([1 / 2, 1, 1, 3 / 4, 1 / 2, 1 / 4])


def test_rates_by_hand() -> None:
    def rates(at: Any, **keys: Any) -> list[Any]:
        return [learning_rate(TrainSpec(lr=2.0, **keys), step) for step in at]

    assert rates([0, 1, 2, 3, 9], steps=10, warmup=3) == pytest.approx([2 / 3, 4 / 3, 2, 2, 2])
    assert rates([0, 4, 8], steps=8, schedule="linear") == [2, 1, 0]
    assert rates([2, 4, 6, 10], steps=10, warmup=2, schedule="cosine") == pytest.approx(
        [2, 1 + math.cos(math.pi / 4), 1, 0]
    )
    assert rates([0, 1, 2], steps=2, warmup=2, schedule="cosine") == pytest.approx([1, 2, 2])
    assert rates([3], steps=3, warmup=3, schedule="linear") == [2]  # nothing is left to decay over
    assert rates([0, 1], steps=1, schedule="linear") == [2, 0]


def test_a_log_counts_steps_and_the_tokens_of_terms_and_environments() -> None:
    environment = stream(items_of([3, 4, 7, 2]), batch=1, name="env")
    penalty = Penalty("env", [environment], mean_nll)
    t = trainer(tiny_model(), [term()], [penalty], steps=3)
    logs = list(t.run())
    assert [(log.step, log.steps) for log in logs] == [(1, 3), (2, 3), (3, 3)]
    expected = [sum(LENGTHS) + len(environment.item(environment.keys(s)[0]).ids) for s in range(3)]
    assert [log.tokens for log in logs] == expected
    assert len(set(expected)) > 1
    assert all(0 < log.seconds < 60 for log in logs)


def test_a_row_of_the_log() -> None:
    row = StepLog(3, 9, {"loss": 0.5}, 1e-3, 2.0, 17, 0.123456).row()
    assert row == {"step": 3, "loss": 0.5, "lr": 1e-3, "grad_norm": 2.0, "tokens": 17, "seconds": 0.1235}


def test_the_norm_in_the_log_is_that_of_the_whole_gradient() -> None:
    expected = gradient(trainer(tiny_model(), [term()], [])).norm().item()
    t = trainer(tiny_model(), [term()], [], steps=1, max_grad_norm=1e-3)
    assert next(t.run()).grad_norm == pytest.approx(expected, rel=1e-5)
    assert all(p.grad is None for p in t.params.values())


def test_a_gradient_below_the_limit_is_left_alone(float64: None) -> None:
    free, limited = (trainer(tiny_model(), [term()], [], steps=1, max_grad_norm=m) for m in (None, 1e6))
    norm = next(free.run()).grad_norm
    assert norm == pytest.approx(next(limited.run()).grad_norm)
    torch.testing.assert_close(flat(free), flat(limited), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("seed", [0, 1])
def test_chance_is_that_of_seed_and_step(seed: int) -> None:
    """Dropout resumes to the same bits because each step draws from a generator of its own."""

    def draws(seed: int, at: int = 0) -> list[float]:
        found: list[float] = []
        t = trainer(tiny_model(), [term()], [], steps=3)
        t.grads.seed, t.step = seed, at
        t.terms[0].values = lambda view: noted(found, torch.rand(()).item(), view.nll)
        for _ in t.run():
            torch.manual_seed(99)
        return found

    assert draws(seed) == draws(seed)
    assert draws(seed)[1:] == draws(seed, at=1)
    assert len({*draws(seed), *draws(seed + 5)}) == 6


def test_the_step_that_fails_is_named() -> None:
    t = trainer(tiny_model(), [term()], [], steps=3)
    steps = t.run()
    next(steps)
    t.terms = [*t.terms, Term("other", t.terms[0].stream, lambda view: view.nll * torch.nan, "token")]
    with pytest.raises(RunFailed, match="step 2: other is not finite") as failed:
        next(steps)
    assert "smaller learning rate" in present(failed.value.hint)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    """√x at 0 is finite, its slope is not."""
    t = trainer(tiny_model(), [], [], steps=1)
    t.terms = [Term("root", stream(items_of([5])), lambda view: (view.nll - view.nll.detach()).sqrt(), "token")]
    before = flat(t)
    with pytest.raises(RunFailed, match="step 1: the gradient is not finite"):
        next(t.run())
    assert torch.equal(flat(t), before)


def test_a_penalty_knows_the_step_and_counts_its_environments_alike_unless_told() -> None:
    seen = []

    def watch(envs: Any) -> float:
        seen.append((envs.scale, envs.weights.tolist()))
        return 0.0

    streams = [stream(items_of([4, 5]), name=n) for n in ("a", "b")]
    penalties = [
        Penalty("plain", streams, watch),
        Penalty("told", streams, watch, lambda step: 10.0 * step, env_weights=[0.5, 2.0]),
    ]
    list(trainer(tiny_model(), [term()], penalties, steps=2).run())
    assert seen == [(1.0, [1.0, 1.0]), (0.0, [0.5, 2.0]), (1.0, [1.0, 1.0]), (10.0, [0.5, 2.0])]


def test_a_lazy_penalty_is_taken_each_kth_step_with_k_times_its_weight(float64: None) -> None:
    """By hand: with plain descent, θ moves by −lr·(∇f + c·λ·∇e), c = 3, 0, 0, 3 at the steps 0 to 3."""
    rows = stream(items_of([3, 4, 7, 2]), batch=2, name="env")
    keys: dict[str, Any] = {"steps": 4, "lr": 1e-2, "optimizer": "sgd", "max_grad_norm": None}
    lazy = trainer(tiny_model(), [term()], [Penalty("env", [rows], mean_nll, lambda step: 0.5, every=3)], **keys)
    logs = []
    for log in lazy.run():
        logs.append(log)
        hand = trainer(tiny_model(), [], [], **keys)
        theta = hand.params
        for step in range(log.step):
            hand.step = step
            for each, weight in ((term().stream, 1.0), (rows, (1.5, 0.0, 0.0, 1.5)[step])):
                hand.grads.accumulate(Term("x", each, lambda view: view.nll, "token", weight))
            with torch.no_grad():
                for p in theta.values():
                    p.sub_(1e-2 * p.grad if p.grad is not None else 0)
                    p.grad = None
        torch.testing.assert_close(flat(lazy), flat(hand))
    assert ["env" in log.losses for log in logs] == [True, False, False, True]
    alone = sum(LENGTHS)
    assert [log.tokens > alone for log in logs] == [True, False, False, True]


def test_every_term_and_penalty_is_in_the_log_in_float64() -> None:
    """A share of 1e-9 beside one of 1 is not lost."""
    environment = [stream(items_of([4, 5]), name="a")]
    penalties = [Penalty("one", environment, lambda envs: 1.0), Penalty("two", environment, lambda envs: 2.0)]
    t = trainer(tiny_model(), [term()], penalties)
    found = t.backward()
    assert list(found) == ["loss", "one", "gradient[one]", "two", "gradient[two]"]
    assert (found["one"], found["two"]) == (1.0, 2.0)
    assert t.grads.accumulate(Term("x", t.terms[0].stream, lambda view: view.nll, "token")).dtype == torch.float64
    seen: list[torch.Tensor] = []
    t.penalties = [Penalty("x", environment, lambda envs: noted(seen, envs.weights, 0.0), env_weights=[0.1])]
    t.backward()
    assert (seen[0].dtype, seen[0].tolist()) == (torch.float64, [0.1])


def test_only_what_is_defended_is_given_to_the_defences() -> None:
    class Watch(Defence):
        log = {"watched": 1.0}
        seen: list[Any] = []

        def gradient(self, grads: Any, forget: Any, retain: Any, compute: Any) -> Any:
            self.seen.append((grads, forget))
            return compute()

    t = trainer(tiny_model(), [term(), Term("other", term().stream, lambda view: view.nll, "token")], [])
    t.defences = [Watch()]
    t.terms[1].defended = True
    found = t.backward()
    assert Watch.seen == [(t.grads, t.terms[1])]
    assert found["loss"] == pytest.approx(found["other"])
    assert found["watched"] == 1.0


def test_taking_the_gradient_leaves_none_and_tells_its_norm(float64: None) -> None:
    t = trainer(tiny_model(), [term()], [])
    whole = gradient(t)
    t.grads.named["unused"] = torch.nn.Parameter(torch.ones(2))
    found = t.grads.whole()
    assert norm(found) == pytest.approx(whole.norm().item(), rel=1e-12)
    assert all(p.grad is None for p in t.params.values())
    assert found[-1].tolist() == [0.0, 0.0]
    assert torch.equal(torch.cat([g.flatten() for g in found[:-1]]), whole)


def test_a_precision_that_is_asked_for_goes_before_the_recipes() -> None:
    kinds = []

    def look(view: Any) -> Any:
        kinds.append(torch.is_autocast_enabled("cpu"))
        return view.nll

    t = trainer(tiny_model(), [term()], [], precision="bf16")
    t.grads.accumulate(Term("x", t.terms[0].stream, look, "token"))
    t.grads.accumulate(Term("x", t.terms[0].stream, look, "token"), precision="fp32")
    assert kinds == [True, False]


def test_a_batch_of_another_step_can_be_asked_for() -> None:
    data, lengths = stream(items_of([3, 4, 5, 6, 7, 8]), batch=2), []

    def look(view: Any) -> Any:
        lengths.append(sorted(view.batch.mask.sum(-1).tolist()))
        return view.nll

    t = trainer(tiny_model(), [], [])
    t.step = 1
    for step in (None, 0, 2):
        t.grads.accumulate(Term("x", data, look, "token"), step=step)
    assert lengths == [sorted(len(data.item(k).ids) for k in data.keys(s)) for s in (1, 0, 2)]
    assert lengths[0] != lengths[1]


def test_what_should_be_said_instead_is_seen_beside_each_row() -> None:
    """Row for row, with its own reference, and nothing of it where the stream has none."""
    data = stream(items_of([5, 4, 6]), batch=3)
    data.chosen = stream(items_of([3, 7, 4], seed=8), batch=3)
    t, seen = trainer(tiny_model(), [], []), []

    def look(view: Any) -> Any:
        seen.append((view.batch.ids.shape, view.chosen))
        return view.nll

    t.grads.accumulate(Term("x", data, look, "token"))
    (shape, chosen) = seen[0]
    rows = [data.chosen.item(k).ids for k in data.keys(0)]
    assert [row[mask].tolist() for row, mask in zip(chosen.batch.ids, chosen.batch.mask)] == rows
    assert chosen.seed == t.grads.seed
    assert chosen.layer is None
    assert chosen.reference.logps is None
    data.chosen = None
    t.grads.accumulate(Term("x", data, look, "token"))
    assert seen[1] == (shape, None)


def test_a_view_knows_which_dataset_each_row_is_of() -> None:
    """Two datasets, told apart by their lengths, in micro-batches of two."""
    data = TrainStream("forget", [Corpus(items_of([4] * 3), 0), Corpus(items_of([7] * 3), 0)], 4, 0)
    t, seen = trainer(tiny_model(), [], [], accumulation=2), list[Any]()

    def look(view: Any) -> Any:
        seen.extend(zip(view.batch.mask.sum(-1).tolist(), view.topics, strict=True))
        return view.nll

    for step in range(3):
        t.grads.accumulate(Term("x", data, look, "token"), step=step)
    assert set(seen) == {(4, 0), (7, 1)}
    assert len(seen) == 12
