"""From an unlearning recipe to the trainer: its data as streams, its ideas as terms, penalties and defences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, dtype

from ilu_cli import registry
from ilu_cli.declarations import FLOAT
from ilu_cli.defences import Defence
from ilu_cli.engine.accel import backend
from ilu_cli.engine.budget import AnyBudget, Budget, UtilityBudget
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.loop import Penalty, Trainer
from ilu_cli.engine.prefix import Unpadded, begin, within
from ilu_cli.engine.reference import fill, median_norm
from ilu_cli.engine.scoring import Scorer
from ilu_cli.errors import UsageError
from ilu_cli.metrics.figure import lost
from ilu_cli.models.load import empty_model, trained_params
from ilu_cli.models.lower import check_lower, check_stored_as
from ilu_cli.models.names import first_place
from ilu_cli.models.parts import Parts, parts_of
from ilu_cli.models.subject import Subject
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.specs import AUTO, BudgetSpec, Component, Form, TrainSpec, number_of
from ilu_cli.runs.results import own_rows
from ilu_cli.workflows.alternatives import said_instead
from ilu_cli.workflows.evaluate import find_benchmark
from ilu_cli.workflows.kept import Shown, of_original
from ilu_cli.workflows.passes import layers_of
from ilu_cli.workflows.plan import StreamPlan, add_chosen, plan_stream


@dataclass(frozen=True)
class Streams:
    """What a recipe reads: forget and retain data, each regulariser's environments, texts for a budget and healing."""

    forget: StreamPlan
    retain: StreamPlan | None
    environments: list[list[StreamPlan]]
    budget: StreamPlan | None
    heal: StreamPlan | None

    @classmethod
    def of(cls, recipe: UnlearnRecipe, tokenizer: Any) -> Streams:
        """Load and encode it."""
        f, r, seed = recipe.forget, recipe.retain, recipe.seed
        forget = plan_stream("forget", f.data, f.batch, f, seed, tokenizer)
        if kind := registry.objective[recipe.objective.name].declared.chosen:
            add_chosen(forget, kind, said_instead(recipe, kind, forget.datasets), tokenizer)
        retain = plan_stream("retain", r.data, r.batch, r, seed, tokenizer) if r else None
        environments = [
            [plan_stream(d.name, [d], reg.batch, reg, seed, tokenizer) for d in reg.env] for reg in recipe.regularizers
        ]
        b = recipe.train.budget
        form = Form(max_length=b.max_length) if b and b.kl else None
        budget = plan_stream("budget", b.data, b.rows, form, seed, tokenizer) if b and form else None
        h = recipe.train.heal
        heal = plan_stream("heal", h.data, h.batch, h, seed, tokenizer) if h else None
        return cls(forget, retain, environments, budget, heal)

    def __iter__(self) -> Iterator[StreamPlan]:
        yield self.forget
        yield from [self.retain] if self.retain else []
        yield from (env for envs in self.environments for env in envs)
        yield from [s for s in (self.budget, self.heal) if s]


def renewed(scorer: Scorer, recipe: UnlearnRecipe) -> Scorer:
    """After an adapter was put in or matrices are kept in fewer bits; without either its parts are what they were."""
    same = recipe.lora is None and recipe.train.memory == MemorySpec()
    return replace(scorer, parts=scorer.parts if same else parts_of(scorer.model), known={})


def build_trainer(recipe: UnlearnRecipe, streams: Streams, scorer: Scorer, digest: str | None = None) -> Trainer:
    """Put objective, retain term and regularisers on the scorer's model, with their reference caches filled.

    `digest` tells the model: by it what is computed of it before the first step is kept on disk.
    An objective that begins elsewhere has changed the weights then.
    """
    model = scorer.model
    params = trained_params(model, recipe.train.params, recipe.lora is not None)
    defences = defences_of(recipe)
    parts, source = _begun(recipe, streams, scorer.parts, first_place(model, params), digest)
    terms = _terms(recipe, streams, parts, source)
    penalties = [
        Penalty(
            reg.name,
            [env.stream for env in envs],
            _bound(registry.regularizer[reg.name].obj, reg),
            reg.weight_at,
            reg.env_weights,
            reg.until if reg.schedule == "step" else None,
            reg.every,
            isinstance(reg.weight, str),
        )
        for reg, envs in zip(recipe.regularizers, streams.environments)
    ]
    for defence in defences:
        terms[0].values = defence.values(terms[0].values)
    terms[0].defended = True
    trainer = Trainer(parts, params, terms, penalties, recipe.train, recipe.seed, backend(), defences)
    if spec := recipe.train.budget:
        trainer.budget = _budget(spec, streams.budget, recipe.train, trainer, scorer)
    if start := registry.objective[recipe.objective.name].declared.start:
        start(recipe.objective, trainer.grads)
    return trainer


def _budget(spec: BudgetSpec, text: StreamPlan | None, train: TrainSpec, trainer: Trainer, scorer: Scorer) -> AnyBudget:
    """Measured from the weights that are in place now."""
    if text is not None and spec.kl is not None:
        return Budget.of(text.stream, spec.kl, trainer.grads, (train.steps, train.rate) if train.lr == AUTO else None)
    name = spec.benchmark or ""
    bench = find_benchmark(name, None, {})
    items = bench.first(spec.limit)

    def due(step: int) -> bool:
        return step % spec.every == 0 or step in (*train.points, train.steps)

    def measure() -> float:
        return bench.summarise(own_rows(bench.score(scorer, items)))[0]

    return UtilityBudget(name, measure, lambda a, b: lost(bench.kind, a, b, up=bench.up), spec.loss, due)


def defences_of(recipe: UnlearnRecipe) -> list[Defence]:
    """The defences of a recipe, in its order."""
    return [registry.defence[d.name].obj(**d.params()) for d in recipe.defences]


def _bound(function: Callable[..., Any], spec: Component) -> Callable[[Any], Any]:
    """The registered function with its recipe keys filled in."""
    return lambda view: function(view, **spec.params())


def _begun(
    recipe: UnlearnRecipe, streams: Streams, parts: Parts, first: int, digest: str | None
) -> tuple[Parts, list[Any] | None]:
    """The model with what lies below its `first` trained layer computed, and what tells it, as for `kept`."""
    t = recipe.train
    source = [digest, t.memory.frozen] if digest else None
    if first <= 0 or backend().mesh is not None:
        return parts, source
    found = begin(parts, first, prefix_rows(recipe, streams, parts.width), backend(), t.precision, source)
    return found, source and [*source, first, t.prefix_gb]


def read_steps(recipe: UnlearnRecipe, streams: Streams) -> int:
    """How many steps' rows of the forget data are read, by defences too."""
    return max([recipe.train.steps, *(d.steps(streams.forget.stream) for d in defences_of(recipe))])


def prefix_rows(recipe: UnlearnRecipe, streams: Streams, width: int) -> Unpadded:
    """The rows of which the layers below the first trained one are run beforehand.

    They are those of streams of which a process does not run more rows beforehand than in all steps, shortest first, as
    many as `train.prefix_gb` has room for.
    """
    steps, rows = recipe.train.steps, list[tuple[int, ...]]()
    wanted = [(streams.forget.stream, read_steps(recipe, streams), 1)]
    wanted += [(streams.retain.stream, steps, 1)] if streams.retain else []
    for reg, envs in zip(recipe.regularizers, streams.environments):
        wanted += [(env.stream, steps, reg.every) for env in envs]
    for stream, until, every in wanted if recipe.train.prefix_gb else []:
        keys = stream.visited(until, every)
        if len(keys) * backend().world <= -(-until // every) * stream.batch:
            rows += [tuple(s.item(k).ids) for s in (stream, stream.chosen) if s for k in keys]
    return within(rows, width, 1e9 * recipe.train.prefix_gb)


def cache_bytes(recipe: UnlearnRecipe, streams: Streams, config: Any, first: int) -> int:
    """Bytes of what is computed before the first step and kept: of the original, and of layers below the `first`."""
    steps = {"forget": read_steps(recipe, streams), "retain": recipe.train.steps, "budget": 1}
    steps |= {"heal": recipe.train.heal.steps} if recipe.train.heal else {}
    plans = {"forget": streams.forget, "retain": streams.retain, "budget": streams.budget, "heal": streams.heal}
    shown = dict[str, Shown]()
    for name, s in plans.items():
        if s is not None:
            rows = s.stream.visited(steps[name])
            shown[name] = Shown.of(e.item(k) for e in (s.stream, s.stream.chosen) if e for k in rows)
    begins = first > 0 and backend().mesh is None  # a sharded model runs its lower layers each time
    begun = sum(map(len, prefix_rows(recipe, streams, int(config.hidden_size)))) if begins else 0
    return of_original(recipe, config, shown) + FLOAT * int(config.hidden_size) * begun


def lower_of(recipe: UnlearnRecipe, subject: Subject, whole: Any, trained: Mapping[str, Tensor], stored: dtype) -> Any:
    """The lower layers, without their weights, if they are all that is loaded; else the whole model as it is.

    `stored` is the type that the checkpoint is written in.

    Raises:
        UsageError: if they cannot be loaded, trained and saved by themselves.
    """
    if recipe.train.loaded == "all":
        return whole
    if subject.base is not None:
        raise UsageError("train.loaded: needed is for a whole model, and this is an adapter", hint="leave it out")
    lower = empty_model(subject.folder, max(layers_of(recipe.objective)) + 1)
    check_lower(whole, lower)
    names = {n for n, _ in lower.named_parameters()}
    if out := sorted(trained.keys() - names):
        raise UsageError(
            f"train.loaded: {out[0]} is trained, which lies above what the objective reads",
            hint="train only weights at or below its layers, or leave it out",
        )
    check_stored_as(trained, subject.folder, stored)
    return lower


def _terms(recipe: UnlearnRecipe, streams: Streams, parts: Parts, source: list[Any] | None) -> list[Term]:
    """Forget and retain term, with what the original says of their rows."""
    layer, layers = getattr(recipe.objective, "layer", None), layers_of(recipe.objective)
    steps, read = recipe.train.steps, read_steps(recipe, streams)
    calibration = (streams.retain or streams.forget).stream
    b, precision = backend(), recipe.train.precision

    def term(
        name: str, entry: registry.Entry[Any], spec: Component, data: StreamPlan, weight: float, steps: int
    ) -> Term:
        needs = entry.declared.needs
        cache = fill(data.stream, needs, layer, steps, parts, b, precision, layers, source)
        if "reference.norm" in needs and layer is not None:
            cache.norm = median_norm(calibration, layer, parts, b, precision, source)
        found = Term(
            name, data.stream, _bound(entry.obj, spec), entry.declared.per, weight, layer, cache, layers=layers
        )
        found.centre = streams.forget.stream if "centre" in needs else None
        found.reads = None if data.stream.chosen else entry.declared.reads
        return found

    objective, r = recipe.objective, recipe.retain
    found = [term("forget", registry.objective[objective.name], objective, streams.forget, 1.0, read)]
    if r and streams.retain:
        found.append(term("retain", registry.retain_term[r.name], r, streams.retain, number_of(r.weight), steps))
        found[-1].dual, found[-1].share = r.dual, isinstance(r.weight, str)
    return found
