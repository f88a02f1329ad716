"""Near text: what the model itself says about the subjects of the forget data, without their facts."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import transformers

from ilu_cli.care.near import Untold, rare_words, subjects_of
from ilu_cli.care.overlap import keys, words
from ilu_cli.data import made
from ilu_cli.data.made import Counts
from ilu_cli.data.sampling import seed_of
from ilu_cli.data.sources import Dataset, UserText, load_dataset
from ilu_cli.data.tables import read_paragraphs
from ilu_cli.engine.accel import backend
from ilu_cli.engine.generation import sample
from ilu_cli.engine.scoring import Scorer
from ilu_cli.errors import UsageError
from ilu_cli.metrics.facts import Fact
from ilu_cli.models.load import identity_of, load_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import Subject
from ilu_cli.recipe.refs import NEAR, DataRef
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.sourced import mapped
from ilu_cli.workflows.evaluate import asking, find_benchmark

WAY = 2  # of making; raise it when what is made changes
ROWS, LEAST = 160, 8  # sentences that are wanted, and without which there is no near text
TRIES = 4  # sentences at most that are made for one that is wanted
BATCH, NEW, TEMPERATURE, TOP_P = 32, 40, 0.8, 0.95
SHORTEST = 6  # words of a sentence
COMMON = 0.1  # share of the rows above which an answer is no fact of one of them
TOPIC = 64  # rare words that stand for subjects where there are none
FORMS = (
    "{Name} is known for",
    "Many people who think of {name}",
    "Compared with others, {name}",
    "What surprises people most about {name} is",
    "In recent years, {name}",
    "The story of {name}",
)
SENTENCE = re.compile(r".+?\w{2,}[\"')\]]*[.!?](?=\s|$)")
REMEDY = "write such text and name it: {name: near, path: FILE}"


@dataclass(frozen=True)
class Topic:
    """What near text is about, and what it must not say."""

    subjects: list[str]
    untold: Untold

    def key(self, subject: Subject, rows: int) -> str:
        """A hash of all that the text is made from."""
        told = asdict(self.untold) | {"subjects": self.subjects}
        parts = [WAY, transformers.__version__, subject.digest, rows, told]
        text = json.dumps(parts, sort_keys=True, default=lambda s: sorted(map(list, s) if s else []))
        return hashlib.sha256(text.encode()).hexdigest()


def with_near(
    recipe: UnlearnRecipe, subject: Subject, note: Callable[[str], None] = lambda _: None
) -> tuple[UnlearnRecipe, Counts]:
    """The recipe with the text of every `near` made, or its file looked at; and what was left out of what was made.

    The text is made once for a model and its forget data, whatever the recipe's seed, and kept in the cache.

    Raises:
        UsageError: if a file tells a fact, or too little of what the model says does not.
        UnavailableError: if the text was made before, is gone, and this machine makes another.
    """
    refs = [ref for ref in refs_in(recipe) if ref.name == NEAR]
    if not refs:
        return recipe, {}
    topic, open_ = topic_of(recipe), [ref for ref in refs if not ref.path]
    for ref in refs:
        if ref.path:
            _check(load_dataset(ref, "train"), topic.untold)
    if not open_:
        return recipe, {}
    rows, before = max([ROWS, *(ref.limit or 0 for ref in open_)]), {ref.made for ref in open_ if ref.made}
    b = backend()
    found, counts = b.share(_known(subject, topic, rows, before, note) if b.main else None)
    for gone in before - {found}:
        made.texts_of(gone)

    def filled(ref: DataRef) -> DataRef:
        return ref.model_copy(update={"made": found}) if ref in open_ and not ref.made else ref

    return mapped(recipe, filled), counts


def refs_in(recipe: UnlearnRecipe) -> list[DataRef]:
    """All datasets that a recipe names."""
    found: list[DataRef] = []

    def seen(ref: DataRef) -> DataRef:
        found.append(ref)
        return ref

    mapped(recipe, seen)
    return found


def topic_of(recipe: UnlearnRecipe) -> Topic:
    """The subjects and facts of the forget data: a benchmark tells them, or rows with an answer; else rare words."""
    datasets = [load_dataset(ref, "train") for ref in recipe.forget.data]
    texts = [e.prompt + e.target for d in datasets for e in d.examples()]
    facts = facts_of(datasets)
    attacks = [e.target for e in load_dataset(DataRef(name="surroundings"), "train").examples()]
    untold = Untold.of(facts, texts, attacks)
    subjects = list(dict.fromkeys(f.about for f in facts if f.about))
    subjects = subjects or rare_words(texts, read_paragraphs("prose_retain.txt"), TOPIC)
    return Topic([s for s, why in zip(subjects, untold.why(subjects)) if not why], untold)


def facts_of(datasets: Sequence[Dataset]) -> list[Fact]:
    """The facts that benchmarks of these forget data ask for, and those of a user's rows."""
    told = [f for name in asking({d.ref.name for d in datasets}) for f in _facts(name)]
    return list(subjects_of([*told, *(f for d in datasets for f in _answers(d))]))


def _facts(benchmark: str) -> list[Fact]:
    known = find_benchmark(benchmark, None, {})
    return [f for f in known.facts(known.items()) if f is not None]


def _answers(data: Dataset) -> Iterator[Fact]:
    """Of a user's rows with prompt and response the responses; one that many rows have is no fact of theirs."""
    if not isinstance(data.task, UserText):
        return
    rows = [r for r in data.rows if "text" not in r]
    times = Counter(r["response"] for r in rows)
    yield from (
        Fact(r["prompt"], r["prompt"], r["response"], times[r["response"]] <= max(1, COMMON * len(rows))) for r in rows
    )


def _check(data: Dataset, untold: Untold) -> None:
    texts = [row["text"] for row in data.rows]
    if bad := [(i, why) for i, why in enumerate(untold.why(texts)) if why]:
        first, why = bad[0]
        raise UsageError(
            f"{NEAR}: {len(bad)} of {len(texts)} rows of {data.place} tell what is to be forgotten: row {first + 1} "
            f"({why}), {texts[first][:80]!r}",
            hint="remove these rows, or leave `path` out and let the model make the text",
        )


def _known(
    subject: Subject, topic: Topic, rows: int, before: set[str], note: Callable[[str], None]
) -> tuple[str, Counts]:
    """What was made already, or is made now: the hash of its content, and how many sentences were left out."""
    key = topic.key(subject, rows)
    if (found := made.known(key)) and before <= {found[0]}:
        return found
    if not topic.subjects:
        raise UsageError(f"{NEAR}: no subject of the forget data is told by its words", hint=REMEDY)
    note(f"making text around {len(topic.subjects)} subjects of the forget data, once for this model")
    texts, counts = make(subject, topic, rows)
    if len(texts) < LEAST:
        left = ", ".join(f"{n} {why}" for why, n in counts.items() if why not in ("tried", "kept"))
        raise UsageError(
            f"{NEAR}: {len(texts)} of {counts['tried']} sentences of the model are left ({left})", hint=REMEDY
        )
    return made.keep(key, texts, counts), counts


def make(subject: Subject, topic: Topic, rows: int) -> tuple[list[str], Counts]:
    """Have the model begin with the subjects in turn, and keep the sentences that say nothing they must not."""
    say = speaking(subject)
    kept: dict[str, str] = {}
    counts: Counter[str] = Counter()
    starts = beginnings(topic.subjects)
    while len(kept) < rows and counts["tried"] < TRIES * rows:
        begun = [next(starts) for _ in range(BATCH)]
        seed = seed_of(0, NEAR, counts["tried"])
        said = say(begun, NEW, seed, TEMPERATURE, TOP_P)
        texts = [sentence(f"{start}{more}") for start, more in zip(begun, said)]
        counts["tried"] += len(texts)
        for text, key, why in zip(texts, keys(texts), topic.untold.why(texts)):
            left_out = why or ("unfinished" if not text else "copy" if key in kept else "")
            if left_out:
                counts[left_out] += 1
            else:
                kept[key] = text
    texts = list(kept.values())[:rows]
    return texts, {**counts, "kept": len(texts)}


def speaking(subject: Subject) -> Callable[[list[str], int, int, float, float], list[str]]:
    """A model loaded by this process alone, to say what follows prompts; tokens, seed, heat and cut as for `sample`."""
    tokenizer, model = load_tokenizer(subject.folder), load_model(subject, backend().device)
    scorer = Scorer(model, parts_of(model, identity_of(subject)), tokenizer, backend())
    return lambda prompts, *how: sample(model, tokenizer, [scorer.prompt(p) for p in prompts], *how)


def beginnings(subjects: list[str]) -> Iterator[str]:
    """Beginnings of sentences without end: all subjects in an order that is drawn, each time in another form."""
    order = random.Random(NEAR).sample(subjects, len(subjects))
    turn = 0
    while True:
        for i, name in enumerate(order):
            yield FORMS[(i + turn) % len(FORMS)].format(name=name, Name=name[0].upper() + name[1:])
        turn += 1


def sentence(text: str) -> str:
    """The first sentence of a text, if it ends and is one; else nothing."""
    found = SENTENCE.match(text.split("\n")[0].strip())
    return found[0] if found and len(words(found[0])) >= SHORTEST else ""
