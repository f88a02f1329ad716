"""Hidden states in the middle of every decoder: those of the whole, by a pass over no more layers than are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_model
from families import DEPTH, FAMILIES, family_model

from ilu_cli.models.parts import parts_of

IDS = torch.tensor(
    [[5, 9, 7, 30, 12, 44, 8, 61, 17, 90, 6, 21, 33, 4, 11], [3, 8, 51, 70, 9, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1]]
)
MASK = torch.tensor([[1] * 15, [1] * 6 + [0] * 9])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_states_are_those_of_the_whole_decoder_and_end_at_the_deepest(family: str) -> None:
    model = family_model(family)
    parts, ran = parts_of(model), dict[int, Any]()
    assert parts.ends_early
    for n, layer in enumerate(parts.layers):
        layer.register_forward_hook(lambda _m, _a, out, n=n: ran.update({n: out[0] if isinstance(out, tuple) else out}))
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK, use_cache=False)
        whole = dict(ran)
        ran.clear()
        last, first = parts.states_at([2, 0], IDS, MASK.bool())
    assert list(ran) == [0, 1, 2]
    assert len(parts.layers) == DEPTH
    for n, found in ((0, first), (2, last)):
        torch.testing.assert_close(found[MASK.bool()], whole[n][MASK.bool()], rtol=1e-5, atol=1e-5)


def test_the_deepest_layer_is_read_before_the_final_norm() -> None:
    model = tiny_model()
    parts, ids = parts_of(model), IDS % 61
    (found,) = parts.states_at([2], ids, MASK.bool())
    torch.testing.assert_close(model.model.norm(found), parts.final(ids, MASK.bool()))


def test_a_failure_leaves_the_model_whole() -> None:
    parts = parts_of(tiny_model())
    with pytest.raises(IndexError):
        parts.hidden_at(0, IDS + 1000, MASK.bool())
    assert len(parts.layers) == 3
    assert not any(layer._forward_hooks for layer in parts.layers)


@pytest.mark.parametrize("odd", ["needs all its layers", "tells the last one apart"])
def test_a_decoder_that_does_not_end_early_is_run_whole(odd: str) -> None:
    model = tiny_model()
    decoder: Any = model.model
    plain = decoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if odd == "needs all its layers":
            decoder.layers[2]
            return plain(*args, **kwargs)
        handle = decoder.layers[-1].register_forward_pre_hook(lambda _m, args: (2 * args[0], *args[1:]))
        try:
            return plain(*args, **kwargs)
        finally:
            handle.remove()

    decoder.forward = forward
    parts, ids = parts_of(model), IDS % 61
    assert not parts.ends_early
    whole = model(input_ids=ids, attention_mask=MASK, output_hidden_states=True).hidden_states
    torch.testing.assert_close(parts.hidden_at(0, ids, MASK.bool()), whole[1])
    assert len(parts.layers) == 3
