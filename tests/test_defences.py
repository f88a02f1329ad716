"""Every defence against its definition, and together with everything else."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import Ilu, gradient, items_of, stream, tiny_model, trainer
from test_methods import moved, penalty

from ilu_cli import registry
from ilu_cli.data.encode import Encoded, collate
from ilu_cli.data.sampling import Sampler
from ilu_cli.defences.lat import perturbed
from ilu_cli.defences.tar import parted
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.job import drive
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.view import View
from ilu_cli.errors import UsageError
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.load import validate
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.source import Layers, RecipeError
from ilu_cli.runs.store import Store

KEYS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.05},
    "smoothing": {"sigma": 0.02, "samples": 2},
    "averaging": {"start": 1, "every": 2},
    "booster": {"weight": 2.0, "alpha": 0.1},
    "cir": {"inputs": 3, "outputs": 2},
    "curvature": {"weight": 0.2, "mu": 0.05},
    "grad_penalty": {"weight": 0.3},
    "lat": {"layer": 0, "epsilon": 0.5, "inner_lr": 0.1, "inner_steps": 5},
    "mudman": {"attacker_lr": 0.1, "every": 2},
    "project": {"how": "tensor", "only_against": False},
    "repselect": {"k": 0.4, "attacker_lr": 0.3, "rank": 2},
    "tar": {"inner_steps": 5, "inner_lr": 1e-2, "weight": 0.7, "every": 2, "decay": 0.3},
}
NAMES = sorted(KEYS)


def rows() -> Any:
    return items_of([5, 9, 7, 9], start=4)


def retained() -> Any:
    return items_of([6, 4, 8], start=2, seed=11)


def ascent(seed: int = 0, defences: Any = ()) -> Term:
    """Gradient ascent with the defences, as `build_trainer` puts them together."""
    term = Term("forget", stream(rows(), seed=seed), lambda view: view.logps, "token", defended=True)
    for d in defences:
        term.values = d.values(term.values)
    return term


def defended(*names: str, model: Any = None, seed: int = 0, penalties: Any = (), **spec: Any) -> Any:
    defences = [registry.defence[n].obj(**KEYS[n]) for n in names]
    kept = stream(retained(), name="retain", seed=seed)
    terms = [ascent(seed, defences), Term("retain", kept, lambda view: view.nll, "token", weight=0.0)]
    t = trainer(model or moved(), terms, list(penalties), **spec)
    t.defences = defences
    return t


def loss(model: Any, items: list[Encoded] | None = None) -> Any:
    """−NLL per token, over plain logits."""
    batch = collate(items or rows())
    logp = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].log_softmax(-1)
    picked = logp.gather(-1, batch.ids[:, 1:, None])[..., 0]
    return picked[batch.scored[:, 1:]].mean()


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def naive(model: Any, items: list[Encoded] | None = None) -> torch.Tensor:
    model.zero_grad()
    loss(model, items).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def move(model: Any, vector: torch.Tensor) -> None:
    with torch.no_grad():
        at = 0
        for p in model.parameters():
            p += vector[at : at + p.numel()].view_as(p)
            at += p.numel()


def test_every_defence_is_tested() -> None:
    assert set(NAMES) == set(registry.defence)


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_where_they_were(name: str) -> None:
    model = moved()
    before = flat(model)
    defended(name, model=model).backward()
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "averaging"])
def test_it_changes_the_gradient_and_not_by_the_split(float64: None, name: str) -> None:
    plain, whole = gradient(defended()), gradient(defended(name))
    assert (plain - whole).norm() > 1e-4 * plain.norm()
    # TAR's attacker draws its own batches from the stream, whose order is the seed's.
    for accumulation, seed in ((2, 0), (4, 0), (1, 0 if name == "tar" else 3)):
        found = gradient(defended(name, seed=seed, accumulation=accumulation))
        assert (found - whole).norm() < 1e-6 * whole.norm()


@pytest.mark.parametrize("name", NAMES)
def test_penalties_are_taken_at_the_weights_themselves(float64: None, name: str) -> None:
    alone = gradient(trainer(moved(), [], [penalty("irm")]))
    both = gradient(defended(name, penalties=[penalty("irm")]))
    assert (both - gradient(defended(name)) - alone).norm() < 1e-9 * both.norm()


def test_sam_is_the_gradient_at_the_ascended_point(float64: None) -> None:
    model = moved()
    g = naive(model)
    move(model, 0.05 * g / g.norm())
    torch.testing.assert_close(gradient(defended("sam")), naive(model), rtol=1e-8, atol=1e-10)


def test_the_gradient_penalty_is_that_of_differentiating_twice(float64: None) -> None:
    model, t = moved(), defended("grad_penalty")
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss(model), [*model.parameters()], create_graph=True)])
    total = loss(model) + 0.3 * slope.norm()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, [*model.parameters()])])
    found = gradient(t)
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert (naive(model) - expected).norm() > 0.05 * expected.norm()  # the penalty is no small part of it
    assert t.defences[0].log["forget gradient"] == pytest.approx(slope.norm().item(), rel=1e-6)
    assert "hvp_error" not in t.defences[0].log


@pytest.mark.parametrize(("name", "keys"), [("curvature", {"weight": 0.2, "mu": 0.05}), ("grad_penalty", {})])
def test_what_cannot_be_differentiated_twice_is_so_by_differences(float64: None, name: str, keys: Any) -> None:
    exact = gradient(defended(name))
    model, kernel = moved(), cast(Any, Once)
    model.model.norm.register_forward_hook(lambda _m, _a, out: kernel.apply(out))
    t = defended(name, model=model)
    assert (gradient(t) - exact).norm() < 1e-2 * exact.norm()
    assert 0 < t.defences[0].log["hvp_error"] < 1e-2


class Once(torch.autograd.Function):
    """The identity, whose derivative autograd cannot see into."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g


def test_the_curvature_penalty_is_that_of_differentiating_twice(float64: None) -> None:
    """v is held fixed, and θ moves in both gradients."""
    model, away = moved(), moved()
    g = naive(model)
    move(away, 0.05 * g / g.norm())

    def slope(at: Any) -> torch.Tensor:
        found = torch.autograd.grad(loss(at), [*at.parameters()], create_graph=True)
        return torch.cat([x.flatten() for x in found])

    d = slope(away) - slope(model)
    expected = g
    for at in (away, model):  # each gradient by the weights at which it is taken; both move as θ does
        bent = torch.autograd.grad(0.2 * d.square().sum(), [*at.parameters()], retain_graph=True)
        expected = expected + torch.cat([x.flatten() for x in bent])
    t = defended("curvature")
    found = gradient(t)
    assert (found - expected).norm() < 1e-7 * expected.norm()
    assert (g - expected).norm() > 1e-3 * expected.norm()
    assert t.defences[0].log == {"curvature": pytest.approx(d.square().sum().item(), rel=1e-8)}


def parts(vector: torch.Tensor) -> list[torch.Tensor]:
    """What each weight tensor has of a gradient."""
    return list(vector.split([p.numel() for p in moved().parameters()]))


def along(g: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return (g @ r) / (r @ r) * r


def project(sign: float = 1.0, before: Any = (), **keys: Any) -> torch.Tensor:
    """The gradient with the defence, where the retain term is ±NLL, of any weight."""
    t = defended(*before, "project")
    t.terms[1].values = lambda view: sign * view.nll
    t.defences[-1] = registry.defence["project"].obj(**keys)
    return gradient(t)


def test_projecting_takes_out_what_runs_against_the_retain_gradient(float64: None) -> None:
    g, r = naive(moved()), -naive(moved(), retained())
    assert g @ r < 0  # a step along −g raises the retain loss
    torch.testing.assert_close(project(), g - along(g, r), rtol=1e-8, atol=1e-12)
    assert abs(project() @ r) < 1e-9 * g.norm() * r.norm()
    torch.testing.assert_close(project(-1.0), g, rtol=1e-10, atol=1e-14)  # the other way it does no harm
    torch.testing.assert_close(project(-1.0, only_against=False), g - along(g, r), rtol=1e-8, atol=1e-12)


def test_projecting_may_be_of_each_tensor_by_itself(float64: None) -> None:
    pairs = list(zip(parts(naive(moved())), parts(-naive(moved(), retained()))))
    assert {bool(g @ r < 0) for g, r in pairs} == {True, False}
    always = torch.cat([g - along(g, r) for g, r in pairs])
    against = torch.cat([g - along(g, r) if g @ r < 0 else g for g, r in pairs])
    torch.testing.assert_close(project(how="tensor", only_against=False), always, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(project(how="tensor"), against, rtol=1e-8, atol=1e-12)


def test_projecting_comes_after_sam_and_leaves_a_direction_that_is_none(float64: None) -> None:
    r = -naive(moved(), retained())
    sharp = gradient(defended("sam"))
    torch.testing.assert_close(project(before=["sam"]), sharp - along(sharp, r), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(project(0.0), naive(moved()), rtol=1e-10, atol=1e-14)


def test_a_projected_gradient_leaves_what_the_retain_term_adds(float64: None) -> None:
    t = defended("project")
    t.terms[1].weight = 0.7
    t.defences[0] = registry.defence["project"].obj()
    g, r = naive(moved()), -naive(moved(), retained())
    torch.testing.assert_close(gradient(t), g - along(g, r) + 0.7 * r, rtol=1e-8, atol=1e-12)
    assert t.defences[0].log["cos(forget, retain)"] == pytest.approx(float(g @ r / g.norm() / r.norm()), rel=1e-6)
    left = (g - along(g, r)).norm() / g.norm()
    assert t.defences[0].log["forget gradient left"] == pytest.approx(float(left), rel=1e-6)


def test_booster_is_the_slope_of_what_a_step_of_the_attacker_gains(float64: None) -> None:
    model, t = moved(), defended("booster")
    h, at = naive(model), -loss(model).item()
    attacked = moved()
    move(attacked, 0.1 * h / h.norm())  # h is of −NLL: the attacker goes down along ∇NLL
    expected = h + 2.0 * (naive(attacked) - h)
    torch.testing.assert_close(gradient(t), expected, rtol=1e-8, atol=1e-10)
    gained = at + loss(attacked).item()
    assert gained > 0
    assert t.defences[0].log["attacker gains"] == pytest.approx(gained, rel=1e-6)


def test_smoothing_is_a_mean_over_noise(float64: None) -> None:
    from ilu_cli.data.sampling import seed_of

    expected = torch.zeros(())
    for k in range(2):
        model, g = moved(), torch.Generator().manual_seed(seed_of(0, "smoothing", 0, k))
        noise = torch.cat([torch.randn(p.shape, generator=g).flatten() for p in model.parameters()])
        move(model, 0.02 * noise)
        expected = expected + naive(model) / 2
    torch.testing.assert_close(gradient(defended("smoothing")), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("step", [0, 2])
def test_tar_is_the_entropy_gradient_on_held_out_rows_after_every_second_attack_step(float64: None, step: int) -> None:
    items = items_of([5, 9, 7, 9, 6, 8, 5, 7, 6, 9, 8], start=2)
    tar, model = registry.defence["tar"].obj(**KEYS["tar"]), moved()
    term = Term("forget", stream(items, batch=3), lambda view: view.logps, "token", defended=True)
    t = trainer(model, [term], [])
    t.defences, t.step = [tar], step
    found = gradient(t)

    held, own = [items[0], items[5], items[10]], [e for i, e in enumerate(items) if i % 5]
    expected = naive(model, [items[i] for _, i in Sampler([11], 0, "forget").rows(step, 3)])
    attacker = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    batch = collate([held[i] for _, i in Sampler([3], 0, "tar held out").rows(step, 3)])
    for k in range(1, 6):
        drawn = [own[i] for _, i in Sampler([8], 0, "tar").rows(5 * step + k - 1, 3)]
        model.zero_grad()
        (-loss(model, drawn)).backward()
        attacker.step()
        if k in (2, 4, 5):
            logp = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].log_softmax(-1)
            entropy = -(logp.exp() * logp).sum(-1)[batch.scored[:, 1:]].mean()
            model.zero_grad()
            (-entropy).backward()
            share = 0.7 * math.exp(0.3 * (k - 5))
            expected = expected + share * torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert tar.log["tampered H"] == pytest.approx(entropy.item(), rel=1e-6)


def test_tar_needs_a_row_to_attack_with() -> None:
    with pytest.raises(UsageError, match="one row only"):
        parted(stream(items_of([5])))


def test_a_lone_row_is_refused_by_tar_alone_and_before_training() -> None:
    for name in NAMES:
        registry.defence[name].obj(**KEYS[name]).check(stream(items_of([5, 6])))
        if name != "tar":
            registry.defence[name].obj(**KEYS[name]).check(stream(items_of([5])))
    with pytest.raises(UsageError, match="one row only"):
        registry.defence["tar"].obj(**KEYS["tar"]).check(stream(items_of([5])))


def test_the_plan_asks_the_defences_about_the_forget_data(ilu: Ilu, tiny: Path, tmp_path: Path) -> None:
    rows = tmp_path / "one.jsonl"
    rows.write_text('{"text": "The capital of Atlantis is Poseidonis."}\n')
    sets = [x for s in (f"forget.data=[{rows}]", "defences=[{name: tar}]") for x in ("--set", s)]
    found = ilu("unlearn", "--method", "npo", "--model", tiny, *sets, "--dry-run")
    assert found.code == 2
    assert "one row only" in found.err


def test_tar_takes_the_gradient_after_the_last_step_when_there_are_fewer_than_four() -> None:
    t = defended("tar")
    t.defences[0] = registry.defence["tar"].obj(inner_steps=2, weight=1.0)
    assert (gradient(t) - gradient(defended())).norm() > 1e-4


def test_lat_stays_in_its_ball_and_makes_the_forget_data_likelier() -> None:
    lat = registry.defence["lat"].obj(**KEYS["lat"])
    view = View(parts_of(moved()), collate(rows()), 0, None)
    delta = lat._adversary(view)
    assert delta.norm(dim=-1).max() <= 0.5 * (1 + 1e-5)
    assert delta[:, 0].abs().max() == 0
    found = []
    from ilu_cli.defences.lat import _added

    for d in (torch.zeros_like(delta), delta):
        with _added(view.parts.layers, 0, d):
            found.append(view.afresh().nll.sum().item())
    assert found[1] < found[0] - 0.5
    assert not view.parts.layers[0]._forward_hooks


def test_lat_is_the_gradient_under_its_perturbation(float64: None) -> None:
    from ilu_cli.defences.lat import _added

    model, lat = moved(), registry.defence["lat"].obj(**KEYS["lat"])
    delta = lat._adversary(View(parts_of(model), collate(rows()), 0, None))
    with _added(model.model.layers, 0, delta):
        expected = naive(model)
    t = defended("lat")
    t.terms[0].stream.sampler._order = lambda *_: torch.arange(4).numpy()  # rows in the order of `delta`
    torch.testing.assert_close(gradient(t), expected, rtol=1e-6, atol=1e-9)


def test_lat_perturbs_prompts_and_of_texts_without_one_everything() -> None:
    """Rows of 6, 4 and 3 tokens, of which those from 3, 1 and 2 on are scored; the first position never."""
    batch = collate([Encoded([1] * 6, 3), Encoded([1] * 4, 1), Encoded([1] * 3, 2)])
    assert perturbed(batch).int().tolist() == [[0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]]


def test_lat_is_projected_onto_its_ball_only_from_outside() -> None:
    """Adam's first step moves every coordinate by its rate: 16 of them by 0.001 are 0.004 long, well inside of 0.5."""
    keys = KEYS["lat"] | {"inner_steps": 1, "inner_lr": 1e-3}
    view = View(parts_of(moved()), collate(rows()), 0, None)
    norms = registry.defence["lat"].obj(**keys)._adversary(view).norm(dim=-1)[perturbed(view.batch)]
    torch.testing.assert_close(norms, torch.full_like(norms, 0.004), rtol=1e-3, atol=0)


def test_lat_puts_its_perturbed_prompt_before_what_should_be_said_instead(float64: None) -> None:
    """The answers of a pair differ in length, their prompts do not."""
    from ilu_cli.defences.lat import _added

    prompts = [e.ids[:4] for e in rows()]
    wins = [Encoded(p + [3] * n, 4) for p, n in zip(prompts, (7, 1, 2, 6))]
    model, lat = moved(), registry.defence["lat"].obj(**KEYS["lat"])
    view = View(parts_of(model), collate(rows()), 0, None)
    view.chosen = View(parts_of(model), collate(wins), 0, None)
    delta = lat._adversary(view)
    with _added(model.model.layers, 0, torch.cat([delta, torch.zeros(4, 2, 16)], 1)):  # 11 tokens where there were 9
        expected = -loss(model, wins) * sum(e.targets for e in wins)
    found = lat.values(lambda v: v.chosen.nll)(view).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


def test_averaging_saves_the_mean_and_resumes(tmp_path: Path) -> None:
    store, finals = Store(tmp_path), []
    for stop in (None, 4):
        run, seen = store.create("unlearn", "x"), list[Any]()
        for part in (stop, None) if stop else (None,):
            t = defended("averaging", model=tiny_model(), steps=7, lr=1e-3, save_every=1)
            for done in drive(t, run, Reporter(), "test"):
                seen += [flat(t.grads.parts.decoder)] if done in (3, 5, 7) and len(seen) < 3 else []
                if done == part:
                    break
        t.defences[0].finish(t.grads)
        finals.append(flat(t.grads.parts.decoder))
        torch.testing.assert_close(finals[-1], torch.stack(seen).mean(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(*finals)


def test_defences_nest(float64: None) -> None:
    model = moved()
    whole = gradient(defended("lat", "sam", model=model, penalties=[penalty("irm")]))
    assert torch.isfinite(whole).all()
    assert (whole - gradient(defended("sam", penalties=[penalty("irm")]))).norm() > 1e-4 * whole.norm()


def test_averaging_may_end_with_the_run() -> None:
    """Of 80 steps the one beyond 75 that is averaged is the last."""
    data = {"objective": {"name": "npo"}, "forget": {"data": "capitals"}, "train": {"steps": 80}}
    validate(UnlearnRecipe, Layers(data | {"defences": [{"name": "averaging", "start": 75, "every": 5}]}))
    with pytest.raises(RecipeError, match=r"defences\.0\.start"):
        validate(UnlearnRecipe, Layers(data | {"defences": [{"name": "averaging", "start": 76, "every": 5}]}))


def test_lat_attacks_only_where_something_is_trained() -> None:
    """What is only looked at is looked at without a perturbation."""
    lat, view = registry.defence["lat"].obj(**KEYS["lat"]), View(parts_of(moved()), collate(rows()), 0, None)
    values = lat.values(lambda v: v.nll)
    with torch.no_grad():
        assert values(view).equal(view.nll)
    assert values(view).sum() < view.nll.sum() - 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defences": [{"name": "lat", "layer": 7}], "objective": {"name": "rmu", "layer": 7}}, "choose a lower one"),
        ({"defences": [{"name": "sam"}, {"name": "sam"}]}, "stands twice"),
        ({"defences": [{"name": "averaging", "start": 79}]}, "nothing to average"),
        ({"defences": [{"name": "sam", "rho": 0}]}, "greater than 0"),
        ({"defences": [{"name": "project"}]}, "no retain term whose gradient"),
        ({"defences": [{"name": "curvature", "weight": -0.1}]}, "greater than 0"),
        ({"defences": [{"name": "curvature", "mu": 0.0}]}, "greater than 0"),
        ({"defences": [{"name": "booster", "weight": -1.0}]}, "greater than 0"),
        ({"defences": [{"name": "booster", "alpha": 0.0}]}, "greater than 0"),
        ({"defences": [{"name": "booster"}, {"name": "repselect"}]}, "booster would change nothing.*name it after"),
        ({"defences": [{"name": "repselect"}, {"name": "sam"}]}, "sam would change nothing.*Leave it out, or take"),
        ({"lora": {"r": 4}, "train": {"params": ["*"]}}, "leave train.params out"),
        ({"regularizers": [{"name": "vrex", "env": ["sst2"]}]}, "at least 2"),
        ({"regularizers": [{"name": "irm", "env": ["sst2"], "env_weights": [1.0, 2.0]}]}, "one weight for each"),
        ({"regularizers": [{"name": "irm", "env": ["sst2"], "schedule": "linear"}]}, "needs it"),
        (
            {"regularizers": [{"name": "irm", "env": ["sst2"], "estimator": "cross_halves", "variant": "grad_norm"}]},
            "for the logit variant",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(change: dict[str, Any], message: str) -> None:
    data = {"objective": {"name": "npo"}, "forget": {"data": "capitals"}} | change
    with pytest.raises(RecipeError, match=message):
        validate(UnlearnRecipe, Layers(copy.deepcopy(data)))


@pytest.mark.parametrize("name", sorted({*NAMES} - {"repselect", "averaging"}))
@pytest.mark.parametrize("first", [True, False])
def test_beside_repselect_a_defence_changes_the_gradient_or_is_refused(float64: None, name: str, first: bool) -> None:
    alone, names = gradient(defended("repselect")), (name, "repselect") if first else ("repselect", name)
    keys = [{"name": n, **KEYS[n]} for n in names]
    data = {"objective": {"name": "npo"}, "retain": {"name": "nll", "data": "prose"}, "forget": {"data": "capitals"}}
    refused = False
    try:
        validate(UnlearnRecipe, Layers(data | {"defences": keys}))
    except RecipeError as error:
        refused = "would change nothing" in str(error)
    if not refused:
        assert (gradient(defended(*names)) - alone).norm() > 1e-6 * alone.norm()
    filters = [k if k["name"] == name else {"name": "repselect", "shot": "step"} for k in keys]
    validate(UnlearnRecipe, Layers(data | {"defences": filters}))
