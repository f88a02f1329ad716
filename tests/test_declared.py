"""What each idea declares about itself, and the values that its keys have when a recipe is silent."""

from __future__ import annotations

import pytest

from ilu_cli import registry

# name → what is declared, and the defaults: those of the paper or of its authors' code where they give any
OBJECTIVES = {
    "dpo": ({"needs": "logps reference.logps", "per": "sequence", "chosen": "counterfactual"}, {"beta": 0.1}),
    "grad_ascent": ({"needs": "logps", "per": "token"}, {}),
    "grad_diff": ({"needs": "logps", "per": "token"}, {}),
    "idk_po": ({"needs": "logps reference.logps", "per": "sequence", "chosen": "refusal"}, {"beta": 0.1}),
    "npo": ({"needs": "logps reference.logps", "per": "sequence"}, {"beta": 0.1, "reduction": "sum"}),
    "rmu": (
        {"needs": "hidden reference.norm", "per": "hidden token"},
        {"layer": 7, "coefficient": 2.0, "adaptive": True},
    ),
    "simnpo": ({"needs": "logps", "per": "sequence"}, {"beta": 2.5, "delta": 0.0}),
    "undial": ({"needs": "distillation reference.final", "per": "token"}, {"strength": 10.0}),
    "wga": ({"needs": "token_nll", "per": "token"}, {"alpha": 1.0}),
}
RETAIN = {
    "hidden_mse": ({"needs": "hidden reference.hidden", "per": "hidden token"}, {}),
    "kl": ({"needs": "distillation reference.final", "per": "token"}, {}),
    "nll": ({"needs": "nll", "per": "token"}, {}),
}
REGULARIZERS = {
    "env_ce": ({"least": 1}, {}),
    "grad_match": ({"least": 2}, {}),
    "irm": ({"least": 1}, {"variant": "logit", "estimator": "global"}),
    "vrex": ({"least": 2}, {}),
}
DEFENCES = {
    "averaging": ({}, {"start": 20, "every": 5}),
    "lat": ({}, {"layer": 4, "epsilon": 2.0, "inner_lr": 0.05, "inner_steps": 16}),
    "sam": ({}, {"rho": 0.01}),
    "smoothing": ({}, {"sigma": 0.001, "samples": 1}),
    "tar": ({}, {"inner_steps": 4, "inner_lr": 5e-5, "weight": 1.0}),
}
ALL = [
    (registry.objective, OBJECTIVES),
    (registry.retain_term, RETAIN),
    (registry.regularizer, REGULARIZERS),
    (registry.defence, DEFENCES),
]


def words(needs) -> set[str]:
    return set(needs.split() if isinstance(needs, str) else needs)


@pytest.mark.parametrize(
    ("entry", "declared", "defaults"),
    [pytest.param(known[name], *facts, id=name) for known, table in ALL for name, facts in table.items()],
)
def test_what_is_declared(entry, declared, defaults):
    found = dict(entry.declared)
    assert {key: found[key] for key in declared if key != "needs"} == {
        k: v for k, v in declared.items() if k != "needs"
    }
    assert found.get("chosen") == declared.get("chosen")
    assert words(found.get("needs", "")) == words(declared.get("needs", ""))
    keys = {key: default for key, (_, default) in entry.keys().items()}
    assert {key: keys[key] for key in defaults} == defaults


def test_every_idea_is_in_a_table():
    assert [set(known) for known, _ in ALL] == [set(table) for _, table in ALL]
