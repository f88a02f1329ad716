"""From text to token ids with a target span. Labels come from spans, never from `ids != pad`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.recipe.specs import Form
from ilu_cli.tasks import Example

BLOCK = 2048  # examples that are tokenised in one call


@dataclass(frozen=True)
class Encoded:
    """Token ids and the index of the first target token. Index 0 is never a target: nothing predicts it."""

    ids: list[int]
    start: int

    @property
    def targets(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - self.start


class Packed(Sequence[Encoded]):
    """Encoded rows as three flat arrays; an item is made when it is asked for."""

    def __init__(self, ids: np.ndarray, ends: np.ndarray, starts: np.ndarray) -> None:
        self.ids, self.ends, self.starts = ids, ends, starts

    @classmethod
    def of(cls, items: Sequence[Encoded]) -> Packed:
        """Pack a list."""
        ends = np.cumsum([len(e.ids) for e in items], dtype=np.int64)
        ids = np.fromiter((t for e in items for t in e.ids), dtype=np.int32, count=int(ends[-1]) if items else 0)
        return cls(ids, ends, np.array([e.start for e in items], dtype=np.int32))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return Encoded(self.ids[self.ends[i - 1] if i else 0 : self.ends[i]].tolist(), int(self.starts[i]))


@dataclass(frozen=True)
class Corpus:
    """An encoded dataset and how many of its examples had to be cut."""

    items: Sequence[Encoded]
    truncated: int

    @property
    def longest(self) -> int:
        """The most tokens of a row."""
        if isinstance(self.items, Packed):
            return int(np.diff(self.items.ends, prepend=0).max())
        return max(len(e.ids) for e in self.items)


def split_pair(tokenizer: Any, prompt: str, target: str, *, special: bool = True) -> tuple[list[int], list[int]]:
    """Encode prompt + target together and part them where the prompt alone would end (lm-eval's convention).

    `special` lets the tokenizer add its special tokens; a chat template has written them already.
    """
    [(whole, start)] = _encode_pairs(tokenizer, [(prompt, target)], special)
    return whole[:start], whole[start:]


def _encode_pairs(tokenizer: Any, pairs: list[tuple[str, str]], special: bool) -> list[tuple[list[int], int]]:
    """The ids of every prompt + target, and how many of them are the prompt's.

    In a chat template (no special tokens to add) a token that reaches over the end of the prompt is the target's, so
    that no beginning of an answer is lost.
    """
    whole = tokenizer([p + t for p, t in pairs], add_special_tokens=special)["input_ids"]
    prompts = sorted({p for p, _ in pairs if p})
    encoded = tokenizer(prompts, add_special_tokens=special)["input_ids"] if prompts else []
    alone = dict(zip(prompts, encoded))
    count = (lambda ids, prompt: len(prompt)) if special else _shared
    return [(ids, count(ids, alone.get(p, []))) for ids, (p, _) in zip(whole, pairs)]


def _shared(a: list[int], b: list[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def chat_pair(tokenizer: Any, prompt: str, target: str = "") -> tuple[str, str]:
    """The text of a user's turn up to where the answer begins, and the answer with its end of turn.

    Raises:
        UsageError: if the tokenizer has no chat template, or one that writes the user's turn otherwise once answered.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("chat: true, but the tokenizer has no chat template", hint="leave `chat` out for a base model")
    user = {"role": "user", "content": prompt}
    opening: str = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    if not target:
        return opening, ""
    answer = {"role": "assistant", "content": target.strip()}
    whole: str = tokenizer.apply_chat_template([user, answer], tokenize=False)
    if not whole.startswith(opening):
        raise UsageError("chat: true, but the chat template writes a turn otherwise when the next one follows")
    return opening, whole[len(opening) :].rstrip()


def encode(tokenizer: Any, example: Example, max_length: int, *, chat: bool = False) -> tuple[Encoded, bool]:
    """Encode one example; the flag says whether it was cut."""
    [(item, cut)] = _encode_all(tokenizer, [example], Form(max_length=max_length, chat=chat))
    return item, cut


def encode_corpus(tokenizer: Any, examples: list[Example], form: Form, name: str) -> Corpus:
    """Encode all examples.

    Raises:
        UnavailableError: if an example has no token to score.
        UsageError: if a chat template is asked for and there is none.
    """
    items: list[Encoded] = []
    truncated = 0
    for i in range(0, len(examples), BLOCK):
        for k, (item, cut) in enumerate(_encode_all(tokenizer, examples[i : i + BLOCK], form), i):
            if item.targets < 1:
                where = f"{name}, example {k}" if form.long == "cut" else name
                raise UnavailableError(f"{where}: there is no token to learn from in {tokenizer.decode(item.ids)!r}")
            items.append(item)
            truncated += cut
    return Corpus(Packed.of(items), truncated)


def _encode_all(tokenizer: Any, examples: list[Example], form: Form) -> Iterator[tuple[Encoded, bool]]:
    """Encode a block of examples; a split text yields several rows.

    A prompted target ends with the end-of-sequence token, or as the chat template ends a turn.
    """
    chat = [form.chat and bool(e.prompt) for e in examples]
    texts = [
        chat_pair(tokenizer, e.turn or e.prompt, e.target) if c else (e.prompt, e.target)
        for e, c in zip(examples, chat)
    ]
    # A template has written the special tokens as text already.
    rows = {c: iter(_encode_pairs(tokenizer, [t for t, k in zip(texts, chat) if k is c], not c)) for c in set(chat)}
    for example, c in zip(examples, chat):
        whole, start = next(rows[c])
        if not example.prompt and form.long == "split":
            pieces = [whole[i : i + form.max_length] for i in range(0, len(whole), form.max_length)]
            yield from ((Encoded(piece, 1), False) for piece in pieces if len(piece) > 1 or len(pieces) == 1)
            continue
        end = [tokenizer.eos_token_id] if example.prompt and not c and tokenizer.eos_token_id is not None else []
        yield _fitted(whole[:start], whole[start:] + end, form.max_length)


def _fitted(prompt: list[int], target: list[int], max_length: int) -> tuple[Encoded, bool]:
    """Too long a prompt loses its beginning, never the answer, unless the answer alone is too long."""
    room = max_length - len(target)
    cut = len(prompt) > room
    ids = ((prompt[len(prompt) - max(room, 0) :] if cut else prompt) + target)[:max_length]
    return Encoded(ids, max(1, len(ids) - len(target)) if room > 0 else 1), cut


@dataclass(frozen=True)
class Batch:
    """Right-padded ids [B, T], which of them are real, and which are scored."""

    ids: Tensor
    mask: Tensor
    scored: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.ids.to(device), self.mask.to(device), self.scored.to(device))


def collate(items: Sequence[Encoded], pad: int = 0) -> Batch:
    """Pad to the longest. The value of `pad` never matters."""
    length = max(len(e.ids) for e in items)
    ids = torch.full((len(items), length), pad)
    mask, scored = (torch.zeros(len(items), length, dtype=torch.bool) for _ in range(2))
    for i, e in enumerate(items):
        ids[i, : len(e.ids)] = torch.tensor(e.ids)
        mask[i, : len(e.ids)] = True
        scored[i, e.start : len(e.ids)] = True
    return Batch(ids, mask, scored)
