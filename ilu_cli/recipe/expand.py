"""From the recipe of a suite or pipeline to the recipes of its runs, or to every problem in them at once."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ilu_cli import registry
from ilu_cli.errors import UsageError, near
from ilu_cli.paths import problem_of_name
from ilu_cli.recipe.budget import unequal
from ilu_cli.recipe.grid import AttackGrid, PipelineRecipe, SuiteRecipe
from ilu_cli.recipe.load import find, load, shipped, validate
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.schema import AttackRecipe, UnlearnRecipe
from ilu_cli.recipe.search import BoundSpec, Chosen, SearchSpec
from ilu_cli.recipe.source import Key, Layers, Problem, RecipeError, read_layers
from ilu_cli.recipe.sourced import Supply, sourced

MOST = 1000  # combinations of one attack's keys


@dataclass(frozen=True)
class Variant:
    """An attack with its keys chosen. Variants of the same `attack` differ in `choice`, what the attacker tries.

    `where` is the place of its grid in the recipe.
    """

    attack: str
    choice: dict[str, Any]
    recipe: AttackRecipe
    random: bool
    where: str
    search: SearchSpec | None = None
    layers: Layers | None = None  # of a search: what a trial's keys are written over
    source: Supply | None = None  # of its tasks, for the recipes of trials too

    def trial(self, chosen: Chosen) -> Variant:
        """The attack with the keys of a trial of its search."""
        assert self.layers is not None
        made = _with(self.layers, chosen, self.where)
        found = replace(self, recipe=validate(AttackRecipe, made), search=None, layers=None)
        return found.sourced(self.source) if self.source else found

    def sourced(self, source: Supply) -> Variant:
        """With this source for the tasks that name none; an earlier choice stays."""
        return replace(self, recipe=sourced(self.recipe, source), source=self.source or source)

    def seeded(self, seed: int) -> AttackRecipe:
        """The recipe under a seed; seed 0 if the attack draws nothing at random."""
        return self.recipe.model_copy(update={"seed": seed if self.random else 0})


@dataclass(frozen=True)
class Method:
    """A way to unlearn; `env` is the environment it was crossed with, if any."""

    name: str
    env: str | None
    recipe: UnlearnRecipe

    def seeded(self, seed: int) -> UnlearnRecipe:
        return self.recipe.model_copy(update={"seed": seed})


@dataclass
class Pipeline:
    """A pipeline's recipe with all that it names read and checked."""

    name: str
    recipe: PipelineRecipe
    methods: list[Method]
    variants: list[Variant]


@dataclass
class _Problems:
    found: list[Problem] = field(default_factory=list)

    def collect(self, where: str, make: Any) -> Any:
        """What `make` returns, or None and its problems noted, as those of the place `where`."""
        try:
            return make()
        except RecipeError as error:
            self.found += [Problem(p.where, f"{where}.{p.key}" if p.key else where, p.message) for p in error.problems]
        except UsageError as error:
            self.found.append(Problem(where, "", str(error)))
        return None

    def raise_any(self) -> None:
        if self.found:
            raise RecipeError(list({str(p): p for p in self.found}.values()))


def load_suite(name: str, bound: BoundSpec | None = None) -> tuple[SuiteRecipe, list[Variant]]:
    """A suite and its attacks. `name`: `quick` (for the shipped `suite-quick`), a recipe's name, or a file.

    A `bound` that is given holds instead of the suite's own.

    Raises:
        RecipeError: with every problem of the suite and of the attack recipes that it makes.
        UsageError: if there is no such suite.
    """
    path = find_suite(name)
    recipe = load(SuiteRecipe, path, {}, [])
    recipe = recipe.model_copy(update={"bound": bound}) if bound else recipe
    problems = _Problems()
    variants = list(_variants(recipe, read_layers(path), problems))
    _check_rows(variants, problems)
    problems.raise_any()
    return recipe, variants


def find_suite(name: str) -> Path:
    """The file of a suite; see `load_suite`."""
    suites = {known.removeprefix("suite-"): path for known, path in shipped().items() if known.startswith("suite-")}
    if name in suites:
        return suites[name]
    if name in shipped() or Path(name).suffix or Path(name).is_file():
        return find(name)
    raise UsageError(f"no suite {name!r}.{near(name, suites)}", hint=f"shipped suites: {', '.join(suites)}; or a file")


def load_pipeline(name: str, sets: list[str], flags: dict[str, tuple[Key, Any]] | None = None) -> Pipeline:
    """Read a pipeline's recipe and all that it names.

    Raises:
        RecipeError: with every problem of the pipeline and of the recipes that it makes.
    """
    path = find(name)
    recipe = load(PipelineRecipe, path, flags or {}, sets)
    layers, problems = read_layers(path), _Problems()
    methods = list(_methods(recipe, path, layers, problems))
    problems.found += _unread(recipe, methods, layers)
    if recipe.match == "budget":
        wrong = unequal({m.name: m.recipe.train for m in methods})
        problems.found += [Problem(layers.origin(("match",)), f"methods.{name}", told) for name, told in wrong]
    variants: list[Variant] = []
    if recipe.suite is not None:
        beside = path.parent / recipe.suite
        suite = str(beside) if beside.is_file() else recipe.suite
        known, variants = problems.collect("suite", lambda: load_suite(suite, recipe.bound)) or (None, [])
        if known and known.bound and recipe.bound is None:
            recipe = recipe.model_copy(update={"bound": known.bound})
    variants += _variants(recipe, layers, problems)
    _check_rows(variants, problems)
    problems.raise_any()
    called = recipe.name or path.stem
    if problem := problem_of_name(called):
        raise UsageError(
            f"{path}: the pipeline's folder would be called {called!r}, which {problem}", hint="set `name`"
        )
    return Pipeline(called, recipe, methods, variants)


def _check_rows(variants: list[Variant], problems: _Problems) -> None:
    """Two grids, or two values of `each`, must not make the same row of the table."""
    known: dict[str, str] = {}
    for v in variants:
        if known.setdefault(v.attack, v.where) != v.where:
            told = f"{v.attack!r} stands twice; what is to be told apart belongs under `each` of one attack"
            problems.found.append(Problem(v.where, "attacks", told))
    runs = [(v.where, v.attack, str(v.choice)) for v in variants]
    twice = sorted({run for run in runs if runs.count(run) > 1})
    problems.found += [Problem(where, "attacks", f"{attack!r} makes the same run twice") for where, attack, _ in twice]


def _variants(suite: SuiteRecipe | PipelineRecipe, layers: Layers, problems: _Problems) -> Iterator[Variant]:
    """The attacks of a suite; with a bound utility is scored at every point."""
    evaluation = ({"at": "all"} if suite.bound else {}) | suite.eval.model_dump()
    for i, grid in enumerate(suite.attacks):
        count = math.prod(len(values) for values in (*grid.each.values(), *grid.best_of.values()))
        if count > MOST:
            told = f"makes {count:,} runs of each model; at most {MOST:,} can be asked for"
            problems.found.append(Problem(layers.origin(("attacks", i)), f"attacks.{i}", told))
            continue
        data = {"command": "attack", "attack": grid.attack, "eval": evaluation | grid.eval}
        data["keep"] = "none"  # what an attacked model is worth is in its results
        base, origin = Layers(data, _below(layers, ("attacks", i))), layers.origin(("attacks", i))
        for each in _combinations(grid.each):
            for choice in [{}] if grid.search else _combinations(grid.best_of):
                made = _with(base, each | choice, origin)
                known = len(problems.found)
                first = _searched(grid, made, f"attacks.{i}", origin, problems) if grid.search else made
                recipe = problems.collect(f"attacks.{i}", lambda first=first: validate(AttackRecipe, first))
                if recipe is not None and suite.bound:
                    problems.found += _unmeasured(recipe, suite.bound, f"attacks.{i}", origin)
                if recipe is not None and len(problems.found) == known:
                    label = " ".join([recipe.attack.name, *(_word(k, v) for k, v in each.items())])
                    layers_of_search = made if grid.search else None
                    yield Variant(label, choice, recipe, grid.random, origin, grid.search, layers_of_search)


def _unmeasured(recipe: AttackRecipe, bound: BoundSpec, here: str, origin: str) -> Iterator[Problem]:
    """What an attack costs would not be known."""
    if registry.attack[recipe.attack.name].declared.utility and bound.benchmark not in recipe.eval.names:
        yield Problem(origin, f"{here}.eval", f"does not ask {bound.benchmark!r}, by which the bound is measured")


def _with(base: Layers, chosen: Chosen, origin: str) -> Layers:
    """An attack's recipe with keys of the attack written over it."""
    made = Layers(copy.deepcopy(base.data), dict(base.origins))
    for key, value in chosen.items():
        made.put(("attack", *key.split(".")), copy.deepcopy(value), origin)
    return made


def with_data(layers: Layers, data: list[DataRef]) -> Layers:
    """A search's recipe whose attack reads these data."""
    return _with(layers, {"data": [d.model_dump() for d in data]}, "the lineage")


def _searched(grid: AttackGrid, made: Layers, here: str, origin: str, problems: _Problems) -> Layers:
    """A recipe in the range of a search. Every end of the range is checked: a trial must not fail by its keys."""
    search = grid.search
    assert search is not None
    wrong = [(f"{here}.search.over.{key}", what) for key, what in search.problems()]
    if grid.best_of:
        wrong.append((f"{here}.best_of", "the attacker searches, or tries a list; leave one of them out"))
    wrong += [(f"{here}.search.over.{k}", "stands under each too") for k in search.over if k in grid.each]
    problems.found += [Problem(origin, key, what) for key, what in wrong]
    corners = [_with(made, corner, origin) for corner in search.corners()]
    for corner in corners[1:] if not wrong else []:
        problems.collect(here, lambda corner=corner: validate(AttackRecipe, corner))
    return corners[0]


def _combinations(choices: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values)) for values in itertools.product(*choices.values())]


def _word(key: str, value: Any) -> str:
    """`sst2` for a named thing, `k=30` for a number, `lora r=16` for a mapping."""
    if isinstance(value, dict):
        value = value.get("name") or f"{key} {' '.join(f'{k}={v}' for k, v in value.items())}"
    return value if isinstance(value, str) else f"{key}={value}"


def _methods(recipe: PipelineRecipe, path: Path, layers: Layers, problems: _Problems) -> Iterator[Method]:
    for name, spec in recipe.methods.items():
        here = f"methods.{name}"
        beside = path.parent / spec.recipe
        base = problems.collect(
            here, lambda spec=spec, beside=beside: read_layers(beside if beside.is_file() else find(spec.recipe))
        )
        if base is None:
            continue
        base.put(("model",), recipe.model.model_dump(), layers.origin(("model",)))
        for key, value in spec.set.items():
            base.put(tuple(key.split(".")), copy.deepcopy(value), layers.origin(("methods", name, "set", key)))
        open_ = _open(base)
        if open_ and not recipe.environments:
            what = "a regulariser names no env, and there are no environments"
            problems.found.append(Problem(layers.origin(("methods", name)), here, what))
            continue
        for env in recipe.environments if open_ else [None]:
            for regularizer in open_:
                regularizer["env"] = [env]
            made = problems.collect(here, lambda base=base: validate(UnlearnRecipe, base))
            if made is not None:
                yield Method(f"{name}({env})" if env else name, env, made)


def _unread(recipe: PipelineRecipe, methods: list[Method], layers: Layers) -> Iterator[Problem]:
    """Environments of which none of the methods, if all could be read, takes one."""
    if recipe.environments and len(methods) == len(recipe.methods) and not any(m.env for m in methods):
        what = "are read by no method: none has a regulariser that leaves its `env` to them"
        yield Problem(layers.origin(("environments",)), "environments", what)


def _open(base: Layers) -> list[dict[str, Any]]:
    """The regularisers of a recipe that leave their environment to the grid."""
    return [r for r in base.data.get("regularizers") or [] if isinstance(r, dict) and "env" not in r]


def _below(layers: Layers, key: Key) -> dict[Key, str]:
    """Where the keys below `key` were written, seen from there."""
    return {k[len(key) :]: where for k, where in layers.origins.items() if k[: len(key)] == key}
