"""Hessian-vector products: exact by differentiating twice, else by finite differences that check themselves."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ilu_cli.engine.gradients import Gradients, Term, Vector, dot, loss_of
from ilu_cli.engine.plain import PlainView
from ilu_cli.models.sharded import gathered, plain

TOLERANCE = 1e-3  # disagreement of two successive finite differences that ends the search for a step
DOUBTFUL = 0.05  # disagreement of finite differences that is worth a warning
TRIES = 8  # steps that are tried in each direction, each a quarter of the one before, or four times it
_NO_SECOND = re.compile(r"derivative|differentia|double backward|not implemented|inplace operation", re.I)


class NotTwice(Exception):
    """The loss goes through something that cannot be differentiated twice."""


def gradient_of(grads: Gradients, term: Term) -> Vector:
    """The gradient of a term over the whole step, in float32, the same on all processes."""
    with grads.aside():
        grads.accumulate(term, precision="fp32")
        return grads.whole()


def hessian_times(grads: Gradients, term: Term, v: Vector) -> tuple[Vector, float | None]:
    """The Hessian of a term over the whole step, times `v`, in float32, the same on all processes.

    Exact, by differentiating twice, one sequence at a time, so that memory does not grow with the batch; what the term
    holds fixed stays fixed. A sharded model is whole meanwhile. A model with a part that has no second derivative gets
    central differences, (∇ℓ(θ + h·v̂) − ∇ℓ(θ − h·v̂))·‖v‖/2h, with h such that two steps agree.

    Returns:
        H·v, and by how much two steps disagree; None: it is exact.
    """
    if dot(v, v) == 0:
        return [torch.zeros_like(x) for x in v], None
    found = _exact(grads, term, v)
    if found is not None:
        return found, None
    near, error = by_differences(grads, lambda: gradient_of(grads, term), v)
    if not error <= DOUBTFUL:
        warnings.warn(f"{term.name}: the Hessian product is uncertain by {error:.0%}: no step serves", stacklevel=2)
    return near, error


def _exact(grads: Gradients, term: Term, v: Vector) -> Vector | None:
    """H·v over all micro-batches and processes; None if one of them cannot differentiate twice."""
    divisor, b = term.stream.divisor(grads.step, term.per), grads.backend
    failed = torch.zeros((), device=b.device)
    along = [gathered(x) for x in v]
    with grads.aside():
        with plain(grads.parts.decoder, grads.params) as params:
            try:
                for view in grads.views(term, grads.step, "fp32", PlainView, alone=True):
                    with twice_differentiable(), b.autocast("fp32"):
                        add_product(loss_of(term, view, divisor), params, along)
            except NotTwice:
                failed += 1
        found = grads.whole()
    return found if float(grads.backend.sum(failed)) == 0 else None


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention written out: flash and memory-efficient attention have no second derivative."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def add_product(loss: Tensor, params: Sequence[nn.Parameter], v: Vector) -> None:
    """Add H·v, H the Hessian of `loss`, to the parameters' gradients, exactly: ∂⟨∇loss, v⟩/∂θ.

    Reverse mode over reverse: forward over reverse gives the same for more time and memory (docs/bench/hvp.py).

    Raises:
        NotTwice: if something in the loss has no second derivative, or one that cannot be relied upon.
    """
    if name := _own_backward(loss):
        raise NotTwice(f"{name} brings its own derivative, of which there is no other")
    try:
        first = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        bent = [(g, x) for g, x in zip(first, v) if g is not None and g.requires_grad]
        if bent:
            torch.autograd.backward([g for g, _ in bent], [x for _, x in bent])
    except (RuntimeError, NotImplementedError) as error:
        if _NO_SECOND.search(str(error)) is None:
            raise
        raise NotTwice(str(error).splitlines()[0]) from error


def _own_backward(loss: Tensor) -> str:
    """The first custom autograd function that a loss goes through: its second derivative may be silently wrong.

    (Of one marked `once_differentiable` PyTorch says so only if nothing but leaves is asked for; of one whose backward
    pass reads detached tensors it never does.)
    """
    waiting, seen = [loss.grad_fn], set[object]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction) or "CppNode" in node.name():
            return node.name()
        waiting += [parent for parent, _ in node.next_functions]
    return ""


def by_differences(grads: Gradients, gradient: Callable[[], Vector], v: Vector) -> tuple[Vector, float]:
    """H·v by central differences, and by how much two steps disagree: (∇ℓ(θ + h·v̂) − ∇ℓ(θ − h·v̂))·‖v‖/2h.

    Args:
        gradient: ∇ℓ where the weights are now, over the whole step.
        v: not zero.
    """
    norm, theta = math.sqrt(dot(v, v)), [p.detach() for p in grads.params]

    def at(h: float) -> Vector:
        with grads.shifted(v, h / norm):
            return gradient()

    def estimate(h: float) -> Vector:
        return [(a - b) * (norm / (2 * h)) for a, b in zip(at(h), at(-h))]

    return agreeing(estimate, math.sqrt(dot(theta, theta)) * 0.1 * torch.finfo(theta[0].dtype).eps ** 0.5)


def agreeing(estimate: Callable[[float], Vector], step: float) -> tuple[Vector, float]:
    """The estimate of two successive steps that agree best, and their relative disagreement ‖a − b‖/‖a‖.

    Steps fall from `step` by quarters until two agree to `TOLERANCE` or agree less than the two before, where rounding
    takes over; if even the first two then agree no better than to a hundredth, they rise from there as well.
    """
    first = estimate(step)
    best = _search(estimate, first, (step * 4.0**-k for k in range(1, TRIES)))
    if best[1] > 10 * TOLERANCE:
        best = min(best, _search(estimate, first, (step * 4.0**k for k in range(1, TRIES))), key=lambda found: found[1])
    return best


def _search(estimate: Callable[[float], Vector], last: Vector, steps: Iterable[float]) -> tuple[Vector, float]:
    best, gap = last, math.inf
    for h in steps:
        now = estimate(h)
        norm, apart = math.sqrt(dot(now, now)), [a - b for a, b in zip(now, last)]
        found = math.sqrt(dot(apart, apart)) / norm if norm else 0.0
        if not found < gap:  # NaN too
            break
        best, gap, last = now, found, now
        if gap <= TOLERANCE:
            break
    return best, gap
