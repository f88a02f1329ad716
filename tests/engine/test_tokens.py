"""What is said of each token is what a plain forward pass says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as T
from conftest import CHAT
from families import COMMON, family_tokenizer

from ilu_cli.data.chat import Chat
from ilu_cli.data.encode import Encoded
from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.tokens import encode_pair, token_scores
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model
from ilu_cli.workflows.evaluate import load_scorer


@pytest.fixture
def scorer(tiny: Path) -> Scorer:
    return load_scorer(find_model(str(tiny)), "fp32")


def test_token_scores_are_those_of_a_plain_pass(scorer: Scorer) -> None:
    items = [encode_pair(scorer, "The capital of France is", " Paris."), encode_pair(scorer, "", "Iron is Fe.")]
    for item, found in zip(items, token_scores(scorer, items)):
        logp = scorer.model(input_ids=torch.tensor([item.ids])).logits[0, item.start - 1 : -1].log_softmax(-1)
        targets = torch.tensor(item.ids[item.start :])
        p = logp.exp()
        mean = (p * logp).sum(-1)
        deviation = ((p * logp**2).sum(-1) - mean**2).sqrt()
        assert found.logp == pytest.approx(logp[range(len(targets)), targets].tolist(), abs=1e-4)
        assert found.mean == pytest.approx(mean.tolist(), abs=1e-4)
        assert found.std == pytest.approx(deviation.tolist(), abs=1e-3)
        assert found.hit.tolist() == (logp.argmax(-1) == targets).tolist()
    assert -sum(found.logp) == pytest.approx(scorer.nll(items)[1], abs=1e-4)


def test_pairs_are_in_the_chat_template_if_the_scorer_is(scorer: Scorer) -> None:
    scorer.chat, scorer.tokenizer.chat_template = Chat(), CHAT
    item = encode_pair(scorer, "Who?", " Nobody.")
    assert scorer.tokenizer.decode(item.ids) == "[user] Who?<eos>\n[assistant] Nobody."
    assert scorer.tokenizer.decode(item.ids[item.start :]) == " Nobody."  # ` N` is one token, and the answer's
    plain = encode_pair(scorer, "", "Iron is Fe.")
    assert scorer.tokenizer.decode(plain.ids) == "Iron is Fe."  # a text is no turn


def test_pairs_fit_into_the_context(scorer: Scorer) -> None:
    n = scorer.context_length
    long = encode_pair(scorer, "word " * 500, " and an answer")
    assert len(long.ids) == n
    assert scorer.tokenizer.decode(long.ids[long.start :]) == " and an answer"
    assert encode_pair(scorer, "", "word " * 500).targets == n - 1
    assert encode_pair(scorer, "A prompt", " of words " * 20, limit=5).targets == 5
    for head in ([], [1]):
        scorer.tokenizer, scorer.known = family_tokenizer(bos=bool(head)), {}
        vars(scorer).pop("before", None)
        words, answer = (scorer.encode(text, special=False) for text in ("word " * 500 + "and", " an answer"))
        cut = encode_pair(scorer, "word " * 500 + "and", " an answer")
        assert cut.ids == head + words[len(words) - (n - len(answer) - len(head)) :] + answer
        assert cut.start == n - len(answer)
    empty = encode_pair(scorer, "A prompt", "")
    assert empty.targets == 0
    assert isinstance(empty, Encoded)


def test_token_scores_of_every_length_are_right_under_long_rope() -> None:
    """A short text beside a long one in a batch would be turned by the long factors."""
    torch.manual_seed(0)
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 24}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    config = T.Phi3Config(**COMMON, original_max_position_embeddings=24, rope_parameters=rope)
    model = T.AutoModelForCausalLM.from_config(config).eval()
    scorer = Scorer(model, parts_of(model), family_tokenizer(), backend())
    items = [Encoded(torch.randint(2, 400, (n,)).tolist(), 1) for n in (30, 24, 10, 25)]
    for item, found in zip(items, token_scores(scorer, items)):
        logp = model(input_ids=torch.tensor([item.ids])).logits[0, :-1].log_softmax(-1)
        assert found.logp == pytest.approx(logp[range(len(logp)), item.ids[1:]].tolist(), abs=1e-4)
