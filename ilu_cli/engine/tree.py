"""Requests laid out as trees of tokens, so that every shared prefix is run once.

A request is a sequence of tokens of which the last ones are scored. Sorted by their tokens, requests that begin alike
stand beside each other; a row holds the tokens of neighbours in pre-order, each shared beginning once. What comes
before a token is then told by two numbers: j is i or one of its ancestors if j ≤ i < end[j]. Several trees in one row
do not see each other, so a row has no padding. For decoders that cannot be told (`ilu_cli.engine.layout`), a row is a
single path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

WIDTH = 128  # tokens that a row may have however short its requests; attention in a row costs its length squared
WORTH = 2000  # pairs of tokens whose attention takes as long as all else of one token; measured on a CPU


@dataclass(frozen=True)
class Request:
    """Token ids, of which those from `start` on are scored. Index 0 is never scored: nothing predicts it."""

    ids: tuple[int, ...]
    start: int


@dataclass
class Forest:
    """Trees of tokens in pre-order.

    `requests` are the indices of the requests in it, `scored` for each the places (node that predicts, token).
    The last token of a request is only predicted and never read, so it is no node unless another request goes on.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    scored: list[list[tuple[int, int]]] = field(default_factory=list)
    path: list[int] = field(default_factory=list)  # nodes of the request added last
    longest: int = 0

    def shared(self, request: Request) -> int:
        """How many of the request's first tokens are on the path of the request added last."""
        n = 0
        for node, token in zip(self.path, request.ids[:-1]):
            if self.ids[node] != token:
                break
            n += 1
        return n

    def fits(self, request: Request) -> bool:
        """Whether the row stays short: within `WIDTH`, twice its longest request, or where what is shared pays.

        Rows of L tokens that share S run S / (L − S) more a token than is new, and L pairs; that costs least at
        L = S + √(WORTH · S).
        """
        longest, shared = max(self.longest, len(request.ids) - 1), self.shared(request)
        best = shared + math.sqrt(WORTH * shared)
        return len(self) + len(request.ids) - 1 - shared <= max(WIDTH, 2 * longest, best)

    def one_path(self, request: Request) -> bool:
        """Whether the row has no branch with this request either: one of the two begins with the other."""
        return self.shared(request) == min(len(self), len(request.ids) - 1)

    def add(self, index: int, request: Request) -> None:
        """Append what the row does not have yet of a request."""
        inputs, common = request.ids[:-1], self.shared(request)
        self.path = self.path[:common] + list(range(len(self), len(self) + len(inputs) - common))
        self.ids += inputs[common:]
        self.positions += range(common, len(inputs))
        self.end += [0] * (len(inputs) - common)
        for node in self.path:
            self.end[node] = len(self.ids)
        self.longest = max(self.longest, len(inputs))
        self.requests.append(index)
        self.scored.append([(self.path[t - 1], request.ids[t]) for t in range(request.start, len(request.ids))])

    def __len__(self) -> int:
        return len(self.ids)


def in_rows(requests: list[Request], chosen: list[int], *, trees: bool = True) -> list[Forest]:
    """Lay the chosen requests out in rows, neighbours together, the shortest row first; without `trees` in paths."""
    rows: list[Forest] = []
    for i in sorted(chosen, key=lambda i: requests[i].ids):
        if not rows or not (rows[-1].fits if trees else rows[-1].one_path)(requests[i]):
            rows.append(Forest())
        rows[-1].add(i, requests[i])
    return sorted(rows, key=len)


def halves(row: Forest, requests: list[Request]) -> list[Forest]:
    """Part a row of several requests in two."""
    parts = [Forest(), Forest()]
    for n, i in enumerate(row.requests):
        parts[2 * n >= len(row.requests)].add(i, requests[i])
    return parts


def take(rows: list[Forest], tokens: int) -> list[Forest]:
    """Remove from the end of `rows` a batch of at most `tokens` tokens, padding included, or of one row."""
    batch = [rows.pop()]
    length = len(batch[0])
    while rows and (len(batch) + 1) * max(length, len(rows[-1])) <= tokens:
        batch.append(rows.pop())
        length = max(length, len(batch[-1]))
    return batch


def taken(rows: list[Forest], tokens: int) -> list[list[Forest]]:
    """All batches that `take` makes of the rows, which are used up."""
    found = []
    while rows:
        found.append(take(rows, tokens))
    return found


def places(rows: list[Forest]) -> list[tuple[int, int, int]]:
    """(node that predicts, request, token) of every scored token, ascending; nodes are counted over a batch's [B·T]."""
    width = max(map(len, rows))
    found = [
        (b * width + node, i, token)
        for b, row in enumerate(rows)
        for i, pairs in zip(row.requests, row.scored)
        for node, token in pairs
    ]
    return sorted(found)


def as_tensors(rows: list[Forest]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, positions, and where each token's descendants end, [B, T] each; padding has none."""
    length = max(map(len, rows))
    ids, positions = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(2))
    end = torch.arange(1, length + 1).repeat(len(rows), 1)
    for b, row in enumerate(rows):
        n = len(row)
        ids[b, :n], positions[b, :n], end[b, :n] = map(torch.tensor, (row.ids, row.positions, row.end))
    return ids, positions, end


def who_sees_whom(end: Tensor) -> Tensor:
    """[B, T, T] from `end` [B, T]: whether token i sees j, itself or one of its ancestors."""
    place = torch.arange(end.shape[1], device=end.device)
    return (place[:, None] >= place) & (place[:, None] < end[:, None, :])
