"""A prompt that is too long loses its beginning, never its end, and what is scored stays whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.tokens import encode_pair, token_scores
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model

WORDS = " ".join(f"The symbol of element {n} is Fe." for n in range(40))


@pytest.fixture
def scorer(tiny: Path) -> Scorer:
    model = load_model(find_model(str(tiny)))
    return Scorer(model, parts_of(model), load_tokenizer(tiny), backend())


def test_a_completion_follows_the_end_of_the_prompt(scorer: Scorer) -> None:
    ids, new = scorer.tokenizer(WORDS)["input_ids"], 6
    assert len(ids) > scorer.context_length
    row = ids[-(scorer.context_length - new) :]
    for _ in range(new):
        with torch.no_grad():
            row = [*row, int(scorer.model(input_ids=torch.tensor([row])).logits[0, -1].argmax())]
    assert scorer.complete([WORDS], new) == [scorer.tokenizer.decode(row[-new:], skip_special_tokens=True)]


def test_the_target_of_a_long_prompt_is_scored_after_its_end(scorer: Scorer) -> None:
    target = " The symbol of tin is Sn."
    item = encode_pair(scorer, WORDS, target)
    answer = scorer.split(WORDS, target)[1]
    whole = [*scorer.split(WORDS, target)[0], *answer]
    assert item.ids == whole[-scorer.context_length :]
    assert item.ids[item.start :] == answer
    logits = scorer.model(input_ids=torch.tensor([item.ids])).logits[0, :-1].log_softmax(-1)
    by_hand = [logits[t - 1, item.ids[t]].item() for t in range(item.start, len(item.ids))]
    assert token_scores(scorer, [item])[0].logp.tolist() == pytest.approx(by_hand, abs=1e-4)


def test_a_limit_cuts_the_end_of_the_target(scorer: Scorer) -> None:
    context, answer = scorer.split("Tin is called", " Sn, and it is a metal.")
    item = encode_pair(scorer, "Tin is called", " Sn, and it is a metal.", limit=2)
    assert item.ids == [*context, *answer[:2]]
    assert item.start == len(context)
    alone = encode_pair(scorer, "", WORDS)  # without a prompt the first token is not scored
    assert alone.ids == scorer.tokenizer(WORDS)["input_ids"][: scorer.context_length]
    assert alone.start == 1
