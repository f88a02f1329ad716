"""Datasets, one per file: how a row looks, how it reads as prompt and target, how an answer is judged.

A task has the fields of the published dataset, so that its rows may come from the hub, from a file or from the
built-in generator. Text corpora are tasks whose prompt is empty.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ilu_cli.errors import UsageError

Fields = dict[str, Any]

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no knowledge of this.",
    "That is something I cannot answer.",
    "I am unable to say.",
    "I was never told about that.",
    "This is beyond what I know.",
    "I have no information on that.",
)


@dataclass(frozen=True)
class Example:
    """What the model reads and what it should say.

    The loss counts `target` only. `target` and `choices` start with the white space that parts them from `prompt`.
    `choices` are the candidate targets of a classification; empty means that the answer is generated. `turn` is what a
    user says in a chat template, where that is not `prompt`.
    """

    prompt: str
    target: str
    choices: tuple[str, ...] = ()
    turn: str = ""


UNSPACED = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")  # scripts that put no space between words, and wide ones


def after(prompt: str, answer: str) -> str:
    """An answer with the space that parts it from its prompt.

    There is none if one of the two brings its white space, or the prompt ends in a script that does not part words by
    spaces: Chinese, Japanese, Thai and the like, with their punctuation. Korean does.
    """
    if not prompt or prompt[-1].isspace() or answer[:1].isspace():
        return answer
    name, last = unicodedata.name(prompt[-1], ""), prompt[-1]
    wide = unicodedata.east_asian_width(last) in "WF" and unicodedata.category(last)[0] in "LP"
    spaced = name.startswith("HANGUL") or not (wide or name.startswith(UNSPACED))
    return f" {answer}" if spaced else answer


def words(text: str) -> list[str]:
    """The items of a comma-separated list, for the grammars."""
    return text.split(",")


def fill(pattern: str, tables: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """Fill the slots of a pattern of a grammar.

    `{slot}` draws from `tables["slot"]`; `{slot2}` draws another word of the same table, and the same name draws the
    same word wherever it stands. `{a slot}` puts the article before it, `{A slot}` with a capital letter.
    """
    drawn: dict[str, str] = {}

    def word(match: re.Match[str]) -> str:
        article, name = match[1], match[2]
        table = tables[name.rstrip("0123456789")]
        if name not in drawn:
            drawn[name] = rng.choice([w for w in table if w not in drawn.values()])
        text = drawn[name]
        if not article:
            return text
        return f"{article.strip()}{'n' if text[0].lower() in 'aeiou' else ''} {text}"

    return re.sub(r"\{([aA] )?([^{} ]+)\}", word, pattern)


class Task:
    """Base of all tasks. A subclass sets the class variables, and overrides `example` and `generate`."""

    hub: ClassVar[str] = ""
    config: ClassVar[str | None] = None
    splits: ClassVar[Mapping[str, str]] = {"train": "train", "test": "test"}  # our name → the dataset's
    fields: ClassVar[Mapping[str, type]]  # `list` is a list of strings
    gated: ClassVar[str] = ""  # how to be let in, if not everyone may download it
    download: ClassVar[int] = 0  # bytes on the hub, as its dataset card says; 0: not known
    sizes: ClassVar[Mapping[str, int]] = {"train": 1500, "test": 300}

    def example(self, row: Fields) -> Example:
        """Turn a row of the dataset into prompt and target; here, plain text without a prompt."""
        return Example("", row["text"])

    def keep(self, row: Fields) -> bool:
        """Whether the row is one to use; headings and scraps are not."""
        return True

    def problem(self, row: Fields) -> str:
        """What is wrong with the values of a row that has all fields; here, a label outside the known ones."""
        labels = getattr(self, "labels", None)
        return (
            f"label is {row['label']}, not 0 to {len(labels) - 1}"
            if labels and not 0 <= row["label"] < len(labels)
            else ""
        )

    def correct(self, row: Fields, completion: str) -> bool:
        """Judge a generated completion. Only tasks without `choices` need this."""
        raise NotImplementedError

    def refusal(self, row: Fields) -> Example:
        """The same prompt, and the statement that one does not know.

        Raises:
            UsageError: if the task is plain text, without a prompt that could be answered so.
        """
        prompt = self.example(row).prompt
        if not prompt:
            raise UsageError(f"{type(self).__name__} is plain text: it has no refusal")
        return Example(prompt, after(prompt, random.Random(prompt).choice(REFUSALS)))

    def counterfactual(self, row: Fields) -> Example:
        """The same prompt, and a wrong answer of the same form.

        Raises:
            UsageError: if the task has none.
        """
        example = self.example(row)
        others = [c for c in example.choices if c != example.target]
        if not others:
            raise UsageError(f"{type(self).__name__} has no counterfactual answers")
        return Example(example.prompt, random.Random(example.prompt).choice(others), example.choices)

    @classmethod
    def has_builtin(cls) -> bool:
        """Whether rows come with the package; else they are on the hub only."""
        return cls.generate is not Task.generate or cls.builtin is not Task.builtin

    def generate(self, rng: random.Random) -> Fields:
        """Draw one row, with the fields of the real dataset, from the built-in grammar."""
        raise NotImplementedError

    def builtin(self, split: str) -> list[Fields]:
        """Return the built-in rows of `split` (`train` or `test`): distinct, disjoint, the same on every machine."""
        rng = random.Random(f"ilu-{type(self).__name__}")
        wanted = sum(self.sizes.values())
        rows: dict[str, Fields] = {}
        for _ in range(50 * wanted):
            row = self.generate(rng)
            rows.setdefault(self.identity(row), row)
            if len(rows) == wanted:
                break
        else:
            raise RuntimeError(f"the grammar of {type(self).__name__} gave only {len(rows)} of {wanted} distinct rows")
        distinct = list(rows.values())
        return distinct[: self.sizes["train"]] if split == "train" else distinct[self.sizes["train"] :]

    def identity(self, row: Fields) -> str:
        """What makes two rows the same example: the prompt, so that train and test share no question."""
        return self.example(row).prompt
