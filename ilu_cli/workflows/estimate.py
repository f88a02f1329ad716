"""How many bytes a training takes at its peak, by kind: each moment that may be the dearest is priced by itself.

What the layers hold is found by `ilu_cli.models.traced`, with the model's own code; the rest is counted here.
`docs/bench/memory.py` compares it with what processes take.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ilu_cli.engine.tiles import chunk_for, tile_for
from ilu_cli.models.by_weight import merges
from ilu_cli.models.dtypes import PIECE
from ilu_cli.models.hold import BYTES, held
from ilu_cli.models.names import places
from ilu_cli.models.save import LARGEST
from ilu_cli.models.traced import LayerCost, Mode, Trace
from ilu_cli.recipe.specs import TrainSpec
from ilu_cli.workflows.moments import FLOAT, HALF, NOTHING, UNREAD, Beside, Ground, MemoryEstimate, Moment, OnDisk
from ilu_cli.workflows.passes import ASKED, BUDGET, DEFENDED, Passing
from ilu_cli.workflows.traces import kept_trace

MOMENTS = {"adamw": 2, "muon": 2, "momentum": 1, "sgd": 0, "adafactor": 0}  # at most; two vectors are not counted
MOMENT = {32: 4.0, 8: 1 + 4 / 256}  # bytes of one of Adam's; bitsandbytes has a float32 for each 256
COMPARED = 32  # bytes for each of the numbers that are in float64 at a time while it is measured what storing loses
ADAPTED = 16  # bytes for each entry of an adapted weight while it is added up in float64, beside the stored one twice
PROCESS = 24 << 20  # bytes that a process on a CPU grows by while it trains: libraries that are loaded late, blocks
# that the heap keeps between others (measured)
CONTEXT = 1 << 30  # bytes of an accelerator that its driver's context and libraries' work space take (not measured)


def estimate(
    model: Any, params: Sequence[nn.Parameter], passes: Sequence[Passing], spec: TrainSpec, cached: int,
    stored: OnDisk = UNREAD, ground: Ground | None = None, beside: Beside = NOTHING,
) -> MemoryEstimate:  # fmt: skip
    """Price a training of `params`, steps after the first, which makes the moments.

    Not counted: what products with the Hessian hold beside the gradient.

    Args:
        model: on the meta device, with its adapter if it gets one.
        passes: of one step, in their order: penalties, forget term, retain term.
        cached: bytes of the reference cache.
        stored: how the weights lie on the disk, and how they will.
        ground: where it runs; None: here.
        beside: what defences and a budget hold.
    """
    priced = TrainingPrice(model, params, spec, cached, ground or Ground.here(), beside=beside)
    return MemoryEstimate((*priced.beside(stored), *priced.steps(passes)))


class TrainingPrice:
    """What is the same at every moment of a training."""

    def __init__(
        self, model: Any, params: Sequence[nn.Parameter], spec: TrainSpec, cached: int, ground: Ground,
        traces: dict[tuple[Mode, int, int], Trace] | None = None, beside: Beside = NOTHING,
    ) -> None:  # fmt: skip
        self.model, self.spec, self.ground, self.held = model, spec, ground, beside
        where, own = places(model), {id(p) for p in params}
        self.trained = _by_place(model, own, where)
        self.all = sum(map(sum, self.trained.values()))
        self.total: int = sum(p.numel() for p in model.parameters())
        kind = spec.memory.frozen
        small = [m.weight for m in held(model, params)] if kind != "fp32" else []
        self.small, self.few = frozenset(map(id, small)), sum(w.numel() for w in small)
        self.alone = PROCESS if ground.memory is None else CONTEXT
        self.base = {
            "weights": int(FLOAT * (self.total - self.few) + BYTES[kind] * self.few),
            "optimizer": int(_stepping(spec, ground) * self.all / FLOAT),
            "process": self.alone,
            "defences": FLOAT * beside.each // ground.shards,
        }
        if ground.shards > 1:
            self._spread(where)
        packed = spec.packing and ground.memory is None
        self.mode = Mode(spec.precision != "fp32", spec.memory.checkpointing, self.small, packed)
        self.unpacked = HALF * max((w.numel() for w in small), default=0) if kind == "nf4" else 0
        head, embedded = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        self.words, self.width = map(int, head.shape)
        self.head, self.embedded = (FLOAT * w.numel() if id(w) in own else 0 for w in (head, embedded))
        rows = cached if ground.memory is None else 0  # else they lie in main memory
        self.base["caches"] = rows + beside.heads * self.head // ground.shards
        self.adapter = hasattr(model, "peft_config")  # which alone is written, as it is
        self.tied, self.traces = head is embedded, {} if traces is None else traces

    def _spread(self, where: dict[str, int]) -> None:
        """Divide what lies there between uses; in use, what is around the layers and two of these are whole."""
        each: dict[int, int] = dict.fromkeys(self.trained, 0)
        for name, p in self.model.named_parameters():
            each[where[name]] += HALF * p.numel() if id(p) in self.small else FLOAT * p.numel()
        depth = len(each) - 2
        self.layers, self.around = [each[n] for n in range(depth)], each[-1] + each[depth]
        whole = self.around + 2 * max(self.layers)
        parts = 0 if self.ground.away else 1
        self.base["weights"] = whole + parts * self.base["weights"] // self.ground.shards
        self.base["optimizer"] = parts * self.base["optimizer"] // self.ground.shards

    def handed_out(self, stored: OnDisk) -> int:
        """Bytes of weights that the first process of a sharded launch holds beside parts: of a layer, or of all."""
        return max(self.around, *self.layers) if stored.by_weight else FLOAT * self.total

    def written(self, saved: int) -> int:
        """Bytes of a checkpoint that are in main memory at once, of a sharded launch a file's; `saved`: of a weight."""
        if self.adapter:
            return self.all
        whole = saved * self.total
        if self.ground.shards == 1 or merges(self.model):
            return whole
        return min(whole, max(LARGEST, saved * self._most()))

    def _most(self) -> int:
        """The numbers of the largest weight."""
        return max(int(p.numel()) for p in self.model.parameters())

    def _gradients(self, whole: int, own: int) -> int:
        """Bytes of gradients: `whole`, or where they are divided the parts, and a layer's `own` on their way."""
        if self.ground.shards == 1 or not whole:
            return whole
        around = sum(self.trained[-1]) + sum(self.trained[len(self.trained) - 2])
        return (0 if self.ground.away else whole // self.ground.shards) + 2 * own + around

    def beside(self, stored: OnDisk) -> Iterator[Moment]:
        """Before the steps and after them: reading, casting the checkpoint, comparing it with the parent."""
        host, shards = self.ground.memory is None, self.ground.shards
        if shards > 1 and not host:  # read, and gathered to be written, in the first process's main memory
            yield Moment("between steps", **self.base)
            return
        read = FLOAT * self.total
        if shards > 1:
            read = min(read, self.handed_out(stored) + read // shards)
        yield Moment("loading", read, files=stored.largest * host, process=0 if host else self.alone)
        after = self.base | {"optimizer": self.all * (self.spec.memory.offload is not None and host)}
        cast = 0 if self.adapter or stored.saved == FLOAT else stored.saved * (self.total - self.few)
        if shards > 1:  # the first process gathers what is written, a weight at a time
            cast = 0 if self.adapter else self.written(stored.saved)
            after["weights"] = FLOAT * (self.total // shards + self._most() * (not self.adapter))
        if self.spec.points:
            yield Moment("saving a point", **after | {"optimizer": self.base["optimizer"]}, copies=cast)
        yield Moment("saving", **after, copies=cast)
        if host:
            yield Moment("comparing", **after, copies=self._compared(stored))

    def _compared(self, stored: OnDisk) -> int:
        """Bytes that comparing the checkpoint with the parent takes: of a weight at a time both, and what differs."""
        sizes: list[tuple[str, int]] = [(name, p.numel()) for name, p in self.model.named_parameters()]
        if self.adapter:
            return (ADAPTED + 2 * stored.saved) * max((n for name, n in sizes if ".base_layer." in name), default=0)
        largest = max(n for _, n in sizes)
        return max((2 * stored.saved + 1) * largest, stored.saved * largest + COMPARED * PIECE)

    def trace(self, p: Passing, mode: Mode | None = None) -> Trace:
        """What the layers take in a pass; `mode`: otherwise than training runs them."""
        key = mode or self.mode, p.rows, p.length
        if key not in self.traces:
            self.traces[key] = kept_trace(self.model, p.rows, p.length, key[0])
        return self.traces[key]

    def steps(self, passes: Sequence[Passing]) -> Iterator[Moment]:
        """The dearest moments of each term's largest micro-batch."""
        for i, p in enumerate(passes):
            if p.term == BUDGET:
                yield self._measured(p)
                continue
            if p.term == ASKED:
                yield from self._asked(p)
                continue
            yield from self._pass(self.base, p, before=i > 0 or self.spec.accumulation > 1)
            if p.term == DEFENDED and self.held.first > self.held.each:
                first = self.base | {"optimizer": 0, "defences": FLOAT * self.held.first // self.ground.shards}
                for m in self._pass(first, p, before=True):
                    yield replace(m, when=f"{m.when}, before the first step")
        if self.ground.shards > 1:
            yield self._summed()

    def _summed(self) -> Moment:
        """While gradients of what lies around the layers are summed: whole, flat to be sent, a part; no weights.

        Gloo, of CPUs, sums in a copy of its own.
        """
        n, host = self.ground.shards, self.ground.memory is None
        around = sum(self.trained[-1]) + sum(self.trained[len(self.trained) - 2])
        weights = self.base["weights"] - self.around - 2 * max(self.layers)
        gradients = self._gradients(self.all, 0) + (1 + host) * around + around // n
        return Moment("summing gradients", **self.base | {"weights": weights}, gradients=gradients)

    def _measured(self, p: Passing) -> Moment:
        """What a budget holds while it runs its text forward in float32, beside the gradient-free weights."""
        trace = self.trace(p, replace(self.mode, half=False))
        inside = trace.around + max(c.forward for c in trace.layers)
        defences = self.base["defences"] + FLOAT * self.held.budget // self.ground.shards
        logits = self.chunk(p) + FLOAT * p.scored * self.width
        return Moment("budget", **self.base | {"defences": defences}, activations=inside, logits=logits)

    def _asked(self, p: Passing) -> Iterator[Moment]:
        """What a pass without gradients holds before there are moments: in the layers, and at the head's tiles."""
        trace = self.trace(p, replace(self.mode, again=False, packed=False, grad=False))
        layers = trace.layers if p.deepest is None else trace.layers[: p.deepest + 1]
        cached = _sums([c.cached * (self.ground.shards == 1) for c in layers])
        base = self.base | {"optimizer": 0, "defences": 0}
        states = FLOAT * p.rows * p.length * self.width  # what goes into a layer, and into the head
        inside = trace.around + states + max(before + c.forward for before, c in zip(cached, layers))
        yield Moment(ASKED, **base, activations=inside, copies=self.unpacked)
        if p.scored:
            tile, _ = self._logits(p)
            yield Moment(f"{ASKED}, head", **base, activations=states, copies=cached[-1], logits=tile)

    def _pass(self, around: dict[str, int], p: Passing, *, before: bool) -> Iterator[Moment]:
        """Forward, then backward through the head and each layer; `before`: earlier terms have left gradients."""
        trace = self.trace(p)
        layers = trace.layers if p.deepest is None else trace.layers[: p.deepest + 1]
        kept, copies = _sums([c.kept - c.copies for c in layers]), _sums([c.copies for c in layers])
        left = self.all if before else 0
        after = trace.after if p.deepest is None else 4 * FLOAT * p.rows * p.length * self.width
        held = {"activations": trace.around + p.graphs * (kept[-1] + after), "gradients": self._gradients(left, 0)}
        cached = sum(c.cached for c in layers) if self.ground.shards == 1 else p.graphs * copies[-1]
        tile, head = self._logits(p) if p.deepest is None else (0, 0)
        yield Moment(
            "forward", **around, **held, logits=tile, copies=max(cached, p.graphs * copies[-1]) + self.unpacked
        )
        yield Moment(
            "backward, head", **around, **held, logits=tile + head, copies=p.graphs * copies[-1] + self.unpacked
        )
        yield from self._backward(around, p, trace, layers, before=before)

    def _backward(
        self, around: dict[str, int], p: Passing, trace: Trace, layers: list[LayerCost], *, before: bool
    ) -> Iterator[Moment]:
        """Each layer's backward pass, from the last one down, and that of the embeddings."""
        kept, copies = _sums([c.kept - c.copies for c in layers]), _sums([c.copies for c in layers])
        tied = self.head if self.tied else 0
        there = self.all if before else sum(self.trained[len(trace.layers)]) + tied
        for n in range(len(layers) - 1, -1, -1):
            cost, own = layers[n], sum(self.trained[n])
            there += 0 if before else own
            inside = cost.backward - cost.copies - own + max(self.trained[n], default=0) * before
            more = (p.graphs - 1) * kept[-1]
            yield Moment(
                f"backward, layer {n}", **around, gradients=self._gradients(there, own),
                copies=p.graphs * copies[n + 1] + self.unpacked,
                activations=trace.around + kept[n] + max(inside, cost.forward - cost.copies) + more,
            )  # fmt: skip
        if self.embedded:
            yield Moment(
                "backward, embeddings", **around, gradients=self._gradients(self.all, 0), activations=trace.around,
                logits=self.embedded * before + tied,
            )  # fmt: skip

    def _logits(self, p: Passing) -> tuple[int, int]:
        """What the LM head takes: a tile or chunks; and in its backward pass gradients by states and by its matrix."""
        wide = FLOAT if self.spec.precision == "fp32" else HALF
        states = FLOAT * p.scored * self.width
        if p.chunks:
            gathered = self.head if self.ground.shards > 1 else 0  # the matrix as it was, of which each has a part
            teacher = 2 * wide * self.words * self.width + gathered
            return self.chunk(p) + teacher + states, states + self.head
        rows, words = tile_for(self.ground.memory)
        rows, words = min(rows, p.scored), min(words, self.words)
        return rows * words * (3 * FLOAT + wide) + 2 * wide * (rows + words) * self.width + states, states + self.head

    def chunk(self, p: Passing) -> int:
        """A chunk of logits, as it is held five times: raw, by the teacher, as log-probabilities, and their slopes."""
        return 5 * FLOAT * min(chunk_for(self.ground.memory, self.words), p.scored) * self.words


def _by_place(model: Any, own: set[int], where: dict[str, int]) -> dict[int, list[int]]:
    """Bytes of the gradient of each trained weight, by the place where it lies."""
    found: dict[int, list[int]] = {place: [] for place in range(-1, int(model.config.num_hidden_layers) + 1)}
    for name, p in model.named_parameters():
        if id(p) in own:
            found[where[name]].append(FLOAT * p.numel())
    return found


def _sums(values: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(values)]


def moments_of(spec: TrainSpec) -> float:
    """Bytes of the optimiser's moments for each trained weight."""
    return MOMENTS[spec.optimizer] * MOMENT[spec.memory.optimizer_bits]


def _stepping(spec: TrainSpec, ground: Ground) -> float:
    """Bytes for each trained weight that stepping takes on the device; if that is the CPU, offloading costs a copy."""
    moments = moments_of(spec)
    if spec.memory.offload is None:
        return moments
    return moments + 4 if ground.memory is None else 0.0
