"""Whether a job fits on some devices, with which keys and by which launch, and how long it takes at the least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ilu_cli.models.by_weight import merges
from ilu_cli.models.dtypes import DTYPES, rounds
from ilu_cli.models.load import add_adapter, empty_model, trained_params
from ilu_cli.models.names import first_place
from ilu_cli.models.traced import Mode, Trace
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.specs import TrainSpec
from ilu_cli.workflows.estimate import TrainingPrice
from ilu_cli.workflows.fit.choices import Placement, choices
from ilu_cli.workflows.fit.devices import GB, Device, Fleet
from ilu_cli.workflows.fit.jobs import UNIT, PricedJob
from ilu_cli.workflows.fit.roofline import (
    Head,
    flops_of,
    replicated,
    seconds_of,
    sharded,
    stepping,
    work_of,
)
from ilu_cli.workflows.kept import at_most, beside, beside_steps, healed
from ilu_cli.workflows.main_memory import main_memory
from ilu_cli.workflows.moments import FLOAT, NOTHING, Ground, Moment, OnDisk
from ilu_cli.workflows.passes import Passing, Shapes

SPARE = 0.05  # of a device's memory that is left to its allocator
SHARD = 5 * 10**9  # bytes of a file, at most, that the hub's models are usually stored in
MAIN = 25 * GB  # bytes/s at which main memory serves one device's share of the optimiser
Traces = dict[tuple[Mode, int, int], Trace]


@dataclass(frozen=True)
class FitAnswer:
    """A job by one launch: bytes of one device at the dearest moment, and seconds at the least.

    A sharded launch has no more processes than there are rows in each micro-batch, unless it fits only on more; some
    then run rows that count for nothing.

    keys: what is set beside the recipe so that it fits. unset: bytes without them. seconds: of the whole job, of
    scoring for each `UNIT` of tokens; None where the data decide. flops: of a step, over all devices. main: what a
    node of accelerators holds in main memory at its dearest moment; None: the devices are CPUs.
    """

    launch: Placement
    keys: tuple[str, ...]
    moment: Moment
    unset: int
    fits: bool
    step: float
    seconds: float | None
    flops: int
    main: Moment | None = None


def launches(fleet: Fleet) -> Iterator[Placement]:
    """The launches that some devices allow, those of fewer devices first."""
    d = fleet.device
    yield Placement("one-gpu" if d.accelerator else "one-process", Fleet(d, 1))
    if fleet.count > 1 and not d.accelerator:
        yield Placement("two-cpus-sharded", fleet, shards=True)
    elif fleet.count > 1:
        node = Fleet(d, fleet.count)
        yield Placement("eight-gpus", node)
        yield Placement("eight-gpus-sharded", node, shards=True)
        yield Placement("eight-gpus-sharded-offload", node, shards=True, away=True)
    if fleet.nodes > 1:
        yield Placement("two-nodes-sharded", fleet, shards=True)


def placed(job: PricedJob, fleet: Fleet) -> tuple[list[Placement], dict[str, str]]:
    """The launches that take a job; and why others refuse it, by name."""
    found, refused = list[Placement](), dict[str, str]()
    for launch in launches(fleet):
        if launch.shards and job.alone:
            refused[launch.name] = f"{job.alone}, and each process has a part of the model"
        else:
            found.append(launch)
    return found, refused


def busy(launch: Placement, rows: int | None) -> Placement:
    """A sharded launch with no more processes than there are rows, if those are two and more: all have work to do."""
    nodes, count = launch.fleet.nodes, launch.fleet.count
    few = count if rows is None or not launch.shards else min(count, rows // nodes)
    return replace(launch, fleet=launch.fleet.of(nodes, few)) if few * nodes > 1 else launch


class Fitting:
    """Answers about one job of one model, whose traces are kept."""

    def __init__(self, job: PricedJob, place: Path, seed: int) -> None:
        self.job, self.place, self.seed = job, place, seed
        self.known: dict[int | None, tuple[Any, list[nn.Parameter], Traces]] = {}

    @property
    def trained(self) -> int:
        """How many weights are trained."""
        return sum(p.numel() for p in self._model(self.job.train)[1])

    def _model(self, train: TrainSpec) -> tuple[Any, list[nn.Parameter], Traces]:
        """The model without its weights, as much of it as is loaded; what is trained; and traces."""
        job, depth = self.job, self.job.lower if train.loaded == "needed" else None
        if depth not in self.known:
            model = empty_model(self.place, depth)
            if job.scores:
                model.requires_grad_(False)
            if job.lora:
                add_adapter(model, job.lora, self.seed)
            key = f"{job.key}.params"
            named = {} if job.scores else trained_params(model, job.train.params, job.lora is not None, key)
            self.known[depth] = model, list(named.values()), Traces()
        return self.known[depth]

    def by(self, launch: Placement) -> FitAnswer:
        """The first of the choices that fits, or the smallest."""
        few = self._by(busy(launch, self.job.rows))
        return few if few.fits or few.launch == launch else self._by(launch)

    def _by(self, launch: Placement) -> FitAnswer:
        unset, least, found = 0, None, None
        for keys, train in choices(self.job, launch):
            if self._refused(train, launch):
                continue
            price, passes = self._priced(train, launch), self.job.passes(train, launch.fleet.all)
            moment = dearest(self._moments(price, self.job.joined(train, passes), launch))
            unset = unset or moment.bytes
            if least is None or moment.bytes < least[0].bytes:
                least = moment, keys, train, price, passes
            if moment.bytes <= launch.fleet.device.memory * (1 - SPARE):
                found = moment, keys, train, price, passes
                break
        best = found or least
        assert best is not None
        moment, keys, train, price, passes = best
        step = self._step(train, price, self.job.joined(train, passes), launch)
        per = UNIT / (passes[0].rows * passes[0].length) / launch.fleet.all if self.job.scores else self.job.steps
        seconds = None if per is None else per * step + self._filling(train, price, passes, launch)
        flops = sum(self._flops(p, price) for p in passes) * train.accumulation * launch.fleet.all
        main = dearest(self._main(price, launch)) if launch.fleet.device.accelerator else None
        return FitAnswer(launch, keys, moment, unset, found is not None, step, seconds, flops, main)

    def _refused(self, train: TrainSpec, launch: Placement) -> bool:
        """Whether a run would refuse to keep weights in fewer bits, which the recipe does not ask for."""
        if train.memory.frozen == self.job.train.memory.frozen:
            return False
        asked = "fp32" if self.job.key == "attack" else train.save_dtype
        stored = self._model(train)[0].dtype
        return rounds(
            train.memory, stored, DTYPES.get(asked, stored), adapter=self.job.lora is not None, spread=launch.shards
        )

    def _priced(self, train: TrainSpec, launch: Placement) -> TrainingPrice:
        d = launch.fleet.device
        ground = Ground(d.memory if d.accelerator else None, launch.fleet.all if launch.shards else 1, launch.away)
        model, params, traces = self._model(train)
        recipe = self._recipe(train)
        held = beside(recipe, [p.shape for p in params]) if recipe else NOTHING
        if recipe is None and self.job.kept:
            held = healed(beside(self.job.kept, [p.shape for p in params]))
        return TrainingPrice(model, params, train, self._kept(train, launch), ground, traces, held)

    def _recipe(self, train: TrainSpec) -> UnlearnRecipe | None:
        recipe = self.job.unlearning
        return recipe and recipe.model_copy(update={"train": train})

    def _kept(self, train: TrainSpec, launch: Placement) -> int:
        """Bytes that each process keeps in main memory of the rows."""
        recipe, (model, params, _) = self.job.kept, self._model(train)
        if recipe is None:
            return 0
        own = {id(p) for p in params}
        first = first_place(model, [name for name, p in model.named_parameters() if id(p) in own])
        return at_most(recipe, model.config, first, launch.fleet.all, sharded=launch.shards)

    def _moments(self, price: TrainingPrice, passes: list[Passing], launch: Placement) -> list[Moment]:
        if self.job.scores:
            return self._scored(price, passes)
        recipe = self._recipe(price.spec)
        model, params, _ = self._model(price.spec)
        shapes, world = Shapes.full(recipe) if recipe else None, launch.fleet.all
        more = beside_steps(recipe, shapes, world, model, params, sharded=launch.shards) if recipe and shapes else []
        return [*price.beside(stored_of(price)), *price.steps([*passes, *more])]

    def _main(self, price: TrainingPrice, launch: Placement) -> list[Moment]:
        found = main_memory(price, launch.fleet.count, self._kept(price.spec, launch), stored_of(price))
        return found[:1] if self.job.scores else found

    def _scored(self, price: TrainingPrice, passes: list[Passing]) -> list[Moment]:
        """What scoring holds: weights, one layer's inside, and a chunk of logits."""
        trace = price.trace(passes[0])
        inside = max(c.forward for c in trace.layers) + trace.around + trace.after
        return [Moment("scoring", **price.base, activations=inside, logits=price.chunk(passes[0]))]

    def _head(self, price: TrainingPrice) -> Head:
        return Head(price.words, price.width, price.head > 0)

    def _flops(self, p: Passing, price: TrainingPrice) -> int:
        every = self.job.every.get(p.term, 1)
        return flops_of(work_of(p, price.trace(p), self._head(price), backward=not self.job.scores)) // every

    def _pass(self, p: Passing, price: TrainingPrice, d: Device, *, backward: bool) -> float:
        work = work_of(p, price.trace(p), self._head(price), backward=backward)
        return seconds_of(work, d, half=price.mode.half) / self.job.every.get(p.term, 1)

    def _step(self, train: TrainSpec, price: TrainingPrice, passes: list[Passing], launch: Placement) -> float:
        """Seconds of a step: of its micro-batches, the sums, and the optimiser. Gathering goes on beside the work."""
        fleet, d, job = launch.fleet, launch.fleet.device, self.job
        runs = train.accumulation
        work = sum(self._pass(p, price, d, backward=not job.scores) for p in passes) * runs
        if job.scores:
            return max(work, self._gathering(price, passes, launch)) if launch.shards else work
        trained = price.all // FLOAT
        if not launch.shards:
            step = stepping(trained, train.optimizer, d, len(passes) * runs)
            away = 12 * trained / d.host + 28 * trained / MAIN if train.memory.offload else 0.0
            return work + step + away + replicated(trained, job.sums, fleet)
        part = trained // fleet.all
        gathered = [self._weights(price, p) for p in passes]
        moved = sharded(gathered, trained, runs, fleet)
        if launch.away:
            moved += runs * (2 * sum(gathered) + FLOAT * trained) / fleet.all / d.host
            return max(work, moved) + 28 * part / MAIN
        return max(work, moved) + stepping(part, train.optimizer, d, len(passes) * runs)

    def _gathering(self, price: TrainingPrice, passes: list[Passing], launch: Placement) -> float:
        """Seconds of gathering the weights once for each pass."""
        n, moved = launch.fleet.all, sum(self._weights(price, p) for p in passes)
        return (n - 1) / n * moved / launch.fleet.link + launch.away * moved / n / launch.fleet.device.host

    def _weights(self, price: TrainingPrice, p: Passing) -> float:
        """Bytes of the weights that a pass gathers."""
        layers = price.layers if p.deepest is None else price.layers[: p.deepest + 1]
        return float(sum(layers) + price.around)

    def _filling(self, train: TrainSpec, price: TrainingPrice, passes: list[Passing], launch: Placement) -> float:
        """Seconds of asking the original about each row once, every row of every step taken for another one."""
        asked = [p for p in passes if p.term in self.job.filled]
        once = sum(self._pass(p, price, launch.fleet.device, backward=False) for p in asked)
        return once * train.accumulation * (self.job.steps or 0)


def dearest(moments: list[Moment]) -> Moment:
    """The one at which most is held."""
    return max(moments, key=lambda m: m.bytes)


def stored_of(price: TrainingPrice) -> OnDisk:
    """How the weights of a model lie on the disk whose configuration alone is known."""
    size: int = price.model.dtype.itemsize
    return OnDisk(min(size * price.total, SHARD), size, by_weight=not merges(price.model))


def best(answers: list[FitAnswer]) -> FitAnswer | None:
    """Of those that fit the one that takes the fewest seconds of devices, and then the fewest seconds."""
    fitting = [a for a in answers if a.fits]
    return min(fitting, key=lambda a: (round(a.step * a.launch.fleet.all, 6), a.step), default=None)
