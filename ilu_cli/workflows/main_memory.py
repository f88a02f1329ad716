"""What the main memory of a node of accelerators holds: the model while it is read or written, and what lies away."""

from __future__ import annotations

from ilu_cli.workflows.estimate import PROCESS, TrainingPrice, moments_of
from ilu_cli.workflows.moments import FLOAT, Moment, OnDisk


def main_memory(price: TrainingPrice, count: int, cached: int, stored: OnDisk) -> list[Moment]:
    """The moments that may be the dearest of one node, the first one where there are several.

    Every process reads the whole model before it goes to its device; of a sharded one the first process reads a weight
    at a time and hands them out by layers, or reads it whole (`OnDisk.by_weight`). One process writes the
    checkpoint, of a sharded model a file at a time.

    Args:
        count: processes of the node.
        cached: bytes of what each keeps of the rows.
        stored: how the weights lie on the disk, and how they will.
    """
    ground, whole, rest = price.ground, FLOAT * price.total, {"process": count * PROCESS, "caches": count * cached}
    read = count * whole if ground.shards == 1 else price.handed_out(stored)
    weights = gradients = optimizer = 0
    moments = moments_of(price.spec) * price.all / FLOAT
    if ground.away:
        weights, gradients, optimizer = (int(n * count / ground.shards) for n in (whole, price.all, moments))
    elif price.spec.memory.offload:
        weights = gradients = count * price.all
        optimizer = int(count * moments)
    return [
        Moment("loading", weights=read, process=rest["process"]),
        Moment("steps", weights, gradients=gradients, optimizer=optimizer, **rest),
        Moment("saving", weights, optimizer=optimizer, copies=price.written(stored.saved), **rest),
    ]
