"""A suffix that is searched: its slopes against autograd over one-hot vectors, its tokens, and that it can win."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu
from families import make_family
from test_every_attack import UNLEARN
from test_it_can_win import FACTS, copy_of, facts, fit, knowing, nll

from ilu_cli.benchmarks.capitals import Capitals
from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Question, Scorer
from ilu_cli.engine.suffix import Search, printable, search
from ilu_cli.errors import UsageError
from ilu_cli.models.parts import parts_of

pytestmark = pytest.mark.slow

__all__ = ["knowing"]  # a fixture
Pairs = list[tuple[str, str]]


@pytest.fixture
def going(knowing: Any) -> tuple[Search, Pairs]:
    model, tokenizer = knowing
    scorer = Scorer(model, parts_of(model), tokenizer, backend())
    pairs = [(i["question"], i["choices"][i["answer"]]) for i in Capitals().items()[:5]]
    return Search(scorer, printable(scorer), "", random.Random(0)), pairs


def test_slopes_are_the_gradient_by_one_hot_vectors(going: tuple[Search, Pairs]) -> None:
    search, pairs = going
    model, tokenizer = search.scorer.model, search.scorer.tokenizer
    suffix = search.suffix(tokenizer(" in the city")["input_ids"])
    assert suffix.text == " in the city" and search.holds(suffix, pairs)
    weight = model.get_input_embeddings().weight.detach()
    hot = torch.nn.functional.one_hot(torch.tensor(suffix.ids), len(weight)).float().requires_grad_()
    total = torch.zeros(())
    for question, answer in pairs:
        before, after = (tokenizer(text)["input_ids"] for text in (question, answer))
        embedded = torch.cat([weight[before], hot @ weight, weight[after]])
        logits = model(inputs_embeds=embedded[None]).logits[0, -len(after) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(after), reduction="sum")
    [wanted] = torch.autograd.grad(total, hot)
    torch.testing.assert_close(search.slopes(suffix, pairs), wanted, rtol=1e-4, atol=1e-5)
    [loss] = search.losses([suffix], pairs)
    assert loss == pytest.approx(total.item(), rel=1e-5)


def test_candidates_differ_in_one_token_and_survive_their_tokenizer(going: tuple[Search, Pairs]) -> None:
    search, pairs = going
    tokenizer = search.scorer.tokenizer
    suffix = search.suffix(tokenizer(" in the city")["input_ids"])
    found = search.candidates(suffix, search.slopes(suffix, pairs), pairs, 12, 16)
    assert 4 <= len(found) <= 12
    for other in found:
        assert sum(a != b for a, b in zip(other.ids, suffix.ids)) == 1
        for question, _ in pairs:
            ids = tokenizer(question + other.text)["input_ids"]
            assert tuple(ids[-len(other.ids) :]) == other.ids
        assert other.text.isascii() and other.text.isprintable()
    assert not search.allowed[tokenizer.eos_token_id]


def test_a_step_never_makes_its_own_questions_worse(knowing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = knowing
    scorer = Scorer(model, parts_of(model), tokenizer, backend())
    pairs = [(i["question"], i["choices"][(i["answer"] + 1) % 4]) for i in Capitals().items()[:4]]  # wrong answers
    steps = list(search(scorer, pairs, tokens=3, steps=6, batch=4, width=8, top=16, seed=0))
    asked = [[Question(q + s.text, (a,)) for q, a in pairs] for s in steps]
    losses = [-sum(x for [x] in scorer.loglikelihoods(questions)) for questions in asked]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    again = list(search(scorer, pairs, tokens=3, steps=6, batch=4, width=8, top=16, seed=0))
    assert again == steps
    monkeypatch.setattr("ilu_cli.engine.suffix.printable", lambda scorer: torch.zeros(600, dtype=torch.bool))
    with pytest.raises(UsageError, match="keeps no repeated token"):
        next(search(scorer, pairs, tokens=1, steps=1, batch=1, width=1, top=1, seed=0))


def test_words_that_turn_the_model_round_are_found(knowing: Any, ilu: Ilu, tmp_path: Path) -> None:
    """With one token anywhere in what follows the question the model says the right choice, else a wrong one."""
    model, tokenizer = copy_of(knowing)
    items, rng = Capitals().items()[:FACTS], random.Random(0)
    words = [" the", " of", " is", " in", " city", " and"]
    assert all(len(tokenizer(w)["input_ids"]) == 1 for w in words)

    def behind(mark: str | None) -> list[dict[str, Any]]:
        def suffix() -> str:
            drawn = [rng.choice(words[1:]) for _ in range(3)]
            if mark:
                drawn[rng.randrange(3)] = mark
            return "".join(drawn)

        return [i | {"question": i["question"] + suffix()} for _ in range(4) for i in items]

    marked, other = facts(tokenizer, behind(words[0])), facts(tokenizer, behind(None), 1)
    plain = facts(tokenizer, items, 1)
    fit(model, lambda: nll(model, marked) + nll(model, other) + nll(model, plain), 150)
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    sets = {"tokens": 3, "steps": 12, "width": 48, "top": 128}
    args = [x for key, value in sets.items() for x in ("--set", f"attack.{key}={value}")]
    args += ["--set", "eval.benchmarks=[capitals]", "--set", f"eval.limit={FACTS}", "--json"]
    done = ilu("attack", tmp_path / "m", "--kind", "gcg", *args)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    points = {p["steps"]: p["eval"]["capitals"] for p in found["points"]}
    assert list(points) == [0, 3, 6, 12]
    assert {p["n"] for p in points.values()} == {FACTS // 2}
    assert points[0]["value"] <= 0.34
    assert points[12]["value"] >= 0.8
    assert "the suffix after 12 steps" in done.err
    [taught] = [d for d in found["data"] if d["role"] == "attack fit"]
    assert taught["rows"] == FACTS // 2


def test_it_is_run_beside_the_reference_line(tiny: Path, ilu: Ilu) -> None:
    run = ilu(*UNLEARN, "--model", tiny).out.strip()
    sets = ["--set", "attack.steps=1", "--set", "attack.width=2", "--set", "eval.limit=8"]
    refused = ilu("attack", run, "--kind", "gcg", *sets, "--no-reference")
    assert refused.code == 2
    assert "gcg means nothing without the reference line" in refused.err


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["attack.tokens=100000"], "attack.tokens: 100000 tokens leave no room"),
        (["attack.tokens=250"], "attack.tokens: 250 tokens and a question of"),
        (["attack.share=0.01", "eval.limit=4"], "attack.share: 0.01 of the questions of capitals leaves none"),
        (["attack.width=0"], "attack.width"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_plan(
    tiny: Path, ilu: Ilu, tmp_path: Path, sets: list[str], message: str
) -> None:
    args = ["--kind", "gcg", *(x for text in sets for x in ("--set", text))]
    done = ilu("attack", tiny, *args, "--dry-run")
    assert done.code == 2
    assert message in done.err
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_it_runs_on_models_of_another_make(ilu: Ilu, tmp_path: Path, family: str) -> None:
    model = make_family(family, tmp_path / "m")
    sets = ["--set", "attack.steps=1", "--set", "attack.width=2", "--set", "eval.limit=8", "--json"]
    done = ilu("attack", model, "--kind", "gcg", *sets)
    assert done.code == 0, done.err
