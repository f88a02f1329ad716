"""A model that reads learnt vectors before its tokens: a soft prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ilu_cli.data.sampling import seed_of
from ilu_cli.engine.scoring import Scorer
from ilu_cli.errors import UsageError
from ilu_cli.models.parts import Parts


@dataclass(frozen=True)
class Prompted(Parts):
    """The parts of a model whose every row begins with `vectors` [K, E], where its embeddings would stand."""

    vectors: nn.Parameter = None  # type: ignore[assignment]  # a field after those of the base

    def final(self, input_ids: Tensor, attention_mask: Tensor, **extra: Any) -> Tensor:
        """The last hidden states [B, T, D] of the tokens; those of the vectors are cut off."""
        decoder: Any = self.decoder
        embedded = decoder.get_input_embeddings()(input_ids)
        rows, k = len(embedded), len(self.vectors)
        soft = self.vectors.to(embedded.dtype).expand(rows, -1, -1)
        mask = torch.cat([attention_mask.new_ones(rows, k), attention_mask], dim=1)
        both = torch.cat([soft, embedded], dim=1)
        out = decoder(inputs_embeds=both, attention_mask=mask, use_cache=False, **extra)
        found: Tensor = out.last_hidden_state[:, k:]
        return found


def prompted(scorer: Scorer, tokens: int, seed: int) -> tuple[Scorer, nn.Parameter]:
    """The scorer with a soft prompt, and the prompt, which begins as the embeddings of tokens drawn by the seed.

    Rows are plain, one path each: a tree of requests cannot be told of vectors before it.
    """
    embeddings = scorer.model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed_of(seed, "soft prompt"))
    drawn = torch.randint(len(embeddings), (tokens,), generator=generator).to(embeddings.device)
    parts = scorer.parts
    vectors = nn.Parameter(embeddings[drawn].detach().float().clone())
    found = Prompted(parts.decoder, parts.layers, parts.head, vectors)
    layout = replace(scorer.layout, kinds=(), why="a soft prompt stands before it")
    return replace(scorer, parts=found, layout=layout), vectors


def check_room(scorer: Scorer, questions: dict[str, list[dict[str, Any]]], tokens: int) -> None:
    """Refuse tokens beside the questions that make one of them too long.

    Raises:
        UsageError: if they do.
    """
    every = [scorer.pair(i["question"], c) for items in questions.values() for i in items for c in i["choices"]]
    longest, room = max(len(r.ids) for r in every), scorer.context_length
    if longest + tokens > room:
        raise UsageError(
            f"attack.tokens: {tokens} tokens and a question of {longest} do not fit into the model's context of {room}"
        )
