"""The backend `ilu` against HFLM where special tokens, templates and merges are at stake, and against plain passes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu
from families import family_model, family_tokenizer, make_family
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from ilu_cli.data.chat import Chat
from ilu_cli.data.special import bodies
from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Question, Scorer
from ilu_cli.errors import UsageError
from ilu_cli.harness.lm import IluLM
from ilu_cli.models.parts import parts_of

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
QUESTIONS = ["Where does Ada Byrne live?", "The capital of France is", "The symbol of gold is"]


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder = make_family("llama", tmp_path_factory.mktemp("models") / "llama", chat=TEMPLATE)
    return IluLM(pretrained=str(folder)), HFLM(pretrained=str(folder), device="cpu", batch_size=1)


@pytest.fixture
def plain() -> tuple[Any, Any, Any]:
    """A backend around a model in memory, the model, and its tokenizer."""
    model, tokenizer = family_model("llama"), family_tokenizer()
    return IluLM(scorer=Scorer(model, parts_of(model), tokenizer, backend())), model, tokenizer


@torch.no_grad()
def logp(model: Any, ids: list[int], start: int) -> float:
    found = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(found[t - 1, ids[t]].item() for t in range(start, len(ids))))


@pytest.mark.parametrize("templated", [False, True])
def test_a_template_that_writes_bos_is_read_as_by_hflm(both: Any, templated: bool) -> None:
    asked = [both[0].apply_chat_template([{"role": "user", "content": q}]) if templated else q for q in QUESTIONS]
    keys = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    ours, theirs = (lm.generate_until(instances("generate_until", [(a, keys) for a in asked]), True) for lm in both)
    assert ours == theirs
    pairs = [(a, answer) for a in asked for answer in ("Ennis" if templated else " Ennis", " In the river.")]
    ours, theirs = (lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True) for lm in both)
    assert [o[0] for o in ours] == pytest.approx([t[0] for t in theirs], abs=1e-4)
    texts = instances("loglikelihood_rolling", [(a,) for a in asked])
    ours, theirs = (lm.loglikelihood_rolling(texts, disable_tqdm=True) for lm in both)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_choice_that_melts_into_its_context_is_scored_after_it(plain: Any) -> None:
    lm, model, tokenizer = plain
    word = next(w for w in sorted(tokenizer.get_vocab()) if len(w) > 3 and w.isascii() and w.isalpha())
    context, choices = f"The {word}: {word[:2]}", (word[2:], " river", "x")
    assert len(bodies(tokenizer, [context + word[2:]])[0]) <= len(bodies(tokenizer, [context])[0])
    head = [1, *bodies(tokenizer, [context])[0]]
    expected = [logp(model, head + bodies(tokenizer, [c])[0], len(head)) for c in choices]
    found = lm.loglikelihood(instances("loglikelihood", [(context, c) for c in choices]))
    assert [f[0] for f in found] == pytest.approx(expected, abs=1e-4)
    assert lm.scorer.loglikelihoods([Question(context, choices)])[0] == pytest.approx(expected, abs=1e-4)
    assert all(f[0] < -0.1 for f in found)  # 0.0 would win always


def test_a_choice_without_a_context_is_scored_whole(plain: Any) -> None:
    lm, model, tokenizer = plain
    choices = (" Fe", " Gold", "Paris is a city.")
    expected = [logp(model, [1, *bodies(tokenizer, [c])[0]], 1) for c in choices]
    for context in ("", " \n"):
        head = context.strip()
        found = lm.loglikelihood(instances("loglikelihood", [(head, c) for c in choices]))
        assert [f[0] for f in found] == pytest.approx(expected, abs=1e-4)
    bare = family_tokenizer(bos=False)
    scorer = Scorer(model, parts_of(model), bare, backend())
    expected = [logp(model, [0, *bodies(bare, [c])[0]], 1) for c in choices]
    assert scorer.loglikelihoods([Question("", choices)])[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("space", ["\n", " "])
def test_choices_of_a_chat_follow_the_same_tokens(plain: Any, space: str) -> None:
    """A space at the end of the template belongs to the answer's first token, a line end to the template."""
    _, model, tokenizer = plain
    tokenizer.chat_template = TEMPLATE.replace("<assistant>\n", f"<assistant>{space}")
    scorer = Scorer(model, parts_of(model), tokenizer, backend(), chat=Chat())
    opening, kept = f"<bos><user>Who?<eos>\n<assistant>{space}", space if space == "\n" else ""
    choices = (" Fe", "Ada", " 7")
    head = bodies(tokenizer, [opening.removesuffix(space) + kept])[0]
    whole = [bodies(tokenizer, [opening + c.strip()])[0] for c in choices]
    assert all(ids[: len(head)] == head for ids in whole)
    expected = [logp(model, ids, len(head)) for ids in whole]
    assert scorer.loglikelihoods([Question("Who?", choices)])[0] == pytest.approx(expected, abs=1e-4)


def test_an_empty_choice_is_refused(plain: Any) -> None:
    for context in ("The symbol of gold is", ""):
        with pytest.raises(UsageError, match="an empty answer has no probability"):
            plain[0].loglikelihood(instances("loglikelihood", [(context, "")]))


def test_eos_that_the_tokenizer_appends_stands_nowhere(plain: Any) -> None:
    _, model, tokenizer = plain
    scorer = Scorer(model, parts_of(model), family_tokenizer(adds_eos=True), backend())
    context, choice = "The symbol of gold is", " Au"
    ids = tokenizer(context + choice)["input_ids"]
    expected = logp(model, ids, len(tokenizer(context)["input_ids"]))
    assert scorer.loglikelihoods([Question(context, (choice,))])[0] == pytest.approx([expected], abs=1e-4)
    plainly = Scorer(model, parts_of(model), tokenizer, backend())
    assert scorer.complete([context], 8) == plainly.complete([context], 8)


def test_what_is_too_long_keeps_bos(plain: Any) -> None:
    lm, model, tokenizer = plain
    context, choice = "The river and the bridge. " * 80, " Au"
    ids = bodies(tokenizer, [context.rstrip() + choice])[0]
    n = len(ids) - len(bodies(tokenizer, [context.rstrip()])[0])
    room = model.config.max_position_embeddings
    row = [1, *ids[len(ids) - room :]]  # 513 tokens, of which the last one is only predicted
    found = lm.loglikelihood(instances("loglikelihood", [(context.rstrip(), choice)]))
    assert found[0][0] == pytest.approx(logp(model, row[:-1] + row[-1:], len(row) - n), abs=1e-3)


def test_a_task_over_a_file_that_is_replaced_under_the_same_time_asks_anew(both: Any, tmp_path: Path, ilu: Ilu) -> None:
    (tmp_path / "q.yaml").write_text(
        "task: q\ndataset_path: json\ndataset_kwargs: {data_files: {test: q.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: choices\ndoc_to_target: answer\n"
        "metric_list: [{metric: acc}]\nmetadata: {version: 1, role: utility}\n"
    )
    seen = []
    for name in ("Ada", "Mei"):
        row = {"question": f"Where is {name}?", "choices": ["here", "there"], "answer": 0}
        (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
        os.utime(tmp_path / "q.jsonl", (1_577_836_800, 1_577_836_800))
        done = ilu("eval", both[0].scorer.tokenizer.name_or_path, "--bench", "q.yaml", "--json")
        assert done.code == 0, done.err
        [rows] = {p.read_text() for p in (tmp_path / "cache/eval").rglob("q.rows.jsonl")}
        seen.append(json.loads(rows)["question"])
    assert seen == ["Where is Ada?", "Where is Mei?"]
