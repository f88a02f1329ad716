"""What a regulariser may do with its environments: take the gradient of a function of means, gradients, Hessians."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ilu_cli.data.encode import collate
from ilu_cli.engine.hessian import NotTwice, Vector, add_product, agreeing, dot, plain_nll, twice_differentiable
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.view import View

if TYPE_CHECKING:
    from ilu_cli.engine.loop import Trainer

LABELS = {"gap": "D"}  # how a statistic is called in the log
DOUBTFUL = 0.05  # disagreement of finite differences that is worth a warning


@dataclass
class Environments:
    """The environments of one regulariser at one step. `weights` is [N]; `scale` is λ now.

    A regulariser returns its value without λ, and leaves λ times its gradient in the parameters by one of the methods
    below. Everything is of the whole step: over all micro-batches and processes.
    """

    trainer: Trainer
    streams: list[TrainStream]
    weights: Tensor
    scale: float
    log: dict[str, float] = field(default_factory=dict)

    def of_means(self, statistic: str, combine: Callable[[Tensor], Tensor], *, halves: bool = False) -> float:
        """Add the gradient of combine(means), exactly, although each mean is known only at its end.

        By the chain rule it is Σ_i c_i ∇mean_i with c_i = λ·∂combine/∂mean_i: every ∇mean_i is taken by itself, and
        scaled once all means are known. One environment needs no extra memory.

        Args:
            statistic: a per-sequence sum of a `View`, divided by the scored tokens (`nll`, `gap`).
            combine: maps the means, [N] or with `halves` [N, 2] (two disjoint halves of each batch), to a number.
        """
        t, params = self.trainer, self._params
        before = take(params)
        parts = [h for s in self.streams for h in (s.half(0), s.half(1))] if halves else self.streams
        banks, shares = [], []
        losses = torch.zeros(len(parts), dtype=torch.float64)
        for i, part in enumerate(parts):

            def values(v: View, i: int = i, divisor: float = part.divisor(t.step, "token")) -> Tensor:
                losses[i] += float(v.nll.detach().double().sum()) / divisor
                each: Tensor = v.values(statistic)
                return each

            shares.append(t.accumulate(part, values, "token", float(self.scale != 0)))
            banks.append(take(params))
        found = t.backend.sum(torch.stack(shares))
        losses = t.backend.sum(losses).view(len(self.streams), -1).mean(1)
        means = (found.view(len(self.streams), 2) if halves else found).requires_grad_()
        value = combine(means)
        (slopes,) = torch.autograd.grad(self.scale * value, means)
        for bank, slope in zip(banks, slopes.flatten().tolist()):
            put(params, bank, slope)
        put(params, before, 1.0)
        self._note(statistic, means.mean(1).tolist() if halves else means.tolist())
        self._note("nll", losses.tolist())
        return float(value.detach())

    def gradients(self) -> list[Vector]:
        """∇ of the mean NLL of every environment, the same on all processes."""
        found = [self._gradient(s) for s in self.streams]
        self._note("nll", [loss for loss, _ in found])
        return [g for _, g in found]

    def hessian_times(self, i: int, v: Vector) -> Vector:
        """The Hessian of environment i's mean NLL times `v`, in float32, the same on all processes.

        Exact, by differentiating twice, one sequence at a time, so that memory does not grow with the batch. A model
        with a part that has no second derivative gets central differences, (∇ℓ(θ + h·v̂) − ∇ℓ(θ − h·v̂))·‖v‖/2h, with h
        such that two steps agree; by how much they do not is logged as `hvp_error`.
        """
        norm = math.sqrt(dot(v, v))
        if norm == 0:
            return [torch.zeros_like(x) for x in v]
        found = self._exact_product(i, v)
        return self._difference(i, v, norm) if found is None else found

    def parameters(self) -> Vector:
        """θ, detached."""
        return [p.detach() for p in self._params]

    def add(self, gradient: Vector) -> None:
        """Add λ · gradient, which is already that of the whole step, to the parameters' gradients."""
        if self.trainer.backend.main:  # the processes' gradients are summed at the end of the step
            put(self._params, list(gradient), self.scale)

    @property
    def _params(self) -> list[nn.Parameter]:
        return list(self.trainer.params.values())

    def _gradient(self, s: TrainStream) -> tuple[float, Vector]:
        t, params = self.trainer, self._params
        before = take(params)
        share = t.accumulate(s, lambda v: v.nll, "token", 1.0, precision="fp32")
        found, _ = t.take_gradient()
        put(params, before, 1.0)
        return float(t.backend.sum(share)), found

    def _exact_product(self, i: int, v: Vector) -> Vector | None:
        """H·v over all micro-batches and processes; None if one of them cannot differentiate twice."""
        t, params, s = self.trainer, self._params, self.streams[i]
        before, divisor = take(params), s.divisor(t.step, "token")
        shares = s.shares(t.step, t.backend.rank, t.backend.world, t.spec.accumulation)
        failed = torch.zeros((), device=t.backend.device)
        try:
            for key in (key for share in shares for key in share):
                view = View(t.parts, collate([s.item(key)]).to(t.backend.device), t.seed)
                with twice_differentiable(), t.backend.autocast("fp32"):
                    add_product(plain_nll(view) / divisor, params, v)
        except NotTwice:
            failed += 1
        found, _ = t.take_gradient()
        put(params, before, 1.0)
        return found if float(t.backend.sum(failed)) == 0 else None

    def _difference(self, i: int, v: Vector, norm: float) -> Vector:
        theta = self.parameters()

        def estimate(h: float) -> Vector:
            ahead, behind = (self._gradient_at(i, v, sign * h / norm) for sign in (1, -1))
            return [(a - b) * (norm / (2 * h)) for a, b in zip(ahead, behind)]

        step = math.sqrt(dot(theta, theta)) * 0.1 * torch.finfo(theta[0].dtype).eps ** 0.5
        found, error = agreeing(estimate, step)
        name = self.streams[i].name
        self.log[f"hvp_error[{name}]"] = error
        if not error <= DOUBTFUL:
            warnings.warn(f"{name}: the Hessian product is uncertain by {error:.0%}: no step serves", stacklevel=2)
        return found

    def _gradient_at(self, i: int, v: Vector, factor: float) -> Vector:
        with shifted(self._params, v, factor):
            return self._gradient(self.streams[i])[1]

    def _note(self, statistic: str, values: list[float]) -> None:
        label = LABELS.get(statistic, statistic)
        self.log |= {f"{label}[{s.name}]": value for s, value in zip(self.streams, values)}


@contextmanager
def shifted(params: list[nn.Parameter], direction: Vector, factor: float) -> Iterator[None]:
    """Have the parameters at θ + factor·direction, then at θ again to the bit."""
    saved = [p.detach().clone() for p in params]
    with torch.no_grad():
        torch._foreach_add_([p.data for p in params], direction, alpha=factor)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(params, saved):
                p.copy_(old)


def take(params: list[nn.Parameter]) -> list[Tensor | None]:
    """Move the gradients out of the parameters."""
    grads: list[Tensor | None] = [p.grad for p in params]
    for p in params:
        p.grad = None
    return grads


def put(params: list[nn.Parameter], grads: list[Tensor | None] | Vector, factor: float) -> None:
    """Add `factor` · grads to the parameters' gradients, reusing the tensors."""
    for p, g in zip(params, grads):
        if g is None:
            continue
        g = g if factor == 1.0 else g.mul_(factor)
        p.grad = g if p.grad is None else p.grad.add_(g)
