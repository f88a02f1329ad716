"""The gradient of losses on the trained parameters: accumulated, set aside, summed over processes, taken elsewhere."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ilu_cli.data.encode import collate
from ilu_cli.engine.accel import Backend
from ilu_cli.engine.exact import exact
from ilu_cli.engine.head import wide
from ilu_cli.engine.joined import micro_batches
from ilu_cli.engine.packing import packed
from ilu_cli.engine.reference import ReferenceCache
from ilu_cli.engine.stream import RowKey, TrainStream
from ilu_cli.engine.view import View
from ilu_cli.models.parts import Parts
from ilu_cli.models.sharded import is_part, mine, summed, whole
from ilu_cli.recipe.dual import DualSpec
from ilu_cli.recipe.specs import TrainSpec

Vector = list[Tensor]
"""One tensor per trained parameter."""

Taken = list[Tensor | None]
"""The same with None for a parameter that has no gradient."""


@dataclass
class Term:
    """A loss over one stream: weight · Σ values(view) / divisor. `defended`: its gradient is taken by the defences.

    `dual` changes `weight` after each step. `share`: it is a share of the forget term's gradient, see
    `ilu_cli.engine.shares`. `centre`: the stream whose mean states a view tells. `reads`: the one output of the decoder
    that it reads, as `ilu_cli.declarations.Loss.reads`.
    """

    name: str
    stream: TrainStream
    values: Callable[[View], Tensor]
    per: str
    weight: float = 1.0
    layer: int | None = None
    cache: ReferenceCache = field(default_factory=ReferenceCache)
    defended: bool = False
    layers: Sequence[int] = ()
    dual: DualSpec | None = None
    share: bool = False
    centre: TrainStream | None = None
    reads: str | None = None

    @property
    def factor(self) -> float:
        """What its values are multiplied by where its gradient is taken."""
        return 1.0 if self.share else self.weight

    def joins(self, other: Term) -> bool:
        """Whether the rows of both may be run as one batch."""
        ours, theirs = ((t.reads, t.reads == "hidden" and t.layer, t.weight != 0, t.share) for t in (self, other))
        return ours == theirs and self.reads is not None and not self.share


def mean_nll(name: str, stream: TrainStream, weight: float = 1.0) -> Term:
    """Negative log-likelihood per scored token of a step."""
    return Term(name, stream, lambda view: view.nll, "token", weight, reads="final")


class Gradients:
    """The trained parameters with their gradients, at a step (counted from 0), of this process until `whole` or `sum`.

    Of a sharded parameter a process has some rows of the gradient, which are of all processes as soon as it is there.

    Whoever changes how a gradient is taken (defences, regularisers) holds this and nothing else of the loop.
    """

    def __init__(
        self, parts: Parts, params: dict[str, nn.Parameter], spec: TrainSpec, seed: int, backend: Backend
    ) -> None:
        self.parts = packed(parts) if spec.packing else parts
        self.named, self.spec, self.seed, self.backend = params, spec, seed, backend
        self.step = 0

    @property
    def batches(self) -> str:
        """How padded batches are run, for the record of a run: packed, or padded and why."""
        packing, why = self.parts.packing, self.parts.padded or "train.packing is off"
        return packing.told() if packing else f"padded: {why}"

    @property
    def params(self) -> list[nn.Parameter]:
        return list(self.named.values())

    def accumulate(self, term: Term, *, step: int | None = None, precision: str | None = None) -> Tensor:
        """Add this process's gradient of weight · Σ values / divisor; return its share of Σ values / divisor.

        Args:
            step: whose rows are read; None: those of the step at hand.
            precision: of the forward pass; None: as the recipe says.
        """
        return self.together([term], step=step, precision=precision)[0]

    def together(self, terms: Sequence[Term], *, step: int | None = None, precision: str | None = None) -> list[Tensor]:
        """The same of terms that join: their micro-batches are run as one, and there is one backward pass for all."""
        step = self.step if step is None else step
        divisors = [t.stream.divisor(step, t.per) for t in terms]
        totals = [torch.zeros((), dtype=torch.float64) for _ in terms]
        for each in micro_batches([self.views(t, step, precision) for t in terms]):
            with torch.set_grad_enabled(terms[0].weight != 0), self.backend.autocast(precision or self.spec.precision):
                asked = [(terms[n], view, divisors[n]) for n, view in each]
                found = whole(self.parts.decoder, functools.partial(_losses, asked))
            torch.autograd.backward([t.factor * x for (t, *_), x in zip(asked, found) if x.requires_grad])
            for (n, _), x in zip(each, found):
                totals[n] += exact(x.detach()).cpu()
        return totals

    def mean(self, term: Term, steps: int) -> Vector:
        """The mean of the gradients of the first `steps` steps, the same on all processes.

        Their rows are run together, as many as take no more tokens than a micro-batch of the longest rows, and each is
        divided as in its own step. Not so without `train.packing`, of a sharded model, whose processes must run equally
        many, and of a term that looks at its step as a whole.
        """
        alone = not self.spec.packing or self.backend.mesh is not None or term.centre is not None
        for step in range(steps) if alone else ():
            self.accumulate(term, step=step)
        for keys, divisors in () if alone else self._together(term, steps):
            view = self._view(term, keys, View)
            with self.backend.autocast(self.spec.precision):
                loss = loss_of(term, view, torch.tensor(divisors, device=self.backend.device))
            if loss.requires_grad:
                (term.weight * loss).backward()
        return [g.div_(steps) for g in self.whole()]

    def _together(self, term: Term, steps: int) -> Iterator[tuple[list[RowKey], list[int]]]:
        """This process's rows of some steps, and what each is divided by, cut where a micro-batch is full."""
        stream, packs = term.stream, self.parts.packing is not None
        micro = -(-stream.batch // (self.backend.world * self.spec.accumulation))
        room, sizes = micro * max(c.longest for c in stream.corpora), list[int]()
        rows, divisors = list[RowKey](), list[int]()
        for step in range(steps):
            divisor = stream.divisor(step, term.per)
            for key in (k for keys, _ in stream.shares(step, self.backend, self.spec.accumulation) for k in keys):
                sizes.append(len(stream.item(key).ids))
                if rows and (sum(sizes) if packs else len(sizes) * max(sizes)) > room:
                    yield rows, divisors
                    rows, divisors, sizes = [], [], sizes[-1:]
                rows, divisors = [*rows, key], [*divisors, divisor]
        if rows:
            yield rows, divisors

    def views(
        self, term: Term, step: int, precision: str | None = None, kind: type[View] = View, *, alone: bool = False
    ) -> Iterator[View]:
        """What a term sees of this process's rows of a step: each micro-batch, or each row `alone`."""
        mean = None if term.centre is None else self._mean_states(term.centre, term.layers, step, precision)
        for keys, counts in term.stream.shares(step, self.backend, self.spec.accumulation, alone=alone):
            view = self._view(term, keys, kind)
            view.mean, view.counts = mean, counts
            yield view

    def _view(self, term: Term, keys: list[RowKey], kind: type[View]) -> View:
        device = self.backend.device

        def over(stream: TrainStream, cache: ReferenceCache, layer: int | None) -> View:
            batch = collate([stream.item(k) for k in keys]).to(device)
            return kind(self.parts, batch, self.seed, layer, cache.of(keys, device))

        view = over(term.stream, term.cache, term.layer)
        view.layers = term.layers
        view.topics = [dataset for dataset, _ in keys]
        if term.stream.chosen is not None:
            view.chosen = over(term.stream.chosen, term.cache.chosen or ReferenceCache(), None)
        return view

    @torch.no_grad()
    def _mean_states(self, stream: TrainStream, layers: Sequence[int], step: int, precision: str | None) -> Tensor:
        """[L, D]: the mean of a step's states at these layers, all tokens but the first, over all processes."""
        total = torch.zeros(len(layers), self.parts.width, device=self.backend.device)
        for keys, counts in stream.shares(step, self.backend, self.spec.accumulation):
            batch = collate([stream.item(k) for k in keys]).to(self.backend.device)
            view = View(self.parts, batch, self.seed, layers=layers)
            with self.backend.autocast(precision or self.spec.precision):
                total += counts * whole(self.parts.decoder, functools.partial(_summed_states, view))
        return self.backend.sum(total) / stream.divisor(step, "hidden token")

    def sum(self) -> None:
        """Sum the gradients in the parameters over all processes."""
        self.backend.sum_gradients(self.params)

    def take(self) -> Taken:
        """Move the gradients out of the parameters."""
        found: Taken = [p.grad for p in self.params]
        for p in self.params:
            p.grad = None
        return found

    def put(self, gradient: Taken | Vector, factor: float = 1.0) -> None:
        """Add `factor` · gradient to the parameters' gradients, reusing the tensors."""
        for p, g in zip(self.params, gradient):
            if g is None:
                continue
            g = g if factor == 1.0 else g.mul_(factor)
            p.grad = g if p.grad is None else p.grad.add_(g)

    def whole(self) -> Vector:
        """Move the gradient out of the parameters, summed over all processes; of sharded ones this process's rows."""
        self.sum()
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, self.take())]

    def add(self, gradient: Taken | Vector, factor: float = 1.0) -> None:
        """Add `factor` · gradient, which is already that of the whole step: the end of the step sums over processes."""
        main = self.backend.main
        self.put([g if main or is_part(g) else None for g in gradient], factor)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Begin without a gradient; afterwards what was there is added again."""
        before = self.take()
        try:
            yield
        finally:
            self.put(before)

    @contextmanager
    def frozen(self, but: Container[int] = ()) -> Iterator[None]:
        """Take no gradient of the parameters for a while, `but` of those of these numbers."""
        off = [p for i, p in enumerate(self.params) if i not in but and p.requires_grad]
        for p in off:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in off:
                p.requires_grad_(True)

    @contextmanager
    def shifted(self, direction: Vector, factor: float = 1.0) -> Iterator[None]:
        """Have the parameters at θ + factor·direction, then at θ again to the bit, whatever was done to them."""
        params = self.params
        saved = [p.detach().clone() for p in params]
        with torch.no_grad():
            torch._foreach_add_([p.data for p in params], direction, alpha=factor)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, old in zip(params, saved):
                    p.copy_(old)


def _losses(each: list[tuple[Term, View, int]]) -> list[Tensor]:
    return [loss_of(*one) for one in each]


def loss_of(term: Term, view: View, divisor: int | Tensor) -> Tensor:
    """Σ values / divisor, which may be each row's own, [B]; nothing, with a gradient, of rows that do not count."""
    values = wide(term.values(view)) if view.counts else 0 * wide(term.values(view))
    return (values / divisor).sum() if isinstance(divisor, Tensor) else values.sum() / divisor


def _summed_states(view: View) -> Tensor:
    return (view.states * view.hidden_mask[..., None]).sum((1, 2))


def norm(a: Vector) -> float:
    """Length, summed in float64."""
    return math.sqrt(dot(a, a))


def dot(a: Vector, b: Vector) -> float:
    """Inner product, summed in float64; of sharded vectors over all processes, which must ask together."""
    products = [float((exact(mine(x)) * exact(mine(y))).sum()) for x, y in zip(a, b)]
    parts, own = ([v for v, x in zip(products, a) if is_part(x) is sharded] for sharded in (True, False))
    return math.fsum(own) + summed(math.fsum(parts), a)


def length(gradient: Taken) -> float:
    """Length of what there is of a gradient, in its own type."""
    found = [g for g in gradient if g is not None]
    parts, own = ([mine(g) for g in found if is_part(g) is sharded] for sharded in (True, False))
    here = float(nn.utils.get_total_norm(own))
    return here if not parts else math.hypot(here, math.sqrt(summed(float(nn.utils.get_total_norm(parts)) ** 2, found)))


def clip(params: Sequence[nn.Parameter], most: float, long: float) -> None:
    """Shorten the gradients in the parameters, which are so `long`, to at most `most`."""
    held: Any = [SimpleNamespace(grad=mine(p.grad)) for p in params if p.grad is not None]
    nn.utils.clip_grads_with_norm_(held, most, torch.tensor(long))
