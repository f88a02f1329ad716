"""From text to token ids with a target span. Labels come from spans, never from `ids != pad`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ilu_cli.errors import UnavailableError
from ilu_cli.tasks import Example


@dataclass(frozen=True)
class Encoded:
    """Token ids and the index of the first target token. Index 0 is never a target: nothing predicts it."""

    ids: list[int]
    start: int

    @property
    def targets(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Corpus:
    """An encoded dataset and how many of its examples had to be cut."""

    items: list[Encoded]
    truncated: int


def split_pair(tokenizer: Any, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Encode prompt + target together and part them where the prompt alone would end (lm-eval's convention)."""
    whole: list[int] = tokenizer(prompt + target)["input_ids"]
    start = len(tokenizer(prompt)["input_ids"]) if prompt else 0
    return whole[:start], whole[start:]


def encode(tokenizer: Any, example: Example, max_length: int) -> tuple[Encoded, bool]:
    """Encode one example; the flag says whether it was cut.

    A prompted target ends with the end-of-sequence token. Too long a prompt loses its beginning, never the answer.
    """
    prompt, target = split_pair(tokenizer, example.prompt, example.target)
    if example.prompt and tokenizer.eos_token_id is not None:
        target = [*target, tokenizer.eos_token_id]
    room = max_length - len(target)
    cut = len(prompt) > room
    ids = ((prompt[len(prompt) - max(room, 0) :] if cut else prompt) + target)[:max_length]
    start = max(1, len(ids) - len(target)) if room > 0 else 1
    return Encoded(ids, start), cut


def encode_corpus(tokenizer: Any, examples: list[Example], max_length: int, name: str) -> Corpus:
    """Encode all examples.

    Raises:
        UnavailableError: if an example has no token to score.
    """
    pairs = [encode(tokenizer, e, max_length) for e in examples]
    for i, (item, _) in enumerate(pairs):
        if item.targets < 1:
            raise UnavailableError(f"{name}, example {i}: there is no token to learn from in {examples[i].target!r}")
    return Corpus([item for item, _ in pairs], sum(cut for _, cut in pairs))


@dataclass(frozen=True)
class Batch:
    """Right-padded ids [B, T], which of them are real, and which are scored."""

    ids: Tensor
    mask: Tensor
    scored: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.ids.to(device), self.mask.to(device), self.scored.to(device))


def collate(items: list[Encoded], pad: int = 0) -> Batch:
    """Pad to the longest. The value of `pad` never matters."""
    length = max(len(e.ids) for e in items)
    ids = torch.full((len(items), length), pad)
    mask, scored = (torch.zeros(len(items), length, dtype=torch.bool) for _ in range(2))
    for i, e in enumerate(items):
        ids[i, : len(e.ids)] = torch.tensor(e.ids)
        mask[i, : len(e.ids)] = True
        scored[i, e.start : len(e.ids)] = True
    return Batch(ids, mask, scored)
