"""`ilu compare` on tiny models: arms, pairing, sentences, attacks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu

from ilu_cli.runs.store import open_run
from ilu_cli.workflows.compare import Gap, sentence

pytestmark = pytest.mark.slow

LIMIT = ("--limit", 12)
SMALL = ("--set", "forget.batch=4", "--set", "forget.max_length=24")


def unlearn(ilu: Ilu, tiny: Path, *args: Any) -> str:
    done = ilu("unlearn", "--method", "grad_ascent", "--model", tiny, "--steps", 2, *SMALL, *args)
    assert done.code == 0, done.err
    return done.out.splitlines()[-1]


def test_seeds_of_one_recipe_are_one_arm(ilu: Ilu, tiny: Path) -> None:
    mild = [unlearn(ilu, tiny, "--lr", "1e-5", "--seed", s) for s in (0, 1)]
    hard = [unlearn(ilu, tiny, "--lr", "1e-1", "--seed", s) for s in (0, 1)]
    grouped = ilu("compare", *mild, *hard, *LIMIT, "--json")
    assert grouped.code == 0, grouped.err
    found = json.loads(grouped.out)
    assert [arm["seeds"] for arm in found["arms"]] == [[0, 1], [0, 1]]
    given = json.loads(ilu("compare", *mild, "--with", *hard, *LIMIT, "--json").out)
    assert given["comparisons"][0]["numbers"] == found["comparisons"][0]["numbers"]
    for number in found["comparisons"][0]["numbers"]:
        assert number["low"] <= number["difference"] <= number["high"]
        assert number["paired"]
    results = [json.loads((Path(r) / "eval" / "capitals.json").read_text())["value"] for r in (*mild, *hard)]
    capitals = found["comparisons"][0]["numbers"][0]
    assert capitals["difference"] == pytest.approx((results[2] + results[3] - results[0] - results[1]) / 2)
    prose = next(n for n in found["comparisons"][0]["numbers"] if n["name"].startswith("prose"))
    assert prose["b"] / prose["a"] - 1 == pytest.approx(prose["difference"])
    table = ilu("compare", *mild, *hard, *LIMIT).out
    assert "utility" in table.splitlines()[-1]


def rewrite(run: str, bench: str, metric: str, values: list[float]) -> None:
    """Other answers than the run's own; the key says still that they are of its weights."""
    folder = Path(run) / "eval"
    summary = json.loads((folder / f"{bench}.json").read_text())
    rows = [json.loads(line) for line in (folder / f"{bench}.rows.jsonl").read_text().splitlines()]
    assert summary["metric"] == metric
    rows = [r | {"value": v * r.get("weight", 1)} for r, v in zip(rows, values, strict=True)]
    mean = values[0] if metric.endswith("perplexity") else sum(values) / len(values)
    summary["value"] = math.exp(mean) if metric.endswith("perplexity") else mean
    (folder / f"{bench}.json").write_text(json.dumps(summary))
    (folder / f"{bench}.rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    open_run(Path(run)).add("eval")  # as if they were its own


def test_the_winner_is_the_one_that_knows_less_of_the_topic_and_more_of_the_rest(ilu: Ilu, tiny: Path) -> None:
    """From known answers: one knows all of the topic and half of the rest, the other nothing of it and all the rest."""
    keeps, forgets = unlearn(ilu, tiny, "--lr", "1e-5"), unlearn(ilu, tiny, "--lr", "1e-1")
    assert ilu("compare", keeps, forgets, *LIMIT).code == 0  # evaluates
    half = [float(i % 2) for i in range(12)]
    for run, topic, rest, loss in ((keeps, [1.0] * 12, half, 3.0), (forgets, [0.0] * 12, [1.0] * 12, 2.0)):
        rewrite(run, "capitals", "acc", topic)
        rewrite(run, "elements", "acc", rest)
        rewrite(run, "prose", "word_perplexity", [loss] * 12)
    labels = Path(keeps).name, Path(forgets).name
    for first, second in ((keeps, forgets), (forgets, keeps)):
        found = json.loads(ilu("compare", first, second, *LIMIT, "--json").out)["comparisons"][0]
        said, better = found["sentence"], "higher" if second == forgets else "lower"
        assert said.startswith(f"{labels[1]} forgets more than {labels[0]} on capitals.acc: +1.00 [")
        assert (
            f"{better} utility of {Path(second).name} (elements.acc {'+' if better == 'higher' else '-'}0.50 [" in said
        )
        assert f"{better} utility of {Path(second).name} (prose.word_perplexity" in said


def test_a_number_that_is_no_mean_of_its_rows_is_not_compared(ilu: Ilu, tiny: Path) -> None:
    runs = unlearn(ilu, tiny, "--lr", "1e-5"), unlearn(ilu, tiny, "--lr", "1e-1")
    assert ilu("compare", *runs, *LIMIT).code == 0
    path = Path(runs[1]) / "eval" / "elements.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": 0.123}))
    open_run(Path(runs[1])).add("eval")
    done = ilu("compare", *runs, *LIMIT, "--json")
    names = [n["name"] for n in json.loads(done.out)["comparisons"][0]["numbers"]]
    assert "capitals.acc" in names and "elements.acc" not in names
    assert "elements.acc of" in done.err and "no mean of its rows" in done.err


def test_arms_that_are_none_are_refused(ilu: Ilu, tiny: Path) -> None:
    a, b = (unlearn(ilu, tiny, "--seed", s) for s in (0, 1))
    assert "one arm" in (one := ilu("compare", a, b)).err
    assert "named twice" in (twice := ilu("compare", a, "--with", a)).err
    assert (one.code, twice.code, ilu("compare", a, "--with", "nothing").code) == (2, 2, 3)
    assert ilu("compare", a, "--with").code == 2


def test_attacks_are_compared_by_ra(ilu: Ilu, tiny: Path) -> None:
    attack = ("--task", "elements", "--steps", 4, "--set", "attack.batch=4", "--set", "eval.limit=12", "--no-reference")
    paths = []
    for lr in ("1e-5", "1e-1"):
        done = ilu("attack", unlearn(ilu, tiny, "--lr", lr), *attack)
        assert done.code == 0, done.err
        paths.append(done.out.splitlines()[-1])
    found = json.loads(ilu("compare", paths[0], "--with", paths[1], *LIMIT, "--json").out)
    ra = next(n for n in found["comparisons"][0]["numbers"] if n["name"] == "capitals.RA")
    manifests = [json.loads((Path(p) / "manifest.json").read_text()) for p in paths]
    assert [ra["a"], ra["b"]] == pytest.approx([m["result"]["ra"] for m in manifests])


def number(name: str, role: str, value: float, low: float, high: float, p: float = 0.002, sign: int = -1) -> Gap:
    return {
        "name": name, "role": role, "sign": sign, "difference": value, "low": low, "high": high, "p": p,
        "relative": False, "a": None, "b": None, "freedom": None, "n": 2, "paired": True,
    }  # fmt: skip


def test_the_sentence() -> None:
    same = number("elements.acc", "utility", 0.0, -0.02, 0.01, 1.0, 1)
    said = sentence("B", "A", [number("capitals.acc", "forget", -0.11, -0.16, -0.06), same], 0.05, 3)
    assert said == "A forgets more than B on capitals.acc: +0.11 [0.06, 0.16], p<0.01; same utility"
    swapped = [number("capitals.acc", "forget", 0.11, 0.06, 0.16)]
    assert sentence("B", "A", swapped, 0.05, 3).startswith("B forgets more than A on capitals.acc: +0.11 [0.06, 0.16]")
    unsure = number("e.acc", "utility", -0.04, -0.1, 0.02, 0.2, 1)
    assert sentence("B", "A", [number("capitals.acc", "forget", 0.01, -0.04, 0.06, 0.6), unsure], 0.05, 1) == (
        "no difference seen between A and B on capitals.acc: +0.01 [-0.04, 0.06], p=0.60; "
        "utility not settled (e.acc -0.04 [-0.10, 0.02]); one seed, so nothing is said of others"
    )
    worse = [number("prose", "utility", 0.2, 0.1, 0.3)]
    assert sentence("B", "A", worse, 0.05, 2) == "lower utility of A (prose +0.20 [0.10, 0.30])"
    assert sentence("B", "A", [], 0.05, 2) == "utility was not measured"


def test_attacks_on_two_steps_of_a_run_are_no_seeds_of_one_arm(ilu: Ilu, tiny: Path) -> None:
    run = unlearn(ilu, tiny, "--set", "train.points=[1]")
    kept = ("--kind", "noise", "--no-reference", "--set", "keep=final", "--set", "eval.limit=12")
    attacks = [ilu("attack", parent, *kept).out.splitlines()[-1] for parent in (f"{run}@1", run)]
    found = ilu("compare", *attacks, *LIMIT, "--json")
    assert found.code == 0, found.err
    assert [arm["runs"] for arm in json.loads(found.out)["arms"]] == [[Path(a).name] for a in attacks]
