"""The matrix: every objective, retain term and regulariser, against its definition written out over full logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import LAYERS, gradient, items_of, noted, present, stream, tiny_model, trainer
from torch.nn.functional import logsigmoid

from ilu_cli import registry
from ilu_cli.data.encode import Encoded, collate
from ilu_cli.engine.accel import backend
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.hessian import hessian_times
from ilu_cli.engine.loop import Penalty
from ilu_cli.engine.reference import fill
from ilu_cli.engine.view import View
from ilu_cli.models.parts import parts_of

LAYER = 1
SEVERAL = (0, 2)
KINDS: dict[str, Any] = {"objective": registry.objective, "retain": registry.retain_term}


class Plain:
    """A batch seen through a plain transformers forward pass: padded logits and hidden states, nothing fused."""

    def __init__(self, model: Any, items: list[Encoded], chosen: list[Encoded] | None = None) -> None:
        batch = collate(items)
        out = model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
        self.logits = out.logits[:, :-1]
        self.logp = out.logits[:, :-1].log_softmax(-1)
        self.nll = -self.logp.gather(-1, batch.ids[:, 1:, None])[..., 0]
        self.entropy = -(self.logp.exp() * self.logp).sum(-1)
        self.scored = batch.scored[:, 1:].to(self.nll.dtype)
        self.hidden, self.real = out.hidden_states[LAYER + 1], batch.mask.clone()
        self.real[:, 0] = False
        # the last of transformers' hidden states is normed already: the layer's own output is taken at its end
        self.states = torch.stack([out.hidden_states[n + 1] for n in SEVERAL if n + 1 < LAYERS] + [last(model, batch)])

        self.mlp = mlps(model, batch)
        self.ids, self.model = batch.ids[:, 1:], model
        self.gathered: Any = None
        self.read = dict[int, Any]()
        self.chosen = None if chosen is None else Plain(model, chosen)

    def adjusted(self, shift: Any) -> Any:
        """Log-probabilities with `shift` taken off the target's logit."""
        z = self.logp.detach().clone()
        return z.scatter_add(-1, self.ids[..., None], torch.full_like(z[..., :1], -shift)).log_softmax(-1)

    def cross_entropy(self, logq: Any) -> Any:
        return -(logq.exp() * self.logp).sum(-1)

    @property
    def logps(self) -> Any:
        return -(self.nll * self.scored).sum(-1)

    def token_mean(self, values: Any) -> Any:
        return (values * self.scored).sum() / self.scored.sum()

    @property
    def centre(self) -> Any:
        """[L, 1, 1, D], the mean state of the forget rows, at all tokens but the first."""
        if self.gathered is None:
            other = Plain(self.model, gathered())
            total = (other.states * other.real[..., None]).sum((1, 2), keepdim=True)
            self.gathered = (total / other.real.sum()).detach()
        return self.gathered

    def hidden_mean(self, error: Any) -> Any:
        return (error.mean(-1) * self.real).sum() / self.real.sum()


def last(model: Any, batch: Any) -> Any:
    """[B, T, D], the output of the last layer before the final norm."""
    found = []
    handle = model.model.layers[-1].register_forward_hook(lambda _m, _a, out: found.append(out))
    model(input_ids=batch.ids, attention_mask=batch.mask)
    handle.remove()
    return found[0][0] if isinstance(found[0], tuple) else found[0]


def mlps(model: Any, batch: Any) -> Any:
    """[L, B, T, D], the outputs of the MLPs of the several layers."""
    found: list[Any] = []
    handles = [model.model.layers[n].mlp.register_forward_hook(lambda _m, _a, out: found.append(out)) for n in SEVERAL]
    model(input_ids=batch.ids, attention_mask=batch.mask)
    for handle in handles:
        handle.remove()
    return torch.stack(found)


def along(now: Any, ref: Any) -> Any:
    """Σ over layers of relu(⟨m, m⁰⟩/‖m⁰‖²), token by token."""
    was = ref.mlp.detach()
    share = (now.mlp * was).sum(-1) / (was * was).sum(-1)
    return now.hidden_mean(share.clamp(min=0).sum(0)[..., None])


def apart(a: Any, b: Any) -> Any:
    return 1 - (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def triplet(now: Any, near: Any, far: Any, margin: float) -> Any:
    """relu(d(h′, near) − d(h′, far) + m), token by token and layer by layer."""
    loss = (apart(now.states, near) - apart(now.states, far) + margin).clamp(min=0)
    return now.hidden_mean(loss.mean(0)[..., None])


def kept_by_crl(now: Any, ref: Any) -> Any:
    divergence = (ref.adjusted(0).exp() * (ref.adjusted(0) - now.logp)).sum(-1)
    return triplet(now, ref.states.detach(), now.centre, 0.1) + 0.6 * (divergence * now.scored).sum() / now.real.sum()


def noised(now: Any, ref: Any) -> Any:
    """Row by row: kernels over every pair of tokens, and logits of each layer by the model's own norm and head."""
    total: Any = 0.0
    for b in range(len(now.ids)):
        scored, lengths = now.scored[b] > 0, now.real[b]
        for x in now.states[:, b]:
            logp = now.model.lm_head(now.model.model.norm(x))[:-1].log_softmax(-1)
            nll = -logp.gather(-1, now.ids[b, :, None])[scored, 0]
            total = total + discrepancy(x[lengths]) * 0.4 / len(now.states)
            now.read.setdefault(b, []).append(nll.mean())
        total = total - 0.7 * torch.stack(now.read[b]).mean().log1p()
    return total / len(now.ids)


def discrepancy(x: Any) -> Any:
    n, d = x.shape
    distance = (x[:, None] - x[None]).square().sum(-1)
    spread = (distance.mean() / 4 + (x.square().sum(-1).mean() + d) / 2 + 2 * d / 4).detach()
    found: Any = 0.0
    for b in (spread / 4, spread / 2, spread, 2 * spread, 4 * spread):
        across = (b / (b + 2)) ** (d / 2) * (-x.square().sum(-1) / (b + 2)).exp()
        found = found + (-distance / b).exp().sum() / n**2 - 2 * across.sum() / n + (b / (b + 4)) ** (d / 2)
    return found


def turned(now: Any, ref: Any) -> Any:
    """relu(cos), token by token and layer by layer."""
    a, b = now.states, ref.states.detach()
    cosine = (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return now.hidden_mean(cosine.clamp(min=0).mean(0)[..., None])


def direction(size: int) -> torch.Tensor:
    batch = collate(items_of([3]))
    model = tiny_model()
    return View(parts_of(model), batch, 0, LAYER).direction("rmu")[:size]


def divergence(now: Any, ref: Any) -> Any:
    return now.token_mean((ref.adjusted(0).exp() * (ref.adjusted(0) - now.logp)).sum(-1))


def preference(now: Any, ref: Any) -> Any:
    lose, win = now.logps - ref.logps, now.chosen.logps - ref.chosen.logps
    return (-2 / 0.7 * logsigmoid(0.7 * (win - lose))).mean()


# name → (recipe keys, definition over the current and the original model's Plain view)
OBJECTIVES: dict[str, Any] = {
    "grad_diff": ({}, lambda now, ref: -now.token_mean(now.nll)),
    "grad_ascent": ({}, lambda now, ref: -now.token_mean(now.nll)),
    "wga": ({"alpha": 0.5}, lambda now, ref: -now.token_mean((-0.5 * now.nll).exp().detach() * now.nll)),
    "satimp": (
        {"beta1": 2.0, "beta2": 0.5},
        lambda now, ref: -now.token_mean(((-now.nll).exp() ** 2 * (1 - (-now.nll).exp()) ** 0.5).detach() * now.nll),
    ),
    "ce_u": ({}, lambda now, ref: now.token_mean(now.cross_entropy(now.adjusted(math.inf)))),
    "pdu": ({}, lambda now, ref: now.token_mean((now.logits.max(-1).values - now.logits.mean(-1)) ** 2)),
    "cir": ({"layers": list(SEVERAL)}, along),
    "circuit_breakers": ({"layers": list(SEVERAL)}, turned),
    "crl": (
        {"layers": list(SEVERAL), "margin": 0.1},
        lambda now, ref: triplet(now, now.centre, ref.states.detach(), 0.1),
    ),
    "repnoise": ({"layers": list(SEVERAL), "alpha": 0.7, "beta": 0.4}, noised),
    "simnpo": (
        {"beta": 2.5, "delta": 0.1},
        lambda now, ref: (-2 / 2.5 * logsigmoid(-2.5 * now.logps / now.scored.sum(-1) - 0.1)).mean(),
    ),
    "altpo": ({"beta": 0.7}, preference),
    "dpo": ({"beta": 0.7}, preference),
    "idk_po": ({"beta": 0.7}, preference),
    "undial": ({"strength": 3.0}, lambda now, ref: now.token_mean(now.cross_entropy(ref.adjusted(3.0)))),
    "undo": ({}, lambda now, ref: divergence(now, ref)),
    "npo": ({"beta": 0.7}, lambda now, ref: (-2 / 0.7 * logsigmoid(-0.7 * (now.logps - ref.logps))).mean()),
    "rmu": (
        {"layer": LAYER, "coefficient": 3.0, "adaptive": False},
        lambda now, ref: now.hidden_mean((now.hidden - 3.0 * direction(now.hidden.shape[-1])) ** 2),
    ),
}
RETAIN: dict[str, Any] = {
    "nll": ({}, lambda now, ref: now.token_mean(now.nll)),
    "kl": ({}, lambda now, ref: divergence(now, ref)),
    "crl": ({"margin": 0.1, "kl": 0.6}, kept_by_crl),
    "hidden_norm": (
        {},
        lambda now, ref: now.hidden_mean((now.states - ref.states.detach()).square().sum(-1).sqrt().mean(0)[..., None]),
    ),
    "hidden_mse": ({}, lambda now, ref: now.hidden_mean((now.hidden - ref.hidden.detach()) ** 2)),
}
CASES = [("objective", n) for n in OBJECTIVES] + [("retain", n) for n in RETAIN]


def moved(seed: int = 0) -> Any:
    """A model that has moved away from the original, so that no term sits at its minimum."""
    model = tiny_model(seed=seed)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return model


def case(kind: str, name: str) -> Any:
    return (OBJECTIVES if kind == "objective" else RETAIN)[name]


def term(kind: str, name: str, items: list[Encoded], seed: int = 0) -> Term:
    """The registered function as the engine runs it, its reference taken from the original model."""
    entry, keys = KINDS[kind][name], case(kind, name)[0]
    data = stream(items, seed=seed)
    if getattr(entry.declared, "chosen", None):
        data.chosen = stream(said_instead(), seed=seed)
    needs = entry.declared.needs
    cache = fill(data, needs, LAYER, 1, parts_of(tiny_model()), backend(), "fp32", SEVERAL)
    values = lambda view: entry.obj(view, **keys)  # noqa: E731
    centre = stream(gathered(), seed=seed) if "centre" in needs else None
    return Term(kind, data, values, entry.declared.per, 1.0, LAYER, cache, layers=SEVERAL, centre=centre)


def items(pads: bool = True) -> list[Encoded]:
    return items_of([5, 9, 7, 9] if pads else [9, 9, 9, 9], start=3)


def gathered() -> list[Encoded]:
    """The forget rows whose mean state is looked at: of an objective they are its own rows, here others."""
    return items_of([4, 8, 6], start=2, seed=5)


def said_instead() -> list[Encoded]:
    return items_of([6, 4, 8, 7], start=2, seed=11)


def test_every_method_stands_in_the_matrix() -> None:
    assert set(OBJECTIVES) == set(registry.objective)
    assert set(RETAIN) == set(registry.retain_term)
    assert {name for name, _, _ in PENALTIES.values()} == set(registry.regularizer)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_value_and_gradient_are_those_of_the_definition(float64: None, kind: str, name: str) -> None:
    model, rows = moved(), items()
    t = trainer(model, [term(kind, name, rows)], [])
    value = t.backward()[kind]
    found = {n: None if p.grad is None else p.grad.clone() for n, p in t.params.items()}
    model.zero_grad()
    expected = case(kind, name)[1](Plain(model, rows, said_instead()), Plain(tiny_model(), rows, said_instead()))
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-9)
    for n, p in t.params.items():
        want = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(torch.zeros_like(p) if found[n] is None else found[n], want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_hessian_products_are_those_of_differentiating_the_definition_twice(
    float64: None, kind: str, name: str
) -> None:
    model, rows = moved(), items()
    t = trainer(model, [term(kind, name, rows)], [])
    g = torch.Generator().manual_seed(5)
    v = [torch.randn(p.shape, generator=g) for p in t.grads.params]
    found, error = hessian_times(t.grads, t.terms[0], v)
    definition = case(kind, name)[1](Plain(model, rows, said_instead()), Plain(tiny_model(), rows, said_instead()))
    first = torch.autograd.grad(definition, t.grads.params, create_graph=True, allow_unused=True)
    bent = [(slope, x) for slope, x in zip(first, v) if slope is not None and slope.requires_grad]
    torch.autograd.backward([slope for slope, _ in bent], [x for _, x in bent])
    assert error is None
    for h, p in zip(found, t.grads.params):
        torch.testing.assert_close(h, torch.zeros_like(p) if p.grad is None else p.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_gradient_is_not_zero(kind: str, name: str) -> None:
    assert gradient(trainer(moved(), [term(kind, name, items())], [])).norm() > 1e-4


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_neither_padding_nor_order_nor_split_matters(float64: None, kind: str, name: str) -> None:
    rows = items()
    whole = gradient(trainer(moved(), [term(kind, name, rows)], []))
    for accumulation, seed in ((2, 0), (4, 0), (1, 5)):  # each split pads differently; the seed changes the order
        t = trainer(moved(), [term(kind, name, rows, seed)], [], accumulation=accumulation)
        torch.testing.assert_close(gradient(t), whole, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_is_not_scored_is_not_learned(float64: None, kind: str, name: str) -> None:
    """Padding ids never matter. (Prompt tokens matter only as context, and for hidden states.)"""
    rows = items()
    t = term(kind, name, rows)
    keys = t.stream.keys(0)
    found = []
    for pad in (0, 17):
        batch = collate([t.stream.item(k) for k in keys], pad)
        view = View(parts_of(moved()), batch, 0, LAYER, t.cache.of(keys, torch.device("cpu")), layers=SEVERAL)
        view.mean = torch.ones(len(SEVERAL), 16)
        if t.stream.chosen is not None:
            view.chosen = View(view.parts, collate([t.stream.chosen.item(k) for k in keys], pad), 0)
            view.chosen.reference = present(t.cache.chosen).of(keys, torch.device("cpu"))
        found.append(t.values(view))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_npo_by_hand(float64: None) -> None:
    """At the original model the ratio is 0: the loss is (2/β)·ln 2, and its slope by log π is exactly 1."""
    rows = items()
    t = trainer(tiny_model(), [term("objective", "npo", rows)], [])
    assert t.backward()["objective"] == pytest.approx(2 / 0.7 * math.log(2), rel=1e-9)


def test_npo_mean_reduction_divides_by_each_length(float64: None) -> None:
    rows = items()
    cache_term = term("objective", "npo", rows)
    cache_term.values = lambda v: registry.objective["npo"].obj(v, beta=0.7, reduction="mean")
    now, ref = Plain(moved(), rows), Plain(tiny_model(), rows)
    ratio = (now.logps - ref.logps) / now.scored.sum(-1)
    value = trainer(moved(), [cache_term], []).backward()["objective"]
    assert value == pytest.approx((-2 / 0.7 * logsigmoid(-0.7 * ratio)).mean().item(), rel=1e-9)


def test_adaptive_rmu_scales_by_the_retain_norm(float64: None) -> None:
    t = term("objective", "rmu", items())
    t.cache.norm = 2.5
    t.values = lambda v: registry.objective["rmu"].obj(v, layer=LAYER, coefficient=3.0, adaptive=True)
    now = Plain(moved(), items())
    expected = now.hidden_mean((now.hidden - 7.5 * direction(now.hidden.shape[-1])) ** 2)
    assert trainer(moved(), [t], []).backward()["objective"] == pytest.approx(expected.item(), rel=1e-9)


# -- regularisers ---------------------------------------------------------------------------------------------------


def second_order(model: Any, loss: Any) -> tuple[Any, Any]:
    """∇loss as one vector that can be differentiated again, and θ."""
    grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return torch.cat([g.flatten() for g in grads]), torch.cat([p.flatten() for p in model.parameters()])


def param_scale(model: Any, envs: Any, a: Any) -> Any:
    """⟨θ, ∇ℓ⟩² is the square of d/dw ℓ(w·θ) at w = 1: θ is a constant in it, and yet moves with the weights."""
    total = 0
    for e, weight in zip(envs, a):
        g, theta = second_order(model, e.token_mean(e.nll))
        total = total + weight * (theta @ g) ** 2
    return total


def grad_norm(model: Any, envs: Any, a: Any) -> Any:
    return sum(w * second_order(model, e.token_mean(e.nll))[0].square().sum() for e, w in zip(envs, a))


def grad_match(model: Any, envs: Any, a: Any) -> Any:
    share = torch.tensor(a) / sum(a)
    g = torch.stack([second_order(model, e.token_mean(e.nll))[0] for e in envs])
    return (share * (g - (share[:, None] * g).sum(0)).square().sum(1)).sum()


def vrex(model: Any, envs: Any, a: Any) -> Any:
    share, risks = torch.tensor(a) / sum(a), torch.stack([e.token_mean(e.nll) for e in envs])
    return (share * (risks - (share * risks).sum()) ** 2).sum()


def gap(e: Any) -> Any:
    return e.token_mean(e.nll - e.entropy)


# case → (regulariser, recipe keys, definition over the model, its Plain views of the environments and their weights)
PENALTIES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "irm": ("irm", {}, lambda m, envs, a: sum(w * gap(e) ** 2 for e, w in zip(envs, a))),
    "irm-param_scale": ("irm", {"variant": "param_scale"}, param_scale),
    "irm-grad_norm": ("irm", {"variant": "grad_norm"}, grad_norm),
    "env_ce": ("env_ce", {}, lambda m, envs, a: sum(w * e.token_mean(e.nll) for e, w in zip(envs, a))),
    "vrex": ("vrex", {}, vrex),
    "grad_match": ("grad_match", {}, grad_match),
}
SECOND_ORDER = ("irm-param_scale", "irm-grad_norm", "grad_match")
WEIGHTS = [1.0, 0.25]


def environments(seed: int = 0) -> list[Any]:
    shapes = {"one": [4, 8, 6, 6], "two": [7, 5, 9, 3]}
    return [stream(items_of(v, start=2, seed=len(k)), name=k, seed=seed) for k, v in shapes.items()]


def penalty(case: str, weight: float = 1.0, seed: int = 0, **more: Any) -> Penalty:
    name, keys, _ = PENALTIES[case]
    keys = keys | more
    function = registry.regularizer[name].obj
    return Penalty(case, environments(seed), lambda e: function(e, **keys), lambda step: weight, WEIGHTS)


@pytest.mark.parametrize("case", PENALTIES)
def test_penalty_value_and_gradient_are_those_of_the_definition(float64: None, case: str) -> None:
    model = moved()
    t = trainer(model, [], [penalty(case, 0.5)])
    value = t.backward()[case]
    found = torch.cat([present(p.grad).flatten() for p in t.params.values()])
    model.zero_grad()
    expected = PENALTIES[case][2](model, [Plain(model, e.corpora[0].items) for e in environments()], WEIGHTS)
    (0.5 * expected).backward()
    assert value == pytest.approx(expected.item(), rel=1e-9)
    want = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (found - want).norm() <= 1e-7 * want.norm()


@pytest.mark.parametrize("case", PENALTIES)
def test_penalty_gradient_is_not_zero(case: str) -> None:
    assert gradient(trainer(moved(), [], [penalty(case)])).norm() > 1e-3


@pytest.mark.parametrize("case", PENALTIES)
def test_penalty_is_of_the_whole_batch_not_of_its_parts(float64: None, case: str) -> None:
    whole = gradient(trainer(moved(), [], [penalty(case)]))
    for accumulation, seed in ((2, 0), (4, 0), (1, 3)):
        t = trainer(moved(), [], [penalty(case, seed=seed)], accumulation=accumulation)
        assert (gradient(t) - whole).norm() <= 1e-7 * whole.norm()


@pytest.mark.parametrize("case", SECOND_ORDER)
def test_float32_hessian_products_point_the_right_way(case: str) -> None:
    """Exact products in float32: the float64 ones to float32's rounding."""
    found = gradient(trainer(moved(), [], [penalty(case)]))
    torch.set_default_dtype(torch.float64)
    try:
        model = moved()
        with torch.no_grad():  # the very weights of the float32 model
            torch.set_default_dtype(torch.float32)
            same = [p.double() for p in moved().parameters()]
            torch.set_default_dtype(torch.float64)
            for p, q in zip(model.parameters(), same):
                p.copy_(q)
        exact = gradient(trainer(model, [], [penalty(case)]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert (found - exact).norm() < 1e-4 * exact.norm()


def test_cross_halves_multiplies_the_gaps_of_two_disjoint_halves(float64: None) -> None:
    model, envs = moved(), environments()
    t = trainer(model, [], [penalty("irm", estimator="cross_halves")])
    value = t.backward()["irm"]
    found = torch.cat([present(p.grad).flatten() for p in t.params.values()])
    model.zero_grad()
    expected: Any = 0
    for e, w in zip(envs, WEIGHTS):
        rows = [e.item(k) for k in e.keys(0)]
        expected = expected + w * gap(Plain(model, rows[::2])) * gap(Plain(model, rows[1::2]))
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in model.parameters()]), rtol=1e-6, atol=1e-9)


def test_a_schedule_of_lambda_by_hand() -> None:
    from ilu_cli.recipe.load import validate
    from ilu_cli.recipe.schema import UnlearnRecipe
    from ilu_cli.recipe.source import Layers

    def weights(**keys: Any) -> list[Any]:
        reg = {"name": "irm", "env": ["elements"], "weight": 2.0} | keys
        data = {"objective": {"name": "npo"}, "forget": {"data": "capitals"}, "regularizers": [reg]}
        return [validate(UnlearnRecipe, Layers(data)).regularizers[0].weight_at(s) for s in (0, 2, 3, 4, 9)]

    assert weights() == [2, 2, 2, 2, 2]
    assert weights(schedule="linear", until=4) == [0, 1, 1.5, 2, 2]
    assert weights(schedule="step", until=3, initial=0.1) == [0.1, 0.1, 2, 2, 2]


def test_a_jump_of_lambda_resets_the_moments_of_adam() -> None:
    p = penalty("env_ce")
    p.reset_at = 2
    t = trainer(moved(), [], [p], steps=3)
    counts = []
    assert isinstance(t.optimizer, torch.optim.Optimizer)
    for _ in t.run():
        counts.append(int(next(iter(t.optimizer.state.values()))["step"]))
    assert counts == [1, 2, 1]


def test_penalties_and_terms_add_up(float64: None) -> None:
    rows = items()
    alone = gradient(trainer(moved(), [term("objective", "npo", rows)], []))
    irm = gradient(trainer(moved(), [], [penalty("irm", 0.3)]))
    both = gradient(trainer(moved(), [term("objective", "npo", rows)], [penalty("irm", 0.3)]))
    torch.testing.assert_close(both, alone + irm, rtol=1e-9, atol=1e-12)


def test_d_of_each_environment_is_logged() -> None:
    logs = trainer(moved(), [], [penalty("irm")]).backward()
    assert logs["irm"] == pytest.approx(logs["D[one]"] ** 2 + 0.25 * logs["D[two]"] ** 2, rel=1e-6)


# -- what is not computed -------------------------------------------------------------------------------------------


def test_rmu_runs_no_layer_above_its_own_and_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = moved(), dict.fromkeys(range(LAYERS), 0) | {"head": 0, "norm": 0}
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    model.model.norm.register_forward_hook(lambda *_: calls.__setitem__("norm", calls["norm"] + 1))
    model.lm_head.register_forward_hook(lambda *_: calls.__setitem__("head", calls["head"] + 1))
    parts = parts_of(model)
    t = trainer(model, [term("objective", "rmu", items()), term("retain", "hidden_mse", items())], [])
    calls.update(dict.fromkeys(calls, 0))  # to take a model apart is to try it on a short text
    from ilu_cli.engine import head

    used: list[int] = []
    original: Any = head._TokenStats.apply  # the fused head
    monkeypatch.setattr(head._TokenStats, "apply", lambda *a: noted(used, 1, original(*a)))
    t.backward()
    assert len(parts.layers) == LAYERS
    assert calls == {0: 2, 1: 2, 2: 0, "head": 0, "norm": 2}  # the decoder ends with its norm
    assert not used
