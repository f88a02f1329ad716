"""`ilu taskvec apply`: θ = θo + Σ αᵢ τᵢ as a run with lineage, one file of weights at a time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ilu_cli.engine.reporter import Reporter
from ilu_cli.errors import UsageError
from ilu_cli.models.subject import Subject, find_subject, original_of, parent_of
from ilu_cli.recipe.load import digest, dump
from ilu_cli.recipe.schema import ApplyRecipe
from ilu_cli.runs.ending import ending
from ilu_cli.runs.files import BESIDE, INDEX, WEIGHTS, write_json, write_text
from ilu_cli.runs.results import Row
from ilu_cli.runs.store import Run, Store
from ilu_cli.taskvec.arithmetic import combine
from ilu_cli.taskvec.delta import Checkpoint, common_names, open_checkpoint
from ilu_cli.taskvec.stream import Difference
from ilu_cli.workflows.plan import RunPlan, check_disk


@dataclass(kw_only=True)
class ApplyPlan(RunPlan):
    """The sum starts at the `subject`; the vectors are (start, end, α)."""

    recipe: ApplyRecipe
    vectors: list[tuple[Subject, Subject, float]]


def plan(recipe: ApplyRecipe, store: Store, known: Callable[[str], Subject] | None = None) -> ApplyPlan:
    """Find all checkpoints, and check that they have the same weights.

    Args:
        known: the models that the recipe names, where they are known already.

    Raises:
        UsageError: if a source is no run, or it is not clear where the sum should start.
        UnavailableError: if a source is missing or damaged, or of another architecture.
    """
    find, vectors = known or (lambda name: find_subject(name, store)), []
    for spec in recipe.vectors:
        end = find(spec.run)
        start = parent_of(end)
        if start is None:
            raise UsageError(f"{spec.run} was not made from another model by a run, so it has no task vector")
        vectors.append((start, end, spec.alpha))
    origins = {o.digest: o for o in (original_of(end) for _, end, _ in vectors)}
    if recipe.onto is None and len(origins) > 1:
        labels = ", ".join(o.label for o in origins.values())
        raise UsageError(f"the vectors come from several originals ({labels})", hint="say where to add them: --onto")
    onto = find(recipe.onto) if recipe.onto else next(iter(origins.values()))
    names = common_names([open_checkpoint(s) for s in (onto, *(s for v in vectors for s in v[:2]))], None)
    total = sum(open_checkpoint(onto).weight(name).stored.numel for name in names)
    parents = [onto.record("onto")]
    for start, end, alpha in vectors:
        parents += [end.record("vector end") | {"alpha": alpha}, start.record("vector start")]
    return ApplyPlan(recipe=recipe, subject=onto, parameters=total, parents=parents, vectors=vectors)


def run(plan: ApplyPlan, store: Store, reporter: Reporter, out: Path | None = None) -> Run:
    """Add the vectors up and write the model as a run of its own.

    Raises:
        RunFailed: if the disk is too full.
    """
    recipe, onto = plan.recipe, plan.subject
    check_disk(out or store.root, 4 * plan.parameters + (8 << 20))
    new = store.create(recipe.command, recipe.merge, out)
    m = new.manifest
    m.recipe_sha256, m.seed, m.parents = digest(recipe), recipe.seed, plan.parents
    m.base = onto.run.manifest.base if onto.run else onto.record("original")
    m.never = onto.run.manifest.never if onto.run else m.never
    m.precision = "fp64"
    write_text(new.path / "recipe.yaml", dump(recipe))
    with new.held(reporter.note), ending(new, main=True):
        part = new.path / ".checkpoint.part"
        part.mkdir()
        for path in {p for pattern in BESIDE for p in onto.root.glob(pattern) if p.is_file()}:
            copy = part / path.relative_to(onto.root)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)
        m.result = {"norm": _write(plan, part, reporter)}
        part.rename(new.checkpoint)
        new.finish()
    return new


def _write(plan: ApplyPlan, folder: Path, reporter: Reporter) -> float:
    """Write the sum in the files that the model it starts from has; return the norm of what was added."""
    base = open_checkpoint(plan.subject)
    pairs = [(open_checkpoint(start), open_checkpoint(end)) for start, end, _ in plan.vectors]
    files: dict[str, list[str]] = {}
    for name in sorted(base.names):
        files.setdefault(base.weight(name).stored.path.name, []).append(name)
    size, added, widest = 0, 0.0, torch.bfloat16
    for file, names in files.items():
        reporter.note(f"{file}: {len(names)} weights")
        tensors = {}
        for name in names:
            tensors[name], norm = _weight(plan, base, pairs, name)
            size += tensors[name].nbytes
            added += norm
            widest = torch.promote_types(widest, tensors[name].dtype)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    where = {name: file for file, names in files.items() for name in names}
    if set(files) != {WEIGHTS}:
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": where})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(widest).removeprefix("torch.")
    write_json(folder / "config.json", config)
    return math.sqrt(added)


def _weight(
    plan: ApplyPlan, base: Checkpoint, pairs: list[tuple[Checkpoint, Checkpoint]], name: str
) -> tuple[Tensor, float]:
    """One weight of the sum, in the widest type of its sources, and the squared norm of what was added to it."""
    mine, recipe = base.weight(name), plan.recipe
    sources = [mine, *(c.weight(name) for pair in pairs for c in pair)]
    dtype = sources[0].stored.dtype
    for s in sources[1:]:
        dtype = torch.promote_types(dtype, s.stored.dtype)
    found = [Difference.of(start.weight(name), end.weight(name)) for start, end in pairs]
    weight = mine.exact()
    if not any(d.dense or d.low_rank for d in found):
        return weight.to(dtype).contiguous(), 0.0
    deltas = [d.whole() if d.dense or d.low_rank else torch.zeros_like(weight) for d in found]
    alphas = [alpha for *_, alpha in plan.vectors]
    total = combine(weight, deltas, alphas, recipe.merge, recipe.density, recipe.seed, name)
    return total.to(dtype).contiguous(), float((total - weight).norm() ** 2)


def describe(run: Run) -> Row:
    """A finished sum as JSON."""
    m = run.manifest
    return {"run": m.id, "path": str(run.path), "parents": m.parents, "added_norm": m.result["norm"], "seed": m.seed,
            "recipe_sha256": m.recipe_sha256}  # fmt: skip
