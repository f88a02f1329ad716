"""Log-likelihoods of candidate answers, perplexity, and greedy answers.

What requests share at their beginning is run once (`ilu_cli.engine.tree`); the LM head runs on the scored tokens only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from ilu_cli.data.encode import Batch, Encoded, chat_pair, split_pair
from ilu_cli.engine.accel import Backend
from ilu_cli.engine.head import picked_logps
from ilu_cli.engine.tree import Request, Row, as_tensors, halves, in_rows, take
from ilu_cli.errors import RunFailed, UsageError
from ilu_cli.models.parts import Parts

TOKENS = 2048  # tokens per forward pass, padding included


@dataclass(frozen=True)
class Question:
    """A context and its candidate continuations, as text."""

    context: str
    choices: tuple[str, ...]


@dataclass
class Scorer:
    """A model that scores text. `context_length` is the longest row it takes.

    `chat` puts contexts and prompts into the tokenizer's chat template; answers follow without their white space.
    """

    model: Any
    parts: Parts
    tokenizer: Any
    backend: Backend
    precision: str = "fp32"
    tokens: int = TOKENS  # fewer once memory has run out
    known: dict[tuple[str, bool], list[int]] = field(default_factory=dict)
    chat: bool = False
    original: Callable[[], Scorer] | None = None  # loads the model that everything began with

    @property
    def context_length(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", 1 << 30))

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The token ids of a text, with what the tokenizer puts around it if `special`; a text is encoded once."""
        key = text, special
        if key not in self.known:
            self.known[key] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return self.known[key]

    def prompt(self, text: str) -> list[int]:
        """The token ids of a prompt that is to be answered."""
        if self.chat and text:
            return self.split(text, "")[0]
        return self.encode(text)

    def split(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        """The token ids of a prompt and of what follows it, parted where the prompt ends."""
        if self.chat and prompt:
            return split_pair(self.tokenizer, chat_pair(self.tokenizer, prompt)[0], target.lstrip(), special=False)
        return split_pair(self.tokenizer, prompt, target)

    def pair(self, context: str, continuation: str) -> Request:
        """Encode both together and part them where the context alone would end, its last white space apart.

        This is lm-eval's convention. Without a context the first token is not scored: nothing predicts it.
        """
        if self.chat and context:
            prompt, answer = self.split(context, continuation)
            return Request((*prompt, *answer), len(prompt))
        start = len(self.encode(context.rstrip())) if context else 0
        return Request(tuple(self.encode(context + continuation)), max(1, start))

    def check_length(self, tokens: int, text: str) -> None:
        """Refuse what the model cannot take whole.

        Raises:
            UsageError: if `tokens` exceed the model's context.
        """
        if tokens > self.context_length:
            raise UsageError(
                f"a prompt of {tokens} tokens does not fit into the model's context of {self.context_length}: "
                f"{text[:60]!r}…"
            )

    def loglikelihoods(self, questions: list[Question]) -> list[list[float]]:
        """Summed log-probability of every choice, per question, in the order given.

        Raises:
            UsageError: if a question with one of its choices does not fit into the model's context.
        """
        requests = []
        for question in questions:
            for choice in question.choices:
                requests.append(self.pair(question.context, choice))
                self.check_length(len(requests[-1].ids), question.context)
        found = iter(self.score(requests))
        return [[next(found)[0] for _ in q.choices] for q in questions]

    def nll(self, items: list[Encoded]) -> list[float]:
        """Negative log-likelihood of each item's scored tokens, summed, in the order given."""
        return [-logp for logp, _ in self.score([Request(tuple(e.ids), e.start) for e in items])]

    @torch.no_grad()
    def score(self, requests: list[Request]) -> list[tuple[float, bool]]:
        """Per request the summed log-probability of its scored tokens, and whether each was the most probable one.

        What does not fit into memory is tried again in halves, and all later batches are that much smaller.

        Raises:
            RunFailed: if a log-probability is not finite.
        """
        rows = in_rows(requests)[self.backend.rank :: self.backend.world]
        found: list[tuple[int, float, bool]] = []
        with self.backend.autocast(self.precision):  # one context, so that weights are cast once
            while rows:
                batch = take(rows, min(TOKENS, self.tokens))
                try:
                    found += self._forward(batch, requests)
                except RuntimeError as error:
                    if not _memory_ran_out(error) or (len(batch) == 1 == len(batch[0].requests)):
                        raise
                    self.tokens = max(1, len(batch) * max(map(len, batch)) // 2)
                    rows += batch if len(batch) > 1 else halves(batch[0], requests)
                    torch.cuda.empty_cache()
        scores = [(logp, greedy) for _, logp, greedy in sorted(self.backend.gather(found))]
        if odd := [logp for logp, _ in scores if not math.isfinite(logp)]:
            raise RunFailed(
                f"the model gives {len(odd)} of {len(scores)} texts a log-probability of {odd[0]}: it is broken"
            )
        return scores

    def _forward(self, rows: list[Row], requests: list[Request]) -> list[tuple[int, float, bool]]:
        """(request, log-probability, greedy) of every request in the rows."""
        device, head = self.backend.device, self.parts.head
        ids, positions, seen = (t.to(device) for t in as_tensors(rows))
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        bias = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)
        final = self.parts.final(ids, bias[:, None], position_ids=positions)
        width = ids.shape[1]
        places = [
            (b * width + node, i, token)
            for b, row in enumerate(rows)
            for i, pairs in zip(row.requests, row.scored)
            for node, token in pairs
        ]
        places.sort()
        nodes, states = torch.tensor([p for p, _, _ in places], device=device).unique_consecutive(return_inverse=True)
        targets = torch.tensor([token for _, _, token in places], device=device)
        logps, greedy = picked_logps(final.flatten(0, 1)[nodes], head.weight, states, targets, head.bias)
        total = {i: (0.0, True) for row in rows for i in row.requests}
        for (_, i, _), logp, best in zip(places, logps.tolist(), greedy.tolist()):
            total[i] = total[i][0] + logp, total[i][1] and best
        return [(i, *value) for i, value in total.items()]

    @torch.no_grad()
    def complete(self, prompts: list[str], max_new_tokens: int, stop: tuple[str, ...] = ()) -> list[str]:
        """Greedy continuations, batched, with a KV cache; special tokens are left out.

        A row is done when it has said one of the `stop` strings; the caller cuts it there. Too long a prompt loses its
        beginning.
        """
        room = self.context_length - max_new_tokens
        encoded = [self.prompt(p)[-room:] for p in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        mine = order[self.backend.rank :: self.backend.world]
        groups = _packed(mine, [len(e) + max_new_tokens for e in encoded], min(TOKENS, self.tokens))
        found: list[tuple[int, str]] = []
        while groups:
            group = groups.pop()
            try:
                found += zip(group, self._generate([encoded[i] for i in group], max_new_tokens, stop))
            except RuntimeError as error:
                if not _memory_ran_out(error) or len(group) == 1:
                    raise
                groups += [group[: len(group) // 2], group[len(group) // 2 :]]
                torch.cuda.empty_cache()
        return [text for _, text in sorted(self.backend.gather(found))]

    def _generate(self, rows: list[list[int]], max_new_tokens: int, stop: tuple[str, ...]) -> list[str]:
        batch = _left_padded(rows, self.backend.device)
        with self.backend.autocast(self.precision):
            out = self.model.generate(
                input_ids=batch.ids,
                attention_mask=batch.mask.long(),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=self.tokenizer.eos_token_id or 0,
                stopping_criteria=[Said(self.tokenizer, stop, batch.ids.shape[1])] if stop else None,
            )
        return self.tokenizer.batch_decode(out[:, batch.ids.shape[1] :], skip_special_tokens=True)


class Said(StoppingCriteria):
    """Stops each row by itself once it has said one of the strings. `start` is where generation began."""

    def __init__(self, tokenizer: Any, strings: tuple[str, ...], start: int) -> None:
        self.tokenizer, self.strings, self.start = tokenizer, strings, start
        self.window = max(len(s.encode()) for s in strings) + 1  # a token is at least one byte

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :][:, -self.window :])
        return torch.tensor([any(s in text for s in self.strings) for text in texts], device=input_ids.device)


def _memory_ran_out(error: RuntimeError) -> bool:
    """Whether it is torch.OutOfMemoryError, or what torch raises on a CPU."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "not enough memory" in text


def _packed(order: list[int], lengths: list[int], tokens: int) -> list[list[int]]:
    """Cut a list sorted by length into batches of at most `tokens` tokens, padding included."""
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * lengths[i] <= tokens:
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
