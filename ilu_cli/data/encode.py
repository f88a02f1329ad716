"""From text to token ids with a target span. Labels come from spans, never from `ids != pad`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilu_cli.data.chat import Chat, chat_of, chat_pair, check_template
from ilu_cli.data.special import cut_left, kept, opening, parted_all
from ilu_cli.errors import UnavailableError
from ilu_cli.recipe.specs import Form
from ilu_cli.tasks import Example

LONGEST = 500_000  # characters of a row that may be cut to max_length
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

    def length(self, i: int) -> int:
        """How many tokens row `i`, counted from 0, has."""
        return int(self.ends[i] - (self.ends[i - 1] if i else 0))

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

    @property
    def shortest(self) -> int:
        """The fewest tokens of a row."""
        return min(map(self.length, range(len(self.items))))

    def length(self, i: int) -> int:
        """How many tokens row `i` has."""
        return self.items.length(i) if isinstance(self.items, Packed) else len(self.items[i].ids)

    @property
    def largest(self) -> int:
        """The largest token id."""
        return int(self.items.ids.max()) if isinstance(self.items, Packed) else max(max(e.ids) for e in self.items)


def encode(tokenizer: Any, example: Example, max_length: int, *, chat: bool = False) -> tuple[Encoded, bool]:
    """Encode one example; the flag says whether it was cut."""
    form = Form(max_length=max_length, chat=chat)
    [(item, cut)] = _encode_all(tokenizer, [example], form, chat_of(form), opening(tokenizer))
    return item, cut


def encode_corpus(tokenizer: Any, examples: list[Example], form: Form, name: str) -> Corpus:
    """Encode all examples.

    Raises:
        UnavailableError: if an example has no token to score, or is so long that next to all of it would be cut.
        UsageError: if a chat template is asked for and there is none, or it does not do what the recipe asks of it.
    """
    chat, before = chat_of(form), opening(tokenizer)
    _check_size(examples, form, name)
    items: list[Encoded] = []
    truncated = 0
    for i in range(0, len(examples), BLOCK):
        for k, (item, cut) in enumerate(_encode_all(tokenizer, examples[i : i + BLOCK], form, chat, before), i):
            if item.targets < 1:
                where = f"{name}, example {k}" if form.long == "cut" else name
                raise UnavailableError(f"{where}: there is no token to learn from in {tokenizer.decode(item.ids)!r}")
            items.append(item)
            truncated += cut
    return Corpus(Packed.of(items), truncated)


def _check_size(examples: list[Example], form: Form, name: str) -> None:
    most = max(LONGEST, 32 * form.max_length)
    for k, e in enumerate(examples):
        if (size := len(e.prompt) + len(e.target)) > most and (e.prompt or form.long == "cut"):
            raise UnavailableError(
                f"{name}, example {k}: {size:,} characters, of which {form.max_length} tokens would be kept",
                hint="write it as several rows; of texts without a prompt, `long: split` makes rows of max_length",
            )


def _encode_all(
    tokenizer: Any, examples: list[Example], form: Form, chat: Chat | None, before: list[int]
) -> Iterator[tuple[Encoded, bool]]:
    """Encode a block of examples; a split text yields several rows, each with the special tokens at its beginning.

    A prompted target ends with the end-of-sequence token, once, or as the chat template ends a turn.
    """
    eos = tokenizer.eos_token_id
    for example, (turn, ids, start) in zip(examples, _tokens(tokenizer, examples, chat, before)):
        keep = kept(before, ids)
        if not example.prompt and form.long == "split":
            yield from ((piece, False) for piece in _pieces(ids[:keep], ids[keep:], form.max_length))
            continue
        if example.prompt and not turn and eos is not None and ids[-1:] != [eos]:
            ids = [*ids, eos]
        yield _fitted(ids, start, keep, form.max_length)


def _tokens(
    tokenizer: Any, examples: list[Example], chat: Chat | None, before: list[int]
) -> Iterator[tuple[bool, list[int], int]]:
    """Of each example: whether it is a turn of a chat, its ids, and where the target begins in them."""
    turns = [chat is not None and bool(e.prompt) for e in examples]
    texts = [(e.prompt, e.target) for e in examples]
    if chat is not None and any(turns):
        check_template(tokenizer, chat)
        texts = [
            chat_pair(tokenizer, e.turn or e.prompt, e.target, chat) if turn else text
            for e, turn, text in zip(examples, turns, texts)
        ]
    rows = {  # a template has written the special tokens as text already
        turn: iter(parted_all(tokenizer, [] if turn else before, [t for t, k in zip(texts, turns) if k is turn]))
        for turn in set(turns)
    }
    yield from ((turn, *next(rows[turn])) for turn in turns)


def _pieces(head: list[int], body: list[int], max_length: int) -> Iterator[Encoded]:
    """The rows of a text that is split; a last one without a token to score is left out."""
    size = max(1, max_length - len(head))
    for i in range(0, len(body), size) or (0,):
        piece = head + body[i : i + size]
        if len(piece) > 1 or len(body) <= size:
            yield Encoded(piece, 1)


def _fitted(ids: list[int], start: int, keep: int, max_length: int) -> tuple[Encoded, bool]:
    """Too long a prompt loses its beginning but for `keep` ids; an answer only its end, if it alone is too long."""
    room = max(max_length - (len(ids) - start), keep)
    prompt = cut_left(ids[:start], room, keep)
    return Encoded((prompt + ids[start:])[:max_length], max(1, len(prompt))), len(ids) > max_length


@dataclass(frozen=True)
class Batch:
    """Right-padded ids [B, T], which of them are real, and which are scored."""

    ids: Tensor
    mask: Tensor
    scored: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
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
