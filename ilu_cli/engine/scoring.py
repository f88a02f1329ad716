"""Log-likelihoods of candidate answers, perplexity, and greedy answers.

What requests share at their beginning is run once (`ilu_cli.engine.tree`) where the decoder can be told who sees whom
(`ilu_cli.engine.layout`); the LM head runs on the scored tokens only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ilu_cli.data.chat import Chat, chat_pair
from ilu_cli.data.encode import Encoded
from ilu_cli.data.special import (
    bodies,
    check_rows,
    continued,
    cut_left,
    first_token,
    framed,
    kept,
    opening,
    parted,
)
from ilu_cli.engine.accel import Backend
from ilu_cli.engine.batches import memory_ran_out, run_all
from ilu_cli.engine.generation import generate
from ilu_cli.engine.head import picked_logps
from ilu_cli.engine.layout import Layout, layout_of
from ilu_cli.engine.parity import Parity
from ilu_cli.engine.tree import Forest, Request, halves, places, take, taken
from ilu_cli.errors import RunFailed, UsageError
from ilu_cli.models.parts import Parts
from ilu_cli.models.sharded import whole

TOKENS = 2048  # tokens per forward pass, padding included


@dataclass(frozen=True)
class Question:
    """A context and its candidate continuations, as text."""

    context: str
    choices: tuple[str, ...]


KnownTexts = dict[tuple[str, bool], list[int]]  # token ids by text, and whether they stand behind what begins a text


@functools.lru_cache(maxsize=4)
def known_texts(tokenizer: str, embeddings: int) -> KnownTexts:
    """What this process has encoded by a tokenizer, kept for the next model that has it and as many embeddings."""
    return {}


@dataclass
class Scorer:
    """A model that scores text. `context_length` is the longest row it takes.

    `chat` puts contexts and prompts into the tokenizer's chat template so; answers follow without their white space.
    """

    model: Any
    parts: Parts
    tokenizer: Any
    backend: Backend
    precision: str = "fp32"
    tokens: int = TOKENS  # fewer once memory has run out
    known: KnownTexts = field(default_factory=dict)
    chat: Chat | None = None
    original: Callable[[], Scorer] | None = None  # loads the model that everything began with
    layout: Layout = None  # type: ignore[assignment]  # the decoder's, unless one is given
    parity: Parity | None = None  # how far from plain transformers it was when it was loaded

    def __post_init__(self) -> None:
        self.layout = self.layout or layout_of(self.parts.decoder)

    @property
    def context_length(self) -> int:
        """How many tokens the model takes at once."""
        return context_of(self.model.config.get_text_config())

    @property
    def dtype(self) -> torch.dtype:
        """Of the masks that the decoder gets."""
        return torch.bfloat16 if self.precision == "bf16" else self.parts.head.weight.dtype

    @functools.cached_property
    def before(self) -> list[int]:
        """What the tokenizer puts before a text."""
        return opening(self.tokenizer)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The token ids of a text, behind what the tokenizer puts before one if `special`; a text is encoded once."""
        key = text, special
        if key not in self.known:
            [ids] = bodies(self.tokenizer, [text])
            self.known[key] = self._checked(framed(self.before, ids) if special else ids)
        return self.known[key]

    def _checked(self, ids: list[int]) -> list[int]:
        check_rows(self.tokenizer, max(ids, default=0), self.model.get_input_embeddings().weight.shape[0])
        return ids

    def prompt(self, text: str) -> list[int]:
        """The token ids of a prompt that is to be answered; at least one."""
        if self.chat is not None and text:
            return self.split(text, "")[0]
        return self.encode(text) or [first_token(self.tokenizer)]

    def split(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        """The token ids of a prompt and of what follows it, parted where the prompt ends."""
        before = self.before
        if self.chat is not None and prompt:
            before, prompt, target = [], chat_pair(self.tokenizer, prompt, chat=self.chat)[0], target.lstrip()
        ids, start = parted(self.tokenizer, before, prompt, target)
        return self._checked(ids)[:start], ids[start:]

    def pair(self, context: str, continuation: str) -> Request:
        """A context and what is scored after it, parted as `continued` says.

        Without a context the whole continuation follows BOS, or EOS where there is none.

        Raises:
            UsageError: if there is no token to score.
        """
        before, white, plain = self.before, None, functools.partial(self.encode, special=False)
        if self.chat is not None and context:
            before, white, continuation = [], " ", continuation.lstrip()  # a template's line end is its own
            context = chat_pair(self.tokenizer, context, chat=self.chat)[0]
        if not continuation:
            raise UsageError(f"an empty answer has no probability: the question is {context[:60]!r}")
        if context.strip():
            ids, answer = continued(plain, context, continuation, white)
            ids = framed(before, ids)
        else:
            first = self.before or [first_token(self.tokenizer)]
            whole = framed(first, plain(context + continuation))
            ids, answer = whole[: len(first)], whole[len(first) :]
        if not answer:
            raise UsageError(f"the tokenizer has no token for the answer {continuation[:60]!r}")
        return Request((*ids, *answer), len(ids))

    def cut(self, ids: list[int], room: int) -> list[int]:
        """At most `room` ids: what is too long loses its beginning, but for the special tokens that it begins with."""
        return cut_left(ids, room, kept(self.before, ids))

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
        found: list[tuple[int, float, bool]] = []
        with self.backend.autocast(self.precision):  # one context, so that weights are cast once
            for rows in self.layout.rows(requests):
                found += self._run(rows, requests)
        scores = [(logp, greedy) for _, logp, greedy in sorted(self.backend.gather(found))]
        if odd := [logp for logp, _ in scores if not math.isfinite(logp)]:
            raise RunFailed(
                f"the model gives {len(odd)} of {len(scores)} texts a log-probability of {odd[0]}: it is broken"
            )
        return scores

    def _run(self, rows: list[Forest], requests: list[Request]) -> list[tuple[int, float, bool]]:
        """(request, log-probability, greedy) of every request in this process's share of the rows, used up."""
        found: list[tuple[int, float, bool]] = []
        if self.backend.mesh:
            batches = taken(rows, min(TOKENS, self.tokens))
            return [row for batch, counts in self.backend.evenly(batches) for row in self._forward(batch) if counts]
        rows = rows[self.backend.rank :: self.backend.world]
        while rows:
            batch = take(rows, min(TOKENS, self.tokens))
            try:
                found += self._forward(batch)
            except RuntimeError as error:
                if not memory_ran_out(error) or (len(batch) == 1 == len(batch[0].requests)):
                    raise
                self.tokens = max(1, len(batch) * max(map(len, batch)) // 2)
                rows += batch if len(batch) > 1 else halves(batch[0], requests)
                torch.cuda.empty_cache()
        return found

    def _forward(self, rows: list[Forest]) -> list[tuple[int, float, bool]]:
        """(request, log-probability, greedy) of every request in a batch of rows."""
        return whole(self.parts.decoder, lambda: self._scored(rows))

    def _scored(self, rows: list[Forest]) -> list[tuple[int, float, bool]]:
        return read(self, rows, *self.layout.inputs(rows, self.dtype, self.backend.device))

    @torch.no_grad()
    def complete(
        self, prompts: list[str], max_new_tokens: int, stop: tuple[str, ...] = (), *, within: bool = False
    ) -> list[str]:
        """Greedy continuations, batched, with a KV cache; special tokens are left out.

        `within`: as they go on behind the prompts; else as texts of their own, as in lm-eval: see `generation.behind`.
        A row is done when it has said one of the `stop` strings; the caller cuts it there. Too long a prompt loses its
        beginning, but for BOS.

        Raises:
            UsageError: if the new tokens alone fill the model's context, or decoding does not work for the model.
        """
        if self.parity is not None and not self.parity.decodes:
            raise UsageError(
                f"{type(self.model).__name__} is not supported where it is to write: step by step, with a cache, "
                "transformers gets other answers from it than from the whole text"
            )
        room = self.context_length - max_new_tokens
        if room < 1:
            raise UsageError(
                f"{max_new_tokens} new tokens leave no room for a prompt in the model's context of "
                f"{self.context_length}; ask for fewer"
            )
        encoded = [self.cut(self.prompt(p), room) for p in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        mine = order if self.backend.mesh else order[self.backend.rank :: self.backend.world]
        groups = _packed(mine, [len(e) + max_new_tokens for e in encoded], min(TOKENS, self.tokens))
        alike = [self.layout.alike(len(e), max_new_tokens) for e in encoded]
        groups = [list(same) for g in groups for _, same in groupby(g, key=alike.__getitem__)]

        def written(group: list[int]) -> list[tuple[int, str]]:
            with self.backend.autocast(self.precision):
                rows = [encoded[i] for i in group]
                return [*zip(group, generate(self.model, self.tokenizer, rows, max_new_tokens, stop, within=within))]

        found = run_all(self.backend, groups, written)
        return [text for _, text in sorted(self.backend.gather(found))]


def read(
    scorer: Scorer, rows: list[Forest], ids: Tensor, mask: Any, extra: dict[str, Tensor]
) -> list[tuple[int, float, bool]]:
    """(request, log-probability, greedy) of every request in a batch of rows, of which the decoder gets the rest."""
    final, asked = scorer.parts.final(ids, mask, **extra), places(rows)
    nodes = torch.tensor([p for p, _, _ in asked], device=ids.device)
    nodes, states = nodes.unique_consecutive(return_inverse=True)
    targets = torch.tensor([token for _, _, token in asked], device=ids.device)
    logps, greedy = picked_logps(final.flatten(0, 1)[nodes], scorer.parts.head, states, targets)
    total = {i: (0.0, True) for row in rows for i in row.requests}
    for (_, i, _), logp, best in zip(asked, logps.tolist(), greedy.tolist()):
        total[i] = total[i][0] + logp, total[i][1] and best
    return [(i, *value) for i, value in total.items()]


def context_of(config: Any) -> int:
    """The tokens of the longest row that a model of this configuration takes."""
    return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "max_seq_len", 1 << 30))


def _packed(order: list[int], lengths: list[int], tokens: int) -> list[list[int]]:
    """Cut a list sorted by length into batches of at most `tokens` tokens, padding included."""
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * lengths[i] <= tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
