from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ilu_cli.defences import Defence
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.gradients import Gradients, Term, Vector
    from ilu_cli.recipe.schema import UnlearnRecipe
    from ilu_cli.recipe.source import Key


def problems(own: Any, key: Key, recipe: UnlearnRecipe) -> Iterator[tuple[Key, str]]:
    """No retain term to take a gradient of."""
    if recipe.retain is None:
        yield (*key, "name"), "the recipe has no retain term whose gradient to project on: give it `retain`"


@defence(problems=problems)
class Project(Defence):
    """Forget without moving along the retain gradient (GRU, arXiv 2503.09117; PRISM, arXiv 2509.23362).

    g ← g − ⟨g, r⟩/‖r‖²·r, g the forget gradient and r that of the retain term (without its weight) at the step's
    weights, both over the whole step. Both are of losses to be minimised, so a step along −g raises the retain loss
    where ⟨g, r⟩ < 0; with `only_against` g stays as it is elsewhere.

    `whole` with `only_against`, the defaults, is GRU's rule: one product of all trained weights. `tensor` without it is
    PRISM's: each weight tensor by itself, and always; PRISM has it after SAM, so name `sam` before this. Both take r
    from cross-entropy (`retain: nll`): a retain term whose gradient is 0 at the start, as that of `kl` and
    `hidden_mse`, has no direction there and takes nothing away.

    Departures: GRU's code smooths r over steps (0.8 of the new one, 0.2 of the old) and, for gradient ascent, steps
    along g alone, which here is a retain weight of 0. PRISM's has a probe in its loss and 1e-6 beside ‖r‖². It costs a
    second retain gradient a step.
    """

    by_rows = True
    vectors = 1  # the retain gradient

    def __init__(self, *, how: Literal["whole", "tensor"] = "whole", only_against: bool = True) -> None:
        self.how, self.only_against, self.log = how, only_against, {}

    def gradient(self, grads: Gradients, forget: Term, retain: Term | None, compute: Callable[[], Tensor]) -> Tensor:
        from ilu_cli.engine.gradients import dot, norm

        assert retain is not None, "the plan refuses a recipe without one"
        with grads.aside():
            grads.accumulate(replace(retain, weight=1.0))
            kept = grads.whole()
            value = compute()
            own = grads.whole()
            before, length = norm(own), norm(kept)
            cosine = dot(own, kept) / (before * length) if before and length else 0.0
            for g, r in [(own, kept)] if self.how == "whole" else [([g], [r]) for g, r in zip(own, kept)]:
                take_out(g, r, self.only_against)
            self.log = {"cos(forget, retain)": cosine, "forget gradient left": norm(own) / (before or 1.0)}
            grads.add(own)
        return value


def take_out(g: Vector, r: Vector, only_against: bool) -> None:
    """g ← g − ⟨g, r⟩/‖r‖²·r, in place; nothing where r is 0, and with `only_against` where ⟨g, r⟩ ≥ 0."""
    from ilu_cli.engine.gradients import dot

    product, square = dot(g, r), dot(r, r)
    if square == 0 or (only_against and product >= 0):
        return
    for a, b in zip(g, r):
        a.sub_(b, alpha=product / square)
