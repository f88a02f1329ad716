"""A weight that moves so that its term stays below a limit."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from ilu_cli.recipe.spec import Spec


class DualSpec(Spec):
    """A bound R ≤ ε on the retain term's value R: after each step its weight γ becomes max(0, γ + η(R − ε)).

    The dual ascent of arXiv 2506.05314; R is that of the step's own batch, before the weights move.
    """

    limit: NonNegativeFloat = Field(description="ε")
    lr: PositiveFloat = Field(1.0, description="η")
    warmup: NonNegativeInt = Field(0, description="first steps, in which γ stays as it is")

    def after(self, weight: float, value: float, step: int) -> float:
        """γ after a step, counted from 0, in which it was `weight` and the term `value`."""
        return weight if step < self.warmup else max(0.0, weight + self.lr * (value - self.limit))
