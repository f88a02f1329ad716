"""Lines by their content: copies, rows that nobody sees, rows that are in another set."""

from __future__ import annotations

import random
import time

import pytest

from ilu_cli.care import overlap
from ilu_cli.care.content import Lines, Shared, visible
from ilu_cli.care.overlap import LONG, Wanted, keys, within, words

LONG_TEXT = "The tram that leaves the old harbour at seven climbs past the brewery and the school before it turns north"


@pytest.mark.parametrize(
    ("text", "other", "there"),
    [
        ("The capital of France is Paris.", "Yes: the  CAPITAL of France is “Paris”, you know.", True),
        ("The capital of France is Paris.", "The capital of France, is it Paris?", False),
        ("Paris", "He went to Paris.", False),  # less than four words: only as a whole row
        ("Paris", "paris!", True),
        ("ｔｈｅ capital of France", "the capital of france", True),  # NFKC
        ("日本の首都は東京です", "昔から日本の首都は東京です。", True),
        ("日本の首都は東京です", "中国の首都は北京です。", False),
        (LONG_TEXT, f"Listen. {LONG_TEXT}, they say.", True),
        (LONG_TEXT, LONG_TEXT.replace("brewery", "bakery"), False),  # no run of 13 words of 20 is left
        (LONG_TEXT, " ".join(LONG_TEXT.split()[:14]), False),  # two of eight runs
        ("", "anything", False),
        ("... !", "... !", False),  # no word
    ],
)
def test_a_text_in_another(text: str, other: str, there: bool) -> None:
    assert within([text], ["something else entirely", other]) == ({0: 1} if there else {})


def test_of_a_long_text_every_sixteenth_run_is_looked_for() -> None:
    rng = random.Random(0)
    text = [f"w{rng.randrange(9999)}" for _ in range(3 * LONG)]
    wanted = Wanted([" ".join(text)])
    assert len(wanted.hashes[13]) < 3 * LONG / 8
    assert wanted.within(["x", " ".join(["before", *text, "after"])]) == {0: 1}
    assert wanted.within([" ".join(text[: 3 * LONG // 4])]) == {}


def test_where_texts_are_parted_into_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"this is the fact with the number {i}" for i in range(40)]
    others = [f"{'so ' * (i % 7)}this is the fact with the number {i}" for i in range(20, 60)]
    expected = {i: i - 20 for i in range(20, 40)}
    assert within(texts, others) == expected
    for chunk, at_once in ((7, 1 << 22), (4096, 100)):
        monkeypatch.setattr(overlap, "CHUNK", chunk)
        monkeypatch.setattr(overlap, "AT_ONCE", at_once)
        assert within(texts, others) == expected


def naive(texts: list[str], others: list[str]) -> set[int]:
    split = [words(o) for o in others]
    found = set()
    for i, text in enumerate(texts):
        w = words(text)
        n = min(len(w), 13)
        runs = [w[k : k + n] for k in range(len(w) - n + 1)]
        hits = [any(run == o[k : k + n] for o in split for k in range(len(o) - n + 1)) for run in runs]
        if n >= 4 and sum(hits) >= (0.8 if n == 13 else 1) * len(hits):
            found.add(i)
    return found


def test_the_fast_search_finds_what_the_plain_one_does() -> None:
    rng = random.Random(1)

    def some(n: int) -> list[str]:
        return [" ".join(rng.choices("abc", k=rng.randrange(4, 18))) for _ in range(n)]

    texts, others = some(150), some(60)
    found = within(texts, others)
    assert set(found) == naive(texts, others)
    assert 20 < len(found) < 140


def test_ten_thousand_rows_take_about_a_second() -> None:
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(20000)]
    a, b = ([" ".join(rng.choices(vocabulary, k=30)) for _ in range(10_000)] for _ in range(2))
    b[77] = a[5].upper() + "!"
    began = time.process_time()
    assert within(a, b) == {5: 77}
    assert time.process_time() - began < 6  # 1.1 s for both on the two slow cores where this was written


def test_rows_that_nobody_sees() -> None:
    assert not any(map(visible, ["\u200b\u200b", "\u2800", "\u3164", " \t\u00a0", "\ufeff", "\u0301", ""]))
    assert all(map(visible, ["a", "!", "é", "😀", "∑", "7", "東"]))
    found = Lines("forget", "f", ["a x", "b \u200b"], ["x", "\u200b"])
    assert found.facts()["invisible"] == 1
    assert [w.id for w in found.warned()] == ["invisible-rows"]
    assert "(row 2)" in next(found.warned()).text


@pytest.mark.parametrize(
    ("texts", "ids"),
    [
        (["a"] * 5 + ["b", "c"], ["one-row-repeated"]),
        (["A  b.", "a b"], ["one-row-repeated"]),  # the same words
        (["a"], []),
        (["a", "b", "c", "d"], []),
        (["a", "a", "b", "c", "d"], []),  # 25 / 7 > 2.5
        (["a", "a", "a", "b", "b", "b", "c", "c", "c"], ["duplicate-rows"]),  # 81 / 27 < 4.5
        (["!", "?"], []),  # without words the characters tell
    ],
)
def test_copies(texts: list[str], ids: list[str]) -> None:
    assert [w.id for w in Lines("forget", "f", texts).warned()] == ids


def test_an_overlap_names_rows_file_and_an_example() -> None:
    f = Lines("forget", "f.jsonl", ["The capital of France is Paris.", "The moon is made of cheese."])
    e = Lines("environment", "mine", ["x", "We know the moon is made of cheese."], place="/data/e.jsonl")
    found = Shared.of(f, e)
    assert found.told() == (
        "1 of 2 rows of the forget data f.jsonl (row 2) is in the environment data mine (/data/e.jsonl) (row 2), "
        "such as 'The moon is made of cheese.'"
    )
    assert found.facts() == {"of": "forget data f.jsonl", "in": "environment data mine", "rows": 1, "of_rows": 2}
    assert found.warned("Why.")
    assert Shared.of(e, f).warned("Why.") is None


def test_the_words_are_the_key_of_a_row() -> None:
    assert keys(["Hello, World", "hello world!", "?", "? "]) == ["hello world", "hello world", "?", "?"]
