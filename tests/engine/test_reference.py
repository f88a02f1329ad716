"""What is kept of the original model: which rows, which numbers, of which length, and the norm that RMU scales by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import items_of, present, stream, tiny_model

from ilu_cli.data.encode import collate
from ilu_cli.engine import reference
from ilu_cli.engine.accel import backend
from ilu_cli.engine.reference import ReferenceCache, fill, median_norm
from ilu_cli.models import heap
from ilu_cli.models.parts import parts_of

LAYER = 1
CPU = torch.device("cpu")


def filled(needs: str, data: Any, model: Any = None, steps: int = 1, layer: int | None = LAYER) -> ReferenceCache:
    return fill(data, set(needs.split()), layer, steps, parts_of(model or tiny_model()), backend(), "fp32")


def matrix(head: Any) -> torch.Tensor:
    """[V, D] of what is kept of an LM head."""
    found: torch.Tensor = getattr(head, "weight", head)
    return found


def states(model: Any, item: Any, layer: int) -> torch.Tensor:
    """[T, D], the layer's output for one row alone."""
    out = model(input_ids=torch.tensor([item.ids]), output_hidden_states=True)
    found: torch.Tensor = out.hidden_states[layer + 1][0]
    return found


def test_log_probabilities_of_each_row(float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CACHE_BATCH", 2)  # several passes
    model, data = tiny_model(), stream(items_of([5, 9, 7, 4, 6], start=2))
    known = filled("reference.logps", data, model).of(data.keys(0), CPU)
    for key, found in zip(data.keys(0), present(known.logps).tolist()):
        ids = data.item(key).ids
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        assert found == pytest.approx(sum(logp[t - 1, ids[t]].item() for t in range(2, len(ids))), rel=1e-6)
    assert (known.hidden, known.final, known.head, known.norm) == (None, None, None, None)


def test_blocks_are_mapped_while_the_original_is_asked_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[tuple[int, int]]()

    def set_(which: int, size: int) -> bool:
        told.append((which, size))
        return True

    monkeypatch.setattr(heap, "_set", set_)
    meanwhile = [(heap.MMAP_THRESHOLD, heap.BOUND), (heap.MMAP_THRESHOLD, 1 << 25), (heap.TRIM_THRESHOLD, 1 << 26)]
    filled("reference.logps", stream(items_of([5, 9])))
    assert told == meanwhile
    median_norm(stream(items_of([5, 9])), LAYER, parts_of(tiny_model()), backend(), "fp32")
    assert told == 2 * meanwhile
    monkeypatch.setattr(heap, "_always", True)  # of a sharded model
    filled("reference.logps", stream(items_of([5, 9])))
    assert told == 2 * meanwhile


def test_hidden_states_of_each_row_as_long_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CACHE_BATCH", 2)
    model, data = tiny_model(), stream(items_of([5, 9, 7]))
    cache = filled("reference.hidden", data, model)
    for key in data.keys(0):
        torch.testing.assert_close(cache.hidden[key], states(model, data.item(key), LAYER), rtol=1e-4, atol=1e-5)
    known = present(cache.of(data.keys(0), CPU).hidden)
    batch = collate([data.item(k) for k in data.keys(0)])
    assert known.shape == (3, 9, 16)
    assert not known[~batch.mask].any()
    assert torch.equal(known[0, : len(data.item(data.keys(0)[0]).ids)], cache.hidden[data.keys(0)[0]])
    held = {h.untyped_storage().data_ptr(): h.untyped_storage().nbytes() for h in cache.hidden.values()}
    assert sum(held.values()) == 4 * 16 * (5 + 9 + 7)  # in one block without padding, and no view of a batch


def test_last_states_of_the_scored_tokens_and_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CACHE_BATCH", 2)
    model, data = tiny_model(), stream(items_of([5, 9, 7], start=3))
    cache = filled("reference.final", data, model, layer=None)
    for key in data.keys(0):
        item = data.item(key)
        last = model.model(input_ids=torch.tensor([item.ids])).last_hidden_state[0, 2:-1]
        torch.testing.assert_close(cache.final[key], last, rtol=1e-4, atol=1e-5)
    known = cache.of(data.keys(0), CPU)
    assert present(known.final).shape == (2 + 6 + 4, 16)
    assert torch.equal(matrix(known.head), model.lm_head.weight)


def test_a_trained_head_is_copied_and_a_frozen_one_is_not() -> None:
    data = stream(items_of([5]))
    for trained in (True, False):
        model = tiny_model()
        model.lm_head.weight.requires_grad_(trained)
        cache = filled("reference.final", data, model)
        assert not matrix(cache.head).requires_grad
        assert (matrix(cache.head).data_ptr() == model.lm_head.weight.data_ptr()) != trained


def test_only_rows_that_training_visits_and_only_what_is_needed() -> None:
    data = stream(items_of([5] * 8), batch=2)
    cache = filled("reference.logps nll", data, steps=2)
    assert set(cache.logps) == set(data.keys(0)) | set(data.keys(1))
    assert len(cache.logps) < 8
    assert filled("nll hidden reference.norm", data).logps == {}
    half = filled("reference.hidden", data)
    assert (half.logps, half.final, half.head) == ({}, {}, None)
    assert half.hidden


def test_what_should_be_said_instead_has_a_reference_of_its_own(float64: None) -> None:
    data = stream(items_of([5, 6]))
    data.chosen = stream(items_of([4, 8], seed=3))
    cache = filled("reference.logps", data)
    assert present(cache.chosen).logps == filled("reference.logps", data.chosen).logps
    assert present(cache.chosen).logps != cache.logps
    assert filled("reference.logps", data.chosen).chosen is None


def test_a_reference_is_no_graph() -> None:
    cache = filled("reference.hidden reference.final", stream(items_of([5])))
    assert not any(t.requires_grad for kind in (cache.hidden, cache.final) for t in kind.values())
    assert {t.dtype for kind in (cache.hidden, cache.final) for t in kind.values()} == {torch.float32}


def test_bf16_is_kept_as_float32() -> None:
    data = stream(items_of([5]))
    cache = fill(data, {"reference.final", "reference.hidden"}, LAYER, 1, parts_of(tiny_model()), backend(), "bf16")
    exact = filled("reference.final reference.hidden", data)
    for mine, other in ((cache.final, exact.final), (cache.hidden, exact.hidden)):
        (a,), (b,) = mine.values(), other.values()
        assert a.dtype == torch.float32
        assert 0 < (a - b).norm() < 0.05 * b.norm()  # computed in bf16


@pytest.mark.parametrize("batch", [3, 100])
def test_the_median_norm_is_over_tokens_but_the_first_of_the_first_rows(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """The median of a set of even size is the lower of the middle two, as torch has it."""
    monkeypatch.setattr(reference, "NORM_ROWS", 5)
    monkeypatch.setattr(reference, "CACHE_BATCH", 2)
    model, data = tiny_model(), stream(items_of([4, 9, 6, 12, 5, 7, 8, 10, 3, 11]), batch=min(batch, 10))
    rows = [k for step in range(2) for k in data.keys(step)][:5]
    norms = sorted(n for k in rows for n in states(model, data.item(k), LAYER)[1:].norm(dim=-1).tolist())
    found = median_norm(data, LAYER, parts_of(model), backend(), "fp32")
    assert found == pytest.approx(norms[(len(norms) - 1) // 2], rel=1e-4)
    assert norms[(len(norms) - 1) // 2] != pytest.approx(sum(norms) / len(norms), rel=1e-3)
    rough = median_norm(data, LAYER, parts_of(model), backend(), "bf16")
    assert rough != found
    assert rough == pytest.approx(found, rel=0.02)


def test_the_reference_of_what_should_be_said_instead_is_of_the_same_layer_and_precision() -> None:
    data = stream(items_of([5, 6]))
    data.chosen = stream(items_of([4, 8], seed=3))
    needs, model = {"reference.hidden", "reference.logps"}, parts_of(tiny_model())
    for precision in ("fp32", "bf16"):
        found = present(fill(data, needs, LAYER, 1, model, backend(), precision).chosen)
        alone = fill(data.chosen, needs, LAYER, 1, model, backend(), precision)
        assert found.logps == alone.logps
        assert all(torch.equal(found.hidden[k], alone.hidden[k]) for k in alone.hidden)
    assert found.logps != filled("reference.logps", data.chosen).logps
