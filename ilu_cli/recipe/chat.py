"""The recipe keys that stand beside `chat`: what a chat template is told beside the turns."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from pydantic import AfterValidator, Field


def _a_day(text: str | None) -> str | None:
    if text is not None:
        date.fromisoformat(text)  # says what is wrong with it
    return text


ChatSystem = Annotated[str | None, Field(description="the system prompt of the chat template; null: its own")]
ChatDate = Annotated[
    str | None,
    AfterValidator(_a_day),
    Field(description="YYYY-MM-DD, the day that the chat template names as today"),
]
