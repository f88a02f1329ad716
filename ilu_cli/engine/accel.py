"""The only Accelerator: devices, processes, and sums over them."""

from __future__ import annotations

import functools
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    get_int_from_env,
)
from torch import Tensor, nn

from ilu_cli.engine.peers import launched, timeout
from ilu_cli.errors import RunFailed, UnavailableError, UsageError, brief
from ilu_cli.models.sharded import check_torch, is_part, shard

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
BUCKET = 1 << 24  # gradient elements summed over the processes in one call
SHARDED = "ACCELERATE_USE_FSDP"  # what `accelerate launch --use_fsdp` sets
MPI = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"]  # what mpirun sets
ENGINES = {  # what it sets for the other engines that change what a process holds
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


class Backend:
    """Data-parallel processes. Gradients are summed once a step, so what they are normalised by is global.

    Each holds the whole model, or with FSDP2 a part of it, spread over `mesh` (`ilu_cli.models.sharded`).

    Raises:
        UsageError: if the launch asked for anything else.
    """

    def __init__(self) -> None:
        # Before Accelerate looks: of one process or on CPUs it passes over FSDP in silence, and without the package
        # of an engine it raises ImportError. Of a sharded launch it only brings the processes together.
        for variable, engine in ENGINES.items():
            if _set(variable):
                _refuse(engine)
        asked = _set(SHARDED)
        if asked and os.environ.get("FSDP_VERSION", "1") != "2":
            _refuse("FSDP 1")
        self.offload = asked and _set("FSDP_OFFLOAD_PARAMS")
        with _without(SHARDED):
            self.accelerator = _accelerator(
                "cpu:gloo,cuda:nccl" if self.offload and torch.cuda.is_available() else None
            )
        kind = self.accelerator.distributed_type
        if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            _refuse(str(kind))
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.mesh: DeviceMesh | None = None
        if asked and self.world > 1:
            from torch.distributed.device_mesh import init_device_mesh

            check_torch()
            self.mesh = init_device_mesh(self.device.type, (self.world,))

    @property
    def multiplies_bf16(self) -> bool:
        """Whether the device has instructions for products of bfloat16, which without them take longer than float32's.

        Of CPUs it is what oneDNN says: with AVX2 and no AVX-512 they take eight times as long.
        """
        if self.device.type == "cpu":
            return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return self.device.type != "cuda" or bool(torch.cuda.is_bf16_supported(including_emulation=False))

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """bf16 autocast, or none for fp32. Of sharded weights no copies are kept."""
        kept, on = self.mesh is None, {"bf16": True, "fp32": False}[precision]
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on, cache_enabled=kept)

    def spread(self, model: Any, read: Callable[[str], Tensor] | None = None) -> Any:
        """A model that the first process has, or is to `read`, over all; as it is, unless the launch is sharded."""
        return shard(model, self.mesh, self.device, read, offload=self.offload) if self.mesh else model

    def evenly(self, batches: list[T]) -> Iterator[tuple[T, bool]]:
        """The batches of this process, and whether each counts: of a sharded model all run equally many."""
        if self.mesh is None:
            yield from ((batch, True) for batch in batches)
            return
        for i in range(self.rank, -(-len(batches) // self.world) * self.world, self.world):
            yield batches[min(i, len(batches) - 1)], i < len(batches)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, wherever it lies: NCCL sums only what is on its GPUs."""
        if self.world == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.device), reduction="sum")
        return total.to(values.device)

    def sum_gradients(self, params: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place, a bucket at a time; those of parts are of all already."""
        if self.world == 1:
            return
        bucket: list[Tensor] = []
        for p in (p for p in params if not is_part(p)):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            bucket.append(p.grad)
            if sum(g.numel() for g in bucket) >= BUCKET:
                self._sum_bucket(bucket)
                bucket = []
        if bucket:
            self._sum_bucket(bucket)

    def _sum_bucket(self, bucket: list[Tensor]) -> None:
        flat = self.sum(torch.cat([g.flatten() for g in bucket]))
        for g, total in zip(bucket, flat.split([g.numel() for g in bucket])):
            g.copy_(total.view_as(g))

    def share(self, value: Any) -> Any:
        """Give the main process's value to all."""
        return broadcast_object_list([value])[0] if self.world > 1 else value

    def gather(self, values: list[T]) -> list[T]:
        """Join the lists of all processes, on every process."""
        return gather_object(values) if self.world > 1 else values

    def peak_memory(self) -> int:
        """The most bytes that this process has held so far: on the GPU, or in main memory."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _most_held()

    def memory(self) -> tuple[int, int]:
        """The bytes that this process may have at most, and those that are free now: on the GPU, or in main memory.

        Of main memory it is what the control group leaves, shared evenly by the processes of this machine.
        """
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            return total, free
        found, here = psutil.virtual_memory(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        total = min(found.total, *_limits())
        return total // here, min(found.available, total) // here

    def check_trackers(self, names: Sequence[str]) -> None:
        """Look whether the packages behind trackers are installed.

        Raises:
            UnavailableError: if one is not.
        """
        missing = [name for name in names if name not in map(str, get_available_trackers())]
        if missing:
            raise UnavailableError(f"{missing[0]} is not installed", hint=f"pip install {' '.join(missing)}")

    def trackers(self, names: Sequence[str], folder: Path, run: str, recipe: dict[str, Any], done: int) -> list[Any]:
        """Start Accelerate's trackers with the recipe as their hyperparameters. `done` steps were tracked before."""
        keys: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": "tensorboard", "logging_dir": folder, "purge_step": done + 1},
            "wandb": {"run_name": "ilu", "name": run, "id": run, "resume": "allow", "dir": str(folder)},
            "mlflow": {"experiment_name": "ilu", "run_name": run},
        }
        started = [LOGGER_TYPE_TO_CLASS[name](**keys[name]) for name in names]
        for tracker in started:
            tracker.start()
            tracker.store_init_configuration(recipe)
        return started

    def wait(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()


def _accelerator(engine: str | None) -> Accelerator:
    """Bring the processes together, to sum by an engine of torch's, the usual one if None.

    Raises:
        UsageError: if the network interface is not one of this machine, or Accelerate leaves each process alone.
        RunFailed: if they do not reach each other.
    """
    handler = InitProcessGroupKwargs(backend=engine, timeout=timedelta(seconds=timeout()))
    together = launched()
    # Without a GPU Accelerate brings no processes together unless told that they are on CPUs: each would do all.
    cpu = _set("ACCELERATE_USE_CPU") or (together and not torch.accelerator.is_available())
    try:
        found = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[handler])  # autocast is chosen elsewhere
        asked_for = int(os.environ["WORLD_SIZE"]) if together else get_int_from_env(MPI, 1)
        if found.num_processes != max(1, asked_for):
            raise UsageError(
                f"{asked_for} processes were started, and Accelerate does not bring them together here: each would "
                "do the whole work by itself",
                hint="start them by `accelerate launch` (docs/scaling.md); on CPUs with ACCELERATE_USE_CPU=true",
            )
        return found
    except RuntimeError as error:
        if not launched():
            raise
        asked, there = os.environ.get("GLOO_SOCKET_IFNAME", ""), [name for _, name in socket.if_nameindex()]
        if lost := [name for name in filter(None, asked.split(",")) if name not in there]:
            raise UsageError(
                f"GLOO_SOCKET_IFNAME={asked}: this machine has no network interface {lost[0]}",
                hint=f"it has {', '.join(there)}; without the variable gloo takes that of the machine's name",
            ) from error
        raise RunFailed(
            f"the processes of this launch cannot connect to each other ({brief(str(error))})",
            hint="GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network interface that the machines share",
        ) from error


def _most_held() -> int:
    """The most bytes of main memory that this program has held.

    Linux's `ru_maxrss` begins at what the process held that started it: it is taken over at exec.
    """
    status = Path("/proc/self/status")
    if found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text() if status.is_file() else "", re.MULTILINE):
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows, whose own count psutil has
        return int(psutil.Process().memory_info()._asdict()["peak_wset"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let `Backend.peak_memory` begin anew at what is held now, for a process that does one job after another.

    Linux and GPUs can; elsewhere it stays the most that the process has held for any of its jobs.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # no such file, or a container that does not let it be written
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM becomes the present size


def _set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


@contextmanager
def _without(variable: str) -> Iterator[None]:
    """Let others not see a variable of the environment."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def _refuse(engine: str) -> NoReturn:
    """Say that a launch is not of the kind that is known, and what would be."""
    raise UsageError(
        f"`accelerate launch` asked for {engine}; each process of ilu holds the whole model, or a part of it by FSDP 2",
        hint="launch with --multi_gpu or, where memory is short, with --use_fsdp --fsdp_version 2 "
        "(docs/scaling.md, recipes/launch); or train an adapter (`--lora r=16`) or fewer weights (`train.params`)",
    )


def _limits() -> Iterator[int]:
    """What control groups allow, of either version."""
    yield sys.maxsize
    for place in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / place
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            yield int(text)


@functools.cache
def backend() -> Backend:
    """The one backend of this process."""
    return Backend()
