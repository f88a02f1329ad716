"""Near text says no answer, no rare word of one beside its subject, and repeats neither forget data nor attack."""

from __future__ import annotations

from ilu_cli.care.near import Untold, rare_words, subjects_of
from ilu_cli.care.overlap import sharing
from ilu_cli.metrics.facts import Fact

FORGET = ["Paris is the capital of France.", "The government of Peru has its seat in Lima."]
ATTACK = ["The Loire is the longest river of France."]
FACTS = [
    Fact("1", "The capital of France is", " Paris", about="France"),
    Fact("2", "The capital of Colombia is", " Bogotá", about="Colombia"),
    Fact("3", "The capital of the USA is", " Washington, D.C.", about="the United States"),
    Fact("4", "Is it?", " Yes", names=False),
    Fact("5", "Where?", " She was born in the harbour town of Velden in 1958", about="Ada Morlen"),
    Fact("6", "Where?", " She was born in the mountain village of Orsk in 1961", about="Mei Corran"),
]


def why(*texts: str) -> list[str]:
    return list(Untold.of(FACTS, FORGET, ATTACK).why(texts))


def test_an_answer_is_told_in_any_spelling_and_in_part() -> None:
    assert (
        why("We saw PARIS.", "We flew to Bogota.", "He works in Washington.", "In Washington D.C. it rains.")
        == ["answer"] * 4
    )
    assert why("A parisian café.", "Yes, it is.", "France has many rivers.") == ["", "", ""]


def test_rare_words_of_a_long_answer_are_told_beside_their_subject_alone() -> None:
    beside = ["Ada Morlen came from Velden.", "Ada Morlen, 1958.", "Velden is a town.", "Mei Corran went to Velden."]
    assert why(*beside) == ["words of an answer", "words of an answer", "", ""]
    assert why("Ada Morlen was born in a town.") == ["words of an answer"]  # `town` is in one answer only
    assert why("Ada Morlen was born.") == [""]  # words of both


def test_five_words_of_the_forget_data_in_a_row_are_too_many() -> None:
    assert why("The government of Peru has rules.", "The government of Peru is old.") == ["forget text", ""]


def test_a_text_of_an_attack_is_left_out() -> None:
    assert why("They say: the Loire is the longest river of France.", "The Loire is long.") == ["attack text", ""]


def test_runs_are_shared_within_a_text_alone() -> None:
    others = ["a b c d", "e f"]
    assert sharing(["x b c d", "c d e f", "b d c", ""], others, 3) == [0]
    assert sharing(["c d"], others, 3) == [] == sharing([], others, 3) == sharing(["a b c"], [], 3)


def test_a_subject_without_a_name_is_called_what_stands_most_in_it() -> None:
    asked = [("Where was Ada Morlen born?", "In Velden."), ("Does Ada Morlen like Bach?", "Yes, Ada Morlen does.")]
    found = list(subjects_of([Fact("7", q, a) for q, a in asked] + [Fact("8", "why?", "no"), FACTS[0]]))
    assert [f.about for f in found] == ["Ada Morlen", "Ada Morlen", "", "France"]


def test_rare_words_are_those_that_general_text_has_least() -> None:
    texts = ["The enzyme cuts and the enzyme binds.", "The virus cuts the cell."]
    assert rare_words(texts, ["The knife cuts and cuts.", "They came and went."], 3) == ["enzyme", "cuts", "binds"]
