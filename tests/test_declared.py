"""What each idea declares about itself, and the values that its keys have when a recipe is silent."""

from __future__ import annotations

from types import SimpleNamespace as Keys
from typing import Any

import pytest

from ilu_cli import registry
from ilu_cli.objectives.undo import corrupt

# name → what is declared, and the defaults: those of the paper or of its authors' code where they give any
OBJECTIVES = {
    "ce_u": ({"needs": "elsewhere", "per": "token"}, {}),
    "cir": ({"needs": "mlp reference.mlp", "per": "hidden token"}, {"layers": [10, 13, 16, 19]}),
    "circuit_breakers": ({"needs": "states reference.states", "per": "hidden token"}, {"layers": [10, 20]}),
    "altpo": (
        {"needs": "logps reference.logps", "per": "sequence", "chosen": "alternative"},
        {"beta": 0.1, "answers": "model", "made": None},
    ),
    "crl": (
        {"needs": "states reference.states centre", "per": "hidden token"},
        {"layers": [10, 20], "margin": 0.5},
    ),
    "dpo": ({"needs": "logps reference.logps", "per": "sequence", "chosen": "counterfactual"}, {"beta": 0.1}),
    "grad_ascent": ({"needs": "logps", "per": "token"}, {}),
    "grad_diff": ({"needs": "logps", "per": "token"}, {}),
    "idk_po": ({"needs": "logps reference.logps", "per": "sequence", "chosen": "refusal"}, {"beta": 0.1}),
    "npo": ({"needs": "logps reference.logps", "per": "sequence"}, {"beta": 0.1, "reduction": "sum"}),
    "pdu": ({"needs": "margins", "per": "token"}, {}),
    "repnoise": ({"needs": "states lens", "per": "sequence"}, {"layers": [10, 20], "alpha": 1.0, "beta": 0.001}),
    "rmu": (
        {"needs": "hidden reference.norm", "per": "hidden token"},
        {"layer": "auto", "coefficient": 2.0, "adaptive": True},
    ),
    "satimp": ({"needs": "token_nll", "per": "token"}, {"beta1": 5.0, "beta2": 1.0}),
    "simnpo": ({"needs": "logps", "per": "sequence"}, {"beta": 2.5, "delta": 0.0}),
    "undo": (
        {"needs": "distillation reference.final", "per": "token", "parent": "unlearned", "start": corrupt},
        {"alpha": 0.25, "beta": 0.1},
    ),
    "undial": ({"needs": "distillation reference.final", "per": "token"}, {"strength": 10.0}),
    "wga": ({"needs": "token_nll", "per": "token"}, {"alpha": 1.0}),
}
RETAIN: dict[str, Any] = {
    "crl": (
        {"needs": "states reference.states centre distillation reference.final", "per": "hidden token"},
        {"margin": 0.3, "kl": 1.8},
    ),
    "hidden_mse": ({"needs": "hidden reference.hidden", "per": "hidden token"}, {}),
    "hidden_norm": ({"needs": "states reference.states", "per": "hidden token"}, {}),
    "kl": ({"needs": "distillation reference.final", "per": "token"}, {}),
    "nll": ({"needs": "nll", "per": "token"}, {}),
}
REGULARIZERS = {
    "env_ce": ({"least": 1}, {}),
    "grad_match": ({"least": 2}, {}),
    "irm": ({"least": 1}, {"variant": "logit", "estimator": "global"}),
    "vrex": ({"least": 2}, {}),
}
DEFENCES: dict[str, Any] = {
    "averaging": ({}, {"start": 20, "every": 5}),
    "cir": ({}, {"inputs": 24, "outputs": 36, "norm": 1.0, "every": None, "rows": None}),
    "mudman": ({}, {"attacker_lr": 0.05, "every": 10, "decay": 0.9, "norm": 1.0}),
    "booster": ({}, {"weight": 5.0, "alpha": 0.1}),
    "curvature": ({}, {"weight": 1.0, "mu": 0.01}),
    "grad_penalty": ({}, {"weight": 1.0}),
    "lat": ({}, {"layer": 4, "epsilon": 2.0, "inner_lr": 0.05, "inner_steps": 16}),
    "project": ({}, {"how": "whole", "only_against": True}),
    "repselect": (
        {},
        {
            "k": 0.33,
            "collapse": "soft",
            "sides": "both",
            "directions": "forget",
            "attacker_lr": 0.05,
            "rank": 8,
            "shot": "data",
            "every": None,
            "rows": None,
            "built": True,
        },
    ),
    "sam": ({}, {"rho": 0.01}),
    "smoothing": ({}, {"sigma": 0.001, "samples": 1}),
    "tar": ({}, {"inner_steps": 4, "inner_lr": 5e-5, "weight": 1.0, "every": 4, "decay": 0.0625}),
}
ALL: list[tuple[Any, dict[str, Any]]] = [
    (registry.objective, OBJECTIVES),
    (registry.retain_term, RETAIN),
    (registry.regularizer, REGULARIZERS),
    (registry.defence, DEFENCES),
]


def words(needs: Any) -> set[str]:
    return set(needs.split() if isinstance(needs, str) else needs)


@pytest.mark.parametrize(
    ("entry", "declared", "defaults"),
    [pytest.param(known[name], *facts, id=name) for known, table in ALL for name, facts in table.items()],
)
def test_what_is_declared(entry: Any, declared: Any, defaults: Any) -> None:
    found = dict(entry.declared)
    assert {key: found[key] for key in declared if key != "needs"} == {
        k: v for k, v in declared.items() if k != "needs"
    }
    assert found.get("chosen") == declared.get("chosen")
    assert words(found.get("needs", "")) == words(declared.get("needs", ""))
    keys = {key: default for key, (_, default) in entry.keys().items()}
    assert {key: keys[key] for key in defaults} == defaults


def test_every_idea_is_in_a_table() -> None:
    assert [set(known) for known, _ in ALL] == [set(table) for _, table in ALL]


def told(entry: Any, recipe: Any = None, **keys: Any) -> list[tuple[Any, ...]]:
    return list(entry.declared.problems(Keys(**keys), ("here",), recipe))


def test_halves_that_are_crossed_are_of_the_logit_variant_and_of_two_sequences() -> None:
    irm = registry.regularizer["irm"]
    half, batch = (("here", "estimator"), "cross_halves is for the logit variant"), ("here", "batch")
    few = (batch, "cross_halves needs at least 2 sequences")
    assert told(irm, estimator="cross_halves", variant="logit", batch=2) == []
    assert told(irm, estimator="cross_halves", variant="logit", batch=1) == [few]
    assert told(irm, estimator="cross_halves", variant="grad_norm", batch=8) == [half]
    assert told(irm, estimator="cross_halves", variant="param_scale", batch=1) == [half, few]
    assert told(irm, estimator="global", variant="grad_norm", batch=1) == []


def test_a_perturbation_lies_below_what_is_read() -> None:
    lat, npo = registry.defence["lat"], Keys(objective=Keys(name="npo"))
    assert told(lat, npo, layer=30) == []
    rmu = Keys(objective=Keys(name="rmu", layer=7))
    assert told(lat, rmu, layer=6) == []
    several = Keys(objective=Keys(name="circuit_breakers", layers=[3, 7, 5]))
    assert told(lat, several, layer=6) == []
    assert "reads layer 7" in told(lat, several, layer=7)[0][1]
    for layer in (7, 8):
        ((where, what),) = told(lat, rmu, layer=layer)
        assert where == ("here", "layer")
        assert what.startswith(f"rmu reads layer 7: a perturbation of layer {layer} does not pass")
