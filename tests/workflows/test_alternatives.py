"""Alternatives that the model gives: of the right one's form, wrong, one for each fact, and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu

from ilu_cli.data import made
from ilu_cli.data.sources import load_dataset
from ilu_cli.errors import UsageError
from ilu_cli.metrics.facts import Fact
from ilu_cli.models.subject import find_subject
from ilu_cli.recipe.load import load
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.runs.store import Store, open_run
from ilu_cli.tasks import Example
from ilu_cli.workflows import alternatives, near
from ilu_cli.workflows.alternatives import fact_of, phrase, said_instead, with_made

CITY = "Velden"
ROWS = [{"prompt": f"Where was {n} born?", "response": f"In {CITY}{i}"} for i, n in enumerate(("Ada", "Mei", "Ivo"))]


@pytest.mark.parametrize(
    ("said", "answer", "expected"),
    [
        (" Lyon, and then", " Paris", "Lyon"),
        ("\nLyon\nQuestion", " Paris", "Lyon"),
        (" PARIS.", " Paris", ""),
        (" the old Páris by night", " Paris", ""),
        (" . Lyon", " Paris", ""),
        (" one two three four five six", " Paris", ""),
        (" one two three four five", " Paris", "one two three four five"),
        (
            " She was born, so they say, at sea.\nNext",
            " He came from a town in the hills there",
            "She was born, so they say, at sea.",
        ),
    ],
)
def test_an_answer_is_of_the_right_ones_form_and_not_it(said: str, answer: str, expected: str) -> None:
    assert phrase(said, answer) == expected


def test_a_row_tells_the_fact_of_its_prompt_or_of_its_subject() -> None:
    facts = [
        Fact("1", "q1", " Bata", about="Guinea"),
        Fact("2", "q2", " Bata", about="Equatorial Guinea"),
        Fact("3", "q3", " Oslo"),
    ]
    assert fact_of(Example("q3", " Oslo"), facts) is facts[2]
    assert fact_of(Example("", "Bata lies in Guinea."), facts) is facts[0]
    with pytest.raises(UsageError, match="no fact is known in the row 'Oslo is cold"):
        fact_of(Example("", "Oslo is cold."), facts)


def recipe(tiny: Path, *sets: str) -> UnlearnRecipe:
    own = [f"model.ref={tiny}", "forget.data=own.jsonl", "objective.name=altpo", *sets]
    Path("own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return load(UnlearnRecipe, None, {}, own)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The model says Oslo for the second fact at once, for the first at last, and for the third never."""
    asked: list[int] = []

    def speak(_model: Any, tokenizer: Any, rows: Sequence[list[int]], *_: Any) -> list[str]:
        asked.append(len(rows))
        starts = [tokenizer.decode(row) for row in rows]
        right = {r["prompt"]: f" {r['response']}." for r in ROWS}
        late = len(asked) == alternatives.TRIES
        return [" Oslo, of course" if "Mei" in s or ("Ada" in s and late) else right[s] for s in starts]

    monkeypatch.setattr(near, "sample", speak)
    return asked


def test_each_fact_gets_what_the_model_says_or_anothers_answer(tiny: Path, said: list[int]) -> None:
    subject = find_subject(str(tiny), Store())
    found, counts = with_made(recipe(tiny), subject)
    assert said == [3, 2, 2, 2]
    assert counts == {"alternatives": {"tried": 9, "model": 2, "of another fact": 1}}
    [examples] = said_instead(found, "alternative", [load_dataset(found.forget.data[0], "train")])
    assert [e.prompt for e in examples] == [r["prompt"] for r in ROWS]
    assert [e.target for e in examples[:2]] == [" Oslo", " Oslo"] and examples[2].target in (
        " In Velden0",
        " In Velden1",
    )
    again, _ = with_made(recipe(tiny, "seed=3"), subject)
    assert again.objective == found.objective and len(said) == 4


def test_the_tasks_own_answers_make_it_dpo(ilu: Ilu, tiny: Path) -> None:
    runs = []
    for sets in (["objective.name=dpo"], ["objective.name=altpo", "objective.answers=task"]):
        flags = [
            x for text in [*sets, f"model.ref={tiny}", "train.steps=2", "train.precision=fp32"] for x in ("--set", text)
        ]
        done = ilu("unlearn", "--recipe", "quickstart-dpo", "--json", *flags)
        assert done.code == 0, done.err
        runs.append(json.loads(done.out)["weights"])
    assert runs[0] == runs[1]


def test_a_run_keeps_them(ilu: Ilu, tiny: Path, said: list[int]) -> None:
    recipe(tiny)
    flags = ("--model", tiny, "--method", "altpo", "--forget", "own.jsonl", "--steps", 1)
    done = ilu("unlearn", *flags, "--set", "retain=null", "--set", "train.precision=fp32")
    assert done.code == 0, done.err
    run = open_run(Path(done.out.strip().splitlines()[-1]))
    kept = [json.loads(line)["text"] for line in (run.path / "alternatives.jsonl").read_text().splitlines()]
    assert kept == made.texts_of(run.recipe()["objective"]["made"]) and len(kept) == 3
    assert run.manifest.result["alternatives"]["model"] == 2


def test_one_answer_has_no_other(tiny: Path) -> None:
    made_of = recipe(tiny)
    Path("own.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(UsageError, match="one answer only"):
        with_made(made_of, find_subject(str(tiny), Store()))
