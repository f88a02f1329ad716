"""What should be said instead of the forget data: a task's answers, or others that the model itself gives."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import transformers

from ilu_cli import registry
from ilu_cli.care.near import SHORT, holds, plain
from ilu_cli.data import made
from ilu_cli.data.made import Counts
from ilu_cli.data.sampling import seed_of
from ilu_cli.data.sources import Dataset, load_dataset
from ilu_cli.engine.accel import backend
from ilu_cli.errors import UsageError
from ilu_cli.metrics.facts import Fact
from ilu_cli.models.subject import Subject
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.runs.files import write_text
from ilu_cli.tasks import Example
from ilu_cli.workflows.near import facts_of, refs_in, speaking, with_near

WAY = 1  # of making; raise it when what is made changes
BATCH, TRIES = 32, 4
NEW = {True: 12, False: 40}  # tokens of an answer, by whether the right one is short
PHRASE = re.compile(r"[^.,;:!?\n(]*")
REMEDY = "set objective.answers=task, or give rows with prompt and response"

Note = Callable[[str], None]


def with_made(
    recipe: UnlearnRecipe, subject: Subject, note: Note = lambda _: None
) -> tuple[UnlearnRecipe, dict[str, Counts]]:
    """The recipe with all that the model itself makes for it, and what was counted: of near text, of alternatives.

    Raises:
        UsageError: see `ilu_cli.workflows.near.with_near`; or a row holds no fact whose answer could be another.
        UnavailableError: if what was made before is gone, and this machine makes another.
    """
    found, counts = with_near(recipe, subject, note)
    told = {"near": counts} if counts else {}
    if not _made_by_model(found):
        return found, told
    before, b = found.objective.params()["made"], backend()
    now, counts = b.share(_known(found, subject, note) if b.main else None)
    if before not in (None, now):
        made.texts_of(before)
        return found, told
    objective = found.objective.model_copy(update={"made": now})
    return found.model_copy(update={"objective": objective}), told | {"alternatives": counts}


def keep(recipe: UnlearnRecipe, folder: Path) -> None:
    """Put what was made into a run's folder: near text, and the objective's alternatives."""
    if alternatives := recipe.objective.params().get("made"):
        write_text(folder / "alternatives.jsonl", made.lines(made.texts_of(alternatives)))
    for ref in refs_in(recipe):
        if ref.made:
            write_text(folder / made.COPY, made.lines(made.texts_of(ref.made)))


def said_instead(recipe: UnlearnRecipe, kind: str, datasets: Sequence[Dataset]) -> list[list[Example]]:
    """For every row of every forget dataset what should be said instead.

    Raises:
        UsageError: if a task has no such answer.
        UnavailableError: if what the model made is gone.
    """
    if not _made_by_model(recipe):
        return [d.chosen("counterfactual" if kind == "alternative" else kind) for d in datasets]
    texts = iter(made.texts_of(recipe.objective.params()["made"]))
    return [[replace(e, target=next(texts)) for e in d.examples()] for d in datasets]


def _made_by_model(recipe: UnlearnRecipe) -> bool:
    declared = registry.objective[recipe.objective.name].declared
    return declared.chosen == "alternative" and recipe.objective.params()["answers"] == "model"


def _known(recipe: UnlearnRecipe, subject: Subject, note: Note) -> tuple[str, Counts]:
    datasets = [load_dataset(ref, "train") for ref in recipe.forget.data]
    facts = facts_of(datasets)
    examples = [e for d in datasets for e in d.examples()]
    pairs = [(e, fact_of(e, facts)) for e in examples]
    asked = list(dict.fromkeys(f for _, f in pairs))
    told = [WAY, transformers.__version__, subject.digest, [[f.prompt, f.answer] for f in asked]]
    key = hashlib.sha256(json.dumps([told, [e.prompt + e.target for e in examples]]).encode()).hexdigest()
    if found := made.known(key):
        return found
    note(f"making other answers to {len(asked)} questions of the forget data, once for this model")
    others, counts = make(subject, asked)
    texts = [e.target.replace(f.answer.strip(), others[f]) for e, f in pairs]
    return made.keep(key, texts, counts), counts


def fact_of(example: Example, facts: Sequence[Fact]) -> Fact:
    """The fact that a row tells: that of its prompt, or one whose subject and answer stand in it; the longest answer.

    Raises:
        UsageError: if there is none.
    """
    text = example.prompt + example.target
    told = [f for f in facts if f.names and f.answer.strip() and f.answer.strip() in example.target]
    fit = [f for f in told if example.prompt and f.prompt == example.prompt]
    fit = fit or [f for f in told if f.about and f.about.casefold() in text.casefold()]
    if not fit:
        raise UsageError(f"objective.answers: no fact is known in the row {text[:60]!r}", hint=REMEDY)
    return max(fit, key=lambda f: len(f.answer))


def make(subject: Subject, facts: Sequence[Fact]) -> tuple[dict[Fact, str], Counts]:
    """Ask the model for each fact until it says something else of the same form; else take another fact's answer."""
    answers = list(dict.fromkeys(f.answer.strip() for f in facts))
    if len(answers) < 2:
        raise UsageError("objective.answers: the forget data has one answer only, so there is no other", hint=REMEDY)
    say = speaking(subject)
    found: dict[Fact, str] = {}
    counts: Counter[str] = Counter()
    for turn in range(TRIES):
        for part in _batches([f for f in facts if f not in found]):
            new = NEW[_short(part[0])]
            seed = seed_of(0, "alternatives", turn, counts["tried"])
            said = say([f.prompt for f in part], new, seed, 1.0, 1.0)
            counts["tried"] += len(part)
            found |= {f: other for f, text in zip(part, said) if (other := phrase(text, f.answer))}
    counts["model"] = len(found)
    for f in facts:
        if f not in found:
            found[f] = random.Random(f.prompt).choice([a for a in answers if a != f.answer.strip()])
            counts["of another fact"] += 1
    return found, dict(counts)


def _short(fact: Fact) -> bool:
    return len(plain(fact.answer)) <= SHORT


def _batches(facts: Sequence[Fact]) -> Iterator[list[Fact]]:
    """At most `BATCH` facts at a time, those with short answers first."""
    for short in NEW:
        same = [f for f in facts if _short(f) is short]
        yield from (same[i : i + BATCH] for i in range(0, len(same), BATCH))


def phrase(said: str, answer: str) -> str:
    """What a model said as an answer of the right one's form, or nothing where it holds the right one or is none.

    In place of a short answer up to the first mark of punctuation and at most twice as many words and three; in place
    of a long one the first line.
    """
    right = plain(answer)
    short = len(right) <= SHORT
    found = PHRASE.match(said.lstrip()) if short else None
    text = (found[0] if found else said.strip().split("\n")[0]).strip()
    told = plain(text)
    fits = told and (not short or len(told) <= 2 * len(right) + 3)
    return text if fits and not holds(told, len(right), {tuple(right)}) else ""
