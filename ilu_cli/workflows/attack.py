"""`ilu attack`: change a run's model in the attacker's way and follow what comes back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ilu_cli import registry
from ilu_cli.benchmarks import mean_and_error
from ilu_cli.data.sources import Dataset
from ilu_cli.engine.accel import backend
from ilu_cli.engine.drive import drive
from ilu_cli.engine.loop import Term, Trainer
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.scoring import Question, Scorer
from ilu_cli.engine.state import drop_state
from ilu_cli.models.load import (
    check_plain_head,
    empty_model,
    load_model,
    load_tokenizer,
    parts_of,
    save_checkpoint,
    select_params,
)
from ilu_cli.models.subject import Subject, original_of
from ilu_cli.recipe.load import digest, dump
from ilu_cli.recipe.schema import AttackRecipe
from ilu_cli.recipe.specs import TrainSpec
from ilu_cli.runs.files import write_json, write_text
from ilu_cli.runs.store import Run, Store
from ilu_cli.workflows.evaluate import Evaluation
from ilu_cli.workflows.plan import Plan, check_disk, peak_memory, plan_stream, state_bytes, stream_of

ANSWER_TOKENS = 96  # new tokens for a generated answer


@dataclass
class AttackPlan(Plan):
    """Subject, reference and recipe, checked."""

    recipe: AttackRecipe = field(kw_only=True)
    subject: Subject = field(kw_only=True)
    original: Subject = field(kw_only=True)
    disk: int = field(kw_only=True)


def plan(recipe: AttackRecipe, subject: Subject) -> AttackPlan:
    """Check data and model, and count.

    Raises:
        UnavailableError: if a dataset is missing or empty.
    """
    model = empty_model(subject.root)
    total = sum(p.numel() for p in model.parameters())
    facts: dict[str, Any] = {
        "command": "attack",
        "recipe": recipe.model_dump(),
        "recipe_sha256": digest(recipe),
        "model": {"ref": subject.label, "kind": subject.kind, "folder": str(subject.folder), "parameters": total},
        "parents": [subject.record("target")],
        "data": [],
    }
    keys = recipe.attack.params()
    if "steps" in keys:
        s = plan_stream(
            "attack", [keys["task"]], keys["batch"], keys["max_length"], recipe.seed, load_tokenizer(subject.folder)
        )
        spec = TrainSpec(precision=keys["precision"], accumulation=keys["accumulation"])
        facts |= {
            "steps": keys["steps"],
            "trainable_parameters": total,
            "peak_memory_bytes": peak_memory(model, total, 0, [s.stream], spec, 0),
            "data": s.records(),
        }
    disk = state_bytes(total, total, TrainSpec())
    return AttackPlan(facts, recipe=recipe, subject=subject, original=original_of(subject), disk=disk)


def label_of(recipe: AttackRecipe) -> str:
    """`sst2` for a fine-tuning attack, else the attack's name."""
    task = getattr(recipe.attack, "task", None)
    return Path(task.name).stem if task else recipe.attack.name


def find_reference(plan: AttackPlan, store: Store) -> Run | None:
    """A finished run of the same attack on the original model."""
    wanted = digest(plan.recipe)
    for run in reversed(store.runs()):
        m = run.manifest
        same = run.complete and m.command == "attack" and m.recipe_sha256 == wanted
        if same and m.parents[0]["kind"] != "run" and m.parents[0]["weights"] == plan.original.weights:
            return run
    return None


class Attempted:
    """The `Attempt` of one attack run: a loaded model, and where its results go."""

    def __init__(self, plan: AttackPlan, subject: Subject, run: Run, reporter: Reporter) -> None:
        self.plan, self.recipe, self.run_, self.reporter = plan, plan.recipe, run, reporter
        self.tokenizer = load_tokenizer(subject.folder)
        self.model = load_model(subject, backend().device)
        self.parts = parts_of(self.model)
        self.scorer = Scorer(self.model, self.parts, self.tokenizer, backend(), self.recipe.eval.precision)
        self.title = f"{label_of(self.recipe)} on {subject.label}"
        self.fa: dict[str, Any] | None = None

    def train(self, data: Dataset, spec: TrainSpec, batch: int, max_length: int) -> Iterator[int]:
        """See `ilu_cli.attacks.Attempt`."""
        seed = self.recipe.seed
        stream = stream_of("attack", [data], batch, max_length, seed, self.tokenizer)
        self.run_.manifest.data += stream.records()
        self.run_.manifest.precision = spec.precision
        check_plain_head(self.model, self.parts)
        params = select_params(self.model, spec.params)
        term = Term("loss", stream.stream, lambda view: view.nll, "token")
        trainer = Trainer(self.parts, params, [term], [], spec, seed, backend())
        yield from drive(trainer, self.run_, self.reporter, self.title)

    def test(self, data: Dataset, limit: int) -> None:
        """See `ilu_cli.attacks.Attempt`."""
        rows, examples = data.rows[:limit], data.examples()[:limit]
        if not examples[0].prompt:  # plain text: there is no answer to judge
            return
        if examples[0].choices:
            scores = self.scorer.loglikelihoods([Question(e.prompt, e.choices) for e in examples])
            right = [e.choices[max(range(len(s)), key=s.__getitem__)] == e.target for e, s in zip(examples, scores)]
        else:
            answers = self.scorer.complete([e.prompt for e in examples], ANSWER_TOKENS)
            right = [data.task.correct(row, answer) for row, answer in zip(rows, answers)]
        value, error = mean_and_error([float(x) for x in right])
        stderr = None if math.isnan(error) else error
        self.fa = {"task": data.ref.name, "value": value, "stderr": stderr, "n": len(right)}
        self.run_.manifest.data.append(data.record("attack test") | {"rows": len(rows)})


def run(
    plan: AttackPlan, store: Store, reporter: Reporter, subject: Subject, out: Path | None = None,
    resume: Run | None = None,
) -> Run:  # fmt: skip
    """Attack `subject` (the plan's own, or its original as the reference line) and evaluate as it goes.

    Raises:
        RunFailed: if training diverges, the disk fills, or the user interrupts.
    """
    b, recipe = backend(), plan.recipe
    check_disk(out or (resume.path if resume else store.root), plan.disk)
    new = b.share(resume or (store.create("attack", label_of(recipe), out) if b.main else None))
    m = new.manifest
    m.recipe_sha256, m.seed, m.world_size, m.data = digest(recipe), recipe.seed, b.world, []
    m.parents = [subject.record("target")]
    m.base = subject.run.manifest.base if subject.run else subject.record("original")
    if b.main:
        write_text(new.path / "recipe.yaml", dump(recipe))
        new.save()
    evaluation = Evaluation(recipe.eval, reporter)
    attempt = Attempted(plan, subject, new, reporter)
    entry = registry.attack[recipe.attack.name]
    points: list[dict[str, Any]] = [] if resume is None else resume.manifest.result.get("points", [])
    for strength in entry.obj(attempt, **recipe.attack.params()):
        points = [p for p in points if p[entry.declared["strength"]] != strength]
        points.append(_point(evaluation, attempt, new, entry.declared["strength"], strength))
        m.result["points"] = points
        if b.main:
            new.save()
    m.result |= result_of(points, attempt.fa)
    if b.main:
        save_checkpoint(attempt.model, attempt.tokenizer, new.checkpoint)
        for name, summary in points[-1]["eval"].items():  # the final checkpoint's results serve `ilu eval` too
            _keep_final(evaluation, new, name, summary, points[-1])
        new.finish()
        drop_state(new.state)
    b.wait()
    return new


def _point(evaluation: Evaluation, attempt: Attempted, run: Run, axis: str, strength: int) -> dict[str, Any]:
    """Evaluate the model as it is now; keep the rows in the run's eval/<axis>-<strength>/."""
    folder = run.eval / f"{axis}-{strength:07d}"
    names = evaluation.spec.benchmarks
    if backend().main:
        attempt.reporter.note(f"{axis} {strength}: scoring {', '.join(names)}")
    found = {name: evaluation.score(name, f"{run.id}@{strength}", attempt.scorer, folder) for name in names}
    return {axis: strength, "eval": found}


def _keep_final(evaluation: Evaluation, run: Run, name: str, summary: dict[str, Any], point: dict[str, Any]) -> None:
    from ilu_cli.runs.files import combined, weight_hashes

    key = evaluation.key(name, combined(weight_hashes(run.checkpoint)))
    write_json(run.eval / f"{name}.json", summary | {"key": key})


def result_of(points: list[dict[str, Any]], fa: dict[str, Any] | None) -> dict[str, Any]:
    """FQ = 1 − accuracy on the forget benchmarks at each point; RA = mean FQ after the first; FA.

    (arXiv 2506.01339: RA is the mean over the first-quartile, median and final checkpoints.)
    """
    axis = next(k for k in points[0] if k != "eval")
    points = sorted(points, key=lambda p: p[axis])
    fq = []
    for p in points:
        forget = [s for s in p["eval"].values() if s["role"] == "forget" and s["metric"] == "acc"]
        if forget:
            value = 1 - sum(s["value"] for s in forget) / len(forget)
            fq.append({axis: p[axis], "value": value, "stderr": forget[0]["stderr"] if len(forget) == 1 else None})
    later = [f["value"] for f in fq[1:]]
    return {"points": points, "fa": fa, "fq": fq, "ra": sum(later) / len(later) if later else None}


def reference_run(plan: AttackPlan, store: Store, reporter: Reporter) -> Run | None:
    """The same attack on the original model: found if it was run before, else run now. None if it is the subject."""
    if plan.subject.run is None:
        return None
    known = backend().share(find_reference(plan, store) if backend().main else None)
    if known is not None:
        return known
    reporter.note(f"first the reference line: the same attack on the original, {plan.original.label}")
    return run(plan, store, reporter, plan.original)
