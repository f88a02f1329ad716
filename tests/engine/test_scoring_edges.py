"""Memory that runs out half-way, stops that are handed on, and what a chat template does to contexts and prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CHAT, noted, tiny_model, tiny_tokenizer

from ilu_cli.data.chat import Chat
from ilu_cli.engine import generation, scoring
from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Question, Scorer
from ilu_cli.engine.tree import Request
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.parts import parts_of

WORDS = ("out of memory", "DefaultCPUAllocator: not enough memory: you tried to allocate")


@pytest.fixture
def scorer() -> Scorer:
    tokenizer = tiny_tokenizer()
    model = tiny_model(len(tokenizer))
    return Scorer(model, parts_of(model), tokenizer, backend())


REQUESTS = [Request(tuple(range(s, s + n)), 2) for s, n in ((1, 5), (20, 9), (40, 7), (60, 12))]
REQUESTS += [Request((*range(80, 90), last), 10) for last in (3, 5, 7)]  # one row


def limited(scorer: Scorer, monkeypatch: pytest.MonkeyPatch, tokens: int, words: str) -> list[int]:
    """Have batches of more tokens than that fail; returns the sizes of those that do not."""
    own, done = scorer._forward, []

    def forward(rows: Any) -> Any:
        size = len(rows) * max(map(len, rows)) + sum(len(r.requests) - 1 for r in rows)
        if size > tokens:
            raise RuntimeError(words)
        done.append(size)
        return own(rows)

    monkeypatch.setattr(scorer, "_forward", forward)
    return done


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("tokens", [30, 20, 11])
def test_scores_are_the_same_where_memory_runs_out(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, tokens: int, words: str
) -> None:
    """At 11 even the row of three requests (ten tokens and two) is halved."""
    expected = scorer.score(REQUESTS)
    done = limited(scorer, monkeypatch, tokens, words)
    found = scorer.score(REQUESTS)
    assert [logp for logp, _ in found] == pytest.approx([logp for logp, _ in expected], abs=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert scorer.tokens < scoring.TOKENS  # later batches are smaller
    assert max(done) <= tokens


@pytest.mark.parametrize("tokens", [45, 20, 12])
def test_rows_of_their_own_are_all_scored_where_memory_runs_out(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """Plain rows, several to a batch: none is lost when a batch is tried again."""
    scorer.layout = replace(scorer.layout, kinds=())
    expected = scorer.score(REQUESTS)
    done = limited(scorer, monkeypatch, tokens, WORDS[0])
    found = scorer.score(REQUESTS)
    assert [logp for logp, _ in found] == pytest.approx([logp for logp, _ in expected], abs=1e-5)
    assert len(done) > 1 and max(done) <= tokens


def test_a_batch_of_two_rows_is_parted_and_not_cut(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer.layout = replace(scorer.layout, kinds=())
    two = [Request(tuple(range(s, s + 8)), 2) for s in (1, 20)]
    expected = scorer.score(two)
    done = limited(scorer, monkeypatch, 7, WORDS[0])
    assert [logp for logp, _ in scorer.score(two)] == pytest.approx([logp for logp, _ in expected], abs=1e-5)
    assert done == [7, 7]


def test_batches_that_are_continued_hold_as_many_tokens_as_they_may(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of one length L and n new tokens: two of them are 2 (L + n) tokens, and no third goes in."""
    prompts, groups = ["The capital"] * 5, []
    length = len(scorer.prompt(prompts[0]))

    def generate(model: Any, tokenizer: Any, rows: Any, new: Any, stop: Any, **_: Any) -> Any:
        groups.append(len(rows))
        return [""] * len(rows)

    monkeypatch.setattr(scoring, "generate", generate)
    for tokens, sizes in ((2 * (length + 30), [2, 2, 1]), (2 * (length + 30) - 1, [1] * 5), (10**6, [5])):
        scorer.tokens, groups[:] = tokens, []
        scorer.complete(prompts, 30)
        assert sorted(groups, reverse=True) == sizes


def test_bf16_is_that_of_autocast_for_scores_and_answers(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = [logp for logp, _ in scorer.score(REQUESTS)]
    scorer.precision = "bf16"
    rough = [logp for logp, _ in scorer.score(REQUESTS)]
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.05)
    seen: list[bool] = []
    monkeypatch.setattr(scoring, "generate", lambda *_, **more: noted(seen, torch.is_autocast_enabled("cpu"), [""]))
    for precision in ("bf16", "fp32"):
        scorer.precision = precision
        scorer.complete(["Paris"], 3)
    assert seen == [True, False]


def test_a_question_may_fill_the_context_and_not_more(scorer: Scorer) -> None:
    room = scorer.context_length
    scorer.check_length(room, "Who?")
    with pytest.raises(UsageError, match=f"a prompt of {room + 1} tokens does not fit"):
        scorer.check_length(room + 1, "Who?")


def test_a_token_without_an_embedding_is_refused_by_name() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(20)
    with pytest.raises(UnavailableError, match="and the model embeddings for 20"):
        Scorer(model, parts_of(model), tokenizer, backend()).encode("The capital of France")


def test_what_does_not_fit_alone_and_what_is_no_lack_of_memory_are_told(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(scorer, monkeypatch, 5, WORDS[0])
    with pytest.raises(RuntimeError, match="out of memory"):
        scorer.score(REQUESTS)
    monkeypatch.undo()
    limited(scorer, monkeypatch, 5, "shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        scorer.score(REQUESTS)


@pytest.mark.parametrize("words", WORDS)
def test_answers_are_the_same_where_memory_runs_out(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    prompts = ["Paris", "The capital of France is", "In chemistry, iron", "Question:", "A"]
    expected, own, sizes = scorer.complete(prompts, 4), generation.generate, []

    def generate(model: Any, tokenizer: Any, rows: Any, *args: Any, **more: Any) -> Any:
        if len(rows) > 1:
            raise RuntimeError(words)
        sizes.append(len(rows))
        return own(model, tokenizer, rows, *args)

    monkeypatch.setattr(scoring, "generate", generate)
    assert scorer.complete(prompts, 4) == expected
    assert sizes == [1] * 5
    for message, some in ((words, ["Paris"]), ("shapes do not match", prompts)):
        monkeypatch.setattr(
            scoring, "generate", lambda *_, said=message, **more: (_ for _ in ()).throw(RuntimeError(said))
        )
        with pytest.raises(RuntimeError, match=message[:10]):
            scorer.complete(some, 4)


def test_new_tokens_and_stops_are_handed_on(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def generate(model: Any, tokenizer: Any, rows: Any, new: Any, stop: Any, **_: Any) -> Any:
        given.append((new, stop))
        return [""] * len(rows)

    monkeypatch.setattr(scoring, "generate", generate)
    scorer.complete(["Paris"], 7, ("\n", "Q:"))
    scorer.complete(["Paris"], 3)
    assert given == [(7, ("\n", "Q:")), (3, ())]


def test_a_template_stands_around_contexts_and_prompts_and_answers_lose_their_space(scorer: Scorer) -> None:
    """`[user] …<eos>\\n[assistant] ` and the answer, whose space is the template's."""
    tokenizer = scorer.tokenizer
    tokenizer.chat_template = CHAT
    plain = scorer.pair("Who?", " Paris")
    assert list(plain.ids) == tokenizer("Who? Paris")["input_ids"]
    scorer.chat = Chat()
    wanted = tokenizer("[user] Who?<eos>\n[assistant]")["input_ids"], tokenizer(" Paris")["input_ids"]
    found = scorer.pair("Who?", "  Paris")
    assert (list(found.ids[: found.start]), list(found.ids[found.start :])) == wanted
    other = scorer.pair("Where?", "Paris")
    assert other.ids[: other.start] != found.ids[: found.start]
    prompt = tokenizer("[user] Who?<eos>\n[assistant] ")["input_ids"]
    assert scorer.prompt("Who?") == prompt
    ids, target = scorer.split("Who?", "  Paris")
    assert ids + target == tokenizer("[user] Who?<eos>\n[assistant] Paris")["input_ids"]
    empty = scorer.pair("", "Paris")
    assert list(empty.ids) == [tokenizer.eos_token_id, *tokenizer("Paris")["input_ids"]]
    assert scorer.prompt("") == [tokenizer.eos_token_id]


def test_a_context_is_scored_as_it_is_written(scorer: Scorer) -> None:
    questions = [Question("Who? ", ("Paris", " Rome")), Question("\n", ("Paris", "Rome"))]
    model, tokenizer = scorer.model, scorer.tokenizer
    for (context, choices), scores in zip(
        ((q.context, q.choices) for q in questions), scorer.loglikelihoods(questions)
    ):
        for choice, score in zip(choices, scores):
            start = len(tokenizer(context.rstrip())["input_ids"]) if context.strip() else 1
            ids = ([] if context.strip() else [tokenizer.eos_token_id]) + tokenizer(context + choice)["input_ids"]
            logp = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            assert score == pytest.approx(sum(logp[t - 1, ids[t]].item() for t in range(start, len(ids))), abs=1e-4)


def test_a_system_prompt_of_the_recipe_stands_first_and_a_line_end_is_the_templates_own(scorer: Scorer) -> None:
    tokenizer = scorer.tokenizer
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    scorer.chat = Chat(system="Be brief.")
    found = scorer.pair("Who?", " Paris")
    assert tokenizer.decode(found.ids[: found.start]) == "<system>Be brief.\n<user>Who?\n"
    assert tokenizer.decode(found.ids[found.start :]) == "Paris"
    assert tokenizer.decode(scorer.prompt("Who?")) == "<system>Be brief.\n<user>Who?\n"
