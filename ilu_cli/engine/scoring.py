"""Log-likelihoods of candidate answers, perplexity, and greedy answers.

The candidates of a question share its context: they are laid side by side behind it in one row, each attending to the
context and to itself only, so the context is run once. The LM head runs on the scored tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ilu_cli.data.encode import Batch, Encoded, collate, split_pair
from ilu_cli.engine.accel import Backend
from ilu_cli.engine.head import token_stats
from ilu_cli.engine.view import View
from ilu_cli.errors import UsageError
from ilu_cli.models.load import Parts

TOKENS = 2048  # tokens per forward pass, padding included


@dataclass(frozen=True)
class Question:
    """A context and its candidate continuations, as text."""

    context: str
    choices: tuple[str, ...]


@dataclass
class Scorer:
    """A model that scores text. `context_length` is the longest row it takes."""

    model: Any
    parts: Parts
    tokenizer: Any
    backend: Backend
    precision: str = "fp32"

    @property
    def context_length(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", 1 << 30))

    @torch.no_grad()
    def loglikelihoods(self, questions: list[Question]) -> list[list[float]]:
        """Summed log-probability of every choice, per question, in the order given.

        Raises:
            UsageError: if a question with one of its choices does not fit into the model's context.
        """
        rows = [row for i, q in enumerate(questions) for row in self._layout(i, q)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        mine = order[self.backend.rank :: self.backend.world]
        found: list[tuple[int, int, float]] = []
        for group in _packed(mine, [len(r.ids) for r in rows]):
            for i, scores in zip(group, self._score([rows[i] for i in group])):
                found += [(rows[i].question, c, score) for c, score in zip(rows[i].choices, scores)]
        total = {(q, c): score for q, c, score in self.backend.gather(found)}
        return [[total[i, c] for c in range(len(q.choices))] for i, q in enumerate(questions)]

    def _layout(self, index: int, question: Question) -> list[_Row]:
        """The rows of a question: one for all choices that leave the context's tokens as they are."""
        rows: dict[tuple[int, ...], _Row] = {}
        for c, choice in enumerate(question.choices):
            context, answer = split_pair(self.tokenizer, question.context, choice)
            if not context:  # nothing to condition on: the first token is context and is not scored
                context, answer = answer[:1], answer[1:]
            if len(context) + len(answer) > self.context_length:
                raise UsageError(
                    f"a prompt of {len(context) + len(answer)} tokens does not fit into the model's context of "
                    f"{self.context_length}: {question.context[:60]!r}…"
                )
            rows.setdefault(tuple(context), _Row(index, context)).add(c, answer)
        return list(rows.values())

    def _score(self, rows: list[_Row]) -> list[list[float]]:
        length = max(len(r.ids) for r in rows)
        ids, positions = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(2))
        seen = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
        for b, r in enumerate(rows):
            n = len(r.ids)
            ids[b, :n], positions[b, :n] = torch.tensor(r.ids), torch.tensor(r.positions)
            branch = torch.tensor(r.branch)
            seen[b, :n, :n] = ((branch[:, None] == branch) | (branch == 0)).tril()
        device = self.backend.device
        bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None].to(device)
        with self.backend.autocast(self.precision):
            mask = bias.to(torch.bfloat16) if self.precision == "bf16" else bias
            final = self.parts.final(ids.to(device), mask, position_ids=positions.to(device))
            scored = [(b, t) for b, r in enumerate(rows) for pairs in r.scored for t in pairs]
            which = torch.tensor([b for b, _ in scored], device=device)
            sources = torch.tensor([s for _, (s, _) in scored], device=device)
            targets = ids.to(device)[which, torch.tensor([t for _, (_, t) in scored], device=device)]
            head = self.parts.head
            nll, _ = token_stats(final[which, sources], head.weight, targets, head.bias)
        values = iter(nll.tolist())
        return [[-sum(next(values) for _ in pairs) for pairs in r.scored] for r in rows]

    @torch.no_grad()
    def nll(self, items: list[Encoded]) -> list[float]:
        """Negative log-likelihood of each item's scored tokens, summed, in the order given."""
        order = sorted(range(len(items)), key=lambda i: len(items[i].ids))
        mine = order[self.backend.rank :: self.backend.world]
        found: list[tuple[int, float]] = []
        for group in _packed(mine, [len(e.ids) for e in items]):
            batch = collate([items[i] for i in group]).to(self.backend.device)
            with self.backend.autocast(self.precision):
                found += zip(group, View(self.parts, batch, 0).nll.tolist())
        return [value for _, value in sorted(self.backend.gather(found))]

    @torch.no_grad()
    def complete(self, prompts: list[str], max_new_tokens: int) -> list[str]:
        """Greedy continuations, batched, with a KV cache; special tokens are left out."""
        encoded = [self.tokenizer(p)["input_ids"][-(self.context_length - max_new_tokens) :] for p in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        mine = order[self.backend.rank :: self.backend.world]
        found: list[tuple[int, str]] = []
        for group in _packed(mine, [len(e) + max_new_tokens for e in encoded]):
            batch = _left_padded([encoded[i] for i in group], self.backend.device)
            with self.backend.autocast(self.precision):
                out = self.model.generate(
                    input_ids=batch.ids,
                    attention_mask=batch.mask.long(),
                    do_sample=False,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=self.tokenizer.eos_token_id or 0,
                )
            texts = self.tokenizer.batch_decode(out[:, batch.ids.shape[1] :], skip_special_tokens=True)
            found += zip(group, texts)
        return [text for _, text in sorted(self.backend.gather(found))]


class _Row:
    """A context and choices side by side. Branch 0 is the context, branch k the k-th choice added."""

    def __init__(self, question: int, context: list[int]) -> None:
        self.question, self.choices = question, list[int]()
        self.context = len(context)
        self.ids, self.positions, self.branch = list(context), list(range(len(context))), [0] * len(context)
        self.scored: list[list[tuple[int, int]]] = []  # per choice, (index that predicts, index predicted)

    def add(self, choice: int, answer: list[int]) -> None:
        first = len(self.ids)
        self.choices.append(choice)
        self.ids += answer
        self.positions += range(self.context, self.context + len(answer))
        self.branch += [len(self.choices)] * len(answer)
        self.scored.append(list(zip([self.context - 1, *range(first, len(self.ids))], range(first, len(self.ids)))))


def _packed(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Cut a list sorted by length into batches of at most TOKENS tokens, padding included."""
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * lengths[i] <= TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _left_padded(rows: list[list[int]], device: torch.device) -> Batch:
    length = max(map(len, rows))
    ids: Tensor = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = torch.tensor(row)
        mask[i, length - len(row) :] = True
    return Batch(ids.to(device), mask.to(device), torch.zeros_like(mask).to(device))
