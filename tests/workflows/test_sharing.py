"""What does not change from one attack to the next is made once by a process: the benchmark's tokens, and its rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu

from ilu_cli.data.special import bodies
from ilu_cli.engine import layout, scoring
from ilu_cli.engine.tree import Request, in_rows


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often texts were encoded, and requests laid out, by a process that has done nothing yet."""
    found: Counter[str] = Counter()

    def counted(name: str, of: Any) -> Any:
        def count(*args: Any, **keys: Any) -> Any:
            found[name] += 1
            return of(*args, **keys)

        return count

    scoring.known_texts.cache_clear()
    layout._kept.cache_clear()
    monkeypatch.setattr(scoring, "bodies", counted("texts", bodies))
    monkeypatch.setattr(layout, "in_rows", counted("layouts", in_rows))
    return found


def attack(ilu: Ilu, model: Path, sigmas: str) -> Any:
    sets = [f"attack.sigmas={sigmas}", "eval.benchmarks=[capitals,elements]", "eval.limit=8"]
    done = ilu("attack", model, "--kind", "noise", *(x for s in sets for x in ("--set", s)), "--json")
    assert done.code == 0, done.err
    return [{n: s["value"] for n, s in p["eval"].items()} for p in json.loads(done.out)["points"][1:]]


def test_the_next_attack_encodes_nothing_and_lays_out_nothing(
    tiny: Path, ilu: Ilu, made: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ILU_CACHE_GB", "0")  # the model's comparison, which lays out too, is made each time
    attack(ilu, tiny, "[0.1, 0.2]")
    first = made.copy()
    assert first["texts"] >= 2 * 8 * 4
    kept = attack(ilu, tiny, "[0.3, 0.5]")
    assert made == first, "the same questions of a model with the same tokenizer"
    scoring.known_texts.cache_clear()
    layout._kept.cache_clear()
    assert attack(ilu, tiny, "[0.3, 0.5]") == kept
    assert made == {name: 2 * n for name, n in first.items()}


def test_rows_are_told_apart_by_all_that_makes_them(made: Counter[str]) -> None:
    class Config:
        sliding_window = None

    requests = [Request((1, 2, 3, 4), 2), Request((1, 2, 5, 6), 2)]
    trees, paths = layout.Layout(Config(), (layout.FULL,)), layout.Layout(Config())
    [tree] = trees.rows(requests)
    assert (len(tree), len(next(iter(paths.rows(requests))))) == (1, 2)
    [again] = trees.rows(requests)
    tree.clear()  # a list is used up by who asked for it
    assert (len(again), made["layouts"]) == (1, 2)
    [other] = trees.rows([requests[0], Request((1, 2, 5, 6), 3)])
    assert (other[0].scored != again[0].scored, made["layouts"]) == (True, 3)


def test_what_is_large_is_not_kept(made: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "KEPT", 7)
    for _ in range(2):
        list(layout.Layout(object()).rows([Request((1, 2, 3, 4), 2), Request((1, 2, 5, 6), 2)]))
    assert (made["layouts"], layout._kept.cache_info().currsize) == (2, 0)


def test_another_tokenizer_or_embedding_has_texts_of_its_own(made: Counter[str]) -> None:
    known = scoring.known_texts("a", 10)
    known["text", True] = [1]
    assert scoring.known_texts("a", 10) == {("text", True): [1]}
    assert scoring.known_texts("b", 10) == scoring.known_texts("a", 11) == {}
