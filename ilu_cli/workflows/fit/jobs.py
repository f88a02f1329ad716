"""The trainings and the scoring that a recipe asks for, as far as it tells without data: every row of full length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ilu_cli import registry
from ilu_cli.engine.scoring import TOKENS
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.loaded import loaded_problems
from ilu_cli.recipe.schema import AttackRecipe, UnlearnRecipe
from ilu_cli.recipe.specs import Component, Form, LoraSpec, Precision, TrainSpec
from ilu_cli.recipe.training_attack import TrainingAttack
from ilu_cli.workflows.kept import unknown
from ilu_cli.workflows.passes import Passing, Shape, Shapes, healing_pass, joined, layers_of, passes_of, run_together
from ilu_cli.workflows.settle import settled
from ilu_cli.workflows.spread import against_attack, against_training, against_unlearn

LENGTH = 256  # tokens of a row that is scored, in a batch of TOKENS
UNIT = 100_000  # tokens that the seconds of scoring are for


@dataclass(frozen=True)
class PricedJob:
    """One training, or if it `scores` only, what evaluation runs. `times`: how often the recipe has it.

    passes: of one step on one of so many devices. every: of each term that is not taken at every step. filled: terms
    whose rows the original is asked about once. sums: of gradients over all devices, in a step. splits: whether there
    is a key for micro-batches. unlearning: the recipe, whose budget and defences count. kept: that whose caches lie
    beside. not_counted: what holds more than is counted here. steps: None where the data decide. key: where the recipe
    says how. rows: of a step, of the stream that has the fewest; None: no matter. alone: why a sharded launch refuses
    it. lower: so many layers are all that it needs, with `train.loaded: needed`; None: it needs all. together: terms
    whose rows may be run as one.
    """

    name: str
    train: TrainSpec
    passes: Callable[[TrainSpec, int], list[Passing]]
    steps: int | None
    key: str = "train"
    lora: LoraSpec | None = None
    scores: bool = False
    times: int = 1
    every: dict[str, int] = field(default_factory=dict)
    filled: frozenset[str] = frozenset()
    sums: int = 1
    splits: bool = True
    unlearning: UnlearnRecipe | None = None
    kept: UnlearnRecipe | None = None
    not_counted: tuple[str, ...] = ()
    rows: int | None = None
    alone: str = ""
    lower: int | None = None
    together: frozenset[str] = frozenset()

    def joined(self, train: TrainSpec, passes: list[Passing]) -> list[Passing]:
        """Its passes as they are run: those of terms whose rows are run together as one."""
        return joined(passes, self.together if train.together and train.packing else ())


def unlearning(recipe: UnlearnRecipe, model: Any, name: str = "unlearn", times: int = 1) -> PricedJob:
    """The training of an unlearning recipe, with what it leaves to the model filled in."""
    recipe = settled(recipe, model)
    shapes = Shapes.full(recipe)
    needs = {"forget": registry.objective[recipe.objective.name].declared.needs}
    if recipe.retain:
        needs["retain"] = registry.retain_term[recipe.retain.name].declared.needs
    filled = {t for t, n in needs.items() if any(x.startswith("reference.") and x != "reference.norm" for x in n)}
    every = {f"{reg.name}[{d.name}]": reg.every for reg in recipe.regularizers for d in reg.env}
    more = unknown(recipe)
    more += [r.name for r in recipe.regularizers if r.name != "irm" or r.params().get("variant") != "logit"]

    def passes(train: TrainSpec, world: int) -> list[Passing]:
        return passes_of(recipe.model_copy(update={"train": train}), shapes, world)

    return PricedJob(
        name, recipe.train, passes, recipe.train.steps, lora=recipe.lora, times=times, every=every,
        filled=frozenset(filled), sums=1 + len(recipe.regularizers), unlearning=recipe, kept=recipe,
        not_counted=tuple(more), rows=_fewest(recipe), alone=_alone(against_unlearn(recipe)), lower=_lower(recipe),
        together=run_together(recipe),
    )  # fmt: skip


def healing(recipe: UnlearnRecipe, model: Any, name: str = "unlearn", times: int = 1) -> Iterator[PricedJob]:
    """The steps after it that heal, if the recipe has some."""
    recipe = settled(recipe, model)
    spec, h = recipe.train.healing, recipe.train.heal
    if spec is None or h is None:
        return

    def passes(train: TrainSpec, world: int) -> list[Passing]:
        return [healing_pass(Shape.full(h, h.batch), train, world)]

    alone = _alone(against_unlearn(recipe))
    yield PricedJob(
        f"{name}, healing", spec, passes, spec.steps, lora=recipe.lora, times=times, filled=frozenset(["heal"]),
        rows=h.batch, alone=alone, kept=recipe,
    )  # fmt: skip


def _fewest(recipe: UnlearnRecipe) -> int:
    """The rows of a step of the smallest stream; of one that is read in halves, those of a half."""
    halved = {r.env[0].name for r in recipe.regularizers if r.params().get("estimator") == "cross_halves"}
    penalties = [r.batch // (2 if any(d.name in halved for d in r.env) else 1) for r in recipe.regularizers]
    return min([recipe.forget.batch, *([recipe.retain.batch] if recipe.retain else []), *penalties])


def _alone(against: Iterator[tuple[str, str]]) -> str:
    return "; ".join(f"{key}: {what}" for key, what in against)


def _lower(recipe: UnlearnRecipe) -> int | None:
    """The layers that `train.loaded: needed` would load, if the recipe may have it."""
    read = layers_of(recipe.objective)
    asked = recipe.model_copy(update={"train": recipe.train.model_copy(update={"loaded": "needed"})})
    return max(read) + 1 if read and not list(loaded_problems(asked)) else None


def attacking(recipe: AttackRecipe, name: str = "attack", times: int = 1) -> PricedJob:
    """The training of an attack; of one that trains nothing, its scoring."""
    attack, keys = recipe.attack, recipe.attack.params()
    if registry.attack[attack.name].declared.access != "training":
        return replace(scoring(recipe.eval, name, times), alone=_alone(against_attack(recipe)))
    spec = TrainSpec(
        accumulation=keys.get("accumulation", 1), precision=keys.get("precision", "auto"), params=keys.get("weights")
    )
    if isinstance(attack, TrainingAttack):
        spec = attack.stepped(spec)
    shapes = {"attack": Shape.full(Form(max_length=keys["max_length"]), keys["batch"])}
    if isinstance(attack, TrainingAttack) and attack.mix:
        shapes["attack.mix"] = Shape.full(attack.mix, attack.mix.batch)

    def passes(train: TrainSpec, world: int) -> list[Passing]:
        return [Passing.of(key, shape, world * train.accumulation) for key, shape in shapes.items()]

    return PricedJob(
        name, spec, passes, _steps(attack), key="attack", lora=keys.get("lora"), times=times,
        splits="accumulation" in keys, alone=_alone(against_training(spec, "attack")),
        rows=min(shape.batch for shape in shapes.values()),
        together=frozenset(shapes if len(shapes) > 1 else ()),
    )  # fmt: skip


def _steps(attack: Component) -> int | None:
    """The steps of an attack, if its keys alone decide; a plateau may end it before."""
    keys, first = attack.params(), attack.first if isinstance(attack, TrainingAttack) else 0
    if keys.get("steps"):
        return int(keys["steps"]) + first
    if keys.get("k"):
        return int(keys.get("epochs", 1)) * -(-int(keys["k"]) // int(keys["batch"])) + first
    return None


def scoring(spec: EvalSpec, name: str = "eval", times: int = 1) -> PricedJob:
    """Scoring of rows by an evaluation, split over devices: for each `UNIT` of tokens."""
    precision: Precision = spec.precision

    def passes(train: TrainSpec, world: int) -> list[Passing]:
        return [Passing("scoring", TOKENS // LENGTH, LENGTH, TOKENS)]

    return PricedJob(name, TrainSpec(precision=precision), passes, None, scores=True, times=times)


def jobs_of(name: str, command: str, recipe: Any, model: Any) -> Iterator[PricedJob]:
    """What a recipe asks for."""
    if isinstance(recipe, UnlearnRecipe):
        yield unlearning(recipe, model)
        yield from healing(recipe, model)
    elif isinstance(recipe, AttackRecipe):
        yield attacking(recipe)
    elif command == "eval":
        yield scoring(recipe.eval)
    else:
        yield from _many(name, command, model)


def _many(name: str, command: str, model: Any) -> Iterator[PricedJob]:
    """Each method of a pipeline, and each attack of a suite; what differs in a value alone is one, so many times."""
    from ilu_cli.recipe.expand import load_pipeline, load_suite

    models = seeds = 1
    if command == "suite":
        variants = load_suite(name)[1]
    else:
        pipeline = load_pipeline(name, [])
        variants, seeds = pipeline.variants, len(pipeline.recipe.seeds)
        models = len(pipeline.methods) + 1  # the original is attacked too
        for method in pipeline.methods:
            yield unlearning(method.recipe, model, method.name, seeds)
            yield from healing(method.recipe, model, method.name, seeds)
    rows = [v.attack for v in variants]
    for attack in dict.fromkeys(rows):
        recipe = next(v.recipe for v in variants if v.attack == attack)
        yield attacking(recipe, attack, rows.count(attack) * models * seeds)
