"""What a run reads beside its recipe and its parent's weights, and what may change under the same recipe."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ilu_cli.data.sources import Origin, find_origin
from ilu_cli.errors import UnavailableError
from ilu_cli.models.subject import find_subject
from ilu_cli.recipe.schema import AttackRecipe, EvalRecipe, Recipe
from ilu_cli.runs.files import sha256
from ilu_cli.runs.store import Store
from ilu_cli.workflows.needs.find import refs_of

if TYPE_CHECKING:
    from ilu_cli.workflows.attack.seen import Written


def inputs_of(recipe: Recipe, environments: Iterable[Written] = ()) -> list[str]:
    """Files by their hashes, the hub by its name; nothing for data that comes with the package.

    Args:
        recipe: of a run.
        environments: the unlearning recipes whose environments an attack keeps clear of; they count where an attack
            trains on a dataset of that name.
    """
    refs = list(refs_of(recipe))
    found = {f"{ref.name} ({split}): {stamp}" for _, ref, split in refs if (stamp := _stamp_of(ref, split))}
    if isinstance(recipe, (AttackRecipe, EvalRecipe)):
        files = [Path(name) for name in recipe.eval.named if name.endswith(".yaml") and Path(name).is_file()]
        found |= {f"{path}: {_hash(path)}" for path in files}
    if isinstance(recipe, AttackRecipe):
        found |= {f"{key} {ref}: {_digest(ref)}" for key, ref in other_models(recipe).items()}
    trained = {ref.name for role, ref, _ in refs if role == "attack"}
    return sorted(found | {text for r in environments for text in _seen_in(r, trained)})


def _seen_in(unlearning: Written, trained: set[str]) -> Iterator[str]:
    """What an unlearning run has seen of these datasets as environments."""
    for reg in unlearning["regularizers"]:
        for d in reg["env"]:
            if d["name"] in trained:
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
