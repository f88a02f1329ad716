"""What a run reads beside its recipe and its parent's weights, and what may change under the same recipe."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ilu_cli import registry
from ilu_cli.data.sources import Origin, find_origin
from ilu_cli.errors import UnavailableError
from ilu_cli.models.subject import find_subject
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.schema import AttackRecipe, Recipe, UnlearnRecipe
from ilu_cli.recipe.taskfile import files_of
from ilu_cli.runs.files import sha256
from ilu_cli.runs.store import Store
from ilu_cli.workflows.needs.find import benchmarks_of, refs_of

if TYPE_CHECKING:
    from ilu_cli.workflows.attack.seen import Written


def inputs_of(recipe: Recipe, environments: Iterable[Written] = ()) -> list[str]:
    """Files and plug-ins' code by their hashes, the hub by its name; nothing for what comes with the package.

    Args:
        recipe: of a run.
        environments: the unlearning recipes whose environments an attack keeps clear of; they count where an attack
            trains on a dataset of that name.
    """
    refs = list(refs_of(recipe))
    found = {f"{ref.name} ({split}): {stamp}" for _, ref, split in refs if (stamp := _stamp_of(ref, split))}
    found |= {*asked_of(recipe), *_foreign(ideas_of(recipe)), *_foreign((registry.task, r.name) for _, r, _ in refs)}
    if isinstance(recipe, AttackRecipe):
        found |= {f"{key} {ref}: {_digest(ref)}" for key, ref in other_models(recipe).items()}
    trained = {ref.name: _stamp_of(ref, split) for role, ref, split in refs if role == "attack"}
    return sorted(found | {text for r in environments for text in _seen_in(r, trained)})


def asked_of(recipe: Recipe) -> list[str]:
    """The same of the benchmarks that a run asks alone: task files, all that they read, and code that is not ours."""
    names = benchmarks_of(recipe)
    files = {f for n in names if n.endswith(".yaml") for f in files_of(Path(n))}
    return sorted({*(f"{path}: {_hash(path)}" for path in files), *_foreign((registry.benchmark, n) for n in names)})


def ideas_of(recipe: Recipe) -> Iterator[tuple[registry.Registry[Any], str]]:
    """The ideas that a run is made of, by their registry."""
    if isinstance(recipe, AttackRecipe):
        yield registry.attack, recipe.attack.name
    if isinstance(recipe, UnlearnRecipe):
        yield registry.objective, recipe.objective.name
        yield from [(registry.retain_term, recipe.retain.name)] if recipe.retain else []
        yield from ((registry.regularizer, r.name) for r in recipe.regularizers)
        yield from ((registry.defence, d.name) for d in recipe.defences)


def _foreign(ideas: Iterable[tuple[registry.Registry[Any], str]]) -> Iterator[str]:
    """The code of those that are a plug-in's, by its sha256."""
    for known, name in ideas:
        if name in known and (code := registry.code_of(known[name].obj)):
            yield f"code of the {known.kind} {name}: {code}"


def _seen_in(unlearning: Written, trained: Mapping[str, str | None]) -> Iterator[str]:
    """What an unlearning run has seen of these datasets, given with what is in them, as environments by any name."""
    known = {stamp for stamp in trained.values() if stamp and " " not in stamp}  # of files, and not the hub's name
    for reg in unlearning["regularizers"]:
        for d in reg["env"]:
            if d["name"] in trained or (known and _stamp_of(DataRef(**d), "train") in known):
                steps, seed = unlearning["train"]["steps"], unlearning["seed"]
                yield f"environment {d['name']}: {steps} steps of {reg['batch']}, seed {seed}"


def other_models(recipe: AttackRecipe) -> dict[str, str]:
    """The models beside the one under attack that a recipe names, by key."""
    params = recipe.attack.params()
    return {key: params[key] for key in ("model", "finetuned", "retain") if params.get(key) is not None}


def _digest(ref: str) -> str:
    try:
        return find_subject(ref, Store()).digest
    except UnavailableError:  # its run will say so
        return ""


def _stamp_of(ref: Any, split: str) -> str | None:
    try:
        origin = find_origin(ref, split)
    except UnavailableError:  # its run will say so
        return None
    return None if origin.source in ("builtin", "made") else _contents(origin)


def _contents(origin: Origin) -> str:
    if origin.found is None:
        return f"{origin.source} {origin.hub}"
    files = [
        f for top in origin.found.paths for f in ([top] if top.is_file() else sorted(top.rglob("*"))) if f.is_file()
    ]
    hashes = [_hash(f) for f in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _hash(path: Path) -> str:
    """A file's sha256; that of a file replaced under the same modification time is taken anew."""
    stat = path.stat()
    return _file(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@functools.cache
def _file(path: Path, state: tuple[int, ...]) -> str:
    return sha256(path)
