"""What the original model says about the training rows: computed once before training, never by a second model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ilu_cli.data.encode import Batch, Encoded, collate
from ilu_cli.engine.accel import Backend
from ilu_cli.engine.blocks import Blocks, rows_key
from ilu_cli.engine.head import wide
from ilu_cli.engine.stream import RowKey, TrainStream
from ilu_cli.engine.view import Reference, View
from ilu_cli.models.heap import mapped
from ilu_cli.models.kept import Tensors, kept
from ilu_cli.models.logits import LMHead
from ilu_cli.models.parts import Parts
from ilu_cli.models.sharded import whole

CACHE_BATCH = 16  # sequences per forward pass while the cache is filled
KEPT = {"reference.logps", "reference.hidden", "reference.states", "reference.mlp", "reference.final"}  # by row
NORM_ROWS = 64  # retain rows that the median activation norm is taken over


@dataclass
class ReferenceCache:
    """Log-probabilities and hidden states of the original model, by row of one stream."""

    logps: dict[RowKey, float] = field(default_factory=dict)
    hidden: dict[RowKey, Tensor] = field(default_factory=dict)
    norm: float | None = None
    final: dict[RowKey, Tensor] = field(default_factory=dict)
    head: LMHead | None = None
    chosen: ReferenceCache | None = None
    states: dict[RowKey, Tensor] = field(default_factory=dict)
    mlp: dict[RowKey, Tensor] = field(default_factory=dict)

    def of(self, keys: list[RowKey], device: torch.device) -> Reference:
        """The reference of a micro-batch."""
        logps = torch.tensor([self.logps[k] for k in keys], device=device) if self.logps else None
        hidden = None
        if self.hidden:
            hidden = pad_sequence([self.hidden[k] for k in keys], batch_first=True).to(device)
        final = torch.cat([self.final[k] for k in keys]).to(device) if self.final else None
        states, mlp = (_padded(known, keys, device) for known in (self.states, self.mlp))
        return Reference(logps, hidden, self.norm, final, self.head.whole() if self.head else None, states, mlp)


def _padded(known: dict[RowKey, Tensor], keys: list[RowKey], device: torch.device) -> Tensor | None:
    """[L, B, T, D] of rows [L, T, D] each."""
    if not known:
        return None
    padded = pad_sequence([known[k].transpose(0, 1) for k in keys], batch_first=True)
    return padded.permute(2, 0, 1, 3).to(device)


def fill(
    stream: TrainStream, needs: Set[str], layer: int | None, steps: int, parts: Parts, backend: Backend, precision: str,
    layers: Sequence[int] = (), source: Any = None,
) -> ReferenceCache:  # fmt: skip
    """Run the original weights once over the rows that training will visit, each process its share of the batches.

    Hidden states are kept in host memory as float32, 4·D bytes a token and layer, and the LM head is copied if it is
    trained.

    Args:
        source: what tells the model, as JSON: what is computed is kept on disk by that, and read if it is there
            (`ilu_cli.models.kept`). None: nothing is.
    """
    cache, wanted = ReferenceCache(), sorted(needs & KEPT)
    if not wanted:
        return cache
    if stream.chosen is not None:
        cache.chosen = fill(stream.chosen, needs, layer, steps, parts, backend, precision, layers, source)
    if "reference.final" in needs:
        cache.head = parts.head.kept()
    keys = stream.visited(steps)
    items = [stream.item(k) for k in keys]
    places = {name: Blocks(_lengths(name, items)) for name in wanted}
    if source is not None:
        deep = bool(needs & {"reference.states", "reference.mlp"})
        which = [layer] * ("reference.hidden" in needs) + [list(layers)] * deep
        source = ["reference", source, wanted, which, precision, rows_key((e.ids, e.start) for e in items)]

    def view(batch: Batch) -> View:
        return View(parts, batch, stream.seed, layer, layers=layers)

    found = kept(source, lambda: _said(items, places, view, backend, precision), backend)
    for name, block in found.items():
        rows = places[name].rows(block)
        if name == "reference.logps":
            cache.logps = dict(zip(keys, block.tolist()))
        elif name == "reference.hidden":
            cache.hidden = dict(zip(keys, rows))
        elif name in ("reference.states", "reference.mlp"):
            kind = cache.states if name == "reference.states" else cache.mlp
            kind.update({k: r.transpose(0, 1) for k, r in zip(keys, rows)})
        else:
            cache.final = dict(zip(keys, rows))
    return cache


def _lengths(name: str, items: Sequence[Encoded]) -> list[int]:
    """How many entries of a quantity each row has: one, one for each scored token, or one for each token."""
    if name == "reference.logps":
        return [1] * len(items)
    return [e.targets if name == "reference.final" else len(e.ids) for e in items]


@mapped()
@torch.no_grad()
def _said(
    items: list[Encoded], places: dict[str, Blocks], view_of: Callable[[Batch], View], backend: Backend, precision: str
) -> Tensors:
    """The quantities of all rows, each a block."""
    for i, counts in _shared(items, backend):
        part = items[i : i + CACHE_BATCH]
        view = view_of(collate(part).to(backend.device))
        with backend.autocast(precision):
            found = whole(view.parts.decoder, functools.partial(_of_each, places, view, part))
        for name, place in places.items() if counts else ():
            for j, value in enumerate(found[name]):
                place.put(i + j, value)
    for place in places.values():
        place.join(backend)
    return {name: place.block for name, place in places.items() if place.block is not None}


def _shared(items: list[Encoded], b: Backend) -> Iterator[tuple[int, bool]]:
    """Where this process's batches of rows begin, and whether each counts, or is only run along."""
    starts = list(range(0, len(items), CACHE_BATCH))
    return b.evenly(starts if b.mesh else starts[b.rank :: b.world])


def _of_each(names: Iterable[str], view: View, items: list[Encoded]) -> dict[str, list[Tensor]]:
    return {name: _of_rows(name, view, items) for name in names}


def _of_rows(name: str, view: View, items: list[Encoded]) -> list[Tensor]:
    """A quantity of each row of a batch, without padding, on the CPU."""
    if name == "reference.logps":
        return list(torch.split(view.logps.cpu(), 1))
    if name == "reference.final":
        return list(torch.split(wide(view.final).cpu(), [e.targets for e in items]))
    found = view.values(name.removeprefix("reference."))
    states = found if name == "reference.hidden" else found.permute(1, 2, 0, 3)
    return [s[: len(e.ids)] for s, e in zip(states.cpu(), items)]


def median_norm(
    stream: TrainStream, layer: int, parts: Parts, backend: Backend, precision: str, source: Any = None
) -> float:
    """Median ‖h‖ over the tokens (first position left out) of the stream's first rows, the same on every process.

    `source` as for `fill`.
    """
    keys = [k for step in range(-(-NORM_ROWS // stream.batch)) for k in stream.keys(step)][:NORM_ROWS]
    items = [stream.item(k) for k in keys]
    if source is not None:
        source = ["norm", source, layer, precision, rows_key((e.ids, 0) for e in items)]

    def view(batch: Batch) -> View:
        return View(parts, batch, stream.seed, layer)

    return float(kept(source, lambda: _median_norm(items, view, backend, precision), backend)["norm"])


def _norms(view: View) -> Tensor:
    found: Tensor = view.hidden.norm(dim=-1)[view.hidden_mask.bool()]
    return found


@mapped()
@torch.no_grad()
def _median_norm(items: list[Encoded], view_of: Callable[[Batch], View], backend: Backend, precision: str) -> Tensors:
    norms = list[Tensor]()
    for i, counts in _shared(items, backend):
        view = view_of(collate(items[i : i + CACHE_BATCH]).to(backend.device))
        with backend.autocast(precision):
            found = whole(view.parts.decoder, functools.partial(_norms, view)).cpu()
        norms += [found] if counts else []
    return {"norm": torch.cat(backend.gather(norms)).median()[None]}
