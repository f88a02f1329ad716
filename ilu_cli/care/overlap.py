"""Which rows of one set are in another, by their words: in linear time, with the memory of the rows looked for."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

RUN, SHARE = 13, 0.8  # words of a run; share of a text's runs that must be there
LEAST = 4  # words: fewer are looked for as whole rows only
LONG, SAMPLED = 512, 16  # of a text with more runs than this one in so many is looked for, chosen by its hash
LENGTH = 1 << 14  # characters of a text that are read: some 2,500 words
CHUNK, AT_ONCE = 4096, 1 << 22  # texts, and characters, that are hashed at a time
ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{ALONE}]|[^\\W_{ALONE}]+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words of a text: NFKC, case folded, letters and digits only; of scripts without spaces every character."""
    text = text[:LENGTH]
    return WORD.findall(text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold())


@functools.lru_cache(1 << 18)
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")


@dataclass
class _Chunk:
    """Texts as one row of hashed words [W]; `row` [W] is the text of each word and `left` [W] the words from it on."""

    hashes: Hashes
    row: NDArray[np.int64]
    left: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str], first: int) -> _Chunk:
        found = [words(t) for t in texts]
        known = {w: _number(w) for w in set().union(*found)}
        lengths = np.array([len(w) for w in found], np.int64)
        numbers = np.fromiter((known[w] for ws in found for w in ws), np.uint64, int(lengths.sum()))
        ends = np.repeat(np.cumsum(lengths), lengths)
        row = np.repeat(np.arange(first, first + len(found)), lengths)
        return cls(numbers, row, ends - np.arange(len(numbers)), lengths)

    def runs(self, n: int, *, whole: bool = False) -> tuple[Hashes, NDArray[np.int64]]:
        """Hashes of all runs of n words within a text, and their texts; if `whole`, of texts that have n words.

        Σ_k w_k F^(n−1−k) modulo 2⁶⁴, with w_k 64 bits of blake2b of a word.
        """
        size = max(0, len(self.hashes) - n + 1)
        total = np.zeros(size, np.uint64)
        for k in range(n):
            total = total * FACTOR + self.hashes[k : k + size]
        inside = self.left[:size] >= n
        if whole:
            inside &= (self.left[:size] == n) & (self.lengths[self.row[:size] - self.row[0]] == n) if size else inside
        return total[inside], self.row[:size][inside]


def _chunks(texts: Sequence[str]) -> Iterator[_Chunk]:
    start, size = 0, 0
    for i, text in enumerate(texts):
        if i - start == CHUNK or size > AT_ONCE:
            yield _Chunk.of(texts[start:i], start)
            start, size = i, 0
        size += min(len(text), LENGTH)
    if start < len(texts):
        yield _Chunk.of(texts[start:], start)


@dataclass
class Wanted:
    """Texts to look for, as sorted hashes by the number of words of a run.

    A text of `RUN` words or more is in a set if `SHARE` of its runs of `RUN` words are, each anywhere in the set; a
    shorter one if all its words stand there in a row; one of less than `LEAST` if it is a whole row of the set. Runs of
    13 words are the rule of GPT-3 (arXiv 2005.14165, app. C) for benchmarks in training text, and 80 % that of Llama 2
    (arXiv 2307.09288, A.6) for a dirty sample; one shared run would make a boilerplate sentence an overlap.
    """

    texts: Sequence[str]
    hashes: dict[int, Hashes] = field(default_factory=dict)
    rows: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts: dict[int, list[tuple[Hashes, NDArray[np.int64]]]] = {}
        for chunk in _chunks(self.texts):
            for n in sorted({min(int(k), RUN) for k in chunk.lengths if k}):
                found, row = chunk.runs(n, whole=n < RUN)
                if n == RUN:
                    many = chunk.lengths[row - chunk.row[0]] >= LONG + RUN if len(row) else row.astype(bool)
                    kept = ~many | (found % np.uint64(SAMPLED) == 0)
                    found, row = found[kept], row[kept]
                parts.setdefault(n, []).append((found, row))
        for n, each in parts.items():
            found, row = np.concatenate([f for f, _ in each]), np.concatenate([r for _, r in each])
            order = np.argsort(found, kind="stable")
            self.hashes[n], self.rows[n] = found[order], row[order]

    def within(self, others: Sequence[str]) -> dict[int, int]:
        """The numbers, from 0, of the texts that are in `others`, each with the first that holds some of it."""
        hits = {n: np.full(len(h), -1, np.int64) for n, h in self.hashes.items()}
        for chunk in _chunks(others):
            for n, wanted in self.hashes.items():
                found, row = chunk.runs(n, whole=n < LEAST)
                found, first = np.unique(found, return_index=True)  # the first row of each
                at = np.searchsorted(found, wanted)
                at[at == len(found)] = 0
                there = (found[at] == wanted) & (hits[n] < 0) if len(found) else np.zeros(len(wanted), bool)
                hits[n][there] = row[first[at[there]]]
        return {i: at for n in hits for i, at in self._enough(n, hits[n])}

    def _enough(self, n: int, hits: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """The texts of runs of n words of which enough are there; `hits` is -1 where a run is not."""
        if not len(hits):
            return
        rows, there = self.rows[n], hits >= 0
        size = int(rows.max()) + 1
        share = np.bincount(rows, there, size) / np.maximum(1, np.bincount(rows, minlength=size))
        first = np.full(size, np.iinfo(np.int64).max)
        np.minimum.at(first, rows[there], hits[there])
        for i in np.flatnonzero(share >= (SHARE if n == RUN else 1)):
            yield int(i), int(first[i])


def within(texts: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """Which of some texts are in others; see `Wanted`."""
    return Wanted(texts).within(others)


def sharing(texts: Sequence[str], others: Sequence[str], n: int) -> list[int]:
    """The numbers, from 0, of the texts that have some run of n words of the others."""
    mine = [chunk.runs(n) for chunk in _chunks(texts)]
    hashes = np.concatenate([h for h, _ in mine]) if mine else np.zeros(0, np.uint64)
    rows = np.concatenate([r for _, r in mine]) if mine else np.zeros(0, np.int64)
    there = np.zeros(len(hashes), bool)
    for chunk in _chunks(others):
        there |= np.isin(hashes, chunk.runs(n)[0])
    return sorted({int(row) for row in rows[there]})


def keys(texts: Sequence[str]) -> list[str]:
    """What makes two texts the same: their words; of a text without any, its characters but white space."""
    return [" ".join(words(t)) or "".join(t.split()) for t in texts]
