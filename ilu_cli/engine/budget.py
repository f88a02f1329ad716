"""How far training may take a model from where it started (`train.budget`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ilu_cli.engine.divergence import KLFromStart, kl_term
from ilu_cli.engine.gradients import Gradients, Term, Vector
from ilu_cli.engine.stream import TrainStream
from ilu_cli.errors import RunFailed

Facts = dict[str, float | str | None]
Within = dict[str, Any]
"""What a resumed run needs of a budget: the last weights within it (`step`, `params`, `lost`), or `scale`, `spent`."""
TRIES, CLOSE = 24, 0.1  # to find the length of a first step, and how near its KL must come


@dataclass
class Budget:
    """Mean KL(π_start ‖ π_θ) per token over one fixed batch of text: at most `limit` nats.

    `spent` is that of the last weights within it, `over` that of the step that was taken back; None: none was.

    With `lasting`, a number of steps and the learning rate to try first, the first step is made longer or shorter until
    its KL is limit/steps², and all from then on by the same `scale`: near the start KL is quadratic in the way gone, so
    that steps in one direction spend the budget in about so many. So a recipe holds for models of other sizes.
    """

    term: Term
    limit: float
    lasting: tuple[int, float] | None = None
    scale: float = 1.0
    spent: float = 0.0
    over: float | None = None
    log: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, stream: TrainStream, limit: float, start: Gradients, lasting: tuple[int, float] | None = None
    ) -> Budget:
        """Measured from the weights that are in place now."""
        term = kl_term("budget", stream, 1, start.parts, start.backend, "fp32")
        return cls(replace(term, values=KLFromStart(term.values), weight=0.0), limit, lasting)

    def facts(self) -> Facts:
        """What the manifest keeps: KL of the saved weights, the limit, KL of the step taken back, the rate found."""
        found = {"lr": self.scale * self.lasting[1]} if self.lasting else {}
        return _kept({"kl": self.spent, "limit": self.limit, "beyond": self.over, **found})

    def told(self) -> str:
        """What was spent of it, in words."""
        return f"KL {self.spent:.3g}"

    def state(self) -> Within | None:
        """What a resumed run needs: the scale, and what was spent, as the step that comes next may be taken back."""
        return {"scale": self.scale, "spent": self.spent}

    def load(self, kept: Within | None) -> None:
        """Take over what `state` returned."""
        known = kept or {}
        self.scale, self.spent = known.get("scale", 1.0), known.get("spent", 0.0)

    def before(self, grads: Gradients) -> Vector:
        """The weights, to go back to."""
        return [p.detach().clone() for p in grads.params]

    def admits(self, grads: Gradients, before: Vector) -> bool:
        """Whether the weights are within the budget; if not, they are those of before again.

        Raises:
            RunFailed: if that was the first step, or no scale of it has the KL that is wanted.
        """
        now = self._measure(grads)
        if self.lasting and grads.step == 0:
            part = 1 / self.lasting[0] ** 2
            now = self._fit(
                grads, before, now, self.limit * min(part, 1 - CLOSE)
            )  # one step alone stays within it, too
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

    def now(self, grads: Gradients) -> Facts:
        """What the weights that are in place cost."""
        return {"kl": self._measure(grads)}

    def again(self, grads: Gradients) -> None:
        """Measure the weights that are saved, which are others than those of the last step."""
        self.spent = self._measure(grads)

    def _measure(self, grads: Gradients) -> float:
        return float(grads.backend.sum(grads.accumulate(self.term, step=0, precision="fp32")))

    @torch.no_grad()
    def _fit(self, grads: Gradients, before: Vector, now: float, wanted: float) -> float:
        """Scale the step from `before` until its KL, `now`, is as `wanted`, to a tenth; return that."""
        step = [p - old for p, old in zip(grads.params, before)]
        for _ in range(TRIES):
            if abs(now - wanted) <= CLOSE * wanted:
                return now
            far = not math.isfinite(now) or now > 1  # no longer quadratic
            self.scale *= 0.1 if far else min(10.0, math.sqrt(wanted / now)) if now > 0 else 10.0
            for p, old, way in zip(grads.params, before, step):
                p.copy_(old + self.scale * way)
            now = self._measure(grads)
        raise RunFailed(
            f"train.lr: auto found none: no length of the first step has KL {wanted:.3g}; the last tried has {now:.3g}",
            hint="choose train.lr, or another train.budget",
        )


@dataclass
class UtilityBudget:
    """What a benchmark loses from the weights at the start: at most `limit`.

    It is measured after the steps that are `due`; weights between two of them are taken back with the second. So the
    saved ones are the last that were measured and are within it. `kept` is these; None: nothing was measured yet.

    Args:
        measure: the benchmark's value with the weights that are in place.
        lost: of the value at the start and the one now, what was lost.
    """

    benchmark: str
    measure: Callable[[], float]
    lost: Callable[[float, float], float]
    limit: float
    due: Callable[[int], bool]
    scale: float = 1.0
    start: float = 0.0
    kept: Within | None = None
    over: float | None = None
    log: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = self.measure()

    def facts(self) -> Facts:
        """What the manifest keeps: the loss of the saved weights, and that of the steps that were taken back."""
        spent = self.kept["lost"] if self.kept else None
        found = {"start": self.start, "lost": spent, "limit": self.limit, "beyond": self.over}
        return _kept({"benchmark": self.benchmark, **found})

    def told(self) -> str:
        """What was spent of it, in words."""
        return f"{self.benchmark} lost {self.kept['lost'] if self.kept else 0.0:.3g}"

    def before(self, grads: Gradients) -> Vector:
        """Nothing: what is gone back to was kept when it was measured."""
        return []

    def admits(self, grads: Gradients, before: Vector) -> bool:
        """Whether the weights are within the budget, or not measured now; if not, they and the step are the kept ones.

        Raises:
            RunFailed: if none were within it.
        """
        done = grads.step + 1
        self.log = {}
        if not self.due(done):
            return True
        now = self.lost(self.start, self.measure())
        if now <= self.limit:
            params = [p.detach().clone() for p in grads.params]
            self.kept, self.log = {"step": done, "params": params, "lost": now}, {f"lost[{self.benchmark}]": now}
            return True
        if self.kept is None:
            raise RunFailed(
                f"the first {done} steps go beyond the budget: {self.benchmark} lost {now:.3g}, "
                f"where {self.limit:g} is allowed",
                hint="lower train.lr or train.budget.every, or allow more with train.budget.loss",
            )
        self.over = now
        with torch.no_grad():
            for p, old in zip(grads.params, self.kept["params"]):
                p.copy_(old)
        grads.step = self.kept["step"]
        return False

    def now(self, grads: Gradients) -> Facts:
        """What the weights that are in place cost."""
        return {"lost": self.lost(self.start, self.measure())}

    def again(self, grads: Gradients) -> None:
        """Measure the weights that are saved, which are others than those of the last step."""
        if self.kept:
            self.kept["lost"] = self.lost(self.start, self.measure())

    def state(self) -> Within | None:
        """What a resumed run needs."""
        return self.kept

    def load(self, kept: Within | None) -> None:
        """Take over what `state` returned."""
        self.kept = kept


def _kept(facts: Facts) -> Facts:
    """As a manifest can hold them: what is infinite or no number is null, and `infinite` names it."""
    odd = [k for k, v in facts.items() if isinstance(v, float) and not math.isfinite(v)]
    return {**facts, **dict.fromkeys(odd), "infinite": ", ".join(odd)} if odd else facts


AnyBudget = Budget | UtilityBudget
