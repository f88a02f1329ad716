"""The launch is of a kind that is known, and a sum is made where the processes can make it."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from ilu_cli.cli.failures import as_known
from ilu_cli.engine import peers
from ilu_cli.engine.accel import ENGINES, SHARDED, Backend
from ilu_cli.errors import RunFailed, UsageError

LAUNCH = Path(__file__).parents[2] / "recipes" / "launch"


@pytest.mark.parametrize("variable", ENGINES)
def test_another_engine_is_refused_by_name(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one process on a CPU too, and without the engine's package."""
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match=f"asked for {ENGINES[variable]};") as refused:
        Backend()
    assert refused.value.hint is not None and "--use_fsdp --fsdp_version 2" in refused.value.hint


@pytest.mark.parametrize("version", [None, "1"])
def test_the_first_fsdp_is_refused(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch` means where it is told no version, on CPUs too, where Accelerate passes over it."""
    monkeypatch.setenv(SHARDED, "true")
    if version:
        monkeypatch.setenv("FSDP_VERSION", version)
    else:
        monkeypatch.delenv("FSDP_VERSION", raising=False)
    with pytest.raises(UsageError, match="asked for FSDP 1;"):
        Backend()


def test_the_second_fsdp_of_one_process_is_that_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARDED, "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    backend = Backend()
    assert (backend.world, backend.mesh, os.environ[SHARDED]) == (1, None, "true")
    model = object()
    assert backend.spread(model) is model


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_launch_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its own parser does, and as many processes as the name tells; what it sets is what is read here."""
    config = load_config_from_file(str(path))
    counts = {"one": 1, "two": 2, "eight": 8}
    each = 8 if "nodes" in path.stem else 1
    assert config.num_processes == counts[path.stem.partition("-")[0]] * each
    assert config.num_machines == (2 if each == 8 else 1)
    sharded = config.distributed_type == "FSDP"
    assert sharded == ("sharded" in path.stem)
    if sharded:
        parser = launch_command_parser()
        args, *_ = _validate_launch_command(parser.parse_args(["--config_file", str(path), "-m", "ilu_cli"]))
        env = prepare_multi_gpu_env(args)
        assert {k: env[k] for k in (SHARDED, "FSDP_VERSION")} == {SHARDED: "true", "FSDP_VERSION": "2"}
        assert (env["FSDP_OFFLOAD_PARAMS"] == "true") == ("offload" in path.stem)


@pytest.mark.parametrize("launcher", ["mpirun", "torchrun"])
def test_processes_that_would_each_do_all_are_refused(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that were started and of which Accelerate makes one each, as it does on devices that it knows not to join."""
    env = {
        "mpirun": {"OMPI_COMM_WORLD_SIZE": "2"},
        "torchrun": {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
    }
    for name, value in env[launcher].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"^2 processes were started, and Accelerate does not bring them together"):
        Backend()


class Two(Backend):
    """The second of two processes that share a model; nothing is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.world, self.mesh = 1, 2, cast(Any, object())


def test_all_processes_run_a_sharded_model_equally_often() -> None:
    """The second of two gets every second batch; where none is left for it, the last one, which does not count."""
    b = Two()
    assert list(b.evenly([1, 2, 3])) == [(2, True), (3, False)]
    assert list(b.evenly([1, 2])) == [(2, True)]
    assert list(b.evenly([])) == []


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


def test_a_process_that_does_not_come_is_waited_for_as_long_as_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two processes, and the launcher's store; there is no second."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    told |= {"TORCHELASTIC_USE_AGENT_STORE": "True", peers.TIMEOUT: "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(peers, "_store", functools.cache(peers._store.__wrapped__))
    with pytest.raises(RunFailed, match="process 1 of 2 has not come as far as process 0 in 1 s"):
        peers.agree("test", {"key": 1})
    monkeypatch.setenv(peers.TIMEOUT, "soon")
    with pytest.raises(UsageError, match="soon is not a number of seconds"):
        peers.agree("test", {"key": 1})
