"""KL divergence from what a model said at the start: as a term, and of few tokens that are looked at again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ilu_cli.engine.accel import Backend
from ilu_cli.engine.exact import exact
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.head import wide
from ilu_cli.engine.reference import fill
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.tiles import chunks, memory_of, spans, tile_for
from ilu_cli.engine.view import View
from ilu_cli.models.logits import LMHead
from ilu_cli.models.parts import Parts
from ilu_cli.models.sharded import is_part
from ilu_cli.registry import retain_term


@dataclass(frozen=True)
class AtStart:
    """What a head W said of N tokens: their states h₀ [N, D], lse z₀ [N], and Σ_v q_v·W_v [N, D], q = softmax z₀."""

    states: Tensor
    lse: Tensor
    mean: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, states: Tensor, head: LMHead) -> AtStart:
        """Those of last hidden states under a head."""
        weight = head.weight
        means = [wide(head(states[part])).softmax(-1).to(weight.dtype) @ weight for part in chunks(states, weight)]
        return cls(states, logsumexp(states, head), torch.cat(means))

    @torch.no_grad()
    def kl(self, states: Tensor, head: LMHead) -> Tensor:
        """KL(q ‖ softmax z), float64 [N], of other states h under the same head: lse z − lse z₀ − E_q(z − z₀).

        Logits are scale·(h·Wᵀ + b), so the last is scale·(h − h₀)·Σ_v q_v·W_v, and those of h₀ are not needed again. A
        small KL keeps what digits float32 leaves logsumexp, 1e-6.
        """
        moved = (exact(states - self.states) * exact(self.mean)).sum(-1) * head.map.scale
        return exact(logsumexp(states, head)) - exact(self.lse) - moved


@dataclass
class KLFromStart:
    """The values of the retain term `kl`, [B], without their gradient, for a stream of few batches.

    They are `kl`'s own where the LM head is trained, caps its logits or is spread over processes.
    """

    kl: Callable[[View], Tensor]
    said: dict[bytes, AtStart] = field(default_factory=dict)

    def __call__(self, view: View) -> Tensor:
        head, start = view.parts.head, view.reference.final
        if start is None or view.reference.head is None or head.map.cap is not None or is_part(head.weight):
            return self.kl(view)
        if head.weight.requires_grad or view.reference.head.weight.data_ptr() != head.weight.data_ptr():
            return self.kl(view)
        name = view.batch.ids.cpu().numpy().tobytes()
        if name not in self.said:
            self.said[name] = AtStart.of(start, head)
        return view.per_sequence(self.said[name].kl(view.final, head))


def kl_term(
    name: str, stream: TrainStream, steps: int, parts: Parts, b: Backend, precision: str, source: Any = None
) -> Term:
    """The retain term `kl` from what the model says now of the rows of a stream's first `steps` steps.

    `source` as for `ilu_cli.engine.reference.fill`.
    """
    known = retain_term["kl"]
    cache = fill(stream, known.declared.needs, None, steps, parts, b, precision, source=source)
    return Term(name, stream, known.obj, known.declared.per, cache=cache)


@torch.no_grad()
def logsumexp(states: Tensor, head: LMHead) -> Tensor:
    """That of the logits of states [N, D], [N] in at least float32, a tile at a time."""
    found = []
    rows, at_once = tile_for(memory_of(states.device))
    for part in spans(len(states), rows):
        lse = torch.full((part.stop - part.start,), -torch.inf, device=states.device)
        for words in spans(len(head.weight), at_once):
            bias = None if head.bias is None else head.bias[words]
            z = wide(LMHead(head.weight[words], bias, head.map)(states[part]))
            top = z.amax(-1)
            lse = torch.logaddexp(lse.to(z.dtype), z.sub_(top[:, None]).exp_().sum(-1).log_().add_(top))
        found.append(lse)
    return torch.cat(found)
