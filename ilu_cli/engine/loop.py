"""The only training loop: streams → terms → gradient → update, one log a step."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ilu_cli.data.sampling import seed_of
from ilu_cli.engine.accel import Backend
from ilu_cli.engine.budget import AnyBudget
from ilu_cli.engine.environments import Environments
from ilu_cli.engine.gradients import Gradients, Taken, Term, clip, length
from ilu_cli.engine.optimizers import forget_moments, optimizer_of
from ilu_cli.engine.shares import Lengths
from ilu_cli.engine.stream import TrainStream
from ilu_cli.errors import RunFailed
from ilu_cli.models.heap import give_back
from ilu_cli.models.parts import Parts
from ilu_cli.recipe.specs import TrainSpec

if TYPE_CHECKING:
    from ilu_cli.defences import Defence

T = TypeVar("T")
Held = tuple[str, float, Taken]
"""A gradient that is added when its weight is known: its term, the share, and it."""


@dataclass
class Penalty:
    """A regulariser over its environments, with λ as a function of the step (counted from 0).

    It is taken at each `every`-th step, with `every` times its λ: lazy regularisation (StyleGAN2, arXiv 1912.04958,
    appendix B). Summed over `every` steps of gradient descent that is the same pull. Under AdamW it is not: the second
    moment sees the larger steps too. The paper changes Adam's rates for that; here they stay, as most of the gradient
    is of other terms.

    `share`: λ is a share of the forget term's gradient, see `ilu_cli.engine.shares`.
    """

    name: str
    environments: list[TrainStream]
    function: Callable[[Environments], float]
    weight: Callable[[int], float] = lambda step: 1.0
    env_weights: Sequence[float] | None = None
    reset_at: int | None = None
    every: int = 1
    share: bool = False

    def due(self, step: int) -> bool:
        """Whether it is taken at this step."""
        return step % self.every == 0


@dataclass
class StepLog:
    """What is known after a step. `step` counts from 1; `tokens` are of this step, over all processes."""

    step: int
    steps: int
    losses: dict[str, float]
    lr: float
    grad_norm: float
    tokens: int
    seconds: float

    def row(self) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        rounded = {"lr": self.lr, "grad_norm": self.grad_norm, "tokens": self.tokens, "seconds": round(self.seconds, 4)}
        return {"step": self.step, **self.losses, **rounded}


class Trainer:
    """Everything a step needs. Iterate `run()`; stop whenever you like."""

    def __init__(
        self,
        parts: Parts,
        params: dict[str, nn.Parameter],
        terms: Sequence[Term],
        penalties: Sequence[Penalty],
        spec: TrainSpec,
        seed: int,
        backend: Backend,
        defences: Sequence[Defence] = (),
        budget: AnyBudget | None = None,
    ) -> None:
        self.grads = Gradients(parts, params, spec, seed, backend)
        self.params, self.terms, self.penalties = params, terms, penalties
        self.defences = list(defences)
        self.spec, self.backend, self.budget = spec, backend, budget
        self.lengths = Lengths()
        self.optimizer = optimizer_of(parts, list(params.values()), spec, backend.device)

    @property
    def joins(self) -> bool:
        """Whether the rows of all terms are run as one batch (`train.together`), which needs packing: no padding."""
        apart = self.shared or bool(self.defences) or self.grads.parts.packing is None or len(self.terms) < 2
        return self.spec.together and not apart and all(self.terms[0].joins(t) for t in self.terms[1:])

    @property
    def shared(self) -> bool:
        """Whether a weight is a share of the forget term's gradient, so that each gradient is taken by itself."""
        return any([p.share for p in self.penalties] + [t.share for t in self.terms])

    @property
    def step(self) -> int:
        """Steps done, and so the number of the next one, counted from 0."""
        return self.grads.step

    @step.setter
    def step(self, done: int) -> None:
        self.grads.step = done

    def run(self) -> Iterator[StepLog]:
        """Do the remaining steps, yielding after each; of a budget, those that stay within it.

        Raises:
            RunFailed: if a loss or the gradient is not finite, or the first step exceeds the budget.
        """
        give_back()  # what loading, checking and asking the original have left
        while self.step < self.spec.steps:
            began = time.perf_counter()
            if any(p.reset_at == self.step for p in self.penalties):
                forget_moments(self.optimizer)
            torch.manual_seed(seed_of(self.grads.seed, "step", self.step, self.backend.rank))
            losses = self.backward()
            before = self.budget.before(self.grads) if self.budget else []
            grad_norm = self._update(losses)
            if self.budget:
                if not self.budget.admits(self.grads, before):
                    return
                losses |= self.budget.log
            losses |= self._move_weights(losses)
            streams = [t.stream for t in self.terms] + [e for p in self._due() for e in p.environments]
            tokens = sum(len(s.item(k).ids) for s in streams for k in s.keys(self.step))
            self.step += 1
            for defence in self.defences:
                defence.after_step(self.grads)
            lr = self._rate(self.step - 1)
            yield StepLog(self.step, self.spec.steps, losses, lr, grad_norm, tokens, time.perf_counter() - began)

    def finish(self) -> None:
        """Let the defences do what comes last, and measure by the budget what that has made of the weights."""
        moved = [d.finish(self.grads) for d in self.defences]
        if any(moved) and self.budget:
            self.budget.again(self.grads)

    def let_go(self) -> None:
        """Drop what only further steps would need: the optimiser's moments, and what defences hold."""
        forget_moments(self.optimizer)
        self.defences = []
        give_back()

    def backward(self) -> dict[str, float]:
        """Compute the gradient of this step's whole loss into the parameters, summed over all processes.

        Returns:
            The value of each term and each penalty that is due, and the statistic of its environments.
        """
        self._forget_gradients()
        log, held = dict[str, float](), list[Held]()
        for p in self._due():  # first, while there is no other gradient to set aside
            found, gradient, long = self._apart(functools.partial(self._penalty, p))
            log |= found
            if p.share:
                self.lengths.see(p.name, long / p.every)
                held.append((p.name, p.weight(self.step), gradient))
            else:
                log[f"gradient[{p.name}]"] = long / p.every
                self.grads.add(gradient)
        sums = self._of_terms(held)
        for name, share, gradient in held:
            weight = self.lengths.weight(name, share)
            self.grads.add(gradient, weight)
            log |= {f"weight[{name}]": weight, f"gradient[{name}]": weight * self.lengths.last[name]}
        shares = torch.stack([*sums.values(), torch.zeros((), dtype=torch.float64)])
        self.grads.sum()
        logs = [d.log for d in self.defences] + [log]
        return dict(zip(sums, self.backend.sum(shares).tolist())) | {k: v for log in logs for k, v in log.items()}

    def _of_terms(self, held: list[Held]) -> dict[str, Tensor]:
        """Add the gradient of each term, or put it into `held` if its weight is not known yet; return their values."""
        if self.joins:
            return dict(zip([t.name for t in self.terms], self.grads.together(self.terms)))
        shared, sums = self.shared, dict[str, Tensor]()
        for t in self.terms:
            term = functools.partial(self._term, t)
            if not shared:
                sums[t.name] = term()
                continue
            sums[t.name], gradient, long = self._apart(term)
            if t.share or t.defended:
                self.lengths.see(t.name, long)
            if t.share:
                held.append((t.name, t.weight, gradient))
            else:
                self.grads.add(gradient)
        return sums

    def _due(self) -> list[Penalty]:
        """The penalties of the step at hand."""
        return [p for p in self.penalties if p.due(self.step)]

    def _apart(self, run: Callable[[], T]) -> tuple[T, Taken, float]:
        """What `run` does, and the gradient that it leaves, taken out and summed over all processes, and its length."""
        before = self.grads.take()
        found = run()
        self.grads.sum()
        gradient = self.grads.take()
        self.grads.put(before)
        return found, gradient, length(gradient)

    def _term(self, term: Term) -> Tensor:
        def compute() -> Tensor:
            return self.grads.accumulate(term)

        retain = next((t for t in self.terms if not t.defended), None)
        for defence in self.defences if term.defended else ():
            compute = functools.partial(defence.gradient, self.grads, term, retain, compute)
        return compute()

    def _penalty(self, penalty: Penalty) -> dict[str, float]:
        """Add the gradient of λ · penalty; return its value without λ, and each environment's statistic."""
        weights = torch.tensor(penalty.env_weights or [1.0] * len(penalty.environments), dtype=torch.float64)
        scale = penalty.every * (1.0 if penalty.share else penalty.weight(self.step))
        envs = Environments(self.grads, penalty.environments, weights, scale)
        value = penalty.function(envs)
        return {penalty.name: value, **envs.log}

    def _move_weights(self, losses: dict[str, float]) -> dict[str, float]:
        """Let the bounded terms weigh more or less in the next step; return the weights that they had in this one."""
        bounded = [(t, t.dual) for t in self.terms if t.dual is not None]
        had = {f"{t.name} weight": t.weight for t, _ in bounded}
        for term, dual in bounded:
            term.weight = dual.after(term.weight, losses[term.name], self.step)
        return had

    def _update(self, losses: dict[str, float]) -> float:
        params = list(self.params.values())
        grad_norm = length([p.grad for p in params])
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        if bad or not math.isfinite(grad_norm):
            what = ", ".join(bad) or "the gradient"
            raise RunFailed(f"step {self.step + 1}: {what} is not finite", hint="a smaller learning rate may help")
        if self.spec.max_grad_norm is not None:
            clip(params, self.spec.max_grad_norm, grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.step)
        self.optimizer.step()
        self._forget_gradients()
        return grad_norm

    def _rate(self, step: int) -> float:
        """The learning rate of a step, by the scale that a budget has found."""
        return learning_rate(self.spec, step) * (self.budget.scale if self.budget else 1.0)

    def _forget_gradients(self) -> None:
        for p in self.params.values():
            p.grad = None


def learning_rate(spec: TrainSpec, step: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then constant, linear or cosine decay to 0."""
    if step < spec.warmup:
        return spec.rate * (step + 1) / spec.warmup
    progress = (step - spec.warmup) / max(1, spec.steps - spec.warmup)
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return spec.rate * shape[spec.schedule]
