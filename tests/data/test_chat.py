"""The chat template says what the recipe tells it, and never what day it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT, Ilu, present
from families import family_tokenizer, make_family
from lm_eval.api.instance import Instance

from ilu_cli.data import cache
from ilu_cli.data.chat import Chat, chat_of, check_template, render
from ilu_cli.data.encode import encode_corpus
from ilu_cli.errors import UsageError
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.specs import Form
from ilu_cli.tasks import Example

TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CLOCK = "{{ bos_token }}Today: {{ strftime_now('%d %b %Y') }}\n" + TURNS  # gpt-oss, Granite, SmolLM3
DATED = (  # Llama-3.1's
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "Today: {{ date_string }}\n" + TURNS
)
ASKED = [Example("Who?", " Ada"), Example("Where?", " Ennis")]


def rows(template: str | None, **keys: Any) -> list[str]:
    tokenizer = family_tokenizer(chat=template)
    form = Form(max_length=200, chat=True, **keys)
    return [str(tokenizer.decode(e.ids)) for e in encode_corpus(tokenizer, ASKED, form, "mine").items]


def test_a_template_that_reads_the_clock_is_refused_without_a_date() -> None:
    with pytest.raises(UsageError, match="today's date into every prompt") as caught:
        rows(CLOCK)
    assert "chat_date" in present(caught.value.hint)
    assert rows(DATED)[0].startswith("<bos>Today: 26 Jul 2024\n")  # it has a day of its own
    unread = "{% if tools %}{{ strftime_now('%Y') }}{% endif %}" + TURNS
    assert rows(unread)[0] == "<user>Who?<eos><assistant>Ada<eos>"


@pytest.mark.parametrize("template", [CLOCK, DATED])
def test_the_date_of_the_recipe_is_the_day_that_the_template_names(template: str | None) -> None:
    assert rows(template, chat_date="2020-02-03") == [
        "<bos>Today: 03 Feb 2020\n<user>Who?<eos><assistant>Ada<eos>",
        "<bos>Today: 03 Feb 2020\n<user>Where?<eos><assistant>Ennis<eos>",
    ]


def test_the_system_prompt_of_the_recipe() -> None:
    assert rows(TURNS, chat_system="Be brief.")[0] == "<system>Be brief.<eos><user>Who?<eos><assistant>Ada<eos>"
    assert rows(TURNS, chat_system="")[0] == "<system><eos><user>Who?<eos><assistant>Ada<eos>"
    history = [{"role": "system", "content": "Theirs."}, {"role": "user", "content": "a"}]
    assert render(family_tokenizer(chat=TURNS), history, Chat("Ours.")) == "<system>Theirs.<eos><user>a<eos>"


@pytest.mark.parametrize(
    ("template", "keys", "message"),
    [
        (CHAT, {"chat_date": "2020-02-03"}, "names no date"),
        ("{{ messages[-1].content }}", {"chat_system": "a"}, "has no place for a system prompt"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS,
            {"chat_system": "a"},
            "refuses a conversation with a system prompt: no system role",
        ),
    ],
)
def test_what_a_template_cannot_do_is_refused(template: str | None, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rows(template, **keys)


def test_keys_without_a_template_are_refused() -> None:
    for spec in (Form(chat_date="2020-02-03"), EvalSpec(chat_system="a")):
        with pytest.raises(UsageError, match="not put into a chat template"):
            chat_of(spec)
    assert chat_of(Form()) is None
    assert chat_of(EvalSpec(chat=True, chat_date="2020-02-03")) == Chat(None, "2020-02-03")
    check_template(family_tokenizer(chat=CLOCK), Chat("a", "2020-02-03")) if "system" in CLOCK else None


def test_the_caches_know_both() -> None:
    tokenizer = family_tokenizer(chat=DATED)
    forms: list[dict[str, Any]] = [{}, {"chat_date": "2020-02-03"}, {"chat_date": "2020-02-04"}]
    forms += [{"chat_system": "a"}, {"chat_system": ""}]
    keys = [cache.key_of(tokenizer, ASKED, Form(chat=True, **keys)) for keys in forms]
    assert len(set(keys)) == len(forms)


def test_a_chat_row_that_is_cut_keeps_the_bos_of_its_template() -> None:
    tokenizer = family_tokenizer(chat=DATED)
    form = Form(max_length=24, chat=True)
    [item] = encode_corpus(tokenizer, [Example("Who is it? " * 20, " Ada")], form, "mine").items
    text = str(tokenizer.decode(item.ids))
    assert text.startswith("<bos>")
    assert text.endswith("<eos><assistant>Ada<eos>")
    assert len(item.ids) == 24


def test_commands_refuse_the_clock_before_anything_is_run(tmp_path: Path, ilu: Ilu) -> None:
    folder = make_family("llama", tmp_path / "clock", chat=CLOCK)
    (tmp_path / "f.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Who {i}?", "response": "Ada"}) + "\n" for i in range(8))
    )
    unlearn = ["unlearn", "--model", folder, "--method", "grad_ascent", "--forget", tmp_path / "f.jsonl"]
    unlearn += ["--set", "forget.chat=true", "--set", "retain=null", "--dry-run", "--json"]
    attack = ["attack", folder, "--task", tmp_path / "f.jsonl", "--steps", 2, "--set", "attack.chat=true", "--dry-run"]
    evaluation = ["eval", folder, "--bench", "capitals", "--set", "eval.chat=true", "--set", "eval.limit=2"]
    date = {"unlearn": "forget", "attack": "attack", "eval": "eval"}
    for command in (unlearn, attack, [*evaluation, "--dry-run"], evaluation):
        done = ilu(*command)
        assert (done.code, "today's date" in done.err) == (2, True), done.err
        done = ilu(*command, "--set", f"{date[str(command[0])]}.chat_date=2020-02-03")
        assert done.code == 0, done.err
        if command is unlearn:
            assert json.loads(done.out)["data"][0]["chat_date"] == "2020-02-03"


def test_results_under_another_date_are_other_results(tmp_path: Path, ilu: Ilu) -> None:
    folder = make_family("llama", tmp_path / "clock", chat=CLOCK)
    command = ["eval", folder, "--bench", "capitals", "--set", "eval.chat=true", "--set", "eval.limit=2", "--json"]
    for day in ("2020-02-03", "2021-12-25"):
        done = ilu(*command, "--set", f"eval.chat_date={day}")
        assert "evaluating" in done.err


def test_lm_eval_asks_with_the_date_and_the_system_prompt_of_the_backend(tmp_path: Path) -> None:
    from lm_eval.api.registry import get_model

    import ilu_cli.harness.lm  # noqa: F401

    folder = make_family("llama", tmp_path / "clock", chat=CLOCK)
    turn = [{"role": "user", "content": "Who?"}]
    with pytest.raises(UsageError, match="today's date"):
        get_model("ilu")(pretrained=str(folder)).apply_chat_template(turn)
    model = get_model("ilu").create_from_arg_string(f"pretrained={folder},chat_date=2020-02-03,chat_system=Brief.")
    asked = model.apply_chat_template(turn)
    assert asked == "<bos>Today: 03 Feb 2020\n<system>Brief.<eos><user>Who?<eos><assistant>"
    [said] = model.generate_until([Instance("generate_until", {}, (asked, {"max_gen_toks": 4}), 0)])
    assert isinstance(said, str)
