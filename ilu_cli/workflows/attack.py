"""`ilu attack`: change a run's model in the attacker's way and follow what comes back."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ilu_cli import registry
from ilu_cli.attacks import quartiles
from ilu_cli.engine.accel import backend
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.state import drop_state
from ilu_cli.engine.tracking import Tracked
from ilu_cli.models.load import add_adapter, empty_model, load_tokenizer, save_checkpoint, trained_params
from ilu_cli.models.subject import Subject, original_of
from ilu_cli.recipe.load import digest, dump
from ilu_cli.recipe.schema import AttackRecipe
from ilu_cli.recipe.specs import TrainSpec
from ilu_cli.runs.files import combined, weight_hashes, write_json, write_text
from ilu_cli.runs.store import Run, Store
from ilu_cli.workflows.attempt import Attempted, Priced, unseen
from ilu_cli.workflows.disjoint import Environments, forget_data, unlearning_recipes
from ilu_cli.workflows.evaluate import results_folder, stem
from ilu_cli.workflows.plan import Plan, check_disk, peak_memory, state_bytes


@dataclass
class AttackPlan(Plan):
    """Subject, reference and recipe, checked. What the attack trains on, if it trains, is `fingerprints`.

    `filled` is the recipe with what it leaves open; the recipe as it was given is what a run is known by.
    """

    recipe: AttackRecipe = field(kw_only=True)
    filled: AttackRecipe = field(kw_only=True)
    subject: Subject = field(kw_only=True)
    original: Subject = field(kw_only=True)
    environments: Environments = field(kw_only=True)
    fingerprints: list[str] = field(kw_only=True)
    disk: int = field(kw_only=True)


def plan(recipe: AttackRecipe, subject: Subject) -> AttackPlan:
    """Check data and model, and count. A forget set that the recipe leaves open is that of the lineage.

    Raises:
        UnavailableError: if a dataset is missing or empty.
        UsageError: if the forget data is not known.
    """
    backend().check_trackers(recipe.track)
    lineage = unlearning_recipes(subject)
    filled, environments = fill(recipe, lineage, subject), Environments(lineage)
    model = empty_model(subject.root)
    total = sum(p.numel() for p in model.parameters())
    facts: dict[str, Any] = {
        "command": "attack",
        "recipe": filled.model_dump(),
        "recipe_sha256": digest(recipe),
        "model": {"ref": subject.label, "kind": subject.kind, "folder": str(subject.folder), "parameters": total},
        "parents": [subject.record("target")],
        "data": [],
    }
    entry, kept = registry.attack[recipe.attack.name], 1 if filled.keep != "none" else 0
    spec, trainable = TrainSpec(save_every=0), 0
    if entry.declared["access"] == "training":
        priced = Priced(environments, load_tokenizer(subject.folder), recipe.seed)
        list(entry.obj(priced, **filled.attack.params()))
        if priced.asked is not None:
            stream, spec, lora = priced.asked
            if lora is not None:
                add_adapter(model, lora, recipe.seed)
            trainable = sum(p.numel() for p in trained_params(model, spec.params, lora is not None).values())
            facts |= {
                "steps": spec.steps,
                "trainable_parameters": trainable,
                "peak_memory_bytes": peak_memory(model, trainable, 0, [stream.stream], spec, 0),
                "data": stream.records(),
            }
            kept += len(quartiles(spec.steps)) if filled.keep == "points" else 0
    disk = state_bytes(total, trainable, spec) + 4 * total * (kept - 1)
    return AttackPlan(
        facts, recipe=recipe, filled=filled, subject=subject, original=original_of(subject), environments=environments,
        fingerprints=[d["fingerprint"] for d in facts["data"]], disk=disk,
    )  # fmt: skip


def fill(recipe: AttackRecipe, lineage: list[dict[str, Any]], subject: Subject) -> AttackRecipe:
    """The recipe with the forget data of the lineage, and what is kept, filled in."""
    attack, access = recipe.attack, registry.attack[recipe.attack.name].declared["access"]
    if "data" in type(attack).model_fields and attack.params()["data"] is None:
        refs = forget_data(lineage, "attack.data", subject.label)
        attack = attack.model_copy(update={"data": refs})
    keep = recipe.keep or ("final" if access == "training" else "none")
    return recipe.model_copy(update={"attack": attack, "keep": keep})


def label_of(recipe: AttackRecipe) -> str:
    """`sst2` for a fine-tuning attack, else the attack's name."""
    task = getattr(recipe.attack, "task", None)
    return Path(task.name).stem if task else recipe.attack.name


def find_reference(plan: AttackPlan, store: Store) -> Run | None:
    """A finished run of the same attack, on the same rows, on the original model."""
    wanted = digest(plan.recipe)
    for run in reversed(store.runs()):
        m = run.manifest
        same = run.complete and m.command == "attack" and m.recipe_sha256 == wanted
        rows = [d["fingerprint"] for d in m.data if d["role"] == "attack"]
        original = m.parents[0]["kind"] != "run" and m.parents[0]["weights"] == plan.original.weights
        if same and original and rows == plan.fingerprints:
            return run
    return None


def run(
    plan: AttackPlan, store: Store, reporter: Reporter, subject: Subject, out: Path | None = None,
    resume: Run | None = None,
) -> Run:  # fmt: skip
    """Attack `subject` (the plan's own, or its original as the reference line) and evaluate as it goes.

    Raises:
        RunFailed: if training diverges, the disk fills, or the user interrupts.
    """
    b, recipe, began = backend(), plan.filled, time.monotonic()
    check_disk(out or (resume.path if resume else store.root), plan.disk)
    new = b.share(resume or (store.create("attack", label_of(recipe), out) if b.main else None))
    m = new.manifest
    m.recipe_sha256 = m.recipe_sha256 or digest(plan.recipe)
    m.seed, m.world_size, m.data = recipe.seed, b.world, []
    m.parents = [subject.record("target")]
    m.base = subject.run.manifest.base if subject.run else subject.record("original")
    entry = registry.attack[recipe.attack.name]
    points = m.result.get("points", []) if resume else []
    m.result = {"kind": entry.name, "axis": entry.declared["strength"], "points": points}
    if b.main:
        write_text(new.path / "recipe.yaml", dump(recipe))
        new.save()
    reporter = Tracked(reporter, recipe.track, new, recipe.model_dump())
    title = f"{label_of(recipe)} on {subject.label}"
    attempt = Attempted(subject, plan.original, plan.environments, new, reporter, recipe.seed, recipe.eval, title)
    Follow(attempt, new, recipe).all()
    if b.main:
        m.result["seconds"] = round(time.monotonic() - began, 1)
        if recipe.keep != "none":
            save_checkpoint(attempt.saved, attempt.tokenizer, new.checkpoint)
            _keep_final(attempt, new, points[-1], adapter=attempt.saved is not attempt.model)
        new.finish()
        drop_state(new.state)
    attempt.hooks.close()
    b.wait()
    return new


def point_name(axis: str, strength: float) -> str:
    """The folder of a point: `steps-0000015`, `sigma-0.1`."""
    return f"{axis}-{strength:07d}" if isinstance(strength, int) else f"{axis}-{strength:g}"


class Follow:
    """The protocol of one run: evaluate before the attack, wherever it yields, and in full where it ends."""

    def __init__(self, attempt: Attempted, run: Run, recipe: AttackRecipe) -> None:
        self.attempt, self.run, self.recipe = attempt, run, recipe
        self.entry = registry.attack[recipe.attack.name]
        self.axis: str = self.entry.declared["strength"]
        self.points: list[dict[str, Any]] = run.manifest.result["points"]
        self.seconds = 0.0

    def all(self) -> None:
        """Follow the attack to its end, and put the result into the manifest."""
        declared, attempt = self.entry.declared, self.attempt
        attempt.fa_at = {p["fa"]["step"]: p["fa"] for p in self.points if "fa" in p}
        if declared.get("unattacked") is not None and not self.points:
            self._keep({self.axis: declared["unattacked"], "eval": self._unattacked()})
        for strength in self.entry.obj(attempt, **self.recipe.attack.params()):
            names = self._names(self.recipe.eval.at == "all")
            point = {self.axis: strength, "eval": self._score(strength, names)}
            if strength in attempt.fa_at and declared["access"] == "training":
                point["fa"] = attempt.fa_at[int(strength)]
            if attempt.label is not None:
                point["label"] = attempt.label
            self._keep(point)
            if self.recipe.keep == "points" and backend().main:
                folder = self.run.path / "points" / point_name(self.axis, strength)
                folder.parent.mkdir(exist_ok=True)
                save_checkpoint(attempt.saved, attempt.tokenizer, folder)
        first, last = self.points[0], self.points[-1]
        rest = [n for n in self._names(True) if n not in last["eval"]]
        last["eval"] |= self._score(last[self.axis], rest)
        if first[self.axis] == declared.get("unattacked"):
            self._tell_unseen(first[self.axis], first["eval"])
        fa = attempt.fa_at[max(attempt.fa_at)] if attempt.fa_at else None
        marks = declared["access"] == "training"
        self.run.manifest.result |= result_of(self.points, fa, declared.get("unattacked"), quarters=marks)
        self.run.manifest.result["eval_seconds"] = round(self.seconds, 1)

    def _names(self, every: bool) -> list[str]:
        """The benchmarks to score: those of the forget topic, and if `every` the others, as far as they can change."""
        attempt, known = self.attempt, self.attempt.evaluation.benchmarks
        if attempt.items is not None or attempt.reader is not None:
            return list(attempt.items or attempt.questions())
        every = every and self.entry.declared.get("utility", True)
        forget = [n for n, bench in known.items() if every or bench.role == "forget"]
        return forget or list(known)

    def _keep(self, point: dict[str, Any]) -> None:
        self.points[:] = [p for p in self.points if p[self.axis] != point[self.axis]] + [point]
        if backend().main:
            self.run.save()

    def _score(self, strength: float, names: list[str]) -> dict[str, Any]:
        """Evaluate the model as it is now; keep the rows in the run's eval/<axis>-<strength>/."""
        attempt, began = self.attempt, time.monotonic()
        folder = self.run.eval / point_name(self.axis, strength)
        if backend().main and names:
            attempt.note(f"{self.axis} {attempt.label or strength}: scoring {', '.join(names)}")
        found = {}
        for name in names:
            items = attempt.items[name] if attempt.items is not None else None
            scorer = attempt.reader or attempt.scorer
            found[name] = attempt.evaluation.score(name, f"{self.run.id}@{strength}", scorer, folder, items)
        self._tell_unseen(strength, found)
        self.seconds += time.monotonic() - began
        return found

    def _tell_unseen(self, strength: float, found: dict[str, Any]) -> None:
        """Put beside a point's results on the forget topic the accuracy on what the attack has not taught."""
        folder = self.run.eval / point_name(self.axis, strength)
        for name, summary in found.items() if backend().main else ():
            rows = _rows(folder / f"{stem(name)}.rows.jsonl") if summary["role"] == "forget" else []
            if left := unseen(self.attempt.taught, rows):
                summary["unseen"] = left

    def _unattacked(self) -> dict[str, Any]:
        """The subject's own results, from its eval folder if they are known there by weight hash, else kept there."""
        attempt, subject, found = self.attempt, self.attempt.subject, {}
        store, folder = (
            results_folder(subject),
            self.run.eval / point_name(self.axis, self.entry.declared["unattacked"]),
        )
        for name in self._names(True):
            known = attempt.evaluation.known(name, subject.digest, store)
            if known is None:
                attempt.note(f"before the attack: scoring {name}")
                known = attempt.evaluation.score(name, subject.digest, attempt.scorer, store)
            found[name] = known
            if backend().main:
                _copy(name, store, folder)
        return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _copy(name: str, source: Path, target: Path) -> None:
    """Copy summary and rows of a benchmark."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (f"{stem(name)}.json", f"{stem(name)}.rows.jsonl"):
        if (source / file).is_file():
            shutil.copyfile(source / file, target / file)


def _keep_final(attempt: Attempted, run: Run, point: dict[str, Any], adapter: bool) -> None:
    """The results of the checkpoint that is kept serve `ilu eval` too."""
    hashes = weight_hashes(run.checkpoint)
    weights = combined(hashes | ({"base": attempt.subject.digest} if adapter else {}))
    for name, summary in point["eval"].items():
        _copy(name, run.eval / point_name(run.manifest.result["axis"], point[run.manifest.result["axis"]]), run.eval)
        write_json(run.eval / f"{stem(name)}.json", summary | {"key": attempt.evaluation.key(name, weights)})


def result_of(
    points: list[dict[str, Any]], fa: dict[str, Any] | None, unattacked: float | None, *, quarters: bool
) -> dict[str, Any]:
    """FA; FQ = 1 − accuracy on the forget benchmarks at each point; RA and the worst FQ of the attacked points.

    arXiv 2506.01339: RA is the mean FQ at the first-quartile, median and final checkpoints (`quarters`). For other
    attacks it is the mean over all strengths. `marks` are the strengths that the mean is over.
    """
    axis, fq = next(iter(points[0])), []
    for p in points:
        forget = [s for s in p["eval"].values() if s["role"] == "forget" and s["metric"] == "acc"]
        if forget:
            value = 1 - sum(s["value"] for s in forget) / len(forget)
            fq.append({axis: p[axis], "value": value, "stderr": forget[0]["stderr"] if len(forget) == 1 else None})
    attacked = {f[axis]: f["value"] for f in fq if f[axis] != unattacked}
    marks = list(attacked)
    if quarters and marks:
        final = max(marks)
        marks = sorted({min(attacked, key=lambda s: abs(s - q * final)) for q in (0.25, 0.5, 1.0)})
    found = {"points": points, "fa": fa, "fq": fq, "marks": marks, "unattacked": unattacked}
    over = [attacked[s] for s in marks]
    return found | {
        "ra": sum(over) / len(over) if over else None,
        "worst": min(attacked.values()) if attacked else None,
    }


def reference_run(plan: AttackPlan, store: Store, reporter: Reporter) -> Run | None:
    """The same attack on the original model: found if it was run before, else run now. None if it is the subject."""
    if plan.subject.run is None:
        return None
    known = backend().share(find_reference(plan, store) if backend().main else None)
    if known is not None:
        return known
    reporter.note(f"first the reference line: the same attack on the original, {plan.original.label}")
    return run(plan, store, reporter, plan.original)
