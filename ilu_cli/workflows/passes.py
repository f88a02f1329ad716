"""What one step runs on one device: a pass for each term, with the rows and tokens of its largest micro-batch."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ilu_cli import registry
from ilu_cli.declarations import BY_HEAD, CHUNKED
from ilu_cli.engine.reference import CACHE_BATCH
from ilu_cli.engine.stream import TrainStream
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.specs import Component, Form, TrainSpec

if TYPE_CHECKING:
    from ilu_cli.workflows.training import Streams

DEFENDED, BUDGET = "forget", "budget"  # the term whose gradient defences take, and what is run to measure a budget
ASKED = "asking the original"  # what is run of the rows before the first step
AT_LAYERS = {"reference.hidden", "reference.states", "reference.mlp"}


@dataclass(frozen=True)
class Shape:
    """The largest rows of a stream: sequences of a whole step, tokens of each, and how many of those are scored.

    `graphs`: 2 where beside each row another one is read, of what should be said instead. `rows`: how many different
    ones there are; as far as matters, where the data are not here.
    """

    batch: int
    length: int
    targets: int
    graphs: int = 1
    rows: int = CACHE_BATCH

    @classmethod
    def of(cls, stream: TrainStream) -> Shape:
        """That of encoded data."""
        targets = max((e.targets for c in stream.read for e in c.items), default=0)
        rows = sum(len(c.items) for c in stream.corpora)
        return cls(stream.batch, max(c.longest for c in stream.read), targets, 2 if stream.chosen else 1, rows)

    @classmethod
    def full(cls, form: Form, batch: int, graphs: int = 1) -> Shape:
        """That of rows that are as long as a recipe lets them be, where the data are not here."""
        return cls(batch, form.max_length, form.max_length - 1, graphs)

    def seen(self, steps: int) -> int:
        """How many rows of so many steps the original is asked about at a time."""
        return min(CACHE_BATCH, self.rows, steps * self.batch)


@dataclass(frozen=True)
class Passing:
    """A micro-batch of a term on one device: `rows` of `length` tokens, of which `scored` meet the LM head.

    deepest: the last layer that is run; None: all of them, and the head. chunks: the head's logits exist in chunks with
    all words, beside those of a teacher, and not in tiles. graphs: so many such batches are kept at a time.
    """

    term: str
    rows: int
    length: int
    scored: int
    deepest: int | None = None
    chunks: bool = False
    graphs: int = 1

    @classmethod
    def of(cls, term: str, shape: Shape, parts: int, deepest: int | None = None, *, chunks: bool = False) -> Passing:
        """Of a step that falls into so many `parts`, over processes and micro-batches."""
        rows = -(-shape.batch // parts)
        return cls(term, rows, shape.length, rows * shape.targets, deepest, chunks, shape.graphs)


@dataclass(frozen=True)
class Shapes:
    """Those of all streams of an unlearning recipe."""

    forget: Shape
    retain: Shape | None
    environments: list[Shape]
    budget: Shape | None = None
    heal: Shape | None = None

    @classmethod
    def of(cls, streams: Streams) -> Shapes:
        """Those of encoded data."""
        retain, budget, heal = (
            Shape.of(s.stream) if s else None for s in (streams.retain, streams.budget, streams.heal)
        )
        envs = [Shape.of(e.stream) for es in streams.environments for e in es]
        return cls(Shape.of(streams.forget.stream), retain, envs, budget, heal)

    @classmethod
    def full(cls, recipe: UnlearnRecipe) -> Shapes:
        """Those of rows of full length."""
        f, r, pairs = recipe.forget, recipe.retain, registry.objective[recipe.objective.name].declared.chosen
        longest = max(d.max_length or f.max_length for d in f.data)
        forget = Shape.full(Form(max_length=longest), f.batch, 2 if pairs else 1)
        envs = [Shape.full(reg, reg.batch) for reg in recipe.regularizers for _ in reg.env]
        b = recipe.train.budget
        budget = Shape.full(Form(max_length=b.max_length), b.rows) if b and b.kl else None
        h = recipe.train.heal
        heal = Shape.full(h, h.batch) if h else None
        return cls(forget, Shape.full(r, r.batch) if r else None, envs, budget, heal)


def layers_of(objective: Component) -> list[int]:
    """The layers whose hidden states an objective reads: its `layer`, or its `layers`."""
    keys = objective.params()
    return [n for n in [keys.get("layer"), *(keys.get("layers") or ())] if n is not None]


def passes_of(recipe: UnlearnRecipe, shapes: Shapes, world: int) -> list[Passing]:
    """What one of `world` processes runs for each term, in the order of a step: penalties, forget term, retain term."""
    return list(_passes(recipe, shapes, world * recipe.train.accumulation))


def joined(passes: list[Passing], names: Container[str]) -> list[Passing]:
    """The same, where those of these terms are one, after the others; a single one stays as it is.

    Its rows have the most tokens of any, and there are as many as have all the tokens: packed, they have no padding.
    """
    parts = [p for p in passes if p.term in names]
    if len(parts) < 2:
        return passes
    length = max(p.length for p in parts)
    rows = -(-sum(p.rows * p.length for p in parts) // length)
    scored, chunks = sum(p.scored for p in parts), any(p.chunks for p in parts)
    one = Passing(" + ".join(p.term for p in parts), rows, length, scored, parts[0].deepest, chunks)
    return [*(p for p in passes if p not in parts), one]


def run_together(recipe: UnlearnRecipe) -> frozenset[str]:
    """The terms of a step that a trainer runs as one, if the model's rows are packed (`Trainer.joins`)."""
    objective, t, r = registry.objective[recipe.objective.name].declared, recipe.train, recipe.retain
    if r is None or recipe.defences or not (t.together and t.packing) or objective.chosen:
        return frozenset()
    shares = isinstance(r.weight, str) or any(isinstance(reg.weight, str) for reg in recipe.regularizers)
    same = objective.reads is not None and objective.reads == registry.retain_term[r.name].declared.reads
    return frozenset({DEFENDED, "retain"} if same and not shares else ())


def healing_pass(shape: Shape, train: TrainSpec, world: int) -> Passing:
    """What one of `world` processes runs in a step of healing."""
    return Passing.of("heal", shape, world * train.accumulation, chunks=True)


def budget_of(recipe: UnlearnRecipe, shapes: Shapes, world: int) -> list[Passing]:
    """What one of `world` processes runs forward after each step to measure a budget, if there is one of text."""
    parts = world * recipe.train.accumulation
    return [Passing.of(BUDGET, shapes.budget, parts, chunks=True)] if shapes.budget else []


def read_of(recipe: UnlearnRecipe) -> Iterator[tuple[str, frozenset[Any]]]:
    """What is read of each stream's rows."""
    yield "forget", registry.objective[recipe.objective.name].declared.needs
    if recipe.retain:
        yield "retain", registry.retain_term[recipe.retain.name].declared.needs
    if recipe.train.budget and recipe.train.budget.kl:
        yield "budget", registry.retain_term["kl"].declared.needs
    if recipe.train.heal:
        yield "heal", registry.retain_term["kl"].declared.needs


def asked_of(recipe: UnlearnRecipe, shapes: Shapes, first: int) -> list[Passing]:
    """What a process runs of the rows before the first step, at most `CACHE_BATCH` at a time, without gradients.

    `first`: the lowest layer that is trained; what lies below it is run for all rows. `scored` is 0 where the LM head
    is not run.
    """
    t, heal, layers = recipe.train, recipe.train.heal, layers_of(recipe.objective)
    steps = {"forget": t.steps, "retain": t.steps, "budget": 1, "heal": heal.steps if heal else 0}
    streams = {"forget": shapes.forget, "retain": shapes.retain, "budget": shapes.budget, "heal": shapes.heal}
    found = list[Passing]()
    for name, needs in read_of(recipe):
        if s := streams[name]:
            found += _asked(needs, s, s.seen(steps[name]), max(layers, default=None))
            if layers and "reference.norm" in needs:  # of rows that may come again
                found.append(Passing(ASKED, CACHE_BATCH, (shapes.retain or s).length, 0, max(layers)))
    if first > 0 and t.prefix_gb:
        trained = [s for s in (shapes.forget, shapes.retain, *shapes.environments) if s]
        rows = min(CACHE_BATCH, sum(s.seen(t.steps) for s in trained))
        found.append(Passing(ASKED, rows, max(s.length for s in trained), 0, first - 1))
    return found


def _asked(needs: frozenset[Any], s: Shape, rows: int, deepest: int | None) -> Iterator[Passing]:
    """What the original is asked of one stream, `rows` at a time."""
    if "reference.logps" in needs:
        yield Passing(ASKED, rows, s.length, rows * s.targets)
    if "reference.final" in needs:
        yield Passing(ASKED, rows, s.length, 0)
    if needs & AT_LAYERS:
        yield Passing(ASKED, rows, s.length, 0, deepest)


def _passes(recipe: UnlearnRecipe, shapes: Shapes, parts: int) -> Iterator[Passing]:
    names = [f"{reg.name}[{d.name}]" for reg in recipe.regularizers for d in reg.env]
    for name, shape in zip(names, shapes.environments):
        yield Passing.of(name, shape, parts)
    terms = [(DEFENDED, shapes.forget, registry.objective[recipe.objective.name].declared.needs)]
    if recipe.retain and shapes.retain:
        terms.append(("retain", shapes.retain, registry.retain_term[recipe.retain.name].declared.needs))
    for name, shape, needs in terms:
        deepest = None if needs & BY_HEAD else max(layers_of(recipe.objective))
        yield Passing.of(name, shape, parts, deepest, chunks=bool(needs & CHUNKED))
