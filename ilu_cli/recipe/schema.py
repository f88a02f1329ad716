"""The schema of each command's recipe, built from what is registered."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeInt, PositiveInt, Tag, TypeAdapter, create_model

from ilu_cli import registry
from ilu_cli.errors import UsageError
from ilu_cli.recipe.bench import BenchmarkSpec, benchmark_tag, plain_name
from ilu_cli.recipe.budget import budget_problems, heal_problems
from ilu_cli.recipe.evaluation import AttackEvalSpec, EvalSpec, GateSpec
from ilu_cli.recipe.grid import AnyRecipe, PipelineRecipe, SuiteRecipe
from ilu_cli.recipe.loaded import loaded_problems
from ilu_cli.recipe.refs import data_problems
from ilu_cli.recipe.source import Key
from ilu_cli.recipe.spec import Spec
from ilu_cli.recipe.specs import (
    AUTO,
    AUTO_PARAMS,
    Component,
    DefenceSpec,
    LoraSpec,
    ModelSpec,
    RegularizerSpec,
    RetainSpec,
    Stream,
    Tracker,
    TrainSpec,
)
from ilu_cli.recipe.training_attack import TrainingAttack

R = TypeVar("R", bound=AnyRecipe)
E = TypeVar("E", bound=EvalSpec)
TRACK = "where steps are reported to, besides metrics.jsonl; not part of the recipe's sha256"


class Recipe(AnyRecipe):
    """Base of the recipes of a single run."""

    seed: NonNegativeInt = Field(0, le=2**32 - 1)


class UnlearnRecipe(Recipe):
    """What `ilu unlearn` runs."""

    command: Literal["unlearn"] = "unlearn"
    model: ModelSpec = ModelSpec()
    objective: Component
    forget: Stream
    retain: RetainSpec | None = None
    regularizers: list[RegularizerSpec] = []
    defences: list[DefenceSpec] = []
    lora: LoraSpec | None = None
    train: TrainSpec = TrainSpec()
    track: list[Tracker] = Field([], description=TRACK)

    def problems(self) -> Iterator[tuple[Key, str]]:
        yield from data_problems(self.forget.data, ("forget", "data"))
        yield from self.objective.problems(registry.objective, ("objective",), self)
        yield from self._retain_problems()
        yield from self._regularizer_problems()
        yield from self._defence_problems()
        if self.lora and self.train.params not in (None, AUTO_PARAMS):
            yield ("lora",), "an adapter is all that is trained; leave train.params out"
        if self.train.budget:
            yield from budget_problems(self.train.budget, ("train", "budget"))
        if self.train.heal:
            yield from heal_problems(self.train.heal, self.objective.name, self.forget, ("train", "heal"))
        t, adapter = self.train, self.lora is not None
        if t.lr == AUTO and (t.budget is None or t.budget.kl is None):
            yield ("train", "lr"), "auto spends a budget: name it, as train.budget: {kl: 0.06}"
        if t.lr == AUTO and (t.warmup or t.schedule != "constant"):
            yield ("train", "lr"), "auto is one length for all steps: leave warmup and schedule out"
        yield from t.memory.problems(
            ("train", "memory"), t.precision, t.optimizer, adapter=adapter, partial=t.params is not None
        )
        yield from loaded_problems(self)
        if self.train.warmup >= self.train.steps:
            yield ("train", "warmup"), f"{self.train.warmup} warm-up steps do not fit into {self.train.steps} steps"
        points = [*self.train.points, self.train.steps]
        if points != sorted(set(points)):
            yield (
                ("train", "points"),
                f"must rise and stay below {self.train.steps}, the last step, which is kept anyway",
            )

    def _retain_problems(self) -> Iterator[tuple[Key, str]]:
        if self.retain is None:
            return
        yield from self.retain.problems(registry.retain_term, ("retain",), self)
        yield from data_problems(self.retain.data, ("retain", "data"))
        if self.retain.dual and isinstance(self.retain.weight, str):
            yield ("retain", "dual"), "a weight that is a share is not moved by a bound: give it a number"
        needs, keys = registry.retain_term[self.retain.name].declared.needs, type(self.objective).model_fields
        if "hidden" in needs and "layer" not in keys:
            yield ("retain", "name"), f"{self.retain.name} needs an objective with a layer, not {self.objective.name}"
        if "states" in needs and not {"layer", "layers"} & set(keys):
            yield ("retain", "name"), f"{self.retain.name} needs an objective with layers, not {self.objective.name}"

    def _regularizer_problems(self) -> Iterator[tuple[Key, str]]:
        forget = {d.name for d in self.forget.data}
        for i, reg in enumerate(self.regularizers):
            yield from reg.problems(registry.regularizer, ("regularizers", i), self)
            key: Key = ("regularizers", i, "env")
            for j, d in enumerate(reg.env):
                if d.name in forget:
                    yield (*key, j), f"{d.name!r} is the forget data; an environment must be unrelated to it"
                if d.name in [e.name for e in reg.env[:j]]:
                    yield (*key, j), f"{d.name!r} is named twice"
        names = [r.name for r in self.regularizers]
        for i, name in enumerate(names):
            if name in names[:i]:
                yield ("regularizers", i, "name"), f"{name!r} stands twice; give one of them several environments"

    def _defence_problems(self) -> Iterator[tuple[Key, str]]:
        names = [d.name for d in self.defences]
        for i, d in enumerate(self.defences):
            if d.name in names[:i]:
                yield ("defences", i, "name"), f"{d.name!r} stands twice"
            yield from d.problems(registry.defence, ("defences", i), self)


class AttackRecipe(Recipe):
    """What `ilu attack` runs."""

    command: Literal["attack"] = "attack"
    attack: Component
    eval: AttackEvalSpec = AttackEvalSpec()
    keep: Literal["none", "final", "points"] | None = Field(
        None, description="the checkpoints that stay; null: the final one of an attack that trains, else none"
    )
    track: list[Tracker] = Field([], description=TRACK)

    def problems(self) -> Iterator[tuple[Key, str]]:
        yield from self.eval.problems(("eval",), self)
        keys = self.attack.params()
        for key in ("task", "text", "contrast", "around"):
            if keys.get(key) is not None:
                yield from data_problems([keys[key]], ("attack", key), indexed=False)
        yield from data_problems(keys.get("data") or [], ("attack", "data"))
        if keys.get("lora") and keys.get("weights") is not None:
            yield ("attack", "lora"), "an adapter is all that is trained; leave attack.weights out"
        yield from self.attack.problems(registry.attack, ("attack",), self)
        access = registry.attack[self.attack.name].declared.access
        if self.keep not in (None, "none") and access not in ("training", "weights"):
            yield ("keep",), f"{self.attack.name} changes no weights, so there is no checkpoint to keep"


class EvalRecipe(Recipe):
    """What `ilu eval` runs."""

    command: Literal["eval"] = "eval"
    eval: GateSpec = GateSpec()

    def problems(self) -> Iterator[tuple[Key, str]]:
        yield from self.eval.problems(("eval",), self)


class TaskvecRecipe(Recipe):
    """What `ilu taskvec` runs."""

    command: Literal["taskvec"] = "taskvec"
    include: list[str] | None = Field(
        None, min_length=1, description="glob patterns of the compared weights; null: all"
    )
    common: bool = Field(False, description="compare what all checkpoints share, and list the rest")
    plane: bool = Field(False, description="all checkpoints on the plane of τ_u and τ_ft")
    subspace: PositiveInt | None = Field(None, description="compare this many leading singular directions")


class VectorSpec(Spec):
    """A run's task vector, its checkpoint minus its parent, and the coefficient α."""

    run: str
    alpha: float = 1.0


class ApplyRecipe(Recipe):
    """What `ilu taskvec apply` runs."""

    command: Literal["taskvec apply"] = "taskvec apply"
    vectors: list[VectorSpec] = Field(min_length=1)
    onto: str | None = Field(None, description="what they are added to; null: their original")
    merge: Literal["linear", "ties", "dare", "magnitude"] = "linear"
    density: float | None = Field(None, gt=0, lt=1, description="share of the entries that are kept")

    def problems(self) -> Iterator[tuple[Key, str]]:
        if (self.merge == "linear") != (self.density is None):
            yield ("density",), "linear keeps all; ties, dare and magnitude need a density"


def _keys(entry: registry.Entry[Any]) -> dict[str, tuple[Any, Any]]:
    try:
        return entry.keys()
    except (NameError, SyntaxError, TypeError, AttributeError) as error:
        raise UsageError(f"{registry.where(entry.obj)}: an annotation is no type: {error}") from error


def _component(known: registry.Registry[Any], base: type[Component]) -> Any:
    """The union of all registered ideas of one kind, told apart by `name`."""
    specs = _specs(known, base)
    if len(specs) == 1:
        return next(iter(specs.values()))
    return Annotated[Union[tuple(specs.values())], Field(discriminator="name")]  # noqa: UP007


def _specs(known: registry.Registry[Any], base: type[Component]) -> dict[str, type[Component]]:
    """The recipe part of each registered idea of one kind."""
    return {
        name: create_model(
            f"{known.kind.title().replace(' ', '')}_{name}",
            __base__=TrainingAttack if getattr(known[name].declared, "access", "") == "training" else base,
            __doc__=known[name].doc,
            name=(Literal[name], name),
            **_keys(known[name]),  # type: ignore[call-overload]
        )
        for name in known
    }


RECIPES: dict[str, type[AnyRecipe]] = {
    "unlearn": UnlearnRecipe,
    "attack": AttackRecipe,
    "eval": EvalRecipe,
    "taskvec": TaskvecRecipe,
    "taskvec apply": ApplyRecipe,
    "pipeline": PipelineRecipe,
    "suite": SuiteRecipe,
}
"""The kinds of recipe by their `command`."""


def schema(kind: type[R]) -> type[R]:
    """The schema of a kind of recipe, with the keys of all ideas that are registered now."""
    return _schema(kind, tuple(known[name].obj for known in registry.ALL for name in known))


@functools.cache
def _schema(kind: type[Any], _registered: tuple[Any, ...]) -> type[Any]:
    if kind is UnlearnRecipe:
        defence: Any = _component(registry.defence, DefenceSpec)
        regularizer: Any = _component(registry.regularizer, RegularizerSpec)
        return create_model(
            "UnlearnRecipe",
            __base__=UnlearnRecipe,
            __doc__=UnlearnRecipe.__doc__,
            objective=(_component(registry.objective, Component), ...),
            retain=(_component(registry.retain_term, RetainSpec) | None, None),
            regularizers=(list[regularizer], []),
            defences=(list[defence], []),
        )
    own: dict[str, Any] = {}
    if kind is AttackRecipe:
        own["attack"] = (_component(registry.attack, Component), ...)
    if found := kind.model_fields.get("eval"):
        spec = evaluation(type(found.default))
        own["eval"] = (spec, Field(spec(), description=found.description))
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **own) if own else kind


def evaluation(kind: type[E]) -> type[E]:
    """The schema of a part of a recipe that names benchmarks, with the keys of all that are registered now."""
    return _evaluation(kind, tuple(entry.obj for entry in registry.benchmark.values()))


@functools.cache
def _evaluation(kind: type[Any], _registered: tuple[Any, ...]) -> type[Any]:
    forms: dict[str, type[Any]] = {"": str, **_specs(registry.benchmark, BenchmarkSpec)}
    item: Any = Union[tuple(Annotated[form, Tag(tag)] for tag, form in forms.items())]  # noqa: UP007
    items: Any = list[Annotated[item, Discriminator(benchmark_tag), BeforeValidator(plain_name)]]
    field = kind.model_fields["benchmarks"]
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, benchmarks=(items, field))


def json_schema(command: str | None = None) -> dict[str, Any]:
    """The JSON Schema of a command's recipe, or of any recipe, told apart by its `command`."""
    if command is not None:
        found = schema(RECIPES[command]).model_json_schema()
    else:
        any_recipe: Any = Annotated[Union[tuple(map(schema, RECIPES.values()))], Field(discriminator="command")]  # noqa: UP007
        found = TypeAdapter(any_recipe).json_schema()
    title = "a recipe of ilu" if command is None else f"a recipe of `ilu {command}`"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": title}
