"""What is impossible in a budget, for one run and for methods that are compared at equal budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ilu_cli import registry
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.refs import data_problems
from ilu_cli.recipe.source import Key
from ilu_cli.recipe.specs import BudgetSpec, HealSpec, Stream, TrainSpec

OF_KL, OF_BENCHMARK = ("data", "rows", "max_length"), ("loss", "every", "limit")


def budget_problems(budget: BudgetSpec, key: Key) -> Iterator[tuple[Key, str]]:
    """Neither measure or both, a key of the other one, or a benchmark that measures no utility."""
    if (budget.kl is None) == (budget.benchmark is None):
        yield key, "name what it is measured by: kl, or a benchmark"
        return
    for other in OF_BENCHMARK if budget.benchmark is None else OF_KL:
        if other in budget.model_fields_set and getattr(budget, other) != type(budget).model_fields[other].default:
            yield (*key, other), f"belongs to a budget by {'a benchmark' if budget.benchmark is None else 'kl'}"
    if budget.benchmark is None:
        yield from data_problems(budget.data, (*key, "data"))
        return
    here: Key = (*key, "benchmark")
    yield from ((here, told) for _, told in EvalSpec(benchmarks=[budget.benchmark]).problems((), None))
    known = registry.benchmark
    if budget.benchmark in known and known[budget.benchmark].obj.role == "forget":
        yield here, f"{budget.benchmark!r} measures what is to be forgotten, not utility"


def heal_problems(heal: HealSpec, objective: str, forget: Stream, key: Key) -> Iterator[tuple[Key, str]]:
    """An objective that begins elsewhere, the forget data among what it heals on, and a warm-up that does not fit."""
    yield from data_problems(heal.data, (*key, "data"))
    if registry.objective[objective].declared.start:
        yield key, f"{objective} changes the weights before the first step: there is no start to heal towards"
    names = {d.name for d in forget.data}
    for i, d in enumerate(heal.data):
        if d.name in names:
            yield (*key, "data", i), f"{d.name!r} is the forget data: it would be learned again"
    if heal.warmup >= heal.steps:
        yield (*key, "warmup"), f"{heal.warmup} warm-up steps do not fit into {heal.steps} steps"


def unequal(trains: Mapping[str, TrainSpec]) -> Iterator[tuple[str, str]]:
    """The methods that cannot be matched by their budgets, with what is wrong."""
    first: tuple[str, BudgetSpec] | None = None
    for name, train in trains.items():
        budget = train.budget
        if train.heal is not None:
            yield name, "match: budget compares methods at equal budgets, and train.heal goes on after it was spent"
        if budget is None:
            yield name, "match: budget compares methods at equal budgets, and this one has no train.budget"
        elif first is None:
            first = name, budget
        elif budget != first[1]:
            yield name, f"match: budget compares methods at equal budgets, and train.budget is not that of {first[0]}"
