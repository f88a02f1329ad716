"""Traces that are kept: what is read is what was found, and found anew whenever something else would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ilu_cli.models import traced
from ilu_cli.models.kept import told
from ilu_cli.models.load import add_adapter
from ilu_cli.models.traced import Mode, trace
from ilu_cli.models.traced import traced as without_data
from ilu_cli.recipe.specs import LoraSpec
from ilu_cli.workflows import traces
from ilu_cli.workflows.traces import kept_trace

ROWS, LENGTH, HALF = 3, 10, Mode(half=True)


def model(**keys: Any) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=4, **keys)).eval()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How many tokens each trace had that was really made; the cache is empty."""
    monkeypatch.setenv("ILU_CACHE", str(tmp_path))
    made, run = list[int](), traced.trace

    def count(model: Any, rows: int, length: int, mode: Mode) -> Any:
        made.append(rows * length)
        return run(model, rows, length, mode)

    monkeypatch.setattr(traced, "trace", count)
    monkeypatch.setattr(traces, "told", told)  # not those of the suite
    monkeypatch.setattr(traced, "traced", without_data)
    return made


def test_what_is_read_is_what_was_found(counted: list[int]) -> None:
    found = [kept_trace(model(), ROWS, LENGTH, HALF) for _ in range(2)]
    assert counted == [ROWS * LENGTH]
    assert found[0] == found[1] == trace(model(), ROWS, LENGTH, HALF)
    assert found[1].layers[1].work and found[1].layers[1].backward > found[1].layers[1].kept > 0


def test_what_would_be_another_is_found_anew(counted: list[int]) -> None:
    frozen, adapted = model(), model()
    frozen.model.layers[0].requires_grad_(False)
    add_adapter(adapted, LoraSpec(r=2), 0)
    small = Mode(half=True, small=frozenset([id(frozen.model.layers[0].mlp.up_proj.weight)]))
    asked = [
        (model(), ROWS, LENGTH, HALF), (model(), ROWS, LENGTH, Mode(half=False)), (model(), ROWS + 1, LENGTH, HALF),
        (model(), ROWS, LENGTH + 1, HALF), (model(), ROWS, LENGTH, Mode(half=True, again=True)),
        (model(), ROWS, LENGTH, Mode(half=True, packed=True)), (model(), ROWS, LENGTH, Mode(half=True, grad=False)),
        (model(num_key_value_heads=2), ROWS, LENGTH, HALF), (frozen, ROWS, LENGTH, HALF),
        (frozen, ROWS, LENGTH, small), (adapted, ROWS, LENGTH, HALF),
    ]  # fmt: skip
    for given in asked:
        assert kept_trace(*given) == trace(*given)
    assert len(counted) == len(asked)


def test_of_a_model_with_code_of_its_own_nothing_is_kept(counted: list[int]) -> None:
    class Own(torch.nn.SiLU):
        pass

    changed = model()
    changed.model.layers[0].mlp.act_fn = Own()
    for _ in range(2):
        kept_trace(changed, ROWS, LENGTH, HALF)
    assert len(counted) == 2
