"""The norm that adaptive RMU steers by, against hidden states that plain transformers gives, row by row."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from conftest import items_of, stream, tiny_model

from ilu_cli.data.encode import Encoded
from ilu_cli.engine.accel import backend
from ilu_cli.engine.reference import NORM_ROWS, median_norm
from ilu_cli.models.parts import parts_of


@torch.no_grad()
def norms(model: Any, items: list[Encoded], layer: int) -> list[float]:
    """‖h‖ after a layer at every token but the first, each row by itself: no padding at all."""
    found = []
    for item in items:
        states = model(input_ids=torch.tensor([item.ids]), output_hidden_states=True).hidden_states[layer + 1][0]
        found += states.norm(dim=-1)[1:].tolist()
    return found


@pytest.mark.parametrize("layer", [0, 1])
def test_it_is_the_median_over_real_tokens_but_the_first(layer: int) -> None:
    model = tiny_model()
    with torch.no_grad():  # a few tokens of a huge norm part the median from the mean
        model.model.embed_tokens.weight[1:16] *= 50
    items = items_of([3, 17, 9, 30, 4, 12])  # 75 tokens, 69 of which count; in one batch, with padding
    exact = norms(model, items, layer)
    found = median_norm(stream(items), layer, parts_of(model), backend(), "fp32")
    assert found == pytest.approx(statistics.median(exact), rel=1e-5)
    assert abs(found - statistics.fmean(exact)) > 0.1 * found


def test_padding_and_the_first_token_would_change_it() -> None:
    """What must not count is made to be most of the batch."""
    model = tiny_model()
    items = items_of([2, 2, 2, 2, 40], seed=3)
    exact = norms(model, items, 1)
    found = median_norm(stream(items), 1, parts_of(model), backend(), "fp32")
    assert found == pytest.approx(statistics.median(exact), rel=1e-5)
    padded = torch.zeros(5, 40, dtype=torch.long)
    for row, item in zip(padded, items):
        row[: len(item.ids)] = torch.tensor(item.ids)
    with torch.no_grad():
        states = model(input_ids=padded, output_hidden_states=True).hidden_states[2].norm(dim=-1)
    wrong = [states.median().item(), states[:, 1:].median().item()]
    assert all(abs(w - found) > 1e-3 * found for w in wrong)


def test_it_is_over_the_first_rows_that_training_visits() -> None:
    model, items = tiny_model(), items_of([6] * (NORM_ROWS + 40))
    s = stream(items, batch=NORM_ROWS - 14)
    rows = [s.item(k) for k in [*s.keys(0), *s.keys(1)[:14]]]
    found = median_norm(s, 1, parts_of(model), backend(), "fp32")
    assert found == pytest.approx(statistics.median_low(norms(model, rows, 1)), rel=1e-5)
