"""What is impossible in a budget, for one run and for methods that are compared at equal budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ilu_cli import registry
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.refs import data_problems
from ilu_cli.recipe.source import Key
from ilu_cli.recipe.specs import BudgetSpec

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


def unequal(budgets: Mapping[str, BudgetSpec | None]) -> Iterator[tuple[str, str]]:
    """The methods that cannot be matched by their budgets, with what is wrong."""
    first: tuple[str, BudgetSpec] | None = None
    for name, budget in budgets.items():
        if budget is None:
            yield name, "match: budget compares methods at equal budgets, and this one has no train.budget"
        elif first is None:
            first = name, budget
        elif budget != first[1]:
            yield name, f"match: budget compares methods at equal budgets, and train.budget is not that of {first[0]}"
