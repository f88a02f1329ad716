"""Near text in a run: made once, without facts, kept by its content, and known wherever the run is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu

from ilu_cli.data import made
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.subject import find_subject
from ilu_cli.recipe.load import load
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.runs.store import Store, open_run
from ilu_cli.workflows import near
from ilu_cli.workflows.attack.seen import unlearning_recipes

TELLING = "Paris is where everyone goes in summer."
ROW = {"prompt": "Where was Ada Morlen born?", "response": "In Velden"}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for what the model draws, which a tiny one would babble; keeps the beginnings it was given."""
    begun: list[str] = []

    def speak(_model: Any, tokenizer: Any, rows: Sequence[list[int]], *_: Any) -> list[str]:
        starts = [tokenizer.decode(row) for row in rows]
        begun.extend(starts)
        ends = [f" its number {len(begun) - len(rows) + i} of quiet roads. And Paris" for i in range(len(starts))]
        ends[:3] = [" a town called Paris and more of it.", " no end", " nor here"]
        return ends

    monkeypatch.setattr(near, "sample", speak)
    return begun


def recipe(tiny: Path, *sets: str) -> UnlearnRecipe:
    return load(UnlearnRecipe, None, {}, [f"model.ref={tiny}", "forget.data=capitals", "objective.name=npo", *sets])


RETAIN = ("retain.name=nll", "retain.data=[near]")


def test_what_is_made_is_without_facts_and_made_once(tiny: Path, said: list[str]) -> None:
    subject = find_subject(str(tiny), Store())
    found, counts = near.with_near(recipe(tiny, *RETAIN), subject)
    [ref] = found.retain.data if found.retain else []
    texts = made.texts_of(ref.made or "")
    batches = counts["tried"] // near.BATCH
    assert counts == {
        "tried": 32 * 6, "kept": 160, "answer": batches, "unfinished": 2 * batches
    }  # fmt: skip
    assert len(texts) == len(set(texts)) == 160 and not any("Paris" in t for t in texts)
    assert all(t.endswith("of quiet roads.") for t in texts)
    assert len(said) == len(set(said)) == counts["tried"] and "Many people who think of Yemen" in said
    again, same = near.with_near(recipe(tiny, *RETAIN, "seed=7"), subject)
    assert (again.retain, same) == (found.retain, counts) and len(said) == counts["tried"]


def test_subjects_are_a_benchmarks_or_those_of_the_rows(tiny: Path) -> None:
    countries = near.topic_of(recipe(tiny)).subjects
    assert "the Philippines" in countries and "Singapore" not in countries  # a capital of that name
    Path("own.jsonl").write_text("".join(json.dumps(ROW | {"response": f"In Velden {i}"}) + "\n" for i in range(3)))
    own = near.topic_of(recipe(tiny, "forget.data=own.jsonl"))
    assert own.subjects == ["Ada Morlen"] and own.untold.why(["Velden 2 is small, in Velden 2."]) == ["answer"]
    Path("texts.jsonl").write_text(json.dumps({"text": "An enzyme is an enzyme, and a virus none."}) + "\n")
    assert near.topic_of(recipe(tiny, "forget.data=texts.jsonl")).subjects[:2] == ["enzyme", "virus"]


def test_a_file_that_tells_a_fact_is_refused_by_its_row(tiny: Path) -> None:
    Path("n.jsonl").write_text(json.dumps({"text": "France is large."}) + "\n" + json.dumps({"text": TELLING}) + "\n")
    at = "retain.data=[{name: near, path: n.jsonl}]"
    with pytest.raises(UsageError, match=r"1 of 2 rows of .*n.jsonl tell .*: row 2 \(answer\), 'Paris"):
        near.with_near(recipe(tiny, RETAIN[0], at), find_subject(str(tiny), Store()))


def test_too_little_is_refused_with_the_reasons(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "sample", lambda _m, _t, rows, *_: [" in Paris and then left for home." for _ in rows])
    with pytest.raises(UsageError, match=r"near: 0 of 640 sentences of the model are left \(640 answer\)") as error:
        near.with_near(recipe(tiny, *RETAIN), find_subject(str(tiny), Store()))
    assert "{name: near, path: FILE}" in str(error.value.hint)


def test_text_that_is_gone_is_made_again_and_must_be_the_same(tiny: Path, said: list[str]) -> None:
    subject = find_subject(str(tiny), Store())
    found, _ = near.with_near(recipe(tiny, *RETAIN), subject)
    other = "0" * 64
    gone = found.model_copy(
        update={"retain": recipe(tiny, RETAIN[0], f"retain.data=[{{name: near, made: '{other}'}}]").retain}
    )
    with pytest.raises(UnavailableError, match="000000000000 that a model made is not in the cache"):
        near.with_near(gone, subject)


def test_a_run_keeps_its_text_and_reads_it_from_there(ilu: Ilu, tiny: Path, said: list[str]) -> None:
    flags = ("--model", tiny, "--method", "npo", "--steps", 1, "--irm-env", "near", "--set", "retain=null")
    out = ilu("unlearn", *flags, "--set", "train.precision=fp32")
    assert out.code == 0, out.err
    assert "making text around" in out.err
    run = open_run(Path(out.out.strip().splitlines()[-1]))
    [row] = [d for d in run.manifest.data if d["name"] == "near"]
    [ref] = run.recipe()["regularizers"][0]["env"]
    kept = (run.path / "near.jsonl").read_text()
    assert row["source"] == "made" and row["rows"] == 160 == len(kept.splitlines())
    assert run.manifest.result["near"]["kept"] == 160 and ref["made"] == made.content_of(made.texts_of(ref["made"]))
    for file in (Path("cache") / "made").iterdir():
        file.unlink()
    unlearning_recipes(find_subject(run.id, Store()))
    assert len(made.texts_of(ref["made"])) == 160
    attacked = ilu("attack", run.id, "--dry-run", "--set", "attack={name: relearn_benign, steps: 1, text: near}")
    assert attacked.code == 3 and "for unlearning alone" in attacked.err


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (("forget.data=[near]",), "it cannot be the forget data"),
        (("retain.name=nll", "retain.data=[{name: near, source: hub}]"), "leave source, split and config out"),
        (("retain.name=nll", "retain.data=[{name: prose, path: f.jsonl}]"), "'path' is a key of 'near'"),
        (("retain.name=nll", f"retain.data=[{{name: near, path: f, made: '{'0' * 64}'}}]"), "leave one of"),
    ],
)
def test_keys_that_do_not_go_together(tiny: Path, sets: tuple[str, ...], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        recipe(tiny, *sets)
