"""Seconds by a roofline: each operation takes as long as its arithmetic or its traffic, whichever is longer.

Nothing else is counted (launching kernels, waiting, a rate below the maker's), so no machine is faster than this where
every row is run anew; what is kept of a row (`train.prefix_gb`) saves more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ilu_cli.models.traced import Trace, Work
from ilu_cli.workflows.estimate import MOMENTS
from ilu_cli.workflows.fit.devices import Device, Fleet
from ilu_cli.workflows.moments import FLOAT
from ilu_cli.workflows.passes import Passing

AHEAD, BACK = (
    36,
    46,
)  # bytes that a logit is read and written in all, in the head's forward pass and in its backward one


@dataclass(frozen=True)
class Head:
    """The LM head: words × width. `trained`: its matrix gets a gradient."""

    words: int
    width: int
    trained: bool


def seconds_of(work: Work, device: Device, *, half: bool) -> float:
    """Seconds that operations take, one after the other."""
    rate = device.bf16 if half else device.fp32
    return sum(n * max(flops / rate, moved / device.bandwidth) for (flops, moved), n in work.items())


def flops_of(work: Work) -> int:
    """Their FLOPs."""
    return sum(n * flops for (flops, _), n in work.items())


def head_work(p: Passing, head: Head, *, backward: bool) -> Work:
    """The head's products over the scored tokens: logits; backward logits again, gradients by states and by its matrix.

    A teacher's logits beside those of the model (`Passing.chunks`) are as many products more.
    """
    if p.deepest is not None or not p.scored:
        return Work()
    one = 2 * p.scored * head.words * head.width
    times = (1 + 1 * p.chunks) + (2 + 1 * p.chunks + head.trained) * backward
    logits = p.scored * head.words * (AHEAD + BACK * backward)
    return Work({(one, 6 * head.words * head.width): p.graphs * times, (0, logits): p.graphs})


def work_of(p: Passing, trace: Trace, head: Head, *, backward: bool = True) -> Work:
    """What a pass of a term runs: layers up to the deepest that is read, the head, and all of that backward."""
    layers = trace.layers if p.deepest is None else trace.layers[: p.deepest + 1]
    found = Work(trace.outside)
    for cost in layers:
        found.update(cost.work)
        if backward:
            found.update(cost.work_back)
    many = Work({key: n * p.graphs for key, n in found.items()})
    many.update(head_work(p, head, backward=backward))
    return many


def stepping(trained: int, optimizer: str, device: Device, terms: int) -> float:
    """Seconds of the norm, the optimiser's pass over weights, gradients and moments, and of adding up the terms'.

    Args:
        trained: weights that a device steps.
        terms: passes whose gradients are added.
    """
    moved = FLOAT * trained * (1 + 3 + 2 * MOMENTS[optimizer] + 3 * (terms - 1))
    return moved / device.bandwidth


def replicated(trained: int, sums: int, fleet: Fleet) -> float:
    """Seconds of the `sums` of all gradients over all devices, each a ring's 2(n−1)/n of them; not hidden by work."""
    n = fleet.all
    return sums * 2 * (n - 1) / n * FLOAT * trained / fleet.link if n > 1 else 0.0


def sharded(weights: Sequence[float], trained: int, passes: int, fleet: Fleet) -> float:
    """Seconds of gathering weights twice for each pass, (n−1)/n of their bytes, and of scattering the gradients."""
    n = fleet.all
    share = (n - 1) / n
    return share * passes * (2 * sum(weights) + FLOAT * trained) / fleet.link
