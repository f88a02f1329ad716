"""How far training may take a model from where it started (`train.budget`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ilu_cli.engine.gradients import Gradients, Term, Vector
from ilu_cli.engine.reference import fill
from ilu_cli.engine.stream import TrainStream
from ilu_cli.errors import RunFailed
from ilu_cli.registry import retain_term


@dataclass
class Budget:
    """Mean KL(π_start ‖ π_θ) per token over one fixed batch of text: at most `limit` nats.

    `spent` is that of the last weights within it, `over` that of the step that was taken back; None: none was.
    """

    term: Term
    limit: float
    spent: float = 0.0
    over: float | None = None
    log: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, stream: TrainStream, limit: float, start: Gradients) -> Budget:
        """Measured from the weights that are in place now."""
        known = retain_term["kl"]
        cache = fill(stream, known.declared.needs, None, 1, start.parts, start.backend, "fp32")
        return cls(Term("budget", stream, known.obj, known.declared.per, weight=0.0, cache=cache), limit)

    def facts(self) -> dict[str, float | None]:
        """What the manifest keeps: KL of the saved weights, the limit, and KL of the step that was taken back."""
        return {"kl": self.spent, "limit": self.limit, "beyond": self.over}

    def before(self, grads: Gradients) -> Vector:
        """The weights, to go back to."""
        return [p.detach().clone() for p in grads.params]

    def admits(self, grads: Gradients, before: Vector) -> bool:
        """Whether the weights are within the budget; if not, they are those of before again.

        Raises:
            RunFailed: if that was the first step.
        """
        now = float(grads.backend.sum(grads.accumulate(self.term, step=0, precision="fp32")))
        if now <= self.limit:
            self.spent, self.log = now, {"budget kl": now}
            return True
        if grads.step == 0:
            raise RunFailed(
                f"the first step goes beyond the budget: KL {now:.3g}, where {self.limit:g} is allowed",
                hint="lower train.lr, or allow more with train.budget.kl",
            )
        self.over = now
        with torch.no_grad():
            for p, old in zip(grads.params, before):
                p.copy_(old)
        return False
