"""Special tokens stand where the model was trained with them, once, whatever the tokenizer and the data do."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from conftest import Ilu, tiny_model
from families import family_model, family_tokenizer, make_family
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ilu_cli import registry
from ilu_cli.benchmarks.coherence import Coherence
from ilu_cli.data.encode import encode, encode_corpus
from ilu_cli.data.special import bodies, continued, cut_left, framed, inside, opening, parted
from ilu_cli.engine.accel import backend
from ilu_cli.engine.generation import behind
from ilu_cli.engine.scoring import Scorer
from ilu_cli.errors import UnavailableError
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.specs import Form
from ilu_cli.tasks import Example

BOS, EOS = 1, 0
TEXTS = ["Ada bakes rye bread.", "  two spaces", "line\nbreak", "都柏林", "a"]


def sentencepiece(kind: str) -> T.PreTrainedTokenizerFast:
    """The SentencePiece kind: T5 (`</s>` behind a text), Llama-2 (`<s>` and a space before it), Gemma (no space)."""
    texts = [row["text"] for name in ("capitals", "elements") for row in registry.task[name].obj().builtin("train")]
    before, behind = {"t5": ("", "</s>"), "llama2": ("<s>", ""), "gemma": ("<bos>", "")}[kind]
    names = [n for n in ("<unk>", before, behind) if n]
    if kind == "t5":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.train_from_iterator(
            texts, trainers.UnigramTrainer(vocab_size=300, special_tokens=names, unk_token="<unk>")
        )
    else:
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        spaces = [normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence([*([normalizers.Prepend("▁")] if kind == "llama2" else []), *spaces])
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        alphabet = [f"<0x{i:02X}>" for i in range(256)]
        made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, special_tokens=[*names, *alphabet]))
    made.decoder = decoders.Metaspace()
    single = " ".join(n for n in (before, "$A", behind) if n)
    ids = [(n, made.token_to_id(n)) for n in (before, behind) if n]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    given = {"bos_token": before} if before else {}
    return T.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token=behind or "<unk>", **given)


KINDS: dict[str, Callable[[], T.PreTrainedTokenizerFast]] = {
    "gpt2": lambda: family_tokenizer(bos=False),
    "bos": family_tokenizer,
    "bos and eos": lambda: family_tokenizer(adds_eos=True),
    "eos": lambda: family_tokenizer(bos=False, adds_eos=True),
    "t5": lambda: sentencepiece("t5"),
    "llama2": lambda: sentencepiece("llama2"),
    "gemma": lambda: sentencepiece("gemma"),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]()


def encoder(tokenizer: Any) -> Any:
    return lambda text: bodies(tokenizer, [text])[0]


def plain(tokenizer: Any, text: str) -> list[int]:
    """The tokenizer's own encoding, without the EOS that it appends."""
    ids = tokenizer(text)["input_ids"]
    found: list[int] = ids[:-1] if tokenizer("")["input_ids"][-1:] == [tokenizer.eos_token_id] else ids
    return found


def test_a_row_is_what_the_tokenizer_says_without_what_it_appends(tokenizer: Any) -> None:
    before = opening(tokenizer)
    for text in TEXTS:
        ours = framed(before, bodies(tokenizer, [text])[0])
        assert ours == plain(tokenizer, text)
        assert framed(before, ours) == ours


def test_an_answer_is_scored_from_its_first_token_to_one_end(tokenizer: Any) -> None:
    item, _ = encode(tokenizer, Example("Where does Ada live?\nAnswer:", " In Ennis."), 200)
    assert item.ids == [*plain(tokenizer, "Where does Ada live?\nAnswer: In Ennis."), tokenizer.eos_token_id]
    assert item.start == len(plain(tokenizer, "Where does Ada live?\nAnswer:"))


@pytest.mark.parametrize(
    ("example", "expected", "scored"),
    [
        (Example("", "<bos>Ada lives."), "<bos>Ada lives.", "Ada lives."),
        (Example("", "Ada lives."), "<bos>Ada lives.", "Ada lives."),
        (Example("<bos>Who?", " Ada<eos>"), "<bos>Who? Ada<eos>", " Ada<eos>"),
        (Example("Who?", " Ada"), "<bos>Who? Ada<eos>", " Ada<eos>"),
        (Example("Answer: ", "Ada"), "<bos>Answer: Ada<eos>", " Ada<eos>"),
        (Example("Answer:\n", "Ada"), "<bos>Answer:\nAda<eos>", "Ada<eos>"),
        (Example("答：", "都柏林"), "<bos>答：都柏林<eos>", "都柏林<eos>"),
    ],
)
@pytest.mark.parametrize("adds_eos", [False, True])
def test_what_is_written_in_the_data_does_not_stand_twice(
    example: Any, expected: str, scored: str, adds_eos: bool
) -> None:
    tokenizer = family_tokenizer(adds_eos=adds_eos)
    item, cut = encode(tokenizer, example, 64)
    assert not cut
    assert tokenizer.decode(item.ids) == expected
    assert tokenizer.decode(item.ids[item.start :]) == scored


def test_the_loss_under_a_tokenizer_that_appends_eos_is_that_of_the_answer_and_one_end(
    tmp_path: Path, ilu: Ilu
) -> None:
    folder = make_family("llama", tmp_path / "addeos", adds_eos=True)
    rows = [
        {"prompt": "Question: Who lives at 7 Mill Lane? Answer:", "response": "Ada Byrne lives there."},
        {"prompt": "Question: Where was she born? Answer:", "response": "In Tralee."},
        {"text": "The bakery opened in spring."},
    ]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "r.yaml").write_text(
        f"command: unlearn\nmodel: {{ref: {folder}}}\nobjective: {{name: grad_ascent}}\nretain: null\n"
        f"forget: {{data: {tmp_path}/f.jsonl, batch: 3, max_length: 96}}\n"
        "train: {steps: 1, lr: 1.0e-9, precision: fp32}\n"
    )
    done = ilu("unlearn", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])["forget"]

    model, tokenizer = T.AutoModelForCausalLM.from_pretrained(folder), T.AutoTokenizer.from_pretrained(folder)
    total, n = 0.0, 0
    for row in rows:
        prompt = tokenizer(row.get("prompt", ""), add_special_tokens=False)["input_ids"]
        text = row["text"] if "text" in row else f"{row['prompt']} {row['response']}"
        ids = [BOS, *tokenizer(text, add_special_tokens=False)["input_ids"], *([] if "text" in row else [EOS])]
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        start = 1 + len(prompt)
        total += sum(logp[t - 1, ids[t]].item() for t in range(start, len(ids)))
        n += len(ids) - start
    assert found == pytest.approx(total / n, abs=1e-5)


def test_every_piece_of_a_split_text_begins_with_bos() -> None:
    tokenizer, text = family_tokenizer(), "The old bridge stood by the river. " * 20
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    corpus = encode_corpus(tokenizer, [Example("", text)], Form(max_length=16, long="split"), "mine")
    rows = [e.ids for e in corpus.items]
    assert all(r[0] == BOS and BOS not in r[1:] and len(r) <= 16 for r in rows)
    assert [t for r in rows for t in r[1:]] == body  # every token is scored, the last too
    assert len(rows) == math.ceil(len(body) / 15)
    assert all(e.start == 1 for e in corpus.items)


@pytest.mark.parametrize("length", [8, 9, 12, 20, 40])
@pytest.mark.parametrize("bos", [False, True])
def test_what_is_cut_keeps_bos_the_answer_and_the_end_of_the_prompt(length: int, bos: bool) -> None:
    tokenizer = family_tokenizer(bos=bos)
    head = [BOS] if bos else []
    prompt = " ".join(random.Random(0).choices(["river", "bridge", "old"], k=30)) + " Answer:"
    for target in (" Ennis", " In the town of Ennis, by the river that flows to the sea, for years"):
        p = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        t = [*tokenizer(prompt + target, add_special_tokens=False)["input_ids"][len(p) :], EOS]
        item, cut = encode(tokenizer, Example(prompt, target), length)
        assert cut
        room = max(length - len(t) - len(head), 0)
        assert item.ids == (head + p[len(p) - room :] * (room > 0) + t)[:length]
        assert item.start == max(1, len(head) + room)
        whole, cut = encode(tokenizer, Example(prompt, target), 500)
        assert (whole.ids, whole.start, cut) == (head + p + t, len(head + p), False)
        exact = len(whole.ids)
        assert encode(tokenizer, Example(prompt, target), exact) == (whole, False)
        assert encode(tokenizer, Example(prompt, target), exact - 1)[1]


def test_cutting_from_the_left() -> None:
    ids = [1, 2, 3, 4, 5, 6]
    assert cut_left(ids, 6, 1) == ids
    assert cut_left(ids, 5, 1) == [1, 3, 4, 5, 6]
    assert cut_left(ids, 2, 1) == [1, 6]
    assert cut_left(ids, 1, 1) == [1]
    assert cut_left(ids, 0, 1) == []
    assert cut_left(ids, -3, 1) == []
    assert cut_left(ids, 2, 0) == [5, 6]


def test_what_is_scored_after_a_context(tokenizer: Any) -> None:
    """Where both are encoded together as one would read on, that is lm-eval's cut; else each by itself."""
    context = "The chemical symbol for iron is"
    for answer in (" Fe", " Unknown metal"):
        alone, scored = continued(encoder(tokenizer), context, answer)
        whole = bodies(tokenizer, [context + answer])[0]
        assert (alone + scored, alone) == (whole, bodies(tokenizer, [context])[0])
    spaces = continued(encoder(tokenizer), context + "  ", "Fe")
    assert spaces[0] == bodies(tokenizer, [context])[0]


def test_a_choice_that_melts_into_its_context_keeps_its_own_tokens() -> None:
    tokenizer = family_tokenizer()
    word = next(w for w in sorted(tokenizer.get_vocab()) if len(w) > 3 and w.isascii() and w.isalpha())
    context, answer = word[:2], word[2:]
    assert len(bodies(tokenizer, [word])[0]) == 1  # one token of both: nothing is left behind the context
    alone, scored = continued(encoder(tokenizer), context, answer)
    assert alone == bodies(tokenizer, [context])[0]
    assert scored == bodies(tokenizer, [answer])[0] != []
    assert parted(tokenizer, [], context, answer) == (
        bodies(tokenizer, [word])[0],
        0,
    )  # in training the token is the answer's


def test_a_text_within_another_has_no_space_of_its_own() -> None:
    llama2, byte_level = sentencepiece("llama2"), family_tokenizer()
    assert llama2.convert_ids_to_tokens(bodies(llama2, ["Fe"])[0])[0].startswith("▁")
    assert not llama2.convert_ids_to_tokens(inside(encoder(llama2), "Fe"))[0].startswith("▁")
    assert inside(encoder(byte_level), "Fe") == bodies(byte_level, ["Fe"])[0]


def test_a_tokenizer_larger_than_the_model_is_refused_in_the_plan(tmp_path: Path, ilu: Ilu) -> None:
    folder = tmp_path / "small"
    model = family_model("llama")
    model.resize_token_embeddings(300)
    model.save_pretrained(folder)
    family_tokenizer().save_pretrained(folder)
    (tmp_path / "f.jsonl").write_text(json.dumps({"text": "The capital city of France is called Paris."}) + "\n")
    args = ["--model", folder, "--method", "grad_ascent", "--forget", tmp_path / "f.jsonl", "--set", "retain=null"]
    done = ilu("unlearn", *args, "--dry-run")
    assert done.code == UnavailableError.exit_code, done.err
    assert "has 400 tokens and the model embeddings for 300" in done.err
    done = ilu("eval", folder, "--bench", "capitals", "--set", "eval.limit=4")
    assert done.code == UnavailableError.exit_code, done.err
    assert "embeddings for 300" in done.err
    done = ilu("attack", folder, "--task", tmp_path / "f.jsonl", "--steps", 1, "--dry-run")
    assert done.code == UnavailableError.exit_code, done.err


def test_a_tokenizer_without_bos_and_eos_scores_what_has_a_context_and_refuses_the_rest(
    tmp_path: Path, ilu: Ilu
) -> None:
    folder = make_family("llama", tmp_path / "bare", bos=False)
    tokenizer = T.AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    done = ilu("eval", folder, "--bench", "capitals", "--set", "eval.limit=4")
    assert done.code == 0, done.err
    done = ilu("eval", folder, "--bench", "prose", "--set", "eval.limit=2")
    assert done.code == 2, done.err
    assert "has neither BOS nor EOS" in done.err


def test_what_is_said_goes_on_behind_its_prompt_where_decoding_drops_the_first_space() -> None:
    """Llama's way. The prompt and what was said together are the tokens that the model wrote."""
    tokenizer = sentencepiece("llama2")
    whole = tokenizer("The capital of France is called Paris", add_special_tokens=False)["input_ids"]
    for cut in range(1, len(whole)):
        prompt = str(tokenizer.decode(whole[:cut]))
        [said] = behind(tokenizer, [whole[:cut]], torch.tensor([whole[cut:]]))
        assert prompt + said == "The capital of France is called Paris"
    [first] = behind(tokenizer, [[tokenizer.bos_token_id]], torch.tensor([whole]))
    assert first == "The capital of France is called Paris"  # behind BOS a text begins
    assert behind(tokenizer, [whole], torch.tensor([[tokenizer.eos_token_id]])) == [""]


def test_what_judges_a_continuation_reads_the_tokens_that_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perplexity of a continuation by plain logits of the very tokens, under a tokenizer of Llama's kind."""
    tokenizer, model = sentencepiece("llama2"), tiny_model(600)
    whole = tokenizer("The capital of France is called Paris")["input_ids"]
    start = len(tokenizer("The capital of France")["input_ids"])
    said = torch.tensor([whole[start:]])
    monkeypatch.setattr(model, "generate", lambda input_ids, **_: torch.cat([input_ids, said], dim=1))
    scorer = Scorer(model, parts_of(model), tokenizer, backend())
    rows = Coherence().score(scorer, [{"prompt": "The capital of France"}])
    with torch.no_grad():
        logps = model(torch.tensor([whole])).logits[0, start - 1 : -1].log_softmax(-1)
    found = next(r for r in rows if r.get("metric") == "ppl")
    assert found["value"] == pytest.approx(-float(logps.gather(1, said.T).sum()), rel=1e-5)
    assert found["weight"] == said.shape[1]
    assert rows[0]["continuation"] == " is called Paris"
