"""What the main memory of a node of accelerators holds: the model while it is read or written, and what lies away."""

from __future__ import annotations

from ilu_cli.workflows.estimate import PROCESS, TrainingPrice, moments_of
from ilu_cli.workflows.moments import FLOAT, Moment


def main_memory(price: TrainingPrice, count: int, cached: int, saved: int) -> list[Moment]:
    """The moments that may be the dearest of one node, the first one where there are several.

    Every process reads the whole model before it goes to its device; of a sharded one the first process reads a weight
    at a time and hands them out by layers, or, where weights are merged, reads it whole. One process writes the
    checkpoint, of a sharded model a file at a time.

    Args:
        count: processes of the node.
        cached: bytes of what each keeps of the rows.
        saved: bytes of each weight of the checkpoint.
    """
    ground, whole, rest = price.ground, FLOAT * price.total, {"process": count * PROCESS, "caches": count * cached}
    read = count * whole if ground.shards == 1 else price.handed_out()
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
        Moment("saving", weights, optimizer=optimizer, copies=price.written(saved), **rest),
    ]
