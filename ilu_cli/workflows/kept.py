"""What is kept beside a training: in main memory what the original says of the rows and what the layers below the
first trained one give, and as copies of what is trained what defences and a budget hold.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ilu_cli import registry
from ilu_cli.data.encode import Encoded
from ilu_cli.declarations import FLOAT, reference_bytes
from ilu_cli.defences import Defence
from ilu_cli.models.names import first_place
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.specs import AUTO, Component
from ilu_cli.workflows.estimate import TrainingPrice, estimate
from ilu_cli.workflows.main_memory import main_memory
from ilu_cli.workflows.moments import UNREAD, Beside, Ground, MemoryEstimate, OnDisk
from ilu_cli.workflows.passes import (
    Passing,
    Shape,
    Shapes,
    asked_of,
    budget_of,
    healing_pass,
    joined,
    layers_of,
    passes_of,
    read_of,
    run_together,
)

GB = 1e9


@dataclass(frozen=True)
class Shown:
    """Tokens of the rows of a stream that a training comes to see, each row once; `targets` of them are scored."""

    tokens: int
    targets: int

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> Shown:
        """Those of encoded rows."""
        found = [(len(e.ids), e.targets) for e in rows]
        return cls(sum(t for t, _ in found), sum(t for _, t in found))

    @classmethod
    def at_most(cls, shape: Shape, steps: int) -> Shown:
        """Those of steps of which none shows a row again, and every row is of full length."""
        rows = steps * shape.batch * shape.graphs
        return cls(rows * shape.length, rows * shape.targets)


def of_original(recipe: UnlearnRecipe, config: Any, shown: Mapping[str, Shown]) -> int:
    """Bytes of reference log-probabilities and states, of the rows of `forget`, `retain`, `budget` and `heal`."""
    found, layers = 0, len(layers_of(recipe.objective))
    for name, needs in read_of(recipe):
        if s := shown.get(name):
            found += reference_bytes(needs, s.tokens, s.targets, int(config.hidden_size), layers)
    return found


def at_most(recipe: UnlearnRecipe, config: Any, first: int, world: int = 1, *, sharded: bool = False) -> int:
    """Bytes of both in one of `world` processes where the data are not here; see `Shown.at_most`.

    Args:
        first: the first trained layer; what lies below it is computed beforehand, unless the model is sharded.
    """
    t, shapes = recipe.train, Shapes.full(recipe)
    shown = {"forget": Shown.at_most(shapes.forget, t.steps)}
    if shapes.retain:
        shown["retain"] = Shown.at_most(shapes.retain, t.steps)
    seen = sum(s.tokens for s in shown.values())
    every = [reg.every for reg in recipe.regularizers for _ in reg.env]
    seen += sum(Shown.at_most(s, -(-t.steps // e)).tokens for s, e in zip(shapes.environments, every))
    if t.budget and t.budget.kl:
        tokens = t.budget.rows * t.budget.max_length
        shown["budget"] = Shown(tokens, tokens)
    if t.heal and shapes.heal:
        shown["heal"] = Shown.at_most(shapes.heal, t.heal.steps)
    below = 0 if first <= 0 or sharded else min(GB * t.prefix_gb, FLOAT * int(config.hidden_size) * seen / world)
    return of_original(recipe, config, shown) + int(below)


def beside(recipe: UnlearnRecipe, trained: Sequence[Sequence[int]]) -> Beside:
    """What defences, as far as they say it, and a budget hold, where weights of these shapes are trained."""
    each, b = sum(map(math.prod, trained)), recipe.train.budget
    heads = sum("reference.final" in needs for _, needs in read_of(recipe))
    known = [h for d in recipe.defences if (h := _defence(d).held(trained)) is not None]
    first, always = (sum(h[i] for h in known) for i in (0, 1))
    if b is None:
        return Beside(first, always, heads=heads)
    if b.benchmark:  # the last weights within it stay
        return Beside(first + each, always + each, each, heads)
    return Beside(first, always, each * (2 if recipe.train.lr == AUTO else 1), heads)


def priced(
    recipe: UnlearnRecipe, shapes: Shapes, world: int, model: Any, params: Sequence[nn.Parameter], cached: int,
    stored: OnDisk = UNREAD,
) -> MemoryEstimate:  # fmt: skip
    """`estimate` of an unlearning in one of `world` processes, with all that it runs and holds."""
    ground = Ground.here()
    more = beside_steps(recipe, shapes, world, model, params, sharded=ground.shards > 1)
    passes = [*joined(passes_of(recipe, shapes, world), run_together(recipe)), *more]
    held = beside(recipe, [p.shape for p in params])
    found = estimate(model, params, passes, recipe.train, cached, stored, beside=held)
    if ground.memory is not None:
        price = TrainingPrice(model, params, recipe.train, cached, ground, beside=held)
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        found += MemoryEstimate((), tuple(main_memory(price, here, cached, stored)))
    if (spec := recipe.train.healing) and shapes.heal:
        heals = [healing_pass(shapes.heal, spec, world)]
        found += estimate(model, params, heals, spec, cached, stored, beside=healed(held))
    return found


def beside_steps(
    recipe: UnlearnRecipe, shapes: Shapes, world: int, model: Any, params: Sequence[nn.Parameter], *, sharded: bool
) -> list[Passing]:
    """What one of `world` processes runs without gradients: to measure a budget, and before the first step."""
    own = {id(p) for p in params}
    first = first_place(model, [name for name, p in model.named_parameters() if id(p) in own])
    return [*budget_of(recipe, shapes, world), *asked_of(recipe, shapes, 0 if sharded else first)]


def healed(held: Beside) -> Beside:
    """What is left of it while the weights heal: the LM head as it was, of what was built before the first step."""
    return Beside(heads=held.heads)


def unknown(recipe: UnlearnRecipe) -> list[str]:
    """The defences that do not say what they hold."""
    return [d.name for d in recipe.defences if _defence(d).held([]) is None]


def _defence(spec: Component) -> Defence:
    found: Defence = registry.defence[spec.name].obj(**spec.params())
    return found
