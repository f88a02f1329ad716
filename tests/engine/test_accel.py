"""The launch is of a kind that is known, and a sum is made where the processes can make it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ilu_cli.cli.failures import as_known
from ilu_cli.engine.accel import ENGINES, Backend
from ilu_cli.errors import RunFailed, UsageError


@pytest.mark.parametrize("variable", ENGINES)
def test_another_engine_is_refused_by_name(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one process on a CPU too, where Accelerate passes over FSDP, and without the engine's package."""
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match=f"asked for {ENGINES[variable]};") as refused:
        Backend()
    assert refused.value.hint is not None and "--multi_gpu" in refused.value.hint


@pytest.mark.parametrize("variable", ENGINES)
def test_an_engine_that_is_off_is_not_asked_for(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "false")
    assert Backend().world == 1


class Collective:
    """Sums as NCCL does: only what lies on the device. Two processes that hold the same."""

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum" and values.device.type == "meta", "not on the training device"
        return torch.full(values.shape, 6.0, dtype=values.dtype)


def test_a_sum_is_made_on_the_device_and_returned_to_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()
    monkeypatch.setattr(backend, "accelerator", Collective())
    backend.world, backend.device = 2, torch.device("meta")
    total = backend.sum(torch.full((2,), 3.0, dtype=torch.float64))
    assert total.device.type == "cpu" and total.dtype == torch.float64 and total.tolist() == [6.0, 6.0]


def test_a_process_that_is_gone_is_no_fault_of_ours() -> None:
    """What gloo said when the other of two processes was killed in the middle of a run."""
    said = "[third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:25504: Connection reset by peer"
    known = as_known(RuntimeError(said))
    assert isinstance(known, RunFailed) and "another process of this launch" in str(known)
    assert known.hint is not None and "report" not in known.hint
