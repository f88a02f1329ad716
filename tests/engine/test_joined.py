"""Forget and retain rows run as one batch: the losses and gradients of two, in one backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import gradient, items_of, noted, present, stream, tiny_model, trainer
from families import VOCAB, family_model

from ilu_cli.data.encode import collate
from ilu_cli.engine.gradients import Term, mean_nll
from ilu_cli.engine.joined import Joined
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.stream import LaterStream
from ilu_cli.engine.view import View
from ilu_cli.models.load import load_model
from ilu_cli.models.parts import Parts, parts_of
from ilu_cli.recipe.load import validate
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.source import Layers
from ilu_cli.runs.store import Store
from ilu_cli.workflows import unlearn
from ilu_cli.workflows.passes import run_together
from ilu_cli.workflows.training import build_trainer

RMU = {"name": "rmu", "layer": 1, "coefficient": 2.0}
LOWER = {"params": ["model.layers.1.mlp.down_proj.weight"]}  # so that the first layer is run beforehand
TOGETHER: dict[str, dict[str, Any]] = {
    "NPO": {"objective": {"name": "npo"}},
    "NPO, KL": {"objective": {"name": "npo"}, "retain": {"name": "kl"}},
    "SimNPO": {"objective": {"name": "simnpo"}},
    "WGA": {"objective": {"name": "wga"}},
    "UNDIAL": {"objective": {"name": "undial"}},
    "CE-U": {"objective": {"name": "ce_u"}},
    "RMU": {"objective": RMU, "retain": {"name": "hidden_mse", "weight": 100.0}},
    "RMU, begun": {"objective": RMU, "retain": {"name": "hidden_mse", "weight": 100.0}, "train": LOWER},
    "bounded": {"objective": {"name": "pdu"}, "retain": {"dual": {"limit": 1.0}}},
    "beside a penalty": {
        "objective": {"name": "npo"},
        "regularizers": [{"name": "irm", "env": ["elements"], "batch": 2}],
    },
}
APART: dict[str, dict[str, Any]] = {
    "other states": {"objective": RMU},
    "pairs": {"objective": {"name": "dpo"}},
    "a share": {"objective": {"name": "npo"}, "retain": {"weight": "share:0.5"}},
    "a penalty's share": {
        "objective": {"name": "npo"},
        "regularizers": [{"name": "irm", "env": ["elements"], "batch": 2, "weight": "share:0.5"}],
    },
    "a defence": {"objective": {"name": "npo"}, "defences": [{"name": "sam"}]},
    "no retain data": {"objective": {"name": "npo"}, "retain": None},
    "padded": {"objective": {"name": "npo"}, "train": {"packing": False}},
    "off": {"objective": {"name": "npo"}, "train": {"together": False}},
}


def built(tiny: Path, asked: dict[str, Any], **train: Any) -> tuple[UnlearnRecipe, Trainer]:
    """A recipe on the tiny model, whose forget rows are more and of other lengths than its retain rows."""
    from ilu_cli.engine.accel import backend
    from ilu_cli.engine.scoring import Scorer

    rows = {"name": "nll", "data": "prose", "batch": 2, "max_length": 24} | (asked.get("retain") or {})
    data = asked | {
        "model": {"ref": str(tiny)},
        "forget": {"data": "capitals", "batch": 5, "max_length": 16},
        "retain": None if asked.get("retain", rows) is None else rows,
        "train": {"precision": "fp32", "steps": 3} | asked.get("train", {}) | train,
    }
    plan = unlearn.plan(validate(UnlearnRecipe, Layers(data)), Store())
    model = load_model(plan.subject)
    scorer = Scorer(model, parts_of(model), plan.tokenizer, backend())
    return plan.recipe, build_trainer(plan.recipe, plan.streams, scorer)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each batch that is run."""
    found, run = list[int](), Parts.run
    monkeypatch.setattr(Parts, "run", lambda p, ids, mask: noted(found, len(ids), run(p, ids, mask)))
    return found


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("name", TOGETHER)
def test_losses_and_gradients_are_those_of_two_passes(name: str, accumulation: int, tiny: Path) -> None:
    """Of three micro-batches of 5 and 2 rows the last has forget rows alone."""
    found = []
    for together in (True, False):
        recipe, t = built(tiny, TOGETHER[name], together=together, accumulation=accumulation)
        assert t.joins is together is bool(run_together(recipe))
        torch.manual_seed(0)
        with torch.no_grad():
            for p in t.params.values():  # away from the original, where a retain loss has no gradient
                p.add_(0.02 * torch.randn_like(p))
        losses = t.backward()
        found.append((losses, {n: p.grad for n, p in t.params.items()}))
    (ours, grads), (theirs, expected) = found
    assert ours.keys() == theirs.keys() and all(ours[k] == pytest.approx(theirs[k], rel=1e-6, abs=1e-9) for k in ours)
    assert grads.keys() == expected.keys()
    for n, g in expected.items():
        if g is None:
            assert grads[n] is None
        else:
            assert float((present(grads[n]) - g).abs().max()) <= 1e-6 * max(1.0, float(g.abs().max())), n


@pytest.mark.real
def test_they_are_on_the_real_model_too() -> None:
    """NPO with all weights trained, in float32: what differs is the rounding of sums in another order."""
    from ilu_cli.engine.accel import backend
    from ilu_cli.engine.scoring import Scorer
    from ilu_cli.recipe.load import load, shipped

    sets = ["train.steps=1", "train.precision=fp32", "forget.batch=3", "retain.batch=2"]
    recipe = load(UnlearnRecipe, shipped()["quickstart-npo"], {}, sets)
    plan = unlearn.plan(recipe, Store())
    model = load_model(plan.subject)
    scorer = Scorer(model, parts_of(model), plan.tokenizer, backend())
    t = build_trainer(plan.recipe, plan.streams, scorer)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in t.params.values():
            p.add_(1e-3 * torch.randn_like(p))
    found = []
    for together in (True, False):
        t.spec = t.spec.model_copy(update={"together": together})
        assert t.joins is together
        losses = t.backward()
        found.append((losses, [present(p.grad).clone() for p in t.params.values()]))
    (ours, grads), (theirs, expected) = found
    assert ours == pytest.approx(theirs, rel=1e-5)
    apart = torch.stack(torch._foreach_norm(torch._foreach_sub(grads, expected))).norm()
    assert apart <= 1e-5 * torch.stack(torch._foreach_norm(expected)).norm()


@pytest.mark.parametrize("name", APART)
def test_what_cannot_be_run_as_one_is_not(name: str, tiny: Path) -> None:
    recipe, t = built(tiny, APART[name])
    assert not t.joins and not run_together(recipe)


def test_one_batch_is_run_of_each_micro_batch(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = {k: built(tiny, TOGETHER["NPO"], together=k)[1] for k in (True, False)}
    seen = counted(monkeypatch)
    for together, rows in ((True, [7]), (False, [5, 2])):
        seen.clear()
        trainers[together].backward()
        assert seen == rows


def test_text_that_is_mixed_into_an_attack_is_run_with_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps on that text alone come first."""
    own = stream(items_of([9, 4, 6]))
    later = LaterStream("attack", own.corpora, 3, 0, after=1)
    terms = [mean_nll("loss", later), mean_nll("mix", stream(items_of([5, 12], seed=3), name="mix"), 0.5)]
    ours, theirs = (trainer(tiny_model(), terms, [], steps=2, together=k) for k in (True, False))
    seen = counted(monkeypatch)
    for rows in ([2, 2], [5, 3, 2]):
        seen.clear()
        torch.testing.assert_close(gradient(ours), gradient(theirs), rtol=1e-5, atol=1e-6)
        assert seen == rows
        ours.step = theirs.step = 1


def test_a_decoder_that_is_not_packed_runs_each_by_itself() -> None:
    """The longer rows' padding would be run for the shorter ones."""
    rows = [stream(items_of([9, 4], VOCAB), name=n) for n in ("forget", "retain")]
    t = trainer(family_model("bloom"), [mean_nll(s.name, s) for s in rows], [], steps=1)
    assert t.grads.parts.packing is None and not t.joins


def test_a_term_that_is_told_nothing_of_its_reads_is_run_by_itself() -> None:
    rows = [stream(items_of([9, 4]), name=n) for n in ("forget", "retain")]
    unknown = Term("forget", rows[0], lambda v: v.nll + v.entropy, "token")
    assert not trainer(tiny_model(), [unknown, mean_nll("retain", rows[1])], [], steps=1).joins


def test_each_view_has_its_own_rows_without_the_others_padding() -> None:
    parts = parts_of(tiny_model())
    batches = [collate(items_of([4, 7])), collate(items_of([9, 3, 5], seed=3))]
    views = [View(parts, b, 0, layer=1) for b in batches]
    rows = Joined(views)
    for n, view in enumerate(views):
        joined = View(parts, view.batch, 0, layer=1, joined=(rows, n))
        for name in ("hidden", "final", "nll", "gap"):
            torch.testing.assert_close(getattr(joined, name), getattr(view, name), rtol=1e-5, atol=1e-6)
        assert joined.afresh().joined is None
