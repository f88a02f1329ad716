"""What a model says of every token of a target: its probability, the spread of the others, whether it comes first."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ilu_cli.data.encode import Batch, Encoded, collate
from ilu_cli.engine.head import token_moments
from ilu_cli.engine.scoring import Scorer, _packed
from ilu_cli.metrics.membership import TokenScores
from ilu_cli.models.sharded import whole


def encode_pair(scorer: Scorer, prompt: str, target: str, *, limit: int | None = None) -> Encoded:
    """Prompt and target as tokens, the target cut to `limit` of them, the prompt's beginning to what the context holds.

    A text without a prompt begins with a token that is not scored: nothing predicts it.
    """
    context, answer = scorer.split(prompt, target)
    answer = answer[: min(limit or len(answer), scorer.context_length - bool(context))]
    context = scorer.cut(context, scorer.context_length - len(answer))
    return Encoded([*context, *answer], max(1, len(context)))


@torch.no_grad()
def token_scores(scorer: Scorer, items: list[Encoded]) -> list[TokenScores]:
    """Score the target tokens of each item, in the order given."""
    b = scorer.backend
    lengths, found = [len(e.ids) for e in items], []
    order = sorted(range(len(items)), key=lengths.__getitem__)
    parts = scorer.layout.apart(order if b.mesh else order[b.rank :: b.world], lengths)
    for group, counts in b.evenly([group for part in parts for group in _packed(part, lengths, scorer.tokens)]):
        batch = collate([items[i] for i in group]).to(b.device)
        with b.autocast(scorer.precision):
            moments = whole(scorer.parts.decoder, functools.partial(_moments, scorer, batch))
        each = moments.cpu().split([items[i].targets for i in group], dim=1)
        found += [(i, part.double().numpy()) for i, part in zip(group, each)] if counts else []
    by_item = dict(b.gather(found))
    return [TokenScores(logp, mean, std, hit > 0) for logp, mean, std, hit in (by_item[i] for i in range(len(items)))]


def _moments(scorer: Scorer, batch: Batch) -> Tensor:
    """[4, N] of the N scored tokens of a batch; see `token_moments`."""
    final, scored = scorer.parts.final(batch.ids, batch.mask.long()), batch.scored[:, 1:]
    return token_moments(final[:, :-1][scored], scorer.parts.head, batch.ids[:, 1:][scored])
