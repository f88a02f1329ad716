"""A recipe that trains upper layers alone: the same steps with and without what lies below computed beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu, gradient, noted

from ilu_cli.engine.accel import backend
from ilu_cli.engine.prefix import Begun
from ilu_cli.engine.scoring import Scorer
from ilu_cli.models.load import add_adapter, load_model
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.load import digest, validate
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.source import Layers
from ilu_cli.runs.store import Store
from ilu_cli.workflows import unlearn
from ilu_cli.workflows.training import build_trainer

FORM = {"batch": 4, "max_length": 16}
ENV = [{"name": "irm", "env": ["prose"], "weight": 0.5, **FORM}]
UPPER = ["model.layers.2.*", "model.norm.weight"]
CASES: dict[str, dict[str, Any]] = {
    "rmu": {"objective": {"name": "rmu", "layer": 2}, "retain": {"name": "hidden_mse"}},
    "rmu with irm": {"objective": {"name": "rmu", "layer": 2}, "retain": {"name": "hidden_mse"}, "regularizers": ENV},
    "npo with kl": {"objective": {"name": "npo"}, "retain": {"name": "kl"}},
    "dpo": {"objective": {"name": "dpo"}, "retain": {"name": "nll"}},
    "lat": {"objective": {"name": "npo"}, "retain": {"name": "nll"}, "defences": [{"name": "lat", "layer": 0}]},
    "sam": {"objective": {"name": "rmu", "layer": 2}, "retain": {"name": "hidden_mse"}, "defences": [{"name": "sam"}]},
    "adapter": {"objective": {"name": "npo"}, "retain": {"name": "nll"}, "lora": {"layers": [2]}},
}


def recipe(tiny: Path, case: str, **train: Any) -> UnlearnRecipe:
    keys = dict(CASES[case])
    spec = {"precision": "fp32", "steps": 3} | ({} if "lora" in keys else {"params": UPPER}) | train
    keys["retain"] = keys["retain"] | {"data": "elements"} | FORM
    data = {"model": {"ref": str(tiny)}, "forget": {"data": "capitals"} | FORM, "train": spec} | keys
    return validate(UnlearnRecipe, Layers(data))


def built(tiny: Path, case: str, **train: Any) -> tuple[Any, list[int]]:
    """The trainer of a case, and a list that tells how often the first layer was run."""
    plan = unlearn.plan(recipe(tiny, case, **train), Store())
    model, ran = load_model(plan.subject), list[int]()
    if plan.recipe.lora:
        add_adapter(model, plan.recipe.lora, 0)
    scorer = Scorer(model, parts_of(model), plan.tokenizer, backend())
    found, first = build_trainer(plan.recipe, plan.streams, scorer), model.model.layers[0]
    inner = first.forward
    first.forward = lambda *a, **k: noted(ran, 1, inner(*a, **k))
    return found, ran


@pytest.mark.parametrize("case", CASES)
def test_steps_are_the_same(case: str, tiny: Path) -> None:
    found = []
    for gb in (0.0, 2.0):
        t, ran = built(tiny, case, prefix_gb=gb, lr=1e-3)
        assert isinstance(t.grads.parts, Begun) == (gb > 0)
        g = gradient(t)
        assert (not ran) == (gb > 0 and case != "lat")
        losses = [log.losses for log in t.run()]
        found.append((g, losses))
    (one, plain), (other, begun) = found
    assert one.norm() > 0
    assert (one - other).norm() <= 1e-5 * one.norm()
    for a, b in zip(plain, begun):
        assert a.keys() == b.keys()
        assert [b[k] for k in a] == pytest.approx(list(a.values()), rel=1e-3, abs=1e-6)


def test_what_trains_the_first_layer_begins_nowhere(tiny: Path) -> None:
    t, ran = built(tiny, "npo with kl", params=["model.layers.0.*"])
    assert not isinstance(t.grads.parts, Begun)
    gradient(t)
    assert ran


def test_the_key_is_later_than_recipes(tiny: Path) -> None:
    assert digest(recipe(tiny, "rmu")) == digest(recipe(tiny, "rmu", prefix_gb=2.0))
    assert digest(recipe(tiny, "rmu")) != digest(recipe(tiny, "rmu", prefix_gb=1.0))


def test_rows_that_are_seen_once_by_each_of_several_processes_are_left_out(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ilu_cli.workflows import training

    plan = unlearn.plan(recipe(tiny, "rmu with irm", steps=3), Store())
    rows = training.prefix_rows(plan.recipe, plan.streams, 16)
    seen = {tuple(s.stream.item(k).ids) for s in plan.streams for k in s.stream.visited(3)}
    assert set(rows) == seen
    monkeypatch.setattr(backend(), "world", 2)
    assert training.prefix_rows(plan.recipe, plan.streams, 16) == []


def test_a_plan_counts_what_is_kept(tiny: Path) -> None:
    def peak(gb: float) -> int:
        found = unlearn.plan(recipe(tiny, "npo with kl", prefix_gb=gb), Store())
        assert found.training is not None
        return found.training.peak_memory_bytes

    plan = unlearn.plan(recipe(tiny, "npo with kl"), Store())
    rows = {tuple(s.stream.item(k).ids) for s in plan.streams for k in s.stream.visited(3)}
    assert peak(2.0) - peak(0.0) in (0, 4 * 16 * sum(map(len, rows)))  # 0: where loading takes more


def test_a_second_run_reads_what_the_first_has_kept(ilu: Ilu, tiny: Path, tmp_path: Path) -> None:
    args = ["unlearn", "--method", "rmu", "--model", tiny, "--steps", 2, "--set", "objective.layer=2", "--set",
            'train.params=["model.layers.2.*"]', "--set", "forget.batch=2", "--set", "retain.batch=2"]  # fmt: skip
    kept, runs, held = tmp_path / "cache" / "states", [], []
    for _ in range(2):
        done = ilu(*args)
        assert done.code == 0, done.err
        runs.append(Path(done.out.strip()))
        names = sorted(f.name for f in kept.iterdir())
        held.append(names)
    # prefix, retain states, norm; what layers take of each of these and of both batches; what was found by trying
    assert held[0] == held[1] and len(names) > 9
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    assert [r["forget"] for r in rows[0]] == [r["forget"] for r in rows[1]]
    weights = [(run / "checkpoint" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    for name in names:
        (kept / name).write_bytes(b"")
    done = ilu(*args)
    assert done.err.count("was damaged") == len(names)
    assert (Path(done.out.strip()) / "checkpoint" / "model.safetensors").read_bytes() == weights[0]
