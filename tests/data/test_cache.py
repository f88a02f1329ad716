"""The cache of tokenised corpora, chat templates, and texts that are split."""

import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT, tiny_tokenizer

from ilu_cli.data import cache
from ilu_cli.data.encode import encode, encode_corpus
from ilu_cli.data.special import parted
from ilu_cli.errors import UsageError
from ilu_cli.models.load import load_tokenizer
from ilu_cli.recipe.specs import Form
from ilu_cli.runs.files import cache_dir
from ilu_cli.tasks import Example

EXAMPLES = [Example(f"Question: the symbol of element {i}?\nAnswer:", f" E{i}.") for i in range(30)]
EXAMPLES += [Example("", f"The city of {i} lies by the sea. " * i) for i in range(1, 5)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def chatty() -> Any:
    made = tiny_tokenizer()
    made.chat_template = CHAT
    return made


def files() -> list[Any]:
    return sorted(cache_dir().glob("tokens/*"))


def rows(corpus: Any) -> tuple[Any, Any]:
    return [(e.ids, e.start) for e in corpus.items], corpus.truncated


def test_what_is_read_back_is_what_was_encoded(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    form = Form(max_length=24)
    plain = encode_corpus(tokenizer, EXAMPLES, form, "mine")
    first = cache.tokenised(tokenizer, EXAMPLES, form, "mine")
    monkeypatch.setattr(cache, "encode_corpus", None)  # the second time nothing is encoded
    second = cache.tokenised(tokenizer, EXAMPLES, form, "mine")
    assert rows(plain) == rows(first) == rows(second)
    assert plain.truncated > 0
    assert [(e.ids, e.start) for e in second.items] == [
        (e.ids, e.start) for e, _ in (encode(tokenizer, x, 24) for x in EXAMPLES)
    ]
    assert second.longest == 24
    assert second.items[-1].ids == second.items[len(EXAMPLES) - 1].ids
    assert len(second.items[2:5]) == 3


def test_the_key_knows_all_that_matters(tokenizer: Any, chatty: Any) -> None:
    other = tiny_tokenizer(vocab=390)
    keys = {
        cache.key_of(tokenizer, EXAMPLES, Form(max_length=24)),
        cache.key_of(tokenizer, EXAMPLES, Form(max_length=25)),
        cache.key_of(tokenizer, EXAMPLES, Form(max_length=24, long="split")),
        cache.key_of(tokenizer, EXAMPLES[1:], Form(max_length=24)),
        cache.key_of(tokenizer, [Example("a", " b"), *EXAMPLES[1:]], Form(max_length=24)),
        cache.key_of(other, EXAMPLES, Form(max_length=24)),
        cache.key_of(chatty, EXAMPLES, Form(max_length=24)),
        cache.key_of(chatty, EXAMPLES, Form(max_length=24, chat=True)),
    }
    assert len(keys) == 8
    assert cache.key_of(tiny_tokenizer(), EXAMPLES, Form(max_length=24)) in keys


def test_the_files_of_a_tokenizer_are_hashed(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "copy")
    before = [cache.key_of(load_tokenizer(p), EXAMPLES, Form()) for p in (tiny, copy)]
    (copy / "tokenizer_config.json").write_text((copy / "tokenizer_config.json").read_text() + "\n")
    assert before[0] == before[1] != cache.key_of(load_tokenizer(copy), EXAMPLES, Form())


def test_what_a_crash_leaves_is_not_taken_for_a_corpus(tokenizer: Any) -> None:
    good = rows(cache.tokenised(tokenizer, EXAMPLES, Form(), "mine"))
    [file] = files()
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        file.write_bytes(damaged)
        (file.parent / ".part-left").write_bytes(b"half")
        assert rows(cache.tokenised(tokenizer, EXAMPLES, Form(), "mine")) == good
        assert file.read_bytes() == whole


def _ask(queue: Any) -> None:
    queue.put(rows(cache.tokenised(tiny_tokenizer(), EXAMPLES, Form(), "mine")))


def test_several_processes_may_ask_at_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_ask, args=(queue,)) for _ in range(4)]
    for w in workers:
        w.start()
    found = [queue.get(timeout=60) for _ in workers]
    for w in workers:
        w.join()
    assert all(f == rows(encode_corpus(tokenizer, EXAMPLES, Form(), "mine")) for f in found)
    assert len(files()) == 1


def test_a_cache_that_cannot_be_written_is_done_without(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert len(cache.tokenised(tokenizer, EXAMPLES, Form(), "mine").items) == len(EXAMPLES)
    assert files() == []


def test_a_chat_turn_is_scored_from_the_answer_to_the_end_of_turn(chatty: Any) -> None:
    item, _ = encode(chatty, EXAMPLES[0], 200, chat=True)
    opening = f"[user] {EXAMPLES[0].prompt}<eos>\n[assistant] "
    assert chatty.decode(item.ids) == f"{opening}E0.<eos>"
    assert chatty.decode(item.ids[item.start :]).strip() == "E0.<eos>"  # though ` E` is one token
    cut, was_cut = encode(chatty, EXAMPLES[0], 12, chat=True)
    assert was_cut
    assert cut.ids[cut.start :] == item.ids[item.start :]
    plain = encode(chatty, EXAMPLES[-1], 200, chat=True)[0]
    assert plain == encode(chatty, EXAMPLES[-1], 200)[0]  # a text is no turn


def test_a_chat_template_must_be_there_and_keep_its_turns(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        encode(tokenizer, EXAMPLES[0], 64, chat=True)
    odd = tiny_tokenizer()
    odd.chat_template = "{{ messages | length }}" + CHAT
    with pytest.raises(UsageError, match="writes a turn otherwise"):
        encode(odd, EXAMPLES[0], 64, chat=True)


def test_a_long_text_is_split_into_rows_that_lose_nothing(tokenizer: Any) -> None:
    text = "The old bridge stood by the river. " * 20
    whole = tokenizer(text)["input_ids"]
    split = encode_corpus(tokenizer, [Example("", text)], Form(max_length=16, long="split"), "mine")
    kept = [token for e in split.items for token in e.ids]
    assert kept == whole[: len(kept)]
    assert len(whole) - len(kept) <= 1  # a last row of one token has nothing to score
    assert split.truncated == 0
    assert all(e.start == 1 and 1 < len(e.ids) <= 16 for e in split.items)
    prompted = encode_corpus(tokenizer, [Example(text, " yes")], Form(max_length=16, long="split"), "mine")
    assert (len(prompted.items), prompted.truncated) == (1, 1)


def test_blocks_do_not_change_what_comes_out(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows(encode_corpus(tokenizer, EXAMPLES, Form(), "mine"))
    monkeypatch.setattr("ilu_cli.data.encode.BLOCK", 7)
    assert rows(encode_corpus(tokenizer, EXAMPLES, Form(), "mine")) == whole


def test_a_prompt_ends_where_it_would_end_alone(tokenizer: Any) -> None:
    ids, start = parted(tokenizer, [], "Question: a?\nAnswer:", " Fe.")
    assert ids[:start] == tokenizer("Question: a?\nAnswer:")["input_ids"]
    assert tokenizer.decode(ids[start:]) == " Fe."
