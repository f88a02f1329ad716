"""What a regulariser may do with its environments: take the gradient of a function of means, gradients, Hessians."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ilu_cli.data.encode import collate
from ilu_cli.engine.exact import exact
from ilu_cli.engine.gradients import Gradients, Term, Vector, dot
from ilu_cli.engine.hessian import NotTwice, add_product, by_differences, plain_nll, twice_differentiable
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.view import View

LABELS = {"gap": "D"}  # how a statistic is called in the log
DOUBTFUL = 0.05  # disagreement of finite differences that is worth a warning


@dataclass
class Environments:
    """The environments of one regulariser at one step. `weights` is [N]; `scale` is λ now.

    A regulariser returns its value without λ, and leaves λ times its gradient in the parameters by one of the methods
    below. Everything is of the whole step: over all micro-batches and processes.
    """

    grads: Gradients
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
        g, on = self.grads, float(self.scale != 0)
        parts = [h for s in self.streams for h in (s.half(0), s.half(1))] if halves else self.streams
        banks, shares, before = [], [], g.take()
        losses = torch.zeros(len(parts), dtype=torch.float64)
        for i, part in enumerate(parts):

            def values(v: View, i: int = i, divisor: float = part.divisor(g.step, "token")) -> Tensor:
                losses[i] += float(exact(v.nll.detach()).sum()) / divisor
                each: Tensor = v.values(statistic)
                return each

            shares.append(g.accumulate(Term(part.name, part, values, "token", on)))
            banks.append(g.take())
        found = g.backend.sum(torch.stack(shares))
        losses = g.backend.sum(losses).view(len(self.streams), -1).mean(1)
        means = (found.view(len(self.streams), 2) if halves else found).requires_grad_()
        value = combine(means)
        (slopes,) = torch.autograd.grad(self.scale * value, means)
        for bank, slope in zip(banks, slopes.flatten().tolist()):
            g.put(bank, slope)
        g.put(before)
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
        if dot(v, v) == 0:
            return [torch.zeros_like(x) for x in v]
        found = self._exact_product(i, v)
        return self._difference(i, v) if found is None else found

    def parameters(self) -> Vector:
        """θ, detached."""
        return [p.detach() for p in self.grads.params]

    def add(self, gradient: Vector) -> None:
        """Add λ · gradient, which is already that of the whole step, to the parameters' gradients."""
        self.grads.add(list(gradient), self.scale)

    def _gradient(self, s: TrainStream) -> tuple[float, Vector]:
        g = self.grads
        with g.aside():
            share = g.accumulate(Term(s.name, s, lambda v: v.nll, "token"), precision="fp32")
            found = g.whole()
        return float(g.backend.sum(share)), found

    def _exact_product(self, i: int, v: Vector) -> Vector | None:
        """H·v over all micro-batches and processes; None if one of them cannot differentiate twice."""
        g, s = self.grads, self.streams[i]
        divisor, failed = s.divisor(g.step, "token"), torch.zeros((), device=g.backend.device)
        shares = s.shares(g.step, g.backend.rank, g.backend.world, g.spec.accumulation)
        with g.aside():
            try:
                for key in (key for share in shares for key in share):
                    view = View(g.parts, collate([s.item(key)]).to(g.backend.device), g.seed)
                    with twice_differentiable(), g.backend.autocast("fp32"):
                        add_product(plain_nll(view) / divisor, g.params, v)
            except NotTwice:
                failed += 1
            found = g.whole()
        return found if float(g.backend.sum(failed)) == 0 else None

    def _difference(self, i: int, v: Vector) -> Vector:
        found, error = by_differences(self.grads, lambda: self._gradient(self.streams[i])[1], v)
        name = self.streams[i].name
        self.log[f"hvp_error[{name}]"] = error
        if not error <= DOUBTFUL:
            warnings.warn(f"{name}: the Hessian product is uncertain by {error:.0%}: no step serves", stacklevel=2)
        return found

    def _note(self, statistic: str, values: list[float]) -> None:
        label = LABELS.get(statistic, statistic)
        self.log |= {f"{label}[{s.name}]": value for s, value in zip(self.streams, values)}
