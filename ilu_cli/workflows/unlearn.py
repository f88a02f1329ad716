"""`ilu unlearn`: recipe → plan → loop → checkpoint, metrics, manifest."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ilu_cli.care import Warned, once
from ilu_cli.care.steps import rounded, temperature_alone, unchanged, weak_penalties, zeros
from ilu_cli.data.made import Counts
from ilu_cli.engine.accel import backend
from ilu_cli.engine.job import drive
from ilu_cli.engine.loading import load
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.optimizers import check as check_optimizer
from ilu_cli.engine.parity import check
from ilu_cli.engine.peers import agree, heard
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.state import drop_state
from ilu_cli.engine.temper import compared
from ilu_cli.engine.tracking import Tracked
from ilu_cli.models.dtypes import check_frozen, kept_wide, saved_dtype
from ilu_cli.models.hold import spare
from ilu_cli.models.load import add_adapter, checked_model, identity_of, load_tokenizer, trained_params
from ilu_cli.models.lower import save_lower
from ilu_cli.models.parts import parts_of
from ilu_cli.models.save import save_checkpoint
from ilu_cli.models.subject import Subject, find_subject, original_of
from ilu_cli.recipe.load import digest, dump
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.runs.ending import ending
from ilu_cli.runs.files import write_text
from ilu_cli.runs.lineage import NEVER
from ilu_cli.runs.lock import refuse_held
from ilu_cli.runs.results import Row, read_rows
from ilu_cli.runs.resume import begin, made_from
from ilu_cli.runs.store import Run, Store
from ilu_cli.workflows.alternatives import keep, with_made
from ilu_cli.workflows.content import Content, of_training
from ilu_cli.workflows.evaluate import load_scorer
from ilu_cli.workflows.heal import build_healer, heal, healing
from ilu_cli.workflows.kept import priced
from ilu_cli.workflows.machine import note_precision, settled_here
from ilu_cli.workflows.moments import OnDisk
from ilu_cli.workflows.needs.inputs import asked_of, inputs_of
from ilu_cli.workflows.passes import Shapes
from ilu_cli.workflows.plan import RunPlan, Training, check_disk, check_memory, check_streams, state_bytes
from ilu_cli.workflows.saved import changed, lost
from ilu_cli.workflows.settle import check_parent, chosen, first_trained, followed, settled, told
from ilu_cli.workflows.spread import check_unlearn, narrowing, note_idle
from ilu_cli.workflows.tempered import best_temperature, tempered_environments
from ilu_cli.workflows.training import Streams, build_trainer, cache_bytes, defences_of, lower_of, renewed


@dataclass(kw_only=True)
class UnlearnPlan(RunPlan):
    """Everything checked, nothing run. `chosen`: what the recipe left to the model, by key; `dtype`: what is saved.

    `made`: of what the model itself made for it, how much of which kind. `asked`: without what the machine decides.
    """

    recipe: UnlearnRecipe
    asked: UnlearnRecipe
    tokenizer: Any
    streams: Streams
    disk: int
    chosen: Row
    dtype: torch.dtype = torch.float32
    depth: int | None = None
    never: Subject | None = None
    made: dict[str, Counts] = field(default_factory=dict)

    def to_json(self) -> Row:
        return super().to_json() | ({"chosen": self.chosen} if self.chosen else {})

    def lines(self) -> list[str]:
        found = super().lines()
        return [*found[:-1], f"chosen      {told(self.chosen)}", found[-1]] if self.chosen else found


def plan(
    recipe: UnlearnRecipe, store: Store, parent: Subject | None = None, *, recorded: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> UnlearnPlan:  # fmt: skip
    """Find model and data, encode them, and count what training will take.

    Args:
        parent: the model, where it is known already; else `model.ref` names it.
        recorded: the recipe is one that a run wrote down: its tasks come from where they came then.
        note: is told of what takes time: near text is made, once for a model.

    Raises:
        UnavailableError: if the model or a dataset is not to be had.
        UsageError: if the recipe does not fit the model.
    """
    backend().check_trackers(recipe.track)
    check_optimizer(recipe.train)
    parent = parent or find_subject(recipe.model.ref, store, recipe.model.revision)
    check_parent(recipe, parent)
    given, made = with_made(recipe if recorded else followed(recipe, parent), parent, note)
    tokenizer, model = load_tokenizer(parent.folder), checked_model(parent)
    recipe = settled_here(asked := settled(given, model))
    planned = Streams.of(recipe, tokenizer)
    content = content_of(planned)
    streams = [s.stream for s in planned]
    check_unlearn(recipe)
    for defence in defences_of(recipe):
        defence.check(planned.forget.stream)
    lora, total = recipe.lora is not None, sum(p.numel() for p in model.parameters())
    dtype = saved_dtype(recipe.train.save_dtype, parent.root)
    stored = OnDisk.of(parent, model, dtype)
    if recipe.lora:
        add_adapter(model, recipe.lora, recipe.seed)
    params = trained_params(model, recipe.train.params, lora)
    check_frozen(recipe.train.memory, dtype, parent.root, lora, "train.memory", spread=backend().mesh is not None)
    trainable = sum(p.numel() for p in params.values())
    cached = cache_bytes(recipe, planned, model.config, first_trained(recipe, model, list(params)))
    check_streams(model, streams, tokenizer)
    loaded = lower_of(recipe, parent, model, params, dtype)
    params = params if loaded is model else trained_params(loaded, recipe.train.params, False)
    memory = priced(recipe, Shapes.of(planned), backend().world, loaded, list(params.values()), cached, stored)
    return UnlearnPlan(
        recipe=recipe,
        asked=asked,
        subject=parent,
        parameters=total,
        parents=[parent.record("original" if parent.run is None else "parent")],
        data=[record for s in planned for record in s.records()],
        training=Training(recipe.train.steps, trainable, memory.peak, backend().memory()[0]),
        memory=memory,
        tokenizer=tokenizer,
        streams=planned,
        content=content,
        disk=state_bytes(total, trainable, recipe.train),
        never=find_subject(recipe.model.never, store) if recipe.model.never else None,
        chosen=chosen(given, recipe),
        dtype=dtype,
        depth=None if loaded is model else loaded.config.num_hidden_layers,
        made=made,
    )


def content_of(streams: Streams) -> Content:
    """What the data of a recipe have in common; see `ilu_cli.workflows.content`."""
    envs = [d for each in streams.environments for env in each for d in env.datasets]
    return of_training(streams.forget.datasets, streams.retain.datasets if streams.retain else [], envs)


def label_of(recipe: UnlearnRecipe) -> str:
    """`rmu-irm-gsm8k`: what tells this run from others at a glance."""
    parts = [recipe.objective.name]
    for reg in recipe.regularizers:
        parts += [reg.name, *(re.sub(r"\W+", "_", d.name.rpartition("/")[2]) for d in reg.env)]
    return "-".join([*parts, *(d.name for d in recipe.defences), *(["lora"] if recipe.lora else [])])


def run(plan: UnlearnPlan, store: Store, reporter: Reporter, out: Path | None = None, resume: Run | None = None) -> Run:
    """Train and save. The run's manifest says `complete` last of all.

    Raises:
        RunFailed: if training diverges, the disk fills, or the user interrupts.
    """
    b, recipe, began = backend(), plan.recipe, time.monotonic()
    if resume:
        refuse_held(resume.path, f"run {resume.id}")
    parents = [plan.subject.record("parent")]
    origin = made_from(recipe.model_dump(mode="json"), parents, plan.data, asked_of(recipe))
    agree("unlearn", origin)
    check_disk(out or (resume.path if resume else store.root), plan.disk)
    check_memory(plan.peak_memory, b.memory(), reporter.note)
    t = recipe.train
    model = load(plan.subject, b, plan.depth, narrowing(t.memory, t.params, recipe.lora is not None, "train.params"))
    scorer = Scorer(model, parts_of(model, identity_of(plan.subject, plan.depth)), plan.tokenizer, b)
    scorer.original = functools.cache(lambda: load_scorer(original_of(plan.subject), "fp32", note=reporter.note))
    parity = check(scorer, reporter.note)
    new: Run = b.share(resume or (store.create("unlearn", label_of(recipe), out) if b.main else None))
    with new.held(reporter.note) if b.main else nullcontext():
        _begin(plan, new, origin)
        new.manifest.result["parity"] = parity.facts() | ({"layers": plan.depth} if plan.depth else {})
        with ending(new, b.main), heard():
            _train(plan, new, scorer, reporter, began)
        done: Run = b.share(new)  # which the first process has finished
    return done


def _train(plan: UnlearnPlan, new: Run, scorer: Scorer, reporter: Reporter, began: float) -> None:
    """All steps, and what comes after the last."""
    recipe, model = plan.recipe, scorer.model
    for s in plan.streams:
        for note in s.cut():
            reporter.note(note)
    note_idle(plan.streams, recipe.train.accumulation, reporter.note)
    adapted = add_adapter(model, recipe.lora, recipe.seed) if recipe.lora else None
    spare(model, recipe.train.memory, trained_params(model, recipe.train.params, adapted is not None).values())
    scorer = renewed(scorer, recipe)
    trainer = build_trainer(recipe, plan.streams, scorer, plan.subject.digest)
    new.manifest.result["batches"] = trainer.grads.batches
    note_precision(plan.asked.train.precision, recipe.train.precision, reporter.note)
    if plan.chosen:
        reporter.note(f"chosen for this model: {told(plan.chosen)}")
    tempered = tempered_environments(recipe, plan.streams)
    original = [plan.subject.digest, recipe.train.memory.frozen]
    before = {env.name: best_temperature(env, trainer, recipe, original) for env in tempered}
    healer = build_healer(recipe, plan.streams, trainer, plan.subject.digest)
    tracked = Tracked(reporter, recipe.track, new, recipe.model_dump())
    begun = healer is not None and healing(new)  # known to all processes before the first writes anything
    if not begun:
        for done in drive(trainer, new, tracked, label_of(recipe)):
            if done in recipe.train.points:
                _save(plan, adapted or model, trainer, new.point(done))
        trainer.finish()
        _forgotten(new, trainer, reporter)
    if healer is not None:
        heal(healer, trainer, new, tracked, begun=begun)
    for env in tempered:
        moved = compared(before[env.name], best_temperature(env, trainer, recipe))
        new.manifest.result.setdefault("temperature", {})[env.name] = moved
    new.manifest.result["seconds"] = round(time.monotonic() - began, 1)
    trainer.let_go()
    _save(plan, adapted or model, trainer, new.checkpoint)
    _finish(plan, new, trainer, reporter)


def _save(plan: UnlearnPlan, model: Any, trainer: Trainer, folder: Path) -> None:
    main = backend().main
    if plan.depth is None:
        follows = plan.recipe.lora is None and plan.recipe.train.save_dtype == "stored"
        wide = kept_wide(model, plan.subject.root, plan.dtype) if follows else ()
        save_checkpoint(model, plan.tokenizer, folder, plan.dtype, wide, write=main)
    elif main:
        save_lower(model, trainer.params, plan.tokenizer, plan.subject.folder, folder)


def _forgotten(new: Run, trainer: Trainer, reporter: Reporter) -> None:
    """Write into the manifest what the forgetting came to."""
    new.manifest.result["steps"] = trainer.step
    if used := trainer.budget:
        new.manifest.result["budget"] = used.facts()
        if used.over is None and trainer.backend.main:
            reporter.note(f"the budget was not reached: {used.told()} after {trainer.step} steps")


def _finish(plan: UnlearnPlan, new: Run, trainer: Trainer, reporter: Reporter) -> None:
    """Say that the run, whose model is saved, is complete, and then what the weights' files tell."""
    b = backend()
    b.wait()
    wrong = lost(plan.subject, new, trainer.params, plan.dtype) if b.main or b.mesh else None
    if not b.main:
        return
    new.manifest.result |= {} if wrong is None else {"rounding": wrong}
    new.manifest.result["peak_memory_bytes"] = trainer.backend.peak_memory()
    new.manifest.result["content"] = plan.content.facts()
    new.finish()
    drop_state(new.state)
    new.manifest.result["changed_fraction"] = share = changed(plan.subject, new, reporter)
    new.manifest.result["warnings"] = [w.to_json() for w in _warned(plan, new, share)]
    new.save()


def _warned(plan: UnlearnPlan, new: Run, share: float | None) -> list[Warned]:
    """What its data, its steps and its weights give cause for."""
    rows = read_rows(new.path / "metrics.jsonl")
    envs = [env.stream.name for each in plan.streams.environments for env in each]
    measured = new.manifest.result.get("temperature", {})
    tempered = (temperature_alone(new.id, env, rows, measured.get(env)) for env in envs)
    weak = weak_penalties(new.id, rows)
    small = rounded(new.id, new.manifest.result.get("rounding"), plan.dtype)
    return once([*plan.content.warned, *zeros(new.id, rows), *weak, unchanged(new.id, share), small, *tempered])


def _begin(plan: UnlearnPlan, new: Run, origin: dict[str, object]) -> None:
    """Write the recipe, and into the manifest where the run comes from; one that goes on must come from the same."""
    m, recipe, parent, b = new.manifest, plan.recipe, plan.subject, backend()
    if b.main:
        begin(new, origin)
    m.recipe_sha256, m.seed, m.world_size, m.precision = digest(recipe), recipe.seed, b.world, recipe.train.precision
    m.asked_sha256, m.parents = m.asked_sha256 or digest(plan.asked), [parent.record("parent")]
    if plan.never is None and parent.run:
        m.base, m.never = parent.run.manifest.base, parent.run.manifest.never
    else:
        m.base = parent.record("original") | {"revision": recipe.model.revision}
        m.never = plan.never.record(NEVER) if plan.never else m.never
    m.data, m.inputs = plan.data, inputs_of(recipe)
    m.result |= {"chosen": plan.chosen} if plan.chosen else {}
    m.result |= plan.made
    if b.main:
        keep(recipe, new.path)
        write_text(new.path / "recipe.yaml", dump(recipe))
