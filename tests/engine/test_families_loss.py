"""Losses and gradients of every decoder family against plain transformers and autograd.

The batch is padded, its texts are of unequal lengths and longer than `WINDOW`.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import gradient, items_of, stream, trainer
from families import FAMILIES, VOCAB, WINDOW, family_model
from torch import Tensor
from torch.nn.functional import logsigmoid

from ilu_cli import registry
from ilu_cli.data.encode import collate
from ilu_cli.data.sampling import seed_of
from ilu_cli.engine.accel import backend
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.loop import Penalty
from ilu_cli.engine.probe import Lens
from ilu_cli.engine.reference import ReferenceCache, fill
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.tokens import token_scores
from ilu_cli.engine.view import View
from ilu_cli.models.parts import parts_of

LAYER, ROUNDING = 1, 1e-5
ITEMS = items_of([2 * WINDOW + 5, WINDOW - 3, 3 * WINDOW], VOCAB, start=3)


class Plain:
    """The batch through `model(input_ids, attention_mask)`."""

    def __init__(self, model: Any) -> None:
        batch = collate(ITEMS)
        out = model(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False, output_hidden_states=True)
        first = 0 if model.config.model_type == "mamba" else 1  # most begin their hidden states with the embeddings
        self.scored, self.hidden, self.real = batch.scored[:, 1:], out.hidden_states[first + LAYER], batch.mask.clone()
        self.real[:, 0] = False
        self.logp = out.logits[:, :-1].float().log_softmax(-1)
        self.nll = -self.logp.gather(-1, batch.ids[:, 1:, None])[..., 0]
        self.entropy = -(self.logp.exp() * self.logp).sum(-1)

    def mean(self, values: Tensor) -> Tensor:
        return values[self.scored].mean()

    @property
    def logps(self) -> Tensor:
        found: Tensor = -(self.nll * self.scored).sum(-1)
        return found


def moved(model: Any) -> Any:
    """Move a model's weights, in place, as training does."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Plain, TrainStream, ReferenceCache]:
    """A model that has moved, what its original says, and what was cached before it moved."""
    model, data = family_model(request.param), stream(ITEMS)
    original = copy.deepcopy(model)
    cache = fill(data, {"reference.logps", "reference.final"}, LAYER, 1, parts_of(model), backend(), "fp32")
    with torch.no_grad():
        return moved(model), Plain(original), data, cache


def test_tokens(family: tuple[Any, Plain, TrainStream, ReferenceCache]) -> None:
    """NLL and entropy of every token; the mean NLL is the loss that transformers gives for labels."""
    model, batch = family[0], collate(ITEMS)
    with torch.no_grad():
        view, plain = View(parts_of(model), batch, 0), Plain(model)
        nll, entropy = view.token_nll, view.entropy
        labels = batch.ids.masked_fill(~batch.scored, -100)
        loss = model(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=labels, use_cache=False).loss
    torch.testing.assert_close(nll, plain.nll[plain.scored], rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(entropy, (plain.entropy * plain.scored).sum(-1), rtol=ROUNDING, atol=0)
    assert nll.mean().item() == pytest.approx(loss.item(), rel=ROUNDING)


def test_token_scores_and_lens(family: tuple[Any, Plain, TrainStream, ReferenceCache]) -> None:
    """What membership attacks read of every token; and the logits of a model that ends after its second layer."""
    model, plain = family[0], Plain(family[0])
    scorer = Scorer(model, parts_of(model), None, backend())
    with torch.no_grad():
        for b, found in enumerate(token_scores(scorer, ITEMS)):
            logp = plain.logp[b][plain.scored[b]].detach()
            mean = (logp.exp() * logp).sum(-1)
            std = (logp.exp() * (logp - mean[:, None]).square()).sum(-1).sqrt()
            expected = (-plain.nll[b][plain.scored[b]].detach(), mean, std)
            for ours, theirs in zip((found.logp, found.mean, found.std), expected):
                torch.testing.assert_close(torch.as_tensor(ours), theirs.double(), rtol=ROUNDING, atol=ROUNDING)
        batch, lens = collate(ITEMS), Lens.of(scorer.parts, 2)
        mine = scorer.parts.head(lens.final(batch.ids, batch.mask.long()))
        short = copy.deepcopy(model)
        del parts_of(short).layers[2:]
        theirs = short(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False).logits
    torch.testing.assert_close(mine[batch.mask], theirs[batch.mask], rtol=ROUNDING, atol=ROUNDING)


def undialled(now: Plain, old: Plain) -> Tensor:
    z = old.logp.scatter_add(-1, collate(ITEMS).ids[:, 1:, None], torch.full_like(old.logp[..., :1], -3.0))
    return now.mean(-(z.softmax(-1) * now.logp).sum(-1))


def misdirected(now: Plain, _old: Plain) -> Tensor:
    u = torch.rand(now.hidden.shape[-1], generator=torch.Generator().manual_seed(seed_of(0, "direction", "rmu")))
    found: Tensor = (now.hidden - 3 * u / u.norm()).square().mean(-1)[now.real].mean()
    return found


# kind, name, recipe keys → definition over what the model says now and what the original said
TERMS = [
    ("retain", "nll", {}, lambda now, old: now.mean(now.nll)),
    ("retain", "kl", {}, lambda now, old: now.mean((old.logp.exp() * (old.logp - now.logp)).sum(-1))),
    ("objective", "npo", {"beta": 0.1}, lambda now, old: (-20 * logsigmoid(-(now.logps - old.logps) / 10)).mean()),
    ("objective", "undial", {"strength": 3.0}, undialled),
    ("objective", "rmu", {"coefficient": 3.0, "adaptive": False}, misdirected),
    ("regularizer", "irm", {}, lambda now, old: now.mean(now.nll - now.entropy) ** 2),
]


@pytest.mark.parametrize(("kind", "name", "keys", "definition"), TERMS, ids=[name for _, name, _, _ in TERMS])
def test_value_and_gradient(
    family: tuple[Any, Plain, TrainStream, ReferenceCache], kind: str, name: str, keys: dict[str, Any], definition: Any
) -> None:
    model, old, data, cache = family
    if kind == "regularizer":
        t = trainer(model, [], [Penalty(name, [data], registry.regularizer[name].obj)])
    else:
        entry = (registry.objective if kind == "objective" else registry.retain_term)[name]
        per = entry.declared.per
        t = trainer(model, [Term(name, data, lambda v: entry.obj(v, **keys), per, 1.0, LAYER, cache)], [])
    found, value = gradient(t), t.backward()[name]
    loss = definition(Plain(model), old)
    grads = torch.autograd.grad(loss, list(t.params.values()), allow_unused=True)
    wanted = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(t.params.values(), grads)])
    rounding = 1e-7 if name == "kl" else None  # of the log-probabilities, whose differences are small
    assert value == pytest.approx(loss.item(), rel=ROUNDING, abs=rounding)
    assert (found - wanted).norm() < ROUNDING * wanted.norm()
