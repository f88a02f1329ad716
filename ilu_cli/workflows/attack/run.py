"""`ilu attack`: change a run's model in the attacker's way and follow what comes back."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from ilu_cli import registry
from ilu_cli.attacks import quartiles
from ilu_cli.engine.accel import backend
from ilu_cli.engine.peers import agree, heard
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.state import drop_state
from ilu_cli.engine.tracking import Tracked
from ilu_cli.errors import UsageError
from ilu_cli.models.dtypes import DTYPES, check_frozen
from ilu_cli.models.load import checked_model, load_tokenizer
from ilu_cli.models.save import save_checkpoint
from ilu_cli.models.subject import Subject, never_of, original_of
from ilu_cli.recipe.load import digest, dump
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.recipe.schema import AttackRecipe
from ilu_cli.recipe.specs import TrainSpec
from ilu_cli.recipe.training_attack import TrainingAttack
from ilu_cli.runs.ending import ending
from ilu_cli.runs.files import ModelRecord, beside_hashes, digest_of, weight_hashes, write_json, write_text
from ilu_cli.runs.lineage import NEVER, reference_lines
from ilu_cli.runs.results import AttackResult, Data, Point, Row, summary_file
from ilu_cli.runs.resume import begin, made_from
from ilu_cli.runs.store import Manifest, Run, Store
from ilu_cli.workflows.attack.asked import check_model
from ilu_cli.workflows.attack.attempt import Attempted
from ilu_cli.workflows.attack.others import newest_finetune
from ilu_cli.workflows.attack.protocol import Follow, copy_results
from ilu_cli.workflows.attack.rehearsal import Priced, price
from ilu_cli.workflows.attack.seen import Seen, Written, forget_data, kept_of, unlearning_recipes
from ilu_cli.workflows.attack.sides import check_questions
from ilu_cli.workflows.attack.warned import warned
from ilu_cli.workflows.content import Content, of_attack
from ilu_cli.workflows.evaluate import Evaluation
from ilu_cli.workflows.machine import note_precision, precision_here
from ilu_cli.workflows.needs.inputs import asked_of, inputs_of, other_models
from ilu_cli.workflows.plan import RunPlan, check_disk, check_memory, state_bytes
from ilu_cli.workflows.settle import fitting, followed, forgotten_by
from ilu_cli.workflows.spread import check_attack, check_attack_training


@dataclass(kw_only=True)
class AttackPlan(RunPlan):
    """Subject, reference and recipe, checked. `data` is what the attack trains on, if it trains.

    `recipe` has what was left open filled in; `asked` is the recipe as it was given.
    """

    recipe: AttackRecipe
    asked: AttackRecipe
    original: Subject
    never: Subject | None = None
    environments: Seen
    disk: int

    @property
    def fingerprints(self) -> list[str]:
        """Of the data that is the attack's own."""
        return [d["fingerprint"] for d in self.data if d["role"] == "attack"]

    def to_json(self) -> Row:
        return super().to_json() | {"asked_sha256": digest(self.asked)}


def plan(
    recipe: AttackRecipe, subject: Subject, beside: Sequence[Written] = (), *, recorded: bool = False
) -> AttackPlan:
    """Check data and model, and count. A forget set that the recipe leaves open is that of the lineage.

    Args:
        recipe: of the attack.
        subject: the model under attack.
        beside: unlearning recipes of models that are compared with it: all are attacked on the same rows, those that
            were in nobody's environment.
        recorded: the recipe is one that a run wrote down: its tasks come from where they came then, and it names what
            is asked.

    Raises:
        UnavailableError: if a dataset is missing or empty.
        UsageError: if the forget data is not known, or the attack does not fit the data or the model.
    """
    backend().check_trackers(recipe.track)
    lineage = unlearning_recipes(subject)
    recipe = recipe if recorded else followed(recipe, subject)
    recipe = recipe.model_copy(update={"eval": fitting(recipe.eval, forgotten_by(lineage))})
    filled, environments = fill(recipe, lineage, subject), Seen([*lineage, *beside])
    model = checked_model(subject)
    total = sum(p.numel() for p in model.parameters())
    entry, kept = registry.attack[recipe.attack.name], 1 if filled.keep != "none" else 0
    spec, training, data, unpriced = TrainSpec(save_every=0), None, list[Data](), ""
    content = Content()
    check_model(filled, model, subject, origin := original_of(subject))
    check_attack(filled)
    if entry.declared.access == "training":
        questions = functools.partial(Evaluation, filled.eval, Reporter())
        priced = Priced(environments, subject, load_tokenizer(subject.folder), recipe.seed, questions)
        if unknown := price(filled.attack, priced):
            unpriced = f"what comes after the attack's `{unknown}`, which needs the model"
        if priced.asked is not None:
            spec, own, mixed = priced.asked.spec, *priced.asked.datasets
            check_attack_training(spec)
            lora, spread = priced.asked.lora is not None, backend().mesh is not None
            check_frozen(spec.memory, DTYPES["fp32"], subject.root, lora, "attack.memory", spread=spread)
            content = of_attack(own, lineage, entry.declared.forget, mixed)
            training, data = priced.asked.training(model, priced), priced.asked.records()
            kept += len(quartiles(spec.steps)) if filled.keep == "points" else 0
    else:
        check_questions(filled, model, subject)
    kept += entry.declared.access == "weights" or entry.declared.original  # as they were before
    kept += len(other_models(filled))
    disk = state_bytes(total, training.trainable_parameters if training else 0, spec) + 4 * total * (kept - 1)
    return AttackPlan(
        recipe=filled, asked=recipe, subject=subject, parameters=total, parents=[subject.record("target")], data=data,
        training=training, unpriced=unpriced, original=origin, never=never_of(subject), environments=environments,
        content=content, disk=disk,
    )  # fmt: skip


def fill(recipe: AttackRecipe, lineage: Sequence[Written], subject: Subject) -> AttackRecipe:
    """The recipe with the forget data and a fine-tuning of the lineage, what is kept and computed in, filled in."""
    attack, access = recipe.attack, registry.attack[recipe.attack.name].declared.access
    if "data" in type(attack).model_fields and attack.params()["data"] is None:
        refs = forget_data(lineage, "attack.data", subject.label)
        attack = attack.model_copy(update={"data": refs})
    if "finetuned" in type(attack).model_fields and attack.params()["finetuned"] is None:
        attack = attack.model_copy(update={"finetuned": newest_finetune(original_of(subject))})
    if asked := attack.params().get("precision"):
        memory = attack.memory if isinstance(attack, TrainingAttack) else MemorySpec()
        attack = attack.model_copy(update={"precision": precision_here(asked, memory)})
    keep = recipe.keep or ("final" if access == "training" else "none")
    return recipe.model_copy(update={"attack": attack, "keep": keep})


def label_of(recipe: AttackRecipe) -> str:
    """`sst2` for a fine-tuning attack, else the attack's name."""
    task = getattr(recipe.attack, "task", None)
    return Path(task.name).stem if task else recipe.attack.name


def find_reference(plan: AttackPlan, store: Store, model: Subject) -> Run | None:
    """A finished run of the same attack, on the same rows, on a model that the lineage names."""
    rows = [Data(role="attack", fingerprint=f) for f in plan.fingerprints]
    read = inputs_of(plan.recipe, plan.environments.recipes)
    recipe, asked = digest(plan.recipe), digest(plan.asked)
    wanted = Manifest("", "attack", recipe_sha256=recipe, asked_sha256=asked, data=rows, inputs=read)
    return next(reference_lines(wanted, model.record("original"), reversed(store.runs())), None)


def run(
    plan: AttackPlan, store: Store, reporter: Reporter, subject: Subject, out: Path | None = None,
    resume: Run | None = None, wanted: ModelRecord | None = None,
) -> Run:  # fmt: skip
    """Attack `subject` (the plan's own, or its original as the reference line) and evaluate as it goes.

    Raises:
        RunFailed: if training diverges, the disk fills, or the user interrupts.
        UsageError: if the attack does not fit the model or its benchmarks; a run that has nothing yet is taken away.
    """
    b, recipe, began = backend(), plan.recipe, time.monotonic()
    check_disk(out or (resume.path if resume else store.root), plan.disk)
    check_memory(plan.peak_memory, b.memory(), reporter.note)
    note_precision(plan.asked.attack.params().get("precision"), recipe.attack.params().get("precision"), reporter.note)
    rows = [Data(role="attack", name=str(i), fingerprint=d["fingerprint"]) for i, d in enumerate(plan.data)]
    parents = [subject.record("target")]
    agree("attack", origin := made_from(recipe.model_dump(mode="json"), parents, rows, asked_of(recipe)))
    new: Run = b.share(resume or (store.create("attack", label_of(recipe), out) if b.main else None))
    with new.held(reporter.note) if b.main else nullcontext():
        known = AttackResult.read(new.manifest.result).points if resume else ()
        if b.main:
            begin(new, origin)
        _begin(plan, new, subject, known, wanted)
        with ending(new, b.main), heard():
            _attack(plan, new, Tracked(reporter, recipe.track, new, recipe.model_dump()), subject, known, began)
        done: Run = b.share(new)  # which the first process has finished
    return done


def _attack(
    plan: AttackPlan, new: Run, reporter: Reporter, subject: Subject, known: Sequence[Point], began: float
) -> None:
    """Attack, and finish the run. One that is refused before its first point leaves nothing."""
    b, recipe = backend(), plan.recipe
    title = f"{label_of(recipe)} on {subject.label}"
    try:
        attempt = Attempted(
            subject, plan.original, plan.environments, new, reporter, recipe.seed, recipe.eval, title,
            recipe.attack if isinstance(recipe.attack, TrainingAttack) else None,
        )  # fmt: skip
        for result in Follow(attempt, recipe, known).results():
            _write(new, attempt, result)
            new.check_parents(f"stopped after {result.axis} {result.points[-1].strength}")
    except UsageError:
        found = AttackResult.read(new.manifest.result)
        if b.main and not known and all(p.strength == found.unattacked for p in found.points):
            shutil.rmtree(new.path)
        raise
    seconds, same = round(time.monotonic() - began, 1), attempt.unchanged
    if recipe.keep != "none":
        save_checkpoint(attempt.saved, attempt.tokenizer, new.checkpoint, write=b.main)
    if b.main:
        new.manifest.result |= warned(plan, new, attempt, result, same=same)
        new.manifest.result["seconds"] = seconds
        if recipe.keep != "none":
            rounded = attempt.keys is not None and attempt.keys.memory.frozen != "fp32"
            if not rounded:  # else what was asked is not quite what is kept
                _keep_final(attempt, new, result.points[-1], adapter=attempt.saved is not attempt.model)
        new.finish()
        drop_state(new.state)
    attempt.hooks.close()


def _begin(plan: AttackPlan, new: Run, subject: Subject, known: Sequence[Point], wanted: ModelRecord | None) -> None:
    """Write the recipe and the manifest of an attack that begins, or goes on from the points that it has."""
    m, recipe, entry = new.manifest, plan.recipe, registry.attack[plan.recipe.attack.name]
    m.wanted = wanted or m.wanted
    m.recipe_sha256, m.asked_sha256 = digest(recipe), m.asked_sha256 or digest(plan.asked)
    m.seed, m.world_size, m.data = recipe.seed, backend().world, []
    m.inputs = inputs_of(recipe, plan.environments.recipes)
    m.clear_of = [kept_of(r) for r in plan.environments.recipes if r["regularizers"]]
    m.parents = [subject.record("target")]
    inherits = subject.run is not None and subject is not plan.original
    m.base = subject.run.manifest.base if subject.run and inherits else subject.record("original")
    m.never = subject.run.manifest.never if subject.run and inherits else m.never
    declared = entry.declared
    m.result = AttackResult(entry.name, declared.strength, tuple(known), unattacked=declared.unattacked).to_json()
    if backend().main:
        write_text(new.path / "recipe.yaml", dump(recipe))
        new.save()


def _write(run: Run, attempt: Attempted, result: AttackResult) -> None:
    """Put into the manifest what an attack has come to."""
    m = run.manifest
    m.data, m.precision = list(attempt.data), attempt.precision
    told = {"parity": attempt.parity} | {k: v for k in ("disjoint", "numbers", "batches") if (v := getattr(attempt, k))}
    m.result = replace(result, more={**told, **result.more}).to_json()
    if backend().main:
        run.save()


def _keep_final(attempt: Attempted, run: Run, point: Point, adapter: bool) -> None:
    """The results of the checkpoint that is kept serve `ilu eval` too."""
    base = attempt.subject.digest if adapter else None
    known = digest_of(weight_hashes(run.checkpoint), beside_hashes(run.checkpoint), base)
    for name, summary in point.eval.items():
        copy_results(name, run.eval / point.name, run.eval)
        write_json(summary_file(run.eval, name), summary.to_json() | {"key": attempt.evaluation.key(name, known)})


def reference_runs(plan: AttackPlan, store: Store, reporter: Reporter, out: Path | None = None) -> dict[str, Run]:
    """The same attack on the original model, and on one that never knew if the lineage names it, by these words.

    Each is found if it was run before, else run now. None, if the subject is the original itself.
    """
    models = {"original": plan.original, NEVER: plan.never} if plan.subject.run else {}
    found = {}
    for name, model in models.items():
        if model is None:
            continue
        known: Run | None = backend().share(find_reference(plan, store, model) if backend().main else None)
        if known is None:
            reporter.note(f"first the line of the model `{name}`: the same attack on {model.label}")
            wanted = plan.subject.record("target") | {"out": str(out.absolute()) if out else None}
            known = run(plan, store, reporter, model, wanted=wanted)
        found[name] = known
    return found
