"""Scores are those of a plain forward pass over each question and choice by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from conftest import tiny_tokenizer
from families import COMMON, FAMILIES, WINDOW, family_model, family_tokenizer

from ilu_cli.data.encode import Encoded
from ilu_cli.data.special import bodies, continued
from ilu_cli.engine import scoring
from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Question, Scorer
from ilu_cli.engine.tree import Request
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
def scorer(tiny: Path) -> Scorer:
    model = load_model(find_model(str(tiny)))
    return Scorer(model, parts_of(model), load_tokenizer(tiny), backend())


def plain(scorer: Scorer, context: str, choice: str) -> float:
    tokenizer = scorer.tokenizer
    before = [] if context else [tokenizer.eos_token_id]  # what stands before a text without a context
    ids = before + tokenizer(context + choice)["input_ids"]
    start = len(tokenizer(context)["input_ids"]) if context else 1
    logp = scorer.model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return float(sum(logp[t - 1, ids[t]].item() for t in range(start, len(ids))))


@pytest.mark.parametrize("tokens", [1, 2048])
def test_log_likelihoods_are_those_of_separate_passes(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    monkeypatch.setattr(scoring, "TOKENS", tokens)  # one row at a time, or all together
    found = scorer.loglikelihoods(QUESTIONS)
    for question, scores in zip(QUESTIONS, found):
        assert scores == pytest.approx([plain(scorer, question.context, c) for c in question.choices], abs=1e-4)


def test_a_question_that_does_not_fit_is_refused(scorer: Scorer) -> None:
    with pytest.raises(UsageError, match="does not fit into the model's context of 256"):
        scorer.loglikelihoods([Question("word " * 300, (" a", " b"))])


def test_nll_of_texts(scorer: Scorer) -> None:
    texts = ["Paris is the capital of France.", "Iron is a metal, and its symbol is Fe."]
    ids = [scorer.tokenizer(t)["input_ids"] for t in texts]
    found = scorer.nll([Encoded(i, 1) for i in ids])
    logps = [scorer.model(input_ids=torch.tensor([i])).logits[0, :-1].log_softmax(-1) for i in ids]
    expected = [-sum(logp[t - 1, i[t]].item() for t in range(1, len(i))) for i, logp in zip(ids, logps)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_completions_are_greedy_and_do_not_depend_on_the_batch(scorer: Scorer) -> None:
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


def test_the_tiny_tokenizer_splits_at_the_choice() -> None:
    """The cut between context and choice is lm-eval's: encode both together, part where the context ends."""
    tokenizer = tiny_tokenizer()
    context, choice = continued(lambda text: bodies(tokenizer, [text])[0], "The symbol is", " Fe")
    assert tiny_tokenizer().decode(context) == "The symbol is"
    assert tiny_tokenizer().decode(choice) == " Fe"


def branching(vocab: int) -> list[Request]:
    """Requests longer than a window that share beginnings, part in the middle, continue one another, or stand alone."""
    g = torch.Generator().manual_seed(3)

    def some(n: int) -> list[int]:
        return torch.randint(2, vocab, (n,), generator=g).tolist()

    made = []
    for length in (WINDOW + 9, 2 * WINDOW + 3, 5):
        stem = some(length)
        made += [(stem + some(n), length) for n in (1, 1, 4, WINDOW + 5)]
        made += [(stem[: length // 2] + some(WINDOW), length // 2), (stem, 1)]
    made += [(some(3 * WINDOW), 1), (some(2), 1)]
    return [Request(tuple(ids), start) for ids, start in made]


def one_at_a_time(model: Any, requests: list[Request]) -> list[tuple[float, bool]]:
    """The same of plain transformers, one request after the other, without padding."""
    found = []
    for r in requests:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([r.ids])).logits[0, :-1].double()
        logps, places = logits.log_softmax(-1), range(r.start, len(r.ids))
        total = sum(logps[t - 1, r.ids[t]].item() for t in places)
        found.append((total, all(logps[t - 1].argmax() == r.ids[t] for t in places)))
    return found


def scorer_of(model: Any, **keys: Any) -> Scorer:
    return Scorer(model, parts_of(model), family_tokenizer(), backend(), **keys)


@pytest.mark.parametrize("tokens", [150, 2048])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_scores_as_plain_transformers_does(family: str, tokens: int) -> None:
    model = family_model(family)
    requests = branching(model.config.vocab_size)
    found, wanted = scorer_of(model, tokens=tokens).score(requests), one_at_a_time(model, requests)
    assert [f[0] for f in found] == pytest.approx([w[0] for w in wanted], abs=1e-4)
    assert [f[1] for f in found] == [w[1] for w in wanted]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_answers_questions_and_reads_texts_as_plain_transformers_does(family: str) -> None:
    model = family_model(family)
    scorer = scorer_of(model)
    asked = [Question(q.context * 3, q.choices) for q in QUESTIONS]
    pairs = [scorer.pair(q.context, c) for q in asked for c in q.choices]
    assert max(len(p.ids) for p in pairs) > 3 * WINDOW
    wanted = iter(one_at_a_time(model, pairs))
    for q, scores in zip(asked, scorer.loglikelihoods(asked)):
        assert scores == pytest.approx([next(wanted)[0] for _ in q.choices], abs=1e-4)
    texts = [Request(p.ids, 1) for p in pairs]
    nll = scorer.nll([Encoded(list(t.ids), t.start) for t in texts])
    assert nll == pytest.approx([-logp for logp, _ in one_at_a_time(model, texts)], rel=1e-6, abs=1e-4)


OTHERS: dict[str, Callable[[], T.PreTrainedConfig]] = {
    "qwen2 with windows in half of its layers": lambda: T.Qwen2Config(
        **COMMON, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
    ),
    "gpt_neo, whose window lies in the row": lambda: T.GPTNeoConfig(
        vocab_size=400, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=512, window_size=WINDOW,
        attention_types=[[["global", "local"], 1]], initializer_range=0.15, bos_token_id=1, eos_token_id=0,
    ),
    "phi3 with LongRoPE": lambda: T.Phi3Config(
        **COMMON | {"max_position_embeddings": 512}, original_max_position_embeddings=2 * WINDOW,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
                         "long_factor": [4.0] * 4, "original_max_position_embeddings": 2 * WINDOW},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_windows_and_rotations(name: str) -> None:
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(OTHERS[name]()).float().eval()
    requests = branching(400)
    if "LongRoPE" in name:  # plain transformers must see as many tokens as are read, else it may turn otherwise
        requests = [r for r in requests if len(r.ids) != 2 * WINDOW + 1]
    found, wanted = scorer_of(model).score(requests), one_at_a_time(model, requests)
    assert [f[0] for f in found] == pytest.approx([w[0] for w in wanted], abs=1e-4)


def test_the_context_is_that_of_the_configuration() -> None:
    assert scorer_of(family_model("mpt")).context_length == 512  # MPT calls it max_seq_len
    assert scorer_of(family_model("llama")).context_length == 512
    assert scorer_of(family_model("bloom")).context_length == 1 << 30  # alibi has no end
