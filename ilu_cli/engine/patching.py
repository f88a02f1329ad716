"""Activation patching: one model's states in another, at the tokens that predict an answer.

Requests lie in trees of tokens, so that what they share is run once, where the tokens that predict an answer belong to
no other request's question. Layers are patched from below: what the model itself gives of a layer is kept, and the next
pass begins there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ilu_cli.engine.head import wide
from ilu_cli.engine.prefix import fitting, passed_over
from ilu_cli.engine.scoring import TOKENS, Scorer, read
from ilu_cli.engine.tree import Forest, Request, places, taken
from ilu_cli.models.parts import changed
from ilu_cli.models.sharded import whole


@dataclass(frozen=True)
class Laid:
    """A batch of rows whose requests are number `numbers[i]` of all; `nodes` [N] predict what is scored, ascending.

    A node is counted over the flattened rows [B·T].
    """

    rows: list[Forest]
    numbers: list[int]
    nodes: Tensor

    def inputs(self, scorer: Scorer) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """What the decoder of a scorer gets."""
        return scorer.layout.inputs(self.rows, scorer.dtype, scorer.backend.device)


def lay(scorer: Scorer, requests: Sequence[Request]) -> list[Laid]:
    """The requests in batches; those whose question goes on where another's answer stands are laid out apart."""
    found = []
    for numbers in _apart(requests):
        for rows in scorer.layout.rows([requests[n] for n in numbers]):
            for batch in taken(rows, min(TOKENS, scorer.tokens)):
                nodes = torch.tensor([place for place, _, _ in places(batch)]).unique()
                found.append(Laid(batch, numbers, nodes.to(scorer.backend.device)))
    return found


def _apart(requests: Sequence[Request]) -> list[list[int]]:
    """Part requests by how many of the others' questions theirs begins with: within a part, with none."""
    asked = {r.ids[: r.start] for r in requests}
    found: dict[int, list[int]] = {}
    for number, r in enumerate(requests):
        found.setdefault(sum(r.ids[:n] in asked for n in range(1, r.start)), []).append(number)
    return [found[depth] for depth in sorted(found)]


@torch.no_grad()
def given_states(scorer: Scorer, laid: Sequence[Laid], layers: Sequence[int]) -> dict[int, list[Tensor]]:
    """By layer the outputs [N, D] of a scorer's model at the nodes of each batch, in float32 on the CPU."""
    found: dict[int, list[Tensor]] = {n: [] for n in layers}

    def keep(n: int, nodes: Tensor) -> Callable[[Tensor], Tensor]:
        def run(output: Tensor) -> Tensor:
            found[n].append(wide(output.flatten(0, 1)[nodes]).cpu())
            return output

        return run

    for batch in laid:
        ids, mask, extra = batch.inputs(scorer)
        keeping = {n: keep(n, batch.nodes) for n in found}
        with scorer.backend.autocast(scorer.precision), changed(scorer.parts.layers, keeping):
            scorer.parts.final(ids, mask, **extra)
    return found


@dataclass
class Patched:
    """A scorer's model that goes on from states which it is given, layer by layer from below.

    `own` are the outputs [B, T, D] that the model itself gave at layer `depth` − 1, by batch, on the CPU.
    """

    scorer: Scorer
    requests: Sequence[Request]
    laid: Sequence[Laid]
    own: list[Tensor] = field(default_factory=list)
    depth: int = 0

    @torch.no_grad()
    def logps(self, layer: int, given: Sequence[Tensor]) -> list[tuple[float, int]]:
        """Per request the summed log-probability of its scored tokens, and their number.

        The output of `layer` is replaced where a scored token is predicted, by the `given` [N, D] of each batch; all
        other tokens keep the model's own. The layers below the one that was patched last are not run again.
        """
        scorer, own, found = self.scorer, list[Tensor](), dict[int, float]()
        tuples = self._begins() if self.own and layer >= self.depth else None
        for at, (batch, states) in enumerate(zip(self.laid, given)):

            def put(output: Tensor, nodes: Tensor = batch.nodes, states: Tensor = states) -> Tensor:
                own.append(output.cpu())
                replaced = output.flatten(0, 1).clone()
                replaced[nodes] = states.to(output)
                return replaced.view_as(output)

            ids, mask, extra = batch.inputs(scorer)
            below: AbstractContextManager[None] = nullcontext()
            if tuples is not None:
                below = passed_over(scorer.parts.layers, tuples, self.own[at].to(scorer.backend.device))
            with scorer.backend.autocast(scorer.precision), below, changed(scorer.parts.layers, {layer: put}):
                scored = whole(scorer.parts.decoder, functools.partial(read, scorer, batch.rows, ids, mask, extra))
            found |= {batch.numbers[i]: logp for i, logp, _ in scored}
        self.own, self.depth = own, layer + 1
        return [(found[n], len(r.ids) - r.start) for n, r in enumerate(self.requests)]

    def _begins(self) -> tuple[int, ...] | None:
        """How many things each layer below `depth` returns, if the decoder gives the same without them; else None."""
        rows = [r.ids for r in self.requests]
        scorer = self.scorer
        if scorer.backend.mesh:
            return None
        found = fitting(scorer.parts, self.depth, rows, scorer.backend, half=False)
        return found.tuples if found else None
