"""What no memory could hold is refused before a model is loaded; what may not fit is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers as T
from conftest import Ilu

from ilu_cli.engine import loading
from ilu_cli.engine.accel import Backend, backend
from ilu_cli.errors import UsageError
from ilu_cli.models.traced import Mode, formula
from ilu_cli.workflows import unlearn
from ilu_cli.workflows.attack import attempt
from ilu_cli.workflows.plan import check_memory


@pytest.mark.parametrize(("needed", "notes"), [(0, 0), (40, 0), (41, 1), (150, 1)])
def test_what_may_fit_goes_on(needed: int, notes: int) -> None:
    said: list[str] = []
    check_memory(needed * 10**9, (100 * 10**9, 40 * 10**9), said.append)
    assert len(said) == notes
    assert all(f"about {needed}.0 GB" in text and "40.0 GB are free" in text for text in said)


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"about 151.0 GB at its peak; this machine has 100.0 GB"):
        check_memory(151 * 10**9, (100 * 10**9, 100 * 10**9), print)


def test_training_that_cannot_fit_is_refused_before_the_model_is_loaded(
    ilu: Ilu, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_args: Any) -> None:
        raise AssertionError("the model was loaded")

    for module, name in ((loading, "load_model"), (unlearn, "load"), (attempt, "load"), (attempt, "load_model")):
        monkeypatch.setattr(module, name, loads)
    monkeypatch.setattr(Backend, "memory", lambda _: (10**6, 10**6))
    small = ["--steps", "2", "--set", "forget.batch=2", "--set", "retain.batch=2"]
    cases = (
        ["unlearn", "--method", "grad_diff", "--model", tiny, *small],
        ["attack", tiny, "--task", "sst2", "--source", "builtin", "--steps", "2", "--set", "attack.batch=2"],
    )
    for command in cases:
        facts = json.loads(ilu(*command, "--dry-run", "--json").out)
        assert facts["memory_bytes"] == 10**6 < facts["peak_memory_bytes"] / 1.5
        assert "at the peak (estimate); this machine has 1.0 MB" in ilu(*command, "--dry-run").out
        done = ilu(*command)
        assert done.code == 2, done.err
        assert "at its peak; this machine has 0.0 GB" in done.err
    assert not (tmp_path / "runs").exists()


def test_memory_is_that_of_the_machine() -> None:
    total, free = backend().memory()
    assert 0 < free <= total <= psutil.virtual_memory().total


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    alone = backend().memory()[0]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert backend().memory()[0] == alone // 4


def test_a_configuration_that_leaves_its_inner_width_open_is_priced() -> None:
    """GPT-Neo's is None, and means four times its width."""
    found = []
    for inner in (None, 128):
        config = T.GPTNeoConfig(vocab_size=400, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=inner,
                                attention_types=[[["global", "local"], 1]])  # fmt: skip
        with torch.device("meta"):
            model = T.AutoModelForCausalLM.from_config(config)
        found.append(formula(model, 1, 64, Mode(True)))
    assert found[0] == found[1]
    assert found[0].layers[0].kept > 0
