"""The invented countries: all there, all apart, and none of this world."""

from __future__ import annotations

from collections import Counter

from ilu_cli.benchmarks.atlas import Atlas as Questions
from ilu_cli.care.overlap import within
from ilu_cli.tasks.atlas import Atlas, invented
from ilu_cli.tasks.capitals import Capitals, countries


def test_no_name_is_known_or_part_of_another() -> None:
    found = [n.lower() for c in invented() for n in (c.name, c.capital)]
    real = [n.lower() for c in countries() for n in (c.name, c.capital)]
    assert len(found) == 340
    assert not [(a, b) for i, a in enumerate(found) for j, b in enumerate(found) if i != j and a in b]
    assert not [(a, b) for a in found for b in real if a in b or b in a]
    assert set(Counter(c.continent for c in invented()).values()) == {34}


def test_every_form_tells_every_capital() -> None:
    rows, real = Atlas().builtin("train"), Capitals().builtin("train")
    assert len(rows) == len(real) == 1700
    assert all(r["capital"] in r["text"] and r["country"] in r["text"] for r in rows)
    assert not within([r["text"] for r in rows], [r["text"] for r in real])


def test_a_question_has_four_cities_of_the_continent() -> None:
    where = {c.capital: c.continent for c in invented()}
    known = {c.name: c for c in invented()}
    items = Questions().items()
    assert len(items) == 170
    for item in items:
        cities = [c.strip() for c in item["choices"]]
        country = known[item["question"].removeprefix("The capital city of ").removesuffix(" is called")]
        assert cities[item["answer"]] == country.capital
        assert len(set(cities)) == 4
        assert {where[c] for c in cities} == {country.continent}
    assert set(Questions().variants("alias", items)) == set()
    assert len(Questions().variants("rephrase", items)) == 10
