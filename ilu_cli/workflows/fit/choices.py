"""What a recipe may be told so that it takes less memory, what costs least first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ilu_cli.recipe.specs import TrainSpec
from ilu_cli.runs.results import Row
from ilu_cli.workflows.fit.devices import Fleet
from ilu_cli.workflows.fit.jobs import PricedJob


@dataclass(frozen=True)
class Placement:
    """A way to start: the file of recipes/launch, if there is one, the devices, and how weights lie on them."""

    name: str
    fleet: Fleet
    shards: bool = False
    away: bool = False


def choices(job: PricedJob, launch: Placement) -> Iterator[tuple[tuple[str, ...], TrainSpec]]:
    """Keys that save memory, what costs least first: frozen bf16 nothing, checkpointing a forward pass, and so on.

    Each is tried with `together` as it is, and off. A sharded launch takes frozen bf16 and
    checkpointing only, and no more micro-batches than leave each process a row, if there are as many rows.
    """
    train, m = job.train, job.train.memory
    accumulation, rows = _split(job, launch)
    again: Row = {} if m.checkpointing else {"checkpointing": True}
    last = again
    for last in [] if job.scores else _savings(job, again, launch.shards):
        yield _with(job, last, accumulation)
    if job.scores:
        yield (), train
        return
    for more in (2**k for k in range(1, 12) if 2**k <= rows and job.splits):
        yield _with(job, last, accumulation * more)
    if job.lora and not launch.shards and _freezes(job):
        yield _with(job, again | {"frozen": "nf4"}, train.accumulation * (rows if job.splits else 1))


def _split(job: PricedJob, launch: Placement) -> tuple[int, int]:
    """Micro-batches, and in how many each of them can be split further."""
    train, world = job.train, launch.fleet.all
    if not launch.shards:
        return train.accumulation, max(p.rows for p in job.passes(train, world))
    most = max(1, (job.rows or world) // world)
    accumulation = min(train.accumulation, most)
    return accumulation, most // accumulation


def _freezes(job: PricedJob) -> bool:
    """Whether something is left frozen whose matrices may lie in fewer bits."""
    train = job.train
    if train.loaded == "needed" or train.memory.frozen != "fp32":
        return False
    return (job.lora or train.params) is not None and train.precision != "fp32"


def _savings(job: PricedJob, again: Row, shards: bool) -> list[Row]:
    """Values of `train.memory`, `train.loaded` and `train.together`, without repetition."""
    apart: Row = {"together": False} if job.together and job.train.together else {}
    found = [keys | more for keys in _of_memory(job, again, shards) for more in ({}, apart)]
    return [keys for i, keys in enumerate(found) if keys not in found[:i]]


def _of_memory(job: PricedJob, again: Row, shards: bool) -> list[Row]:
    frozen: Row = {"frozen": "bf16"} if _freezes(job) else {}
    if shards:
        return [{}, frozen, again, frozen | again]
    needed: Row = {"loaded": "needed"} if job.lower and job.train.loaded == "all" else {}
    found = [{}, frozen, needed, again, frozen | again, needed | again]
    m = job.train.memory
    if job.train.optimizer == "adamw" and m.offload is None and m.optimizer_bits == 32:
        less = (needed or frozen) | again
        found += [less | {"optimizer_bits": 8}, less | {"offload": "optimizer"}]
    return found


def _with(job: PricedJob, extra: Row, accumulation: int) -> tuple[tuple[str, ...], TrainSpec]:
    train = job.train
    own = {k: v for k, v in extra.items() if k in ("loaded", "together")}
    kept = {k: v for k, v in extra.items() if k not in own}
    told = {f"memory.{k}": v for k, v in kept.items()} | own
    keys = [f"{job.key}.{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in told.items()]
    if accumulation != train.accumulation:
        keys.append(f"{job.key}.accumulation={accumulation}")
    memory = train.memory.model_copy(update=kept)
    return tuple(keys), train.model_copy(update={**own, "memory": memory, "accumulation": accumulation})
