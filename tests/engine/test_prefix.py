"""Rows that begin after the layers that nobody trains: the same states and gradients, whatever they are padded with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import items_of, noted, stream, tiny_model
from families import FAMILIES, family_model

from ilu_cli.data.encode import Encoded, collate
from ilu_cli.engine.accel import backend
from ilu_cli.engine.prefix import BATCH, Begun, begin, within
from ilu_cli.engine.view import View
from ilu_cli.models.parts import Parts, changed, parts_of

DEPTH = 2
ITEMS = items_of([15, 6, 9, 12, 7], vocab=60)
ROWS = [tuple(e.ids) for e in ITEMS]


def begun(model: Any, rows: Any = ROWS, precision: str = "fp32", depth: int = DEPTH) -> Begun:
    found = begin(parts_of(model), depth, rows, backend(), precision)
    assert isinstance(found, Begun)
    return found


def frozen(model: Any, depth: int = DEPTH) -> list[torch.nn.Parameter]:
    """Train what lies in the layers from `depth` on; returns that."""
    model.requires_grad_(False)
    layers = parts_of(model).layers[depth:].requires_grad_(True)
    return list(layers.parameters())


def ran(parts: Parts) -> list[int]:
    """A list that tells which layers' attention and MLP have been run."""
    seen: list[int] = []
    for n, layer in enumerate(parts.layers):
        inner = layer.forward
        layer.forward = lambda *a, n=n, inner=inner, **k: noted(seen, n, inner(*a, **k))
    return seen


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_states_and_gradients_are_those_of_the_whole(family: str) -> None:
    """Rows are computed in one batch and padded in two others."""
    model = family_model(family)
    params, plain = frozen(model), parts_of(model)
    short, seen = begun(model), ran(plain)
    for part in (ITEMS[:3], ITEMS[1:2]):
        batch, found = collate(part), []
        for parts in (plain, short):
            seen.clear()
            view = View(parts, batch, 0, layer=2)
            (view.hidden.square().mean(-1) * view.hidden_mask).sum().add(view.nll.sum()).backward()
            assert set(seen) == set(range(0 if parts is plain else DEPTH, 4))
            gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params])
            found.append((view.hidden[batch.mask], view.final, gradient))
            model.zero_grad()
        for one, other in zip(*found):
            assert one.abs().max() > 0
            assert (one - other).norm() <= 1e-6 * 4 * one.norm()


def test_padding_changes_nothing_that_is_known() -> None:
    """In float64 a row is the same whatever stands beside it, to the last digits."""
    torch.set_default_dtype(torch.float64)
    try:
        model = tiny_model()
        frozen(model, 1)
        plain, short = parts_of(model), begun(model, depth=1)
        for part in ([ITEMS[1]], ITEMS, [ITEMS[1], ITEMS[0]]):
            batch = collate(part)
            one, other = (p.final(batch.ids, batch.mask)[batch.mask] for p in (plain, short))
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


def test_rows_that_are_not_known_are_begun_when_they_come() -> None:
    model = tiny_model()
    plain, short = parts_of(model), begun(model, ROWS[:2])
    seen, batch = ran(plain), collate(ITEMS)
    expected = plain.final(batch.ids, batch.mask)[batch.mask]
    for part, layers in ((ITEMS, [0, 1, 2]), (ITEMS[:2], [2]), (ITEMS[2:], [0, 1, 2])):
        seen.clear()
        batch = collate(part)
        whole = plain.final(batch.ids, batch.mask)[batch.mask]
        assert seen == [0, 1, 2]
        seen.clear()
        torch.testing.assert_close(short.final(batch.ids, batch.mask)[batch.mask], whole, rtol=1e-5, atol=1e-5)
        assert seen == layers
    assert len(short.known) == 2
    assert len(expected) == sum(map(len, ROWS))


def test_bf16_rows_are_used_under_bf16_alone() -> None:
    model = tiny_model()
    plain, short = parts_of(model), begun(model, precision="bf16")
    seen, batch = ran(plain), collate(ITEMS)
    exact = plain.final(batch.ids, batch.mask)
    seen.clear()
    assert torch.equal(short.final(batch.ids, batch.mask), exact)
    assert seen == [0, 1, 2]
    seen.clear()
    with backend().autocast("bf16"):
        rough = short.final(batch.ids, batch.mask)
    assert seen == [2]
    assert 0 < (rough - exact)[batch.mask].norm() < 0.05 * exact[batch.mask].norm()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("known", [2, 5])
def test_what_is_done_to_a_layer_is_done(layer: int, known: int) -> None:
    """A defence adds to the output of a layer: below the last that is passed over, everything is run."""
    model = tiny_model()
    plain, short, batch = parts_of(model), begun(model, ROWS[:known]), collate(ITEMS)
    with changed(plain.layers, {layer: lambda states: states + 1}):
        one, other = (p.final(batch.ids, batch.mask)[batch.mask] for p in (plain, short))
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one, plain.final(batch.ids, batch.mask)[batch.mask])


def test_layers_that_are_passed_over_can_be_read() -> None:
    model = tiny_model()
    plain, short, batch = parts_of(model), begun(model), collate(ITEMS)
    for one, other in zip(*(p.states_at([0, 1, 2], batch.ids, batch.mask) for p in (plain, short))):
        torch.testing.assert_close(one[batch.mask], other[batch.mask])


def test_a_decoder_that_hands_more_than_states_from_layer_to_layer_is_left_as_it_is() -> None:
    model = tiny_model()
    first, last, decoder = model.model.layers[0], model.model.layers[2], model.model
    held: list[torch.Tensor] = []
    inner, outer, whole = first.forward, last.forward, decoder.forward
    first.forward = lambda x, **k: noted(held, x, inner(x, **k))
    last.forward = lambda x, **k: outer(x, **k) + sum(held)

    def anew(*args: Any, **kwargs: Any) -> Any:
        held.clear()
        return whole(*args, **kwargs)

    decoder.forward = anew
    parts = parts_of(model)
    assert begin(parts, DEPTH, ROWS, backend(), "fp32") is parts
    last.forward = outer
    assert begin(parts, DEPTH, ROWS, backend(), "fp32") is not parts


def test_a_layer_with_a_hook_is_run() -> None:
    parts = parts_of(tiny_model())
    mlp: Any = parts.layers[0].mlp
    handle = mlp.register_forward_hook(lambda *_: None)
    assert begin(parts, DEPTH, ROWS, backend(), "fp32") is parts
    handle.remove()
    assert begin(parts, DEPTH, ROWS, backend(), "fp32") is not parts


def test_rows_fit_into_what_there_is() -> None:
    rows = [(1, 2, 3), (4,), (5, 6), (4,)]
    assert within(rows, 10, 4 * 10 * 6) == [(4,), (5, 6), (1, 2, 3)]
    assert within(rows, 10, 4 * 10 * 6 - 1) == [(4,), (5, 6)]
    assert within(rows, 10, 0) == []
    assert begin(parts := parts_of(tiny_model()), 1, [], backend(), "fp32") is parts


def test_more_rows_than_a_batch() -> None:
    model, items = tiny_model(), items_of([4 + n % 5 for n in range(2 * BATCH + 3)])
    short = begun(model, within([tuple(e.ids) for e in items], 16, 1e9))
    data, plain = stream(items), parts_of(model)
    batch = collate([data.item(k) for k in data.keys(0)])
    assert len(short.known) == len({tuple(e.ids) for e in items})
    one, other = (p.hidden_at(1, batch.ids, batch.mask)[batch.mask] for p in (plain, short))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_row_of_one_token_begins_too() -> None:
    short = begun(tiny_model(), [(5,)])
    batch = collate([Encoded([5], 1)])
    torch.testing.assert_close(short.final(batch.ids, batch.mask), parts_of(tiny_model()).final(batch.ids, batch.mask))
