"""Activation patching: one model's states in another, at the tokens that predict an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ilu_cli.data.encode import Batch, Encoded, collate
from ilu_cli.engine.exact import exact
from ilu_cli.engine.head import token_stats
from ilu_cli.engine.probe import states
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.tree import Request
from ilu_cli.models.parts import changed

BATCH = 64  # requests per forward pass


@dataclass(frozen=True)
class States:
    """A batch of requests, by their numbers, with the source's states [L, N, D] at the N places `pick` [B, T]."""

    numbers: list[int]
    batch: Batch
    pick: Tensor
    states: Tensor


def given_states(scorer: Scorer, requests: Sequence[Request], layers: Sequence[int]) -> list[States]:
    """What the model of a scorer thinks, at the outputs of some layers, where it predicts what is scored."""
    lengths, found = [len(r.ids) for r in requests], []
    apart = scorer.layout.apart(sorted(range(len(requests)), key=lengths.__getitem__), lengths)
    for numbers in (order[i : i + BATCH] for order in apart for i in range(0, len(order), BATCH)):
        batch = collate([Encoded(list(requests[i].ids), requests[i].start) for i in numbers])
        batch = batch.to(scorer.backend.device)
        pick = batch.scored.roll(-1, dims=1)  # index 0 is never scored, so nothing comes round
        with scorer.backend.autocast(scorer.precision):
            found.append(States(numbers, batch, pick, states(scorer.parts, batch, pick)[list(layers)]))
    return found


@torch.no_grad()
def patched_logps(
    scorer: Scorer, given: list[States], layer: int | None = None, at: int = 0
) -> list[tuple[float, int]]:
    """Per request the summed log-probability of its scored tokens, and their number.

    The output of `layer` is replaced where a scored token is predicted by the given states, those of number `at`; all
    other tokens keep the scorer's own. None: nothing is replaced.
    """
    found: dict[int, tuple[float, int]] = {}
    for g in given:

        def put(output: Tensor, g: States = g) -> Tensor:
            replaced = output.clone()
            replaced[g.pick] = g.states[at].to(output)
            return replaced

        changes = {} if layer is None else {layer: put}
        with scorer.backend.autocast(scorer.precision), changed(scorer.parts.layers, changes):
            final = scorer.parts.final(g.batch.ids, g.batch.mask)
        nll, _ = token_stats(final[g.pick], scorer.parts.head, g.batch.ids[g.batch.scored])
        lengths = g.batch.scored.sum(-1).tolist()
        sums = [-float(exact(part).sum()) for part in nll.split(lengths)]
        found |= {i: (total, n) for i, total, n in zip(g.numbers, sums, lengths)}
    return [found[i] for i in range(len(found))]
