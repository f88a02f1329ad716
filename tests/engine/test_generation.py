"""Greedy decoding is the arg max of the model, in batches of unequal prompts, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, WITHOUT_BOS, family_model, family_tokenizer
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast

from ilu_cli.engine.accel import backend
from ilu_cli.engine.generation import Said, generate, greedy, sample
from ilu_cli.engine.scoring import Scorer
from ilu_cli.errors import UsageError
from ilu_cli.models.parts import parts_of

PROMPTS = [
    "The capital of France is called Paris, and it lies by the river. The capital of Spain is",
    "In chemistry, iron",
    "Question: what is the symbol of gold? Answer:",
    "Paris",
]
NEW = 12
TIE = 1e-5  # two logits this close may be taken for each other


@torch.no_grad()
def argmax(model: Any, prompt: list[int], new: int, ends: tuple[int, ...] = (0,)) -> tuple[list[int], float]:
    """The most probable tokens, one after the other, by whole forward passes; and the smallest lead of one."""
    ids, lead = list(prompt), 1.0
    for _ in range(new):
        best = model(input_ids=torch.tensor([ids])).logits[0, -1].topk(2)
        lead = min(lead, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :], lead


def text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_continuations_of_unequal_prompts_are_the_arg_max_one_by_one(name: str) -> None:
    model, tokenizer = family_model(name), family_tokenizer(bos=name not in WITHOUT_BOS)
    rows = [tokenizer(p)["input_ids"] for p in PROMPTS]
    compared = 0
    for row, said in zip(rows, generate(model, tokenizer, rows, NEW)):
        expected, lead = argmax(model, row, NEW)
        if lead > TIE:
            compared += 1
            assert said == text(tokenizer, expected)
    assert compared >= 3


@pytest.fixture
def llama() -> tuple[Any, Any]:
    return family_model("llama"), family_tokenizer()


@pytest.mark.parametrize(
    "keys",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(2, 300))},
        {"begin_suppress_tokens": list(range(2, 300))},
        {"forced_eos_token_id": 5},
        {"forced_bos_token_id": 5},
        {"min_length": 30},
        {"min_new_tokens": 11},
        {"bad_words_ids": [[i] for i in range(2, 300)]},
        {"sequence_bias": [[[7], 100.0]]},
        {"num_beams": 3},
        {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "top_k": 50},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"max_new_tokens": 2},
        {"max_length": 5},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_nothing_in_generation_config_acts_on_greedy_decoding(llama: Any, keys: Any) -> None:
    model, tokenizer = llama
    rows = [tokenizer(p)["input_ids"] for p in PROMPTS[:2]]
    model.generation_config = given = GenerationConfig(eos_token_id=0, **keys)
    assert generate(model, tokenizer, rows, NEW) == [text(tokenizer, argmax(model, r, NEW)[0]) for r in rows]
    assert model.generation_config is given  # what is saved with the model is its own


def test_any_of_the_models_ends_ends_a_text(llama: Any) -> None:
    model, tokenizer = llama
    row = tokenizer(PROMPTS[0])["input_ids"]
    free, _ = argmax(model, row, NEW)
    end = free[4]
    model.generation_config.eos_token_id = [0, end]
    with greedy(model, tokenizer) as config:
        config.max_new_tokens = NEW
        out = model.generate(input_ids=torch.tensor([row]), generation_config=config)[0, len(row) :].tolist()
    assert out == argmax(model, row, NEW, (0, end))[0] == free[: free.index(end) + 1]


def scorer_of(model: Any, tokenizer: Any) -> Scorer:
    return Scorer(model, parts_of(model), tokenizer, backend())


@pytest.mark.parametrize("bos", [False, True])
def test_too_long_a_prompt_keeps_its_end_and_bos(bos: bool) -> None:
    """512 positions: what is answered is BOS and the last tokens of the prompt, beside room for the answer."""
    model, tokenizer = family_model("llama"), family_tokenizer(bos=bos)
    prompt = "The river and the bridge, iron and gold. " * 60 + PROMPTS[0]
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    room = model.config.max_position_embeddings - NEW
    assert len(ids) > room + 1
    row = [1, *ids[-room + 1 :]] if bos else ids[-room:]
    assert scorer_of(model, tokenizer).complete([prompt], NEW) == [text(tokenizer, argmax(model, row, NEW)[0])]


def test_an_answer_that_fills_the_context_is_refused(llama: Any) -> None:
    scorer = scorer_of(*llama)
    assert len(scorer.complete(["Paris"], 511)) == 1
    for new in (512, 600):
        with pytest.raises(
            UsageError, match=f"{new} new tokens leave no room for a prompt in the model's context of 512"
        ):
            scorer.complete(["Paris"], new)


def test_an_empty_prompt_is_answered_after_what_begins_a_text() -> None:
    model, tokenizer = family_model("qwen2"), family_tokenizer(bos=False)
    expected = text(tokenizer, argmax(model, [0], NEW)[0])
    assert scorer_of(model, tokenizer).complete([""], NEW) == [expected]


def test_a_stop_is_seen_in_what_was_said_even_where_each_of_its_bytes_is_a_token() -> None:
    tokenizer = family_tokenizer(bos=False)
    stop = tokenizer("ÿþ", add_special_tokens=False)["input_ids"]
    assert len(stop) == len("ÿþ".encode())  # two bytes each
    other = tokenizer("Paris", add_special_tokens=False)["input_ids"][:1]
    said = Said(tokenizer, ("no such text", "ÿþ"), 4)
    rows = [other * 6 + stop, stop + other * 6, other * 5 + stop[:-1] + other * 2, [*other * 5, *stop, *other]]
    assert [said(torch.tensor([row]), torch.empty(0)).tolist() for row in rows] == [[True], [False], [False], [True]]
    alone = Said(tokenizer, ("ÿþ",), 0)
    assert alone(torch.tensor([other * 9 + stop, other * 13]), torch.empty(0)).tolist() == [True, False]


def test_a_stop_that_begins_with_a_space_is_seen_where_decoding_drops_the_first() -> None:
    """SentencePiece's way: what is decoded loses the space that it begins with, so one more token is looked at."""
    pieces = Tokenizer(WordLevel({"▁": 0, "a": 1, "b": 2, "c": 3}, unk_token="c"))
    pieces.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces)
    assert tokenizer.decode([0, 1, 2]) == "ab"
    said = Said(tokenizer, (" ab",), 2)
    assert said(torch.tensor([[3, 3, 3, 0, 1, 2], [3, 3, 3, 3, 1, 2]]), torch.empty(0)).tolist() == [True, False]


@torch.no_grad()
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_a_draw_is_that_of_plain_logits(llama: Any, top_p: float) -> None:
    """Token by token, from whole forward passes, with the cut of arXiv 1904.09751 written out."""
    model, tokenizer = llama
    row = tokenizer(PROMPTS[0])["input_ids"]
    state = torch.get_rng_state()
    said = sample(model, tokenizer, [row], NEW, 5, 0.7, top_p)
    assert torch.equal(state, torch.get_rng_state())
    assert (
        said == sample(model, tokenizer, [row], NEW, 5, 0.7, top_p) != sample(model, tokenizer, [row], NEW, 6, 2.0, 1.0)
    )
    ids = list(row)
    torch.manual_seed(5)
    for _ in range(NEW):
        p = (model(input_ids=torch.tensor([ids])).logits[0, -1].float() / 0.7).softmax(-1)
        ordered, places = p.sort(descending=True)
        kept = places[ordered.cumsum(0) - ordered < top_p]
        left = torch.zeros_like(p).index_copy(0, kept, p[kept])
        ids.append(int(torch.multinomial(left / left.sum(), 1)))
        if ids[-1] == 0:
            break
    assert said == [text(tokenizer, ids[len(row) :])]
