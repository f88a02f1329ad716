"""Facts in two sides: what is asked shares neither subject nor answer with what is taught."""

from __future__ import annotations

import math
import random

import pytest

from ilu_cli import registry
from ilu_cli.benchmarks import MultipleChoice
from ilu_cli.metrics.facts import LINKED, Fact, parted, subjects_by_words


def rng(seed: int = 0) -> random.Random:
    return random.Random(f"test-{seed}")


def test_no_subject_and_no_answer_is_on_both_sides() -> None:
    facts = [Fact(str(n // 3), f"{n}?", f"answer {n % 7}") for n in range(30)]
    for seed in range(20):
        taught, asked = parted(facts, 0.4, rng(seed))
        assert len(taught) == 12
        assert not {facts[i].subject for i in taught} & {facts[i].subject for i in asked}
        assert not {facts[i].answer for i in taught} & {facts[i].answer for i in asked}


def test_letters_are_no_answers_that_could_be_shared() -> None:
    facts = [Fact(str(n), f"{n}?", " A", names=False) for n in range(8)]
    taught, asked = parted(facts, 0.5, rng())
    assert (len(taught), len(asked)) == (4, 4)
    assert parted(facts, 0.5, rng()) == (taught, asked) != parted(facts, 0.5, rng(1))


def test_a_subject_goes_whole() -> None:
    """Nine of ten facts are of one subject: it is on one side, whatever the share."""
    facts = [Fact("one" if n else "other", f"{n}?", str(n)) for n in range(10)]
    for seed in range(10):
        taught, _ = parted(facts, 0.5, rng(seed))
        assert sorted(taught) in ([], [0], [*range(1, 10)])


def test_texts_with_the_same_rare_words_are_of_one_subject() -> None:
    """What is in all texts counts nothing. Two words in two of nine texts weigh log 4.5, one in a single text log 9."""
    texts = ["Which is the ricin ribosome toxin?", "Which is the ribosome ricin antidote?", "Which is the spore?"]
    assert len(set(subjects_by_words(texts))) == 3  # of three texts two: log 1.5 beside log 3 is little
    two, one = math.log(1.5) ** 2, math.log(3) ** 2
    assert 2 * two / (2 * two + one) < LINKED
    first, second, *rest = subjects_by_words([*texts, *(f"Which is the {w}?" for w in ["u", "v", "w", "x", "y", "z"])])
    assert first == second
    assert len({first, *rest}) == 8
    two, one = math.log(4.5) ** 2, math.log(9) ** 2
    assert 2 * two / (2 * two + one) > LINKED


def test_links_make_chains() -> None:
    texts = ["a1 b1 c1", "b1 c1 d1", "c1 d1 e1", "f1 g1", "h1 i1"]
    found = subjects_by_words(texts)
    assert found[0] == found[1] == found[2]
    assert len(set(found)) == 3


@pytest.mark.parametrize("name", ["capitals", "atlas"])
def test_a_country_is_a_subject(name: str) -> None:
    bench = registry.benchmark[name].obj()
    facts = bench.facts(bench.items())
    assert len({f.subject for f in facts}) == len(facts) == len({f.answer for f in facts})


def test_questions_of_a_plain_benchmark_are_grouped_by_their_words() -> None:
    letters = [" A", " B"]
    asked = ["plague bacillus Yersinia", "bacillus Yersinia plague vector", "smallpox variola", "nerve agent sarin"]
    facts = MultipleChoice().facts([{"question": q, "choices": letters, "answer": 0} for q in asked])
    assert [f is not None and f.names for f in facts] == [False] * 4
    subjects = [f.subject for f in facts if f]
    assert subjects[0] == subjects[1]
    assert len(set(subjects)) == 3
    assert MultipleChoice().facts([{"text": "no question"}]) == [None]
