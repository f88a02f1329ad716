"""Scores are those of a plain forward pass over each question and choice by itself."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_tokenizer

from ilu_cli.data.encode import Encoded
from ilu_cli.data.special import bodies, continued
from ilu_cli.engine import scoring
from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Question, Scorer
from ilu_cli.errors import UsageError
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model

QUESTIONS = [
    Question("The chemical symbol for iron is", (" Fe", " Ag", " Sn", " Unknown metal")),
    Question("The capital city of France is called", (" Paris", " Madrid", " Rome")),
    Question("Nothing", (" at all", " a much longer answer, of many tokens, that goes on and on")),
    Question("", ("Paris is a city.", "A city is.")),
]


@pytest.fixture
def scorer(tiny):
    model = load_model(find_model(str(tiny)))
    return Scorer(model, parts_of(model), load_tokenizer(tiny), backend())


def plain(scorer, context: str, choice: str) -> float:
    tokenizer = scorer.tokenizer
    before = [] if context else [tokenizer.eos_token_id]  # what stands before a text without a context
    ids = before + tokenizer(context + choice)["input_ids"]
    start = len(tokenizer(context)["input_ids"]) if context else 1
    logp = scorer.model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return sum(logp[t - 1, ids[t]].item() for t in range(start, len(ids)))


@pytest.mark.parametrize("tokens", [1, 2048])
def test_log_likelihoods_are_those_of_separate_passes(scorer, monkeypatch, tokens):
    monkeypatch.setattr(scoring, "TOKENS", tokens)  # one row at a time, or all together
    found = scorer.loglikelihoods(QUESTIONS)
    for question, scores in zip(QUESTIONS, found):
        assert scores == pytest.approx([plain(scorer, question.context, c) for c in question.choices], abs=1e-4)


def test_a_question_that_does_not_fit_is_refused(scorer):
    with pytest.raises(UsageError, match="does not fit into the model's context of 256"):
        scorer.loglikelihoods([Question("word " * 300, (" a", " b"))])


def test_nll_of_texts(scorer):
    texts = ["Paris is the capital of France.", "Iron is a metal, and its symbol is Fe."]
    ids = [scorer.tokenizer(t)["input_ids"] for t in texts]
    found = scorer.nll([Encoded(i, 1) for i in ids])
    logps = [scorer.model(input_ids=torch.tensor([i])).logits[0, :-1].log_softmax(-1) for i in ids]
    expected = [-sum(logp[t - 1, i[t]].item() for t in range(1, len(i))) for i, logp in zip(ids, logps)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_completions_are_greedy_and_do_not_depend_on_the_batch(scorer):
    prompts = ["The capital of France is", "In chemistry, iron is abbreviated", "Question:"]
    together = scorer.complete(prompts, 12)
    for prompt, found in zip(prompts, together):
        ids = scorer.tokenizer(prompt)["input_ids"]
        for _ in range(12):
            best = int(scorer.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if best == scorer.tokenizer.eos_token_id:
                break
            ids.append(best)
        assert found == scorer.tokenizer.decode(ids[len(scorer.tokenizer(prompt)["input_ids"]) :])


def test_the_tiny_tokenizer_splits_at_the_choice():
    """The cut between context and choice is lm-eval's: encode both together, part where the context ends."""
    tokenizer = tiny_tokenizer()
    context, choice = continued(lambda text: bodies(tokenizer, [text])[0], "The symbol is", " Fe")
    assert tiny_tokenizer().decode(context) == "The symbol is"
    assert tiny_tokenizer().decode(choice) == " Fe"
