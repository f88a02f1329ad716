"""What a regulariser may do with its environments: take the gradient of a function of means, gradients, Hessians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ilu_cli.engine.exact import exact
from ilu_cli.engine.gradients import Gradients, Term, Vector, mean_nll
from ilu_cli.engine.hessian import hessian_times
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.view import View

LABELS = {"gap": "D"}  # how a statistic is called in the log


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
                losses[i] += v.counts * float(exact(v.nll.detach()).sum()) / divisor
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
        shares, found = [], []
        for s in self.streams:
            with self.grads.aside():
                shares.append(self.grads.accumulate(mean_nll(s.name, s), precision="fp32"))
                found.append(self.grads.whole())
        self._note("nll", [float(self.grads.backend.sum(share)) for share in shares])
        return found

    def hessian_times(self, i: int, v: Vector) -> Vector:
        """The Hessian of environment i's mean NLL times `v` (`ilu_cli.engine.hessian`), the same on all processes.

        Exact, or by differences; by how much those disagree is logged as `hvp_error`.
        """
        term = mean_nll(self.streams[i].name, self.streams[i])
        found, error = hessian_times(self.grads, term, v)
        if error is not None:
            self.log[f"hvp_error[{term.name}]"] = error
        return found

    def parameters(self) -> Vector:
        """θ, detached."""
        return [p.detach() for p in self.grads.params]

    def add(self, gradient: Vector) -> None:
        """Add λ · gradient, which is already that of the whole step, to the parameters' gradients."""
        self.grads.add(list(gradient), self.scale)

    def _note(self, statistic: str, values: list[float]) -> None:
        label = LABELS.get(statistic, statistic)
        self.log |= {f"{label}[{s.name}]": value for s, value in zip(self.streams, values)}
