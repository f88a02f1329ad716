"""Turns in the tokenizer's chat template, with a system prompt and a date of the recipe's own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from ilu_cli.errors import UsageError
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.specs import Form

DAYS = (date(2001, 2, 3), date(2014, 5, 6))  # two that no format writes alike
CODES = [f"%{c}" for c in "aAbBcdDeFHIjmMpSTuUwxXyYzZ"]
# transformers hands a template nothing that can be called, so its clock is replaced from within the template.
CLOCK = """{%- macro strftime_now(format) -%}{%- set told = namespace(text=format) -%}
{%- for code, text in day_codes.items() %}{% set told.text = told.text.replace(code, text) %}{% endfor -%}
{{ told.text }}{%- endmacro %}{{ '' }}"""


@dataclass(frozen=True)
class Chat:
    """How turns are written: the system prompt (None: the template's own) and the day that the template names."""

    system: str | None = None
    date: str | None = None


def chat_of(form: Form | EvalSpec) -> Chat | None:
    """What `chat`, `chat_system` and `chat_date` of a recipe ask for; None for plain text.

    Raises:
        UsageError: if the last two are given without `chat`.
    """
    if form.chat:
        return Chat(form.chat_system, form.chat_date)
    for key in ("chat_system", "chat_date"):
        if getattr(form, key) is not None:
            raise UsageError(f"{key} is given, but prompts are not put into a chat template", hint="set `chat: true`")
    return None


def render(tokenizer: Any, messages: list[dict[str, str]], chat: Chat, **how: Any) -> str:
    """The text of a conversation. A system prompt of its own has precedence over `chat.system`.

    Raises:
        UsageError: if the template refuses the conversation.
    """
    return _render(tokenizer, messages, chat.system, date.fromisoformat(chat.date) if chat.date else None, **how)


def _render(tokenizer: Any, messages: list[dict[str, str]], system: str | None, day: date | None, **how: Any) -> str:
    from jinja2 import TemplateError

    if system is not None and not any(m["role"] == "system" for m in messages):
        messages = [{"role": "system", "content": system}, *messages]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **(_told(tokenizer, day) | how)))
    except TemplateError as error:
        told = " with a system prompt" if system is not None else ""
        raise UsageError(f"the chat template refuses a conversation{told}: {error}") from error


def _told(tokenizer: Any, day: date | None, *, named: bool = True) -> dict[str, Any]:
    """What a template is given so that it takes `day` for today; if `named` also as `date_string`, Llama-3's way."""
    if day is None:
        return {}
    codes = {"%-d": str(day.day), "%-m": str(day.month), **{code: day.strftime(code) for code in CODES}}
    found = {"chat_template": CLOCK + tokenizer.get_chat_template(), "day_codes": codes}
    return found | ({"date_string": day.strftime("%d %b %Y")} if named else {})


def check_template(tokenizer: Any, chat: Chat) -> None:
    """Check that the template is there, does what the recipe asks for, and does not read the clock.

    Raises:
        UsageError: if it does not.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("chat: true, but the tokenizer has no chat template", hint="leave `chat` out for a base model")
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # it has several, and none for this
        raise UsageError(f"chat: true, but {error}") from error

    def told(system: str | None, day: date | None, **clock: Any) -> str:
        messages = [{"role": "user", "content": "a"}]
        return _render(tokenizer, messages, system, day, add_generation_prompt=True, **clock)

    if chat.date is None and "strftime_now" in template:
        early, late = (told(chat.system, None, **_told(tokenizer, day, named=False)) for day in DAYS)
        if early != late:
            raise UsageError(
                "the chat template writes today's date into every prompt, so that no two days give the same numbers",
                hint=f"set `chat_date` beside `chat`, for example chat_date: {date.today().isoformat()}",
            )
    if chat.date is not None and told(chat.system, DAYS[0]) == told(chat.system, DAYS[1]):
        raise UsageError(f"chat_date: {chat.date}, but the tokenizer's chat template names no date")
    if chat.system is not None and told("one", DAYS[0]) == told("two", DAYS[0]):
        raise UsageError("chat_system is given, but the tokenizer's chat template has no place for a system prompt")


def chat_pair(tokenizer: Any, prompt: str, target: str = "", chat: Chat = Chat()) -> tuple[str, str]:
    """The text of a user's turn up to where the answer begins, and the answer with its end of turn.

    Raises:
        UsageError: if the template writes the user's turn otherwise once it is answered.
    """
    user = {"role": "user", "content": prompt}
    opening = render(tokenizer, [user], chat, add_generation_prompt=True)
    if not target:
        return opening, ""
    answer = {"role": "assistant", "content": target.strip()}
    whole = render(tokenizer, [user, answer], chat)
    if not whole.startswith(opening):
        raise UsageError("chat: true, but the chat template writes a turn otherwise when the next one follows")
    return opening, whole[len(opening) :].rstrip()
