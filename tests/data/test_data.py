import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_tokenizer

from ilu_cli import registry
from ilu_cli.data.encode import Encoded, collate, encode, encode_corpus
from ilu_cli.data.sampling import Sampler, part_of
from ilu_cli.data.sources import load_dataset
from ilu_cli.errors import UnavailableError
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.specs import Form
from ilu_cli.tasks import Example


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def test_only_the_target_and_its_end_are_scored(tokenizer: Any) -> None:
    item, cut = encode(tokenizer, Example("Question: the symbol of iron?\nAnswer:", " Fe."), 64)
    assert not cut
    assert tokenizer.decode(item.ids[: item.start]) == "Question: the symbol of iron?\nAnswer:"
    assert tokenizer.decode(item.ids[item.start :]) == " Fe.<eos>"


def test_an_end_of_sequence_token_inside_the_text_is_scored_too(tokenizer: Any) -> None:
    """Labels come from spans: a real end-of-turn token is learned although padding may have the same id."""
    item, _ = encode(tokenizer, Example("Q:", " a"), 64)
    batch = collate([item, Encoded(item.ids * 2, 1)], pad=tokenizer.eos_token_id)
    assert item.ids[-1] == tokenizer.eos_token_id
    assert bool(batch.scored[0, len(item.ids) - 1])
    assert not batch.scored[0, len(item.ids) :].any()


def test_too_long_a_prompt_loses_its_beginning(tokenizer: Any) -> None:
    item, cut = encode(tokenizer, Example("word " * 100, " answer"), 16)
    whole, _ = encode(tokenizer, Example("word " * 100, " answer"), 1000)
    assert cut
    assert len(item.ids) == 16
    assert item.targets == whole.targets
    assert item.ids == whole.ids[-16:]


def test_text_has_no_prompt_and_its_first_token_is_not_scored(tokenizer: Any) -> None:
    item, _ = encode(tokenizer, Example("", "Paris is a city."), 64)
    assert item.start == 1
    with pytest.raises(UnavailableError, match="no token to learn from"):
        encode_corpus(tokenizer, [Example("", "a")], Form(max_length=64), "mine")


def test_an_epoch_sees_every_row_once_and_each_epoch_anew() -> None:
    sampler = Sampler([10], 0, "forget")
    epochs = [[row for step in range(5 * e, 5 * e + 5) for _, row in sampler.rows(step, 2)] for e in range(3)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    assert Sampler([10], 1, "forget").rows(0, 10) != Sampler([10], 0, "forget").rows(0, 10)


def test_datasets_take_turns() -> None:
    rows = [pair for step in range(6) for pair in Sampler([3, 50], 0, "retain").rows(step, 4)]
    assert [d for d, _ in rows] == [0, 1] * 12
    assert sorted(r for d, r in rows if d == 0) == sorted([0, 1, 2] * 4)


def test_shares_are_contiguous_and_complete() -> None:
    for n in (1, 5, 8):
        assert [x for i in range(3) for x in part_of(list(range(n)), i, 3)] == list(range(n))


def jsonl(tmp_path: Path, *rows: Any) -> Any:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return DataRef(name=str(path), source="path")


def test_a_file_of_texts_and_of_pairs(tmp_path: Path) -> None:
    data = load_dataset(jsonl(tmp_path, {"text": "one"}, {"prompt": "two", "response": "three"}), "train")
    assert data.examples() == [Example("", "one"), Example("two", " three")]
    assert data.record("forget")["source"] == "path"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "is empty"),
        (("{",), "not JSON"),
        (({"txt": "a"},), "needs a string `text`, or strings `prompt` and `response`; it has txt"),
        (({"text": 3},), "needs a string"),
        (
            ({"text": "a", "prompt": "b", "response": "c"},),
            "a `text`, and a `prompt` with a `response`: leave out what",
        ),
        (({"text": " "},), "is empty"),
        ((["a"],), "not an object"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(UnavailableError, match=message):
        load_dataset(jsonl(tmp_path, *rows), "train")


def test_a_missing_file_and_an_unreachable_hub(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no dataset file"):
        load_dataset(DataRef(name=str(tmp_path / "none.jsonl"), source="path"), "train")


@pytest.mark.parametrize("name", sorted(n for n in registry.task if registry.task[n].obj.has_builtin()))
def test_built_in_rows_are_distinct_disjoint_and_of_the_right_form(name: str) -> None:
    task = registry.task[name].obj()
    train, test = task.builtin("train"), task.builtin("test")
    identity = [json.dumps(r, sort_keys=True) for r in train + test]
    assert len(set(identity)) == len(identity)
    assert train == registry.task[name].obj().builtin("train")
    for row in train[:200] + test[:50]:
        assert set(row) == set(task.fields)
        assert all(type(row[f]) is kind for f, kind in task.fields.items())
        e = task.example(row)
        assert e.target.strip()
        assert not e.prompt or (e.target[0] == " " and not e.prompt.endswith(" "))
        assert not e.choices or e.target in e.choices


GENERATED = sorted(n for n in registry.task if registry.task[n].obj.hub and registry.task[n].obj.has_builtin())


@pytest.mark.parametrize("name", GENERATED)
def test_generators_are_large_balanced_and_share_no_question(name: str) -> None:
    task = registry.task[name].obj()
    train, test = task.builtin("train"), task.builtin("test")
    assert len(train) >= 1500
    assert len(test) >= 300
    prompts = [[task.example(r).prompt for r in rows] for rows in (train, test)]
    assert not set(prompts[0]) & set(prompts[1])
    assert not any("capital" in p.lower() for p in prompts[0])
    examples = [task.example(r) for r in train]
    if examples[0].choices:
        positions = [e.choices.index(e.target) for e in examples]
        share = [positions.count(i) / len(positions) for i in range(len(examples[0].choices))]
        assert max(share) < 1.25 / len(share)


def test_the_six_tasks_have_generators() -> None:
    assert {"gsm8k", "agnews", "sst2", "winogrande", "mnli", "qqp"} <= set(GENERATED)


def test_gsm8k_arithmetic_is_right_and_answers_are_judged_by_their_number() -> None:
    task = registry.task["gsm8k"].obj()
    for row in task.builtin("train"):
        for mark in row["answer"].split("<<")[1:]:
            left, right = mark.split(">>")[0].split("=")
            assert abs(eval(left) - float(right)) < 1e-9, row
        final = row["answer"].rpartition("####")[2].strip()
        assert int(final) > 0
        assert task.correct(row, row["answer"])
        assert task.correct(row, f" some words.\n#### {int(final):,}")
        assert not task.correct(row, f" it is\n#### {int(final) + 1}")


def test_qqp_cannot_be_told_by_word_overlap() -> None:
    rows = registry.task["qqp"].obj().builtin("train")

    def overlap(row: Any) -> Any:
        a, b = (set(row[q].lower().strip("?").split()) for q in ("question1", "question2"))
        return len(a & b) / len(a | b)

    means = [sum(found) / len(found) for found in ([overlap(r) for r in rows if r["label"] == i] for i in (0, 1))]
    assert abs(means[0] - means[1]) < 0.15


def test_generators_draw_only_from_their_own_stream() -> None:
    random.seed(1)
    first = registry.task["capitals"].obj().builtin("train")
    random.seed(2)
    assert first == registry.task["capitals"].obj().builtin("train")


def test_the_prose_is_large_varied_and_apart_from_the_held_out() -> None:
    task = registry.task["prose"].obj()
    train, test = ([row["text"] for row in task.builtin(split)] for split in ("train", "test"))
    assert len(train) >= 400
    assert len(test) >= 40
    openings = [" ".join(text.split()[:4]) for text in train + test]
    assert len(set(openings)) >= 0.99 * len(openings)

    def grams(texts: list[str]) -> set[Any]:
        return {tuple(w[i : i + 7]) for w in map(str.split, texts) for i in range(len(w) - 6)}

    assert not grams(train) & grams(test)
    assert not any("capital" in text.lower() for text in train + test)
