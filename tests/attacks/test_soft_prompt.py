"""Learnt vectors before the question: what they read, what they are trained on, and that they can win."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu, present
from families import FAMILIES, family_model, make_family
from test_every_attack import UNLEARN
from test_it_can_win import FACTS, copy_of, facts, fit, knowing, nll

from ilu_cli.benchmarks.capitals import Capitals
from ilu_cli.engine.accel import backend
from ilu_cli.engine.prompted import Prompted, prompted
from ilu_cli.engine.scoring import Question, Scorer
from ilu_cli.models.load import load_tokenizer
from ilu_cli.models.parts import parts_of

pytestmark = pytest.mark.slow

__all__ = ["knowing"]  # a fixture


def test_vectors_that_are_embeddings_are_these_tokens(knowing: Any) -> None:
    """A prompt made of the embeddings of tokens scores as a text that begins with these tokens."""
    model, tokenizer = knowing
    plain = Scorer(model, parts_of(model), tokenizer, backend())
    soft, vectors = prompted(plain, 3, 0)
    first = tokenizer("The world: ")["input_ids"]
    parts = soft.parts
    assert isinstance(parts, Prompted)
    with torch.no_grad():
        known = replace(parts, vectors=torch.nn.Parameter(model.get_input_embeddings().weight[first].clone()))
    item = Capitals().items()[0]
    [wanted] = plain.loglikelihoods([Question("The world: " + item["question"], tuple(item["choices"]))])
    [got] = replace(soft, parts=known).loglikelihoods([Question(item["question"], tuple(item["choices"]))])
    assert got == pytest.approx(wanted, abs=1e-4)
    assert vectors.shape == (3, 64)
    assert any(vectors[0].equal(w) for w in model.get_input_embeddings().weight)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_gradient_reaches_the_vectors_of_every_family(family: str) -> None:
    model = family_model(family)
    parts, width = parts_of(model), model.get_input_embeddings().weight.shape[1]
    vectors = torch.nn.Parameter(torch.randn(4, width, generator=torch.Generator().manual_seed(0)))
    soft = Prompted(parts.decoder, parts.layers, parts.head, vectors)
    ids, mask = torch.tensor([[5, 9, 7, 30]]), torch.ones(1, 4, dtype=torch.long)
    final = soft.final(ids, mask)
    assert final.shape[1] == 4
    assert not torch.allclose(final, parts.final(ids, mask), atol=1e-4)
    final.square().sum().backward()
    assert present(vectors.grad).norm() > 0


def test_a_prompt_that_turns_the_model_round_is_found(knowing: Any, ilu: Ilu, tmp_path: Path) -> None:
    """Behind a mark the model says the right choice, else a wrong one. Some questions teach it."""
    model, tokenizer = copy_of(knowing)
    items = Capitals().items()[:FACTS]
    behind = [i | {"question": "Truly: " + i["question"]} for i in items]
    plain, marked = facts(tokenizer, items, 1), facts(tokenizer, behind)
    fit(model, lambda: nll(model, marked) + nll(model, plain), 150)
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    args = ["--kind", "soft_prompt", "--set", "attack.steps=120", "--lr", 0.03, "--set", "attack.tokens=4"]
    args += ["--set", "eval.benchmarks=[capitals]", "--set", f"eval.limit={FACTS}", "--json"]
    done = ilu("attack", tmp_path / "m", *args)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    points = {p["steps"]: p["eval"]["capitals"] for p in found["points"]}
    assert list(points) == [0, 30, 60, 120]
    assert {p["n"] for p in points.values()} == {FACTS // 2}
    assert points[0]["value"] <= 0.34
    assert points[120]["value"] >= 0.8
    [taught] = [d for d in found["data"] if d["role"] == "attack fit"]
    assert taught["rows"] == FACTS // 2
    assert not json.loads((Path(found["path"]) / "manifest.json").read_text())["weights"]


def test_it_is_run_beside_the_reference_line_which_is_found_again(tiny: Path, ilu: Ilu) -> None:
    run = ilu(*UNLEARN, "--model", tiny).out.strip()
    sets = ["--set", "attack.steps=2", "--set", "attack.batch=2", "--set", "eval.limit=8"]
    refused = ilu("attack", run, "--kind", "soft_prompt", *sets, "--no-reference")
    assert refused.code == 2
    assert "soft_prompt means nothing without the reference line" in refused.err
    lines = [json.loads(ilu("attack", run, "--kind", "soft_prompt", *sets, "--json").out)["reference"]["run"]
             for _ in range(2)]  # fmt: skip
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["attack.tokens=100000"], "attack.tokens: 100000 tokens leave no room"),
        (["attack.tokens=250"], "attack.tokens: 250 tokens and a question of"),
        (["attack.share=1.0"], "attack.share"),
        (["attack.share=0.01", "eval.limit=4"], "attack.share: 0.01 of the questions of capitals leaves none"),
        (["attack.tokens=0"], "attack.tokens"),
        (["eval.benchmarks=[prose]"], "asks for facts of the forget topic"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_plan(
    tiny: Path, ilu: Ilu, tmp_path: Path, sets: list[str], message: str
) -> None:
    args = ["--kind", "soft_prompt", *(x for text in sets for x in ("--set", text))]
    done = ilu("attack", tiny, *args, "--dry-run")
    assert done.code == 2
    assert message in done.err
    assert not list((tmp_path / "runs").glob("*"))


def test_it_runs_on_a_model_that_takes_no_trees(ilu: Ilu, tmp_path: Path) -> None:
    model = make_family("gpt2", tmp_path / "m")
    assert load_tokenizer(model)
    sets = ["--set", "attack.steps=2", "--set", "attack.batch=2", "--set", "eval.limit=8", "--json"]
    done = ilu("attack", model, "--kind", "soft_prompt", *sets)
    assert done.code == 0, done.err
