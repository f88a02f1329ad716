"""How many bytes a training takes at its peak, by kind: each moment that may be the dearest is priced by itself.

What the layers hold is found by `ilu_cli.models.traced`, with the model's own code; the rest is counted here.
`docs/bench/memory.py` compares it with what processes take.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ilu_cli.engine.accel import backend
from ilu_cli.engine.tiles import chunk_for, memory_of, tile_for
from ilu_cli.models.hold import BYTES, held
from ilu_cli.models.names import places
from ilu_cli.models.traced import LayerCost, Mode, Trace
from ilu_cli.recipe.specs import TrainSpec
from ilu_cli.runs.files import weight_files
from ilu_cli.workflows.passes import Passing
from ilu_cli.workflows.traces import kept_trace

MOMENTS = {"adamw": 2, "muon": 2, "momentum": 1, "sgd": 0, "adafactor": 0}  # at most; two vectors are not counted
MOMENT = {32: 4.0, 8: 1 + 4 / 256}  # bytes of one of Adam's; bitsandbytes has a float32 for each 256
FLOAT, HALF = 4, 2  # bytes
COMPARED, SEEN = 32, 9  # bytes for each entry of the largest trained weight while what storing it loses is measured, in
# float64; and of the largest of all while it is compared with the parent's
PROCESS = (
    60 << 20
)  # bytes that a process on a CPU grows by otherwise: libraries loaded late, pools of threads (measured)
GIVEN_BACK = (
    6 << 20
)  # bytes from which on glibc maps a block by itself, and unmaps it when it is freed: it keeps smaller ones. The bound
# grows with what was freed; when a model is read it lies between 4 and 6 MB (measured by the flag of blocks)
CONTEXT = 1 << 30  # bytes of an accelerator that its driver's context and libraries' work space take (not measured)


@dataclass(frozen=True)
class Moment:
    """Bytes on one device at one moment, by kind; `when` says which.

    copies: weights in another type, autocast's for the backward pass or a checkpoint's; files: pages of weights' files
    that are mapped, which the system takes back where memory is short.
    """

    when: str
    weights: int = 0
    copies: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    caches: int = 0
    files: int = 0
    process: int = 0

    def kinds(self) -> dict[str, int]:
        """Bytes by kind."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "when"}

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.kinds().values())


@dataclass(frozen=True)
class MemoryEstimate:
    """The moments of a run that may be its dearest."""

    moments: tuple[Moment, ...]

    def __add__(self, later: MemoryEstimate) -> MemoryEstimate:
        """With those of what comes after it."""
        return MemoryEstimate((*self.moments, *later.moments))

    @property
    def highest(self) -> Moment:
        """The dearest one."""
        return max(self.moments, key=lambda m: m.bytes)

    @property
    def peak(self) -> int:
        """Bytes at the highest point."""
        return self.highest.bytes


@dataclass(frozen=True)
class Ground:
    """Where a training runs: an accelerator's `memory`, or None: a CPU, whose process holds the files' pages too.

    shards: devices over which each weight, gradient and moment is divided (FSDP2); away: their parts lie in main memory
    between uses.
    """

    memory: int | None = None
    shards: int = 1
    away: bool = False

    @classmethod
    def here(cls) -> Ground:
        """The device of this process."""
        return cls(memory_of(backend().device))


@dataclass(frozen=True)
class OnDisk:
    """Bytes of the largest file that the weights are read from, and of each weight of the checkpoint to be made."""

    largest: int = 0
    saved: int = FLOAT

    @classmethod
    def at(cls, folder: Path, dtype: torch.dtype) -> OnDisk:
        """Of the weights in a folder, of which a checkpoint is to be made in this type."""
        return cls(max((path.stat().st_size for path in weight_files(folder)), default=0), dtype.itemsize)


def estimate(
    model: Any, params: Sequence[nn.Parameter], passes: Sequence[Passing], spec: TrainSpec, cached: int,
    stored: OnDisk = OnDisk(), ground: Ground | None = None,
) -> MemoryEstimate:  # fmt: skip
    """Price a training of `params`, steps after the first, which makes the moments.

    Not counted: what defences and products with the Hessian hold beside the gradient.

    Args:
        model: on the meta device, with its adapter if it gets one.
        passes: of one step, in their order: penalties, forget term, retain term.
        cached: bytes of the reference cache.
        stored: how the weights lie on the disk, and how they will.
        ground: where it runs; None: here.
    """
    priced = TrainingPrice(model, params, spec, cached, ground or Ground.here())
    return MemoryEstimate((*priced.beside(stored), *priced.steps(passes)))


class TrainingPrice:
    """What is the same at every moment of a training."""

    def __init__(
        self, model: Any, params: Sequence[nn.Parameter], spec: TrainSpec, cached: int, ground: Ground,
        traces: dict[tuple[Mode, int, int], Trace] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.spec, self.ground = model, spec, ground
        where, own = places(model), {id(p) for p in params}
        self.trained = _by_place(model, own, where)
        self.all = sum(map(sum, self.trained.values()))
        self.total = sum(p.numel() for p in model.parameters())
        kind = spec.memory.frozen
        small = [m.weight for m in held(model, params)] if kind != "fp32" else []
        self.small, self.few = frozenset(map(id, small)), sum(w.numel() for w in small)
        self.alone = PROCESS if ground.memory is None else CONTEXT
        self.base = {
            "weights": int(FLOAT * (self.total - self.few) + BYTES[kind] * self.few),
            "optimizer": int(_stepping(spec, ground) * self.all / FLOAT),
            "process": self.alone + _left(small, ground),
        }
        if ground.shards > 1:
            self._spread(where)
        packed = spec.packing and ground.memory is None
        self.mode = Mode(spec.precision == "bf16", spec.memory.checkpointing, self.small, packed)
        self.cached = cached if ground.memory is None else 0  # it lies in main memory
        self.unpacked = HALF * max((w.numel() for w in small), default=0) if kind == "nf4" else 0
        head, embedded = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        self.words, self.width = map(int, head.shape)
        self.head, self.embedded = (FLOAT * w.numel() if id(w) in own else 0 for w in (head, embedded))
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

    def _gradients(self, whole: int, own: int) -> int:
        """Bytes of gradients: `whole`, or where they are divided the parts, and a layer's `own` on their way."""
        if self.ground.shards == 1:
            return whole
        around = sum(self.trained[-1]) + sum(self.trained[len(self.trained) - 2])
        return (0 if self.ground.away else self.all // self.ground.shards) + 2 * own + around

    def beside(self, stored: OnDisk) -> Iterator[Moment]:
        """Before the steps and after them: reading, casting the checkpoint, comparing it with the parent."""
        host = self.ground.memory is None
        files = stored.largest if host else 0
        cast = stored.saved * (self.total - self.few) if stored.saved != FLOAT else 0
        if self.ground.shards > 1 and not host:  # read, and gathered to be written, in the first process's main memory
            yield Moment("between steps", **self.base)
            return
        yield Moment("loading", weights=FLOAT * self.total, files=files, process=self.alone)
        yield Moment("saving", **self.base, copies=cast)
        if host:
            largest = max((size // FLOAT for sizes in self.trained.values() for size in sizes), default=0)
            seen = SEEN * max(p.numel() for p in self.model.parameters())
            yield Moment("comparing", **self.base, copies=max(seen, COMPARED * largest * (stored.saved != FLOAT)))

    def trace(self, p: Passing) -> Trace:
        """What the layers take in a pass."""
        key = self.mode, p.rows, p.length
        if key not in self.traces:
            self.traces[key] = kept_trace(self.model, p.rows, p.length, self.mode)
        return self.traces[key]

    def steps(self, passes: Sequence[Passing]) -> Iterator[Moment]:
        """The dearest moments of each term's largest micro-batch."""
        for i, p in enumerate(passes):
            yield from self._pass(p, self.trace(p), before=i > 0 or self.spec.accumulation > 1)

    def _pass(self, p: Passing, trace: Trace, *, before: bool) -> Iterator[Moment]:
        """Forward, then backward through the head and each layer; `before`: earlier terms have left gradients."""
        layers = trace.layers if p.deepest is None else trace.layers[: p.deepest + 1]
        kept, copies = _sums([c.kept - c.copies for c in layers]), _sums([c.copies for c in layers])
        around, left = self.base | {"caches": self.cached}, self.all if before else 0
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
        yield from self._backward(p, trace, layers, before)

    def _backward(self, p: Passing, trace: Trace, layers: list[LayerCost], before: bool) -> Iterator[Moment]:
        """Each layer's backward pass, from the last one down, and that of the embeddings."""
        kept, copies = _sums([c.kept - c.copies for c in layers]), _sums([c.copies for c in layers])
        around, tied = self.base | {"caches": self.cached}, self.head if self.tied else 0
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
        wide = HALF if self.spec.precision == "bf16" else FLOAT
        states = FLOAT * p.scored * self.width
        if p.chunks:
            teacher = 2 * wide * self.words * self.width + self.head  # its matrix as it was, if that is trained
            return self.chunk(p) + teacher + states, states + self.head
        rows, words = tile_for(self.ground.memory)
        rows, words = min(rows, p.scored), min(words, self.words)
        return rows * words * (3 * FLOAT + wide) + 2 * wide * (rows + words) * self.width + states, states + self.head

    def chunk(self, p: Passing) -> int:
        """A chunk of logits, as it is held five times: raw, by the teacher, as log-probabilities, and their slopes."""
        return 5 * FLOAT * min(chunk_for(self.ground.memory, self.words), p.scored) * self.words


def _left(small: Sequence[torch.Tensor], ground: Ground) -> int:
    """Bytes of matrices as they were read that are free once they are made smaller, and not given back."""
    read = (FLOAT * w.numel() for w in small)
    return sum(size for size in read if size < GIVEN_BACK) if ground.memory is None else 0


def _by_place(model: Any, own: set[int], where: dict[str, int]) -> dict[int, list[int]]:
    """Bytes of the gradient of each trained weight, by the place where it lies."""
    found: dict[int, list[int]] = {place: [] for place in range(-1, int(model.config.num_hidden_layers) + 1)}
    for name, p in model.named_parameters():
        if id(p) in own:
            found[where[name]].append(FLOAT * p.numel())
    return found


def _sums(values: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(values)]


def _stepping(spec: TrainSpec, ground: Ground) -> float:
    """Bytes for each trained weight that stepping takes on the device; if that is the CPU, offloading costs a copy."""
    moments = MOMENTS[spec.optimizer] * MOMENT[spec.memory.optimizer_bits]
    if spec.memory.offload is None:
        return moments
    return moments + 4 if ground.memory is None else 0.0
