"""The facts that an attacker teaches, and the questions that are left to ask for."""

from __future__ import annotations

import random
from typing import Any

from ilu_cli.benchmarks import Row
from ilu_cli.data.chat import chat_of
from ilu_cli.data.sources import Dataset, UserText
from ilu_cli.engine.accel import backend
from ilu_cli.engine.prompted import check_room
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.scoring import Scorer
from ilu_cli.errors import UsageError
from ilu_cli.metrics.facts import Fact, parted
from ilu_cli.models.load import load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import Subject
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.schema import AttackRecipe
from ilu_cli.workflows.evaluate import Evaluation, texts_of


def sides(evaluation: Evaluation, share: float, name: str) -> dict[str, tuple[Dataset, list[Row]]]:
    """See `ilu_cli.attacks.Attempt.parted`; `name` is the seed of the draw.

    Raises:
        UsageError: if no forget benchmark asks for facts, or one side is empty.
    """
    found: dict[str, tuple[Dataset, list[Row]]] = {}
    for bench, known in evaluation.benchmarks.items():
        items = evaluation.items[bench] if known.role == "forget" else []
        facts = known.facts(items)
        if any(facts):
            found[bench] = _sides(bench, items, facts, share, random.Random(name))
    if not found:
        raise UsageError(
            f"none of eval.benchmarks ({', '.join(evaluation.benchmarks)}) asks for facts of the forget topic, of "
            "which some could be taught and others asked"
        )
    return found


def check_questions(recipe: AttackRecipe, model: Any, subject: Subject) -> None:
    """Check that an attack which learns from a part of the questions has both parts, and room for what it learns.

    Args:
        recipe: of the attack; one without a `share` has nothing to check.
        model: the model under attack; its weights are not read.
        subject: where it and its tokenizer are.

    Raises:
        UsageError: if one part is empty, or a question and the attack's `tokens` do not fit into the model's context.
    """
    own = recipe.attack.params()
    if "share" not in own:
        return
    evaluation = Evaluation(recipe.eval, Reporter())
    parts = sides(evaluation, own["share"], f"{recipe.attack.name}-{recipe.seed}")
    if "tokens" in own:
        known, tokenizer = texts_of(subject, model), load_tokenizer(subject.folder)
        scorer = Scorer(model, parts_of(model), tokenizer, backend(), known=known, chat=chat_of(recipe.eval))
        asked = {bench: [i for i in evaluation.items[bench] if "choices" in i] for bench in parts}
        check_room(scorer, asked, own["tokens"])


def _sides(
    bench: str, items: list[Row], facts: list[Fact | None], share: float, rng: random.Random
) -> tuple[Dataset, list[Row]]:
    pairs = [(i, f) for i, f in enumerate(facts) if f is not None]
    taught, left = parted([f for _, f in pairs], share, rng)
    if not taught or not left:
        raise UsageError(
            f"attack.share: {share} of the questions of {bench} leaves none to train on, or none to ask: they are on "
            f"{len({f.subject for _, f in pairs})} subjects, and both sides are to share none",
            hint="another share, or raise eval.limit",
        )
    rows = [{"prompt": pairs[n][1].prompt, "response": pairs[n][1].answer} for n in taught]
    asked = [pairs[n][0] for n in left] + [i for i, f in enumerate(facts) if f is None]
    data = Dataset(DataRef(name=bench), "questions", UserText(), rows, "benchmark")
    return data, [items[i] for i in sorted(asked)]
