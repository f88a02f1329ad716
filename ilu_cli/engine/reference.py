"""What the original model says about the training rows: computed once before training, never by a second model."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ilu_cli.data.encode import collate
from ilu_cli.engine.accel import Backend
from ilu_cli.engine.head import wide
from ilu_cli.engine.stream import RowKey, TrainStream
from ilu_cli.engine.view import Reference, View
from ilu_cli.models.logits import LMHead
from ilu_cli.models.parts import Parts

CACHE_BATCH = 16  # sequences per forward pass while the cache is filled
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
        return Reference(logps, hidden, self.norm, final, self.head, states, mlp)


def _padded(known: dict[RowKey, Tensor], keys: list[RowKey], device: torch.device) -> Tensor | None:
    """[L, B, T, D] of rows [L, T, D] each."""
    if not known:
        return None
    padded = pad_sequence([known[k].transpose(0, 1) for k in keys], batch_first=True)
    return padded.permute(2, 0, 1, 3).to(device)


@torch.no_grad()
def fill(
    stream: TrainStream, needs: Set[str], layer: int | None, steps: int, parts: Parts, backend: Backend, precision: str,
    layers: Sequence[int] = (),
) -> ReferenceCache:  # fmt: skip
    """Run the original weights once over the rows that training will visit.

    Hidden states are kept in host memory as float32, 4·D bytes a token and layer, and the LM head is copied if it is
    trained.
    """
    cache = ReferenceCache()
    if not {n for n in needs if n.startswith("reference.")} - {"reference.norm"}:
        return cache
    if stream.chosen is not None:
        cache.chosen = fill(stream.chosen, needs, layer, steps, parts, backend, precision, layers)
    if "reference.final" in needs:
        cache.head = parts.head.kept()
    keys = stream.visited(steps)
    for i in range(0, len(keys), CACHE_BATCH):
        part = keys[i : i + CACHE_BATCH]
        batch = collate([stream.item(k) for k in part]).to(backend.device)
        view = View(parts, batch, stream.seed, layer, layers=layers)
        with backend.autocast(precision):
            if "reference.logps" in needs:
                cache.logps.update(zip(part, view.logps.tolist()))
            if "reference.hidden" in needs:
                cache.hidden.update(zip(part, _cut(view.hidden, stream, part)))
            for need, kept in (("states", cache.states), ("mlp", cache.mlp)):
                if f"reference.{need}" in needs:
                    kept.update(zip(part, _cut(view.values(need), stream, part)))
            if "reference.final" in needs:
                counts = [stream.item(k).targets for k in part]
                cache.final.update(zip(part, wide(view.final).cpu().split(counts)))
    return cache


def _cut(states: Tensor, stream: TrainStream, keys: list[RowKey]) -> list[Tensor]:
    """Of [..., B, T, D] each row's own tokens [..., T, D], in main memory."""
    rows = states.cpu().movedim(-3, 0)
    return [row[..., : len(stream.item(k).ids), :].clone() for k, row in zip(keys, rows)]


@torch.no_grad()
def median_norm(stream: TrainStream, layer: int, parts: Parts, backend: Backend, precision: str) -> float:
    """Median ‖h‖ over the tokens (first position left out) of the stream's first rows, the same on every process."""
    keys = [k for step in range(-(-NORM_ROWS // stream.batch)) for k in stream.keys(step)][:NORM_ROWS]
    norms = []
    for i in range(0, len(keys), CACHE_BATCH):
        batch = collate([stream.item(k) for k in keys[i : i + CACHE_BATCH]]).to(backend.device)
        with backend.autocast(precision):
            view = View(parts, batch, stream.seed, layer)
            norms.append(view.hidden.norm(dim=-1)[view.hidden_mask.bool()])
    return torch.cat(norms).median().item()
