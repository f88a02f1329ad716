"""What a pass over a decoder takes, layer by layer: bytes that are held, operations, bytes that are moved.

Found by running the model's own code on tensors that have shapes and types and no data (PyTorch's FakeTensorMode), so
that nothing is assumed about an architecture and no weights are needed. Of layers that are alike one is run.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from ilu_cli.models.hold import computed_again
from ilu_cli.models.names import places
from ilu_cli.models.packed import NAME
from ilu_cli.models.parts import Parts, parts_of
from ilu_cli.models.quiet import quiet_fakes

Work = Counter[tuple[int, int]]
"""Operations by (FLOPs, bytes read and written), and how often each is done. A multiplication with addition is two."""

ON_CPU = "_scaled_dot_product_flash_attention_for_cpu"  # which PyTorch's own counter does not know


@dataclass(frozen=True)
class LayerCost:
    """One layer on one micro-batch. Bytes are beyond the weights and the layer's input.

    kept: held from the forward pass to the backward pass, the layer's output included; copies: of that the weights in
    autocast's type; cached: all such copies that autocast holds until the forward pass is over. forward, backward: the
    most that is held at a time, `kept` and the layer's own gradients included. work, work_back: of the forward pass and
    the backward pass.
    """

    kept: int
    copies: int
    cached: int
    forward: int
    backward: int
    work: Work
    work_back: Work


@dataclass(frozen=True)
class Trace:
    """A pass of [rows, length] tokens.

    around: bytes held throughout: embedded tokens, masks, tables of positions; after: what the last norm keeps, and its
    output. outside: work before and after the layers.
    """

    around: int
    layers: list[LayerCost]
    after: int
    outside: Work


@dataclass(frozen=True)
class Mode:
    """How a decoder is run: under bf16 autocast (`half`), its layers' insides computed `again` in the backward pass,
    with parameters of these ids held in bf16 (`small`), and with the attention that packs (`packed`), which on a CPU
    turns short rows into float32.

    grad: gradients are taken; else nothing is kept for a backward pass, and there is none.
    """

    half: bool
    again: bool = False
    small: frozenset[int] = frozenset()
    packed: bool = False
    grad: bool = True


def trace(model: Any, rows: int, length: int, mode: Mode) -> Trace:
    """Run a decoder forward and each of its layers backward, with gradients as the model's parameters ask for them.

    Args:
        model: may be on the meta device; is left as it is.

    Raises:
        Exception: whatever the model's code raises where it looks at values, as some mixtures of experts do.
    """
    parts, where = parts_of(model), places(model)
    first = min((where[n] for n, p in model.named_parameters() if p.requires_grad), default=len(parts.layers))
    seen = _Ledger()
    with FakeTensorMode(), ExitStack() as stack:
        named = {
            n: _empty(p, id(p) in mode.small)
            for n, p in (*parts.decoder.named_parameters(), *parts.decoder.named_buffers())
        }
        ids = torch.zeros(rows, length, dtype=torch.long)
        seen.weights = {t.untyped_storage()._cdata for t in named.values()}
        found = _Layers(parts, first, seen, mode)
        stack.enter_context(found.measured())
        stack.enter_context(_attending(parts.decoder, mode.packed))
        stack.enter_context(torch.set_grad_enabled(mode.grad))
        stack.enter_context(seen)
        padded = torch.ones_like(ids).tril()  # of a mask of ones, whose values can be seen, transformers makes none
        asked = {"input_ids": ids, "attention_mask": padded, "use_cache": False}
        out = torch.func.functional_call(parts.decoder, named, (), asked)
        after = seen.now - found.held
        del out
    return Trace(found.around, found.costs, after, seen.work)


def traced(model: Any, rows: int, length: int, mode: Mode) -> Trace:
    """`trace`, or `formula` where the model's code looks at values, as some mixtures of experts do."""
    try:
        with quiet_fakes():
            return trace(model, rows, length, mode)
    except Exception:  # whatever a model's own code raises
        return formula(model, rows, length, mode)


def formula(model: Any, rows: int, length: int, mode: Mode) -> Trace:
    """About what `trace` finds, by the widths of a decoder of Llama's kind; a layer's weights are all taken as used."""
    config, tokens = model.config, rows * length
    hidden, width = int(config.hidden_size), 2 if mode.half else 4
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    parts, where = parts_of(model), places(model)
    first = min((where[n] for n, p in model.named_parameters() if p.requires_grad), default=len(parts.layers))
    kept, costs = tokens * ((8 * hidden + 4 * inner) * width + 2 * hidden * 4), []
    for n, layer in enumerate(parts.layers):
        size, flows = sum(p.numel() for p in layer.parameters()), mode.grad and n >= first
        copies = 2 * size if mode.half and not mode.again else 0
        own = sum(4 * p.numel() for p in layer.parameters() if p.requires_grad)
        ahead = Work({(2 * size * tokens, width * size): 1})
        back = Work({(4 * size * tokens, width * size): 1} if flows else {})
        inside, held = kept + 2 * size * mode.half, tokens * hidden * 4 if mode.again else kept + copies
        costs.append(LayerCost(held * flows, copies * flows, 2 * own // 4, inside, held + inside + own, ahead, back))
    return Trace(tokens * hidden * 4, costs, tokens * hidden * 4, Work())


@contextmanager
def _attending(decoder: Any, packed: bool) -> Iterator[None]:
    """Let PyTorch's attention be the one that packs, as it will be in a training that does."""
    before = decoder.config._attn_implementation
    if not packed or before != "sdpa":
        yield
        return
    decoder.set_attn_implementation(NAME)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


def _empty(t: Tensor, small: bool) -> Tensor:
    wide = torch.float32 if t.is_floating_point() else t.dtype  # what masters are, however they are stored
    kind = torch.bfloat16 if small else wide
    return torch.empty(t.shape, dtype=kind, device="cpu", requires_grad=t.requires_grad)


@dataclass
class _Layers:
    """Runs each kind of layer once, forward and backward by itself; the others give what the first one gave."""

    parts: Parts
    first: int
    ledger: _Ledger
    mode: Mode
    around: int = -1
    held: int = 0
    costs: list[LayerCost] = field(default_factory=list)
    known: dict[Any, tuple[LayerCost, Any]] = field(default_factory=dict)

    @contextmanager
    def measured(self) -> Iterator[None]:
        before = [vars(layer).get("forward") for layer in self.parts.layers]
        for n, layer in enumerate(self.parts.layers):
            vars(layer)["forward"] = functools.partial(self._run, n, self._inside(layer.forward))
        try:
            yield
        finally:
            for layer, own in zip(self.parts.layers, before):
                del vars(layer)["forward"]
                if own is not None:
                    vars(layer)["forward"] = own

    def _inside(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(computed_again, forward) if self.mode.again else forward

    def _run(self, n: int, forward: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.around < 0:
            self.around = self.ledger.now
        key = self._kind(n)
        if key not in self.known:
            x = x.detach().requires_grad_(n > self.first)
            self.known[key] = self._once(forward, x, *args, **kwargs)
        cost, out = self.known[key]
        self.costs.append(cost)
        self.held = self.ledger.now
        return out

    def _kind(self, n: int) -> tuple[Any, ...]:
        layer: Any = self.parts.layers[n]
        types = getattr(self.parts.decoder.config, "layer_types", None)
        shapes = tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters())
        return type(layer), types[n] if types else None, n > self.first, shapes

    def _once(self, forward: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> tuple[LayerCost, Any]:
        ledger = self.ledger
        with ledger.apart() as ahead:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.mode.half):
                out = forward(x, *args, **kwargs)
                cached = ledger.copies - ahead.copies
            y = out[0] if isinstance(out, tuple) else out
            kept, copies = ledger.now - ahead.start, ledger.copies - ahead.copies
        with ledger.apart() as back:
            if y.requires_grad:
                y.backward(torch.empty_like(y))
        kept, copies = (kept, copies) if y.requires_grad else (0, 0)
        found = LayerCost(kept, copies, cached, ahead.most, kept + back.most, ahead.work, back.work)
        given = y.detach().requires_grad_(y.requires_grad)
        return found, (given, *out[1:]) if isinstance(out, tuple) else given


@dataclass
class _Span:
    start: int
    copies: int
    most: int = 0
    work: Work = field(default_factory=Counter)


class _Ledger(TorchDispatchMode):
    """Keeps count of the storages that are alive, and of what is computed and moved."""

    def __init__(self) -> None:
        begin: Any = super().__init__  # which has no types
        begin()
        self.now = self.copies = 0
        self.work: Work = Counter()
        self.weights: set[int] = set()
        self.spans: list[_Span] = []
        self._alive: dict[int, tuple[int, bool, Any]] = {}

    @contextmanager
    def apart(self) -> Iterator[_Span]:
        """Count what happens meanwhile by itself: bytes beyond those held at the start, and operations."""
        span, outer = _Span(self.now, self.copies), self.work
        self.work = span.work
        self.spans.append(span)
        try:
            yield span
        finally:
            self.spans.remove(span)
            self.work = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        theirs = {t.untyped_storage()._cdata for t in given}
        copies = func is torch.ops.aten._to_copy.default and bool(theirs & self.weights)
        new = [t for t in made if self._see(t, copies)]
        if new or func._schema.is_mutable:
            moved = sum(t.numel() * t.element_size() for t in (*given, *made))
            self.work[_flops(func, args, kwargs or {}, out), moved] += 1
        return out

    def _see(self, t: Tensor, copy: bool) -> bool:
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self.weights:
            return False
        size = storage.nbytes()
        self._alive[key] = (size, copy, weakref.ref(storage, lambda _: self._gone(key)))
        self.now += size
        self.copies += size if copy else 0
        for span in self.spans:
            span.most = max(span.most, self.now - span.start)
        return True

    def _gone(self, key: int) -> None:
        size, copy, _ = self._alive.pop(key)
        self.now -= size
        self.copies -= size if copy else 0


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = func._overloadpacket
    name = packet.__name__
    if name == ON_CPU:
        return int(sdpa_flop_count(*(t.shape for t in args[:3])))
    if name == f"{ON_CPU}_backward":
        return int(sdpa_backward_flop_count(*(t.shape for t in args[:4])))
    count = flop_registry.get(packet)
    return int(count(*args, **kwargs, out_val=out)) if count else 0
