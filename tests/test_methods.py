"""The matrix: every objective, retain term and regulariser, against its definition written out over full logits."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import LAYERS, gradient, items_of, stream, tiny_model, trainer
from torch.nn.functional import logsigmoid

from ilu_cli import registry
from ilu_cli.data.encode import Encoded, collate
from ilu_cli.engine.accel import backend
from ilu_cli.engine.loop import Penalty, Term
from ilu_cli.engine.reference import fill
from ilu_cli.engine.view import View
from ilu_cli.models.load import parts_of

LAYER = 1
KINDS = {"objective": registry.objective, "retain": registry.retain_term}


class Plain:
    """A batch seen through a plain transformers forward pass: padded logits and hidden states, nothing fused."""

    def __init__(self, model, items: list[Encoded]) -> None:
        batch = collate(items)
        out = model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
        self.logp = out.logits[:, :-1].log_softmax(-1)
        self.nll = -self.logp.gather(-1, batch.ids[:, 1:, None])[..., 0]
        self.entropy = -(self.logp.exp() * self.logp).sum(-1)
        self.scored = batch.scored[:, 1:].to(self.nll.dtype)
        self.hidden, self.real = out.hidden_states[LAYER + 1], batch.mask.clone()
        self.real[:, 0] = False

    @property
    def logps(self):
        return -(self.nll * self.scored).sum(-1)

    def token_mean(self, values):
        return (values * self.scored).sum() / self.scored.sum()

    def hidden_mean(self, error):
        return (error.mean(-1) * self.real).sum() / self.real.sum()


def direction(size: int) -> torch.Tensor:
    batch = collate(items_of([3]))
    model = tiny_model()
    return View(parts_of(model), batch, 0, LAYER).direction("rmu")[:size]


# name → (recipe keys, definition over the current and the original model's Plain view)
OBJECTIVES = {
    "grad_diff": ({}, lambda now, ref: -now.token_mean(now.nll)),
    "npo": ({"beta": 0.7}, lambda now, ref: (-2 / 0.7 * logsigmoid(-0.7 * (now.logps - ref.logps))).mean()),
    "rmu": (
        {"layer": LAYER, "coefficient": 3.0, "adaptive": False},
        lambda now, ref: now.hidden_mean((now.hidden - 3.0 * direction(now.hidden.shape[-1])) ** 2),
    ),
}
RETAIN = {
    "nll": ({}, lambda now, ref: now.token_mean(now.nll)),
    "hidden_mse": ({}, lambda now, ref: now.hidden_mean((now.hidden - ref.hidden.detach()) ** 2)),
}
CASES = [("objective", n) for n in OBJECTIVES] + [("retain", n) for n in RETAIN]


def moved(seed: int = 0):
    """A model that has moved away from the original, so that no term sits at its minimum."""
    model = tiny_model(seed=seed)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=g)
    return model


def case(kind: str, name: str):
    return (OBJECTIVES if kind == "objective" else RETAIN)[name]


def term(kind: str, name: str, items: list[Encoded], seed: int = 0) -> Term:
    """The registered function as the engine runs it, its reference taken from the original model."""
    entry, keys = KINDS[kind][name], case(kind, name)[0]
    data = stream(items, seed=seed)
    needs = set(entry.declared["needs"].split())
    cache = fill(data, needs, LAYER, 1, parts_of(tiny_model()), backend(), "fp32")
    return Term(kind, data, lambda view: entry.obj(view, **keys), entry.declared["per"], 1.0, LAYER, cache)


def items(pads: bool = True) -> list[Encoded]:
    return items_of([5, 9, 7, 9] if pads else [9, 9, 9, 9], start=3)


def test_every_method_stands_in_the_matrix():
    assert set(OBJECTIVES) == set(registry.objective)
    assert set(RETAIN) == set(registry.retain_term)
    assert set(PENALTIES) == set(registry.regularizer)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_value_and_gradient_are_those_of_the_definition(float64, kind, name):
    model, rows = moved(), items()
    t = trainer(model, [term(kind, name, rows)], [])
    value = t.gradients()[kind]
    found = {n: None if p.grad is None else p.grad.clone() for n, p in t.params.items()}
    model.zero_grad()
    expected = case(kind, name)[1](Plain(model, rows), Plain(tiny_model(), rows))
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-9)
    for n, p in t.params.items():
        want = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(torch.zeros_like(p) if found[n] is None else found[n], want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_gradient_is_not_zero(kind, name):
    assert gradient(trainer(moved(), [term(kind, name, items())], [])).norm() > 1e-4


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_neither_padding_nor_order_nor_split_matters(float64, kind, name):
    rows = items()
    whole = gradient(trainer(moved(), [term(kind, name, rows)], []))
    for accumulation, seed in ((2, 0), (4, 0), (1, 5)):  # each split pads differently; the seed changes the order
        t = trainer(moved(), [term(kind, name, rows, seed)], [], accumulation=accumulation)
        torch.testing.assert_close(gradient(t), whole, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_is_not_scored_is_not_learned(float64, kind, name):
    """Padding ids never matter. (Prompt tokens matter only as context, and for hidden states.)"""
    rows = items()
    t = term(kind, name, rows)
    keys = t.stream.keys(0)
    found = []
    for pad in (0, 17):
        batch = collate([t.stream.item(k) for k in keys], pad)
        found.append(t.values(View(parts_of(moved()), batch, 0, LAYER, t.cache.of(keys, torch.device("cpu")))))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_npo_by_hand(float64):
    """At the original model the ratio is 0: the loss is (2/β)·ln 2, and its slope by log π is exactly 1."""
    rows = items()
    t = trainer(tiny_model(), [term("objective", "npo", rows)], [])
    assert t.gradients()["objective"] == pytest.approx(2 / 0.7 * math.log(2), rel=1e-9)


def test_npo_mean_reduction_divides_by_each_length(float64):
    rows = items()
    cache_term = term("objective", "npo", rows)
    cache_term.values = lambda v: registry.objective["npo"].obj(v, beta=0.7, reduction="mean")
    now, ref = Plain(moved(), rows), Plain(tiny_model(), rows)
    ratio = (now.logps - ref.logps) / now.scored.sum(-1)
    value = trainer(moved(), [cache_term], []).gradients()["objective"]
    assert value == pytest.approx((-2 / 0.7 * logsigmoid(-0.7 * ratio)).mean().item(), rel=1e-9)


def test_adaptive_rmu_scales_by_the_retain_norm(float64):
    t = term("objective", "rmu", items())
    t.cache.norm = 2.5
    t.values = lambda v: registry.objective["rmu"].obj(v, layer=LAYER, coefficient=3.0, adaptive=True)
    now = Plain(moved(), items())
    expected = now.hidden_mean((now.hidden - 7.5 * direction(now.hidden.shape[-1])) ** 2)
    assert trainer(moved(), [t], []).gradients()["objective"] == pytest.approx(expected.item(), rel=1e-9)


# -- regularisers ---------------------------------------------------------------------------------------------------

PENALTIES = {
    "irm": ({}, lambda envs: sum(e.token_mean(e.nll - e.entropy) ** 2 for e in envs)),
    "env_ce": ({}, lambda envs: sum(e.token_mean(e.nll) for e in envs)),
}


def environments(seed: int = 0) -> list:
    shapes = {"one": [4, 8, 6, 6], "two": [7, 5, 9, 3]}
    return [stream(items_of(v, start=2, seed=len(k)), name=k, seed=seed) for k, v in shapes.items()]


def penalty(name: str, weight: float = 1.0, seed: int = 0) -> Penalty:
    entry, keys = registry.regularizer[name], PENALTIES[name][0]
    return Penalty(name, entry.declared["needs"], environments(seed), lambda values: entry.obj(values, **keys), weight)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalty_value_and_gradient_are_those_of_the_definition(float64, name):
    model = moved()
    t = trainer(model, [], [penalty(name, 0.5)])
    value = t.gradients()[name]
    found = {n: p.grad.clone() for n, p in t.params.items()}
    model.zero_grad()
    expected = PENALTIES[name][1]([Plain(model, e.corpora[0].items) for e in environments()])
    (0.5 * expected).backward()
    assert value == pytest.approx(expected.item(), rel=1e-9)
    for n, p in t.params.items():
        torch.testing.assert_close(found[n], p.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalty_gradient_is_not_zero(name):
    assert gradient(trainer(moved(), [], [penalty(name)])).norm() > 1e-3


@pytest.mark.parametrize("name", PENALTIES)
def test_penalty_is_of_the_whole_batch_not_of_its_parts(float64, name):
    whole = gradient(trainer(moved(), [], [penalty(name)]))
    for accumulation, seed in ((2, 0), (4, 0), (1, 3)):
        t = trainer(moved(), [], [penalty(name, seed=seed)], accumulation=accumulation)
        torch.testing.assert_close(gradient(t), whole, rtol=1e-6, atol=1e-10)


def test_penalties_and_terms_add_up(float64):
    rows = items()
    alone = gradient(trainer(moved(), [term("objective", "npo", rows)], []))
    irm = gradient(trainer(moved(), [], [penalty("irm", 0.3)]))
    both = gradient(trainer(moved(), [term("objective", "npo", rows)], [penalty("irm", 0.3)]))
    torch.testing.assert_close(both, alone + irm, rtol=1e-9, atol=1e-12)


def test_d_of_each_environment_is_logged():
    logs = trainer(moved(), [], [penalty("irm")]).gradients()
    assert logs["irm"] == pytest.approx(logs["D[one]"] ** 2 + logs["D[two]"] ** 2, rel=1e-6)


# -- what is not computed -------------------------------------------------------------------------------------------


def test_rmu_runs_no_layer_above_its_own_and_no_head():
    model, calls = moved(), dict.fromkeys(range(LAYERS), 0) | {"head": 0, "norm": 0}
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    model.model.norm.register_forward_hook(lambda *_: calls.__setitem__("norm", calls["norm"] + 1))
    model.lm_head.register_forward_hook(lambda *_: calls.__setitem__("head", calls["head"] + 1))
    parts = parts_of(model)
    t = trainer(model, [term("objective", "rmu", items()), term("retain", "hidden_mse", items())], [])
    from ilu_cli.engine import head

    used = []
    original = head._TokenStats.apply
    head._TokenStats.apply = lambda *a: used.append(1) or original(*a)  # the fused head, if anybody used it
    try:
        t.gradients()
    finally:
        head._TokenStats.apply = original
    assert len(parts.layers) == LAYERS
    assert calls == {0: 2, 1: 2, 2: 0, "head": 0, "norm": 0}
    assert not used
