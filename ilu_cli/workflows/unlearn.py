"""`ilu unlearn`: recipe → plan → loop → checkpoint, metrics, manifest."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ilu_cli import registry
from ilu_cli.declarations import reference_bytes
from ilu_cli.engine.accel import backend
from ilu_cli.engine.budget import Budget
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.job import drive
from ilu_cli.engine.loop import Penalty, Trainer
from ilu_cli.engine.parity import check
from ilu_cli.engine.reference import fill, median_norm
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.state import drop_state
from ilu_cli.engine.tracking import Tracked
from ilu_cli.errors import IluError, UsageError
from ilu_cli.models.load import add_adapter, checked_model, load_model, load_tokenizer, save_checkpoint, trained_params
from ilu_cli.models.names import first_place
from ilu_cli.models.parts import Parts, parts_of
from ilu_cli.models.subject import Subject, find_subject, is_adapter
from ilu_cli.recipe.load import digest, dump
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.specs import Component, Form
from ilu_cli.runs.files import write_text
from ilu_cli.runs.store import Run, Store
from ilu_cli.taskvec.delta import changed_fraction, open_checkpoint
from ilu_cli.workflows.needs.inputs import inputs_of
from ilu_cli.workflows.plan import (
    Plan,
    StreamPlan,
    add_chosen,
    check_disk,
    check_ids,
    peak_memory,
    plan_stream,
    state_bytes,
)


@dataclass
class UnlearnPlan(Plan):
    """Everything checked, nothing run."""

    recipe: UnlearnRecipe = field(kw_only=True)
    parent: Subject = field(kw_only=True)
    tokenizer: Any = field(kw_only=True)
    forget: StreamPlan = field(kw_only=True)
    retain: StreamPlan | None = field(kw_only=True)
    environments: list[list[StreamPlan]] = field(kw_only=True)
    budget: StreamPlan | None = field(kw_only=True)
    disk: int = field(kw_only=True)

    @property
    def streams(self) -> list[StreamPlan]:
        found = [self.forget, self.retain, *(env for envs in self.environments for env in envs), self.budget]
        return [s for s in found if s]


def plan(recipe: UnlearnRecipe, store: Store) -> UnlearnPlan:
    """Find model and data, encode them, and count what training will take.

    Raises:
        UnavailableError: if the model or a dataset is not to be had.
        UsageError: if the recipe does not fit the model.
    """
    backend().check_trackers(recipe.track)
    parent = find_subject(recipe.model.ref, store, recipe.model.revision)
    tokenizer = load_tokenizer(parent.folder)
    f = recipe.forget
    forget = plan_stream("forget", f.data, f.batch, f, recipe.seed, tokenizer)
    if kind := registry.objective[recipe.objective.name].declared.chosen:
        add_chosen(forget, kind, tokenizer)
    retain = None
    if recipe.retain:
        r = recipe.retain
        retain = plan_stream("retain", r.data, r.batch, r, recipe.seed, tokenizer)
    environments = [
        [plan_stream(d.name, [d], reg.batch, reg, recipe.seed, tokenizer) for d in reg.env]
        for reg in recipe.regularizers
    ]
    budget = _budget_stream(recipe, tokenizer)
    model = checked_model(parent)
    total = sum(p.numel() for p in model.parameters())
    if recipe.lora:
        add_adapter(model, recipe.lora, recipe.seed)
    params = trained_params(model, recipe.train.params, recipe.lora is not None)
    trainable = sum(p.numel() for p in params.values())
    first = _check_layer(recipe, model, list(params))
    streams = [forget, *([retain] if retain else []), *(e for envs in environments for e in envs)]
    streams += [budget] if budget else []
    check_ids(model, [s.stream for s in streams], tokenizer)
    memory = peak_memory(
        model, trainable, first, [s.stream for s in streams], recipe.train, _cache_bytes(recipe, forget, retain, model)
    )
    facts = {
        "command": "unlearn",
        "recipe": recipe.model_dump(),
        "recipe_sha256": digest(recipe),
        "model": {"ref": parent.label, "kind": parent.kind, "folder": str(parent.folder), "parameters": total},
        "parents": [parent.record("original" if parent.run is None else "parent")],
        "steps": recipe.train.steps,
        "trainable_parameters": trainable,
        "peak_memory_bytes": memory,
        "data": [record for s in streams for record in s.records()],
    }
    return UnlearnPlan(
        facts,
        recipe=recipe,
        parent=parent,
        tokenizer=tokenizer,
        forget=forget,
        retain=retain,
        environments=environments,
        budget=budget,
        disk=state_bytes(total, trainable, recipe.train),
    )


def _check_layer(recipe: UnlearnRecipe, model: Any, names: list[str]) -> int:
    """Check the layers that the recipe names; return the first one that is trained (0: embeddings too).

    Raises:
        UsageError: if one does not exist, or nothing at or below the objective's is trained.
    """
    depth = model.config.num_hidden_layers
    named = {f"defences.{i}.layer": d.params().get("layer") for i, d in enumerate(recipe.defences)}
    layer = named["objective.layer"] = recipe.objective.params().get("layer")
    for key, n in named.items():
        if n is not None and n >= depth:
            raise UsageError(f"{key}: {n} does not exist, the model has layers 0 to {depth - 1}")
    first = first_place(model, names)
    if layer is not None and first > layer:
        key = "lora" if recipe.lora else "train.params"
        raise UsageError(f"{key}: no trained weight lies at or below layer {layer}, so nothing can be unlearned")
    return max(first, 0)


def _cache_bytes(recipe: UnlearnRecipe, forget: StreamPlan, retain: StreamPlan | None, model: Any) -> int:
    needed = 0
    specs: list[tuple[registry.Registry[Any], Component | None, StreamPlan | None]] = [
        (registry.objective, recipe.objective, forget),
        (registry.retain_term, recipe.retain, retain),
    ]
    for known, spec, s in specs:
        if spec is None or s is None:
            continue
        needs, rows = known[spec.name].declared.needs, s.stream.visited(recipe.train.steps)
        items = [s.stream.item(k) for k in rows]
        tokens, targets = sum(len(e.ids) for e in items), sum(e.targets for e in items)
        needed += reference_bytes(needs, tokens, targets, model.config.hidden_size, model.config.vocab_size)
    return needed


def _budget_stream(recipe: UnlearnRecipe, tokenizer: Any) -> StreamPlan | None:
    """The text that `train.budget` is measured on: one batch."""
    if (b := recipe.train.budget) is None:
        return None
    return plan_stream("budget", b.data, b.rows, Form(max_length=b.max_length), recipe.seed, tokenizer)


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
    check_disk(out or (resume.path if resume else store.root), plan.disk)
    model = load_model(plan.parent, b.device)
    parity = check(Scorer(model, parts_of(model), plan.tokenizer, b), reporter.note)
    new: Run = b.share(resume or (store.create("unlearn", label_of(recipe), out) if b.main else None))
    m = new.manifest
    m.recipe_sha256, m.seed, m.world_size, m.precision = digest(recipe), recipe.seed, b.world, recipe.train.precision
    m.parents = [plan.parent.record("parent")]
    m.base = plan.parent.run.manifest.base if plan.parent.run else plan.parent.record("original")
    m.base |= {"revision": recipe.model.revision} if not plan.parent.run else {}
    m.data, m.inputs = [record for s in plan.streams for record in s.records()], inputs_of(recipe)
    m.result["parity"] = parity.facts()
    if b.main:
        write_text(new.path / "recipe.yaml", dump(recipe))
        new.save()
    reporter = Tracked(reporter, recipe.track, new, recipe.model_dump())
    for s in plan.streams:
        for d, c in zip(s.datasets, s.corpora):
            if c.truncated:
                reporter.note(f"{s.stream.name}: {c.truncated} of {len(c.items)} examples of {d.ref.name} were cut")
    adapted = add_adapter(model, recipe.lora, recipe.seed) if recipe.lora else None
    trainer = build_trainer(plan, model)
    for done in drive(trainer, new, reporter, label_of(recipe)):
        if b.main and done in recipe.train.points:
            save_checkpoint(adapted or model, plan.tokenizer, new.point(done))
    if trainer.budget and trainer.budget.over is None:
        reporter.note(f"the budget was not reached: KL {trainer.budget.spent:.3g} after {trainer.step} steps")
    for defence in trainer.defences:
        defence.finish(trainer.grads)
    if b.main:
        save_checkpoint(adapted or model, plan.tokenizer, new.checkpoint)
        m.result |= {"steps": trainer.step, "seconds": round(time.monotonic() - began, 1)}
        m.result["peak_memory_bytes"] = b.peak_memory()
        if used := trainer.budget:
            m.result["budget"] = {"kl": used.spent, "limit": used.limit, "beyond": used.over}
        new.finish()
        drop_state(new.state)
        m.result["changed_fraction"] = _changed(plan.parent, new, reporter)
        new.save()
    b.wait()
    return new


def _changed(parent: Subject, run: Run, reporter: Reporter) -> float | None:
    """The share of weights that a finished run changed; None, with a note, if the files cannot be compared."""
    m, base = run.manifest, parent if is_adapter(run.checkpoint) else None
    after = Subject(run.id, "run", run.checkpoint, m.weights, m.beside, run, base)
    try:
        return changed_fraction(open_checkpoint(parent), open_checkpoint(after))
    except (IluError, OSError) as error:
        reporter.note(f"the run is complete; the share of its weights that changed is not known: {error}")
        return None


def build_trainer(plan: UnlearnPlan, model: Any) -> Trainer:
    """Put objective, retain term and regularisers on the model, with their reference caches filled."""
    b, recipe = backend(), plan.recipe
    parts = parts_of(model)
    params = trained_params(model, recipe.train.params, recipe.lora is not None)
    layer = getattr(recipe.objective, "layer", None)
    defences = [registry.defence[d.name].obj(**d.params()) for d in recipe.defences]
    read = max([recipe.train.steps, *(d.steps(plan.forget.stream) for d in defences)])
    terms = [_term("forget", registry.objective, recipe.objective, 1.0, plan.forget, layer, parts, plan, read)]
    if recipe.retain and plan.retain:
        retain, read = recipe.retain, recipe.train.steps
        terms.append(
            _term("retain", registry.retain_term, retain, retain.weight, plan.retain, layer, parts, plan, read)
        )
    penalties = [
        Penalty(
            reg.name,
            [env.stream for env in envs],
            _bound(registry.regularizer[reg.name].obj, reg),
            reg.weight_at,
            reg.env_weights,
            reg.until if reg.schedule == "step" else None,
        )
        for reg, envs in zip(recipe.regularizers, plan.environments)
    ]
    for defence in defences:
        terms[0].values = defence.values(terms[0].values)
    terms[0].defended = True
    trainer = Trainer(parts, params, terms, penalties, recipe.train, recipe.seed, b, defences)
    if plan.budget and recipe.train.budget:
        trainer.budget = Budget.of(plan.budget.stream, recipe.train.budget.kl, trainer.grads)
    return trainer


def _bound(function: Callable[..., Any], spec: Component) -> Callable[[Any], Any]:
    """The registered function with its recipe keys filled in."""
    return lambda view: function(view, **spec.params())


def _term(
    name: str,
    known: registry.Registry[Any],
    spec: Component,
    weight: float,
    data: StreamPlan,
    layer: int | None,
    parts: Parts,
    plan: UnlearnPlan,
    steps: int,
) -> Term:
    """One loss, with what the original model says about the rows of so many `steps`."""
    entry, train = known[spec.name], plan.recipe.train
    needs = entry.declared.needs
    cache = fill(data.stream, needs, layer, steps, parts, backend(), train.precision)
    if "reference.norm" in needs and layer is not None:
        calibration = (plan.retain or plan.forget).stream
        cache.norm = median_norm(calibration, layer, parts, backend(), train.precision)
    return Term(name, data.stream, _bound(entry.obj, spec), entry.declared.per, weight, layer, cache)
