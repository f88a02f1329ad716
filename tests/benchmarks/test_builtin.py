"""Coherence, memorisation and membership on tiny models: what they say of the original, and that they see damage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu, tiny_model, tiny_tokenizer
from sklearn.metrics import roc_auc_score

from ilu_cli import registry
from ilu_cli.benchmarks import by_metric
from ilu_cli.benchmarks.memorisation import sentences
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.tokens import encode_pair
from ilu_cli.models.subject import find_model
from ilu_cli.workflows.evaluate import load_scorer


@pytest.fixture
def scorer(tiny: Path) -> Scorer:
    return load_scorer(find_model(str(tiny)), "fp32")


def run(name: str, scorer: Scorer, limit: int) -> tuple[float, dict[str, Any], list[dict[str, Any]]]:
    bench = registry.benchmark[name].obj()
    rows = bench.score(scorer, bench.items()[:limit])
    return bench.summarise(by_metric(rows)[""])[0], bench.also(rows), rows


def test_memorisation_is_teacher_forced(scorer: Scorer) -> None:
    value, also, rows = run("memorisation", scorer, 12)
    expected = []
    for row in by_metric(rows)[""]:
        e = encode_pair(scorer, row["prompt"], row["target"])
        greedy = scorer.model(input_ids=torch.tensor([e.ids])).logits[0, e.start - 1 : -1].argmax(-1).tolist()
        hits = [a == b for a, b in zip(greedy, e.ids[e.start :])]
        expected.append(sum(hits) / len(hits))
    assert also["exact"]["value"] == pytest.approx(sum(expected) / 12)
    assert 0 <= value <= also["exact"]["value"]


def test_memorisation_asks_every_country_once() -> None:
    items = registry.benchmark["memorisation"].obj().items()
    assert len(items) == len({r["country"] for r in sentences()}) == len(sentences())
    assert sum(bool(i["prompt"]) for i in items) > 0.8 * len(items)
    for row, item in zip(sentences(), items):
        assert item["prompt"] + item["target"] == row["text"]
        assert row["capital"] in item["target"]


def test_membership_is_the_auc_of_each_attack(scorer: Scorer) -> None:
    value, also, rows = run("membership", scorer, 40)
    for name, group in by_metric(rows).items():
        expected = roc_auc_score([r["member"] for r in group], [r["score"] for r in group])
        assert (also[name]["value"] if name else value) == pytest.approx(expected)
    assert also["reference"]["value"] == 0.5  # the original compared with itself
    assert {r["text"] for r in rows if r["member"]}.isdisjoint({r["text"] for r in rows if not r["member"]})


def test_the_original_is_as_coherent_as_it_is_not_repetitive(scorer: Scorer) -> None:
    own, also, rows = run("coherence", scorer, 6)
    assert own == pytest.approx(1 - also["repetition"]["value"])
    assert also["ppl"] == also["original_ppl"]
    assert all(r["continuation"] for r in by_metric(rows)[""])


def test_coherence_sees_noise_and_loops(tmp_path: Path) -> None:
    """Both are judged by the original model, against what it would have said."""
    original, noise = (sure(tmp_path / str(seed), seed) for seed in (0, 1))
    own, also, _ = run("coherence", original, 6)
    noise.original = lambda: original
    value, damage, _ = run("coherence", noise, 6)
    assert damage["original_ppl"] == also["ppl"]
    assert damage["ppl"]["value"] > 5 * also["ppl"]["value"]
    assert value < own / 2
    noise.complete = lambda prompts, new, **_: [" the" * new for _ in prompts]
    looping, damage, _ = run("coherence", noise, 6)
    assert looping < 0.05
    assert damage["repetition"]["value"] > 0.9


def sure(folder: Path, seed: int) -> Any:
    """A tiny model of weights so large that it is sure of what it says."""
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer), seed=seed, spread=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_scorer(find_model(str(folder)), "fp32")


def test_they_run_from_the_command_line(ilu: Ilu, tiny: Path) -> None:
    names = ("coherence", "memorisation", "membership")
    done = ilu("eval", tiny, "--limit", 4, "--json", *(x for n in names for x in ("--bench", n)))
    assert done.code == 0, done.err
    found = json.loads(done.out)["results"]
    assert {n: found[n]["n"] for n in names} == {"coherence": 4, "memorisation": 4, "membership": 4}
    table = ilu("eval", tiny, "--limit", 4, "--bench", "membership").out
    assert "min_k_plus" in table


def test_a_model_that_says_nothing_is_not_coherent(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = registry.benchmark["coherence"].obj()
    monkeypatch.setattr(scorer, "complete", lambda prompts, new, **_: ["" for _ in prompts])
    groups = by_metric(bench.score(scorer, bench.items()[:3]))
    assert [r["value"] for r in groups[""]] == [0, 0, 0]
    assert "ppl" not in groups


def test_a_model_that_says_something_sometimes_has_a_row_of_every_prompt(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the rows of two models stay those of the same prompts. What is not said weighs nothing."""
    bench = registry.benchmark["coherence"].obj()
    monkeypatch.setattr(scorer, "complete", lambda prompts, new, **_: ["", " the old bridge", ""])
    rows = by_metric(bench.score(scorer, bench.items()[:3]))["ppl"]
    assert [r["weight"] > 0 for r in rows] == [False, True, False]
    assert bench.also(rows)["ppl"]["value"] == pytest.approx(math.exp(rows[1]["value"] / rows[1]["weight"]))
