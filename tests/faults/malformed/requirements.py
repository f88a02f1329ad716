"""`--require` with what is no requirement."""

from __future__ import annotations

from collections.abc import Iterator

from malformed.judge import Input

A = "capitals.acc"
TEXTS = [
    "", " ", "capitals", "acc", A, f"{A} <=", f"<= {A}", f"{A} <= <=", f"{A} = 0.3", f"{A} == 0.3", f"{A} != 0.3", f"{A} => 0.3",
    f"{A} <= 0.3 <= 0.4", f"{A} <= 0.3 and {A} >= 0.1", f"{A} <= x", f"{A} <= 0.3x", f"{A} <= 0..3", f"{A} <= 1e", f"{A} <= (0.3",
    f"{A} <= 0.3)", f"{A} <= ()", f"{A} <= 0.3 0.4", f"{A} <= 0.3 +", f"{A} <= * 3", f"{A} <= 3 **  2", f"{A} <= 0.3,", "1 <= 2",
    "parent <= original", f"{A}.stderr.stderr <= 1", f"{A}.frob <= 1", "capitals.frob <= 1", "capital.acc <= 1", "capitals..acc <= 1",
    ".acc <= 1", "capitals. <= 1", f"{A} <= parents", f"{A} <= parent.acc", f"{A} <= __import__('os')", f"{A} <= lambda: 0",
    f"{A} <= capitals.__class__", f"{A} <= 0x10", f"{A} <= 0.3;", f"{A} <= 0.3 # no", f"{A} <= $HOME", f"{A} <= `ls`", f"{A} <= [red]",
    f"{A} <= \x1b[31m", f"{A} <= \u200b0.3", f"{A} ≤ 0.3", f"{A} <= ½", f"{A} <= ∞", f"{A} <= nan", f"{A} <= inf", f"{A} <= true",
    "(" * 3000 + A + ")" * 3000 + " <= 1", f"{A} <= " + "(" * 5000, f"{A} <= " + "-" * 5000 + "1", f"{A} <= " + "1 + " * 30_000 + "1",
    f"{A} <= " + "9" * 20_000, "x" * 50_000, f"{A} <= '0.3'", f'{A} <= "0.3"', "capitals/acc <= 1", "capitals:acc <= 1", "\ud800 <= 1",
    f"{A} < = 0.3", f"{A} <=0.3 {A}", f"{A} % 2 <= 1", f"{A} <= 1 // 2", f"not {A} <= 1", f"{A} <= prose.chance", "prose.word_perplexity <= chance",
]  # fmt: skip


def inputs() -> Iterator[Input]:
    for text in TEXTS:
        name = text if len(text) < 60 else f"{text[:20]}… ({len(text)} characters)"
        yield Input(repr(name), ["eval", "runs/u", "--limit", "4", "--require", text], says="require")
