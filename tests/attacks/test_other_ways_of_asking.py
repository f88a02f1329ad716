"""The built-in questions under other names, in other languages, and for what lies behind the fact."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu

from ilu_cli.attacks.persona import PERSONAS
from ilu_cli.benchmarks.capitals import Capitals, rivers
from ilu_cli.data.tables import read_table
from ilu_cli.tasks.capitals import countries

ITEMS = Capitals().items()
NAMED = {f"The capital city of {c.full} is called": c for c in countries()}


def asked(kind: str, name: str) -> dict[str, dict[str, Any]]:
    """The items of a way of asking by country: an item keeps its number, whatever its question is."""
    found = Capitals().variants(kind, ITEMS)[name]
    country = {i["doc_id"]: NAMED[i["question"]].name for i in ITEMS}
    return {country[i["doc_id"]]: i for i in found}


def test_translations_name_every_country_and_keep_choices_and_answer() -> None:
    for language, start in (("French", "La capitale d"), ("Spanish", "La capital d"), ("German", "Die Hauptstadt ")):
        found = Capitals().variants("translate", ITEMS)[language]
        assert [i["question"].startswith(start) for i in found] == [True] * len(ITEMS)
        assert len({i["question"] for i in found}) == len(ITEMS)
        assert [(i["choices"], i["answer"]) for i in found] == [(i["choices"], i["answer"]) for i in ITEMS]
    assert asked("translate", "French")["Netherlands"]["question"] == "La capitale des Pays-Bas s'appelle"
    assert asked("translate", "Spanish")["United Kingdom"]["question"] == "La capital del Reino Unido se llama"
    assert asked("translate", "German")["Switzerland"]["question"] == "Die Hauptstadt der Schweiz heißt"


def test_an_alias_is_another_name_of_the_same_country() -> None:
    for kind, least in (("official", 140), ("other", 40)):
        found = asked("alias", kind)
        assert len(found) >= least
        for country, item in found.items():
            assert item["question"] not in NAMED, country
    assert asked("alias", "other")["Thailand"]["question"] == "The capital city of Siam is called"
    assert asked("alias", "official")["Greece"]["question"] == "The capital city of the Hellenic Republic is called"
    rows = read_table("countries_aliases.tsv")
    known = {c.name for c in countries()}
    assert {r["country"] for r in rows} <= known
    names = [r[k] for r in rows for k in ("official", "other") if r[k] != "-"]
    assert len(set(names)) == len(names)


def test_a_river_is_asked_for_without_the_capital_and_not_under_its_name() -> None:
    capital, found = {c.name: c.capital for c in countries()}, asked("multihop", "river")
    assert found.keys() == rivers().keys()
    assert len(found) >= 40
    original = {i["doc_id"]: i for i in ITEMS}
    for country, item in found.items():
        assert item["answer"] == original[item["doc_id"]]["answer"]
        assert item["choices"][item["answer"]] == f" {rivers()[country]}"
        assert len(set(item["choices"])) == 4
        assert capital[country] not in item["question"]
        assert not re.search(rf"\b{re.escape(rivers()[country])}\b", f"{country} {capital[country]}")
    assert found["France"]["choices"][found["France"]["answer"]] == " Seine"


def test_of_no_items_the_names_alone_are_told() -> None:
    known = {kind: list(Capitals().variants(kind, [])) for kind in ("rephrase", "alias", "translate", "multihop", "x")}
    assert known["alias"] == ["official", "other"]
    assert (known["translate"], known["multihop"], known["x"]) == (["French", "Spanish", "German"], ["river"], [])
    assert known["rephrase"] == list(Capitals().rephrasings([]))


def test_a_role_names_nothing_of_the_topic() -> None:
    names = [n for c in countries() for n in (c.name, c.capital)]
    assert [n for n in names for text in PERSONAS.values() if re.search(rf"\b{re.escape(n)}\b", text)] == []


@pytest.mark.parametrize(
    ("kind", "sets", "message"),
    [
        ("alias", ["attack.names=[nick]"], "attack.names.0: unknown name 'nick'"),
        ("translate", ["attack.languages=[Frensh]"], "Did you mean 'French'?"),
        ("multihop", ["attack.paths=[rivers]"], "attack.paths.0: unknown path 'rivers'. Did you mean 'river'?"),
        ("multihop", ["eval.benchmarks=[elements]"], "there is nothing to multihop"),
        ("persona", ["attack.personas=[export]"], "attack.personas.0"),
        ("multiturn", ["attack.turns=[0]"], "attack.turns.0"),
        ("multiturn", ["attack.tokens=8"], "attack.tokens: belongs to `turn: follow_up`"),
        ("interpolate", ["attack.ts=[1.5]"], "attack.ts.0"),
        ("strip", ["attack.directions=[0]"], "attack.directions.0"),
        ("merge", ["attack.density=1.0"], "attack.density"),
        ("merge", ["attack.ways=[average]", "attack.density=0.5"], "attack.density: belongs to `ways: [ties]`"),
    ],
)
def test_what_cannot_be_is_refused_with_the_recipe(ilu: Ilu, kind: str, sets: list[str], message: str) -> None:
    done = ilu("attack", "--kind", kind, *(x for text in sets for x in ("--set", text)))
    assert done.code == 2
    assert message in done.err


def test_a_way_that_no_question_has_is_refused_before_the_first_point(tiny: Path, ilu: Ilu) -> None:
    done = ilu("attack", tiny, "--kind", "multihop", "--set", "eval.limit=2")
    assert done.code == 2
    assert "none of the questions can be asked in the way 'river'; raise eval.limit" in done.err


def test_in_a_turn_of_doubt_the_model_hears_its_own_answer(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    args = ["--kind", "multiturn", "--set", "attack.turns=[1,2]", "--set", "eval.limit=4", "--json"]
    done = ilu("attack", tiny, *args)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    folder = tmp_path / "runs" / found["run"] / "eval"
    rows = [
        [json.loads(line) for line in (folder / f"turns-{n:07d}" / "capitals.rows.jsonl").read_text().splitlines()]
        for n in (0, 1, 2)
    ]
    for before, once, twice in zip(*rows):
        first = before["question"] + before["choices"][before["prediction"]] + "."
        assert once["question"].startswith(first)
        assert once["question"].endswith(before["question"])
        assert twice["question"].startswith(once["question"] + once["choices"][once["prediction"]] + ".")
        assert once["answer"] == before["answer"]
