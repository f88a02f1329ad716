"""Recipes of many runs: a suite is a grid of attacks, a pipeline one of methods × environments × attacks × seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveFloat, Tag

from ilu_cli import registry
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.search import BoundSpec, SearchSpec
from ilu_cli.recipe.source import Key
from ilu_cli.recipe.spec import Spec
from ilu_cli.recipe.specs import DEFAULT_MODEL, ModelSpec

Choices = dict[str, Annotated[list[Any], Field(min_length=1)]]
Seeds = Annotated[list[Annotated[NonNegativeInt, Field(le=2**32 - 1)]], Field(min_length=1)]


class AnyRecipe(Spec):
    """Base of all recipes; `command` tells them apart."""

    def problems(self) -> Iterator[tuple[Key, str]]:
        """Yield what is impossible although every key is right by itself."""
        yield from ()


class AttackGrid(Spec):
    """One attack of a suite, in the keys of an attack recipe, and the values that it is run with."""

    later = ("search",)

    attack: dict[str, Any]
    each: Choices = Field({}, description="keys of the attack; every combination of their values is a row of its own")
    best_of: Choices = Field({}, description="keys of the attack; the attacker tries all, and the best one is the row")
    search: SearchSpec | None = Field(None, description="the attacker searches instead of trying a list")
    eval: dict[str, Any] = Field({}, description="keys that differ from the suite's eval")
    random: bool = Field(True, description="false: the attack draws nothing at random, so one seed says all")


BOUND = "what an attack may cost to count; the table has the worst case at several losses"


def bound_problems(bound: BoundSpec | None, evaluation: EvalSpec) -> Iterator[tuple[Key, str]]:
    """What is impossible in a bound, beside what is evaluated."""
    if bound is None:
        return
    if bound.benchmark not in evaluation.named:
        yield ("bound", "benchmark"), f"{bound.benchmark!r} is not among eval.benchmarks"
    known = registry.benchmark[bound.benchmark].obj if bound.benchmark in registry.benchmark else None
    if known and known.role == "forget":
        yield ("bound", "benchmark"), f"{bound.benchmark!r} measures what is to be forgotten, not utility"
    if known and known.kind == "share" and bound.loss >= 1:
        yield (
            ("bound", "loss"),
            f"{bound.benchmark!r} is a share, and loses no more than all: 0.05 is from .91 to .86",
        )


class SuiteRecipe(AnyRecipe):
    """What `ilu attack --suite` runs on a model."""

    later = ("bound",)

    command: Literal["suite"] = "suite"
    attacks: list[AttackGrid] = Field(min_length=1)
    bound: BoundSpec | None = Field(None, description=BOUND)
    eval: EvalSpec = Field(EvalSpec(), description="what every attack is followed by")

    def problems(self) -> Iterator[tuple[Key, str]]:
        """Yield what is impossible although every key is right by itself. See `ilu_cli.recipe.expand` for the parts."""
        yield from self.eval.problems(("eval",), self)
        yield from bound_problems(self.bound, self.eval)


class MethodSpec(Spec):
    """One way to unlearn: an unlearning recipe, and keys written over it."""

    recipe: str = Field(description="a shipped recipe's name, or a file (relative to this one)")
    set: dict[str, Any] = Field({}, description="recipe keys written over it, as with --set: {train.lr: 1e-4}")


class MatchSpec(Spec):
    """Compare methods at the same utility: of each model's kept steps, the one nearest to the target is attacked.

    Of the steps within one standard error of that distance it is the last.
    """

    benchmark: str
    target: PositiveFloat = Field(description="utility to be matched, itself or as a share of the original's")
    of: Literal["original", "value"] = Field("original", description="original: target is a share of the original's")
    tolerance: PositiveFloat = Field(0.05, description="a distance beyond this is warned about, in the target's unit")
    keep: Literal["all", "chosen"] = Field("all", description="chosen: delete the kept steps that were not chosen")


Match = Annotated[Annotated[MatchSpec, Tag("#object")] | Annotated[Literal["budget"], Tag("#text")],
                  Discriminator(lambda given: "#text" if isinstance(given, str) else "#object")]  # fmt: skip


class PipelineRecipe(AnyRecipe):
    """What `ilu pipeline` runs."""

    later = ("bound",)

    command: Literal["pipeline"] = "pipeline"
    name: str | None = Field(None, pattern=r"^\w[\w.-]*$", description="its folder; default: the recipe file's name")
    model: ModelSpec = ModelSpec(ref=DEFAULT_MODEL)
    methods: dict[str, MethodSpec] = Field(min_length=1)
    environments: list[str] = Field([], description="each is given to the regularisers that name no env, in turn")
    suite: str | None = Field(None, description="a suite's name or file")
    attacks: list[AttackGrid] = Field([], description="attacks beside those of the suite")
    seeds: Seeds = [0]
    match: Match | None = Field(
        None, description="budget: methods stop at equal budgets (train.budget), and their last weights are attacked"
    )
    bound: BoundSpec | None = Field(None, description=f"{BOUND}; null: the suite's")
    eval: EvalSpec = Field(EvalSpec(), description="what every model is measured by before it is attacked")

    def problems(self) -> Iterator[tuple[Key, str]]:
        """Yield what is impossible although every key is right by itself."""
        yield from self.eval.problems(("eval",), self)
        if self.suite is None and not self.attacks:
            yield ("suite",), "there is nothing to attack with: name a suite, or list attacks"
        yield from bound_problems(self.bound, self.eval)
        bench = self.match.benchmark if isinstance(self.match, MatchSpec) else ""
        if bench and bench not in self.eval.named:
            yield ("match", "benchmark"), f"{bench!r} is not among eval.benchmarks"
        if bench in registry.benchmark and registry.benchmark[bench].obj.role == "forget":
            yield ("match", "benchmark"), f"{bench!r} measures what is to be forgotten, not utility"
        if "original" in self.methods:
            yield ("methods", "original"), "is what the reference line is called"
        for key, values in (("seeds", self.seeds), ("environments", self.environments)):
            for i, value in enumerate(values):
                if value in values[:i]:
                    yield (key, i), f"{value} stands twice"
