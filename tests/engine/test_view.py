"""What a term sees: sums by sequence, masks, precision, and a direction that is the same everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import items_of, tiny_model

from ilu_cli.data.encode import collate
from ilu_cli.engine.view import Reference, View
from ilu_cli.models.parts import parts_of

LENGTHS, START = [5, 8, 6], 3


def view(model: Any = None, **more: Any) -> View:
    return View(parts_of(model or tiny_model()), collate(items_of(LENGTHS, start=START)), 0, 1, **more)


def plain(model: Any) -> tuple[list[float], list[float]]:
    """NLL and entropy of each sequence, one at a time, without padding."""
    nll, entropy = [], []
    for item in items_of(LENGTHS, start=START):
        logp = model(input_ids=torch.tensor([item.ids])).logits[0].log_softmax(-1)
        at = range(START, len(item.ids))
        nll.append(-sum(logp[t - 1, item.ids[t]].item() for t in at))
        entropy.append(-sum((logp[t - 1].exp() * logp[t - 1]).sum().item() for t in at))
    return nll, entropy


def test_sums_by_sequence(float64: None) -> None:
    model = tiny_model()
    v, (nll, entropy) = view(model), plain(model)
    assert v.lengths.tolist() == [n - START for n in LENGTHS]
    assert v.nll.tolist() == pytest.approx(nll, rel=1e-9)
    assert v.logps.tolist() == pytest.approx([-x for x in nll], rel=1e-9)
    assert v.entropy.tolist() == pytest.approx(entropy, rel=1e-9)
    assert v.gap.tolist() == pytest.approx([a - b for a, b in zip(nll, entropy)], rel=1e-9)
    assert [v.values(name) is getattr(v, name) for name in ("nll", "entropy", "gap")] == [True] * 3


def test_values_by_sequence_keep_their_kind(float64: None) -> None:
    v = view()
    values = torch.arange(len(v.targets), dtype=torch.float32)
    found = v.per_sequence(values)
    assert (found.dtype, found.tolist()) == (torch.float32, [0 + 1, 2 + 3 + 4 + 5 + 6, 7 + 8 + 9])


def test_hidden_states_count_but_for_the_first_and_the_padding(float64: None) -> None:
    v = view()
    assert v.hidden_mask.dtype == torch.float64
    assert v.hidden_mask.tolist() == [[0.0] + [1.0] * (n - 1) + [0.0] * (8 - n) for n in LENGTHS]
    assert v.batch.mask[:, 0].all()  # the batch's own mask is as it was
    assert v.hidden.shape == (3, 8, 16)


def test_hidden_states_are_those_of_the_layer_in_float32() -> None:
    model = tiny_model()
    found = view(model).hidden
    batch = collate(items_of(LENGTHS, start=START))
    states = model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[batch.mask], states[2][batch.mask])
    assert view(tiny_model().bfloat16()).hidden.dtype == torch.float32


def test_a_view_afresh_is_of_the_same_batch_and_knows_nothing_yet() -> None:
    other, reference = view(), Reference(norm=2.0)
    v = view(reference=reference, chosen=other, topics=[0, 1, 0])
    v.nll, v.hidden  # noqa: B018
    new = v.afresh()
    assert new is not v
    assert (new.parts, new.batch, new.seed, new.layer) == (v.parts, v.batch, 0, 1)
    assert (new.reference, new.chosen, new.topics) == (reference, other, [0, 1, 0])
    assert not {"nll", "hidden", "final"} & set(vars(new))


def test_what_is_not_given_is_not_there() -> None:
    v = View(parts_of(tiny_model()), collate(items_of([4])), 0)
    assert (v.layer, v.chosen) == (None, None)
    assert set(vars(v.reference).values()) == {None}


def test_a_direction_is_a_unit_vector_of_its_seed_and_name() -> None:
    v = view()
    u = v.direction("rmu")
    assert u.shape == (16,)
    assert u.norm().item() == pytest.approx(1)
    assert (u >= 0).all()  # uniform on [0, 1), as in RMU's published code
    assert torch.equal(u, view(tiny_model(seed=5)).direction("rmu"))
    assert not torch.equal(u, v.direction("other"))
    v.seed = 1
    assert not torch.equal(u, v.direction("rmu"))


def test_every_topic_has_a_direction_of_its_own() -> None:
    v = view(topics=[2, 0, 1])
    each = [v.direction("rmu", topic) for topic in (0, 1, 2)]
    assert torch.equal(each[0], v.direction("rmu"))
    assert all(not torch.equal(a, b) for a, b in ((each[0], each[1]), (each[0], each[2]), (each[1], each[2])))
    assert torch.equal(v.directions("rmu"), torch.stack([each[2], each[0], each[1]]))
    assert torch.equal(view().directions("rmu"), torch.stack([each[0]] * 3))
